"""The figure of a sweep: the first recorded number, and others of its kind, against the first parameter that varies."""

import numpy as np


def axes_of(records: list[dict]) -> tuple[str, str | None]:
    """(parameter along the axis, parameter told apart by colour); `seed` comes last, because its runs are repetitions."""
    names = list(records[0]["parameters"])
    several = [name for name in names if len({repr(record["parameters"][name]) for record in records}) > 1]
    ordered = [name for name in several if name != "seed"] or several or names[:1]
    return ordered[0], ordered[1] if len(ordered) > 1 else None


def metrics_of(records: list[dict]) -> dict[str, list[float]]:
    """name -> values: the first number that every run recorded and those called like it (`pck`, `fp32_pck`); else the seconds."""
    columns = {name: [record["metrics"].get(name) for record in records] for name in records[0]["metrics"]}
    whole = {name: values for name, values in columns.items() if all(isinstance(value, (int, float)) for value in values)}
    first = next(iter(whole), None)
    like = {name: [float(v) for v in values] for name, values in whole.items() if name == first or name.endswith(f"_{first}")}
    return like or {"seconds": [record["seconds"] for record in records]}


def draw(records: list[dict]) -> tuple[bytes, str] | None:
    """(PNG bytes, one sentence), or None while nothing is finished. A dot is a run, a bar the mean of those at one place."""
    done = [record for record in records if record["status"] == "done"]
    if not done:
        return None
    from qatcourse.viz.base import figure, png, style

    along, apart = axes_of(done)
    metrics, (ticks, at), (groups, group) = metrics_of(done), _places(done, along), _places(done, apart)
    metric, *others = metrics
    series = [(metric, own) for own in range(len(groups))] + [(kind, None) for kind in others]  # None: all runs together
    with style():
        made, axes = figure(height=3.6)
        said = []
        for number, (kind, own) in enumerate(series):
            chosen = [index for index, mine in enumerate(group) if own in (None, mine)]
            name = ", ".join([kind] * bool(others) + ([] if apart is None or own is None else [f"{apart} = {groups[own]}"]))
            values = [metrics[kind][index] for index in chosen]
            ranges = _series(axes, [at[index] for index in chosen], values, number, len(series), name)
            said += [f"{text} at {along} = {ticks[place]}{name and f' ({name})'}" for place, text in ranges.items()]
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set(xlabel=f"{along}; a dot is a run, a bar the mean", ylabel=metric, title=f"{metric} of {len(done)} runs")
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        if len(series) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return png(made), f"The {metric} of {len(done)} runs, mean (least to most): {', '.join(said)}."


def _places(done: list[dict], name: str | None) -> tuple[list[str], list[int]]:
    """(distinct values of parameter `name`, the index of each run's own one); 1, 1.0 and True stay three, no name is one."""
    values = [record["parameters"].get(name) for record in done]
    texts = {repr(value): str(value) for value in values}
    order = [*texts]
    return [*texts.values()], [order.index(repr(value)) for value in values]


def _series(axes, at: list[int], values: list[float], number: int, count: int, label: str) -> dict[int, str]:
    """Draw one of `count` series beside the others; what is to be said of each place."""
    from qatcourse.viz.base import MARKERS

    said, width = {}, 0.8 / count
    for place in sorted(set(at)):
        own, x = [value for value, where in zip(values, at) if where == place], place + (number - (count - 1) / 2) * width
        spread = np.linspace(-0.25, 0.25, len(own)) * width if len(own) > 1 else [0]  # equal values would hide one another
        look = {"marker": MARKERS[number % len(MARKERS)], "linestyle": "none", "color": f"C{number % 7}", "markersize": 6}
        axes.plot(x + np.array(spread), own, alpha=0.7, label=None if said else label, **look)
        axes.hlines(np.mean(own), x - 0.4 * width, x + 0.4 * width, color=look["color"], linewidth=2)
        said[place] = f"{np.mean(own):.4g}" + (f" ({min(own):.4g} to {max(own):.4g})" if len(own) > 1 else "")
    return said
