"""Lesson 11's repairs: each right one passes; untouched stubs and usual mistakes fail, with a helpful message."""

import copy

import pytest
import torch

from qatcourse.checks import lesson11
from qatcourse.labs import break_it
from qatlib import ai8x, quantizers

pytestmark = pytest.mark.usefixtures("one_thread")


def start(p, state=None):
    p.model = copy.deepcopy(p.float_model)
    if state:
        p.model.load_state_dict(p.checkpoints[state])
    ai8x.start_qat(p.model, [p.x], {"weight_bits": 8}, progress=False)


def on(change):
    """A repair from a function that changes the patient."""

    def repair(patient):
        with torch.no_grad():
            change(patient)
        return patient

    return repair


def put(owner, **values):
    for name, value in values.items():
        setattr(owner, name, value)


def load(p, name):
    p.model.load_state_dict(p.checkpoints[name])
    ai8x.update_model(p.model)


def limit_bias(p):
    layer = p.model.conv4.op
    largest = layer.weight.abs().max()
    layer.bias.clamp_(-largest, largest)


def drop_batch_norm(p):
    for m in p.model.modules():
        if hasattr(m, "bn"):
            m.bn = None


def divide(p):
    for m in lesson11.ai8x_layers(p.model):
        m.op.weight.div_(128)
        m.op.bias.div_(128 * 128)


def train_with(rate):
    def change(p):
        p.learning_rate = rate

    return change


SOLUTIONS = [
    ("input_range", lambda p: put(p, x=(p.images.float() - 128) / 128)),
    ("batch_norm", start),
    ("never_started", start),
    ("learning_rate", train_with(0.005)),
    ("learning_rate", train_with(0.001)),
    ("half_even", lambda p: put(p.model.conv3, rounding=quantizers.round_half_up)),
    ("missing_clamp", lambda p: ai8x.update_model(p.model)),
    ("missing_clamp", lambda p: p.model.add.set_clamp(True)),
    ("wrong_checkpoint", lambda p: load(p, "qat_best.pth")),
    ("big_bias", limit_bias),
    ("dead_layer", lambda p: start(p, "epoch_2.pth")),
    ("wide_head", lambda p: put(p.model, head_gain=lambda: torch.exp2(p.model.head.weight_shift()))),
]
WRONG = [
    ("input_range", lambda p: put(p, x=p.images.float() / 255 - 0.5), "grid"),
    ("input_range", lambda p: put(p, x=p.images.float() - 128), "integer codes"),
    ("input_range", lambda p: put(p, images=p.images // 2, x=(p.images // 2).float() / 128 - 0.5), "pictures must stay"),
    ("batch_norm", drop_batch_norm, "is gone, but"),
    ("batch_norm", lambda p: put(p, model=copy.deepcopy(p.float_model)), "QAT never started"),
    ("never_started", lambda p: ai8x.set_device(85, False, False, verbose=False), "weight_bits is 0"),
    ("never_started", lambda p: ai8x.initiate_qat(p.model, {"weight_bits": 8}), "batch norm"),
    ("learning_rate", train_with(0.5), "loss"),
    ("learning_rate", lambda p: p.history.clear(), "loss"),
    ("half_even", lambda p: put(p.model.conv3, rounding=torch.floor), "arithmetic"),
    ("half_even", lambda p: put(p.model.conv3, rounding=torch.trunc), "arithmetic"),
    ("missing_clamp", lambda p: p.model.eval(), "not clamped"),
    ("missing_clamp", lambda p: put(p, x=p.x.clamp(-1, 0.5)), "not clamped"),
    ("wrong_checkpoint", lambda p: load(p, "qat_best_q.pth"), "integers"),
    ("wrong_checkpoint", lambda p: load(p, "best.pth"), "weight_bits is 0"),
    ("wrong_checkpoint", divide, "not yet"),
    ("big_bias", lambda p: p.model.conv4.op.bias[3].fill_(-20.0), "bits"),
    ("big_bias", lambda p: ai8x.initiate_qat(p.model, {"weight_bits": 8}), "bits"),
    ("dead_layer", lambda p: p.model.conv4.op.bias.zero_(), "not yet"),
    ("dead_layer", lambda p: start(p, "epoch_3.pth"), "dead layer"),
    ("wide_head", lambda p: put(p.model, head_gain=lambda: 8.0), "2^weight_shift"),
    ("wide_head", lambda p: put(p.model, head_gain=lambda: 0.125), "constant"),
    ("wide_head", lambda p: p.model.head.op.weight.mul_(8), "head_gain"),
]


@pytest.mark.parametrize("bug, change", SOLUTIONS)
def test_right_repairs_pass(bug, change):
    report = getattr(lesson11, f"check_{bug}")(on(change))
    assert report.ok, report
    assert "repaired" in report.message and [row["ok"] for row in report.rows] == ["yes", "yes"]


@pytest.mark.parametrize("bug, change, said", WRONG)
@pytest.mark.filterwarnings("ignore:.*dead layer")
def test_usual_mistakes_fail_with_advice(bug, change, said):
    report = lesson11.check(bug, on(change))
    assert not report.ok and report.message.startswith("not yet") and said in report.message, report


@pytest.mark.parametrize("bug", break_it.BUGS)
def test_untouched_stubs_and_wrong_kinds_fail(bug):
    assert "returned None" in lesson11.check(bug, lambda patient: None).message
    assert not lesson11.check(bug, lambda patient: None).ok
    assert not lesson11.check(bug, lambda patient: patient).ok
    assert "return the patient" in lesson11.check(bug, lambda patient: patient.model).message
    assert "without calling it" in lesson11.check(bug, None).message


def test_every_bug_has_a_solution_and_two_wrong_answers():
    for bug in break_it.BUGS:
        assert any(name == bug for name, _ in SOLUTIONS)
        assert sum(name == bug for name, *_ in WRONG) >= 2


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="choose one of input_range"):
        break_it.make("typo")
    with pytest.raises(AttributeError, match="check_input_range"):
        lesson11.check_typo  # noqa: B018
