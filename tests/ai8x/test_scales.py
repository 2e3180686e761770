"""The graph of a network, and thresholds where branches meet: the float function must not change by one bit."""

import copy
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qatlib.ai8x as ai8x
from qatlib.ai8x.graph import trace
from qatlib.ai8x.scales import apply_scales
from qatlib.chip.shapes import shaped

pytestmark = pytest.mark.usefixtures("one_thread")

POLICY = {"weight_bits": 8}


def conv(*args, gain=1.0, **kwargs):
    layer = ai8x.FusedConv2dReLU(*args, **kwargs)
    layer.op.weight.data.mul_(gain)
    return layer


def scaled(net, thresholds, vendor_exact=False, bias=True):
    """Set thresholds by hand, apply scales; returns (net, float output before, output after) on random inputs."""
    for module in net.modules():
        if getattr(module, "op", None) is not None:
            module.op.bias.data.uniform_(-1, 1).mul_(bias)
    x = torch.rand(2, 3, 6, 6) * 2 - 1
    with torch.no_grad():
        before = net(x)
        for name, value in thresholds.items():
            net.get_submodule(name).activation_threshold.fill_(value)
        apply_scales(net, vendor_exact=vendor_exact)
        return net, before, net(x)


def thresholds(net):
    return {n: m.activation_threshold.item() for n, m in net.named_modules() if isinstance(m, ai8x.QuantizationAwareModule)}


# --- graph -----------------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.fold = ai8x.fold(2)
        self.block = nn.Sequential(conv(12, 4, 3, padding=1), ai8x.MaxPool2d(2))
        self.shared = conv(4, 4, 3, padding=1)
        self.add = ai8x.Add()
        self.relu = nn.ReLU()
        self.fc = ai8x.Linear(8 * 9, 5, wide=True)

    def forward(self, x):
        x = self.block(self.fold(x))
        y = self.shared(self.shared(x))
        z = torch.cat([self.add(x, y), self.relu(x + y)], dim=1)
        return self.fc(z.view(z.size(0), -1)), F.relu(y)


def test_trace_names_kinds_inputs_and_shapes():
    graph = shaped(Everything(), (3, 12, 12))
    nodes = {node.name: node for node in graph}
    assert len(nodes) == len(graph)
    assert [n.name for n in graph] == [
        "input", "fold_batch", "block.0", "block.1", "shared", "shared@1", "add", "add@1", "relu", "cat", "view", "fc", "relu@1",
    ]  # fmt: skip
    assert [n.kind for n in graph] == (
        ["input", "other"] + ["layer"] * 4 + ["eltwise", "other", "other", "cat", "view", "layer", "other"]
    )
    assert nodes["shared@1"].module == "shared" and nodes["shared@1"].inputs == ("shared",)
    assert nodes["add"].inputs == ("block.1", "shared@1")
    assert (nodes["cat"].inputs, nodes["cat"].axis, nodes["cat"].shape) == (("add", "relu"), 1, (8, 3, 3))
    assert nodes["view"].inputs == ("cat",) and nodes["view"].shape == (72,)
    assert graph.outputs == ("fc", "relu@1")


def test_trace_leaves_the_model_as_it_was():
    net = Everything().train()
    net.fc.eval()
    before = copy.deepcopy(net.state_dict())
    shaped(net, (3, 12, 12))
    assert net.training and net.block[0].training and not net.fc.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


