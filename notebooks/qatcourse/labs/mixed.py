"""Mixed precision, for lesson 09: which layers can live with fewer bits, and the choice that fits a budget of bytes."""

from tqdm.auto import tqdm

from qatcourse.labs.compare import further
from qatcourse.labs.ptq import at_bits
from qatcourse.pose.data import PoseSet
from qatcourse.pose.evaluate import evaluate
from qatcourse.pose.train import RECIPES, configure
from qatlib.ai8x.qat import layers


def weight_counts(model) -> dict[str, int]:
    """layer -> number of its weights, without biases."""
    return {name: layer.op.weight.numel() for name, layer in layers(model).items() if layer.op is not None}


def weight_bytes(counts: dict[str, int], bits: dict[str, int] | int) -> int:
    """Bytes of kernel memory for `counts` weights: each layer rounded up to whole bytes (ai8x-synthesis, checkpoint.py).

    >>> weight_bytes({"conv1": 100, "head": 9}, {"conv1": 8, "head": 4})
    105
    """
    return sum(-(-count * (bits if isinstance(bits, int) else bits[name]) // 8) for name, count in counts.items())


def with_bits(calibrated, bits: dict[str, int], shift_quantile: float | None = None):
    """A copy of a calibrated network with `bits` for the layers named there and 8 for the others; thresholds stay as they are."""
    return at_bits(calibrated, 8, overrides(bits, shift_quantile))


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
    whole = evaluate(with_bits(calibrated, {}), poses)["pck"]
    return {
        name: {bits: whole - evaluate(with_bits(calibrated, {name: bits}, shift_quantile), poses)["pck"] for bits in widths}
        for name in tqdm(list(weight_counts(calibrated)), desc="layers")
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

        bits.update([min(steps, key=price)])
    return bits


def chosen(drops: dict, counts: dict[str, int], shares=(0.75, 0.5, 0.375)) -> dict[str, dict[str, int]]:
    """Choices of bits by name: 4 bits everywhere, and what `greedy` chooses for shares of the bytes that 8 bits need."""
    mixed = {f"mixed{100 * share:.0f}": greedy(drops, counts, int(share * weight_bytes(counts, 8))) for share in shares}
    return {"uniform4": dict.fromkeys(counts, 4)} | mixed


def stored(known: dict) -> dict[str, tuple[int, list[float]]]:
    """choice -> (bytes, PCK after QAT seed by seed), from the reference numbers."""
    found = {name.rpartition(".")[2]: entry["value"] for name, entry in known.items() if name.startswith("mixed.bytes.")}
    return {name: (size, [known[f"mixed.seed{seed}.{name}"]["value"] for seed in range(3)]) for name, size in found.items()}


def after_qat(trained, choices: dict[str, dict[str, int]], poses: PoseSet, test: PoseSet, seed: int) -> dict[str, float]:
    """PCK on `test` by choice of bits, after an epoch of QAT on `poses`: for all the same seed, batches and learning rate."""
    options = {"epochs": 1, "start_epoch": 0, "n_train": len(poses), "n_test": len(test), "qat_learning_rate": RECIPES[4][0]}
    train_on, scores = further(trained.state_dict(), poses, test, progress=False), {}
    for name, bits in choices.items():
        config = configure("quick", weight_bits=8, overrides=overrides(bits), seed=seed, **options)
        scores[name] = evaluate(train_on(config), test)["pck"]
    return scores
