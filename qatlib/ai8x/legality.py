"""What the chips can compute: rules checked when a layer is built.

Refused here is what the vendor's constructors refuse. What they let through although the chip cannot run it (`let_through`)
gives one warning; the fit meter and every export treat that as an error. Source: ai8x-training README, "Limitations of
Networks". Every `check_...` raises ValueError or TypeError with the value, the rule and the remedy.
"""

from qatlib.wording import is_whole, pair, require, whole


def let_through(kind: str, kernel, stride, dilation, groups: int, c_in: int, c_out: int) -> list[tuple[str, str]]:
    """(rule, remedy) of what the vendor's constructors accept although neither chip runs it; empty for a legal operation.

    `kind` is conv2d, conv_transpose2d or conv1d; kernel, stride and dilation are tuples with one entry for each dimension.
    """
    size = min(kernel)
    rules = (
        (kind == "conv2d" and max(stride) != 1,
         f"the chip runs 2D convolutions with stride 1 only, not {max(stride)}", "pool in front, or fold the input"),
        (kind == "conv_transpose2d" and size != 3,
         f"the chip runs transposed convolutions with 3x3 kernels only, not {size}x{size}", "use kernel_size=3"),
        (kind == "conv1d" and max(dilation) > 1 and (size == 1 or size > 3 and (size - 1) * max(dilation) >= 9),
         f"the chip dilates 1D kernels of 2 or 3, longer ones up to a span of 9, not {size} by {max(dilation)}", "use dilation=1"),
        (groups != 1 and not groups == c_in == c_out,
         f"the chip runs ordinary and depthwise convolutions only, not groups={groups} of {c_in} to {c_out} channels",
         "use groups=1, or groups=in_channels=out_channels"),
    )  # fmt: skip
    return [(rule, remedy) for broken, rule, remedy in rules if broken]


def check_choice(name: str, value, choices: tuple) -> None:
    """`value` is one of `choices`."""
    require(value in choices, f"{name}={value!r} is unknown", f"choose one of {', '.join(map(repr, choices))}")


def check_something_to_do(pooling, kernel_size) -> None:
    """A layer without a kernel (kernel_size=None) is pooling only, so it needs `pooling`."""
    require(pooling is not None or kernel_size is not None, "kernel_size=None without pooling", "give one of the two")


def check_channels(*counts) -> None:
    """Every count is a whole number above 0."""
    for count in counts:
        whole = is_whole(count) and count > 0
        require(whole, f"channels and groups {counts}: {count!r} is no count", "use whole numbers above 0")


def check_common(activation, wide: bool, batchnorm, bias: bool) -> None:
    """What holds for every layer: known activation and batch norm, no activation behind a wide output, a bias to fuse into."""
    check_choice("activation", activation, (None, "ReLU", "Abs"))
    check_choice("batchnorm", batchnorm, (None, "Affine", "NoAffine"))
    require(not (wide and activation), f"a wide layer cannot have activation={activation!r}", "drop one of the two")
    require(bool(bias) or batchnorm is None, "batch normalisation needs bias=True", "starting QAT folds it into weight and bias")


def check_pooling(device: int, pooling, size, stride, dilation, strides_equal: bool = True) -> None:
    """Windows and strides of 1..16, equal strides; dilation only of max pooling on device 87."""
    check_choice("pooling", pooling, (None, "Max", "Avg"))
    if pooling is None:
        return
    size, stride, dilation = pair("pool_size", size), pair("pool_stride", stride), pair("pool_dilation", dilation)
    require(all(1 <= s <= 16 for s in size), f"pool_size={size} is not in 1..16", "pool in two steps")
    require(all(1 <= s <= 16 for s in stride), f"pool_stride={stride} is not in 1..16", "pool in two steps")
    require(not strides_equal or stride[0] == stride[1], f"pool_stride={stride} differs by dimension", "use one stride for both")
    highest = 16 if device == 87 and pooling == "Max" else 1
    require(all(1 <= d <= highest for d in dilation), f"pool_dilation={dilation} is not in 1..{highest} on device {device}",
             "dilated max pooling needs device 87")  # fmt: skip


def check_conv2d(device: int, transposed: bool, kernel, stride, padding, dilation, groups, pooling) -> None:
    """Kernels of 1x1 and 3x3, padding 0..2, no dilation, groups on device 87; stride 1..3, transposed 2."""
    kernel, stride = pair("kernel_size", kernel), pair("stride", stride)
    padding, dilation = pair("padding", padding), pair("dilation", dilation)
    require(kernel in ((1, 1), (3, 3)), f"kernel_size={kernel} does not exist on the chip", "use 1 or 3 (two 3x3 layers see 5x5)")
    require(padding[0] == padding[1] and 0 <= padding[0] <= 2, f"padding={padding} is not in 0..2", "use 0, 1 or 2")
    require(dilation == (1, 1), f"dilation={dilation} is not supported", "use 1; pool first to see further")
    require(groups == 1 or device == 87, f"groups={groups} needs device 87", "use groups=1, or set_device(87)")
    if transposed:
        require(stride == (2, 2), f"a transposed convolution has stride 2, not {stride}", "pass stride=2")
        return
    require(stride[0] == stride[1] and 1 <= stride[0] <= 3, f"stride={stride} is not in 1..3", "use stride 1 and pool in front")
    require(pooling is None or stride == (1, 1), f"stride={stride} together with pooling", "use stride 1; the pool has its own")


def check_conv1d(device: int, channels: int, kernel: int, stride: int, padding: int, dilation: int, groups: int) -> None:
    """Kernels of 1..9, stride 1, padding 0..2, and a dilated kernel that spans at most 9 (or is short and not padded)."""
    numbers = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    kernel, stride, padding, dilation = (whole(name, value) for name, value in numbers.items())
    require(1 <= kernel <= 9, f"kernel_size={kernel} is not in 1..9", "use two layers")
    require(stride == 1, f"stride={stride} is not supported in 1D", "use stride 1 and pool in front")
    highest = 0 if device == 87 and channels > 64 else 2
    require(0 <= padding <= highest, f"padding={padding} is not in 0..{highest}", "pad the input, or use fewer channels")
    fits = (kernel - 1) * dilation < 9 or (padding == 0 and kernel <= 3)
    require(fits, f"dilation={dilation} with kernel_size={kernel}, padding={padding}", "use kernel_size <= 3 without padding")
    require(groups == 1 or device == 87, f"groups={groups} needs device 87", "use groups=1, or set_device(87)")


def check_linear(inputs: int, outputs: int) -> None:
    """At most 1024 inputs and outputs."""
    inputs, outputs = whole("in_features", inputs), whole("out_features", outputs)
    require(1 <= inputs <= 1024, f"in_features={inputs} is not in 1..1024", "pool further before flattening")
    require(1 <= outputs <= 1024, f"out_features={outputs} is not in 1..1024", "split the layer")
