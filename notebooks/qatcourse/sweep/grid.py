"""What to run: parameter grids, and a safe name and a key for every run."""

import ast
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
from collections import Counter

from qatlib.wording import short

MAX_RUNS = 100_000
LONGEST = 100_000  # characters of one grid entry
_VALUE = re.compile(r"""\s*('[^']*'|"[^"]*"|[^,]*)\s*,""")
_RANGE = re.compile(r"(-?\d+):(-?\d+)(?::(-?\d+))?")


@dataclasses.dataclass(frozen=True)
class Run:
    """One notebook execution. `key` is the SHA-256 of notebook and parameters, `slug` a file name made from both."""

    parameters: dict
    key: str
    slug: str


class Kernels:
    """The kernels at work, so that an interrupt can stop them; without it they would finish their notebooks first."""

    def __init__(self):
        self.processes, self.stopped = set(), False

    @contextlib.contextmanager
    def watched(self, process: subprocess.Popen):
        """A context in which `stop` kills `process`, even one that starts only then."""
        self.processes.add(process)
        try:
            if self.stopped:
                process.kill()
            yield
        finally:
            self.processes.discard(process)

    def stop(self) -> None:
        """Kill all."""
        self.stopped = True
        for process in self.processes.copy():
            process.kill()


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a worker needs: the notebook's JSON text, what to run, where to keep it, threads a kernel may use."""

    run: Run
    notebook: str
    source: str
    out: str
    remote: str | None
    threads: int
    cwd: str | None
    kernels: Kernels

    def record(self, status: str, seconds: float = 0.0, notebook: str = "", metrics: dict | None = None, error: str = "") -> dict:
        """What the folder and the table keep of this run; `process` is the one that says so."""
        told = {"status": status, "metrics": metrics or {}, "seconds": seconds, "threads": self.threads, "process": os.getpid()}
        return {"key": self.run.key, "parameters": self.run.parameters, **told, "error": error, "notebook": notebook}


def parse_grid(texts: list[str]) -> dict[str, list]:
    """The grid written on a command line. Values are Python literals, bare words are texts, `a:b` counts from a to b-1.

    >>> parse_grid(["weight_bits=8,4,None", "seed=0:3", "data=figures,'a,b'", "rate=1e-3"])
    {'weight_bits': [8, 4, None], 'seed': [0, 1, 2], 'data': ['figures', 'a,b'], 'rate': [0.001]}

    Raises ValueError for an entry without `=`, an empty value, a name given twice, and more than 100,000 values.
    """
    grid = {}
    for text in texts:
        if len(text) > LONGEST:
            raise ValueError(f"grid entry {short(text)} has {len(text):,} characters; at most {LONGEST:,} make sense")
        name, equals, values = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ValueError(f"grid entry {text!r} is not NAME=VALUES; write for example weight_bits=8,4,2 or seed=0:3")
        if name in grid:
            raise ValueError(f"grid entry {name!r} is given twice; put all its values into one entry, {name}=1,2,3")
        grid[name] = [value for part in _split(values, text) for value in _values(part)]
    return grid


def _split(values: str, text: str) -> list[str]:
    parts = [part.strip() for part in _VALUE.findall(f"{values},")]
    if not all(part and (part[0] not in "'\"" or len(part) > 1 and part[-1] == part[0]) for part in parts):
        raise ValueError(f"grid entry {text!r} has an empty value or open quotes; write NAME=VALUE,VALUE ('' is empty text)")
    return parts


def _values(part: str) -> list:
    counted = _RANGE.fullmatch(part)
    if counted:
        try:
            first, last, step = (int(group) if group else 1 for group in counted.groups())
        except ValueError:  # Python reads at most 4,300 digits
            first = last = step = 0
        if step == 0 or not 0 < -((first - last) // step) <= MAX_RUNS:  # len(range()) stops at 2^63
            raise ValueError(f"range {short(part)} has no values, or more than {MAX_RUNS:,}; a:b counts from a to b-1")
        return list(range(first, last, step))
    try:
        value = ast.literal_eval(part)
    except (ValueError, SyntaxError):
        return [part]
    except (MemoryError, RecursionError):  # thousands of brackets or signs
        raise ValueError(f"grid value {short(part)} is nested too deeply; put a text into quotes") from None
    return [value if isinstance(value, (bool, int, float, str, type(None))) else part]


def check_grid(grid: dict) -> int:
    """The number of runs in `grid`. Raises ValueError or TypeError for an empty, doubled, oversized or unusable entry."""
    if not isinstance(grid, dict) or not grid:
        raise ValueError(f"the grid is {grid!r}; name at least one parameter with its values, for example seed=0:3")
    for name, values in grid.items():
        if not isinstance(values, (list, tuple, range)) or len(values) == 0:
            raise ValueError(f"grid entry {name!r} is {values!r}; give a list with at least one value")
        for value in values:
            if not isinstance(value, (bool, int, float, str, type(None))):
                raise TypeError(f"grid entry {name!r} holds a {type(value).__name__}; use numbers, texts, booleans or None")
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"grid entry {name!r} holds nan, which equals nothing, so no run could be resumed; leave it out")
        doubled = sorted(value for value, times in Counter(map(repr, values)).items() if times > 1)
        if doubled:
            raise ValueError(f"grid entry {name!r} holds {doubled[0]} twice; give each value once")
    total = math.prod(len(values) for values in grid.values())
    if total > MAX_RUNS:
        raise ValueError(f"the grid has {total:,} runs; at most {MAX_RUNS:,} fit in one sweep, so split it")
    return total


def expand(grid: dict, code: str) -> list[Run]:
    """All combinations, the last name turning fastest. `code` is the notebook's text that decides its results."""
    return [name_run(dict(zip(grid, values)), code) for values in itertools.product(*grid.values())]


def name_run(parameters: dict, code: str) -> Run:
    """A Run with its key and slug: letters, digits and `=.,_-` only, never a path, whatever the values hold.

    >>> name_run({"data": "a/../b;c"}, "").slug[:12]
    'data=a_.._b_'
    """
    key = hashlib.sha256(json.dumps([code, parameters], sort_keys=True).encode()).hexdigest()
    readable = ",".join(f"{name}={value}" for name, value in parameters.items())
    safe = re.sub(r"[^A-Za-z0-9=.,_-]+", "_", readable)[:60]
    return Run(parameters, key, f"{safe}-{key[:12]}")
