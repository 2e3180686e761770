"""Ten broken networks, each from a mistake that real people reported, for lesson 11 and for the doctor's own tests.

`make(name, seed)` gives a `Patient`: a small quantized network that looks for the red spot in a picture, with one thing wrong.
`healthy(seed)` gives the same network as it should be. Whether a repair holds, `qatcourse.checks.lesson11` decides.
"""

import copy
import functools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from qatlib import ai8x
from qatlib.doctor import Diagnosis, diagnose
from qatlib.export import quantize_checkpoint

POLICY = {"weight_bits": 8}
SIDE, CELLS = 16, 8


class RawSpotter(nn.Module):
    """(N, 3, 16, 16) on the 1/128 grid -> one heat map (N, 1, 8, 8): where is the red spot? Five layers, one residual sum."""

    input_shape = (3, SIDE, SIDE)

    def __init__(self):
        super().__init__()
        self.conv1 = ai8x.FusedConv2dBNReLU(3, 8, 3, padding=1)
        self.conv2 = ai8x.FusedMaxPoolConv2dBNReLU(8, 12, 3, padding=1)
        self.conv3 = ai8x.FusedConv2dBNReLU(12, 12, 3, padding=1)
        self.add = ai8x.Add()
        self.conv4 = ai8x.FusedConv2dBNReLU(12, 12, 3, padding=1)
        self.head = ai8x.Conv2d(12, 1, 1, wide=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.conv1(x))
        return self.head(self.conv4(self.add(x, self.conv3(x))))


class Spotter(RawSpotter):
    """The same, and it knows what undoes the scale of its wide head."""

    def head_gain(self) -> torch.Tensor:
        return torch.exp2(self.head.weight_shift())


class RoundingConv2d(ai8x.FusedConv2dReLU):
    """A layer that somebody wrote themselves: `rounding` is the rule for its outputs."""

    rounding = staticmethod(torch.round)

    def _activate(self, x):
        y = (self.rounding(torch.relu(x) * 128) / 128).clamp(-1, 127 / 128)
        return y * torch.exp2(self.final_scale)


@dataclass
class Patient:
    """What a fix may change: the network, its input, its learning rate; and what it may use: pictures, checkpoints."""

    name: str
    model: nn.Module
    x: torch.Tensor  # the input, (N, 3, 16, 16)
    images: torch.Tensor  # the same pictures as bytes, uint8
    cells: torch.Tensor  # where the spots are: cell numbers 0..63
    float_model: nn.Module  # the trained float network, batch norm and all
    checkpoints: dict = field(default_factory=dict)  # name -> state dict
    learning_rate: float = 0.01
    history: list = field(default_factory=list)

    def diagnose(self) -> Diagnosis:
        return diagnose(self.model, self.x, self.history)

    def accuracy(self) -> float:
        """Share of pictures whose highest cell is the spot's."""
        with torch.no_grad():
            return (self.model(self.x).flatten(1).argmax(1) == self.cells).float().mean().item()

    def train(self, steps: int = 24) -> None:
        """Start QAT from the float network and train it with `learning_rate`; replaces `model` and `history`."""
        self.model = quantized(self.float_model, self.x)
        self.history = fit(self.model, self.x, self.cells, self.learning_rate, steps)


