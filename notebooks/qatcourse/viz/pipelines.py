"""The ways from a float network to integers, drawn from the network itself: shapes, bits, ranges and gradients are measured."""

from qatcourse.viz.base import MARKERS, PALETTE, drawing, figure
from qatcourse.viz.svg import Plot

__all__ = ["layer_bits", "maxima", "quantized_chain", "spread", "traditional", "two_ways"]
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


def _place(i: int, count: int, apart: int = 1) -> tuple[int, int]:
    """Where box i of a chain stands: rows are read from left to right, from the top down, `apart` from each other."""
    return i % PER_ROW, apart * (_rows(count) - 1 - i // PER_ROW) + apart - 1


def _chain(axis, seen: dict, texts: dict, kind: str, labels: dict, apart: int = 1):
    """Input, one box a layer, output; labels: what travels on the arrow behind each."""
    boxes = [("input\n12x32x32", "float"), *((texts[name], kind) for name in seen), ("heat maps\n14x16x16", "float")]
    travels = [labels["input"], *(labels[name] for name in seen)]
    for i, (text, look) in enumerate(boxes):
        x, y = _place(i, len(boxes), apart)
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
def quantized_chain(seen: dict, bits: dict, limits: dict, gradients: dict):
    """The network in QAT: codes in the boxes, 8-bit ranges on the arrows, gradients to the float weights. (figure, sentence)."""
    count = len(seen) + 2
    fig, axis = _canvas(PER_ROW, 2 * _rows(count), 2.0 * _rows(count) + 0.4)
    codes = {name: f"{name}\n{b}-bit codes\n{-(1 << b - 1)}..{(1 << b - 1) - 1}" for name, b in bits.items()}
    labels = {"input": "8 bit"} | {name: f"±{limits[name]:g}" for name in seen}
    labels[list(seen)[-1]] = "32 bit"
    _chain(axis, seen, codes, "quantized", labels, apart=2)
    for i, name in enumerate(seen, 1):
        x, y = _place(i, count, 2)
        _box(axis, x, y - 1, f"weights\nFP32\ngrad. {gradients[name]:.2g}", "weights")
        _arrow(axis, (x - 0.12, y - 0.66), (x - 0.12, y - 0.34), colour=PALETTE["blue"])
        _arrow(axis, (x + 0.12, y - 0.34), (x + 0.12, y - 0.66), colour=PALETTE["red"], line="--")
    x, y = _place(0, count, 2)
    axis.text(x, y - 1, "up: rounded\ndown, dashed:\ngradients", fontsize=8.5, ha="center", va="center")
    axis.set_title("QAT: forward through codes, gradients straight through to the FP32 weights")
    return fig, (
        f"QAT with {', '.join(f'{name} {b}' for name, b in bits.items())} bits; gradients reach the float weights of all "
        f"{len(gradients)} layers, with norms from {min(gradients.values()):.2g} to {max(gradients.values()):.2g}."
    )


@drawing
def two_ways(fp32: float, longer: float, ptq: float, qat: float, bits: int, pictures: int):
    """PTQ and QAT from one float network, PCK in every box; `ptq`: the best that was tried. Returns (figure, sentence)."""
    fig, axis = _canvas(4, 2, 2.4)
    ends = [(f"{name}\nPCK {pck:.3f}", "quantized") for name, pck in (("best PTQ", ptq), ("QAT", qat))]
    upper = [(f"float, trained on\nPCK {longer:.3f}", "float"), ("calibrate,\nquantize", "quantized"), ends[0]]
    lower = [("start QAT,\nweights stay FP32", "weights"), ("train on\nwith rounding", "quantized"), ends[1]]
    for y, boxes in ((1, upper), (0, lower)):
        for x, (text, kind) in enumerate(boxes, 1):
            _box(axis, x, y, text, kind, width=0.74)
            if x > 1:
                _arrow(axis, (x - 0.6, y), (x - 0.4, y))
    _box(axis, 0, 0.5, f"train FP32\nPCK {fp32:.3f}")
    _arrow(axis, (0.37, 0.6), (0.6, 1.0))
    _arrow(axis, (0.37, 0.4), (0.6, 0.0))
    axis.set_title(f"PTQ above, QAT below: {bits}-bit weights, the same {pictures:,} further pictures")
    ahead = "QAT" if qat > ptq else "PTQ" if ptq > qat else "neither"
    return fig, (
        f"From a float network with PCK {fp32:.3f}: trained on in float {longer:.3f}, then the best PTQ at {bits} bits {ptq:.3f}; "
        f"QAT {qat:.3f}. Ahead: {ahead}, by {abs(qat - ptq):.3f}."
    )


@drawing
def maxima(seen: dict, limits: dict):
    """Largest output of each layer beside +-1 and beside the range calibration chose. Returns (figure, sentence)."""
    fig, axis = figure(height=2.7)
    values = {name: y.abs().max().item() for name, y in seen.items()}
    lost = {name: (y.abs() > 1).float().mean().item() for name, y in seen.items()}
    x = range(len(values))
    axis.bar(x, list(values.values()), 0.6, color=PALETTE["sky"], label="largest value")
    for place, (name, value) in enumerate(values.items()):
        above = value if value > 1.3 * limits[name] else max(value, 1.15 * limits[name])  # clear of the diamond
        axis.annotate(f"{value:.3g}", (place, above), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    axis.plot(x, [limits[name] for name in values], "D", color=PALETTE["orange"], markeredgecolor="black", label="calibrated range")
    axis.axhline(1, color=PALETTE["red"], linestyle="--", label="range without calibration")
    axis.set_yscale("log", base=2)
    axis.set_xticks(x, list(values), rotation=45)
    axis.set(ylabel="absolute value", title="What each layer needs")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    worst = max(lost, key=lost.get)
    return fig, (
        f"Largest outputs lie between {min(values.values()):.3g} and {max(values.values()):.3g}, the range without calibration "
        f"ends at 1; {worst} loses most: {lost[worst]:.0%} of its values lie outside."
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


def layer_bits(rows: list[dict], layer: str, bits: int):
    """One row of `ptq.sensitivity` for a slider: bytes of each layer, PCK, and the chip's verdict. Returns (svg, sentence)."""
    row = next(row for row in rows if row["layer"] == layer and row["bits"] == bits)
    eight = next(r for r in rows if r["layer"] == layer and r["bits"] == 8)
    sizes, largest = row["sizes"], max(eight["sizes"].values()) / 1000
    title = f"{layer} at {bits} bits, all others at 8"
    plot = Plot((0, len(sizes)), (0, 1.15 * largest), title, "layer, in order", "kB of weights", width=640, x_ticks=())
    for i, (name, size) in enumerate(sizes.items()):
        plot.bars([i + 0.15, i + 0.85], [size / 1000], "orange" if name == layer else "sky")
        for text, above in ((name, 0.075), (f"{size / 1000:.1f}", 0.015)):
            plot.text(i + 0.5, size / 1000 + above * largest, text, anchor="middle")
    verdict = "fits" if row["fits"] else "does not fit"
    return str(plot), (
        f"{layer} at {bits} bits: PCK {row['pck']:.3f} without training ({row['pck'] - eight['pck']:+.3f}), {row['bytes']:,} bytes "
        f"of weights ({row['bytes'] - eight['bytes']:+,}), {row['words']:,} words on the fullest processor; it {verdict} the chip."
    )
