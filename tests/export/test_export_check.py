"""All engines on the same pictures: PoseTiny at 8, 4, 2 and mixed bits, and a small residual network. No output may differ."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from qatcourse.pose.model import PoseTiny
from qatlib import ai8x
from qatlib.chip import lowering, memory, meter
from qatlib.export import check, cortex_m4, export_c, export_max78000, export_onnx
from qatlib.export.__main__ import main
from qatlib.files import record
from qatlib.integer import compact, convert, quantize_model
from qatlib.integer.engine import Integer

# 1-bit weights (0 and -1) only where the input has both signs: behind a ReLU they give zero.
MIXED = {"conv1": {"weight_bits": 1}, "conv3": {"weight_bits": 2}, "up8": {"weight_bits": 8}, "head": {"weight_bits": 8}}
POSE = ["--network", "qatcourse.pose.model:PoseTiny"]
ENGINES = {"NumPy integers (ref.)": True, "torch, fake-quantized": True, "ONNX Runtime": True,
           "C, gcc -O3": bool(shutil.which("gcc")), "C, Cortex-M4 in QEMU": not cortex_m4.missing(),
           "our model of the chip": True}  # fmt: skip


class Residual(torch.nn.Module):
    """A residual add, an average pool and two bit widths, written as an ai8x network."""

    input_shape = (3, 12, 12)

    def __init__(self):
        super().__init__()
        self.conv1 = ai8x.FusedConv2dBNReLU(3, 10, 3, padding=1)
        self.conv2 = ai8x.FusedMaxPoolConv2dBNReLU(10, 14, 3, padding=1)
        self.conv3 = ai8x.Conv2d(14, 14, 3, padding=1)
        self.add = ai8x.Add()
        self.conv4 = ai8x.FusedAvgPoolConv2dBNReLU(14, 8, 3, padding=1)
        self.fc = ai8x.Linear(72, 5, bias=True, wide=True)

    def forward(self, x):
        x = self.conv2(self.conv1(x))
        return self.fc(self.conv4(self.add(x, self.conv3(x))).flatten(1))


def prepared(net, bits, overrides=None):
    """Through the whole sequence into QAT, with the weights it was born with."""
    torch.manual_seed(3)
    for parameter in net.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.bias.data.uniform_(-0.2, 0.3)
    net.eval()
    ai8x.fuse_bn_layers(net)
    policy = {"start_epoch": 0, "weight_bits": bits, "overrides": overrides or {}}
    batches = [(torch.randint(-128, 128, (16, *net.input_shape)) / 128, 0)]
    ai8x.pre_qat(net, batches, policy)
    ai8x.initiate_qat(net, policy)
    return net


CASES = {"8, large": (8, None, 128), "4": (4, None, 64), "2": (2, None, 64), "mixed, large": (4, MIXED, 128)}


@pytest.mark.parametrize(("bits", "overrides", "side"), CASES.values(), ids=CASES)
def test_pose_tiny_all_engines(bits, overrides, side, tmp_path):
    net = prepared(PoseTiny(side=side), bits, overrides)
    rows = check.export_all(net, tmp_path / "all")
    assert [row.file for row in rows] == ["model_8bit.pth", "checkpoint.pth", "model.onnx", "c", "cortex-m4", "max78000"]
    assert "ONNX Runtime" in check.table(rows)
    if bits != 8:
        assert rows[0].size < 0.62 * 400_000
    results = check.check_folder(tmp_path / "all", 256, PoseTiny(side=side))
    assert {r.name: bool(r.pictures) for r in results} == ENGINES
    assert [r.differing for r in results] == [0] * len(results)
    assert all(r.outputs == 256 * 14 * 256 and r.milliseconds > 0 for r in results[:4] if r.pictures)
    assert 1 < results[-1].pictures <= 257 and results[-1].outputs == results[-1].pictures * 14 * 256
    compact = check.as_compact(tmp_path / "all" / "model_8bit.pth")
    assert len(np.unique(check.answer_rows(compact, check.pictures(compact, 4, net)))) > 100


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_residual_network_all_engines(bits, tmp_path):
    net = prepared(Residual(), bits, {"conv3": {"weight_bits": 8}})
    sample = np.random.default_rng(0).integers(-128, 128, (2, 3, 12, 12)).astype(np.int8)
    rows = check.export_all(net, tmp_path / "all", sample)
    assert "checkpoint.pth" in [row.file for row in rows]
    results = check.check_folder(tmp_path / "all", 256, Residual())
    assert "torch, fake-quantized" in [r.name for r in results] and not any(r.differing for r in results)


def test_named_outputs_are_compared_too(tmp_path):
    class Named(Residual):
        def forward(self, x):
            return {"first": self.conv1(x), "last": super().forward(x)}

    net = prepared(Named(), 8)
    check.export_all(net, tmp_path / "all")
    results = check.check_folder(tmp_path / "all", 4, Named())
    assert [r.differing for r in results if r.pictures] == [0] * (sum(ENGINES.values()) - 1)  # two outputs: no chip


def test_a_calibrated_network_without_qat_is_refused_by_every_exporter(tmp_path):
    net = prepared(Residual(), 8)
    for layer in (net.conv1, net.conv2, net.conv3, net.conv4, net.fc):
        layer.init_module(None, None, False, False)
    sentence = "conv1: QAT was never on .weight_bits is 0.; call initiate_qat.*quantize_model.model, bit_width=8."
    for export in (check.export_all, export_onnx, export_c, lambda net, folder: export_max78000(net, None, folder)):
        with pytest.raises(ValueError, match=sentence):
            export(net, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    check.export_all(quantize_model(net, bit_width=8), tmp_path / "ptq")
    assert not any(r.differing for r in check.check_folder(tmp_path / "ptq", 4))


def test_a_checkpoint_without_bits_ends_with_2(exported, tmp_path, capsys):
    stored = torch.load(exported / "checkpoint.pth", weights_only=True)
    for key in stored["state_dict"]:
        if key.endswith(("weight_bits", "bias_bits")):
            stored["state_dict"][key].zero_()
    torch.save(stored, tmp_path / "calibrated.pth")
    assert main(["all", str(tmp_path / "calibrated.pth"), str(tmp_path / "out"), *POSE]) == 2
    assert "conv1: QAT was never on (weight_bits is 0)" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["calibrated.pth"]


def test_a_network_too_large_for_the_chip_still_gets_the_rest(tmp_path):
    big = torch.nn.Sequential(ai8x.FusedConv2dReLU(3, 512, 3, padding=1), ai8x.FusedConv2dReLU(512, 512, 3, padding=1))
    big.input_shape = (3, 4, 4)
    rows = check.export_all(prepared(big, 8), tmp_path / "all")
    assert rows[-1].file == "max78000 (not written)" and "kernel memory exhausted" in rows[-1].reader
    assert not (tmp_path / "all" / "max78000").exists() and (tmp_path / "all" / "c").is_dir()


def test_one_export_makes_the_integers_their_checksum_engine_and_plan_once(tmp_path, monkeypatch):
    made = Counter()

    def count(owner, name, what):
        function = getattr(owner, name)

        def counted(*arguments, **named):
            made[what] += 1
            return function(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    count(convert, "lower", "operations")
    count(lowering, "lower", "operations of the fit meter's own")
    count(compact.CompactModel, "__init__", "compact model")
    count(compact, "checksum", "checksum")
    count(Integer, "__init__", "engine")
    count(meter, "describe", "layers")
    count(memory, "place", "plan")
    check.export_all(prepared(Residual(), 8), tmp_path / "all")
    assert made == {"operations": 1, "compact model": 1, "checksum": 1, "engine": 1, "layers": 1, "plan": 1}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "all"
    check.export_all(prepared(PoseTiny(), 8), folder)
    return folder


def test_command_line_writes_and_checks(exported, tmp_path, capsys):
    assert main(["all", str(exported / "checkpoint.pth"), str(tmp_path / "again"), *POSE]) == 0
    written = capsys.readouterr().out
    assert re.search(r"^model_8bit.pth +\d{3},\d{3}  ", written, re.M) and "ai8xize.py" in written
    assert (tmp_path / "again" / "model_8bit.pth").read_bytes() == (exported / "model_8bit.pth").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "qatlib.export", "check", tmp_path / "again", "-n", "2", *POSE], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all("0 of 7,168 outputs differ, 2 pictures" in line for line in lines[:3])
    assert lines[-1].startswith("0 differing outputs in")


def test_a_difference_is_found_and_ends_with_1(exported, tmp_path, capsys):
    shutil.copytree(exported, tmp_path / "all")
    expected = tmp_path / "all" / "max78000" / "expected_posetiny.npy"
    answer = np.load(expected)
    answer.flat[5] += 1
    np.save(expected, answer)
    onnx = tmp_path / "all" / "model.onnx"
    export_onnx(prepared(PoseTiny(), 4), onnx)
    record(tmp_path / "all")
    assert main(["check", str(tmp_path / "all"), "-n", "2"]) == 1
    text = capsys.readouterr().out
    assert "our model of the chip    1 of 10,752 outputs differ, 3 pictures" in text
    assert int(re.search(r"ONNX Runtime +([\d,]+) of", text)[1].replace(",", "")) > 1000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check", "missing"], "no model_8bit.pth in missing"),
        (["check", "missing", "-n", "0"], "compare at least one picture"),
        (["all", "missing.pth", "out"], "missing.pth"),
        (["all", "README.md", "out"], "README.md is no checkpoint that can be read safely"),
    ],
)
def test_errors_are_one_sentence_and_exit_code_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1 and "Traceback" not in error


@pytest.mark.parametrize("arguments", [[], ["check"], ["check", "x", "-n", "many"], ["nonsense"]])
def test_wrong_arguments_are_one_sentence_too(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture
def copied(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "all"))


def refused(folder, capsys) -> str:
    """The one sentence of a check that could not be done."""
    assert main(["check", str(folder), "-n", "2", *POSE]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "Traceback" not in error
    return error


def test_every_edited_file_is_named(copied, capsys):
    files = [path for path in sorted(copied.rglob("*")) if path.is_file() and path != copied / ".qatlib"]
    assert len(files) >= 15
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:-40] + b"0x2000" + whole[-34:])
        error = refused(copied, capsys)
        assert str(path) in error and ("edited or damaged" in error or "is refused" in error or "truncated" in error), error
        path.write_bytes(whole)
    assert main(["check", str(copied), "-n", "2", *POSE]) == 0


@pytest.mark.parametrize(
    ("file", "engine"),
    [("model.onnx", "ONNX Runtime"), ("checkpoint.pth", "torch, fake-quantized"), ("c/engine.c", "C, gcc -O3"),
     ("cortex-m4/chip.ld", "C, Cortex-M4 in QEMU"),
     ("max78000/posetiny.yaml", "our model of the chip")],
)  # fmt: skip
def test_a_deleted_file_is_missing_not_skipped(copied, file, engine, capsys):
    (copied / file).unlink()
    assert main(["check", str(copied), "-n", "2", *POSE]) == 2
    assert re.search(rf"^{re.escape(engine)} +missing: {file}; export the folder again$", capsys.readouterr().out, re.M)


def test_without_a_compiler_c_is_not_run_and_nothing_is_missing(copied, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["check", str(copied), "-n", "2", *POSE]) == 0
    assert re.search(r"^C, gcc -O3 +not run: no C compiler; install gcc$", capsys.readouterr().out, re.M)


def test_a_network_is_not_compared_with_a_folder_written_from_integers(exported, tmp_path, capsys):
    assert main(["all", str(exported / "model_8bit.pth"), str(tmp_path / "again")]) == 0
    assert main(["check", str(tmp_path / "again"), "-n", "2", *POSE]) == 0
    assert re.search(r"^torch, fake-quantized +not run: .* from integers, without checkpoint.pth$", capsys.readouterr().out, re.M)


def test_a_folder_without_checksums_is_refused(copied, capsys):
    (copied / ".qatlib").write_text("written by an older version\n")
    assert "records no checksums" in refused(copied, capsys)


def test_the_known_answer_is_computed_from_the_synthesis_checkpoint(copied, capsys):
    path = copied / "max78000" / "posetiny.pth.tar"
    stored = torch.load(path, weights_only=True)
    stored["state_dict"]["conv3.output_shift"] += 1
    torch.save(stored, path)
    record(copied)
    assert main(["check", str(copied), "-n", "2", *POSE]) == 1
    assert re.search(r"^our model of the chip +[1-9][\d,]* of 10,752 outputs differ", capsys.readouterr().out, re.M)
    stored["state_dict"]["conv3.op.weight"][0] += 0.5
    torch.save(stored, path)
    record(copied)
    assert re.search(r"posetiny.pth.tar cannot be used .layer 3: the weights of conv3 are no integers", refused(copied, capsys))


def test_unusable_files_with_a_matching_checksum_are_named_too(copied, tmp_path, capsys):
    def damaged(file, change):
        whole = (copied / file).read_bytes()
        change(copied / file)
        record(copied)
        error = refused(copied, capsys)
        (copied / file).write_bytes(whole)
        assert f"{copied / file}" in error and "again" in error, error

    def cut(path):
        path.write_bytes(path.read_bytes()[:-200])

    def poison(path):
        stored = torch.load(path, weights_only=True)
        stored["state_dict"]["up8.op.weight"].flatten()[7] = float("nan")
        torch.save(stored, path)

    damaged("model.onnx", cut)
    damaged("model.onnx", lambda path: path.write_text("no graph"))
    damaged("model.onnx", lambda path: export_onnx(prepared(Residual(), 8), path))
    damaged("checkpoint.pth", poison)
    for file in ("expected_posetiny.npy", "sample_posetiny.npy", "posetiny.pth.tar"):
        damaged(f"max78000/{file}", cut)


def test_a_truncated_compact_file_or_c_source_is_refused(copied, capsys):
    whole = (copied / "model_8bit.pth").read_bytes()
    (copied / "model_8bit.pth").write_bytes(whole[:-5000])
    assert "model_8bit.pth is no checkpoint that can be read safely (truncated" in refused(copied, capsys)
    (copied / "model_8bit.pth").write_bytes(whole)
    source = copied / "c" / "network.c"
    source.write_text(source.read_text()[:-50])
    record(copied)
    if shutil.which("gcc"):
        assert f"{copied / 'c'} does not compile" in refused(copied, capsys)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, exported, capsys):
    (tmp_path / "file").write_text("")
    for folder, reason in ((tmp_path / "file" / "out", "Not a directory"), (Path("/proc/no/out"), "No such file or directory")):
        assert main(["all", str(exported / "model_8bit.pth"), str(folder)]) == 2
        error = capsys.readouterr().err
        assert error == f"qatlib.export: cannot write {folder}: {reason}; free some space or choose another folder\n"
