"""What `qatlib` offers: every public object, the path where users import it, and where else it is found."""

import inspect
import re
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

PAGES = {  # room, or a module beside the rooms -> title
    "quantizers": "Quantizers",
    "ai8x": "ai8x: layers, and from float to QAT",
    "chip": "The chip: costs and limits",
    "port": "Networks written elsewhere",
    "integer": "Integers and checkpoints",
    "export": "Export",
    "doctor": "The doctor",
    "files": "Files",
    "wording": "Messages",
}
FURTHER = {  # what no room offers by itself, but its texts, messages or lessons send readers there
    "qatlib.ai8x.graph": ["Graph", "Node"],
    "qatlib.ai8x.qat": ["layers"],
    "qatlib.ai8x.statistics": ["Histogram", "histogram", "quantization_errors", "log2_threshold"],
    "qatlib.chip.operations": [],
    "qatlib.chip.shapes": ["shaped"],
    "qatlib.port.rewrites": [],
    "qatlib.integer.checkpoint": ["state_of", "with_state", "load_state", "check_state"],
    "qatlib.integer.engine": ["run", "narrow", "round_shift"],
    "qatlib.integer.source": ["as_compact"],
    "qatlib.export.check": ["Part", "from_checkpoint", "table"],
    "qatlib.export.engines": ["Engine"],
    "qatlib.export.network": ["build"],
}


class Entry(NamedTuple):
    """An object of the reference: `path` is where users import it, `others` where else they may; `home` is its code's module."""

    value: object
    path: str
    home: str
    others: list[str]

    @property
    def page(self) -> str:
        return self.home.split(".")[1]


def offered(module: ModuleType) -> list[str]:
    """The names that a module offers: its `__all__`, or what is public and defined there."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__ and name[0] != "_"]
    vendors = import_module("qatlib.port.names").OFFERED if module.__name__ == "qatlib.ai8x" else ()
    return [*getattr(module, "__all__", own), *vendors]


@cache
def entries() -> dict[str, Entry]:
    """Everything that has an entry, by path: pages as in PAGES, modules in an order to read them, objects as the code has them."""
    paths, values = {}, {}
    lists = {name: offered(import_module(name)) for name in [*(f"qatlib.{page}" for page in PAGES), "qatlib"]}
    for module, names in [*lists.items(), *FURTHER.items()]:
        for name in names:
            value = getattr(import_module(module), name)
            if inspect.isclass(value) or inspect.isroutine(value):
                values[id(value)] = value
                paths.setdefault(id(value), []).append(f"{module}.{name}")
    found = [_entry(values[key], these) for key, these in paths.items()]
    homes = list(dict.fromkeys(entry.home for entry in found))
    found.sort(key=lambda entry: (list(PAGES).index(entry.page), *reading(entry.home), homes.index(entry.home), _line(entry)))
    return {entry.path: entry for entry in found}


def _entry(value, paths: list[str]) -> Entry:
    home = "qatlib.ai8x.catalogue" if value.__module__ == "qatlib.ai8x" else value.__module__  # layers of the table
    path = next((path for path in paths if path.split(".")[1] == home.split(".")[1]), paths[0])
    return Entry(value, path, home, [other for other in paths if other != path])


def reading(module: str) -> tuple[bool, int]:
    """Modules come as the docstring of their room names them, then the others."""
    room, name = ".".join(module.split(".")[:2]), module.rpartition(".")[2]
    place = import_module(room).__doc__.find(f"{name}`")
    return place < 0, place


def _line(entry: Entry) -> int:
    home, name = import_module(entry.home), entry.value.__name__
    return list(home.LAYERS if entry.home.endswith("catalogue") else vars(home)).index(name)


def members(cls: type) -> list[str]:
    """Public methods and properties with a docstring of their own, in the order of the code."""
    codes = {name: getattr(value, "fget", getattr(value, "__func__", value)) for name, value in vars(cls).items() if name[0] != "_"}
    return [name for name, code in codes.items() if inspect.isfunction(code) and code.__module__ == cls.__module__ and code.__doc__]


@cache
def targets() -> dict[str, str]:
    """What can be linked to, by each path that imports it: entries, their members, and modules."""
    found = entries().values()
    paths = {path: entry.path for entry in found for path in [f"{entry.home}.{entry.value.__name__}", *entry.others, entry.path]}
    own = [f"{entry.path}.{name}" for entry in found if inspect.isclass(entry.value) for name in members(entry.value)]
    own += [*FURTHER, *(entry.home for entry in found), "qatlib.chip.meter.FORMULA"]
    return paths | dict(zip(own, own))


def linked(name: str, value, code: str) -> str | None:
    """The target of which `code` speaks in the docstring of `value`, whose own path is `name`; None if of none."""
    called = re.fullmatch(r"([A-Za-z_][\w.]*)(\([^<>\\]*\))?", code)
    owner = entries().get(name) or entries().get(name.rpartition(".")[0])
    arguments = [argument for thing in (value, owner and owner.value) for argument in _arguments(thing)]
    if not called or called[1] in arguments:
        return None
    code, known = called[1], targets()
    home = owner.home if owner else value.__name__
    seen, room = vars(import_module(home)).get(code), ".".join(home.split(".")[:2])
    near = [
        f"{owner.path}.{code}" if owner else "",
        f"{home}.{code}",
        f"{getattr(seen, '__module__', '')}.{code}",
        f"{room}.{code}",
        code,
    ]
    ends = [path for path in known if path.endswith(f".{code}")]
    far = {
        known[path] for path in ends if "." in code or known[path] in entries() and (path.startswith(room) or _room_offers(path))
    }
    path = next(filter(None, [*map(known.get, near), *(far if len(far) == 1 else [])]), None)
    return None if path == name else path


def _room_offers(path: str) -> bool:
    return path.count(".") == 2 and path.split(".")[1] not in ("files", "wording")


def _arguments(value) -> list[str]:
    try:
        return [*inspect.signature(value).parameters, *getattr(value, "__annotations__", ())]
    except (TypeError, ValueError):  # modules, properties
        return []
