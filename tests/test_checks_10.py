"""Lesson 10's exercises and its page of verdicts: solutions pass, stubs and typical wrong answers get their advice."""

import pytest
import torch
from exercises import both_ways

from qatlib import ai8x, claims
from qatlib.checks import lesson10 as lesson
from qatlib.claims import CLAIMS, VERDICTS, Page


def verdicts(**changes):
    truth = {claim: verdict for claim, (verdict, _) in lesson._TRUTH.items()}
    return truth | {next(claim for claim in truth if claim.startswith(word)): v for word, v in changes.items()}


def layers(model):
    return [m for m in model.modules() if hasattr(m, "weight_bits") and m.op is not None]


def is_on(model):
    found = layers(model)
    return bool(found) and all(m.weight_bits.item() > 0 and bool(m.quantize_activation) for m in found)


def loss(fp32, quantized):
    return 100 * (fp32 - quantized), 100 * (fp32 - quantized) / fp32


SOLUTIONS = [(lesson.check_verdicts, verdicts()), (lesson.check_qat_is_on, is_on), (lesson.check_loss, loss)]
WRONG = [
    (lesson.check_verdicts, verdicts(output_shift="holds"), "need a gradient"),
    (lesson.check_verdicts, verdicts(set_device="holds when"), "weight_bits"),
    (lesson.check_verdicts, verdicts(batch="true"), "no verdict"),
    (lesson.check_verdicts, verdicts(master=""), "no verdict on 1"),
    (lesson.check_verdicts, None, "keep it a dict"),
    (lesson.check_qat_is_on, lambda m: True, "set_device alone"),
    (lesson.check_qat_is_on, lambda m: all(p.weight_bits > 0 for p in layers(m)), "quantize_activation"),
    (lesson.check_qat_is_on, lambda m: any(p.weight_bits > 0 for p in layers(m)), "float network"),
    (lesson.check_qat_is_on, lambda m: all(p.weight_bits > 0 and p.quantize_activation for p in layers(m)), "all() of nothing"),
    (lesson.check_qat_is_on, lambda m: all(p.weight_bits == 8 for p in layers(m)), "any weight_bits above 0"),
    (lesson.check_qat_is_on, lambda m: all(bool(p.clamp_activation) for p in layers(m)), "clamp is not quantization"),
    (lesson.check_loss, lambda a, b: (a - b, (a - b) / a), "percent"),
    (lesson.check_loss, lambda a, b: loss(a, b)[::-1], "swapped"),
    (lesson.check_loss, lambda a, b: (100 * (b - a), 100 * (b - a) / a), "signs"),
    (lesson.check_loss, lambda a, b: (100 * (a - b), 100 * (a - b) / b), "float accuracy"),
]
STUBS = [lesson.check_qat_is_on, lesson.check_loss]
test_solution_passes, test_wrong_answer_is_advised, test_stub_and_broken_code_are_told_so = both_ways(SOLUTIONS, WRONG, STUBS)


def test_untouched_verdicts_are_told_so():
    assert "no verdict on 6 of 6" in lesson.check_verdicts(dict.fromkeys(lesson._TRUTH, "")).message


def test_claims_are_numbered_and_short():
    assert [claim.number for claim in CLAIMS] == list(range(1, len(CLAIMS) + 1))
    assert all(len(claim.says.split()) <= 14 and claim.lines for claim in CLAIMS)


def test_page_refuses_gaps_and_counts_verdicts():
    page = Page(CLAIMS[:3])
    page.holds(1, "measured")
    page.when(2, "it is on", "measured")
    assert page.open == [3]
    with pytest.raises(ValueError, match="no verdict yet on 3"):
        page.summary()
    page.false(3, "measured otherwise")
    assert page.counts() == dict.fromkeys(VERDICTS, 1)
    assert page.rows()[1]["verdict"] == "holds when it is on"
    for wrong in (lambda: page.holds(4, "x"), lambda: page.holds(1, " "), lambda: page.when(1, "", "x")):
        with pytest.raises(ValueError, match="claim"):
            wrong()


def test_the_page_names_the_lines_of_the_brief():
    page = Page(CLAIMS[:1])
    page.holds(1, "measured")
    assert page.rows()[0]["lines"] == CLAIMS[0].lines == "5-6, 35, 119, 150, 257, 259, 271, 277"


def stored(**changes):
    numbers = {"one.fp32_longer.pck": 0.8, "one.bits4.qat.pck": 0.76, "two.fp32.pck": 0.5, "two.bits8.qat.pck": 0.51}
    return {name: {"value": value} for name, value in (numbers | changes).items()}


def test_losses_are_relative_to_float_trained_on():
    found = claims.losses(stored(), "qat")
    assert found[4] == pytest.approx({"one": 0.05}) and found[8] == pytest.approx({"two": -0.02}) and found[2] == {}
    assert claims.span(found[4].values()) == "5.0 to 5.0 %"


def test_the_verdict_on_ptq_fails_where_stored_runs_contradict_it():
    from qatlib import reference

    known = reference.load()
    condition, evidence = claims.ptq_verdict(known)
    assert "4 bits" in condition and "uncalibrated" in evidence
    other = known | {"short.bits4.ptq.pck": {"value": 0.1}}
    with pytest.raises(AssertionError):
        claims.ptq_verdict(other)


def test_a_weight_jumps_between_codes_and_rests_on_one():
    assert claims.jumps(lambda k: 0.0) == 0 == claims.jumps(lambda k: 0.2, target=0.25, start=0.25)
    assert all(claims.jumps(rate) > 50 for rate in claims.RATES.values())


@pytest.mark.parametrize("weights, better", [([1.0] + [0.24] * 12, True), ([1.0, -1.0, 1.0, -1.0, 0.5], False)])
def test_half_the_range_may_have_less_error(weights, better):
    layer = ai8x.Conv2d(1, 1, 1, bias=False, weight_bits=2, bias_bits=2, quantize_activation=True)
    layer.op.weight.data = torch.tensor(weights).view(-1, 1, 1, 1)
    assert layer.weight_shift() == 0 and claims.halved_is_better(layer) is better
