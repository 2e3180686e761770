"""Lesson 10's exercises and its page of verdicts: solutions pass, stubs and typical wrong answers get their advice."""

import pytest
from exercises import both_ways

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
