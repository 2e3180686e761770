"""What the vendor's tool refused of earlier exports, or took and computed otherwise: planned now, or refused with the remedy."""

import pytest
import yaml
from export_networks import Builder, avg_pool, codes, max_pool
from plans import checkpoint, with_state
from test_random_plans import judged

from qatlib.chip import Simulator
from qatlib.chip.meter import fit
from qatlib.chip.refusals import ORDERS
from qatlib.chip.synthesis import network_yaml
from qatlib.export.max78000 import export_max78000


def joined(*parts, then=None, size=8, device=85, first=16, source="input"):
    """A concatenation of convolutions with `parts` channels of one picture; `then` goes on from "cat"."""
    b = Builder((first, size, size), 3)
    for i, channels in enumerate(parts):
        b.op(f"part{i}", "conv2d", source, out=channels, kernel=1, activation="relu")
    b.op("cat", "concat", *(f"part{i}" for i in range(len(parts))))
    model = (then(b) if then else b.op("head", "conv2d", "cat", out=10, kernel=1, wide=True)).build(arch="Joined")
    model.graph["device"] = device
    return model


def sum_of_joined(out):
    def then(b):
        b.op("c", "conv2d", "cat", out=b.shapes["cat"][0], kernel=3)
        b.op("sum", "add", "cat", "c")
        return b.op("d", "conv2d", "sum", out=out, kernel=1)

    return then


def sums(b):
    b.op("left", "add", "cat", "cat")
    b.op("right", "sub", "cat", "left")
    return b.op("head", "conv2d", "right", out=3, kernel=1, wide=True)


def flattened(b):
    return b.op("flat", "flatten", "cat").op("fc", "linear", "flat", out=7, wide=True)


@pytest.mark.parametrize("device", [85, 87])
@pytest.mark.parametrize("out", [16, 4])
def test_a_sum_of_a_concatenation_reads_a_copy_of_it(out, device):
    report = judged(joined(8, 8, then=sum_of_joined(out), device=device))
    assert report.fits and [step.reads for step in report.sequence if step.kind == "copy"] == [("part0", "part1")]


@pytest.mark.parametrize("parts", [(32, 32), (40, 40), (64, 64, 64), (4, 4, 4, 4)])
@pytest.mark.parametrize("then", [sums, sum_of_joined(5), flattened])
def test_joined_parts_can_be_added_and_flattened(parts, then):
    report = judged(joined(*parts, then=then, size=4))
    assert report.fits, report.violations


def skipped(channels, size=8):
    """UNet-like: what is joined is read by a deeper layer, too."""
    b = Builder((16, size, size), 5)
    b.op("x", "conv2d", out=channels, kernel=1)
    b.op("y", "conv2d", "x", out=channels, kernel=1)
    b.op("cat", "concat", "y", "x")
    return b.op("head", "conv2d", "cat", out=6, wide=True).build(arch="Skipped")


@pytest.mark.parametrize("channels", [16, 32, 40, 56, 64])
def test_a_skip_is_joined_with_what_was_made_of_it(channels):
    report = judged(skipped(channels))
    assert report.fits and (channels <= 32 or [s.lanes for s in report.sequence if s.block == "cat"] == [2, 2])


