"""Checks of lesson 04: a network of the learner's layers, its calibration, and its quantization."""

import copy
import functools

import torch
from torch import nn

from qatcourse import course
from qatcourse.checks import UNTOUCHED, NotYet, judged, row
from qatcourse.checks.lesson03 import mistaken, solved
from qatcourse.labs.byhand import SOURCE, SUMS, equalise
from qatcourse.pose.data import load, to_input
from qatcourse.pose.evaluate import calibrated_ptq
from qatlib import ai8x


@functools.cache
def _pictures() -> torch.Tensor:
    return to_input(load("figures", "train", 8, progress=False).images)


@functools.cache
def _pretrained():
    return course.pretrained().eval()


@functools.cache
def _wanted(bits: int) -> torch.Tensor:
    """Heat maps of qatlib's calibrated PTQ."""
    with torch.no_grad():
        return calibrated_ptq(_pretrained(), [(_pictures(),)], bits).logits(_pictures())


def own_layer(net: nn.Module, name: str) -> nn.Module:
    """The layer with `bit_width` and `t` in the child `name`. Raises NotYet where there is none, or several."""
    found = [part for part in net.get_submodule(name).modules() if hasattr(part, "bit_width") and hasattr(part, "t")]
    if len(found) != 1:
        raise NotYet(f"leaves {name} without a MyLayer: each child with an op becomes one, after its pool where it has one.")
    return found[0]


@functools.cache
def _made() -> nn.Module:
    """The network of the solution's MyLayers; not to be changed."""
    return solved()["my_network"](_pretrained())


@judged(
    "my_network",
    "Thirteen layers, and the heat maps of the float network; the network given is as it was.",
    piece=True,
    wrong=mistaken(
        "my_network",
        ("    net = copy.deepcopy(net)\n    for name, layer", "    for name, layer", "work on a copy"),
        ("        setattr(net, name, nn.Sequential(layer.pool, made) if layer.pool else made)\n", "", "without a MyLayer"),
        ("        if bn is not None:", "        if False:", "batch norm"),
        ("1 if isinstance(op, nn.ConvTranspose2d) else 0", "0", "transposed"),
        ("nn.Sequential(layer.pool, made) if layer.pool else made", "made", "pool"),
        ("nn.Sequential(layer.pool, made)", "nn.Sequential(made, layer.pool)", "pool comes first"),
        ('relu=layer.activation == "ReLU"', "relu=True", "conv7"),
        ('relu=layer.activation == "ReLU"', "relu=False", "has a ReLU"),
        (", wide=layer.wide)", ")", "head is wide"),
    ),
    right=[lambda net: solved()["my_network"](net).train()],
)
def check_network(answer):
    """my_network(net): a copy of an ai8x network, batch norm fused, each layer with an `op` in a MyLayer."""
    given = copy.deepcopy(_pretrained())
    net = answer(given)
    if net is None:
        raise NotYet(UNTOUCHED)
    kept = given.state_dict().keys() == _pretrained().state_dict().keys() and net is not given
    yield row("the network given", "unchanged", "unchanged" if kept else "changed", kept), "work on a copy: copy.deepcopy(net)."
    found = _outputs(net)
    for name, want in _outputs(_made()).items():
        got, wide = found.get(name), getattr(own_layer(net, name), "wide", False) if name not in SUMS else False
        near = got is not None and got.shape == want.shape and torch.allclose(got, want, 1e-3, 1e-3 * want.abs().max().item())
        ok = near and bool(wide) == (name == "head")
        yield row(name, *(f"{_largest(y)}" for y in (want, got)), ok, "largest |output| of"), _network_advice(name, got, want, near)
        if not ok:
            return


def _outputs(net) -> dict[str, torch.Tensor]:
    """What each child gives for eight pictures, by name, up to where the network stops; mode and hooks of `net` stay."""
    kept, hooks, training = {}, [], net.training
    for name, child in net.named_children():
        hooks.append(child.register_forward_hook(lambda m, x, y, name=name: kept.update({name: y.detach()})))
    try:
        with torch.no_grad():
            net.eval()(_pictures())
    except RuntimeError:
        if not kept:
            raise
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return kept


