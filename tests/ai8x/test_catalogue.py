"""The layer catalogue: names, constructor arguments, checkpoint keys, pickling, printing, and the idioms of published networks."""

import copy
import inspect
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from qatlib import ai8x

NAMES = """
Conv2d FusedConv2dReLU FusedConv2dAbs FusedConv2dBN FusedConv2dBNReLU MaxPool2d AvgPool2d FusedMaxPoolConv2d
FusedMaxPoolConv2dBN FusedMaxPoolConv2dReLU FusedMaxPoolConv2dBNReLU FusedMaxPoolConv2dAbs FusedMaxPoolConv2dBNAbs
FusedAvgPoolConv2d FusedAvgPoolConv2dReLU FusedAvgPoolConv2dBNReLU FusedAvgPoolConv2dAbs FusedAvgPoolConv2dBNAbs

DepthwiseConv2d FusedDepthwiseConv2dReLU FusedDepthwiseConv2dBNReLU FusedAvgPoolDepthwiseConv2d
FusedAvgPoolDepthwiseConv2dReLU FusedAvgPoolDepthwiseConv2dBNReLU FusedMaxPoolDepthwiseConv2d FusedMaxPoolDepthwiseConv2dReLU
FusedMaxPoolDepthwiseConv2dBNReLU

ConvTranspose2d FusedConvTranspose2dReLU FusedConvTranspose2dAbs FusedConvTranspose2dBNReLU FusedMaxPoolConvTranspose2d
FusedMaxPoolConvTranspose2dReLU FusedMaxPoolConvTranspose2dBNReLU FusedMaxPoolConvTranspose2dAbs FusedAvgPoolConvTranspose2d
FusedAvgPoolConvTranspose2dReLU FusedAvgPoolConvTranspose2dBNReLU FusedAvgPoolConvTranspose2dAbs

DepthwiseConvTranspose2d FusedDepthwiseConvTranspose2dReLU FusedDepthwiseConvTranspose2dBNReLU
FusedMaxPoolDepthwiseConvTranspose2d FusedMaxPoolDepthwiseConvTranspose2dReLU FusedMaxPoolDepthwiseConvTranspose2dBNReLU
FusedAvgPoolDepthwiseConvTranspose2d FusedAvgPoolDepthwiseConvTranspose2dReLU FusedAvgPoolDepthwiseConvTranspose2dBNReLU

Conv1d FusedConv1dReLU FusedConv1dBNReLU FusedConv1dAbs FusedConv1dBNAbs MaxPool1d AvgPool1d FusedMaxPoolConv1d
FusedMaxPoolConv1dBN FusedMaxPoolConv1dReLU FusedMaxPoolConv1dBNReLU FusedMaxPoolConv1dAbs FusedMaxPoolConv1dBNAbs
FusedAvgPoolConv1d FusedAvgPoolConv1dReLU FusedAvgPoolConv1dBNReLU FusedAvgPoolConv1dAbs FusedAvgPoolConv1dBNAbs

Linear FusedLinearReLU FusedLinearAbs
"""
LAYERS = NAMES.split()
ELTWISE = ["Add", "Sub", "BitwiseXor", "BitwiseOr"]
STATE = ["output_shift", "activation_threshold", "final_scale", "weight_bits", "bias_bits", "quantize_activation",
         "clamp_activation", "adjust_output_shift", "shift_quantile"]  # fmt: skip
BN = ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"]
QAT8 = {"weight_bits": 8, "bias_bits": 8, "quantize_activation": True}


