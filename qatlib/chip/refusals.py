"""What the vendor's synthesis tool refuses, and where it puts the kernels: rules about layers that `tool.derive` gives.

Sources: ai8x-synthesis (its messages are worded otherwise); kernel memory in the orders of several of its versions.
"""

from collections.abc import Iterator
from math import ceil, prod

from qatlib.chip.spec import DEVICES, Device, processors
from qatlib.chip.tool import SHARED, Layer, refuse, used

QUADRANT = 16  # processors that share a bias memory
MEMORY = 1 << 16  # tells the data memories apart in a set of words
DILATED = 9  # taps up to which a kernel is stretched to its dilation
# In which the tool places the kernels; which one depends on its version.
ORDERS = {
    "first to last": lambda layer: layer.number,
    "on all 64 processors first, then first to last": lambda layer: (len(used(layer.processors)) < 64, layer.number),
    "on all 64 processors first, then last to first": lambda layer: (
        len(used(layer.processors)) < 64,
        layer.number if len(used(layer.processors)) == 64 else -layer.number,
    ),
}
FORWARD = tuple(ORDERS)[:2]


def check_layer(layer: Layer, before: list[Layer], device: int) -> None:
    """Raise the first refusal of a layer as ValueError; `before` are the layers in front of it."""
    chip = DEVICES[device]
    rules = [*_masks(layer), *_memory(layer, chip), *_pooling(layer, chip), *_form(layer, chip), *_sums(layer, before, chip)]
    rules += _depthwise(layer, chip) if layer.groups > 1 else []
    rules += _dilation(layer) if layer.dilation > 1 else []
    for broken, problem in rules:
        if broken:
            refuse(layer.number, problem)


def check_network(layers: list[Layer], device: int) -> None:
    """Raise what concerns several layers as ValueError: their number, biases, what is written over too early."""
    chip, streams = DEVICES[device], [layer.number for layer in layers if layer.streaming]
    if streams != list(range(len(streams))) or len(streams) > 8 or any(layers[i].sources != (i - 1,) for i in streams):
        refuse(streams[-1], "streaming is for the first layers, one after the other, at most 8")
    resets = sum(chip.depthwise and b.average and b.pools and a.operands > 1 for a, b in zip(layers, layers[1:]))
    if len(layers) + resets > chip.layers:
        refuse(chip.layers, f"it is one of {len(layers) + resets} layers, the {chip.name} has {chip.layers}")
    _biases(layers, chip)
    _overwritten(layers)


Rules = Iterator[tuple[bool, str]]


