"""Lesson 03's exercises: solutions pass; stubs and typical wrong answers fail, each with its own advice."""

import copy
import math

import torch
from exercises import both_ways

from qatlib import ai8x, branches
from qatlib.checks import lesson03 as lesson


def largest(weight, bias):
    return max(weight.abs().max().item(), bias.abs().max().item())


def factor(var, gamma, eps):
    return gamma / torch.sqrt(var + eps)


def fuse(weight, bias, mean, var, gamma, beta, eps):
    return weight * factor(var, gamma, eps).view(-1, 1, 1, 1), (bias - mean) * factor(var, gamma, eps) + beta


def code(accumulator, shift):
    return torch.floor(torch.relu(accumulator * 2.0**shift) / 128 + 0.5).clamp(max=127)


def fused_with(scale, add_beta=True):
    def answer(weight, bias, mean, var, gamma, beta, eps):
        f = scale(var, gamma, eps)
        return weight * f.view(-1, 1, 1, 1), (bias - mean) * f + (beta if add_beta else 0)

    return answer


SOLUTIONS = [
    (lesson.check_weight_shift, lambda w, b: math.ceil(math.log2(largest(w, b)))),
    (lesson.check_weight_shift, lambda w, b: -math.floor(math.log2(1 / largest(w, b)))),
    (lesson.check_fuse, fuse),
    (lesson.check_output_code, code),
    (lesson.check_output_code, lambda a, s: torch.clamp((a * 2.0**s / 128 + 0.5).floor(), 0, 127).long()),
]
WRONG = [
    (lesson.check_weight_shift, lambda w, b: -math.ceil(math.log2(largest(w, b))), "sign"),
    (lesson.check_weight_shift, lambda w, b: math.ceil(math.log2(w.abs().max())), "bias counts"),
    (lesson.check_weight_shift, lambda w, b: math.log2(largest(w, b)), "whole number"),
    (lesson.check_weight_shift, lambda w, b: math.floor(math.log2(largest(w, b))), "round up"),
    (lesson.check_fuse, fused_with(factor, add_beta=False), "lacks beta"),
    (lesson.check_fuse, fused_with(lambda v, g, e: g / (v + e)), "square root"),
    (lesson.check_fuse, fused_with(lambda v, g, e: 1 / torch.sqrt(v + e)), "gamma"),
    (lesson.check_fuse, lambda w, b, *rest: (fuse(w, b, *rest)[0], b), "bias is not"),
    (lesson.check_fuse, lambda w, b, *rest: w, "two tensors"),
    (lesson.check_output_code, lambda a, s: torch.floor(a * 2.0**s / 128 + 0.5).clamp(-128, 127), "ReLU"),
    (lesson.check_output_code, lambda a, s: torch.floor(torch.relu(a * 2.0**s) / 128 + 0.5), "saturate"),
    (lesson.check_output_code, lambda a, s: torch.floor(torch.relu(a * 2.0**s) / 128).clamp(max=127), "drop the fraction"),
    (lesson.check_output_code, lambda a, s: torch.round(torch.relu(a * 2.0**s) / 128).clamp(max=127), "even neighbour"),
    (lesson.check_output_code, lambda a, s: code(a, -s), "direction"),
]
test_solution_passes, test_wrong_answer_is_advised, test_stub_and_broken_code_are_told_so = both_ways(SOLUTIONS, WRONG)


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