def make(name, **kwargs):
    """The smallest sensible layer of that class, and an input for it."""
    torch.manual_seed(0)
    if "Depthwise" in name:
        ai8x.set_device(87, verbose=False)
    cls = getattr(ai8x, name)
    one_dimensional = "1d" in name
    x = torch.randint(-128, 128, (2, 4, 16) if one_dimensional else (2, 4, 8, 8)) / 128
    if "Linear" in name:
        return cls(4, 3, bias=True, **kwargs), x[:, :, 0, 0]
    if name in ("MaxPool1d", "AvgPool1d", "MaxPool2d", "AvgPool2d"):
        return cls(2, **kwargs), x
    stride = {"stride": 2} if "Transpose" in name else {}
    return cls(4, 4, 3, padding=1, **stride, **kwargs), x


def test_the_catalogue_is_complete_and_has_nothing_else():
    assert set(ai8x.LAYERS) == set(LAYERS)
    assert all(hasattr(ai8x, name) for name in LAYERS + ELTWISE)


WITHOUT_ACTIVATION = ("FusedMaxPoolConv1dBNAbs", "FusedAvgPoolConv1dBNAbs")  # the vendor forgot it


@pytest.mark.filterwarnings("ignore:.*has no activation")
@pytest.mark.parametrize("name", LAYERS)
def test_layer_does_what_its_name_says(name):
    layer, x = make(name)
    assert isinstance(layer, ai8x.QuantizationAwareModule) and type(layer).__name__ == name and type(layer).__doc__
    named = next((a for a in ("ReLU", "Abs") if name.endswith(a)), None)
    assert layer.activation == (None if name in WITHOUT_ACTIVATION else named)
    assert layer.pooling == next((p for p in ("Max", "Avg") if f"{p}Pool" in name), None)
    assert (layer.bn is not None) == ("BN" in name)
    assert not layer.wide
    kind = next((k for k in ("ConvTranspose2d", "Conv2d", "Conv1d", "Linear") if k in name), None)
    assert type(layer.op) is (getattr(nn, kind) if kind else type(None))
    if "Depthwise" in name:
        assert layer.op.groups == 4
    y = layer(x)
    if layer.activation:
        assert (y >= 0).all()
    if layer.op is not None:
        y.sum().backward()
        assert layer.op.weight.grad is not None


@pytest.mark.parametrize("name", WITHOUT_ACTIVATION)
def test_the_activation_that_the_vendor_forgot(name):
    x = torch.randint(-128, 128, (2, 3, 12)) / 128
    with pytest.warns(UserWarning, match=f"{name} has no activation, as the vendor's has none: pass activation='Abs'") as caught:
        without = getattr(ai8x, name)(3, 4, 3).eval()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_abs = getattr(ai8x, name)(3, 4, 3, activation="Abs").eval()
        assert getattr(ai8x, name)(3, 4, 3, activation=None).activation is None
    with_abs.load_state_dict(without.state_dict())
    assert (without(x) < 0).any() and torch.equal(with_abs(x), without(x).abs())


@pytest.mark.filterwarnings("ignore:.*has no activation")
@pytest.mark.parametrize("name", LAYERS)
def test_checkpoint_keys_pickle_and_copy(name):
    layer, x = make(name, **QAT8)
    weights = ["op.weight", "op.bias"] if layer.op is not None else []
    assert list(layer.state_dict()) == STATE + weights + (BN if "BN" in name else [])
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == weights + (BN[:2] if "BN" in name else [])
    layer.eval()
    want = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer) and torch.equal(twin(x), want)
    fresh, _ = make(name)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    ai8x.update_model(fresh)
    assert torch.equal(fresh.eval()(x), want)


def test_pickle_by_name_gives_the_class_itself():
    for name in LAYERS:
        assert pickle.loads(pickle.dumps(getattr(ai8x, name))) is getattr(ai8x, name)


CONV1D = [("in_channels", None), ("out_channels", None), ("kernel_size", None), ("pooling", None), ("pool_size", 2),
          ("pool_stride", 2), ("pool_dilation", 1), ("stride", 1), ("padding", 0), ("dilation", 1), ("bias", True),
          ("activation", None), ("wide", False), ("batchnorm", None), ("weight_bits", None), ("bias_bits", None),
          ("quantize_activation", False), ("groups", 1), ("eps", 1e-5), ("momentum", 0.05)]  # fmt: skip
