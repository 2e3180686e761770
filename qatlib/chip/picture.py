"""How the picture gets into the chip: whole in data memory (HWC, or CHW for larger ones), or streamed through the first layers.

A streaming layer keeps only the rows that it still needs, in a ring buffer, and computes while the picture comes in. It must be
followed by nothing but its next layer. Sources: ai8x-training README, "Data Memory" and "Streaming Mode"; the buffers' sizes are
those that ai8x-synthesis checks.
"""

from qatlib.chip.spec import PROCESSORS, Device, LayerSpec, passes

MOST = 8  # layers that can stream
ROWS = 3072  # values of a row that all streaming layers together can hold
TOO_LARGE = "streaming would leave"
CHANNELS = 4  # of a picture that comes through the FIFO of one quadrant


def channel_first(layers: list[LayerSpec], device: Device) -> bool:
    """Whether the picture is stored as CHW: one channel a data memory, four times the pixels; only where HWC cannot hold it.

    Only the first layer can read that, and only it may read the picture.
    """
    first = layers[0]
    alone = first.inputs == ("input",) and not any("input" in layer.inputs for layer in layers[1:])
    reads = first.kind == "conv2d" and 4 * first.c_in <= PROCESSORS
    large = device.data_bytes // 4 < first.h_in * first.w_in <= device.data_bytes
    return alone and reads and large and not streamed(layers, device)


def streamed(layers: list[LayerSpec], device: Device) -> int:
    """How many of the first layers stream: as few as needed, 0 where the picture fits into data memory or cannot be streamed."""
    first = layers[0]
    pixels, held = first.h_in * first.w_in, device.data_bytes // 4
    written = passes(first.c_out) * first.h_out * first.w_out
    if pixels <= held or (pixels <= device.data_bytes and 4 * first.c_in <= PROCESSORS and written <= held):
        return 0
    return next((n for n in range(1, 1 + min(MOST, len(layers))) if not obstacle(layers, n, device)), 0)


def obstacle(layers: list[LayerSpec], n: int, device: Device) -> str:
    """Why the first `n` layers cannot stream; "" where they can."""
    first, last, after = layers[0], layers[n - 1], next(iter(layers[n:]), None)
    if device.depthwise:
        return f"streaming is planned for the MAX78000 only, not for the {device.name}"
    if first.c_in > CHANNELS:
        return f"streaming is planned for pictures of at most {CHANNELS} channels, this one has {first.c_in}"
    names = ["input", *(layer.name for layer in layers)]
    for i, layer in enumerate(layers[:n]):
        read = [other.name for other in layers if names[i] in other.inputs]
        if layer.kind != "conv2d" or layer.kernel != (3, 3) or read != [layer.name] or layer.inputs != (names[i],):
            return f"streaming is planned for 3x3 convolutions one after the other, {layer.name} is none or is not alone"
    if not last.padding:
        return f"streaming ends with a layer that pads, {last.name} has padding=0"
    if after and after.kind == "conv2d" and after.kernel == (1, 1):  # the tool would run it as 3x3
        return f"streaming is planned up to a layer that is not 1x1, {after.name} is"
    rooms = buffers(layers, n)
    size = (16 if last.wide else 4) * passes(last.c_out) * last.h_out * last.w_out
    if sum(passes(x.c_in) * x.pooled[1] for x in layers[:n]) > ROWS or sum(rooms) + n * 0x100 + size > device.data_bytes:
        return f"{TOO_LARGE} a map of {last.h_out}x{last.w_out} pixels that data memory cannot hold"
    return ""


def buffers(layers: list[LayerSpec], n: int) -> list[int]:
    """Bytes of the ring buffer in front of each of the first `n` layers, and a word more that must stay free."""
    sizes = []
    for i, layer in enumerate(layers[:n]):
        high, wide = layer.pool
        if i:
            before = layers[i - 1]
            row = before.pooled[1] + 2 * before.padding
            start = row * (before.kernel[0] + high - 2) + before.kernel[1] - 1 + wide + 2
        else:
            start = high * ((high - 1) * layer.w_in + wide)
        words = start + (high - 1) * layer.w_in + max(1, layer.pool_stride[1], wide)
        runs = passes(layer.c_in)
        sizes.append(4 * (-(-words // runs) * runs + 1))
    return sizes
