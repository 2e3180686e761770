"""Lesson 05's exercises: solutions pass; stubs and typical wrong answers fail, each with its own advice."""

import numpy as np
from exercises import both_ways

from qatlib import ai8x
from qatlib.checks import lesson05 as lesson


def pck(pred, joints, labelled, alpha):
    distance = np.linalg.norm(pred - joints, axis=-1)
    torso = np.linalg.norm(joints[:, 2] - joints[:, 9], axis=-1)[:, None]
    return (distance <= alpha * torso)[labelled].mean()


def pck_of_all(pred, joints, labelled, alpha):
    return pck(pred, joints, np.ones_like(labelled), alpha)


def pck_of_mean_torso(pred, joints, labelled, alpha):
    torso = np.linalg.norm(joints[:, 2] - joints[:, 9], axis=-1).mean()
    return (np.linalg.norm(pred - joints, axis=-1) <= alpha * torso)[labelled].mean()


def pck_in_pixels(pred, joints, labelled, alpha):
    return (np.linalg.norm(pred - joints, axis=-1) <= alpha)[labelled].mean()


def start(model, batches, policy):
    ai8x.fuse_bn_layers(model)
    ai8x.pre_qat(model, batches, policy)
    ai8x.initiate_qat(model, policy)
    return model


def start_without_statistics(model, batches, policy):
    ai8x.fuse_bn_layers(model)
    ai8x.initiate_qat(model, policy)
    return model


def start_without_fusing(model, batches, policy):
    ai8x.pre_qat(model, batches, policy)
    ai8x.initiate_qat(model, policy)
    return model


def start_without_switching_on(model, batches, policy):
    ai8x.fuse_bn_layers(model)
    ai8x.pre_qat(model, batches, policy)
    return model


SOLUTIONS = [
    (lesson.check_pck, pck),
    (lesson.check_logits, lambda raw, shift: raw * 2.0**shift),
    (lesson.check_start, start),
]
WRONG = [
    (lesson.check_pck, pck_of_all, "without a label"),
    (lesson.check_pck, pck_of_mean_torso, "their own torso"),
    (lesson.check_pck, pck_in_pixels, "alpha times"),
    (lesson.check_pck, lambda p, j, seen, a: pck(p, j, seen, a) * seen.sum(), "between 0 and 1"),
    (lesson.check_logits, lambda raw, shift: raw * 2.0**-shift, "wrong direction"),
    (lesson.check_logits, lambda raw, shift: raw * shift, "bit positions"),
    (lesson.check_logits, lambda raw, shift: raw, "nothing was changed"),
    (lesson.check_logits, lambda raw, shift: raw * 3, "one power of two"),
    (lesson.check_start, start_without_statistics, "pre_qat"),
    (lesson.check_start, start_without_fusing, "fuse_bn_layers"),
    (lesson.check_start, start_without_switching_on, "initiate_qat"),
]
test_solution_passes, test_wrong_answer_is_advised, test_stub_and_broken_code_are_told_so = both_ways(SOLUTIONS, WRONG)


def test_bn_left_in_the_stub_of_start_returns_the_model():
    assert "changed nothing" in lesson.check_start(lambda model, batches, policy: model).message
