"""Checks of lesson 02: a straight-through estimator, its clipped form, one step of descent, and an end to oscillation."""

import numpy as np
import torch

from qatlib.checks import UNTOUCHED, Report, compare, failed, no_function, numbers
from qatlib.quantizers import fake_quantize, round_half_up
from qatlib.viz import descend, oscillation

_X = torch.tensor([-2.6, -1.5, -0.51, -0.2, 0.0, 0.3, 0.5, 0.74, 1.7, 2.5])


def _with_gradient(function, rounds: bool):
    """A function of plain tensors that returns (value, gradient): it runs `function` and back-propagates a weighted sum."""

    def run(x, *rest):
        x = x.clone().requires_grad_()
        y = function(x, round_half_up(x.detach()) if rounds else rest[0], *rest[1:])
        if y is None:
            return None
        if not isinstance(y, torch.Tensor):
            raise TypeError(f"it returned a {type(y).__name__}, not a tensor")
        if y.requires_grad:
            (y * torch.arange(1.0, y.numel() + 1)).sum().backward()
        gradient = torch.zeros_like(x) if x.grad is None else x.grad
        return torch.stack([y.detach(), gradient])

    return run


def check_straight_through(my_straight_through) -> Report:
    """`my_straight_through(x, rounded)`: forward `rounded`, backward the gradient of x."""

    def expected(x):
        return torch.stack([round_half_up(x), torch.arange(1.0, x.numel() + 1)])

    def advice(case, want, got):
        if not np.array_equal(got[0], want[0]) and np.array_equal(got[0], case[0].numpy()):
            return "forward gives x itself; the network must see the rounded value. Which part needs detach()?"
        if not np.allclose(got[0], want[0]):
            return "the forward value is wrong: without gradients your expression must give `rounded`."
        if not got[1].any():
            return (
                "forward is right, but no gradient reaches x. Let x enter the sum undetached: something minus something, "
                "detached."
            )
        return "forward is right, the gradient is not: it must be the one of x, unchanged."

    # the popular form x + (rounded - x).detach() may be off by one rounding of a float32 below 4: at most 2^-22
    praise = "Forward it rounds, backward it steps aside."
    answer = _with_gradient(my_straight_through, True) if callable(my_straight_through) else my_straight_through
    return compare(
        "my_straight_through", answer, expected, [(_X,)], advice, 2**-22, praise, labels=["10 numbers: values, then gradients"]
    )


def check_clipped(my_fake_quantize) -> Report:
    """`my_fake_quantize(x, scale, q_min, q_max)`: on the grid; gradient 1 where the code was inside the range, else 0."""

    def expected(x, scale, q_min, q_max):
        x = x.clone().requires_grad_()
        y = fake_quantize(x, scale, 0, int(q_max).bit_length() + 1)
        (y * torch.arange(1.0, y.numel() + 1)).sum().backward()
        return torch.stack([y.detach(), x.grad])

    def advice(case, want, got):
        if not np.allclose(got[0], want[0]):
            return (
                "the forward value is off the grid or not clamped: clamp the rounded code to q_min..q_max, then multiply "
                "by scale."
            )
        if not got[1].any():
            return "no gradient arrives: torch.floor stops it. Put a straight-through step around the rounding."
        outside = want[1] == 0
        if got[1][outside].any():
            return (
                "clipped values still get a gradient. Clamp outside of the straight-through step: clamp has gradient 0 "
                "there by itself."
            )
        return "some values inside the range get no gradient: test the rounded code, not |x| > 1."

    cases = [(_X, 0.5, -4, 3), (_X, 0.25, -8, 7)]
    labels = ["scale 0.5, codes -4..3", "scale 0.25, codes -8..7"]
    answer = _with_gradient(my_fake_quantize, False) if callable(my_fake_quantize) else my_fake_quantize
    praise = "Values and gradients agree, at the ends of the range too."
    return compare("my_fake_quantize", answer, expected, cases, advice, 2**-22, praise, labels)


def check_step(my_step) -> Report:
    """`my_step(w, target, scale, rate)`: one step of descent on (quantized w - target)^2 / 2 with a straight-through gradient."""

    def seen(w, scale):
        return np.floor(w / scale + 0.5) * scale

    def expected(w, target, scale, rate):
        return w - rate * (seen(w, scale) - target)

    def advice(case, want, got):
        w, target, scale, rate = case
        if np.isclose(got, w - rate * (w - target)):
            return "you used the float weight in the loss; the loss sees the quantized one: scale * floor(w / scale + 0.5)."
        if np.isclose(got, w + rate * (seen(w, scale) - target)):
            return "wrong way: descent subtracts rate times the gradient."
        if np.isclose(got, seen(w, scale) - rate * (seen(w, scale) - target)):
            return "you stored the quantized weight; keep the float one, or small steps are forgotten (the dead zone)."
        return None

    cases = [(0.3, 0.4, 0.25, 0.1), (0.38, 0.4, 0.25, 0.1), (-0.9, 0.37, 0.25, 0.2), (0.1, -0.6, 0.5, 0.05)]
    # float32 arithmetic of numbers below 1: a few roundings of 2^-24
    praise = "Four steps agree: the gradient is taken at the quantized weight and applied to the float one."
    labels = ["w {:g}, target {:g}, scale {:g}, rate {:g}".format(*case) for case in cases]
    return compare("my_step", my_step, expected, cases, advice, 1e-6, praise, labels)


def check_schedule(my_rate, steps: int = 200) -> Report:
    """`my_rate(step)`, steps 0..200: the weight must arrive beside its target and not jump in the last 50 steps."""
    if not callable(my_rate):
        return no_function("my_rate", my_rate)
    start, target, scale, bits = -0.9, 0.45, 0.25, 4
    try:
        rates = [my_rate(step) for step in (0, steps // 2, steps)]
        if any(rate is None for rate in rates):
            return failed("my_rate", UNTOUCHED.format(name="my_rate"))
        rates = [float(numbers(my_rate(step))) for step in range(steps + 1)]
    except Exception as problem:
        return failed("my_rate", f"not yet: my_rate stopped with {type(problem).__name__}: {problem}.")
    if not all(np.isfinite(rates)) or min(rates) < 0:
        return failed("my_rate", "not yet: a learning rate must be a number of at least 0 at every step.")
    w, q = descend(start, target, scale, bits, "clipped", lambda step: rates[step], steps)
    jumps, away = int((np.diff(q[-51:]) != 0).sum()), abs(q[-1] - target)
    rows = [
        {"case": "distance from the target", "expected": "below 0.25", "got": f"{away:.3g}", "ok": "yes" if away < scale else "no"},
        {"case": "jumps in the last 50 steps", "expected": "0", "got": str(jumps), "ok": "yes" if jumps == 0 else "no"},
    ]
    picture = oscillation({"your schedule": (w, q)}, target, scale)
    if away >= scale:
        said = f"not yet: the weight stopped {away:.2g} from its target; start with a larger rate or let it fall later."
    elif jumps:
        said = (
            f"not yet: it arrives but jumps {jumps} times at the end. The weight sits between two codes, where even tiny "
            "steps cross it: a small rate is not enough, it must become 0 (freezing)."
        )
    else:
        said = "It arrives and it rests. Recipes against oscillation freeze weights in the same way."
    return Report("my_rate", away < scale and jumps == 0, said, rows, picture)