CONV2D = CONV1D[:3] + [("op", "Conv2d")] + CONV1D[3:]
LINEAR = [("in_features", None), ("out_features", None), ("pooling", None), ("bias", None), ("activation", None), ("wide", False),
          ("batchnorm", None), ("weight_bits", None), ("bias_bits", None), ("quantize_activation", False)]  # fmt: skip


@pytest.mark.parametrize("name, want", [("Conv2d", CONV2D), ("Conv1d", CONV1D), ("Linear", LINEAR)])
def test_constructor_arguments_and_defaults(name, want):
    parameters = list(inspect.signature(getattr(ai8x, name).__init__).parameters.values())[1:]
    got = [(p.name, None if p.default is p.empty else p.default) for p in parameters]
    assert got == want


@pytest.mark.parametrize("name, base", [
    ("FusedConv2dBNReLU", "Conv2d"), ("FusedMaxPoolConv2dBNReLU", "FusedMaxPoolConv2d"), ("ConvTranspose2d", "Conv2d"),
    ("FusedConvTranspose2dReLU", "ConvTranspose2d"), ("DepthwiseConv2d", "Conv2d"), ("FusedAvgPoolConv1dBNAbs", "Conv1d"),
    ("FusedLinearReLU", "Linear"), ("MaxPool2d", "FusedMaxPoolConv2d"), ("AvgPool1d", "FusedAvgPoolConv1d"),
])  # fmt: skip
def test_subclasses(name, base):
    assert issubclass(getattr(ai8x, name), getattr(ai8x, base))


def test_a_contradicting_argument_is_refused_and_another_batch_norm_is_not():
    with pytest.raises(ValueError, match="FusedConv2dReLU has activation='ReLU'"):
        ai8x.FusedConv2dReLU(3, 4, 3, activation="Abs")
    with pytest.raises(ValueError, match="pooling='Max'"):
        ai8x.FusedMaxPoolConv1dBN(3, 4, 3, pooling="Avg")
    plain = ai8x.FusedConv2dBNReLU(3, 4, 3, batchnorm="NoAffine")
    assert not plain.bn.affine and plain.bn.momentum == 0.05 and plain.bn.eps == 1e-5
    assert ai8x.FusedConv2dBNReLU(3, 4, 3, batchnorm=None).bn is None


def test_state_in_and_out_of_qat():
    layer = ai8x.Conv2d(3, 4, 3)
    assert (layer.weight_bits.item(), layer.quantize_activation.item(), layer.clamp_activation.item()) == (0, False, False)
    layer.init_module(4, 4, True, False, 0.9)
    state = [getattr(layer, name) for name in STATE]
    assert [s.tolist() for s in state[3:8]] == [[4], [4], [True], [True], [True]]
    assert layer.shift_quantile.item() == torch.tensor(0.9).item()
    assert [tuple(s.shape) for s in state] == [(1,), (), ()] + [(1,)] * 6
    assert [s.dtype for s in state] == [torch.float32] * 3 + [torch.int64] * 2 + [torch.bool] * 3 + [torch.float32]
    layer.init_module(None, None, False, True)
    assert layer.weight_bits.item() == 0 and layer.clamp_activation.item() and not layer.quantize_activation.item()
    for bad in ((3, 3, True), (8, 8, False), (None, None, True), (8, None, True), (16, 16, True)):
        with pytest.raises(ValueError, match="use bits of 1, 2, 4 or 8"):
            layer.init_module(*bad)
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="shift_quantile"):
            layer.init_module(8, 8, True, False, share)


