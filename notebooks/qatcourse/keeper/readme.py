"""The README's tables, written from data/reference.json.  `python -m qatcourse.keeper.readme` puts them between their markers.

`python -m qatcourse.keeper.readme --picture` also draws data/picture.png anew (two short trainings from the committed network).
"""

import dataclasses
import re
import statistics
import sys
from pathlib import Path

from qatcourse import DATA, ROOT, viz
from qatcourse.keeper.lessons import LESSONS
from qatcourse.keeper.reference import PRETRAINED, load
from qatcourse.labs.compare import fair, further
from qatcourse.pose.data import load as load_poses
from qatcourse.pose.evaluate import calibration_batches, predict
from qatcourse.pose.train import configure, load_model
from qatlib.files import write_atomic
from qatlib.wording import Parser, command, sentence

README = ROOT / "README.md"
PICTURE = DATA / "picture.png"


def spread(numbers: list[float]) -> str:
    """'0.712 (0.705–0.719)': median and range; the number alone where there is one."""
    middle = f"{statistics.median(numbers):.3f}"
    return middle if len(numbers) == 1 else f"{middle} ({min(numbers):.3f}–{max(numbers):.3f})"


def accuracy(prefixes: list[str], bit_widths: tuple[int, ...]) -> str:
    """PCK@0.2 of every version as a Markdown table; several `prefixes` are seeds and give median and range."""
    stored = load()

    def cell(name: str) -> str:
        return spread([stored[f"{prefix}.{name}.pck"]["value"] for prefix in prefixes])

    rows = [
        "| weights | naive rounding | PTQ, calibrated | QAT |",
        "|---|---|---|---|",
        *(f"| {b} bit | {cell(f'bits{b}.naive')} | {cell(f'bits{b}.ptq')} | {cell(f'bits{b}.qat')} |" for b in bit_widths),
    ]
    floats = f"FP32: {cell('fp32')}; FP32 trained on for as many steps as QAT: {cell('fp32_longer')}."
    return "\n".join([*rows, "", floats])


def chip() -> str:
    """What PoseTiny needs of the MAX78000, in one sentence."""
    stored = load()

    def number(name: str) -> int:
        return int(stored[f"exact.pose_tiny.{name}"]["value"])

    return (
        f"{number('weights'):,} weights are {number('weight_bytes'):,} bytes at 8 bit, on the fullest processor {number('words')} "
        f"of 768 words; {number('bias_bytes')} bias bytes; {number('macs') / 1e6:.1f} million multiplications and, as an estimate, "
        f"{number('cycles'):,} cycles ({number('cycles') / 50e3:.2f} ms at 50 MHz) per picture."
    )


def microcontroller() -> str:
    """Instructions, time and memory of the exported program, by bits."""
    stored = load()
    rows = ["| weights | instructions per product | per picture | at 100 MHz | flash | RAM |", "|---|---|---|---|---|---|"]
    for bits in (8, 4, 2):
        count, pace, flash, ram = (
            stored[f"cortex.bits{bits}.{name}"]["value"] for name in ("instructions", "instructions_a_product", "flash", "ram")
        )
        size = f"{flash / 1e3:.0f} kB | {ram / 1e3:.1f} kB"
        rows.append(f"| {bits} bit | {pace:.2f} | {count / 1e6:.1f} million | {count / 1e5:.0f} ms | {size} |")
    return "\n".join(rows)


def lessons() -> str:
    """The lessons with what each gives and a reader's minutes."""
    rows = [f"| {one.number} | [{one.title}](notebooks/{one.path.name}) | {one.gives} | {one.minutes} |" for one in LESSONS]
    return "\n".join(["| no. | lesson | you get | minutes |", "|---|---|---|---|", *rows])


def seeds(group: str, bit_widths: tuple[int, ...]) -> str:
    """The table of `group` over every seed that was measured to the end."""
    stored, last = load(), f"bits{bit_widths[-1]}.qat.pixel_error"
    prefixes = [f"{group}.seed{seed}" for seed in range(3) if f"{group}.seed{seed}.{last}" in stored]
    how = f"{len(prefixes)} seeds, median and range" if len(prefixes) > 1 else "one seed"
    return f"{accuracy(prefixes, bit_widths)} ({how}.)"


SECTIONS = {
    "lessons": lessons,
    "drawn": lambda: seeds("figures.quick", (8, 4, 2)),
    "full": lambda: accuracy(["figures.full"], (8, 4, 2)),
    "short": lambda: accuracy(["short"], (8, 4, 2)),
    "photographs": lambda: seeds("lsp", (8, 4)),
    "chip": chip,
    "cortex": microcontroller,
}


def filled(text: str) -> str:
    """`text` with every section between `<!-- name -->` and `<!-- end name -->` written anew."""
    for name, section in SECTIONS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n)(?:.*?\n)?(<!-- end {name} -->)", re.DOTALL)
        if pattern.search(text):
            try:
                body = section()
            except (KeyError, ValueError, TypeError) as problem:
                measure = "measure it first with python -m qatcourse.keeper.reference"
                raise ValueError(f"{name}: {sentence(problem)}; {measure}") from problem
            text = pattern.sub(lambda match, body=body: match[1] + body + "\n" + match[2], text)
    return text


def picture(path: Path = PICTURE, columns: int = 8) -> str:
    """Draw skeletons of the committed network in FP32, and at 4 and 2 bits after PTQ and after a short QAT; the sentence."""
    config = configure("quick", epochs=1, start_epoch=0)
    training, test = load_poses("figures", "train", config.n_train), load_poses("figures", "test", config.n_test)
    model, batches = load_model(PRETRAINED), calibration_batches(training)
    versions = {"labels": test.joints, "FP32": predict(model, test.images[:columns])}
    for bits in (4, 2):
        goal = dataclasses.replace(config, weight_bits=bits)
        found = fair(goal, further(model.state_dict(), training, test), batches, model)
        for name in ("PTQ", "QAT"):
            versions[f"{name} {bits} bit"] = predict(found[name.lower()], test.images[:columns])
    figure, sentence = viz.skeletons(test.images, list(versions.values()), list(versions), columns)
    write_atomic(path, viz.png(figure))
    return sentence


@command("readme")
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m qatcourse.keeper.readme", description=__doc__.splitlines()[0])
    parser.add_argument("--picture", action="store_true", help="draw data/picture.png, too")
    if parser.parse_args(arguments).picture:
        print(picture())
    write_atomic(README, filled(README.read_text()))
    print(f"wrote the tables of {README.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
