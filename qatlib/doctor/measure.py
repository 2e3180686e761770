"""What the doctor measures of every layer: from its parameters alone, and from what it does to a batch of inputs."""

import functools
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.graph import evaluating
from qatlib.ai8x.layer import QuantizationAwareModule
from qatlib.ai8x.qat import tensors_in
from qatlib.ai8x.shift import calc_weight_shift
from qatlib.quantizers import round_half_up, weight_codes

ENOUGH = 8  # different inputs: fewer do not tell a dead channel from one that these do not excite


@dataclass
class Measured:
    """One row of the table. Shares are 0..1; None: not measured (no input, or it means nothing for this kind of layer)."""

    name: str
    kind: str  # "layer", "sum", or "pool": an average alone, which the table leaves out
    bits: int | None = None  # of the weights; 0: quantization is off
    bias_bits: int | None = None
    rounds: bool | None = None  # quantize_activation
    clamps: bool | None = None  # clamp_activation
    shifts: bool | None = None  # adjust_output_shift: the shift follows from the weights
    stale: tuple[str, ...] = ()  # what the layer computes with, though its tensors say something else
    round_avg: bool | None = None  # how its average pool rounds, which no checkpoint of the vendor says
    threshold: float = 0.0  # log2 of the activations' full scale, relative to the input's
    final_scale: float = 0.0  # log2 of what the outputs are multiplied by at last
    shift: int | None = None  # weight_shift: log2 of full scale of the weights
    range_used: float | None = None  # largest |weight or bias| over full scale: above 0.5, at most 1
    weight_codes: int | None = None  # different codes among the weights, of 2^bits
    bias_cost: float = 0.0  # bits of the weights' resolution that a larger bias takes away
    beyond: float = 0.0  # share of the weights beyond full scale, because shift_quantile is below 1 ...
    weight_error: float = 0.0  # ... what that and rounding take of their energy (0..1) ...
    least_error: float = 0.0  # ... and what rounding alone would take, with shift_quantile 1
    batch_norm: bool = False
    wide: bool = False
    integers: bool = False  # the weights are whole numbers beyond +-1
    finite: bool = True
    clamped: bool | None = None  # sums: is the clamp on
    low: float | None = None  # smallest and largest value of its input
    high: float | None = None
    off_grid: float | None = None  # share of outputs that are no multiple of the output grid
    saturated: float | None = None  # share of outputs at the end of the range (QAT off: beyond +-1)
    lost: float = 0.0  # share of the outputs' energy that the clamp takes
    levels: int | None = None  # different output codes, of 256 (128 after ReLU)
    reach: int | None = None  # |code| below which 99 % of the outputs lie that are not 0, up to 128
    channels: int | None = None
    dead: int | None = None  # channels whose output never changes
    shape: tuple[int, ...] = ()  # of the output, without the batch
    off_input: bool = False  # what it reads is no multiple of 1/128
    arithmetic: str = ""  # how the outputs differ from the chip's arithmetic: "", "half-even", "unclamped", "other"
    differing: float = 0.0  # share of outputs that do

    @property
    def on(self) -> bool:
        return bool(self.bits)

    @property
    def grown(self) -> float:
        """log2 of the weights' full scale, without the bias."""
        return 0.0 if self.shift is None or self.integers else self.shift - self.bias_cost


@dataclass
class Seen:
    """What a batch of inputs showed beside the rows: outputs, how many inputs differ, share of their values at the ends."""

    outputs: list[torch.Tensor] = field(default_factory=list)
    pictures: int = 0
    at_ends: float = 0.0


