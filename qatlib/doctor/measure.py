"""What the doctor measures of every layer: from its parameters alone, and from what it does to a batch of inputs."""

import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.graph import evaluating
from qatlib.ai8x.layer import QuantizationAwareModule, calc_weight_shift
from qatlib.quantizers import round_half_up, weight_codes


@dataclass
class Measured:
    """One row of the table. Shares are 0..1; None: not measured (no input, or it means nothing for this kind of layer)."""

    name: str
    kind: str  # "layer" or "sum"
    bits: int | None = None  # of the weights; 0: quantization is off
    threshold: float = 0.0  # log2 of the activations' full scale, relative to the input's
    final_scale: float = 0.0  # log2 of what the outputs are multiplied by at last
    shift: int | None = None  # weight_shift: log2 of full scale of the weights
    range_used: float | None = None  # largest |weight or bias| over full scale: above 0.5, at most 1
    weight_codes: int | None = None  # different codes among the weights, of 2^bits
    bias_cost: float = 0.0  # bits of the weights' resolution that a larger bias takes away
    batch_norm: bool = False
    wide: bool = False
    integers: bool = False  # the weights are whole numbers beyond +-1
    finite: bool = True
    clamped: bool | None = None  # sums: is the clamp on
    low: float | None = None  # smallest and largest value of its input
    high: float | None = None
    off_grid: float | None = None  # share of outputs that are no multiple of the output grid
    saturated: float | None = None  # share of outputs at the end of the range (QAT off: beyond +-1)
    levels: int | None = None  # different output codes, of 256 (128 after ReLU)
    channels: int | None = None
    dead: int | None = None  # channels whose output never changes
    arithmetic: str = ""  # how the outputs differ from the chip's arithmetic: "", "half-even", "unclamped", "other"
    differing: float = 0.0  # share of outputs that do

    @property
    def on(self) -> bool:
        return bool(self.bits)


def from_state(name: str, state: dict[str, torch.Tensor], wide: bool = False) -> Measured:
    """The row of one layer from its part of a state dict (keys `op.weight`, `weight_bits`, `bn.weight`, ...)."""
    weight, bias = state["op.weight"].detach().float(), state.get("op.bias")
    both = weight.flatten() if bias is None else torch.cat([weight.flatten(), bias.detach().float().flatten()])
    row = Measured(name, "layer", _number(state, "weight_bits", int), wide=wide)
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
    return row


def _number(state, key, kind=float, default=0):
    return kind(state[key].item()) if key in state else default


class Activity:
    """Follows one layer through a forward pass, as a hook, for its `row`; keeps counts, not tensors."""

    def __init__(self, row: Measured):
        self.row, self.inputs, self.outputs, self.counts, self.levels = row, [], 0, Counter(), set()
        self.low, self.high = torch.tensor(math.inf), torch.tensor(-math.inf)

    def __call__(self, module, args, output):
        row, x, y = self.row, args[0].detach(), output.detach()
        self.inputs += [x.min().item(), x.max().item()]
        channels = y.transpose(0, 1).flatten(1) if y.dim() > 1 else y.reshape(1, -1)
        self.low, self.high = torch.minimum(channels.amin(1), self.low), torch.maximum(channels.amax(1), self.high)
        codes = y.double() * (2.0**14 if row.wide else 128.0) / 2.0**row.final_scale
        self.outputs += codes.numel()
        self._count("off", codes != codes.round())
        if not row.wide:
            quantized = row.on or row.clamped
            self._count("ends", (codes <= -128) | (codes >= 127) if quantized else (codes < -128) | (codes > 127))
            self.levels.update(codes.nan_to_num().round().clamp(-128, 127).unique().tolist())
        if row.on and not row.wide and module.bn is None:
            self._compare(module, x, codes)

    def _count(self, name: str, where: torch.Tensor) -> None:
        self.counts[name] += where.sum().item()

    def _compare(self, module, x, codes):
        """Count outputs that differ from the integer arithmetic, and from two usual mistakes in it."""
        weight, bias = module.quantized_weight()
        half = 1 << self.row.bits - 1
        x = module._pool(x) if module.pool is not None else x
        acc = module._apply_op(x.double(), weight.double() / half, None if bias is None else bias.double() / half)
        exact = acc * torch.exp2(module.effective_shift()).double() * 128
        exact = {"ReLU": torch.relu, "Abs": torch.abs}.get(module.activation, lambda v: v)(exact)
        self._count("other", round_half_up(exact).clamp(-128, 127) != codes)
        self._count("half-even", exact.round().clamp(-128, 127) != codes)
        self._count("unclamped", round_half_up(exact) != codes)

    def fill(self) -> None:
        """Write what was seen into the row; a layer that was never called stays unmeasured."""
        row, counts = self.row, self.counts
        if not self.outputs:
            return
        row.low, row.high = min(self.inputs), max(self.inputs)
        row.channels, row.dead = self.low.numel(), (self.low == self.high).sum().item()
        row.off_grid, row.differing = counts["off"] / self.outputs, counts["other"] / self.outputs
        if not row.wide:
            row.saturated, row.levels = counts["ends"] / self.outputs, len(self.levels)
        if row.differing:
            row.arithmetic = next((name for name in ("half-even", "unclamped") if not counts[name]), "other")


def measure(model: nn.Module, x: torch.Tensor | None) -> tuple[list[Measured], torch.Tensor | None]:
    """(rows in order of definition, the network's output or None). The model's mode and parameters stay as they are."""
    named = {n or type(m).__name__: m for n, m in model.named_modules()
             if isinstance(m, Eltwise) or isinstance(m, QuantizationAwareModule) and m.op is not None}  # fmt: skip
    rows = [_row(name, module) for name, module in named.items()]
    if x is None:
        return rows, None
    activities = [Activity(row) for row in rows]
    with evaluating(model), ExitStack() as hooks:
        for module, activity in zip(named.values(), activities):
            hooks.enter_context(module.register_forward_hook(activity))
        output = model(x)
    for activity in activities:
        activity.fill()
    return rows, output


def _row(name: str, module: nn.Module) -> Measured:
    if isinstance(module, Eltwise):
        return Measured(name, "sum", threshold=module.activation_threshold.item(), clamped=module.clamped)
    return from_state(name, module.state_dict(), module.wide)
