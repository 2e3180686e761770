"""What a network may return, in every engine: wide outputs under any view, its own input, the same tensor twice."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

from qatlib import ai8x
from qatlib.export import check_folder, cortex_m4, engines, export_all, export_c, export_onnx
from qatlib.integer import quantize_model
from qatlib.integer.source import answer_rows, sample_codes


class Net(nn.Module):
    def __init__(self, input_shape, forward, **layers):
        super().__init__()
        self.input_shape, self.run = input_shape, forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def wide(channels=3, out=7, dimensions=2):
    return (ai8x.Conv2d if dimensions == 2 else ai8x.Conv1d)(channels, out, 1, wide=True)


def thrice(net, x):
    y = net.c(x)
    return y.flatten(1), y, y.view(-1, 7 * 4 * 5)


SHAPE = (3, 4, 5)
CASES = {
    "flatten": (SHAPE, lambda net, x: net.c(x).flatten(1), {"c": wide}),
    "flatten by its end": (SHAPE, lambda net, x: torch.flatten(net.c(x), start_dim=1, end_dim=-1), {"c": wide}),
    "view of the batch": (SHAPE, lambda net, x: net.c(x).view(x.size(0), -1), {"c": wide}),
    "reshape by shape": (SHAPE, lambda net, x: net.c(x).reshape(x.shape[0], 140), {"c": wide}),
    "nn.Flatten": (SHAPE, lambda net, x: net.f(net.c(x)), {"c": wide, "f": nn.Flatten}),
    "squeeze": ((3, 1, 1), lambda net, x: net.c(x).squeeze((2, 3)), {"c": wide}),
    "1D": ((3, 9), lambda net, x: net.c(x).flatten(1), {"c": lambda: wide(dimensions=1)}),
    "transposed": (SHAPE, lambda net, x: net.c(x).flatten(1),
                   {"c": lambda: ai8x.ConvTranspose2d(3, 5, 3, stride=2, padding=1, wide=True)}),
    "one tensor three times": (SHAPE, thrice, {"c": wide}),
    "two heads, one flat": (SHAPE, lambda net, x: (net.c(x).flatten(1), net.d(x)), {"c": wide, "d": wide}),
    "narrow between": (SHAPE, lambda net, x: (net.c(x).flatten(1), net.a(x).flatten(1), net.d(net.a(x)).flatten(1)),
                       {"c": wide, "a": lambda: ai8x.Conv2d(3, 4, 3, padding=1), "d": lambda: wide(4)}),
    "a shared head": (SHAPE, lambda net, x: (net.c(x).flatten(1), net.c(net.a(x)).flatten(1)),
                      {"c": wide, "a": lambda: ai8x.Conv2d(3, 3, 3, padding=1)}),
    "a wide linear layer": (SHAPE, lambda net, x: net.c(x.flatten(1)).flatten(1), {"c": lambda: ai8x.Linear(60, 6, wide=True)}),
    "input last": (SHAPE, lambda net, x: (net.a(x), x), {"a": lambda: ai8x.Conv2d(3, 4, 3, padding=1)}),
    "input first and last": (SHAPE, lambda net, x: (x, net.c(x), x), {"c": wide}),
    "input flat": (SHAPE, lambda net, x: (net.a(x), x.flatten(1), x), {"a": lambda: ai8x.Conv2d(3, 4, 1)}),
    "input pooled": (SHAPE, lambda net, x: (net.p(x), net.a(x), x), {"a": lambda: ai8x.Conv2d(3, 4, 1),
                                                                     "p": lambda: ai8x.MaxPool2d(2)}),
    "input pooled and flat": (SHAPE, lambda net, x: (net.p(x).flatten(1), net.c(x)), {"c": wide, "p": lambda: ai8x.AvgPool2d(2)}),
    "input added": (SHAPE, lambda net, x: (net.s(net.a(x), x), x), {"a": lambda: ai8x.Conv2d(3, 3, 1), "s": ai8x.Add}),
    "input joined": (SHAPE, lambda net, x: (torch.cat([x, net.a(x)], 1), x), {"a": lambda: ai8x.Conv2d(3, 3, 1)}),
    "a vector": ((9,), lambda net, x: (net.a(x), x), {"a": lambda: ai8x.Linear(9, 4)}),
}  # fmt: skip


def trained(name):
    torch.manual_seed(1)
    shape, forward, layers = CASES[name]
    net = Net(shape, forward, **{key: make() for key, make in layers.items()}).eval()
    ai8x.start_qat(net, [torch.randint(-128, 128, (8, *shape)) / 128], {"weight_bits": 8}, progress=False)
    return net


@pytest.mark.parametrize("name", CASES)
def test_every_engine_gives_the_same_outputs(name, tmp_path):
    net = trained(name)
    compact = quantize_model(net).compact
    codes = sample_codes(compact, None, 6)
    wanted = answer_rows(compact, codes)
    assert len(np.unique(wanted)) > 20
    assert np.array_equal(engines.torch_runner(net, compact)(codes), wanted)
    export_onnx(compact, tmp_path / "net.onnx")
    assert np.array_equal(engines.run_onnx(tmp_path / "net.onnx", compact, codes, None).rows, wanted)
    export_c(compact, tmp_path / "c")
    if shutil.which("gcc"):
        assert np.array_equal(engines.run_project(tmp_path / "c", compact, codes, None).rows, wanted)


@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("make")), reason="no gcc and make; install them")
@pytest.mark.parametrize("name", ["narrow between", "input flat"])
def test_the_whole_folder_is_right_and_its_project_checks_itself(name, tmp_path):
    export_all(trained(name), tmp_path / "all")
    results = check_folder(tmp_path / "all", 8, trained(name))
    assert [result.differing for result in results] == [0] * len(results)
    assert len([result for result in results if result.pictures]) == 4 + (not cortex_m4.missing())  # several outputs: no chip
    done = subprocess.run(["make", "-s", "check"], cwd=tmp_path / "all" / "c", capture_output=True, text=True)
    assert done.returncode == 0 and "PASS: 4 of 4" in done.stdout
