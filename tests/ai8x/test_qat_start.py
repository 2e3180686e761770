"""Fusing, starting QAT, changing bits later, reloading: each with the vendor's behaviour beside it where ours differs."""

import copy
import warnings

import pytest
import torch
from torch import nn

import qatlib.ai8x as ai8x

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = ai8x.FusedConv2dBNReLU(3, 8, 3, padding=1)
        self.conv2 = ai8x.FusedMaxPoolConv2dBNReLU(8, 8, 3, padding=1)
        self.up = ai8x.FusedConvTranspose2dBNReLU(8, 6, 3, stride=2, padding=1)
        self.skip = ai8x.Conv2d(8, 6, 1)
        self.add = ai8x.Add()
        self.head = ai8x.Conv2d(6, 2, 1, wide=True)

    def forward(self, x):
        x = self.conv1(x)
        return self.head(self.add(self.up(self.conv2(x)), self.skip(x)))


def batches(n=3):
    generator = torch.Generator().manual_seed(7)
    return [(torch.randint(-128, 128, (4, 3, 8, 8), generator=generator) / 128, torch.zeros(4)) for _ in range(n)]


def trained(net=None):
    """A network whose batch norms have seen data and have uneven parameters."""
    torch.manual_seed(0)
    net = net or Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 3)
            module.bias.data.uniform_(-1, 1)
    with torch.no_grad():
        for x, _ in batches() * 10:
            net.train()(x)
    return net.eval()


def evaluate(net, x=None):
    with torch.no_grad():
        return net.eval()(batches()[0][0] if x is None else x)


# --- batch norm ------------------------------------------------------------------------------------------------------


def difference_of_fusing(layer, x, **kwargs):
    for _ in range(5):
        layer.train()(torch.randn_like(x))
    layer.bn.weight.data.uniform_(0.5, 2)
    layer.bn.bias.data.uniform_(-1, 1)
    before = evaluate(layer, x)
    ai8x.fuse_bn_layers(layer, **kwargs)
    assert layer.bn is None
    return (evaluate(layer, x) - before).abs().max().item()


# float32: a sum of at most 9 * 16 products of size about 1, in two arrangements, times factors up to 2 * rsqrt(var) < 32
ROUNDING = 144 * 32 * 2.0**-23


@pytest.mark.parametrize(
    ("name", "args", "device"),
    [
        ("FusedConv2dBNReLU", (4, 6, 3), 85),
        ("FusedConv1dBNReLU", (4, 6, 3), 85),
        ("FusedConvTranspose2dBNReLU", (4, 6, 3), 85),
        ("FusedConvTranspose2dBNReLU", (6, 6, 3), 85),
        ("FusedDepthwiseConv2dBNReLU", (6, 6, 3), 87),
        ("FusedDepthwiseConvTranspose2dBNReLU", (6, 6, 3), 87),
    ],
)
def test_fusing_keeps_the_function(name, args, device):
    torch.manual_seed(1)
    ai8x.set_device(device, False, False, verbose=False)
    extra = {"stride": 2} if "Transpose" in name else {}
    layer = getattr(ai8x, name)(*args, padding=1, **extra)
    x = torch.randn(4, args[0], *([9] if "1d" in name else [6, 6]))
    assert difference_of_fusing(layer, x) < ROUNDING


def test_fusing_transposed_layers_as_the_vendor_does():
    torch.manual_seed(1)
    square = ai8x.FusedConvTranspose2dBNReLU(6, 6, 3, stride=2, padding=1)
    assert difference_of_fusing(square, torch.randn(4, 6, 6, 6), vendor_exact=True) > 0.1
    with pytest.raises(RuntimeError, match="size of tensor"):
        ai8x.fuse_bn_layers(ai8x.FusedConvTranspose2dBNReLU(4, 6, 3, stride=2, padding=1), vendor_exact=True)


def test_fusing_twice_changes_nothing_and_missing_statistics_are_named():
    net = trained()
    ai8x.fuse_bn_layers(net)
    state = copy.deepcopy(net.state_dict())
    ai8x.fuse_bn_layers(net)
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    net = Net()
    net.conv2.bn = nn.BatchNorm2d(8, track_running_stats=False)
    with pytest.raises(ValueError, match="conv2: .* track_running_stats=True"):
        ai8x.fuse_bn_layers(net)


# --- the sequence ----------------------------------------------------------------------------------------------------

POLICY = {
    "start_epoch": 1,
    "weight_bits": 8,
    "shift_quantile": 0.99,
    "overrides": {"conv2": {"weight_bits": 4, "shift_quantile": 0.9}},
}


