"""A plain network as a list of steps: what its forward calls in evaluation mode, functions as the modules they stand for."""

from dataclasses import dataclass, field

import torch
from torch import fx, nn

from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.graph import place
from qatlib.ai8x.layer import QuantizationAwareModule
from qatlib.chip.lowering import PERMUTING, axes_of
from qatlib.port.tracing import plain_class, result, trace

BATCH = 3
WEIGHTED = ("conv2d", "conv1d", "convtranspose2d", "linear")
NORMS = {"batchnorm1d": ("conv1d", "linear"), "batchnorm2d": ("conv2d", "convtranspose2d"), "syncbatchnorm": WEIGHTED}
ACTIVATIONS = ("relu", "relu6", "abs")
DROPOUTS = ("dropout", "dropout1d", "dropout2d")
POOLS = ("maxpool1d", "maxpool2d", "avgpool1d", "avgpool2d")
ADAPTIVE = ("adaptiveavgpool1d", "adaptiveavgpool2d", "adaptivemaxpool1d", "adaptivemaxpool2d")
RESHAPES = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "getitem", "permute", "transpose", "viewas", "reshapeas",
            "unflatten", "swapaxes", "swapdims", "movedim", "moveaxis"}  # fmt: skip
MOVING = ("flatten", "reshape", "permute", "cat")  # values, without changing any
SAME = {"identity", "contiguous", "clone", "detach", "alias", "float", "to", "typeas", "positive", "pad", *RESHAPES, *ADAPTIVE}
NAMES = {"iadd": "add", "isub": "sub", "subtract": "sub", "concat": "cat", "concatenate": "cat", "absolute": "abs"}


@dataclass(eq=False)
class Step:
    """One operation. `kind` is the torch module's class in small letters, `path` its place in the network ("" for functions).

    `inputs` are the steps that it reads, `shape` is that of its output without the batch, None where that is no tensor; `owner`
    is the path of the module whose forward calls it, `fault` what is wrong with a sum or concatenation, `value` what the plain
    network gives there for the sample; `how` is what the function of a step of MOVING is given besides what it reads.
    """

    name: str
    kind: str
    inputs: list["Step"]
    shape: tuple[int, ...] | None
    module: nn.Module | None = None
    owner: str = ""
    path: str = ""
    value: object = None
    fault: str = ""
    how: tuple = (1,)

    @property
    def source(self) -> "Step":
        return self.inputs[0]

    @property
    def label(self) -> str:
        what = type(self.module).__name__ if self.path else self.kind
        return f"{self.path or '.'.join(filter(None, (self.owner, self.name)))} ({what})"


@dataclass(eq=False)
class Plain:
    """The steps in execution order, and what the network returns: a structure of steps; `said` holds sentences for the user."""

    steps: list[Step]
    result: object
    input_shape: tuple[int, ...]
    device: int
    sample: torch.Tensor
    said: dict[str, list[str]] = field(default_factory=dict)  # sentence -> what it is about

    def __iter__(self):
        return iter(list(self.steps))

    def say(self, sentence: str, about: str) -> None:
        self.said.setdefault(sentence, []).append(about)

    def outputs(self) -> list[Step]:
        found: list[Step] = []
        fx.node.map_aggregate(self.result, lambda a: found.append(a) if isinstance(a, Step) else None)
        return found

    def readers(self, step: Step) -> list[Step | None]:
        """The steps that read `step`, and None for each time that it is returned."""
        return [s for s in self for i in s.inputs if i is step] + [None] * self.outputs().count(step)

    def sole(self, step: Step) -> Step | None:
        """The step that reads `step`, where there is one reader only."""
        readers = self.readers(step)
        return readers[0] if len(readers) == 1 else None

    def calls(self, step: Step) -> list[Step]:
        """All steps that call the module of `step`."""
        return [s for s in self if s is step or s.path and s.path == step.path]

    def follow(self, step: Step) -> list[Step]:
        """The batch normalisation and the activation that become part of the layer `step`."""
        found: list[Step] = []
        norms = [kind for kind, layers in NORMS.items() if step.kind in layers]
        for kinds in (norms, ACTIVATIONS if step.kind in WEIGHTED else ()):
            reader = self.sole((found or [step])[-1])
            found += [reader] if reader is not None and reader.kind in kinds else []
        return found

    def behind(self, step: Step) -> bool:
        """Is there nothing but rearranging between `step`, itself rearranging, and what the network returns?"""
        return step.kind in MOVING and all(s is None or self.behind(s) for s in self.readers(step))

    def renames(self, step: Step) -> bool:
        """Does a reshape keep the channels of what computed its values, and only call their places otherwise?"""
        home = step.source
        while home.kind in ("flatten", "reshape"):
            home = home.source
        return step.shape[:1] == home.shape[:1] and len(step.shape) <= 3

    def attached(self, step: Step) -> bool:
        """Does `step`, a normalisation or an activation, become part of a layer?"""
        source = step.source
        return step in self.follow(source) or bool(source.inputs) and step in self.follow(source.source)

    def before(self, step: Step, kind: str, module: nn.Module | None, shape, path: str = "") -> None:
        """A new step that reads what `step` reads, and is read by `step` in its place."""
        new = Step(f"{step.name}_{kind}", kind, [step.source], shape, module, step.owner, path)
        self.steps.insert(self.steps.index(step), new)
        step.inputs = [new if i is new.source else i for i in step.inputs]

    def after(self, step: Step, kind: str, module: nn.Module | None, shape) -> None:
        """A new step that reads `step`, is read by all that read that until now, and has the value that `step` had."""
        new = Step(f"{step.name}_{kind}", kind, [], shape, module, step.owner, value=step.value)
        self.steps.insert(self.steps.index(step) + 1, new)
        self._redirect(step, new)
        new.inputs = [step]

    def remove(self, step: Step) -> None:
        """Whoever read `step` reads what that read."""
        self._redirect(step, step.source)
        self.steps.remove(step)

    def _redirect(self, old: Step, new: Step) -> None:
        for step in self:
            step.inputs = [new if i is old else i for i in step.inputs]
        self.result = fx.node.map_aggregate(self.result, lambda a: new if a is old else a)


