"""From a trained network to integers: equal to QAT bit for bit, both file forms and back, refusals by name."""

import copy
import io

import numpy as np
import pytest
import torch
from compact_nets import golden, recorded_network
from recorded_nets import NetAdd, NetCatMaps
from torch import nn

from qatlib import ai8x
from qatlib.export import compact_to_checkpoint, quantize_checkpoint
from qatlib.integer import QuantizedModel, compact_from_checkpoint, load_compact, quantize_model
from qatlib.integer.compact import CompactModel

pytestmark = pytest.mark.usefixtures("one_thread")


RECORDED = {"pipeline_add_w8": (NetAdd, (85, False, False)), "pipeline_cat_mixed": (NetCatMaps, (87, False, True))}


def fused(model):
    """A network without batch norm left."""
    ai8x.fuse_bn_layers(model)
    return model


def trained(name):
    """The recorded network after its 20 steps of QAT, and its arrays."""
    cls, device = RECORDED[name]
    ai8x.set_device(*device, verbose=False)
    arrays, model = golden(name), fused(cls())
    model.load_state_dict({k.removeprefix("s5_qat_final/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("s5_")})
    ai8x.update_model(model)
    return model.eval(), arrays


def qat(model, bits=8, loader=None, shape=None):
    """Calibrated on random inputs, with QAT on: the state in which training would begin."""
    loader = loader or [grid(32, shape or model.input_shape)]
    policy = {"start_epoch": 1, "weight_bits": bits}
    model.eval()
    ai8x.fuse_bn_layers(model)
    ai8x.pre_qat(model, loader, policy)
    ai8x.initiate_qat(model, policy)
    return model


def grid(n, shape, limit=128):
    return torch.randint(-limit, limit, (n, *shape)).float() / 128


def same(a: CompactModel, b: CompactModel, graph=True) -> bool:
    tensors = a.tensors.keys() == b.tensors.keys() and all(np.array_equal(a.tensors[k], b.tensors[k]) for k in a.tensors)
    return tensors and (not graph or a.graph == b.graph)


# --- equality -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_network(name):
    model, arrays = trained(name)
    quantized = quantize_model(model)
    codes = torch.from_numpy(arrays["sim_x"])
    got = quantized(codes / 128)
    assert torch.equal(got, model(codes / 128))
    want = torch.from_numpy(arrays["qat_y"])
    assert torch.equal(got if got.dim() == 2 else got.mean((2, 3)), want)
    assert torch.equal(quantized(codes.to(torch.int8)), got)
    reference = recorded_network(name)
    assert same(quantized.compact, reference, graph=False)
    for op, other in zip(quantized.compact.ops, reference.ops, strict=True):
        assert op | {"name": "", "inputs": ""} == other | {"name": "", "inputs": ""}


@pytest.mark.parametrize("name", RECORDED)
def test_vendor_checkpoint_and_compact_model_become_each_other(name):
    model, arrays = trained(name)
    quantized = quantize_model(model)
    vendor = {k.removeprefix("s6_quantized/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("s6_")}
    written = compact_to_checkpoint(quantized.compact)
    assert list(written) == list(vendor)
    for key, value in vendor.items():
        assert written[key].dtype == value.dtype and written[key].shape == value.shape and torch.equal(written[key], value), key
    back = compact_from_checkpoint(RECORDED[name][0](), vendor)
    assert same(back.compact, quantized.compact)
    assert back.state_dict()["checksum"].tolist() == quantized.state_dict()["checksum"].tolist()


LAYERS = {
    "conv3x3": (lambda: ai8x.Conv2d(5, 7, 3, padding=1), (5, 6, 6)),
    "conv without bias": (lambda: ai8x.FusedConv2dReLU(5, 7, 1, bias=False), (5, 4, 4)),
    "max pool": (lambda: ai8x.FusedMaxPoolConv2dReLU(4, 6, 3, padding=2, pool_size=3, pool_stride=2), (4, 9, 9)),
    "average pool": (lambda: ai8x.FusedAvgPoolConv2dReLU(4, 6, 3, padding=1, pool_size=3, pool_stride=1), (4, 8, 8)),
    "pools alone": (lambda: nn.Sequential(ai8x.AvgPool2d(2), ai8x.Conv2d(3, 4, 1), ai8x.MaxPool2d(2)), (3, 9, 9)),
    "average between layers": (lambda: nn.Sequential(ai8x.Conv2d(3, 4, 1), ai8x.AvgPool2d(2), ai8x.Conv2d(4, 2, 1)), (3, 9, 9)),
    "transposed": (lambda: ai8x.FusedConvTranspose2dReLU(4, 6, 3, stride=2, padding=1), (4, 5, 5)),
    "transposed after pool": (lambda: ai8x.FusedMaxPoolConvTranspose2dReLU(4, 3, 3, stride=2, padding=2), (4, 8, 8)),
    "1d, dilated": (lambda: ai8x.FusedConv1dReLU(4, 6, 3, padding=2, dilation=3), (4, 19)),
    "1d, pooled": (lambda: ai8x.FusedAvgPoolConv1dReLU(4, 6, 5), (4, 20)),
    "linear, wide": (lambda: ai8x.Linear(40, 6, bias=True, wide=True), (40,)),
    "linear": (lambda: ai8x.FusedLinearReLU(40, 6, bias=True), (40,)),
    "wide": (lambda: ai8x.Conv2d(6, 3, 1, wide=True), (6, 3, 3)),
}


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer(kind, bits):
    build, shape = LAYERS[kind]
    model = qat(nn.Sequential(build()), bits, [grid(16, shape)])
    x = grid(16, shape)
    assert torch.equal(quantize_model(model, input_shape=shape)(x), model(x))


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_depthwise_layers_of_the_larger_chip(bits):
    ai8x.set_device(87, verbose=False)
    build = nn.Sequential(ai8x.FusedDepthwiseConv2dReLU(6, 6, 3, padding=1),
                          ai8x.DepthwiseConvTranspose2d(6, 6, 3, stride=2, padding=1))  # fmt: skip
    model = qat(build, bits, [grid(16, (6, 5, 5))])
    x = grid(8, (6, 5, 5))
    quantized = quantize_model(model, sample=x)
    assert quantized.compact.graph["device"] == 87
    assert torch.equal(quantized(x), model(x))


class Branches(nn.Module):
    """Residual sum and difference, concatenation, two outputs, a layer used twice, everything behind batch norm."""

    input_shape = (4, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem = ai8x.FusedConv2dBNReLU(4, 8, 3, padding=1)
        self.left = ai8x.FusedConv2dBNReLU(8, 8, 3, padding=1)
        self.right = ai8x.FusedConv2dBN(8, 8, 1)
        self.add, self.sub = ai8x.Add(), ai8x.Sub()
        self.again = ai8x.FusedConv2dBNReLU(8, 8, 3, padding=1)
        self.one = ai8x.FusedMaxPoolConv2d(16, 5, 1)
        self.two = ai8x.Linear(8 * 64, 3, bias=True, wide=True)

    def forward(self, x):
        x = self.stem(x)
        y = self.add(self.left(x), self.right(x), x)
        z = self.again(self.again(self.sub(y, x)))
        return self.one(torch.cat((y, z), dim=1)), self.two(torch.flatten(nn.functional.dropout(z, 0.5, self.training), 1))


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_branches_shared_layers_and_two_outputs(bits):
    model = qat(Branches(), bits)
    x = grid(12, model.input_shape)
    got, want = quantize_model(model)(x), model(x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert got[0].unique().numel() > 1 or bits == 1


def test_mixed_bits_follow_the_policy():
    model = qat(NetAdd())
    overrides = {"conv1": {"weight_bits": 8}, "conv5": {"weight_bits": 2}}
    ai8x.initiate_qat(model, {"start_epoch": 1, "weight_bits": 4, "overrides": overrides})
    x = grid(8, model.input_shape)
    quantized = quantize_model(model)
    bits = {op["name"]: op["weight_bits"] for op in quantized.compact.ops if "weight_bits" in op}
    assert bits == {"conv1": 8, "conv2": 4, "conv3": 4, "conv4": 4, "conv5": 2, "fc": 4}
    assert torch.equal(quantized(x), model(x))


def test_abs_differs_at_negative_ties_only():
    model = qat(nn.Sequential(ai8x.FusedConv2dAbs(3, 4, 1, bias=False)), 8, [grid(16, (3, 8, 8))])
    x = grid(64, (3, 8, 8))
    quantized = quantize_model(model, input_shape=(3, 8, 8))
    got, want = quantized(x), model(x)
    op = quantized.compact.ops[0]
    acc = torch.nn.functional.conv2d((x * 128).double(), torch.from_numpy(quantized.compact.weight("0")).double())
    v = acc * 2.0 ** (op["output_shift"] - 7)
    ties = (v < 0) & (v.abs().remainder(1) == 0.5) & (v > -127)
    assert torch.equal(want - got, ties / 128) and ties.any() and torch.equal(quantized(x, abs_first=True), want)


# --- bit widths other than in training -----------------------------------------------------------------------------------


def test_another_bit_width_later_warns_and_leaves_the_model_alone():
    model = qat(NetAdd())
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="conv1.*trained with 8.* bits and quantized to 4"):
        four = quantize_model(model, bit_width=4)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert four.compact.tensors["conv3.weight"].dtype == np.uint8
    x = grid(4, model.input_shape)
    ai8x.initiate_qat(model, {"start_epoch": 1, "weight_bits": 4})
    assert torch.equal(four(x), model(x))


@pytest.mark.filterwarnings("error")
def test_post_training_quantization_of_a_calibrated_network():
    model = fused(NetAdd()).eval()
    with torch.no_grad():
        model.conv1.op.weight.mul_(20)  # so that some threshold is above 0
    ai8x.pre_qat(model, [grid(16, model.input_shape)], {"start_epoch": 1, "weight_bits": 8})
    x = grid(8, model.input_shape)
    eight, two = quantize_model(model), quantize_model(model, bit_width=2)
    assert model.conv1.weight_bits.item() == 0
    for quantized, bits in ((eight, 8), (two, 2)):
        ai8x.initiate_qat(model, {"start_epoch": 1, "weight_bits": bits})
        assert torch.equal(quantized(x), model(x))
    assert two.state_dict()["fc.weight"].nbytes * 4 == eight.state_dict()["fc.weight"].nbytes


def test_another_bit_width_keeps_the_shift_quantile():
    model = qat(NetAdd())
    ai8x.initiate_qat(model, {"start_epoch": 1, "weight_bits": 8, "shift_quantile": 0.7})
    with pytest.warns(UserWarning, match="quantized to 4"):
        four = quantize_model(model, bit_width=4)
    ai8x.initiate_qat(model, {"start_epoch": 1, "weight_bits": 4, "shift_quantile": 0.7})
    assert same(four.compact, quantize_model(model).compact)
    ai8x.initiate_qat(model, {"start_epoch": 1, "weight_bits": 4})
    assert not same(four.compact, quantize_model(model).compact)


@pytest.mark.filterwarnings("error")
def test_sums_saturate_in_post_training_quantization_too():
    model = fused(NetAdd()).eval()
    with torch.no_grad():
        model.conv1.op.weight.mul_(20)
    ai8x.pre_qat(model, [grid(16, model.input_shape)], {"start_epoch": 1, "weight_bits": 8})
    with torch.no_grad():
        model.conv4.op.bias.fill_(10.0)
    quantize_model(model, sample=grid(4, model.input_shape))


# --- files and round trips -----------------------------------------------------------------------------------------------


def test_file_round_trip(tmp_path):
    model = qat(Branches(), 4)
    quantized = quantize_model(model)
    path = quantized.save(tmp_path / "model_8bit.pth")
    assert path.read_bytes() == quantize_model(model).save(tmp_path / "again.pth").read_bytes()
    state = torch.load(path, weights_only=True)
    assert {v.dtype for v in state.values()} == {torch.uint8, torch.int8}
    x = grid(3, model.input_shape)
    for other in (load_compact(path), QuantizedModel.from_state_dict(state), QuantizedModel(CompactModel.load(path))):
        assert same(other.compact, quantized.compact)
        assert all(torch.equal(a, b) for a, b in zip(other(x), model(x), strict=True))
    buffer = io.BytesIO()
    torch.save(quantized.state_dict(), buffer)  # a learner's own line gives the same content
    (tmp_path / "own.pth").write_bytes(buffer.getvalue())
    assert same(CompactModel.load(tmp_path / "own.pth"), quantized.compact)


def test_load_state_dict_follows_and_checks():
    first, second = qat(NetAdd()), qat(NetAdd())
    a, b = quantize_model(first), quantize_model(second)
    x = grid(2, first.input_shape)
    if a.state_dict()["graph"].shape == b.state_dict()["graph"].shape:
        a.load_state_dict(b.state_dict())
        assert torch.equal(a(x), second(x))
    edited = {key: value.clone() for key, value in b.state_dict().items()}
    edited["conv1.weight"][0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="checksum"):
        b.load_state_dict(edited)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_dequantized_weights_are_the_fake_quantized_ones(bits):
    model = qat(NetAdd(), bits)
    real = quantize_model(model).dequantize()
    assert len(real) == 12
    for name in ("conv1", "conv4", "fc"):
        layer = getattr(model, name)
        weight, bias = (t * 2.0 ** (layer.weight_shift() - bits + 1) for t in layer.quantized_weight())
        assert torch.equal(real[f"{name}.weight"], weight) and torch.equal(real[f"{name}.bias"], bias)
        if bits == 8:  # half a step of 2^(shift-7), one step for the largest weight, which may saturate
            step = 2.0 ** (layer.weight_shift() - 7)
            assert (real[f"{name}.weight"] - layer.op.weight).abs().max() <= step


def test_quantized_checkpoint_of_the_same_network_holds_the_same_integers():
    model = qat(Branches(), 2)
    vendor, compact = quantize_checkpoint(model.state_dict()), quantize_model(model).compact
    written = compact_to_checkpoint(compact)
    assert list(written) == list(vendor)
    assert all(torch.equal(written[key], value) and written[key].dtype == value.dtype for key, value in vendor.items())


@pytest.mark.filterwarnings("ignore:.*output_shift:UserWarning")
@pytest.mark.parametrize("correct_shift", [False, True])
def test_shifts_beyond_the_vendors_clamp_are_the_same_from_both_sides(correct_shift):
    model = qat(NetAdd(), 2)
    model.conv3.activation_threshold.data.fill_(10)
    ai8x.update_model(model)
    vendor = quantize_checkpoint(model.state_dict(), correct_shift)
    assert (vendor["conv3.output_shift"].item() == -9) != correct_shift
    written = compact_to_checkpoint(quantize_model(model).compact, correct_shift)
    assert all(torch.equal(written[key], value) for key, value in vendor.items())


# --- refusals ------------------------------------------------------------------------------------------------------------


def test_untrained_networks_are_refused_by_name():
    with pytest.raises(ValueError, match=r"conv1: QAT was never on .* never calibrated; call ai8x.start_qat"):
        quantize_model(fused(NetAdd()))
    with pytest.raises(ValueError, match="stem: its batch normalisation is not fused; start again"):
        quantize_model(Branches())
    with pytest.raises(ValueError, match="Linear has no ai8x layer; build it from"):
        quantize_model(nn.Linear(2, 2), input_shape=(2,))
    with pytest.raises(ValueError, match="bit_width is 3"):
        quantize_model(qat(NetAdd()), bit_width=3)


def test_nan_weights_are_refused_by_name():
    model = qat(NetAdd())
    model.conv4.op.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="conv4: op.weight holds NaN"):
        quantize_model(model)


def test_shapes_and_modes_are_refused():
    model = qat(NetAdd())
    plain = nn.Sequential(qat(nn.Sequential(ai8x.Conv2d(3, 3, 1)), shape=(3, 4, 4)))
    with pytest.raises(ValueError, match="Sequential has no input_shape"):
        quantize_model(plain)
    with pytest.raises(ValueError, match="does not accept inputs of shape"):
        quantize_model(model, input_shape=(4, 16, 16))
    ai8x.set_device(85, True, False, verbose=False)
    with pytest.raises(ValueError, match="simulate is on"):
        quantize_model(model)


def test_the_input_must_be_on_the_grid():
    quantized = quantize_model(qat(NetAdd()))
    for wrong in (torch.full((1, 3, 16, 16), 0.3), torch.ones(1, 3, 16, 16), torch.full((1, 3, 16, 16), float("nan"))):
        with pytest.raises(ValueError, match="1/128 grid .* ai8x.normalize"):
            quantized(wrong)


class Wrong(nn.Module):
    input_shape = (3, 8, 8)

    def __init__(self, how):
        super().__init__()
        self.conv, self.how = ai8x.Conv2d(3, 3, 3, padding=1, stride=2 if how == "stride" else 1), how
        if how == "kernel":
            self.conv = ai8x.ConvTranspose2d(3, 3, 1, stride=2)
        self.xor, self.tail = ai8x.BitwiseXor(), ai8x.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.conv(x)
        if self.how == "xor":
            return self.xor(x, y)
        if self.how == "plus":
            return self.tail(x + y)
        if self.how == "relu":
            return self.tail(torch.relu(y))
        if self.how == "cat":
            return self.tail(torch.cat([y, y], dim=2))
        if self.how == "view":
            return self.tail(y.view(-1, 64, 3).mT.unflatten(2, (8, 8)))
        return self.tail(y)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("stride", r"conv: the chip runs 2D convolutions with stride 1 only, not 2; pool in front"),
        ("kernel", r"conv: the chip runs transposed convolutions with 3x3 kernels only, not 1x1; use kernel_size=3"),
        ("xor", "xor: BitwiseXor has no exact integer form in ai8x; use Add or Sub"),
        ("plus", "the chip cannot compute add; use ai8x.Add"),
        ("relu", "relu: the chip cannot compute relu; give the ai8x layer in front"),
        ("cat", r"cat: concatenation along axis 2; .* dim=1"),
        ("view", r"view: reshaping \(3, 8, 8\) to \(64, 3\) moves values between channels .* x.flatten\(1\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:the chip runs")
def test_what_the_chip_lacks_is_refused_by_name(how, sentence):
    model = Wrong(how)
    ai8x.initiate_qat(model, {"start_epoch": 1, "weight_bits": 8})
    with pytest.raises(ValueError, match=sentence):
        quantize_model(model)


def test_scaled_intermediate_outputs_and_illegal_shifts_are_refused():
    model = qat(NetAdd())
    model.conv3.final_scale.data.fill_(2)
    ai8x.update_model(model)
    with pytest.raises(ValueError, match="conv3: its final_scale is not 0 .*, but conv4 reads it"):
        quantize_model(model)
    ended = qat(nn.Sequential(ai8x.Conv2d(3, 4, 1), ai8x.AvgPool2d(2)), shape=(3, 8, 8))
    ended[0].final_scale.data.fill_(1)
    ai8x.update_model(ended)
    with pytest.raises(ValueError, match="0: its final_scale is not 0 .*, but 1 reads it.* end the network with a layer"):
        quantize_model(ended, input_shape=(3, 8, 8))
    model = qat(NetAdd(), 2)
    model.conv3.activation_threshold.data.fill_(-15)
    ai8x.update_model(model)
    with pytest.raises(ValueError, match=r"conv3: output_shift 1\d is outside \[-21, 9\] of 2-bit weights"):
        quantize_model(model)
    model = qat(NetAdd())
    model.conv3.bias_bits.data.fill_(4)
    with pytest.raises(ValueError, match="conv3: bias_bits 4 differ from weight_bits 8"):
        quantize_model(model)


def test_an_integer_checkpoint_is_sent_to_its_own_function():
    model, arrays = trained("pipeline_add_w8")
    vendor = quantize_checkpoint(model.state_dict())
    model.load_state_dict(vendor)
    ai8x.update_model(model)
    with pytest.raises(ValueError, match="conv1: it holds an integer checkpoint already; use compact_from_checkpoint"):
        quantize_model(model)
    with pytest.raises(ValueError, match="branch_a: the checkpoint has no such layer"):
        compact_from_checkpoint(NetCatMaps(), vendor)
    model, _ = trained("pipeline_add_w8")
    with pytest.raises(ValueError, match="conv1: its weights are no integers"):
        compact_from_checkpoint(NetAdd(), model.state_dict())


def test_sample_is_compared_and_a_difference_is_told():
    model = qat(NetAdd())
    x = grid(4, model.input_shape)
    quantize_model(model, sample=x)
    model.add.set_clamp(False)
    with torch.no_grad():
        model.conv4.op.bias.fill_(10.0)  # the sum saturates, which an unclamped Add does not show
    with pytest.warns(UserWarning, match="of 40 outputs differ from the QAT network's on the sample"):
        quantize_model(model, sample=x)