def test_what_the_tool_does_not_join_is_refused_by_meter_and_exporter(tmp_path):
    for parts, said in [
        ((8, 16), "cat: joins parts of 8 and 16 channels, the vendor's tool only equal ones: give each part as many"),
        ((6, 6), "cat: joins parts of 6 channels, which are no multiple of 4: use 4, 8, 12, ..."),
        ((24, 24, 24), "cat: 72 joined channels, in parts of 24 that do not fill a pass of the processors each: join at most 64"),
        ((128, 128), "cat: 256 joined channels, in parts of 128 that"),
    ]:
        model = joined(*parts)
        assert fit(model, device=85).violations[0].startswith(said)
        with pytest.raises(ValueError, match="cat: ") as problem:
            export_max78000(model, None, tmp_path / "x")
        assert fit(model, device=85).violations[0] in str(problem.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("bias", [True, False])
def test_a_sum_before_a_convolution_with_bias_is_a_layer_of_its_own_on_the_larger_chip(bias):
    for channels in (16, 128):
        b = Builder((12, 6, 6), 4).op("a", "conv2d", out=channels, activation="relu").op("b", "conv2d", "a", out=channels)
        model = b.op("sum", "add", "a", "b").op("head", "conv2d", "sum", out=5, bias=bias, wide=True).build(arch="Res")
        for device in (85, 87):
            model.graph["device"] = device
            assert any(step.kind == "add" for step in judged(model).sequence) == (bias and device == 87)


def flat(channels, size=4, extra=False):
    b = Builder((8, size, size), 6).op("a", "conv2d", out=channels)
    if extra:  # another layer is computed in between
        b.op("b", "conv2d", "a", out=4, wide=True)
    b.op("flat", "flatten", "a").op("fc", "linear", "flat", out=5, wide=True)
    return b.build(*(("b", "fc") if extra else ("fc",)), arch="Flat")


@pytest.mark.parametrize(
    ("channels", "fits"), [(64, True), (65, False), (68, False), (70, False), (72, True), (96, True), (100, False), (136, False)]
)
def test_channels_that_are_flattened_in_passes(channels, fits):
    report = judged(flat(channels))
    passes = -(-channels // 64)
    assert report.fits == fits == (channels <= 64 or channels % (4 * passes) == 0)
    assert fits or f"only multiples of {4 * passes} can be" in report.violations[0]


def test_what_was_written_earlier_is_copied_before_it_is_flattened():
    report = judged(flat(8, extra=True))
    assert [step.writes for step in report.sequence] == ["a", "b", "a>fc", "fc"]


def dilated(kernel, dilation, length=40, channels=(8, 12), padding=0, **more):
    b = Builder((channels[0], length), 7).op("a", "conv1d", out=channels[0], kernel=1)
    b.op("b", "conv1d", "a", out=channels[1], kernel=kernel, dilation=dilation, padding=padding, **more)
    return b.op("head", "conv1d", "b", out=3, kernel=1, wide=True).build(arch="Dilated")


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 8), (3, 4), (3, 2), (2, 9), (3, 5), (3, 16), (2, 30)])
@pytest.mark.parametrize("channels", [(8, 12), (70, 130)])
def test_dilated_signals_are_planned_with_room_in_front_of_the_output(kernel, dilation, channels):
    report = judged(dilated(kernel, dilation, channels=channels))
    entry = yaml.safe_load(network_yaml(report, "net"))["layers"][1]
    rows = -(-channels[1] // 64)
    assert report.fits and (kernel < 3 or dilation < 5 or entry["out_offset"] >= 4 * dilation * rows)
    words = report.placement.words["b"] / (rows * -(-channels[0] // 64))
    taps = (kernel - 1) * dilation + 1 if (kernel - 1) * dilation < 9 else 9
    assert abs(words - -(-channels[1] // rows // 4) * 4 * taps / 9) < 2.5


def test_a_far_dilation_with_pooling_is_refused():
    pool = {"type": "max", "size": [2], "stride": [2], "dilation": [1], "round": False}
    report = judged(dilated(3, 5, pool=pool))
    assert report.violations == ["b: pooling in front of a Conv1d with dilation 5: pool in a layer of its own"]


def test_fourteen_far_dilated_layers_exhaust_kernel_memory():
    b = Builder((64, 200), 8)
    for i in range(14):
        b.op(f"l{i}", "conv1d", out=64, kernel=3, dilation=4, bias=False)
    report = fit(b.op("head", "conv1d", out=4, kernel=1, wide=True).build(), device=85)
    assert not report.fits and "kernel memory exhausted" in report.violations[0]


def catsdogs(size=128, bias=False, inputs=3):
    b = Builder((inputs, size, size), 9)
    b.op("conv1", "conv2d", out=16, bias=bias, activation="relu")
    for i, out in enumerate((32, 64, 32, 32), 2):
        b.op(f"conv{i}", "conv2d", out=out, bias=bias, activation="relu", pool=max_pool())
    b.op("last", "conv2d", out=16, kernel=1).op("flat", "flatten")
    return b.op("fc", "linear", out=2, wide=True).build(arch="CatsDogs")


def test_a_large_picture_is_streamed_as_far_as_it_must_be(tmp_path):
    report = judged(catsdogs())
    assert report.fits and [step.streams for step in report.sequence] == [True, True, *[False] * 5]
    folder = export_max78000(with_state(catsdogs(bias=True)), None, tmp_path / "net")
    text = (folder / "README.md").read_text()
    assert "--verbose --fifo" in text and "the first 2 layers stream it" in text
    assert "Note: conv1, conv2: a bias in a layer that streams" in text
    assert "a bias in" not in (export_max78000(with_state(catsdogs()), None, tmp_path / "none") / "README.md").read_text()
    large = Builder((3, 200, 200), 1).op("a", "conv2d", out=16).op("b", "conv2d", out=4, pool=max_pool()).build()
    for model, reason in [(catsdogs(inputs=5), "at most 4 channels, this one has 5"), (large, "streaming would leave a map")]:
        assert any("streaming" in sentence and reason in sentence for sentence in fit(model, device=85).violations)
    assert any("streaming is planned for the MAX78000 only" in s for s in fit(catsdogs(320), device=87).violations)


def test_as_many_layers_stream_as_the_next_map_needs():
    b = Builder((3, 224, 168), 1)
    for i, out in enumerate((32, 32, 64, 64, 64)):
        b.op(f"c{i}", "conv2d", out=out, bias=False, activation="relu", pool=max_pool() if i in (1, 3, 4) else None)
    report = judged(b.op("head", "conv2d", out=16, wide=True).build(arch="Faces"))
    assert report.fits and [step.streams for step in report.sequence] == [True] * 4 + [False] * 2


def faceid():
    b = Builder((3, 160, 120), 10)
    b.op("conv1", "conv2d", out=16, bias=False, activation="relu")
    for i, out in enumerate((32, 32, 64, 64), 2):
        b.op(f"conv{i}", "conv2d", out=out, bias=False, activation="relu", pool=max_pool())
    b.op("conv6", "conv2d", out=64, bias=False, activation="relu").op("conv7", "conv2d", out=64, bias=False, activation="relu")
    b.op("conv8", "conv2d", out=512, kernel=1, bias=False, pool=max_pool())
    return b.op("mean", "pool", pool={**avg_pool(5), "size": [5, 3], "stride": [5, 3]}).build(arch="FaceId")


def test_a_network_may_end_in_a_pool_of_many_channels(tmp_path):
    assert judged(faceid()).fits
    text = (export_max78000(with_state(faceid()), None, tmp_path / "net") / "README.md").read_text()
    assert "--verbose --no-scale-output --fifo" in text and "would stop with a KeyError" in text
    assert "- mean: real value = integer x 2^-7 in the file, 2^-7 after cnn_unload() (--no-scale-output)" in text


def test_several_outputs_are_kept_and_unloaded_in_order(tmp_path):
    b = Builder((4, 8, 8), 11).op("a", "conv2d", out=8, activation="relu").op("wide", "conv2d", "a", out=3, wide=True)
    b.op("b", "conv2d", "a", out=8, pool=max_pool()).op("c", "conv2d", "b", out=6)
    model = b.op("d", "conv2d", "c", out=5).build("d", "a", "wide", arch="Several")
    report = judged(model)
    network = yaml.safe_load(network_yaml(report, "net"))["layers"]
    assert [entry.get("output", False) for entry in network] == [True, True, False, False, True]
    import numpy as np

    from qatlib.integer.engine import Integer

    picture = codes(model, 3)[2]
    folder = export_max78000(with_state(model), picture, tmp_path / "net")
    values = Integer(model)(picture, keep=["a", "wide", "d"])
    flat = np.concatenate([value.ravel() for value in values.values()])
    assert np.array_equal(np.load(folder / "expected_several.npy"), flat)
    assert "one after the other, in this order: a, wide, d" in (folder / "README.md").read_text()
    last = judged(joined(8, 8, then=lambda b: b)).sequence[-1]  # the network returns a concatenation: a copy of it
    assert (last.kind, last.output, last.reads) == ("copy", True, ("part0", "part1"))


SIMPLENET = ((16, 3, 1), (20, 3, 1), (20, 3, 1), (20, 3, 1), (20, 3, 2), (20, 3, 1), (44, 3, 1), (48, 3, 2), (48, 3, 1), (96, 3, 2),
             (512, 1, 2), (128, 1, 1), (128, 3, 2), (100, 1, 1))  # fmt: skip


def simplenet(bits=8):
    """Channels, kernels and pools of the vendor's ai85simplenet: at 8 bits its kernels need masks all over the chip."""
    b = Builder((3, 32, 32), 12)
    for i, (out, kernel, pool) in enumerate(SIMPLENET):
        b.op(f"conv{i}", "conv2d", out=out, kernel=kernel, bits=bits, bias=False, wide=i == 13,
             activation=None if i == 13 else "relu", pool=max_pool(pool) if pool > 1 else None)  # fmt: skip
    return b.build(arch="Simple")


def test_masks_are_moved_until_all_kernels_fit_in_every_order_of_the_tool():
    report, model = judged(simplenet()), simplenet()  # the model of the chip places the kernels in each order itself
    chip = Simulator(network_yaml(report, "net"), checkpoint(model), (3, 32, 32), orders=ORDERS)
    assert len(chip.offsets) == 3 and chip.offsets["first to last"] == [report.placement.offset[f"conv{i}"] for i in range(14)]
    assert report.fits and len({report.placement.first[step.layer.name] for step in report.sequence}) > 3
    assert report.words > 700 and all(p in range(0, 64, 4) for p in report.placement.first.values())
    kernels = {step.layer.name: report.placement.columns(step.layer.inputs[0], step.layer.c_in) for step in report.sequence}
    assert all(columns[-1] < 64 for columns in kernels.values()) and kernels["conv0"].start == 0


def two_heads(size=74):
    """Pictures whose first maps fill two thirds of a data memory each, and outputs of several sizes, as in detectors."""
    b = Builder((3, size, size), 13)
    b.op("conv1", "conv2d", out=32, bias=False, activation="relu").op("conv2", "conv2d", out=32, bias=False, activation="relu")
    b.op("conv3", "conv2d", out=64, bias=False, activation="relu", pool=max_pool())
    b.op("conv4", "conv2d", out=64, bias=False, activation="relu", pool=max_pool(3, 2))
    b.op("conv5", "conv2d", out=32, bias=False, activation="relu", pool=max_pool())
    b.op("box1", "conv2d", "conv4", out=16, wide=True).op("class1", "conv2d", "conv4", out=44, wide=True)
    b.op("box2", "conv2d", "conv5", out=16, wide=True).op("class2", "conv2d", "conv5", out=44, wide=True)
    return b.build("box1", "box2", "class1", "class2", arch="Detector")


def test_large_maps_lie_in_different_data_memories():
    report = judged(two_heads())
    assert report.fits, report.violations
    first = report.placement.first
    assert first["conv1"] >= 4 and abs(first["conv1"] - first["conv2"]) >= 32
    assert report.memory.size["conv1"] * 2 > 32_768 and report.data_bytes <= 32_768
    assert "data memory exhausted" in fit(two_heads(88), device=85).violations[0]


def test_plans_do_not_depend_on_the_order_of_a_set():
    import os
    import subprocess
    import sys

    script = "from test_plans import simplenet, two_heads; from qatlib.chip.meter import fit\n"
    script += "print(*(sorted(fit(net(), device=85).placement.first.items()) for net in (simplenet, two_heads)))"
    folders = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__)), *sys.path]
    found = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                       env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(folders)}).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1 and "conv1" in found.pop()