class Folded(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(12, 12, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.conv(ai8x.fold(2)(x))
        return torch.flatten(ai8x.unfold_batch(y, 2).reshape(b, c, h, w), 1)


def test_fold_unfold_and_shapes_inside_forward():
    graph = shaped(Folded(), (3, 6, 6))
    assert [n.target for n in graph] == ["x", "fold_batch", "FusedConv2dReLU", "unfold_batch", "reshape", "flatten"]
    assert [n.kind for n in graph][-2:] == ["view", "flatten"] and graph[-1].shape == (108,)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(3, 3, 1)

    def forward(self, x):
        return self.conv(x) if x.mean() > 0 else x


def test_control_flow_is_refused_with_a_remedy_before_the_long_pass():
    with pytest.raises(ValueError, match="graph of Branching cannot be traced .* move the decision into __init__"):
        trace(Branching())
    seen = []
    with pytest.raises(ValueError, match="cannot be traced"):
        ai8x.pre_qat(Branching(), (seen.append(1) or torch.rand(1, 3, 4, 4) for _ in range(3)), POLICY)
    assert not seen


def test_wrong_input_shape_is_named():
    with pytest.raises(ValueError, match=r"does not accept inputs of shape \(4, 6, 6\)"):
        shaped(Folded(), (4, 6, 6))


def test_single_layer_and_wrapped_models():
    assert [n.kind for n in shaped(ai8x.Conv2d(3, 4, 1), (3, 2, 2))] == ["input", "layer"]
    assert len(trace(nn.DataParallel(Everything()))) == len(trace(Everything()))


# --- scales ----------------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Executed a, b, c; defined in any order."""

    def __init__(self, order="abc", wide=False):
        super().__init__()
        for name in order:
            self.add_module(name, ai8x.Conv2d(3, 3, 1, wide=True) if wide and name == "c" else conv(3, 3, 1))

    def forward(self, x):
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("vendor_exact", [False, True])
def test_chain(wide, vendor_exact):
    net, before, after = scaled(Chain(wide=wide), {"a": 2, "b": -1, "c": 4}, vendor_exact)
    assert thresholds(net) == {"a": 2, "b": -3, "c": 5}
    assert [net.a.final_scale, net.b.final_scale, net.c.final_scale] == [0, 0, -1 if wide else 4]
    assert torch.equal(before, after)


def test_definition_order_does_not_matter():
    for order in ("abc", "cba", "bca"):
        net, before, after = scaled(Chain(order), {"a": 1, "b": 4, "c": 2})
        assert torch.equal(before, after), order
        assert [net.a.final_scale, net.b.final_scale] == [0, 0]


def test_definition_order_as_the_vendor_has_it():
    net, before, after = scaled(Chain("cba"), {"a": 1, "b": 4, "c": 2}, vendor_exact=True, bias=False)
    assert before.abs().max() > 0 and torch.equal(after, before * 16)  # b keeps its final_scale of 4


def test_one_layer_network_restores_its_output():
    net, before, after = scaled(ai8x.Conv2d(3, 4, 1), {"": 1})
    assert torch.equal(before, after) and net.final_scale == 1
    net, before, after = scaled(nn.Sequential(ai8x.Conv2d(3, 4, 1)), {"0": 1}, vendor_exact=True)
    assert torch.equal(after, before / 2) and net[0].final_scale == 0


class TwoCats(nn.Module):
    """M(cat(B, C)) runs before L(cat(A, B)), but L is defined first: one sweep leaves A behind."""

    def __init__(self):
        super().__init__()
        self.A, self.B, self.C = (conv(3, 4, 1) for _ in range(3))
        self.L, self.M = ai8x.Conv2d(8, 2, 1), ai8x.Conv2d(8, 2, 1)

    def forward(self, x):
        a, b, c = self.A(x), self.B(x), self.C(x)
        m = self.M(torch.cat((b, c), 1))
        return self.L(torch.cat((a, b), 1)), m


def test_equalisation_runs_to_a_fixpoint():
    net, before, after = scaled(TwoCats(), {"A": 1, "B": 0, "C": 4, "L": 2, "M": 2})
    assert {thresholds(net)[n] for n in "ABC"} == {4}
    assert all(torch.equal(b, a) for b, a in zip(before, after))


def test_equalisation_as_the_vendor_has_it():
    net, before, after = scaled(TwoCats(), {"A": 1, "B": 0, "C": 4, "L": 2, "M": 2}, vendor_exact=True)
    assert [thresholds(net)[n] for n in "ABC"] == [1, 4, 4]
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])


