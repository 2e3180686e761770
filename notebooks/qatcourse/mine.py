"""The learner's own code: what passed its check is kept in `mine.py` beside the lessons, and later lessons use it.

`mine.py` is an ordinary module, one definition after another, to read and to edit. `piece` gives the learner's version if it is
there and still passes, else the solution's, and says which. `progress.json` names the exercises passed.
"""

import ast
import builtins
import functools
import inspect
import json
import linecache
import os
from pathlib import Path
from types import FunctionType

from qatlib.files import write_atomic

HERE = Path(__file__).resolve().parents[1]
HEADER = '"""My quantization-aware training. Edit it as you like: a lesson checks it again before it uses it."""'
_CONSTANTS = (int, float, str, bool, tuple, type(None))


class NotKept(Exception):
    """Why a piece cannot be kept, in words."""


def folder() -> Path:
    """Where `mine.py` and `progress.json` are: $QATCOURSE_MINE, else the working folder if lessons lie in it, else `notebooks`."""
    given = os.environ.get("QATCOURSE_MINE")
    return Path(given) if given else Path.cwd() if any(Path.cwd().glob("[0-9][0-9]_*.ipynb")) else HERE


def solution() -> Path:
    """The pieces of the solutions. Raises FileNotFoundError where only the package is installed."""
    paths = [place / "solutions" / "mine.py" for place in (HERE, Path.cwd(), Path.cwd().parent)]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{paths[0]} is missing; open the lessons inside the repository, with their folder solutions")


def passed(where: Path | None = None) -> dict[str, list[str]]:
    """Lesson number -> names of the exercises passed, as `where`/progress.json says (None: `folder()`), where it can be read."""
    try:
        found = json.loads(((where or folder()) / "progress.json").read_text())
        return {lesson: [name for name in names if isinstance(name, str)] for lesson, names in found.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}


def record(check, answer) -> str:
    """Note that `answer` passed `check`, and keep a piece. A sentence for the learner, or "": nothing was kept."""
    lesson, before = check.lesson, passed()
    try:
        if check.name not in before.get(lesson, []):
            names = before | {lesson: [*before.get(lesson, []), check.name]}
            folder().mkdir(parents=True, exist_ok=True)
            write_atomic(folder() / "progress.json", json.dumps(names, indent=1, sort_keys=True) + "\n")
        return f" {keep(check, answer)}" if check.piece and folder() != solution().parent else ""
    except (NotKept, OSError) as problem:
        return f" (Not kept: {problem})"


def keep(check, answer) -> str:
    """Put a piece into `mine.py`, in place of an older one of its name. Raises NotKept: it needs what only the notebook has."""
    path = folder() / "mine.py"
    parts = _parts(_read(path))
    imports, own = _source(answer, check.name)
    new = {**parts, **{line: line for line in imports}, **own}
    namespace = _namespace(_parts(solution().read_text()), new)
    report = check.judge(namespace[check.name])
    if not report.ok:
        raise NotKept(f"outside of this notebook it gives another result; {report.said}")
    if new != parts:
        lines = [text for name, text in new.items() if name == text]
        rest = [text for name, text in new.items() if name != text]
        write_atomic(path, "\n\n\n".join(["\n\n".join([HEADER, "\n".join(lines)]).strip(), *rest]) + "\n")
    return f"Kept as {check.name} in mine.py."


def piece(*names: str):
    """The function or class of this name (several names: a tuple), the learner's if it is there and passes, else the solution's.

    Prints whose it is. All pieces share one namespace, so that the learner's serve each other. Raises ValueError for another name.
    """
    checks = pieces()
    if unknown := [name for name in names if name not in checks]:
        raise ValueError(f"{unknown[0]!r} is no piece; the pieces are {', '.join(checks)}")
    namespace, refused = _usable(checks, names)
    mine = [name for name in names if refused.get(name) == ""]
    others = [name for name in names if name not in mine]
    said = [f"{', '.join(mine)}: yours, from mine.py."] if mine else []
    said += [f"{name}: yours in mine.py is not used: {refused[name]}" for name in others if refused.get(name)]
    if others:
        lessons = ", ".join(sorted({checks[name].lesson for name in others}))
        said.append(f"{', '.join(others)}: the solution's, until yours passes in lesson {lessons}.")
    print("\n".join(said))
    found = tuple(namespace[name] for name in names)
    return found[0] if len(names) == 1 else found


def pieces() -> dict:
    """Name -> check of every piece, in the order of the lessons."""
    from qatcourse.checks import exercises

    found = (exercises(lesson) for lesson in ("01", "02", "03", "04", "05", "07"))
    return {name: check for checks in found for name, check in checks.items() if check.piece}


