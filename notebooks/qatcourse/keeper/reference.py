"""Every measured number that README or lessons quote, with its tolerance and the command that prints it again.

`python -m qatcourse.keeper.reference` measures all and writes data/reference.json; with first words of names, only those
(`python -m qatcourse.keeper.reference pretrained figures.quick.seed0`); --check compares instead of writing, and exits with 1 where
a number left its tolerance. Training groups take minutes each; `make test` checks the groups in QUICK_GROUPS.
"""

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from qatcourse import DATA, ROOT
from qatcourse.labs import ablation, distill, learned, mixed
from qatcourse.labs.compare import fair, further
from qatcourse.people.cache import cache_folder
from qatcourse.pose.data import load as load_poses
from qatcourse.pose.evaluate import calibrated_ptq, calibration_batches, evaluate, heat_maps, score, untrained
from qatcourse.pose.model import PoseTiny, soft_argmax
from qatcourse.pose.train import configure, load_model, model_from, pictures, read_checkpoint, taught, train
from qatlib import ai8x, quantize_model
from qatlib.export import cortex_m4, export_c
from qatlib.files import write_atomic
from qatlib.quantizers import round_half_up
from qatlib.wording import Parser, command

PATH = DATA / "reference.json"
PRETRAINED = DATA / "pose_tiny_fp32.pth"
QUICK_GROUPS = ("exact", "pretrained", "short")
SEEDS_OF_PHOTOGRAPHS = ("lsp.seed0", "lsp.seed1", "lsp.seed2")
RETRAINED = 0.03  # PCK after training anew: another thread count or processor rounds otherwise, and training amplifies it
REEVALUATED = 0.004  # PCK of the same weights: rounding differences move a few of the 28,000 joints across the threshold


@dataclasses.dataclass(frozen=True)
class Number:
    """One measured number; `tolerance` is absolute, 0 means exact."""

    name: str
    value: float
    tolerance: float
    unit: str


def load(path: Path = PATH) -> dict[str, dict]:
    """name -> {"value", "tolerance", "unit", "command"}; empty where the file does not exist yet."""
    return json.loads(path.read_text()) if path.is_file() else {}


def value(name: str) -> float:
    """The stored number `name`. Raises KeyError with the command that measures it."""
    stored = load()
    if name not in stored:
        raise KeyError(f"{name} is not in {PATH.name}; measure it with: python -m qatcourse.keeper.reference {name}")
    return stored[name]["value"]


def scores(name: str, metrics: dict, tolerance: float) -> Iterator[Number]:
    yield Number(f"{name}.pck", metrics["pck"], tolerance, "PCK@0.2 of torso")
    yield Number(f"{name}.pckh", metrics["pckh"], tolerance, "PCKh@0.5")
    yield Number(f"{name}.pixel_error", metrics["pixel_error"], 30 * tolerance, "pixels of the picture")


def exact(seed: int = 0) -> Iterator[Number]:
    """Properties of the network and of number formats; no training, no tolerance."""
    torch.manual_seed(seed)
    model = PoseTiny()
    ai8x.fuse_bn_layers(model)
    ops = [module for name, module in model.named_modules() if name.endswith(".op")]
    yield Number("exact.pose_tiny.weights", sum(op.weight.numel() for op in ops), 0, "weights")
    yield Number("exact.pose_tiny.biases", sum(op.bias.numel() for op in ops), 0, "biases")
    meter = ai8x.fit(model, PoseTiny.input_shape)
    totals = {"weight_bytes": "bytes", "bias_bytes": "bytes", "words": "words", "macs": "multiplications", "cycles": "cycles"}
    for name, unit in totals.items():
        yield Number(f"exact.pose_tiny.{name}", getattr(meter, name), 0, unit)
    accumulators = torch.arange(-(2**14), 2**14, dtype=torch.float64) / 128
    half_up = round_half_up(accumulators)
    for name, other in {"half_even": accumulators.round(), "truncation": accumulators.trunc()}.items():
        yield Number(f"exact.rounding.{name}_differs", float((half_up != other).double().mean()), 0, "share of values")


def microcontroller() -> Iterator[Number]:
    """The committed network as a program on an emulated Cortex-M4. Other versions of the compiler count differently, hence 3 %."""
    if problem := cortex_m4.missing():
        raise FileNotFoundError(problem)
    batches = calibration_batches(load_poses("figures", "train", 500))
    for bits in (8, 4, 2):
        compact = quantize_model(calibrated_ptq(load_model(PRETRAINED), batches, weight_bits=bits), bit_width=bits).compact
        with tempfile.TemporaryDirectory() as temporary:
            folder = export_c(compact, Path(temporary) / "net", target="cortex-m4")
            counts = {"instructions": sum(cortex_m4.layers(folder)), **dict(zip(("flash", "ram"), cortex_m4.sizes(folder)))}
        for name, count in counts.items():
            yield Number(f"cortex.bits{bits}.{name}", count, 0.03 * count, "a picture" if name == "instructions" else "bytes")
        pace = counts["instructions"] / sum(cortex_m4.products(compact))
        yield Number(f"cortex.bits{bits}.instructions_a_product", pace, 0.03 * pace, "instructions")


