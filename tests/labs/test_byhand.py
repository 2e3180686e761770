"""The pieces of the solutions: they train, and equal qatlib's QAT to the last bit, by hand and by `train`."""

from types import SimpleNamespace

import pytest
import torch

from qatcourse import course
from qatcourse.checks.lesson03 import solved
from qatcourse.labs.byhand import SOURCE, SUMS, equalise
from qatcourse.pose.data import load, to_input
from qatcourse.pose.evaluate import calibration_batches
from qatcourse.pose.model import pose_loss
from qatcourse.pose.train import FORMAT, configure, tensor_batches, train
from qatlib import ai8x
from qatlib.ai8x.graph import trace


@pytest.fixture(scope="module")
def pieces():
    return SimpleNamespace(**solved())


def test_the_wiring_is_the_networks():
    nodes = {node.module or node.name: node for node in trace(course.pretrained())}
    names = {node.name: node.module for node in trace(course.pretrained())}
    read = {name: [names[i] or "input" for i in nodes[name].inputs] for name in (*SOURCE, *SUMS)}
    assert {name: set(read[name]) for name in SUMS} == {name: set(both) for name, both in SUMS.items()}
    assert {name: read[name] for name in SOURCE} == {name: [before] for name, before in SOURCE.items()}


@pytest.mark.parametrize("bits", [8, 4])
def test_the_solutions_pieces_train_and_equal_qatlib_step_by_step(pieces, bits):
    config = configure("quick", weight_bits=bits, epochs=1, start_epoch=0, n_train=400, shift_quantile=1.0, batch_size=50)
    pictures = load("figures", "train", config.n_train, progress=False)
    x = to_input(pictures.images)
    yours, theirs = pieces.my_network(course.pretrained()), course.pretrained()
    pieces.my_ptq(yours, equalise(pieces.my_calibrate(yours, x)), SOURCE, bits)
    ai8x.start_qat(theirs, calibration_batches(pictures), config.policy(), progress=False)
    for name in SUMS:
        getattr(yours, name).set_clamp(True)
    losses = {}
    for net, logits in ((yours, yours), (theirs, theirs.logits)):
        weights = [p for p in net.to(memory_format=FORMAT).parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, weight_decay=config.weight_decay)
        losses[net] = pieces.my_train(logits, pose_loss, optimizer, tensor_batches(config, pictures, epoch=0))
    run = train(config, init=course.pretrained().state_dict(), train_poses=pictures, test_poses=pictures.subset(8), progress=False)
    assert losses[yours] == losses[theirs] and len(losses[yours]) == 8 and losses[yours][0] != losses[yours][-1]
    with torch.no_grad():
        maps = yours(x[:100])
        assert torch.equal(maps, theirs.logits(x[:100])) and torch.equal(maps, run.model.logits(x[:100]))
    assert torch.equal(yours.head.op.weight, run.model.head.op.weight)
