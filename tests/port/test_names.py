"""Files written for the vendor's `ai8x`: every name they use, its arithmetic, and networks of their kind on this library.

The names are facts: what ai8x-training's `models/`, `ai8x_blocks.py`, `ai8x_nas.py`, `datasets/` and `train.py` call (2024).
"""

import copy
import importlib
import inspect
import re
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qatlib import ai8x, diagnose, quantize_model
from qatlib.export import export_all, export_onnx, quantize_checkpoint
from qatlib.port import names

pytestmark = pytest.mark.filterwarnings("ignore:.*runs outside the accelerator")

PUBLISHED = re.findall(
    r"\w+",
    """
    Add AvgPool2d Conv1d Conv2d ConvTranspose2d Empty FusedAvgPoolConv1dBNReLU FusedAvgPoolConv1dReLU FusedAvgPoolConv2d
    FusedAvgPoolConv2dReLU FusedConv1dBNReLU FusedConv1dReLU FusedConv2dBN FusedConv2dBNReLU FusedConv2dReLU
    FusedDepthwiseConv2dBNReLU FusedDepthwiseConv2dReLU FusedLinearReLU FusedMaxPoolConv1dBNReLU FusedMaxPoolConv1dReLU
    FusedMaxPoolConv2d FusedMaxPoolConv2dBN FusedMaxPoolConv2dBNReLU FusedMaxPoolConv2dReLU FusedMaxPoolDepthwiseConv2dBNReLU
    FusedMaxPoolDepthwiseConv2dReLU Linear MaxPool2d QuantizationAwareModule SoftwareLinear apply_scales bayer_filter dev fold
    fuse_bn_layers get_activation init_hist init_threshold initiate_qat normalize pre_qat quantize_clamp quantize_clamp_pool
    release_hist set_device unfold_batch update_model update_optimizer
""",
)
OTHERS = re.findall(
    r"\w+",
    """
    Abs AvgPoolFloor AvgPoolFloorFunction BitwiseOr BitwiseXor Clamp DevAI84 DevAI85 DevAI87 Device Eltwise Floor FloorFunction
    FloorONNX FloorQat FloorQatONNX FusedSoftwareLinearReLU ID3 One OutputScale OutputScaleONNX OutputShiftLimit OutputShiftONNX
    OutputShiftPassthrough QuantizationFunction Quantize QuantizeONNX Round RoundFunction RoundQat RoundQatONNX Scaler ScalerONNX
    Sub WeightScale WeightScaleONNX calc_q_error calc_threshold histogram init_threshold_module onnx_export_prep
    quantize_clamp_parameters register_hist_hooks release_hist_hooks stat_collect
""",
)
POLICY = {"weight_bits": 8}


def batch(*shape):
    return torch.randint(-128, 128, (4, *shape)) / 128


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_files_use_is_there(name):
    assert getattr(ai8x, name) is not None
    exec(f"from qatlib.ai8x import {name}")


