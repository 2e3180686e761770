"""Checks of lesson 16: pixels to the chip's grid, a refused network repaired, a batch norm folded forward."""

import torch
import torch.nn.functional as F
from torch import nn

from qatcourse.checks import Exercise, NotYet, always, ask, judged, row
from qatcourse.labs.digits import Network, to_input
from qatlib import ai8x

_INK = torch.arange(17, dtype=torch.uint8)

check_input = Exercise(
    "my_input(ink): real values of uint8 ink (N, 1, H, W), 0..16: 8 is 0, equal steps, as wide as the grid allows.",
    to_input,
    [("ink 0..16", _INK.view(17, 1, 1, 1)), ("a picture", (_INK.repeat(4)[:64] * 5 % 17).view(1, 1, 8, 8))],
    (lambda _, ink: (ink - 8) * 15 / 128, "uint8 has no negative numbers, so it wraps around: ink.float() first."),
    (lambda _, ink: ink.float(), "this is the ink itself; the chip's real values lie in -1..127/128."),
    (lambda _, ink: ink / 16, "this is 0..1: half of the codes stay unused, and ink 8 is not 0."),
    (lambda _, ink: (ink.float() - 8) / 8, "full ink becomes 1, which would be code 128; the largest is 127."),
    (lambda _, ink: ((ink.float() - 8) / 8).clamp(max=127 / 128), "the last step is smaller than the others."),
    (lambda _, ink: (ink.float() - 8) * 15, "these are codes, whole numbers; a real value is code / 128."),
    (lambda _, ink: ink.float() * 15 / 128 - 1, "the steps are right; now let ink 8 be 0."),
    (lambda right, _: -right, "more ink is to be a larger value."),
    (lambda _, ink: (ink.float() - 8) / 8 * 127 / 128, "a step of 15.875 codes leaves the grid; take a whole number."),
    (lambda _, ink: (ink.float() - 8) / 16, "8 codes a step: right, but a wider whole step fits, too."),
    (lambda _, ink: (ink.float() - 4.9) / 6, "on the grid are whole numbers / 128; 8 steps up from 0 end below 1.", always),
    praise="17 values, 15 codes apart, none beyond the range: nothing of the picture is lost, nothing is rounded.",
    right=[lambda ink: torch.floor(ink.double() - 8) * 0.1171875, lambda ink: (15 * ink.int() - 120) / 128,
           lambda ink: (ink.numpy().astype(float) - 8) * 15 / 128],
)  # fmt: skip


class _Variant(Network):
    """The repaired network, changed as learners change it: other layers by name, other ways through them."""

    def __init__(self, half="in front", residual=True, **layers):
        super().__init__()
        self.half, self.residual, self.end = half, residual, layers.pop("end", nn.Identity())
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 2) if self.half == "in front" else x
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.max_pool2d(x, 2) if self.half == "after" else x
        y = F.relu(self.bn3(self.conv3(x)))
        return self.end(self.fc(self.drop(self.pool(x + y if self.residual else y).flatten(1))))


def _read(network):
    if not isinstance(network, nn.Module):
        raise NotYet(f"must be a class of nn.Module; MyRepaired() gave a {type(network).__name__}.")
    return network


@judged(
    "MyRepaired", "Accepted, with the weights, the sum and the scores of the old network. It is ready to be trained.",
    wrong=[
        (lambda: _Variant(half="", conv2=nn.Conv2d(16, 24, 3, 2, 1, bias=False)), "stride 1 only"),
        (lambda: _Variant(pool=nn.AdaptiveAvgPool2d(2)), "adaptive_pool"),
        (lambda: _Variant(end=nn.Softmax(1)), "softmax"),
        (lambda: _Variant(half=""), "stopped with RuntimeError"),
        (lambda: _Variant(half="", fc=nn.Linear(384, 10)), "fc.weight is (10, 384)"),
        (lambda: _Variant(conv2=nn.Conv2d(16, 24, 1, bias=False)), "conv2.weight is (24, 16, 1, 1)"),
        (lambda: _Variant(residual=False), "sum"),
        (lambda: _Variant(fc=nn.Linear(96, 1)), "(2, 1)"),
        (lambda: 3.0, "gave a float"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "conv1.weight is missing"),
    ],
    right=[Network, _Variant, lambda: _Variant("after"), lambda: _Variant(pool=nn.MaxPool2d(2)),
           lambda: _Variant(drop=nn.Identity()), lambda: _Variant().eval()],
)  # fmt: skip
def check_repaired(my_repaired):
    """MyRepaired(): a network like MyNetwork that from_torch takes without a rewrite."""
    network = ask(my_repaired, read=_read)
    shape = ask(network, torch.zeros(2, 1, 8, 8), read=lambda y: tuple(y.shape), where=" (on two pictures)")
    lines = [(row("shape of the scores", (2, 10), shape, shape == (2, 10)), f"two pictures gave {shape}: ten scores for each.")]
    found, wanted = ({name: tuple(t.shape) for name, t in net.state_dict().items()} for net in (network, Network()))
    other = next((name for name in wanted if found.get(name) != wanted[name]), "")
    said = f"{other} is {found.get(other, 'missing')}, so trained weights no longer fit: it must be {wanted.get(other)}."
    lines.append((row("the old weights fit", "yes", "no" if other else "yes", not other), said))
    try:
        sums, refused = [m for m in ai8x.from_torch(network, (1, 8, 8), verbose=False).modules() if isinstance(m, ai8x.Add)], ""
    except ValueError as problem:
        sums, refused = [], str(problem).splitlines()[:2][-1]
    lines.append((row("from_torch", "accepts it", "refuses it" if refused else "accepts it", not refused), refused))
    return [*lines, (row("sums of two branches", 1, len(sums), len(sums) == 1), "the sum around conv3 is gone: x + ...")]


