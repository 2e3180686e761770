"""The measurements behind the pictures of lesson 04."""

import math

import numpy as np
import pytest
import torch

from qatcourse.labs import ptq
from qatcourse.pose.model import PoseTiny
from qatcourse.viz import pipelines
from qatlib import ai8x
from qatlib.ai8x.qat import layers


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(4)
    return PoseTiny().eval()


@pytest.fixture(scope="module")
def inputs():
    return torch.randint(-128, 128, (4, *PoseTiny.input_shape), generator=torch.Generator().manual_seed(4)) / 128


def test_weights_alone_are_on_their_grid_and_activations_stay_float(net, inputs):
    changed = ptq.weights_only(net, 4)
    reference = ptq.at_bits(ptq.weights_only(net, 8), 4)
    for (name, layer), other in zip(layers(changed).items(), layers(reference).values()):
        assert not layer.weight_bits.item()
        step = torch.exp2(other.weight_shift()) / 8
        codes = layer.op.weight / step
        assert torch.equal(codes, codes.round()) and codes.min() >= -8 and codes.max() <= 7, name
    assert layers(net)["conv1"].bn is not None, "the float network must stay as it was"
    assert (changed.conv1(inputs) * 128 % 1).any()


def test_activations_alone_are_codes_of_their_limits(net, inputs):
    limits = dict.fromkeys(layers(net), 4.0)
    changed = ptq.activations_only(net, limits)
    codes = changed.conv1(inputs) * 32
    assert torch.equal(codes, codes.round()) and codes.max() <= 127
    assert ptq.activations_only(net).conv1(inputs).max() <= 127 / 128


def test_limits_are_those_of_statistics_and_cover_most_values(net, inputs):
    limits, seen = ptq.limits(net, [(inputs,)]), ptq.outputs(net, inputs)
    assert list(limits) == list(seen) == list(layers(net))
    assert limits["conv2"] == limits["up10"] and limits["conv4"] == limits["up8"] and limits["conv5"] == limits["conv7"]
    for name, limit in limits.items():
        assert math.log2(limit).is_integer() and (seen[name].abs() <= limit).float().mean() > 0.9


def test_bits_of_a_calibrated_network_change_without_another_calibration(net, inputs):
    from qatcourse.pose.evaluate import calibrated_ptq

    eight, four = (calibrated_ptq(net, [(inputs,)], bits) for bits in (8, 4))
    assert torch.equal(ptq.at_bits(eight, 4)(inputs), four(inputs))
    mixed = ptq.at_bits(eight, 8, {"conv3": {"weight_bits": 2}})
    assert mixed.conv3.weight_bits.item() == 2 and mixed.conv4.weight_bits.item() == 8


ROWS = [
    {"run": "a", "bits": 8, "fp32": 0.8, "naive": 0.4, "ptq": 0.8, "qat": 0.795},
    {"run": "b", "bits": 8, "fp32": 0.8, "naive": 0.3, "ptq": 0.74, "qat": 0.72},
    {"run": "a", "bits": 4, "fp32": 0.8, "naive": 0.1, "ptq": 0.3, "qat": 0.7},
]


def test_verdicts_follow_from_the_numbers():
    found = {(row["claim"], row["version"], row["bits"]): row["verdict"] for row in ptq.claims(ROWS)}
    assert found["PTQ often loses 5-10 %", "ptq", 8] == "holds in 1 of 2"
    assert found["PTQ often loses 5-10 %", "naive", 8] == "false"
    assert found["QAT often loses less than 2 %", "qat", 8] == "holds in 1 of 2"
    assert found["QAT often loses less than 2 %", "qat", 4] == "false"
    assert found["the quantized network keeps about 98 % of FP32", "ptq", 8] == "holds in 1 of 2"
    assert "pays in every run" in ptq.pays(ROWS, 4) and "+0.400" in ptq.pays(ROWS, 4)
    assert "disagree" in ptq.pays(ROWS, 8) and "nothing measured" in ptq.pays(ROWS, 2)


def test_stored_rows_leave_out_incomplete_runs_and_name_the_command():
    names = ["fp32_longer", *(f"bits{b}.{v}" for b in (8, 4) for v in ("naive", "ptq", "qat"))]
    stored = {f"lsp.seed1.{name}.pck": {"value": 0.2} for name in names} | {"figures.full.bits8.qat.pck": {"value": 0.8}}
    assert [(row["run"], row["bits"]) for row in ptq.stored_rows(stored)] == [("lsp.seed1", 8), ("lsp.seed1", 4)]
    missing = ptq.missing_runs(stored)
    assert "python -m qatcourse.keeper.reference figures.full" in missing and not any("lsp.seed1" in command for command in missing)
    assert ptq.stored_rows({}) == [] and len(ptq.missing_runs({})) == len(ptq.RUNS)


def test_pictures_say_what_the_numbers_are(net, inputs):
    seen, limits = ptq.outputs(net, inputs), ptq.limits(net, [(inputs,)])
    biggest = max(y.abs().max().item() for y in seen.values())
    assert f"{biggest:.3g}" in pipelines.traditional(seen)[1]
    assert f"{biggest:.3g}" in pipelines.maxima(seen, limits)[1]
    bits, norms = dict.fromkeys(seen, 4), dict(zip(seen, np.linspace(1, 2, len(seen))))
    assert "norms from 1 to 2" in pipelines.quantized_chain(seen, bits, limits, norms)[1]
    assert "Ahead: QAT, by 0.200" in pipelines.two_ways(0.8, 0.8, 0.5, 0.7, 4, 100)[1]
    said = pipelines.spread(ROWS)[1]
    assert "8 bits, 2 runs: naive 44%, PTQ 96%, QAT 95%" in said and "4 bits, 1 run: naive 12%" in said


def test_one_layer_with_fewer_bits_saves_bytes_of_that_layer_alone(net):
    sizes = {"conv1": 1000, "conv2": 4000}
    small = sizes | {"conv2": 1000}
    rows = [{"layer": "conv2", "bits": 8, "pck": 0.8, "bytes": 5000, "words": 9, "sizes": sizes, "fits": True},
            {"layer": "conv2", "bits": 2, "pck": 0.6, "bytes": 2000, "words": 9, "sizes": small, "fits": False}]  # fmt: skip
    svg, sentence = pipelines.layer_bits(rows, "conv2", 2)
    assert svg.startswith("<svg") and "PCK 0.600" in sentence and "-3,000" in sentence and "does not fit" in sentence
    low = ai8x.fit(ptq.at_bits(ptq.weights_only(net, 8), 8, {"conv3": {"weight_bits": 2}}), net.input_shape)
    high = ai8x.fit(ptq.at_bits(ptq.weights_only(net, 8), 8), net.input_shape)
    assert high.weight_bytes - low.weight_bytes == 64 * 64 * 9 * 3 // 4
