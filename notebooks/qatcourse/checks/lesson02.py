"""Checks of lesson 02: a straight-through estimator, its clipped form, one step of descent, and an end to oscillation."""

import numpy as np
import torch

from qatcourse.checks import Exercise, NotYet, always, ask, judged, number, row
from qatcourse.viz import descend, oscillation
from qatlib.quantizers import fake_quantize, round_half_up

_X = torch.tensor([-2.6, -1.5, -0.51, -0.2, 0.0, 0.3, 0.5, 0.74, 1.7, 2.5])
_ROUNDING = 2**-22  # x + (rounded - x).detach(), the popular form, may be off by one rounding of a float32 below 4


class _WithGradient(Exercise):
    """What is compared: the values, and the gradients of a weighted sum of them at x, the first argument."""

    def given(self, answer, *case):
        def values_and_gradients(x, *rest):
            y = answer(x.requires_grad_(), *rest)
            if y is None:
                return None
            if not isinstance(y, torch.Tensor):
                raise NotYet(f"must return numbers that fit; problem: it returned a {type(y).__name__}, not a tensor.")
            if y.requires_grad:
                (y * torch.arange(1.0, y.numel() + 1)).sum().backward()
            return torch.stack([y.detach(), torch.zeros_like(x) if x.grad is None else x.grad])

        return super().given(values_and_gradients, *case)


def _through(x, rounded):
    return rounded + (x - x.detach())


def _seen(w, scale):
    return np.floor(w / scale + 0.5) * scale


def _step(w, target, scale, rate):
    return w - rate * (_seen(w, scale) - target)


def _value_differs(got, want, *_):
    return not np.allclose(got[0], want[0])


def _no_gradient(got, *_):
    return not got[1].any()


check_straight_through = _WithGradient(
    "my_straight_through(x, rounded): forward `rounded`, backward the gradient of x.",
    _through,
    [("10 numbers: values, then gradients", _X, round_half_up(_X))],
    (lambda _, x, rounded: x, "forward gives x itself; the network must see the rounded value. Which part needs detach()?",
     lambda got, want, _, x, rounded: np.array_equal(got[0], x)),
    (lambda _, x, rounded: rounded + x, "the forward value is wrong: without gradients your expression must give `rounded`.",
     _value_differs),
    (lambda _, x, rounded: rounded,
     "forward is right, but no gradient reaches x. Let x enter the sum undetached: something minus something, detached.",
     _no_gradient),
    (lambda right, x, _: _through(x, right), "forward is right, the gradient is not: it must be the one of x, unchanged.", always),
    tolerance=_ROUNDING,
    praise="Forward it rounds, backward it steps aside.",
)  # fmt: skip

check_clipped = _WithGradient(
    "my_fake_quantize(x, scale, q_min, q_max): on the grid; gradient 1 where the code was inside the range, else 0.",
    lambda x, scale, q_min, q_max: fake_quantize(x, scale, 0, int(q_max).bit_length() + 1),
    [("scale 0.5, codes -4..3", _X, 0.5, -4, 3), ("scale 0.25, codes -8..7", _X, 0.25, -8, 7)],
    (lambda _, x, scale, *ends: _through(x, _seen(x.detach(), scale)),
     "the forward value is off the grid or not clamped: clamp the rounded code to q_min..q_max, then multiply by scale.",
     _value_differs),
    (lambda right, *_: right.detach(),
     "no gradient arrives: torch.floor stops it. Put a straight-through step around the rounding.", _no_gradient),
    (lambda right, x, *_: _through(x, right.detach()),
     "clipped values still get a gradient. Clamp outside of the straight-through step: clamp has gradient 0 there by itself.",
     lambda got, want, *_: got[1][want[1] == 0].any()),
    (lambda right, x, *_: _through(x.clamp(-1, 1), right.detach()),
     "some values inside the range get no gradient: test the rounded code, not |x| > 1.", always),
    tolerance=_ROUNDING,
    praise="Values and gradients agree, at the ends of the range too.",
)  # fmt: skip

check_step = Exercise(
    "my_step(w, target, scale, rate): one step of descent on (quantized w - target)^2 / 2 with a straight-through gradient.",
    _step,
    [("w {:g}, target {:g}, scale {:g}, rate {:g}".format(*case), *case)
     for case in ((0.3, 0.4, 0.25, 0.1), (0.38, 0.4, 0.25, 0.1), (-0.9, 0.37, 0.25, 0.2), (0.1, -0.6, 0.5, 0.05))],
    (lambda _, w, target, scale, rate: w - rate * (w - target),
     "you used the float weight in the loss; the loss sees the quantized one: scale * floor(w / scale + 0.5)."),
    (lambda right, w, *_: 2 * w - right, "wrong way: descent subtracts rate times the gradient."),
    (lambda _, w, target, scale, rate: _step(_seen(w, scale), target, scale, rate),
     "you stored the quantized weight; keep the float one, or small steps are forgotten (the dead zone)."),
    tolerance=1e-6,  # float32 arithmetic of numbers below 1: a few roundings of 2^-24
    praise="Four steps agree: the gradient is taken at the quantized weight and applied to the float one.",
)  # fmt: skip


@judged("my_rate", "It arrives and it rests. Recipes against oscillation freeze weights in the same way.")
def check_schedule(my_rate):
    """my_rate(step), steps 0..200: the weight must arrive beside its target and not jump in the last 50 steps."""
    target, scale = 0.45, 0.25
    rates = [ask(my_rate, step, read=number) for step in range(201)]
    if not all(np.isfinite(rates)) or min(rates) < 0:
        raise NotYet("must give a learning rate at every step: a number of at least 0.")
    w, q = descend(-0.9, target, scale, 4, "clipped", lambda step: rates[step], 200)
    jumps, away = int((np.diff(q[-51:]) != 0).sum()), abs(q[-1] - target)
    picture = oscillation({"your schedule": (w, q)}, target, scale)
    said = f"the weight stopped {away:.2g} from its target; start with a larger rate or let it fall later."
    yield row("distance from the target", "below 0.25", f"{away:.3g}", away < scale), said, picture
    said = f"it arrives but jumps {jumps} times at the end. The weight sits between two codes, where even tiny steps cross it: "
    said += "a small rate is not enough, it must become 0 (freezing)."
    yield row("jumps in the last 50 steps", 0, jumps, jumps == 0), said, picture
