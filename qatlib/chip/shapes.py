"""The shapes of everything that a network computes for inputs of one shape: what the chip's rules are about."""

from dataclasses import replace

import torch
from torch import fx, nn

from qatlib.ai8x.graph import Graph, evaluating, place, require_same, trace


def shaped(model: nn.Module, input_shape: tuple) -> Graph:
    """`trace(model)` whose nodes know their shape; helper nodes that hold no tensor (such as x.size(0)) are left out.

    `input_shape` is (C, H, W) without batch, or a tuple of such, one per input. Raises ValueError as `trace`, for a network that
    does not accept such inputs, and for a graph that computes something else than the network does.
    """
    graph = trace(model)
    inputs = [n for n in graph.calls.nodes if n.op == "placeholder" and not n.args]
    shapes = input_shape if input_shape and isinstance(input_shape[0], (tuple, list)) else (input_shape,) * len(inputs)
    if not all(shape and all(isinstance(n, int) and n > 0 for n in shape) for shape in shapes):
        raise ValueError(f"input_shape is {tuple(input_shape)}; give whole numbers above 0, (C, H, W) without batch")
    if len(shapes) != len(inputs):
        raise ValueError(f"input_shape {input_shape} is of {len(shapes)} inputs, the network has {len(inputs)}; give each one")
    like, seed = place(model), torch.Generator().manual_seed(0)
    batch = [(torch.randint(-128, 128, (1, *shape), generator=seed) / 128).to(like.device, like.dtype) for shape in shapes]
    try:
        found = _shapes(graph, batch)
    except Exception as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"the network does not accept inputs of shape {tuple(input_shape)} (without batch): {reason}") from None
    require_same(graph, model, *batch)
    nodes = [replace(n, shape=found[n.name], inputs=tuple(i for i in n.inputs if i in found)) for n in graph if n.name in found]
    return Graph(nodes, graph.outputs, graph.root, graph.calls, graph.names)


def _shapes(graph: Graph, batch: list[torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape, without the batch, of the tensor that each node gives, by its name."""
    found: dict[str, tuple] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            first = value[0] if isinstance(value, (tuple, list)) and value else value  # what split and chunk give
            if n.op != "output" and isinstance(first, torch.Tensor):
                found[graph.names[n]] = tuple(first.shape[1:])
            return value

    with evaluating(graph.root):
        Recorder(graph.root, graph=graph.calls).run(*batch)
    return found
