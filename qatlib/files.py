"""Writing files so that a reader never meets half of one."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path


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
    text = f"cannot write {path}: {problem.strerror or problem}; free some space or choose another folder"
    return OSError(problem.errno, text)


def prepare_folder(folder: str | os.PathLike) -> Path:
    """Make `folder`, prove that it can be written, and remove what killed writers left in it.

    For use before long work. Raises OSError as `write_atomic` does.
    """
    from psutil import pid_exists

    folder = Path(folder)
    write_atomic(folder / ".writable", b"").unlink(missing_ok=True)
    for leftover in folder.glob(".*.tmp"):
        writer = leftover.name.split(".")[-2]
        if writer.isdigit() and not pid_exists(int(writer)):
            leftover.unlink(missing_ok=True)
    return folder


def check_archive(path: str | os.PathLike) -> None:
    """Raise ValueError unless every byte that `torch.save` stored in `path` is as it was written.

    `torch.load` does not compare the archive's checksums; without this a flipped bit would be a slightly different network.
    """
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as problem:  # damaged bytes raise many kinds: zip, zlib, encryption, sizes
        raise ValueError(f"{path} is truncated, damaged or no checkpoint ({problem}); train or copy it again") from problem
    if damaged:
        raise ValueError(f"{path} is damaged in {damaged}; train or copy it again")


def sha256(*parts: bytes) -> bytes:
    """SHA-256 (32 bytes) over the concatenation of `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()
