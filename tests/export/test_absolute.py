"""Abs: the chip takes it after rounding, training before it. Every engine computes what the chip does, and what differs is told."""

import shutil

import numpy as np
import pytest
import torch
from export_networks import Builder, codes
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_c import LOOPS, build, outputs_of
from test_c_random import networks
from test_onnx import compare
from torch import nn

from qatlib import ai8x, diagnose, quantize_model
from qatlib.export import check
from qatlib.export.c_project import export_c
from qatlib.export.engines import onnx_runner
from qatlib.export.onnx_graph import export_onnx
from qatlib.integer.compact import CompactModel, pack
from qatlib.integer.engine import Integer, engine_of, has_abs, narrow
from qatlib.integer.source import answer_rows

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
EVERY = [(bits, shift) for bits in (8, 4, 2, 1) for shift in range(-15, 16)]


def accumulators(n: int) -> np.ndarray:
    """All that are not clamped by far, for n up to 13; beyond that the neighbours of all multiples of 1/256 of a code."""
    if n <= 13:
        return np.arange(-131 << max(n, 0), (131 << max(n, 0)) + 1, dtype=np.int32)
    near = np.arange(-132 * 256, 132 * 256 + 1, dtype=np.int64)[:, None] << n - 8
    return np.unique(near + np.arange(-3, 4)).astype(np.int32)


def on_chip(acc: np.ndarray, n: int) -> np.ndarray:
    return np.minimum(np.abs(np.clip(np.floor(acc * 2.0**-n + 0.5), -128, 127)), 127).astype(np.int8)


def in_training(acc: np.ndarray, n: int) -> np.ndarray:
    return np.clip(np.floor(np.abs(acc.astype(np.float64)) * 2.0**-n + 0.5), -128, 127).astype(np.int8)


@pytest.mark.parametrize(("bits", "shift"), EVERY)
def test_every_accumulator_differs_by_one_or_not_at_all(bits, shift):
    op, n = {"weight_bits": bits, "output_shift": shift, "activation": "abs"}, bits - 1 - shift
    acc = accumulators(n)
    chip, training = narrow(acc, op), narrow(acc, op, abs_first=True)
    assert np.array_equal(chip, on_chip(acc, n)) and np.array_equal(training, in_training(acc, n))
    half = (acc < 0) & (acc >= -(127 << max(n, 0))) & (acc % (1 << max(n, 0)) == 1 << n - 1 if n > 0 else False)
    assert np.array_equal(training.astype(int) - chip, half.astype(int)) and half.sum() == (127 if n > 0 else 0)
    for activation in (None, "relu"):
        assert np.array_equal(narrow(acc, op | {"activation": activation}), narrow(acc, op | {"activation": activation}, True))


