"""Lesson 04: network, calibration and PTQ of the learner's own, and the measurements behind the pictures."""

import re

import pytest
import torch

from qatcourse.checks import lesson04
from qatcourse.checks.lesson03 import solved
from qatcourse.labs import ptq
from qatcourse.pose.model import PoseTiny
from qatcourse.viz import pipelines
from qatlib.ai8x.qat import layers


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(4)
    return PoseTiny().eval()


@pytest.fixture(scope="module")
def inputs():
    return torch.randint(-128, 128, (4, *PoseTiny.input_shape), generator=torch.Generator().manual_seed(4)) / 128


@pytest.mark.parametrize("name", ["network", "calibrate", "ptq"])
def test_the_pieces_of_the_solutions_pass(name):
    check = getattr(lesson04, f"check_{name}")
    assert check.piece and check.judge(solved()[check.name]).ok


def test_bits_of_a_calibrated_network_change_without_another_calibration(net, inputs):
    from qatcourse.pose.evaluate import calibrated_ptq

    eight, four = (calibrated_ptq(net, [(inputs,)], bits) for bits in (8, 4))
    assert torch.equal(ptq.at_bits(eight, 4)(inputs), four(inputs))
    mixed = ptq.at_bits(eight, 8, {"conv3": {"weight_bits": 2}})
    assert mixed.conv3.weight_bits.item() == 2 and mixed.conv4.weight_bits.item() == 8


def test_pictures_say_what_the_numbers_are(net, inputs):
    seen = ptq.outputs(net, inputs)
    assert list(seen) == list(layers(net)) and net.conv1.bn is not None
    biggest = max(y.abs().max().item() for y in seen.values())
    assert f"{biggest:.3g}" in pipelines.traditional(seen)[1]
    said = pipelines.clip_and_round(seen, dict.fromkeys(seen, 3))[1]
    assert "Range ±1: clip error at most" in said and "Calibrated:" in said


def test_the_threshold_slider_keeps_its_axes_and_splits_the_error():
    values = torch.cat([torch.linspace(-1, 3, 4001), torch.tensor([9.0])])
    draw = pipelines.threshold_errors(values, "values")
    axes = [re.findall(r'text-anchor="(?:middle|end)"[^>]*>([^<]*)<', draw(t)[0]) for t in (-2, 1, 5)]
    assert axes[0] == axes[1] == axes[2] and all(draw(t)[0].startswith("<svg") for t in range(-2, 6))
    assert "0.00% of the outputs are clipped" in draw(4)[1] and "0.0e+00 by clipping" in draw(4)[1]
    assert "are clipped" in draw(0)[1] and "The sum is least at t = " in draw(0)[1]
