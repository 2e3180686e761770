"""Wording of messages: values cut to a length that a reader can take in, errors in one line."""

import os
import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple = 2, 4, 4, 4
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


def short(value) -> str:
    """`repr`, cut to a few hundred characters: a few lines of YAML can stand for billions of values.

    >>> short([[[1]]]), len(short(["a" * 10**6] * 10**6))
    ('[[[...]]]', 413)
    """
    return _SHORT.repr(value)


def sentence(problem: BaseException) -> str:
    """What `problem` says, in one line; of an error of the operating system also the file that it concerns.

    >>> sentence(FileNotFoundError(2, "No such file or directory", "im0003.jpg"))
    'im0003.jpg: No such file or directory'
    """
    text = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
    name = getattr(problem, "filename", None)
    if isinstance(name, (str, bytes, os.PathLike)):
        text = f"{os.fsdecode(name)}: {text}"
    return " ".join(text.split())
