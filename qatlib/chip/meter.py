"""The fit meter: does this network fit the chip, what does each layer cost, and what to do where it does not fit."""

from dataclasses import dataclass, field

from qatlib.chip.cycles import STARTUP, cycles
from qatlib.chip.describe import describe
from qatlib.chip.limits import bias_bytes, notes, violations
from qatlib.chip.memory import Memory, planned
from qatlib.chip.placement import Placement
from qatlib.chip.schedule import SUMS, Step, steps
from qatlib.chip.spec import CLOCK_HZ, DEVICES, PROCESSORS, LayerSpec, kernel_words, processors
from qatlib.wording import columns, need

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")  # Okabe & Ito 2008: for any colour vision
FORMULA = (
    "cycles a layer, as the vendor's tool estimates: passes x (output pixels x output channels + reading each pooled, padded "
    "pixel); at 50 MHz"
)


@dataclass(frozen=True)
class Row:
    """What one layer costs: `words` of kernel memory on each of `processors`, data memory in bytes, `cycles` estimated."""

    name: str
    kind: str
    shape: str
    bits: int
    weights: int
    weight_bytes: int
    words: int
    processors: int
    data_in: int
    data_out: int
    macs: int
    cycles: int

    @property
    def seconds(self) -> float:
        """Estimated time at 50 MHz."""
        return self.cycles / CLOCK_HZ


