"""The graph of a network: which calls its `forward` makes in evaluation mode, in which order, and what each reads (by torch.fx)."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.layer import QuantizationAwareModule
from qatlib.wording import SOFTWARE, advice

_KINDS = dict.fromkeys(("cat", "concat", "concatenate"), "cat") | dict.fromkeys(("flatten", "Flatten"), "flatten")
_KINDS |= dict.fromkeys(("view", "reshape"), "view")
# what reads of a tensor only its shape or kind, and what takes values from its first operand alone: no scale flows there
_DESCRIBES = {"size", "dim", "numel", "nelement", "ndimension", "get_device", "is_contiguous", "stride"}
_TENSORS = {"T", "mT", "H", "mH", "data", "real"}  # attributes of a tensor that hold its values
_FIRST_ALONE = {"to", "type_as", "expand_as", "view_as", "reshape_as"}


@dataclass(frozen=True)
class Node:
    """One call in execution order. `name` is unique (a second call of `conv1` is `conv1@1`), `module` the qualified name or "".

    `inputs` are the nodes whose values it reads: x.size(0), x.shape and zeros_like(x) read none.
    `kind` is input, layer, eltwise, cat, flatten, view or other; `target` the class or function called; `axis` that of a cat
    (batch included); `shape` that of the output without the batch, None where it is not known.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    module: str = ""
    target: str = ""
    axis: int | None = None
    shape: tuple[int, ...] | None = None


class Graph(list):
    """The nodes of a network in execution order; `outputs` names what it returns, `names` are of the nodes of `calls` on `root`."""

    def __init__(self, nodes=(), outputs: tuple[str, ...] = (), root=None, calls: fx.Graph | None = None, names=None):
        super().__init__(nodes)
        self.outputs, self.root, self.calls, self.names = outputs, root, calls, names


class Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, (QuantizationAwareModule, Eltwise)) or type(m).__name__ in SOFTWARE
        return whole or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        """Optional arguments are what a call without them makes of them: their defaults, not symbols."""
        fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        code, parameters = inspect.unwrap(root_fn).__code__, inspect.signature(inspect.unwrap(root_fn)).parameters
        for i, name in list(enumerate(code.co_varnames[: len(args)]))[2:]:  # not self, and not the network's input
            parameter = parameters[name]
            default = {parameter.VAR_POSITIONAL: (), parameter.VAR_KEYWORD: {}}.get(parameter.kind, parameter.default)
            if default is not parameter.empty:
                self.graph.erase_node(args[i].node)
                args[i] = default
        return fn, args


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def place(model: nn.Module) -> torch.Tensor:
    """A tensor of the model (of no values, if it has none): its device and dtype are where and how the model computes."""
    tensors = (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    return next(tensors, torch.empty(0)).detach()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, in full precision, without gradients; afterwards every module is in the mode it was in."""
    training, kind = [module for module in model.modules() if module.training], place(model).device.type
    model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def trace(model: nn.Module) -> Graph:
    """The execution graph of `model` in evaluation mode, ai8x layers and element-wise operations being single nodes.

    Raises ValueError for a network that cannot be traced. Shapes: `qatlib.chip.shapes.shaped`.
    """
    root = unwrap(model)
    if isinstance(root, (QuantizationAwareModule, Eltwise)):
        root = nn.Sequential(root)
    try:
        with evaluating(root):
            calls = Tracer().trace(root)
    except Exception as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(
            f"the graph of {type(root).__name__} cannot be traced ({reason}); its forward must not decide, loop or count by tensor "
            "values or shapes: move the decision into __init__, or use only ai8x layers and torch functions"
        ) from problem
    modules = dict(root.named_modules())
    names = _unique_names(calls, modules)
    nodes = [_node(n, names, modules) for n in calls.nodes if n.op != "output"]
    result = next(n for n in calls.nodes if n.op == "output")
    return Graph(nodes, tuple(_inputs(result, names)), root, calls, names)


def tensors_in(output) -> list[torch.Tensor]:
    """The tensors in what a network returns; numbers, None and other objects beside them do not matter."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def require_same(graph: Graph, model: nn.Module, *inputs: torch.Tensor) -> None:
    """Raise ValueError unless the traced graph computes what the call `model(*inputs)` does."""
    with evaluating(graph.root):
        run = fx.Interpreter(graph.root, graph=graph.calls).run  # clones: a network may write into its input
        traced, called = (tensors_in(network(*(x.clone() for x in inputs))) for network in (run, model))
    if len(traced) != len(called) or not all(map(same, traced, called)):
        raise ValueError(
            f"the graph of {type(model).__name__} computes something else than its call: its forward asks Python questions that "
            "only tensors answer rightly (isinstance, hasattr), or draws random numbers; decide in __init__, or by its arguments"
        )


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal; on other processors than CPUs, where two runs may differ, nearly so (TF32 keeps 11 bits)."""
    a, b = a.nan_to_num(), b.nan_to_num()
    near = b.device.type != "cpu" and a.shape == b.shape and bool((a - b).abs().max() <= 2**-10 * b.abs().max())
    return torch.equal(a, b) or near


def foreign(graph: Graph) -> dict[str, str]:
    """Operations on values that are not ai8x's although a layer reads what they give: node name -> a sentence with the remedy."""
    found, values = {}, set()  # values: not sizes, such as x.size(0) * 2
    for node in graph:
        values.update([node.name] if node.kind == "input" or values.intersection(node.inputs) else [])
    read = {name for node in graph if node.kind in ("layer", "eltwise") for name in node.inputs}
    for node in reversed(graph):
        if node.name in read & values and node.kind not in ("layer", "eltwise", "input"):
            read.update(node.inputs)
            if advised := advice(node.target):
                found[node.name] = f"{node.name} ({node.target}) is no ai8x layer: neither quantized nor on the chip; {advised}"
    return {node.name: found[node.name] for node in graph if node.name in found}


def _called(n: fx.Node, modules: dict) -> str:
    if n.op == "call_module":
        return type(modules[n.target]).__name__
    return n.args[1] if n.target is getattr else getattr(n.target, "__name__", str(n.target))


def _unique_names(graph: fx.Graph, modules: dict) -> dict[fx.Node, str]:
    names, used = {}, set()
    for n in graph.nodes:
        base = {"placeholder": "input", "call_module": n.target}.get(n.op) or _called(n, modules)
        name, k = base, 0
        while name in used:
            k += 1
            name = f"{base}@{k}"
        used.add(name)
        names[n] = name
    return names


def _inputs(n: fx.Node, names: dict, called: str = "") -> list[str]:
    if called in _DESCRIBES or called.endswith("_like") or called.startswith("new_"):
        return []
    if n.target is getattr and called not in _TENSORS:
        return []
    found: list[str] = []
    fx.map_arg(n.args[:1] if called in _FIRST_ALONE else (n.args, n.kwargs), lambda a: found.append(names[a]))
    return found


def _node(n: fx.Node, names: dict, modules: dict) -> Node:
    called, axis = _called(n, modules), None
    module = modules[n.target] if n.op == "call_module" else None
    if n.op == "placeholder":
        kind = "input"
    elif isinstance(module, QuantizationAwareModule):
        kind = "layer"
    elif isinstance(module, Eltwise):
        kind = "eltwise"
    else:
        kind = _KINDS.get(called, "other")
    if kind == "cat":
        axis = n.kwargs.get("dim", n.kwargs.get("axis", n.args[1] if len(n.args) > 1 else 0))
    return Node(names[n], kind, tuple(_inputs(n, names, called)), n.target if module is not None else "", called, axis)
