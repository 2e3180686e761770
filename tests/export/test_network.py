"""Any network goes to the chip from the command line: its class by name, its checkpoint as training wrote it."""

import importlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from qatlib import ai8x, quantize_checkpoint
from qatlib.doctor.__main__ import main as doctor
from qatlib.export import network
from qatlib.export.__main__ import main

SOURCE = """
import qatlib.ai8x as ai8x
from torch import nn


class Spotter(nn.Module):
    def __init__(self, classes, width=8):
        super().__init__()
        self.conv1 = ai8x.FusedConv2dBNReLU(3, width, 3, padding=1)
        self.conv2 = ai8x.FusedMaxPoolConv2dBNReLU(width, width, 3, padding=1)
        self.fc = ai8x.Linear(width * 16, classes, wide=True)

    def forward(self, x):
        return self.fc(self.conv2(self.conv1(x)).flatten(1))


class Broken(Spotter):
    def forward(self, x):
        return super().forward(x)[:, 1:]


class Unlucky(Spotter):
    def forward(self, x):
        return {"label": 1}[x.shape[0] > 0]


class Stateless(Spotter):
    def state_dict(self, *arguments, **named):
        raise RuntimeError("no state")


class Unborn(Spotter):
    def __init__(self, classes):
        pass


class Pair(Spotter):
    input_shape = ((3, 8, 8), (3, 8, 8))

    def forward(self, x, y):
        return super().forward(x), super().forward(y)


class Words(Spotter):
    def sample_inputs(self, count):
        return "pictures"


class Endless(Spotter):
    input_shape = (3, 10**9, 10**9)


def fails(classes):
    return [][classes]


def leaves(classes):
    raise SystemExit(classes)


def not_a_class(classes):
    return "nothing"
"""
SHAPE, NAMED = ["--input-shape", "3,8,8"], ["--network", "my_nets:Spotter", "--arguments", '{"classes": 5}']


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the user's module and checkpoints, as the present one."""
    (tmp_path / "my_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_nets", None)
    net = importlib.import_module("my_nets").Spotter(5).eval()
    ai8x.start_qat(net, [(torch.randint(-128, 128, (16, 3, 8, 8)) / 128,)], {"weight_bits": 8}, progress=False)
    torch.save({"state_dict": {f"module.{key}": value for key, value in net.state_dict().items()}}, tmp_path / "qat.pth.tar")
    torch.save(net.state_dict(), tmp_path / "plain.pth")
    torch.save({"state_dict": quantize_checkpoint(net.state_dict())}, tmp_path / "integers.pth.tar")
    yield tmp_path
    sys.modules.pop("my_nets", None)


@pytest.mark.slow
def test_from_a_shell_in_the_folder_of_the_module(here):
    def run(*words):
        return subprocess.run([sys.executable, "-m", *words], cwd=here, capture_output=True, text=True)

    done = run("qatlib.export", "all", "qat.pth.tar", "out", *NAMED, *SHAPE)
    assert done.returncode == 0 and "model_8bit.pth" in done.stdout, done.stderr
    assert (here / "out" / "max78000" / "spotter.yaml").is_file()
    done = run("qatlib.export", "check", "out", "-n", "8", *NAMED)
    assert done.returncode == 0 and re.search(r"^torch, fake-quantized +0 of 40 outputs differ", done.stdout, re.M), done.stdout
    done = run("qatlib.doctor", "plain.pth", *NAMED)
    assert done.returncode in (0, 1) and "conv2" in done.stdout and not done.stderr


def test_all_forms_of_its_checkpoint_give_the_same_integers(here, capsys):
    files = [here / name / "model_8bit.pth" for name in ("a", "b", "c")]
    for path, checkpoint in zip(files, ("qat.pth.tar", "plain.pth", "integers.pth.tar")):
        assert main(["all", checkpoint, str(path.parent), *NAMED, *SHAPE]) == 0, capsys.readouterr().err
    sample = np.random.default_rng(0).integers(-128, 128, (4, 3, 8, 8)).astype(np.int8)
    from qatlib.integer import Integer

    first, *others = (Integer(path)(sample) for path in files)
    assert len(np.unique(first)) > 5 and all(np.array_equal(first, other) for other in others)
    capsys.readouterr()
    assert main(["check", "a"]) == 0
    assert "not run: which network it is must be said: --network my_nets:Spotter" in capsys.readouterr().out


