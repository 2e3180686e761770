"""Your network from its class and its checkpoint. Reading a checkpoint runs nothing in it; importing a module runs that module.

`build("my_nets:Spotter")` imports `my_nets` from where Python looks for modules (the present folder, $PYTHONPATH, what is
installed) and makes a Spotter; `with_state(network, tensors(files.load(path), path))` gives it a checkpoint's weights. A
network may have a method `sample_inputs(count)`, a batch of inputs as it is meant to get them: doctor and `check_folder` use it.
"""

import importlib
import json
import math
from collections.abc import Mapping
from contextlib import contextmanager

import torch
from torch import nn

from qatlib import ai8x
from qatlib.integer.convert import WEIGHT
from qatlib.wording import sentence, short

VALID = {
    **dict.fromkeys(("weight_bits", "bias_bits"), lambda bits: bits in (0, 1, 2, 4, 8)),
    **dict.fromkeys(("activation_threshold", "final_scale", "output_shift"), lambda log2: not 1000 < abs(log2) < math.inf),
    "shift_quantile": lambda share: 0 < share <= 1,
}
EMPTY = (WEIGHT, ".op.bias")  # never without a value


@contextmanager
def _refused(what: str, remedy: str):
    """Whatever the network's own code raises becomes one sentence."""
    try:
        yield
    except (Exception, SystemExit) as problem:
        raise ValueError(f"{what} ({type(problem).__name__}: {sentence(problem)}); {remedy}") from problem


def build(name: str, arguments: list | dict | None = None) -> nn.Module:
    """The network that `name`, MODULE:CLASS, makes of `arguments` (a list of values, or a dict by name). Imports the module.

    Raises ValueError, in one sentence with the remedy, where the module cannot be imported or its class gives no network.
    """
    module_name, colon, cls = name.partition(":")
    if not (module_name and colon and cls.isidentifier()):
        raise ValueError(f"the network {short(name)} is not of the form MODULE:CLASS; give, for example, my_nets:Spotter")
    with _refused(f"the module {module_name} cannot be imported", "start the command in its folder, or add that to PYTHONPATH"):
        module = importlib.import_module(module_name)
    if not callable(factory := getattr(module, cls, None)):
        offered = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise ValueError(f"{module_name} has no class {cls}; it has {', '.join(offered) or 'no network'}")
    remedy = "give what it needs as JSON: --arguments '[10]', or --arguments '{\"classes\": 10}'"
    with _refused(f"{name} cannot be built with {short(arguments or [])}", remedy):
        network = factory(**arguments) if isinstance(arguments, dict) else factory(*arguments or ())
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} gives a {type(network).__name__}, no torch module; name the class of the network")
    return network


def arguments(text: str) -> list | dict:
    """The value of --arguments, from JSON. Raises ValueError for anything but a list or an object."""
    try:
        value = json.loads(text)
        fault = "" if isinstance(value, (list, dict)) else "is neither a list nor an object"
    except ValueError as problem:
        fault = f"is no JSON ({problem})"
    if fault:
        raise ValueError(f"--arguments {short(text)} {fault}; give '[10]' or '{{\"classes\": 10}}'")
    return value


def shape(text: str) -> tuple[int, ...]:
    """The value of --input-shape: 3,64,64 for (C, H, W). Raises ValueError for anything but one to three whole numbers above 0."""
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts) or len(parts) > 3:
        raise ValueError(f"--input-shape {short(text)} is not C,H,W in whole numbers above 0; give, for example, 3,64,64")
    return tuple(int(part) for part in parts)


def tensors(content: dict, where: str) -> dict[str, torch.Tensor]:
    """The state dict in `content` (its 'state_dict', or itself), names without what parallel and compiled training prefix."""
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise ValueError(f"the 'state_dict' of {where} is a {type(state).__name__}; give a checkpoint of tensors")
    found = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    check_state(found, where)
    layer_names(found, where)
    return {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in found.items()}


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


def with_state(network: nn.Module, state: dict[str, torch.Tensor], where: str = "the state dict") -> nn.Module:
    """`network` with `state`, ready to evaluate; batch norms that the state lacks (they were fused) are taken out of it.

    Raises ValueError for the state of another network.
    """
    for name, module in network.named_modules():
        prefix = f"{name}.bn.".removeprefix(".")
        if isinstance(module, ai8x.QuantizationAwareModule) and not any(key.startswith(prefix) for key in state):
            module.bn = None
    load_state(network, state, where)
    ai8x.update_model(network)
    return network.eval()


def load_state(network: nn.Module, state: dict[str, torch.Tensor], where: str = "the state dict") -> None:
    """`network.load_state_dict(state)`, with one sentence (ValueError) for the state of another network."""
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as problem:
        kind, reason = type(network).__name__, " ".join(str(problem).split())[:200]
        raise ValueError(
            f"{where} does not belong to {kind}; give the network that was trained, with the same arguments ({reason})"
        ) from problem


def add_options(parser) -> None:
    """The options of a command line (argparse) that say which network a checkpoint belongs to; `of_options` reads them."""
    parser.add_argument("--network", metavar="MODULE:CLASS", help="the checkpoint's network; importing MODULE runs it")
    parser.add_argument("--arguments", metavar="JSON", help="of the class: '[10]' or '{\"classes\": 10}'")
    parser.add_argument("--device", type=int, choices=(85, 87), default=85, help="85: MAX78000 (default), 87: MAX78002")


def of_options(options) -> nn.Module | None:
    """The network that the command line names, None without --network; sets the device. Raises as `build` and `arguments`."""
    ai8x.set_device(options.device, verbose=False)
    if options.network is None and options.arguments is not None:
        raise ValueError("--arguments belong to --network; give both, or none")
    return options.network and build(options.network, options.arguments and arguments(options.arguments))


def hint(content: dict) -> str:
    """How to name the network of a checkpoint that says whose it is, and its arguments: '--network MODULE:CLASS' otherwise."""
    name, given = content.get("network"), content.get("arguments")
    if not isinstance(name, str) or len(name) >= 200:
        return "--network MODULE:CLASS"
    return f"--network {name}" + (f" --arguments '{json.dumps(given)}'" if isinstance(given, dict) and given else "")
