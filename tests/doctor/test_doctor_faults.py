"""The doctor on networks that it has never seen: healthy ones are called so, each fault has its name, each remedy works."""

import math
import operator

import pytest
import torch
import torch.nn.functional as F
from shapes import BITS, SHAPES, data, in_float, pictures, quantized, right, train
from torch import nn

from qatlib import ai8x
from qatlib.doctor import diagnose
from qatlib.doctor.advice import ADVICE
from qatlib.export import quantize_checkpoint
from qatlib.integer import quantize_model
from qatlib.quantizers import round_half_up

pytestmark = pytest.mark.usefixtures("one_thread")

POLICY = {"weight_bits": 8}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_healthy_networks_have_no_problem(shape, bits):
    net, (x, y) = quantized(shape, bits), data(shape, 64, seed=5)
    sound = right(in_float(shape), x, y)
    assert sound > 0.55 and right(net, x, y) > (0.8 if bits > 2 else 0.55) * sound
    for seen in (diagnose(net, x), diagnose(net, x[:1]), diagnose(net)):
        assert seen.healthy, str(seen)


@pytest.mark.parametrize("shape", SHAPES)
def test_diagnosing_leaves_the_network_as_it_was(shape):
    net, x = quantized(shape).train(), data(shape)[0]
    first = next(net.children())
    first.eval()
    modes = [m.training for m in net.modules()]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    diagnose(net, x)
    with pytest.raises(ValueError, match="cannot run on x"):
        diagnose(net, x[:, :1])
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


# --- faults ---------------------------------------------------------------------------------------------------------------


