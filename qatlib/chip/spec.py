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


def kernel_words(layer: LayerSpec, next_processors: int | None = None) -> int:
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
        kernels = passes(layer.c_in) * passes(layer.c_out) * (next_processors or processors(layer.c_out))
    padding = kernels % packed * (packed - 1)
    return ceil((kernels * layer.bits + padding) * prod(layer.kernel) / WORD_BITS)


def channel_first(layers: list[LayerSpec], device: Device) -> bool:
    """Whether the picture is stored as CHW: one channel a data memory, four times the pixels; only where HWC cannot hold it.

    Only the first layer can read that (ai8x-training README, "Data Memory"), and only it may read the picture.
    """
    first = layers[0]
    alone = first.inputs == ("input",) and not any("input" in layer.inputs for layer in layers[1:])
    reads = first.kind == "conv2d" and 4 * first.c_in <= PROCESSORS
    return alone and reads and device.data_bytes // 4 < first.h_in * first.w_in <= device.data_bytes


def cycles(layer: LayerSpec) -> int:
    """Estimated clock cycles of a layer: passes x (one a output value + reading the pooled, padded input).

    A pixel costs one cycle for each value that the pool window reads, and one to store it; a padding pixel costs two. The
    vendor's tool estimates the same way (a 231,360-MAC network: 5,729 cycles). Loading the picture is not counted.
    """
    if layer.kind == "concat":
        return 0
    operands = max(1, len(layer.inputs))
    if not layer.has_weights:
        return passes(layer.c_in) * prod(layer.pooled) * (operands * prod(layer.pool) + 2)
    if layer.kind == "linear":
        runs = passes(layer.c_in) * layer.flatten
        return 1 + 2 * runs + runs * layer.c_out
    runs, pad, (rows, columns) = passes(layer.c_in), layer.padding, layer.pooled
    if layer.kind == "conv_transpose2d":
        rows, columns, pad = layer.h_out, layer.w_out, 1
    read, blank = runs * (prod(layer.pool) + 1), 2 * runs
    lead = max(0, layer.kernel[0] - 1 - pad)
    out = runs * layer.w_out * layer.c_out
    edge = pad * (2 * blank + 1)
    first = pad * (2 * pad + columns) * (blank + 1) + lead * (2 * pad * (blank + 1) + columns * (read + 1))
    middle = (rows - lead) * (edge + lead * (read + 1) + (layer.w_out - pad) * read + out)
    last = pad * (edge + lead * (blank + 1) + (layer.w_out - pad) * blank + out)
    return first + middle + last
