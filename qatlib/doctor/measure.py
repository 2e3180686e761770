"""What the doctor measures of every layer: from its parameters alone, and from what it does to a batch of inputs."""

from dataclasses import dataclass

import torch
from torch import nn

from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.layer import QuantizationAwareModule, calc_weight_shift
from qatlib.quantizers import round_half_up


@dataclass
class Layer:
    """One row of the table. Shares are 0..1; None: not measured (no input, or it means nothing for this kind of layer)."""

    name: str
    kind: str  # "layer" or "sum"
    bits: int | None = None  # of the weights; 0: quantization is off
    threshold: float = 0.0  # log2 of the activations' full scale, relative to the input's
    final_scale: float = 0.0
    shift: float | None = None  # weight_shift: log2 of full scale of the weights
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


def from_state(name: str, state: dict[str, torch.Tensor], wide: bool = False) -> Layer:
    """The row of one layer from its part of a state dict (keys `op.weight`, `weight_bits`, `bn.weight`, ...)."""
    weight, bias = state["op.weight"].detach().float(), state.get("op.bias")
    bias = weight.new_zeros(1) if bias is None else bias.detach().float()
    row = Layer(name, "layer", bits=_number(state, "weight_bits", int), wide=wide)
    row.threshold, row.final_scale = _number(state, "activation_threshold"), _number(state, "final_scale")
    row.batch_norm = any(key.startswith("bn.") for key in state)
    row.finite = bool(weight.isfinite().all() and bias.isfinite().all())
    if not row.finite or not weight.numel():
        return row
    row.integers = bool((weight == weight.round()).all() and weight.abs().max() > 1)
    quantile = _number(state, "shift_quantile", default=1.0)
    alone = calc_weight_shift(weight.flatten(), quantile)
    both = calc_weight_shift(torch.cat([weight.flatten(), bias.flatten()]), quantile)
    row.shift, row.bias_cost = both.item(), max((both - alone).item(), 0.0)
    row.range_used = (torch.maximum(weight.abs().max(), bias.abs().max()) / torch.exp2(both)).item()
    if row.bits:
        half = 1 << row.bits - 1
        codes = weight if row.integers else round_half_up(weight * torch.exp2(-both) * half).clamp(-half, half - 1)
        row.weight_codes = codes.unique().numel()
    return row


def _number(state, key, kind=float, default=0):
    return kind(state[key].item()) if key in state else default


class Activity:
    """Follows one layer through a forward pass, as a hook; keeps counts, not tensors."""

    def __init__(self, module: nn.Module):
        self.module, self.count, self.off, self.ends, self.compared = module, 0, 0, 0, 0
        self.seen = torch.zeros(256, dtype=torch.bool)
        self.low = self.high = None
        self.inputs: list[float] = []
        self.differ = {"": 0, "half-even": 0, "unclamped": 0}

    def __call__(self, module, args, output):
        y, x = output.detach(), args[0].detach()
        self.inputs += [x.min().item(), x.max().item()]
        final = module.final_scale.item() if hasattr(module, "final_scale") else 0.0
        wide = getattr(module, "wide", False)
        codes = y.double() * (2.0**14 if wide else 128.0) / 2.0**final
        self.count += codes.numel()
        self.off += (codes != codes.round()).sum().item()
        on = bool(module.weight_bits.item()) if hasattr(module, "weight_bits") else module.clamped
        if not wide:
            low = codes <= -128 if on else codes < -128
            self.ends += (low | (codes >= 127 if on else codes > 127)).sum().item()
            inside = codes.nan_to_num().round().clamp(-128, 127).long() + 128
            self.seen[inside.unique()] = True
        flat = y.transpose(0, 1).flatten(1) if y.dim() > 1 else y.reshape(1, -1)
        low, high = flat.amin(1), flat.amax(1)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        if on and not wide and getattr(module, "op", None) is not None and module.bn is None:
            self._compare(module, x, codes)

    def _compare(self, module, x, codes):
        """Count outputs that differ from the integer arithmetic, and from two usual mistakes in it."""
        weight, bias = module.quantized_weight()
        half = 1 << module.weight_bits.item() - 1
        x = module._pool(x) if module.pool is not None else x
        acc = module._apply_op(x.double(), weight.double() / half, None if bias is None else bias.double() / half)
        exact = acc * torch.exp2(module.effective_shift()).double() * 128
        exact = {"ReLU": torch.relu, "Abs": torch.abs}.get(module.activation, lambda v: v)(exact)
        expected = {"": torch.floor(exact + 0.5).clamp(-128, 127), "half-even": exact.round().clamp(-128, 127),
                    "unclamped": torch.floor(exact + 0.5)}  # fmt: skip
        self.compared += codes.numel()
        for name, values in expected.items():
            self.differ[name] += (values != codes).sum().item()

    def fill(self, row: Layer) -> None:
        """Write what was seen into `row`; a layer that was never called stays unmeasured."""
        if not self.count:
            return
        row.low, row.high = min(self.inputs), max(self.inputs)
        row.off_grid = self.off / self.count
        if not row.wide:
            row.saturated, row.levels = self.ends / self.count, int(self.seen.sum())
        row.channels, row.dead = self.low.numel(), int((self.low == self.high).sum())
        if self.compared and self.differ[""]:
            row.differing = self.differ[""] / self.compared
            exact = [name for name in ("half-even", "unclamped") if not self.differ[name]]
            row.arithmetic = exact[0] if exact else "other"


def measure(model: nn.Module, x: torch.Tensor | None) -> tuple[list[Layer], torch.Tensor | None]:
    """(rows in order of definition, the network's output or None). The model's mode and parameters stay as they are."""
    named = {n or type(m).__name__: m for n, m in model.named_modules()
             if isinstance(m, Eltwise) or isinstance(m, QuantizationAwareModule) and m.op is not None}  # fmt: skip
    rows = {name: _row(name, module) for name, module in named.items()}
    if x is None:
        return list(rows.values()), None
    activities = {name: Activity(module) for name, module in named.items()}
    hooks = [module.register_forward_hook(activities[name]) for name, module in named.items()]
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            output = model.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    for name, activity in activities.items():
        activity.fill(rows[name])
    return list(rows.values()), output


def _row(name: str, module: nn.Module) -> Layer:
    if isinstance(module, Eltwise):
        return Layer(name, "sum", threshold=module.activation_threshold.item(), clamped=module.clamped)
    return from_state(name, module.state_dict(), module.wide)