def pretrained() -> Iterator[Number]:
    """The committed float network, as it is and after quantization without training, on all 2,000 drawn test pictures."""
    model, test = load_model(PRETRAINED), load_poses("figures", "test")
    batches = calibration_batches(load_poses("figures", "train", 2000))
    yield from scores("pretrained.fp32", evaluate(model, test), REEVALUATED)
    for bits in (8, 4, 2):
        for version, quantized in untrained(model, batches, configure(weight_bits=bits)).items():
            yield from scores(f"pretrained.bits{bits}.{version}", evaluate(quantized, test), REEVALUATED)


def short() -> Iterator[Number]:
    """QAT from the committed network for one epoch of 4,000 pictures, beside the float network trained on as long."""
    config = configure("quick", epochs=1, start_epoch=0, n_train=4000, n_test=1000)
    yield from trained("short", config, (8, 4, 2), init=_pretrained_state())


def trained(prefix: str, config, bit_widths: tuple[int, ...], init: dict | None = None, teacher=None) -> Iterator[Number]:
    """Float, float trained on equally, and for each bit width naive rounding, calibrated PTQ and QAT."""
    poses = pictures(config, "train"), pictures(config, "test")
    in_float = dataclasses.replace(config, weight_bits=None)
    if init is None:
        first = dataclasses.replace(in_float, epochs=config.start_epoch)
        init = train(first, train_poses=poses[0], test_poses=poses[1]).model.state_dict()
    yield from scores(f"{prefix}.fp32", evaluate(model_from(init), poses[1]), RETRAINED)
    train_on, batches = further(init, *poses, teacher=teacher), calibration_batches(poses[0])
    longer = train_on(in_float)
    yield from scores(f"{prefix}.fp32_longer", evaluate(longer, poses[1]), RETRAINED)
    for bits in bit_widths:
        found = fair(dataclasses.replace(config, weight_bits=bits), train_on, batches, longer)
        for version in ("naive", "ptq", "qat"):
            yield from scores(f"{prefix}.bits{bits}.{version}", evaluate(found[version], poses[1]), RETRAINED)


def quick(seed: int) -> Iterator[Number]:
    """The quick preset from scratch, at 8, 4 and 2 bits."""
    return trained(f"figures.quick.seed{seed}", configure("quick", seed=seed), (8, 4, 2))


def full() -> Iterator[Number]:
    """The full preset, from the committed float network on, at 8, 4 and 2 bits."""
    return trained("figures.full", configure("full"), (8, 4, 2), init=_pretrained_state())


def for_photographs(seed: int):
    """The full preset on the first 5,000 photographs of Leeds Sports Pose extended: nine tenths to train, the rest to test."""
    folder = os.environ.get("QATLIB_LSPET") or ROOT.parent / "shared" / "data" / "lspet"
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no photographs at {folder}; set QATLIB_LSPET to a folder with images/ and joints.mat")
    return configure("full", data=f"lsp:{folder}", n_train=4500, n_test=500, seed=seed)


def photographs(seed: int) -> Iterator[Number]:
    """Photographs at 8 and 4 bits; the float network also decoded by the mean of its maps, and with the mirrored picture.

    All seeds learn from one teacher, which is kept in the cache folder.
    """
    prefix, config = f"lsp.seed{seed}", for_photographs(seed)
    poses = pictures(config, "train"), pictures(config, "test")
    test, teacher = poses[1], kept_teacher(*poses)
    yield from scores(f"{prefix}.teacher", evaluate(teacher, test), RETRAINED)
    goal = dataclasses.replace(config, weight_bits=None, epochs=config.start_epoch)
    network = train(goal, train_poses=poses[0], test_poses=test, teacher=teacher).model
    mean = soft_argmax(heat_maps(network, test.images), network.cell).numpy()
    for name, places in {"soft": mean, "mirrored": ablation.mirrored(network, test)}.items():
        yield from scores(f"{prefix}.{name}", score(places, test), RETRAINED)
    yield from trained(prefix, config, (8, 4), init=network.state_dict(), teacher=teacher)


def kept_teacher(*poses):
    """The teacher of photographs: seed 0, trained once and then kept in the cache folder."""
    config = for_photographs(0)
    return taught(config, cache_folder() / f"lsp-teacher-{config.teacher_epochs}-epochs.pth", True, *poses)


