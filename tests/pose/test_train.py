"""The recipe: bad input is refused before any work, the same seed gives the same file, a stop changes nothing."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from qatcourse import train_pose_tiny
from qatcourse.keeper.reference import PRETRAINED
from qatcourse.pose import train as recipe
from qatcourse.pose.data import PoseSet, load, to_codes, to_input
from qatcourse.pose.evaluate import calibrated_ptq, calibration_batches, predict
from qatlib.integer import quantize_model
from qatlib.integer.engine import Integer, real_values

TINY = recipe.configure("smoke", n_train=96, n_test=32, epochs=3, start_epoch=1, batch_size=32, weight_bits=8)


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_quantization_starts_however_few_epochs_there_are(preset, epochs):
    config = recipe.configure(preset, epochs=epochs)
    assert 0 <= config.start_epoch < epochs
    with pytest.raises(ValueError, match=f"start_epoch is {epochs} of {epochs} epochs, so quantization would never start; choose"):
        recipe.configure(preset, epochs=epochs, start_epoch=epochs)
    assert recipe.configure(preset, epochs=epochs, start_epoch=epochs, weight_bits=None).weight_bits is None


def test_photographs_have_settings_of_their_own():
    def settings(*arguments, **options):
        made = recipe.configure(*arguments, **options)
        return made.side, made.epochs, made.start_epoch, made.n_train, made.n_test, made.batch_size, made.teacher_epochs

    assert settings("quick", data="lsp:/x") == (128, 30, 24, 9000, 1000, 32, 0)
    assert settings("full", data="lsp:/x") == (128, 76, 70, 9000, 1000, 32, 40)
    assert settings("smoke", data="lsp:/x") == (128, 3, 2, 200, 100, 32, 0)
    assert settings("quick", data="lsp:/x", side=64, epochs=10, batch_size=16) == (64, 10, 7, 9000, 1000, 16, 0)
    assert settings("quick") == settings("quick", data="figures") == (64, 12, 9, 6400, 1000, 64, 0)
    assert recipe.configure("quick").weight_decay == 1e-4 and recipe.configure("quick", data="lsp:/x").weight_decay == 0.05


@pytest.mark.parametrize("side", [0, 32, 64.0, "128", True])
def test_other_sides_are_refused(side):
    with pytest.raises(ValueError, match="side is .*; choose one of 64, 128 pixels"):
        recipe.configure("smoke", side=side)
    assert recipe.configure("smoke", side=None).side == 64


def test_ahead_gives_all_in_order_and_makes_one_at_a_time():
    made = []
    items = (made.append(i) or i for i in range(20))
    for i, item in enumerate(recipe.ahead(items)):
        assert item == i and len(made) <= i + 2
    assert made == list(range(20)) and list(recipe.ahead(iter([]))) == []


def test_ahead_passes_problems_on_where_they_belong():
    seen, items = [], (6 // (3 - i) for i in range(5))
    with pytest.raises(ZeroDivisionError):
        seen.extend(item for item in recipe.ahead(items) if seen.append(item))
    assert seen == [2, 3, 6]


@pytest.fixture(scope="module")
def poses():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    yield load("figures", "train", 96, 0, progress=False), load("figures", "test", 32, progress=False)
    torch.set_num_threads(threads)


def trained(poses, out, config=TINY, **options):
    return recipe.train(config, out, train_poses=poses[0], test_poses=poses[1], progress=False, **options)


@pytest.fixture(scope="module")
def once(poses, tmp_path_factory):
    folder = tmp_path_factory.mktemp("once")
    return trained(poses, folder), folder


def int8_file(model, path) -> bytes:
    quantize_model(model, 8).save(path)
    return path.read_bytes()


def test_the_same_seed_gives_the_same_int8_file(poses, once, tmp_path):
    again = trained(poses, tmp_path / "again")
    assert int8_file(again.model, tmp_path / "a.pth") == int8_file(once[0].model, tmp_path / "b.pth")
    assert again.history == once[0].history
    other = trained(poses, tmp_path / "other", dataclasses.replace(TINY, seed=1))
    assert int8_file(other.model, tmp_path / "c.pth") != int8_file(once[0].model, tmp_path / "b.pth")


@pytest.mark.parametrize("last", [1, 2], ids=["stopped before QAT", "stopped in QAT"])
def test_resuming_after_a_stop_gives_the_same_network(poses, once, tmp_path, monkeypatch, last):
    class Stop(Exception):
        pass

    original = recipe.save

    def stopping(path, model, config, epoch, history, optimizer=None):
        original(path, model, config, epoch, history, optimizer)
        if path.name == "checkpoint.pth" and epoch == last:
            raise Stop

    monkeypatch.setattr(recipe, "save", stopping)
    with pytest.raises(Stop):
        trained(poses, tmp_path)
    monkeypatch.setattr(recipe, "save", original)
    assert not (tmp_path / "final.pth").exists()
    resumed = trained(poses, tmp_path, resume=True)
    state, expected = resumed.model.state_dict(), once[0].model.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)
    assert resumed.history == once[0].history


def test_trained_qat_network_equals_its_integers(poses, once):
    model, images = once[0].model, poses[1].images
    compact = quantize_model(model, 8).compact
    with torch.no_grad():
        expected = model(to_input(images))
    got = torch.from_numpy(real_values(compact, Integer(compact)(to_codes(images))))
    assert torch.equal(got, expected) and expected.abs().max() > 0


@pytest.mark.slow
def test_the_committed_network_saved_and_read_again_equals_its_integers_on_1000_pictures(tmp_path):
    """Calibrated to 8 bits; every heat map of every picture, bit for bit."""
    test, training = load("figures", "test", 1000, progress=False), load("figures", "train", 500, progress=False)
    model = calibrated_ptq(recipe.load_model(PRETRAINED), calibration_batches(training), 8)
    quantize_model(model, 8).save(tmp_path / "model_8bit.pth")
    network = Integer(tmp_path / "model_8bit.pth")
    for start in range(0, 1000, 250):
        images = test.images[start : start + 250]
        with torch.no_grad():
            expected = model(to_input(images))
        got = torch.from_numpy(real_values(network.model, network(to_codes(images))))
        assert torch.equal(got, expected) and len(got) == 250 and expected.abs().amax((1, 2, 3)).min() > 0


def test_a_checkpoint_loads_as_the_network_that_was_saved(poses, once):
    result, folder = once
    assert np.array_equal(predict(recipe.load_model(folder / "final.pth"), poses[1].images), predict(result.model, poses[1].images))
    assert not recipe.load_model(folder / "float.pth").conv1.weight_bits.item()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--weight-bits", "3"], "weight_bits is 3; choose 1, 2, 4 or 8"),
        (["--epochs", "-1"], "epochs is -1"),
        (["--epochs", "2", "--start-epoch", "5"], "start_epoch is 5"),
        (["--n-train", "0"], "n_train is 0"),
        (["--data", "lsp:/no/such/folder"], "/no/such/folder"),
        (["--data", "photos"], "'photos' is unknown"),
    ],
)
def test_bad_settings_end_with_one_sentence_before_any_work(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipe, "train_epoch", lambda *_: pytest.fail("training has started"))
    assert train_pose_tiny.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train_pose_tiny: ") and said in error and error.count("\n") == 1


def test_a_truncated_checkpoint_is_refused_before_any_work(once, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipe, "train_epoch", lambda *_: pytest.fail("training has started"))
    whole = (once[1] / "checkpoint.pth").read_bytes()
    (tmp_path / "checkpoint.pth").write_bytes(whole[: len(whole) // 2])
    arguments = ["--preset", "smoke", "--n-train", "64", "--n-test", "16", "--resume", "--out", str(tmp_path)]
    assert train_pose_tiny.main(arguments) == 2
    error = capsys.readouterr().err
    assert "checkpoint.pth" in error and error.startswith("train_pose_tiny: ") and error.count("\n") == 1
    with pytest.raises(FileNotFoundError, match="no file"):
        recipe.load_model(tmp_path / "absent.pth")


def forged(content: dict, path: tuple, value) -> dict:
    """A copy of a checkpoint's content with `value` at `path`."""
    if not path:
        return value
    copy = content.copy()
    copy[path[0]] = forged(content[path[0]], path[1:], value)
    return copy


