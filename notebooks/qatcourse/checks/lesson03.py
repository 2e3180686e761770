"""Checks of lesson 03: batch norm fused, the threshold, the shared power of two, the layer, and its end in integers."""

import math

import numpy as np
import torch
from torch import nn

from qatcourse import mine
from qatcourse.checks import UNTOUCHED, Exercise, NotYet, always, judged, not_whole, number, numbers, row
from qatcourse.checks.powers import log2, power_of_two
from qatlib.ai8x import calc_weight_shift
from qatlib.ai8x.layer import QuantizationAwareModule
from qatlib.quantizers import round_half_up


def _layers():
    random = torch.Generator().manual_seed(3)
    for channels, inputs in ((4, 3), (2, 5)):
        shapes = [(channels, inputs, 3, 3), *[(channels,)] * 5]
        weight, bias, mean, var, gamma, beta = (torch.randn(*shape, generator=random) for shape in shapes)
        yield f"{channels} channels", weight, bias, mean, var.abs() + 0.1, gamma, beta, 1e-5


def _two_tensors(parts):
    if not isinstance(parts, (tuple, list)) or len(parts) != 2:
        raise NotYet("must return numbers that fit; problem: it must return two tensors, weight and bias.")
    return np.concatenate([numbers(part).ravel() for part in parts])


def _fuse(weight, bias, mean, var, gamma, beta, eps):
    r = torch.rsqrt(var + eps)
    return weight * (gamma * r).view(-1, 1, 1, 1), (bias - mean) * r * gamma + beta


check_fuse = Exercise(
    "my_fuse(weight, bias, mean, var, gamma, beta, eps): (weight, bias) that do convolution and batch norm in one.",
    _fuse,
    _layers,
    (lambda right, w, b, mean, var, gamma, beta, eps: (right[0], right[1] - beta),
     "the weights are right; the bias lacks beta, added at the end."),
    (lambda right, w, b, mean, var, gamma, beta, eps: (right[0], right[1] + mean * gamma / torch.sqrt(var + eps)),
     "the weights are right; the bias lacks the mean: subtract it from the bias first."),
    (lambda right, w, b, *_: (right[0], b),
     "the weights are right, the bias is not: subtract the mean, multiply by the same factor, add beta.",
     lambda got, want, _, w, *rest: np.allclose(got[: w.numel()], want[: w.numel()], atol=1e-4)),
    (lambda _, w, b, mean, var, gamma, beta, eps: _fuse(w, b, mean, (var + eps) ** 2, gamma, beta, 0),
     "divide by the square root of the variance, not by the variance."),
    (lambda _, w, b, mean, var, gamma, beta, eps: _fuse(w, b, mean, var, gamma**0, beta, eps),
     "gamma multiplies the weights, too."),
    (lambda _, *case: case[:2],
     "each output channel (dimension 0 of the weight) has its own factor: gamma / sqrt(var + eps), shaped (-1, 1, 1, 1).", always),
    tolerance=32 * 8 * 2**-24,  # a handful of float32 roundings, relative error 2^-24 each, of values below 32
    read=_two_tensors,
    praise="Two layers fused: a convolution does what both did.",
    right=[lambda *case: [part.tolist() for part in _fuse(*case)], lambda *case: tuple(part.numpy() for part in _fuse(*case)),
           lambda w, *rest: _fuse(w.double(), *(part.double() for part in rest[:-1]), rest[-1])],
    piece=True,
)  # fmt: skip


def _outputs():
    normal = torch.randn(20000, generator=torch.Generator().manual_seed(4))
    yield "a layer with ReLU", (1.3 * normal).relu()
    yield "the same, one false value 100", torch.cat([(1.3 * normal).relu(), torch.tensor([100.0])])
    yield "no ReLU, mostly negative", normal.clamp(max=1) - 2
    yield "largest value just above 4", torch.cat([2 * normal.abs().clamp(max=1.9), torch.tensor([4.04])])
    yield "shape (2, 3, 4, 4), small", normal[:96].view(2, 3, 4, 4) / 50


def _threshold(y, z=8, error=torch.square, covering=None, top=127):
    """The whole t whose 8-bit grid has the least error; the keywords are what learners do otherwise."""
    y = y.flatten()
    y = y[(y - y.mean()).abs() <= z * y.std()]
    most = math.ceil(log2(y)) if covering is None else covering(y)
    steps = {t: 2.0**t / 128 for t in range(most, most - 5, -1)}
    return min(steps, key=lambda t: error(round_half_up(y / steps[t]).clamp(-128, top) * steps[t] - y).mean().item())


