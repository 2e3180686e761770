"""Checks of lesson 02: a straight-through estimator, its clipped form, one step of descent, and an end to oscillation."""

import math

import numpy as np
import torch

from qatcourse.checks import Exercise, NotYet, always, ask, judged, number, row
from qatcourse.viz import descend, oscillation
from qatlib.quantizers import fake_quantize, round_half_up

_X = torch.tensor([-2.6, -1.5, -0.51, -0.2, 0.0, 0.3, 0.5, 0.74, 1.7, 2.5])
# none less than half a step beyond an end: there an answer that clamps first differs from ai8x, which the lesson shows
_TIES = torch.tensor([-2.6, -2.3, -1.5, -0.51, -0.25, 0.0, 0.25, 0.3, 0.74, 1.25, 1.4, 1.9, 2.5])
_ROUNDING = 2**-22  # x + (rounded - x).detach(), the popular form, may be off by one rounding of a float32 below 4


class _WithGradient(Exercise):
    """What is compared: the values, and the gradients of a weighted sum of them at x, the first argument."""

    def given(self, answer, *case):
        def values_and_gradients(x, *rest):
            before = x.clone()
            y = answer(x.requires_grad_(), *rest)
            if y is None:
                return None
            if not isinstance(y, torch.Tensor) or y.shape != x.shape:
                kind = f"tensor of shape {tuple(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
                raise NotYet(f"must return a tensor of the shape of x, through which gradients can pass; it returned a {kind}.")
            if not torch.equal(x.detach(), before):
                raise NotYet("changes x itself. The float weight must keep its small steps: leave x alone, return a new tensor.")
            if y.requires_grad:
                (y * torch.arange(1.0, y.numel() + 1)).sum().backward()
            return torch.stack([y.detach().double(), (torch.zeros_like(x) if x.grad is None else x.grad).double()])

        return super().given(values_and_gradients, *case)


def _through(x, rounded):
    return rounded + (x - x.detach())


def _seen(w, scale, rounded=lambda v: np.floor(v + 0.5)):
    return rounded(w / scale) * scale


def _step(w, target, scale, rate, **rule):
    return w - rate * (_seen(w, scale, **rule) - target)


def _value_differs(got, want, *_):
    return not np.allclose(got[0], want[0])


def _no_gradient(got, *_):
    return not got[1].any()


check_straight_through = _WithGradient(
    "my_straight_through(x, rounded): forward `rounded`, backward the gradient of x.",
    _through,
    [("10 numbers: values, then gradients", _X, round_half_up(_X))],
    (lambda _, x, rounded: x, "forward gives x itself; the network must see the rounded value. Which part needs detach()?",
     lambda got, want, _, x, rounded: np.allclose(got[0], x)),
    (lambda _, x, rounded: rounded + x, "the forward value is wrong: without gradients your expression must give `rounded`.",
     _value_differs),
    (lambda _, x, rounded: rounded,
     "forward is right, but no gradient reaches x. Let x enter the sum undetached: something minus something, detached.",
     _no_gradient),
    (lambda _, x, rounded: rounded - (x - x.detach()),
     "forward is right, the gradient has the wrong sign: x must enter with a plus."),
    (lambda _, x, rounded: rounded + 2 * (x - x.detach()),
     "forward is right, but the gradient is doubled: one x alone stays undetached."),
    (lambda right, x, _: _through(x, right) + (x - x.detach()) * x.detach(),
     "forward is right, the gradient is not: it must be the one of x, unchanged.", always),
    tolerance=_ROUNDING,
    praise="Forward it rounds, backward it steps aside.",
    right=[lambda x, rounded: x + (rounded - x).detach(), lambda x, rounded: rounded.detach() + (x - x.detach()),
           lambda x, rounded: x - (x - rounded).detach(), lambda x, rounded: x.double() + (rounded - x.double()).detach()],
    piece=True,
)  # fmt: skip


def _fake(x, scale, q_min, q_max, rounding=round_half_up):
    return _through(x / scale, rounding(x / scale)).clamp(q_min, q_max) * scale


def _fake_by_mask(x, scale, q_min, q_max):
    codes = round_half_up(x.detach() / scale)
    x = torch.where((codes >= q_min) & (codes <= q_max), x, x.detach())
    return x + (codes.clamp(q_min, q_max) * scale - x).detach()


def _clamped_first(x, scale, q_min, q_max):
    codes = (x / scale).clamp(q_min, q_max)
    return _through(codes, round_half_up(codes)) * scale


