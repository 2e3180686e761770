"""What a network costs on the MAX78000 and MAX78002: pure arithmetic on layer descriptions, no torch.

The chip has 64 processors. A processor reads one input channel (per pass) and owns a column of kernel memory, counted in words
of 72 bits: one 8-bit 3x3 kernel, or nine 8-bit 1x1 kernels. Sources: ai8x-training README, sections "Limitations of MAX78000
Networks", "Weight Memory", "Data Memory"; the rest was measured with ai8x-synthesis.
"""

from dataclasses import dataclass
from math import ceil, prod

PROCESSORS = 64
WORD_BITS = 72
CLOCK_HZ = 50e6


@dataclass(frozen=True)
class Device:
    """Limits of a chip: words of kernel memory by processor, bytes of a data memory (4 processors share one), of a bias memory …"""

    name: str
    words: tuple[int, ...]
    data_bytes: int
    bias_bytes: int
    layers: int
    channels: int
    dimension: int
    depthwise: bool
    pool_channels: int  # that a pool without a convolution can read


DEVICES = {
    85: Device("MAX78000", (768,) * 64, 32_768, 512, 32, 1024, 1023, False, 64),
    87: Device("MAX78002", tuple(5120 if p % 16 == 0 else 4096 for p in range(64)), 81_920, 2_048, 128, 2048, 2047, True, 2048),
}


@dataclass(frozen=True)
class LayerSpec:
    """One operation as the chip sees it; `h_in` and `w_in` are before the fused pool. A 1D signal has width 1.

    kind: conv2d, conv1d, conv_transpose2d, linear, pool, add, sub, xor, or, concat. `flatten` is the number of pixels a channel
    that a linear layer reads (its `c_in` then counts channels), `rows` the vectors it is given (the chip takes one). `inputs`
    names the operations it reads, "input" the picture; `layer` is the module that owns the weights (two calls share them).
    `in_dim`: rows and columns where its input was only renamed to these.
    """

    name: str
    kind: str
    c_in: int
    c_out: int
    h_in: int = 1
    w_in: int = 1
    h_out: int = 1
    w_out: int = 1
    kernel: tuple[int, int] = (1, 1)
    padding: int = 0
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bits: int = 8
    bias: bool = False
    wide: bool = False
    activation: str | None = None
    pool: tuple[int, int] = (1, 1)
    pool_stride: tuple[int, int] = (1, 1)
    pool_kind: str | None = None
    pool_dilation: int = 1
    pool_rounds: bool = False
    flatten: int = 1
    rows: int = 1
    inputs: tuple[str, ...] = ()
    layer: str = ""
    in_dim: tuple[int, int] | None = None

    @property
    def has_weights(self) -> bool:
        """Whether it is a convolution or linear."""
        return self.kind in ("conv2d", "conv1d", "conv_transpose2d", "linear")

    @property
    def weights(self) -> int:
        """Number of weights (without bias)."""
        return self.c_in // self.groups * self.c_out * prod(self.kernel) * self.flatten if self.has_weights else 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights at their own bits (without bias)."""
        return ceil(self.weights * self.bits / 8)

    @property
    def macs(self) -> int:
        """Multiplications with additions a picture; a transposed layer counts at its output size, as the vendor's tool does."""
        return self.weights * (1 if self.kind == "linear" else self.h_out * self.w_out)

    @property
    def pooled(self) -> tuple[int, int]:
        """Height and width after the fused pool."""
        sizes = zip((self.h_in, self.w_in), self.pool, self.pool_stride)
        return tuple((size - window) // stride + 1 for size, window, stride in sizes)


def picture(layers: list[LayerSpec]) -> LayerSpec:
    """The network's input, as what a copy of it would be."""
    first = next((layer for layer in layers if "input" in layer.inputs and layer.kind != "concat"), layers[0])
    c = first.c_in // (len(first.inputs) if first.kind == "concat" else 1)
    return LayerSpec("input", "copy", c, c, first.h_in, first.w_in, first.h_in, first.w_in)


def passes(channels: int) -> int:
    """How often the 64 processors run to read that many channels."""
    return ceil(channels / PROCESSORS)


def processors(channels: int) -> int:
    """Processors used by a tensor of that many channels; in several passes they come in groups of four.

    >>> [processors(c) for c in (3, 48, 64, 65, 96, 128)]
    [3, 48, 64, 36, 48, 64]
    """
    per_pass = ceil(channels / passes(channels))
    return per_pass if channels <= PROCESSORS else 4 * ceil(per_pass / 4)


def hardware_kernel(layer: LayerSpec) -> tuple[int, int]:
    """The kernel as it lies in memory: that of a dilated Conv1d is stretched with zeros, or (beyond 9 taps) one of 3x3.

    >>> [hardware_kernel(LayerSpec("a", "conv1d", 4, 4, kernel=(k, 1), dilation=d)) for k, d in ((3, 2), (2, 8), (3, 5))]
    [(5, 1), (9, 1), (3, 3)]
    """
    if layer.kind != "conv1d" or layer.dilation == 1:
        return layer.kernel
    return (3, 3) if folds(layer) else ((layer.kernel[0] - 1) * layer.dilation + 1, 1)


def folds(layer: LayerSpec) -> bool:
    """Whether a Conv1d dilates so far that the tool runs it as a 3x3 convolution of rows of `dilation` samples."""
    return layer.kind == "conv1d" and (layer.kernel[0] - 1) * layer.dilation >= 9


def kernel_words(layer: LayerSpec) -> int:
    """72-bit words of kernel memory that `layer` needs on each processor it uses.

    >>> [kernel_words(LayerSpec("a", "conv2d", *c, kernel=(3, 3))) for c in ((3, 64), (128, 128))]
    [64, 256]
    """
    if not layer.has_weights:
        return 0
    packed = 8 // layer.bits
    if layer.flatten > 1:
        kernels = layer.flatten * layer.c_out * passes(layer.c_in)
    elif layer.groups > 1:
        kernels = passes(layer.c_in)
    else:
        kernels = passes(layer.c_in) * passes(layer.c_out) * processors(layer.c_out)
    padding = kernels % packed * (packed - 1)
    return ceil((kernels * layer.bits + padding) * prod(hardware_kernel(layer)) / WORD_BITS)
