"""The program for the Cortex-M4, in the emulator: the same integers, its size, its speed, its stack."""

import re
import shutil

import numpy as np
import pytest
from export_networks import IN_C, Builder, codes, pose_like

from qatcourse.pose.model import PoseTiny
from qatlib.export import check, cortex_m4, export_c
from qatlib.export.__main__ import main
from qatlib.export.c_project import TARGETS, checksum, generated_pictures, needs
from qatlib.export.c_source import Writer
from qatlib.integer.source import answer_rows, as_compact


@pytest.mark.parametrize("name", IN_C)
def test_same_integers_on_the_processor(name, cross_compiler, tmp_path):
    model = IN_C[name]()
    folder, x = export_c(model, tmp_path / "net", target="cortex-m4"), codes(model, 4)
    rows, instructions = cortex_m4.run_pictures(folder, x)
    assert np.array_equal(rows, answer_rows(model, x)) and instructions > 1000


def test_known_answers_pass_leave_the_stack_whole_and_can_fail(cross_compiler, tmp_path):
    folder = export_c(pose_like(), tmp_path / "net", target="cortex-m4")
    said = cortex_m4.make(folder, "check")
    used, there = map(int, re.search(r"stack: (\d+) of (\d+) bytes used", said).groups())
    assert "PASS: 4 of 4 known answers" in said and 0 < used < TARGETS["cortex-m4"].stack <= there
    source = (folder / "network.c").read_text()
    (folder / "network.c").write_text(re.sub(r"(data0\[\] = \{\n)0x\w+", r"\g<1>0x7f7f7f7f", source))
    with pytest.raises(ValueError, match="make check failed .FAIL: [0-3] of 4 known answers"):
        cortex_m4.make(folder, "check")


def test_every_operation_is_counted(cross_compiler, tmp_path):
    folder = export_c(pose_like(), tmp_path / "net", target="cortex-m4")
    each, (_, whole) = cortex_m4.layers(folder), cortex_m4.run_pictures(folder, generated_pictures(pose_like()))
    assert len(each) == 6 and min(each) > 0
    assert sum(each) == pytest.approx(whole, rel=0.02)  # the sum holds six calls of the counter more


def test_the_estimate_is_what_the_linker_finds(cross_compiler, tmp_path):
    for model in (pose_like((8, 4, 2, 1, 4, 8)), IN_C["assortment"](), IN_C["depthwise"]()):
        memory = TARGETS["cortex-m4"]
        flash, ram = cortex_m4.sizes(export_c(model, tmp_path / "net", target="cortex-m4"))
        estimated_flash, estimated_ram = needs(Writer(model), memory)
        assert 0 <= estimated_flash - flash < memory.program
        assert ram <= estimated_ram <= ram + memory.stack


def test_buffers_that_leave_no_room_for_the_stack_are_refused_by_the_linker(cross_compiler, tmp_path):
    folder = export_c(pose_like(), tmp_path / "net", target="cortex-m4")
    _, ram = cortex_m4.sizes(folder)
    script = (folder / "chip.ld").read_text()
    for rest, fits in ((5000, True), (3000, False)):
        (folder / "chip.ld").write_text(script.replace("LENGTH = 128K", f"LENGTH = {ram + rest}"))
        if fits:
            cortex_m4.make(folder, "network.elf")
        else:
            with pytest.raises(ValueError, match="leave less than 4 KiB of RAM for the stack"):
                cortex_m4.make(folder, "network.elf")


def test_folders_on_the_processor_through_the_command_line(cross_compiler, tmp_path, capsys):
    check.export_all(pose_like((8, 4, 2, 1, 4, 8)), tmp_path / "all")
    assert main(["check", str(tmp_path / "all"), "-n", "20"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"C, Cortex-M4 in QEMU +0 of 57,344 outputs differ, 16 pictures, \d+\.\d million instructions a picture", said)


def test_a_missing_tool_is_one_sentence(tmp_path, capsys, monkeypatch):
    check.export_all(pose_like(), tmp_path / "all")
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "qemu-system-arm" else found(name) or name)
    assert main(["check", str(tmp_path / "all"), "-n", "2"]) == 0
    wanted = "not run: qemu-system-arm is missing; install gcc-arm-none-eabi, libnewlib-arm-none-eabi, qemu-system-arm and make"
    assert f"C, Cortex-M4 in QEMU     {wanted}\n" in capsys.readouterr().out


def large(kind: str):
    """A network that needs more flash, or more RAM, than there is."""
    if kind == "flash":
        return Builder((512, 3, 3)).op("wide", "conv2d", out=128).build()
    return Builder((3, 150, 150)).op("map", "conv2d", out=4).build()


@pytest.mark.parametrize("kind", ["flash", "RAM"])
def test_what_does_not_fit_is_refused_with_both_numbers(kind, tmp_path):
    sentence = rf"TestNet needs \d{{3}},\d{{3}} bytes of {kind}, the Cortex-M4 of the MAX78000 has (524,288|131,072); use"
    with pytest.raises(ValueError, match=sentence):
        export_c(large(kind), tmp_path / "net", target="cortex-m4")
    assert not list(tmp_path.iterdir())
    rows = check.export_all(large(kind), tmp_path / "all")
    refused = [row for row in rows if row.file == "cortex-m4 (not written)"]
    assert len(refused) == 1 and re.match(sentence, refused[0].reader) and not (tmp_path / "all" / "cortex-m4").exists()
    results = {result.name: result for result in check.check_folder(tmp_path / "all", 2)}
    assert "does not fit the Cortex-M4" in str(results["C, Cortex-M4 in QEMU"])


def test_an_unknown_target_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="target 'cortex-m7' is unknown; the targets are host, cortex-m4"):
        export_c(pose_like(), tmp_path / "net", target="cortex-m7")


def test_one_different_integer_changes_the_checksum():
    row = np.random.default_rng(0).integers(-(2**31), 2**31, 500, np.int32)
    assert len({checksum(row), *(checksum(np.where(np.arange(500) == i, row ^ 1, row)) for i in range(500))}) == 501


def test_pictures_of_the_program_are_black_white_and_noise():
    x = generated_pictures(pose_like())
    assert (x[0] == -128).all() and (x[1] == 127).all()
    assert np.unique(x[2:], return_counts=True)[1].size == 256 and not np.array_equal(x[2], x[3])
    assert abs(x[2:].mean() + 0.5) < 4 * 74 / np.sqrt(x[2:].size)  # uniform codes: mean -0.5, deviation 74


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_pose_network_fits_and_is_as_fast_as_promised(bits, cross_compiler, tmp_path):
    """At most 1.25 instructions a multiply-accumulate at 8 bits, 1.35 below; 72 kB of RAM with pictures and outputs."""
    from test_export_check import prepared

    model = as_compact(prepared(PoseTiny(), bits))
    folder = export_c(model, tmp_path / "net", target="cortex-m4")
    flash, ram = cortex_m4.sizes(folder)
    assert flash < 391_424 * bits // 8 + 12_000 and ram < 72_000
    assert sum(cortex_m4.layers(folder)) < (1.25 if bits == 8 else 1.35) * sum(cortex_m4.products(model))
