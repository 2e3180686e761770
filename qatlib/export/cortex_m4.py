"""Builds the project for the Cortex-M4 with its own Makefile, in a copy, and runs it in the emulator QEMU."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np

from qatlib.integer.compact import CompactModel

PACKAGES = "gcc-arm-none-eabi, libnewlib-arm-none-eabi, qemu-system-arm and make"
COMPILER, MOST = "arm-none-eabi-gcc", 16  # pictures: the emulator takes about a tenth of a second for one


def missing() -> str:
    """What has to be installed before the project can be built and run, in one sentence; empty if nothing has."""
    for tool in (COMPILER, "qemu-system-arm", "make"):
        if shutil.which(tool) is None:
            return f"{tool} is missing; install {PACKAGES}"
    found = subprocess.run([COMPILER, "-print-file-name=libc.a"], capture_output=True, text=True).stdout
    return "" if "/" in found else f"{COMPILER} has no C library; install {PACKAGES}"


def make(folder: Path, *arguments: str) -> str:
    """What `make ARGUMENTS` and the program that it runs say in `folder`, the project itself or, better, a copy of it.

    Raises ValueError with the first complaint.
    """
    done = subprocess.run(["make", "-s", *arguments], cwd=folder, capture_output=True, text=True, timeout=1800)
    said = done.stdout + done.stderr  # QEMU prints the program's text on stderr
    if done.returncode:
        lines = [line for line in said.splitlines() if not line.startswith(("make", "collect2"))]
        complaint = next((line for line in lines if "error" in line or "FAIL" in line), (lines or [said])[0])
        raise ValueError(f"make {arguments[0]} failed ({complaint[:200]})")
    return said


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    """A copy of the project to build in, removed afterwards: an exported folder holds what was written and nothing else."""
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(shutil.copytree(folder, Path(temporary) / "project"))


def run_pictures(folder: Path, codes: np.ndarray) -> tuple[np.ndarray, int]:
    """Rows of outputs, int32, and instructions a picture, of the program in `folder` for `codes`, int8 (N, ...)."""
    with copied(folder) as project:
        codes.tofile(project / "pictures.bin")
        said = make(project, "compare", "IN=pictures.bin", "OUT=outputs.bin")
        instructions = int(re.search(r"(\d+) instructions a picture", said)[1])
        return np.fromfile(project / "outputs.bin", np.int32).reshape(len(codes), -1), instructions


def layers(folder: Path) -> list[int]:
    """Instructions of each operation, in the order of network.c, for the last picture of the known-answer test."""
    with copied(folder) as project:
        found = re.findall(r"operation (\d+): (\d+)", make(project, "layers"))
    return [int(count) for _, count in found][-1 - int(found[-1][0]) :]


def products(model: CompactModel) -> list[int]:
    """Multiply-accumulates of each operation: a transposed layer multiplies each of its inputs once, others do for each output."""
    made = []
    for op in model.ops:
        kind, shape = op["kind"], model.shape(op["inputs"][0] if op["kind"] == "conv_transpose2d" else op["name"])
        places = prod(shape[:-1] if kind == "linear" else shape[1:])
        made.append(model.weight(op["layer"]).size * places if "weight_bits" in op else 0)
    return made


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of flash (code and constants) and of static RAM that the whole program takes."""
    with copied(folder) as project:
        text, data, bss = map(int, make(project, "size").splitlines()[-1].split()[:3])
    return text + data, data + bss
