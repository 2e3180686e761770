"""Checks of the exercises: what was expected beside what came, and what to try next.

A check never raises for a learner's mistake: it returns a `Report`, which a notebook cell displays when it is the last value.
Most checks are an `Exercise`, a table of cases and of wrong answers; `judged` makes a `Check` of any other function. The lessons'
checks are in `qatcourse.checks.lessonNN`, in the order of the exercises.
"""

import contextlib
import copy
import html
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from qatcourse import mine
from qatlib.ai8x import mode

UNTOUCHED = "returned None. Write your code in the cell above, run it, then run this cell again."


class NotYet(Exception):
    """Why an answer cannot be compared, in words that go on after the exercise's name."""


@dataclass
class Report:
    """The outcome of a check: `ok`, one `message` for the learner, and the cases that show it.

    `rows`: one dict a case (case, expected, got, and "yes" or "no" under ok); `picture`: None or (figure, sentence).
    """

    name: str
    ok: bool
    message: str
    rows: list[dict] = field(default_factory=list)
    picture: tuple | None = None

    def __repr__(self) -> str:
        return f"{'PASSED' if self.ok else 'NOT YET'} {self.name}: {self.said}"

    @property
    def said(self) -> str:
        """The message without the "not yet" that the mark in front of it says already."""
        return self.message.removeprefix("not yet: ")

    def _ipython_display_(self) -> None:
        from IPython.display import display

        from qatcourse.viz import show, table

        mark, colour = ("&#10003; passed", "#0072B2") if self.ok else ("&#10007; not yet", "#D55E00")
        said = f'<p style="border-left:5px solid {colour};padding-left:8px"><b>{mark}</b> {html.escape(self.said)}</p>'
        display({"text/html": said, "text/plain": repr(self)}, raw=True)
        if self.rows:
            display(table(self.rows))
        if self.picture:
            show(*self.picture)


def row(case: str, expected, got, ok: bool, title: str = "case", **more) -> dict:
    """One case of a report; `title`: of the first column, `more`: further columns."""
    return {title: case, "expected": str(expected), "got": str(got), **more, "ok": "yes" if ok else "no"}


class Check:
    """What a lesson calls with the learner's answer; returns a `Report`, whatever the answer does.

    `lines`: answer -> tuples of a row, what to say where it is not ok[, a picture], or a `Report`; it may raise NotYet. `praise`:
    what to say where all rows are ok (None: what comes with the last). The last picture is shown. `value`: the answer is no
    function. `wrong`: (answer, words of the advice) and `right`: answers in other styles, for the tests. In a notebook, an
    answer that passes is recorded, and with `piece` kept, as `qatcourse.mine` says.
    """

    def __init__(self, name: str, lines: Callable, praise: str | None = None, wrong=(), right=(), piece=False, value=False):
        self.name, self.lines, self.praise, self.wrong, self.right = name, lines, praise, [*wrong], [*right]
        self.piece, self.value = piece, value
        self.__doc__ = lines.__doc__

    @property
    def lesson(self) -> str:
        """The number of the lesson in whose module this check stands."""
        homes = {name: vars(module).values() for name, module in sys.modules.items() if name.startswith("qatcourse.checks.lesson")}
        return next(name[-2:] for name, values in homes.items() if any(value is self for value in values))

    def __call__(self, answer) -> Report:
        report = self.judge(answer)
        if report.ok and "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
            report.message += mine.record(self, answer)
        return report

    def judge(self, answer) -> Report:
        """The report, without recording anything; device, random numbers and gradient mode stay as they were."""
        if not (callable(answer) or self.value):
            said = f"pass your function itself ({self.name}), without calling it; this was a {type(answer).__name__}."
            return Report(self.name, False, f"not yet: {said}")
        try:
            with _undone():
                found = self.lines(answer)
                return found if isinstance(found, Report) else self._report(*zip(*found))
        except NotYet as unfit:
            return Report(self.name, False, f"not yet: {self.name} {unfit}")
        except (Exception, SystemExit) as problem:  # what a learner's code left behind may stop the comparison, too
            return Report(self.name, False, f"not yet: {self.name} could not be compared: {_first_line(problem)}.")

    def _report(self, rows, said, *pictures) -> Report:
        wrong = next((f"not yet: {text}" for one, text in zip(rows, said) if one["ok"] == "no"), None)
        return Report(self.name, not wrong, wrong or self.praise or said[-1], list(rows), *(shown[-1] for shown in pictures))


def judged(name: str, praise: str | None = None, **options) -> Callable:
    """Decorate a function that gives the lines of a `Check`; `options` go to it."""
    return lambda lines: Check(name, lines, praise, **options)


def exercises(lesson: str) -> dict[str, Check]:
    """The checks of lesson "01" by the names of what is written, in the order of the lesson."""
    module = importlib.import_module(f"qatcourse.checks.lesson{lesson}")
    return {check.name: check for check in vars(module).values() if isinstance(check, Check)}


@contextlib.contextmanager
def _undone():
    device, grad, dtype = mode.dev, torch.is_grad_enabled(), torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            mode.dev = device
            torch.set_grad_enabled(grad)
            torch.set_default_dtype(dtype)


def _first_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"


def numbers(value) -> np.ndarray:
    """A learner's answer (number, list, NumPy array, tensor, tuple of those) as float64. Raises NotYet for other things."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, (tuple, list)):
        parts = [numbers(part) for part in value]
        return np.stack(parts) if len({part.shape for part in parts}) == 1 else np.concatenate([part.ravel() for part in parts])
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise NotYet(f"must return numbers that fit; problem: a {type(value).__name__}.") from None


def number(value) -> float:
    """A learner's answer that is one number, also in a tensor or list of one. Raises NotYet."""
    found = numbers(value)
    if found.size != 1:
        raise NotYet(f"must return one number; it returned {found.size}.")
    return found.item()


