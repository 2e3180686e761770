"""Numbers that travel inside an executed notebook: written by `record`, read back by `recorded`."""

import math

MIME = "application/vnd.qatlib.record+json"


def record(**values) -> None:
    """Put results into the notebook's output, where a sweep finds them: `record(pck=0.61, loss=0.02)`.

    Values are numbers, texts, booleans or None; one-element arrays and tensors count as numbers. A name recorded twice keeps
    its last value. Outside a notebook the values are printed. Raises TypeError for any other value, ValueError for none.

    >>> record(pck=0.5, bits=4)
    recorded pck = 0.5, bits = 4
    """
    if not values:
        raise ValueError("record() got nothing to record; name a value, for example record(pck=0.61)")
    plain = {name: _plain(name, value) for name, value in values.items()}
    shown = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in plain.items()}
    text = "recorded " + ", ".join(f"{name} = {value}" for name, value in shown.items())
    if not _in_notebook():
        print(text)
        return
    from IPython.display import display

    display({MIME: {name: _encode(value) for name, value in plain.items()}, "text/plain": text}, raw=True)


def _in_notebook() -> bool:
    import sys

    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def _plain(name: str, value):
    if hasattr(value, "item") and getattr(value, "size", 1) not in (0,):
        try:
            value = value.item()
        except (ValueError, RuntimeError) as problem:
            raise TypeError(f"record({name}=...) got several values; record one number, for example their mean") from problem
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"record({name}=...) got a {type(value).__name__}; record numbers, texts, booleans or None")


def _encode(value):
    """JSON has no NaN and no infinity: they travel as {"float": "nan"}."""
    return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _decode(value):
    return float(value["float"]) if isinstance(value, dict) else value


def recorded(notebook) -> dict:
    """All values that `record` left in an executed notebook (an nbformat node)."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            values = output.get("data", {}).get(MIME, {})
            found.update({name: _decode(value) for name, value in values.items()})
    return found