@dataclass
class Fit:
    """Result of `fit`: `rows` a layer, totals, `violations` (sentences with remedies); `print` it, or `plot()` it.

    `notes` are sentences on what fits, but computes otherwise than training does.
    `layers` counts the chip's own, as the vendor's tool does: copies for skip connections and sums or pools by themselves, too.
    """

    device: int
    rows: list[Row]
    placement: Placement
    memory: Memory
    violations: list[str]
    sequence: list[Step]
    layers: int
    bias_bytes: int
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether no limit of the chip is violated."""
        return not self.violations

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights at their own bits, without biases."""
        return sum(row.weight_bytes for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiplications with additions a picture, as of `LayerSpec`."""
        return sum(row.macs for row in self.rows)

    @property
    def cycles(self) -> int:
        """Estimated clock cycles a picture; see `FORMULA`."""
        return STARTUP + sum(row.cycles for row in self.rows)

    @property
    def seconds(self) -> float:
        """Estimated time of a picture at 50 MHz."""
        return self.cycles / CLOCK_HZ

    @property
    def words(self) -> int:
        """Words in use on the fullest processor."""
        return max(self.placement.used)

    @property
    def data_bytes(self) -> int:
        """Bytes in use of the fullest data memory (4 processors share one)."""
        return max((self.memory.offset[b] + self.memory.size[b] for b in self.memory.offset), default=0)

    def __str__(self) -> str:
        chip = DEVICES[self.device]
        head = ("layer", "operation", "shape", "bits", "bytes", "words", "proc.", "data in", "data out", "MAC", "cycles", "us")
        table = columns([head, *map(_cells, self.rows)], right=range(3, len(head)))
        capacity = sum(chip.words) * 9
        totals = (
            f"{chip.name}: {self.weight_bytes:,} of {capacity:,} bytes of weights ({100 * self.weight_bytes / capacity:.1f} %); "
            f"fullest processor {self.words:,} of {min(chip.words):,} words; "
            f"data {self.data_bytes:,} of {chip.data_bytes:,} bytes a memory; "
            f"bias {self.bias_bytes:,} of {4 * chip.bias_bytes:,} bytes; {self.layers} of {chip.layers} layers; "
            f"{self.macs:,} MAC; {self.cycles:,} cycles, {1e3 * self.seconds:.2f} ms"
        )
        verdict = "It fits." if self.fits else "It does not fit:\n" + "\n".join(f"- {sentence}" for sentence in self.violations)
        return "\n".join([table, totals, verdict, *(f"Note: {sentence}." for sentence in self.notes), f"({FORMULA})"])

    def sentence(self) -> str:
        """One sentence that says what `plot` shows."""
        chip, used = DEVICES[self.device], self.placement.used
        state = "fits" if self.fits else "does not fit"
        idle = used.count(0)
        return (
            f"Kernel memory of the {chip.name}: {len(self.placement.offset)} layers on {PROCESSORS - idle} processors, the fullest "
            f"with {self.words:,} of {chip.words[used.index(self.words)]:,} words in use; the network {state}."
        )

    def plot(self, ax=None):
        """Draw the processor x word map, a colour and a number a layer, and return the axes; its title is `sentence()`."""
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise need("matplotlib", "course") from None

        ax = ax or plt.subplots(figsize=(9, 4.5))[1]
        plan, hatches = self.placement, ("", "//", "..", "xx")
        for i, (name, offset) in enumerate(sorted(plan.offset.items(), key=lambda item: item[1])):
            start, words = plan.start[name], plan.words[name]
            runs, height = (range(start, start + 1), plan.count[name]) if plan.step[name] == 1 else (plan.columns_of(name), 1)
            style = {"facecolor": COLOURS[i % len(COLOURS)], "hatch": hatches[i // len(COLOURS) % 4], "edgecolor": "white"}
            ax.barh([p + height / 2 - 0.5 for p in runs], words, height=height, left=offset, label=f"{name} ({words})", **style)
            where = {"x": offset + words / 2, "y": runs[0] + height / 2, "ha": "center", "va": "center", "rotation": 90}
            ax.text(s=name, fontsize="x-small", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, **where)
        ax.axvline(min(DEVICES[self.device].words), color="black", linestyle="--", linewidth=1)
        ax.set(
            xlim=(0, max(DEVICES[self.device].words)), ylim=(PROCESSORS - 0.5, -0.5), xlabel="word (72 bits)", ylabel="processor"
        )
        ax.legend(title="layer (words)", loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)
        ax.set_title(self.sentence(), fontsize="small", wrap=True)
        return ax


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (row.bits or "", row.weight_bytes, row.words, row.processors, row.data_in, row.data_out, row.macs, row.cycles)
    return (row.name, row.kind, row.shape, *(f"{n:,}" if isinstance(n, int) else n for n in numbers), f"{1e6 * row.seconds:.1f}")


def _row(layer: LayerSpec, name: str, kind: str, clock: int) -> Row:
    pool = f"{layer.pool_kind} {layer.pool[0]}x{layer.pool[1]} + " if layer.pool_kind and layer.has_weights else ""
    shape = f"{layer.c_in}x{layer.h_in}x{layer.w_in} -> {layer.c_out}x{layer.h_out}x{layer.w_out}"
    kernel = f" {layer.kernel[0]}x{layer.kernel[1]}" if layer.has_weights and layer.kind != "linear" else ""
    data_in = layer.c_in * layer.h_in * layer.w_in * (len(layer.inputs) if layer.kind in SUMS else 1)
    data_out = layer.c_out * layer.h_out * layer.w_out * (4 if layer.wide else 1)
    bits = layer.bits if layer.has_weights else 0
    return Row(name, pool + kind + kernel, shape, bits, layer.weights, layer.weight_bytes,
               kernel_words(layer), processors(layer.c_in), data_in, data_out, layer.macs, clock)  # fmt: skip


def _rows(layers: list[LayerSpec], sequence: list[Step], plan: Placement, device: int) -> list[Row]:
    """A row for each layer, and one for each copy where the chip makes it; what rides along with the next layer costs no cycles."""
    rows, waiting = [], list(layers)
    for step in sequence:
        columns = plan.columns(step.layer.inputs[0], step.layer.c_in)
        clock = cycles(step, columns, plan.offset.get(step.layer.name, 0), device)
        if step.kind != "copy":
            place = next(i for i, layer in enumerate(waiting) if layer.name == step.layer.name)
            rows += [_row(layer, layer.name, layer.kind, 0) for layer in waiting[:place]]
            waiting = waiting[place + 1 :]
        rows.append(_row(step.layer, step.writes, step.kind, clock))
    return rows + [_row(layer, layer.name, layer.kind, 0) for layer in waiting]


def fit(model, input_shape: tuple[int, ...] | None = None, device: int | None = None) -> Fit:
    """Cost of `model` and whether it fits `device` (85 or 87; by default the one of `set_device`).

    `model` is a network of ai8x layers, before or after training, a compact model, or a list of `LayerSpec`; `input_shape` is
    (C, H, W), by default `model.input_shape`. Weights before QAT count as 8 bits. Times are estimates, see `FORMULA`. Raises
    ValueError for an unknown device or a network that cannot be traced.
    """
    if device is None:
        from qatlib.ai8x import mode

        device = mode.dev.device
    if device not in DEVICES:
        raise ValueError(f"device {device!r} is not supported; use 85 (MAX78000) or 87 (MAX78002)")
    layers = describe(model, input_shape)
    if not layers:
        raise ValueError(layers.refusals[0] if layers.refusals else "the network has no layer; give a network made of ai8x layers")
    sequence = steps(layers, device)
    plan, memory = planned(layers, sequence, device)
    problems, rows = violations(layers, plan, memory, sequence, device), _rows(layers, sequence, plan, device)
    return Fit(device, rows, plan, memory, problems, sequence, len(sequence), bias_bytes(layers), notes(layers, sequence))
