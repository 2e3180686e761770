"""Every rule of the chip that a network breaks, each as one sentence with its remedy.

Source: ai8x-training README, sections "Limitations of MAX78000 Networks" and "Limitations of MAX78002 Networks".
"""

from qatlib.ai8x.placement import Placement
from qatlib.ai8x.plan import DEVICES, Device, LayerSpec, passes
from qatlib.ai8x.steps import Memory

KINDS = ("conv2d", "conv1d", "conv_transpose2d", "linear", "pool", "add", "sub", "xor", "or", "concat")


def chip_layers(layers: list[LayerSpec]) -> int:
    """Layers that count against the limit: those with weights (pools and sums in front of them ride along)."""
    return sum(layer.has_weights for layer in layers)


def bias_bytes(layers: list[LayerSpec]) -> int:
    return sum(layer.c_out for layer in layers if layer.bias)


def violations(layers: list[LayerSpec], plan: Placement, memory: Memory, device: int) -> list[str]:
    """Sentences, [] for a network that fits."""
    chip = DEVICES[device]
    found = [sentence for layer in layers for sentence in _layer(layer, chip, last=not _is_read(layer, layers))]
    if plan.problem:
        remedy = "give this or a neighbouring layer fewer channels (multiples of 64 use all processors) or 4-bit weights"
        found.append(f"{plan.problem}: {remedy}")
    if memory.problem:
        found.append(f"{memory.problem}: fold the input, pool earlier, or keep fewer branches alive")
    if chip_layers(layers) > chip.layers:
        found.append(f"{chip_layers(layers)} layers, the {chip.name} has {chip.layers}: merge or drop layers")
    if bias_bytes(layers) > 4 * chip.bias_bytes:
        found.append(
            f"{bias_bytes(layers)} bytes of bias, the {chip.name} has {4 * chip.bias_bytes}: use bias=False in wide layers"
        )
    return found


def _is_read(layer: LayerSpec, layers: list[LayerSpec]) -> bool:
    return any(layer.name in other.inputs for other in layers)


def _layer(layer: LayerSpec, chip: Device, last: bool) -> list[str]:
    rules = [
        (
            layer.kind not in KINDS,
            f"{layer.kind} is no operation of the chip",
            "use an ai8x layer, or compute it outside the network",
        ),
        *_sizes(layer, chip, last),
    ]
    if layer.has_weights:
        rules += _weights(layer, chip)
    if layer.pool != (1, 1):
        rules += _pooling(layer)
    return [f"{layer.name}: {rule}: {remedy}" for broken, rule, remedy in rules if broken]


def _sizes(layer: LayerSpec, chip: Device, last: bool) -> list[tuple[bool, str, str]]:
    most = chip.data_bytes // 4
    pixels = passes(layer.c_in) * layer.h_in * layer.w_in
    channels = max(layer.c_in, layer.c_out)
    side = max(layer.h_in, layer.w_in, layer.h_out, layer.w_out)
    split = f" in {passes(layer.c_in)} passes" if layer.c_in > 64 else ""
    return [
        (channels > chip.channels, f"{channels} channels, at most {chip.channels} exist", "use fewer"),
        (side > chip.dimension, f"{side} rows or columns, at most {chip.dimension} exist", "fold or crop the input"),
        (
            pixels > most,
            f"{layer.h_in}x{layer.w_in} pixels{split}, data memory holds {most} a channel",
            "fold the input, or pool earlier",
        ),
        (layer.wide and not last, "a wide output cannot be read by another layer", "build it with wide=False"),
    ]


def _weights(layer: LayerSpec, chip: Device) -> list[tuple[bool, str, str]]:
    kernel, conv2d, transposed = layer.kernel, layer.kind == "conv2d", layer.kind == "conv_transpose2d"
    pool_in_front = "pool in front of the layer, or fold the input"
    return [
        (layer.stride != 1 and layer.kind in ("conv2d", "conv1d"), f"stride {layer.stride}, the chip has 1 only", pool_in_front),
        (transposed and layer.stride != 2, f"transposed stride {layer.stride}, the chip has 2 only", "use stride=2"),
        (conv2d and kernel not in ((1, 1), (3, 3)), f"kernel {kernel}, the chip has 1x1 and 3x3", "use two 3x3 layers for 5x5"),
        (transposed and kernel != (3, 3), f"transposed kernel {kernel}, the chip has 3x3 only", "use kernel_size=3"),
        (layer.kind == "conv1d" and kernel[0] > 9, f"kernel {kernel[0]}, the chip has at most 9", "use two layers"),
        (layer.padding > 2, f"padding {layer.padding}, the chip has 0 to 2", "use a smaller padding"),
        (layer.dilation > 1 and conv2d and not chip.depthwise, f"dilation {layer.dilation}, the chip has 1", "pool first"),
        (layer.groups > 1 and not chip.depthwise, f"{layer.groups} groups need the MAX78002", "use groups=1"),
        (
            layer.bias and layer.c_out > chip.bias_bytes,
            f"a bias for {layer.c_out} outputs, at most {chip.bias_bytes}",
            "use bias=False",
        ),
        (layer.kind == "linear" and layer.flatten > 256, f"{layer.flatten} pixels a channel flattened, at most 256", "pool first"),
        (layer.c_in * layer.flatten > 16_384 and layer.kind == "linear", "more than 16,384 values are flattened", "pool first"),
        (layer.flatten > 1 and layer.pool != (1, 1), "pooling together with flattening", "pool in a layer of its own"),
    ]


def _pooling(layer: LayerSpec) -> list[tuple[bool, str, str]]:
    big, steps = max(*layer.pool, *layer.pool_stride), layer.pool_stride
    alone = layer.kind == "pool" and layer.c_in > 64
    return [
        (big > 16, f"pool of {layer.pool} with stride {steps}, at most 16 exists", "pool in two steps"),
        (steps[1] != 1 and steps[0] != steps[1], f"pool stride {steps} differs by direction", "use one stride"),
        (alone, f"pooling {layer.c_in} channels without a convolution, at most 64", "use FusedMaxPoolConv2d"),
    ]
