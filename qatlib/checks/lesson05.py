"""Checks of lesson 05: the share of correct keypoints, the head's gain, and the four steps that start QAT."""

import copy

import numpy as np
import torch

from qatlib import ai8x
from qatlib.checks import UNTOUCHED, Report, compare, failed, no_function
from qatlib.pose import metrics
from qatlib.pose.model import soft_argmax

POLICY = {"start_epoch": 0, "weight_bits": 4}


def _people(seed: int, hidden: float):
    """Random labels and guesses (6, 14, 2) in pixels, and which labels count; hip and shoulder always do."""
    rng = np.random.default_rng(seed)
    joints = rng.uniform(8, 56, (6, 14, 2)).astype(np.float32)
    guesses = joints + rng.normal(0, 6, joints.shape).astype(np.float32)
    labelled = rng.random((6, 14)) >= hidden
    labelled[:, [2, 9]] = True
    return guesses, joints, labelled


def check_pck(my_pck) -> Report:
    """`my_pck(pred, joints, labelled, alpha)` must give the share of labelled joints within alpha torsos of their place."""

    def advice(case, want, got):
        pred, joints, labelled, alpha = case
        distance = np.linalg.norm(pred - joints, axis=-1)
        torso = np.linalg.norm(joints[:, 2] - joints[:, 9], axis=-1)[:, None]
        close = distance <= alpha * torso
        if not 0 <= got <= 1:
            return "a share lies between 0 and 1: count the correct joints, then divide by how many there are (or take the mean)."
        if np.isclose(got, close.mean()):
            return "right, but joints without a label are counted too: keep only close[labelled]."
        if np.isclose(got, (distance <= alpha * torso.mean())[labelled].mean()):
            return "each person needs their own torso length, (N, 1), not the mean of all."
        if np.isclose(got, (distance <= alpha)[labelled].mean()):
            return "the tolerance is alpha times the person's torso, in pixels; alpha alone is a share."
        return None

    cases = [(*_people(1, 0.0), 0.2), (*_people(2, 0.3), 0.2), (*_people(3, 0.3), 0.1)]
    labels = ["all joints labelled, alpha 0.2", "some hidden, alpha 0.2", "some hidden, alpha 0.1"]
    praise = "Your measure agrees with the course's. Unlabelled joints count neither way."
    # shares of at most 84 joints differ by at least 1/84 where one joint is judged differently
    return compare("my_pck", my_pck, metrics.pck, cases, advice, tolerance=1e-6, praise=praise, labels=labels)


def check_logits(my_logits) -> Report:
    """`my_logits(raw, weight_shift)` must undo what QAT does to a wide head: raw * 2^weight_shift."""
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn(2, 14, 16, 16, generator=generator) * 4
    cases = [(maps * 2.0**-shift, shift) for shift in (-2, 0, 3)]

    def advice(case, want, got):
        raw, shift = case
        if np.allclose(got, (raw * 2.0**-shift).numpy()):
            return f"wrong direction: the head's codes were divided by 2^{shift}; multiply by 2^{shift} to get back."
        if np.allclose(got, (raw * shift).numpy()) or np.allclose(got, (raw * 2 * shift).numpy()):
            return "the shift counts bit positions: the factor is 2 ** weight_shift, not the shift itself."
        if np.allclose(got, raw.numpy()):
            return "nothing was changed; the soft arg-max would see another temperature than in float."
        apart = (soft_argmax(torch.tensor(got, dtype=torch.float32)) - soft_argmax(maps)).abs().max().item()
        return f"your joints are up to {apart:.1f} pixels from those of the float maps; multiply by one power of two."

    praise = "Every map is back to its float size. Powers of two are exact, so nothing is lost."
    labels = [f"weight shift {shift}" for _, shift in cases]
    return compare("my_logits", my_logits, lambda raw, s: raw * 2.0**s, cases, advice, praise=praise, labels=labels)


class Small(torch.nn.Module):
    """A network of two layers to start QAT on."""

    input_shape = (4, 8, 8)

    def __init__(self):
        super().__init__()
        self.conv1 = ai8x.FusedConv2dBNReLU(4, 8, 3, padding=1)
        self.head = ai8x.Conv2d(8, 2, 1, wide=True)

    def forward(self, x):
        return self.head(self.conv1(x))


def small_network():
    """(network, batches, inputs): a trained-looking float network, calibration batches, and inputs to compare on."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Small()
    model.conv1.bn.running_var.copy_(torch.linspace(0.002, 0.05, 8))
    model.conv1.bn.bias.data.copy_(torch.linspace(-0.5, 2, 8))
    batches = [(torch.randint(-128, 128, (16, 4, 8, 8), generator=generator) / 128,) for _ in range(2)]
    return model.eval(), batches, batches[0][0]


def check_start(my_start) -> Report:
    """`my_start(model, batches, policy)` must bring a float network into QAT, as `ai8x.start_qat` does."""
    if not callable(my_start):
        return no_function("my_start", my_start)
    model, batches, inputs = small_network()
    expected, got = copy.deepcopy(model), copy.deepcopy(model)
    ai8x.start_qat(expected, batches, POLICY, progress=False)
    try:
        returned = my_start(got, batches, POLICY)
    except Exception as problem:
        return failed("my_start", f"not yet: my_start stopped with {type(problem).__name__}: {problem}.")
    got = returned if isinstance(returned, torch.nn.Module) else got
    rows = [_row(what, measure(expected), measure(got)) for what, measure in MEASURES.items()]
    with torch.no_grad():
        same = torch.equal(expected.eval()(inputs), got.eval()(inputs))
    outcome = "equal" if same else "different"
    rows.append({"what": "outputs", "expected": "equal to the last bit", "got": outcome, "ok": _said(same)})
    if all(row["ok"] == "yes" for row in rows):
        return Report("my_start", True, "Bit for bit what start_qat does: QAT is on.", rows)
    if all(row["ok"] == "no" for row in rows):
        return failed("my_start", UNTOUCHED.format(name="my_start").replace("returned None", "changed nothing"))
    wrong = next(row["what"] for row in rows if row["ok"] == "no")
    return Report("my_start", False, f"not yet: {ADVICE[wrong]}", rows)


MEASURES = {
    "batch norm left": lambda model: sum(layer.bn is not None for layer in (model.conv1, model.head)),
    "activation_threshold": lambda model: model.conv1.activation_threshold.item(),
    "weight_bits": lambda model: (int(model.conv1.weight_bits.item()), int(model.head.weight_bits.item())),
}
ADVICE = {
    "batch norm left": "batch norm is still there: ai8x.fuse_bn_layers(model) comes first, the chip has no batch norm.",
    "activation_threshold": (
        "the thresholds were not measured on the fused network: ai8x.pre_qat(model, batches, policy) comes after fusing and before "
        "initiate_qat."
    ),
    "weight_bits": "weight_bits is still 0, so nothing is quantized: ai8x.initiate_qat(model, policy) switches it on.",
    "outputs": "all switches are right, but the outputs differ: fuse first, then measure, then switch on.",
}


def _row(what: str, expected, got) -> dict:
    return {"what": what, "expected": str(expected), "got": str(got), "ok": _said(expected == got)}


def _said(ok: bool) -> str:
    return "yes" if ok else "no"
