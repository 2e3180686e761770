"""How good is a pose network, and what does quantization cost it: FP32, naive rounding, calibrated PTQ, QAT."""

import copy

import numpy as np
import torch

from qatcourse.pose import metrics
from qatcourse.pose.data import PoseSet, check_images, to_input
from qatlib import ai8x


def predict(model, images: np.ndarray, batch_size: int = 250) -> np.ndarray:
    """Joint positions (N, 14, 2), pixels, of uint8 pictures (N, S, S, 3), S the side that the network reads.

    Raises TypeError or ValueError for pictures of another kind, for none, and for a batch_size below 1.
    """
    return _in_batches(model, model.coordinates, images, batch_size).numpy()


def heat_maps(model, images: np.ndarray, batch_size: int = 250) -> torch.Tensor:
    """The network's logits (N, 14, 16, 16), on the CPU; pictures and errors as in `predict`."""
    return _in_batches(model, model.logits, images, batch_size)


@torch.no_grad()
def _in_batches(model, function, images: np.ndarray, batch_size: int) -> torch.Tensor:
    check_images(images)
    if not len(images) or isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"{len(images)} images in batches of {batch_size!r}; give one image and a batch_size of 1 at least")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = [function(to_input(images[i : i + batch_size]).to(device)).cpu() for i in range(0, len(images), batch_size)]
    model.train(was_training)
    return torch.cat(parts)


def evaluate(model, poses: PoseSet) -> dict[str, float]:
    """PCK@0.2 (torso), PCKh@0.5 and the mean pixel error of `model` on `poses`."""
    return score(predict(model, poses.images), poses)


def score(positions: np.ndarray, poses: PoseSet) -> dict[str, float]:
    """The three metrics of predicted `positions` (N, 14, 2) in pixels."""
    truth = (positions, poses.joints, poses.labelled)
    return {
        "pck": float(metrics.pck(*truth)),
        "pckh": float(metrics.pckh(*truth)),
        "pixel_error": float(metrics.pixel_error(*truth)),
    }


def calibration_batches(poses: PoseSet, n: int = 2000, batch_size: int = 250):
    """Batches of network inputs from the first n pictures, for `pre_qat`."""
    n = min(n, len(poses.images))
    return [(to_input(poses.images[i : i + batch_size]),) for i in range(0, n, batch_size)]


def naive_rounding(model, weight_bits: int, overrides: dict | None = None):
    """A copy of a float network with quantization switched on and nothing calibrated: every activation clipped to +-1."""
    quantized = copy.deepcopy(model)
    ai8x.fuse_bn_layers(quantized)
    ai8x.initiate_qat(quantized, qat_policy(weight_bits, overrides))
    ai8x.update_model(quantized)
    return quantized.eval()


def calibrated_ptq(model, batches, weight_bits: int, overrides: dict | None = None, **options):
    """A copy of a float network after post-training quantization: batch norm fused, thresholds from statistics, bits set."""
    quantized = copy.deepcopy(model)
    ai8x.start_qat(quantized, batches, qat_policy(weight_bits, overrides, **options), progress=False)
    return quantized.eval()


def untrained(model, batches, config) -> dict:
    """{"naive": ..., "ptq": ...}: a float network at the bits of `config`, PTQ with the weight scales that QAT would have."""
    bits, overrides = config.weight_bits, config.overrides
    ptq = calibrated_ptq(model, batches, bits, overrides, shift_quantile=config.recipe()[1])
    return {"naive": naive_rounding(model, bits, overrides), "ptq": ptq}


def qat_policy(weight_bits: int, overrides: dict | None = None, **options) -> dict:
    """A QAT policy as ai8x reads it from YAML."""
    return {"start_epoch": 0, "weight_bits": weight_bits, "overrides": overrides or {}, **options}
