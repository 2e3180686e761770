"""The ways from a float network to integers, drawn from the network itself: shapes, ranges and errors are measured."""

import numpy as np

from qatcourse.viz.base import MARKERS, PALETTE, drawing, figure
from qatcourse.viz.quantizers import errors
from qatcourse.viz.svg import Plot, side_by_side

__all__ = ["clip_and_round", "spread", "threshold_errors", "traditional"]
_LOOK = {"float": ("#ffffff", "-"), "quantized": ("#fdf0d5", "-"), "weights": ("#e3f1fb", "--")}
PER_ROW = 5  # boxes side by side: at 7.2 inches their text stays readable


def _canvas(columns: int, rows: int, height: float):
    fig, axis = figure(height=height)
    axis.set(xlim=(-0.45, columns - 0.3), ylim=(-0.6, rows - 0.4))
    axis.axis("off")
    return fig, axis


def _box(axis, x, y, text, kind="float", width=0.66, height=0.62):
    colour, line = _LOOK[kind]
    axis.text(x, y, text, ha="center", va="center", fontsize=9, linespacing=1.3)
    from matplotlib.patches import FancyBboxPatch

    style = {"boxstyle": "round,pad=0.03", "facecolor": colour, "edgecolor": "black", "linestyle": line, "linewidth": 1}
    axis.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))


def _arrow(axis, start, end, colour="black", line="-"):
    axis.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "->", "color": colour, "linestyle": line, "linewidth": 1.4})


