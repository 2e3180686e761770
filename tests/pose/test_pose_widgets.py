"""The pose network's pictures say what they show, and its slider shows what was measured at each bit width."""

import dataclasses
import json

import numpy as np
import pytest

from qatcourse import viz
from qatcourse.labs import compare
from qatcourse.pose import evaluate, metrics
from qatcourse.pose import train as recipe
from qatcourse.pose import widgets as pose_widgets
from qatcourse.pose.data import load
from qatcourse.viz import pose as pose_pictures

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)


def width(bits, ptq_pck, qat_pck):
    places = [RNG.uniform(5, 60, (6, 14, 2)) for _ in range(2)]
    return pose_widgets.Width(bits, *places, ptq_pck, qat_pck, 1000 * bits, 1)


def test_slider_shows_the_width_that_it_is_set_to():
    lab = pose_widgets.bit_width_slider([width(2, 0.1, 0.4), width(4, 0.5, 0.5), width(8, 0.7, 0.6)], IMAGES, start=8)
    assert lab.sentence.startswith("8-bit") and "PTQ ahead by 0.100" in lab.sentence and "8,000 bytes" in lab.sentence
    before = lab.html
    lab.sliders["bits"].value = 2
    assert lab.sentence.startswith("2-bit") and "QAT ahead by 0.300" in lab.sentence and lab.html != before
    lab.sliders["bits"].value = 4
    assert "no difference" in lab.sentence


def test_people_joints_and_thresholds_are_those_of_the_last_version():
    poses = load("figures", "test", 40, progress=False)
    far = poses.joints + np.linspace(0, 30, 40).reshape(-1, 1, 1).astype(np.float32)  # later pictures are worse
    found = pose_widgets.closer({"exact": poses.joints, "QAT": far}, poses)
    assert [*found] == ["cases", "joints", "thresholds"]
    error = 30 * 2**0.5 / metrics.torso_length(poses.joints, poses.labelled)
    assert found["cases"][1].startswith("QAT on 40 pictures") and "best 0.00" in found["cases"][1]
    assert float(found["cases"][1].rpartition("worst ")[2][:4]) == pytest.approx((error * np.linspace(0, 1, 40)).max(), abs=0.01)
    assert "exact 1, 1, 1, 1, 1, 1, 1, 1" in found["joints"][1] and "exact goes from 1 to 1" in found["thresholds"][1]


def test_training_curves_name_the_start_of_qat_only_where_it_was():
    history = [{"epoch": epoch, "loss": 3.0 - epoch, "pck": 0.1 * epoch} for epoch in range(4)]
    assert "quantized to 4 bits after epoch 2" in viz.training_curves(history, 2, 4)[1]
    assert "0.100 after the last epoch in float, 0.200 after the first one of QAT" in viz.training_curves(history, 2, 4)[1]
    assert "quantized" not in viz.training_curves(history, 2, None)[1]


def test_comparison_names_the_best_version():
    rows = [compare.Version("FP32, trained on equally", 32, 0.7, 0.8, 3.0, 4000), compare.Version("QAT", 4, 0.6, 0.7, 4.0, 500)]
    sentence = viz.comparison(rows)[1]
    assert "Highest: FP32, trained on equally" in sentence and "8.0 times smaller" in sentence
    small = viz.comparison([dataclasses.replace(row, pck=row.pck / 10) for row in rows])[1]
    assert "None beats a guess (0.15): the run is too small to rank them" in small and "Highest" not in small


def test_the_floor_of_a_ranking_is_what_guessing_the_mean_place_reaches():
    seen, test = load("figures", "train", 500, progress=False), load("figures", "test", 500, progress=False)
    guess = evaluate.score(np.tile(seen.joints.mean(0), (len(test), 1, 1)), test)["pck"]
    assert guess == pytest.approx(pose_pictures.GUESS, abs=0.02)


def test_heat_maps_and_shares_tell_their_numbers():
    heat = np.zeros((16, 16))
    heat[3, 5] = 2.5
    sentence = viz.heat_maps(IMAGES[0], {"float": heat}, np.array([[22.0, 14.0]]), "neck")[1]
    assert "values 0 to 2.5" in sentence and "(22.0, 14.0)" in sentence
    larger, _ = viz.heat_maps(IMAGES[0].repeat(2, axis=0).repeat(2, axis=1), {"float": heat}, np.array([[44.0, 28.0]]))
    assert [axis.images[0].get_extent() for axis in larger.axes[:2]] == [[0, 128, 128, 0]] * 2
    assert "head with 98.9 %" in viz.shares({"conv1": 0.04, "head": 98.93}, "%")[1]
    fig, _ = viz.shares({"conv1.weight": 147_456, "head": 840}, "bytes")
    fig.canvas.draw()
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()][1] == "50,000"  # few, and set apart


def test_keep_writes_the_picture_it_shows(tmp_path, capsys):
    viz.keep(tmp_path / "new" / "bars.png", *viz.shares({"a": 1.0}, "bytes"))
    assert (tmp_path / "new" / "bars.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_bit_widths_measure_what_the_folder_holds(tmp_path):
    poses = load("figures", "train", 96, 0, progress=False), load("figures", "test", 32, progress=False)
    config = recipe.configure("smoke", n_train=96, n_test=32, epochs=2, start_epoch=1, batch_size=32)
    recipe.train(config, tmp_path, train_poses=poses[0], test_poses=poses[1], progress=False)
    rows = compare.compare(tmp_path, *poses, progress=False)
    found = pose_widgets.bit_widths(tmp_path, *poses, bits=(4, 8), progress=False)
    assert [w.bits for w in found] == [4, 8] and found[0].bytes < found[1].bytes
    assert (found[1].ptq_pck, found[1].qat_pck) == (rows[3].pck, rows[4].pck)
    assert found[1].bytes == rows[4].bytes and found[0].qat.shape == (32, 14, 2)
    stored = json.loads((tmp_path / "bit_widths.json").read_text())
    assert [row["qat_pck"] for row in stored] == [w.qat_pck for w in found]
