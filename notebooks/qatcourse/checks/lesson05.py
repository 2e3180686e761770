"""Checks of lesson 05: the share of correct keypoints, the head's gain, and the four steps that start QAT."""

import copy
import operator
from collections import OrderedDict

import numpy as np
import torch

from qatcourse.checks import UNTOUCHED, Exercise, NotYet, always, ask, judged, row
from qatcourse.pose import metrics
from qatlib import ai8x


def _people(seed: int, hidden: float):
    """Random labels and guesses (6, 14, 2) in pixels, and which labels count; hip and shoulder always do."""
    rng = np.random.default_rng(seed)
    joints = rng.uniform(8, 56, (6, 14, 2)).astype(np.float32)
    guesses = joints + rng.normal(0, 6, joints.shape).astype(np.float32)
    labelled = rng.random((6, 14)) >= hidden
    labelled[:, [2, 9]] = True
    return guesses, joints, labelled


def _share_within(tolerance, pred, joints, labelled):
    return (np.linalg.norm(pred - joints, axis=-1) <= tolerance)[labelled].mean()


check_pck = Exercise(
    "my_pck(pred, joints, labelled, alpha) must give the share of labelled joints within alpha torsos of their place.",
    metrics.pck,
    [("all joints labelled, alpha 0.2", *_people(1, 0.0), 0.2), ("some hidden, alpha 0.2", *_people(2, 0.3), 0.2),
     ("some hidden, alpha 0.1", *_people(3, 0.3), 0.1)],
    (lambda right, pred, joints, labelled, _: right * labelled.sum(),
     "a share lies between 0 and 1: count the correct joints, then divide by how many there are (or take the mean).",
     lambda got, *_: not 0 <= got <= 1),
    (lambda _, pred, joints, labelled, alpha: metrics.pck(pred, joints, labelled | True, alpha),
     "right, but joints without a label are counted too: keep only close[labelled]."),
    (lambda _, *people: _share_within(people[-1] * metrics.torso_length(*people[1:3]).mean(), *people[:3]),
     "each person needs their own torso length, (N, 1), not the mean of all."),
    (lambda _, *people: _share_within(people[-1], *people[:3]),
     "the tolerance is alpha times the person's torso, in pixels; alpha alone is a share."),
    tolerance=1e-6,  # shares of at most 84 joints differ by at least 1/84 where one joint is judged differently
    praise="Your measure agrees with the course's. Unlabelled joints count neither way.",
)  # fmt: skip

_MAPS = torch.randn(2, 14, 16, 16, generator=torch.Generator().manual_seed(5)) * 4
_BIT_POSITIONS = "the shift counts bit positions: the factor is 2 ** weight_shift, not the shift itself."

check_logits = Exercise(
    "my_logits(raw, weight_shift) must undo what QAT does to a wide head: raw * 2^weight_shift.",
    lambda raw, shift: raw * 2.0**shift,
    [(f"weight shift {shift}", _MAPS * 2.0**-shift, shift) for shift in (-2, 0, 3)],
    (lambda _, raw, shift: raw * 2.0**-shift,
     "wrong direction: the head's codes were divided by 2^{2}; multiply by 2^{2} to get back."),
    (lambda _, raw, shift: raw * shift, _BIT_POSITIONS),
    (lambda _, raw, shift: raw * 2 * shift, _BIT_POSITIONS),
    (lambda _, raw, shift: raw, "nothing was changed; a softmax would see another temperature than in float."),
    (lambda _, raw, shift: raw * 3, "these maps are not those of the float network; multiply all by one power of two.", always),
    praise="Every map is back to its float size. Powers of two are exact, so nothing is lost.",
)  # fmt: skip


def small_network():
    """(network, batches): a trained-looking float network of two layers, and calibration batches."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layers = {"conv1": ai8x.FusedConv2dBNReLU(4, 8, 3, padding=1), "head": ai8x.Conv2d(8, 2, 1, wide=True)}
    layers["conv1"].bn.running_var.copy_(torch.linspace(0.002, 0.05, 8))
    layers["conv1"].bn.bias.data.copy_(torch.linspace(-0.5, 2, 8))
    batches = [(torch.randint(-128, 128, (16, 4, 8, 8), generator=random) / 128,) for _ in range(2)]
    return torch.nn.Sequential(OrderedDict(layers)).eval(), batches


_STEPS = {
    "batch norm left": "batch norm is still there: ai8x.fuse_bn_layers(model) comes first, the chip has no batch norm.",
    "activation_threshold": "the thresholds were not measured on the fused network: ai8x.pre_qat(model, batches, policy) comes "
    "after fusing and before initiate_qat.",
    "weight_bits": "weight_bits is still 0, so nothing is quantized: ai8x.initiate_qat(model, policy) switches it on.",
    "outputs": "all switches are right, but the outputs differ: fuse first, then measure, then switch on.",
}


@torch.no_grad()
def _measured(model, inputs) -> tuple:
    bits = tuple(int(layer.weight_bits.item()) for layer in model)
    return sum(layer.bn is not None for layer in model), model.conv1.activation_threshold.item(), bits, model.eval()(inputs)


@judged("my_start", "Bit for bit what start_qat does: QAT is on.")
def check_start(my_start):
    """my_start(model, batches, policy) must bring a float network into QAT, as `ai8x.start_qat` does."""
    model, batches = small_network()
    want, got = copy.deepcopy(model), copy.deepcopy(model)
    policy = {"start_epoch": 0, "weight_bits": 4}
    ai8x.start_qat(want, batches, policy, progress=False)
    # in a list, since None is fine here: my_start may change the network itself
    (returned,) = ask(lambda *arguments: [my_start(got, *arguments)], batches, policy, read=list)
    got = returned if isinstance(returned, torch.nn.Module) else got
    (*want, outputs), (*got, found) = (_measured(network, batches[0][0]) for network in (want, got))
    same = torch.equal(outputs, found)
    want.append("equal to the last bit")
    got.append(want[-1] if same else "different")
    if not any(map(operator.eq, want, got)):
        raise NotYet(UNTOUCHED.replace("returned None", "changed nothing"))
    for (what, said), a, b in zip(_STEPS.items(), want, got):
        yield row(what, a, "equal" if same and what == "outputs" else b, a == b, "what"), said
