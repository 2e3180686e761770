"""Your network from its class, as the command lines name it. Importing a module runs that module.

`build("my_nets:Spotter")` imports `my_nets` from where Python looks for modules (the present folder, $PYTHONPATH, what is
installed) and makes a Spotter; `qatlib.load_checkpoint(path, network)` gives it a checkpoint's weights. A network may have a
method `sample_inputs(count)`, a batch of inputs as it is meant to get them: doctor and `check_folder` use it.
"""

import importlib
import json
from contextlib import contextmanager

from torch import nn

from qatlib import ai8x
from qatlib.integer.checkpoint import chip_of
from qatlib.wording import sentence, short


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


def add_options(parser) -> None:
    """The options of a command line (argparse) that say which network a checkpoint belongs to; `of_options` reads them."""
    parser.add_argument("--network", metavar="MODULE:CLASS", help="the checkpoint's network; importing MODULE runs it")
    parser.add_argument("--arguments", metavar="JSON", help="of the class: '[10]' or '{\"classes\": 10}'")
    parser.add_argument("--device", type=int, choices=(85, 87), help="85: MAX78000, 87: MAX78002; default: the checkpoint's, or 85")


def of_options(options, checkpoint: dict) -> nn.Module | None:
    """The network that the command line names, None without --network; sets the device, without --device to the `checkpoint`'s.

    Raises as `build` and `arguments`.
    """
    chip = chip_of(checkpoint) or {"device": 85}
    ai8x.set_device(**chip | ({"device": options.device} if options.device else {}), verbose=False)
    if options.network is None and options.arguments is not None:
        raise ValueError("--arguments belong to --network; give both, or none")
    return options.network and build(options.network, options.arguments and arguments(options.arguments))


def hint(content: dict) -> str:
    """How to name the network of a checkpoint that says whose it is, and its arguments: '--network MODULE:CLASS' otherwise."""
    name, given = content.get("network"), content.get("arguments")
    if not isinstance(name, str) or len(name) >= 200:
        return "--network MODULE:CLASS"
    return f"--network {name}" + (f" --arguments '{json.dumps(given, default=str)}'" if isinstance(given, dict) and given else "")
