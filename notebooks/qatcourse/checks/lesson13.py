"""Checks of lesson 13: a learned scale (LSQ), a learned clip (PACT), and a loop that trains weights, scale and clip."""

import numpy as np
import torch

from qatcourse.checks import Exercise, NotYet, always
from qatcourse.labs.learned import lsq, pact
from qatlib.quantizers import round_half_up, straight_through

_X = torch.tensor([-2.6, -1.1, -0.61, -0.2, 0.05, 0.3, 0.4, 0.66, 1.7, 3.3])


class _WithGradients(Exercise):
    """What is compared: the values and then, of a weighted sum of them, the gradients at x and at the scale."""

    def given(self, answer, *case):
        def values_and_gradients(x, scale, *rest):
            y = answer(x.requires_grad_(), scale.requires_grad_(), *rest)
            if y is not None and not isinstance(y, torch.Tensor):
                raise NotYet(f"must return a tensor, which carries gradients; it returned a {type(y).__name__}.")
            if y is not None and y.requires_grad:
                (y.flatten() * torch.linspace(0.5, 1.5, y.numel())).sum().backward()
            gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in (x, scale)]
            return y if y is None else [y.flatten(), gradients[0], gradients[1].view(1)]

        return super().given(values_and_gradients, *case)


_WHEN = {  # what is true of `got` and `want`: 10 values, their gradients, the scale's
    "values": lambda got, want, *_: len(got) != len(want) or not np.allclose(got[:10], want[:10], 1e-4, 1e-5),
    "none at x": lambda got, *_: not got[10:20].any(),
    "none at scale": lambda got, *_: not got[20],
    "beyond": lambda got, want, *_: got[10:20][want[10:20] == 0].any(),
    "x": lambda got, want, *_: not np.allclose(got[10:20], want[10:20], 1e-4),
}


def _codes(x, scale):
    return straight_through(x / scale, round_half_up(x / scale))


def _scaled(x, scale, q_min, q_max, gain):
    scale = straight_through(scale * gain, scale)
    return _codes(x, scale).clamp(q_min, q_max) * scale


def _popular(x, scale, q_min, q_max):  # clamp first, x + (rounded - x).detach(), half to even
    gain = (x.numel() * q_max) ** -0.5
    scale = scale * gain + (scale - scale * gain).detach()
    inside = (x / scale).clamp(q_min, q_max)
    return (inside + (inside.round() - inside).detach()) * scale


check_lsq = _WithGradients(
    "my_lsq(x, scale, q_min, q_max): x on the grid of a learned scale, with the gradients of LSQ.",
    lsq,
    [("10 values, their gradients, the scale's: codes -4..3", _X, torch.tensor(0.3), -4, 3),
     ("codes -2..1", _X, torch.tensor(0.7), -2, 1)],
    (lambda _, x, scale, *ends: _codes(x, scale).clamp(*ends), "these are codes; multiply them by the scale."),
    (lambda _, x, scale, *ends: _codes(x, scale) * scale, "the codes are not clamped to q_min..q_max."),
    (lambda right, x, scale, *_: right + scale, "the values differ: clamp(floor(x / scale + 0.5), ...) * scale.", _WHEN["values"]),
    (lambda _, x, scale, *ends: round_half_up(x / scale).clamp(*ends) * scale,
     "no gradient reaches x: rounding stops it. Put my_straight_through around it.", _WHEN["none at x"]),
    (lambda _, x, scale, *ends: _codes(x, scale.item()).clamp(*ends) * scale.item(),
     "no gradient reaches the scale: it may be neither detached nor made a number (.item()).", _WHEN["none at scale"]),
    (lambda _, x, scale, *ends: straight_through(x / scale, _codes(x, scale).clamp(*ends)) * scale,
     "what is clamped still passes a gradient to x: clamp after the straight-through rounding, not inside it.", _WHEN["beyond"]),
    (lambda _, *case: _scaled(*case, 1), "only a factor differs: divide the scale's gradient by sqrt(x.numel() * q_max)."),
    (lambda _, x, *case: _scaled(x, *case, x.numel() ** -0.5), "the divisor of the scale's gradient lacks q_max."),
    (lambda _, x, *case: _scaled(x, *case, 1 / (x.numel() * case[2])), "the divisor of the scale's gradient lacks its root."),
    (lambda right, *_: straight_through(right / 10, right), "the gradient of x is divided, too: only the scale's may be.",
     _WHEN["x"]),
    (lambda _, x, scale, a, b: _codes(x, scale.item()).clamp(a, b) * straight_through(scale / (x.numel() * b) ** 0.5, scale),
     "the scale's gradient is incomplete. Inside it is code - x / scale: the scale that divides x may not be detached.", always),
    right=[_popular, lambda x, scale, *ends: lsq(x.double(), scale.double(), *ends),
           lambda x, scale, *ends: lsq(x, scale.view(1), *ends).view(1, -1)],
    tolerance=1e-5,  # float32: x + (rounded - x).detach(), and products of numbers below 10
    praise="Values and gradients agree: the scale's is code - x / scale inside the range, q_min or q_max beyond.",
)  # fmt: skip


def _clip(x, alpha):
    return torch.minimum(x.relu(), alpha)