check_threshold = Exercise(
    "my_threshold(y): the whole t, of five, whose 8-bit grid of full scale 2^t has the least mean squared error.",
    _threshold,
    _outputs,
    (lambda right, y: 2.0**right, "you returned the range itself; its logarithm is wanted: the t in 2^t."),
    (lambda _, y: log2(y), "t is a whole number: the chip can only shift.", not_whole),
    (lambda _, y: _threshold(y, z=math.inf), "one value decides: drop those farther than 8 standard deviations from the mean."),
    (lambda _, y: _threshold(y, covering=lambda y: math.ceil(math.log2(y.max().abs()))),
     "outputs can be negative: the first range covers the largest |y|."),
    (lambda _, y: _threshold(y, top=math.inf), "clip the codes to -128..127: otherwise the smallest range always wins."),
    (lambda _, y: _threshold(y, error=torch.abs), "the error is squared: values that are clipped far off weigh more."),
    (lambda _, y: math.ceil(log2(y[(y - y.mean()).abs() <= 8 * y.std()])),
     "this range covers all values that are left; try the four below it too, and compare their errors."),
    (lambda right, y: right + 1, "expected {want:g}, got {got:g}: for each of the five t quantize y with scale 2^t / 128, "
     "return real values, and take the mean of (difference)^2.", always),
    praise="Five layers, five thresholds.",
    read=number,
    right=[lambda y: torch.tensor([float(_threshold(y))]), lambda y: _threshold(y.double()), lambda y: np.float32(_threshold(y))],
    piece=True,
)  # fmt: skip

check_weight_shift = power_of_two(
    "my_weight_shift(weight, bias): the smallest whole s with every |weight| and |bias| at most 2^s.",
    [(f"largest |w| {max(map(abs, w)):g}, largest |b| {abs(b):g}", torch.tensor(w), torch.tensor([b]))
     for w, b in (([0.3, -0.2], 0.1), ([0.502, -0.1], 0.0), ([0.2, -0.499], 0.05), ([-3.0, 0.5], 0.1), ([0.2, 0.1], -5.0))],
    (lambda _, weight, bias: math.ceil(log2(weight)), "the bias counts too: weights and bias share one power of two."),
    (lambda _, weight, bias: math.ceil(math.log2(max(weight.max(), bias.max()))),
     "negative values count too: take the absolute value first."),
    (lambda _, weight, bias: math.ceil(log2(weight) + log2(bias + 1e-9)),
     "the larger of both decides, not their product or sum: join weight and bias, then take one largest value."),
    praise="Five layers, five shifts.",
    right=[lambda w, b: -math.floor(math.log2(1 / max(w.abs().max().item(), b.abs().max().item()))),
           lambda w, b: torch.cat([w, b]).abs().max().log2().ceil().reshape(1), lambda w, b: calc_weight_shift(torch.cat([w, b])),
           lambda w, b: np.ceil(np.log2(max(abs(w.numpy()).max(), abs(b.numpy()).max())))],
    piece=True,
)  # fmt: skip


def solved(old: str = "", new: str = "") -> dict:
    """The solution's pieces by name, one passage of their text replaced. Raises ValueError: it has no such passage."""
    text = mine.solution().read_text()
    if old not in text:
        raise ValueError(f"the solution no longer has {old!r}")
    exec(compile(text.replace(old, new), "solution", "exec"), pieces := {"__name__": "solution"})
    return pieces


def mistaken(name: str, *rows: tuple) -> list[tuple]:
    """Wrong answers for a piece: its solution with one passage replaced; rows of (old, new, words of the advice)."""
    return [((lambda *answers, old=old, new=new: solved(old, new)[name](*answers)), said) for old, new, said in rows]


_CASES = (  # what, bit_width, t, relu, wide, transposed
    ("float", None, 0, True, False, False),
    ("8 bits", 8, 0, True, False, False),
    ("8 bits, t = 2", 8, 2, True, False, False),
    ("4 bits, t = -1", 4, -1, True, False, False),
    ("8 bits, no ReLU", 8, 1, False, False, False),
    ("8 bits, wide", 8, 1, False, True, False),
    ("2 bits, transposed", 2, 1, True, False, True),
    ("float, t = 1", None, 1, True, False, False),
)
_MEANS = {"output": "output", "x": "gradient of x", "weight": "gradient of the weight", "bias": "gradient of the bias"}


