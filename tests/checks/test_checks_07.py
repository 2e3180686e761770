"""Lesson 07's exercise that is no table, and the pixel that it follows: every step equals the integer engine's."""

import numpy as np
import pytest
from compact_nets import convolution, graph, pooling, random_tensors
from exercises import both_ways

from qatcourse import course
from qatcourse.checks import lesson07 as lesson
from qatcourse.labs import pixel
from qatcourse.pose.data import load, to_codes
from qatcourse.pose.evaluate import calibrated_ptq, calibration_batches
from qatlib.integer import engine as integer
from qatlib.integer import quantize_model
from qatlib.integer.compact import CompactModel


def first(expected, got):
    return next((name for name in expected if not np.array_equal(expected[name], got[name])), None)


def last(expected, got):
    return next((name for name in reversed(expected) if not np.array_equal(expected[name], got[name])), None)


def first_by_mean(expected, got):
    return next((name for name in expected if abs(expected[name].mean() - got[name].mean()) > 0.1), None)


SOLUTIONS = [(lesson.check_first_difference, first)]
WRONG = [
    (lesson.check_first_difference, last, "last difference"),
    (lesson.check_first_difference, first_by_mean, "compare exactly"),
    (lesson.check_first_difference, lambda e, g: first(e, g) or "head", "return None"),
    (lesson.check_first_difference, lambda e, g: "up2" if first(e, g) == "up2" else None, "not their mean"),
]
test_solution_passes, test_wrong_answer_is_advised = both_ways(SOLUTIONS, WRONG)


def network(bits):
    """Convolution, pooled convolution, transposed convolution, sum, wide 1x1: every way a code is made in PoseTiny."""
    common = {"weight_bits": bits, "output_shift": bits - 10, "activation": "relu"}
    ops = [
        convolution("a", "input", 3, 8, padding=1, **common),
        convolution("b", "a", 8, 6, padding=1, pool=pooling("max"), **common),
        convolution("c", "b", 6, 8, kind="conv_transpose2d", padding=1, **common),
        {"name": "sum", "kind": "add", "inputs": ["a", "c"]},
        convolution("d", "sum", 8, 4, k=1, weight_bits=bits, wide=True),
    ]
    return CompactModel(graph((3, 8, 8), ops), random_tensors(ops, np.random.default_rng(bits)))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("place", [(0, 0), (3, 5), (7, 7)])
def test_followed_pixel_equals_the_integer_engine(bits, place):
    model = network(bits)
    codes = np.random.default_rng(1).integers(-128, 128, (3, 8, 8)).astype(np.int8)
    kept = integer.run(model, codes, keep=True)
    steps = pixel.follow(model, codes, *place, last_channel=2)
    assert [step.layer for step in steps] == ["a", "b", "c", "d"]
    for step in steps:
        assert step.code == kept[step.layer][step.channel, step.row, step.column]
        assert step.accumulator == step.products.sum() + step.bias
        assert step.shift is None or step.rounded == np.floor(step.exact + 0.5)
    assert (steps[-1].channel, steps[-1].row, steps[-1].column) == (2, *place) and steps[-1].shift is None


@pytest.mark.parametrize("joint", [0, 6, 13])
def test_a_joint_is_traced_from_the_peak_of_its_map(joint):
    calibration = calibration_batches(load("figures", "train", 32, progress=False))
    model = quantize_model(calibrated_ptq(course.pretrained(), calibration, 8)).compact
    for codes in to_codes(load("figures", "test", 4, progress=False).images):
        head = integer.run(model, codes)[joint]
        steps = pixel.follow(model, codes, *np.unravel_index(head.argmax(), head.shape), last_channel=joint)
        assert steps[-1].code == head.max()
        for step in steps:  # each covers the place of the peak at its own resolution
            scale = 16 / model.shape(step.layer)[-1]
            assert int(step.row * scale) <= steps[-1].row < (step.row + 1) * scale + (scale < 1)


def test_every_output_of_every_layer_can_be_followed():
    model = network(8)
    codes = np.random.default_rng(2).integers(-128, 128, (3, 8, 8)).astype(np.int8)
    kept = integer.run(model, codes, keep=True)
    for op in (op for op in model.ops if op["kind"] != "add"):
        for place in np.ndindex(*op["shape"]):
            assert pixel.one_code(model, op, kept[op["inputs"][0]], *place).code == kept[op["name"]][place]


def test_grouped_convolutions_are_refused():
    op = convolution("a", "input", 4, 4, groups=2)
    model = CompactModel(graph((4, 8, 8), [op]), random_tensors([op], np.random.default_rng(0)))
    with pytest.raises(ValueError, match="without groups"):
        pixel.taps(model, op, np.zeros((4, 8, 8), np.int8), 0, 0, 0)


def test_first_difference():
    good = {"a": np.arange(3), "b": np.arange(4)}
    assert pixel.first_difference(good, good) is None
    assert pixel.first_difference(good, {"a": np.arange(3), "b": np.zeros(4, int)}) == "b"
