"""What the chips can compute: rules checked when a layer is built.

Refused here is what the vendor's constructors refuse. What they let through although the chip cannot run it gives one
warning; the fit meter and every export treat that as an error. Source: ai8x-training README, "Limitations of Networks".
"""

import sys
import warnings


def pair(value) -> tuple[int, int]:
    """(rows, columns) of an int or a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def _require(ok: bool, rule: str, remedy: str) -> None:
    if not ok:
        raise ValueError(f"{rule}; {remedy}")


def _warn(message: str) -> None:
    """Warn at the line that builds the layer, however many constructors lie between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("qatlib.ai8x."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def check_choice(name: str, value, choices: tuple) -> None:
    _require(value in choices, f"{name}={value!r} is unknown", f"choose one of {', '.join(map(repr, choices))}")


def check_channels(*counts) -> None:
    for count in counts:
        whole = isinstance(count, int) and not isinstance(count, bool) and count > 0
        _require(whole, f"channels and groups {counts}: {count!r} is no count", "use whole numbers above 0")


def check_common(activation, wide: bool, batchnorm, bias: bool) -> None:
    check_choice("activation", activation, (None, "ReLU", "Abs"))
    check_choice("batchnorm", batchnorm, (None, "Affine", "NoAffine"))
    _require(not (wide and activation), f"a wide layer cannot have activation={activation!r}", "drop one of the two")
    _require(bool(bias) or batchnorm is None, "batch normalisation needs bias=True", "starting QAT folds it into weight and bias")


def check_pooling(device: int, pooling, size, stride, dilation, strides_equal: bool = True) -> None:
    check_choice("pooling", pooling, (None, "Max", "Avg"))
    if pooling is None:
        return
    size, stride, dilation = pair(size), pair(stride), pair(dilation)
    _require(all(1 <= s <= 16 for s in size), f"pool_size={size} is not in 1..16", "pool in two steps")
    _require(all(1 <= s <= 16 for s in stride), f"pool_stride={stride} is not in 1..16", "pool in two steps")
    _require(not strides_equal or stride[0] == stride[1], f"pool_stride={stride} differs by dimension", "use one stride for both")
    highest = 16 if device == 87 and pooling == "Max" else 1
    _require(all(1 <= d <= highest for d in dilation), f"pool_dilation={dilation} is not in 1..{highest} on device {device}",
             "dilated max pooling needs device 87")  # fmt: skip


def check_conv2d(device: int, transposed: bool, kernel, stride, padding, dilation, groups, pooling) -> None:
    kernel, stride, padding, dilation = pair(kernel), pair(stride), pair(padding), pair(dilation)
    _require(kernel in ((1, 1), (3, 3)), f"kernel_size={kernel} does not exist on the chip", "use 1 or 3 (two 3x3 layers see 5x5)")
    _require(padding[0] == padding[1] and 0 <= padding[0] <= 2, f"padding={padding} is not in 0..2", "use 0, 1 or 2")
    _require(dilation == (1, 1), f"dilation={dilation} is not supported", "use 1; pool first to see further")
    _require(groups == 1 or device == 87, f"groups={groups} needs device 87", "use groups=1, or set_device(87)")
    if transposed:
        _require(stride == (2, 2), f"a transposed convolution has stride 2, not {stride}", "pass stride=2")
        return
    _require(stride[0] == stride[1] and 1 <= stride[0] <= 3, f"stride={stride} is not in 1..3", "use stride 1 and pool in front")
    _require(pooling is None or stride == (1, 1), f"stride={stride} together with pooling", "use stride 1; the pool has its own")
    if stride != (1, 1):
        _warn(f"the chip runs 2D convolutions with stride 1 only, not {stride[0]}: pool in front, or fold the input")


def check_conv1d(device: int, channels: int, kernel: int, stride: int, padding: int, dilation: int, groups: int) -> None:
    _require(1 <= kernel <= 9, f"kernel_size={kernel} is not in 1..9", "use two layers")
    _require(stride == 1, f"stride={stride} is not supported in 1D", "use stride 1 and pool in front")
    highest = 0 if device == 87 and channels > 64 else 2
    _require(0 <= padding <= highest, f"padding={padding} is not in 0..{highest}", "pad the input, or use fewer channels")
    fits = (kernel - 1) * dilation < 9 or (padding == 0 and kernel <= 3)
    _require(fits, f"dilation={dilation} with kernel_size={kernel}, padding={padding}", "use kernel_size <= 3 without padding")
    _require(groups == 1 or device == 87, f"groups={groups} needs device 87", "use groups=1, or set_device(87)")


def check_linear(inputs: int, outputs: int) -> None:
    _require(1 <= inputs <= 1024, f"in_features={inputs} is not in 1..1024", "pool further before flattening")
    _require(1 <= outputs <= 1024, f"out_features={outputs} is not in 1..1024", "split the layer")
