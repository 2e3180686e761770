"""What the chip lacks: refused in one line with a remedy that works, and rewritten where that is asked for by name."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from qatlib import ai8x
from qatlib.port.rewrites import REWRITES

I = (4, 8, 8)


class Net(nn.Module):
    """A few modules, and what `run(self, x)` makes of them; `u` and `v` are those of the case."""

    def __init__(self, run, u=None, v=None):
        super().__init__()
        self.run = run
        self.a, self.b, self.c1 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3)
        self.bn, self.bn1, self.fc = nn.BatchNorm2d(4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.u, self.v = u and u(), v and v()
        for m in self.modules():
            if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and m.running_mean is not None:
                m.running_mean.uniform_(-0.5, 0.5)
                m.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        return self.run(self, x)


def under(*args, **options):
    """The layer `args[0](*args[1:])` behind a convolution, its outputs with a ReLU."""
    return lambda s, x: F.relu(s.u(s.a(x))), lambda: args[0](*args[1:], **options)


# name -> (run, u, v), input shape, device, rewrites, whose result is that of the model (True), or of its shape (False)
OFFERED = {
    "stride": (under(nn.Conv2d, 4, 4, 3, 2, 1), I, 85, ("stride",)),
    "stride, odd size": (under(nn.Conv2d, 4, 4, 3, 2, 1), (4, 9, 9), 85, ("stride",)),
    "stride of 3, no padding": (under(nn.Conv2d, 4, 4, 3, 3), (4, 11, 11), 85, ("stride",)),
    "stride of 1x1": (under(nn.Conv2d, 4, 4, 1, 2), (4, 9, 9), 85, ("stride",)),
    "stride of 1x1, read twice": ((lambda s, x: s.b(s.b(s.u(s.a(x))) + s.u(s.a(x))), lambda: nn.Conv2d(4, 4, 1, 2)), I, 85,
                                ("stride",)),
    "stride in 1D": ((lambda s, x: s.c1(F.relu(s.u(x))), lambda: nn.Conv1d(4, 4, 5, 2, 2)), (4, 17), 85, ("stride",)),
    "stride, then a pool": ((lambda s, x: s.b(F.max_pool2d(s.u(x), 2)), lambda: nn.Conv2d(4, 4, 3, 2, 1)),
     (4, 16, 16), 85, ("stride",)),
    "stride, pooled": (under(nn.Conv2d, 4, 4, 3, 2, 1), I, 85, ("stride_pool",)),
    "2x2, stride 2": (under(nn.Conv2d, 4, 6, 2, 2), I, 85, ("kernel", "stride")),
    "3x1": (under(nn.Conv2d, 4, 6, (3, 1), padding=(1, 0)), I, 85, ("kernel",)),
    "1x3": (under(nn.Conv2d, 4, 6, (1, 3), padding=(0, 1), bias=False), I, 85, ("kernel",)),
    "padding around 1x1": (under(nn.Conv2d, 4, 6, 1, padding=1), I, 85, ("kernel",)),
    "5x5": (under(nn.Conv2d, 4, 6, 5, padding=2), I, 85, ("split",)),
    "7x7, stride 2, batch norm": (
        (lambda s, x: F.relu(s.v(s.u(x))), lambda: nn.Conv2d(4, 6, 7, 2, 3, bias=False), lambda: nn.BatchNorm2d(6)), (4, 32, 32),
        85, ("split", "stride"),
    ),
    "5x5, depthwise": (under(nn.Conv2d, 4, 4, 5, padding=2, groups=4), I, 87, ("split",)),
    "depthwise on 85": (under(nn.Conv2d, 4, 4, 3, padding=1, groups=4), I, 85, ("groups",)),
    "groups on 87": (under(nn.Conv2d, 4, 8, 3, padding=1, groups=2), I, 87, ("groups",)),
    "groups, transposed": (under(nn.ConvTranspose2d, 4, 8, 3, 2, 1, 1, groups=2), I, 85, ("groups",)),
    "groups in 1D": ((lambda s, x: s.u(x), lambda: nn.Conv1d(4, 8, 3, groups=2)), (4, 16), 85, ("groups",)),
    "transposed 2x2": (under(nn.ConvTranspose2d, 4, 6, 2, 2), I, 85, ("transposed",)),
    "transposed 4x4": (under(nn.ConvTranspose2d, 4, 6, 4, 2, 1), I, 85, ("transposed_3x3",)),
    "nearest x2": ((lambda s, x: s.b(F.interpolate(s.a(x), scale_factor=2)),), I, 85, ("upsample",)),
    "nearest to a size": ((lambda s, x: s.b(F.interpolate(s.a(x), size=(32, 32))),), I, 85, ("upsample",)),
    "nearest on 87": ((lambda s, x: s.b(s.u(s.a(x))), lambda: nn.Upsample(scale_factor=2)), I, 87, ("upsample",)),
    "all pixels": ((lambda s, x: s.fc(F.adaptive_avg_pool2d(s.a(x), 1).squeeze()),), I, 85, ("adaptive_pool",)),
    "all of many pixels": ((lambda s, x: s.fc(s.a(x).mean((-1, -2))),), (4, 32, 32), 85, ("adaptive_pool",)),
    "all of a rectangle": ((lambda s, x: s.fc(s.a(x).mean((2, 3), keepdim=True)[:, :, 0, 0]),), (4, 6, 10), 85, ("adaptive_pool",)),
    "largest of all": ((lambda s, x: s.fc(s.a(x).amax((2, 3))),), I, 85, ("adaptive_pool",)),
    "all of a sound": ((lambda s, x: s.fc(s.c1(x).mean(2)),), (4, 18), 85, ("adaptive_pool",)),
    "adaptive 4x4": ((lambda s, x: F.adaptive_max_pool2d(s.a(x), (4, 4)),), I, 85, ("adaptive_pool",)),
    "a window of 32": ((lambda s, x: F.max_pool2d(s.a(x), 32),), (4, 32, 32), 85, ("adaptive_pool",)),
    "padded pool": ((lambda s, x: s.b(F.max_pool2d(s.a(x), 3, 2, 1)),), I, 85, ("padded_pool",)),
    "ReLU after a sum": ((lambda s, x: s.b(F.relu(s.a(x) + x)),), I, 85, ("identity",)),
    "ReLU after a sum, 87": ((lambda s, x: s.b(F.relu(s.a(x) + x)),), I, 87, ("identity",)),
    "ReLU after a sum, dropped": ((lambda s, x: s.b(F.relu(s.a(x) + x)),), I, 85, ("drop_relu",)),
    "ReLU and what it reads": ((lambda s, x: (lambda y: s.b(F.relu(y)) + y)(s.a(x)),), I, 85, ("identity",)),
    "ReLU after an average": ((lambda s, x: s.b(F.relu(F.avg_pool2d(s.a(x), 2))),), I, 85, ("identity",)),
    "batch norm first": ((lambda s, x: x + s.a(F.relu(s.bn(x))),), I, 85, ("identity",)),
    "batch norm last": ((lambda s, x: s.b(s.bn(F.relu(s.a(x)))),), I, 85, ("identity",)),
    "batch norm of features": ((lambda s, x: s.bn1(F.relu(s.fc(x))),), (4,), 85, ("identity",)),
    "batch norm of a sound": ((lambda s, x: s.bn1(F.relu(s.c1(x))),), (4, 16), 85, ("identity",)),
    "a sum comes last": ((lambda s, x: s.a(x) + x,), I, 85, ("identity",)),
    "an average comes last": ((lambda s, x: F.relu(s.a(x)).mean((2, 3)),), I, 87, ("adaptive_pool", "identity")),
    "absolute values of a sum": ((lambda s, x: s.b((s.a(x) + x).abs()),), I, 85, ("identity",)),
    **{f"{name} between": ((lambda s, x: s.b(s.u(s.a(x))), make), I, 85, ("activation",)) for name, make in {
        "leaky ReLU": nn.LeakyReLU, "PReLU": nn.PReLU, "GELU": nn.GELU, "SiLU": nn.SiLU, "ELU": nn.ELU, "Tanh": nn.Tanh,
        "hardswish": nn.Hardswish, "clip": lambda: nn.Hardtanh(-1, 1)}.items()},
    "F.gelu between": ((lambda s, x: s.b(F.gelu(s.a(x))),), I, 85, ("activation",)),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFERED)
def test_what_is_refused_can_be_rewritten_by_name(name):
    how, shape, device, rewrites = OFFERED[name]
    model = Net(*how).eval()
    with pytest.raises(ValueError) as refused:
        ai8x.from_torch(model, shape, device, verbose=False)
    for rewrite in rewrites:
        assert f"; or from_torch(..., rewrite=({rewrite!r},)) [{'exact' if REWRITES[rewrite][0] else 'train again'}" in str(
            refused.value
        )
    net = ai8x.from_torch(model, shape, device, rewrites, verbose=False)
    x = torch.rand(2, *shape) - 0.5
    wanted, found = model(x), net(x)
    assert found.shape == wanted.shape
    if all(REWRITES[rewrite][0] for rewrite in rewrites):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2**-24 * 150 * 16)  # sums of at most 150 products below 16
    ai8x.start_qat(net, [(x,)], {"start_epoch": 0, "weight_bits": 8}, progress=False)
    assert found.shape == net(x).shape


OUTSIDE = {
    "softmax": (lambda s, x: F.softmax(s.fc(x), 1), (4,), lambda y: F.softmax(y, 1)),
    "two operations": (lambda s, x: torch.sigmoid(s.a(x)) * 2, I, lambda y: torch.sigmoid(y) * 2),
    "a reshape": (lambda s, x: torch.sigmoid(s.fc(x).view(-1, 2, 2)), (4,), lambda y: torch.sigmoid(y.view(-1, 2, 2))),
    "enlarged at the end": (lambda s, x: F.interpolate(s.a(x), scale_factor=2, mode="bilinear"), I,
                            lambda y: F.interpolate(y, scale_factor=2, mode="bilinear")),
    "one of two outputs": (lambda s, x: (s.a(x), torch.tanh(s.b(x))), I, None),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_comes_last_can_be_left_out(name):
    run, shape, apply = OUTSIDE[name]
    model = Net(run).eval()
    with pytest.raises(ValueError, match="'outside'"):
        ai8x.from_torch(model, shape, verbose=False)
    net = ai8x.from_torch(model, shape, rewrite="outside", verbose=False)
    x = torch.rand(2, *shape) - 0.5
    found = apply(net(x)) if apply else (net(x)[0], torch.tanh(net(x)[1]))
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(found), tree_leaves(model(x)), strict=True))


def weight_norm():
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))


def tied():
    return nn.Sequential(first := nn.Conv2d(4, 4, 1), nn.ReLU(), second := nn.Conv2d(4, 4, 1)), setattr(
        second, "weight", first.weight
    )


# the case; what the sentence says; the same with the remedy carried out
FIXED = [
    (Net(lambda s, x: s.b(s.a(x) * 2)), I, "mul.*outside the network", Net(lambda s, x: s.b(s.a(x)))),
    (Net(lambda s, x: s.b(s.a(x) + 1)), I, "with a constant; .* bias", Net(lambda s, x: s.b(s.a(x)))),
    (Net(lambda s, x: s.b(torch.add(s.a(x), x, alpha=2))), I, "alpha=2; add tensors of one shape",
     Net(lambda s, x: s.b(s.a(x) + x + x))),
    (Net(lambda s, x: s.a(x) + F.avg_pool2d(x, 8)), I, r"shapes \(4, 8, 8\) and \(4, 1, 1\); add tensors of one shape",
     Net(lambda s, x: s.b(s.a(x) + x))),
    (Net(lambda s, x: s.b(torch.cat([s.a(x), s.b(x)], 2))), I, "axis 2; .*dim=1",
     Net(lambda s, x: torch.cat([s.a(x), s.b(x)], 2))),
    (Net(lambda s, x: s.a(x).chunk(2, 1)[0]), I, "chunk; give each part a convolution", Net(lambda s, x: s.a(x))),
    (Net(lambda s, x: s.fc(s.a(x).mean(3).mean(2))), I, r"x.mean\(\(2, 3\)\)",
     Net(lambda s, x: s.fc(F.avg_pool2d(s.a(x), 8).flatten(1)))),
    (Net(lambda s, x: F.adaptive_avg_pool2d(s.a(x), 3)), (4, 7, 7), "differ, or are too large; choose sizes that divide",
     Net(lambda s, x: F.adaptive_avg_pool2d(s.a(x), 7))),
    (Net(lambda s, x: F.max_pool2d(s.a(x), 2, ceil_mode=True)), (4, 7, 7), "use padding=0, ceil_mode=False",
     Net(lambda s, x: F.max_pool2d(s.a(x), 2, ceil_mode=False))),
    (Net(lambda s, x: F.max_pool2d(s.a(x), 2, return_indices=True)[0]), I, "return_indices=False",
     Net(lambda s, x: F.max_pool2d(s.a(x), 2))),
    (Net(lambda s, x: F.avg_pool2d(s.a(x), 2, divisor_override=3)), I, "divisor_override; build it without",
     Net(lambda s, x: s.b(F.avg_pool2d(s.a(x), 2)))),
    (Net(lambda s, x: s.fc(s.a(x))), (4, 8, 4), "reads rows of .*1x1 convolution",
     Net(lambda s, x: s.u(s.a(x)), lambda: nn.Conv2d(4, 4, 1))),
    (Net(lambda s, x: s.u(x), lambda: nn.Linear(2000, 4)), (2000,), "in_features=2000 is not in 1..1024; pool further",
     Net(lambda s, x: s.fc(F.avg_pool2d(s.a(x), 8).flatten(1)), None)),
    (Net(lambda s, x: F.conv2d(x, s.a.weight)), I, "use the module of torch.nn", Net(lambda s, x: s.a(x))),
    (Net(lambda s, x: s.b(F.interpolate(s.a(x), scale_factor=2, mode="bilinear"))), I, "or nn.ConvTranspose2d",
     Net(lambda s, x: s.u(x), lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, 1))),
    (Net(lambda s, x: s.u(x), lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1)), I, r"ConvTranspose2d\(..., 3, 2, 1, output_padding=1\)",
     Net(lambda s, x: s.u(x), lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1))),
    (Net(lambda s, x: s.u(x), lambda: nn.ConvTranspose1d(4, 4, 2, 2)), (4, 8), "ConvTranspose2d, or keep the length",
     Net(lambda s, x: s.c1(x))),
    (Net(lambda s, x: s.u(x), lambda: nn.Conv1d(4, 4, 11)), (4, 32), "kernel_size=11 is not in 1..9; use two layers",
     Net(lambda s, x: s.v(s.u(x)), lambda: nn.Conv1d(4, 4, 9), lambda: nn.Conv1d(4, 4, 3))),
    (Net(lambda s, x: s.u(x), lambda: nn.Conv2d(4, 4, 3, dilation=2)), I, "dilation=.*use 1", Net(lambda s, x: s.b(x))),
    (Net(lambda s, x: s.u(x), lambda: nn.Conv2d(4, 4, 2, padding="same")), I, "use an odd kernel",
     Net(lambda s, x: s.u(x), lambda: nn.Conv2d(4, 4, 3, padding="same"))),
    (Net(lambda s, x: s.u(x), lambda: nn.Conv2d(4, 4, 1, padding=1)), I, "padding smaller than the kernel",
     Net(lambda s, x: s.u(x), lambda: nn.Conv2d(4, 4, 1, padding="valid"))),
    (Net(lambda s, x: s.u(s.v(x)), lambda: nn.Conv2d(4, 4, 3), lambda: nn.ZeroPad2d(1)), I, r"the convolution pad \(padding=1\)",
     Net(lambda s, x: s.a(x))),
    (Net(lambda s, x: s.u(s.a(x)), lambda: nn.BatchNorm2d(4, track_running_stats=False)), I, "track_running_stats=True",
     Net(lambda s, x: s.u(s.a(x)), lambda: nn.BatchNorm2d(4, track_running_stats=True))),
    (Net(lambda s, x: s.bn(s.b(s.bn(s.a(x))))), I, "follows a and b; give each layer a batch norm of its own",
     Net(lambda s, x: s.u(s.b(s.bn(s.a(x)))), lambda: nn.BatchNorm2d(4))),
    (Net(lambda s, x: s.a(F.relu(s.a(x)))), I, "2 calls differ .* give each call a module", Net(lambda s, x: s.b(F.relu(s.a(x))))),
    (Net(lambda s, x: s.u(x), weight_norm), I, "remove_parametrizations",
     Net(lambda s, x: s.u(x), lambda: nn.utils.parametrize.remove_parametrizations(weight_norm(), "weight"))),
    (Net(lambda s, x: s.u(x), lambda: tied()[0]), I, "shares its weights with u.0; call one module twice",
     Net(lambda s, x: F.relu(s.b(F.relu(s.b(F.relu(s.a(x)))))))),
    (Net(lambda s, x: F.dropout(s.a(x))), I, r"write F.dropout\(x, p, training=self.training\)",
     Net(lambda s, x: F.dropout(s.a(x), training=s.training))),
    (Net(lambda s, x: s.u(s.a(x).view(-1, 16, 4, 4)), lambda: nn.Conv2d(16, 4, 1)), I, "reshape; keep the channels",
     Net(lambda s, x: s.b(s.a(x).view(-1, 4, 16, 4)).view(-1, 16, 4, 4))),
    (Net(lambda s, x: s.b(s.a(x).permute(0, 1, 3, 2))), I, "permute; keep the channels, .* behind the last layer",
     Net(lambda s, x: s.b(s.a(x)).permute(0, 1, 3, 2))),
    (Net(lambda s, x: (s.a(x), s.a.bias)), I, "a constant or parameter", Net(lambda s, x: s.a(x))),
    (Net(lambda s, x: None), I, "forward returns no tensor", Net(lambda s, x: s.a(x))),
    (Net(lambda s, x: s.u(x.transpose(1, 2))[0], lambda: nn.LSTM(4, 4)), (4, 16), "lstm; use 1D convolutions",
     Net(lambda s, x: s.c1(x))),
    (Net(lambda s, x: s.u(x, x, x)[0], lambda: nn.MultiheadAttention(16, 2)), (4, 16), "multiheadattention; build",
     Net(lambda s, x: s.c1(x))),
]  # fmt: skip


@pytest.mark.parametrize(("model", "shape", "sentence", "fixed"), FIXED, ids=[sentence for _, _, sentence, _ in FIXED])
def test_what_cannot_be_rewritten_is_refused_with_a_remedy_that_works(model, shape, sentence, fixed):
    with pytest.raises(ValueError, match=sentence) as refused:
        ai8x.from_torch(model, shape, 85, verbose=False)
    assert "\n- " in str(refused.value)
    shapes = [shape, I, (4, 8)]
    rewrites = ("adaptive_pool",) if "divide" in sentence else ()
    assert any(_works(fixed, s, rewrites) for s in shapes)


def _works(model, shape, rewrites) -> bool:
    try:
        net = ai8x.from_torch(model.eval(), shape, 85, rewrites, verbose=False)
    except ValueError as problem:
        assert "does not accept inputs" in str(problem), problem
        return False
    x = torch.rand(2, *shape) - 0.5
    return torch.allclose(net.eval()(x), model(x), atol=1e-5)


def test_every_rewrite_has_its_test():
    assert {name for *_, rewrites in OFFERED.values() for name in rewrites} | {"outside"} == {*REWRITES}


def test_all_refusals_come_at_once_and_one_call_can_answer_them():
    layers = [
        nn.Conv2d(4, 4, 5, 2, 2),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(4, 4, 2, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Softmax(1),
    ]
    model = nn.Sequential(*layers)
    with pytest.raises(ValueError) as refused:
        ai8x.from_torch(model, (4, 16, 16), verbose=False)
    text = str(refused.value)
    assert [line.split()[1] for line in text.splitlines() if line.startswith("- ")] == ["0", "0", "1", "2", "3", "3", "5"]
    names = eval(re.search(r"all of them: from_torch\(\.\.\., rewrite=(.*)\)", text)[1])
    net = ai8x.from_torch(model, (4, 16, 16), rewrite=names, verbose=False)
    assert net(torch.rand(2, 4, 16, 16)).shape == (2, 4)


BAD = [
    (lambda: ai8x.from_torch("net", I), TypeError, "the model is a str; give a torch module"),
    (lambda: ai8x.from_torch(nn.Conv2d(4, 4, 1), 8), TypeError, "input_shape is 8; give"),
    (lambda: ai8x.from_torch(nn.Conv2d(4, 4, 1), (1, 4, 8, 8)), ValueError, "without batch"),
    (lambda: ai8x.from_torch(nn.Conv2d(4, 4, 1), (4, 0, 8)), ValueError, "whole numbers above 0"),
    (lambda: ai8x.from_torch(nn.Conv2d(4, 4, 1), (3, 8, 8)), ValueError, r"does not accept inputs of shape \(3, 8, 8\)"),
    (lambda: ai8x.from_torch(nn.Conv2d(4, 4, 1), I, 84), ValueError, "84 is not supported"),
    (lambda: ai8x.from_torch(nn.Conv2d(4, 4, 1), I, rewrite=("strides",)), ValueError, "'strides' is unknown; there are stride, "),
    (lambda: ai8x.from_torch(nn.Conv2d(4, 4, 1).half(), I), ValueError, r"weight is torch.float16; .* model.float\(\)"),
    (lambda: ai8x.from_torch(nn.LazyConv2d(4, 1), I), ValueError, "weight has no values yet; call the model once"),
    (lambda: ai8x.from_torch(Net(lambda s, x: s.a(x) if x.sum() > 0 else x), I),
     ValueError, "must not decide, .* move the decision into __init__"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "sentence"), BAD)
def test_bad_input(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