def from_state(name: str, state: dict[str, torch.Tensor], wide: bool = False) -> Measured:
    """The row of one layer from its part of a state dict (keys `op.weight`, `weight_bits`, `bn.weight`, ...)."""
    weight, bias = state["op.weight"].detach().float(), state.get("op.bias")
    both = weight.flatten() if bias is None else torch.cat([weight.flatten(), bias.detach().float().flatten()])
    row = Measured(name, "layer", _number(state, "weight_bits", int), wide=wide)
    _flags(row, state)
    row.threshold, row.final_scale = _number(state, "activation_threshold"), _number(state, "final_scale")
    row.batch_norm = any(key.startswith("bn.") for key in state)
    row.finite = bool(both.isfinite().all())
    if not row.finite or not weight.numel():
        return row
    row.integers = bool((weight == weight.round()).all() and weight.abs().max() > 1)
    quantile = _number(state, "shift_quantile", default=1.0)
    shift = calc_weight_shift(both, quantile)
    row.shift, row.range_used = int(shift), (both.abs().max() / torch.exp2(shift)).item()
    row.bias_cost = max(row.shift - calc_weight_shift(weight.flatten(), quantile).item(), 0.0)
    if row.bits:
        codes = weight if row.integers else weight_codes(weight, row.bits, shift)
        row.weight_codes = codes.unique().numel()
        row.beyond = (weight.abs() > torch.exp2(shift)).float().mean().item()
        row.weight_error, row.least_error = (_error(weight, row.bits, s) for s in (shift, calc_weight_shift(both)))
    return row


def _flags(row: Measured, state) -> None:
    row.bias_bits = _number(state, "bias_bits", int, None)
    names = ("quantize_activation", "clamp_activation", "adjust_output_shift")
    row.rounds, row.clamps, row.shifts = (bool(state[name].any()) if name in state else None for name in names)


def _error(weight: torch.Tensor, bits: int, shift: torch.Tensor) -> float:
    """Share of the weights' energy that quantizing takes."""
    scale = torch.exp2(shift.double())
    error = weight_codes(weight, bits, shift) * (scale / 2 ** (bits - 1)) - weight.double()
    return (error.square().sum() / weight.double().square().sum().clamp(min=1e-300)).item()


def _number(state, key, kind=float, default=0):
    return kind(state[key].item()) if key in state else default


class Activity:
    """Follows one layer through a forward pass, as a hook, for its `row`; keeps counts, not tensors."""

    def __init__(self, row: Measured):
        self.row, self.inputs, self.outputs, self.counts = row, [], 0, Counter()
        self.codes = torch.zeros(256, dtype=torch.int64)  # how often each of -128..127 came
        self.spans: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by the number of channels: a sum may serve several

    def __call__(self, module, args, kwargs, output):
        row, x, y = self.row, (*args, *kwargs.values())[0].detach(), output.detach()
        self.inputs += [bound.item() for bound in x.aminmax()]
        row.shape = tuple(y.shape[1:])
        self._span(y.movedim(-1, 1) if isinstance(getattr(module, "op", None), nn.Linear) else y)
        codes = y.double() * (2.0**14 if row.wide else 128.0) / 2.0**row.final_scale
        self.outputs += codes.numel()
        self._count("off", codes != codes.round())
        if not row.wide:
            quantized = row.on or row.clamped
            self._count("ends", (codes <= -128) | (codes >= 127) if quantized else (codes < -128) | (codes > 127))
            whole = codes.nan_to_num().round().clamp(-128, 127).long() + 128
            self.codes += torch.bincount(whole.flatten(), minlength=256).cpu()
        if row.kind == "sum":
            self._lose(functools.reduce(module.combine, args).double() * 128)
        elif row.kind == "layer" and row.on and not row.wide and module.bn is None and row.bits == row.bias_bits and not row.stale:
            self._compare(module, x, codes)

    def _span(self, y: torch.Tensor) -> None:
        channels = y.transpose(0, 1).flatten(1) if y.dim() > 1 else y.reshape(1, -1)
        low, high = channels.aminmax(dim=1)
        before = self.spans.get(low.numel(), (low, high))
        self.spans[low.numel()] = torch.minimum(low, before[0]), torch.maximum(high, before[1])

    def _count(self, name: str, where: torch.Tensor) -> None:
        self.counts[name] += where.sum().item()

    def _lose(self, exact: torch.Tensor) -> None:
        self.counts["energy"] += exact.square().sum().item()
        self.counts["lost"] += (exact - exact.clamp(-128, 127)).square().sum().item()

    def _compare(self, module, x, codes):
        """Count outputs that differ from the integer arithmetic (Abs as in training), and from two usual mistakes in it."""
        weight, bias = module.quantized_weight()
        half = 1 << self.row.bits - 1
        self.row.off_input |= bool((x * 128 != (x * 128).round()).any())
        x = module._pool(x) if module.pool is not None else x
        acc = module._apply_op(x.double(), weight.double() / half, None if bias is None else bias.double() / half)
        exact = acc * torch.exp2(module.effective_shift()).double() * 128
        exact = {"ReLU": torch.relu, "Abs": torch.abs}.get(module.activation, lambda v: v)(exact)
        self._lose(exact)
        self._count("other", round_half_up(exact).clamp(-128, 127) != codes)
        self._count("half-even", exact.round().clamp(-128, 127) != codes)
        self._count("unclamped", round_half_up(exact) != codes)

    def fill(self) -> None:
        """Write what was seen into the row; a layer that was never called stays unmeasured."""
        row, counts = self.row, self.counts
        if not self.outputs:
            return
        row.low, row.high = min(self.inputs), max(self.inputs)
        row.channels = sum(low.numel() for low, _ in self.spans.values())
        row.dead = sum((low == high).sum().item() for low, high in self.spans.values())
        row.off_grid, row.differing = counts["off"] / self.outputs, counts["other"] / self.outputs
        row.lost = counts["lost"] / max(counts["energy"], 1e-300)
        if not row.wide:
            row.saturated, row.levels = counts["ends"] / self.outputs, int(self.codes.count_nonzero())
            sizes = F.pad(self.codes[128:], (0, 1)) + F.pad(self.codes[:128].flip(0), (1, 0))
            row.reach = int((sizes[1:].cumsum(0) < 0.99 * sizes[1:].sum()).sum()) + 1 if sizes[1:].any() else 0
        if row.differing:
            row.arithmetic = next((name for name in ("half-even", "unclamped") if not counts[name]), "other")


