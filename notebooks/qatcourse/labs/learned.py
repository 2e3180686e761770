"""PoseTiny with learned ranges, for lesson 13: LSQ steps of weights, PACT ends of activations, as powers of two or freely.

All is in real values: weights on a grid of step s, outputs on one of step a, biases on one of s times the range of the input. Where
the scales are those of the calibrated network that `learned` is given, the outputs are the same to the last bit (tested).
"""

import copy
import math

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from qatcourse.labs.ptq import outputs
from qatcourse.pose.evaluate import calibrated_ptq, calibration_batches, evaluate
from qatcourse.pose.parallel import Team
from qatcourse.pose.train import FORMAT, configure, train_epoch
from qatcourse.viz import PALETTE, drawing, figure
from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.qat import layers
from qatlib.quantizers import IntRange, round_half_up, straight_through

SUMS = {"conv7": ("add7", "conv5"), "up8": ("add8", "conv4"), "up10": ("add10", "conv2")}  # what meets in a sum has one scale
RATE = 20.0  # octaves in a scale's parameter: Adam moves it by about the learning rate, 0.0005 to 0.002, whatever its gradient
ENDS = IntRange(8).q_min, IntRange(8).q_max  # of the codes of activations
VERSIONS = {
    "ai8x": "powers of two, as ai8x measures", "tighter": "powers of two, ai8x covering 90 %",
    "fitted": "powers of two, least error", "learned": "powers of two, learned", "faster": "powers of two, learned fast",
    "free_fitted": "free, least error", "free_learned": "free, learned",
}  # fmt: skip
STEPS = {  # what changes: (version after, version before)
    "ai8x covers 90 % of the weights": ("tighter", "ai8x"),
    "least error in place of ai8x": ("fitted", "ai8x"),
    "least error, then learning": ("learned", "fitted"),
    "least error, then learning fast": ("faster", "fitted"),
    "free in place of powers of two": ("free_fitted", "fitted"),
    "free, then learning": ("free_learned", "free_fitted"),
}


def lsq(x, scale, q_min: int, q_max: int):
    """Esser et al. 2020: x on a grid of a learned `scale`, whose gradient is divided by sqrt(numel * q_max)."""
    scale = straight_through(scale / math.sqrt(x.numel() * q_max), scale)
    codes = straight_through(x / scale, round_half_up(x / scale))
    return codes.clamp(q_min, q_max) * scale


def pact(x, alpha, q_max: int):
    """Choi et al. 2018: x clipped to 0..alpha, in q_max steps; the gradient of `alpha` comes from what is clipped alone."""
    clipped, step = torch.minimum(x.relu(), alpha), alpha / q_max
    return straight_through(clipped, round_half_up(clipped / step) * step)


def power_of_two(octave):
    """2^octave, the octave rounded straight through (Jain et al. 2020)."""
    return torch.exp2(straight_through(octave, round_half_up(octave)))


class Scale(nn.Module):
    """One scale: `rounding`, `power_of_two` or torch.exp2, makes it of its octave, which a parameter moves from `start`."""

    def __init__(self, start: float, rounding, rate: float):
        super().__init__()
        self.start, self.rounding, self.rate = start, rounding, rate
        self.moved = nn.Parameter(torch.zeros(()), requires_grad=rate > 0)

    def octave(self):
        return self.start + self.rate * self.moved

    def forward(self):
        return self.rounding(self.octave())

    def add(self, a, b):
        """What `ai8x.Add` does: the sum ends where the codes of its addends end."""
        return (a + b).clamp(*(end * self() for end in ENDS))


class Layer(nn.Module):
    """What stands in place of an ai8x layer, with the `Scale`s of its weights, inputs and outputs."""

    def __init__(self, layer, weights: Scale, inputs: Scale, outputs: Scale, lsq, pact):
        super().__init__()
        self.layer, self.weights, self.inputs, self.outputs, self.lsq, self.pact = layer, weights, inputs, outputs, lsq, pact
        self.ends = (codes := IntRange(layer.weight_bits.item())).q_min, codes.q_max

    def forward(self, x):
        layer, scale, bias_scale = self.layer, self.weights(), self.weights() * self.inputs() * -ENDS[0]
        weight, bias = self.lsq(layer.op.weight, scale, *self.ends), self.lsq(layer.op.bias, bias_scale, *self.ends)
        y = layer._apply_op(x if layer.pool is None else layer.pool(x), weight, bias)
        if layer.wide:
            return y
        return self.pact(y, self.outputs() * ENDS[1], ENDS[1]) if layer.activation else self.lsq(y, self.outputs(), *ENDS)


def best_octave(x, octave: float, every: float, q_min: int, q_max: int) -> float:
    """The octave, of those from two below `octave` to one above, `every` apart, whose step gives the least squared error of x."""
    tried = torch.arange(octave - 2, octave + 1.1, every).tolist()
    return min(tried, key=lambda o: (lsq(x, torch.tensor(2.0**o), q_min, q_max) - x).square().sum().item())


