"""All ai8x layer classes: four that are written out, and a table that names the rest.

`FusedMaxPoolConv2dBNReLU` is `Conv2d` with pooling='Max', batchnorm='Affine' and activation='ReLU' preset, and nothing more.
"""

from torch import nn

from qatlib.ai8x import legality
from qatlib.ai8x import mode as target
from qatlib.ai8x.layer import QuantizationAwareModule
from qatlib.wording import warn

_POOLS = {(1, "Max"): nn.MaxPool1d, (1, "Avg"): nn.AvgPool1d, (2, "Max"): nn.MaxPool2d, (2, "Avg"): nn.AvgPool2d}
_OPERATIONS = {nn.Conv2d: "conv2d", nn.ConvTranspose2d: "conv_transpose2d", nn.Conv1d: "conv1d"}


def _warned(op: nn.Module) -> nn.Module:
    """`op`, after a warning for everything about it that the vendor lets through although the chip cannot run it."""
    c_in, c_out = op.in_channels, op.out_channels
    for rule, remedy in legality.let_through(_OPERATIONS[type(op)], op.kernel_size, op.stride, op.dilation, op.groups, c_in, c_out):
        warn(f"{rule}: {remedy}")
    return op


def _pool(dimensions: int, pooling, size, stride, dilation):
    if pooling is None:
        return None
    extra = {"dilation": dilation, "padding": 0} if pooling == "Max" else {"padding": 0}
    return _POOLS[dimensions, pooling](kernel_size=size, stride=stride, **extra)


class Conv2d(QuantizationAwareModule):
    """2D convolution (N, in, H, W) -> (N, out, H', W') with optional pooling in front, batch norm and activation behind.

    Real values (simulate: integer codes). `pool_stride` None is `pool_size`; `kernel_size` or `op` None is pooling alone.
    Raises ValueError or TypeError, with the rule and the remedy, for what the vendor's constructors refuse, and warns of what
    they let through although no chip runs it (stride 2 or 3, groups that are not depthwise). Source: `ai8x.Conv2d`.
    """

    def __init__(self, in_channels, out_channels, kernel_size, op="Conv2d", pooling=None, pool_size=2, pool_stride=2,
                 pool_dilation=1, stride=1, padding=0, dilation=1, bias=True, activation=None, wide=False, batchnorm=None,
                 weight_bits=None, bias_bits=None, quantize_activation=False, groups=1, eps=1e-5, momentum=0.05):  # fmt: skip
        chip, pool_stride = target.dev.device, pool_size if pool_stride is None else pool_stride
        legality.check_common(activation, wide, batchnorm, bias)
        legality.check_pooling(chip, pooling, pool_size, pool_stride, pool_dilation)
        module = None
        legality.check_something_to_do(pooling, op and kernel_size)
        if op is not None and kernel_size is not None:
            if op not in ("Conv2d", "ConvTranspose2d"):
                raise ValueError(f"op={op!r} is unknown; use 'Conv2d', 'ConvTranspose2d' or None")
            legality.check_channels(in_channels, out_channels, groups)
            transposed = op == "ConvTranspose2d"
            legality.check_conv2d(chip, transposed, kernel_size, stride, padding, dilation, groups, pooling)
            cls, extra = (nn.ConvTranspose2d, {"output_padding": 1}) if transposed else (nn.Conv2d, {})
            module = _warned(cls(in_channels, out_channels, kernel_size=kernel_size, stride=stride, padding=padding,
                                 dilation=dilation, bias=bool(bias), groups=groups, **extra))  # fmt: skip
        super().__init__(
            pooling, activation, wide, weight_bits, bias_bits, quantize_activation,
            pool=_pool(2, pooling, pool_size, pool_stride, pool_dilation), op=module,
            bn=target.batch_norm(2, out_channels, batchnorm, eps, momentum) if batchnorm else None,
        )  # fmt: skip


class ConvTranspose2d(Conv2d):
    """Transposed 3x3 convolution, (N, in, H, W) -> (N, out, 2H, 2W) with padding=1. Pass stride=2; output_padding is 1.

    Raises ValueError for any other stride, and as `Conv2d` does.
    """

    def __init__(self, in_channels, out_channels, kernel_size, **kwargs):
        super().__init__(in_channels, out_channels, kernel_size, op="ConvTranspose2d", **kwargs)