def test_printing_tells_the_state():
    layer = ai8x.FusedConv2dReLU(3, 4, 3)
    assert "QAT off" in repr(layer) and "output unbounded" in repr(layer)
    layer.init_module(4, 4, True)
    with torch.no_grad():
        layer.op.weight.fill_(0.2)
        layer.op.bias.zero_()
    layer.activation_threshold.data.fill_(1.0)
    layer.set_functions()
    for part in ("QAT on", "weight_bits=4", "output_shift=-3", "activation_threshold=1", "output 0..127/128"):
        assert part in repr(layer), part
    assert "output -1..127/128" in repr(ai8x.Conv2d(3, 4, 3, **QAT8))
    assert "wide output -2^15..2^15" in repr(ai8x.Linear(3, 4, wide=True, **QAT8))
    assert "pooling only, QAT off" in repr(ai8x.MaxPool2d(2))
    assert "QAT on, output -1..127/128" in repr(ai8x.AvgPool2d(2, **QAT8))
    assert "weight_bits=4, bias_bits=8" in repr(ai8x.Conv2d(3, 4, 3, **QAT8 | {"weight_bits": 4}))
    ai8x.set_device(85, True, verbose=False)
    assert "output 0..127 (integers)" in repr(layer) and "output -128..127 (integers)" in repr(ai8x.Add())
    assert "wide output -2^29..2^29-1 (integers)" in repr(ai8x.Linear(3, 4, wide=True, **QAT8))
    with pytest.raises(ValueError, match="in simulate the weights are integer codes already"):
        layer.quantized_weight()
    ai8x.set_device(85, verbose=False)
    with torch.no_grad():
        layer.op.weight[0] = float("nan")
    assert "nan" in repr(layer), "printing a broken layer must not break"


# --- what published network files do ------------------------------------------------------------------------------


def test_device_is_set_positionally_and_has_its_constants():
    ai8x.set_device(87, False, True)
    assert (ai8x.dev.device, ai8x.dev.simulate, ai8x.dev.round_avg) == (87, False, True)
    assert (ai8x.dev.WEIGHT_INPUTS, ai8x.dev.WEIGHT_DEPTH) == (256, 5120)
    ai8x.set_device(85, True, False)
    assert (ai8x.dev.WEIGHT_DEPTH, ai8x.dev.FULL_ACC_BITS, ai8x.dev.DATA_BITS, ai8x.dev.ACTIVATION_BITS) == (768, 30, 8, 8)
    with pytest.raises(ValueError, match="use 85"):
        ai8x.set_device(84, False, False)


def test_composition_in_blocks_and_sequential():
    class Block(nn.Module):
        def __init__(self, channels, **kwargs):
            super().__init__()
            self.layers = nn.ModuleDict()
            for i in range(2):
                self.layers[f"conv_{i}"] = ai8x.FusedConv2dBNReLU(channels, channels, 3, padding=1, **kwargs)
            self.resid, self.nothing = ai8x.Add(), ai8x.Empty()

        def forward(self, x):
            y = x
            for name in self.layers:
                y = self.layers[name](y)
            return self.resid(self.nothing(y), x)

    head = ai8x.Linear(4, 1, bias=True, wide=True)
    net = nn.Sequential(Block(4, bias=True), nn.Dropout(0.2), ai8x.AvgPool2d((8, 8)), nn.Flatten(), head)
    assert net(torch.zeros(2, 4, 8, 8)).shape == (2, 1)
    assert "0.layers.conv_1.op.weight" in net.state_dict() and "0.resid.activation_threshold" in net.state_dict()


