"""What all command lines share: a problem is one sentence on standard error, an interrupt too, and neither is a traceback.

    @interruptible("run")
    def main(arguments: list[str] | None = None) -> int:
        ...
        except (ValueError, OSError) as problem:
            print(f"run: {sentence(problem)}", file=sys.stderr)
            return 2
"""

import functools
import os
import sys
from collections.abc import Callable

from qatlib.messages import sentence  # noqa: F401 (for the mains)

# Of GNU OpenMP, which is torch's on Linux: threads that wait for each other spin this often, then sleep. Its default, 30 times
# as much, takes the processor from other programs and from torch itself; to sleep at once slows a computer that has no others.
SHORT_SPIN = {"GOMP_SPINCOUNT": "10000"}


def interruptible(name: str, hint: str = "start the same command again") -> Callable:
    """Decorator of a `main`: Ctrl-C prints one sentence with `hint` and gives the exit code 130, as shells do.

    Threads of a torch that is imported later, also by child processes, wait as SHORT_SPIN says, unless the environment does.
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

        return guarded

    return decorate


def folder(text: str) -> str:
    """The type of a folder's argument for argparse: an empty one (an unset variable, perhaps) is not the present folder.

    Raises ArgumentTypeError, which argparse turns into its usual message, for empty text.
    """
    import argparse

    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a folder ('.' is the present one)")
    return text