class DepthwiseConv2d(Conv2d):
    """One filter per channel, (N, C, H, W) -> (N, C, H', W'): groups = in_channels. Raises ValueError on device 85."""

    def __init__(self, in_channels, out_channels, kernel_size, **kwargs):
        super().__init__(in_channels, out_channels, kernel_size, groups=in_channels, **kwargs)


class DepthwiseConvTranspose2d(ConvTranspose2d):
    """Transposed convolution with one filter per channel, (N, C, H, W) -> (N, C, 2H, 2W). Raises ValueError on device 85."""

    def __init__(self, in_channels, out_channels, kernel_size, **kwargs):
        super().__init__(in_channels, out_channels, kernel_size, groups=in_channels, **kwargs)


class Conv1d(QuantizationAwareModule):
    """1D convolution (N, in, L) -> (N, out, L') with optional pooling in front, batch norm and activation behind.

    Arguments, units and errors as `Conv2d`; kernel_size 1..9, stride 1. `kernel_size` None is pooling alone.
    """

    def __init__(self, in_channels, out_channels, kernel_size, pooling=None, pool_size=2, pool_stride=2, pool_dilation=1,
                 stride=1, padding=0, dilation=1, bias=True, activation=None, wide=False, batchnorm=None,
                 weight_bits=None, bias_bits=None, quantize_activation=False, groups=1, eps=1e-5, momentum=0.05):  # fmt: skip
        chip, pool_stride = target.dev.device, pool_size if pool_stride is None else pool_stride
        legality.check_common(activation, wide, batchnorm, bias)
        legality.check_pooling(chip, pooling, pool_size, pool_stride, pool_dilation)
        module = None
        legality.check_something_to_do(pooling, kernel_size)
        if kernel_size is not None:
            legality.check_channels(in_channels, out_channels, groups)
            legality.check_conv1d(chip, in_channels, kernel_size, stride, padding, dilation, groups)
            module = _warned(nn.Conv1d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bool(bias)))
        super().__init__(
            pooling, activation, wide, weight_bits, bias_bits, quantize_activation,
            pool=_pool(1, pooling, pool_size, pool_stride, pool_dilation), op=module,
            bn=target.batch_norm(1, out_channels, batchnorm, eps, momentum) if batchnorm else None,
        )  # fmt: skip


class Linear(QuantizationAwareModule):
    """Fully connected layer (N, in) -> (N, out); at most 1024 inputs and outputs. Only `bias=True` gives a bias.

    Raises ValueError for more, and for pooling or batch norm, which the argument list has for the vendor's sake.
    """

    def __init__(self, in_features, out_features, pooling=None, bias=None, activation=None, wide=False, batchnorm=None,
                 weight_bits=None, bias_bits=None, quantize_activation=False):  # fmt: skip
        if pooling is not None or batchnorm is not None:
            raise ValueError(f"Linear has neither pooling ({pooling!r}) nor batch norm ({batchnorm!r}); use another layer")
        legality.check_common(activation, wide, None, True)
        legality.check_linear(in_features, out_features)
        op = nn.Linear(in_features, out_features, bias=bias is True)
        super().__init__(None, activation, wide, weight_bits, bias_bits, quantize_activation, op=op)


# base class -> for each fused pooling, the suffixes (batch norm, activation) that exist under that name
_TABLE = {
    Conv2d: {"": "ReLU Abs BN BNReLU", "MaxPool": "- BN ReLU BNReLU Abs BNAbs", "AvgPool": "- ReLU BNReLU Abs BNAbs"},
    Conv1d: {"": "ReLU BNReLU Abs BNAbs", "MaxPool": "- BN ReLU BNReLU Abs BNAbs", "AvgPool": "- ReLU BNReLU Abs BNAbs"},
    ConvTranspose2d: {"": "ReLU Abs BNReLU", "MaxPool": "- ReLU BNReLU Abs", "AvgPool": "- ReLU BNReLU Abs"},
    DepthwiseConv2d: {"": "ReLU BNReLU", "MaxPool": "- ReLU BNReLU", "AvgPool": "- ReLU BNReLU"},
    DepthwiseConvTranspose2d: {"": "ReLU BNReLU", "MaxPool": "- ReLU BNReLU", "AvgPool": "- ReLU BNReLU"},
    Linear: {"": "ReLU Abs"},
}
# The vendor forgot the activation in these two, and its checkpoints were trained without: so do ours compute, with a warning.
_WITHOUT_ACTIVATION = ("FusedMaxPoolConv1dBNAbs", "FusedAvgPoolConv1dBNAbs")


