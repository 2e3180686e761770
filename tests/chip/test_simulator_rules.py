"""What the model of the chip knows about joined channels, kernel memory, dilation and flattening; plans by hand."""

import copy

import numpy as np
import pytest
from export_networks import Builder, codes, max_pool, residual
from plans import checkpoint, planned, same

from qatlib.chip import Simulator
from qatlib.chip.refusals import FORWARD, ORDERS
from qatlib.integer.engine import Integer


def joined_and_added(out):
    b = Builder((16, 8, 8), 4)
    b.op("a", "conv2d", out=8).op("b", "conv2d", "input", out=8).op("y", "concat", "a", "b")
    b.op("c", "conv2d", "y", out=16).op("sum", "add", "y", "c")
    return b.op("d", "conv2d", "sum", out=out, wide=True).build()


@pytest.mark.parametrize("out", [16, 4])
def test_a_sum_of_a_concatenation_that_nobody_copied_is_found(out):
    """The tool accepts this plan with out = 16, and computes other integers than the network does."""
    wrong = {"layers": [
        {"processors": 0xFFFF, "output_processors": 0xFF, "out_offset": 0x400},
        {"processors": 0xFFFF, "in_sequences": -1, "in_offset": 0, "output_processors": 0xFF00, "out_offset": 0x400},
        {"processors": 0xFFFF, "in_sequences": [0, 1], "in_offset": 0x400, "out_offset": 0x804, "write_gap": 1},
        {"processors": 0xFFFF, "in_sequences": [-1, 2], "in_offset": 0x800, "eltwise": "add", "output_width": 32,
         "out_offset": 0x1000},
    ]}  # fmt: skip
    model = joined_and_added(out)
    with pytest.raises(ValueError, match="layer 3: .* values that it finds in data memory are not those of `in_sequences`"):
        same(wrong, model)
    chip = Simulator(wrong, checkpoint(model), (16, 8, 8))
    picture = codes(model)[2]
    assert not np.array_equal(chip.run(picture, strict=False)[3], Integer(model)(picture))
    right = copy.deepcopy(wrong)
    copied = {"processors": 0xFFFF, "in_sequences": [0, 1], "in_offset": 0x400, "operation": "passthrough", "out_offset": 0x800,
              "write_gap": 1}  # fmt: skip
    right["layers"].insert(2, copied)
    right["layers"][4]["in_sequences"] = [2, 3]
    assert same(right, model)


def test_a_concatenation_of_two_passes_and_a_second_output():
    """Two times 48 channels in interleaved lanes, one pass each; the first layer is an output, too."""
    b = Builder((4, 6, 6), 6).op("a", "conv2d", out=48, kernel=1).op("b", "conv2d", "a", out=48)
    b.op("y", "concat", "a", "b")
    model = b.op("head", "conv2d", "y", out=70, kernel=1, wide=True).build("a", "head")
    network = {"layers": [
        {"processors": 0xF, "kernel_size": "1x1", "pad": 0, "out_offset": 0x400, "write_gap": 1, "output": True},
        {"processors": 0xFFFFFFFFFFFF, "output_processors": 0xFFFFFFFFFFFF, "in_offset": 0x400, "out_offset": 0x404,
         "write_gap": 1},
        {"processors": 0xFFFFFFFFFFFF, "in_sequences": [0, 1], "in_offset": 0x400, "kernel_size": "1x1", "pad": 0,
         "output_width": 32, "out_offset": 0x800},
    ]}  # fmt: skip
    with pytest.raises(ValueError, match="layer 1: .* values"):  # a single operand is read without gaps
        same(network, model)
    network["layers"][:1] = [network["layers"][0] | {"write_gap": 0, "out_offset": 0x1000}, {
        "processors": 0xFFFFFFFFFFFF, "output_processors": 0xFFFFFFFFFFFF, "operation": "passthrough", "in_offset": 0x1000,
        "out_offset": 0x400, "write_gap": 1}]  # fmt: skip
    network["layers"][2] |= {"in_sequences": 0, "in_offset": 0x1000}
    network["layers"][3]["in_sequences"] = [1, 2]
    chip = Simulator(network, checkpoint(model), (4, 6, 6))
    for picture in codes(model, 3):
        found, expected = chip.run(picture), Integer(model)(picture)
        assert list(found) == [0, 3] and all(map(np.array_equal, found.values(), expected))


