"""`from_torch`: a plain PyTorch network as one of ai8x layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import index

import torch
from torch import nn

from qatlib.ai8x import mode
from qatlib.ai8x.graph import evaluating, tensors_in, unwrap
from qatlib.port.fuse import Fused
from qatlib.port.problems import problems
from qatlib.port.rewrites import REWRITES, hoist
from qatlib.port.torch_graph import Plain, read
from qatlib.port.tracing import plain_class
from qatlib.wording import columns


def from_torch(model: nn.Module, input_shape: Sequence[int], device: int = 85, rewrite: Sequence[str] = (), verbose: bool = True,
               wide: bool | None = None) -> nn.Module:  # fmt: skip
    """A plain PyTorch network as one of ai8x layers, to be trained in float or given to `start_qat`; `model` stays as it is.

    Weights and batch-norm statistics are carried over, and in evaluation mode it computes the same real values, but for what the
    table, printed if `verbose`, says of it (ReLU6 becomes ReLU). `input_shape` is (C, H, W), (C, L) or (features,), without batch.
    `rewrite` names the rewrites that may replace what the chip lacks (see `rewrites`); the error offers them. Layers whose
    results the network returns are `wide` where these are vectors: class scores, which need more than 8 bits, and in QAT are those
    of the float network times a power of two. True: all of them, False: none. The result has an `input_shape`, too.
    Raises ValueError with all operations that the chip (`device` 85 or 87) lacks, a line with the remedy for each.
    """
    root, shape, names = _checked(model, input_shape, rewrite)
    with _device(device):
        plain = read(root, shape, device)
        cut = any(step.kind == "relu6" and bool((step.value >= step.module.max_val).any()) for step in plain)
        _rewrite(plain, names)
        fused = Fused(root, plain, wide)
        network = fused.network()
        if not cut and all(REWRITES[name].exact for name in names):
            _require_carried(plain, network)
    if verbose:
        print(columns([("name", "in torch", "in ai8x", "output"), *fused.rows]))
        print("\n".join(f"- {', '.join(about)}: {sentence}" for sentence, about in plain.said.items()))
    return network


def _checked(model, input_shape, rewrite) -> tuple[nn.Module, tuple[int, ...], tuple[str, ...]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}; give a torch module")
    try:
        shape = tuple(map(index, input_shape))
    except TypeError:
        raise TypeError(f"input_shape is {input_shape!r}; give (C, H, W), (C, L) or (features,), without batch") from None
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise ValueError(f"input_shape is {shape}; give (C, H, W), (C, L) or (features,), whole numbers above 0, without batch")
    names = (rewrite,) if isinstance(rewrite, str) else tuple(rewrite)
    if unknown := [name for name in names if name not in REWRITES]:
        raise ValueError(f"the rewrite {unknown[0]!r} is unknown; there are {', '.join(REWRITES)}")
    root = unwrap(model)
    if isinstance(root, torch.jit.ScriptModule):
        raise ValueError("the model is scripted (TorchScript); give the module that it was made of")
    for name, p in root.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter) or p.is_meta:
            raise ValueError(f"{name} has no values yet; call the model once, on a batch of inputs (meta: load its weights)")
        if p.is_floating_point() and p.dtype != torch.float32:
            raise ValueError(f"{name} is {p.dtype}; ai8x layers are trained in float32: call model.float() first")
    return (root if plain_class(root) is None else nn.Sequential(root)), shape, names


@contextmanager
def _device(device: int) -> Iterator[None]:
    """Layers are built for `device`, in training mode; afterwards the device of `set_device` is as it was."""
    before = mode.dev
    mode.set_device(device, verbose=False)
    try:
        with torch.inference_mode(False):
            yield
    finally:
        mode.dev = before


def _rewrite(plain: Plain, names: tuple[str, ...]) -> None:
    """Apply the rewrites asked for, one after the other; ValueError with whatever problems remain."""
    unused = dict.fromkeys(names)
    while True:
        hoist(plain)
        found = problems(plain)
        problem, name = next(((p, name) for p in found for name in names if name in p.options), (None, ""))
        if problem is None:
            break
        unused.pop(name, None)
        plain.say(f"rewritten ({name}), {REWRITES[name]}", problem.step.label)
        REWRITES[name].apply(plain, problem.step)
    if found:
        count = f"{len(found)} operations are" if len(found) > 1 else "one operation is"
        together = dict.fromkeys([*names, *(next(iter(p.options), "") for p in found)])
        hint = f"\nall of them: from_torch(..., rewrite={tuple(together)})" if "" not in together and len(together) > 1 else ""
        raise ValueError("\n- ".join([f"{count} not possible on the chip:", *map(str, found)]) + hint)
    for name in unused:
        plain.say("not needed", name)


def _require_carried(plain: Plain, network: nn.Module) -> None:
    """Raise ValueError unless `network` computes what the model does: a safeguard, where all rewrites are exact."""
    with evaluating(network):
        found = tensors_in(network(plain.sample))
    for value, step in zip(found, plain.outputs()):  # equal, but for the order of sums
        if not torch.allclose(value, step.value, rtol=1e-3, atol=1e-3 * step.value.abs().max().item(), equal_nan=True):
            raise ValueError("the converted network computes something else; does an in-place operation change what is read "
                             "elsewhere? Use inplace=False")  # fmt: skip