class Apply(nn.Module):
    """A plain function among the layers."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def behind(name, module):
    """Put `module` behind the layer `name`."""
    plain = module if isinstance(module, nn.Module) else Apply(module)
    return lambda net: net.set_submodule(name, nn.Sequential(net.get_submodule(name), plain.eval()))


def instead(name, function):
    return lambda net: setattr(net, name, Apply(function))


def state(name, key, value):
    """Write `value` through `.data`, which no version counter sees, and read it anew."""

    def change(net):
        getattr(net.get_submodule(name), key).data.fill_(value)
        ai8x.update_model(net)

    return change


def threshold(name, by, compensated=()):
    """Change a threshold; layers in `compensated` read it and are given the right bias and threshold."""

    def change(net):
        with torch.no_grad():
            net.get_submodule(name).activation_threshold += by
            for reader in map(net.get_submodule, compensated):
                reader.activation_threshold -= by
                if reader.wide:
                    reader.final_scale += by
                if reader.op.bias is not None:
                    reader.op.bias.mul_(2.0**-by)

    return change


def weights(name, change):
    def apply(net):
        with torch.no_grad():
            change(net.get_submodule(name).op)

    return apply


def dead_channels(op):
    op.weight[:-1], op.bias[:-1] = 0.0, 0.0


def one_big_bias(op):
    op.bias[0] = -64 * op.weight.abs().max()


def aux(net):
    net.aux = ai8x.Conv2d(8, 2, 1, weight_bits=8, bias_bits=8, quantize_activation=True)
    plain = type(net).forward

    class Auxiliary(type(net)):
        def forward(self, x):
            return (plain(self, x), self.aux(self.trunk(x))) if self.training else plain(self, x)

    net.__class__ = Auxiliary


def undecided(net):
    plain = type(net).forward

    class Undecided(type(net)):
        def forward(self, x):
            return plain(self, x) if x.mean() > -5 else x

    net.__class__ = Undecided


def simulated_start(net):
    ai8x.set_device(85, simulate=True, verbose=False)
    ai8x.initiate_qat(net, POLICY)
    ai8x.set_device(85, simulate=False, verbose=False)
    ai8x.update_model(net)


def diverged(net):
    """The output layer, too, computes nonsense after some steps with a rate a thousand times too high."""
    train(net, *data("Plain"), 6, 30.0)


def integers(net):
    net.load_state_dict(quantize_checkpoint(net.state_dict()))
    ai8x.update_model(net)


def weak(net):
    net.head.op.weight.data.mul_(0.1)
    return net


def one_map(net):
    net.head = ai8x.Conv2d(8, 1, 1, wide=True, weight_bits=8, bias_bits=8, quantize_activation=True)
    net.head.op.weight.data.clamp_(-0.1, 0.1)
    net.head.op.bias.data.zero_()


def float_state(shape):
    def load(net):
        net.__dict__.update(in_float(shape).__dict__)

    return load


def float_with_bits(net):
    float_state("Plain")(net)
    ai8x.initiate_qat(net, POLICY)


def initiate(net, **policy):
    ai8x.initiate_qat(net, POLICY | policy)
    return net


def update(net):
    ai8x.update_model(net)
    return net


def restart(net):
    """From the float checkpoint, as many remedies say."""
    shape = next(cls.__name__ for cls in type(net).__mro__ if cls.__name__ in SHAPES)
    fresh = in_float(shape)
    ai8x.set_device(getattr(fresh, "device", 85), simulate=False, verbose=False)
    ai8x.start_qat(fresh, [data(shape)[0]], POLICY, progress=False)
    return fresh


def wide(net):
    """The float network with a wide head, trained on, started anew."""
    fresh = in_float(type(net).__name__)
    fresh.head.wide = True
    ai8x.start_qat(fresh, [data(type(net).__name__)[0]], POLICY, progress=False)
    return fresh


def gain(net):
    net.head_gain = lambda: torch.exp2(net.head.weight_shift())
    return net


BETWEEN = {
    "batch norm": ("Plain", behind("second", nn.BatchNorm2d(12)), "second.1"),
    "convolution": ("Residual", behind("tail", nn.Conv2d(8, 8, 1)), "tail.1"),
    "linear": ("Keywords", lambda net: setattr(net, "head", nn.Sequential(nn.Linear(48, 48), net.head)), "head.0"),
    "F.relu": ("UNet", behind("up", F.relu), "relu"),
    "nn.ReLU": ("Heads", behind("trunk", nn.ReLU()), "trunk.1"),
    "relu6": ("Plain", behind("first", nn.ReLU6()), "first.1"),
    "sigmoid": ("Autoencoder", behind("small", torch.sigmoid), "sigmoid"),
    "softmax": ("Shared", behind("wider", nn.Softmax(dim=1)), "wider.1"),
    "tanh": ("Depthwise", behind("point", torch.tanh), "tanh"),
    "upsample": ("Plain", behind("first", nn.Sequential(nn.Upsample(scale_factor=2), nn.MaxPool2d(2))), "first.1.0"),
    "interpolate": ("Plain", behind("first", lambda x: F.interpolate(x, size=(12, 12))), "interpolate"),
    "plain pool": ("Depthwise", behind("stem", nn.MaxPool2d(3, 1, 1)), "stem.1"),
    "layer norm": ("Keywords", behind("two", nn.LayerNorm(16)), "two.1"),
    "multiplication": ("Residual", behind("stem", lambda x: x * 0.5), "mul"),
    "gelu": ("Heads", behind("deep", nn.GELU()), "deep.1"),
}
REFUSED = {
    "roll": ("Plain", behind("first", lambda x: x.roll(1, 2)), "roll"),
    "permute": ("Plain", behind("first", lambda x: x.permute(0, 1, 3, 2)), "permute"),
    "wide in the middle": ("Autoencoder", lambda net: setattr(net.down, "wide", True), "down"),
    "concatenated rows": ("UNet", lambda net: setattr(net, "join", nn.Sequential(Apply(lambda x: torch.cat((x, x), 2)), net.join)),
                          "cat@1"),
}  # fmt: skip
SUMS = {"+": lambda a, b: a + b, "torch.add": torch.add, "iadd": operator.iadd, "sub": operator.sub,
        "add_": lambda a, b: a.add_(b), "sum()": lambda a, b: sum((a, b))}  # fmt: skip

# name -> (shape, what is broken, the finding, whether the numbers change)
FAULTS = {
    **{f"between: {name}": (shape, fault, "foreign layer", name not in ("F.relu", "nn.ReLU", "relu6", "upsample", "interpolate"))
       for name, (shape, fault, _) in BETWEEN.items()},
    **{f"refused: {name}": (shape, fault, "refused by export", True) for name, (shape, fault, _) in REFUSED.items()},
    **{f"sum: {name}": ("Residual", instead("add", function), "plain sum", None) for name, function in SUMS.items()},
    "a sum at the end": ("UNet", lambda net: behind("head", lambda y: y + y.roll(1, 1))(net), "plain sum", True),
    "untraceable": ("Heads", undecided, "graph", False),
    "bits behind its back": ("Plain", lambda net: net.third.weight_bits.data.fill_(4), "stale flags", False),
    "off behind its back": ("Keywords", lambda net: net.two.quantize_activation.data.fill_(False), "stale flags", False),
    "other weight bits": ("UNet", lambda net: net.up.weight_bits.fill_(4), "bits", True),
    "other bias bits": ("Plain", state("second", "bias_bits", 2), "bits", True),
    "three bits": ("Heads", lambda net: (state("trunk", "weight_bits", 3)(net), state("trunk", "bias_bits", 3)(net)), "bits", True),
    "activations off": ("Shared", state("wider", "quantize_activation", False), "QAT partly off", True),
    "both clamps off": ("Plain", lambda net: (state("first", "quantize_activation", False)(net),
                        state("first", "clamp_activation", False)(net)), "QAT partly off", True),
    "an average off": ("Keywords", state("pool", "quantize_activation", False), "QAT partly off", True),
    "weights off": ("Depthwise", lambda net: net.depth.init_module(None, None, False), "QAT partly off", True),
    "all off": ("Plain", lambda net: [layer.init_module(None, None, False) for layer in net.children()], "QAT never started", True),
    "float": ("Keywords", float_state("Keywords"), "QAT never started", True),
    "batch norm left": ("Plain", float_with_bits, "batch norm not fused", True),
    "clamp off": ("Residual", lambda net: (threshold("body", -2)(net), net.add.set_clamp(False)), "clamp missing", True),
    "simulated start": ("Plain", simulated_start, "simulated start", True),
    "integers": ("Heads", integers, "wrong checkpoint", True),
    "threshold of a sum": ("Residual", threshold("body", 2), "unequal scales", True),
    "threshold of a concatenation": ("UNet", threshold("up", 1), "unequal scales", True),
    "threshold of a loop": ("Shared", threshold("again", 1), "unequal scales", True),
    "threshold in a chain": ("Depthwise", threshold("depth", 1), "changed threshold", True),
    "final scale": ("Keywords", state("head", "final_scale", 5.0), "changed threshold", True),
    "half a threshold": ("Plain", state("first", "activation_threshold", 0.5), "threshold", True),
    "threshold -inf": ("UNet", state("bottom", "activation_threshold", -math.inf), "threshold", True),
    "levels wasted": ("Plain", threshold("first", 5, ["second"]), "wasted levels", True),
    "levels wasted in one dimension": ("Keywords", threshold("one", 5, ["two"]), "wasted levels", True),
    "levels wasted in two branches": ("Residual", lambda net: (threshold("left", 5)(net), threshold("right", 5, ["tail"])(net)),
                                      "wasted levels", True),
    "clipped": ("Heads", threshold("trunk", -4, ["deep"]), "clipping", True),
    "clipped, shared": ("Plain", threshold("third", -3, ["head"]), "clipping", True),
    "clipped weights": ("Plain", lambda net: initiate(net, shift_quantile=0.2), "clipped weights", True),
    "clipped weights in one": ("UNet", lambda net: initiate(net, overrides={"join": {"shift_quantile": 0.1}}),
                               "clipped weights", True),
    "clipped 4-bit weights": ("Shared", lambda net: initiate(net, weight_bits=4, shift_quantile=0.2), "clipped weights", True),
    "narrow head": ("Depthwise", weights("head", lambda op: op.bias.add_(4.0)), "narrow head", True),
    "narrow head of two levels": ("Depthwise", lambda net: initiate(weak(net), weight_bits=1), "narrow head", True),
    "narrow head of few levels": ("Depthwise", threshold("head", 5), "wasted levels", True),
    "one map": ("UNet", one_map, "wide head", True),
    "diverged": ("Plain", diverged, "exploded weights", True),
    "grown": ("Autoencoder", weights("down", lambda op: op.weight.mul_(1000)), "exploded weights", True),
    "dead layer": ("Plain", weights("second", lambda op: op.bias.fill_(-1.5)), "dead layer", True),
    "dead channels": ("Heads", weights("deep", dead_channels), "dead channels", True),
    "NaN": ("UNet", weights("join", lambda op: op.weight.view(-1)[0].fill_(math.nan)), "not a number", True),
    "big bias": ("Keywords", weights("two", one_big_bias), "big bias", True),
}  # fmt: skip


def broken(name):
    shape, fault, finding, changes = FAULTS[name]
    net, x = quantized(shape), data(shape, 64, seed=5)[0]
    with torch.no_grad():
        healthy = net(x)
        fault(net)
    net.eval()
    return net, x, healthy, finding, changes


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_a_problem_of_its_name(name):
    net, x, healthy, finding, changes = broken(name)
    seen = diagnose(net, x)
    assert seen.found(finding), str(seen)
    assert all(finding.text and finding.remedy for finding in seen.findings)
    if changes is not None:
        with torch.no_grad():
            pairs = zip(*(y if isinstance(y, tuple) else (y,) for y in (healthy, net(x))))
            assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs) is changes
    diagnose(net)


@pytest.mark.parametrize("name", [*BETWEEN, *REFUSED])
def test_what_no_export_takes_is_named_with_its_place(name):
    shape, fault, place = (BETWEEN | REFUSED)[name]
    net, x = quantized(shape), data(shape)[0]
    fault(net)
    finding = "foreign layer" if name in BETWEEN else "refused by export"
    told = [f"{f.layer} {f.text}; {f.remedy}" for f in diagnose(net, x).problems if f.name == finding]
    assert any(place in text for text in told), told
    with pytest.raises(ValueError):
        quantize_model(net, input_shape=net.input_shape)


def test_behind_the_last_layer_plain_operations_are_a_note_and_arranging_is_none():
    net, x = quantized("UNet"), data("UNet")[0]
    behind("head", lambda y: torch.softmax(y, dim=1))(net)
    seen = diagnose(net, x)
    assert seen.healthy and [f.layer for f in seen.findings if f.name == "outside"] == ["softmax"]
    net = quantized("UNet")
    arranged = Apply(lambda y: torch.cat((y.permute(0, 2, 3, 1).flatten(1), y.view(-1, 576)), 1))
    behind("head", nn.Sequential(nn.Dropout(0.5), arranged))(net)
    seen = diagnose(net, x)
    assert seen.healthy and not any(f.name in ("outside", "refused by export") for f in seen.findings), str(seen)


@pytest.mark.parametrize("change", [aux, lambda net: setattr(net, "aux", ai8x.Conv2d(3, 4, 1, weight_bits=8, bias_bits=8,
                                    quantize_activation=True))])  # fmt: skip
def test_layers_that_evaluation_never_calls_are_a_note(change):
    net, x = quantized("Heads"), data("Heads")[0]
    change(net)
    net.aux.op.bias.data.fill_(99.0)  # would be a big bias elsewhere
    for seen in (diagnose(net, x), diagnose(net)):
        assert seen.healthy and [f.layer for f in seen.findings if f.name == "never called"] == ["aux"], str(seen)


class Features(nn.Module):
    """What a sum reads, a sum, and a head."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.add = ai8x.Conv2d(3, 4, 1), ai8x.Conv2d(3, 4, 1), ai8x.Add()
        self.head = ai8x.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.add(self.one(x), self.two(x))
        return x, self.head(x)


