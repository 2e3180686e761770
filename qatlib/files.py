"""Writing files so that a reader never meets half of one."""

import contextlib
import hashlib
import io
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

MARKER = ".qatlib"
KINDS = 100  # of objects beside a state that are passed over; no training saves that many


def write_atomic(path: str | os.PathLike, content: bytes | str | Callable[[Path], None]) -> Path:
    """Write `content` to a temporary neighbour of `path`, flush it to disk, then rename it over `path`.

    `content` is bytes, text (UTF-8), or a function that writes the temporary path it is given (`lambda p: torch.save(d, p)`).
    A reader sees the old file or the new one, never a mixture, even after a kill or with a full disk.

    Raises OSError, naming the file and the remedy, where the folder cannot be written; the old file is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        raise cannot_write(path, problem) from problem
    finally:
        with contextlib.suppress(OSError):  # where the folder cannot exist there is nothing to remove
            temporary.unlink()
    return path


def cannot_write(path: str | os.PathLike, problem: OSError) -> OSError:
    """`problem` with the file and the remedy in its text."""
    reason = os.strerror(problem.errno) if problem.errno else problem
    return OSError(problem.errno, f"cannot write {path}: {reason}; free some space or choose another folder")


def prepare_folder(folder: str | os.PathLike) -> Path:
    """Prove that `folder` can be made and written, and remove what killed writers left in it; its first file makes it for good.

    For use before long work. Raises OSError as `write_atomic` does.
    """
    folder = Path(folder)
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    write_atomic(folder / ".writable", b"").unlink(missing_ok=True)
    for leftover in _abandoned(folder, ".*", "tmp"):
        leftover.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else has written there
        for path in new:
            path.rmdir()
    return folder


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # damaged where zipfile itself looks; `check_archive` says so
        return True


def check_archive(path: str | os.PathLike) -> None:
    """Raise ValueError unless every byte that `torch.save` stored in `path` is as it was written.

    `torch.load` does not compare the archive's checksums; without this a flipped bit would be a slightly different network.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its entries are compressed, which torch.save never does")
            damaged = archive.testzip()
    except Exception as problem:  # damaged bytes raise many kinds: zip, zlib, encryption, sizes
        raise ValueError(f"{path} is truncated, damaged or no checkpoint ({problem}); train or copy it again") from problem
    if damaged:
        raise ValueError(f"{path} is damaged in {damaged}; train or copy it again")


def save(path: str | os.PathLike, content: dict) -> Path:
    """Write what `load` reads, by `torch.save`, whole or not at all; equal content gives equal bytes.

    Raises ValueError for Python objects, OSError as `write_atomic`.
    """
    import torch

    buffer = io.BytesIO()  # written straight to a file it would hold the path's name, and a full disk would raise no OSError
    torch.save(content, buffer)
    try:
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except pickle.UnpicklingError as problem:
        kind = f"a Python object, {_kind(problem)}" if _kind(problem) else "Python objects"
        raise ValueError(f"{path} would hold {kind}; give state dicts, tensors, numbers, text, lists and dicts") from problem
    return write_atomic(path, buffer.getvalue())


def _kind(problem: Exception) -> str:
    """The class or function that torch.load has refused, or ""."""
    found = re.search(r"GLOBAL (\S+) w", str(problem))
    return "" if not found else found[1] if "." in found[1] else f"builtins.{found[1]}"


