"""Lesson 08's exercises: solutions pass; stubs and typical wrong answers fail, each with its own advice."""

import numpy as np
import torch.nn.functional as F
from exercises import both_ways

from qatlib.checks import lesson08 as lesson


def soften(logits, t):
    return (logits.flatten(2) / t).softmax(-1).view_as(logits)


def kl(student, teacher, t):
    return F.kl_div((student.flatten(2) / t).log_softmax(-1), soften(teacher, t).flatten(2), reduction="none").sum(-1).mean()


def loss(student, teacher, task, t, alpha):
    return alpha * t**2 * kl(student, teacher, t) + (1 - alpha) * task


def gain(a, b, ddof=1, root=True):
    d = np.subtract(a, b)
    return d.mean(), d.std(ddof=ddof) / (len(d) ** 0.5 if root else 1)


def unpaired(a, b):
    return np.mean(a) - np.mean(b), np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / len(a))


SOLUTIONS = [(lesson.check_soften, soften), (lesson.check_distillation, loss), (lesson.check_gain, gain)]
WRONG = [
    (lesson.check_soften, lambda x, t: soften(x, 1 / t), "upside down"),
    (lesson.check_soften, lambda x, t: soften(x, 1) / t, "inside of the softmax"),
    (lesson.check_soften, lambda x, t: (x / t).softmax(-1), "flatten height and width"),
    (lesson.check_soften, lambda x, t: x / t, "sum to 1"),
    (lesson.check_distillation, lambda s, t, k, T, a: a * kl(s, t, T) + (1 - a) * k, "T^2 is missing"),
    (lesson.check_distillation, lambda s, t, k, T, a: loss(t, s, k, T, a), "wrong way round"),
    (lesson.check_distillation, lambda s, t, k, T, a: loss(s, t, k, T, 1 - a) + (0 if a != 0.5 else 1), "expected"),
    (lesson.check_distillation, lambda s, t, k, T, a: a * T**2 * kl(s, t, T) * 3 + (1 - a) * k, "check the mean"),
    (lesson.check_gain, lambda a, b: gain(b, a), "sign"),
    (lesson.check_gain, lambda a, b: gain(a, b, ddof=0), "n - 1"),
    (lesson.check_gain, lambda a, b: gain(a, b, root=False), "sqrt(n)"),
    (lesson.check_gain, unpaired, "pairs"),
]
test_solution_passes, test_wrong_answer_is_advised, test_stub_and_broken_code_are_told_so = both_ways(SOLUTIONS, WRONG)


def test_swapped_shares_are_named():
    def swapped(s, t, k, T, a):
        return loss(s, t, k, T, a if a == 0.5 else 1 - a)

    assert "alpha is the teacher's share" in lesson.check_distillation(swapped).message