REFUSED = [
    ("all plain.pth out", "is a checkpoint; say of which network: --network MODULE:CLASS"),
    ("all plain.pth out --network my_nets:Spotter --arguments [5]", "Spotter has no input_shape; give input_shape=.C, H, W."),
    ("all plain.pth out --network my_nets:Spotter --input-shape 3,8,8", "cannot be built with .* .TypeError: .*--arguments"),
    ("all plain.pth out --network my_nets:Spotter --arguments [6] --input-shape 3,8,8", "does not belong to Spotter; give"),
    ("all plain.pth out --network my_nets:Broken --arguments [5] --input-shape 3,8,8", "getitem: the chip cannot compute slicing"),
    ("all plain.pth out --network my_nets:not_a_class --arguments [5]", "gives a str, no torch module; name"),
    ("all plain.pth out --network my_nets:Spoter --arguments [5]", "my_nets has no class Spoter; it has Spotter, Broken"),
    ("all plain.pth out --network my_net:Spotter", "the module my_net cannot be imported .ModuleNotFoundError"),
    ("all plain.pth out --network my_nets:Spotter --arguments [5] --input-shape 4,8,8", "not accept inputs of shape .4, 8, 8."),
    ("check a --network my_nets:Spotter --arguments [6]", "does not belong to Spotter; give"),
]


ANY = "--arguments [5] --input-shape 3,8,8"
REFUSED += [
    (
        f"all plain.pth out --network my_nets:Stateless {ANY}",
        r"RuntimeError: no state .line \d+ of .*my_nets.py.; correct",
    ),
    (f"all plain.pth out --network my_nets:Unborn {ANY}", "AttributeError: .*; correct the network"),
    (
        "all plain.pth out --network my_nets:Pair --arguments [5]",
        "Pair has several inputs; .*: concatenate them outside",
    ),
    (f"all plain.pth out --network my_nets:Unlucky {ANY}", "Unlucky|KeyError"),
    ("all plain.pth out --network my_nets:Endless --arguments [5]", "memory|overflow"),
    (
        f"all plain.pth out --network my_nets:fails {ANY}",
        ":fails cannot be built with .5. .IndexError: .*; give what",
    ),
    (
        f"all plain.pth out --network my_nets:leaves {ANY}",
        ":leaves cannot be built with .5. .SystemExit: .*; give what",
    ),
    (f"all spoilt.pth out --network my_nets:Spotter {ANY}", "conv1: op.weight holds NaN or infinity; train again from a sound"),
    (f"all lacking.pth out --network my_nets:Spotter {ANY}", "conv1: the checkpoint lacks output_shift; give the result of"),
    (f"all . out --network my_nets:Spotter {ANY}", "no file .; give the path of a checkpoint"),
    (f"all my_nets.py out --network my_nets:Spotter {ANY}", "my_nets.py is no checkpoint that can be read safely"),
    (f"all two.pth out --network my_nets:Spotter {ANY}", "two.pth holds several states that may be meant .a, b.; save the one"),
    (f"all object.pth out --network my_nets:Spotter {ANY}", "object.pth holds a Spotter, a Python object.*; save its state_dict"),
    (f"all other_chip.pth out --network my_nets:Spotter {ANY}", "device 84 is not supported; use 85"),
    ("all plain.pth out --network my_nets:Spotter --arguments [5] --input-shape 3,99999999999,99999999999", "memory|overflow"),
    ("check a --network my_nets:Words --arguments [5]", "AttributeError: 'str' object has no attribute 'round' .*; correct the"),
    ("check a -n 99999999999", "n is 99999999999; compare at least one picture and at most a million"),
]


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
@pytest.mark.parametrize(("words", "sentence"), REFUSED)
def test_what_does_not_belong_together_is_refused_in_one_sentence(words, sentence, here, capsys):
    assert main(["all", "plain.pth", "a", *NAMED, *SHAPE]) == 0
    odd_checkpoints(here)
    capsys.readouterr()
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert re.search(sentence, error) and error.count("\n") == 1 and not (here / "out").exists(), error


