"""Checks of lesson 06: which layers are off, which outputs are off the grid, and what threshold a layer needs."""

import copy
import math

import torch

from qatcourse.checks import Exercise, always
from qatcourse.checks.powers import log2, power_of_two
from qatcourse.labs import break_it
from qatlib import ai8x


def _networks() -> list[tuple]:
    """Small networks by description: QAT on, off (only its device was set), and off in one layer."""
    patient = break_it.healthy()
    partly = copy.deepcopy(patient.model)
    partly.conv3.init_module(None, None, False)
    ai8x.set_device(85, simulate=False, round_avg=False, verbose=False)
    return [("QAT on", patient.model), ("float, set_device called", patient.float_model), ("conv3 left out", partly)]


def _layers(model, off) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, ai8x.QuantizationAwareModule) and off(m)]


def _extra(got: str, want: str, *_) -> list[str]:
    return [name or "the whole network" for name in got.split(", ") if name not in want.split(", ")]


check_layers_off = Exercise(
    "my_layers_off(model): names of the layers with weights where quantization is off, in order of definition.",
    lambda model: _layers(model, lambda layer: not layer.weight_bits.item()),
    _networks,
    (lambda right, _: right[::-1], "the names are right, their order is not: go through model.named_modules() once.",
     lambda got, want, *_: set(got.split(", ")) == set(want.split(", "))),
    (lambda _, model: _layers(model, lambda layer: layer.op.weight.dtype != torch.float32),
     "{0}: you found none. output_shift is 0 and dtype is float32 in every case; look at weight_bits.",
     lambda got, *_: got == "none"),
    (lambda _, model: _layers(model, lambda layer: not layer.output_shift.item()),
     "{0}: all layers are quantized, yet you list {got}. In QAT output_shift stays 0, weights float32.",
     lambda got, want, *_: want == "none"),
    (lambda right, _: right and ["", *right],
     lambda got, want, label, _: f"{label}: expected {want}; {_extra(got, want)[0]} is not one of them.", _extra),
    (lambda right, _: right[1:], "{0}: expected {want}.", always),
    read=lambda names: ", ".join(map(str, names)) or "none",
    praise="Three networks, every layer right.",
)  # fmt: skip


def _off_grid(y):
    return (y * 128 != torch.round(y * 128)).double().mean()


def _signals() -> list[tuple]:
    random = torch.Generator().manual_seed(6)
    grid = torch.randint(-128, 128, (40,), generator=random) / 128
    return [
        ("0, 0, 0.3, 1", torch.tensor([0.0, 0.0, 0.3, 1.0])),
        ("normal numbers", torch.randn(40, generator=random)),
        ("a quarter lies half a step off", torch.cat([grid[:30], grid[:10] + 1 / 256])),
        ("on the grid", grid),
    ]


check_off_grid = Exercise(
    "my_off_grid(y): the share, 0..1, of values of y that are no multiple of 1/128.",
    _off_grid,
    _signals,
    (lambda right, y: 100 * right, "you return per cent; a share lies between 0 and 1."),
    (lambda right, y: 1 - right, "you counted the values on the grid; count the others."),
    (lambda right, y: right * y.numel(), "you return a count; divide by the number of values."),
    (lambda _, y: _off_grid(2 * y),
     "half a step away is off the grid too; compare y * 128 with its rounded value exactly, without a tolerance.",
     lambda got, want, *_: want == 0.25 and got == 0),
    (lambda _, y: _off_grid(y / 128), "a value is on the grid if y * 128 is a whole number.", always),
    tolerance=1e-6,
    praise="Four cases agree.",
)  # fmt: skip


check_threshold = power_of_two(
    "my_threshold(values): the smallest whole number t with max|values| <= 2^t.",
    [(f"largest {max(map(abs, values)):g}", torch.tensor(values))
     for values in ([-17.0, 3.0], [0.3, -5.1, 2.0], [0.9, 0.1], [4.0, -1.0], [0.2, 0.1])],
    (lambda _, values: math.ceil(log2(values) * math.log(2)), "that is the natural logarithm; use log2."),
    (lambda _, values: math.ceil(log2(values.clamp(min=0))), "negative values count too: take the absolute values first."),
    praise="Five layers, five thresholds.",
)  # fmt: skip