def _theirs(op, relu, wide, bits, t):
    """The library's layer, its wide output in the units of MyLayer's."""
    quantization = (bits, bits, True) if bits else ()
    layer = QuantizationAwareModule(None, "ReLU" if relu else None, wide, *quantization, op=op)
    layer.activation_threshold.data.fill_(t)
    return lambda x: layer(x) * (2.0 ** (layer.weight_shift() - t) if wide else 1)


def _yours(made, op, relu, wide, bits, t):
    layer = made(op, relu, wide)
    if layer is None:
        raise NotYet(UNTOUCHED)
    layer.bit_width, layer.t = bits, t
    return layer


def _case(build, bits, t, relu, wide, transposed) -> dict:
    """Output and gradients of a layer on codes / 128; with bits all sums are of integers, so exact in any order."""
    random = torch.Generator().manual_seed(5)
    op = nn.ConvTranspose2d(3, 4, 3, padding=1) if transposed else nn.Conv2d(3, 4, 3, padding=1)
    op.weight.data = torch.randn(op.weight.shape, generator=random) * 0.3
    op.bias.data = torch.tensor([1.4, -0.2, 0.03, 0.6]) * (0.1 if bits == 4 else 1)
    kept = {name: value.detach().clone() for name, value in op.named_parameters()}
    x = (torch.randint(-128, 128, (2, 3, 6, 6), generator=random) / 128).requires_grad_()
    with torch.enable_grad():
        y = build(op, relu, wide, bits, t)(x)
        if y is None:
            raise NotYet(UNTOUCHED)
        if getattr(y, "shape", ()) != (2, 4, 6, 6):
            shape = tuple(getattr(y, "shape", ()))
            raise NotYet(f"gives shape {shape} in place of (2, 4, 6, 6): let op do the convolution, its padding too.")
        if y.requires_grad:
            (y * torch.randint(-4, 5, y.shape, generator=random)).sum().backward()
    if not all(torch.equal(op.get_parameter(name), value) for name, value in kept.items()):
        raise NotYet("changes op.weight or op.bias themselves: they stay float32; only what the convolution uses is rounded.")
    return {"output": y.detach(), "x": x.grad, "weight": op.weight.grad, "bias": op.bias.grad}


def _advice(name: str, part: str, got: dict, want: dict, bits, wide) -> str:
    """What to say of the first part of a case that differs."""
    if part == "output":
        y, unit = got[part], 128
        if bits is None:
            return "with bit_width None the layer is float: the operation, divided by 2^t, then ReLU; nothing is rounded."
        if wide:
            return "a wide layer rounds its weights and bias, but neither rounds nor clips its output."
        if y.min() < 0 <= want[part].min():
            return "there are negative outputs: with relu=True come ReLU, then rounding."
        if not torch.equal(y * unit, (y * unit).round()):
            return "the output is not on the grid of 1/128: round it to 8 bits with my_fake_quantize(y, 1 / 128, -128, 127)."
        if y.abs().max() > 1:
            return "the output leaves -1..127/128: clip its codes to -128..127."
        return ("the output is on its grid but differs. Are weight and bias both rounded, with the one scale 2^s / 2^(bits - 1)? "
                "Is the result divided by 2^t before ReLU?")  # fmt: skip
    if got[part] is None or not got[part].any():
        return f"no {_MEANS[part]} arrives: round straight through (my_fake_quantize), and detach only what sets the scale."
    return f"the output is right, the {_MEANS[part]} is not: round first, then clip; it passes where the code is inside its range."