class Residual(nn.Module):
    def __init__(self, plain=False):
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 4, 1), conv(4, 4, 1), conv(4, 4, 1), ai8x.Conv2d(4, 2, 1)
        self.add1, self.add2, self.plain = ai8x.Add(), ai8x.Sub(), plain

    def forward(self, x):
        x = self.a(x)
        y = x + self.b(x) if self.plain else self.add1(x, self.b(x))
        return self.head(self.add2(y, self.c(y)))


@pytest.mark.parametrize("vendor_exact", [False, True])
def test_chained_sums_share_the_last_sums_threshold(vendor_exact):
    given = {"a": 1, "b": 2, "c": 0, "add1": 3, "add2": 2, "head": 1}
    net, before, after = scaled(Residual(), given, vendor_exact)
    assert torch.equal(before, after)
    assert thresholds(net) == {"a": 2, "b": 0, "c": 0, "head": -1} and net.head.final_scale == 1


def test_python_plus_is_exact_but_warned_about():
    with pytest.warns(UserWarning, match=r"add .* is no ai8x layer.* use ai8x.Add\(\)"):
        net, before, after = scaled(Residual(plain=True), {"a": 1, "b": 3, "c": 0, "add2": 2})
    assert torch.equal(before, after)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.shared, self.head = conv(3, 3, 1), conv(3, 3, 1), ai8x.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.head(self.shared(self.shared(self.first(x))))


def test_shared_layers_keep_the_scale_of_their_input():
    net, before, after = scaled(Shared(), {"first": 1, "shared": 3, "head": 2})
    assert torch.equal(before, after)
    assert thresholds(net) == {"first": 3, "shared": 0, "head": -1}


class InputMeets(nn.Module):
    def __init__(self, wide=False):
        super().__init__()
        self.a, self.head = conv(3, 4, 1), ai8x.Conv2d(7, 2, 1, wide=wide)

    def forward(self, x):
        return self.head(torch.cat((x, self.a(x)), 1))


@pytest.mark.parametrize("wide", [False, True])
def test_what_meets_the_input_stays_unscaled(wide):
    with pytest.warns(UserWarning, match="a meets the network's input .* though they reach 8"):
        net, before, after = scaled(InputMeets(wide), {"a": 3, "head": 1})
    assert torch.equal(before, after) and net.a.activation_threshold == 0
    net, before, after = scaled(InputMeets(wide), {"a": 3, "head": 1}, vendor_exact=True)
    assert not torch.equal(before, after) and net.a.activation_threshold == 3


class PlainInside(nn.Module):
    """Ordinary torch layers between ai8x layers read and give real values."""

    def __init__(self):
        super().__init__()
        self.a, self.plain, self.b = conv(3, 4, 1), nn.Conv2d(4, 4, 1), conv(4, 4, 1)
        self.weight = nn.Parameter(torch.randn(2, 4, 1, 1))

    def forward(self, x):
        return F.conv2d(self.b(self.plain(self.a(x))), self.weight)


def test_plain_convolutions_in_between():
    net, before, after = scaled(PlainInside(), {"a": 3, "b": 2})
    assert torch.equal(before, after)
    assert [net.a.final_scale, net.b.final_scale] == [3, 2]


class WideInside(nn.Module):
    """A wide layer's output is not divided by its threshold, so it is restored at once."""

    def __init__(self):
        super().__init__()
        self.a, self.wide, self.head = conv(3, 4, 1), ai8x.Conv2d(4, 4, 1, wide=True), ai8x.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.wide(self.a(x)))


def test_wide_layers_in_between():
    net, before, after = scaled(WideInside(), {"a": 3, "wide": 2, "head": 1})
    assert torch.equal(before, after)
    assert [net.a.final_scale, net.wide.final_scale, net.head.final_scale] == [0, 3, 1]


