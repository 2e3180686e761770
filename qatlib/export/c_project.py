"""A compact model as a C99 project of its own: weights in constant arrays, static buffers, no malloc, no float in the network.

The engine (`c/engine.c`) is the same for every network; `network.c` holds the packed weights, a table a layer, and one call an
operation. Buffers share one arena: a tensor's place is free again after its last reader.
"""

import os
from importlib.resources import files
from pathlib import Path

import numpy as np

from qatlib.compact import CompactModel
from qatlib.export.c_source import Writer, c_array
from qatlib.export.source import answer_rows, as_compact, check_accumulators, sample_codes, write_folder


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
    written = Writer(compact)

    def fill(target: Path) -> None:
        for name in ("engine.c", "engine.h", "main.c", "Makefile"):
            (target / name).write_text(files("qatlib.export").joinpath("c", name).read_text())
        (target / "network.c").write_text(written.source())
        (target / "network.h").write_text(written.header())
        (target / "kat.h").write_text(known_answers(compact, pictures))

    return write_folder(folder, fill)


def known_answers(model: CompactModel, pictures: np.ndarray) -> str:
    """kat.h: pictures and the integer engine's outputs, all outputs of a picture in one row of int32."""
    answers = answer_rows(model, pictures)
    return "\n".join([
        "/* Known-answer test: pictures and what the integer reference gives for them. */", "#ifndef KAT_H", "#define KAT_H", "",
        '#include "network.h"', "",
        f"#define KAT_PICTURES {len(pictures)}", "",
        c_array("static const int8_t kat_pictures[KAT_PICTURES][NETWORK_INPUT]", pictures.reshape(len(pictures), -1)),
        c_array("static const int32_t kat_answers[KAT_PICTURES][NETWORK_OUTPUT]", answers), "#endif", "",
    ])  # fmt: skip