def _fused(name: str, parent: type, presets: dict, doc: str) -> type:
    def __init__(self, *args, **kwargs):
        for key in kwargs.keys() & presets.keys() - {"batchnorm"}:
            if kwargs[key] != presets[key]:
                base = next(c.__name__ for c in cls.__mro__ if c in _TABLE)
                others = ", ".join(f"{k}={v!r}" for k, v in (presets | kwargs).items() if k in presets)
                raise ValueError(f"{name} has {key}={presets[key]!r}; for {key}={kwargs[key]!r} use ai8x.{base}(..., {others})")
        super(cls, self).__init__(*args, **{**presets, **kwargs})

    return (cls := _named(name, parent, __init__, doc))


def _named(name: str, parent: type, init, doc: str) -> type:
    return type(name, (parent,), {"__init__": init, "__doc__": doc, "__module__": "qatlib.ai8x", "__qualname__": name})


def _forgotten(name: str, parent: type) -> type:
    def __init__(self, *args, **kwargs):
        if "activation" not in kwargs:
            remedy = "pass activation='Abs' for one, activation=None for none"
            warn(f"{name} has no activation, as the vendor's has none: {remedy}")
        super(cls, self).__init__(*args, **{"batchnorm": "Affine", **kwargs})

    doc = f"`{parent.__name__}` with batchnorm='Affine' and, as the vendor's, NO activation; activation='Abs' gives the name's."
    return (cls := _named(name, parent, __init__, doc))


def _pool_only(name: str, parent: type, dimensions: int, pooling: str) -> type:
    def max_init(self, kernel_size, stride=None, dilation=1, **kwargs):
        super(cls, self).__init__(0, 0, None, pool_size=kernel_size, pool_stride=stride, pool_dilation=dilation, **kwargs)

    def avg_init(self, kernel_size, stride=None, **kwargs):
        super(cls, self).__init__(0, 0, None, pool_size=kernel_size, pool_stride=stride, **kwargs)

    size, smaller = ("(N, C, L)", "(N, C, L')") if dimensions == 1 else ("(N, C, H, W)", "(N, C, H', W')")
    doc = (
        f"{dimensions}D {pooling} pooling alone, {size} -> {smaller}; `stride` None is `kernel_size`. It has no weights, but the "
        "nine quantization parameters. Raises ValueError for windows or strides beyond 1..16."
    )
    return (cls := _named(name, parent, max_init if pooling == "Max" else avg_init, doc))


def build() -> dict[str, type]:
    """Every layer class by name."""
    classes = {base.__name__: base for base in _TABLE}
    for base, variants in _TABLE.items():
        for pool, suffixes in variants.items():
            for suffix in suffixes.replace("-", "").split(" "):
                activation = suffix.removeprefix("BN")
                presets = {"pooling": pool.removesuffix("Pool")} if pool else {}
                presets |= {"activation": activation} if activation else {}
                presets |= {"batchnorm": "Affine"} if suffix.startswith("BN") else {}
                stem = f"Fused{pool}{base.__name__}"
                if stem + suffix in _WITHOUT_ACTIVATION:
                    classes[stem + suffix] = _forgotten(stem + suffix, classes[stem])
                    continue
                parent = classes.get(stem + activation, classes.get(stem, base)) if suffix else base
                given = ", ".join(f"{key}={value!r}" for key, value in presets.items())
                doc = f"`{base.__name__}` with {given}; its arguments otherwise."
                classes[stem + suffix] = _fused(stem + suffix, parent, presets, doc)
    for dimensions in (1, 2):
        for pooling in ("Max", "Avg"):
            name = f"{pooling}Pool{dimensions}d"
            parent = classes[f"Fused{pooling}PoolConv{dimensions}d"]
            classes[name] = _pool_only(name, parent, dimensions, pooling)
    return classes


LAYERS = build()