def test_degenerate_layers_that_networks_contain():
    x = torch.randint(-128, 128, (1, 3, 4, 4)) / 128
    assert torch.equal(ai8x.Add()(x), x)
    assert torch.equal(ai8x.AvgPool2d(1, 1)(x), x)
    assert torch.equal(ai8x.MaxPool2d(1, stride=1)(x), x)
    assert torch.equal(ai8x.MaxPool2d(2)(x), nn.MaxPool2d(2)(x)) and torch.equal(ai8x.MaxPool2d(3, 1)(x), nn.MaxPool2d(3, 1)(x))
    assert ai8x.Linear(5, 1)(torch.zeros(2, 5)).shape == (2, 1) and ai8x.Linear(5, 1).op.bias is None
    assert ai8x.ConvTranspose2d(3, 3, kernel_size=3, padding=1, stride=2, bias=False)(x).shape == (1, 3, 8, 8)
    temporal = ai8x.Conv1d(3, 5, 3, dilation=4, wide=True, batchnorm="Affine")
    assert temporal(torch.zeros(2, 3, 9)).shape == (2, 5, 1)


def test_constructor_forms_of_the_vendor():
    x = torch.randint(-128, 128, (1, 3, 6, 6)) / 128
    assert torch.equal(ai8x.MaxPool2d(2, 2, 1)(x), nn.MaxPool2d(2)(x))
    assert torch.equal(ai8x.MaxPool1d(2, 2, 1)(x[0]), nn.MaxPool1d(2)(x[0]))
    assert ai8x.FusedMaxPoolConv2dReLU(3, 4, 1, pool_size=3, pool_stride=None).pool.stride == 3
    assert ai8x.FusedAvgPoolConv1dReLU(3, 4, 1, pool_size=3, pool_stride=None).pool.stride in (3, (3,))
    assert torch.equal(ai8x.Conv2d(0, 0, None, pooling="Max")(x), nn.MaxPool2d(2)(x))
    assert ai8x.Linear(4, 3, None, True).op.bias is not None
    assert ai8x.Conv2d(np.int64(3), np.int64(4), np.int64(3)).op.weight.shape == (4, 3, 3, 3)
    assert torch.equal(ai8x.fold(np.int64(2))(x[0]), ai8x.fold(2)(x[0]))
    assert torch.equal(ai8x.Eltwise(torch.maximum)(x, -x), x.abs())
    with pytest.raises(TypeError, match="or give it a function"):
        ai8x.Eltwise()(x, x)
    with pytest.raises(ValueError, match="kernel_size=None without pooling; give one"):
        ai8x.Conv1d(3, 4, None)


def test_grouped_convolution_on_87():
    ai8x.set_device(87, verbose=False)
    layer = ai8x.FusedConv2dBNReLU(in_channels=8, out_channels=8, groups=8, padding=1, kernel_size=3, eps=1e-3, momentum=0.01)
    assert layer(torch.zeros(1, 8, 4, 4)).shape == (1, 8, 4, 4) and layer.bn.eps == 1e-3 and layer.bn.momentum == 0.01
    dilated = ai8x.MaxPool2d(2, stride=1, dilation=2)
    assert dilated(torch.zeros(1, 1, 5, 5)).shape == (1, 1, 3, 3)


def test_normalize_both_modes():
    image = torch.arange(256).float() / 255
    codes = ai8x.normalize(SimpleNamespace(act_mode_8bit=True))(image)
    assert torch.equal(codes, torch.round((image - 0.5) * 256).clamp(-128, 127))
    assert torch.equal(ai8x.normalize(args=SimpleNamespace(act_mode_8bit=False))(image) * 128, codes)


@pytest.mark.parametrize("ratio", [1, 2, 4, (2, 4)])
def test_fold_and_unfold_are_inverse(ratio):
    rows, cols = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    image = torch.arange(3 * 8 * 8.0).view(3, 8, 8)
    folded = ai8x.fold(ratio)(image)
    assert folded.shape == (3 * rows * cols, 8 // rows, 8 // cols)
    for i in range(rows):
        for j in range(cols):
            start = 3 * (i * cols + j)
            assert torch.equal(folded[start : start + 3], image[:, i::rows, j::cols])
    assert torch.equal(ai8x.unfold_batch(folded[None], ratio)[0], image)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="has no 'Conv3d'"):
        _ = ai8x.Conv3d