PARAMETERS = {  # of the vendor's functions and pieces, in their order
    "set_device": "device simulate round_avg verbose", "initiate_qat": "m qat_policy export", "update_model": "m",
    "update_optimizer": "m optimizer", "fuse_bn_layers": "m", "apply_scales": "model", "stat_collect": "train_loader model args",
    "pre_qat": "model train_loader args qat_policy", "init_hist": "model", "release_hist": "model",
    "init_threshold": "model outlier_removal_z_score", "get_activation": "activation", "normalize": "args", "fold": "fold_ratio",
    "quantize_clamp": "wide quantize_activation clamp_activation weight_bits", "unfold_batch": "img_batch fold_ratio",
    "quantize_clamp_pool": "pooling quantize_activation clamp_activation", "quantize_clamp_parameters": "weight_bits bias_bits",
    "Clamp": "min_val max_val", "Quantize": "num_bits num_extra_bit_shift", "SoftwareLinear": "in_features out_features",
    "FusedSoftwareLinearReLU": "in_features out_features bias relu",
    "QuantizationAwareModule": "pooling activation wide weight_bits bias_bits quantize_activation pool op bn shift_quantile "
                               "clamp_activation",
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_vendors_by_name_and_in_order(name):
    wanted = PARAMETERS[name].split()
    assert list(inspect.signature(getattr(ai8x, name)).parameters)[: len(wanted)] == wanted


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_name_is_there_or_says_what_to_use(name):
    if name in names.INSTEAD or name.endswith("ONNX") or name == "onnx_export_prep":
        with pytest.raises(AttributeError, match=rf"'{name}', an inside of the vendor's layers; use \S"):
            getattr(ai8x, name)
    else:
        assert getattr(ai8x, name).__doc__


def test_unknown_names_stay_unknown():
    assert not hasattr(ai8x, "Softmax") and not hasattr(ai8x, "__path_to_nowhere__")
    with pytest.raises(ImportError, match="cannot import name 'Conv5d'"):
        from qatlib.ai8x import Conv5d  # noqa: F401


def test_what_is_named_instead_computes_the_same(tmp_path):
    model = nn.Sequential(ai8x.Conv2d(3, 4, 3), ai8x.Conv2d(4, 2, 1, wide=True))
    x = batch(3, 6, 6)
    ai8x.start_qat(model, [x], POLICY, progress=False)
    layer, values = model[0], torch.tensor([0.3, -0.7])
    given = {"layer": layer, "x": x, "values": values, "model": model, "shift_quantile": 1.0, "bits": 8, "output": x}
    given |= {"counts": torch.ones(2).numpy(), "torch": torch, "ai8x": ai8x, "qatlib": sys.modules["qatlib"]}
    given |= {"export_onnx": export_onnx, "path": tmp_path / "m.onnx", "input_shape": (3, 6, 6)}

    def run(name):
        return eval(re.split(r", (?:or|a module|then|for all|which)|: ", names.INSTEAD.get(name, names.EXPORT))[0], given)

    limit = torch.cat([layer.op.weight.flatten(), layer.op.bias]).abs().max()
    shift = -torch.floor(torch.log2(1 / limit))
    assert run("OutputShiftLimit") == 0 and run("OutputShiftPassthrough") is layer.output_shift
    assert run("WeightScale") == 2**-shift and run("OutputScale") == 2 ** (shift - layer.activation_threshold)
    assert torch.equal(run("Scaler"), x * run("OutputScale")) and run("One") == 1 and torch.equal(run("ID3")(x), x)
    assert torch.equal(run("RoundFunction")(x * 128 + 0.25), x * 128) and torch.equal(run("FloorFunction")(x * 128 + 0.75), x * 128)
    assert torch.equal(run("QuantizationFunction")(x), x) and run("AvgPoolFloorFunction")(torch.tensor(-0.5)) == 0
    for device in (87, 85):
        run(f"DevAI{device}")
        assert ai8x.dev.device == device
    assert run("histogram").counts.sum() == x.numel() and run("calc_q_error")[0] == 1
    run("register_hist_hooks")
    model(x)
    run("calc_threshold")
    run("release_hist_hooks")
    assert not hasattr(layer, "histograms") and run("init_threshold_module") is None
    with torch.no_grad():
        layer.activation_threshold.zero_()  # `init_threshold` set the thresholds as before scaling
    assert run("onnx_export_prep").exists()


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("wide,activation", [(False, "ReLU"), (False, None), (True, None)])
@pytest.mark.parametrize("simulate", [False, True])
def test_a_layer_of_the_vendors_pieces_equals_ours_to_the_last_bit(bits, wide, activation, simulate):
    ai8x.set_device(85, simulate, False, verbose=False)
    layer = ai8x.Conv2d(3, 4, 3, activation=activation, wide=wide, weight_bits=bits, bias_bits=bits, quantize_activation=True)
    x, shift = batch(3, 6, 6), layer.weight_shift()
    if simulate:
        x, shift = (x * 128).double(), torch.tensor([-1.0])
        with torch.no_grad():
            layer.op.weight.copy_(torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), layer.op.weight.shape))
            layer.op.bias.copy_(torch.tensor([3.0, -7.0, 0.0, 1.0]) * 2 ** (bits - 1))
            layer.output_shift.copy_(shift)
    mine = copy.deepcopy(layer.op).to(x.dtype)
    quantize_weight, quantize_bias, clamp_weight, clamp_bias = ai8x.quantize_clamp_parameters(bits, bits)
    quantize, clamp = ai8x.quantize_clamp(wide, True, True, bits)
    scale = 1.0 if simulate else torch.exp2(-shift)
    y = F.conv2d(x, clamp_weight(quantize_weight(mine.weight * scale)), clamp_bias(quantize_bias(mine.bias * scale)))
    if not wide:
        y = y * torch.exp2(shift)
    if simulate and not wide:
        y = ai8x.Floor()(y)
    y = clamp(quantize(ai8x.get_activation(activation)(y)))
    assert len(y.unique()) > 3 or bits < 4
    assert torch.equal(layer(x).double(), y.double())
    if not simulate:
        for output, op in ((layer(x), layer.op), (y, mine)):
            output.sum().backward()
            assert op.weight.grad.abs().sum() > 0
        assert torch.equal(layer.op.weight.grad, mine.weight.grad) and torch.equal(layer.op.bias.grad, mine.bias.grad)


