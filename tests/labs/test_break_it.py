"""The patients of lessons 11 and 14: their damage shows, their names say nothing, the doctor knows each, each is a fresh copy."""

import math

import pytest
import torch

from qatcourse.labs import break_it

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = (0, 1)
patients = pytest.mark.parametrize("letter, seed", [(letter, seed) for letter in break_it.WARD for seed in SEEDS])


def share(text):
    return float(text.rstrip("%")) / 100


@pytest.mark.parametrize("seed", SEEDS)
def test_in_good_health_training_and_chip_find_every_spot_and_agree_to_the_bit(seed):
    patient = break_it.healthy(seed)
    assert list(patient.symptoms().values()) == ["healthy", "100%", "100%", "0.0%"]
    training, chip = patient.layers()
    assert list(training) == ["conv1", "conv2", "conv3", "conv4"] and all(torch.equal(training[name], chip[name]) for name in chip)


@patients
def test_the_damage_shows(letter, seed):
    patient = break_it.admit(letter, seed)
    seen = patient.symptoms()
    if letter == "F":
        sound, broken = patient.reported(patient.float_model), patient.reported(patient.model)
        assert sound == {"with a red spot": 1.0, "without one": 0.0} and broken["without one"] > 0.25
    elif letter in "DH":
        assert share(seen["values that differ"]) > 0.02 and seen["found in training"] == "100%"
    elif letter == "I":
        assert share(seen["found on the chip"]) < 0.6 and seen["found in training"] == "100%"
    else:
        assert share(seen["found in training"]) < 0.7
    assert (seen["found on the chip"] == "not converted") == (letter in "EG")


@patients
def test_the_doctor_finds_what_the_name_does_not_tell(letter, seed):
    patient = break_it.admit(letter, seed)
    bug = break_it.WARD[letter]
    assert patient.diagnose().found(break_it.FOUND_AS[bug]) and patient.name == letter
    shown = " ".join([str(patient.symptoms()), type(patient.model.conv3).__name__, *patient.checkpoints]).lower()
    assert bug not in shown and break_it.FOUND_AS[bug].lower() not in shown


def test_a_rate_too_high_ends_at_the_loss_of_a_guess():
    assert break_it.admit("C").history[-1] == pytest.approx(math.log(64), abs=1e-3)


def test_training_returns_the_last_loss():
    patient = break_it.admit("C")
    patient.learning_rate = 0.01
    assert patient.train(2) == patient.history[-1] and len(patient.history) == 2


def test_the_first_layer_that_differs_is_the_handmade_one():
    training, chip = break_it.admit("D").layers()
    assert [name for name in training if not torch.equal(training[name], chip[name])] == ["conv3", "conv4"]


def test_each_admission_is_a_copy():
    first = break_it.admit("A")
    first.model.conv1.op.weight.data.zero_()
    first.images.zero_()
    again = break_it.admit("A")
    assert again.model.conv1.op.weight.any() and again.images.any()


def test_unknown_letters_are_refused():
    with pytest.raises(ValueError, match="choose one of A, B"):
        break_it.admit("Z")
