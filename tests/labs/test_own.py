"""Your own network: the digits, what is said of data that cannot be used, and the template with other data and networks."""

import papermill
import pytest
import torch

from qatcourse import ROOT
from qatcourse.labs import digits, own
from qatcourse.sweep.notebook import read_notebook
from qatcourse.sweep.recording import recorded

TEMPLATE = ROOT / "notebooks" / "template_your_network.ipynb"
TASK = """
import numpy as np
import torch
from qatlib import ai8x


def data():
    random = np.random.default_rng(0)
    x = random.integers(-100, 101, (240, 2, 32)).astype(np.float32) / 128
    y = 1 + x.mean((1, 2))[:, None]  # what the network is to find
    return x[:160], y[:160], x[160:], y[160:]


def flat():
    x, y, x_test, y_test = data()
    return x, y[:, 0], x_test, y_test[:, 0]


def ten():
    x, y, x_test, y_test = data()
    return x, (y[:, 0] > 1) * 9 + 1, x_test, (y_test[:, 0] > 1) * 9 + 1


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = ai8x.FusedConv1dBNReLU(2, 8, 3, padding=1)
        self.conv2 = ai8x.FusedMaxPoolConv1dBNReLU(8, 8, 3, padding=1)
        self.fc = ai8x.Linear(128, 1, wide=True)

    def forward(self, x):
        return self.fc(self.conv2(self.conv1(x)).flatten(1))


class Strided(torch.nn.Module):
    def __init__(self, outputs=1):
        super().__init__()
        self.conv = torch.nn.Conv1d(2, 8, 3, stride=2, padding=1)
        self.fc = torch.nn.Linear(128, outputs)

    def forward(self, x):
        return torch.sigmoid(self.fc(torch.relu(self.conv(x)).flatten(1)))


def Ten():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def test_the_digits_are_those_of_the_source():
    ink, labels, test_ink, test_labels = digits.load()
    assert ink.shape == (1297, 1, 8, 8) and test_ink.shape == (500, 1, 8, 8) and ink.dtype == torch.uint8
    counts = torch.cat([labels, test_labels]).bincount().tolist()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as scikit-learn's description of the set says
    assert torch.cat([ink, test_ink]).unique().tolist() == list(range(17)) and labels[:10].tolist() == list(range(10))


def test_inputs_lie_on_the_grid_fifteen_codes_apart():
    x = digits.to_input(torch.arange(17, dtype=torch.uint8)) * 128
    assert torch.equal(x, torch.arange(-120, 121, 15).float())
    (x, y, x_test, y_test), told = own.examined(digits.data())
    assert x.dtype == torch.float32 and y.dtype == torch.int64 and "1,297 of shape (1, 8, 8)" in told[0]


def good():
    x = torch.randint(-128, 128, (6, 1, 4, 4)) / 128
    return [x[:4], torch.arange(4), x[4:], torch.arange(2)]


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        (0, lambda x: (x * 128 + 128).to(torch.uint8), "x_train: torch.uint8; give real values"),
        (0, lambda x: x * 4 + 1, "x_train: .* beyond -1..127/128"),
        (2, lambda x: x.clamp(max=0.9) - 0.003, "x_test: values between the chip's codes"),
        (0, lambda x: x / 0, "x_train: NaN or infinity"),
        (3, lambda y: y / 0, "y_test: NaN or infinity"),
        (0, lambda x: x[:2], "y_train: 4 targets for 2 inputs"),
        (2, lambda x: x[:, :, :3], r"x_test: shape \(1, 3, 4\), but x_train \(1, 4, 4\)"),
        (1, lambda y: y[:, None], r"y_test: shape \(\), but y_train \(1,\)"),
        (2, lambda x: x[:0], "x_test: no values"),
        (0, lambda x: x[:, 0, 0, 0], r"x_train: shape \(4,\); give \(N, C, H, W\)"),
        (1, lambda y: None, "return tensors or NumPy arrays, x_train, y_train, x_test, y_test"),
    ],
)
def test_data_that_cannot_be_used_are_refused_with_a_remedy(part, change, said):
    arrays = good()
    assert own.examined(arrays)
    arrays[part] = change(arrays[part])
    with pytest.raises(ValueError, match=said):
        own.examined(arrays)


def test_all_faults_of_the_data_are_said_at_once():
    x, y, x_test, y_test = good()
    with pytest.raises(ValueError, match="(?s)x_train: .*\n- x_test: .*\n- y_train: "):
        own.examined((x * 9, y[:3], x_test.double() + 0.001, y_test))


def test_rounding_as_the_remedy_says_makes_the_data_good():
    x, y, x_test, y_test = good()
    rounded = (torch.floor((x - 0.003) * 128 + 0.5) / 128).clamp(-1, 127 / 128)
    assert own.examined((rounded, y, x_test, y_test))


@pytest.mark.parametrize("name", ["text", "no_such:data", "qatcourse.labs.digits:nothing", "qatcourse.labs.digits:to_input", ":"])
def test_what_gives_nothing_is_named(name):
    with pytest.raises(ValueError, match=f"'{name}' gives nothing .*; give MODULE:NAME"):
        own.made_by(name)


def run(folder, **parameters):
    (folder / "my_task.py").write_text(TASK)
    small = {"epochs": 12, "qat_epochs": 1, "batch_size": 16} | parameters
    return recorded(papermill.execute_notebook(TEMPLATE, None, small, cwd=str(folder), progress_bar=False))


def test_the_template_may_be_swept():
    assert read_notebook(TEMPLATE, {"weight_bits": [8], "network": ["my_task:Network"], "seed": [0]})


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters",
    [
        {"network": "my_task:Network", "device": 87, "weight_bits": 4},
        {"network": "my_task:Strided", "rewrite": "stride, outside"},
    ],
    ids=["ai8x layers, 1D", "plain, rewritten"],
)
def test_the_template_takes_other_data_and_networks_to_the_same_checks(parameters, tmp_path):
    found = run(tmp_path, data="my_task:data", loss="torch.nn:MSELoss", **parameters)
    assert found["fits"] and found["differ"] == 0 and found["engines"] >= 2 and found["bytes"] > 500
    assert found["float"] < 0.3 and abs(found["ptq"] - found["float"]) < 0.3  # targets of 1: a head of another scale is off by 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"network": "my_task:Strided"}, r"(?s)conv \(Conv1d\).*\n- sigmoid"),
        ({"network": "my_task:Network", "data": "my_task:flat"}, r"\(2, 1\) and \(2,\) differ"),
        ({"network": "my_task:Ten", "data": "my_task:ten", "loss": "torch.nn:CrossEntropyLoss"}, "Target 10 is out of bounds"),
        ({"weight_bits": 3}, "weight_bits of the QAT policy is 3"),
    ],
    ids=["refused by the chip", "targets of another shape", "classes counted from 1", "3 bits"],
)
def test_the_template_refuses_before_it_trains(parameters, said, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=said) as problem:
        run(tmp_path, **{"data": "my_task:data", "loss": "torch.nn:MSELoss"} | parameters)
    assert "train(net" not in problem.value.source