def spots(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(images uint8 (n, 3, 16, 16), cells (n,)): noise, one red spot, and one blue spot to be ignored."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 110, (n, 3, SIDE, SIDE), generator=random, dtype=torch.uint8)
    cells = torch.randint(0, CELLS * CELLS, (2, n), generator=random)
    for channel, place in ((2, cells[1]), (0, cells[0])):
        for down in (0, 1):
            for right in (0, 1):
                images[torch.arange(n), channel, place // CELLS * 2 + down, place % CELLS * 2 + right] = 255
    return images, cells[0]


def to_input(images: torch.Tensor) -> torch.Tensor:
    """Bytes to real values on the grid: (byte - 128) / 128."""
    return (images.float() - 128) / 128


def fit(model: nn.Module, x: torch.Tensor, cells: torch.Tensor, rate: float, steps: int) -> list[float]:
    """Train with SGD on the whole batch; the loss of each step."""
    optimizer, losses = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=rate, momentum=0.9), []
    model.train()
    for _ in range(steps):
        gain = model.head_gain() if hasattr(model, "head_gain") else 1.0
        loss = F.cross_entropy((model(x) * gain).flatten(1), cells, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    model.eval()
    return torch.stack(losses).tolist()


def quantized(float_model: nn.Module, x: torch.Tensor, **options) -> nn.Module:
    """A calibrated 8-bit copy of a float network."""
    model = copy.deepcopy(float_model)
    ai8x.start_qat(model, [x], {**POLICY, **options}, progress=False)
    return model.eval()


@functools.lru_cache(maxsize=8)
def _trained(seed: int) -> Patient:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        images, cells = spots(96, seed)
        x, net = to_input(images), Spotter()
        fit(net, x, cells, 0.1, 60)
        patient = Patient("healthy", net, x, images, cells, net)
        patient.train(12)
    return patient


def healthy(seed: int = 0) -> Patient:
    """The network as it should be: trained in float, quantized to 8 bits, trained on."""
    return copy.deepcopy(_trained(seed))


# --- the ten bugs: each takes a healthy patient and breaks it --------------------------------------------------------------


def input_range(p: Patient) -> None:
    p.x = p.images.float() / 255


@torch.no_grad()
def batch_norm(p: Patient) -> None:
    p.model = copy.deepcopy(p.float_model)
    ai8x.initiate_qat(p.model, POLICY)


def never_started(p: Patient) -> None:
    ai8x.set_device(85, simulate=False, round_avg=False, verbose=False)
    p.model = copy.deepcopy(p.float_model)


def learning_rate(p: Patient) -> None:
    p.learning_rate = 1.0
    p.train()


def half_even(p: Patient) -> None:
    good = p.model.conv3
    layer = RoundingConv2d(12, 12, 3, padding=1)
    layer.load_state_dict(good.state_dict())
    p.model.conv3 = layer
    ai8x.update_model(p.model)


def missing_clamp(p: Patient) -> None:
    p.model.add.set_clamp(False)


def wrong_checkpoint(p: Patient) -> None:
    trained = copy.deepcopy(p.model.state_dict())
    p.checkpoints = {
        "best.pth": copy.deepcopy(p.float_model.state_dict()),
        "qat_best.pth": trained,
        "qat_best_q.pth": quantize_checkpoint(trained),
    }
    p.model.load_state_dict(p.checkpoints["qat_best_q.pth"])
    ai8x.update_model(p.model)


@torch.no_grad()
def big_bias(p: Patient) -> None:
    layer = p.model.conv4  # as fused from a batch norm whose mean is large beside its spread: a huge bias
    layer.op.weight[3].mul_(0.01)
    layer.op.bias[3] = -40.0


@torch.no_grad()
def dead_layer(p: Patient) -> None:
    p.checkpoints = {"epoch_1.pth": copy.deepcopy(p.float_model.state_dict())}
    broken = copy.deepcopy(p.float_model)
    fit_on = copy.deepcopy(p.float_model)
    with torch.enable_grad():
        fit(fit_on, p.x, p.cells, 0.02, 4)
    p.checkpoints["epoch_2.pth"] = copy.deepcopy(fit_on.state_dict())
    broken.load_state_dict(fit_on.state_dict())
    broken.conv4.bn.bias.fill_(-30.0)
    p.checkpoints["epoch_3.pth"] = copy.deepcopy(broken.state_dict())
    ai8x.fuse_bn_layers(broken)
    ai8x.pre_qat(broken, [p.x], POLICY, vendor_exact=True)
    ai8x.initiate_qat(broken, POLICY)
    p.model = broken.eval()


@torch.no_grad()
def wide_head(p: Patient) -> None:
    factor = torch.exp2(-3 - p.model.head.weight_shift())  # a head of small weights: its shift is -3
    for model in (p.model, p.float_model):
        model.head.op.weight.mul_(factor)
        model.head.op.bias.mul_(factor)
        model.__class__ = RawSpotter


BUGS = {
    "input_range": input_range, "batch_norm": batch_norm, "never_started": never_started, "learning_rate": learning_rate,
    "half_even": half_even, "missing_clamp": missing_clamp, "wrong_checkpoint": wrong_checkpoint, "big_bias": big_bias,
    "dead_layer": dead_layer, "wide_head": wide_head,
}  # fmt: skip
FOUND_AS = {
    "input_range": "input range", "batch_norm": "batch norm not fused", "never_started": "QAT never started",
    "learning_rate": "learning rate", "half_even": "rounding", "missing_clamp": "clamp missing",
    "wrong_checkpoint": "wrong checkpoint", "big_bias": "big bias", "dead_layer": "dead layer", "wide_head": "wide head",
}  # fmt: skip


def make(name: str, seed: int = 0) -> Patient:
    """The patient with the bug `name` (one of `BUGS`). Raises ValueError for an unknown name."""
    if name not in BUGS:
        raise ValueError(f"there is no bug {name!r}; choose one of {', '.join(BUGS)}")
    patient = healthy(seed)
    patient.name = name
    BUGS[name](patient)
    return patient
