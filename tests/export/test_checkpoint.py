"""The integer checkpoint against the vendor's own, at the borders of the shift register, and for bad input."""

import numpy as np
import pytest
import torch
from compact_nets import golden

from qatlib import ai8x
from qatlib.export import quantize_checkpoint

PIPELINES = ["pipeline_add_w8", "pipeline_cat_mixed"]


def recorded(name, prefix):
    return {key.removeprefix(prefix): torch.from_numpy(value) for key, value in golden(name).items() if key.startswith(prefix)}


def one_layer(bits=8, weight=0.3, threshold=0.0, quantile=1.0):
    """State of one layer in QAT whose largest weight is `weight`."""
    layer = ai8x.Conv2d(2, 3, 1)
    layer.init_module(bits, bits, True, True, quantile)
    with torch.no_grad():
        layer.op.weight.copy_(torch.linspace(-weight, weight, 6).view(3, 2, 1, 1))
        layer.op.bias.copy_(torch.tensor([0.0, weight / 2, -weight / 3]))
        layer.activation_threshold.fill_(threshold)
    return {f"conv.{key}": value.clone() for key, value in layer.state_dict().items()}, layer


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("correct_shift", [False, True])
def test_recorded_pipeline(name, correct_shift):
    trained, want = recorded(name, "s5_qat_final/"), recorded(name, "s6_quantized/")
    before = {key: value.clone() for key, value in trained.items()}
    got = quantize_checkpoint(trained, correct_shift)
    assert list(got) == list(want)
    for key, value in want.items():
        assert got[key].dtype == value.dtype and got[key].shape == value.shape, key
        assert got[key].numpy().tobytes() == value.numpy().tobytes(), key
    assert all(torch.equal(trained[key], value) for key, value in before.items()), "the given state dict stays as it is"


@pytest.mark.filterwarnings("ignore:.*output_shift:UserWarning")
@pytest.mark.parametrize("column,bits", [(1, 8), (2, 4), (3, 2), (4, 1)])
def test_recorded_weight_shifts(column, bits):
    table = golden("output_shift")
    for i, row in enumerate(table["table"]):
        weight = torch.from_numpy(table[f"w{i}"])
        state, _ = one_layer(bits, quantile=float(table["shift_quantile"][i]))
        state["conv.op.weight"] = weight.view(-1, 1, 1, 1)
        del state["conv.op.bias"]
        for correct_shift in (False, True):
            codes = quantize_checkpoint(state, correct_shift)["conv.op.weight"].flatten()
            half = 2 ** (bits - 1)
            exact = np.floor(weight.double().numpy() * half * 2.0 ** row[column] + 0.5)
            assert np.array_equal(codes.numpy(), np.clip(exact, -half, half - 1)), (i, correct_shift)


def test_vendor_clamp_and_legal_clamp_of_the_shift():
    # 2 bits: the register holds [-21, 9], quantize.py writes [-9, 21]; the weights' shift is -1 here
    state, _ = one_layer(bits=2, threshold=10.0)
    with pytest.warns(UserWarning, match="conv: output_shift -9 is written, as the vendor does, but training used -11"):
        assert quantize_checkpoint(state)["conv.output_shift"].tolist() == [-9]
    with pytest.warns(UserWarning, match=r"conv: output_shift -11 is written where .* writes -9, .* \[-21, 9\] for 2-bit"):
        assert quantize_checkpoint(state, correct_shift=True)["conv.output_shift"].tolist() == [-11]
    state, _ = one_layer(bits=2, threshold=-12.0)
    with pytest.warns(UserWarning, match="output_shift 9 is written where the vendor's quantize.py writes 11"):
        assert quantize_checkpoint(state, correct_shift=True)["conv.output_shift"].tolist() == [9]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("threshold", [-3.0, 0.0, 4.0])
def test_same_integers_and_shift_as_the_layer_uses_in_training(bits, threshold):
    state, layer = one_layer(bits, threshold=threshold)
    got = quantize_checkpoint(state)
    weight, bias = layer.quantized_weight()
    assert torch.equal(got["conv.op.weight"], weight)
    assert torch.equal(got["conv.op.bias"], bias * 2 ** (bits - 1))
    assert torch.equal(got["conv.output_shift"], layer.effective_shift())


def test_a_layer_without_bias_and_a_pool_and_a_sum():
    net = torch.nn.ModuleDict({"conv": ai8x.Conv2d(2, 2, 1, bias=False), "pool": ai8x.MaxPool2d(2), "add": ai8x.Add()})
    ai8x.initiate_qat(net, {"start_epoch": 1, "weight_bits": 8})
    got = quantize_checkpoint(net.state_dict())
    assert list(got) == list(net.state_dict())
    assert got["pool.quantize_activation"].tolist() == [1.0] and got["pool.adjust_output_shift"].dtype == torch.float32
    assert torch.equal(got["add.activation_threshold"], torch.zeros(()))


def test_bits_that_the_checkpoint_lacks():
    state, _ = one_layer()
    state["conv.weight_bits"].zero_()
    with pytest.raises(ValueError, match=r"conv: QAT was never on \(weight_bits is 0\); call initiate_qat"):
        quantize_checkpoint(state)
    assert quantize_checkpoint(state, default_bits=8)["conv.weight_bits"].tolist() == [8]
    del state["conv.weight_bits"]
    with pytest.raises(ValueError, match="QAT was never on"):
        quantize_checkpoint(state)
    assert quantize_checkpoint(state, default_bits=4)["conv.bias_bits"].tolist() == [4.0]
    with pytest.raises(ValueError, match="conv: weight_bits is 3"):
        quantize_checkpoint(state, default_bits=3)


def test_bad_checkpoints_are_refused_by_name():
    for key, value in [("op.weight", float("nan")), ("op.bias", float("inf")), ("activation_threshold", float("-inf"))]:
        state, _ = one_layer()
        state[f"conv.{key}"].view(-1)[0] = value
        with pytest.raises(ValueError, match=f"conv: {key} holds NaN or infinity"):
            quantize_checkpoint(state)
    with pytest.raises(ValueError, match="no ai8x layer"):
        quantize_checkpoint(torch.nn.Conv2d(1, 1, 1).state_dict())
    with pytest.raises(ValueError, match="plain.weight belongs to no ai8x layer.*; build that layer from ai8x"):
        quantize_checkpoint({**one_layer()[0], "plain.weight": torch.randn(4, 4), "plain.bias": torch.randn(4)})
    with pytest.raises(ValueError, match="conv: activation_threshold is missing"):
        quantize_checkpoint({"conv.op.weight": torch.zeros(1, 1, 1, 1), "conv.weight_bits": torch.tensor([8])})
    block = torch.nn.ModuleDict({"first": ai8x.FusedConv2dBNReLU(2, 3, 3)})
    ai8x.initiate_qat(block, {"start_epoch": 1, "weight_bits": 8})
    with pytest.raises(ValueError, match="first: its batch normalisation is not fused; call fuse_bn_layers"):
        quantize_checkpoint(block.state_dict())
    with pytest.raises(ValueError, match="already quantized"):
        quantize_checkpoint(quantize_checkpoint(one_layer()[0]))