def test_only_what_nothing_else_reads_is_asked_to_be_wide():
    net, x = Features(), data("Plain")[0]
    ai8x.initiate_qat(net, POLICY)
    assert [f.layer for f in diagnose(net, x).findings if f.name == "narrow head"] == ["head"]


def test_averages_that_round_unlike_the_device_are_a_note_and_both_remedies_help():
    net, x = quantized("Keywords"), data("Keywords")[0]
    ai8x.set_device(85, round_avg=True, verbose=False)
    seen = diagnose(net, x)
    (found,) = (f for f in seen.findings if f.name == "stale flags")
    assert seen.healthy and found.layer == "pool" and "set_device(85, round_avg=False) if it was trained so" in found.remedy
    ai8x.update_model(net)
    assert not any(f.name == "stale flags" for f in diagnose(net, x).findings)
    ai8x.set_device(85, round_avg=False, verbose=False)
    assert any(f.name == "stale flags" for f in diagnose(net, x).findings)
    ai8x.set_device(85, round_avg=True, verbose=False)
    assert not any(f.name == "stale flags" for f in diagnose(net, x).findings)


def test_helpers_that_hold_no_tensor_are_no_foreign_layers():
    class Flat(SHAPES["Plain"]):
        def forward(self, x):
            x = self.third(self.second(self.first(x)))
            return self.head(x.view(x.size(0), x.size(1) * x.size(2) * x.shape[3]))

    net, x = quantized("Plain"), data("Plain")[0]
    net.__class__ = Flat
    assert diagnose(net, x).healthy and diagnose(net).healthy, str(diagnose(net))


