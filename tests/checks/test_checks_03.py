"""Lesson 03: other ways to write the right answers, and the experiment with branches."""

import copy
import math

import torch
from exercises import both_ways

from qatcourse.checks import lesson03 as lesson
from qatcourse.labs import branches
from qatlib import ai8x

SOLUTIONS = [
    (lesson.check_weight_shift, lambda w, b: -math.floor(math.log2(1 / max(w.abs().max().item(), b.abs().max().item())))),
    (lesson.check_output_code, lambda a, s: torch.clamp((a * 2.0**s / 128 + 0.5).floor(), 0, 127).long()),
]
WRONG = [(lesson.check_fuse, lambda w, b, *rest: w, "two tensors")]
test_solution_passes, test_wrong_answer_is_advised = both_ways(SOLUTIONS, WRONG)


def test_branches_need_one_threshold():
    """Equal thresholds give the float result within the error of 8 bits; each branch's own gives another function."""
    net, x = branches.Branches(ratio=8).eval(), (torch.randint(-128, 128, (4, 3, 8, 8)) / 128)
    own, before = branches.measured(net, x), copy.deepcopy(net.state_dict())
    assert own["loud"] >= own["quiet"] + 2 and all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    joined = copy.deepcopy(net)
    ai8x.start_qat(joined, [x], {"weight_bits": 8}, progress=False)
    assert joined.quiet.activation_threshold == joined.loud.activation_threshold == max(own["quiet"], own["loud"])
    apart = branches.unequal(joined.eval(), own)
    assert apart.quiet.activation_threshold == own["quiet"] and joined.quiet.activation_threshold == own["loud"]
    with torch.no_grad():
        wanted = net(x)
        errors = [((version(x) - wanted).square().mean() / wanted.square().mean()).item() for version in (joined, apart)]
    assert errors[0] < 0.1 and errors[1] > 1
