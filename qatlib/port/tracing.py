"""The tracer: torch.fx, but it computes while it traces, so that a forward may decide by shapes and sizes (not by values)."""

import torch
from torch import fx, nn

from qatlib.ai8x.graph import Tracer, evaluating, same, tensors_in

_FACTS = {"shape", "ndim", "dtype", "device", "is_cuda", "size", "dim", "numel", "nelement", "ndimension", "is_contiguous",
          "is_floating_point", "get_device"}  # fmt: skip


class _Symbol(fx.Proxy):
    """A proxy that knows its value, so that questions about its shape and kind have plain answers."""

    def __getattr__(self, name):
        return getattr(self.tracer.run.env[self.node], name) if name in _FACTS else super().__getattr__(name)

    def __len__(self):
        return len(self.tracer.run.env[self.node])

    def __iter__(self):
        return (self[i] for i in range(len(self)))


class _Computing(Tracer):
    """Traces and computes at the same time: `run.env` holds what every node gives for `sample`."""

    def __init__(self, sample: torch.Tensor):
        super().__init__()
        self.sample, self.busy = sample, False  # busy: computing, so that what is called is not traced

    def create_args_for_root(self, *args, **kwargs):
        self.run = fx.Interpreter(self.root, garbage_collect_values=False, graph=self.graph)
        self.run.args_iter = iter((self.sample,))
        return super().create_args_for_root(*args, **kwargs)

    def create_node(self, kind, *args, **kwargs):
        node = super().create_node(kind, *args, **kwargs)
        self.busy = kind != "output"
        try:
            if self.busy:
                self.run.env[node] = self.run.run_node(node)
        finally:
            self.busy = False
        return node

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or plain_class(m) is not None

    def proxy(self, node):
        return _Symbol(node, self)

    def call_module(self, m, forward, args, kwargs):
        return forward(*args, **kwargs) if self.busy else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        return attr_val if self.busy else super().getattr(attr, attr_val, parameter_proxy_cache)


def plain_class(m: nn.Module) -> type | None:
    """The class of torch.nn whose forward `m` has (also that of a subclass which changes other things); None for a network."""
    known = (c for c in type(m).__mro__ if c.__module__.startswith("torch.nn.modules") and c is not nn.Module)
    found = next((c for c in known if c.forward is type(m).forward), None)
    return None if found is None or issubclass(found, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) else found


def trace(model: nn.Module, sample: torch.Tensor) -> tuple[fx.Graph, dict[fx.Node, object]]:
    """The graph of `model` in evaluation mode, and what every node gives for `sample`. Raises ValueError for what has none."""
    tracer, name, attributes = _Computing(sample.clone()), type(model).__name__, set(vars(model))
    with evaluating(model), torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(0)
            wanted = tensors_in(model(sample.clone()))
        except Exception as refused:
            said, shape = (str(refused).splitlines() or [type(refused).__name__])[0], tuple(sample.shape[1:])
            raise ValueError(f"{name} does not accept inputs of shape {shape} (without batch): {said}") from None
        try:
            torch.manual_seed(0)
            graph = tracer.trace(model)
        except Exception as problem:
            reason = " ".join(str(problem).split()) or type(problem).__name__
            raise ValueError(f"{name} cannot be traced ({reason}); its forward must not decide, loop or count by the values of "
                             "tensors: move the decision into __init__, or out of the network") from problem  # fmt: skip
        finally:
            for constant in vars(model).keys() - attributes:  # which the tracer has left there
                delattr(model, constant)
    found = tensors_in(fx.map_arg(result(graph), tracer.run.env.get))
    if len(found) != len(wanted) or not all(map(same, found, wanted)):
        raise ValueError(f"{name} computes something else when traced: its forward asks Python questions that only tensors answer "
                         "rightly (isinstance, hasattr); decide in __init__, or by the arguments of forward")  # fmt: skip
    return graph, tracer.run.env


def result(graph: fx.Graph):
    """What the graph returns: a structure of nodes."""
    return next(node for node in graph.nodes if node.op == "output").args[0]
