"""The QAT doctor: finds each of the ten bugs, calls good networks healthy, measures what it says, and reads checkpoints."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qatlib
from qatcourse.labs import break_it
from qatlib import ai8x
from qatlib.doctor import diagnose
from qatlib.doctor.__main__ import examine, main

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = (0, 1, 2)


def row(diagnosis, name):
    return next(layer for layer in diagnosis.layers if layer.name == name)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_good_network_is_healthy(seed):
    patient = break_it.healthy(seed)
    seen = qatlib.diagnose(patient.model, patient.x, patient.history)
    assert seen.healthy and seen.verdict.startswith("healthy"), str(seen)
    assert patient.accuracy() > 0.9
    assert not any(seen.found(name) for name in break_it.FOUND_AS.values())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bug", break_it.FOUND_AS)
def test_each_bug_is_found_by_its_name(bug, seed):
    seen = break_it.make(bug, seed).diagnose()
    assert not seen.healthy and seen.found(break_it.FOUND_AS[bug]), str(seen)
    finding = next(f for f in seen.problems if f.name == break_it.FOUND_AS[bug])
    assert finding.text in str(seen) and finding.remedy in str(seen) and len(finding.remedy) > 10


def test_every_lesson_named_is_a_notebook_of_the_course():
    from qatlib.doctor.advice import LESSONS

    folder = Path(__file__).resolve().parents[2] / "notebooks"
    assert all((folder / f"{name}.ipynb").is_file() and name.startswith(number) for number, name in LESSONS.items())
    named = {finding.lesson for bug in break_it.FOUND_AS for finding in break_it.make(bug).diagnose().findings}
    assert named <= set(LESSONS)


def test_diagnosing_changes_nothing():
    patient = break_it.healthy()
    patient.model.train()
    before = copy.deepcopy(patient.model.state_dict())
    patient.diagnose()
    assert all(torch.equal(before[key], value) for key, value in patient.model.state_dict().items())
    assert all(m.training for m in patient.model.modules())
    assert not any(m._forward_hooks for m in patient.model.modules())


def test_facts_equal_a_count_by_hand():
    patient = break_it.make("never_started")
    kept = {}
    hook = patient.model.conv2.register_forward_hook(lambda m, i, y: kept.update(y=y.detach()))
    with torch.no_grad():
        patient.model.eval()(patient.x)
    hook.remove()
    y, facts = kept["y"], row(patient.diagnose(), "conv2")
    assert facts.off_grid == pytest.approx((y * 128 % 1 != 0).double().mean().item(), abs=1e-12)  # both are ratios of counts
    assert facts.saturated == pytest.approx(((y > 127 / 128) | (y < -1)).double().mean().item(), abs=1e-12)
    flat = y.transpose(0, 1).flatten(1)
    assert (facts.channels, facts.dead) == (12, int((flat.amax(1) == flat.amin(1)).sum()))


def single(weight, bias=0.0, bits=8, **options):
    layer = ai8x.Conv2d(1, 1, 1, bias=True, weight_bits=bits, bias_bits=bits, quantize_activation=True, **options)
    with torch.no_grad():
        layer.op.weight.fill_(weight)
        layer.op.bias.fill_(bias)
    return nn.Sequential(layer)


GRID = (torch.arange(-128, 128).float() / 128).view(1, 1, 16, 16)


@pytest.mark.parametrize("weight, shift, used, wasted", [(0.502, 0, 0.502, True), (0.499, -1, 0.998, False), (0.5, -1, 1.0, False)])
def test_a_largest_weight_just_above_a_power_of_two_wastes_a_bit(weight, shift, used, wasted):
    seen = diagnose(single(weight), GRID)
    facts = seen.layers[0]
    assert facts.shift == shift and facts.range_used == pytest.approx(used, rel=1e-6)  # one float32 rounding
    assert any(f.name == "wasted bit" for f in seen.findings) is wasted and seen.healthy


@pytest.mark.parametrize("bias, cost, problem", [(0.4, 0, False), (0.9, 1, False), (3.9, 3, True)])
def test_a_big_bias_is_charged_in_bits(bias, cost, problem):
    seen = diagnose(single(0.45, bias))
    assert seen.layers[0].bias_cost == cost and seen.found("big bias") is problem


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda u: u / 255, "0..1"),
        (lambda u: u, "0..255"),
        (lambda u: u - 128, "integer codes"),
        (lambda u: (u - 127.5) / 127.5 * 2.2, "outside"),
        (lambda u: (u - 128) / 129, "grid"),
        (lambda u: u * float("nan"), "NaN"),
    ],
)
def test_input_ranges_are_told_apart(change, said):
    u = torch.arange(256.0).view(1, 1, 16, 16)
    seen = diagnose(single(0.5), change(u))
    found = [f for f in seen.problems if f.name == "input range"]
    assert len(found) == 1 and said in found[0].text
    assert not diagnose(single(0.5), (u - 128) / 128).found("input range")


class NoClamp(ai8x.Conv2d):
    def _activate(self, x):
        return torch.floor(x * 128 + 0.5) / 128


class Truncates(ai8x.Conv2d):
    def _activate(self, x):
        return (torch.trunc(x * 128) / 128).clamp(-1, 127 / 128)


@pytest.mark.parametrize("kind, name", [(NoClamp, "clamp missing"), (Truncates, "arithmetic")])
def test_wrong_arithmetic_in_a_layer_is_named(kind, name):
    model = single(0.7, 0.6)
    assert diagnose(model, GRID).healthy or not diagnose(model, GRID).found(name)
    model[0].__class__ = kind
    assert diagnose(model, GRID).found(name)


def test_half_even_is_told_from_half_up_on_ties():
    patient = break_it.make("half_even")
    assert row(patient.diagnose(), "conv3").arithmetic == "half-even"
    patient.model.conv3.to_codes = lambda v: torch.floor(v + 0.5)
    assert row(patient.diagnose(), "conv3").arithmetic == ""


LOSSES = [([1.0, 0.5, 0.4], False), ([1.0, float("nan")], True), ([1.0, 0.5, 4, 4], True), ([2.0], False)]


@pytest.mark.parametrize("losses, bad", LOSSES)
def test_losses_tell_a_learning_rate(losses, bad):
    patient = break_it.healthy()
    assert diagnose(patient.model, patient.x, losses).found("learning rate") is bad
    assert diagnose(patient.model, patient.x, [{"loss": v} for v in losses]).found("learning rate") is bad


def test_partly_quantized_and_not_a_number_are_found():
    patient = break_it.healthy()
    patient.model.conv3.init_module(None, None, False)
    found = [f for f in patient.diagnose().problems if f.name == "QAT partly off"]
    assert [f.layer for f in found] == ["conv3"]
    patient = break_it.healthy()
    patient.model.conv1.op.weight.data[0, 0, 0, 0] = float("nan")
    assert patient.diagnose().found("not a number")


class Sound(nn.Module):
    """One dimension, a linear layer, a shared layer, a concatenation."""

    def __init__(self):
        super().__init__()
        self.a = ai8x.FusedConv1dBNReLU(2, 8, 3, padding=1)
        self.b = ai8x.FusedMaxPoolConv1dReLU(8, 8, 3, padding=1)
        self.fc = ai8x.Linear(64, 5, bias=True, wide=True)

    def forward(self, x):
        x = self.b(self.a(x))
        return self.fc(torch.cat((x, x), dim=1).flatten(1))


@pytest.mark.parametrize("bits", [8, 4])
def test_other_networks_of_ai8x_layers_are_healthy_after_calibration(bits):
    torch.manual_seed(0)
    net, x = Sound().eval(), torch.randint(-128, 128, (64, 2, 8)) / 128
    assert diagnose(net, x).found("QAT never started")
    ai8x.start_qat(net, [x], {"weight_bits": bits}, progress=False)
    seen = diagnose(net, x)
    assert seen.healthy, str(seen)
    assert [f.name for f in seen.findings if f.layer == "fc" and "wide" in f.name] == ["wide head"]  # a note: arg-max is the same


def test_bad_arguments_are_told_in_one_sentence():
    patient = break_it.healthy()
    with pytest.raises(TypeError, match="torch module"):
        diagnose("final.pth")
    with pytest.raises(TypeError, match="float32 tensor"):
        diagnose(patient.model, np.zeros(3))
    with pytest.raises(ValueError, match="no ai8x layer"):
        diagnose(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"shape \(1, 5, 16, 16\)"):
        diagnose(patient.model, torch.zeros(1, 5, 16, 16))
    ai8x.set_device(85, simulate=True, verbose=False)
    try:
        with pytest.raises(ValueError, match="simulate=False"):
            diagnose(patient.model, patient.x)
    finally:
        ai8x.set_device(85, simulate=False, verbose=False)


def test_the_table_reads_as_text_and_as_html():
    seen = break_it.make("wide_head").diagnose()
    text, page = str(seen), seen._repr_html_()
    for layer in ("conv1", "add", "head"):
        assert layer in text and layer in page
    assert "Verdict: 1 problem: wide head" in text and "&#10007;" in page and "<li>wide head" in page


def test_layers_with_the_same_finding_share_a_line():
    seen = break_it.make("batch_norm").diagnose()
    lines = [line for line in str(seen).splitlines() if "batch norm not fused" in line and line.startswith("- ")]
    assert len(lines) == 1 and "[conv1, conv2, conv3, conv4]" in lines[0]
    assert sum(f.name == "batch norm not fused" for f in seen.problems) == 4


# --- files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pose():
    """PoseTiny, untrained but calibrated on random pictures: enough for reading checkpoints."""
    from qatcourse.pose.evaluate import calibrated_ptq
    from qatcourse.pose.model import PoseTiny

    torch.manual_seed(0)
    x = torch.randint(-128, 128, (16, 12, 32, 32)) / 128
    return calibrated_ptq(PoseTiny().eval(), [(x,)], 8), x


def test_checkpoints_of_our_training(tmp_path, pose, capsys):
    from qatcourse.pose.model import PoseTiny

    torch.save({"arch": "PoseTiny", "epoch": 1, "config": {"start_epoch": 0}, "history": [{"epoch": 0, "loss": 2.0}],
                "state_dict": pose[0].state_dict()}, tmp_path / "qat.pth")  # fmt: skip
    assert not examine(tmp_path / "qat.pth").measured
    seen = examine(tmp_path / "qat.pth", PoseTiny())
    assert seen.measured and not seen.found("QAT never started")
    assert {(layer.kind, layer.bits) for layer in seen.layers} == {("layer", 8), ("sum", None)}
    torch.save(PoseTiny().state_dict(), tmp_path / "float.pth")
    assert main([str(tmp_path / "float.pth")]) == 1
    said = capsys.readouterr().out
    assert "QAT never started" in said and "add --network MODULE:CLASS" in said
    np.save(tmp_path / "x.npy", (pose[1] * 128).to(torch.int8).numpy())
    named = ["--network", "qatcourse.pose.model:PoseTiny", "--inputs", str(tmp_path / "x.npy")]
    assert main([str(tmp_path / "qat.pth"), *named]) == 1  # big biases of a network that was never trained
    assert "-1..0.992" in capsys.readouterr().out


def test_checkpoints_of_the_vendor(tmp_path):
    good = break_it.healthy().model.state_dict()
    torch.save({"arch": "spotter", "state_dict": {f"module.{k}": v for k, v in good.items()}}, tmp_path / "vendor.pth.tar")
    seen = examine(tmp_path / "vendor.pth.tar")
    assert not seen.measured and seen.healthy
    assert [layer.name for layer in seen.layers] == ["conv1", "conv2", "conv3", "conv4", "head"]
    torch.save({"state_dict": break_it.make("wrong_checkpoint").checkpoints["qat_best_q.pth"]}, tmp_path / "q.pth.tar")
    assert examine(tmp_path / "q.pth.tar").found("wrong checkpoint")
    old = {k: v for k, v in good.items() if not k.endswith("activation_threshold")}
    torch.save({"state_dict": old}, tmp_path / "old.pth.tar")
    seen = examine(tmp_path / "old.pth.tar")
    assert seen.found("wrong checkpoint") and "activation_threshold is missing" in str(seen)


def test_compact_files(tmp_path, pose):
    model, x = pose
    quantized = qatlib.quantize_model(model)
    torch.save(quantized.state_dict(), tmp_path / "model_8bit.pth")
    seen = examine(tmp_path / "model_8bit.pth")
    assert seen.healthy and len(seen.layers) == 13
    assert row(seen, "conv1").weight_codes == model.conv1.quantized_weight()[0].unique().numel()
    damaged = dict(quantized.state_dict())
    damaged["conv1.weight"] = damaged["conv1.weight"].clone()
    damaged["conv1.weight"].view(-1)[0] ^= 1
    torch.save(damaged, tmp_path / "damaged.pth")
    assert main([str(tmp_path / "damaged.pth")]) == 2


UNUSABLE = [(None, "no file"), (b"not a checkpoint", "no checkpoint"), ({"a": torch.zeros(1)}, "no ai8x layer")]


@pytest.mark.parametrize("content, said", UNUSABLE)
def test_unusable_files_are_one_sentence_and_exit_code_2(tmp_path, capsys, content, said):
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error and str(path) in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_command(tmp_path):
    torch.save({"state_dict": break_it.healthy().model.state_dict()}, tmp_path / "good.pth")
    done = subprocess.run([sys.executable, "-m", "qatlib.doctor", tmp_path / "good.pth"], capture_output=True, text=True)
    assert done.returncode == 0 and "Verdict: healthy" in done.stdout and not done.stderr, done.stderr


def test_the_table_shows_the_input_range_and_the_heads_scale():
    patient = break_it.make("wide_head")
    rows = {cells["layer"]: cells for cells in patient.diagnose().rows()}
    low, high = patient.x.min().item(), patient.x.max().item()
    assert rows["conv1"]["input range"] == f"{low:.3g}..{high:.3g}" and rows["conv1"]["head scale"] == "-"
    assert patient.model.head.weight_shift() == -3 and rows["head"]["head scale"] == "8"
    assert row(diagnose(patient.model), "conv1").low is None  # without an input nothing is known of it
    off = {cells["layer"]: cells for cells in break_it.make("never_started").diagnose().rows()}
    assert off["head"]["head scale"] == "-"


def test_a_rising_loss_is_not_blamed_on_a_layer():
    lines = str(break_it.make("learning_rate").diagnose()).splitlines()
    said = next(line for line in lines if "the loss rises" in line)
    assert said.startswith("- learning rate: the loss rises") and "in the losses" not in said


TAUGHT = {"wide head": "05", "big bias": "03", "learning rate": "05", "clipping": "04", "dead layer": "06", "input range": "01"}


@pytest.mark.parametrize("name, lesson", TAUGHT.items())
def test_findings_name_the_lesson_that_teaches_them(name, lesson):
    found = [f for bug in break_it.FOUND_AS for f in break_it.make(bug).diagnose().findings if f.name == name]
    assert found and {f.lesson for f in found} == {lesson}
