"""The figure of a sweep: the first recorded number against the first parameter that varies."""

import numpy as np


def axes_of(records: list[dict]) -> tuple[str, str | None]:
    """(parameter along the axis, parameter told apart by colour); `seed` comes last, because its runs are repetitions."""
    names = list(records[0]["parameters"])
    several = [name for name in names if len({repr(record["parameters"][name]) for record in records}) > 1]
    ordered = [name for name in several if name != "seed"] or several or names[:1]
    return ordered[0], ordered[1] if len(ordered) > 1 else None


def metric_of(records: list[dict]) -> tuple[str, list[float]]:
    """(name, values) of the first number that every run recorded; the seconds they took, where there is none."""
    for name in records[0]["metrics"]:
        values = [record["metrics"].get(name) for record in records]
        if all(isinstance(value, (int, float)) for value in values):
            return name, [float(value) for value in values]
    return "seconds", [record["seconds"] for record in records]


def draw(records: list[dict]) -> tuple[bytes, str] | None:
    """(PNG bytes, one sentence), or None while nothing is finished. Points are runs, lines join the means."""
    done = [record for record in records if record["status"] == "done"]
    if not done:
        return None
    from qatcourse.viz.base import figure, png, style

    along, apart = axes_of(done)
    metric, values = metric_of(done)
    (ticks, at), (groups, group) = _places(done, along), _places(done, apart)
    with style():
        made, axes = figure(height=3.4)
        for number, name in enumerate(groups):
            chosen = [index for index, own in enumerate(group) if own == number]
            _series(axes, [at[i] for i in chosen], [values[i] for i in chosen], number, f"{apart} = {name}" if apart else None)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set(xlabel=along, ylabel=metric, title=f"{metric} of {len(done)} runs")
        if apart:
            axes.legend()
    parts = ", ".join(f"{mean:.4g} at {along} = {ticks[place]}" for place, mean in _means(at, values).items())
    return png(made), f"The mean {metric} of {len(done)} runs is {parts}."


def _places(done: list[dict], name: str | None) -> tuple[list[str], list[int]]:
    """(distinct values of parameter `name`, the index of each run's own one); 1, 1.0 and True stay three, no name is one."""
    values = [record["parameters"].get(name) for record in done]
    texts = {repr(value): str(value) for value in values}
    order = [*texts]
    return [*texts.values()], [order.index(repr(value)) for value in values]


def _means(at: list[int], values: list[float]) -> dict[int, float]:
    return {place: np.mean([value for own, value in zip(at, values) if own == place]) for place in sorted(set(at))}


def _series(axes, at: list[int], values: list[float], number: int, label: str | None) -> None:
    from qatcourse.viz.base import LINES, MARKERS

    look = {"marker": MARKERS[number % len(MARKERS)], "linestyle": LINES[number % len(LINES)], "color": f"C{number % 7}"}
    axes.plot(at, values, **{**look, "linestyle": "none"}, alpha=0.5, markersize=5)
    means = _means(at, values)
    axes.plot([*means], [*means.values()], **look, markersize=8, label=label)