def odd_checkpoints(here):
    state = torch.load(here / "plain.pth", weights_only=True)
    integer = torch.load(here / "integers.pth.tar", weights_only=True)["state_dict"]
    torch.save(state | {"conv1.op.weight": state["conv1.op.weight"] * float("nan")}, here / "spoilt.pth")
    torch.save({key: value for key, value in integer.items() if key != "conv1.output_shift"}, here / "lacking.pth")
    torch.save({"a": state, "b": state}, here / "two.pth")
    torch.save({"model": sys.modules["my_nets"].Spotter(5)}, here / "object.pth")
    torch.save({"model": state, "chip": {"device": 84, "round_avg": False}}, here / "other_chip.pth")


@pytest.mark.parametrize("name", ["x.npz", "words.npy", "plain.pth", "dates.npy"])
def test_inputs_of_another_kind_are_one_sentence(name, here, capsys):
    np.savez(here / "x.npz", x=np.zeros(3))
    np.save(here / "words.npy", np.array(["a"]))
    np.save(here / "dates.npy", np.zeros(2, "M8[s]"))
    assert doctor(["plain.pth", *NAMED, "--inputs", name]) == 2
    error = capsys.readouterr().err
    assert re.search("is no array .*; write it with numpy.save|the network cannot run on", error) and error.count("\n") == 1


def test_a_module_that_fails_or_ends_the_program_is_one_sentence(here, capsys):
    for content, said in (("1 / 0", "ZeroDivisionError"), ("import sys; sys.exit(3)", "SystemExit"), ("def", "SyntaxError")):
        (here / "bad_nets.py").write_text(content)
        assert main(["all", "plain.pth", "out", "--network", "bad_nets:Net"]) == 2
        error = capsys.readouterr().err
        assert f"bad_nets cannot be imported ({said}" in error and error.count("\n") == 1
        sys.modules.pop("bad_nets", None)
        (here / "bad_nets.py").unlink()


def test_the_doctor_sees_it_run(here, capsys):
    np.save(here / "x.npy", np.random.default_rng(0).integers(-128, 128, (8, 3, 8, 8)).astype(np.int8))
    assert doctor(["plain.pth", *NAMED, "--inputs", "x.npy"]) in (0, 1)
    assert "as far as parameters tell" not in capsys.readouterr().out
    assert doctor(["plain.pth"]) in (0, 1)
    assert "as far as parameters tell" in (said := capsys.readouterr().out) and "add --network MODULE:CLASS" in said
    np.save(here / "y.npy", np.zeros((8, 5, 8, 8), np.int8))
    assert doctor(["plain.pth", *NAMED, "--inputs", "y.npy"]) == 2
    assert "the network cannot run on x of shape (8, 5, 8, 8)" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "3", "3,8,8", "48x16x16"])
def test_shapes_are_read_as_they_are_written(text):
    if not text:
        with pytest.raises(ValueError, match="--input-shape '' is not C,H,W"):
            network.shape(text)
        return
    assert network.shape(text) == tuple(map(int, re.findall(r"\d+", text)))


def test_the_hint_of_a_checkpoint_names_its_arguments():
    assert network.hint({"network": "nets:Net", "arguments": {"side": 128}}) == "--network nets:Net --arguments '{\"side\": 128}'"
    assert network.hint({"network": "nets:Net", "arguments": {}}) == network.hint({"network": "nets:Net"}) == "--network nets:Net"
    assert network.hint({"arguments": {"side": 128}}) == network.hint({"network": 3}) == "--network MODULE:CLASS"