FORGED = [
    (("epoch",), 10**6, "says that 1000000 of 3 epochs are done"),
    (("epoch",), -1, "says that -1 of 3 epochs are done"),
    (("epoch",), 0, "says that 0 of 3 epochs are done"),
    (("epoch",), 2, "says that 2 of 3 epochs are done, and its history does not hold just these"),
    (("epoch",), True, "lacks 'epoch'"),
    (("history",), [], "its history does not hold just these"),
    (("history",), ["a", "b", "c"], "its history does not hold just these"),
    (("history",), {"epoch": 1}, "holds a network only"),
    (("history", 1), {"epoch": 1}, "its history does not hold just these"),
    (("config",), {1: 2}, "settings that this version does not know"),
    (("config", "overrides"), torch.zeros(3), "settings that this version does not know"),
    (("config", "epochs"), "3", "settings that this version does not know"),
    (("state_dict",), {3: torch.zeros(1)}, "has the key 3, which is no text"),
    (("state_dict", "conv1.weight_bits"), torch.tensor([4]), "conv1 has 4 bits after epoch 3, not 8"),
    (("optimizer",), {}, "optimizer's state does not belong to this network"),
    (("optimizer",), "state", "optimizer's state does not belong to this network"),
    (("optimizer",), torch.zeros(2), "optimizer's state does not belong to this network"),
    (("optimizer",), [1], "optimizer's state does not belong to this network"),
    (("optimizer", "param_groups"), [1], "optimizer's state does not belong to this network"),
    (("optimizer", "param_groups"), [], "optimizer's state does not belong to this network"),
    (("optimizer", "param_groups", 0, "params"), [0], "optimizer's state does not belong to this network"),
    (("optimizer", "param_groups", 0, "weight_decay"), float("nan"), "optimizer's state does not belong to this network"),
    (("optimizer", "param_groups", 0, "betas"), torch.zeros(2), "optimizer's state does not belong to this network"),
    (("optimizer", "state"), 3, "optimizer's state does not belong to this network"),
    (("optimizer", "state"), {}, "optimizer's state does not belong to this network"),
    (("optimizer", "state", 9), {"step": torch.tensor(3.0)}, "optimizer's state does not belong to this network"),
    (("optimizer", "state", 9, "exp_avg"), torch.zeros(3), "optimizer's state does not belong to this network"),
    (("optimizer", "state", 9, "exp_avg_sq"), torch.zeros(32, 12, 3, 3) - 1, "optimizer's state does not belong to this network"),
]


