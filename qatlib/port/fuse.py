"""Fuses the steps of a plain network into ai8x layers, and puts these together."""

import copy

import torch
from torch import fx, nn

from qatlib.ai8x.catalogue import LAYERS
from qatlib.ai8x.eltwise import Add, Sub
from qatlib.port.torch_graph import ACTIVATIONS, DROPOUTS, NORMS, POOLS, WEIGHTED, Plain, Step

BASES = {"conv2d": "Conv2d", "conv1d": "Conv1d", "convtranspose2d": "ConvTranspose2d", "linear": "Linear"}
SUMS = {"add": Add, "sub": Sub}
FUNCTIONS = {"cat": torch.cat, "flatten": torch.flatten, "reshape": torch.reshape, "permute": torch.permute}
RESERVED = {*dir(fx.GraphModule), "meta", "input_shape"}


class Network(fx.GraphModule):
    """The result: its name and input shape survive copies and pickles. `print(network.code)` shows its forward."""

    def __deepcopy__(self, memo):
        return _kept(super().__deepcopy__(memo), type(self).__name__, self.input_shape)

    def __reduce__(self):
        return _restored, (*super().__reduce__(), type(self).__name__, self.input_shape)


def _restored(make, arguments: tuple, name: str, input_shape: tuple[int, ...]) -> nn.Module:
    plain = make(*arguments)
    network = _kept(Network(plain, plain.graph), name, input_shape)
    network.training = plain.training
    return network


def _kept(network: nn.Module, name: str, input_shape: tuple[int, ...]) -> nn.Module:
    type(network).__name__, network.input_shape = name, input_shape  # each GraphModule has a class of its own
    return network


class Fused:
    """`network` makes the network of what `plain` says of `root`; `rows` tell what became of each operation."""

    def __init__(self, root: nn.Module, plain: Plain, wide: bool | None):
        self.root, self.plain, self.wide, self.graph = root, plain, wide, fx.Graph()
        self.made: dict[str, nn.Module] = {}  # path -> new module, in execution order
        self.env: dict[Step, fx.Node] = {}  # the new node with a step's value
        self.rows: list[tuple[str, ...]] = []

    def network(self) -> nn.Module:
        inside = {self._pool(step) for step in self.plain if step.kind in WEIGHTED}
        for step in self.plain:
            if step.kind == "input":
                self.env[step] = self.graph.placeholder("x")
            elif step.kind in WEIGHTED:
                self._layer(step)
            elif step.kind in FUNCTIONS:
                operands = [self.env[source] for source in step.inputs]
                arguments = (operands if step.kind == "cat" else operands[0], *step.how)
                self.env[step] = self.graph.call_function(FUNCTIONS[step.kind], arguments)
                self._row(step.path or self._new_path(step), [step], f"torch.{step.kind}")
            elif step.kind != "tensor" and step not in inside and step not in self.env:
                self._other(step)
        self.graph.output(fx.node.map_aggregate(self.plain.result, lambda a: self.env[a] if isinstance(a, Step) else a))
        return self._module()

    def _pool(self, step: Step) -> Step | None:
        """The pool that `step` alone reads, in as many dimensions, if the same is there at every call of its module."""
        calls = self.plain.calls(step)
        pools = [s.source for s in calls if s.source.kind in POOLS and s.source.kind[-2:] == s.kind[-2:]]
        alone = len(pools) == len(calls) and all(self.plain.sole(pool) is not None for pool in pools)
        return step.source if alone and len({repr(pool.module) for pool in pools}) == 1 else None

    def _is_head(self, step: Step) -> bool:
        """Does the network return what this layer gives, without an activation, and read it nowhere else?"""
        reader = self.plain.sole(step)
        if reader is not None and reader.kind in (*NORMS, *DROPOUTS, "flatten", "reshape", "permute"):
            return self._is_head(reader)
        return self.plain.readers(step) == [None] and (len(step.shape) == 1 if self.wide is None else self.wide)

    def _layer(self, step: Step) -> None:
        pool, follow, path = self._pool(step), self.plain.follow(step), step.path or self._new_path(step)
        if path not in self.made:
            self.made[path] = self._build(step, pool, follow, path)
        self.env[step] = self.graph.call_module(path, (self.env[(pool or step).source],))
        self.env.update(dict.fromkeys(follow, self.env[step]))
        self._row(path, [*([pool] if pool else []), step, *follow], type(self.made[path]).__name__)

    def _build(self, step: Step, pool: Step | None, follow: list[Step], path: str) -> nn.Module:
        m, base, wide = step.module, BASES[step.kind], all(map(self._is_head, self.plain.calls(step)))
        bn = next((s.module for s in follow if s.kind in NORMS), None)
        kind = next((s.kind for s in follow if s.kind in ACTIVATIONS), "")
        activation, pooling = {"": "", "abs": "Abs"}.get(kind, "ReLU"), _pooling(pool) if pool else ""
        options = {"wide": wide, "activation": activation or None, "bias": m.bias is not None or bn is not None}
        if step.kind == "linear":
            shape = (m.in_features, m.out_features)
        else:
            shape = (m.in_channels, m.out_channels, _one(m.kernel_size, step))
            options |= {key: _one(getattr(m, key), step) for key in ("stride", "padding", "dilation")}
            options |= {"batchnorm": "Affine" if bn.affine else "NoAffine", "eps": bn.eps, "momentum": bn.momentum} if bn else {}
        if pool:
            options |= {"pooling": pooling} | {f"pool_{key}": value for key, value in _window(pool).items()}
        deep = "Depthwise" if getattr(m, "groups", 1) > 1 and f"Depthwise{base}" in LAYERS else ""
        options |= {"groups": m.groups} if step.kind != "linear" and not deep else {}
        name = f"Fused{pooling and pooling + 'Pool'}{deep}{base}{'BN' if 'batchnorm' in options else ''}{activation}"
        with torch.random.fork_rng(devices=[]):
            layer = LAYERS.get(name, LAYERS[deep + base])(*shape, **options)
        if step.kind == "linear" and bn is not None:
            self.plain.say("the batch normalisation after it is folded into its weights, and no longer learns", path)
        if kind == "relu6":
            self.plain.say("ReLU6 became ReLU; in QAT every layer's output has an end, a power of two", path)
        if wide:
            sentence = "a wide output: 32 bits, in QAT times a power of two, for class scores; wide=False: 8 bits, unscaled"
            self.plain.say(sentence, path)
        return _carry(layer.train(self._training(step)), m, bn)

    def _other(self, step: Step) -> None:
        path, module = step.path or self._new_path(step), self._plain_module(step)
        if repr(self.made.get(path, module)) != repr(module):  # one pool of two sizes
            path = self._new_path(step)
        module = self.made.setdefault(path, module)
        self.env[step] = self.graph.call_module(path, tuple(self.env[source] for source in step.inputs))
        self._row(path, [step], type(module).__name__)

    def _plain_module(self, step: Step) -> nn.Module:
        if step.kind not in (*SUMS, *POOLS):
            return copy.deepcopy(step.module) if step.path else step.module.train(self.root.training)
        options = {} if step.kind in SUMS else {"kernel_size" if k == "size" else k: v for k, v in _window(step).items()}
        cls = SUMS.get(step.kind) or LAYERS[f"{_pooling(step)}Pool{step.kind[-2:]}"]
        return cls(**options).train(self._training(step)).to(self.plain.sample.device)

    def _training(self, step: Step) -> bool:
        return step.module.training if step.path and step.module is not None else self.root.training

    def _new_path(self, step: Step) -> str:
        """A name for what has none: that of the operation, in the module that calls it."""
        taken = {s.path for s in self.plain} | self.made.keys()
        name = ".".join(filter(None, (step.owner, step.name.removeprefix(step.owner.replace(".", "_") + "_"))))
        return next(n for k in range(10**6) if (n := f"{name}_{k}" if k else name) not in taken)

    def _module(self) -> nn.Module:
        firsts = {path: path.split(".")[0] for path in self.made}
        names = {path: path.replace(first, first + "_" * (first in RESERVED), 1) for path, first in firsts.items()}
        if [name for name, _ in _holder(self.made).named_modules() if name in self.made] != list(self.made):
            names = {path: path.replace(".", "_") for path in self.made}
            self.plain.say("have _ for ., since layers must be defined in the order in which they run", "names")
        for node in self.graph.nodes:
            node.target = names.get(node.target, node.target) if node.op == "call_module" else node.target
        holder = _holder({names[path]: module for path, module in self.made.items()})
        network = Network(holder, self.graph, class_name=type(self.root).__name__)
        for module in network.modules():
            if type(module) is nn.Module or module is network:
                module.training = self.root.training
        network.input_shape = tuple(self.plain.input_shape)
        return network

    def _row(self, path: str, old: list[Step], new: str) -> None:
        self.rows.append((path, " + ".join(map(_described, old)), new, "x".join(map(str, old[-1].shape))))


