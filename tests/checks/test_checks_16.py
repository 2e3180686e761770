"""Lesson 16: answers that no table holds; the exercise's network is the one that the lesson shows."""

import nbformat
import torch
import torch.nn.functional as F
from exercises import both_ways
from torch import nn

from qatcourse.checks import lesson16 as lesson
from qatcourse.keeper.lessons import LESSONS
from qatcourse.labs.digits import Network
from qatlib import ai8x

SOLUTIONS = [(check, answer) for check in (lesson.check_input, lesson.check_repaired, lesson.check_fold) for answer in check.right]
WRONG = [
    (lesson.check_input, lambda ink: (ink.float() - 8)[:1] * 15 / 128, "has shape"),
    (lesson.check_input, lambda ink: ink.sub_(8), "whole numbers / 128"),
    (lesson.check_input, lambda ink: "ink", "numbers that fit"),
    (lesson.check_repaired, lambda: Network, "gave a type"),
    (lesson.check_repaired, Network(), "stopped with TypeError"),
    (lesson.check_repaired, nn.Module, "stopped with NotImplementedError"),
    (lesson.check_fold, lambda weight, *_: weight, "has shape"),
    (lesson.check_fold, lambda weight, bias, mean, *_: (weight * mean, bias), "Compare the columns"),
]
test_solution_passes, test_wrong_answer_is_advised = both_ways(SOLUTIONS, WRONG)


def test_the_lessons_network_is_refused_and_its_weights_are_the_repaired_ones():
    cells = nbformat.read(LESSONS[16].path, as_version=4).cells
    space = {"nn": nn, "F": F, "torch": torch}
    exec(next(cell.source for cell in cells if cell.source.startswith("class MyNetwork")), space)
    plain = space["MyNetwork"]()
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in Network().state_dict().items()}
    report = lesson.check_repaired(space["MyNetwork"])
    assert not report.ok and "conv2" in report.message
    net = ai8x.from_torch(plain, (1, 8, 8), rewrite=("stride", "adaptive_pool", "outside"), verbose=False).eval()
    x = torch.randint(-128, 128, (5, 1, 8, 8)) / 128
    assert torch.allclose(net(x).softmax(1), plain.eval()(x), atol=1e-6)  # float32 probabilities, sums of at most 216 products