# --- what too few inputs cannot carry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["one", "the same", "zeros", "two"])
@pytest.mark.parametrize("shape", SHAPES)
def test_few_or_equal_inputs_carry_no_judgement_of_channels_and_levels(shape, inputs):
    net, x = quantized(shape), data(shape)[0]
    x = {"one": x[:1], "the same": x[:1].expand(16, *x.shape[1:]), "zeros": torch.zeros_like(x), "two": x[:2]}[inputs]
    seen = diagnose(net, x)
    assert seen.healthy, str(seen)
    assert not {"dead layer", "dead channels", "wasted levels"} & {f.name for f in seen.findings}
    few = [f for f in seen.findings if f.name == "few inputs"]
    assert len(few) == 1 and "at least 8 different inputs" in few[0].remedy


def test_eight_inputs_are_enough_for_a_dead_layer():
    net, x, *_ = broken("dead layer")
    assert diagnose(net, x[:8]).found("dead layer") and not diagnose(net, x[:7]).found("dead layer")


# --- explosions, devices, dtypes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["Plain", "Residual", "Keywords", "Shared"])
def test_an_explosion_is_one_finding_in_each_layer_that_it_spoils(shape):
    net, (x, y) = quantized(shape), data(shape)
    train(net, x, y, 8, 30.0)
    seen = diagnose(net, x)
    names = {f.name for f in seen.problems}
    misleading = {"dead layer", "dead channels", "clipping", "big bias", "learning rate"}
    assert "exploded weights" in names and not names & misleading, str(seen)
    named = {f.layer for f in seen.problems if f.name == "exploded weights"}
    assert {row.name for row in seen.layers if row.kind == "layer" and row.grown > 4} <= named


