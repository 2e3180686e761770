"""Lesson 05's exercise that is no table: the steps that start QAT."""

from exercises import both_ways

from qatcourse.checks import lesson05 as lesson
from qatlib import ai8x


def start(model, batches, policy):
    ai8x.fuse_bn_layers(model)
    ai8x.pre_qat(model, batches, policy)
    ai8x.initiate_qat(model, policy)
    return model


def start_with_another_bias(model, batches, policy):
    start(model, batches, policy)
    model.head.op.bias.data += 1


def start_without_statistics(model, batches, policy):
    ai8x.fuse_bn_layers(model)
    ai8x.initiate_qat(model, policy)
    return model


def start_without_fusing(model, batches, policy):
    ai8x.pre_qat(model, batches, policy)
    ai8x.initiate_qat(model, policy)
    return model


def start_without_switching_on(model, batches, policy):
    ai8x.fuse_bn_layers(model)
    ai8x.pre_qat(model, batches, policy)
    return model


SOLUTIONS = [(lesson.check_start, start)]
WRONG = [
    (lesson.check_start, start_without_statistics, "pre_qat"),
    (lesson.check_start, start_without_fusing, "fuse_bn_layers"),
    (lesson.check_start, start_without_switching_on, "initiate_qat"),
    (lesson.check_start, start_with_another_bias, "outputs differ"),
]
test_solution_passes, test_wrong_answer_is_advised = both_ways(SOLUTIONS, WRONG)


def test_bn_left_in_the_stub_of_start_returns_the_model():
    assert "changed nothing" in lesson.check_start(lambda model, batches, policy: model).message