def _clamp(min=None, max=None) -> nn.Module:
    return nn.ReLU() if min == 0 and max is None else nn.Hardtanh(min, max)


def _dropout(cls):  # the trace is of evaluation mode: whoever drops there, drops always
    return lambda p=0.5, training=True, inplace=False: None if training else cls(p)


# plain functions, without underscores -> the module that stands for them, made of their arguments
_POOLING = [getattr(nn, f"{kind}Pool{d}d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for d in (1, 2)]
_MODULES = {
    **{cls.__name__.lower(): cls for cls in (nn.ReLU, nn.ReLU6, nn.Hardtanh, *_POOLING)},
    **dict.fromkeys(("clamp", "clampmin", "clip"), _clamp),
    **{cls.__name__.lower(): _dropout(cls) for cls in (nn.Dropout, nn.Dropout1d, nn.Dropout2d)},
    "featuredropout": _dropout(nn.Dropout2d),
    "interpolate": lambda size=None, scale_factor=None, mode="nearest", *rest, **more: nn.Upsample(size, scale_factor, mode),
}


def read(model: nn.Module, input_shape: tuple[int, ...], device: int) -> Plain:
    """The steps of `model` for inputs of `input_shape` (without batch). Raises ValueError for what cannot be traced."""
    sample = torch.randint(-128, 128, (BATCH, *input_shape), generator=torch.Generator().manual_seed(0)) / 128
    sample = sample.to(place(model).device)
    graph, values = trace(model, sample)
    reader = _Reader(model, values)
    for node in graph.nodes:
        if node.op != "output":
            reader.visit(node)
    plain = Plain(reader.steps, fx.map_arg(result(graph), reader.env.get), input_shape, device, sample)
    called = [f"{node.target}." for node in graph.nodes if node.op in ("call_module", "get_attr")]
    for name, module in model.named_modules():
        if module._parameters and not any(path.startswith(f"{name}.") for path in called):
            plain.say("left out, never called in evaluation mode", name)
    return plain


class _Reader:
    """Turns the nodes of a traced graph into steps; `env` says which step holds a node's value."""

    def __init__(self, model: nn.Module, values: dict):
        self.model, self.values = model, values
        self.steps: list[Step] = []
        self.env: dict[fx.Node, Step] = {}

    def visit(self, node: fx.Node) -> None:
        value, (kind, module), read = self.values[node], self._kind(node), []
        fx.map_arg((node.args, node.kwargs), read.append)  # x + x reads twice
        operand = self.values[read[0]] if read else None
        both = isinstance(value, torch.Tensor) and isinstance(operand, torch.Tensor)
        if both and _nothing_happens(node, kind, len(read), value, operand):
            self.env[node] = self.env[read[0]]
            return
        path = node.target if node.op == "call_module" else ""
        owner = next((e[0] for e in reversed((node.meta.get("nn_module_stack") or {}).values()) if e[0] != path), "")
        shape = tuple(value.shape[1:]) if isinstance(value, torch.Tensor) else None
        step = Step(node.name, kind, [self.env[n] for n in read], shape, module, owner, path, value)
        if both and kind in RESHAPES:
            kept = len(value) == len(operand) and torch.equal(value.flatten(), operand.flatten())
            step.kind = "flatten" if kept and value.dim() == 2 else "reshape" if kept or kind == "flatten" else kind
            axes = None if kept or kind not in PERMUTING else axes_of(node, operand.dim())
            if axes and not axes[0]:
                step.kind = "permute"
            step.how = (axes,) if axes else ((-1, *shape),) if kept and step.kind == "reshape" else (1,)
        elif both and kind in ("mean", "amax"):
            self._pooled(node, step, operand.dim())
        elif kind in ("add", "sub", "cat"):
            step.fault = _fault(node, step)
            step.how = (_axis(node) % value.dim(),) if kind == "cat" and shape is not None else step.how
        self.steps.append(step)
        self.env[node] = step
        if _in_place(node, module):
            self.env[node.args[0]] = step  # whoever reads the operand from now on reads what became of it

    def _kind(self, node: fx.Node) -> tuple[str, nn.Module | None]:
        if node.op in ("placeholder", "get_attr"):
            return ("input" if node.op == "placeholder" else "tensor"), None
        if node.op == "call_module":
            module = self.model.get_submodule(node.target)
            return "ai8x" if isinstance(module, (QuantizationAwareModule, Eltwise)) else _kind_of(module), module
        name = _function(node).replace("_", "").lower()
        name = NAMES.get(name, name)
        try:
            module = _MODULES[name](*node.args[1:], **{k: v for k, v in node.kwargs.items() if k != "input"})
        except (KeyError, TypeError, ValueError, AssertionError):
            module = None
        return (_kind_of(module) if module is not None else name), module

    def _pooled(self, node: fx.Node, step: Step, rank: int) -> None:
        """x.mean((2, 3)) is an adaptive pool to one pixel, and a flatten unless keepdim."""
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        dims = {d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims]) if isinstance(d, int)}
        if rank not in (3, 4) or dims != {*range(2, rank)}:
            return
        pool = getattr(nn, f"Adaptive{'Avg' if step.kind == 'mean' else 'Max'}Pool{len(dims)}d")(1)
        first = step
        if len(step.shape) == 1:
            first = Step(f"{step.name}_pool", "", step.inputs, (*step.shape, *[1] * len(dims)), owner=step.owner)
            self.steps.append(first)
            step.kind, step.inputs = "flatten", [first]
        first.kind, first.module = _kind_of(pool), pool


