"""Wording and behaviour of messages: values cut to a readable length, errors as one sentence, command lines without tracebacks."""

import argparse
import functools
import os
import re
import reprlib
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable
from operator import index

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple = 2, 4, 4, 4
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100

SUMS = dict.fromkeys(("add", "iadd"), "ai8x.Add()") | dict.fromkeys(("sub", "isub", "rsub"), "ai8x.Sub()")
OPS = {"conv1d": "Conv1d", "conv2d": "Conv2d", "conv_transpose2d": "ConvTranspose2d", "linear": "Linear"}
SOFTWARE = ("SoftwareLinear", "FusedSoftwareLinearReLU")
_INSTEAD = {  # plain operations, as they are called without underscores and dimensions -> what to use
    **{plain: f"use {layer}, whose range is measured and clamped" for plain, layer in SUMS.items()},
    **{plain.replace("_", ""): f"use ai8x.{layer}" for plain, layer in OPS.items()},
    "softwarelinear fusedsoftwarelinearrelu": "it runs outside the accelerator: use ai8x.Linear, or compute it outside the network",
    "batchnorm": "give the ai8x layer in front of it batchnorm='Affine' (FusedConv2dBNReLU and the like)",
    "relu": "give the ai8x layer in front of it activation='ReLU' (FusedConv2dReLU and the like)",
    "abs": "give the ai8x layer in front of it activation='Abs'",
    "maxpool": "use ai8x.MaxPool2d, or a layer that pools first (FusedMaxPoolConv2dReLU and the like)",
    "avgpool": "use ai8x.AvgPool2d, or a layer that pools first (FusedAvgPoolConv2dReLU and the like)",
    "adaptiveavgpool adaptivemaxpool mean": "use ai8x.AvgPool2d with the window's size",
    "relu6 hardtanh leakyrelu prelu elu gelu silu hardswish mish softplus":
        "use activation='ReLU' in the ai8x layer in front of it, and train again",
    "conv3d sigmoid hardsigmoid tanh softmax logsoftmax mul imul truediv div matmul bmm layernorm groupnorm instancenorm upsample "
    "interpolate exp log sqrt pow": "compute it outside the network, or rebuild the network without it",
}  # fmt: skip
_ADVICE = {name: text for names, text in _INSTEAD.items() for name in names.split()}

# Of GNU OpenMP, which is torch's on Linux: threads that wait for each other spin this often, then sleep. Its default, 30 times
# as much, takes the processor from other programs and from torch itself; to sleep at once slows a computer that has no others.
SHORT_SPIN = {"GOMP_SPINCOUNT": "10000"}


def advice(operation: str) -> str:
    """What to use instead of a plain torch operation; "" where nothing is known."""
    name = operation.replace("_", "").lower()
    return _ADVICE.get(name) or _ADVICE.get(re.sub("[123]d", "", name), "")


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


def pair(name: str, value) -> tuple[int, int]:
    """(rows, columns) of a whole number or a pair of such."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or not all(is_whole(v) for v in both):
        raise TypeError(f"{name}={value!r} is neither a whole number nor a pair of such; give one, such as 1 or (1, 1)")
    return index(both[0]), index(both[1])


def is_whole(value) -> bool:
    """Whether `value` is a whole number, of any type but bool."""
    try:
        index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def whole(name: str, value) -> int:
    """`value` as an int. TypeError for anything but whole numbers."""
    if not is_whole(value):
        raise TypeError(f"{name}={value!r} is no whole number; give one, such as 1")
    return index(value)


def require(ok: bool, rule: str, remedy: str) -> None:
    """ValueError with the rule that is broken, and the remedy."""
    if not ok:
        raise ValueError(f"{rule}; {remedy}")


def warn(message: str) -> None:
    """Warn at the line that builds the layer, however many constructors lie between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("qatlib."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


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
    """Decorator of a `main`: what it raises is one sentence on standard error, exit code 2; an unusual error names its place.

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
            except Exception as problem:  # of a network's own code, mostly
                place = traceback.extract_tb(problem.__traceback__)[-1]
                text = f"{type(problem).__name__}: {sentence(problem)[:300]} (line {place.lineno} of {place.filename})"
                print(f"{name}: {text}; correct the network or the inputs", file=sys.stderr)
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