def _largest(y) -> str:
    return "missing" if y is None else f"{y.abs().max():.3g}, {y.shape[2]}x{y.shape[3]} cells"


def _network_advice(name: str, got, want, near: bool) -> str:
    if near:
        return "the head is wide, the others are not: wide=layer.wide."
    if got is None or got.shape != want.shape:
        cells = f"{want.shape[2]}x{want.shape[3]} cells"
        return f"{name} has not {cells}. Where layer.pool is set, it comes first: nn.Sequential(layer.pool, made)."
    if got.min() < 0 <= want.min():
        return f"{name} has a ReLU: relu=layer.activation == 'ReLU'."
    return {
        "conv1": "fuse the batch norm with my_fuse: op's weight and bias; bn's running_mean, running_var, weight, bias and eps.",
        "conv2": "conv2 gives other outputs: its pool comes first, nn.Sequential(layer.pool, made).",
        "conv7": "conv7 has no ReLU: relu=layer.activation == 'ReLU'.",
        "up8": "a transposed convolution has its output channels in dimension 1: swap dimensions 0 and 1 before my_fuse, and back.",
    }.get(name, f"{name} gives other outputs than the float layer.")


@functools.cache
def _thresholds() -> dict[str, int]:
    """What qatlib measures for every layer and sum, by name."""
    net = copy.deepcopy(_pretrained())
    ai8x.init_hist(net)
    with torch.no_grad():
        net(_pictures())
    ai8x.init_threshold(net)
    return {name: int(child.activation_threshold.item()) for name, child in net.named_children()}


@judged(
    "my_calibrate",
    "Thirteen layers and three sums: the thresholds that the library measures.",
    piece=True,
    wrong=mistaken(
        "my_calibrate",
        ("inputs, y, name=name):", "inputs, y):", "name=name"),
        ("        hooks.app", "        if name[:3] != 'add':\n            hooks.app", "sums have ranges, too"),
        ("        hook.remove()", "        pass", "hooks are still there"),
        ("= my_threshold(y)", "= y", "one whole number"),
        ("= my_threshold(y)", "= 2.0 ** my_threshold(y)", "its logarithm"),
        ("= my_threshold(y)", "= my_threshold(inputs[0])", "the layer's output"),
        ("    return thresholds", "    return list(thresholds.values())", "a dict"),
        ("        net(x)", "        net(x[:1])", "all pictures of x"),
    ),
    right=[lambda net, x: {name: torch.tensor(float(t)) for name, t in solved()["my_calibrate"](net, x).items()}],
)  # fmt: skip
def check_calibrate(answer):
    """my_calibrate(net, x): {name of a child: threshold of its output for the pictures x}."""
    net, want = copy.deepcopy(_made()), _thresholds()
    got = answer(net, _pictures().clone())
    if got is None:
        raise NotYet(UNTOUCHED)
    if not isinstance(got, dict):
        raise NotYet(f"must return a dict, name to threshold; it returned a {type(got).__name__}.")
    if any(child._forward_hooks for child in net.modules()):
        raise NotYet("is right so far, but its hooks are still there: call remove() on each, or every later pass measures again.")
    inputs = {name: want[before] for name, before in SOURCE.items() if before in want}
    for name, t in want.items():
        found = got.get(name)
        if found is not None and getattr(found, "numel", lambda: 1)() != 1:
            raise NotYet(f"gives {name} a tensor of {found.numel():,} values; wanted is one whole number, my_threshold(y).")
        shown = "missing" if found is None else f"{float(found):g}"
        yield row(name, t, shown, found == t, "layer"), _range_advice(name, t, got, inputs, want)


