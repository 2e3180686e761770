"""The design brief, claim by claim, for lesson 10: its own words (data/claims.json), and the verdict that a measurement gives.

The brief says some things several times; `lines` names every line of it where a claim stands, first that of the quoted words. A
`Page` collects verdicts, each with what a cell shows, and refuses one that the cell does not show. Below it stand the measurements
that take more than a few lines: what stored runs lost, how far a gradient is off, how weights kept as integers learn.
"""

import copy
import html
import json
from dataclasses import dataclass

import torch

from qatcourse import DATA
from qatcourse.labs.imitate import student_layer
from qatcourse.pose.train import batch_loss
from qatcourse.viz import PALETTE, drawing, figure
from qatlib import ai8x
from qatlib.ai8x.qat import layers
from qatlib.quantizers import dequantize, quantize, round_half_up
from qatlib.wording import columns

HOLDS, WHEN, FALSE, UNTESTED = VERDICTS = ("holds", "holds when", "false", "not tested here")
_LOOK = {  # verdict: its colour, which never changes; the mark that says the same without colour; the colour of words on it
    HOLDS: (PALETTE["blue"], "✓", "white", "as it stands"),
    WHEN: (PALETTE["orange"], "◐", "black", "on a condition that the brief does not name"),
    FALSE: (PALETTE["red"], "✗", "black", "as it stands, or as the sign that it is offered for"),
    UNTESTED: ("#595959", "?", "white", "nothing on this computer can decide it; the reason is given"),
}
SECTIONS = {13: "idea", 42: "the layer", 92: "why FP32", 130: "set-up", 159: "PTQ", 189: "is it on?", 230: "export"}


@dataclass(frozen=True)
class Claim:
    """One claim: `number` in the page, its words in the brief, `lines` where it stands, first that of the words.

    `shown`: the sentence of its evidence, a format string; `condition`: on what it holds, to follow the words "holds when".
    """

    number: int
    quote: str
    lines: list[int]
    shown: str = ""
    condition: str = ""


class _Each(dict):
    """A dict that formats as its names and values, each value by the format that is given."""

    def __format__(self, form: str) -> str:
        return ", ".join(f"{name} {value:{form}}" for name, value in self.items())


CLAIMS = tuple(Claim(number, **entry) for number, entry in enumerate(json.loads((DATA / "claims.json").read_text()), 1))


def chip(verdict: str) -> str:
    """A verdict as HTML in its colour."""
    ground, mark, ink, _ = _LOOK[verdict]
    look = f"background:{ground};color:{ink};padding:1px 6px;border-radius:3px;white-space:nowrap"
    return f'<span style="{look}">{mark} {verdict}</span>'


class Legend:
    """The four verdicts in their colours, with what they mean."""

    def __repr__(self) -> str:
        return "\n".join(f"{mark} {verdict}: {means}" for verdict, (_, mark, _, means) in _LOOK.items())

    def _repr_html_(self) -> str:
        return "".join(f"<p>{chip(verdict)} {look[-1]}</p>" for verdict, look in _LOOK.items())


class Verdicts:
    """A table of verdicts that displays itself, each in its colour. `rows`: (claim, verdict, condition, evidence)."""

    def __init__(self, rows: list[tuple]):
        self.rows = rows

    def _cells(self):
        for claim, verdict, condition, said in self.rows:
            words = f"“{claim.quote.replace('**', '').replace('`', '')}” (line {claim.lines[0]})"
            yield str(claim.number), words, verdict, condition, said

    def __repr__(self) -> str:
        lines = [(*start, f"{verdict} {condition}".strip(), said) for *start, verdict, condition, said in self._cells()]
        return columns([("no.", "the brief", "verdict", "shown above"), *lines])

    def _repr_html_(self) -> str:
        cell, body = '<td style="text-align:left;vertical-align:top">', ""
        for number, words, verdict, *told in self._cells():
            condition, said = map(html.escape, told)
            texts = number, html.escape(words), f"{chip(verdict)} {condition}", said
            body += "<tr>" + "".join(f"{cell}{text}</td>" for text in texts) + "</tr>"
        names = ("", "The brief", "Verdict", "Shown above")
        head = "".join(f'<th scope="col" style="text-align:left">{name}</th>' for name in names)
        return f'<table style="max-width:64em"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