@pytest.mark.parametrize("pooling", ["Max", "Avg"])
@pytest.mark.parametrize("round_avg", [False, True])
@pytest.mark.parametrize("simulate", [False, True])
def test_pools_of_the_vendors_pieces(pooling, round_avg, simulate):
    ai8x.set_device(85, simulate, round_avg, verbose=False)
    layer = ai8x.Conv2d(0, 0, None, pooling=pooling, weight_bits=8, bias_bits=8, quantize_activation=True)
    quantize, clamp = ai8x.quantize_clamp_pool(pooling, True, True)
    x = batch(3, 6, 6) * (128 if simulate else 1)
    assert torch.equal(clamp(quantize(layer.pool(x))), layer(x))
    off = [*ai8x.quantize_clamp_pool("Max"), *ai8x.quantize_clamp_pool(None)]
    assert all(type(piece) is ai8x.Empty for piece in off) and all(off), "modules are true"


def test_nothing_is_quantized_before_qat():
    pieces = [*ai8x.quantize_clamp(False), *ai8x.quantize_clamp(True), *ai8x.quantize_clamp_pool("Avg")]
    assert {type(piece) for piece in (*pieces, *ai8x.quantize_clamp_parameters(0, 0))} == {ai8x.Empty}
    quantize, clamp = ai8x.quantize_clamp(False, False, True)
    assert type(quantize) is ai8x.Empty and clamp(torch.tensor([-2.0, 3.0])).tolist() == [-1.0, 127 / 128]
    assert ai8x.quantize_clamp(True, False, True)[1](torch.tensor([1e6])).item() == 2**15
    x = torch.tensor([-1.25, 0.3], requires_grad=True)
    ai8x.Quantize(8, 1)(x).sum().backward()
    assert ai8x.Quantize(8, 1)(x).tolist() == [-0.625, 19 / 128] and x.grad.tolist() == [1.0, 1.0]


def test_get_activation():
    x = torch.tensor([-0.5, 0.25])
    assert torch.equal(ai8x.get_activation("ReLU")(x.clone()), torch.tensor([0.0, 0.25]))
    assert torch.equal(ai8x.get_activation("Abs")(x), x.abs())
    assert torch.equal(ai8x.get_activation()(x), x) and torch.equal(ai8x.get_activation(None)(x), x)
    with pytest.raises(ValueError, match="activation='relu' is unknown; choose one of None, 'ReLU', 'Abs'"):
        ai8x.get_activation("relu")


# --- SoftwareLinear ---------------------------------------------------------------------------------------------------


class Head(nn.Module):
    """A convolution, and a linear layer outside the accelerator (the oldest published networks)."""

    input_shape = (3, 8, 8)

    def __init__(self, cls="SoftwareLinear", classes=5, bias=True, **kwargs):
        super().__init__()
        self.conv = ai8x.FusedMaxPoolConv2dReLU(3, 8, 3, padding=1, bias=bias, **kwargs)
        self.fc = getattr(ai8x, cls)(8 * 4 * 4, classes, bias=True)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x.view(x.size(0), -1))


@pytest.mark.parametrize("cls", ["SoftwareLinear", "FusedSoftwareLinearReLU"])
def test_software_linear_is_a_linear_layer_with_the_vendors_keys_and_clamp(cls):
    layer = getattr(ai8x, cls)(4, 3, bias=True)
    assert list(layer.state_dict()) == ["op.weight", "op.bias"] and getattr(ai8x, cls)(4, 3, bias=1).op.bias is None
    x, relu = batch(4), "ReLU" in cls
    wanted = F.linear(x, layer.op.weight, layer.op.bias)
    assert torch.equal(layer(x), (wanted.relu() if relu else wanted).clamp(-1, 127 / 128))
    with torch.no_grad():
        layer.op.weight.copy_(torch.tensor([[127.0, 127, 127, 127]] * 3))
        layer.op.bias.copy_(torch.tensor([64.0, 63.0, -1e7]))
    ai8x.set_device(85, True, False, verbose=False)
    assert layer(torch.zeros(1, 4)).tolist() == [[1.0, 0.0, 0.0 if relu else -32768.0]], "rounded, 16 bits"