@pytest.mark.parametrize("path, value, said", FORGED, ids=lambda part: str(part)[:40])
def test_a_state_that_no_training_writes_is_not_resumed(poses, once, tmp_path, path, value, said):
    content = recipe.read_checkpoint(once[1] / "checkpoint.pth")
    torch.save(forged(content, path, value), tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=said) as raised:
        trained(poses, tmp_path, resume=True)
    assert len(str(raised.value)) < 700 and not (tmp_path / "final.pth").exists()


def test_a_float_network_is_not_resumed_as_one_in_qat(poses, once, tmp_path):
    content = recipe.read_checkpoint(once[1] / "checkpoint.pth")
    state = recipe.read_checkpoint(once[1] / "float.pth")["state_dict"]
    torch.save({**content, "state_dict": state}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="conv1 has 0 bits and batch norm after epoch 3, not 8; start in another folder"):
        trained(poses, tmp_path, resume=True)


def test_a_training_that_began_with_given_weights_is_resumed(poses, once, tmp_path, monkeypatch):
    init = recipe.read_checkpoint(once[1] / "float.pth")["state_dict"]
    whole = trained(poses, tmp_path / "whole", init=init)
    (tmp_path / "whole" / "final.pth").unlink()
    again = trained(poses, tmp_path / "whole", init=init, resume=True)
    assert [row["epoch"] for row in again.history] == [1, 2] and again.metrics == whole.metrics
    assert (tmp_path / "whole" / "final.pth").exists()


