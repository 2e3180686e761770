"""Random input of every kind: quantizers, policies and files either work as documented or say what is wrong, and nothing else.

Files are mutated copies of valid ones: a reader returns the equal content or raises ValueError or FileNotFoundError.
"""

import contextlib
import dataclasses
import io
import pickle
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from compact_nets import convolution, graph, linear, random_tensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qatcourse import train_pose_tiny
from qatcourse.pose import train as recipe
from qatcourse.pose.train import read_checkpoint
from qatlib import ai8x
from qatlib.ai8x.policy import QATPolicy, load_policy
from qatlib.doctor.__main__ import main as examine
from qatlib.export.vendor import quantize_checkpoint
from qatlib.files import load as read_for_doctor
from qatlib.integer.compact import CompactModel
from qatlib.quantizers import IntRange, affine_params, dequantize, fake_quantize, quantize, symmetric_scale


def fuzz(examples: int):
    """No deadline (the machine may be busy), and fixtures shared by all examples, which only overwrite one file."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.binary(max_size=5),
    st.lists(st.floats(), max_size=3),
    st.sampled_from([10**400, -(10**400), 1e-320, float("inf"), -0.0, 2**31, 1j, np.float32(0.5), np.zeros(3), np.array("a"), ()]),
)  # fmt: skip
TENSORS = st.one_of(
    st.lists(st.floats(width=32), max_size=6).map(torch.tensor),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6).map(torch.tensor),
    st.sampled_from([
        torch.zeros(0), torch.zeros(2, 3), torch.zeros(2, 3, 1, 1), torch.tensor(1e38), torch.tensor([1j]), torch.tensor(True),
    ]),
)  # fmt: skip


@contextlib.contextmanager
def documented(*kinds):
    """Only these errors, in one sentence that is not empty."""
    try:
        yield
    except kinds as problem:
        assert str(problem).strip() and "\n" not in str(problem).strip(), problem


# ---- quantizers -------------------------------------------------------------------------------------------------------


@fuzz(300)
@given(
    x=st.one_of(TENSORS, ANYTHING), scale=st.one_of(TENSORS, ANYTHING, st.floats(1e-6, 1e6)),
    zero_point=st.one_of(st.integers(-300, 300), ANYTHING), bits=st.one_of(st.integers(1, 32), ANYTHING), signed=st.booleans(),
)  # fmt: skip
def test_quantizers_give_codes_in_range_or_say_why(x, scale, zero_point, bits, signed):
    with documented(ValueError, TypeError):
        q = quantize(x, scale, zero_point, bits, signed)
        codes = IntRange(bits, signed)
        assert q.shape == x.shape and q.dtype == (torch.int64 if bits == 32 else torch.int32)
        assert not q.numel() or codes.q_min <= q.min() <= q.max() <= codes.q_max
        assert dequantize(q, scale, zero_point).shape == x.shape
        assert fake_quantize(x, scale, zero_point, bits, signed).shape == x.shape


@fuzz(300)
@given(
    x=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8).map(torch.tensor),
    scale=st.integers(-20, 20).map(lambda n: 1.25 * 2.0**n), zero_point=st.integers(-200, 200),
    bits=st.integers(1, 16), signed=st.booleans(),
)  # fmt: skip
def test_valid_input_is_never_refused_and_the_error_stays_within_half_a_step(x, scale, zero_point, bits, signed):
    codes = IntRange(bits, signed)
    q = quantize(x, scale, zero_point, bits, signed)
    inside = (q > codes.q_min) & (q < codes.q_max)
    error = (dequantize(q, scale, zero_point).double() - x.double()).abs()
    # x/scale, +1/2, + zero_point and the product back round in float32: each loses up to 2^-24 of numbers below 2^17
    allowed = scale * (0.5 + 4 * 2.0**-24 * (2 + x.double().abs() / scale + abs(zero_point)))
    assert bool((error[inside] <= allowed[inside]).all())
    assert torch.equal(fake_quantize(x, scale, zero_point, bits, signed), dequantize(q, scale, zero_point))


@fuzz(200)
@given(
    x=st.one_of(TENSORS, ANYTHING), low=ANYTHING, high=ANYTHING,
    bits=st.one_of(st.integers(1, 16), ANYTHING), dim=st.integers(-3, 3),
)  # fmt: skip
def test_scales_are_usable_or_refused(x, low, high, bits, dim):
    for d in (None, dim):
        with documented(ValueError, TypeError):
            scale = symmetric_scale(x, bits, d)
            assert bool((scale >= 0).all()) and bool(scale.isfinite().all())
    with documented(ValueError, TypeError):
        scale, zero_point = affine_params(low, high, bits)
        codes = IntRange(bits)
        assert bool((scale > 0).all()) and codes.q_min <= zero_point.min() <= zero_point.max() <= codes.q_max


# ---- policies ---------------------------------------------------------------------------------------------------------

KNOWN = ("weight_bits", "shift_quantile", "outlier_removal_z_score", "start_epoch", "overrides")
KEYS = st.sampled_from([*KNOWN, "weight_bit", "x", 3, None])
VALUES = st.one_of(ANYTHING, st.sampled_from([1, 2, 4, 8, 0.5, 1.0]))
OVERRIDES = st.dictionaries(st.text(max_size=3), st.one_of(VALUES, st.dictionaries(KEYS, VALUES)))
POLICIES = st.dictionaries(KEYS, st.one_of(VALUES, OVERRIDES))


def check_policy(policy: QATPolicy) -> None:
    for bits, quantile in [policy.for_layer(""), *policy.overrides.values()]:
        assert type(bits) is int and bits in (1, 2, 4, 8) and 0 < quantile <= 1
    assert 0 < policy.outlier_removal_z_score < float("inf")
    assert policy.start_epoch is None or type(policy.start_epoch) is int and policy.start_epoch >= 0


@fuzz(400)
@given(st.one_of(POLICIES, POLICIES.map(lambda p: {"weight_bits": 8, **p})))
def test_policies_are_sound_or_refused(values):
    with warnings.catch_warnings(), documented(ValueError):
        warnings.simplefilter("ignore")
        check_policy(load_policy(values))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


YAML = """start_epoch: 10
weight_bits: 8
shift_quantile: 0.995
overrides:
  conv1: {weight_bits: 4, shift_quantile: 0.98}