class Page:
    """Verdicts as measured: `page.holds(1, shown, share=0.3)`, `page.when(2, shown)`, `page.false(3, shown)`.

    `shown`: whether the measurement shows what the verdict says; where it does not, the page refuses the verdict. The values that
    follow go into the claim's sentence. As the last value of a cell it shows the verdicts that are new.
    """

    def __init__(self, claims=CLAIMS):
        self.claims = {claim.number: claim for claim in claims}
        self.verdicts: dict[int, tuple[str, str, str]] = {}
        self._new: list[int] = []

    def holds(self, number: int, shown, **values) -> "Page":
        return self._judge(number, HOLDS, shown, values)

    def when(self, number: int, shown, **values) -> "Page":
        return self._judge(number, WHEN, shown, values)

    def false(self, number: int, shown, **values) -> "Page":
        return self._judge(number, FALSE, shown, values)

    def untested(self, number: int, **values) -> "Page":
        return self._judge(number, UNTESTED, True, values)

    def _judge(self, number: int, verdict: str, shown, values: dict) -> "Page":
        claim = self.claims.get(number, Claim(number, "", []))
        sentence = claim.shown.format(**{name: _Each(v) if isinstance(v, dict) else v for name, v in values.items()})
        return self.settle(number, verdict, claim.condition, sentence, shown)

    def settle(self, number: int, verdict: str, condition: str, evidence: str, shown=True) -> "Page":
        if number not in self.claims:
            raise ValueError(f"there is no claim {number}; they are numbered 1 to {max(self.claims)}")
        if bool(condition.strip()) != (verdict == WHEN):
            raise ValueError(f"claim {number}: '{verdict}', condition {condition!r}; a condition goes with 'holds when' alone")
        if not evidence.strip():
            raise ValueError(f"claim {number} needs evidence: the sentence that a measurement gave")
        if not shown:
            raise ValueError(f"claim {number}: the measurement does not show '{verdict}': {evidence}")
        self.verdicts[number] = (verdict, condition, evidence)
        self._new.append(number)
        return self

    def _ipython_display_(self) -> None:
        from IPython.display import display

        new, self._new = self._new, []
        display(Verdicts([(self.claims[n], *self.verdicts[n]) for n in new]))

    @property
    def open(self) -> list[int]:
        """Numbers of the claims without a verdict yet."""
        return [number for number in self.claims if number not in self.verdicts]

    def counts(self) -> dict[str, int]:
        """verdict -> number of claims."""
        return {verdict: sum(v == verdict for v, _, _ in self.verdicts.values()) for verdict in VERDICTS}

    def whole(self) -> Verdicts:
        """All verdicts, by number. Raises ValueError while one is missing."""
        if self.open:
            raise ValueError(f"no verdict yet on {', '.join(map(str, self.open))}; run the cells above from the top")
        return Verdicts([(claim, *self.verdicts[n]) for n, claim in self.claims.items()])

    @drawing
    def map(self):
        """Where in the brief the verdicts stand: a lane for each, a stroke at each line of a claim. Returns (figure, sentence)."""
        fig, axis = figure(height=2.6)
        counts, names = self.counts(), []
        for lane, verdict in enumerate(reversed(VERDICTS)):
            at = [line for claim, given, *_ in self.whole().rows if given == verdict for line in claim.lines]
            axis.vlines(at, lane - 0.38, lane + 0.38, color=_LOOK[verdict][0], linewidth=2.2)
            names.append(f"{verdict}: {counts[verdict]}")
        for line, name in SECTIONS.items():
            axis.axvline(line, color="black", linestyle=":", linewidth=0.8)
            axis.text(line + 1, len(names) - 0.45, name, fontsize=8)
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="line of the brief; a dotted line begins a section", xlim=(0, 292), ylim=(-0.5, len(names) - 0.1))
        axis.grid(False)
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        return fig, f"{len(self.claims)} claims, a stroke at every line of the brief where one stands: {told}."


# --- measurements ----------------------------------------------------------------------------------------------------------


def losses(stored: dict, version: str) -> dict[int, dict[str, float]]:
    """bits -> run -> share of FP32's PCK that `version` ("naive", "ptq" or "qat") lost, over all runs in data/reference.json.

    FP32 is the float network trained on for as long as QAT, where the run has one. A gain is negative.
    """
    found: dict[int, dict[str, float]] = {8: {}, 4: {}, 2: {}}
    for name, entry in stored.items():
        run, _, rest = name.partition(".bits")
        if rest[1:] == f".{version}.pck":
            fp32 = stored.get(f"{run}.fp32_longer.pck", stored.get(f"{run}.fp32.pck"))
            found[int(rest[0])][run] = 1 - entry["value"] / fp32["value"]
    return found


