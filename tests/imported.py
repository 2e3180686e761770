"""What source text imports, and what a requirement brings with it: for the tests of the layout and of the installation."""

import ast
import re
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

OURS = re.compile(r"(qatlib|qatcourse)(\.\w+)+\.?")


def imports(source: str, module: str, package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, name) of everything that `source`, the text of `module`, may import, now or later.

    That is, import statements in functions too, and text that names one of our modules: an argument of `import_module`, an entry
    of a lazy table; and what is used as `qatlib.name`. `from a import b` gives a.b, whether b is a module or not.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "qatlib":
            yield node.lineno, f"qatlib.{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and OURS.fullmatch(node.value):
            yield node.lineno, node.value.rstrip(".")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirement: str, found: dict[str, metadata.Distribution] | None = None) -> dict[str, metadata.Distribution]:
    """The installed distributions, by name, that `requirement` with its extras needs, itself included."""
    wanted, found = Requirement(requirement), {} if found is None else found
    found[canonical(wanted.name)] = distribution = metadata.distribution(wanted.name)
    for further in map(Requirement, distribution.requires or []):
        needed = any(further.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)) if further.marker else True
        if needed and (further.extras or canonical(further.name) not in found):
            closure(str(further).partition(";")[0], found)
    return found
