"""Checks of lesson 06: which layers are off, which outputs are off the grid, and what threshold a layer needs."""

import copy
import math

import numpy as np
import torch

from qatcourse.checks import Exercise, always
from qatcourse.checks.powers import log2, power_of_two
from qatcourse.labs import break_it
from qatlib import ai8x
from qatlib.ai8x.qat import layers


def _networks() -> list[tuple]:
    """Small networks by description: QAT on, off (only its device was set), and off in one layer."""
    patient = break_it.healthy()
    partly = copy.deepcopy(patient.model)
    partly.conv3.init_module(None, None, False)
    ai8x.set_device(85, simulate=False, round_avg=False, verbose=False)
    return [("QAT on", patient.model), ("float, set_device called", patient.float_model), ("conv3 left out", partly)]


def _layers(model, off) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, ai8x.QuantizationAwareModule) and off(m)]


def _names(answer) -> str:
    return (answer if isinstance(answer, str) else ", ".join(map(str, answer))) or "none"


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
    (lambda right, model: [model.get_submodule(name) for name in right],
     "give the names, not the layers: named_modules() yields pairs of both.", lambda got, *_: "(" in got),
    (lambda _, model: [name for name, m in model.named_modules() if not getattr(m, "weight_bits", 0)],
     "{0}: you list parts without weight_bits, too; only instances of ai8x.QuantizationAwareModule count.",
     lambda got, want, label, model: any(name not in _layers(model, bool) for name in got.split(", ") if got != "none")),
    (lambda _, model: _layers(model, lambda layer: not layer.output_shift.item()),
     "{0}: every layer is on, yet you list {got}. A layer is off where weight_bits is 0; output_shift is 0 in any case.",
     lambda got, want, *_: want == "none"),
    (lambda right, model: _layers(model, bool) if right else right,
     lambda got, want, label, _: f"{label}: expected {want}; {_extra(got, want)[0]} is not one of them.", _extra),
    (lambda right, _: right[1:], "{0}: expected {want}.", always),
    read=_names,
    praise="Three networks, every layer right.",
    right=[
        lambda model: tuple(n for n, m in model.named_modules() if not getattr(m, "weight_bits", True)),
        lambda model: np.array([n for n, m in layers(model).items() if int(m.weight_bits) == 0]),
        lambda model: (n for n, m in layers(model).items() if not m.weight_bits.any()),
        lambda model: ", ".join(n for n, m in layers(model).items() if m.weight_bits == 0),
    ],
)  # fmt: skip


def _off_grid(y):
    return (y * 128 != torch.round(y * 128)).double().mean()


def _signals() -> list[tuple]:
    random = torch.Generator().manual_seed(6)
    grid = torch.randint(-128, 128, (40,), generator=random) / 128
    return [
        ("0, 0, 0.3, 0.7, 1", torch.tensor([0.0, 0.0, 0.3, 0.7, 1.0])),
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
    (lambda _, y: (y != torch.round(y)).double().mean(), "these are the values that are not whole; multiply y by 128 first."),
    (lambda right, y: float(right > 0), "you say whether there is one at all; give the share: the mean in place of any()."),
    (lambda _, y: _off_grid(2 * y),
     "half a step away is off the grid too; compare y * 128 with its rounded value exactly, without a tolerance.",
     lambda got, want, *_: want == 0.25 and got == 0),
    (lambda _, y: _off_grid(100 * y), "a value is on the grid if y * 128 is a whole number.", always),
    tolerance=1e-6,
    praise="Four cases agree.",
    right=[
        lambda y: float((y * 128 % 1 != 0).float().mean()),
        lambda y: np.mean(y.numpy() * 128 != np.round(y.numpy() * 128)),
        lambda y: sum(v * 128 != round(v * 128) for v in y.tolist()) / len(y),
        lambda y: (y * 128 - (y * 128).floor() > 0).float().mean().reshape(1),
    ],
)  # fmt: skip


check_threshold = power_of_two(
    "my_threshold(values): the smallest whole number t with max|values| <= 2^t.",
    [(f"largest {max(map(abs, values)):g}", torch.tensor(values))
     for values in ([-17.0, 0.9], [0.3, -5.1, 2.0], [0.9, 0.1], [4.0, -1.0], [0.2, 0.1])],
    *((lambda _, values, way=way, base=base: way(log2(values) * math.log(2, base)),
       "that is no logarithm to base 2: math.log, np.log and torch.log are natural logarithms, log10 has base 10; use log2.")
      for base in (math.e, 10) for way in (math.ceil, math.floor, round, float)),
    (lambda _, values: math.ceil(log2(values.clamp(min=0))), "negative values count too: take the absolute values first."),
    (lambda _, values: values.abs().max().item(), "that is the largest magnitude itself; take its logarithm to base 2."),
    praise="Five layers, five thresholds.",
    right=[
        lambda values: torch.log2(values.abs()).max().ceil().reshape(1),
        lambda values: np.ceil(np.log2(np.abs(values.numpy()).max())),
        lambda values: [math.ceil(math.log(max(map(abs, values.tolist())), 2))],
        lambda values: next(t for t in range(-20, 20) if max(map(abs, values)) <= 2.0**t),
    ],
)  # fmt: skip