@pytest.mark.filterwarnings("default")
def test_software_linear_warns_at_the_line_that_builds_it():
    for cls in ("SoftwareLinear", "FusedSoftwareLinearReLU"):
        with pytest.warns(UserWarning, match=f"^{cls} runs outside the accelerator, .*; use ai8x.Linear") as seen:
            getattr(ai8x, cls)(4, 3)
        assert seen[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_qat_starts_around_a_software_linear_and_leaves_it_alone():
    model, x = Head(), batch(3, 8, 8)
    with torch.no_grad():
        model.conv.op.weight.mul_(8)  # so that scales differ from 1
        before = model.eval()(x)
        ai8x.pre_qat(model, [x], POLICY)
        assert model.conv.final_scale.item() > 0 and torch.equal(model(x), before)
    ai8x.initiate_qat(model, POLICY)
    model.train()(x).sum().backward()
    assert model.fc.op.weight.grad is not None and model.conv.weight_bits.item() == 8


def test_layers_behind_a_software_linear_are_not_scaled_through_it():
    model = nn.Sequential(ai8x.Linear(6, 6, bias=True), ai8x.SoftwareLinear(6, 6, bias=True), ai8x.Linear(6, 3, bias=True))
    x = batch(6)
    with torch.no_grad():
        model[0].op.weight.mul_(16)
        before = model(x)
        ai8x.pre_qat(model, [x], POLICY)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("cls", ["SoftwareLinear", "FusedSoftwareLinearReLU"])
def test_software_linear_is_refused_by_name(cls, tmp_path):
    model, x = Head(cls), batch(3, 8, 8)
    ai8x.start_qat(model, [x], POLICY, progress=False)
    remedy = "it runs outside the accelerator: use ai8x.Linear, or compute it outside the network"
    sentence = f"fc: the chip cannot compute {cls}; {remedy}"
    assert ai8x.fit(model).violations == [sentence]
    for refuse in (quantize_model, lambda m: export_all(m, tmp_path / "e"), lambda m: export_onnx(m, tmp_path / "m.onnx")):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            refuse(model)
    for default in (None, 8):
        with pytest.raises(ValueError, match="^fc: it has weights, but no quantization state, as a SoftwareLinear .* use"):
            quantize_checkpoint(model.state_dict(), default_bits=default)
    assert not list(tmp_path.iterdir())


def test_both_remedies_for_a_software_linear_work():
    class Outside(Head):
        def forward(self, x):
            return self.conv(x)

    x = batch(3, 8, 8)
    for model in (Head("Linear"), Outside()):
        ai8x.start_qat(model, [x], POLICY, progress=False)
        assert torch.equal(quantize_model(model, sample=x)(x), model.eval()(x))
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    assert quantize_checkpoint(state)["conv.weight_bits"].item() == 8


# --- whole files ------------------------------------------------------------------------------------------------------

FILE = """
import ai8x
import torch
from ai8x import get_activation, quantize_clamp, quantize_clamp_pool
from torch import nn


class Elastic(nn.Module):
    '''A convolution whose output channels and kernel can be taken in part, as networks are searched.'''
    def __init__(self, c_in, c_out, pooling=None, activation='ReLU', wide=False):
        super().__init__()
        assert ai8x.dev.device != 84 and c_in + c_out <= ai8x.dev.WEIGHT_INPUTS < ai8x.dev.WEIGHT_DEPTH
        self.quantize = self.clamp = None
        self.op, self.pool = nn.Conv2d(c_in, c_out, 3, padding=1), nn.MaxPool2d(2) if pooling else None
        self.activate, self.width = get_activation(activation), c_out
        self.quantize, self.clamp = quantize_clamp(wide, False)
        self.quantize_pool, self.clamp_pool = quantize_clamp_pool(pooling, False)

    def forward(self, x):
        assert self.clamp_pool and self.quantize_pool and self.clamp and self.quantize
        x = x if self.pool is None else self.clamp_pool(self.quantize_pool(self.pool(x)))
        x = nn.functional.conv2d(x, self.op.weight[:self.width], self.op.bias[:self.width], padding=1)
        return self.clamp(self.quantize(self.activate(x)))


class Search(nn.Module):
    def __init__(self, num_classes=3, num_channels=3, dimensions=(8, 8), bias=False, **kwargs):
        super().__init__()
        self.units = nn.ModuleList([Elastic(num_channels, 8), Elastic(8, 8, pooling='Max')])
        self.classifier = ai8x.Linear(8 * 16, num_classes, bias=bias, wide=True, **kwargs)

    def forward(self, x):
        for unit in self.units:
            x = unit(x)
        return self.classifier(x.view(x.size(0), -1))
"""


def test_a_file_that_imports_ai8x_runs_unchanged(tmp_path, monkeypatch):
    (tmp_path / "search_net.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "ai8x", ai8x)
    monkeypatch.delitem(sys.modules, "search_net", raising=False)
    model = importlib.import_module("search_net").Search(
        num_classes=3, bias=True, weight_bits=None, bias_bits=None, quantize_activation=False
    )
    del sys.modules["search_net"]
    x, optimizer = batch(3, 8, 8), torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(x).square().mean()
    before.backward()
    optimizer.step()
    assert model(x).square().mean() < before
    assert set(model.state_dict()) >= {"units.0.op.weight", "units.1.op.bias", "classifier.op.weight", "classifier.output_shift"}


class Fires(nn.Module):
    """Branches joined, a pool of torch's between layers, a 1x1 convolution over a flattened map (SqueezeNet, 6-layer net)."""

    shape, device = (3, 8, 8), 85

    def __init__(self, **kwargs):
        super().__init__()
        self.squeeze = ai8x.FusedMaxPoolConv2dReLU(in_channels=3, out_channels=4, kernel_size=3, padding=1, **kwargs)
        self.expand1 = ai8x.FusedConv2dReLU(in_channels=4, out_channels=8, kernel_size=1, **kwargs)
        self.expand3 = ai8x.FusedConv2dReLU(in_channels=4, out_channels=8, kernel_size=3, padding=1, **kwargs)
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2, padding=0)
        self.last = ai8x.Conv2d(16 * 4, 5, 1, padding=0, **{**kwargs, "bias": None})

    def forward(self, x):
        x = self.squeeze(x)
        x = self.pool(torch.cat([self.expand1(x), self.expand3(x)], 1))
        x = self.last(x.view(x.size(0), -1, 1, 1))
        return x.view(x.size(0), -1)


class Faces(nn.Module):
    """Three channels of the input, blocks that may lack layers or a sum, an embedding of length 1 (face identification)."""

    shape, device = (6, 16, 16), 87

    class Block(nn.Module):
        class Nothing(nn.Module):
            def forward(self, *x):
                return x[0]

        def __init__(self, c_in, c_out, stride, grow, **kwargs):
            super().__init__()
            hidden = int(round(c_in * grow))
            self.conv1 = ai8x.FusedConv2dBNReLU(c_in, hidden, 1, padding=0, **kwargs) if grow != 1 else ai8x.Empty()
            pooled = {"pool_size": stride, "pool_stride": stride} if stride > 1 else {"stride": 1}
            cls = ai8x.FusedMaxPoolDepthwiseConv2dBNReLU if stride > 1 else ai8x.FusedDepthwiseConv2dReLU
            self.conv2 = cls(hidden, hidden, 3, padding=1, **pooled, **kwargs)
            self.conv3 = ai8x.FusedConv2dBN(hidden, c_out, 1, **kwargs)
            self.resid = ai8x.Add() if stride == 1 and c_in == c_out else self.Nothing()

        def forward(self, x):
            return self.resid(self.conv3(self.conv2(self.conv1(x))), x)

    def __init__(self, **kwargs):
        super().__init__()
        self.stem = ai8x.FusedConv2dReLU(3, 8, 3, padding=1, stride=1, **{**kwargs, "bias": False})
        self.stages = nn.ModuleList([nn.Sequential(self.Block(8, 8, 2, 2, **kwargs), self.Block(8, 8, 1, 1, **kwargs))])
        self.stages.append(nn.Sequential(self.Block(8, 8, 1, 1.5, **kwargs)))
        self.embed = ai8x.FusedAvgPoolConv2d(8, 6, 1, padding=0, stride=1, pool_size=(8, 8), pool_stride=1, wide=False, **kwargs)

    def forward(self, x):
        x = self.stem(x[:, 0:3, :, :])
        for stage in self.stages:
            x = stage(x)
        return F.normalize(self.embed(x), p=2, dim=1).squeeze()


class Detector(nn.Module):
    """Layers in a ModuleDict, an unused Add, shared heads over several maps, sizes taken from a shape (feature pyramid)."""

    shape, device = (3, 16, 16), 87

    def __init__(self, device="cpu", **kwargs):
        super().__init__()
        self.device_name, self.first = device, ai8x.FusedConv2dBNReLU(3, 8, 3, padding=1, batchnorm="NoAffine", **kwargs)
        self.res = nn.ModuleDict({f"conv_{i}": ai8x.FusedMaxPoolConv2dBNReLU(8, 8, 3, padding=1, **kwargs) for i in range(2)})
        self.add, self.head, self.act = ai8x.Add(), ai8x.Conv2d(8, 2 * 3, 3, padding=1, wide=False, **kwargs), nn.Sigmoid()

    def forward(self, x):
        maps, x = [], self.first(x)
        for name in self.res:
            x = self.res[name](x)
            maps.append(x)
        return torch.cat([self.scores(m) for m in maps], dim=1), maps[0].size(0)

    def scores(self, features):
        y = self.head(features).permute(0, 2, 3, 1)
        n, width, height, _ = y.shape
        return y.contiguous().view(n, width, height, 2, 3).contiguous().view(features.shape[0], -1, 3)


class Recoder(nn.Module):
    """1D layers with every keyword, linear layers in a row with `bias=0`, the output viewed as the input (autoencoder)."""

    shape, device = (16, 3), 85

    def __init__(self, bias=True, **kwargs):
        super().__init__()
        self.conv = ai8x.FusedConv1dBNReLU(16, 8, 3, stride=1, padding=0, dilation=1, bias=bias, batchnorm="Affine", **kwargs)
        self.down = ai8x.Linear(8, 4, bias=0, **kwargs)
        self.up = ai8x.FusedLinearReLU(4, 8, bias=bias, **kwargs)
        self.out = ai8x.Linear(8, 48, bias=0, **kwargs)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.conv(x)
        x = self.out(self.up(self.down(x.view(x.shape[0], x.shape[1]))))
        return x.view(x.shape[0], 16, 3)


@pytest.mark.filterwarnings("ignore:pool .MaxPool2d. is no ai8x layer")
@pytest.mark.filterwarnings("ignore:.*never called in evaluation mode")
@pytest.mark.parametrize("network", [Fires, Faces, Detector, Recoder])
def test_networks_of_the_published_kind_go_all_the_way_to_the_chips_integers(network):
    """Built, started and evaluated as the vendor's train.py does; the quantized checkpoint computes what QAT did, bit for bit."""
    ai8x.set_device(network.device, False, False, verbose=False)
    model, x = network(bias=True, weight_bits=None, bias_bits=None, quantize_activation=False), batch(*network.shape)
    ai8x.trace(model)
    ai8x.fuse_bn_layers(model)
    ai8x.pre_qat(model, [(x, torch.zeros(4))], SimpleNamespace(device=network.device, act_mode_8bit=False), POLICY)
    ai8x.initiate_qat(model, POLICY)

    def output(network, x):
        y = network(x)
        return y[0] if isinstance(y, tuple) else y

    output(model.train(), x).square().sum().backward()
    wanted, state = output(model.eval(), x), quantize_checkpoint(model.state_dict())
    assert len(wanted.unique()) > 4 and ai8x.fit(model, network.shape).layers > 2
    ai8x.set_device(network.device, True, False, verbose=False)
    evaluated = network(bias=True, weight_bits=8, bias_bits=8, quantize_activation=True)
    ai8x.fuse_bn_layers(evaluated)
    evaluated.load_state_dict(state)
    ai8x.update_model(evaluated)
    assert torch.equal(output(evaluated.eval(), x * 128) / (1 if network is Faces else 128), wanted)


# --- the sequence of train.py -----------------------------------------------------------------------------------------


def small():
    torch.manual_seed(1)
    return nn.Sequential(ai8x.FusedConv2dReLU(3, 4, 3), ai8x.Conv2d(4, 2, 1, wide=True))


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_pre_qat_takes_the_vendors_order_and_obeys_its_policy():
    pictures = torch.cat([batch(3, 6, 6)] * 64) * 0.05
    pictures[:5] *= 20  # outliers, so that the z score decides the thresholds
    loader = [(pictures, 0)]
    nets = [small() for _ in range(4)]
    ours = [{"weight_bits": 8, "outlier_removal_z_score": z} for z in (2.0, 8.0)]
    for net, policy in zip(nets, ours):
        ai8x.pre_qat(net, loader, policy)
    for net, policy in zip(nets[2:], ours):
        ai8x.pre_qat(net, loader, SimpleNamespace(device=85, act_mode_8bit=False, qat_policy="policies/no_such_file.yaml"), policy)
    assert not states_equal(nets[0], nets[1]), "the policy decides"
    assert states_equal(nets[0], nets[2]) and states_equal(nets[1], nets[3])


def test_the_steps_of_pre_qat_by_hand():
    loader, by_hand, at_once = [(batch(3, 6, 6), 0)] * 2, small(), small()
    ai8x.init_hist(by_hand)
    ai8x.stat_collect(loader, by_hand, SimpleNamespace(device="cpu"))
    ai8x.init_threshold(by_hand, 8.0)
    ai8x.release_hist(by_hand)
    ai8x.apply_scales(by_hand)
    ai8x.pre_qat(at_once, loader, POLICY)
    assert states_equal(by_hand, at_once) and by_hand.training


def test_bayer_filter():
    image = torch.arange(3 * 4 * 4.0).view(3, 4, 4)
    seen = ai8x.bayer_filter()(image)
    assert seen.shape == (1, 4, 4) and seen[0, :2, :2].tolist() == [[16, 33], [4, 21]]  # green, blue; red, green
    assert seen[0, 2:, 2:].tolist() == [[26, 43], [14, 31]] and image[1, 0, 1] == 17, "the image stays as it is"


# --- a network of pools alone -----------------------------------------------------------------------------------------


class Pools(nn.Module):
    input_shape = (3, 8, 8)

    def __init__(self, **kwargs):
        super().__init__()
        self.max, self.avg = ai8x.MaxPool2d(2, **kwargs), ai8x.AvgPool2d(2, **kwargs)

    def forward(self, x):
        return self.avg(self.max(x))


@pytest.mark.parametrize("started", [False, True])
def test_of_pools_the_checkpoint_keeps_everything_but_its_flags(started):
    model, x = Pools(), batch(3, 8, 8)
    if started:
        ai8x.start_qat(model, [x], {"weight_bits": 4}, progress=False)
    state = model.state_dict()
    got = quantize_checkpoint(state)
    assert list(got) == list(state)
    for key, value in got.items():
        flag = {"adjust_output_shift": 0.0, "quantize_activation": 1.0}.get(key.rpartition(".")[2])
        wanted = state[key] if flag is None else torch.tensor([flag])
        assert value.dtype == wanted.dtype and torch.equal(value, wanted), key
    assert state["avg.adjust_output_shift"].dtype == torch.bool, "the given one stays as it is"
    ai8x.set_device(85, True, False, verbose=False)
    evaluated = Pools(weight_bits=8, bias_bits=8, quantize_activation=True)
    evaluated.load_state_dict(got)
    ai8x.update_model(evaluated)
    assert torch.equal(evaluated(x * 128), torch.trunc(F.avg_pool2d(F.max_pool2d(x * 128, 2), 2)))


def test_of_pools_everything_else_says_one_clear_sentence(tmp_path):
    model, x = Pools(), batch(3, 8, 8)
    remedy = "build it from ai8x.Conv2d, ai8x.FusedConv2dReLU and the like"
    sentence = f"Pools has pools alone, so there is nothing to quantize; {remedy}"
    for refuse in (quantize_model, lambda m: export_all(m, tmp_path / "e")):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            refuse(model)
    assert ai8x.fit(model).violations == [sentence]
    with pytest.raises(ValueError, match="has no ai8x layer with weights; build it from"):
        diagnose(model, x)


@pytest.mark.parametrize("state", [{}, {"add.activation_threshold": torch.zeros(())}, {"fc.weight": torch.zeros(2, 2)}])
def test_what_holds_no_layer_is_refused_as_before(state):
    with pytest.raises(ValueError, match="holds no ai8x layer"):
        quantize_checkpoint(state)
