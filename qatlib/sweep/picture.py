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


def draw(records: list[dict]):
    """(PNG bytes, one sentence), or None while nothing is finished. Points are runs, lines join the means."""
    done = [record for record in records if record["status"] == "done"]
    if not done:
        return None
    from qatlib.viz.base import LINES, MARKERS, figure, png, style

    along, apart = axes_of(done)
    metric, values = metric_of(done)
    ticks = _distinct(record["parameters"][along] for record in done)
    with style():
        made, axes = figure(height=3.4)
        for index, group in enumerate(_distinct(record["parameters"][apart] for record in done) if apart else [None]):
            chosen = [i for i, record in enumerate(done) if apart is None or repr(record["parameters"][apart]) == repr(group)]
            at = [ticks.index(done[i]["parameters"][along]) for i in chosen]
            label = None if apart is None else f"{apart} = {group}"
            look = {"marker": MARKERS[index % len(MARKERS)], "linestyle": LINES[index % len(LINES)], "color": f"C{index % 7}"}
            _series(axes, at, [values[i] for i in chosen], look, label)
        axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        axes.set(xlabel=along, ylabel=metric, title=f"{metric} of {len(done)} runs")
        if apart:
            axes.legend()
        return png(made), sentence(done, along, metric, values, ticks)


def _distinct(values) -> list:
    """The distinct values in order; 1, 1.0 and True stay three."""
    return list({repr(value): value for value in values}.values())


def _series(axes, at: list[int], values: list[float], look: dict, label: str | None) -> None:
    axes.plot(at, values, **{**look, "linestyle": "none"}, alpha=0.5, markersize=5)
    places = sorted(set(at))
    means = [np.mean([value for place, value in zip(at, values) if place == p]) for p in places]
    axes.plot(places, means, **look, markersize=8, label=label)


def sentence(done: list[dict], along: str, metric: str, values: list[float], ticks: list) -> str:
    """What the figure shows, in words."""
    means = [np.mean([v for v, record in zip(values, done) if repr(record["parameters"][along]) == repr(tick)]) for tick in ticks]
    parts = ", ".join(f"{mean:.4g} at {along} = {tick}" for mean, tick in zip(means, ticks))
    return f"The mean {metric} of {len(done)} runs is {parts}."
