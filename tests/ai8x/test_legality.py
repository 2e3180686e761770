"""What the chip cannot run is refused when the layer is built, with the rule and the remedy; stride 2 and 3 only warns."""

import warnings

import pytest
import torch

from qatlib import ai8x

REFUSED = [
    ("Conv2d", (3, 4, 5), {}, "does not exist on the chip; use 1 or 3"),
    ("Conv2d", (3, 4, (1, 3)), {}, "does not exist on the chip; use 1 or 3"),
    ("Conv2d", (3, 4, 3), {"padding": 3}, r"not in 0\.\.2; use 0, 1 or 2"),
    ("Conv2d", (3, 4, 3), {"padding": (1, 2)}, r"not in 0\.\.2"),
    ("Conv2d", (3, 4, 3), {"stride": 4}, r"not in 1\.\.3; use stride 1 and pool in front"),
    ("Conv2d", (3, 4, 3), {"stride": (1, 2)}, "use stride 1 and pool in front"),
    ("FusedMaxPoolConv2d", (3, 4, 3), {"stride": 2}, "together with pooling; use stride 1"),
    ("Conv2d", (3, 4, 3), {"dilation": 2}, "not supported; use 1; pool first"),
    ("Conv2d", (4, 4, 3), {"groups": 4}, r"needs device 87; use groups=1, or set_device\(87\)"),
    ("DepthwiseConv2d", (4, 4, 3), {}, "needs device 87"),
    ("Conv2d", (3, 4, 3), {"activation": "GELU"}, "unknown; choose one of None, 'ReLU', 'Abs'"),
    ("Conv2d", (3, 4, 3), {"pooling": "Min"}, "unknown; choose one of None, 'Max', 'Avg'"),
    ("Conv2d", (3, 4, 3), {"batchnorm": "Layer"}, "unknown; choose one of None, 'Affine', 'NoAffine'"),
    ("Conv2d", (3, 4, 3), {"op": "Conv3d"}, "unknown; use 'Conv2d', 'ConvTranspose2d' or None"),
    ("FusedConv2dBN", (3, 4, 3), {"bias": False}, "needs bias=True; starting QAT folds it"),
    ("FusedConv2dReLU", (3, 4, 3), {"wide": True}, "a wide layer cannot have activation='ReLU'; drop one"),
    ("Conv2d", (3, 4, 3), {"weight_bits": 3, "bias_bits": 8, "quantize_activation": True}, "use bits of 1, 2, 4 or 8"),
    ("MaxPool2d", (17,), {}, r"not in 1\.\.16; pool in two steps"),
    ("MaxPool2d", (0,), {}, r"not in 1\.\.16"),
    ("AvgPool2d", (2, 17), {}, r"not in 1\.\.16"),
    ("MaxPool2d", (2, (1, 2)), {}, "differs by dimension; use one stride"),
    ("MaxPool2d", (2,), {"dilation": 2}, "dilated max pooling needs device 87"),
    ("ConvTranspose2d", (3, 4, 3), {}, "has stride 2, not .*; pass stride=2"),
    ("ConvTranspose2d", (3, 4, 5), {"stride": 2}, "use 1 or 3"),
    ("Conv1d", (3, 4, 10), {}, r"not in 1\.\.9; use two layers"),
    ("Conv1d", (3, 4, 3), {"stride": 2}, "use stride 1 and pool in front"),
    ("Conv1d", (3, 4, 3), {"padding": 3}, r"not in 0\.\.2"),
    ("Conv1d", (3, 4, 5), {"dilation": 3}, "use kernel_size <= 3 without padding"),
    ("Conv1d", (3, 4, 3), {"dilation": 5, "padding": 1}, "use kernel_size <= 3 without padding"),
    ("Linear", (1025, 4), {}, r"not in 1\.\.1024; pool further before flattening"),
    ("Linear", (4, 1025), {}, r"not in 1\.\.1024; split the layer"),
    ("Linear", (4, 0), {}, r"not in 1\.\.1024"),
    ("Linear", (4, 4), {"pooling": "Max"}, "use another layer"),
    ("Conv2d", (3, 4, None), {}, "kernel_size=None without pooling; give one"),
]  # fmt: skip


