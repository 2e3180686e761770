"""Checkpoints: one reader for every form that training leaves, and our own form, which also holds what decides the numbers.

`state_of(content)` finds the state dict in what `files.load` read, `with_state(network, content)` gives it to a network.
"""

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from qatlib.ai8x import mode as target
from qatlib.ai8x.graph import unwrap
from qatlib.ai8x.layer import QuantizationAwareModule
from qatlib.ai8x.qat import layers, update_model
from qatlib.files import Unread, load, save
from qatlib.wording import short

WEIGHT = ".op.weight"  # how the name of a layer's weights ends
VALID = {
    **dict.fromkeys(("weight_bits", "bias_bits"), lambda bits: bits in (0, 1, 2, 4, 8)),
    **dict.fromkeys(("activation_threshold", "final_scale", "output_shift"), lambda log2: not 1000 < abs(log2) < math.inf),
    "shift_quantile": lambda share: 0 < share <= 1,
}
EMPTY = (WEIGHT, ".op.bias")  # never without a value
MARKS = (WEIGHT, ".weight_bits")  # how a name, with a dot before it, ends that only ai8x layers have
WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def save_checkpoint(path: str | os.PathLike, model: nn.Module, **more) -> Path:
    """Write `model`'s state dict (the vendor's keys) and, beside it, what else decides its numbers; `load_checkpoint` reads it.

    Beside `state_dict` stand `network` (MODULE:CLASS), `chip` (`device` and `round_avg`), and `more`, e.g. epoch=3,
    arguments={"classes": 10} (of the class), optimizer=optimizer.state_dict(). Raises as `files.save`.
    """
    root = unwrap(model)
    rounds = [layer.round_avg for layer in layers(root).values() if layer.pooling == "Avg"] or [target.dev.round_avg]
    content = {"network": f"{type(root).__module__}:{type(root).__qualname__}"}
    content |= {"chip": {"device": target.dev.device, "round_avg": rounds[0]}} | more
    return save(path, content | {"state_dict": {key: value.cpu() for key, value in root.state_dict().items()}})


def load_checkpoint(path: str | os.PathLike, network: nn.Module) -> nn.Module:
    """`network`, newly built, with the checkpoint in `path`, of any form (see `state_of`), ready to evaluate. See `with_state`."""
    return with_state(network, load(path), str(path))


def state_of(content: Mapping, where: str = "the state dict", own: Mapping | None = None) -> dict[str, torch.Tensor]:
    """The state dict of ai8x layers in `content`: itself, or in nested dicts under any name ('state_dict', 'model', 'ema', ...).

    Names come without what parallel, compiled and averaged training prefix; with `own`, the state dict of the network that it is
    for, under that network's names, without any other prefix (Lightning's 'model.'). Of several states the one that fits `own` is
    taken, of several such the one in 'state_dict'. Raises ValueError, naming them, where there are still several, and as
    `check_state`.
    """
    found = _states(content)
    if not found:  # another network's, or none
        found = {"": content.get("state_dict", content) if isinstance(content, Mapping) else content}
        values = found[""].values() if isinstance(found[""], Mapping) else found.values()
        if objects := [value for value in values if isinstance(value, Unread)]:
            what = f"{where} holds a {type(objects[0]).__name__}, a Python object, which is not read"
            raise ValueError(f"{what}; save its state_dict alone, as {{'state_dict': model.state_dict()}}")
        check_state(found[""], where)
    fitting = _fitting(found, own or {}) or {path: _unwrapped(state) for path, state in found.items()}
    best = [path for path in fitting if len(fitting) == 1 or path.split(".")[0] == "state_dict"]
    if len(best) != 1:
        one = "save the one that you mean alone, as {'state_dict': state}"
        raise ValueError(f"{where} holds several states that may be meant ({', '.join(fitting)}); {one}")
    check_state(fitting[best[0]], where)
    return fitting[best[0]]


def _states(content, depth: int = 4) -> dict[str, dict]:
    """The tensors of every state dict of ai8x layers in nested dicts, by its path."""
    if not isinstance(content, Mapping) or not depth:
        return {}
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor) and key != "n_averaged"}
    if any(f".{key}".endswith(MARKS) for key in tensors):
        return {"": tensors}
    inner = {key: _states(value, depth - 1) for key, value in content.items()}
    return {f"{key}.{path}".strip("."): state for key, states in inner.items() for path, state in states.items()}


def _unwrapped(state: dict) -> dict:
    """`state` without the prefixes of torch.compile, anywhere, and of parallel and averaged training, where all names have them."""
    while state and all(str(key).startswith(("module.", "_orig_mod.")) for key in state):
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return {key.replace("._orig_mod.", ".") if isinstance(key, str) else key: value for key, value in state.items()}


def _fitting(found: dict[str, Mapping], own: Mapping) -> dict[str, dict]:
    """Of all states those parts, by path and prefix, where the most layers have names and shapes of `own`; under its names."""
    names, counts = {WRAPPERS.sub("", key): key for key in own}, Counter()
    states = {path: {WRAPPERS.sub("", str(key)): value for key, value in state.items()} for path, state in found.items()}
    for path, state in states.items():
        for key in (key for key in state if f".{key}".endswith(MARKS)):
            for start in (0, *(dot.end() for dot in re.finditer(r"\.", key))):
                if (name := names.get(key[start:])) and own[name].shape == state[key].shape:
                    counts[path, key[:start]] += 1
    best = {
        f"{path}.{prefix}".strip("."): (prefix, states[path]) for (path, prefix), n in counts.items() if n == max(counts.values())
    }
    return {
        place: {names.get(key[len(prefix) :], key[len(prefix) :]): value for key, value in state.items() if key.startswith(prefix)}
        for place, (prefix, state) in best.items()
    }