def test_start_qat_switches_everything_on():
    net = trained()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert ai8x.start_qat(net, batches(), POLICY, optimizer, progress=False) is optimizer
    layers = {n: m for n, m in net.named_modules() if isinstance(m, ai8x.QuantizationAwareModule)}
    assert {n: m.weight_bits.item() for n, m in layers.items()} == {"conv1": 8, "conv2": 4, "up": 8, "skip": 8, "head": 8}
    assert all(torch.equal(m.weight_bits, m.bias_bits) and m.bn is None for m in layers.values())
    assert layers["conv2"].shift_quantile == torch.tensor(0.9) and layers["up"].shift_quantile == torch.tensor(0.99)
    assert net.add.clamped
    assert net.head.final_scale == net.add.activation_threshold  # the wide head's input is the sum, divided by 2^threshold


def test_qat_output_is_close_to_float():
    float_net = trained()
    net = copy.deepcopy(float_net)
    ai8x.start_qat(net, batches(), {"weight_bits": 8}, progress=False)
    expected = evaluate(float_net)
    y = evaluate(net) * 2.0 ** net.head.weight_shift()  # a wide layer's output is not multiplied by its weights' scale
    correlation = torch.corrcoef(torch.stack((y.flatten(), expected.flatten())))[0, 1]
    assert correlation > 0.99
    assert (y - expected).abs().max() < 0.1 * expected.abs().max()


def test_second_start_is_refused_and_says_what_to_do():
    net = trained()
    ai8x.start_qat(net, batches(), {"weight_bits": 8}, progress=False)
    state = copy.deepcopy(net.state_dict())
    for start in (lambda: ai8x.start_qat(net, batches(), {"weight_bits": 4}), lambda: ai8x.pre_qat(net, batches(), POLICY)):
        with pytest.raises(ValueError, match="QAT has already started .* call initiate_qat"):
            start()
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize("policy", [{"weight_bits": 5}, {"weight_bits": 8, "overrides": {"conv3": {"weight_bits": 4}}}])
def test_a_wrong_policy_is_refused_before_anything_changes(policy):
    net = trained()
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="weight_bits|did you mean"):
        ai8x.start_qat(net, batches(), policy, progress=False)
    assert net.conv1.bn is not None
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())


def test_an_empty_loader_is_refused_and_the_model_can_start_afterwards():
    net = trained()
    with pytest.raises(ValueError, match="gave no batch"):
        ai8x.start_qat(net, [], {"weight_bits": 8}, progress=False)
    assert not hasattr(net.conv1, "histograms")
    ai8x.start_qat(net, batches(), {"weight_bits": 8}, progress=False)
    assert net.conv1.weight_bits == 8


def test_loaders_of_inputs_or_tuples_give_the_same_and_modes_return():
    a, b = trained(), trained()
    for net in (a, b):
        ai8x.fuse_bn_layers(net)
    a.train()
    a.head.eval()
    ai8x.pre_qat(a, batches(), POLICY)
    ai8x.pre_qat(b, (x for x, _ in batches()), POLICY)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert a.training and a.conv1.training and not a.head.training


def test_a_failing_pass_leaves_no_hooks():
    net = trained()
    with pytest.raises(ValueError, match=r"batch of shape \(2, 5, 8, 8\), which the network cannot read"):
        ai8x.pre_qat(net, [torch.rand(2, 5, 8, 8)], POLICY)
    assert not any(m._forward_hooks for m in net.modules())