@pytest.mark.parametrize("name, args, kwargs, message", REFUSED, ids=str)
def test_refused_with_rule_and_remedy(name, args, kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        getattr(ai8x, name)(*args, **kwargs)
    assert "\n" not in str(error.value) and ";" in str(error.value) or "use bits" in str(error.value)


ALLOWED = [
    ("Conv2d", (3, 4, 1), {"padding": 2}), ("Conv2d", (3, 4, (3, 3)), {"stride": (1, 1)}), ("MaxPool2d", (16, 16), {}),
    ("AvgPool2d", ((2, 3), 2), {}), ("Conv1d", (3, 4, 9), {"padding": 2}), ("Conv1d", (3, 4, 3), {"dilation": 500}),
    ("Linear", (1024, 1024), {}),
]  # fmt: skip
NO_NUMBERS = [
    ("Conv2d", (3, 4, 2.5), {}, "kernel_size=2.5 is neither a whole number nor a pair"),
    ("Conv2d", (3, 4, 3), {"padding": "same"}, "padding='same' is neither"),
    ("Conv2d", (3, 4, 3), {"stride": (1, 1, 1)}, "stride=.1, 1, 1. is neither"),
    ("FusedMaxPoolConv2d", (3, 4, 3), {"pool_size": None}, "pool_size=None is neither"),
    ("Conv1d", (3, 4, (3,)), {}, "kernel_size=.3,. is no whole number; give one"),
    ("Linear", (None, 3), {}, "in_features=None is no whole number"),
    ("Linear", (3, 2.5), {}, "out_features=2.5 is no whole number"),
]
LET_THROUGH = [
    (85, "Conv2d", (3, 4, 3), {"stride": 2}, "stride 1 only, not 2: pool in front, or fold the input"),
    (85, "Conv1d", (3, 4, 1), {"dilation": 2}, "dilates 1D kernels of 2 or 3, longer .* 9, not 1 by 2: use dilation=1"),
    (85, "ConvTranspose2d", (3, 4, 1), {"stride": 2}, "3x3 kernels only, not 1x1: use kernel_size=3"),
    (87, "Conv2d", (8, 8, 3), {"groups": 2}, "not groups=2 of 8 to 8 channels: use groups=1, or groups=in_channels=out_channels"),
    (87, "DepthwiseConv2d", (8, 16, 3), {}, "not groups=8 of 8 to 16 channels"),
]


@pytest.mark.parametrize("name, args, kwargs, message", NO_NUMBERS, ids=str)
def test_what_is_no_number_is_named(name, args, kwargs, message):
    with pytest.raises(TypeError, match=message):
        getattr(ai8x, name)(*args, **kwargs)


@pytest.mark.parametrize("device, name, args, kwargs, message", LET_THROUGH, ids=str)
def test_what_the_vendor_lets_through_warns_with_the_remedy(device, name, args, kwargs, message):
    ai8x.set_device(device, verbose=False)
    with pytest.warns(UserWarning, match=message) as caught:
        getattr(ai8x, name)(*args, **kwargs)
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("name, args, kwargs", ALLOWED, ids=str)
def test_the_limits_themselves_are_allowed(name, args, kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(ai8x, name)(*args, **kwargs)


def test_device_87_allows_more_and_less():
    ai8x.set_device(87, verbose=False)
    ai8x.Conv2d(4, 4, 3, groups=4)
    ai8x.MaxPool2d(2, 1, dilation=16)
    with pytest.raises(ValueError, match=r"not in 1\.\.16 on device 87"):
        ai8x.MaxPool2d(2, 1, dilation=17)
    with pytest.raises(ValueError, match=r"pool_dilation"):
        ai8x.FusedAvgPoolConv2d(3, 4, 3, pool_dilation=2)
    ai8x.Conv1d(64, 4, 3, padding=2)
    with pytest.raises(ValueError, match=r"padding=1 is not in 0\.\.0"):
        ai8x.Conv1d(65, 4, 3, padding=1)


@pytest.mark.parametrize("name", ["Conv2d", "FusedConv2dReLU", "FusedConv2dBNReLU"])
@pytest.mark.parametrize("stride", [2, 3])
def test_stride_warns_once_where_the_layer_is_built(name, stride):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer = getattr(ai8x, name)(3, 4, 3, stride=stride)
        for _ in range(3):
            layer(torch.zeros(1, 3, 9, 9))
    assert len(caught) == 1
    assert "stride 1 only" in str(caught[0].message) and "pool in front, or fold the input" in str(caught[0].message)
    assert caught[0].filename == __file__