def test_kernels_must_fit_in_every_order():
    """What fits when the layers on all processors go first need not fit in the order of the network."""
    b = Builder((64, 2, 2), 1)
    for i, out in enumerate((4, 64, 128, 128, 64)):
        b.op(f"l{i}", "conv2d", out=out)
    model = b.op("head", "conv2d", out=4, kernel=1, wide=True).build()
    assert list(Simulator(planned(model), checkpoint(model), (64, 2, 2)).offsets) == list(FORWARD) == list(ORDERS)[:2]
    chip = Simulator(planned(model), checkpoint(model), (64, 2, 2), orders=ORDERS)
    assert chip.words == [4, 64, 128, 256, 128, 1] and list(chip.offsets) == list(ORDERS)
    assert chip.offsets["first to last"] == [0, 4, 68, 196, 452, 580]
    for name in ORDERS:
        blocks = [(o, o + w) for o, w in zip(chip.offsets[name], chip.words)]
        assert sorted(o for o, _ in blocks) == [o for o, _ in sorted(blocks)] and max(end for _, end in blocks) <= 768
    big = Builder((64, 2, 2)).op("a", "conv2d", out=256).op("b", "conv2d", out=256).op("c", "conv2d", out=64).build()
    state = checkpoint(big)
    entries = [{"processors": (1 << 64) - 1, "out_offset": 0x1000 * (i + 1)} for i in range(3)]
    with pytest.raises(ValueError, match="layer 1: kernel memory exhausted at processor 0: offset 256, needed 1024, of 768 words"):
        Simulator({"layers": entries}, state, (64, 2, 2))


def dilated(k, d, padding=0, out=8, channels=8):
    b = Builder((channels, 60), 2).op("a", "conv1d", out=out, kernel=k, dilation=d, padding=padding)
    return b.op("head", "conv1d", out=3, kernel=1, wide=True).build()


