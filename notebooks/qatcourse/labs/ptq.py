"""Quantization without training, for lessons 04 and 15: outputs, bit widths, biases; what stored runs say of QAT."""

import copy
import statistics

import torch

from qatcourse.pose.evaluate import qat_policy
from qatcourse.viz.inspection import outputs_of
from qatlib import ai8x
from qatlib.quantizers import round_half_up

RUNS = (*(f"{group}.seed{seed}" for group in ("figures.quick", "lsp") for seed in range(3)), "figures.full")


def outputs(model, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every layer's output by name, batch norm fused if it was not."""
    fused = copy.deepcopy(model)
    ai8x.fuse_bn_layers(fused)
    return outputs_of(fused.eval(), inputs)


def at_bits(calibrated, weight_bits: int, overrides: dict | None = None):
    """A copy of a calibrated network with other bits: thresholds do not depend on bits, so one calibration serves all."""
    changed = copy.deepcopy(calibrated)
    ai8x.initiate_qat(changed, qat_policy(weight_bits, overrides))
    return changed.eval()


def percent_lost(fp32: float, quantized: float) -> float:
    """How much of the float network's score is gone, in percent of it."""
    return 100 * (fp32 - quantized) / fp32


def zeroed(weight: torch.Tensor, scale: float) -> float:
    """The share of the weights whose code, floor(w / scale + 0.5), is 0."""
    return (round_half_up(weight / scale) == 0).float().mean().item()


def corrected_bias(bias: torch.Tensor, wanted: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """The bias with which every channel of `got` [N, C, H, W] would have the mean that it has in `wanted`."""
    return bias + (wanted - got).mean((0, 2, 3))


def gain(ptq: list[float], qat: list[float]) -> tuple[float, float]:
    """(mean, standard deviation over n - 1) of what QAT gains over PTQ, seed by seed."""
    gains = [after - before for before, after in zip(ptq, qat)]
    return statistics.mean(gains), statistics.stdev(gains)


def stored_rows(stored: dict) -> list[dict]:
    """Runs in data/reference.json, one row for each run and bit width whose three versions are all there."""
    rows = []
    for run in RUNS:
        for b in (8, 4, 2):
            names = {"fp32": f"{run}.fp32_longer.pck"} | {v: f"{run}.bits{b}.{v}.pck" for v in ("naive", "ptq", "qat")}
            if all(name in stored for name in names.values()):
                rows.append({"run": run, "bits": b} | {key: stored[name]["value"] for key, name in names.items()})
    return rows


def missing_runs(stored: dict) -> list[str]:
    """Commands that measure the runs which are not, or not wholly, in data/reference.json."""
    found = [row["run"] for row in stored_rows(stored)]
    missing = [run for run in RUNS if found.count(run) < (2 if run.startswith("lsp") else 3)]
    return [f"python -m qatcourse.keeper.reference {run}" for run in missing]


def pays(rows: list[dict], bits: int) -> str:
    """One sentence: what QAT gains over calibrated PTQ at `bits`, over all runs in `rows`, and whether every run agrees."""
    gains = [row["qat"] - row["ptq"] for row in rows if row["bits"] == bits]
    if not gains:
        return f"{bits} bits: nothing measured."
    mean, low, high = sum(gains) / len(gains), min(gains), max(gains)
    small = max(abs(low), abs(high)) <= 0.01
    said = "QAT pays in every run" if low > 0.01 else "QAT changes little" if small else "the runs disagree"
    runs = "1 run" if len(gains) == 1 else f"{len(gains)} runs"
    return f"{bits} bits, {runs}: QAT minus PTQ is {mean:+.3f} PCK on average ({low:+.3f} to {high:+.3f}); {said}."