"""
MUTATIONS = st.lists(st.tuples(st.integers(0, len(YAML)), st.integers(0, 4), st.text(max_size=4)), min_size=1, max_size=4)


@fuzz(300)
@given(st.one_of(MUTATIONS, st.binary(max_size=40), st.text(max_size=60)))
@example("weight_bits: &a [*a]\nstart_epoch: 1")
@example("!!python/object/apply:os.system ['true']")
@example("weight_bits: 2026-02-30\nstart_epoch: 1")
@example("weight_bits: 8\nstart_epoch: 1\noverrides: {? [a]: {weight_bits: 4}}")
@example("[" * 3000)
@example("weight_bits: 8\nstart_epoch: 0x" + "f" * 400)
@example("weight_bits: " + "9" * 5000 + "\nstart_epoch: 1")
def test_yaml_files_are_sound_or_refused(scratch, change):
    text = YAML
    if isinstance(change, list):
        for place, removed, added in change:
            text = text[:place] + added + text[place + removed :]
    elif isinstance(change, str):
        text = change
    content = change if isinstance(change, bytes) else text.encode("utf-8", "surrogatepass")
    (scratch / "policy.yaml").write_bytes(content)
    with warnings.catch_warnings(), documented(ValueError):
        warnings.simplefilter("ignore")
        check_policy(load_policy(scratch / "policy.yaml"))


def test_a_valid_policy_file_is_read(scratch):
    (scratch / "good.yaml").write_text(YAML)
    assert load_policy(scratch / "good.yaml") == load_policy(yaml.safe_load(YAML))


STATE = ("op.weight", "op.bias", "weight_bits", "activation_threshold", "shift_quantile", "other")


# ---- checkpoints ------------------------------------------------------------------------------------------------------


def network() -> CompactModel:
    ops = [
        convolution("body", "input", 3, 4, padding=1, activation="relu", weight_bits=4),
        {"name": "flat", "kind": "flatten", "inputs": ["body"]},
        linear("head", "flat", 4 * 16, 3, wide=True),
    ]
    return CompactModel(graph((3, 4, 4), ops), random_tensors(ops, np.random.default_rng(0)))


def compact_content(path) -> dict:
    return CompactModel.load(path).to_state_dict()


def checkpoint_content(path) -> dict:
    return read_checkpoint(path)


@pytest.fixture(scope="module")
def files(scratch) -> dict:
    """Reader name -> (reader, valid bytes, their content)."""
    state = {key: torch.from_numpy(np.array(value)) for key, value in network().to_state_dict().items()}
    torch.save(state, scratch / "compact.pth")
    generator = torch.Generator().manual_seed(0)
    weights = {f"conv{i}.op.weight": torch.randn(4, 3, 3, 3, generator=generator) for i in range(3)}
    content = {"epoch": 2, "config": {"seed": 0}, "state_dict": weights, "history": [{"loss": 1.5}]}
    torch.save(content, scratch / "checkpoint.pth")
    found = {}
    for name, reader in {"compact": compact_content, "checkpoint": checkpoint_content, "doctor": read_for_doctor}.items():
        path = scratch / ("compact.pth" if name == "compact" else "checkpoint.pth")
        found[name] = SimpleNamespace(read=reader, raw=path.read_bytes(), content=reader(path))
    return found


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return type(a) is type(b) and a == b


@fuzz(350)
@given(st.data())
@pytest.mark.parametrize("name", ["compact", "checkpoint", "doctor"])
def test_a_changed_file_is_refused_or_read_as_it_was(scratch, files, name, data):
    """Bytes replaced, removed, inserted or doubled anywhere: zip headers, pickle, tensors, directory."""
    good, raw = files[name], bytearray(files[name].raw)
    for _ in range(data.draw(st.integers(1, 3), label="changes")):
        place = data.draw(st.integers(0, max(len(raw) - 1, 0)), label="place")
        length = data.draw(st.integers(1, 8), label="length")
        how = data.draw(st.sampled_from(["replace", "flip", "remove", "insert", "double", "cut"]), label="how")
        if how == "flip" and raw:
            raw[place] ^= 1 << length - 1
        elif how == "remove":
            del raw[place : place + length]
        elif how == "insert":
            raw[place:place] = data.draw(st.binary(min_size=1, max_size=8), label="bytes")
        elif how == "double":
            raw[place:place] = raw[place : place + 100 * length]
        elif how == "cut":
            del raw[place:]
        else:
            raw[place : place + length] = data.draw(st.binary(min_size=length, max_size=length), label="bytes")
    path = scratch / "changed.pth"
    path.write_bytes(raw)
    with documented(ValueError, FileNotFoundError):
        assert equal(good.read(path), good.content)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@fuzz(300)
@given(st.data())
@pytest.mark.parametrize("name", ["compact", "checkpoint", "doctor"])
def test_a_forged_pickle_with_right_checksums_is_refused_or_harmless(scratch, files, name, data):
    """The archive is written anew around a mutated pickle, so that only the readers' own checks are left."""
    path, target = scratch / "valid.pth", scratch / "forged.pth"
    path.write_bytes(files[name].raw)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as forged:
        for entry in archive.namelist():
            content = bytearray(archive.read(entry))
            if entry.endswith("data.pkl"):
                for _ in range(data.draw(st.integers(1, 4))):
                    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            forged.writestr(entry, bytes(content))
    with documented(ValueError, FileNotFoundError):
        found = files[name].read(target)
        assert isinstance(found, dict)
        if name == "compact":  # its own checksum covers graph, names, types, shapes and bytes
            assert equal(found, files[name].content)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@fuzz(150)