def ask(answer: Callable, *arguments, read: Callable = numbers, where: str = "", copied: bool = True):
    """What `answer` gives for copies of `arguments`, as `read` takes it. Raises NotYet: it stopped, or gave None."""
    try:
        got = answer(*copy.deepcopy(arguments) if copied else arguments)
        if got is not None:
            return read(got)
    except NotYet:
        raise
    except (Exception, SystemExit) as problem:
        raise NotYet(f"stopped with {_first_line(problem)}{where}.") from None
    raise NotYet(UNTOUCHED)


class Wrong(NamedTuple):
    """A row of an exercise: a wrong answer that learners give, and what to tell them.

    `answer(right, *arguments)` gives it, from the right answer and the case. The row fits what gives the same or, if there is a
    `when(got, expected, label, *arguments)`, what that is true of. `hint`: a format string, which may name {got}, {want}, the label
    {0} and the arguments {1}, ..., or a function like `when` that gives the text.
    """

    answer: Callable
    hint: str | Callable
    when: Callable | None = None

    def text(self, got, want, *case) -> str:
        return self.hint.format(*case, got=got, want=want) if isinstance(self.hint, str) else self.hint(got, want, *case)


def always(*_) -> bool:
    """`when` of a last row, which fits every wrong answer."""
    return True


def not_whole(got, *_) -> bool:
    """`when` of a row about answers that should be whole numbers."""
    return bool((got != np.round(got)).any())


class Exercise(Check):
    """A check as a table: call it with the learner's function, which must give what `reference` gives.

    `task`: what to write, from the function's name on. `cases`: (label, *arguments), or a function that makes them. `wrong`: the
    fields of `Wrong`; the first row that fits the first case that differs gives the hint. `tolerance`: largest allowed difference
    (0: equal to the last bit). `read`: makes of an answer the numbers, or anything with ==, that are compared and shown.
    """

    def __init__(self, task, reference, cases, *wrong, praise="Every case agrees.", tolerance=0.0, read=numbers, right=(),
                 piece=False):  # fmt: skip
        super().__init__(task.partition("(")[0], self._lines, praise, [Wrong(*fields) for fields in wrong], right, piece)
        self.__doc__ = task
        self.reference, self.cases, self.tolerance, self.read = reference, cases, tolerance, read

    def judge(self, answer) -> Report:
        self.pairs = []
        report = super().judge(answer)
        report.picture = _picture(self.pairs) if report.rows else None
        return report

    def _lines(self, answer):
        for case in self.all_cases():
            want, got = self.given(self.reference, *case), self.given(answer, *case)
            if isinstance(want, np.ndarray) and isinstance(got, np.ndarray) and want.size == got.size == 1:
                got = got.reshape(want.shape)  # a number in a tensor of one is that number
            ok = _near(got, want, self.tolerance)
            self.pairs.append((want, got))
            yield row(case[0], _short(want), _short(got), ok), None if ok else self._explain(got, want, *case)

    def all_cases(self) -> list[tuple]:
        return self.cases() if callable(self.cases) else self.cases

    def given(self, answer: Callable, label: str, *arguments):
        """What `answer` gives for a case, as it is compared. Raises NotYet."""
        return ask(answer, *arguments, read=self.read, where=f" (case: {label})")

    def mistaken(self, wrong: Wrong) -> Callable:
        """The function of a learner who makes this mistake."""
        return lambda *arguments: wrong.answer(self.reference(*arguments), *arguments)

    def _explain(self, got, want, *case) -> str:
        if isinstance(want, np.ndarray) and got.shape != want.shape:
            return f"the result has shape {got.shape}; expected {want.shape}."
        for wrong in self.wrong:
            if wrong.when(got, want, *case) if wrong.when else self._like(got, wrong, *case):
                return wrong.text(got, want, *case)
        return _difference(got, want)

    def _like(self, got, wrong: Wrong, *case) -> bool:
        return _near(got, self.given(self.mistaken(wrong), *case), self.tolerance + 1e-8, 1e-5)


def _near(a, b, tolerance: float, relative: float = 0.0) -> bool:
    return a.shape == b.shape and np.allclose(a, b, relative, tolerance) if isinstance(a, np.ndarray) else a == b


def _difference(got: np.ndarray, want: np.ndarray) -> str:
    worst = np.unravel_index(np.argmax(np.abs(np.nan_to_num(got, nan=np.inf) - want)), want.shape) if want.ndim else ()
    where = f" at index {tuple(int(i) for i in worst)}" if want.ndim else ""
    return f"expected {want[worst]:.6g}{where}, got {got[worst]:.6g}. Compare the columns below, then look at the hint."


def _short(value, most: int = 6) -> str:
    if not isinstance(value, np.ndarray):
        return str(value[:5] if isinstance(value, list) else value)
    shown = ", ".join(f"{v + 0.0:.5g}" for v in value.ravel()[:most])
    return shown + (", ..." if value.size > most else "")


def _picture(pairs: list) -> tuple | None:
    drawn = (pair for pair in pairs if isinstance(pair[0], np.ndarray) and pair[0].ndim and pair[0].size > 1)
    pairs = [(want, got) for want, got in drawn if got.shape == want.shape and np.isfinite(got).any()]
    if not pairs:
        return None
    from qatcourse.viz import expected_and_got

    return expected_and_got(*(np.concatenate([values.ravel() for values in side]) for side in zip(*pairs)))