def span(values) -> str:
    """Smallest and largest share as text, in percent."""
    values = [100 * value for value in values]
    return f"{min(values):.1f} to {max(values):.1f} %"


def verdict(found: dict[int, dict[str, float]], low: float, high: float) -> tuple[str, str]:
    """(verdict, condition) for "loses `low` to `high`" over the runs of `losses`; the condition names bits and how many runs."""
    hits = {bits: sum(low <= share <= high for share in runs.values()) for bits, runs in found.items()}
    where = [f"{bits} bits" + f" ({n} of {len(found[bits])} runs)" * (n < len(found[bits])) for bits, n in hits.items() if n]
    if not where or all(n == len(found[bits]) for bits, n in hits.items()):
        return HOLDS if where else FALSE, ""
    return WHEN, f"weights have {', or '.join(where)}"


def ptq_verdict(stored: dict) -> tuple[str, str, str]:
    """(verdict, condition, evidence) for "PTQ often loses 5 to 10 %", from calibrated runs; the evidence names the others too."""
    ptq, careless = losses(stored, "ptq"), [share for runs in losses(stored, "naive").values() for share in runs.values()]
    told = ", ".join(f"{bits} bits {span(runs.values())}" for bits, runs in ptq.items() if runs)
    return *verdict(ptq, 0.05, 0.10), f"calibrated, {told}; uncalibrated, {span(careless)}"


def qat_verdict(stored: dict) -> tuple[str, str, str]:
    """(verdict, condition, evidence) for "QAT often loses less than 2 %"."""
    found = losses(stored, "qat")
    told = "; ".join(f"{bits} bits {span(runs.values())}" for bits, runs in found.items())
    return *verdict(found, -1, 0.02), f"lost, beside float trained as long: {told}"


def gradient(model, poses, layer: str = "conv2"):
    """The pose loss's gradient at one layer's float weights, in training mode; its shape is the weights'."""
    model = copy.deepcopy(model).train()
    batch_loss(model, poses.images, poses.joints, poses.labelled).backward()
    return model.get_submodule(layer).op.weight.grad


def gradient_noise(exact, models: dict, poses, others) -> dict[str, float]:
    """How far each model's gradient on `poses` is from that of `exact`, relative to it; first its own on `others`."""
    g = gradient(exact, poses)
    found = {"other pictures": gradient(exact, others)} | {name: gradient(model, poses) for name, model in models.items()}
    return {name: ((other - g).norm() / g.norm()).item() for name, other in found.items()}


def halved_is_better(layer, bits: int = 8) -> bool:
    """Has a grid of half the range a smaller squared error than the one that the largest weight (or bias) sets?"""
    weight, full = layer.op.weight.detach(), 2.0 ** (layer.weight_shift().item() + 1 - bits)
    chosen, half = ((dequantize(quantize(weight, s, 0, bits), s, 0) - weight).square().mean() for s in (full, full / 2))
    return bool(half < chosen)


def in_float(model):
    """A copy of a network after QAT that computes with its float weights as they are: quantization off."""
    model = copy.deepcopy(model)
    for layer in layers(model).values():
        layer.init_module(None, None, False)
    ai8x.update_model(model)
    return model


def descend(teacher, inputs, rate: float, integers: bool, steps: int = 30) -> tuple[list[float], float]:
    """An 8-bit copy of a layer, its weights disturbed by some codes, learns to imitate it: (relative error at each step, moved).

    `integers`: its weights are kept as codes, rounded after every step, in place of FP32. `moved`: the share of codes that changed.
    """
    with torch.no_grad():
        wanted, student = teacher(inputs), student_layer(teacher, inputs, 8)
    weight, errors = student.op.weight.data, []
    grid = 2 ** student.weight_shift().item() / 128
    weight += 8 * grid * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    first = round_half_up(weight / grid)
    weight.copy_(first * grid if integers else weight)
    optimizer = torch.optim.Adam(student.op.parameters(), lr=rate)
    for _ in range(steps):
        error = (student(inputs) - wanted).square().mean() / wanted.square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        if integers:
            weight.copy_(round_half_up(weight / grid) * grid)
        errors.append(error.item())
    return errors, (round_half_up(weight / grid) != first).float().mean().item()


def sweep(teacher, inputs, rates) -> dict[str, list]:
    """What `descend` gives at each of `rates`, with FP32 weights and with integers."""
    kinds = {"FP32 weights": False, "integer weights": True}
    return {name: [descend(teacher, inputs, rate, integers) for rate in rates] for name, integers in kinds.items()}