@given(st.binary(max_size=300), st.booleans())
@pytest.mark.parametrize("name", ["compact", "checkpoint", "doctor"])
def test_bytes_of_any_kind_are_refused(scratch, files, name, content, pickled):
    path = scratch / "any.pth"
    path.write_bytes(pickle.dumps(content) if pickled else content)
    with pytest.raises(ValueError, match="any.pth"):
        files[name].read(path)


# ---- command lines on changed checkpoints -----------------------------------------------------------------------------

SETTINGS = ["--preset", "smoke", "--epochs", "1", "--start-epoch", "0", "--n-train", "8", "--n-test", "8"]
ODD = [
    None, True, 3, -1, 10**6, 10**400, 1.5, float("nan"), float("inf"), "", "x", [], [1], ["x"], {}, {1: 2}, {"epoch": 0}, (),
    torch.zeros(2), torch.zeros(0), torch.tensor(float("nan")), torch.tensor(10**9), torch.tensor(-3.5), torch.tensor([1j]),
    torch.zeros(2, dtype=torch.bool), torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(32, 12, 3, 3) - 1,
]  # fmt: skip


def finished_training() -> dict:
    """What a training of one epoch, with QAT from its start, leaves, without the training."""
    config = recipe.configure("smoke", epochs=1, start_epoch=0, n_train=8, n_test=8)
    model = recipe.PoseTiny()
    ai8x.fuse_bn_layers(model)
    ai8x.initiate_qat(model, config.policy())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    model.logits(torch.zeros(1, 12, 32, 32)).sum().backward()
    optimizer.step()
    row = {"epoch": 0, "loss": 1.0, "lr": 1e-3, "pck": 0.5, "pckh": 0.5, "pixel_error": 9.0}
    content = {"arch": "PoseTiny", "epoch": 1, "config": dataclasses.asdict(config), "history": [row]}
    return content | {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}


