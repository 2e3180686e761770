"""Checks of lesson 15: weights that vanish, corrected biases, a gain and its spread, and what "loses 5 %" means."""

import numpy as np
import torch

from qatcourse.checks import Exercise, numbers
from qatcourse.labs.ptq import corrected_bias, gain, percent_lost, zeroed

_W = torch.tensor([-0.75, -0.5, -0.26, -0.25, -0.1, 0.0, 0.1, 0.24, 0.25, 0.6])

check_zeroed = Exercise(
    "my_zeroed(weight, scale): the share of the weights whose code is 0.",
    zeroed,
    [("step 0.5", _W, 0.5), ("step 0.125", _W, 0.125), ("4 channels", _W[:8].view(4, 2, 1, 1) * 4, 2.0)],
    (lambda right, *_: 1 - right, "this is the share that is left; wanted is the share that becomes 0."),
    (lambda right, w, _: right * w.numel(), "this is how many; divide by the number of weights: (codes == 0).float().mean()."),
    (lambda right, *_: right * 100, "this is in percent; wanted is a share, from 0 to 1."),
    (lambda _, w, scale: (w == 0).float().mean(), "compare the codes with 0, not the weights: floor(w / scale + 0.5) first."),
    (lambda _, w, scale: (w.abs() < scale).float().mean(), "half a step is the limit, not a whole one."),
    (lambda _, w, scale: ((w / scale).floor() == 0).float().mean(), "floor(w / scale) lacks the half: + 0.5 first."),
    (lambda _, w, scale: (w < scale / 2).float().mean(), "large negative weights have codes below 0: they stay."),
    (lambda _, w, scale: ((w * scale + 0.5).floor() == 0).float().mean(), "divide by the scale; you multiply."),
    (lambda _, w, scale: (w.abs() <= scale / 2).float().mean(), "at w = scale/2 floor(w / scale + 0.5) is 1; at -scale/2 it is 0."),
    tolerance=1e-6,
    praise="A weight whose code is 0 does nothing, for any picture.",
    right=[lambda w, s: torch.tensor([zeroed(w, s)]), lambda w, s: float(np.mean((w.numpy() >= -s / 2) & (w.numpy() < s / 2)))],
)  # fmt: skip


def _outputs():
    random = torch.Generator().manual_seed(15)
    for n, channels, height, width in ((2, 3, 4, 5), (3, 2, 1, 2)):
        bias, wanted = torch.randn(channels, generator=random), torch.randn(n, channels, height, width, generator=random)
        yield f"{channels} channels", bias, wanted, wanted + torch.randn(wanted.shape, generator=random)


check_bias_correction = Exercise(
    "my_bias_correction(bias, wanted, got): the bias that gives every channel of got the mean that it has in wanted.",
    corrected_bias,
    lambda: list(_outputs()),
    (lambda right, bias, *_: 2 * bias - right, "the sign: where got is too small, the bias has to grow by wanted - got."),
    (lambda right, bias, *_: right - bias, "this is the correction alone; add it to the bias."),
    (lambda _, bias, wanted, got: bias + (wanted - got).mean(), "this is one mean for all channels; every channel has its own."),
    (lambda _, bias, wanted, got: bias + (wanted - got).sum((0, 2, 3)), "these are sums; take the mean of each channel."),
    (lambda _, bias, wanted, got: bias + (wanted - got).abs().mean((0, 2, 3)), "errors of both signs cancel: no absolute value."),
    (lambda _, bias, wanted, got: bias + wanted.mean((0, 2, 3)), "subtract what the channel has now: the mean of got."),
    (lambda _, bias, wanted, got: bias + (wanted - got)[0].mean((1, 2)), "use all pictures, not the first alone."),
    tolerance=1e-5,
    praise="The mean of every channel is right again; single values still differ.",
    right=[lambda *case: corrected_bias(*case).tolist(), lambda *case: corrected_bias(*(part.double() for part in case)),
           lambda bias, wanted, got: (bias.numpy() + (wanted - got).numpy().mean((0, 2, 3)))],
)  # fmt: skip


check_gain = Exercise(
    "my_gain(ptq, qat): (mean, standard deviation over n - 1) of the gains, seed by seed.",
    gain,
    [("3 seeds", [0.60, 0.66, 0.63], [0.68, 0.71, 0.72]), ("4 seeds", [0.5, 0.7, 0.4, 0.6], [0.52, 0.69, 0.43, 0.58])],
    (lambda right, *_: (-right[0], right[1]), "the sign: a gain is qat - ptq."),
    (lambda right, ptq, qat: (right[0], np.std(np.subtract(qat, ptq))), "divide by n - 1, not by n: NumPy's std needs ddof=1."),
    (lambda right, *_: (right[0], right[1] ** 2), "this is the variance; its square root is the standard deviation."),
    (lambda right, ptq, qat: (right[0], np.std(qat, ddof=1)), "this is the spread of qat alone: subtract seed by seed first."),
    (lambda right, ptq, qat: (right[0], np.hypot(np.std(qat, ddof=1), np.std(ptq, ddof=1))),
     "this takes both lists as independent; each pair shares its float network: subtract seed by seed first."),
    (lambda right, ptq, qat: (right[0], right[1] / len(ptq) ** 0.5), "this is the error of the mean, not the spread of the seeds."),
    (lambda right, ptq, qat: (right[0], np.ptp(np.subtract(qat, ptq))), "this is the range, largest less smallest gain."),
    (lambda right, ptq, qat: (sum(np.subtract(qat, ptq)), right[1]), "the first number is a sum; divide by the number of seeds."),
    tolerance=1e-5,
    read=lambda found: numbers(found).ravel(),
    praise="Now a difference can be compared with the luck of the seeds.",
    right=[lambda *both: torch.tensor(gain(*both)), lambda p, q: [np.mean(q) - np.mean(p), np.std(np.subtract(q, p), ddof=1)],
           lambda p, q: torch.std_mean(torch.tensor(q) - torch.tensor(p))[::-1]],
)  # fmt: skip


check_loss = Exercise(
    "my_loss(fp32, quantized): percent of the float network's score that quantization lost.",
    percent_lost,
    [(f"{a:g} -> {b:g}", a, b) for a, b in ((0.8, 0.76), (0.8, 0.4), (0.25, 0.24), (0.5, 0.51))],
    (lambda right, fp32, _: right * fp32,
     "these are percentage points; the claim is about a share of the float network's score: divide by fp32."),
    (lambda right, *_: right / 100, "this is a share; times 100 makes it percent."),
    (lambda right, fp32, quantized: fp32 - quantized, "this is the difference; divide it by fp32, times 100 makes it percent."),
    (lambda right, *_: -right, "the sign: what is lost counts as positive, a gain as negative."),
    (lambda right, *_: 100 - right, "this is what was kept; lost is 100 minus that."),
    (lambda right, fp32, quantized: right * fp32 / quantized, "relative to the float network, not to the quantized one."),
    tolerance=1e-4,  # a few roundings of float32 numbers below 100
    praise="0.25 to 0.24 is one point, but 4 percent: always say which.",
    right=[lambda a, b: torch.tensor([(a - b) / a * 100]), lambda a, b: 100 - 100 * torch.tensor(b) / torch.tensor(a)],
)  # fmt: skip