@pytest.mark.parametrize(
    ("k", "d", "offset", "said"),
    [(3, 4, 0x200, ""), (2, 8, 0x200, ""), (5, 2, 0x200, ""), (3, 8, 0x200, ""), (3, 20, 0x40, "`out_offset` of at least 0x50"),
     (3, 20, 0x200, ""), (1, 2, 0x200, "dilation 2 with a kernel of 1"), (4, 8, 0x200, "a kernel of 4, at most 3")],
)  # fmt: skip
def test_dilated_kernels(k, d, offset, said):
    model = dilated(k, d)
    each = {"processors": 0xFF, "operation": "Conv1d", "pad": 0}
    entries = [each | {"kernel_size": k, "dilation": d, "out_offset": offset}]
    entries.append(each | {"kernel_size": 1, "output_width": 32, "out_offset": 0x600})
    if said:
        with pytest.raises(ValueError, match=f"layer 0: .*{said}"):
            Simulator({"layers": entries}, checkpoint(model), (8, 60))
    else:
        assert same({"layers": entries}, model)
        chip = Simulator({"layers": entries}, checkpoint(model), (8, 60))
        taps = min((k - 1) * d + 1, 9)
        assert chip.words[0] == -(-8 * taps // 9)


@pytest.mark.parametrize(("channels", "fits"), [(68, False), (70, False), (72, True), (100, False), (128, True)])
def test_flattening_more_than_64_channels(channels, fits):
    """The tool gives each processor the kernels of the wrong channels (68 on 3x3 pixels), or fails (70)."""
    b = Builder((4, 2, 3), 1).op("a", "conv2d", out=channels, kernel=1)
    model = b.op("flat", "flatten").op("fc", "linear", out=5, wide=True).build()
    first = {"processors": 0xF, "kernel_size": "1x1", "pad": 0, "out_offset": 0x100}
    count = 4 * -(-channels // 8)
    second = {"processors": (1 << count) - 1, "operation": "MLP", "flatten": True, "output_width": 32, "out_offset": 0x400}
    if fits:
        assert same({"layers": [first, second]}, model)
    else:
        with pytest.raises(ValueError, match=f"layer 1: {channels} channels flattened, no multiple of 8"):
            same({"layers": [first, second]}, model)


def test_the_vendors_examples_pass():
    """The structure of two descriptions that the tool accepts; where `quantization` is absent, the checkpoint's bits hold."""
    model = residual()
    entries = planned(model)["layers"]
    for entry in entries:
        entry.pop("quantization", None)
    assert same({"layers": entries}, model)
    b = Builder((3, 16, 16), 5).op("a", "conv2d", out=12, activation="relu")
    b.op("b", "conv2d", out=16, activation="relu", pool=max_pool()).op("c", "conv2d", out=16, activation="relu", pool=max_pool())
    b.op("d", "conv2d", out=12, kernel=1, activation="relu", pool=max_pool())
    sequential = b.op("flat", "flatten").op("fc", "linear", out=5, wide=True).build()
    pooled = {"max_pool": 2, "pool_stride": 2, "activate": "ReLU"}
    network = {"layers": [
        {"processors": 0x7, "data_format": "HWC", "activate": "ReLU", "out_offset": 0x2000},
        {"processors": 0xFFF, "out_offset": 0} | pooled,
        {"processors": 0xFFFF, "out_offset": 0x2000} | pooled,
        {"processors": 0xFFFF, "kernel_size": "1x1", "pad": 0, "out_offset": 0} | pooled,
        {"processors": 0xFFF, "operation": "MLP", "flatten": True, "output_width": 32, "out_offset": 0x2000},
    ]}  # fmt: skip
    assert same(network, sequential)


def streaming():
    b = Builder((3, 128, 96), 8).op("a", "conv2d", out=6, activation="relu")
    b.op("b", "conv2d", out=8, pool=max_pool())
    return b.op("head", "conv2d", out=4, wide=True, pool=max_pool(4)).build()


STREAM = {"layers": [
    {"processors": 0x7, "streaming": True, "activate": "ReLU", "out_offset": 0x2000},
    {"processors": 0x3F, "streaming": True, "max_pool": 2, "pool_stride": 2, "out_offset": 0x4000},
    {"processors": 0xFF, "max_pool": 4, "pool_stride": 4, "output_width": 32, "out_offset": 0},
]}  # fmt: skip


def test_a_picture_that_streams():
    """Its 12,288 pixels are more than data memory holds; the rows that stream may not be written over."""
    assert same(STREAM, streaming(), 2)
    for layer, change, said in (
        (0, {"streaming": False}, "layer 0: its input takes 49152 bytes"),
        (1, {"streaming": False}, "layer 1: its input takes 49152 bytes"),
        (0, {"out_offset": 0x4}, "layer 1: the rows that it streams lie where those of an earlier layer do"),
        (1, {"out_offset": 0x100}, "layer 1: it writes over what layer 0 wrote"),
        (2, {"streaming": True, "in_sequences": 0}, "layer 2"),
    ):
        network = copy.deepcopy(STREAM)
        network["layers"][layer] |= change
        with pytest.raises(ValueError, match=said):
            same(network, streaming(), 1)


def test_a_far_dilation_writes_in_front_of_its_output():
    """Its 3x3 form gives rows that nobody asked for: they must not hit what is still read."""
    b = Builder((8, 60), 2).op("a", "conv1d", out=8).op("b", "conv1d", "a", out=8, kernel=3, dilation=20, padding=0)
    model = b.op("c", "conv1d", "b", out=8, kernel=1).op("pool", "pool", "c", pool={
        "type": "max", "size": [2], "stride": [2], "dilation": [1], "round": False}).build()  # fmt: skip
    each = {"processors": 0xFF, "operation": "Conv1d", "kernel_size": 3, "pad": 0}
    entries = [each | {"pad": 1, "out_offset": 0x200}, each | {"dilation": 20, "out_offset": 0x400},
               each | {"kernel_size": 1, "out_offset": 0}, {"processors": 0xFF, "operation": "passthrough", "max_pool": [2, 1],
                                                           "pool_stride": 2, "out_offset": 0x400}]  # fmt: skip
    assert same({"layers": entries}, model)
    entries[1] = entries[1] | {"out_offset": 0x200 + 60 * 4}
    with pytest.raises(ValueError, match="layer 1: it writes over what layer 0 wrote"):
        same({"layers": entries}, model)