check_clipped = _WithGradient(
    "my_fake_quantize(x, scale, q_min, q_max): on the grid; gradient 1 where the rounded code lies in q_min..q_max, else 0.",
    lambda x, scale, q_min, q_max: fake_quantize(x, scale, 0, int(q_max).bit_length() + 1),
    [("scale 0.5, codes -4..3", _TIES, 0.5, -4, 3), ("scale 0.25, codes -8..7", _TIES, 0.25, -8, 7),
     ("scale in a tensor", _X, torch.tensor([0.25]), -8, 7)],
    (lambda _, *case: _fake(*case) / case[1], "these are codes; multiply by the scale in the end.",
     lambda got, want, _, x, scale, *ends: np.allclose(got[0] * float(scale), want[0])),
    (lambda _, *case: _fake(*case, rounding=torch.round),
     "ties differ: torch.round goes to the even neighbour, the chip rounds half up. Use torch.floor(v + 0.5)."),
    (lambda _, *case: _fake(*case, rounding=torch.floor),
     "floor alone takes the mark below, not the nearest: add a half before it."),
    (lambda _, x, scale, *ends: _through(x, _seen(x.detach(), scale)),
     "the forward value is off the grid or not clamped: clamp the rounded code to q_min..q_max, then multiply by scale.",
     _value_differs),
    (lambda right, *_: right.detach(),
     "no gradient arrives: torch.floor stops it. Put a straight-through step around the rounding.", _no_gradient),
    (lambda right, x, *_: _through(x, right.detach()),
     "clipped values still get a gradient. Clamp outside of the straight-through step: clamp has gradient 0 there by itself.",
     lambda got, want, *_: got[1][want[1] == 0].any()),
    (lambda right, x, *_: _through(x.clamp(-1, 1), right.detach()),
     "values are right, some gradients are not: 1 where the rounded code lies in q_min..q_max, whatever the scale.", always),
    tolerance=_ROUNDING,
    praise="Values and gradients agree, at the ends of the range too.",
    right=[_fake, _fake_by_mask, _clamped_first, lambda *case: _fake(*case).double(),
           lambda x, s, low, high: s * torch.clip(x / s + (torch.floor(x / s + 0.5) - x / s).detach(), low, high)],
    piece=True,
)  # fmt: skip

check_step = Exercise(
    "my_step(w, target, scale, rate): one step of descent on (quantized w - target)^2 / 2 with a straight-through gradient.",
    _step,
    [("w {:g}, target {:g}, scale {:g}, rate {:g}".format(*case), *case)
     for case in ((0.3, 0.4, 0.25, 0.1), (0.38, 0.4, 0.25, 0.1), (-0.9, 0.37, 0.25, 0.2), (0.1, -0.6, 0.5, 0.05),
                  (0.125, 0.4, 0.25, 0.1), (-0.375, 0.4, 0.25, 0.1))],
    (lambda _, w, target, scale, rate: w - rate * (w - target),
     "you used the float weight in the loss; the loss sees the quantized one: scale * floor(w / scale + 0.5)."),
    (lambda right, w, *_: 2 * w - right, "wrong way: descent subtracts rate times the gradient."),
    (lambda _, w, target, scale, rate: _step(_seen(w, scale), target, scale, rate),
     "you stored the quantized weight; keep the float one, or steps below half the scale are forgotten."),
    (lambda _, *case: _step(*case, rounded=np.round), "ties differ: round() goes to the even neighbour, the chip rounds half up."),
    (lambda _, *case: _step(*case, rounded=np.floor), "floor alone takes the mark below, not the nearest: add a half before it."),
    (lambda right, w, *_: w + 2 * (right - w), "twice too far: the derivative of (y - target)^2 / 2 is y - target, without a 2."),
    (lambda right, w, target, scale, rate: w + (right - w) / rate, "the learning rate is missing."),
    tolerance=1e-6,  # float32 arithmetic of numbers below 1: a few roundings of 2^-24
    praise="Every step agrees: the gradient is taken at the quantized weight and applied to the float one.",
    right=[lambda *case: np.float32(_step(*case)), lambda *case: torch.tensor([_step(*case)]), lambda *case: [_step(*case)],
           lambda w, target, scale, rate: (1 - rate) * w + rate * (target + w - scale * math.floor(w / scale + 0.5))],
)  # fmt: skip


@judged(
    "my_rate",
    "It arrives and it rests. Recipes against oscillation freeze weights in the same way.",
    wrong=[(lambda t: 0.3, "jumps"), (lambda t: 0.1, "jumps"),
           (lambda t: 0.1 * (1 + math.cos(math.pi * t / 200)), "small rate is not"),
           (lambda t: 0.01, "still on its way"), (lambda t: 0.0, "stopped"), (lambda t: 0.2 if t < 5 else 0, "stopped"),
           (lambda t: 0.2 * 0.9**t, "still on its way"), (lambda t: -0.1, "at least 0"), (lambda t: float("inf"), "at least 0"),
           (lambda t: "fast", "must return numbers")],
    right=[lambda t: 0.2 if t < 140 else 0.0, lambda t: torch.tensor([0.2 * (t < 140)]),
           lambda t: np.float32(0.3 if t < 100 else 0), lambda t: max(0.0, 0.3 - 0.002 * t) if t < 150 else 0],
)  # fmt: skip
def check_schedule(my_rate):
    """my_rate(step), steps 0..200: the weight must arrive beside its target and not jump in the last 50 steps."""
    target, scale = 0.45, 0.25
    rates = [ask(my_rate, step, read=number) for step in range(201)]
    if not all(np.isfinite(rates)) or min(rates) < 0:
        raise NotYet("must give a learning rate at every step: a number of at least 0.")
    w, q = descend(-0.9, target, scale, 3, "clipped", lambda step: rates[step], 200)
    jumps, away, seen = int((np.diff(q[-51:]) != 0).sum()), abs(q[-1] - target), bool((q > target).any())
    picture = oscillation({"your schedule": (w, q)}, target, scale)
    said = f"the weight stopped {away:.2g} from its target; start with a larger rate or let it fall later."
    yield row("distance from the target", "below 0.25", f"{away:.3g}", away < scale), said, picture
    said = "the weight rests only because it is still on its way: in 200 steps it never reached 0.5, on the other side of its "
    said += "target. Begin with a larger rate."
    yield row("has been on both sides of it", "yes", "yes" if seen else "no", seen), said, picture
    said = f"it arrives but jumps {jumps} times at the end. The weight sits between two codes, where even tiny steps cross it: "
    said += "a small rate is not enough, it must become 0 (freezing)."
    yield row("jumps in the last 50 steps", 0, jumps, jumps == 0), said, picture
