"""The generated C gives the integers of the NumPy engine, compiles without a warning, and is clean under the sanitizers."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from export_networks import IN_C, Builder, codes, max_pool, pose_like

from qatlib.export.c_plan import arena, blocks
from qatlib.export.c_project import export_c
from qatlib.export.c_source import Writer
from qatlib.integer.source import answer_rows

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
LOOPS = {"plain": [], "dual": ["-D__ARM_FEATURE_DSP=1", f"-I{Path(__file__).with_name('dsp')}"]}  # "dual" as on a Cortex-M4


def build(folder, *flags):
    sources = [str(folder / name) for name in ("main.c", "network.c", "engine.c")]
    subprocess.run(["gcc", *flags, *FLAGS, "-o", str(folder / "net"), *sources], check=True, capture_output=True, text=True)
    return folder / "net"


def outputs_of(program, model, x, tmp_path):
    x.tofile(tmp_path / "in.bin")
    done = subprocess.run([program, tmp_path / "in.bin", tmp_path / "out.bin"], capture_output=True, text=True, check=True)
    assert re.match(rf"{len(x)} pictures, [\d.]+ ms a picture", done.stdout)
    return np.fromfile(tmp_path / "out.bin", np.int32).reshape(len(x), -1)


@needs_gcc
@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize("name", IN_C)
def test_same_integers_and_no_undefined_behaviour(name, loops, tmp_path):
    model = IN_C[name]()
    folder = export_c(model, tmp_path / "net")
    program = build(folder, *LOOPS[loops], "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    known = subprocess.run([program], capture_output=True, text=True)
    assert known.returncode == 0 and known.stdout.startswith("PASS: 4 of 4"), known.stdout + known.stderr
    x = codes(model, 8)
    assert np.array_equal(outputs_of(program, model, x, tmp_path), answer_rows(model, x))


@needs_gcc
def test_optimised_build_through_the_makefile(tmp_path):
    model = pose_like((8, 4, 2, 1, 4, 8))
    folder = export_c(model, tmp_path / "net", codes(model, 3))
    done = subprocess.run(["make", "-C", folder, "check", "CFLAGS=-O2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "PASS: 3 of 3" in done.stdout
        and re.search(r"flash: \d+ bytes.*RAM: \d+ bytes", done.stdout)
        and re.search(r"[\d.]+ ms a picture", done.stdout)
    )


@needs_gcc
def test_worst_legal_sums(tmp_path):
    """1,024 channels of -128 times -128: sums of 1.5e8, and shifts at both ends of the register."""
    b = Builder((1024, 3, 3), extreme=-128)
    b.op("small", "conv2d", out=2, shift=-15)
    b.op("large", "conv2d", "input", out=2, shift=15, activation="abs")
    b.op("exact", "conv2d", "input", out=2, wide=True)
    model = b.build("small", "large", "exact")
    program = build(export_c(model, tmp_path / "net"), "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    x = codes(model, 4)
    expected = answer_rows(model, x)
    assert np.abs(expected).max() > 1.4e8
    assert np.array_equal(outputs_of(program, model, x, tmp_path), expected)


@needs_gcc
def test_a_wide_output_and_what_is_flattened_from_it(tmp_path):
    b = Builder((3, 6, 6))
    b.op("maps", "conv2d", out=4, wide=True)
    model = b.op("flat", "flatten").build("flat", "maps", "flat")
    x = codes(model, 3)
    assert np.array_equal(outputs_of(build(export_c(model, tmp_path / "net"), "-O1"), model, x, tmp_path), answer_rows(model, x))


@needs_gcc
def test_known_answer_test_can_fail(tmp_path):
    folder = export_c(pose_like(), tmp_path / "net")
    source = (folder / "network.c").read_text()
    (folder / "network.c").write_text(re.sub(r"(data0\[\] = \{\n)0x\w+", r"\g<1>0x7f7f7f7f", source))
    done = subprocess.run([build(folder, "-O1")], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith("FAIL")


@needs_gcc
@pytest.mark.parametrize("surplus", [0, 1])
def test_file_mode_refuses_what_is_no_picture(surplus, tmp_path):
    program = build(export_c(pose_like(), tmp_path / "net"), "-O0")
    (tmp_path / "in.bin").write_bytes(b"\0" * (12 * 16 * 16 + surplus))
    done = subprocess.run([program, tmp_path / "in.bin", tmp_path / "out.bin"], capture_output=True, text=True)
    assert done.returncode == (2 if surplus else 0) and ("whole pictures" in done.stderr) == bool(surplus)


def test_low_bits_halve_the_flash():
    def weights(bits):
        arrays = Writer(pose_like((bits,) * 6)).arrays.values()
        return sum(values.nbytes for _, declaration, values in arrays if "uint32_t" in declaration)

    sizes = [weights(bits) for bits in (8, 4, 2, 1)]
    assert sizes[0] == 2 * sizes[1] == 4 * sizes[2] == 8 * sizes[3] > 10_000


@pytest.mark.parametrize("name", IN_C)
def test_arena_never_overlaps_live_tensors(name):
    """Replay the plan: a block is written when it begins, and no other one may touch it until it ends, but one that replaces it."""
    made, (offsets, size) = blocks(IN_C[name]()), arena(IN_C[name]())
    places = {block.name: range(offsets[block.name], offsets[block.name] + block.size) for block in made}
    for block in made:
        assert block.begin <= block.end and places[block.name].stop <= size
        for other in made:
            shared = max(block.begin, other.begin) <= min(block.end, other.end) and block != other
            if shared and set(places[block.name]) & set(places[other.name]):
                old, new = sorted((block, other), key=lambda one: one.begin)
                assert old.end == new.begin and old.name in new.over and places[old.name].start == places[new.name].start
    readers = {op["name"] for op in IN_C[name]().ops}
    assert {block.name.removesuffix("/pool") for block in made} - {"input/pixels"} <= readers


def test_the_arena_of_a_pose_network_holds_no_more_than_what_is_alive():
    """The largest tensor and nothing else: what is pooled is written over what it was pooled from."""
    model = pose_like()
    assert arena(model)[1] == 16 * 16 * 16 == np.prod(model.shape("conv1"))


def test_refusals_leave_nothing(tmp_path):
    model = pose_like()
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        export_c(model, tmp_path / "net", np.zeros((2, 3), np.int8))
    with pytest.raises(TypeError, match="float64"):
        export_c(model, tmp_path / "net", np.zeros((12, 16, 16)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not written by qatlib"):
        export_c(model, tmp_path / "mine")
    b = Builder((140_000,), extreme=-128)
    with pytest.raises(OverflowError, match="fc: its sums may exceed 32 bits"):
        export_c(b.op("fc", "linear", out=1).build(), tmp_path / "net")
    b = Builder((140_000,), extreme=-1)
    with pytest.raises(OverflowError, match="fc: its sums, times 128, may exceed 32 bits"):  # as the engine carries 1-bit codes
        export_c(b.op("fc", "linear", out=1, bits=1).build(), tmp_path / "net")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"] and [p.name for p in (tmp_path / "mine").iterdir()] == [
        "notes.txt"
    ]


def test_exporting_again_replaces_the_folder(tmp_path):
    export_c(pose_like(), tmp_path / "net")
    (tmp_path / "net" / "old.txt").write_text("gone")
    export_c(Builder((3, 8, 8)).op("c", "conv2d", out=4, pool=max_pool()).build(), tmp_path / "net")
    assert not (tmp_path / "net" / "old.txt").exists() and [p.name for p in tmp_path.iterdir()] == ["net"]