@judged(
    "MyLayer",
    "Output and gradients are those of the library's layer, to the last bit, in eight settings.",
    piece=True,
    wrong=mistaken(
        "MyLayer",
        ("= my_fake_quantize(weight,", "= my_fake_quantize(weight.detach(),", "no gradient of the weight"),
        ("my_straight_through(x / scale, torch.floor(x / scale + 0.5))",
         "my_straight_through(x / scale, torch.floor(x / scale + 0.5).clamp(q_min, q_max))", "round first, then clip"),
        ("return my_fake_quantize(y, 1 / 128, -128, 127) if", "return y if", "not on the grid of 1/128"),
        ("-128, 127) if self.bit_width and not self.wide", "-128, 127) if not self.wide", "nothing is rounded"),
        ("if self.bit_width and not self.wide", "if self.bit_width", "a wide layer"),
        ("y.relu() if self.relu else y", "y", "then ReLU"),
        ("if self.bit_width:", "if False:", "Are weight and bias both rounded"),
        ("(bias, scale,", "(bias, 2.0 ** my_shift(bias.detach()) / half,", "one scale"),
        ("my_weight_shift(weight, bias) / half", "my_shift(weight.detach()) / half", "one scale"),
        ("2 ** (self.bit_width - 1)", "2**self.bit_width", "2^s / 2^(bits - 1)"),
        (" / 2.0**self.t", "", "divided by 2^t"),
        (" / 2.0**self.t", " * 2.0**self.t", "divided by 2^t"),
        ("            bias = my", "            self.op.weight.data = weight.detach()\n            bias = my", "they stay float32"),
        ("functional_call(self.op, {\"weight\": weight, \"bias\": bias}, x)", "nn.functional.conv2d(x, weight, bias)",
         "let op do the convolution"),
    ),
    right=[lambda *answers: solved("my_straight_through(x / scale, torch.floor(x / scale + 0.5))",
                                   "x / scale + (torch.floor(x / scale + 0.5) - x / scale).detach()")["MyLayer"](*answers)],
)  # fmt: skip
def check_layer(made):
    """MyLayer(op, relu=True, wide=False): attributes bit_width (None: float) and t; rounds weight, bias and output."""
    for name, bits, t, relu, wide, transposed in _CASES:
        builds = _theirs, lambda *how: _yours(made, *how)
        want, got = (_case(build, bits, t, relu, wide, transposed) for build in builds)
        near = 0 if bits else 1e-5
        differs = [part for part in want if got[part] is None or not torch.allclose(got[part], want[part], near, near)]
        shown = [f"{_MEANS[part]} {_short(values[part])}" for values in (want, got) for part in (differs or ["output"])[:1]]
        yield row(name, *shown, not differs), _advice(name, differs[0], got, want, bits, wide) if differs else ""


def _short(values) -> str:
    return "missing" if values is None else ", ".join(f"{value:.4g}" for value in values.flatten()[:4].tolist()) + ", ..."


def _output_code(accumulator, shift, rounding=round_half_up, lowest=0, highest=127):
    return rounding(accumulator.double() * 2.0**shift / 128).clamp(lowest, highest)


# accumulators are in units of 2^-14 (input code times weight code); `shift` is the effective output_shift e
_ACCUMULATORS = torch.tensor([-5000, -64, 0, 63, 64, 65, 191, 192, 4000, 8128, 8191, 16320, 20000, 500000])

check_output_code = Exercise(
    "my_output_code(accumulator, shift): ReLU layer, 8-bit weights. Codes 0..127 from integer accumulators.",
    _output_code,
    [(f"shift {shift:+d}", _ACCUMULATORS, shift) for shift in (0, -2, 3)],
    (lambda _, *case: _output_code(*case, lowest=-128), "negative outputs: the layer has a ReLU.", lambda got, *_: got.min() < 0),
    (lambda _, *case: _output_code(*case, highest=None), "codes above 127: saturate at the end.", lambda got, *_: got.max() > 127),
    (lambda _, *case: _output_code(*case, torch.floor), "you drop the fraction; the chip adds a half first: floor(v + 0.5)."),
    (lambda _, *case: _output_code(*case, torch.round),
     "ties go to the even neighbour in torch.round; the chip's go up: floor(v + 0.5)."),
    (lambda right, *_: right / 128, "these are real values; the codes are wanted: do not divide by 128 at the end."),
    (lambda _, acc, shift: _output_code(acc, -shift), "the shift has the wrong direction: multiply by 2^shift."),
    (lambda _, acc, shift: _output_code(acc, shift - 1),
     "an accumulator of 128 is one output code before the shift: multiply by 2^shift / 128.", always),
    praise="Every accumulator, three shifts.",
    right=[lambda a, s: torch.clamp((a * 2.0**s / 128 + 0.5).floor(), 0, 127).long(),
           lambda a, s: np.clip(np.floor(a.numpy() * 2.0**s / 128 + 0.5), 0, 127).tolist()],
    piece=True,
)  # fmt: skip