@torch.no_grad()
def learned(calibrated, rounding=power_of_two, rate: float = RATE, seen: dict | None = None, lsq=lsq, pact=pact):
    """A copy of a calibrated PoseTiny whose scales are parameters; with a `rate` of 0 they stay as they are.

    They start at ai8x's powers of two or, with `seen` (layer -> outputs of the float network), where the squared error is least.
    """
    net, out, arrived = copy.deepcopy(calibrated), Scale(-7.0, torch.exp2, 0.0), 0.0  # the picture's own grid
    net.head_gain = lambda: 1.0  # real values: a head leaves nothing to undo
    every = 1.0 if rounding is power_of_two else 0.125
    for name, layer in layers(net).items():
        octave, inputs, (eltwise, partner) = layer.weight_shift().item(), out, SUMS.get(name, (None, None))
        weights = Scale(octave - layer.weight_bits.item() + 1, rounding, rate)
        layer.op.bias.mul_(2.0**arrived)
        arrived += layer.activation_threshold.item()
        out = getattr(net, partner).outputs if partner else Scale(arrived - 7, rounding, rate)
        setattr(net, name, new := Layer(layer, weights, inputs, out, lsq, pact))
        if seen:
            weights.start = best_octave(layer.op.weight, weights.start, every, *new.ends)
            together = torch.cat([seen[n].flatten() for n in (name, *(n for n in SUMS if SUMS[n][1] == name))])
            out.start = out.start if partner else best_octave(together, out.start, every, *ENDS)
        if eltwise:
            setattr(net, eltwise, Eltwise(out.add))
    return net.eval()


def versions(float_net, poses, bits: int, **options) -> dict:
    """All of VERSIONS, not trained yet, all made from `float_net`; `options` go to `learned`."""
    batches, usual = calibration_batches(poses), configure(weight_bits=bits).recipe()[1]
    ai8x, tighter = (calibrated_ptq(float_net, batches, bits, shift_quantile=share) for share in (usual, 0.9))
    seen = outputs(float_net, batches[0][0][:16])
    kinds = [(power_of_two, 0.0), (power_of_two, RATE), (power_of_two, 2 * RATE), (torch.exp2, 0.0), (torch.exp2, RATE)]
    return dict(zip(VERSIONS, (ai8x, tighter, *(learned(ai8x, *kind, seen, **options) for kind in kinds))))


def trained(network, poses, bits: int | None, seed: int):
    """A copy of `network`, trained on for one epoch by the recipe of `bits`; the order of the pictures depends on `seed`."""
    network = copy.deepcopy(network).to(memory_format=FORMAT)
    config = configure("quick", weight_bits=bits, epochs=1, start_epoch=0, seed=seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay)  # train_epoch sets the rate
    train_epoch(network, optimizer, poses, config, 0, tqdm(disable=True), Team())
    return network.eval()


def measured(float_net, poses, test, seed: int):
    """(name, metrics): the float network and all versions at 8, 4 and 2 bits, each trained on for one epoch."""
    yield "fp32", evaluate(trained(float_net, poses, None, seed), test)
    for bits in (8, 4, 2):
        for name, network in versions(float_net, poses, bits).items():
            yield f"bits{bits}.{name}", evaluate(trained(network, poses, bits, seed), test)


def follow(network) -> dict[str, list[float]]:
    """name of a scale -> its octave at each training step to come, of `network` and of its copies."""
    path = {}

    def keep(name, layer):
        if layer.training:
            path.setdefault(f"{name}, weights", []).append(layer.weights.octave().item())
            path.setdefault(f"{name}, outputs", []).append(layer.outputs.octave().item())

    for name, part in network.named_children():
        if isinstance(part, Layer):
            part.register_forward_pre_hook(lambda layer, _, name=name: keep(name, layer))
    return path


def scores(stored: dict, version: str):
    """PCK of one version ("fp32" or "bits2.ai8x"), seed by seed, from data/reference.json."""
    return np.array([stored[f"learned.seed{seed}.{version}.pck"]["value"] for seed in range(3)])


def gain(stored: dict, bits: int, step: str):
    """PCK gained by one of STEPS, seed by seed."""
    after, before = (scores(stored, f"bits{bits}.{version}") for version in STEPS[step])
    return after - before


def told(stored: dict, bits: int, step: str) -> str:
    """The same in words: mean (least to most)."""
    found = gain(stored, bits, step)
    mean, least, most = np.round([found.mean(), found.min(), found.max()], 3) + 0.0
    return f"{mean:+.3f} ({least:+.3f} to {most:+.3f})"


@drawing
def picture(stored: dict):
    """PCK of all versions at 8, 4 and 2 bits, a point for each seed. Returns (figure, sentence)."""
    looks = [("blue", "o")] * 2 + [("orange", "D")] * 3 + [("pink", "s")] * 2
    fig, axes = figure(1, 3, width=8, height=2.8, sharex=True, sharey=True)
    fp32, rows = scores(stored, "fp32").mean(), range(len(VERSIONS))
    for axis, bits in zip(axes, (8, 4, 2)):
        for i, version, (colour, marker) in zip(rows, VERSIONS, looks):
            axis.plot(scores(stored, f"bits{bits}.{version}"), [i] * 3, marker, color=PALETTE[colour], markersize=5)
        axis.axvline(fp32, color="black", linestyle=":", linewidth=0.8)
        axis.set(title=f"{bits}-bit weights", xlabel="PCK@0.2")
    axes[-1].text(fp32 - 0.005, 0, "float", fontsize=8, ha="right", va="center")
    axes[0].set_yticks(rows, VERSIONS.values())
    axes[0].invert_yaxis()
    means = "; ".join(f"{title} {scores(stored, f'bits2.{version}').mean():.3f}" for version, title in VERSIONS.items())
    return fig, (
        "One point for each seed; circles: scales from ai8x, diamonds: other powers of two, squares: free scales; dotted: "
        f"float, trained for as long, {fp32:.3f}. Means at 2 bits: {means}."
    )