def _usable(checks: dict, names: tuple) -> tuple[dict, dict]:
    """(namespace, {piece of mine.py: "" or why it is not used}): every piece up to the last of `names` is checked again."""
    solved = _parts(solution().read_text())
    try:
        own = _parts(_read(folder() / "mine.py"))
        _namespace(solved, own)
    except NotKept as problem:
        return _namespace(solved, {}), dict.fromkeys(names, str(problem))
    refused, last = {}, max(list(checks).index(name) for name in names)
    for name, check in list(checks.items())[: last + 1]:
        if name in own:
            refused[name] = _verdict(check, _ordered(solved, _accepted(own, refused)))
    return _namespace(solved, _accepted(own, refused)), refused


def _accepted(own: dict, refused: dict) -> dict:
    return {name: text for name, text in own.items() if not refused.get(name)}


@functools.cache
def _verdict(check, parts: tuple) -> str:
    """Why the piece in these parts fails its check, "" where it passes; the same text is checked once in a kernel."""
    report = check.judge(_executed(parts)[check.name])
    return "" if report.ok else report.said


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _parts(source: str) -> dict[str, str]:
    """Definitions by name with the comments before them; imports and other statements by their own text. Raises NotKept."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as problem:
        raise NotKept(f"mine.py cannot be read ({problem}); correct that line, or delete the file to start anew") from None
    parts, lines, end = {}, source.splitlines(), 0
    for node in tree.body:
        text = "\n".join(lines[end : node.end_lineno]).strip("\n")
        end = node.end_lineno
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            line = ast.unparse(node)
            parts[line] = line
        elif text != HEADER and not (node is tree.body[0] and ast.get_docstring(tree)):
            parts[_name(node) or text + " "] = text
    tail = "\n".join(lines[end:]).strip("\n")
    return parts | ({tail + " ": tail} if tail else {})


def _name(node) -> str | None:
    """What a top-level statement defines, if it is one name."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        return getattr(node.targets[0], "id", None)
    return getattr(node, "name", None)


def _namespace(solved: dict[str, str], own: dict[str, str]) -> dict:
    """What both define when they run in one module, `own` in place of `solved`. Raises NotKept for a part that stops."""
    return _executed(_ordered(solved, own))


def _ordered(solved: dict[str, str], own: dict[str, str]) -> tuple:
    parts = {name: text for name, text in solved.items() if name not in own} | own
    return tuple(sorted(parts.items(), key=lambda part: part[0] != part[1]))  # imports first


@functools.cache
def _executed(parts: tuple) -> dict:
    """The same parts give the same classes, however often they are asked for."""
    namespace = {"__name__": "mine"}
    for name, text in parts:
        try:
            exec(compile(text, f"mine.py: {name.strip()}", "exec"), namespace)
        except Exception as problem:
            raise NotKept(f"{name.strip()} in mine.py stops with {type(problem).__name__}: {problem}") from None
    return namespace


def _source(answer, name: str) -> tuple[list[str], dict[str, str]]:
    """(import lines, {name: text}) of an answer and of what it uses of the notebook's, the used before the users."""
    imports, own = [], {}
    _collect(answer, imports, own, set())
    called = getattr(answer, "__name__", name)
    if name not in own:
        own[name] = f"{name} = {called}"
    return imports, own


def _collect(thing, imports: list, own: dict, known: set) -> None:
    text, label, names, scope = _definition(thing)
    known.add(label)
    for used in sorted(names - known - set(dir(builtins)) - set(pieces())):
        value = scope.get(used)
        if isinstance(value, (FunctionType, type)) and value.__module__ in ("__main__", "mine"):
            _collect(value, imports, own, known)
        elif used in scope and (line := _import_line(used)):
            known.add(used)
            imports.append(line)
        elif used in scope and isinstance(value, _CONSTANTS):
            own[used] = f"{used} = {value!r}"
    own[label] = text


def _definition(thing) -> tuple[str, str, set, dict]:
    """(text, name, names it uses, its globals) of a function or class of a notebook's cell. Raises NotKept."""
    function = thing if isinstance(thing, FunctionType) else None
    if isinstance(thing, type):
        function = next((value for value in vars(thing).values() if isinstance(value, FunctionType)), None)
    if function is None:
        raise NotKept(f"write it as a function or a class; this is a {type(thing).__name__}.")
    function = inspect.unwrap(function)
    source = "".join(linecache.getlines(function.__code__.co_filename))
    body = ast.parse(source).body if source else []
    line = function.__code__.co_firstlineno
    node = next((node for node in body if _first(node) <= line <= node.end_lineno), None)
    if node is None or not _name(node):
        raise NotKept("its source cannot be found; define it with def in a cell of its own.")
    text = "\n".join(source.splitlines()[_first(node) - 1 : node.end_lineno])
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return text, _name(node), names, function.__globals__


def _import_line(name: str) -> str | None:
    """The import statement of a notebook's cell that binds `name`."""
    for file in [file for file in linecache.cache if "ipykernel" in file or "ipython-input" in file]:
        try:
            tree = ast.parse("".join(linecache.getlines(file)))
        except SyntaxError:
            continue  # a cell that never ran
        for node in ast.walk(tree):
            for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    home = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
                    return f"{home}import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
    return None


def _first(node) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