@pytest.mark.parametrize("given", [True, False])
def test_an_explosion_in_float_is_named_too(given):
    net, x = in_float("Plain"), data("Plain")[0]
    assert not diagnose(net, x).found("exploded weights")
    with torch.no_grad():
        for layer in (net.second, net.third, net.head):
            layer.op.weight.mul_(200.0)
    assert diagnose(net, x if given else None).found("exploded weights")


def test_large_weights_that_do_no_harm_are_a_note():
    """As batch norm leaves them behind a layer of small outputs: the function is the same, and so is the accuracy."""
    net, (x, y) = quantized("Plain"), data("Plain")
    with torch.no_grad():
        net.first.op.weight.mul_(2.0**-6)
        net.first.op.bias.mul_(2.0**-6)
        net.second.op.weight.mul_(2.0**6)
    net.first.activation_threshold -= 6
    net.second.activation_threshold += 6
    assert right(net, x, y) == 1.0
    assert not diagnose(net, x).found("exploded weights")


def test_while_the_device_simulates_the_sentence_names_the_call_that_helps():
    net, x = quantized("Depthwise"), data("Depthwise")[0]
    ai8x.set_device(87, simulate=True, verbose=False)
    with pytest.raises(ValueError, match=r"call ai8x.set_device\(87, simulate=False\)"):
        diagnose(net, x)
    ai8x.set_device(87, simulate=False, verbose=False)
    assert diagnose(net, x).healthy


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_other_dtypes_are_one_sentence_and_float_helps(cast):
    net, x = quantized("Plain"), data("Plain")[0]
    name = str(getattr(torch, {"half": "float16", "double": "float64"}.get(cast, cast)))
    with pytest.raises(ValueError, match=rf"x is {name}.*x.float\(\)"):
        diagnose(net, getattr(x, cast)())
    getattr(net, cast)()
    for given in (None, x, getattr(x, cast)()):
        with pytest.raises(ValueError, match=rf"the model is {name}.*model.float\(\)"):
            diagnose(net, given)
    assert diagnose(net.float(), x).healthy