class Intermediate(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head, self.add = conv(3, 4, 1), ai8x.Conv2d(4, 4, 1), ai8x.Add()

    def forward(self, x):
        x = self.a(x)
        return self.add(self.head(x), self.head(x)), x


def test_outputs_that_cannot_be_restored_are_named():
    with pytest.warns(UserWarning) as caught:
        net, before, after = scaled(Intermediate(), {"a": 3, "head": 2, "add": 2})
    messages = sorted(str(w.message) for w in caught)
    assert "a is an output of the network and feeds another layer" in messages[0] and "divided by 2^3" in messages[0]
    assert "add is the last operation" in messages[1] and len(messages) == 2
    assert torch.equal(before[0], after[0]) and torch.equal(before[1] / 8, after[1])


class Sigmoid(nn.Module):
    def __init__(self, plain=False):
        super().__init__()
        self.a, self.b = conv(3, 4, 1, gain=20), ai8x.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.b(torch.sigmoid(self.a(x)))


def test_operations_that_do_not_scale_are_noticed():
    with pytest.warns(UserWarning, match="changed the network's output by .* operations that commute with scaling"):
        ai8x.pre_qat(Sigmoid(), [torch.rand(4, 3, 6, 6)], POLICY)


class RandomNet(nn.Module):
    """A random program of layers, sums, concatenations, pools and shared layers; modules defined in shuffled order."""

    def __init__(self, seed):
        super().__init__()
        rng = random.Random(seed)
        made, self.program, count = {}, [], 2
        made["first"] = conv(3, 4, 1)
        for i in range(rng.randint(2, 9)):
            kind = rng.choice(("conv", "conv", "add", "sub", "cat", "shared", "pool", "abs"))
            x, y = rng.randrange(1, count), rng.randrange(0 if kind == "cat" else 1, count)
            name = f"{kind}{i}"
            if kind == "shared":
                name = rng.choice([n for n in made if n.startswith("conv")] or ["first_again"])
                made.setdefault(name, conv(4, 4, 3, padding=1))
            elif kind in ("add", "sub"):
                made[name] = ai8x.Add() if kind == "add" else ai8x.Sub()
            elif kind == "cat":
                made[name] = ai8x.FusedConv2dReLU(4 + (4 if y else 3), 4, 1)
            elif kind != "pool":
                made[name] = (ai8x.FusedConv2dAbs if kind == "abs" else ai8x.FusedConv2dReLU)(4, 4, 3, padding=1)
            self.program.append((kind, name, x, y))
            count += 1
        made["head"] = ai8x.Conv2d(4, 2, 1, wide=rng.random() < 0.5)
        for name in rng.sample(sorted(made), len(made)):
            self.add_module(name, made[name])
            if getattr(made[name], "op", None) is not None:
                made[name].op.weight.data.mul_(2.0 ** rng.uniform(-2, 3))

    def forward(self, x):
        values = [x, self.first(x)]
        for kind, name, i, j in self.program:
            if kind == "pool":
                y = F.max_pool2d(values[i], 3, stride=1, padding=1)
            elif kind in ("add", "sub"):
                y = self.get_submodule(name)(values[i], values[j])
            elif kind == "cat":
                y = self.get_submodule(name)(torch.cat((values[i], values[j]), 1))
            else:
                y = self.get_submodule(name)(values[i])
            values.append(y)
        return self.head(values[-1])


@pytest.mark.parametrize("seed", range(30))
def test_random_networks_keep_their_float_function_to_the_bit(seed):
    torch.manual_seed(seed)
    net = RandomNet(seed).eval()
    x = torch.rand(2, 3, 6, 6) * 2 - 1
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # clipping beside the input, measured elsewhere
        before = net(x)
        ai8x.pre_qat(net, [(x, 0), (x / 2, 1)], POLICY)
        assert torch.equal(net(x), before)
    assert before.abs().max() > 0
