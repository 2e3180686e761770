"""Labelled pictures are made once and then read from a file, named by all that they depend on."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from qatcourse import DATA, IN_CHECKOUT, ROOT
from qatlib.files import write_atomic


def cache_folder() -> Path:
    """Where pictures are kept: $QATLIB_CACHE, else `data/cache` of the checkout, else the user's cache folder."""
    if os.environ.get("QATLIB_CACHE"):
        return Path(os.environ["QATLIB_CACHE"])
    if IN_CHECKOUT and os.access(ROOT, os.W_OK):
        return DATA / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qatlib"


def kept(path: Path, n: int, names: Sequence[str], side: int, make: Callable[[], tuple], outdated: Iterable[Path] = ()) -> tuple:
    """Images (n, side, side, 3), joints, labelled, visible: from `path`, where `names` are their arrays, else from `make()`.

    A missing or damaged file is written anew, and `outdated` ones are removed; where nothing can be written the pictures are
    returned all the same. Raises what `make` raises.
    """
    stored = _read(path, n, names, side)
    if stored is not None:
        return stored
    people = make()
    try:
        write_atomic(path, lambda temporary: _write(temporary, dict(zip(names, people))))
        for other in outdated:
            other.unlink(missing_ok=True)
    except OSError as problem:
        print(f"the pictures were made but not kept: {problem.strerror}")
    return people


def _write(path: Path, arrays: dict) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def _read(path: Path, n: int, names: Sequence[str], side: int) -> tuple | None:
    """None where the file is missing or damaged (the archive's checksums find a changed byte)."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            people = tuple(archive[name] for name in names)
        if [part.shape for part in people] == [(n, side, side, 3), (n, 14, 2), (n, 14), (n, 14)]:
            return people
    except Exception as problem:  # whatever zip, zlib or NumPy raise on damaged bytes
        print(f"{path.name} is damaged ({problem}); making the pictures again")
    return None