def _masks(layer: Layer) -> Rules:
    for way, mask, channels in (
        ("processors", layer.processors, layer.channels),
        ("output_processors", layer.output_processors, layer.out_channels),
    ):
        count, wanted = len(used(mask)), processors(channels)
        yield count != wanted, f"`{way}` {mask:#x} has {count} bits, {channels} channels take {wanted}"
    if layer.operation == "passthrough":
        for quadrant in range(4):
            inside, out = ((mask >> QUADRANT * quadrant) % (1 << QUADRANT) for mask in (layer.processors, layer.output_processors))
            packed = out // (out & -out or 1)
            what = f"output processors {out:#x} of quadrant {quadrant} are not those it reads there ({inside:#x}), packed"
            yield packed != (1 << len(used(inside))) - 1, what
    if layer.chw:
        memories = [p // SHARED for p in used(layer.processors)]
        yield layer.number > 0, "CHW is for the first layer only"
        yield len(set(memories)) < len(memories), "in CHW, each channel needs a data memory of its own"


def _memory(layer: Layer, chip: Device) -> Rules:
    size = prod(layer.in_dim) * layer.passes * layer.operands * (1 if layer.chw else 4)
    out = _output_bytes(layer)
    yield (
        not layer.streaming and size + layer.in_offset > chip.data_bytes,
        f"its input takes {size} bytes of each data memory at {layer.in_offset:#x}, of {chip.data_bytes}",
    )
    yield (
        not layer.streaming and out + layer.out_offset > chip.data_bytes,
        f"its output takes {out} bytes of each data memory at {layer.out_offset:#x}, of {chip.data_bytes}",
    )
    for name in ("in_offset", "out_offset"):
        value = getattr(layer, name)
        yield not 0 <= value < chip.data_bytes or value % 4 != 0, f"`{name}` is {value}; give a multiple of 4 within a data memory"
    yield max(layer.channels, layer.out_channels) > chip.channels, f"more than {chip.channels} channels"
    yield max(*layer.in_dim, *layer.out_dim) > chip.dimension + 1, f"more than {chip.dimension + 1} rows or columns"


def _output_bytes(layer: Layer) -> int:
    """With the pixels that the hardware adds for a long dilation."""
    pixels = prod(layer.out_dim)
    if layer.dilation > 1 and (layer.kernel[0] - 1) * layer.dilation >= DILATED:
        pixels = ceil(layer.in_dim[0] / layer.dilation) * layer.dilation
    lanes = layer.write_gap + 1
    return ((pixels * layer.out_passes - 1) * lanes + 1) * (16 if layer.wide else 4)


def _pooling(layer: Layer, chip: Device) -> Rules:
    alone = layer.operation == "passthrough" and max(layer.pool) > 1 and layer.pooled != (1, 1)
    yield max(*layer.pool, *layer.pool_stride) > 16, f"a pool of {layer.pool} with stride {layer.pool_stride}, at most 16"
    one = layer.operation == "Conv1d" or layer.pool_stride[0] == layer.pool_stride[1]
    yield not one, f"a pool stride of {layer.pool_stride}, which differs by direction"
    yield layer.flatten and layer.pools, "pooling together with flattening"
    many = 64 * layer.passes > chip.pool_channels
    yield alone and many, f"pooling without a convolution in {layer.passes} passes, the {chip.name} has 1"
    late = not layer.pool_first
    yield late and (layer.operands == 1 or max(layer.pool) == 1), "`pool_first: false` needs a pool and several operands"
    yield late and layer.operands > 16, "a pool behind more than 16 operands"


def _form(layer: Layer, chip: Device) -> Rules:
    """Activation, width, padding, kernel, shift, flattening."""
    through, flat, size = layer.operation == "passthrough", layer.flatten, prod(layer.pooled)
    yield layer.activation not in (None, "relu", "abs"), f"activation `{layer.activation}`, the chip has ReLU and Abs"
    yield through and (layer.activation or layer.wide or flat), "a passthrough with activation, 32 bits, or flattening"
    yield bool(layer.wide and layer.activation), "a 32-bit output with an activation"
    yield layer.pad[0] >= layer.kernel[0], f"padding {layer.pad[0]} around a kernel of {layer.kernel[0]}"
    yield layer.pad[0] > 2 or layer.pad[0] < 0, f"padding {layer.pad[0]}, the chip has 0 to 2"
    sizes = {"Conv2d": ((1, 1), (3, 3)), "ConvTranspose2d": ((3, 3),), "MLP": ((1, 1),), "passthrough": ((1, 1),)}
    yield layer.kernel not in sizes.get(layer.operation, [(n, 1) for n in range(1, 10)]), f"a kernel of {layer.kernel}"
    yield not -15 <= layer.shift <= 15, f"output_shift {layer.shift} with that of {layer.bits}-bit weights, beyond -15 to 15"
    padded = layer.operation == "Conv1d" and layer.pad[0] and layer.passes > 1 and chip.depthwise
    yield bool(padded), f"a Conv1d with padding in {layer.passes} passes"
    yield flat and size > 256, f"{size} pixels of a channel flattened, at most 256"
    odd = flat and layer.channels > 64 and layer.channels % (SHARED * layer.passes)
    yield bool(odd), f"{layer.channels} channels flattened, no multiple of {SHARED * layer.passes}"
    yield flat and layer.operation not in ("MLP", "Conv2d"), "flattening for something else than a linear layer"
    yield not flat and layer.passes > 16, f"{layer.passes} passes, at most 16"


def _sums(layer: Layer, before: list[Layer], chip: Device) -> Rules:
    several, runs, convolves = layer.operands, layer.passes, layer.operation != "passthrough"
    yield not 1 <= several <= 16, f"{several} operands, at most 16"
    if several == 1:
        return
    masks = {before[i].output_processors if i >= 0 else (*before, layer)[0].processors for i in layer.sources}
    yield len(masks) > 1, f"its operands lie on different processors ({', '.join(f'{m:#x}' for m in sorted(masks))})"
    yield layer.operation == "Conv1d", f"{layer.eltwise} in front of a Conv1d"
    together = not chip.depthwise and runs > 1 and several * runs != several + runs and (convolves or layer.pools)
    yield together, f"{several} operands in {runs} passes together with a convolution or a pool"
    biased = chip.depthwise and runs > 1 and convolves and layer.groups == 1 and layer.bias is not None
    yield biased, f"{layer.eltwise} in {runs} passes in front of a convolution with bias"


def _depthwise(layer: Layer, chip: Device) -> Rules:
    first, last = used(layer.processors)[0], used(layer.processors)[-1]
    yield not chip.depthwise, f"{layer.groups} groups; the {chip.name} has 1"
    yield not layer.groups == layer.channels == layer.out_channels, f"{layer.groups} groups, neither 1 nor one a channel"
    yield layer.flatten, "groups together with flattening"
    yield used(layer.output_processors)[0] % SHARED > 0, "groups with output processors that begin at no multiple of 4"
    yield first % SHARED > 0 and last - first >= QUADRANT, "groups on processors that begin at no multiple of 4"


def _dilation(layer: Layer) -> Rules:
    size, step = layer.kernel[0], layer.dilation
    yield layer.operation != "Conv1d", f"dilation {step}; only a Conv1d may have more than 1"
    yield size == 1, f"dilation {step} with a kernel of 1"
    if (size - 1) * step >= DILATED:
        yield size > 3, f"dilation {step} with a kernel of {size}, at most 3"
        yield bool(layer.pad[0] or layer.pools or layer.flatten), f"dilation {step} with padding, pooling, or flattening"
        ahead = 4 * step * layer.out_passes if size == 3 else 0
        yield layer.out_offset < ahead, f"dilation {step} needs an `out_offset` of at least {ahead:#x}"


def kernel_words(layer: Layer) -> int:
    """72-bit words of kernel memory that it takes on each of its processors; dilated kernels as the hardware has them."""
    if layer.weight is None:
        return 0
    on, size = used(layer.output_processors), prod(layer.kernel)
    if layer.dilation > 1:
        stretched = (layer.kernel[0] - 1) * layer.dilation + 1
        size = stretched if stretched <= DILATED else 9
    first = on[0] - on[0] % SHARED if layer.out_passes > 1 else on[0]
    if layer.groups > 1:
        count = layer.passes
    elif layer.flatten:
        unused = layer.out_passes * len(on) - layer.out_channels
        count = ((on[-1] - first + 1) * layer.out_passes - unused) * layer.passes * prod(layer.pooled)
    else:
        count = (on[-1] - first + 1) * layer.out_passes * layer.passes
    packed = 8 // layer.bits
    return ceil((count * size * layer.bits + count % packed * size * (packed - 1)) / 72)


def kernel_offsets(layers: list[Layer], device: int, order: str) -> list[int | None]:
    """First word of each layer's kernels (None without), placed in one of `ORDERS`. Raises ValueError where they do not fit."""
    chip, taken, offsets = DEVICES[device], [[] for _ in range(64)], [None] * len(layers)
    for layer in sorted((x for x in layers if x.weight is not None), key=ORDERS[order]):
        columns, words = used(layer.processors), kernel_words(layer)
        room, offset = min(chip.words[p] for p in columns), 0
        while (after := _blocked(offset, words, [block for p in columns for block in taken[p]], layer.groups > 1)) is not None:
            offset = SHARED * ceil(after / SHARED)
        if offset + words > room:
            p = next(p for p in columns if offset + words > chip.words[p])
            what = f"kernel memory exhausted at processor {p}: offset {offset}, needed {words}, of {chip.words[p]} words"
            refuse(layer.number, f"{what} (layers {order})")
        for p in columns:
            taken[p].append((offset, offset + words))
        offsets[layer.number] = offset
    return offsets


def _blocked(offset: int, words: int, blocks: list[tuple[int, int]], whole: bool) -> int | None:
    """Where to go on looking, None if it fits here; depthwise kernels (`whole`) lie within one memory of 1,024 words."""
    if inside := [end for start, end in blocks if start < offset + words and offset < end]:
        return max(inside)
    memory = 1024 if offset < 4096 else 256
    return (offset // memory + 1) * memory if whole and offset % memory + words >= memory and words < memory else None


def _biases(layers: list[Layer], chip: Device) -> None:
    """The largest first (on the MAX78000 those of flattening layers before all), each into the emptiest memory of those in use."""
    masks = [*(layer.processors for layer in layers), layers[-1].output_processors]
    load = {p // QUADRANT: 0 for mask in masks for p in used(mask)}
    if 0 not in load:
        refuse(0, "no layer uses the first 16 processors")
    biased = [layer for layer in layers if layer.bias is not None and layer.bias.any()]
    for layer in (layer for layer in biased if layer.groups > 1):
        for quadrant in {p // QUADRANT for p in used(layer.processors)}:
            load[quadrant] = SHARED * ceil(load[quadrant] / SHARED) + QUADRANT * layer.passes
            if load[quadrant] > chip.bias_bytes:
                refuse(layer.number, f"quadrant {quadrant} holds {chip.bias_bytes} bytes of bias, {load[quadrant]} are needed")
    sizes = {layer.number: _bias_bytes(layer) for layer in biased if layer.groups == 1}
    flat = {layer.number for layer in layers if layer.flatten and not chip.depthwise}
    for number in sorted(sizes, key=lambda n: (n not in flat, n if n in flat else -sizes[n])):
        emptiest = min(sorted(load), key=load.get)
        if load[emptiest] + sizes[number] > chip.bias_bytes:
            free = chip.bias_bytes - load[emptiest]
            refuse(number, f"{sizes[number]} bytes of bias, the emptiest of {len(load)} bias memories has {free} left")
        load[emptiest] += sizes[number]


def _bias_bytes(layer: Layer) -> int:
    return layer.out_channels + used(layer.output_processors)[0] % SHARED * layer.out_passes


def _overwritten(layers: list[Layer]) -> None:
    """Nothing is written where a value lies that is still to be read: by the same layer, a later one, or at the end."""
    last: dict[int, int] = {}
    for layer in layers:
        last |= dict.fromkeys(layer.sources, layer.number)
    last |= {layer.number: len(layers) for layer in layers if layer.output or layer is layers[-1]}
    streams = [layer for layer in layers if layer.streaming]
    alive = [(-1, _words(layers[0].reads()), last.get(-1, -1))] if not streams else []
    rings = [_ring(layer, before) for layer, before in zip(streams, [None, *streams])]
    for layer, ring in zip(streams, rings):
        if any(not ring.isdisjoint(other) for other in rings[: layer.number]):
            refuse(layer.number, "the rows that it streams lie where those of an earlier layer do")
        alive.append((layer.number - 1, ring, streams[-1].number))
    for layer in layers[max(0, len(streams) - 1) :]:
        written = _words(layer.writes()) | _folded(layer)
        for number, words, until in alive:
            kept = layer.number <= until or number == layer.number - 1  # the tool keeps what the layer before wrote
            if kept and not words.isdisjoint(written):
                what = "the picture" if number < 0 else f"what layer {number} wrote"
                refuse(layer.number, f"it writes over {what}, which is still to be read")
        alive.append((layer.number, written, last.get(layer.number, layer.number)))


def _words(places) -> set[int]:
    memory, word, _ = places
    return set((memory * MEMORY + word).reshape(-1).tolist())


def _ring(layer: Layer, before: Layer | None) -> set[int]:
    """Words in which a streaming layer collects what its pool reads, behind the padded rows that the layer before is at."""
    (high, wide), width = layer.pool, layer.in_dim[1]
    start = high * ((high - 1) * width + wide)
    if before:
        row = before.pooled[1] + 2 * before.pad[1]
        start = row * (before.kernel[0] - 1 + high - 1) + before.kernel[1] + wide + 1
    words = start + (high - 1) * width + max(layer.pool_stride[1], wide)
    return _run(layer.processors, layer.in_offset // 4, -(-words // layer.passes) * layer.passes + 1)


def _folded(layer: Layer) -> set[int]:
    """Words that a far dilated Conv1d writes besides its output: the hardware computes rows of `dilation` samples, padded."""
    if layer.dilation == 1 or (layer.kernel[0] - 1) * layer.dilation < DILATED:
        return set()
    lead = layer.dilation * layer.out_passes if layer.kernel[0] == 3 else 0
    return _run(layer.output_processors, layer.out_offset // 4 - lead, lead + _output_bytes(layer) // 4)


def _run(mask: int, start: int, words: int) -> set[int]:
    return {memory * MEMORY + start + i for memory in {p // SHARED for p in used(mask)} for i in range(words)}
