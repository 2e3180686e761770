"""Checks of lesson 08: softened heat maps, the distillation loss, and whether a gain is more than noise."""

import numpy as np
import torch

from qatcourse.checks import Exercise
from qatcourse.labs.distill import paired_gain
from qatcourse.pose.model import distillation_loss, soften


def _maps(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


_FLATTEN = "the softmax must run over all cells of one map together: flatten height and width first."

check_soften = Exercise(
    "my_soften(logits, temperature): each (H, W) map as probabilities at a temperature.",
    soften,
    [(f"temperature {t:g}", _maps(seed), t) for seed, t in ((1, 1.0), (1, 4.0), (2, 0.5))],
    (lambda _, logits, t: soften(logits, 1 / t), "upside down: a high temperature must flatten the map. Divide the logits by it."),
    (lambda _, logits, t: soften(logits, 1.0) / t, "the temperature belongs inside of the softmax; your maps no longer sum to 1."),
    (lambda _, logits, t: (logits / t).softmax(-1), _FLATTEN),
    (lambda _, logits, t: (logits / t).softmax(1), _FLATTEN),
    (lambda _, logits, t: (logits / t).flatten().softmax(0).view_as(logits),
     "each map must sum to 1 by itself; yours sum to 1 all together. Flatten height and width only."),
    (lambda _, logits, t: (logits / t).flatten(1).softmax(-1).view_as(logits),
     "each joint has a map of its own: keep the joints apart and flatten height and width only."),
    (lambda right, *_: right.log(), "these are logarithms of probabilities: softmax in place of log_softmax."),
    (lambda _, logits, t: (logits / t).sigmoid(), "a sigmoid looks at one cell alone; softmax shares 1 among all cells of a map."),
    (lambda _, logits, t: logits / t, lambda got, *_: f"each map must sum to 1; your first one sums to {got[0, 0].sum():.3g}.",
     lambda got, *_: not np.allclose(got.sum((2, 3)), 1)),
    tolerance=1e-6,  # float32 will do: probabilities up to 1, a few roundings of 2^-24
    right=[lambda logits, t: soften(logits.float(), t), lambda logits, t: soften(logits, t).tolist(),
           lambda logits, t: (logits.flatten(2) / t).log_softmax(-1).exp().reshape(logits.shape).numpy(),
           lambda logits, t: (e := np.exp(logits.numpy() / t)) / e.sum(axis=(2, 3), keepdims=True)],
    praise="Every map sums to 1, and flattens as the temperature rises.",
)  # fmt: skip


def _scaled(factor: float, right, task, alpha):
    """The loss with its first part times `factor`."""
    return factor * (right - (1 - alpha) * task) + (1 - alpha) * task


_MEAN = "check the mean: sum over the cells of a map, then the mean over all maps of all pictures."

check_distillation = Exercise(
    "my_distillation(student, teacher, task, temperature, alpha): alpha T^2 KL + (1 - alpha) task.",
    distillation_loss,
    [(f"T {t:g}, alpha {alpha:g}", _maps(3), _maps(4), torch.tensor(2.5, dtype=torch.float64), t, alpha)
     for t, alpha in ((1.0, 0.5), (4.0, 0.5), (2.0, 0.9), (2.0, 0.0))],
    (lambda right, s, teacher, task, t, alpha: _scaled(t**-2, right, task, alpha),
     "the factor T^2 is missing: without it the teacher falls silent at high temperatures."),
    (lambda _, student, teacher, *rest: distillation_loss(teacher, student, *rest),
     "the divergence is the wrong way round: kl_div(student's log-probabilities, teacher's probabilities)."),
    (lambda _, *case: distillation_loss(*case[:-1], 1 - case[-1]), "alpha is the teacher's share; you gave it to the labels."),
    (lambda right, s, teacher, task, t, alpha: _scaled(1 / t, right, task, alpha),
     "the factor is T squared: one T for the logits, one for the differences."),
    (lambda right, s, teacher, task, t, alpha: right + alpha * task, "the labels' loss is weighted by 1 - alpha."),
    (lambda right, s, teacher, task, t, alpha: t**2 * right, "T^2 belongs to the divergence alone, not to the labels' loss."),
    (lambda right, s, teacher, task, t, alpha: _scaled(1 / 16, right, task, alpha), _MEAN),
    (lambda right, s, teacher, task, t, alpha: _scaled(3, right, task, alpha), _MEAN),
    tolerance=1e-4,  # float32 will do: values below 100, a few hundred roundings of 2^-24
    right=[lambda s, teacher, task, *rest: distillation_loss(s.float(), teacher.float(), task.float(), *rest),
           lambda *case: [distillation_loss(*case).item()],
           lambda s, teacher, task, t, alpha: (1 - alpha) * task + alpha * t * t * sum(
               (p := soften(teacher, t)) * (p.log() - soften(s, t).log())).sum() / s.shape[0] / s.shape[1]],
    praise="The loss of Hinton and others (2015), for heat maps.",
)  # fmt: skip


_SEEDS = [([0.42, 0.47, 0.40], [0.40, 0.43, 0.39]), ([0.5, 0.3], [0.4, 0.35]), ([0.61, 0.60, 0.66], [0.61, 0.62, 0.61])]

check_gain = Exercise(
    "my_gain(with_teacher, without): mean and standard error of the paired differences.",
    paired_gain,
    [(f"{len(a)} seeds", a, b) for a, b in _SEEDS],
    (lambda right, a, b: right[::-1], "the mean comes first, then its standard error.",
     lambda got, want, *_: np.allclose(got, want[::-1])),
    (lambda _, a, b: paired_gain(b, a), "the sign: with the teacher minus without.",
     lambda got, want, *_: want[0] and np.isclose(got[0], -want[0])),
    (lambda right, a, b: (sum(a) - sum(b), right[1]), "the first number is the mean of the differences, seed by seed.",
     lambda got, want, *_: not np.isclose(got[0], want[0])),
    (lambda right, a, b: (right[0], np.std(np.subtract(a, b)) / len(a) ** 0.5),
     "few seeds: divide the sum of squares by n - 1 (ddof=1), or the error looks too small."),
    (lambda right, a, b: (right[0], right[1] * len(a) ** 0.5),
     "this is the scatter of one seed; the error of the mean is smaller by sqrt(n)."),
    (lambda right, a, b: (right[0], ((np.var(a, ddof=1) + np.var(b, ddof=1)) / len(a)) ** 0.5),
     "the runs are pairs: the same seed, data and order. Take the differences first, then their scatter."),
    (lambda right, a, b: (right[0], right[1] ** 2), "this is the variance of the mean: take its square root."),
    praise="Mean and standard error: now you can say whether a gain is more than noise.",
    tolerance=1e-6,  # float32 will do: scores below 1
    right=[lambda a, b: paired_gain(np.float32(a), np.float32(b)), lambda a, b: list(paired_gain(a, b)),
           lambda a, b: ((d := torch.tensor(a) - torch.tensor(b)).mean(), d.std() / len(d) ** 0.5),
           lambda a, b: torch.tensor([paired_gain(a, b)])[0]],
)  # fmt: skip
