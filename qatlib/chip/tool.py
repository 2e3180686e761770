"""What the vendor's synthesis tool (ai8xize.py) derives from a network description and an integer checkpoint, nothing else.

Sources: ai8x-training README, "Network Loader Configuration Language"; ai8x-synthesis (defaults, channels, dimensions, places).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from qatlib.chip.spec import PROCESSORS, passes, processors

WEIGHTED = {"conv2d": "Conv2d", "conv1d": "Conv1d", "convtranspose2d": "ConvTranspose2d", "mlp": "MLP", "linear": "MLP"}
SUMS = ("add", "sub", "xor", "or")
ALIASES = {"op": "operation", "operator": "operation", "activation": "activate", "conv_groups": "groups"}
READ = ("name", "processors", "output_processors", "operation", "kernel_size", "pad", "stride", "dilation", "groups", "activate",
        "eltwise", "operands", "pool_first", "max_pool", "avg_pool", "pool_stride", "in_channels", "in_dim", "in_sequences",
        "in_offset", "out_offset", "write_gap", "data_format", "flatten", "output", "output_width", "output_shift",
        "quantization", "streaming")  # fmt: skip
SHARED = 4  # processors that share a data memory


@dataclass
class Layer:
    """One layer as the tool sees it. Masks are 64-bit integers, offsets bytes of a data memory, dimensions (height, width).

    `channels` are those it reads (of one operand, before flattening), `shift` is the register's: the checkpoint's `output_shift`
    and what the weights' bits imply. `weight` is (out, in/groups, *kernel), integers; `bias` integers of 8 bits, or None.
    `sources` are the layers that `in_sequences` names, -1 the picture.
    """

    number: int
    operation: str
    processors: int
    output_processors: int = 0
    channels: int = 0
    out_channels: int = 0
    in_dim: tuple[int, int] = (1, 1)
    pooled: tuple[int, int] = (1, 1)
    out_dim: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: int = 1
    groups: int = 1
    bits: int = 8
    shift: int = 0
    weight: np.ndarray | None = field(default=None, repr=False)
    bias: np.ndarray | None = field(default=None, repr=False)
    pool: tuple[int, int] = (1, 1)
    pool_stride: tuple[int, int] = (1, 1)
    average: bool = False
    eltwise: str | None = None
    operands: int = 1
    pool_first: bool = True
    activation: str | None = None
    flatten: bool = False
    wide: bool = False
    chw: bool = False
    streaming: bool = False
    output: bool = False
    sources: tuple[int, ...] = ()
    in_offset: int = 0
    out_offset: int = 0
    write_gap: int = 0

    @property
    def passes(self) -> int:
        """How often the 64 processors run to read the channels."""
        return passes(self.channels)

    @property
    def out_passes(self) -> int:
        """How many words of a data memory hold one output pixel."""
        return passes(self.out_channels)

    @property
    def pools(self) -> bool:
        """Whether it reads windows, or leaves pixels out."""
        return self.pool != (1, 1) or self.pool_stride != (1, 1)

    def reads(self, operand: int = 0):
        """`places` of what it reads: one operand of its input."""
        pixels, lanes = prod(self.in_dim), self.operands
        return places(self.processors, self.channels, pixels, self.in_offset + 4 * operand, lanes, chw=self.chw)

    def writes(self):
        """`places` of what it writes."""
        pixels, lanes = prod(self.out_dim), self.write_gap + 1
        return places(self.output_processors, self.out_channels, pixels, self.out_offset, lanes, self.wide)

    def __str__(self) -> str:
        source, size = "+".join("picture" if i < 0 else str(i) for i in self.sources), "{}x{}x{}".format
        parts = [f"{self.number:>2} {self.operation:<15} {source}: {size(self.channels, *self.in_dim)}"]
        parts += [f"{self.eltwise} of {self.operands}"] if self.eltwise else []
        parts += ["{} {}x{}".format("average" if self.average else "max", *self.pool)] if self.pools else []
        parts += [f"{size(self.out_channels, *self.out_dim)}, {32 if self.wide else 8} bit"]
        return f"{' -> '.join(parts)}; in {self.in_offset:#06x} on {self.processors:016x}, out {self.out_offset:#06x}"


def used(mask: int) -> list[int]:
    """The processors of a mask, in ascending order."""
    return [p for p in range(PROCESSORS) if mask >> p & 1]


def places(mask: int, channels: int, pixels: int, offset: int, lanes: int = 1, wide: bool = False, chw: bool = False):
    """(data memory, word, byte) of every value of a tensor, three arrays (channels, pixels).

    A word of 4 bytes holds a pixel of 4 neighbouring processors; passes lie beside each other, and `lanes` spreads that. A wide
    value takes a word of its own (byte 0). With `chw` a memory holds one channel, 4 pixels a word.
    """
    on, channel, pixel = np.array(used(mask)), np.arange(channels)[:, None], np.arange(pixels)[None]
    processor, turn = on[channel % len(on)], channel // len(on)
    if chw:
        word, byte = pixel // 4, pixel % 4
    else:
        word = (pixel * passes(channels) + turn) * (4 if wide else 1) * lanes
        word, byte = (word + processor % SHARED, 0) if wide else (word, processor % SHARED)
    return tuple(np.broadcast_to(a, (channels, pixels)) for a in (processor // SHARED, offset // 4 + word, byte))


def refuse(number: int, problem: str):
    """Raise the ValueError of a layer."""
    raise ValueError(f"layer {number}: {problem}")


def derive(network: Mapping | str, state: Mapping, input_shape: tuple) -> Iterator[Layer]:
    """One by one the layers of a network description (YAML text, or what it holds), with the weights of a state_dict.

    Raises ValueError, naming the layer, for what cannot be made sense of; what makes sense but is beyond the tool or the chip is
    a matter of `refusals`.
    """
    if isinstance(network, str):
        import yaml

        network = yaml.safe_load(network)
    if not (entries := network.get("layers") if isinstance(network, Mapping) else None):
        raise ValueError("the network description holds no `layers`; give the YAML that belongs to the checkpoint")
    entries = [{ALIASES.get(key, key): value for key, value in entry.items()} for entry in entries]
    stored, layers = _stored(state), []
    masks = [_mask(n, entry, "processors") for n, entry in enumerate(entries)]
    for number, entry in enumerate(entries):
        layer = _settings(number, entry, masks)
        if layer.operation != "passthrough":
            _take_weights(layer, entry, stored)
        _connect(layer, entry, layers, (*input_shape, 1, 1)[:3])
        if not layer.output_processors:
            last = number + 1 == len(entries)
            layer.output_processors = (1 << processors(layer.out_channels)) - 1 if last else masks[number + 1]
        layers.append(layer)
        yield layer
    if stored:
        raise ValueError(f"the checkpoint has weights of {len(stored)} more layers ({stored[0][0]}) than the network description")


def _stored(state: Mapping) -> list[tuple[str, dict]]:
    """Name and arrays of each layer that has weights, in the order of the checkpoint."""
    arrays = {key: np.asarray(value) for key, value in state.items()}
    found = []
    for key in (key for key in arrays if key.endswith(".weight")):
        owner = key.removesuffix(".weight")
        name = owner.removesuffix(".op")
        own = {k: arrays.get(f"{name}.{k}") for k in ("weight_bits", "output_shift")}
        found.append((name, own | {"weight": arrays[key], "bias": arrays.get(f"{owner}.bias")}))
    return found


def _mask(number: int, entry: Mapping, key: str) -> int:
    value = entry.get(key, 0)
    value = int(value.replace(".", ""), 16) if isinstance(value, str) else value
    if not 0 < value < 1 << PROCESSORS:
        refuse(number, f"`{key}` is {value:#x}; it must name at least one of 64 processors")
    return value


def _pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


def _settings(number: int, entry: Mapping, masks: list[int]) -> Layer:
    """What the entry itself says, and the tool's defaults."""
    if unknown := set(entry) - set(READ):
        refuse(number, f"`{min(unknown)}` is unknown here, so it cannot be simulated")
    name = str(entry.get("operation", "Conv2d")).lower()
    eltwise = str(entry.get("eltwise", name if name in SUMS else "none")).lower()
    if name not in (*WEIGHTED, *SUMS, "none", "passthrough") or eltwise not in (*SUMS, "none"):
        refuse(number, f"`{name}`, `{eltwise}` is no operation of the chip")
    layer = Layer(number, WEIGHTED.get(name, "passthrough"), masks[number])
    one = layer.operation == "Conv1d"
    layer.output_processors = _mask(number, entry, "output_processors") if "output_processors" in entry else 0
    layer.eltwise = None if eltwise == "none" else eltwise
    layer.operands = entry.get("operands", 2 if layer.eltwise else 1)
    _convolution(layer, entry, one)
    layer.pool = _pair(entry.get("max_pool", entry.get("avg_pool", 1)))
    layer.average = "avg_pool" in entry and "max_pool" not in entry
    layer.pool_stride = _pair(entry.get("pool_stride", 1))
    if one:
        layer.pool, layer.pool_stride = (layer.pool[0], 1), (layer.pool_stride[0], 1)
    layer.pool_first = bool(entry.get("pool_first", True))
    activation = str(entry.get("activate", "none")).lower()
    layer.activation = None if activation == "none" else activation
    layer.flatten, layer.output = bool(entry.get("flatten")), bool(entry.get("output"))
    layer.wide, layer.streaming = entry.get("output_width", 8) == 32, bool(entry.get("streaming"))
    layer.chw = str(entry.get("data_format", "HWC")).lower() in ("chw", "big")
    layer.out_offset, layer.write_gap = entry.get("out_offset", 0), entry.get("write_gap", 0)
    sources = entry.get("in_sequences", number - 1)
    layer.sources = tuple(sources) if isinstance(sources, list | tuple) else (sources,)
    return layer