def _rounded(clipped, alpha, q_max):
    return round_half_up(clipped * q_max / alpha) * alpha / q_max


check_pact = _WithGradients(
    "my_pact(x, alpha, q_max): x clipped to 0..alpha, in q_max steps; alpha's gradient comes from what is clipped alone.",
    pact,
    [("10 values, their gradients, alpha's: alpha 0.9, q_max 3", _X, torch.tensor(0.9), 3),
     ("alpha 2, q_max 15", _X, torch.tensor(2.0), 15)],
    (lambda _, x, alpha, q_max: _clip(x, alpha), "clipped, but not quantized: neighbouring values are alpha / q_max apart."),
    (lambda _, x, alpha, q_max: pact(x, alpha, q_max + 1), "one step too many: code q_max is alpha, so step = alpha / q_max."),
    (lambda _, x, alpha, q_max: _rounded(torch.minimum(x, alpha), alpha, q_max), "negative values stay; clip at 0, too.",
     lambda got, *_: got[0] < 0),
    (lambda right, x, alpha, _: right + alpha, "the values differ: floor(clipped / step + 0.5) * step.", _WHEN["values"]),
    (lambda _, x, *case: _rounded(_clip(x, case[0]), *case), "no gradient reaches x: put my_straight_through around the rounding.",
     _WHEN["none at x"]),
    (lambda right, x, *_: straight_through(x, right),
     "what is clipped still passes a gradient to x: my_straight_through takes what is clipped, not x.", _WHEN["beyond"]),
    (lambda right, x, alpha, _: straight_through(x.clamp(0, alpha.item()), right),
     "alpha gets no gradient: clip by the tensor (torch.minimum), not by alpha.item().", _WHEN["none at scale"]),
    (lambda _, x, alpha, q_max: _codes(_clip(x, alpha), alpha / q_max) * (alpha / q_max),
     "alpha's gradient counts rounding errors, too, as LSQ does. PACT's does not: my_straight_through(clipped, rounded).", always),
    right=[lambda x, alpha, q_max: pact(x.double(), alpha.double(), q_max), lambda x, alpha, q_max: pact(x, alpha.view(1), q_max),
           lambda x, alpha, q_max: (y := (x.abs() - (x - alpha).abs() + alpha) / 2) + (_rounded(y, alpha, q_max) - y).detach()],
    tolerance=1e-5,
    praise="Values and gradients agree. Each value beyond alpha pulls at it; no other does.",
)  # fmt: skip


def _fit(w, scale, alpha, x, wanted, steps, quantize=lsq, clip=pact, learn=(0, 1, 2), by=torch.optim.Adam, forget=True, late=0):
    """The loop of exercise 3, on copies; the options are what learners do otherwise."""
    learned = [t.detach().clone().requires_grad_() for t in (w, scale, alpha)]
    optimizer, losses = by([learned[i] for i in learn], lr=0.01), []
    for _ in range(steps + late):
        y = clip(x @ quantize(learned[0], learned[1], -2, 1).T, learned[2], 15)
        losses.append((y - wanted).square().mean())
        if forget:
            optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return [loss.item() for loss in losses[late:]], learned[1].item(), learned[2].item()


def _loop(hint, **options):
    return lambda _, *arguments: _fit(*arguments, **options), hint


def layer(seed: int = 0):
    """A small layer for exercise 3: (w, scale, alpha, x, wanted), the outputs `wanted` those of the float layer."""
    g = torch.Generator().manual_seed(seed)
    w, x = torch.randn(4, 16, generator=g) / 4, torch.randn(64, 16, generator=g)
    scale, alpha = torch.tensor(0.1, requires_grad=True), torch.tensor(0.6, requires_grad=True)
    return w.clone().requires_grad_(), scale, alpha, x, (x @ w.T).relu()


check_fit = Exercise(
    "my_fit(w, scale, alpha, x, wanted, steps): the losses of Adam on all three, and where scale and alpha end.",
    _fit,
    lambda: [("12 losses, scale, alpha", *layer(), 12)],
    _loop("scale and alpha stay where they are: give the optimizer [w, scale, alpha].", learn=(0,)),
    _loop("w stays where it is: give the optimizer [w, scale, alpha].", learn=(1, 2)),
    _loop("gradients of all steps add up: optimizer.zero_grad() before backward().", forget=False),
    _loop("the weights are float ones; use my_lsq(w, scale, -2, 1).", quantize=lambda w, *_: w),
    _loop("no alpha clips the outputs; use my_pact(..., alpha, 15).", clip=lambda y, *_: y.relu()),
    _loop("this is plain gradient descent; take torch.optim.Adam(..., lr=0.01).", by=torch.optim.SGD),
    _loop("each loss is one step late: keep it before optimizer.step().", late=1),
    (lambda right, *_: ([256 * loss for loss in right[0]], *right[1:]), "the loss is the mean of the squares, not their sum."),
    right=[lambda *case: (np.array((found := _fit(*case))[0]), np.float32(found[1]), torch.tensor([found[2]])),
           lambda *case: [*(found := _fit(*case))[0], *found[1:]]],
    tolerance=1e-3,  # Adam divides a gradient by its size, so the last bits of a small one count
    praise="The same losses, step by step: weights, scale and clip in one loop.",
)  # fmt: skip