def layer_names(state_dict: Mapping[str, torch.Tensor], where: str = "the state dict") -> list[str]:
    """The ai8x layers with weights in a state dict. Raises ValueError where it holds none."""
    found = [key.removesuffix(WEIGHT) for key in state_dict if key.endswith(WEIGHT)]
    if not found:
        raise ValueError(f"{where} holds no ai8x layer (no name ends in {WEIGHT}); give a checkpoint of a network of ai8x layers")
    return found


def check_state(state_dict, where: str = "the state dict") -> None:
    """Raise ValueError unless `state_dict` maps names to dense tensors of real numbers, with sensible ones where layers keep one.

    A threshold may be -inf: a dead layer gives that, and the doctor names it. Raises TypeError for what is no dict.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"{where} is a {type(state_dict).__name__}; give a dict of names and tensors, model.state_dict()")
    for name, value in state_dict.items():
        if not isinstance(name, str):
            raise ValueError(f"{where} has the key {short(name)}, which is no text; give the unchanged model.state_dict()")
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} of {where} is a {type(value).__name__}, not a tensor; give model.state_dict()")
        if value.layout != torch.strided or value.is_meta or value.is_complex() or value.is_quantized:
            kind = "meta" if value.is_meta else f"{value.layout} {value.dtype}"
            raise ValueError(f"{name} of {where} is a {kind} tensor; store dense real numbers, in memory")
        valid = VALID.get(name.rpartition(".")[2])
        if valid and (value.numel() != 1 or not valid(value.item())) or name.endswith(EMPTY) and not value.numel():
            raise ValueError(f"{name} of {where} is {short(value.tolist())}, which no training writes; train or copy it again")


def with_state(network: nn.Module, content: Mapping, where: str = "the state dict") -> nn.Module:
    """`network` with the state in `content` (see `state_of`), ready to evaluate; batch norms that it lacks (fused) are taken out.

    Average pools round as `content` says (see `save_checkpoint`); a warning tells where that is not what `set_device` says, or
    where they have to round and `content` does not say how. Raises ValueError as `load_state`.
    """
    load_state(network, content, where, fused=True)
    update_model(network)
    set_rounding(network, content, where)
    return network.eval()


def load_state(network: nn.Module, content: Mapping, where: str = "the state dict", fused: bool = False) -> None:
    """Load the state in `content` (see `state_of`); with `fused`, batch norms that it lacks are taken out of the network.

    Raises ValueError for the state of another network, before anything changes.
    """
    own = network.state_dict()
    state = state_of(content, where, own)
    found = ((f"{name}.bn.".removeprefix("."), m) for name, m in network.named_modules() if isinstance(m, QuantizationAwareModule))
    norms = {prefix: layer for prefix, layer in found if layer.bn is not None}
    gone = tuple(prefix for prefix in norms if fused and not any(key.startswith(prefix) for key in state))
    needed = {key: tuple(value.shape) for key, value in own.items() if not key.startswith(gone) and hasattr(value, "shape")}
    given = {key: tuple(value.shape) for key, value in state.items()}
    faults = [f"{key} is {given[key]}, not {shape}" for key, shape in needed.items() if given.get(key, shape) != shape]
    faults += [f"it lacks {key}" for key in needed if key not in given] + [
        f"{key} is of no layer" for key in given if key not in own
    ]
    if faults:
        what = f"{where} does not belong to {type(unwrap(network)).__name__}"
        raise ValueError(f"{what}; give the network that was trained, with the same arguments ({faults[0][:200]})")
    for prefix in gone:
        norms[prefix].bn = None
    network.load_state_dict(state)


def chip_of(content: Mapping) -> dict:
    """`device` and `round_avg` as `save_checkpoint` wrote them; empty for a checkpoint of other origin."""
    chip = content.get("chip")
    return dict(chip) if isinstance(chip, Mapping) and chip.keys() == {"device", "round_avg"} else {}


def set_rounding(network: nn.Module, content: Mapping, where: str) -> None:
    """Let the average pools of `network` round as the `chip` of `content` says, and warn as `with_state` does."""
    found, now, chip, text = layers(network).values(), target.dev, chip_of(content), ""
    pools = [layer for layer in found if layer.pooling == "Avg"]
    for layer in pools if chip else ():
        layer.round_avg = bool(chip["round_avg"])
    if chip and (chip["device"] != now.device or pools and chip["round_avg"] != now.round_avg):
        saved, said = (f"device={one['device']}, round_avg={one['round_avg']}" for one in (chip, vars(now)))
        text = f"was saved with {saved}, but set_device says {said}; average pools round as saved, until update_model: call "
        text += f"ai8x.set_device({saved}) before you load it"
    elif not chip and pools and any(layer.quantize_activation.item() for layer in found):
        text = f"does not say how average pools round (qatlib.save_checkpoint does), set_device says round_avg={now.round_avg}; "
        text += f"if it was trained otherwise, call ai8x.set_device({now.device}, round_avg={not now.round_avg}) before you load it"
    if text:
        warnings.warn(f"{where} {text}", stacklevel=3)