class Odd(nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.layer, self.problem = ai8x.Conv2d(3, 4, 1, weight_bits=8, bias_bits=8, quantize_activation=True), problem

    def forward(self, x):
        if self.problem is not None:
            raise self.problem
        return self.layer(x=x)


@pytest.mark.parametrize("problem", [KeyError("a"), AssertionError(), TypeError("no\nway"), IndexError("x")])
def test_whatever_forward_raises_is_one_sentence(problem):
    with pytest.raises(ValueError, match=r"cannot run on x of shape \(9, 3, 12, 12\)") as told:
        diagnose(Odd(problem), pictures(n=9)[0])
    assert "\n" not in str(told.value)
    assert diagnose(Odd(problem)).found("graph")


def test_wrapped_single_and_keyword_calls_are_examined():
    x = pictures(n=16)[0]
    assert diagnose(Odd(None), x).layers[0].channels == 4
    layer = ai8x.Conv2d(3, 4, 1, weight_bits=8, bias_bits=8, quantize_activation=True)
    assert diagnose(layer, x).layers[0].channels == 4
    seen = diagnose(nn.DataParallel(quantized("Plain")), x)
    assert seen.healthy and [row.name for row in seen.layers] == ["first", "second", "third", "head"]


# --- every remedy works -----------------------------------------------------------------------------------------------------


def train_on_sound_data(net):
    return train(restart(net), *data("Plain"), 6, 0.003)


def reload(net):
    """The checkpoint that QAT saved."""
    net.load_state_dict(quantized(type(net).__name__).state_dict())
    return update(net)


def limit(net):
    with torch.no_grad():
        net.two.op.bias.clamp_(-net.two.op.weight.abs().max(), net.two.op.weight.abs().max())
    return net


def small(net):
    """A head whose largest weight is just above a power of two, or has a scale to undo."""
    with torch.no_grad():
        net.head.op.weight.clamp_(-0.2, 0.2).view(-1)[0] = 0.2505
        net.head.op.bias.zero_()


def prune(net):
    """Two of the channels live: build the layer with as many."""
    with torch.no_grad():
        keep = net.deep.op.weight.flatten(1).abs().amax(1) > 0
        net.deep.op.weight, net.deep.op.bias = (nn.Parameter(t[keep].clone()) for t in (net.deep.op.weight, net.deep.op.bias))
        net.what.op.weight = nn.Parameter(net.what.op.weight.view(4, 12, -1)[:, keep].flatten(1).clone())
        net.where.op.weight = nn.Parameter(net.where.op.weight[:, keep].clone())
        net.deep.op.out_channels = net.where.op.in_channels = int(keep.sum())
    return net


class HandMade(ai8x.FusedConv2dReLU):
    rounding = staticmethod(torch.round)
    clamp = 127

    def _activate(self, x):
        return self.rounding(torch.relu(x) * 128).clamp(max=self.clamp) / 128


def hand_made(**parts):
    def change(net):
        ties = ai8x.FusedConv2dReLU(3, 8, 1, weight_bits=8, bias_bits=8, quantize_activation=True)
        ties.op.weight.data = (torch.randint(-64, 64, (8, 3, 1, 1)) / 64).clamp(-0.9, 0.9)
        ties.op.bias.data.fill_(0.5)
        ties.__class__ = type("Made", (HandMade,), parts)
        net.first = ties

    return change


def as_library(net):
    net.first.__class__ = ai8x.FusedConv2dReLU
    return net


def half_up(net):
    type(net.first).rounding = staticmethod(round_half_up)
    return net


def with_clamp(net):
    type(net.first).clamp = 127
    return net


def absolute(activation):
    def change(net):
        net.second.activation = activation
        return net

    return change


def without(name):
    """What is foreign is taken out, or computed outside."""

    def cure(net):
        net.set_submodule(name, net.get_submodule(name)[0])
        return net

    return cure


def add(net):
    net.add = ai8x.Add()
    return update(net)


def decided(net):
    net.__class__ = type(net).__mro__[1]
    return net


# finding -> (a fault of FAULTS, or (shape, what is broken); what its remedy says)
CURES = {
    "input range": [],  # below
    "few inputs": [],  # above
    "learning rate": [],  # of the losses: lesson 11's patient C
    "wrong checkpoint": [("integers", reload)],
    "not a number": [("NaN", reload)],
    "threshold": [("threshold -inf", restart), ("half a threshold", restart)],
    "graph": [("untraceable", decided)],
    "foreign layer": [("between: batch norm", without("second")), ("between: sigmoid", without("small"))],
    "plain sum": [("sum: +", add), ("sum: torch.add", add), ("sum: iadd", add)],
    "refused by export": [("refused: roll", without("first"))],
    "stale flags": [("bits behind its back", update), ("off behind its back", update)],
    "QAT partly off": [("activations off", initiate), ("both clamps off", initiate), ("an average off", initiate),
                       ("weights off", initiate)],
    "bits": [("other weight bits", initiate), ("other bias bits", initiate), ("three bits", initiate)],
    "simulated start": [("simulated start", restart)],
    "QAT never started": [("float", restart), ("all off", initiate)],
    "batch norm not fused": [("batch norm left", restart)],
    "unequal scales": [(f"threshold of a {place}", restart) for place in ("sum", "concatenation", "loop")],
    "changed threshold": [("threshold in a chain", restart), ("final scale", restart)],
    "exploded weights": [("diverged", train_on_sound_data), ("grown", restart)],
    "rounding": [(("Plain", hand_made()), half_up)],
    "clamp missing": [("clamp off", update), (("Plain", hand_made(clamp=9999, rounding=staticmethod(round_half_up))), with_clamp)],
    "arithmetic": [(("Plain", hand_made(rounding=torch.trunc)), as_library)],
    "dead layer": [("dead layer", reload)],
    "dead channels": [("dead channels", prune)],
    "big bias": [("big bias", limit), ("big bias", lambda net: initiate(net, shift_quantile=0.98))],
    "clipped weights": [("clipped weights", lambda net: initiate(net, shift_quantile=0.99)), ("clipped weights in one", initiate)],
    "wasted bit": [(("Plain", small), lambda net: initiate(net, shift_quantile=0.995))],
    "clipping": [("clipped", restart), ("clipped, shared", restart)],
    "wasted levels": [("levels wasted", restart), ("levels wasted in two branches", restart)],
    "narrow head": [("narrow head", wide), ("narrow head of two levels", wide)],
    "wide head": [("one map", gain), (("Plain", small), gain)],
    "Abs": [(("Plain", absolute("Abs")), absolute("ReLU"))],
    "outside": [(("UNet", behind("head", nn.Softmax(dim=1))), without("head"))],
    "never called": [(("Heads", aux), lambda net: delattr(net, "aux") or decided(net))],
}  # fmt: skip


def test_every_finding_has_a_cure():
    assert CURES.keys() == ADVICE.keys()


@pytest.mark.parametrize("finding, index", [(name, i) for name, cures in CURES.items() for i in range(len(cures))])
def test_every_remedy_works(finding, index):
    fault, cure = CURES[finding][index]
    shape, fault, *_ = FAULTS[fault] if isinstance(fault, str) else fault
    net, x = quantized(shape), data(shape, 64, seed=5)[0]
    with torch.no_grad():
        net(x)  # layers know their state by now
        fault(net)
    before = diagnose(net.eval(), x)
    assert any(f.name == finding for f in before.findings), str(before)
    net = cure(net)
    seen = diagnose(net, x)
    assert not any(f.name == finding for f in seen.findings), str(seen)


RANGES = {
    "bytes": lambda u: u.float(), "of 0..1": lambda u: u / 255, "codes": lambda u: u.float() - 128,
    "normalised": lambda u: (u - 127.5) / 60, "off the grid": lambda u: (u - 128) / 129,
}  # fmt: skip


@pytest.mark.parametrize("name", RANGES)
def test_the_remedies_of_input_ranges_work(name):
    """As the text says them: a line of code for x, which is run."""
    net, u = quantized("Plain"), torch.randint(0, 256, (16, 3, 12, 12))
    u.view(-1)[:2] = torch.tensor([0, 255])
    x = RANGES[name](u)
    found = [f for f in diagnose(net, x).problems if f.name == "input range"]
    assert len(found) == 1
    cured = eval(found[0].remedy.rpartition("x = ")[2], {"x": x})
    assert not diagnose(net, cured).found("input range")
    if name in ("bytes", "of 0..1", "codes"):
        assert (cured - (u - 128) / 128).abs().max() <= 1 / 128
