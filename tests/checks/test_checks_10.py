"""Lesson 10's exercise that is no table, and its page of verdicts."""

import pytest
import torch
from exercises import both_ways

from qatcourse.checks import lesson10 as lesson
from qatcourse.labs import claims
from qatcourse.labs.claims import CLAIMS, VERDICTS, Page
from qatlib import ai8x


def verdicts(**changes):
    truth = {claim: verdict for claim, (verdict, _) in lesson._TRUTH.items()}
    return truth | {next(claim for claim in truth if claim.startswith(word)): v for word, v in changes.items()}


SOLUTIONS = [(lesson.check_verdicts, verdicts())]
WRONG = [
    (lesson.check_verdicts, verdicts(output_shift="holds"), "need a gradient"),
    (lesson.check_verdicts, verdicts(set_device="holds when"), "weight_bits"),
    (lesson.check_verdicts, verdicts(batch="true"), "no verdict"),
    (lesson.check_verdicts, verdicts(master=""), "no verdict on 1"),
    (lesson.check_verdicts, None, "keep it a dict"),
]
test_solution_passes, test_wrong_answer_is_advised = both_ways(SOLUTIONS, WRONG)


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


def test_the_verdict_on_ptq_follows_the_stored_runs():
    numbers = {f"one.bits{bits}.{version}.pck": pck for version, pcks in {"ptq": (0.8, 0.74, 0.1), "naive": (0.4, 0.1, 0.1)}.items()
               for bits, pck in zip((8, 4, 2), pcks)}  # fmt: skip
    known = {name: {"value": value} for name, value in (numbers | {"one.fp32.pck": 0.8, "two.fp32.pck": 0.8}).items()}
    verdict, condition, evidence = claims.ptq_verdict(known)
    assert (verdict, condition) == (claims.WHEN, "weights have 4 bits")
    assert "4 bits 7.5 to 7.5 %" in evidence and "uncalibrated, 50.0 to 87.5 %" in evidence
    more = claims.ptq_verdict(known | {"two.bits4.ptq.pck": {"value": 0.4}})
    assert more[:2] == (claims.WHEN, "weights have 4 bits in 1 of 2 runs")
    assert claims.ptq_verdict(known | {"one.bits4.ptq.pck": {"value": 0.4}})[:2] == (claims.FALSE, "")
    assert claims.verdict({8: {"one": 0.0}, 4: {"one": 0.01}}, -1, 0.02) == (claims.HOLDS, "")


def test_a_weight_jumps_between_codes_and_rests_on_one():
    assert claims.jumps(lambda k: 0.0) == 0 == claims.jumps(lambda k: 0.2, target=0.25, start=0.25)
    assert all(claims.jumps(rate) > 50 for rate in claims.RATES.values())


@pytest.mark.parametrize("weights, better", [([1.0] + [0.24] * 12, True), ([1.0, -1.0, 1.0, -1.0, 0.5], False)])
def test_half_the_range_may_have_less_error(weights, better):
    layer = ai8x.Conv2d(1, 1, 1, bias=False, weight_bits=2, bias_bits=2, quantize_activation=True)
    layer.op.weight.data = torch.tensor(weights).view(-1, 1, 1, 1)
    assert layer.weight_shift() == 0 and claims.halved_is_better(layer) is better