def _described(step: Step) -> str:
    m, detail = step.module, ""
    if step.kind == "linear":
        detail = f"({m.in_features}, {m.out_features})"
    elif step.kind in WEIGHTED:
        detail = f"({m.in_channels}, {m.out_channels}, {'x'.join(map(str, m.kernel_size))})"
    elif step.kind in POOLS:
        detail = f"({m.kernel_size}, {m.stride})"
    return (type(m).__name__ if m is not None else step.kind) + detail


def _one(value, step: Step):
    """A number in one dimension; in two, rows and columns."""
    return value[0] if step.kind.endswith("1d") and isinstance(value, tuple) else value


def _pooling(pool: Step) -> str:
    return "Max" if "max" in pool.kind else "Avg"


def _window(pool: Step) -> dict:
    options = {"size": pool.module.kernel_size, "stride": pool.module.stride}
    options |= {"dilation": pool.module.dilation} if "max" in pool.kind else {}
    return {key: _one(value, pool) for key, value in options.items()}


@torch.no_grad()
def _carry(layer: nn.Module, m: nn.Module, bn: nn.Module | None) -> nn.Module:
    """Weights, bias and batch-norm statistics of the plain modules into the layer; also what trains, and the device."""
    layer.to(m.weight.device)
    weight, bias = m.weight, m.bias
    if layer.op.bias is not None and bias is None:
        bias = torch.zeros_like(layer.op.bias)
    if bn is not None and layer.bn is None:  # a linear layer
        r = torch.rsqrt(bn.running_var + bn.eps) * (1 if bn.weight is None else bn.weight)
        weight, bias = weight * r[:, None], (bias - bn.running_mean) * r + (0 if bn.bias is None else bn.bias)
    elif bn is not None:
        cls, layer.bn = type(layer.bn), copy.deepcopy(bn)
        layer.bn.__class__ = cls
    layer.op.weight = nn.Parameter(weight.detach().clone(), m.weight.requires_grad)
    if layer.op.bias is not None:
        layer.op.bias = nn.Parameter(bias.detach().clone(), (m.weight if m.bias is None else m.bias).requires_grad)
    return layer


def _holder(modules: dict[str, nn.Module]) -> nn.Module:
    """A module that has `modules` at their paths."""
    holder = nn.Module()
    for path, module in modules.items():
        *parents, name = path.split(".")
        place = holder
        for part in parents:
            place = place._modules.setdefault(part, nn.Module())
        place._modules[name] = module
    return holder
