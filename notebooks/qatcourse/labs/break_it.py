"""Ten broken networks for lessons 11 and 14, and for the doctor's own tests. Do the lessons before you read this file.

`admit("A")` gives a `Patient`: a small quantized network that looks for the red spot in a picture, with one thing wrong.
`healthy(seed)` gives the same network as it should be. Whether a repair holds, `qatcourse.checks.lesson11` decides.
"""

import copy
import functools
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn

from qatcourse.viz.inspection import outputs_of
from qatlib import ai8x
from qatlib.doctor import Diagnosis, diagnose
from qatlib.export import quantize_checkpoint
from qatlib.integer import convert, engine

POLICY = {"weight_bits": 8}
SIDE, CELLS = 16, 8
LIMIT = 0.5  # the app reports a spot where a heat map is higher


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


class HandmadeConv2d(ai8x.FusedConv2dReLU):
    """A layer that somebody wrote themselves."""

    @staticmethod
    def to_codes(values: torch.Tensor) -> torch.Tensor:
        """Real values in units of 1/128 -> whole numbers."""
        return torch.round(values)

    def _activate(self, x):
        return self.to_codes(torch.relu(x) * 128).clamp(-128, 127) / 128 * torch.exp2(self.final_scale)


@dataclass
class Patient:
    """What a repair may change: the network, its input, its learning rate; and what it may use: pictures, checkpoints."""

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

    @torch.no_grad()
    def accuracy(self, model=None) -> float:
        return found((model or self.model)(self.x), self.cells)

    def train(self, steps: int = 40) -> float:
        """Start QAT from the float network and train it with `learning_rate`: new `model` and `history`. Returns the last loss."""
        self.model = quantized(self.float_model, self.x)
        self.history = fit(self.model, self.x, self.cells, self.learning_rate, steps)
        return self.history[-1]

    def codes(self) -> torch.Tensor:
        """The input as the chip gets it: int8."""
        return (self.x * 128).round().clamp(-128, 127).to(torch.int8)

    def chip(self) -> nn.Module | None:
        """What a converter makes of `model`; None where it refuses. Like the vendor's, it takes 8 bits where none are set."""
        model = copy.deepcopy(self.model)
        try:
            if convert.integers(model.state_dict()):
                return convert.compact_from_checkpoint(model, model.state_dict())
            if not any(layer.weight_bits.item() for layer in weighted(model)):
                ai8x.initiate_qat(model, POLICY)
            return convert.quantize_model(model)
        except ValueError:
            return None

    @torch.no_grad()
    def symptoms(self) -> dict:
        """A row of a table: the spots found in training and on the chip, and the share of heat map values that differ."""
        row, chip = {"patient": self.name, "found in training": f"{self.accuracy():.0%}"}, self.chip()
        if chip is None:
            return row | {"found on the chip": "not converted", "values that differ": "-"}
        here, there = self.model(self.x), chip(self.codes())
        differ = (here != there).float().mean().item()
        return row | {"found on the chip": f"{found(there, self.cells):.0%}", "values that differ": f"{differ:.1%}"}

    def layers(self) -> tuple[dict, dict]:
        """(training, chip): the integer codes that each convolution gives, by name, in order of execution."""
        here = {name: y for name, y in outputs_of(self.model, self.x).items() if name != "head"}
        there = engine.run(self.chip().compact, self.codes().numpy(), keep=list(here))
        scales = {name: 128 / torch.exp2(getattr(self.model, name).final_scale) for name in here}
        return {name: (y * scales[name]).int() for name, y in here.items()}, {k: torch.tensor(v).int() for k, v in there.items()}

    @torch.no_grad()
    def reported(self, model) -> dict[str, float]:
        """Shares of pictures in which the app reports a spot; it multiplies by `head_gain()` where the model has one."""
        empty = torch.where(self.images[:, :1] == 255, 60, self.images[:, :1])  # the red spot is wiped out
        pictures = {"with a red spot": self.x, "without one": to_input(torch.cat([empty, self.images[:, 1:]], 1))}
        gain = model.head_gain() if hasattr(model, "head_gain") else 1.0
        return {name: ((model(x) * gain).flatten(1).amax(1) > LIMIT).float().mean().item() for name, x in pictures.items()}


def found(maps: torch.Tensor, cells: torch.Tensor) -> float:
    """Share of heat maps whose highest cell is the spot's."""
    return (maps.flatten(1).argmax(1) == cells).float().mean().item()


def weighted(model: nn.Module) -> list:
    return [m for m in model.modules() if isinstance(m, ai8x.QuantizationAwareModule) and m.op is not None]