def test_a_stop_during_the_last_evaluation_keeps_the_network(poses, once, monkeypatch):
    def stop(model, of):
        if of is poses[1]:
            raise KeyboardInterrupt
        return evaluate(model, of)

    evaluate = recipe.evaluate
    monkeypatch.setattr(recipe, "evaluate", stop)
    result = trained(poses, None)
    expected = once[0].model.state_dict()
    assert result.interrupted and result.history == once[0].history
    assert all(torch.equal(value, expected[key]) for key, value in result.model.state_dict().items())


def test_every_epoch_is_told_where_that_is_asked_for(poses, monkeypatch, capsys):
    def lines(**options):
        recipe.train(dataclasses.replace(TINY, weight_bits=None, epochs=2), train_poses=poses[1], test_poses=poses[1], **options)
        said = capsys.readouterr()
        return re.findall(r"(?:^|\r)epoch +(\d) of 2: loss \d\.\d{3}, PCK@0\.2 0\.\d{3}$", said.err, re.M), said.out

    monkeypatch.delenv("QATLIB_EPOCHS", raising=False)
    assert lines() == ([], "")
    monkeypatch.setenv("QATLIB_EPOCHS", "1")
    assert lines() == (["1", "2"], "") and lines(progress=False) == ([], "")


@pytest.fixture(scope="module")
def photographs():
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (40, 192, 192, 3), dtype=np.uint8)
    joints, seen = rng.uniform(10, 118, (40, 14, 2)).astype(np.float32), np.ones((40, 14), bool)
    return PoseSet(crops[:, 32:160, 32:160].copy(), joints, seen, seen, "lsp", crops)


def test_photographs_of_128_pixels_train_resume_and_export(poses, photographs, tmp_path):
    config = recipe.configure("smoke", data="lsp:/x", epochs=2, start_epoch=1, n_train=40, n_test=20)
    pair = photographs, photographs.subset(20)
    whole = trained(pair, tmp_path, config)
    (tmp_path / "final.pth").unlink()
    again = trained(pair, tmp_path, config, resume=True)
    assert again.metrics == whole.metrics and recipe.load_model(tmp_path / "final.pth").side == 128
    with torch.no_grad():
        expected = whole.model(to_input(pair[1].images))
    compact = quantize_model(again.model, 8).compact
    assert torch.equal(torch.from_numpy(real_values(compact, Integer(compact)(to_codes(pair[1].images)))), expected)
    with pytest.raises(ValueError, match=r"shape \(.*, 48, 32, 32\); expected \(N, 12, 32, 32\)"):
        predict(recipe.PoseTiny(), pair[1].images)


def test_other_settings_cannot_resume(poses, once):
    with pytest.raises(ValueError, match="seed"):
        trained(poses, once[1], dataclasses.replace(TINY, seed=5), resume=True)


@pytest.mark.parametrize(
    "images, problem, said",
    [
        (np.zeros((2, 64, 64, 3), np.float32), TypeError, "uint8"),
        (np.zeros((2, 64, 64, 3), np.int16), TypeError, "uint8"),
        (np.zeros((2, 3, 64, 64), np.uint8), ValueError, r"\(2, 3, 64, 64\)"),
        (np.zeros((64, 64, 3), np.uint8), ValueError, r"\(64, 64, 3\)"),
    ],
)
def test_wrong_pictures_are_refused(once, images, problem, said):
    with pytest.raises(problem, match=said):
        predict(once[0].model, images)


def test_values_outside_of_the_input_range_are_refused_by_the_integer_network(once):
    quantized = quantize_model(once[0].model, 8)
    for value in (1.0, -1.01, 0.3):
        with pytest.raises(ValueError, match="1/128 grid"):
            quantized(torch.full((1, 12, 32, 32), value))
    with pytest.raises(ValueError, match=r"\[-128, 127\]"):
        Integer(quantized.compact)(np.full((12, 32, 32), 128, np.int16))