def _rows(count: int) -> int:
    return -(-count // PER_ROW)


def _chain(axis, seen: dict, texts: dict, kind: str, labels: dict):
    """Input, one box per layer, output, read from left to right and down; labels: what travels on the arrow after each."""
    boxes = [("input\n12x32x32", "float"), *((texts[name], kind) for name in seen), ("heat maps\n14x16x16", "float")]
    travels = [labels["input"], *(labels[name] for name in seen)]
    for i, (text, look) in enumerate(boxes):
        x, y = i % PER_ROW, _rows(len(boxes)) - 1 - i // PER_ROW
        _box(axis, x, y, text, look)
        if i < len(travels):
            _arrow(axis, (x + 0.37, y), (x + 0.62, y))
            axis.text(x + 0.5, y + 0.07, travels[i], fontsize=8, ha="center", va="bottom")


def _shape(y) -> str:
    return "x".join(map(str, y.shape[1:]))


@drawing
def traditional(seen: dict):
    """The float network: every layer with its output's shape and largest value; `seen` from `ptq.outputs`. (figure, sentence)."""
    rows = _rows(len(seen) + 2)
    fig, axis = _canvas(PER_ROW, rows, 1.1 * rows + 0.3)
    largest = {name: y.abs().max().item() for name, y in seen.items()}
    labels = {"input": "1"} | {name: f"{value:.3g}" for name, value in largest.items()}
    _chain(axis, seen, {name: f"{name}\nFP32\n{_shape(y)}" for name, y in seen.items()}, "float", labels)
    axis.set_title("All in FP32; on the arrows the largest absolute value")
    beyond = [name for name, value in largest.items() if value > 1]
    top = max(largest, key=largest.get)
    return fig, (
        f"The float network, {len(seen)} layers: {len(beyond)} of their outputs leave the range -1 to 1; the largest value, "
        f"{largest[top]:.3g}, leaves {top}."
    )


@drawing
def spread(rows: list[dict]):
    """PCK lost against FP32, by bits and version, one mark a run; `rows` from `ptq.stored_rows`. Returns (figure, sentence)."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    widths = sorted({row["bits"] for row in rows}, reverse=True)
    fig, axis = figure(height=3.0)
    for k, (version, colour) in enumerate((("naive", "black"), ("ptq", "sky"), ("qat", "orange"))):
        for j, run in enumerate(runs):
            mine = [row for row in rows if row["run"] == run]
            places = [widths.index(row["bits"]) + (k - 1) * 0.24 + (j - (len(runs) - 1) / 2) * 0.03 for row in mine]
            share = [row[version] / row["fp32"] for row in mine]
            axis.plot(places, share, MARKERS[j], color=PALETTE[colour], markersize=6)
    axis.axhline(1, color="black", linewidth=1, linestyle=":")
    axis.set_xticks(range(len(widths)), [f"naive     PTQ     QAT\n{b} bits" for b in widths])
    axis.set(ylabel="PCK as share of FP32", title="What is left of PCK after quantization", ylim=(0, 1.1))
    for j, run in enumerate(runs):
        axis.plot([], [], MARKERS[j], color="none", markeredgecolor="black", label=run)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), title="run", alignment="left")
    said = []
    for b in widths:
        some = [row for row in rows if row["bits"] == b]
        mean = {v: sum(row[v] / row["fp32"] for row in some) / len(some) for v in ("naive", "ptq", "qat")}
        count = f"{len(some)} run{'s' if len(some) > 1 else ''}"
        said.append(f"{b} bits, {count}: naive {mean['naive']:.0%}, PTQ {mean['ptq']:.0%}, QAT {mean['qat']:.0%}")
    return fig, f"Share of the float network's PCK that is kept, mean of the stored runs. {'; '.join(said)}."


def threshold_errors(values, name: str, most: int = 1 << 20):
    """For sliders: what draws (svg, sentence) of a layer's outputs for a threshold: its range, what it clips, the errors.

    Of large tensors about `most` values are counted, evenly spaced, and the largest.
    """
    flat = values.detach().flatten()
    largest, flat = flat.abs().max().item(), flat[:: max(1, flat.numel() // most)]
    counts, edges = np.histogram(flat.numpy(), bins=90, range=(min(flat.min().item(), 0.0), 1.02 * largest))
    tried, power = range(-2, 6), flat.double().square().mean().item()
    found = {t: errors(flat, 2.0**t / 128) for t in tried}
    parts = {"round error": ("blue", "6 3"), "clip error": ("orange", "2 3"), "both": ("black", "")}
    lines = {"round error": [found[t]["round"] for t in tried], "clip error": [found[t]["clip"] for t in tried]}
    lines["both"] = [sum(pair) for pair in zip(*lines.values())]
    share = {part: np.log10(np.maximum(line, 1e-9 * power) / power) for part, line in lines.items()}

    def draw(t: int):
        end, height = 2.0**t, np.log10(1 + counts.max()) * 1.15
        title = f"{name} outputs: ±2^{t} = ±{end:g}"
        left = Plot((edges[0], edges[-1]), (0, height), title, "real value", "log10 values per bar", 380)
        left.bars(edges, np.log10(1 + counts))
        for low, high in ((max(end, edges[0]), edges[-1]), (edges[0], min(-end, edges[-1]))):
            if low < high:
                left.band(low, high, "orange", 0.3)
        left.legend({"values": "sky", "clipped": "orange"}, x=230)
        axes = (-2.5, 5.5), (-7, 0.6), "error of each threshold t", "t", "log10 (squared error / signal)", 380
        right = Plot(*axes, x_ticks=tried)
        for part, (colour, dash) in parts.items():
            right.line(list(tried), np.maximum(share[part], -7), colour, dash)
        right.points([t], share["both"][[t - tried[0]]], "red", 6)
        right.legend({part: colour for part, (colour, _) in parts.items()} | {"this t": "red"}, x=215, y=12)
        best = min(tried, key=lambda t: found[t]["round"] + found[t]["clip"])
        cost = {part: f"{found[t][part] / power:.1e}" for part in ("clip", "round")}
        return side_by_side(left, right), (
            f"{name}, t = {t}: full scale {end:g}, step {end / 128:.3g}; {found[t]['clipped']:.2%} of the outputs are clipped. "
            f"Squared error over signal: {cost['clip']} by clipping, {cost['round']} by rounding. The sum is least at t = {best}."
        )

    return draw


@drawing
def clip_and_round(seen: dict, ranges: dict):
    """Clip and round error of every layer's 8-bit outputs, with full scale 1 and with 2^`ranges`. Returns (figure, sentence)."""
    fig, axes = figure(1, 2, height=3.1, width=8.2, sharey=True)
    worst, clipped = [], []
    for axis, title, wanted in zip(axes, ("range ±1", "calibrated range"), (dict.fromkeys(seen, 0), ranges)):
        found = {name: errors(y, 2.0 ** wanted[name] / 128) for name, y in seen.items()}
        power = {name: y.double().square().mean().item() for name, y in seen.items()}
        for part, colour, marker in (("clip", "orange", "s"), ("round", "blue", "o")):
            shares = [max(found[name][part] / power[name], 1e-8) for name in seen]
            axis.plot(list(seen), shares, marker, color=PALETTE[colour], label=f"{part} error")
            worst.append(f"{part} error at most {max(shares):.1e}")
        clipped.append(max(one["clipped"] for one in found.values()))
        axis.set(title=title, yscale="log", ylim=(1e-8, 2))
        axis.set_xticks(range(len(seen)), list(seen), rotation=60)
    axes[0].set_ylabel("squared error / signal")
    axes[0].legend(loc="lower left")
    return fig, (
        f"Squared error of 8-bit outputs, as a share of the signal, layer by layer. Range ±1: {worst[0]}, {worst[1]}, up to "
        f"{clipped[0]:.0%} of the values clipped. Calibrated: {worst[2]}, {worst[3]}, up to {clipped[1]:.2%} clipped "
        "(a mark on the lower edge: none)."
    )
