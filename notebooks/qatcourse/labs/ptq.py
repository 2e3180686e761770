"""Quantization without training, for lesson 04: weights alone, activations alone, bit widths; what stored runs say of QAT."""

import copy
import math

import torch

from qatcourse.pose.data import PoseSet
from qatcourse.pose.evaluate import calibrated_ptq, evaluate, qat_policy
from qatcourse.pose.train import batch_loss
from qatcourse.viz.inspection import outputs_of
from qatlib import ai8x
from qatlib.ai8x.qat import layers
from qatlib.quantizers import round_half_up

RUNS = (*(f"{group}.seed{seed}" for group in ("figures.quick", "lsp") for seed in range(3)), "figures.full")


@torch.no_grad()
def weights_only(model, weight_bits: int):
    """A copy of a float network: batch norm fused, weights and biases on their grids, activations float and unbounded."""
    changed = copy.deepcopy(model)
    ai8x.fuse_bn_layers(changed)
    for layer in layers(changed).values():
        layer.init_module(weight_bits, weight_bits, True)
        grid = torch.exp2(layer.weight_shift()) / 2 ** (weight_bits - 1)
        weight, bias = layer.quantized_weight()
        layer.init_module(None, None, False)
        layer.op.weight.copy_(weight * grid)
        if bias is not None:
            layer.op.bias.copy_(bias * grid)
    return changed.eval()


def activations_only(model, limits: dict | None = None):
    """A copy of a float network whose layers' outputs are 8-bit codes of the range +-limit (default 1); the wide head stays."""
    changed = copy.deepcopy(model)
    ai8x.fuse_bn_layers(changed)
    for name, layer in layers(changed).items():
        if not layer.wide:
            step = (limits[name] if limits else 1.0) / 128
            layer.register_forward_hook(lambda _m, _x, y, step=step: round_half_up(y / step).clamp(-128, 127) * step)
    return changed.eval()


def outputs(model, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every layer's output by name, batch norm fused if it was not."""
    fused = copy.deepcopy(model)
    ai8x.fuse_bn_layers(fused)
    return outputs_of(fused.eval(), inputs)


def limits(model, batches) -> dict[str, float]:
    """The range +-limit that calibration gives each layer of a PoseTiny, by name: a power of two, the same where branches meet."""
    calibrated = layers(calibrated_ptq(model, batches, 8))
    stored = torch.tensor([layer.activation_threshold.item() for layer in calibrated.values()])
    return dict(zip(calibrated, torch.exp2(stored.cumsum(0)).tolist()))  # stored relative to the input; one path visits all layers


@torch.no_grad()
def thresholds(model, batches) -> dict[str, float]:
    """layer -> the threshold that its own outputs ask for; `model` stays as it is."""
    measured = copy.deepcopy(model).eval()
    ai8x.fuse_bn_layers(measured)
    ai8x.init_hist(measured)
    for (inputs,) in batches:
        measured(inputs)
    ai8x.init_threshold(measured)
    ai8x.release_hist(measured)
    return {name: layer.activation_threshold.item() for name, layer in layers(measured).items()}


def at_bits(calibrated, weight_bits: int, overrides: dict | None = None):
    """A copy of a calibrated network with other bits: thresholds do not depend on bits, so one calibration serves all."""
    changed = copy.deepcopy(calibrated)
    ai8x.initiate_qat(changed, qat_policy(weight_bits, overrides))
    return changed.eval()


def gradients(model, poses: PoseSet) -> dict[str, float]:
    """Norm of the loss's gradient at each layer's float weights, for one batch."""
    copied = copy.deepcopy(model).eval()
    batch_loss(copied, poses.images, poses.joints, poses.labelled).backward()
    return {name: layer.op.weight.grad.norm().item() for name, layer in layers(copied).items()}


def sensitivity(calibrated, poses: PoseSet, bits: tuple = (8, 4, 2, 1)) -> list[dict]:
    """One row for each layer and bit width, all other layers at 8 bits: PCK without training, and what the chip needs."""
    rows, eight = [], evaluate(calibrated, poses)["pck"]
    for name in layers(calibrated):
        for b in bits:
            model = at_bits(calibrated, 8, {name: {"weight_bits": b}})
            meter = ai8x.fit(model, model.input_shape)
            pck = eight if b == 8 else evaluate(model, poses)["pck"]
            sizes = {row.name: row.weight_bytes for row in meter.rows if row.weights}
            rows.append({"layer": name, "bits": b, "pck": pck, "bytes": meter.weight_bytes, "words": meter.words, "sizes": sizes,
                         "fits": meter.fits})  # fmt: skip
    return rows


def percent_lost(fp32: float, quantized: float) -> float:
    """How much of the float network's score is gone, in percent of it."""
    return 100 * (fp32 - quantized) / fp32


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


CLAIMS = (
    ("PTQ often loses 5-10 %", ("naive", "ptq"), 5, 10),
    ("QAT often loses less than 2 %", ("qat",), -math.inf, 2),
    ("the quantized network keeps about 98 % of FP32", ("naive", "ptq", "qat"), -math.inf, 2.5),
)


def claims(rows: list[dict]) -> list[dict]:
    """The brief's claims, each for each version and bit width it could mean: losses measured in `rows`, and a verdict."""
    verdicts = []
    for claim, versions, low, high in CLAIMS:
        for version in versions:
            for b in sorted({row["bits"] for row in rows}, reverse=True):
                lost = [percent_lost(row["fp32"], row[version]) for row in rows if row["bits"] == b]
                hits = sum(low <= value <= high for value in lost)
                said = "holds" if hits == len(lost) else "false" if not hits else f"holds in {hits} of {len(lost)}"
                span = f"{min(lost):.1f}" if len(lost) == 1 else f"{min(lost):.1f} to {max(lost):.1f}"
                verdicts.append({"claim": claim, "version": version, "bits": b, "runs": len(lost), "lost %": span, "verdict": said})
    return verdicts


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
