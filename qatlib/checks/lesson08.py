"""Checks of lesson 08: softened heat maps, the distillation loss, and whether a gain is more than noise."""

import numpy as np
import torch

from qatlib.checks import Report, compare
from qatlib.distill import distillation_loss, paired_gain, soften


def _maps(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def check_soften(my_soften) -> Report:
    """`my_soften(logits, temperature)`: each (H, W) map as probabilities at a temperature."""

    def advice(case, want, got):
        logits, t = case
        if np.allclose(got, soften(logits, 1 / t).numpy()):
            return "upside down: a high temperature must flatten the map. Divide the logits by it."
        if np.allclose(got, (soften(logits, 1.0) / t).numpy()) and t != 1:
            return "the temperature belongs inside of the softmax; your maps no longer sum to 1."
        if np.allclose(got, (logits / t).softmax(-1).numpy()) or np.allclose(got, (logits / t).softmax(1).numpy()):
            return "the softmax must run over all cells of one map together: flatten height and width first."
        sums = got.reshape(2, 3, -1).sum(-1)
        return None if np.allclose(sums, 1) else f"each map must sum to 1; your first one sums to {sums.flat[0]:.3g}."

    cases = [(_maps(1), 1.0), (_maps(1), 4.0), (_maps(2), 0.5)]
    labels = [f"temperature {t:g}" for _, t in cases]
    praise = "Every map sums to 1, and flattens as the temperature rises."
    # float64: exponentials and a sum of 16, each rounded at 2^-53
    return compare("my_soften", my_soften, soften, cases, advice, 1e-12, praise, labels)


def check_distillation(my_distillation) -> Report:
    """`my_distillation(student, teacher, task, temperature, alpha)`: alpha T^2 KL + (1 - alpha) task."""

    def kl(p, q, t):
        a, b = soften(p, t).flatten(2), soften(q, t).flatten(2)
        return float((a * (a.log() - b.log())).sum(-1).mean())

    def advice(case, want, got):
        student, teacher, task, t, alpha = case
        forward, backward = kl(teacher, student, t), kl(student, teacher, t)
        rest = (1 - alpha) * float(task)
        if np.isclose(got, alpha * forward + rest):
            return "the factor T^2 is missing: without it the teacher falls silent at high temperatures."
        if np.isclose(got, alpha * t**2 * backward + rest):
            return "the divergence is the wrong way round: kl_div(student's log-probabilities, teacher's probabilities)."
        if np.isclose(got, (1 - alpha) * t**2 * forward + alpha * float(task)):
            return "alpha is the teacher's share; you gave it to the labels."
        if np.isclose(got, alpha * t**2 * forward * 16 ** -1 + rest) or np.isclose(got, alpha * t**2 * forward * 3 + rest):
            return "check the mean: sum over the cells of a map, then the mean over all maps of all pictures."
        return None

    task = torch.tensor(2.5, dtype=torch.float64)
    settings = [(1.0, 0.5), (4.0, 0.5), (2.0, 0.9), (2.0, 0.0)]
    cases = [(_maps(3), _maps(4), task, t, alpha) for t, alpha in settings]
    labels = [f"T {t:g}, alpha {alpha:g}" for t, alpha in settings]
    praise = "The loss of Hinton and others (2015), for heat maps."
    # float64: values below 1000, a few hundred roundings of 2^-53
    return compare("my_distillation", my_distillation, distillation_loss, cases, advice, 1e-9, praise, labels)


def check_gain(my_gain) -> Report:
    """`my_gain(with_teacher, without)`: mean and standard error of the paired differences."""

    def advice(case, want, got):
        a, b = np.array(case[0]), np.array(case[1])
        d, n = a - b, len(case[0])
        if np.isclose(got[0], -want[0]) and want[0]:
            return "the sign: with the teacher minus without."
        if not np.isclose(got[0], want[0]):
            return "the first number is the mean of the differences, seed by seed."
        if np.isclose(got[1], d.std() / np.sqrt(n)):
            return "few seeds: divide the sum of squares by n - 1 (ddof=1), or the error looks too small."
        if np.isclose(got[1], d.std(ddof=1)):
            return "this is the scatter of one seed; the error of the mean is smaller by sqrt(n)."
        if np.isclose(got[1], np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / n)):
            return "the runs are pairs: the same seed, data and order. Take the differences first, then their scatter."
        return None

    cases = [([0.42, 0.47, 0.40], [0.40, 0.43, 0.39]), ([0.5, 0.3], [0.4, 0.35]), ([0.61, 0.60, 0.66], [0.61, 0.62, 0.61])]
    praise = "Mean and standard error: now you can say whether a gain is more than noise."
    return compare("my_gain", my_gain, paired_gain, cases, advice, 1e-9, praise, [f"{len(a)} seeds" for a, _ in cases])