def load(path: str | os.PathLike) -> dict:
    """The dict that `torch.save` wrote into `path`, on the CPU. Nothing in the file is run (`weights_only`).

    In place of other Python objects beside a state, and of classes, stands an `Unread`: nothing of theirs is imported or called.
    Raises FileNotFoundError or ValueError, naming the file and the remedy: it is truncated, damaged, of another kind, names what
    belongs to the operating system, or holds no dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give the path of a checkpoint (.pth or .pth.tar)")
    if _is_archive(path):
        check_archive(path)
    try:
        content = _read(path)
        if isinstance(content, Unread):
            raise pickle.UnpicklingError(f"GLOBAL {content.__module__}.{type(content).__name__} was not read")
    except Exception as problem:
        raise ValueError(
            f"{path} is no checkpoint that can be read safely (truncated, of another kind, or with Python objects in it"
            f"{f', here {_kind(problem)}' if _kind(problem) else ''}: save its state_dict alone)"
        ) from problem
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; give a checkpoint with a 'state_dict'")
    return content


class Unread:
    """In place of an object that is not read, with the name of its class: keeps what a pickle gives it, and does nothing."""

    def __new__(cls, *given):
        unread = object.__new__(cls)
        unread.given, unread.state = given, None
        return unread

    def __setstate__(self, state) -> None:
        self.state = state


def _read(path: Path):
    """What torch.load makes of `path` with weights_only: whatever class or function else it names is an `Unread` of that name."""
    import torch

    known = {"collections.defaultdict": lambda *_: {}, "collections.deque": lambda given=(), *_: list(given)}
    while True:
        try:
            with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in known.items()]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as problem:
            name = _kind(problem)
            if not name or name in known or len(known) > KINDS:
                raise
            module, _, own = name.rpartition(".")
            known[name] = type(own, (Unread,), {"__module__": module})


def sha256(*parts: bytes) -> bytes:
    """SHA-256 (32 bytes) over the concatenation of `parts`."""
    return hashlib.sha256(b"".join(parts)).digest()


def _abandoned(folder: Path, name: str, kind: str, mine: bool = False) -> list[Path]:
    """The `.NAME.PID.KIND` (regular expressions) in `folder` whose writer PID is gone or, with `mine`, this process."""
    named = [(path, re.fullmatch(rf"\.{name}\.(\d+)\.{kind}", path.name)) for path in sorted(folder.glob(".*"))]
    writers = [(path, int(match[1])) for path, match in named if match]
    return [path for path, pid in writers if mine and pid == os.getpid() or not _runs(pid)]


def _runs(pid: int) -> bool:
    """Whether process `pid` exists."""
    if os.name != "posix":  # where the signal below would end it
        return import_module("psutil").pid_exists(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _heal(folder: Path) -> None:
    """Undo what killed or failed writers left beside `folder`: put the old one back if it was moved away, remove the rest."""
    for leftover in _abandoned(folder.parent, re.escape(folder.name), "(?:new|old)", mine=True):
        if leftover.suffix == ".old" and not folder.exists():
            os.replace(leftover, folder)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def write_folder(folder: str | os.PathLike, fill: Callable[[Path], None]) -> Path:
    """Let `fill` write into an empty neighbour of `folder`, then put that in its place: a reader never sees half of it.

    Its file `.qatlib` records the SHA-256 of every other one, for `recorded`. Replaced is only an empty folder, or one that this
    function has written (it holds `.qatlib`); else FileExistsError. Raises OSError naming the folder where it cannot be written.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) and not (folder / MARKER).exists()):
        raise FileExistsError(f"{folder} exists and was not written by qatlib; choose another name, or delete it first")
    building, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    try:
        _heal(folder)
        building.mkdir(parents=True)
        fill(building)
        record(building)
        if folder.exists():
            os.replace(folder, old)
        os.replace(building, folder)
    except OSError as problem:
        raise cannot_write(folder, problem) from problem
    finally:
        _heal(folder)
    return folder


def record(folder: Path) -> None:
    """Write `.qatlib`: the SHA-256 of every other file in `folder`, in the form that `sha256sum -c .qatlib` reads."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER)
    lines = [f"{sha256(path.read_bytes()).hex()}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / MARKER).write_text("".join(lines))


def recorded(folder: Path) -> dict[str, str]:
    """SHA-256 by file, as `record` wrote them. Raises ValueError for a folder without them."""
    marker = folder / MARKER
    lines = marker.read_text(errors="replace").splitlines() if marker.is_file() else []
    found = {file: digest for digest, separator, file in (line.partition("  ") for line in lines) if separator}
    if not found or not all(len(digest) == 64 for digest in found.values()):
        raise ValueError(f"{marker} records no checksums of the folder's files; export the folder again")
    return found
