"""The QAT doctor: is quantization on, is it sound, and if not, what helps?

    import qatlib
    qatlib.diagnose(model, x)                      # in a notebook: a table, a verdict, remedies, lessons
    python -m qatlib.doctor runs/final.pth         # the same for a checkpoint

`measure` collects facts of every layer, `paths` those of the graph, `rules` judges them with the words of `advice`, and this module
puts all into a `Diagnosis`.
"""

import html
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from qatlib.ai8x import mode as device
from qatlib.ai8x.graph import place
from qatlib.chip.lowering import network
from qatlib.doctor.advice import LESSONS, Finding
from qatlib.doctor.measure import Measured, measure
from qatlib.doctor.paths import paths
from qatlib.doctor.rules import findings
from qatlib.wording import columns

__all__ = ["Diagnosis", "Finding", "Measured", "diagnose"]


@dataclass
class Diagnosis:
    """`layers`: one row of facts each; `findings`: problems first, then notes; shown as a table with a plain verdict."""

    layers: list[Measured]
    findings: list[Finding]
    measured: bool  # with an input; else from the parameters alone

    @property
    def problems(self) -> list[Finding]:
        """The findings that are no mere notes."""
        return [finding for finding in self.findings if finding.problem]

    @property
    def healthy(self) -> bool:
        """Whether there is no problem; notes may be there."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """The result in a few words: healthy, or how many problems of which names."""
        notes = len(self.findings) - len(self.problems)
        extra = f" ({_counted(notes, 'note')})" if notes else ""
        if self.healthy:
            return f"healthy{'' if self.measured else ', as far as parameters tell (no input was given)'}{extra}"
        names = ", ".join(dict.fromkeys(finding.name for finding in self.problems))
        return f"{_counted(len(self.problems), 'problem')}: {names}{extra}"

    def found(self, name: str) -> bool:
        """Is there a problem called `name`, such as 'input range'?"""
        return any(finding.name == name for finding in self.problems)

    def rows(self) -> list[dict[str, str]]:
        """The table as text: one dict of column name to cell for each layer."""
        return [_cells(layer) for layer in self.layers]

    def sentences(self) -> list[str]:
        """One for each kind of finding; the layers that share it are named together, with the first one's numbers."""
        kinds = {}
        for finding in self.findings:
            kinds.setdefault((finding.name, finding.problem, finding.remedy, bool(finding.layer)), []).append(finding)
        return [_sentence(alike) for alike in kinds.values()]

    def __str__(self) -> str:
        rows = self.rows()
        table = columns([rows[0], *(row.values() for row in rows)])
        return "\n".join([table, "", f"Verdict: {self.verdict}.", *(f"- {sentence}" for sentence in self.sentences())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self.rows()
        head, body = _html('th scope="col"', rows[0]), "".join(_html("td", row.values()) for row in rows)
        colour, mark = ("#0072B2", "&#10003;") if self.healthy else ("#D55E00", "&#10007;")
        said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.sentences())
        verdict = f'<p style="border-left:5px solid {colour};padding-left:8px"><b>{mark} {self.verdict}</b></p>'
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{verdict}<ul>{said}</ul>"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _html(tag: str, cells: Iterable[str]) -> str:
    """A row of a table; `tag` is td, or th with its attributes."""
    return "<tr>" + "".join(f'<{tag} style="text-align:left">{html.escape(cell)}</{tag[:2]}>' for cell in cells) + "</tr>"


def _sentence(alike: list[Finding]) -> str:
    first = alike[0]
    kind = "" if first.problem else "note, "
    layers = ", ".join(dict.fromkeys(finding.layer for finding in alike if finding.layer))
    where = f" [{layers}]" if layers else ""
    others = f" (in {first.layer}; similar in the others)" if len(alike) > 1 else ""
    return f"{kind}{first.name}{where}: {first.text}{others}. Remedy: {first.remedy}. Lesson {LESSONS[first.lesson]}."


def _cells(row: Measured) -> dict[str, str]:
    def shown(value, form=""):
        return "-" if value is None else f"{value:{form}}"

    shift, used = (None, None) if row.integers else (row.shift, row.range_used)
    return {
        "layer": row.name,
        "QAT": ("clamp on" if row.clamped else "no clamp") if row.kind == "sum" else "on" if row.on else "off",
        "bits": shown(row.bits or None),
        "input range": "-" if row.low is None else f"{row.low:.3g}..{row.high:.3g}",
        "off grid": shown(row.off_grid, ".1%"),
        "saturated": shown(row.saturated, ".1%"),
        "levels": shown(row.levels),
        "weight codes": "-" if row.weight_codes is None else f"{row.weight_codes}/{2**row.bits}",
        "range used": shown(used, ".0%"),
        "shift": shown(shift, "+d"),
        "threshold": f"{row.threshold:g}",
        "batch norm": "left" if row.batch_norm else "-",
        "dead channels": "-" if row.dead is None else f"{row.dead}/{row.channels}",
        "output": "wide" if row.wide else "8 bit" if row.on or row.clamped else "float",
        "head scale": f"{2**-shift:g}" if row.wide and row.on and shift is not None else "-",
    }


def diagnose(model: nn.Module, x: torch.Tensor | None = None, history=None) -> Diagnosis:
    """Examine a network of ai8x layers in training mode (`simulate=False`).

    `x`: a batch of inputs, real values as the network is meant to get them, best eight or more; without it only parameters and
    graph are judged. `history`: losses, or dicts with "loss", of the training so far, for the learning rate. Nothing is changed.
    A problem costs accuracy or will be refused by the exports; all else is a note. Raises TypeError for other things than modules
    and tensors, ValueError where no ai8x layer is found, where the device simulates, for other dtypes than float32, or where the
    network cannot run on `x`; one that cannot be traced is a finding.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}; give a torch module (for files: python -m qatlib.doctor FILE)")
    if x is not None and not isinstance(x, torch.Tensor):
        raise TypeError(f"x is a {type(x).__name__}; give a float32 tensor, a batch of inputs")
    chip = device.dev
    if chip.simulate:
        raise ValueError(f"the device simulates the chip; call ai8x.set_device({chip.device}, simulate=False) before diagnosing")
    root = network(model)
    _check_dtypes(root, x)
    try:
        rows, seen = measure(root, x)
    except Exception as problem:  # whatever its forward raises
        shape, reason = tuple(() if x is None else x.shape), (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"the network cannot run on x of shape {shape}: {reason}") from problem
    if not any(row.kind == "layer" for row in rows):
        raise ValueError("this network has no ai8x layer with weights; build it from qatlib.ai8x layers")
    losses = [float(row["loss"] if isinstance(row, dict) else row) for row in history or []]
    told = paths(root, None if x is None else tuple(x.shape[1:]))
    found = findings(rows, x, seen, callable(getattr(root, "head_gain", None)), losses, told)
    return Diagnosis([row for row in rows if row.kind != "pool"], found, x is not None)


def _check_dtypes(root: nn.Module, x: torch.Tensor | None) -> None:
    for name, tensor in (("the model", place(root)), ("x", x)):
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}, and QAT computes in float32; give {name.removeprefix('the ')}.float()")
