"""Wording and behaviour of messages: values cut to a readable length, errors as one sentence, command lines without tracebacks."""

import argparse
import functools
import os
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple = 2, 4, 4, 4
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100

# Of GNU OpenMP, which is torch's on Linux: threads that wait for each other spin this often, then sleep. Its default, 30 times
# as much, takes the processor from other programs and from torch itself; to sleep at once slows a computer that has no others.
SHORT_SPIN = {"GOMP_SPINCOUNT": "10000"}


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


def columns(rows: Iterable[Iterable[str]], right: Collection[int] = ()) -> str:
    """A line for each of `rows`, which have equally many texts: columns two spaces apart, those numbered in `right` flush right.

    >>> print(columns([("layer", "bytes"), ("conv1", "216"), ("fc", "5")], right={1}))
    layer  bytes
    conv1    216
    fc         5
    """
    padded = []
    for i, column in enumerate(zip(*rows)):
        width = max(map(len, column))
        padded.append([text.rjust(width) if i in right else text.ljust(width) for text in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded))


def need(module: str, extra: str) -> ImportError:
    """The error to raise where `module` is missing, with the line that installs the extra of qatlib that it belongs to.

    Pip finds the extra in what is installed, be that a checkout or a wheel.

    >>> need("onnx", "export")
    ImportError("onnx is not installed; install it with: pip install 'qatlib[export]'")
    """
    return ImportError(f"{module} is not installed; install it with: pip install 'qatlib[{extra}]'")


def command(name: str, hint: str = "start the same command again") -> Callable:
    """Decorator of a `main`: what it raises because of its input is one sentence on standard error, exit code 2.

    Ctrl-C prints one sentence with `hint` and gives the exit code 130, as shells do. Threads of a torch that is imported later,
    also by child processes, wait as SHORT_SPIN says, unless the environment does.
    """

    def decorate(main: Callable) -> Callable:
        @functools.wraps(main)
        def guarded(arguments: list[str] | None = None) -> int:
            for variable, value in SHORT_SPIN.items():
                os.environ.setdefault(variable, value)
            try:
                return main(arguments)
            except KeyboardInterrupt:
                print(f"\n{name}: interrupted; {hint}", file=sys.stderr)
                return 130
            except (ValueError, TypeError, OSError, OverflowError, ImportError) as problem:
                print(f"{name}: {sentence(problem)}", file=sys.stderr)
                return 2

        return guarded

    return decorate


class Parser(argparse.ArgumentParser):
    """Errors are one sentence on standard error, exit code 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n")


def folder(text: str) -> str:
    """The type of a folder's argument for argparse: an empty one (an unset variable, perhaps) is not the present folder.

    Raises ArgumentTypeError, which argparse turns into its usual message, for empty text.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a folder ('.' is the present one)")
    return text
