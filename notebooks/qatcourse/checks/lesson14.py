"""Checks of lesson 14: patients E and F as in lesson 11, and a small doctor for the four short cases."""

import functools

import torch

from qatcourse.checks import Exercise, always
from qatcourse.checks.lesson11 import ELSEWHERE, FLOAT, SEEDS, SIMULATE, START, SWITCH, repairs
from qatcourse.labs.break_it import WARD, Patient, admit, healthy, weighted

FUSE, MEASURE = "ai8x.fuse_bn_layers(p.model)", "ai8x.pre_qat(p.model, [p.x], {'weight_bits': 8})"
GAIN = "p.model.head_gain = lambda: "


@torch.no_grad()
def _gain(p: Patient) -> str:
    """Is head_gain() right, and still right when training has moved the weights across powers of two?"""
    head = p.model.head
    for factor in (1, 8, 1 / 8):
        head.op.weight.mul_(factor)
        head.op.bias.mul_(factor)
        gain, shift = torch.as_tensor(p.model.head_gain()).float().mean(), head.weight_shift().squeeze() + 0.0
        if gain != torch.exp2(shift):
            return f"head_gain() gives {gain:g} where weight_shift is {shift:g}; it must be 2^weight_shift, computed at each call."
    return ""


check_e = repairs("E", [START, "; ".join((FLOAT, FUSE, MEASURE, SWITCH)), START + "; p.train()"], {
    FUSE: "now there is", SWITCH: "batch norm", "; ".join((FLOAT, FUSE, SWITCH)): "now there is", FLOAT: "QAT never started",
    "; ".join((FLOAT, MEASURE, FUSE, SWITCH)): "now there is", "for m in p.model.children(): m.bn = None": "now there is",
    START.replace("8}", "4}"): "4-bit weights", ELSEWHERE: "another network", SIMULATE: "simulating the chip",
})  # fmt: skip
check_f = repairs("F", [
    GAIN + "torch.exp2(p.model.head.weight_shift())", GAIN + "2.0 ** p.model.head.weight_shift().item()",
    GAIN + "np.exp2(p.model.head.weight_shift().numpy())",
], {
    GAIN + "8.0": "gives 8 where weight_shift is -3", GAIN + "0.125": "gives 0.125 where weight_shift is 0",
    GAIN + "torch.exp2(-p.model.head.weight_shift())": "gives 8", GAIN + "p.model.head.weight_shift()": "gives -3",
    "p.model.head_gain = 0.125": "wide head", "p.model.head.op.weight.data.div_(8)": "wide head", SWITCH: "wide head",
}, also=_gain)  # fmt: skip


def _ward() -> list[tuple]:
    """(label, network) of the short cases and of health, for two networks."""
    patients = [(who, seed, admit(who, seed) if who in WARD else healthy(seed)) for seed in SEEDS for who in [*"GHIJ", "in health"]]
    return [(f"patient {who}, network {seed}", patient.model) for who, seed, patient in patients]


def _cause(_, model, dead=lambda t: t.isinf().any(), whole=lambda w: (w == w.round()).all(),
           on=lambda layer: layer.weight_bits.item(), order="threshold whole bits clamp"):  # fmt: skip
    layers = weighted(model)
    found = {
        "threshold": dead(torch.stack([layer.activation_threshold for layer in layers])) and "dead layer",
        "whole": whole(torch.cat([layer.op.weight.detach().flatten() for layer in layers])) and "wrong checkpoint",
        "bits": not any(map(on, layers)) and "QAT never started",
        "clamp": not model.add.clamped and "clamp missing",
    }
    return next((found[name] for name in order.split() if found[name]), "healthy")


check_doctor = Exercise(
    "my_doctor(model): 'dead layer', 'clamp missing', 'QAT never started', 'wrong checkpoint' or 'healthy'.",
    functools.partial(_cause, None),
    _ward,
    (lambda _, m: _cause(_, m, order="clamp threshold whole bits"),
     "{0}: a float network has no clamp either, since nothing is quantized in it. Ask for weight_bits before the clamp."),
    (lambda _, m: _cause(_, m, whole=lambda w: w.abs().max() > 1),
     "{0}: a sound network has weights beyond 1, too; integers are what equals its rounded value."),
    (lambda _, m: _cause(_, m, dead=lambda t: t.isnan().any()), "{0}: a threshold of minus infinity is not NaN: use isinf()."),
    (lambda _, m: _cause(_, m, dead=lambda t: (t == 0).any()), "{0}: a threshold of 0 is a range of 1: sound."),
    (lambda _, m: _cause(_, m, order="threshold whole bits"), "{0}: the state of the clamp is in no tensor: model.add.clamped."),
    (lambda _, m: _cause(_, m, order="threshold bits clamp"), "{0}: its weights are whole numbers, yet you let it through."),
    (lambda _, m: _cause(_, m, on=lambda layer: layer.output_shift.item()), "{0}: output_shift is 0 in QAT, too; ask weight_bits."),
    (lambda *_: "wrong checkpoint", "{0}: expected '{want}', got '{got}'.", always),
    read=str,
    right=[lambda m: _cause(None, m, lambda t: (t < -99).any(), lambda w: torch.equal(w, w.trunc()), lambda x: x.weight_bits > 0)],
    praise="Four causes and health, told apart from parameters alone, in two networks each.",
)  # fmt: skip
