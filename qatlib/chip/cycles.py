"""Clock cycles of the chip's layers, counted as the vendor's tool estimates them.

A layer reads its input row by row: a pixel costs one cycle for each value that its pool window and its operands read, and one to
store it; padding costs the same without a window. Where an output pixel is complete, each output channel costs one cycle a pass.
Loading the picture is not counted. Source: the estimates that ai8x-synthesis printed for 45 networks, which these equal.
"""

from math import ceil, prod

from qatlib.chip.schedule import Step
from qatlib.chip.spec import LayerSpec, folds, hardware_kernel, passes, processors

STARTUP = 1
GROUP = 16  # processors that write together


def cycles(step: Step, columns: range, offset: int = 0, device: int = 85) -> int:
    """Estimated clock cycles of one layer of the chip that reads the processors `columns`.

    `offset`: first word of its kernels; the MAX78000 skips to it again at edges where a sum is pooled. A streaming layer
    takes one and a half times as long.
    """
    total = _moved(step, columns) if not step.layer.has_weights or step.kind == "copy" else _computed(step, offset, device)
    return ceil(1.5 * total) if step.streams else total


def _moved(step: Step, columns: range) -> int:
    """Of a layer without weights: read, and write four processors' channels of a group at a time."""
    layer, operands = step.layer, len(step.reads) if step.eltwise else 1
    window, (rows, width) = (1, (layer.h_in, layer.w_in)) if step.kind == "copy" else (prod(layer.pool), layer.pooled)
    used = [p // GROUP for p in columns]
    slots = max(ceil(used.count(group) / 4) for group in used)
    runs = passes(layer.c_in) if window == 1 else 2 * passes(layer.c_in) - 1
    return rows * width * runs * (operands * (window + 1) + slots)


def _computed(step: Step, offset: int, device: int) -> int:
    layer, operands = step.layer, len(step.reads) if step.eltwise else 1
    runs, window = passes(layer.c_in), prod(layer.pool)
    (k_rows, k_width), (rows, width), (top, left), across = _geometry(layer)
    channels = layer.c_out if layer.flatten > 1 else passes(layer.c_out) * processors(layer.c_out)
    again = 1  # how often the passes come to a pixel
    blank, read, extra = runs * operands * 2, runs * operands * (window + 1), 0
    if step.eltwise and window > 1:  # the sum is pooled, not the operands
        again, blank, read = runs, runs * 2, runs * (operands * window + 1)
        edges = (rows + 2 * top - k_width + 1) * left + (width + 2 * left - k_rows + 1) * top - top * left
        extra = edges * offset if device == 85 else 0
    elif layer.flatten > 1:
        extra = int(runs * layer.flatten > GROUP)
    border = left * (blank + 1)
    written = runs * across * channels + (1 if channels == runs == 1 else 0)

    def row(cost: int) -> int:
        return border + again * ((k_width - 1 - left) * (cost + 1) + (across - left) * cost) + blank * left + written

    lead = k_rows - 1 - top
    first = top * (2 * border + again * width * (blank + 1)) + lead * (2 * border + again * width * (read + 1))
    return extra + first + (rows - lead) * row(read) + top * row(blank)


def _geometry(layer: LayerSpec) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
    """Kernel, rows and columns that are read, padding of both, and output columns, as the hardware has them."""
    kernel, sizes, padding = hardware_kernel(layer), layer.pooled, (layer.padding, layer.padding)
    if layer.kind == "linear":
        sizes = (layer.h_in, layer.w_in) if layer.flatten > 1 else (1, 1)
        return (1, 1), sizes, (0, 0), sizes[1]
    if layer.kind == "conv_transpose2d":
        top = layer.kernel[0] - 1 - layer.padding
        return kernel, (2 * sizes[0], 2 * sizes[1]), (top, top), layer.w_out
    if folds(layer):
        return kernel, (ceil(layer.h_in / layer.dilation), layer.dilation), (1, 1), layer.dilation
    return kernel, sizes, padding if layer.kind != "conv1d" else (layer.padding, 0), layer.w_out