def fold_forward(weight, bias, mean, var, gamma, beta, eps, power=-0.5, scaled=1):
    """(weight, bias) of the linear layer that does what a batch normalisation in front of it and it do together."""
    factor = gamma * (var + eps) ** power
    return weight * factor, bias + weight @ (beta - mean * factor**scaled)


def _layers():
    random = torch.Generator().manual_seed(16)
    for rows, columns in ((4, 4), (3, 6)):
        weight, mean, gamma, beta = (torch.randn(*shape, generator=random) for shape in ((rows, columns), *[(columns,)] * 3))
        var = torch.rand(columns, generator=random) ** 4
        yield f"{columns} inputs, {rows} outputs", weight, torch.randn(rows, generator=random), mean, var, gamma, beta, 0.01


check_fold = Exercise(
    "my_fold(weight, bias, mean, var, gamma, beta, eps): weight and bias of a linear layer with the batch norm before it.",
    fold_forward,
    lambda: list(_layers()),
    (lambda right, weight, bias, *_: (right[0], bias), "the bias lacks what the batch norm adds: weight @ (beta - mean * factor)."),
    (lambda right, weight, *_: (weight, right[1]), "the weights are the old ones; multiply each column by its input's factor."),
    (lambda right, weight, bias, mean, var, gamma, beta, eps:
     (weight * (gamma * (var + eps) ** -0.5).repeat(2)[: len(weight), None], right[1]),
     "you scale rows, which are outputs. The batch norm stands in front: its channels are the columns."),
    (lambda _, *case: fold_forward(*case[:-1], 0.0), "eps is missing: factor = gamma / sqrt(var + eps)."),
    (lambda _, *case: fold_forward(*case, power=-1), "divide by the root of var + eps."),
    (lambda _, *case: fold_forward(*case, power=0.5), "you multiply by the root of var + eps; divide by it."),
    (lambda _, w, b, mean, var, gamma, *rest: fold_forward(w, b, mean, var, torch.ones_like(gamma), *rest), "gamma is missing."),
    (lambda _, w, b, mean, var, gamma, beta, eps: fold_forward(w, b, mean, var, gamma, 0 * beta, eps), "beta is missing."),
    (lambda _, w, b, mean, *rest: fold_forward(w, b, -mean, *rest), "the sign of the mean: beta - mean * factor."),
    (lambda _, *case: fold_forward(*case, scaled=0), "the mean is scaled, too: beta - mean * factor."),
    (lambda right, w, b, mean, var, gamma, beta, eps: (right[0], b + right[0] @ (beta - mean * gamma * (var + eps) ** -0.5)),
     "the shift goes through the old weight: with the new one the factor counts twice."),
    (lambda right, *_: right[::-1], "return weight first, then bias."),
    tolerance=1e-4,
    praise="Two operations became one. Between the sum and the linear layer nothing is left that the chip lacks.",
    right=[lambda *case: fold_forward(*(part.double() for part in case[:-1]), case[-1]),
           lambda w, b, mean, var, gamma, beta, eps:
           (w @ (gamma / (var + eps).sqrt()).diag(), b + F.batch_norm(0 * mean[None], mean, var, gamma, beta, eps=eps)[0] @ w.T)],
)  # fmt: skip
