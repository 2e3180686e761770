"""Every rule of the chip that a network breaks, each as one sentence with its remedy.

Sources: ai8x-training README, sections "Limitations of MAX78000 Networks" and "Limitations of MAX78002 Networks"; what
ai8x-synthesis itself refuses (biases, sums, paddings, groups).
"""

from math import ceil

from qatlib.ai8x.legality import let_through
from qatlib.chip.describe import Layers
from qatlib.chip.memory import Memory
from qatlib.chip.picture import MOST, TOO_LARGE, channel_first, obstacle, streamed
from qatlib.chip.placement import Placement
from qatlib.chip.schedule import SUMS, Step, interleaved
from qatlib.chip.spec import DEVICES, PROCESSORS, Device, LayerSpec, folds, passes, picture, processors

KINDS = ("conv2d", "conv1d", "conv_transpose2d", "linear", "pool", "add", "sub", "concat")
QUADRANT = 16  # processors that share a bias memory


def bias_bytes(layers: list[LayerSpec]) -> int:
    return sum(layer.c_out for layer in layers if layer.bias)


def violations(layers: Layers, plan: Placement, memory: Memory, sequence: list[Step], device: int) -> list[str]:
    """Sentences, [] for a network that fits. `sequence` is that of `steps`."""
    chip = DEVICES[device]
    found = list(layers.refusals) + [sentence for layer in layers for sentence in _layer(layer, layers, chip)]
    if plan.problem:
        found.append(plan.problem)
    if memory.problem:
        remedy = "fold the input, pool earlier, or keep fewer branches alive"
        found.append(f"{memory.problem}: {remedy}")
    resets = sum(chip.depthwise and a.eltwise is not None and b.layer.pool_kind == "avg" for a, b in zip(sequence, sequence[1:]))
    if len(sequence) + resets > chip.layers:  # the MAX78002 needs a small layer between a sum and an average pool
        extra = resets + sum(not step.layer.has_weights for step in sequence)
        kinds, remedy = (f" ({extra} of them copy, pool or add)", "use fewer skip connections, or ") if extra else ("", "")
        found.append(f"{len(sequence) + resets} layers{kinds}, the {chip.name} has {chip.layers}: {remedy}merge or drop layers")
    return found + _biases(layers, plan, chip) + _whole(layers)


def notes(layers: Layers, sequence: list[Step]) -> list[str]:
    """Sentences on what the chip runs, but computes otherwise than training does, or may do so."""
    absolute = ", ".join(layer.name for layer in layers if layer.activation == "abs")
    text = "Abs, which the chip takes after rounding, training before it: a layer's codes differ by up to one, later ones by more"
    found = [f"{absolute}: {text}; python -m qatlib.export check counts them"] if absolute else []
    biased = ", ".join(step.layer.name for step in sequence if step.streams and step.layer.bias)
    text = "a bias in a layer that streams, which may come out wrong on the MAX78000, as the vendor's tool warns"
    return found + [f"{biased}: {text}; train with bias=False"] * bool(biased)


def _biases(layers: Layers, plan: Placement, chip: Device) -> list[str]:
    """Each layer's biases lie within one bias memory of a quadrant that the network uses; as the vendor's tool distributes them.

    Largest first (on the MAX78000 those of flattening layers, in their order, before all), each into the emptiest memory. A first
    layer that streams has one more.
    """
    load, flows = _depthwise_biases(layers, plan), streamed(layers, chip) > 0
    for q, n in load.items():
        if n > chip.bias_bytes:
            return [f"quadrant {q}: {n} bytes of depthwise bias, at most {chip.bias_bytes}: use bias=False in some of these layers"]
    biased = [layer for layer in layers if layer.bias and layer.groups == 1]
    for layer in sorted(biased, key=lambda x: (0, 0) if x.flatten > 1 and not chip.depthwise else (1, -x.c_out)):
        emptiest, needed = min(load, key=load.get), layer.c_out + (flows and layer is layers[0])
        free = chip.bias_bytes - load[emptiest]
        if needed > free:
            memories = f"the emptiest of the bias memories in use ({len(load)}) has {free} bytes left"
            return [f"{layer.name}: {layer.c_out} biases, {memories}: use bias=False in wide layers, or more processors"]
        load[emptiest] += needed
    return []