def stepping(bits: int, shift: int) -> tuple[CompactModel, np.ndarray, np.ndarray]:
    """A 1x1 layer with Abs, pictures, and the accumulators that they make: all that one of 64 channels of full weights reach."""
    n, large = bits - 1 - shift, -1 if bits == 1 else (1 << bits - 1) - 1
    unit = -1 if bits == 1 else 1
    acc = accumulators(min(n, 13))
    acc = acc[np.abs(acc) <= 100 * 64 * abs(large)]
    acc = np.concatenate([acc[:: max(len(acc) // 30_000, 1)], acc[np.abs(acc % (1 << max(n, 1)) - (1 << max(n, 1) - 1)) <= 2]])
    acc = np.pad(acc[:61_440], (0, -len(acc[:61_440]) % 4096)).astype(np.int64)
    whole = acc // large
    share = np.stack([whole // 64 + (np.arange(64)[i] < whole % 64) for i in range(64)])
    x = np.concatenate([(acc - whole * large)[None] * unit, share])
    weight = np.array([unit] + [large] * 64, np.int8).reshape(1, 65, 1, 1)
    b = Builder((65, 64, 64)).op("y", "conv2d", out=1, kernel=1, bits=bits, shift=shift, bias=False)
    b.ops[0]["activation"], b.tensors["y.weight"] = "abs", pack(weight, bits)
    pictures = x.reshape(65, -1, 64, 64).swapaxes(0, 1)
    assert pictures.min() >= -128 and pictures.max() <= 127
    return b.build(), np.ascontiguousarray(pictures.astype(np.int8)), acc


@needs_gcc
@pytest.mark.parametrize(
    ("bits", "shift"), [(8, 0), (8, -1), (8, -6), (8, 7), (8, 9), (4, 0), (4, -5), (2, -1), (2, 4), (1, -3), (1, 0)]
)
def test_accumulators_through_every_engine(bits, shift, tmp_path):
    model, pictures, acc = stepping(bits, shift)
    wanted = on_chip(acc, bits - 1 - shift).reshape(-1, 64 * 64)
    assert np.array_equal(answer_rows(model, pictures), wanted) and len(np.unique(wanted)) > 16
    compare(model, tmp_path / "net.onnx", pictures)
    folder = export_c(model, tmp_path / "net")
    for flags in LOOPS.values():
        program = build(folder, "-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all", *flags)
        assert np.array_equal(outputs_of(program, model, pictures, tmp_path), wanted)


@needs_gcc
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=networks(), loops=st.sampled_from([*LOOPS]))
def test_any_network_with_abs_gives_the_same_integers_everywhere(model, loops, tmp_path_factory):
    assume(has_abs(model))
    place, x = tmp_path_factory.mktemp("abs"), codes(model, 3)
    try:
        found = onnx_runner(export_onnx(model, place / "net.onnx"), model)(x)
    except ValueError as refused:  # transposed layers of other strides than the chip's
        assume("transposed" not in str(refused))
        raise
    assert np.array_equal(found, answer_rows(model, x))
    program = build(export_c(model, place / "net"), "-O0", *LOOPS[loops])
    assert np.array_equal(outputs_of(program, model, x, place), answer_rows(model, x))
    shutil.rmtree(place)


class Absolute(nn.Module):
    """Three layers with Abs, one of them pooled, and a wide head."""

    input_shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.one = ai8x.FusedConv2dAbs(3, 12, 3, padding=1, bias=True)
        self.two = ai8x.FusedAvgPoolConv2dAbs(12, 12, 3, padding=1, bias=True)
        self.three = ai8x.FusedConv2dAbs(12, 12, 1, bias=False)
        self.head = ai8x.Conv2d(12, 4, 1, bias=True, wide=True)

    def forward(self, x):
        return self.head(self.three(self.two(self.one(x))))


def trained(bits: int, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    net, x = Absolute(), torch.randint(-128, 128, (40, 3, 8, 8)) / 128
    ai8x.start_qat(net, [x], {"weight_bits": bits}, progress=False)
    return net.eval(), x


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [8, 4])
def test_the_integers_of_training_are_those_of_torch(bits, seed):
    net, x = trained(bits, seed)
    with pytest.warns(UserWarning, match=r"^\d+ of 2560 outputs differ .* sample: the chip takes Abs after rounding, training"):
        quantized = quantize_model(net, sample=x)
    assert torch.equal(quantized(x, abs_first=True), net(x)) and not torch.equal(quantized(x), net(x))
    assert engine_of(quantized.compact) is not engine_of(quantized.compact, abs_first=True)


def test_another_difference_is_not_put_down_to_abs():
    net, x = trained(8)
    inner = net.head.forward
    net.head.forward = lambda v: inner(v) + 1
    with pytest.warns(UserWarning, match="2560 of 2560 outputs differ from the QAT network's on the sample$"):
        quantize_model(net, sample=x)


@pytest.mark.parametrize("bits", [8, 4])
def test_check_compares_torch_with_the_integers_of_training_and_tells_what_the_chip_makes_of_it(bits, tmp_path):
    net, _ = trained(bits)
    rows = check.export_all(net, tmp_path / "all")
    assert "takes Abs before rounding, the chip after it" in next(row.reader for row in rows if row.file == "checkpoint.pth")
    results = {result.name: result for result in check.check_folder(tmp_path / "all", 64, Absolute())}
    assert [result.differing for result in results.values()] == [0] * 6
    told = results["torch, fake-quantized"]
    compact = CompactModel.load(tmp_path / "all" / "model_8bit.pth")
    x = check.pictures(compact, 64)
    gap = np.abs(answer_rows(compact, x).astype(int) - answer_rows(compact, x, abs_first=True))
    assert told.from_chip == ((gap > 0).sum(), gap.max()) and told.from_chip[1] > 1
    assert str(told).endswith(f"; Abs as in training: {(gap > 0).sum():,} are not the chip's (off by up to {gap.max():,})")
    assert not any(result.from_chip for name, result in results.items() if name != told.name)


def test_check_still_finds_what_abs_does_not_explain(tmp_path):
    net, _ = trained(8)
    check.export_all(net, tmp_path / "all")

    class Other(Absolute):
        def forward(self, x):
            return super().forward(x) + (x.sum((1, 2, 3), keepdim=True) > 0) * 2.0**-13

    other = next(r for r in check.check_folder(tmp_path / "all", 64, Other()) if r.name == "torch, fake-quantized")
    assert other.differing > 0


def test_a_network_without_abs_hears_nothing_of_it(tmp_path):
    b = Builder((2, 4, 4)).op("y", "conv2d", out=3, activation="relu")
    model = b.build()
    assert not has_abs(model) and engine_of(model) is engine_of(model, abs_first=True)
    rows = check.export_all(model, tmp_path / "all")
    assert not any("Abs" in row.reader for row in rows)
    assert not any(result.from_chip for result in check.check_folder(tmp_path / "all", 4))
    net = nn.Sequential(ai8x.FusedConv2dReLU(3, 4, 3), ai8x.Conv2d(4, 4, 1))
    assert ai8x.fit(net, (3, 8, 8)).notes == []


def test_the_meter_notes_it_and_the_network_still_fits():
    fitted = ai8x.fit(Absolute())
    (note,) = fitted.notes
    assert fitted.fits and note.startswith("one, two, three: Abs, which the chip takes after rounding, training before it")
    assert f"It fits.\nNote: {note}.\n" in str(fitted)


def test_the_doctor_measures_it_on_the_inputs():
    net, x = trained(4)
    found = diagnose(net, x)
    note = next(finding for finding in found.findings if finding.name == "Abs")
    gap = (quantize_model(net)(x[:32]) - net(x[:32])).abs() * 2.0**10 / 2.0 ** net.head.final_scale.item()
    counted = f"for 32 of these inputs {(gap > 0).sum():,} of 2,048 outputs are other integers on it, by up to {int(gap.max()):,}"
    assert note.text.endswith(counted) and note.layer == "one, two, three" and not note.problem
    assert "Abs" not in found.verdict and not diagnose(net).found("Abs")
    assert next(f for f in diagnose(net).findings if f.name == "Abs").text.endswith("training before it")


def test_integer_reads_files_in_either_mode(tmp_path):
    net, x = trained(4)
    path = quantize_model(net).save(tmp_path / "model.pth")
    inputs = (x * 128).to(torch.int8).numpy()
    assert np.array_equal(
        Integer(path, abs_first=True)(inputs), answer_rows(CompactModel.load(path), inputs, True).reshape(40, 4, 4, 4)
    )
