"""What the chip lacks of a plain network: every operation that cannot become an ai8x layer, with the remedy and the rewrites."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from qatlib.ai8x import legality
from qatlib.port.rewrites import REWRITES, changed, embedding, pair, windows
from qatlib.port.torch_graph import ACTIVATIONS, ADAPTIVE, DROPOUTS, MOVING, NORMS, POOLS, WEIGHTED, Plain, Step
from qatlib.wording import advice

OWN_MODULE = (*WEIGHTED, *NORMS, *DROPOUTS, *POOLS, *ADAPTIVE)
KNOWN = (*OWN_MODULE, *ACTIVATIONS, "add", "sub", "cat", "flatten", "input", "tensor", "ai8x")
OF_SEVERAL = {"glu", "softmin", "softmax", "softmax2d", "logsoftmax", "multiheadattention"}  # values: no curves
CURVES = {name.lower() for name in nn.modules.activation.__all__} - OF_SEVERAL - {*ACTIVATIONS}
_ADVICE = {  # what plain networks need in place of, or besides, `wording.advice`
    "use the module of torch.nn, which owns its weights": [*WEIGHTED, "batchnorm", *NORMS, *POOLS, *ADAPTIVE],
    "build this part of convolutions": ["multiheadattention", "scaleddotproductattention", "matmul", "transformerencoderlayer"],
    "compute it outside the network (the arg-max is the same without)": ["softmax", "logsoftmax", "softmin", "softmax2d"],
    "name the first argument of forward, x, instead of *args": ["input"],
    "use 1D convolutions over time, nn.Conv1d": ["lstm", "gru", "rnn", "lstmcell", "grucell"],
    "give each part a convolution of its own instead of slicing": ["getitem", "chunk", "split", "narrow", "unbind"],
    "use mode='nearest' with a factor of 2, or nn.ConvTranspose2d": ["upsample", "interpolate", "upsamplingbilinear2d"],
    "use nn.BatchNorm2d or nn.BatchNorm1d behind a layer":
        ["groupnorm", "layernorm", "instancenorm1d", "instancenorm2d", "localresponsenorm", "rmsnorm"],
    "use nn.ConvTranspose2d, or keep the length": ["convtranspose1d"],
    "take that of all pixels at once: x.mean((2, 3))": ["mean", "sum"],
    "let the convolution pad (padding=1), or pad outside the network": ["pad", "zeropad2d", "constantpad2d", "reflectionpad2d"],
    "keep the channels, as x.view(len(x), channels, ...) and x.flatten(1) do, or do it behind the last layer":
        ["reshape", "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"],
}  # fmt: skip
REMEDIES = {kind: remedy for remedy, kinds in _ADVICE.items() for kind in kinds}


@dataclass
class Problem:
    """Why `step` cannot be on the chip, a sentence with the remedy, and the names of the rewrites that help."""

    step: Step
    text: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        offers = [f"; or from_torch(..., rewrite=({name!r},)) [{REWRITES[name]}]" for name in self.options]
        return f"{self.step.label}: {self.text}{''.join(offers)}"


def problems(plain: Plain) -> list[Problem]:
    """All of them, in execution order."""
    found = [Problem(step, text, tuple(options)) for step in plain for text, *options in _of(plain, step)]
    none = Problem(plain.steps[0], "forward returns no tensor of the network's; return the outputs of layers")
    return found if plain.outputs() else [*found, none]


def supported(plain: Plain, step: Step) -> bool:
    """Has the chip this kind of operation, or does the host do it behind the last layer?"""
    behind = step.kind in MOVING and plain.behind(step)  # what is left out together with its operand is told with it
    if all(supported(plain, s) for s in step.inputs) if behind else step.kind == "reshape" and plain.renames(step):
        return step.how != ((1,) if step.kind == "reshape" else (0,))  # which would be of the batch
    without = step.kind in OWN_MODULE and step.module is None
    return step.kind in KNOWN and not (step.fault or without or step.shape is None)


def _of(plain: Plain, step: Step) -> Iterator[tuple[str, ...]]:
    """(sentence, names of rewrites ...) of everything about `step`."""
    if not supported(plain, step):
        yield _unsupported(plain, step)
    elif step.kind in WEIGHTED:
        yield from _weights(plain, step)
        yield from _linear(step) if step.kind == "linear" else _convolution(plain, step)
    elif step.kind in (*ACTIVATIONS, *NORMS) and _waits(plain, step):
        pass  # what is in front of it is to be replaced first
    elif step.kind in NORMS:
        yield from _norm(plain, step)
    elif step.kind in ACTIVATIONS and not plain.attached(step):
        text = "no layer with weights directly in front of it (sums and average pools have none); put one between"
        yield text, "identity", *(["drop_relu"] if step.kind != "abs" else [])
    elif step.kind == "tensor" and any(reader is None or supported(plain, reader) for reader in plain.readers(step)):
        yield ("a constant or parameter, which is no input of the chip; compute with it outside the network",)
    elif step.kind in POOLS:
        yield from _pool(plain, step)
    elif step.kind in ADAPTIVE:
        yield _adaptive(plain, step)
    if supported(plain, step) and ("avgpool" in step.kind or step.kind in ("add", "sub")) and _last(plain, step):
        text = "the network ends with it, but in QAT only layers with weights give their full range; put a layer after it"
        yield text, "identity"


def _last(plain: Plain, step: Step) -> bool:
    """Does the network return it, but for what can be left out?"""
    readers = plain.readers(step)
    passing = [s for s in readers if s is not None and (s.kind in (*DROPOUTS, *MOVING) or not supported(plain, s))]
    return None in readers or any(_last(plain, s) for s in passing)


def _waits(plain: Plain, step: Step) -> bool:
    """Is what it follows a problem itself, after whose solution it may be none?"""
    source = step.source
    return not supported(plain, source) or source.kind in NORMS and not plain.attached(source) and plain.sole(source) is step


def _unsupported(plain: Plain, step: Step) -> tuple[str, ...]:
    remedy = REMEDIES.get(step.kind) or advice(step.kind) or "compute it outside the network, or rebuild the network without it"
    text, options = f"the chip has no {step.kind}; {remedy}", []
    if step.kind in CURVES:
        text, options = "the chip has ReLU and Abs only; use nn.ReLU and train again", ["activation"]
    elif step.fault and step.kind == "cat":
        text = f"concatenation along {step.fault}; the chip joins channels only: use torch.cat(..., dim=1)"
    elif step.fault:
        text = f"a sum or difference with {step.fault}; add tensors of one shape, constants outside or in a layer's bias"
    elif "indices" in step.kind or step.kind in POOLS and step.module is not None:
        text = "the chip gives no indices; use return_indices=False"
    elif step.kind in DROPOUTS:
        text = "it drops values in evaluation mode, too; write F.dropout(x, p, training=self.training), or use nn.Dropout"
    elif step.kind in ("upsample", "upsamplingnearest2d") and getattr(step.module, "mode", "") == "nearest":
        factors = {b / a for a, b in zip(step.source.shape[1:], step.shape[1:])}
        options = ["upsample"] if len(step.shape) == 3 and len(factors) == 1 and factors <= {2, 4, 8, 16} else []
    outside = ["outside"] if step.kind not in OWN_MODULE and _trailing(plain, step) else []
    return text, *options, *outside


def _trailing(plain: Plain, step: Step) -> bool:
    """Do only outputs, and other operations that can be left out, read it?"""
    readers, tensors = plain.readers(step), [s for s in step.inputs if s.kind != "tensor"]
    left_out = all(s is None or not supported(plain, s) and _trailing(plain, s) for s in readers)
    return len(tensors) == 1 and tensors[0].shape is not None and bool(readers) and left_out


def _weights(plain: Plain, step: Step) -> Iterator[tuple[str]]:
    m, calls = step.module, plain.calls(step)
    if m.weight is not m._parameters.get("weight"):
        yield ("its weights are computed from others (prune, weight_norm, spectral_norm); make them final first, as with "
               "torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm or prune.remove",)  # fmt: skip
    if shared := [s for s in plain if s.path != step.path and s.kind in WEIGHTED and s.module and s.module.weight is m.weight]:
        yield (f"it shares its weights with {shared[0].path}; call one module twice, or give each its own (copy.deepcopy)",)
    after = {tuple(s.path if s.kind in NORMS else s.kind for s in plain.follow(call)) for call in calls}
    if len(after) > 1 and calls[0] is step:
        yield (f"its {len(calls)} calls differ in the batch norm or activation that follows; give each call a module of its own",)


def _linear(step: Step) -> Iterator[tuple[str]]:
    if len(step.source.shape) != 1:
        yield (f"it reads rows of {step.source.shape}; flatten first (x.flatten(1)), or use a 1x1 convolution",)
    if text := _refusal(legality.check_linear, step.module.in_features, step.module.out_features):
        yield (text,)


def _refusal(check: Callable, *args) -> str:
    try:
        check(*args)
    except (ValueError, TypeError) as problem:
        return str(problem).replace("or set_device(87)", "or from_torch(..., device=87)")
    return ""


def _convolution(plain: Plain, step: Step) -> Iterator[tuple[str, ...]]:
    m = step.module
    if isinstance(m.padding, str):
        total = [0 if m.padding == "valid" else d * (k - 1) for d, k in zip(m.dilation, m.kernel_size)]
        if any(n % 2 for n in total):
            yield (f"padding='same' around the even kernel {m.kernel_size} pads one side more; use an odd kernel",)
            return
        step.module = m = changed(m, padding=tuple(n // 2 for n in total))
    if m.padding_mode != "zeros":
        yield (f"padding_mode={m.padding_mode!r}; the chip pads with zeros: use padding_mode='zeros' and train again",)
    for what, text in _faults(step.kind, plain.device, m).items():
        yield text, *_options(step, what)


def _faults(kind: str, device: int, m) -> dict[str, str]:
    """What the constructors of ai8x refuse, or let through although the chip cannot: argument -> rule and remedy."""
    transposed, one, zero = kind == "convtranspose2d", (1,) * len(m.kernel_size), (0,) * len(m.kernel_size)
    legal = {"kernel_size": one, "stride": one, "padding": zero, "dilation": one, "groups": 1}
    legal |= {"kernel_size": (3, 3), "stride": (2, 2)} if transposed else {"kernel_size": (2,)} if kind == "conv1d" else {}
    own = {what: getattr(m, what) for what in legal}
    found = {what: text for what in legal if (text := _refused(kind, device, m, **(legal | {what: own[what]})))}
    if not found and (text := _refused(kind, device, m, **own)):
        found["dilation"] = text
    if not found and transposed and m.output_padding != (1, 1):
        found["kernel_size"] = f"output_padding={m.output_padding}; it is 1: use ConvTranspose2d(..., 3, 2, 1, output_padding=1)"
    if not found and not transposed and any(p >= k for p, k in zip(m.padding, m.kernel_size)):
        found["padding"] = f"padding={m.padding} around a kernel of {m.kernel_size}; use a padding smaller than the kernel"
    if "kernel_size" in found:  # whatever replaces the kernel has another padding
        found.pop("padding", None)
    return found


def _refused(kind: str, device: int, m, kernel_size, stride, padding, dilation, groups) -> str:
    k, s, p, d = kernel_size, stride, padding, dilation
    if kind == "conv1d":
        text = _refusal(legality.check_conv1d, device, m.in_channels, k[0], s[0], p[0], d[0], groups)
    else:
        text = _refusal(legality.check_conv2d, device, kind == "convtranspose2d", k, s, p, d, groups, None)
    name = kind.replace("convt", "conv_t")
    passed = legality.let_through(name, k, s, d, groups, m.in_channels, m.out_channels)
    return text or next((f"{rule}; {remedy}" for rule, remedy in passed), "")


def _options(step: Step, what: str) -> list[str]:
    """The rewrites that help where a convolution's argument `what` is refused."""
    m, sizes = step.module, step.source.shape[1:]
    square, steps = len({*m.stride}) == 1 and len({*m.padding}) == 1, zip(sizes, m.stride, m.padding, m.dilation, m.kernel_size)
    if what == "groups":
        return ["groups"]
    if step.kind == "convtranspose2d":
        doubled = step.shape[1:] == tuple(2 * n for n in sizes)
        return ["transposed"] if m.stride == (2, 2) and embedding(step) else ["transposed_3x3"] if doubled else []
    if what == "stride" and square:
        pooled = tuple(n // s + 2 * p - d * (k - 1) for n, s, p, d, k in steps)
        return ["stride"] * (m.stride[0] <= 16) + ["stride_pool"] * (pooled == step.shape[1:])
    if what in ("kernel_size", "padding") and step.kind == "conv2d":
        odd = m.kernel_size in ((5, 5), (7, 7)) and max(m.dilation) == 1 and m.padding[0] < 4
        return ["kernel"] * (embedding(step) is not None) + ["split"] * (odd and square)
    return []


def _norm(plain: Plain, step: Step) -> Iterator[tuple[str, ...]]:
    others = {s.source.path for s in plain.calls(step)} - {step.source.path}
    if step.module.running_mean is None:
        yield ("it keeps no running statistics; build it with track_running_stats=True and train on",)
    elif not plain.attached(step):
        yield "no layer directly in front of it, to fold it into; put it behind a convolution", "identity"
    elif others:
        yield (f"it follows {step.source.path} and {', '.join(sorted(others))}; give each layer a batch norm of its own",)


def _pool(plain: Plain, step: Step) -> Iterator[tuple[str, ...]]:
    m, inputs, outputs, dims = step.module, step.source.shape[1:], step.shape[1:], len(step.shape) - 1
    size, stride, padding, dilation = (pair(v, dims) for v in (m.kernel_size, m.stride, m.padding, getattr(m, "dilation", 1)))
    square = [v * 2 if dims == 1 else v for v in (size, stride, dilation)]
    if getattr(m, "divisor_override", None):
        yield ("the chip has no divisor_override; build it without",)
    elif any(padding) or m.ceil_mode and any((n - k) % s for n, k, s in zip(inputs, size, stride)):
        whole = tuple(n // s for n, s in zip(inputs, stride)) == outputs and min(stride) > 1
        yield "the chip pools whole windows, without padding; use padding=0, ceil_mode=False", *(["padded_pool"] * whole)
    elif text := _refusal(legality.check_pooling, plain.device, "Max" if "max" in step.kind else "Avg", *square):
        fixed = max(dilation) == 1 and (size == stride or max(outputs) == 1 and size == inputs)
        yield text, *(["adaptive_pool"] if fixed and windows(inputs, outputs) else [])


def _adaptive(plain: Plain, step: Step) -> tuple[str, ...]:
    source, found = step.source.shape, windows(step.source.shape[1:], step.shape[1:])
    if not found:
        return (f"its windows from {source} to {step.shape} differ, or are too large; choose sizes that divide, by up to 256",)
    sizes = " and ".join("x".join(map(str, window)) for window, _ in found)
    return f"its windows depend on the input; use a pool of {sizes} for inputs of {plain.input_shape}", "adaptive_pool"
