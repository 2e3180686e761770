"""Lesson 13: answers in other styles, and what is no tensor."""

import torch
from exercises import both_ways

from qatcourse.checks import lesson13 as lesson

SOLUTIONS = [(check, answer) for check in (lesson.check_lsq, lesson.check_pact, lesson.check_fit) for answer in check.right]
WRONG = [
    (lesson.check_lsq, lambda x, scale, *ends: x.tolist(), "must return a tensor"),
    (lesson.check_lsq, lambda x, scale, *ends: x.mul_(2), "stopped with RuntimeError"),
    (lesson.check_lsq, lambda x, scale, *ends: lesson.lsq(x, scale, *ends)[:3], "has shape"),
    (lesson.check_pact, lambda x, alpha, q_max: torch.tensor(float("nan")).expand(10), "the values differ"),
    (lesson.check_fit, lambda w, scale, alpha, *rest: ([0.0] * 12, scale, alpha), "index (0,)"),
    (lesson.check_fit, lambda w, scale, alpha, *rest: "nothing", "numbers that fit"),
]
test_solution_passes, test_wrong_answer_is_advised = both_ways(SOLUTIONS, WRONG)
