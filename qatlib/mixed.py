"""Mixed precision: which layers can live with fewer bits, and the choice that fits a budget of bytes."""

import copy

from qatlib import ai8x
from qatlib.pose.data import PoseSet
from qatlib.pose.evaluate import calibrated_ptq, calibration_batches, evaluate, policy
from qatlib.train_pose_tiny import RECIPES, configure, train


def weight_counts(model) -> dict[str, int]:
    """layer -> number of its weights, without biases."""
    return {
        name: module.op.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, ai8x.QuantizationAwareModule) and module.op is not None
    }


def weight_bytes(counts: dict[str, int], bits: dict[str, int] | int) -> int:
    """Bytes of kernel memory for `counts` weights: each layer rounded up to whole bytes (ai8x-synthesis, checkpoint.py).

    >>> weight_bytes({"conv1": 100, "head": 9}, {"conv1": 8, "head": 4})
    105
    """
    return sum(-(-count * (bits if isinstance(bits, int) else bits[name]) // 8) for name, count in counts.items())


def with_bits(calibrated, bits: dict[str, int], shift_quantile: float | None = None):
    """A copy of a calibrated network with `bits` for the layers named there and 8 for the others; thresholds stay as they are."""
    changed = copy.deepcopy(calibrated)
    ai8x.initiate_qat(changed, policy(8, overrides(bits, shift_quantile)))
    ai8x.update_model(changed)
    return changed.eval()


def overrides(bits: dict[str, int], shift_quantile: float | None = None) -> dict[str, dict]:
    """The `overrides` of a policy: bits, and the shift quantile (None: what suits the bits), of the layers with other than 8."""
    return {
        name: {"weight_bits": width, "shift_quantile": RECIPES[width][1] if shift_quantile is None else shift_quantile}
        for name, width in bits.items()
        if width != 8
    }


def layer_sensitivity(
    calibrated, poses: PoseSet, widths: tuple[int, ...] = (4, 2), shift_quantile: float | None = None
) -> dict[str, dict[int, float]]:
    """layer -> {bits: PCK lost on `poses` with this layer alone at so few bits}, against 8 bits everywhere."""
    from tqdm.auto import tqdm

    whole = evaluate(with_bits(calibrated, {}), poses)["pck"]
    names = list(weight_counts(calibrated))
    return {
        name: {bits: whole - evaluate(with_bits(calibrated, {name: bits}, shift_quantile), poses)["pck"] for bits in widths}
        for name in tqdm(names, desc="layers")
    }


def greedy(drops: dict[str, dict[int, float]], counts: dict[str, int], budget: int) -> dict[str, int]:
    """layer -> bits so that all weights fit into `budget` bytes: again and again the step that loses least for each byte it saves.

    `drops` as `layer_sensitivity` gives them; losses of several layers are taken to add up. Raises ValueError where even the
    fewest bits do not fit.
    """
    bits = dict.fromkeys(counts, 8)
    while weight_bytes(counts, bits) > budget:
        steps = [(name, width) for name in counts for width in drops[name] if width < bits[name]]
        if not steps:
            raise ValueError(f"{weight_bytes(counts, bits):,} bytes is the least; a budget of {budget:,} is too small")

        def price(step):
            name, width = step
            lost = drops[name][width] - drops[name].get(bits[name], 0.0)
            return max(lost, 0.0) / (counts[name] * (bits[name] - width))

        name, width = min(steps, key=price)
        bits[name] = width
    return bits


def repair(trained, bits: dict[str, int], poses: PoseSet, test: PoseSet, seeds, **options) -> list[dict[str, float]]:
    """What QAT makes of mixed bits: one dict a seed, PCK on `test` by version, all after one more epoch on `poses`.

    "float": trained on in float; "PTQ": that network with `bits`; "QAT": the trained network, trained on with `bits`.
    `options` go to `configure`.
    """
    options |= {"epochs": 1, "start_epoch": 0, "n_train": len(poses), "n_test": len(test)}
    data = {"init": trained.state_dict(), "train_poses": poses, "test_poses": test, "progress": False}
    runs = []
    for seed in seeds:
        longer = train(configure("quick", weight_bits=None, seed=seed, **options), **data)
        ptq = calibrated_ptq(longer.model, calibration_batches(poses), 8, overrides(bits))
        qat = train(configure("quick", weight_bits=8, overrides=overrides(bits), seed=seed, **options), **data)
        runs.append({"float": longer.metrics["pck"], "PTQ": evaluate(ptq, test)["pck"], "QAT": qat.metrics["pck"]})
    return runs