def without() -> Iterator[Number]:
    """Photographs with one ingredient of the recipe changed (lesson 12), in float."""
    config = for_photographs(0)
    teacher = kept_teacher(pictures(config, "train"), pictures(config, "test"))
    for name in ablation.VARIANTS:
        for decoder, metrics in ablation.measured(name, config, teacher):
            yield from scores(f"lsp.ablation.{name}.{decoder}", metrics, RETRAINED)


def distilled(kind: str, seeds: int) -> Iterator[Number]:
    """Students of lesson 08 that learn from few or many labels, alone and from the committed network, too."""
    for name, pck in distill.measured(load_model(PRETRAINED), kind, seeds):
        yield Number(f"distill.{kind}.{name}", pck, RETRAINED, "PCK@0.2 of torso")


def mixed_bits() -> Iterator[Number]:
    """Lesson 09: mixed bits beside 4 bits everywhere, an epoch of QAT each on 1,000 pictures."""
    model, poses, test = load_model(PRETRAINED), load_poses("figures", "train", 1000), load_poses("figures", "test", 500)
    calibrated, counts = calibrated_ptq(model, calibration_batches(poses[:250]), 8), mixed.weight_counts(model)
    choices = mixed.chosen(mixed.layer_sensitivity(calibrated, poses[:100]), counts)
    for name, bits in choices.items():
        yield Number(f"mixed.bytes.{name}", mixed.weight_bytes(counts, bits), 20_000, "bytes of weights")
    for seed in range(3):
        for name, pck in mixed.after_qat(model, choices, poses, test, seed).items():
            yield Number(f"mixed.seed{seed}.{name}", pck, RETRAINED, "PCK@0.2 of torso")


def scales() -> Iterator[Number]:
    """Scales that are measured and scales that are learned (lesson 13), each after one pass over 2,000 pictures."""
    test = load_poses("figures", "test", 1000)
    for seed in range(3):
        for name, metrics in learned.measured(load_model(PRETRAINED), load_poses("figures", "train", 2000, seed), test, seed):
            yield Number(f"learned.seed{seed}.{name}.pck", metrics["pck"], RETRAINED, "PCK@0.2 of torso")


def _pretrained_state() -> dict:
    return read_checkpoint(PRETRAINED)["state_dict"]


GROUPS: dict[str, Callable[[], Iterator[Number]]] = {
    "exact": exact,
    "cortex": microcontroller,
    "pretrained": pretrained,
    "short": short,
    "figures.quick.seed0": lambda: quick(0),
    "figures.quick.seed1": lambda: quick(1),
    "figures.quick.seed2": lambda: quick(2),
    "figures.full": full,
    "distill.few": lambda: distilled("few", 3),
    "distill.many": lambda: distilled("many", 5),
    "mixed": mixed_bits,
    "lsp.seed0": lambda: photographs(0),
    "lsp.seed1": lambda: photographs(1),
    "lsp.seed2": lambda: photographs(2),
    "lsp.ablation": without,
    "learned": scales,
}


def chosen(names: list[str]) -> list[str]:
    """The groups that hold `names` (all, where none is given). Raises ValueError for a name that belongs to none."""
    for name in names:
        if not any(name.startswith(group) or group.startswith(name) for group in GROUPS):
            raise ValueError(f"no number is called {name!r}; the groups are {', '.join(GROUPS)}")
    return [group for group in GROUPS if not names or any(n.startswith(group) or group.startswith(n) for n in names)]


def measure(groups: list[str]) -> Iterator[Number]:
    """Measure, and store each number in data/reference.json as soon as it is known."""
    for group in groups:
        for number in GROUPS[group]():
            stored = load()
            entry = {key: val for key, val in dataclasses.asdict(number).items() if key != "name"}
            stored[number.name] = entry | {"command": f"python -m qatcourse.keeper.reference {group}"}
            write_atomic(PATH, json.dumps(dict(sorted(stored.items())), indent=1) + "\n")
            yield number


def differences(groups: list[str]) -> Iterator[tuple[Number, float | None]]:
    """(measured number, stored value) where the two differ by more than the stored tolerance, or nothing is stored."""
    stored = load()
    for group in groups:
        for number in GROUPS[group]():
            known = stored.get(number.name)
            if known is None or not abs(number.value - known["value"]) <= known["tolerance"]:
                yield number, known and known["value"]


@command("reference", "numbers measured so far are stored")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m qatcourse.keeper.reference", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="first words of names; none: everything")
    parser.add_argument("--check", action="store_true", help="compare with data/reference.json instead of writing it")
    options = parser.parse_args(arguments)
    groups = chosen(options.names)
    if options.check:
        found = [f"{number.name}: measured {number.value:.4g}, stored {known}" for number, known in differences(groups)]
        print("\n".join(found) or f"all numbers of {', '.join(groups)} are within their tolerances")
        return int(bool(found))
    for number in measure(groups):
        print(f"{number.name:44}{number.value:>14.6g}  {number.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
