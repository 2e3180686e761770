"""What an error message advises is carried out here, and works: (what fails, words of its remedy, the remedy)."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import qatlib
import qatlib.ai8x as ai8x
from qatlib.integer.convert import compact_from_checkpoint
from qatlib.integer.source import as_compact

POLICY = {"weight_bits": 8}


class Small(nn.Module):
    input_shape = (2, 6, 6)

    def __init__(self, middle=None):
        super().__init__()
        self.a = ai8x.FusedConv2dBNReLU(2, 4, 3, padding=1)
        self.b = ai8x.FusedMaxPoolConv2dReLU(4, 4, 3, padding=1)
        self.middle = middle
        self.head = ai8x.Linear(36, 3, bias=True, wide=True)

    def forward(self, x):
        x = self.b(self.a(x))
        x = x if self.middle is None else self.middle(x)
        return self.head(x.flatten(1))


def pictures(n=6):
    return torch.randint(-128, 128, (n, 2, 6, 6), generator=torch.Generator().manual_seed(0)) / 128


def fresh(*arguments):
    torch.manual_seed(0)
    return Small(*arguments)


def start(net, **more):
    ai8x.start_qat(net, [pictures()], POLICY, progress=False, **more)
    return net


def simulating(call):
    ai8x.set_device(85, simulate=True, verbose=False)
    try:
        return call()
    finally:
        ai8x.set_device(85, verbose=False)


def unfused():
    net = fresh()
    ai8x.initiate_qat(net, POLICY)
    return net


def odd_threshold():
    net = start(fresh())
    net.b.activation_threshold.fill_(0.5)
    return net


def integers():
    return qatlib.quantize_checkpoint(start(fresh()).state_dict())


def stored_as_integers():
    net = start(fresh())
    state = integers()
    net.load_state_dict({name: value.to(net.state_dict()[name].dtype) for name, value in state.items()})
    return net


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = ai8x.Conv2d(2, 4, 1)

    def forward(self, x, y):
        return self.a(torch.cat((x, y), 1))


class Joined(Several):
    def forward(self, x):
        return self.a(x)


class OnTheWay(Small):
    """Returns what its last layer reads, too."""

    def forward(self, x):
        y = self.b(self.a(x))
        return y, self.head(y.flatten(1))


IMAGES = torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))

TABLE = {
    "images as settings": (lambda: ai8x.normalize(IMAGES), r"ai8x\.normalize\(\)\(images\)", lambda: ai8x.normalize()(IMAGES)),
    "bytes": (lambda: ai8x.start_qat(fresh(), [IMAGES * 255], POLICY, progress=False), r"ai8x\.normalize\(\)\(images\)",
              lambda: ai8x.start_qat(fresh(), [ai8x.normalize()(IMAGES)], POLICY, progress=False)),
    "bytes, the other way": (lambda: ai8x.start_qat(fresh(), [IMAGES * 255], POLICY, progress=False), r"\(x - 128\) / 128",
                             lambda: ai8x.start_qat(fresh(), [(IMAGES * 255 - 128) / 128], POLICY, progress=False)),
    "inputs off the grid": (lambda: qatlib.quantize_model(start(fresh()))(IMAGES), r"ai8x\.normalize\(\)\(images\)",
                            lambda: qatlib.quantize_model(start(fresh()))(ai8x.normalize()(IMAGES))),
    "never calibrated": (lambda: qatlib.quantize_model(fresh_fused()), r"ai8x\.start_qat\(model, train_loader, policy\)",
                         lambda: qatlib.quantize_model(start(fresh_fused()))),
    "batch norm left, QAT on": (lambda: qatlib.quantize_model(unfused()), r"from the float network, ai8x\.start_qat",
                                lambda: qatlib.quantize_model(start(fresh()))),
    "batch norm left, QAT off": (lambda: qatlib.quantize_model(fresh()), r"from the float network, ai8x\.start_qat",
                                 lambda: qatlib.quantize_model(start(fresh()))),
    "no power of two": (lambda: qatlib.quantize_model(odd_threshold()), r"from the float network, ai8x\.start_qat",
                        lambda: qatlib.quantize_model(start(fresh()))),
    "started before, other bits": (lambda: start(start(fresh())), "initiate_qat with another policy",
                                   lambda: ai8x.initiate_qat(start(fresh()), {"weight_bits": 4})),
    "started before, anew": (lambda: start(start(fresh())), "build the network again", lambda: start(fresh())),
    "no bits yet": (lambda: as_compact(calibrated()), "initiate_qat", lambda: as_compact(with_bits(calibrated()))),
    "no bits yet, PTQ": (lambda: as_compact(calibrated()), r"quantize_model\(model, bit_width=8\)",
                         lambda: qatlib.quantize_model(calibrated(), bit_width=8)),
    "simulate, quantize": (lambda: simulating(lambda: qatlib.quantize_model(start_before())), r"set_device\(",
                           lambda: qatlib.quantize_model(start(fresh()))),
    "integers in the network": (lambda: qatlib.quantize_model(stored_as_integers()), "compact_from_checkpoint",
                                lambda: compact_from_checkpoint(stored_as_integers(), integers())),
    "floats as integers": (lambda: compact_from_checkpoint(fresh(), start(fresh()).state_dict()), "quantize_checkpoint",
                           lambda: compact_from_checkpoint(fresh(), qatlib.quantize_checkpoint(start(fresh()).state_dict()))),
    "quantized twice": (lambda: qatlib.quantize_checkpoint(integers()), "the one that QAT saved", integers),
    "no bits in the checkpoint": (lambda: qatlib.quantize_checkpoint(calibrated().state_dict()), "default_bits=8",
                                  lambda: qatlib.quantize_checkpoint(calibrated().state_dict(), default_bits=8)),
    "several inputs": (lambda: ai8x.fit(Several(), ((1, 4, 4), (1, 4, 4))) and as_compact(with_bits(Several()), ((1, 4, 4),) * 2),
                       "concatenate them outside", lambda: as_compact(with_bits(Joined()), (2, 4, 4))),
    "no input shape": (lambda: ai8x.fit(Joined()), r"input_shape=\(C, H, W\)", lambda: ai8x.fit(Joined(), input_shape=(2, 4, 4))),
    "another class for the pool": (lambda: ai8x.FusedMaxPoolConv2dReLU(2, 4, 3, pooling="Avg"),
                                   r"use ai8x\.Conv2d\(\.\.\., pooling='Avg', activation='ReLU'\)",
                                   lambda: ai8x.Conv2d(2, 4, 3, pooling="Avg", activation="ReLU")),
    "another activation": (lambda: ai8x.FusedConv2dBNReLU(2, 4, 3, activation="Abs"), r"use ai8x\.Conv2d\(\.\.\., activation='Abs'",
                           lambda: ai8x.Conv2d(2, 4, 3, activation="Abs", batchnorm="Affine")),
    "5x5": (lambda: ai8x.Conv2d(2, 4, 5), "two 3x3 layers", lambda: nn.Sequential(ai8x.Conv2d(2, 4, 3), ai8x.Conv2d(4, 4, 3))),
    "groups": (lambda: ai8x.Conv2d(4, 4, 3, groups=4), r"set_device\(87\)", lambda: on_87(lambda: ai8x.Conv2d(4, 4, 3, groups=4))),
    "transposed": (lambda: ai8x.ConvTranspose2d(4, 4, 3), "pass stride=2", lambda: ai8x.ConvTranspose2d(4, 4, 3, stride=2)),
    "wide and activated": (lambda: ai8x.FusedConv2dReLU(2, 4, 1, wide=True), "drop one", lambda: ai8x.Conv2d(2, 4, 1, wide=True)),
    "batch norm, no bias": (lambda: ai8x.FusedConv2dBN(2, 4, 1, bias=False), "bias=True", lambda: ai8x.FusedConv2dBN(2, 4, 1)),
    "wide linear": (lambda: ai8x.Linear(2048, 4), "pool further", lambda: ai8x.Linear(512, 4)),
    "a sum as +": (lambda: qatlib.quantize_model(start(fresh(lambda x: x + x))), r"use ai8x\.Add\(\)",
                   lambda: qatlib.quantize_model(start(fresh(Twice(ai8x.Add()))))),
    "relu": (lambda: qatlib.quantize_model(start(fresh(nn.ReLU()))), "activation='ReLU'",
             lambda: qatlib.quantize_model(start(fresh(ai8x.FusedConv2dReLU(4, 4, 1))))),
    "a plain convolution": (lambda: qatlib.quantize_model(start(fresh(nn.Conv2d(4, 4, 1)))), r"use ai8x\.Conv2d",
                            lambda: qatlib.quantize_model(start(fresh(ai8x.Conv2d(4, 4, 1))))),
    "a plain pool": (lambda: qatlib.quantize_model(start(fresh(nn.MaxPool2d(1)))), r"use ai8x\.MaxPool2d",
                     lambda: qatlib.quantize_model(start(fresh(ai8x.MaxPool2d(1))))),
    "a batch norm of its own": (lambda: qatlib.quantize_model(start(fresh(nn.BatchNorm2d(4)))), "batchnorm='Affine'",
                                lambda: qatlib.quantize_model(start(fresh(ai8x.FusedConv2dBN(4, 4, 1))))),
    "a policy's name": (lambda: ai8x.initiate_qat(fresh(), POLICY | {"overrides": {"haed": {"weight_bits": 4}}}), "'head'",
                        lambda: ai8x.initiate_qat(fresh(), POLICY | {"overrides": {"head": {"weight_bits": 4}}})),
    "a policy's bits": (lambda: ai8x.load_policy({"weight_bits": 3}), "1, 2, 4 or 8", lambda: ai8x.load_policy({"weight_bits": 4})),
    "the device": (lambda: ai8x.set_device(84), r"85 \(MAX78000\)", lambda: ai8x.set_device(85, verbose=False)),
    "a fold": (lambda: ai8x.fold(4)(torch.zeros(3, 6, 6)), "crop or pad", lambda: ai8x.fold(4)(torch.zeros(3, 8, 8))),
    "sample of floats": (lambda: as_codes(np.zeros((1, 2, 6, 6))), r"round\(128·x\)", lambda: as_codes(np.zeros((2, 6, 6), int))),
}  # fmt: skip


class Twice(nn.Module):
    def __init__(self, add):
        super().__init__()
        self.add = add

    def forward(self, x):
        return self.add(x, x)


def fresh_fused():
    net = fresh()
    ai8x.fuse_bn_layers(net)
    return net


def calibrated():
    net = fresh_fused()
    ai8x.pre_qat(net, [pictures()], POLICY)
    return net


def start_before():
    """Started while the device trains, whatever it does now."""
    net = unfused()
    ai8x.fuse_bn_layers(net)
    return net


def with_bits(net):
    ai8x.initiate_qat(net, POLICY)
    return net


def on_87(build):
    ai8x.set_device(87, verbose=False)
    try:
        return build()
    finally:
        ai8x.set_device(85, verbose=False)


def as_codes(values):
    from qatlib.integer.source import sample_codes

    return sample_codes(qatlib.quantize_model(start(fresh())).compact, values)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore:.* is no ai8x layer", "ignore:scaling the layers changed")
def test_the_remedy_works(name):
    fails, words, remedy = TABLE[name]
    with pytest.raises((ValueError, TypeError), match=words):
        fails()
    remedy()


# --- warnings --------------------------------------------------------------------------------------------------------------


class Outside(Small):
    """Both outputs come from layers of their own, so nothing stays scaled."""

    def __init__(self):
        super().__init__()
        self.own = ai8x.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.b(self.a(x))
        return self.own(y), self.head(y.flatten(1))


class Sum(nn.Module):
    def __init__(self, behind=None):
        super().__init__()
        self.a, self.b, self.add, self.behind = ai8x.Conv2d(2, 4, 1), ai8x.Conv2d(2, 4, 1), ai8x.Add(), behind
        with torch.no_grad():
            self.a.op.weight.mul_(8)

    def forward(self, x):
        y = self.add(self.a(x), self.b(x))
        return y if self.behind is None else self.behind(y)


def scaled_up(cls, *arguments):
    torch.manual_seed(0)
    net = cls(*arguments)
    with torch.no_grad():
        (net.b if hasattr(net, "head") else net.a).op.weight.mul_(16)
    return net


WARNED = {
    "an output that feeds a layer": (lambda: start(scaled_up(OnTheWay)), "a layer of its own", lambda: start(scaled_up(Outside))),
    "a sum at the end": (
        lambda: start(scaled_up(Sum)),
        "put a layer behind it",
        lambda: start(scaled_up(Sum, ai8x.Conv2d(4, 4, 1))),
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_the_remedy_of_a_warning_silences_it(name, recwarn):
    warns, words, remedy = WARNED[name]
    with pytest.warns(UserWarning, match=words):
        warns()
    recwarn.clear()
    remedy()
    assert not [w for w in recwarn if words in str(w.message)]


def test_settings_of_the_vendors_kind_do_as_well():
    assert ai8x.normalize(SimpleNamespace(act_mode_8bit=True))(IMAGES).abs().max() > 1
    assert copy.deepcopy(ai8x.normalize())(IMAGES).abs().max() <= 1