def small_network() -> dict:
    """A vendor's checkpoint of another network in QAT."""
    layer = ai8x.FusedConv2dReLU(3, 4, 3, padding=1)
    ai8x.initiate_qat(layer, {"weight_bits": 4})
    return {"epoch": 3, "state_dict": {f"conv.{key}": value for key, value in layer.state_dict().items()}}


def changed(data, content):
    """`content` with one entry, at any depth, replaced, removed, renamed or doubled."""
    if isinstance(content, (dict, list)) and content and data.draw(st.integers(0, 3), label="descend"):
        key = data.draw(st.sampled_from(list(content) if isinstance(content, dict) else range(len(content))), label="key")
        copy = content.copy()
        how = data.draw(st.sampled_from(["inside", "inside", "inside", "inside", "remove", "rename"]), label="how")
        if how == "inside":
            copy[key] = changed(data, copy[key])
        elif isinstance(copy, list):
            copy = copy * 2 if how == "rename" else copy[:key] + copy[key + 1 :]
        else:
            value = copy.pop(key)
            copy |= {data.draw(st.sampled_from([3, "x", "", f"{key}.x"]), label="name"): value} if how == "rename" else {}
        return copy
    return data.draw(st.sampled_from(ODD), label="value")


@pytest.fixture(scope="module")
def trained_files(scratch):
    """(content of a checkpoint to resume, what the doctor may be given), and the folder's own cache of pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QATLIB_CACHE", str(scratch / "cache"))
        torch.manual_seed(0)
        training = finished_training()
        yield training, [training, training["state_dict"], small_network()]


def answer(main, arguments: list[str], name: str) -> int:
    """Run a command line: it ends, and where it refuses, with one sentence."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main(arguments)
    sentences = [line for line in said.getvalue().splitlines() if line and "%|" not in line]
    if code == 2:
        assert len(sentences) == 1 and sentences[0].startswith(f"{name}: ") and 20 < len(sentences[0]) < 1000, sentences
    return code


def test_the_checkpoint_that_is_changed_below_is_a_good_one(scratch, trained_files):
    folder = scratch / "good"
    folder.mkdir()
    for content in trained_files[1]:
        torch.save(content, folder / "checkpoint.pth")
        assert answer(examine, [str(folder / "checkpoint.pth")], "doctor") in (0, 1)
    torch.save(trained_files[0], folder / "checkpoint.pth")
    assert answer(train_pose_tiny.main, [*SETTINGS, "--resume", "--out", str(folder)], "train_pose_tiny") == 0
    assert recipe.read_checkpoint(folder / "final.pth")["history"] == trained_files[0]["history"]


@fuzz(150)
@given(st.data())
def test_a_changed_checkpoint_is_resumed_or_refused_in_one_sentence(scratch, trained_files, data):
    folder = scratch / "resumed"
    folder.mkdir(exist_ok=True)
    torch.save(changed(data, trained_files[0]), folder / "checkpoint.pth")
    assert answer(train_pose_tiny.main, [*SETTINGS, "--resume", "--out", str(folder)], "train_pose_tiny") in (0, 2)


@fuzz(150)
@given(st.data())
def test_the_doctor_examines_a_changed_checkpoint_or_says_why_not(scratch, trained_files, data):
    content = data.draw(st.sampled_from(trained_files[1]), label="file")
    torch.save(changed(data, content), scratch / "patient.pth")
    network = data.draw(st.sampled_from([[], ["--network", "qatcourse.pose.model:PoseTiny"]]), label="network")
    assert answer(examine, [str(scratch / "patient.pth"), *network], "doctor") in (0, 1, 2)


@fuzz(200)
@given(st.dictionaries(st.sampled_from([f"a.{key}" for key in STATE]), st.one_of(TENSORS, ANYTHING)))
def test_state_dicts_become_integers_or_are_refused(state):
    with warnings.catch_warnings(), documented(ValueError, TypeError):
        warnings.simplefilter("ignore")
        result = quantize_checkpoint(state)
        assert all(torch.equal(t, t.round()) for key, t in result.items() if key.endswith("op.weight"))
