"""Lesson 16 and the template: a dataset and a network of your own, found by name, looked at, scored."""

from importlib import import_module

import torch

from qatlib.wording import sentence

PARTS = ("x_train", "y_train", "x_test", "y_test")


def made_by(name: str):
    """What `name`, MODULE:NAME of a function or class, gives without arguments; importing a module runs it. Raises ValueError."""
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)()
    except (Exception, SystemExit) as problem:
        remedy = "give MODULE:NAME of a function or class that needs no arguments, in a module of this folder or an installed one"
        raise ValueError(f"{name!r} gives nothing ({type(problem).__name__}: {sentence(problem)}); {remedy}") from problem


def examined(arrays) -> tuple[tuple[torch.Tensor, ...], list[str]]:
    """(the four PARTS as tensors, sentences on what they are). Raises ValueError with all that is wrong, a line each."""
    parts = arrays if isinstance(arrays, (tuple, list)) and len(arrays) == 4 else [None]
    if not all(getattr(part, "shape", ()) for part in parts):
        raise ValueError(f"the data are no four arrays; return tensors or NumPy arrays, {', '.join(PARTS)}, in this order")
    parts = [torch.as_tensor(part) for part in parts]
    faults = [f"{name}: {fault}" for name, part in zip(PARTS, parts) for fault in _faults(part, name[0] == "x")]
    x, y, x_test, y_test = parts
    pairs = ("train", x, y), ("test", x_test, y_test)
    faults += [f"y_{name}: {len(b)} targets for {len(a)} inputs; give one to each" for name, a, b in pairs if len(a) != len(b)]
    shapes = [(name, tuple(a.shape[1:]), tuple(b.shape[1:])) for name, a, b in (("x", x, x_test), ("y", y, y_test))]
    faults += [f"{name}_test: shape {b}, but {name}_train {a}; use one shape" for name, a, b in shapes if a != b]
    if faults:
        raise ValueError("\n- ".join(["these data cannot be used yet:", *faults]))
    typed = tuple(part.float() if part.is_floating_point() else part.long() for part in parts)
    return typed, [_told(name, part) for name, part in zip(PARTS, typed)]


def _faults(part: torch.Tensor, is_input: bool):
    if not part.numel():
        yield "no values; give at least one"
    elif not part.isfinite().all():
        yield "NaN or infinity; leave these out"
    elif is_input and not 2 <= part.dim() <= 4:
        yield f"shape {tuple(part.shape)}; give (N, C, H, W), (N, C, L) or (N, features)"
    elif is_input and not part.is_floating_point():
        yield f"{part.dtype}; give real values, such as (x.float() - 128) / 128 of bytes"
    elif is_input and not -1 <= part.min() <= part.max() <= 127 / 128:
        yield f"{part.min():.4g} to {part.max():.4g}, beyond -1..127/128; scale all by one number, or clamp what is rare"
    elif is_input and (part * 128 != (part * 128).round()).any():
        yield "values between the chip's codes; round them: torch.floor(x * 128 + 0.5) / 128, and clamp to -1..127/128"


def _told(name: str, part: torch.Tensor) -> str:
    each = f"{len(part):,} of shape {tuple(part.shape[1:])}" if part.dim() > 1 else f"{len(part):,} numbers"
    return f"{name}: {each}, {part.min():.4g} to {part.max():.4g}, {len(part.unique()):,} different values"


@torch.no_grad()
def accuracy(net, x: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of inputs whose highest score is their label's, in evaluation mode."""
    return (net.eval()(x).argmax(1) == labels).float().mean().item()
