"""A compact model as a C99 project of its own: weights in constant arrays, static buffers, no malloc, no float in the network.

The files of `c/` are templates: engine and network are the same for every target, the rest is in `c/<target>/`. The engine is the
same for every network; `network.c` gets the weights in the engine's order, a table a layer, and one call an operation.
"""

import os
from dataclasses import dataclass
from importlib.resources import files
from math import prod
from pathlib import Path
from string import Template

import numpy as np

from qatlib.export.c_source import Writer, c_array
from qatlib.files import write_folder
from qatlib.integer.compact import CompactModel
from qatlib.integer.source import answer_rows, as_compact, check_accumulators, sample_codes

PICTURES = 4
GENERATED = """    uint32_t k, v;

    for (k = 0; k < NETWORK_INPUT; k++) {
        v = ((uint32_t)i * NETWORK_INPUT + k + 1) * 2654435769u;
        v = (v ^ v >> 15) * 2246822507u;
        codes[k] = i == 0 ? -128 : i == 1 ? 127 : (int8_t)((int)((v ^ v >> 13) >> 24) - 128);
    }"""


@dataclass(frozen=True)
class Memory:
    """Bytes that a target has, and those of them that are kept for the program (flash) and for its stack (ram)."""

    name: str
    flash: int
    ram: int
    program: int = 12 * 1024
    stack: int = 4 * 1024


TARGETS: dict[str, Memory | None] = {"host": None, "cortex-m4": Memory("Cortex-M4 of the MAX78000", 512 * 1024, 128 * 1024)}


def export_c(model, folder: str | os.PathLike, sample: np.ndarray | None = None, input_shape=None, target: str = "host") -> Path:
    """Write a C99 project for `model` (anything `as_compact` takes) into `folder`, whole or not at all, and return its path.

    `target`: "host", any computer with a C compiler, or "cortex-m4", a program for the microcontroller beside the MAX78000's
    accelerator, with start-up code and linker script. `make check` there prints PASS or FAIL and the time (in the emulator: the
    instructions) a picture takes. `sample`: int8 codes (N, *input_shape), the pictures of the known-answer test; default, and
    always on a Cortex-M4: black, white and two random ones, made by the program.

    Raises ValueError for an unknown target, a sample of another shape, and a network that needs more flash or RAM than the target
    has; OverflowError for a layer whose sums may exceed 32 bits; FileExistsError for a folder that holds something else.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown; the targets are {', '.join(TARGETS)}")
    compact = as_compact(model, input_shape)
    check_accumulators(compact)
    pictures = None if sample is None or target != "host" else sample_codes(compact, sample)
    writer = Writer(compact)
    if (memory := TARGETS[target]) is not None:
        check_memory(writer, memory)
    values = writer.values() | known_answers(compact, pictures)
    templates = files("qatlib.export").joinpath("c")

    def fill(place: Path) -> None:
        for source in (*templates.iterdir(), *templates.joinpath(target).iterdir()):
            if source.is_file():
                (place / source.name).write_text(Template(source.read_text()).safe_substitute(values))

    return write_folder(folder, fill)


def needs(writer: Writer, memory: Memory) -> tuple[int, int]:
    """Bytes of flash and of RAM that the whole program takes on a target: data and code; buffers and stack."""
    buffers = writer.top + 2 * 4 * writer.patch + prod(writer.model.shape("input")) + 4 * (writer.output_size + writer.sums)
    return writer.data_bytes() + memory.program, buffers + memory.stack


def check_memory(writer: Writer, memory: Memory) -> None:
    """Raise ValueError with all numbers unless the network and its test fit."""
    remedies = {"flash": "use fewer weights or fewer weight bits", "RAM": "use smaller maps or fewer channels"}
    for (kind, remedy), needed, there in zip(remedies.items(), needs(writer, memory), (memory.flash, memory.ram)):
        if needed > there:
            what = f"{writer.model.graph['arch']} needs {needed:,} bytes of {kind}, the {memory.name} has {there:,}"
            raise ValueError(f"{what}; {remedy}")


def generated_pictures(model: CompactModel, count: int = PICTURES) -> np.ndarray:
    """The pictures, int8 (count, *input_shape), that a program without a sample makes: black, white, then random ones."""
    shape = model.shape("input")
    v = (np.arange(count * prod(shape), dtype=np.uint32) + np.uint32(1)) * np.uint32(2654435769)
    v = (v ^ v >> np.uint32(15)) * np.uint32(2246822507)
    codes = (((v ^ v >> np.uint32(13)) >> np.uint32(24)).astype(np.int16) - 128).astype(np.int8).reshape(count, *shape)
    codes[0], codes[1:2] = -128, 127
    return codes


def checksum(row: np.ndarray) -> int:
    """Of one picture's outputs, int32, as kat.h computes it."""
    total = 2166136261
    for value in row.tolist():
        total = ((total ^ (value & 0xFFFFFFFF)) * 16777619) & 0xFFFFFFFF
    return total


def known_answers(model: CompactModel, pictures: np.ndarray | None) -> dict[str, str | int]:
    """What kat.h leaves open: pictures, or how they are made, and checksums of the integer engine's outputs."""
    codes = generated_pictures(model) if pictures is None else pictures
    sums = ", ".join(f"0x{checksum(row):08x}u" for row in answer_rows(model, codes))
    if pictures is None:
        return {"count": len(codes), "checksums": sums, "pictures": "", "picture": GENERATED}
    flat = pictures.reshape(len(pictures), -1)
    table = c_array("static const int8_t kat_pictures[KAT_PICTURES][NETWORK_INPUT]", flat)
    return {"count": len(codes), "checksums": sums, "pictures": f"{table}\n",
            "picture": "    memcpy(codes, kat_pictures[i], NETWORK_INPUT);"}  # fmt: skip
