"""The graph of a network: which calls its `forward` makes, in which order, and what each reads (by torch.fx)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.layer import QuantizationAwareModule

_KINDS = {
    **dict.fromkeys(("cat", "concat", "concatenate"), "cat"),
    **dict.fromkeys(("flatten", "Flatten"), "flatten"),
    **dict.fromkeys(("view", "reshape"), "view"),
}
# what reads of a tensor only its shape or kind, and what takes values from its first operand alone: no scale flows there
_DESCRIBES = {"size", "dim", "numel", "nelement", "ndimension", "get_device", "is_contiguous", "stride"}
_TENSORS = {"T", "mT", "H", "mH", "data", "real"}  # attributes of a tensor that hold its values
_FIRST_ALONE = {"to", "type_as", "expand_as", "view_as", "reshape_as"}


@dataclass(frozen=True)
class Node:
    """One call in execution order. `name` is unique (a second call of `conv1` is `conv1@1`), `module` the qualified name or "".

    `inputs` are the nodes whose values it reads: x.size(0), x.shape and zeros_like(x) read none.

    `kind` is input, layer, eltwise, cat, flatten, view or other; `target` the class or function called; `axis` that of a cat
    (batch included); `shape` that of the output without the batch, where `trace` was given an input shape.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    module: str = ""
    target: str = ""
    axis: int | None = None
    shape: tuple[int, ...] | None = None


class Graph(list):
    """The nodes of a network in execution order; `outputs` are the names of those it returns."""

    def __init__(self, nodes=(), outputs: tuple[str, ...] = ()):
        super().__init__(nodes)
        self.outputs = outputs

    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (QuantizationAwareModule, Eltwise)) or super().is_leaf_module(m, module_qualified_name)


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def trace(model: nn.Module, input_shape: tuple | None = None) -> Graph:
    """The execution graph of `model`, ai8x layers and element-wise operations being single nodes.

    `input_shape` is (C, H, W) without batch (or a tuple of such, one per input): nodes then know their shape, and helper
    nodes that hold no tensor (such as x.size(0)) are left out. Raises ValueError for a network that cannot be traced.
    """
    root = unwrap(model)
    if isinstance(root, (QuantizationAwareModule, Eltwise)):
        root = nn.Sequential(root)
    try:
        traced = fx.GraphModule(root, _Tracer().trace(root))
    except Exception as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(
            f"the graph of {type(root).__name__} cannot be traced ({reason}); its forward must not decide, loop or count by tensor "
            "values or shapes: move the decision into __init__, or use only ai8x layers and torch functions"
        ) from problem
    modules = dict(root.named_modules())
    names = _unique_names(traced.graph, modules)
    nodes = [_node(n, names, modules) for n in traced.graph.nodes if n.op != "output"]
    if input_shape is not None:
        nodes = _with_shapes(traced, names, nodes, input_shape)
    result = next(n for n in traced.graph.nodes if n.op == "output")
    return Graph(nodes, tuple(_inputs(result, names)))


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


def _with_shapes(traced: fx.GraphModule, names: dict, nodes: list[Node], input_shape: tuple) -> list[Node]:
    inputs = [n for n in traced.graph.nodes if n.op == "placeholder" and not n.args]
    shapes = input_shape if input_shape and isinstance(input_shape[0], (tuple, list)) else (input_shape,) * len(inputs)
    if not all(shape and all(isinstance(n, int) and n > 0 for n in shape) for shape in shapes):
        raise ValueError(f"input_shape is {tuple(input_shape)}; give whole numbers above 0, (C, H, W) without batch")
    if len(shapes) != len(inputs):
        raise ValueError(f"input_shape {input_shape} is of {len(shapes)} inputs, the network has {len(inputs)}; give each one")
    like = next(traced.parameters(), torch.empty(0))
    found: dict[str, tuple] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            first = value[0] if isinstance(value, (tuple, list)) and value else value  # what split and chunk give
            if isinstance(first, torch.Tensor):
                found[names[n]] = tuple(first.shape[1:])
            return value

    try:
        with evaluating(traced):
            Recorder(traced).run(*(torch.zeros(1, *shape, device=like.device) for shape in shapes))
    except Exception as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"the network does not accept inputs of shape {tuple(input_shape)} (without batch): {reason}") from None
    tensors = [node for node in nodes if node.name in found]
    return [replace(n, shape=found[n.name], inputs=tuple(i for i in n.inputs if i in found)) for n in tensors]
