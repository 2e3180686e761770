"""The claims page of lesson 10: what it refuses, how it shows verdicts, that no line of the brief is left out; its measurements."""

import os
from pathlib import Path

import pytest
import torch

from qatcourse import ROOT, course
from qatcourse.labs import claims, imitate
from qatcourse.labs.claims import CLAIMS, FALSE, HOLDS, UNTESTED, VERDICTS, WHEN, Claim, Legend, Page, Verdicts
from qatcourse.pose.evaluate import calibrated_ptq
from qatcourse.viz import PALETTE
from qatlib import ai8x

BRIEF = Path(os.environ.get("QATLIB_BRIEF") or ROOT.parent / "shared" / "reference" / "qat-brief.md")
LABELS = (
    "↑",
    "**Key Points**",
    "def forward",
    "**Stored",
    "**After",
    "**Parameters**",
    "**Benefits**",
    "**Expected**",
    "**Process**",
    "**Result**",
)
FOUR = [
    Claim(1, "weights are **FP32**", [6], "{share:.0%} <of> them"),
    Claim(2, "it is on", [7, 36], "{pck:.2f}", "it was switched on"),
    Claim(3, "`shift` is learned", [78], "it holds 0"),
    Claim(4, "it is fast", [280], "no chip here"),
]


def settled():
    page = Page(FOUR)
    page.holds(1, True, share=1).when(2, True, pck={"FP32": 0.8, "QAT": 0.79})
    return page.false(3, True).untested(4)


@pytest.mark.skipif(not BRIEF.is_file(), reason="the brief is not here; QATLIB_BRIEF names it")
def test_the_claims_are_the_words_of_the_brief_and_leave_no_line_out():
    lines = dict(enumerate(BRIEF.read_text().splitlines(), 1))
    for claim in CLAIMS:
        assert claim.quote in lines[claim.lines[0]], claim
    cited = {line for claim in CLAIMS for line in claim.lines}
    assert all(lines[line].strip() and not lines[line].startswith("#") for line in cited)
    rest = [text.strip() for line, text in lines.items() if line not in cited and text.strip()]
    assert [text for text in rest if not text.startswith(("#", "---", "```", *LABELS))] == []


def test_claims_are_short_and_have_their_sentences():
    assert [claim.number for claim in CLAIMS] == list(range(1, len(CLAIMS) + 1))
    assert all(len(claim.quote.split()) <= 12 and claim.lines for claim in CLAIMS)
    assert [claim.number for claim in CLAIMS if not claim.shown] == [18, 19]  # computed from stored runs


def test_page_refuses_gaps_and_what_is_not_shown():
    page = Page(FOUR)
    page.holds(1, True, share=1)
    with pytest.raises(ValueError, match="no verdict yet on 2, 3, 4"):
        page.whole()
    for wrong, said in (
        (lambda: page.holds(1, False, share=0.5), "claim 1: the measurement does not show 'holds': 50%"),
        (lambda: page.holds(5, True), "there is no claim 5"),
        (lambda: page.when(1, True, share=1), "a condition goes with"),
        (lambda: page.false(2, True, pck={}), "a condition goes with"),
        (lambda: page.settle(1, HOLDS, "", " "), "needs evidence"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


def test_page_counts_and_shows_verdicts_in_fixed_colours(capsys):
    page = settled()
    assert page.counts() == dict.fromkeys(VERDICTS, 1) and page.open == []
    page._ipython_display_()
    assert "it is on” (line 7)" in capsys.readouterr().out and page._new == []
    whole = page.whole()
    assert "holds when it was switched on" in repr(whole) and "FP32 0.80, QAT 0.79" in repr(whole)
    text = whole._repr_html_()
    assert "100% &lt;of&gt; them" in text and "“shift is learned” (line 78)" in text
    colours = [PALETTE["blue"], PALETTE["orange"], PALETTE["red"]]
    assert [claims._LOOK[verdict][0] for verdict in (HOLDS, WHEN, FALSE)] == colours
    assert all(claims.chip(verdict) in text and claims.chip(verdict) in Legend()._repr_html_() for verdict in VERDICTS)
    assert repr(Legend()).count("\n") == 3 and isinstance(whole, Verdicts) and UNTESTED in repr(whole)


def test_the_map_names_the_counts():
    fig, sentence = settled().map()
    assert sentence.startswith("4 claims") and "1 not tested here" in sentence
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == [f"{verdict}: 1" for verdict in reversed(VERDICTS)]


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
    assert (verdict, condition) == (WHEN, "weights have 4 bits")
    assert "4 bits 7.5 to 7.5 %" in evidence and "uncalibrated, 50.0 to 87.5 %" in evidence
    more = claims.ptq_verdict(known | {"two.bits4.ptq.pck": {"value": 0.4}})
    assert more[:2] == (WHEN, "weights have 4 bits (1 of 2 runs)")
    assert claims.ptq_verdict(known | {"one.bits4.ptq.pck": {"value": 0.4}})[:2] == (FALSE, "")
    assert claims.verdict({8: {"one": 0.0}, 4: {"one": 0.01}}, -1, 0.02) == (HOLDS, "")


@pytest.mark.parametrize("weights, better", [([1.0] + [0.24] * 12, True), ([1.0, -1.0, 1.0, -1.0, 0.5], False)])
def test_half_the_range_may_have_less_error(weights, better):
    layer = ai8x.Conv2d(1, 1, 1, bias=False, weight_bits=2, bias_bits=2, quantize_activation=True)
    layer.op.weight.data = torch.tensor(weights).view(-1, 1, 1, 1)
    assert layer.weight_shift() == 0 and claims.halved_is_better(layer, bits=2) is better


def layer_and_inputs():
    torch.manual_seed(0)
    layer = ai8x.FusedConv2dReLU(3, 8, 3, padding=1).eval()
    return layer, torch.rand(4, 3, 8, 8) * 2 - 1


def test_small_steps_are_lost_where_weights_are_integers():
    kept, rounded = (claims.descend(*layer_and_inputs(), 1e-4, integers, steps=10) for integers in (False, True))
    assert kept[1] > 0 == rounded[1] and kept[0][0] == pytest.approx(rounded[0][0], rel=0.2) and kept[0][-1] < kept[0][0]


def test_a_network_after_qat_computes_in_float_again():
    layer, x = layer_and_inputs()
    quantized = torch.nn.Sequential(layer)
    ai8x.start_qat(quantized, [(x,)], {"weight_bits": 2}, progress=False)
    back = claims.in_float(quantized)
    torch.testing.assert_close(back(x), torch.relu(layer.op(x)))
    assert back[0].weight_bits == 0 and quantized[0].weight_bits == 2


def test_what_is_measured_at_layers():
    network, x = course.pretrained(), torch.rand(2, 12, 8, 8) * 2 - 1
    assert imitate.on_grid(torch.tensor([0.5, 0.3])) == 0.5 and imitate.at_the_end(torch.tensor([1.0, 0.5])) == 0.5
    assert imitate.pooled([3, 0, 0, 0]) == 0 and imitate.pooled([4, 0, 0, 0]) == 1
    larger = imitate.larger(network.conv1, 4)
    assert torch.equal(larger.op.weight, 4 * network.conv1.op.weight) and larger is not network.conv1
    qat = calibrated_ptq(network, [(x,)], 8)
    outputs, gradients = imitate.simulated(qat, (x * 128).round() / 128)
    assert torch.equal(outputs, outputs.round()) and not any(g.any() for g in gradients) and not ai8x.dev.simulate
