"""What is refused, and how: one row a case. Public functions raise the documented error, with the value and the remedy; command
lines print one sentence on standard error and exit with 2. Nothing shows a bare traceback, and no file's code is executed.
"""

import importlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import qatlib
import qatlib.integer
from qatcourse import train_pose_tiny
from qatcourse.keeper import reference
from qatcourse.labs import compare
from qatcourse.people import crowd as figures
from qatcourse.people import lsp
from qatcourse.pose import data, evaluate, metrics
from qatcourse.pose import train as recipe
from qatcourse.pose.model import PoseTiny
from qatcourse.sweep import grid
from qatcourse.sweep.driver import run as sweep
from qatlib import ai8x, export, files
from qatlib import quantizers as q
from qatlib.ai8x.policy import load_policy
from qatlib.doctor.__main__ import examine
from qatlib.integer import engine as integer
from qatlib.integer.compact import CompactModel, pack, unpack

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
X = torch.tensor([0.5, -1.0])
PICTURES = np.zeros((2, 64, 64, 3), np.uint8)
PLACES, SEEN = np.zeros((2, 14, 2)), np.ones((2, 14), bool)
NET = PoseTiny()
NOTEBOOK = reference.ROOT / "tests" / "data" / "sweep_tiny.ipynb"
BAD = {"weight_bits": 3}
BOMB = [3]  # as `&i [*h, *h, ...]` in YAML: nine levels of ten are a thousand million values
for _ in range(9):
    BOMB = [BOMB] * 10


def poses(**changes):
    arrays = {"images": PICTURES, "joints": PLACES.astype(np.float32), "labelled": SEEN, "visible": SEEN}
    return data.PoseSet(**{**arrays, **changes})


def batch(*shape, fill=0.0):
    return [(torch.full(shape, fill),)]


# ---- public functions: (call, error, words of its message) ------------------------------------------------------------

