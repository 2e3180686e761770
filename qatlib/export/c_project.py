"""A compact model as a C99 project of its own: weights in constant arrays, static buffers, no malloc, no float in the network.

The files of `c/` are templates. The engine is the same for every network; `network.c` gets the packed weights, a table a layer,
and one call an operation. Buffers share one arena: a tensor's place is free again after its last reader.
"""

import os
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from qatlib.export.c_source import Writer, c_array
from qatlib.files import write_folder
from qatlib.integer.compact import CompactModel
from qatlib.integer.source import answer_rows, as_compact, check_accumulators, sample_codes


def export_c(model, folder: str | os.PathLike, sample: np.ndarray | None = None, input_shape=None) -> Path:
    """Write a C99 project for `model` (anything `as_compact` takes) into `folder`, whole or not at all, and return its path.

    `sample`: int8 codes (N, *input_shape), the pictures of the known-answer test; default: black, white and two random ones.
    `make check` there prints PASS or FAIL, bytes of flash and RAM, and the time a picture takes.

    Raises ValueError for a sample of another shape, OverflowError for a layer whose sums may exceed 32 bits, FileExistsError for
    a folder that holds something else.
    """
    compact = as_compact(model, input_shape)
    check_accumulators(compact)
    pictures = sample_codes(compact, sample)
    values = Writer(compact).values() | known_answers(compact, pictures)

    def fill(target: Path) -> None:
        for source in files("qatlib.export").joinpath("c").iterdir():
            (target / source.name).write_text(Template(source.read_text()).safe_substitute(values))

    return write_folder(folder, fill)


def known_answers(model: CompactModel, pictures: np.ndarray) -> dict[str, str | int]:
    """What kat.h leaves open: pictures and the integer engine's outputs, all outputs of a picture in one row of int32."""
    flat, answers = pictures.reshape(len(pictures), -1), answer_rows(model, pictures)
    return {
        "count": len(pictures),
        "pictures": c_array("static const int8_t kat_pictures[KAT_PICTURES][NETWORK_INPUT]", flat),
        "answers": c_array("static const int32_t kat_answers[KAT_PICTURES][NETWORK_OUTPUT]", answers),
    }