def _function(node: fx.Node) -> str:
    return node.target if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))


def _nothing_happens(node: fx.Node, kind: str, operands: int, value: torch.Tensor, operand: torch.Tensor) -> bool:
    alone = operands == 1 and (kind == "cat" or kind in ("add", "sub") and 0 in node.args)
    return (alone or kind in SAME) and value.dtype == operand.dtype and torch.equal(value, operand)


def _axis(node: fx.Node) -> int:
    return node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else 0))


def _fault(node: fx.Node, step: Step) -> str:
    if step.kind == "cat":
        axis = _axis(node)
        return "" if axis in (1, -len(step.shape)) else f"axis {axis}"
    if sum(i.kind != "tensor" for i in step.inputs) < 2:
        return "a constant"
    alpha, (a, b, *_) = node.kwargs.get("alpha", 1), (i.shape for i in step.inputs)
    return f"alpha={alpha}" if alpha != 1 else f"shapes {a} and {b}" if a != b else ""


def _in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if not (node.args and isinstance(node.args[0], fx.Node)):
        return False
    if node.op == "call_module":
        return getattr(module, "inplace", False) is True
    return _function(node) in ("iadd", "isub") or _function(node).endswith("_") or node.kwargs.get("inplace") is True


def _kind_of(module: nn.Module) -> str:
    """The torch class in small letters; a hardtanh from 0 up is what ReLU6 is: a ReLU with an end."""
    kind = (plain_class(module) or type(module)).__name__.lower()
    return "relu6" if isinstance(module, nn.Hardtanh) and module.min_val == 0 else kind