def _range_advice(name, t, got, inputs, want) -> str:
    if name not in got and len(got) == 1:
        return "all thresholds went to one name: a function made in a loop sees the loop's last name; keep it with name=name."
    if name not in got:
        return f"{name} is missing. The sums have ranges, too: go through net.named_children()."
    if all(float(found) == 2.0 ** want[key] for key, found in got.items() if key in want):
        return "you return the range itself; its logarithm is wanted: the t in 2^t."
    if sum(float(got.get(key, 99)) == value for key, value in inputs.items()) > 9 and float(got["conv2"]) == want["conv1"]:
        return "these are ranges of inputs: measure the layer's output, the third argument of a hook."
    return f"{name} needs {t}, got {got[name]}: measure the layer's output for all pictures of x."


@judged(
    "my_ptq",
    "At 8, 4 and 2 bits the heat maps equal those of the library's calibrated PTQ, to the last bit.",
    piece=True,
    wrong=mistaken(
        "my_ptq",
        ("        layer.op.bias.data /= 2.0 ** thresholds[before]\n", "", "divide the bias"),
        ("bias.data /= 2.0", "bias.data *= 2.0", "divide the bias"),
        ("/= 2.0 ** thresholds[before]", "/= thresholds[before] or 1", "divide the bias"),
        ("/= 2.0 ** thresholds[before]", "/= 2.0 ** thresholds[name]", "divide the bias"),
        ("thresholds[name] - thresholds[before]", "thresholds[name]", "t is relative"),
        ("thresholds[name] - thresholds[before]", "thresholds[before] - thresholds[name]", "t is relative"),
        ("        layer.bit_width = bit_width\n", "", "forgot bit_width"),
        ("layer.bit_width = bit_width", "layer.bit_width = 8", "wanted 4"),
        ("op.bias.data /= 2.0 ** thresholds[before]", "op.weight.data /= 2.0 ** thresholds[before]", "weights stay"),
        ("        layer = layer[-1] if isinstance(layer, nn.Sequential) else layer\n", "", "layer[-1]"),
    ),
    right=[lambda net, *more: (solved()["my_ptq"](net, *more), net)[1]],
)
def check_ptq(answer):
    """my_ptq(net, thresholds, source, bit_width): scales and bits for every layer of a network of MyLayers, in place."""
    ranges = equalise(_thresholds())
    for bits in (8, 4, 2):
        before, net = _made(), copy.deepcopy(_made())
        try:
            answer(net, dict(ranges), dict(SOURCE), bits)
        except AttributeError as problem:
            if "Sequential" in str(problem):
                raise NotYet("meets a pool: there the child is nn.Sequential(pool, layer); take layer[-1].") from None
            raise
        if all(own_layer(net, name).bit_width is None for name in SOURCE):
            raise NotYet("changed nothing, or forgot bit_width: set it, and t, of every layer of `net` itself.")
        for name, source in SOURCE.items():
            if said := _ptq_advice(own_layer(before, name), own_layer(net, name), ranges[name], ranges[source], bits):
                yield row(f"{bits} bits, {name}", "as in the text", "other", False), f"{name}: {said}"
                return
        for name in SUMS:
            net.get_submodule(name).set_clamp(True)
        with torch.no_grad():
            got, want = net(_pictures()), _wanted(bits)
        far = (got - want).abs().max().item()
        shown = f"largest {far:.2g}" if far else "no difference"
        yield row(f"{bits} bits", "no difference", shown, far == 0), "other heat maps; is your MyLayer the one that passed?"


def _ptq_advice(old, new, own: int, before: int, bits: int) -> str:
    """What is wrong with a quantized layer, or ""."""
    if not torch.equal(new.op.weight, old.op.weight):
        return "the weights stay as they are: their input is 2^T smaller, and so is their output; t knows."
    if not torch.equal(new.op.bias * 2.0**before, old.op.bias):
        return f"divide the bias by 2^T of the input, 2^{before}: it is added to sums that are so much smaller."
    if float(new.t) != own - before:
        return f"t is relative to the input: its own T - the input's, {own} - {before} = {own - before}; got {new.t}."
    return "" if new.bit_width == bits else f"bit_width is {new.bit_width}; wanted {bits}."
