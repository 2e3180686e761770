"""Our model of the chip: it accepts what the vendor's tool accepts, computes the same integers, and no broken plan gets by."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from export_networks import Builder, avg_pool, codes, max_pool, pose_like, residual
from plans import checkpoint, network_of, planned, same

from qatlib.chip import Simulator
from qatlib.chip.meter import fit
from qatlib.chip.synthesis import network_yaml

VERDICTS = json.loads(Path(__file__).parents[1].joinpath("golden", "synthesis-verdicts.json").read_text())


@pytest.mark.parametrize("case", VERDICTS, ids=lambda case: case["id"])
def test_the_verdicts_of_the_vendors_tool(case):
    model = network_of(case)
    report = fit(model, device=case["device"])
    if case["accepted"]:
        assert same(network_yaml(report, "net"), model)
    elif report.fits:  # else the planner says so itself
        try:
            assert same(network_yaml(report, "net"), model)  # planned otherwise today
        except ValueError as refusal:
            assert str(refusal).startswith("layer ")


def stacked():
    """Several passes, a sum, a pool on the way, a flatten: most of what can go wrong in a plan."""
    b = Builder((12, 8, 8), 3)
    b.op("a", "conv2d", out=72, kernel=1, activation="relu")
    b.op("b", "conv2d", "a", out=24, pool=max_pool())
    b.op("c", "conv2d", "b", out=24, bits=4)
    b.op("sum", "add", "b", "c")
    b.op("d", "conv2d", "sum", out=16, activation="abs", pool=avg_pool())
    return b.op("flat", "flatten").op("fc", "linear", out=6, wide=True).build(arch="Stacked")


PLAN = {"layers": [
    {"processors": 0xFFF, "kernel_size": "1x1", "pad": 0, "activate": "ReLU", "out_offset": 0x400},
    {"processors": 0xFFFFFFFFF, "max_pool": 2, "pool_stride": 2, "out_offset": 0x0},
    {"processors": 0xFFFFFF, "output_processors": 0xFFFFFF, "operation": "passthrough", "out_offset": 0x400, "write_gap": 1},
    {"processors": 0xFFFFFF, "in_sequences": 1, "in_offset": 0x0, "out_offset": 0x404, "write_gap": 1, "quantization": 4},
    {"processors": 0xFFFFFF, "in_sequences": [2, 3], "in_offset": 0x400, "eltwise": "add", "pool_first": False, "avg_pool": 2,
     "pool_stride": 2, "activate": "Abs", "out_offset": 0x0},
    {"processors": 0xFFFF, "operation": "MLP", "flatten": True, "output_width": 32, "out_offset": 0x400},
]}  # fmt: skip


def test_a_plan_by_hand_gives_the_integers():
    assert same(PLAN, stacked(), 6)
    assert same("# as text\n" + yaml.safe_dump(PLAN), stacked(), 1)


# What is changed in one layer of PLAN (None: taken away), and what the refusal says; "" where the integers may be wrong instead.
BROKEN = [
    (0, {"processors": 0x7FF}, "layer 0: `processors` 0x7ff has 11 bits, 12 channels take 12"),
    (0, {"kernel_size": None}, "layer 0: its kernel is .3, 3., the weights of a have .1, 1."),
    (0, {"out_offset": 0x0}, "layer 0: it writes over the picture"),
    (0, {"output_processors": 0xFFFFFFFFF << 4}, "layer 1: .* of 4608 values .* not those of `in_sequences` .0."),
    (0, {"activate": None}, ""),
    (0, {"data_format": "CHW"}, "layer 0: in CHW, each channel needs a data memory of its own"),
    (0, {"write_gap": 1}, "layer 1: .* values that it finds in data memory"),
    (0, {"out_offset": 0x7F00}, "layer 0: its output takes 512 bytes of each data memory at 0x7f00, of 32768"),
    (0, {"max_pool": [2, 1], "pool_stride": [2, 1]}, "layer 0: a pool stride of .2, 1., which differs by direction"),
    (1, {"processors": 0xFFFFFFFFF << 4}, "harmless"),  # the layer before writes where this one reads
    (1, {"max_pool": None, "avg_pool": 2}, ""),
    (1, {"max_pool": None, "pool_stride": None}, "layer 5: it reads 4 channels of 4x4, but is given 256 values"),
    (1, {"pad": 0}, "layer 5: it reads 64 channels of 1x1, but is given 16 values"),
    (1, {"pad": 3}, "layer 1: padding 3 around a kernel of 3"),
    (1, {"quantization": 4}, "layer 1: the weights of b reach from -127 to 127, not within 4 bits"),
    (1, {"output_shift": 16}, "layer 1: output_shift 16 .* beyond -15 to 15"),
    (1, {"output_shift": 1}, ""),
    (2, {"out_offset": 0x404}, "layer 3: it writes over what layer 2 wrote"),
    (2, {"out_offset": 0x408}, "layer 4: .* values"),
    (2, {"write_gap": None}, "layer 3: it writes over what layer 2 wrote"),
    (2, {"in_offset": 0x4}, "layer 2: .* values"),
    (2, {"output_processors": 0xFFFFFF << 1}, "layer 2: output processors .* packed"),
    (2, {"activate": "ReLU"}, "layer 2: a passthrough with activation"),
    (2, {"max_pool": 2, "pool_stride": 2}, "layer 4: what it reads differs in size"),
    (2, {"in_sequences": 0, "in_offset": 0x400}, "layer 2: .* bits|layer 4: what it reads"),
    (3, {"in_sequences": None}, "harmless"),  # what layer 2 copied are the same values
    (3, {"in_sequences": 3}, "layer 3: `in_sequences` names .3.; a layer reads earlier ones"),
    (3, {"in_offset": 0x400}, "layer 3: .* values"),
    (3, {"quantization": 8}, ""),
    (3, {"output_processors": 0xFFFFFF << 4}, "layer 4: its operands lie on different processors"),
    (4, {"in_sequences": [2]}, "layer 4: add of 2 operands, but `in_sequences` names 1"),
    (4, {"in_sequences": [2, 2]}, "layer 4: .* values"),
    (4, {"in_sequences": [1, 3]}, "layer 4: it writes over what layer 1 wrote"),
    (4, {"in_offset": 0x404}, "layer 4: .* values"),
    (4, {"in_offset": None}, "layer 4: .* values"),
    (4, {"eltwise": "sub"}, ""),
    (4, {"pool_first": True}, ""),
    (4, {"activate": None}, ""),
    (4, {"operation": "Conv1d", "kernel_size": 3}, "layer 4: "),
    (4, {"output_width": 32}, "layer 4: a 32-bit output with an activation"),
    (5, {"flatten": None}, "layer 5: it reads 64 channels of 2x2, but is given 64 values"),
    (5, {"in_sequences": 4}, "layer 5: "),  # the tool divides the channels by the pixels once more
    (5, {"max_pool": 2}, "layer 5: "),
    (5, {"output_width": None}, ""),
    (5, {"operation": "passthrough"}, "the checkpoint has weights of 1 more layers .fc.|layer 5"),
    (5, {"speed": 1}, "layer 5: `speed` is unknown here"),
]


@pytest.mark.parametrize(("layer", "change", "said"), BROKEN, ids=lambda x: str(x)[:60])
def test_a_broken_plan_is_refused_or_gives_other_integers(layer, change, said):
    network = copy.deepcopy(PLAN)
    entry = network["layers"][layer] | change
    network["layers"][layer] = {key: value for key, value in entry.items() if value is not None}
    if said in ("", "harmless"):
        assert same(network, stacked()) == bool(said)
    else:
        with pytest.raises(ValueError, match=said):
            same(network, stacked())


@pytest.mark.parametrize(
    ("key", "said"), [("b.op.bias", ""), ("c.output_shift", ""), ("fc.op.weight", "layer 5: .* no weights left")]
)
def test_what_is_missing_in_the_checkpoint_shows(key, said):
    model = pose_like() if key == "none" else stacked()
    state = {name: value for name, value in checkpoint(model).items() if name != key}
    if said:
        with pytest.raises(ValueError, match=said):
            Simulator(PLAN, state, (12, 8, 8))
    else:
        whole, less = (Simulator(PLAN, s, (12, 8, 8)).run(codes(model)[2])[5] for s in (checkpoint(model), state))
        assert not np.array_equal(whole, less)


@pytest.mark.parametrize("make", [residual, pose_like])
@pytest.mark.parametrize("by", [4, -4, 0x100])
def test_every_moved_offset_shows(make, by):
    """Of the exporter's plans: an offset that moves is refused, read wrongly, or does no harm because all read it there."""
    model = make()
    for index, entry in enumerate(planned(model)["layers"]):
        for key in {"in_offset", "out_offset"} & set(entry):
            network = planned(model)
            network["layers"][index][key] += by
            try:
                harmless = same(network, model, 1)
            except ValueError as refusal:
                assert "layer" in str(refusal)
                continue
            assert harmless and key == "out_offset"


def test_layers_are_readable_and_bad_pictures_refused():
    chip = Simulator(PLAN, checkpoint(stacked()), (12, 8, 8))
    assert str(chip.layers[4]).startswith(" 4 Conv2d          2+3: 24x4x4 -> add of 2 -> average 2x2 -> 16x2x2, 8 bit; in 0x0400")
    for picture in (np.zeros((12, 8, 7), int), np.full((12, 8, 8), 128)):
        with pytest.raises(ValueError, match="not int8 .12, 8, 8."):
            chip.run(picture)
