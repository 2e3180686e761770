"""Checks of the exercises: what was expected beside what came, and what to try next.

A check never raises for a learner's mistake: it returns a `Report`, which a notebook cell displays when it is the last value.
`compare` does the work for most exercises; the lessons' checks are in `qatlib.checks.lessonNN`.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

UNTOUCHED = "not yet: {name} returned None. Write your code in the cell above, run it, then run this cell again."


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

        from qatlib.viz import show, table

        mark, colour = ("&#10003; passed", "#0072B2") if self.ok else ("&#10007; not yet", "#D55E00")
        said = f'<p style="border-left:5px solid {colour};padding-left:8px"><b>{mark}</b> {html.escape(self.said)}</p>'
        display({"text/html": said, "text/plain": repr(self)}, raw=True)
        if self.rows:
            display(table(self.rows))
        if self.picture:
            show(*self.picture)


def failed(name: str, message: str) -> Report:
    """A report that says no, without cases: a wrong kind of answer, an exception, an untouched stub."""
    return Report(name, False, message)


def no_function(name: str, answer) -> Report:
    """The report for an answer that should have been a function."""
    return failed(name, f"not yet: pass your function itself ({name}), without calling it; this was a {type(answer).__name__}.")


def numbers(value) -> np.ndarray:
    """A learner's answer (number, list, NumPy array, tensor, tuple of those) as float64. Raises TypeError for other things."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, (tuple, list)):
        parts = [numbers(part) for part in value]
        return np.stack(parts) if len({part.shape for part in parts}) == 1 else np.concatenate([part.ravel() for part in parts])
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"a {type(value).__name__}") from None


def compare(
    name: str,
    answer: Callable,
    expected: Callable,
    cases: list[tuple],
    advice: Callable[[tuple, np.ndarray, np.ndarray], str | None] | None = None,
    tolerance: float = 0.0,
    praise: str = "Every case agrees.",
    labels: list[str] | None = None,
) -> Report:
    """Run the learner's `answer` and our `expected` on each case (a tuple of arguments) and compare all numbers.

    `tolerance`: largest allowed difference (0: equal to the last bit). `advice(case, expected, got)` may return a sentence for
    the first case that differs (None: a general one). `labels`: one text a case. Arrays are drawn, expected beside got.
    """
    if not callable(answer):
        return no_function(name, answer)
    rows, pairs, message = [], [], None
    for i, case in enumerate(cases):
        want = numbers(expected(*_copies(case)))
        try:
            got = answer(*_copies(case))
            if got is None:
                return failed(name, UNTOUCHED.format(name=name))
            got = numbers(got)
        except TypeError as problem:
            return failed(name, f"not yet: {name} must return numbers that fit; problem: {problem}.")
        except Exception as problem:
            return failed(name, f"not yet: {name} stopped with {type(problem).__name__}: {problem}.")
        ok = got.shape == want.shape and bool(np.all(np.abs(got - want) <= tolerance))
        pairs.append((want, got))
        label = labels[i] if labels else _brief(case)
        rows.append({"case": label, "expected": _short(want), "got": _short(got), "ok": "yes" if ok else "no"})
        if not ok and message is None:
            message = _explain(case, want, got, advice)
    ok = message is None
    return Report(name, ok, praise if ok else f"not yet: {message}", rows, _picture(pairs))


def _copies(case: tuple) -> list:
    return [argument.clone() if hasattr(argument, "clone") else argument for argument in case]


def _explain(case, want, got, advice) -> str:
    if got.shape != want.shape:
        return f"the result has shape {got.shape}; expected {want.shape}."
    said = advice(case, want, got) if advice else None
    worst = np.unravel_index(np.argmax(np.abs(np.nan_to_num(got, nan=np.inf) - want)), want.shape) if want.ndim else ()
    where = f" at index {tuple(int(i) for i in worst)}" if want.ndim else ""
    return said or f"expected {want[worst]:.6g}{where}, got {got[worst]:.6g}. Compare the columns below, then look at the hint."


def _short(values: np.ndarray, most: int = 6) -> str:
    shown = ", ".join(f"{v:.5g}" for v in values.ravel()[:most])
    return shown + (", ..." if values.size > most else "")


def _brief(case: tuple) -> str:
    def one(argument):
        try:
            return _short(numbers(argument), 4)
        except TypeError:
            return str(argument)

    return "; ".join(one(argument) for argument in case)


def _picture(pairs: list) -> tuple | None:
    pairs = [(want, got) for want, got in pairs if want.ndim and want.size > 1 and got.shape == want.shape]
    if not pairs:
        return None
    from qatlib.viz import expected_and_got

    return expected_and_got(np.concatenate([w.ravel() for w, _ in pairs]), np.concatenate([g.ravel() for _, g in pairs]))