def spots(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(images uint8 (n, 3, 16, 16), cells (n,)): noise, one red spot, and one blue spot to be ignored."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 110, (n, 3, SIDE, SIDE), generator=random, dtype=torch.uint8)
    cells = torch.randint(0, CELLS * CELLS, (2, n), generator=random)
    for channel, place in ((2, cells[1]), (0, cells[0])):
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
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


# --- the ten bugs: each takes a healthy patient and breaks it ---


def input_range(p: Patient) -> None:
    p.x = p.images.float() / 255


def batch_norm(p: Patient) -> None:
    p.model = copy.deepcopy(p.float_model)
    ai8x.initiate_qat(p.model, POLICY)


def never_started(p: Patient) -> None:
    p.model = copy.deepcopy(p.float_model)
    ai8x.fuse_bn_layers(p.model)


def learning_rate(p: Patient) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        p.float_model = Spotter()
        fit(p.float_model, p.x, p.cells, 0.1, 20)  # good, and not yet at its best
    p.learning_rate = 0.2
    p.train()


def half_even(p: Patient) -> None:
    layer = HandmadeConv2d(12, 12, 3, padding=1)
    layer.load_state_dict(p.model.conv3.state_dict())
    p.model.conv3 = layer
    ai8x.update_model(p.model)


@torch.no_grad()
def missing_clamp(p: Patient) -> None:
    p.model.conv2.activation_threshold.sub_(1)  # twice the codes on both branches: their sum leaves the range
    for layer in (p.model.conv3, p.model.conv4):
        layer.op.bias.mul_(2)
    p.model.conv4.activation_threshold.add_(1)
    ai8x.update_model(p.model)
    p.model.add.set_clamp(False)


def wrong_checkpoint(p: Patient) -> None:
    p.checkpoints = {"best.pth": p.float_model.state_dict(), "qat_best.pth": copy.deepcopy(p.model.state_dict())}
    p.checkpoints["qat_best_q.pth"] = quantize_checkpoint(p.checkpoints["qat_best.pth"])
    p.model.load_state_dict(p.checkpoints["qat_best_q.pth"])
    ai8x.update_model(p.model)


@torch.no_grad()
def big_bias(p: Patient) -> None:
    p.model.conv4.op.weight[3].mul_(0.01)  # as fused from a batch norm whose mean is large beside its spread: a huge bias
    p.model.conv4.op.bias[3] = -40.0


def dead_layer(p: Patient) -> None:
    net = copy.deepcopy(p.float_model)
    p.checkpoints = {"epoch_1.pth": copy.deepcopy(net.state_dict())}
    fit(net, p.x, p.cells, 0.02, 4)
    p.checkpoints["epoch_2.pth"] = copy.deepcopy(net.state_dict())
    nn.init.constant_(net.conv4.bn.bias, -30.0)
    p.checkpoints["epoch_3.pth"] = copy.deepcopy(net.state_dict())
    ai8x.fuse_bn_layers(net)
    ai8x.pre_qat(net, [p.x], POLICY, vendor_exact=True)
    ai8x.initiate_qat(net, POLICY)
    p.model = net.eval()


@torch.no_grad()
def wide_head(p: Patient) -> None:
    factor = torch.exp2(-3 - p.model.head.weight_shift())  # a head of small weights: its shift is -3
    for model in (p.model, p.float_model):
        model.head.op.weight.mul_(factor)
        model.head.op.bias.mul_(factor)
        model.__class__ = RawSpotter


# By the names of the functions above, in the order of the ward: what the doctor calls them.
FOUND_AS = {
    "input_range": "input range", "big_bias": "big bias", "learning_rate": "learning rate", "half_even": "rounding",
    "batch_norm": "batch norm not fused", "wide_head": "wide head", "dead_layer": "dead layer",
    "missing_clamp": "clamp missing", "never_started": "QAT never started", "wrong_checkpoint": "wrong checkpoint",
}  # fmt: skip
WARD = dict(zip("ABCDEFGHIJ", FOUND_AS))


@functools.lru_cache(maxsize=32)
def _made(name: str, seed: int) -> Patient:
    patient = replace(healthy(seed), name=name)
    globals()[name](patient)
    return patient


def make(name: str, seed: int = 0) -> Patient:
    """The patient with the bug `name`, a key of `FOUND_AS`."""
    return copy.deepcopy(_made(name, seed))


def admit(letter: str, seed: int = 0) -> Patient:
    """The patient A to J. Raises ValueError for other letters."""
    if letter not in WARD:
        raise ValueError(f"there is no patient {letter!r}; choose one of {', '.join(WARD)}")
    return replace(make(WARD[letter], seed), name=letter)