def _depthwise_biases(layers: Layers, plan: Placement) -> dict[int, int]:
    """Bytes of bias by quadrant in use: those of depthwise layers lie in the quadrants of their own processors."""
    load: dict[int, int] = {}
    for layer in (layer for layer in layers if layer.inputs and layer.kind != "concat"):
        own = passes(layer.c_in) if layer.bias and layer.groups > 1 else 0
        for p in plan.columns(layer.inputs[0], layer.c_in):
            load[p // QUADRANT] = load.get(p // QUADRANT, 0) + own
    for p in plan.columns(layers[-1].name, layers[-1].c_out):
        load.setdefault(p // QUADRANT, 0)
    return dict(sorted(load.items()))


def _whole(layers: Layers) -> list[str]:
    """What concerns several layers: outputs, unused layers, weights that are used twice."""
    owners = [layer.layer for layer in layers if layer.has_weights and layer.layer]
    found = [
        f"{name}: its weights are used twice: give each call a layer of its own"
        for name in dict.fromkeys(owners)
        if owners.count(name) > 1
    ]
    needed = set(layers.outputs)
    for layer in reversed(layers):
        needed |= set(layer.inputs) if layer.name in needed else set()
    found += [f"{layer.name}: nothing reads it: drop it" for layer in layers if layer.name not in needed]
    return found + [
        f"{name}: the input itself is an output: return what layers compute" for name in layers.outputs if name == "input"
    ]


def _layer(layer: LayerSpec, layers: Layers, chip: Device) -> list[str]:
    rules = _sizes(layer, layers, chip)
    if not layers.refusals:  # else they have been told
        rules += _operation(layer, {name for other in layers for name in other.inputs})
    if layer.has_weights:
        rules += _weights(layer, chip)
    if layer.kind == "concat":
        rules += _joined(layer, {x.name: x.c_out for x in (picture(layers), *layers)})
    if layer.pool != (1, 1):
        rules += _pooling(layer, chip)
    told = {sentence.partition(";")[0] for sentence in layers.refusals}
    return [f"{layer.name}: {rule}: {remedy}" for broken, rule, remedy in rules if broken and f"{layer.name}: {rule}" not in told]


def _operation(layer: LayerSpec, read: set[str]) -> list[tuple[bool, str, str]]:
    bitwise, rest = layer.kind in ("xor", "or"), "use an ai8x layer, or compute it outside the network"
    return [
        (bitwise, f"bitwise {layer.kind}, whose ai8x layer has no exact integer form", "use Add or Sub"),
        (not bitwise and layer.kind not in KINDS, f"{layer.kind} is no operation of the chip", rest),
        (layer.kind in SUMS and len(layer.inputs) > 16, f"{len(layer.inputs)} operands, at most 16", "add in two steps"),
        (layer.wide and layer.name in read, "a wide output cannot be read by another layer", "build it with wide=False"),
    ]


def _joined(layer: LayerSpec, channels: dict[str, int]) -> list[tuple[bool, str, str]]:
    """The vendor's tool joins equal parts only: side by side on up to 64 processors, or each of them a pass of its own."""
    parts = [channels[name] for name in layer.inputs]
    widths, whole = " and ".join(map(str, sorted(set(parts)))), len(parts) == passes(layer.c_out) and parts[0] <= PROCESSORS
    alone = interleaved(layer) and not whole
    return [
        (len(set(parts)) > 1, f"joins parts of {widths} channels, the vendor's tool only equal ones", "give each part as many"),
        (any(n % 4 for n in parts), f"joins parts of {widths} channels, which are no multiple of 4", "use 4, 8, 12, ..."),
        (
            alone and len(set(parts)) == 1,
            f"{layer.c_out} joined channels, in parts of {parts[0]} that do not fill a pass of the processors each",
            "join at most 64, or parts of 36 to 64 (two), of 44 to 64 (three)",
        ),
    ]


def _sizes(layer: LayerSpec, layers: Layers, chip: Device) -> list[tuple[bool, str, str]]:
    chw = layer is layers[0] and channel_first(layers, chip)
    most = chip.data_bytes if chw else chip.data_bytes // 4
    pixels = passes(layer.c_in) * layer.h_in * layer.w_in
    channels = max(layer.c_in, layer.c_out)
    side = max(layer.h_in, layer.w_in, layer.h_out, layer.w_out)
    split = f" in {passes(layer.c_in)} passes" if layer.c_in > 64 else ""
    return [
        (channels > chip.channels, f"{channels} channels, at most {chip.channels} exist", "use fewer"),
        (side > chip.dimension, f"{side} rows or columns, at most {chip.dimension} exist", "fold or crop the input"),
        (
            pixels > most and not any(layer is other for other in layers[: streamed(layers, chip)]),
            f"{layer.h_in}x{layer.w_in} pixels{split}, data memory holds {most} a channel",
            f"fold the input, or pool earlier{_stream(layer, layers, chip)}",
        ),
        (layer.rows > 1, f"a linear layer on {layer.rows} rows, the chip reads one", "flatten first, or use a 1x1 convolution"),
    ]


def _stream(layer: LayerSpec, layers: Layers, chip: Device) -> str:
    """What stands against streaming a picture through its first layers, as the end of a remedy."""
    if streamed(layers, chip) or all(layer is not other for other in layers[:MOST]):
        return ""
    reasons = [obstacle(layers, n, chip) for n in range(1, 1 + min(MOST, len(layers)))]
    told = [reason for reason in reasons if not reason.startswith(TOO_LARGE)] or reasons
    return f"; {told[0]}"


def _weights(layer: LayerSpec, chip: Device) -> list[tuple[bool, str, str]]:
    kernel, conv2d, transposed = layer.kernel, layer.kind == "conv2d", layer.kind == "conv_transpose2d"
    conv1d, size = layer.kind == "conv1d", kernel[0]
    runs = passes(layer.c_in)
    padded, reach = conv1d and layer.padding and layer.c_in > 64, 2047 if chip.depthwise else 1023
    numbers = (layer.stride,), (layer.dilation,), layer.groups, layer.c_in, layer.c_out
    illegal = let_through(layer.kind, kernel if not conv1d else kernel[:1], *numbers)
    return [(True, rule, remedy) for rule, remedy in illegal] + [
        (conv1d and layer.stride != 1, f"stride {layer.stride}, the chip has 1 only", "pool in front of the layer"),
        (transposed and layer.stride != 2, f"transposed stride {layer.stride}, the chip has 2 only", "use stride=2"),
        (conv2d and kernel not in ((1, 1), (3, 3)), f"kernel {kernel}, the chip has 1x1 and 3x3", "use two 3x3 layers for 5x5"),
        (conv1d and size > 9, f"kernel {size}, the chip has at most 9", "use two layers"),
        (layer.padding > 2, f"padding {layer.padding}, the chip has 0 to 2", "use a smaller padding"),
        (
            layer.padding >= size and not transposed and layer.kind != "linear",
            f"padding {layer.padding} around a kernel of {size}",
            f"use a padding of at most {size - 1}",
        ),
        (padded and chip.depthwise, f"padding {layer.padding} with {layer.c_in} channels, of Conv1d at most 64", "use padding=0"),
        (layer.dilation > 1 and not conv1d, f"dilation {layer.dilation}, the chip has 1", "pool first"),
        (conv1d and layer.dilation > reach, f"dilation {layer.dilation}, the chip has 1 to {reach}", "pool first"),
        (layer.groups > 1 and not chip.depthwise, f"{layer.groups} groups need the MAX78002", "use groups=1"),
        (
            layer.bias and layer.c_out > chip.bias_bytes,
            f"a bias for {layer.c_out} outputs, at most {chip.bias_bytes}",
            "use bias=False",
        ),
        (layer.kind == "linear" and layer.flatten > 256, f"{layer.flatten} pixels a channel flattened, at most 256", "pool first"),
        (layer.c_in * layer.flatten > 16_384 and layer.kind == "linear", "more than 16,384 values are flattened", "pool first"),
        (layer.flatten > 1 and layer.pool != (1, 1), "pooling together with flattening", "pool in a layer of its own"),
        (
            layer.flatten > 1 and layer.c_in != runs * processors(layer.c_in),
            f"{layer.c_in} channels are flattened, in {runs} passes only multiples of {4 * runs} can be",
            f"give the layer before {4 * runs * ceil(layer.c_in / (4 * runs))} channels, or pool to 1x1 first",
        ),
        (folds(layer) and layer.padding > 0, f"padding around a Conv1d with dilation {layer.dilation}", "use padding=0"),
        (folds(layer) and layer.pool != (1, 1), f"pooling in front of a Conv1d with dilation {layer.dilation}",
         "pool in a layer of its own"),
    ]  # fmt: skip


def _pooling(layer: LayerSpec, chip: Device) -> list[tuple[bool, str, str]]:
    big, steps = max(*layer.pool, *layer.pool_stride), layer.pool_stride
    alone = layer.kind == "pool" and layer.c_in > chip.pool_channels and layer.pooled != (1, 1)
    rounds = "average pooling with rounding, which differs on the chip (half away from zero)"
    return [
        (big > 16, f"pool of {layer.pool} with stride {steps}, at most 16 exists", "pool in two steps"),
        (steps[1] != 1 and steps[0] != steps[1], f"pool stride {steps} differs by direction", "use one stride"),
        (alone, f"pooling {layer.c_in} channels without a convolution, at most {chip.pool_channels}", "use FusedMaxPoolConv2d"),
        (layer.pool_rounds, rounds, "use round_avg=False"),
        (layer.pool_dilation > 1, f"pooling with dilation {layer.pool_dilation}, which is not planned", "use dilation 1"),
    ]
