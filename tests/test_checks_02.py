"""Lesson 02's exercises: solutions pass; stubs and typical wrong answers fail, each with its own advice."""

import math

import torch
from exercises import both_ways

from qatlib.checks import lesson02 as lesson


def through(x, rounded):
    return x + (rounded - x).detach()


def fake(x, scale, q_min, q_max):
    q = x / scale
    return (q + (torch.floor(q + 0.5) - q).detach()).clamp(q_min, q_max) * scale


def fake_by_mask(x, scale, q_min, q_max):
    q = torch.floor(x.detach() / scale + 0.5)
    inside = (q >= q_min) & (q <= q_max)
    x = torch.where(inside, x, x.detach())
    return x + (q.clamp(q_min, q_max) * scale - x).detach()


def seen(w, scale):
    return math.floor(w / scale + 0.5) * scale


def step(w, target, scale, rate):
    return w - rate * (seen(w, scale) - target)


SOLUTIONS = [
    (lesson.check_straight_through, through),
    (lesson.check_straight_through, lambda x, r: r.detach() + (x - x.detach())),
    (lesson.check_clipped, fake),
    (lesson.check_clipped, fake_by_mask),
    (lesson.check_step, step),
    (lesson.check_schedule, lambda t: 0.2 if t < 140 else 0.0),
]
WRONG = [
    (lesson.check_straight_through, lambda x, r: r, "no gradient"),
    (lesson.check_straight_through, lambda x, r: x, "x itself"),
    (lesson.check_straight_through, lambda x, r: r - x.detach() + 2 * x - x.detach(), "gradient is not"),
    (lesson.check_straight_through, lambda x, r: r + x, "forward value is wrong"),
    (lesson.check_clipped, lambda x, s, a, b: torch.floor(x / s + 0.5).clamp(a, b) * s, "no gradient"),
    (lesson.check_clipped, lambda x, s, a, b: x + (torch.floor(x / s + 0.5).clamp(a, b) * s - x).detach(), "still get a gradient"),
    (lesson.check_clipped, lambda x, s, a, b: x + (torch.floor(x / s + 0.5) * s - x).detach(), "clamp"),
    (lesson.check_clipped, lambda x, s, a, b: x.clamp(-1, 1) + (fake(x, s, a, b) - x.clamp(-1, 1)).detach(), "rounded code"),
    (lesson.check_step, lambda w, t, s, r: w - r * (w - t), "float weight"),
    (lesson.check_step, lambda w, t, s, r: w + r * (seen(w, s) - t), "wrong way"),
    (lesson.check_step, lambda w, t, s, r: seen(w, s) - r * (seen(w, s) - t), "dead zone"),
    (lesson.check_schedule, lambda t: 0.3, "jumps"),
    (lesson.check_schedule, lambda t: 0.2 * 0.5 * (1 + math.cos(math.pi * t / 200)), "small rate is not enough"),
    (lesson.check_schedule, lambda t: 0.0, "stopped"),
    (lesson.check_schedule, lambda t: -0.1, "at least 0"),
]
test_solution_passes, test_wrong_answer_is_advised, test_stub_and_broken_code_are_told_so = both_ways(SOLUTIONS, WRONG)
