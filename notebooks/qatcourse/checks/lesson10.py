"""Checks of lesson 10: verdicts on six claims, a test that tells whether QAT is on, and two meanings of "2 %"."""

import numpy as np
import torch
from torch import nn

from qatcourse.checks import Exercise, Report
from qatcourse.labs.claims import FALSE, HOLDS, VERDICTS, WHEN
from qatlib import ai8x

_TRUTH = {
    "output_shift is learned by gradient descent": (FALSE, "does the parameter need a gradient, and what does it hold afterwards?"),
    "master weights stay float32 during QAT": (HOLDS, "look at the dtype of op.weight while QAT is on."),
    "set_device(simulate=False) switches QAT on": (FALSE, "what is weight_bits right after this line?"),
    "8-bit quantization without QAT loses little accuracy": (WHEN, "compare the two 8-bit bars of the first figure."),
    "batch norm runs inside the QAT forward pass": (FALSE, "what is layer.bn when QAT is on?"),
    "backward works as if quantization did not happen": (WHEN, "what is the gradient of a value that was cut off?"),
}


def check_verdicts(my_verdicts) -> Report:
    """`my_verdicts`: claim -> "holds", "holds when" or "false", for the six claims of the exercise."""
    problem = _unusable(my_verdicts)
    if problem:
        return Report("my_verdicts", False, f"not yet: {problem}")
    wrong = [claim for claim, (verdict, _) in _TRUTH.items() if my_verdicts[claim] != verdict]
    rows = [{"case": claim, "got": my_verdicts[claim], "ok": "no" if claim in wrong else "yes"} for claim in _TRUTH]
    if not wrong:
        return Report("my_verdicts", True, "All six verdicts are what the cells measured.", rows)
    return Report("my_verdicts", False, f"not yet: {len(wrong)} to go. On '{wrong[0]}': {_TRUTH[wrong[0]][1]}", rows)


def _unusable(verdicts) -> str | None:
    if not isinstance(verdicts, dict):
        return f"my_verdicts is a {type(verdicts).__name__}; keep it a dict of claim to verdict."
    if missing := [claim for claim in _TRUTH if not verdicts.get(claim)]:
        return f"no verdict on {len(missing)} of {len(_TRUTH)} claims, the first is '{missing[0]}'."
    unknown = [verdicts[claim] for claim in _TRUTH if verdicts[claim] not in VERDICTS]
    return f"{unknown[0]!r} is no verdict; write {', '.join(map(repr, VERDICTS))}." if unknown else None


def _network(*bits, more=(), clamp=False) -> nn.Sequential:
    layers = [ai8x.FusedConv2dReLU(3, 3, 3, padding=1) for _ in bits]
    for layer, b in zip(layers, bits):
        layer.init_module(b or None, b or None, bool(b), clamp_activation=clamp)
    return nn.Sequential(*layers, *more)


def _half_on() -> nn.Sequential:
    model = _network(8, 8)
    model[1].quantize_activation.data.fill_(False)
    return model


def _layers(model) -> list[ai8x.QuantizationAwareModule]:
    return [m for m in model.modules() if isinstance(m, ai8x.QuantizationAwareModule) and m.op is not None]


def _is_on(layer) -> bool:
    return layer.weight_bits > 0 and bool(layer.quantize_activation)


_ANY_BITS = "it is quantized with these bits, all layers; any weight_bits above 0 counts."
# a network, an answer that is wrong about it, and what to say
_NETWORKS = [
    ("a new network", lambda: _network(0, 0), lambda model: True, "set_device alone switches nothing on. Look at weight_bits."),
    ("QAT with 8 bits", lambda: _network(8, 8), lambda model: False, _ANY_BITS),
    ("QAT with 4 and 2 bits", lambda: _network(4, 2), lambda model: all(m.weight_bits == 8 for m in _layers(model)), _ANY_BITS),
    ("clamped, not quantized", lambda: _network(0, 0, clamp=True), lambda model: all(m.clamp_activation for m in _layers(model)),
     "a clamp is not quantization: weight_bits is still 0."),
    ("the last layer left in float", lambda: _network(8, 0), lambda model: any(map(_is_on, _layers(model))),
     "one float layer makes the network a float network: ask all layers, not any."),
    ("activations of one layer not quantized", _half_on, lambda model: all(m.weight_bits > 0 for m in _layers(model)),
     "look at quantize_activation, too."),
    ("QAT, and a pooling layer without weights", lambda: _network(8, more=[ai8x.MaxPool2d(2)]),
     lambda model: [*map(_is_on, _layers(model))] == [True] * len(model),
     "a pooling layer has no weights to quantize: skip layers whose op is None."),
    ("plain torch layers", lambda: nn.Sequential(nn.Conv2d(3, 3, 3)), lambda model: all(map(_is_on, _layers(model))),
     "a network without any ai8x layer is not in QAT: all() of nothing is True."),
]  # fmt: skip


def _mistake(label: str, _, answer, hint: str) -> tuple:
    return lambda right, model: answer(model), f"'{label}': {hint}", lambda got, want, at, model: at == label


check_qat_is_on = Exercise(
    "my_qat_is_on(model) must be True where every layer with weights quantizes weights and activations, else False.",
    lambda model: bool(_layers(model)) and all(map(_is_on, _layers(model))),
    lambda: [(label, make()) for label, make, *_ in _NETWORKS],
    *[_mistake(*network) for network in _NETWORKS],
    read=lambda answer: bool(torch.as_tensor(answer).all()),
    praise="All 8 networks are told apart. The brief's checks could not do that.",
)

check_loss = Exercise(
    "my_loss(fp32, quantized) must give (points, relative loss), both in percent.",
    lambda fp32, quantized: np.array([100 * (fp32 - quantized), 100 * (fp32 - quantized) / fp32]),
    [(f"{a:g} to {b:g}", a, b) for a, b in ((0.8, 0.78), (0.5, 0.49), (0.9, 0.91))],
    (lambda right, *_: -right, "the signs are turned: a loss is positive where the quantized network is worse."),
    (lambda right, *_: right / 100, "these are fractions; both are wanted in percent."),
    (lambda right, *_: right[::-1], "the two are swapped: points first, relative second."),
    (lambda right, _, quantized: (right[0], right[0] / quantized), "relative to the float accuracy, not to the quantized one."),
    tolerance=1e-9,  # float64 rounding of two operations on numbers below 100: far below
    praise="Both agree. Quantization may gain a little, too: then the loss is negative.",
)