def test_pre_qat_warns_about_nothing_in_a_good_network():
    net = trained()
    ai8x.fuse_bn_layers(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = evaluate(net)
        ai8x.pre_qat(net, batches(), POLICY)
    assert torch.equal(evaluate(net), before)


@pytest.mark.parametrize("form", [lambda y: (y, None), lambda y: (y, 3), lambda y: {"y": [y], "n": 1, "name": "pose"}])
def test_networks_may_return_more_than_tensors(form):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = ai8x.FusedConv2dReLU(3, 4, 3), ai8x.Conv2d(4, 2, 1)

        def forward(self, x):
            return form(self.head(self.conv(x)))

    net, x = Net(), torch.randint(-128, 128, (4, 3, 6, 6)) / 128
    ai8x.start_qat(net, [x], {"weight_bits": 8}, progress=False)
    assert net.head.weight_bits.item() == 8


def test_start_as_the_vendor_starts():
    torch.manual_seed(0)
    one = nn.Sequential(ai8x.Conv2d(3, 4, 3))
    with torch.no_grad():
        one[0].op.weight.mul_(8)
    other, x = copy.deepcopy(one), torch.randint(-128, 128, (4, 3, 6, 6)) / 128
    ai8x.start_qat(one, [x], {"weight_bits": 8}, progress=False)
    ai8x.start_qat(other, [x], {"weight_bits": 8}, progress=False, vendor_exact=True)
    assert one[0].final_scale.item() > 0 == other[0].final_scale.item(), "the vendor never restores a network of one layer"


def test_update_model_leaves_a_lone_sum_as_it_is():
    add = ai8x.Add()
    add.set_clamp(True)
    ai8x.update_model(nn.Sequential(add))
    assert add.clamped


def test_other_bits_later_and_copies():
    net = trained()
    ai8x.start_qat(net, batches(), {"weight_bits": 8}, progress=False)
    eight = evaluate(net)
    other = copy.deepcopy(net)
    levels = {}
    for bits in (1, 2, 4, 8):
        ai8x.initiate_qat(other, {"weight_bits": bits})
        codes, _ = other.conv2.quantized_weight()
        levels[bits] = len(codes.unique())
        assert codes.min() >= -(2 ** (bits - 1)) and codes.max() < 2 ** (bits - 1)
        assert torch.equal(evaluate(other), eight) == (bits == 8)
    assert levels[1] <= 2 and levels[2] <= 4 < levels[4] <= 16 < levels[8]
    assert torch.equal(evaluate(net), eight) and net.conv2.weight_bits == 8


def test_weights_receive_gradients_and_settings_do_not():
    net = trained()
    ai8x.start_qat(net, batches(), {"weight_bits": 4}, progress=False)
    net.train()(batches()[0][0]).square().sum().backward()
    for name, p in net.named_parameters():
        assert (p.grad is not None and p.grad.abs().max() > 0) == (".op." in name), name


# --- reloading -------------------------------------------------------------------------------------------------------


def saturating():
    """A QAT network whose sum leaves -1..127/128, so that its clamp is visible."""
    net = trained()
    ai8x.start_qat(net, batches(), {"weight_bits": 8}, progress=False)
    for layer in (net.up, net.skip):
        layer.activation_threshold.data.sub_(2)
    ai8x.update_model(net)
    return net


def test_update_model_restores_the_clamp_of_sums():
    net = saturating()
    expected = evaluate(net)
    for vendor_exact in (False, True):
        loaded = Net()
        ai8x.fuse_bn_layers(loaded)
        loaded.load_state_dict(net.state_dict())
        ai8x.update_model(loaded, vendor_exact=vendor_exact)
        assert loaded.add.clamped != vendor_exact
        assert torch.equal(evaluate(loaded), expected) != vendor_exact


def test_update_model_leaves_float_sums_open():
    net = Net()
    net.add.set_clamp(True)
    ai8x.update_model(net)
    assert not net.add.clamped


def test_update_model_rereads_data():
    net = saturating()
    evaluate(net)
    expected = copy.deepcopy(net)
    ai8x.initiate_qat(expected, {"weight_bits": 2})
    for layer in (net.conv1, net.conv2, net.up, net.skip, net.head):
        layer.weight_bits.data.fill_(2)
        layer.bias_bits.data.fill_(2)
    ai8x.update_model(net)
    assert torch.equal(evaluate(net), evaluate(expected))


# --- optimizer -------------------------------------------------------------------------------------------------------


def with_state(make):
    net = trained()
    optimizer = make(net)
    for x, _ in batches():
        optimizer.zero_grad()
        net.train()(x).square().mean().backward()
        optimizer.step()
    return net, optimizer


@pytest.mark.parametrize("make", [
    lambda net: torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9),
    lambda net: torch.optim.Adam(net.parameters(), lr=0.01),
])  # fmt: skip
def test_optimizer_state_survives_the_start(make):
    net, optimizer = with_state(make)
    weights = [p for n, p in net.named_parameters() if ".op." in n]
    before = [copy.deepcopy(optimizer.state[p]) for p in weights]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    assert ai8x.start_qat(net, batches(), POLICY, optimizer, progress=False) is optimizer
    for p, old in zip(weights, before):
        assert old and old.keys() == optimizer.state[p].keys()
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(optimizer.state[p][k])) for k, v in old.items())
    alive = {id(p) for p in net.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == alive
    assert {id(p) for p in optimizer.state} == {id(p) for p in weights}
    net.train()(batches()[0][0]).square().mean().backward()
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.005


def test_optimizer_as_the_vendor_leaves_it():
    net, optimizer = with_state(lambda net: torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9))
    optimizer.param_groups[0]["lr"] = 0.002
    ai8x.fuse_bn_layers(net)
    new = ai8x.update_optimizer(net, optimizer, vendor_exact=True)
    assert new is not optimizer and type(new) is type(optimizer)
    assert not new.state and new.param_groups[0]["lr"] == 0.002 and new.param_groups[0]["momentum"] == 0.9
    assert len(new.param_groups[0]["params"]) == len(list(net.parameters()))


def test_parameter_groups_stay_and_strangers_are_refused():
    net, optimizer = with_state(
        lambda net: torch.optim.SGD([{"params": net.conv1.parameters(), "lr": 0.5}, {"params": net.head.parameters()}], lr=0.01)
    )
    ai8x.fuse_bn_layers(net)
    ai8x.update_optimizer(net, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.01]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    with pytest.raises(ValueError, match="none of the model's parameters"):
        ai8x.update_optimizer(Net(), optimizer)
