"""Lesson 02's exercise that is no table, and other ways to write the right answers."""

import math

import torch
from exercises import both_ways

from qatcourse.checks import lesson02 as lesson


def fake(x, scale, q_min, q_max):
    q = x / scale
    return (q + (torch.floor(q + 0.5) - q).detach()).clamp(q_min, q_max) * scale


def fake_by_mask(x, scale, q_min, q_max):
    q = torch.floor(x.detach() / scale + 0.5)
    inside = (q >= q_min) & (q <= q_max)
    x = torch.where(inside, x, x.detach())
    return x + (q.clamp(q_min, q_max) * scale - x).detach()


SOLUTIONS = [
    (lesson.check_straight_through, lambda x, rounded: x + (rounded - x).detach()),
    (lesson.check_clipped, fake),
    (lesson.check_clipped, fake_by_mask),
    (lesson.check_schedule, lambda t: 0.2 if t < 140 else 0.0),
]
WRONG = [
    (lesson.check_straight_through, lambda x, rounded: x.tolist(), "not a tensor"),
    (lesson.check_schedule, lambda t: 0.3, "jumps"),
    (lesson.check_schedule, lambda t: 0.2 * 0.5 * (1 + math.cos(math.pi * t / 200)), "small rate is not enough"),
    (lesson.check_schedule, lambda t: 0.0, "stopped"),
    (lesson.check_schedule, lambda t: -0.1, "at least 0"),
]
test_solution_passes, test_wrong_answer_is_advised = both_ways(SOLUTIONS, WRONG)