def measure(model: nn.Module, x: torch.Tensor | None) -> tuple[list[Measured], Seen]:
    """(rows in order of definition, what else was seen). The model's mode and parameters stay as they are."""
    named = {name: m for name, m in model.named_modules() if isinstance(m, Eltwise)
             or isinstance(m, QuantizationAwareModule) and (m.op is not None or m.pooling == "Avg")}  # fmt: skip
    rows = [_row(name, module) for name, module in named.items()]
    if x is None:
        return rows, Seen()
    with evaluating(model), ExitStack() as hooks:
        activities = [Activity(row) for row in rows]
        for module, activity in zip(named.values(), activities):
            hooks.enter_context(module.register_forward_hook(activity, with_kwargs=True))
        output = model(x)
    for activity in activities:
        activity.fill()
    different = len({picture.numpy().tobytes() for picture in x.detach().cpu()[:1000]})
    return rows, Seen(tensors_in(output), different, ((x <= -1) | (x >= 127 / 128)).float().mean().item())


def _row(name: str, module: nn.Module) -> Measured:
    if isinstance(module, Eltwise):
        return Measured(name, "sum", threshold=module.activation_threshold.item(), clamped=module.clamped)
    state = {key: value for key, value in module.state_dict().items() if "." not in key}
    if module.op is None:
        row = Measured(name, "pool", _number(state, "weight_bits", int))
        _flags(row, state)
    else:
        weight, bias = module._weights()
        of_op = {"op.weight": weight} | ({} if bias is None else {"op.bias": bias}) | ({} if module.bn is None else {"bn.": weight})
        row = from_state(name, state | of_op, module.wide)
    held = {key: (module._host(key), state[key].item()) for key in state.keys() - {"output_shift", "activation_threshold"}}
    row.round_avg = module.round_avg if module.pooling == "Avg" else None
    row.stale = tuple(f"{key} {used:g} where its state says {stored:g}" for key, (used, stored) in held.items() if used != stored)
    return row