CALLS = [
    # quantizers
    (lambda: q.IntRange(0), ValueError, "bit_width is 0; choose"),
    (lambda: q.IntRange(8.0), ValueError, "bit_width is 8.0; choose"),
    (lambda: q.IntRange(True), ValueError, "bit_width is True; choose"),
    (lambda: q.quantize(X, 0), ValueError, "scale is 0.0; every scale must be finite and above 0"),
    (lambda: q.quantize(X, NAN), ValueError, "scale is nan"),
    (lambda: q.quantize(X, -INF), ValueError, "scale is -inf"),
    (lambda: q.quantize(X, "a"), TypeError, "scale is 'a'; give a number above 0"),
    (lambda: q.quantize([0.5], 1.0), TypeError, "x is a list; give a real torch tensor"),
    (lambda: q.quantize(np.zeros(3), 1.0), TypeError, "x is a float64; give a real torch tensor"),
    (lambda: q.quantize(torch.tensor([NAN]), 1.0), ValueError, "x holds NaN or infinite values; find the layer"),
    (lambda: q.quantize(X, torch.ones(3)), ValueError, r"scale has shape \(3,\), x \(2,\); give one scale"),
    (lambda: q.quantize(X, 1.0, 0.5), ValueError, "zero_point is 0.5; it is an integer code"),
    (lambda: q.quantize(X, 1.0, HUGE), ValueError, "zero_point is 10+; it is an integer code"),
    (lambda: q.fake_quantize(torch.tensor([INF]), 1.0), ValueError, "x holds NaN or infinite"),
    (lambda: q.dequantize("a", 1.0), TypeError, "q is a str"),
    (lambda: q.symmetric_scale(torch.zeros(0)), ValueError, r"x of shape \(0,\) is empty"),
    (lambda: q.symmetric_scale(X, 8, 5), ValueError, "dim is 5, but x has 1"),
    (lambda: q.affine_params(3, 1), ValueError, "x_min 3.0 is above x_max 1.0; swap"),
    (lambda: q.affine_params(-INF, 1), ValueError, "x_min -inf and x_max 1.0 must be finite"),
    # the chip and its layers
    (lambda: ai8x.set_device(84), ValueError, r"device 84 is not supported; use 85"),
    (lambda: ai8x.fold(3)(torch.zeros(3, 64, 64)), ValueError, "64x64 pixels cannot be folded by 3x3; crop or pad"),
    (lambda: ai8x.fold(0), ValueError, "fold_ratio is 0; give a whole number"),
    (lambda: ai8x.Conv2d(3, 4, 5), ValueError, r"kernel_size=\(5, 5\) does not exist on the chip; use 1 or 3"),
    (lambda: ai8x.Conv2d(3, -4, 3), ValueError, "-4 is no count; use whole numbers above 0"),
    (lambda: ai8x.Conv2d(3, 4, 3, activation="GELU"), ValueError, "activation='GELU' is unknown; choose one of"),
    (lambda: ai8x.Linear(5000, 4), ValueError, r"in_features=5000 is not in 1..1024; pool"),
    (lambda: ai8x.Conv2d(3, 4, 3, weight_bits=3, bias_bits=3, quantize_activation=True), ValueError, "weight_bits=3.*use bits"),
    # policies and the way to QAT
    (lambda: load_policy(None), TypeError, "of type NoneType; give a dict or the path"),
    (lambda: load_policy("/no/policy.yaml"), FileNotFoundError, "no QAT policy file /no/policy.yaml; write one"),
    (lambda: load_policy(BAD), ValueError, "is 3; choose 1, 2, 4 or 8"),
    (lambda: load_policy({"weight_bits": HUGE}), ValueError, "choose 1, 2, 4 or 8"),
    (lambda: load_policy({"weight_bits": 8, "start_epoch": INF}), ValueError, "start_epoch of .* is inf; choose"),
    (lambda: load_policy({"weight_bits": 8, "outlier_removal_z_score": HUGE}), ValueError, "z_score of .*; choose"),
    (lambda: ai8x.initiate_qat(NET, BAD), ValueError, "is 3; choose"),
    (lambda: ai8x.pre_qat(NET, [], {"weight_bits": 8}), ValueError, "train_loader gave no batch; give it data"),
    (lambda: ai8x.pre_qat(NET, ["a"], {"weight_bits": 8}), TypeError, "gave a str; it must give tensors of real numbers"),
    (lambda: ai8x.pre_qat(NET, [torch.zeros(2, 12, 32, 32) * 1j], {"weight_bits": 8}), TypeError, "a torch.complex64; it must"),
    (lambda: ai8x.pre_qat(NET, [torch.full((2, 12, 32, 32), 255).byte()], {"weight_bits": 8}), ValueError, "from 255 to 255"),
    (lambda: ai8x.pre_qat(NET, batch(2, 3, 16, 16), {"weight_bits": 8}), ValueError, r"batch of shape \(2, 3, 16, 16\)"),
    (lambda: ai8x.pre_qat(NET, batch(2, 12, 32, 32, fill=NAN), {"weight_bits": 8}), ValueError, "conv1: the output holds NaN"),
    (lambda: load_policy({"weight_bits": BOMB}), ValueError, r"weight_bits of the QAT policy is \[\[.*; choose 1, 2, 4 or 8"),
    (lambda: load_policy({"weight_bits": 8, "overrides": BOMB}), ValueError, r"overrides .* is \[\[.*; it must map layer names"),
    (lambda: load_policy({"weight_bits": 8, "overrides": {"a": BOMB}}), ValueError, r"override 'a' .* is \[\[.*; write it as"),
    (lambda: ai8x.fuse_bn_layers(None), TypeError, "the model is a NoneType; give a torch module"),
    (lambda: ai8x.update_model(None), TypeError, "the model is a NoneType; give a torch module"),
    (lambda: ai8x.start_qat({}, [], {"weight_bits": 8}), TypeError, "the model is a dict; give a torch module"),
    (lambda: ai8x.pre_qat(NET, batch(2, 12, 32, 32, fill=255.0), {"weight_bits": 8}), ValueError, "inputs from 255 to 255, .* use"),
    (lambda: ai8x.pre_qat(NET, batch(2, 12, 32, 32, fill=-1.01), {"weight_bits": 8}), ValueError, "from -1.01 to -1.01, .* use"),
    (lambda: NET.coordinates(torch.zeros(2, 3, 64, 64)), ValueError, r"shape \(2, 3, 64, 64\); expected \(N, 12, 32, 32\): use"),
    (lambda: NET.coordinates(torch.zeros(12, 32, 32)), ValueError, r"x has shape \(12, 32, 32\); expected"),
    (lambda: NET.coordinates(torch.zeros(2, 12, 32, 32, dtype=torch.int8)), TypeError, "of torch.float32, not torch.int8; use"),
    (lambda: NET.coordinates(PICTURES), TypeError, "x must be a tensor of torch.float32, not uint8; use"),
    (lambda: evaluate.naive_rounding(NET, 3), ValueError, "is 3; choose"),
    (lambda: ai8x.fit(None), TypeError, "the model is a NoneType; give a torch network"),
    (lambda: ai8x.fit(NET, device=84), ValueError, "device 84 is not supported; use 85"),
    (lambda: ai8x.fit(NET, (4, 16, 16)), ValueError, r"does not accept inputs of shape \(4, 16, 16\)"),
    (lambda: ai8x.fit(NET, 5), TypeError, r"input_shape is 5; give \(C, H, W\)"),
    (lambda: qatlib.diagnose(None, None), TypeError, "the model is a NoneType; give a torch module"),
    (lambda: qatlib.diagnose(NET, torch.zeros(1, 3, 4, 4)), ValueError, r"cannot run on x of shape \(1, 3, 4, 4\)"),
    # compact model and export
    (lambda: pack(np.array([9]), 4), ValueError, r"codes from 9 to 9 do not fit 4 bits .*; quantize them first"),
    (lambda: pack(np.array([0.5]), 8), TypeError, "codes are float64; give a NumPy array of integers"),
    (lambda: pack(np.array([1]), 3), ValueError, "bits is 3; weights have 1, 2, 4 or 8"),
    (lambda: unpack(np.zeros(1, np.uint8), 4, (9,)), ValueError, r"stored as uint8 \(5,\), not as uint8 \(1,\)"),
    (lambda: CompactModel(None, {}), ValueError, "the graph is incomplete .*; export the model again"),
    (lambda: CompactModel.from_state_dict({"graph": 3, "checksum": 4}), ValueError, "graph is a int, not a NumPy array"),
    (lambda: CompactModel.load("/no/model_8bit.pth"), FileNotFoundError, "no file /no/model_8bit.pth; give the path"),
    (lambda: integer.Integer("/no/model_8bit.pth"), FileNotFoundError, "no file /no/model_8bit.pth"),
    (lambda: qatlib.integer.quantize_model("a"), TypeError, "the model is a str; give a torch network"),
    (lambda: qatlib.integer.quantize_model(NET, 3), ValueError, "bit_width is 3; use 1, 2, 4 or 8"),
    (lambda: qatlib.integer.quantize_model(NET), ValueError, "conv1: its batch normalisation is not fused; start again from"),
    (lambda: export.quantize_checkpoint([1]), TypeError, "the state dict is a list; give a dict"),
    (lambda: export.quantize_checkpoint(NET.state_dict()), ValueError, r"conv1: QAT was never on .*; call initiate_qat"),
    (lambda: export.quantize_checkpoint({"epoch": 3}), ValueError, "epoch of the state dict is a int, not a tensor; give"),
    (lambda: qatlib.integer.compact_from_checkpoint(NET, {}), ValueError, "conv1: the checkpoint has no such layer; give"),
    (lambda: export.export_onnx(None, "a.onnx"), TypeError, "a NoneType cannot be exported; give"),
    (lambda: export.export_c(None, "a"), TypeError, "a NoneType cannot be exported; give"),
    (lambda: export.export_max78000(None, None, "a"), TypeError, "a NoneType cannot be exported; give"),
    (lambda: export.check_folder("/no"), FileNotFoundError, r"no model_8bit.pth in /no; write it with"),
    (lambda: export.check_folder("/no", 0), ValueError, "n is 0; compare at least one"),
    # pictures and metrics
    (lambda: figures.draw(0, 0), ValueError, "n = 0 is outside 1.*; choose"),
    (lambda: figures.draw("a", 0), TypeError, "n must be an integer, not 'a'"),
    (lambda: figures.draw(HUGE, 0), ValueError, "is outside 1.*; choose"),
    (lambda: figures.draw(10**8, 0), ValueError, "100,000,000 pictures need 1,2.* GB, more than .* free memory; choose at most"),
    (lambda: data.load("figures", "test", 10**8), ValueError, "100,000,000 pictures need .*; choose at most"),
    (lambda: figures.cached(1, 0, "all"), ValueError, "split 'all' is unknown; choose"),
    (lambda: data.load("cats", "train"), ValueError, "data 'cats' is unknown; use 'figures'"),
    (lambda: data.load("figures", "test", -1), ValueError, "n = -1 pictures cannot be loaded; give"),
    (lambda: data.load("figures", "test", 1, 1.5), ValueError, "seed = 1.5 must be an integer"),
    (lambda: lsp.read("/no", "train"), FileNotFoundError, "there is no folder /no; give the folder"),
    (lambda: lsp.read("~nosuchuser/x", "train"), FileNotFoundError, "there is no folder ~nosuchuser/x; give the folder"),
    (lambda: data.to_codes(PICTURES.astype(float)), TypeError, "images must be a NumPy array of uint8, not float64"),
    (lambda: data.to_codes(PICTURES[:, :32]), ValueError, r"images has shape \(2, 32, 64, 3\); expected"),
    (lambda: poses(joints=np.full((2, 14, 2), NAN, np.float32)), ValueError, "joints holds NaN or infinity; write 0"),
    (lambda: poses(labelled=SEEN[:1]), ValueError, r"labelled has shape \(1, 14\); expected \(2, 14\)"),
    (lambda: metrics.pck(PLACES, PLACES, SEEN, "a"), ValueError, "alpha = 'a' is not a tolerance; give"),
    (lambda: metrics.pck(PLACES + NAN, PLACES, SEEN), ValueError, "pred holds NaN or infinity at a labelled joint; predict"),
    (lambda: metrics.pckh(PLACES, PLACES, ~SEEN), ValueError, "none of the 2 pictures has a labelled head.*use pixel_error"),
    (lambda: evaluate.predict(NET, PICTURES[:0]), ValueError, "0 images in batches of 250; give"),
    (lambda: evaluate.predict(NET, PICTURES, 0), ValueError, "in batches of 0; give"),
    # training
    (lambda: recipe.configure("huge"), ValueError, "preset 'huge' is unknown; choose"),
    (lambda: recipe.configure(bits=8), ValueError, "setting 'bits' is unknown; the settings are"),
    (lambda: recipe.configure(weight_bits="8"), ValueError, "weight_bits is '8'; choose"),
    (lambda: recipe.configure(weight_bits=True), ValueError, "weight_bits is True; choose"),
    (lambda: recipe.configure(epochs=-1), ValueError, "epochs is -1; it must be a whole number"),
    (lambda: recipe.configure(start_epoch=99), ValueError, r"start_epoch is 99; it must be in 0..epochs"),
    (lambda: recipe.configure(seed=HUGE), ValueError, "seed is 10+; it must be a whole number"),
    (lambda: recipe.configure(learning_rate=NAN), ValueError, "learning_rate is nan; it must be a number above 0"),
    (lambda: recipe.configure(overrides={"conv1": BAD}), ValueError, "override 'conv1' .* is 3; choose"),
    (lambda: recipe.train(recipe.configure(overrides={"conv8": {}})), ValueError, "overrides 'conv8', .* did you mean 'conv"),
    (lambda: recipe.train(recipe.configure(overrides={"add7": {}})), ValueError, "overrides 'add7', "),  # a sum has no weights
    (lambda: recipe.train(recipe.configure("smoke"), resume=True), ValueError, "resume=True needs out"),
    (lambda: recipe.train({"a": 1}), TypeError, "config is a dict; make one with configure"),
    (lambda: recipe.train(recipe.configure("smoke"), train_poses="x"), TypeError, "train_poses is a str; give a .*PoseSet"),
    (lambda: recipe.train(recipe.configure("smoke"), test_poses=[]), TypeError, "test_poses is a list; give a .*PoseSet"),
    (lambda: recipe.model_from({3: X}), ValueError, "has the key 3, which is no text; give"),
    (lambda: recipe.model_from([X]), TypeError, "the state dict is a list; give a dict"),
    (lambda: recipe.model_from({"a": 3}), ValueError, "a of the state dict is a int, not a tensor; give"),
    (lambda: recipe.model_from({"a": X.to_sparse()}), ValueError, "a of the state dict is a torch.sparse.* tensor; store dense"),
    (lambda: recipe.model_from({"a": X.to("meta")}), ValueError, "a of the state dict is a meta tensor; store dense"),
    (lambda: recipe.model_from({"a.weight_bits": X[:1]}), ValueError, r"a.weight_bits of .* is \[0.5\], which no training writes"),
    (lambda: recipe.model_from({"a": X}), ValueError, "the state dict does not belong to PoseTiny; give the network"),
    (lambda: recipe.load_model("/no.pth"), FileNotFoundError, r"no file /no.pth; give the path"),
    (lambda: compare.compare("/no"), FileNotFoundError, r"no file /no/float.pth; give the path"),
    (lambda: reference.chosen(["accuracy"]), ValueError, "no number is called 'accuracy'; the groups are"),
    (lambda: files.write_atomic("/proc/no/file", b""), OSError, "cannot write /proc/no/file: .*choose another folder"),
    # sweeps
    (lambda: grid.parse_grid(["../a=1"]), ValueError, r"grid entry '../a=1' is not NAME=VALUES; write"),
    (lambda: grid.parse_grid(["a=0:" + "9" * 26]), ValueError, "range '0:9+' has no values, or more than 100,000; a:b counts"),
    (lambda: grid.parse_grid(["a=0:" + "9" * 5000]), ValueError, "range .* has no values, or more than 100,000; a:b counts"),
    (lambda: grid.parse_grid(["a=" + "-" * 90_000]), ValueError, "grid value '-.*' is nested too deeply; put a text into quotes"),
    (lambda: grid.parse_grid(["a=" + "-" * 100_000]), ValueError, "'a=-.* has 100,002 characters; at most 100,000 make sense"),
    (lambda: grid.check_grid({"a": [NAN]}), ValueError, "grid entry 'a' holds nan, .*; leave it out"),
    (lambda: sweep(NOTEBOOK, {"seed": [1]}, ""), ValueError, "out is ''; give a folder"),
    (lambda: sweep(NOTEBOOK, {"seed": [1]}, "o", scheduler="garbage"), ValueError, "scheduler is 'garbage'; write it as tcp"),
    (lambda: sweep(NOTEBOOK, {"seed": [1]}, "o", scheduler="tcp://127.0.0.1:abc"), ValueError, "scheduler is .*abc'; write it as"),
    (lambda: sweep(NOTEBOOK, {"seed": [1]}, "o", scheduler="tcp://127.0.0.1:70000"), ValueError, "scheduler is .*; write it as"),
    (lambda: sweep("/no.ipynb", {"a": [1]}, "/tmp/no"), FileNotFoundError, r"no notebook at /no.ipynb; give"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_functions_raise_the_documented_error(number):
    call, error, words = CALLS[number]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=words) as raised:
            call()
    assert raised.type is error or error is OSError
    assert 20 < len(str(raised.value)) < 1000 and "\n" not in str(raised.value)


def test_there_are_enough_cases():
    assert len(CALLS) >= 60 and len(COMMANDS) >= 30


# ---- hostile files ----------------------------------------------------------------------------------------------------


class Call:
    """An object whose pickle asks the reader to call `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.parts = (function, arguments)

    def __reduce__(self):
        return self.parts


def poisoned(path, canary, how: str):
    """A file that would create `canary` if anything in it were executed."""
    call = Call(os.system, f"touch {canary}") if how != "eval" else Call(eval, f"open({str(canary)!r}, 'w').close()")
    content = {"epoch": 1, "config": {}, "state_dict": {"conv1.op.weight": call}, "graph": call, "checksum": call}
    if how == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return path


def export_folder(path):
    folder = path.parent / "exported"
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "model_8bit.pth")
    return export.check_folder(folder, 1)


READERS = {
    "CompactModel.load": CompactModel.load, "load_compact": qatlib.integer.load_compact,
    "Integer": integer.Integer, "examine": examine,
    "read_checkpoint": recipe.read_checkpoint, "load_model": recipe.load_model, "check_folder": export_folder,
    "export_onnx": lambda path: export.export_onnx(path, path.with_suffix(".onnx")),
    "export_c": lambda path: export.export_c(path, path.parent / "c"),
    "export_all": lambda path: export.export_all(path, path.parent / "all"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["zip", "eval", "legacy", "pickle"])
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_executes_a_file(tmp_path, reader, how):
    canary = tmp_path / "canary"
    path = poisoned(tmp_path / "model.pth", canary, how)
    with pytest.raises(ValueError, match="model(_8bit)?.pth"):
        READERS[reader](path)
    assert not canary.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) in (["model.pth"], ["exported", "model.pth"]), "something was half-written"


@pytest.mark.parametrize("how", ["zip", "eval", "legacy", "pickle"])
def test_the_same_files_do_run_when_nothing_guards_them(tmp_path, how):
    path = poisoned(tmp_path / "model.pth", tmp_path / "canary", how)
    if how == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "canary").exists()


def test_a_poisoned_checkpoint_is_not_resumed(tmp_path):
    poisoned(tmp_path / "checkpoint.pth", tmp_path / "canary", "zip")
    with pytest.raises(ValueError, match="checkpoint.pth"):
        recipe.train(recipe.configure("smoke", n_train=8, n_test=8), tmp_path, resume=True, progress=False)
    assert not (tmp_path / "canary").exists()


def test_a_poisoned_picture_cache_is_drawn_again(tmp_path, capsys):
    figures.cached(2, 0, "test", tmp_path, 1, False)
    (stored,) = tmp_path.glob("*.npz")
    good = stored.read_bytes()
    objects = np.array([Call(os.system, f"touch {tmp_path / 'canary'}")], dtype=object)
    with open(stored, "wb") as file:
        np.savez(file, images=objects, joints=objects, labelled=objects, visible=objects)
    people = figures.cached(2, 0, "test", tmp_path, 1, False)
    assert people.images.shape == (2, 64, 64, 3) and stored.read_bytes() == good
    assert "is damaged" in capsys.readouterr().out and not (tmp_path / "canary").exists()


# ---- names that try to leave their folder -----------------------------------------------------------------------------

TRICKS = ["../../etc/passwd", "/etc/passwd", "a/b", "..", ".", "~", "$(touch x)", "a\0b", "a\nb", "c" * 5000, "\u202eevil", "-rf"]


@pytest.mark.parametrize("value", TRICKS)
def test_parameters_of_a_sweep_never_become_paths(value, tmp_path):
    run = grid.name_run({"data": value}, "")
    assert len(run.slug) < 120 and set(run.slug) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789=.,_-")
    assert (tmp_path / f"{run.slug}.json").resolve().parent == tmp_path.resolve() and not run.slug.startswith((".", "-"))
    assert run.slug != grid.name_run({"data": value + "x"}, "").slug


@pytest.mark.parametrize("value", ["lsp:/dev/null", "lsp:../../etc", "figures/../x", "lsp:\0", "lsp:" + "a" * 5000])
def test_data_specs_are_no_way_into_other_files(value):
    with pytest.raises((ValueError, OSError)) as raised:
        data.load(value, "train", progress=False)
    assert len(str(raised.value)) > 20


# ---- command lines ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Paths that the commands below name in braces."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "text.pth").write_text("not a checkpoint")
    (folder / "empty.pth").write_bytes(b"")
    torch.save({"epoch": 1, "config": {}, "state_dict": {"a": torch.zeros(1)}}, folder / "other.pth")
    torch.save([1, 2], folder / "list.pth")
    whole = (folder / "other.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    poisoned(folder / "hostile.pth", folder / "canary", "zip")
    resumed = folder / "resumed"
    resumed.mkdir()
    shutil.copy(folder / "other.pth", resumed / "checkpoint.pth")
    (folder / "text.ipynb").write_text("not a notebook")
    odd_checkpoints(folder)
    photographs(folder / "bomb", {"im00001.jpg": enormous()})
    (photographs(folder / "dangling", {}) / "images" / "im00003.jpg").symlink_to("nothing")
    locked = folder / "locked"
    (locked / ".sweep.lock").mkdir(parents=True)
    busy = folder / "busy"
    busy.mkdir()
    (busy / "mine.txt").write_text("keep")
    return SimpleNamespace(path=folder, canary=folder / "canary")


def odd_checkpoints(folder):
    """Files that torch writes and no training does."""
    weight = torch.zeros(2, 2, 1, 1)
    tiny = {"epoch": 1, "config": {}, "state_dict": NET.state_dict()}
    torch.save({"a.op.weight": weight, 3: weight}, folder / "key.pth")
    torch.save({"a.op.weight": weight.to_sparse()}, folder / "sparse.pth")
    torch.save({"a.op.weight": weight.to("meta")}, folder / "meta.pth")
    torch.save({"a.op.weight": weight, "a.weight_bits": torch.tensor(10**9)}, folder / "bits.pth")
    torch.save({"a.op.weight": weight, "a.weight_bits": torch.zeros(2)}, folder / "two.pth")
    torch.save({"a.op.weight": weight, "a.op.bias": torch.zeros(0)}, folder / "bias.pth")
    torch.save(tiny | {"state_dict": NET.state_dict() | {"conv4.final_scale": torch.tensor([1e9])}}, folder / "scale.pth")


def enormous() -> bytes:
    """A picture whose header promises 60,000 x 60,000 pixels."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    raw = bytearray(picture.getvalue())
    size = raw.index(b"\xff\xc0") + 5  # start of frame: marker, length, precision, then height and width
    raw[size : size + 4] = (60_000).to_bytes(2, "big") * 2
    return bytes(raw)


def photographs(folder, pictures: dict):
    (folder / "images").mkdir(parents=True)
    for name, content in pictures.items():
        (folder / "images" / name).write_bytes(content)
    savemat(folder / "joints.mat", {"joints": np.ones((3, 14, 20))})
    return folder


COMMANDS = [
    ("train_pose_tiny", "--weight-bits 3", "weight_bits is 3; choose"),
    ("train_pose_tiny", "--weight-bits eight", "invalid int value: 'eight'"),
    ("train_pose_tiny", "--epochs -1", "epochs is -1; it must"),
    ("train_pose_tiny", "--epochs 0", "epochs is 0; it must"),
    ("train_pose_tiny", "--start-epoch 99", "start_epoch is 99; it must"),
    ("train_pose_tiny", "--seed -1", "seed is -1; it must"),
    ("train_pose_tiny", "--n-train 0", "n_train is 0; it must"),
    ("train_pose_tiny", "--preset huge", "invalid choice: 'huge'"),
    ("train_pose_tiny", "--data cats --out {p}/t1", "data 'cats' is unknown; use"),
    ("train_pose_tiny", "--data lsp:/no --out {p}/t2", "there is no folder /no; give"),
    ("train_pose_tiny", "--out {p}/text.pth/below", "cannot write"),
    ("train_pose_tiny", "--preset smoke --resume --out {p}/resumed", "checkpoint.pth"),
    ("train_pose_tiny", "--n-train 100000000 --out {p}/t3", "pictures need .* GB, more than .*; choose at most"),
    ("train_pose_tiny", "--n-test 100000000 --out {p}/t3", "pictures need .* GB, more than .*; choose at most"),
    ("train_pose_tiny", "--data lsp:~nosuchuser/x --out {p}/t4", "there is no folder ~nosuchuser/x; give"),
    ("train_pose_tiny", "--data lsp:{p}/bomb --out {p}/t4", "im00001.jpg is not a readable picture .*; copy it again"),
    ("train_pose_tiny", "--data lsp:{p}/dangling --out {p}/t4", "cannot read .*im00003.jpg: No such file .*; copy it again"),
    ("train_pose_tiny", "--out=", "argument --out: is empty; give a folder"),
    ("run", "--out=", "argument --out: is empty; give a folder"),
    ("run", "--preset huge --out {p}/r1", "preset 'huge' is unknown; choose"),
    ("run", "--weight-bits 5 --out {p}/r1", "weight_bits is 5; choose"),
    ("run", "--data lsp:/no --out {p}/r1", "there is no folder /no; give"),
    ("run", "--data figures/../x --out {p}/r1", "is unknown; use"),
    ("run", "--out {p}/text.pth/below", "cannot write"),
    ("reference", "accuracy", "no number is called 'accuracy'; the groups are"),
    ("reference", "--chekc", "unrecognized arguments: --chekc"),
    ("sweep", "{p}/no.ipynb --grid a=1 --out {p}/s", "no notebook at"),
    ("sweep", "{p}/text.ipynb --grid a=1 --out {p}/s", "is not a notebook; give"),
    ("sweep", "{nb} --grid ../seed=1 --out {p}/s", "is not NAME=VALUES; write"),
    ("sweep", "{nb} --grid sede=1 --out {p}/s", "has no parameter 'sede'; it has"),
    ("sweep", "{nb} --grid seed=nan_ seed=2 --out {p}/s", "'seed' is given twice; put"),
    ("sweep", "{nb} --grid seed=1 --workers 0 --out {p}/s", "workers is 0; give"),
    ("sweep", "{nb} --grid seed=1 --out {p}/text.pth/s", "cannot write"),
    ("sweep", "{nb} --grid seed=1 --out=", "argument --out: is empty; give a folder"),
    ("sweep", "{nb} --grid seed=1 --out {p}/locked", ".sweep.lock: Is a directory; remove it"),
    ("sweep", "{long} --grid seed=1 --out {p}/s", "nnn.ipynb: File name too long"),
    ("sweep", "{nb} --grid seed=1 --scheduler garbage --out {p}/s", "scheduler is 'garbage'; write it as"),
    ("export", "all {p}/no.pth {p}/e", "no file"),
    ("export", "all {p}/text.pth {p}/e", "is no checkpoint that can be read safely|is truncated, damaged or no checkpoint"),
    ("export", "all {p}/cut.pth {p}/e", "is no checkpoint that can be read safely|is truncated, damaged or no checkpoint"),
    ("export", "all {p}/empty.pth {p}/e", "is no checkpoint that can be read safely|is truncated, damaged or no checkpoint"),
    ("export", "all {p}/other.pth {p}/e", "holds no ai8x layer"),
    ("export", "all {p}/hostile.pth {p}/e", "is no checkpoint that can be read safely|is truncated, damaged or no checkpoint"),
    ("export", "all {float} {p}/e", "is a checkpoint; say of which network: --network"),
    ("export", "all {float} {p}/e --network nets", "'nets' is not of the form MODULE:CLASS; give"),
    ("export", "all {float} {p}/e --network no_such_module:Net", "no_such_module cannot be imported .ModuleNotFoundError.*; start"),
    ("export", "all {float} {p}/e --network qatcourse.pose.model:Poser", "has no class Poser; it has HeatMaps, PoseTiny"),
    ("export", "all {float} {p}/e --network qatcourse.pose.model:CELL", "has no class CELL; it has HeatMaps, PoseTiny"),
    ("export", "all {float} {p}/e --network builtins:dict", "builtins:dict gives a dict, no torch module; name"),
    ("export", "all {float} {p}/e --network torch.nn:Linear", "cannot be built with .*TypeError.*--arguments"),
    ("export", "all {float} {p}/e --network torch.nn:Linear --arguments [2,3]", "does not belong to Linear; give the network"),
    ("export", "all {float} {p}/e --network torch.nn:Linear --arguments [2,", "is no JSON .*; give"),
    ("export", "all {float} {p}/e --network torch.nn:Linear --arguments 3", "is neither a list nor an object; give"),
    ("export", "all {float} {p}/e --arguments [2]", "--arguments belong to --network; give both"),
    ("export", "all {float} {p}/e --network torch.nn:Identity --input-shape 3,x", "3,x' is not C,H,W in whole numbers"),
    ("export", "all {float} {p}/e --network torch.nn:Identity --device 84", "invalid choice: 84"),
    ("export", "all {float} {p}/e --network qatcourse.pose.model:PoseTiny", "batch normalisation is not fused; start again"),
    ("export", "all {float} {p}/busy --network qatcourse.pose.model:PoseTiny", "is not fused|exists and was not written by qatlib"),
    ("export", "check {p}/busy", "no model_8bit.pth in"),
    ("export", "check {p}/busy -n 0", "n is 0; compare"),
    ("export", "check {p}/busy -n many", "invalid int value: 'many'"),
    ("export", "al", "invalid choice: 'al'"),
    ("doctor", "{p}/no.pth", "no file"),
    ("doctor", "{p}/text.pth", "text.pth"),
    ("doctor", "{p}/empty.pth", "empty.pth"),
    ("doctor", "{p}/cut.pth", "cut.pth"),
    ("doctor", "{p}/list.pth", "holds a list; give"),
    ("doctor", "{p}/other.pth", "holds no ai8x layer"),
    ("doctor", "{p}/hostile.pth", "hostile.pth"),
    ("doctor", "{p}/key.pth", "key.pth has the key 3, which is no text; give"),
    ("doctor", "{p}/sparse.pth", "a.op.weight of .*sparse.pth is a torch.sparse.* tensor; store dense"),
    ("doctor", "{p}/meta.pth", "a.op.weight of .*meta.pth is a meta tensor; store dense"),
    ("doctor", "{p}/bits.pth", r"a.weight_bits of .*bits.pth is 1000000000, which no training writes; train"),
    ("doctor", "{p}/two.pth", r"a.weight_bits of .*two.pth is \[0.0, 0.0\], which no training writes; train"),
    ("doctor", "{p}/bias.pth", r"a.op.bias of .*bias.pth is \[\], which no training writes; train"),
    ("doctor", "{p}/scale.pth", r"conv4.final_scale of .*scale.pth is \[1000000000.0\], which no training writes; train"),
    ("doctor", "{float} --network torch.nn:Identity", "does not belong to Identity; give the network"),
    ("doctor", "{float} --network qatcourse.pose.model:PoseTiny --inputs {p}/text.pth", "text.pth is no array .*; write it"),
    ("doctor", "{float} --network qatcourse.pose.model:PoseTiny --inputs {p}/no.npy", "no.npy: No such file"),
    ("doctor", "{long}", "nnn.ipynb: File name too long"),
    ("pose.data_card", "--count 0", "n = 0 is outside 1"),
    ("pose.data_card", "--count 2 --seed -1", "seed = -1 is outside"),
    ("pose.data_card", "--count lots", "invalid int value: 'lots'"),
    ("pose.data_card", "--contact-sheet {p}/text.pth/a.png", "cannot write"),
    ("readme", "--chart", "unrecognized arguments: --chart"),
]
STARTED = {  # python -m ...
    "train_pose_tiny": "qatcourse.train_pose_tiny", "run": "qatcourse.run", "reference": "qatcourse.keeper.reference",
    "readme": "qatcourse.keeper.readme", "sweep": "qatcourse.sweep", "export": "qatlib.export", "doctor": "qatlib.doctor",
    "pose.data_card": "qatcourse.people.data_card", "bench": "bench",
}  # fmt: skip
MAINS = {name: f"{STARTED[name]}.__main__" for name in ("sweep", "export", "doctor")}


def arguments_of(text: str, place) -> list[str]:
    words = {"p": place.path, "nb": NOTEBOOK, "float": reference.PRETRAINED, "long": "n" * 300 + ".ipynb"}
    return [part.format(**words) for part in text.split()]


def check_message(error: str, words: str, place) -> None:
    assert re.search(words, error), error
    sentence = [line for line in error.splitlines() if line and not line.startswith(("usage:", " ")) and "%|" not in line]
    assert len(sentence) == 1 and "Traceback" not in error, error
    assert not place.canary.exists()


@pytest.mark.parametrize(("command", "arguments", "words"), COMMANDS, ids=[f"{c} {a}" for c, a, _ in COMMANDS])
def test_command_lines_answer_in_one_sentence(command, arguments, words, place, capsys, monkeypatch):
    monkeypatch.delenv("QATLIB_PRESET", raising=False)
    main = importlib.import_module(MAINS.get(command) or STARTED[command]).main
    try:
        code = main(arguments_of(arguments, place))
    except SystemExit as ended:  # argparse
        code = ended.code
    captured = capsys.readouterr()
    assert code == 2
    check_message(captured.err, words, place)
    assert (place.path / "busy" / "mine.txt").read_text() == "keep" and not (place.path / "e").exists()


SHELL = [row for row in COMMANDS if row[1] in ("--weight-bits 3", "--count 0", "{p}/hostile.pth", "accuracy", "al")]


@pytest.mark.parametrize(("command", "arguments", "words"), SHELL)
def test_the_same_from_a_shell(command, arguments, words, place):
    line = [sys.executable, "-m", STARTED[command], *arguments_of(arguments, place)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not done.stdout.strip()
    check_message(done.stderr, words, place)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', "\0", "{}"])
def test_readme_with_a_damaged_table_of_numbers_stays_as_it_was(content, tmp_path, monkeypatch, capsys):
    from qatcourse.keeper import readme

    (tmp_path / "reference.json").write_text(content)
    (tmp_path / "README.md").write_text("<!-- chip -->\nold\n<!-- end chip -->\n")
    monkeypatch.setattr(readme, "load", lambda: reference.load(tmp_path / "reference.json"))
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    assert readme.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("readme: ") and error.count("\n") == 1 and "measure it first" in error
    assert "old" in (tmp_path / "README.md").read_text()
    with pytest.raises(KeyError, match="measure it with"):
        monkeypatch.setattr(reference, "load", dict)
        reference.value("nothing")


def test_a_damaged_comparison_is_named(tmp_path):
    for content in ("{", json.dumps([{"version": "QAT"}]), "[1]"):
        (tmp_path / "comparison.json").write_text(content)
        with pytest.raises(ValueError, match="comparison.json is damaged.*; compare again"):
            compare.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no comparison.json in .*; compare"):
        compare.read(tmp_path / "nowhere")


# ---- the environment, the disk, and an impatient user -----------------------------------------------------------------

TEAMS = [
    ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x', not a whole number from 1"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not a whole number from 1"),
    ({"WORLD_SIZE": "2"}, "RANK is not set, though WORLD_SIZE is 2"),
    ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2', not a whole number from 0 to 1"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT is not set"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "99999"}, "MASTER_PORT is '99999'"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
]


@pytest.mark.parametrize(("variables", "words"), TEAMS)
def test_half_of_what_torchrun_sets_is_refused(variables, words, monkeypatch, capsys, tmp_path):
    for name in ("WORLD_SIZE", "RANK", "MASTER_PORT", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert train_pose_tiny.main(["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train_pose_tiny: ") and words in error and "; start several processes with torchrun" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_too_many_test_pictures_are_refused_before_training_pictures_are_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "load", lambda *_, **__: pytest.fail("pictures are loaded"))
    with pytest.raises(ValueError, match="100,000,016 pictures need .*; choose at most"):
        recipe.train(recipe.configure("smoke", n_train=16, n_test=10**8), tmp_path)
    assert not list(tmp_path.iterdir())


def test_run_on_a_full_disk_names_the_file(monkeypatch, tmp_path, capsys):
    import papermill

    from qatcourse import run

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.delenv("QATLIB_PRESET", raising=False)
    monkeypatch.chdir(reference.ROOT)
    monkeypatch.setattr(papermill, "execute_notebook", full)
    assert run.main(["--preset", "smoke", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"run: cannot write {tmp_path}/05_train_pose_tiny.ipynb: No space left on device; free some space or")


def test_photographs_that_cannot_be_opened_are_named(monkeypatch, tmp_path, capsys):
    folder = photographs(tmp_path / "set", {"im00001.jpg": enormous()})

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(lsp, "open", refuse, raising=False)
        assert train_pose_tiny.main(["--data", f"lsp:{folder}", "--out", str(tmp_path / "out")]) == 2
    assert f"cannot read {folder}/joints.mat: Permission denied; copy it again" in capsys.readouterr().err
    monkeypatch.setattr(type(folder), "iterdir", refuse)
    assert train_pose_tiny.main(["--data", f"lsp:{folder}", "--out", str(tmp_path / "out")]) == 2
    assert f"cannot read {folder}/images: Permission denied; copy it again" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["exactly one", "vendor_exact", "simulate"])
def test_inputs_of_the_full_range_are_taken_and_the_vendors_ways_do_not_look(how):
    value = 1.0 if how == "exactly one" else 100.0
    net = PoseTiny()
    ai8x.set_device(85, how == "simulate", False, verbose=False)
    ai8x.fuse_bn_layers(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ai8x.pre_qat(net, batch(2, 12, 32, 32, fill=value) + batch(2, 12, 32, 32, fill=-value), {"weight_bits": 8},
                     vendor_exact=how == "vendor_exact")  # fmt: skip


INTERRUPTED = [
    ("run", "run", "--preset quick"), ("reference", "chosen", "exact"), ("readme", "filled", ""), ("doctor", "load", "a.pth"),
    ("pose.data_card", "draw", "--count 5"), ("train_pose_tiny", "train", ""),
    ("export", "parser", "all a b"), ("bench", "machine", ""),
]  # fmt: skip


@pytest.mark.parametrize(("command", "function", "arguments"), INTERRUPTED)
def test_an_interrupt_is_one_sentence_and_130(command, function, arguments, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    module = importlib.import_module(MAINS.get(command) or STARTED[command])
    monkeypatch.setattr(module, function, interrupt)
    assert module.main(arguments.split()) == 130
    captured = capsys.readouterr()
    assert re.fullmatch(r"\n[\w.]+: interrupted; [^\n]+\n", captured.err) and not captured.out


def test_ctrl_c_in_a_shell_shows_no_traceback():
    line = [sys.executable, "-m", "qatcourse.people.data_card", "--count", "200000"]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # tests in a background job inherit deaf ears
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True, **heard)
    begun = ""
    while not re.search(r"[1-9]\d*/200000", begun) and process.poll() is None:
        begun += process.stderr.read(1)
    os.killpg(process.pid, signal.SIGINT)  # the terminal sends it to the workers too
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and error.endswith("figures: interrupted; start the same command again\n")
    assert "Traceback" not in error