def _convolution(layer: Layer, entry: Mapping, one: bool) -> None:
    """Kernel, padding and groups; a signal's kernel is (size, 1)."""
    padded = layer.operation in ("Conv2d", "Conv1d", "ConvTranspose2d")
    size = str(entry.get("kernel_size", {"Conv1d": 9, "MLP": "1x1", "passthrough": "1x1"}.get(layer.operation, "3x3")))
    layer.kernel = (int(size), 1) if one else tuple(int(n) for n in size.lower().split("x"))
    pad = entry.get("pad", int(padded))
    layer.pad = (pad, 0 if one else pad)
    layer.dilation, layer.groups = _pair(entry.get("dilation", 1))[0], entry.get("groups", 1)
    stride = _pair(entry.get("stride", 2 if layer.operation == "ConvTranspose2d" else 1))[0]
    if stride != (2 if layer.operation == "ConvTranspose2d" else 1):
        refuse(layer.number, f"stride {stride}; the chip has 1, and 2 of a ConvTranspose2d")


def _take_weights(layer: Layer, entry: Mapping, stored: list) -> None:
    """The next weights of the checkpoint; a bias is stored as code · 2^(bits - 1)."""
    if not stored:
        refuse(layer.number, f"{layer.operation} has no weights left in the checkpoint")
    name, own = stored.pop(0)
    if not np.array_equal(weight := own["weight"].astype(np.int64), own["weight"]):
        refuse(layer.number, f"the weights of {name} are no integers")
    trained = 8 if own["weight_bits"] is None else int(own["weight_bits"].reshape(-1)[0]) or 8
    layer.bits = entry.get("quantization", trained)
    if layer.bits not in (1, 2, 4, 8) or weight.min() < -(1 << layer.bits - 1) or weight.max() >= 1 << layer.bits - 1:
        refuse(layer.number, f"the weights of {name} reach from {weight.min()} to {weight.max()}, not within {layer.bits} bits")
    shape = tuple(weight.shape[2:])
    if shape and shape != layer.kernel[: len(shape)] or len(shape) == 1 and layer.operation != "Conv1d":
        refuse(layer.number, f"its kernel is {layer.kernel}, the weights of {name} have {shape}")
    if (
        layer.operation == "ConvTranspose2d"
    ):  # stored as (in, out/groups, ...): as an ordinary convolution, whose kernels are mirrored
        split = weight.reshape(layer.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        weight = split.reshape(-1, split.shape[2], *weight.shape[2:])[:, :, ::-1, ::-1]
    layer.weight = weight.reshape(*weight.shape[:2], *layer.kernel)
    layer.out_channels, layer.channels = len(weight), weight.shape[1] * layer.groups
    if own["bias"] is not None:
        layer.bias = own["bias"].astype(np.int64) // 2 ** (trained - 1)
        if layer.bias.min() < -128 or layer.bias.max() > 127 or len(layer.bias) != layer.out_channels:
            refuse(layer.number, f"the biases of {name} are not {layer.out_channels} integers of 8 bits")
    stored_shift = 0 if own["output_shift"] is None else int(own["output_shift"].reshape(-1)[0])
    layer.shift = entry.get("output_shift", stored_shift) + 8 - layer.bits


def _connect(layer: Layer, entry: Mapping, before: list[Layer], picture: tuple) -> None:
    """Channels, dimensions and offsets, from the layers that it reads."""
    number, sources = layer.number, layer.sources
    if not all(-1 <= i < number for i in sources):
        refuse(number, f"`in_sequences` names {list(sources)}; a layer reads earlier ones, or -1, the picture")
    given = [before[i].out_channels if i >= 0 else picture[0] for i in sources]
    sizes = [before[i].out_dim if i >= 0 else tuple(picture[1:]) for i in sources]
    for what, found in (("size", sizes), ("channels", given)):
        if len(set(found)) > 1:
            refuse(number, f"what it reads differs in {what}: {', '.join(map(str, found))}")
    if layer.eltwise and len(sources) != layer.operands:
        refuse(number, f"{layer.eltwise} of {layer.operands} operands, but `in_sequences` names {len(sources)}")
    if "in_sequences" in entry or not layer.channels:
        layer.channels = given[0] if layer.eltwise else sum(given)
    layer.channels = entry.get("in_channels", layer.channels)
    dim = entry.get("in_dim")
    layer.in_dim = sizes[0] if dim is None else tuple(dim) if isinstance(dim, list | tuple) else (dim, 1)
    layer.in_offset = entry.get("in_offset", before[-1].out_offset if before else 0)
    _sizes(layer)
    total = sum(given) * prod(sizes[0]) // layer.operands
    if layer.channels * prod(layer.in_dim) != total:
        refuse(number, f"it reads {layer.channels} channels of {layer.in_dim[0]}x{layer.in_dim[1]}, but is given {total} values")
    if layer.weight is not None:
        wanted = layer.weight.shape[1] * layer.groups
        values = layer.channels * (prod(layer.pooled) if layer.flatten else 1)
        if wanted != values:
            refuse(number, f"its weights are of {wanted} inputs, but it reads {values}")
    else:
        layer.out_channels = layer.channels


def _sizes(layer: Layer) -> None:
    layer.pooled = tuple((n - k) // s + 1 for n, k, s in zip(layer.in_dim, layer.pool, layer.pool_stride))
    if min(layer.pooled) < 1:
        refuse(layer.number, f"a pool of {layer.pool[0]}x{layer.pool[1]} leaves nothing of {layer.in_dim[0]}x{layer.in_dim[1]}")
    if layer.flatten:
        layer.channels //= prod(layer.pooled)
        if not layer.channels:
            refuse(layer.number, f"fewer channels than the {prod(layer.pooled)} pixels of each that are flattened")
    elif layer.operation == "ConvTranspose2d":
        layer.out_dim = tuple(2 * (n - 1) - 2 * p + k + 1 for n, k, p in zip(layer.pooled, layer.kernel, layer.pad))
    else:
        steps = (layer.dilation, layer.dilation if layer.operation != "Conv1d" else 1)
        layer.out_dim = tuple(n - d * (k - 1) + 2 * p for n, k, d, p in zip(layer.pooled, layer.kernel, steps, layer.pad))
    if min(layer.out_dim) < 1:
        refuse(layer.number, f"nothing is left of {layer.in_dim[0]}x{layer.in_dim[1]} pixels")
