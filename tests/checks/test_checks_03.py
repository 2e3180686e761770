"""Lesson 03: the pieces of the solutions, and answers that are no layer; the tables of mistakes are read by test_tables.py."""

import pytest
from torch import nn

from qatcourse.checks import lesson03 as lesson


@pytest.mark.parametrize("name", ["my_fuse", "my_threshold", "my_weight_shift", "MyLayer", "my_output_code"])
def test_the_pieces_of_the_solutions_pass(name):
    check = lesson.check_layer if name == "MyLayer" else getattr(lesson, f"check_{name[3:]}")
    assert check.piece and check.judge(lesson.solved()[name]).ok


def test_what_is_no_layer_is_told_so():
    class Untouched(nn.Module):
        def __init__(self, op, relu=True, wide=False):
            super().__init__()
            self.op = op

        def forward(self, x):
            ...

    assert "returned None" in lesson.check_layer.judge(Untouched).message
    assert "returned None" in lesson.check_layer.judge(lambda *arguments: None).message
    assert "ZeroDivisionError" in lesson.check_layer.judge(lambda *arguments: 1 / 0).message
    assert "two tensors" in lesson.check_fuse.judge(lambda w, *rest: w).message


def test_a_row_whose_passage_the_solution_has_no_longer_is_refused():
    with pytest.raises(ValueError, match="no longer has 'not there'"):
        lesson.solved("not there", "")


def test_the_threshold_is_that_of_the_library():
    from qatlib.ai8x.statistics import histogram, log2_threshold

    for label, y in lesson.check_threshold.all_cases():
        assert lesson.check_threshold.reference(y) == log2_threshold([histogram(y)]).item(), label
