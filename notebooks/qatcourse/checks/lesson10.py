"""Checks of lesson 10: two meanings of "2 %", a test that tells whether QAT is on, and verdicts on seven claims."""

import re

import numpy as np
import torch
from torch import nn

from qatcourse.checks import Exercise, NotYet, judged, numbers
from qatcourse.labs.claims import FALSE, HOLDS, UNTESTED, VERDICTS, WHEN
from qatlib import ai8x

check_loss = Exercise(
    "my_loss(fp32, quantized) must give (points, relative loss), both in percent.",
    lambda fp32, quantized: np.array([100 * (fp32 - quantized), 100 * (fp32 - quantized) / fp32]),
    [(f"{a:g} to {b:g}", a, b) for a, b in ((0.8, 0.78), (0.5, 0.49), (0.9, 0.91))],
    (lambda right, *_: -right, "the signs are turned: a loss is positive where the quantized network is worse."),
    (lambda right, *_: right / 100, "these are fractions; both are wanted in percent."),
    (lambda right, *_: right[::-1], "the two are swapped: points first, relative second."),
    (lambda right, _, quantized: (right[0], right[0] / quantized), "relative to the float accuracy, not to the quantized one."),
    (lambda right, *_: (right[0], 100 - right[1]), "the second is what is kept; the loss is 100 minus that."),
    (lambda right, *_: (right[0], right[0]), "these are points twice; divide by the float accuracy for the relative loss."),
    (lambda right, *_: (right[0], right[1] / 100), "the relative loss is a fraction; both are wanted in percent."),
    (lambda right, *_: right.clip(0), "{0} is a gain. Leave it negative: a loss that is cut off at 0 hides it."),
    read=lambda answer: numbers(answer).ravel(),
    tolerance=1e-4,  # float32 rounds a difference of two accuracies, in percent, by less than 1e-5
    praise="All three agree. Quantization may gain a little, too: then the loss is negative.",
    right=[
        lambda fp32, quantized: [(1 - quantized / fp32) * fp32 * 100, (1 - quantized / fp32) * 100],
        lambda fp32, quantized: 100 * (torch.tensor(fp32) - quantized) / torch.tensor([1.0, fp32]),
        lambda fp32, quantized: np.float32(100) * np.array([fp32 - quantized, (fp32 - quantized) / fp32], dtype=np.float32),
        lambda fp32, quantized: (torch.tensor([100 * (fp32 - quantized)]), torch.tensor([100 - 100 * quantized / fp32])),
    ],
)


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
    ("a float layer inside a block, where model.children() does not look", lambda: _network(8, more=[_network(0)]),
     lambda model: all(_is_on(m) for m in model.children() if getattr(m, "op", None) is not None),
     "layers may sit inside blocks: walk through model.modules()."),
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
    praise="All 9 networks are told apart. The brief's checks could not do that.",
    right=[
        lambda model: torch.tensor([bool(_layers(model)) and all(map(_is_on, _layers(model)))]),
        lambda model: np.bool_(min([int(_is_on(m)) for m in _layers(model)], default=0)),
    ],
)

_TRUTH = {  # claim: its number on the page, verdict, what to look at
    "output_shift is learned by gradient descent": (33, FALSE, "does the parameter need a gradient? What does it hold in QAT?"),
    "master weights stay float32 during QAT": (2, HOLDS, "look at the dtype of op.weight while QAT is on."),
    "set_device(simulate=False) switches QAT on": (53, FALSE, "what is weight_bits right after this line?"),
    "8-bit quantization without QAT loses little accuracy": (10, WHEN, "compare the two 8-bit bars of the first figure."),
    "batch norm runs inside the QAT forward pass": (27, FALSE, "what is layer.bn when QAT is on?"),
    "backward works as if quantization did not happen": (9, WHEN, "what is the gradient of a value that was cut off?"),
    "the network runs fast on the chip": (72, UNTESTED, "has any cell of this course run on a MAX78000?"),
}
_RIGHT = {claim: verdict for claim, (_, verdict, _) in _TRUTH.items()}


def _but(verdict, word: str) -> dict:
    """The right verdicts, one of them replaced: that on the claim which begins with `word`."""
    return _RIGHT | {next(claim for claim in _RIGHT if claim.startswith(word)): verdict}


@judged(
    "my_verdicts",
    "All seven verdicts are what the cells showed.",
    value=True,
    wrong=[
        (_but(HOLDS, "output_shift"), "need a gradient"),
        (_but(FALSE, "master"), "dtype of op.weight"),
        (_but(WHEN, "set_device"), "weight_bits"),
        (_but(HOLDS, "8-bit"), "two 8-bit bars"),
        (_but(HOLDS, "batch"), "layer.bn"),
        (_but(HOLDS, "backward"), "cut off"),
        (_but(HOLDS, "the network"), "run on a MAX78000"),
        (_but("maybe", "batch"), "'maybe', which is no verdict"),
        (_but("", "master"), "no verdict on 1"),
        (dict.fromkeys(_RIGHT, ""), "no verdict on 7 of 7"),
        (_but(["false"], "batch"), "which is no verdict"),
        (list(_RIGHT.values()), "keep it a dict"),
        (None, "keep it a dict"),
    ],
    right=[
        _RIGHT,
        {claim: f" {verdict.upper()} " for claim, verdict in _RIGHT.items()},
        {claim: verdict.capitalize().replace(" ", "-") + "." for claim, verdict in _RIGHT.items()},
        _but(False, "batch"),
        _but("holds when it was calibrated", "8-bit"),
        _but("Not tested", "the network"),
    ],
)
def check_verdicts(my_verdicts):
    """`my_verdicts`: claim -> "holds", "holds when", "false" or "not tested here", for the seven claims of the exercise."""
    if not isinstance(my_verdicts, dict):
        raise NotYet(f"is a {type(my_verdicts).__name__}; keep it a dict of claim to verdict.")
    if missing := [claim for claim in _TRUTH if my_verdicts.get(claim) in (None, "")]:
        raise NotYet(f"has no verdict on {len(missing)} of {len(_TRUTH)} claims, the first is '{missing[0]}'.")
    for claim, (number, verdict, hint) in _TRUTH.items():
        given = _spelled(my_verdicts[claim])
        ok = "yes" if given == verdict else "no"
        yield {"claim": claim, "got": given, "page": number, "ok": ok}, f"on '{claim}' (claim {number}): {hint}"


def _spelled(given) -> str:
    """A learner's verdict in the page's spelling: capitals, spaces, hyphens, a full stop and a named condition do not matter."""
    text = re.sub(r"[\s_-]+", " ", str(given)).strip(" .'\"").lower()
    found = next((verdict for verdict in (WHEN, UNTESTED, FALSE) if text.startswith(verdict.removesuffix(" here"))), text)
    if found not in VERDICTS:
        raise NotYet(f"holds {given!r}, which is no verdict; write {', '.join(map(repr, VERDICTS))}.")
    return found
