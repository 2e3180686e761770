"""Lesson 15: what stored runs say of QAT, and the numbers that its exercises compute."""

import pytest
import torch

from qatcourse.labs import ptq
from qatcourse.viz import pipelines

ROWS = [
    {"run": "a", "bits": 8, "fp32": 0.8, "naive": 0.4, "ptq": 0.8, "qat": 0.795},
    {"run": "b", "bits": 8, "fp32": 0.8, "naive": 0.3, "ptq": 0.74, "qat": 0.72},
    {"run": "a", "bits": 4, "fp32": 0.8, "naive": 0.1, "ptq": 0.3, "qat": 0.7},
]


def test_the_gain_of_qat_is_said_with_its_spread():
    assert "pays in every run" in ptq.pays(ROWS, 4) and "+0.400" in ptq.pays(ROWS, 4)
    assert "disagree" in ptq.pays(ROWS, 8) and "nothing measured" in ptq.pays(ROWS, 2)


def test_stored_rows_leave_out_incomplete_runs_and_name_the_command():
    names = ["fp32_longer", *(f"bits{b}.{v}" for b in (8, 4) for v in ("naive", "ptq", "qat"))]
    stored = {f"lsp.seed1.{name}.pck": {"value": 0.2} for name in names} | {"figures.full.bits8.qat.pck": {"value": 0.8}}
    assert [(row["run"], row["bits"]) for row in ptq.stored_rows(stored)] == [("lsp.seed1", 8), ("lsp.seed1", 4)]
    missing = ptq.missing_runs(stored)
    assert "python -m qatcourse.keeper.reference figures.full" in missing and not any("lsp.seed1" in command for command in missing)
    assert ptq.stored_rows({}) == [] and len(ptq.missing_runs({})) == len(ptq.RUNS)


def test_the_picture_of_stored_runs_says_what_was_kept():
    said = pipelines.spread(ROWS)[1]
    assert "8 bits, 2 runs: naive 44%, PTQ 96%, QAT 95%" in said and "4 bits, 1 run: naive 12%" in said


def test_a_corrected_bias_gives_every_channel_its_mean_back():
    random = torch.Generator().manual_seed(15)
    wanted, got, bias = torch.randn(4, 3, 5, 6, generator=random), torch.randn(4, 3, 5, 6, generator=random), torch.ones(3)
    shifted = got + (ptq.corrected_bias(bias, wanted, got) - bias).view(1, 3, 1, 1)
    assert torch.allclose(shifted.mean((0, 2, 3)), wanted.mean((0, 2, 3)), atol=1e-6)


def test_zeroed_rounds_half_up_as_the_chip_does():
    assert ptq.zeroed(torch.tensor([-0.5, -0.51, 0.49, 0.5]), 1.0) == 0.5


def test_a_gain_is_taken_seed_by_seed():
    assert ptq.gain([0.1, 0.5], [0.2, 0.7]) == pytest.approx((0.15, 0.005**0.5))
