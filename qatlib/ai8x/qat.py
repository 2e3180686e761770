"""From float to QAT, in this order: fuse_bn_layers, pre_qat, update_optimizer, initiate_qat (`start_qat` does all four).

The vendor runs the sequence in train.py at `start_epoch`. Every deviation from it is named where it happens; the keyword
`vendor_exact=True` gives the vendor's behaviour instead, for checkpoints that depend on it.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from tqdm.auto import tqdm

from qatlib.ai8x import mode as target
from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.graph import Graph, evaluating, place, require_same, tensors_in, trace, unwrap
from qatlib.ai8x.layer import QuantizationAwareModule, require_precise
from qatlib.ai8x.policy import QATPolicy, load_policy
from qatlib.ai8x.scales import apply_scales
from qatlib.ai8x.statistics import init_hist, init_threshold, release_hist


def layers(m: nn.Module) -> dict[str, QuantizationAwareModule]:
    """Qualified name -> layer, in order of definition. Raises TypeError for what is no network."""
    if not isinstance(m, nn.Module):
        raise TypeError(f"the model is a {type(m).__name__}; give a torch module")
    return {name: layer for name, layer in unwrap(m).named_modules() if isinstance(layer, QuantizationAwareModule)}


def check_weights(m: nn.Module) -> None:
    """Raise ValueError, naming the layer, for weights that are computed from others, or in half precision."""
    for name, layer in layers(m).items():
        if layer.op is None:
            continue
        if layer.op.weight is not layer.op._parameters.get("weight"):
            raise ValueError(
                f"{name}: its weights are computed from others (prune, weight_norm, spectral_norm); make them final first, with "
                "torch.nn.utils.prune.remove(layer.op, 'weight'), remove_weight_norm, remove_spectral_norm, or "
                "parametrize.remove_parametrizations(layer.op, 'weight')"
            )
        require_precise(layer.op.weight, name)


@contextmanager
def all_or_nothing(m: nn.Module) -> Iterator[None]:
    """Whatever is raised inside, also by Ctrl-C, leaves `m` as it was: parameters, batch norms, clamps."""
    kept = [(module, vars(module).copy(), module._modules.copy()) for module in m.modules()]
    values = [(tensor, tensor.detach().clone()) for tensor in (*m.parameters(), *m.buffers())]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        for module, attributes, children in kept:
            vars(module).update(attributes)
            module._modules.update(children)
        update_model(m)
        raise


@torch.no_grad()
def fuse_bn_layers(m: nn.Module, vendor_exact: bool = False) -> None:
    """Move every batch normalisation into the weights and bias in front of it; `bn` becomes None. In place.

    w' = w * gamma / sqrt(var + eps) per output channel, b' = (b - mean) * gamma / sqrt(var + eps) + beta. A transposed
    convolution keeps its output channels in dimension 1; the vendor (and `vendor_exact`) scales dimension 0 there.
    Raises ValueError for a batch normalisation without running statistics. Source: ai8x, `fuse_bn_layers`.
    """
    for name, layer in layers(m).items():
        if layer.bn is None:
            continue
        bn, op = layer.bn, layer.op
        if bn.running_mean is None:
            raise ValueError(f"{name}: its batch normalisation has no running statistics; build it with track_running_stats=True "
                             "and let it see data in training mode")  # fmt: skip
        r = torch.rsqrt(bn.running_var + bn.eps)
        gamma = torch.ones_like(r) if bn.weight is None else bn.weight
        beta = torch.zeros_like(r) if bn.bias is None else bn.bias
        op.weight.copy_(_scaled_channels(op, gamma * r, vendor_exact))
        op.bias.copy_((op.bias - bn.running_mean) * r * gamma + beta)
        layer.bn = None
        layer.set_functions()


def _scaled_channels(op: nn.Module, factor: torch.Tensor, vendor_exact: bool) -> torch.Tensor:
    w = op.weight
    if isinstance(op, nn.ConvTranspose2d) and not vendor_exact:  # (in, out / groups, k, k)
        grouped = w.view(op.groups, w.shape[0] // op.groups, *w.shape[1:])
        return (grouped * factor.view(op.groups, 1, w.shape[1], 1, 1)).view_as(w)
    return w * factor.view(-1, *[1] * (w.dim() - 1))


def pre_qat(model: nn.Module, train_loader, args=None, qat_policy=None, progress: bool = False, vendor_exact: bool = False) -> None:
    """Measure all activations over `train_loader` (one pass, evaluation mode), set thresholds, and apply scales.

    The loader yields inputs or (inputs, ...) tuples, which move to the model's device. The policy, a dict or a YAML file, may
    be in the third place or, as the vendor's, in the fourth, behind its `args` (which also does alone). The float function does
    not change; a warning tells if it does. Training mode is restored (the vendor leaves evaluation mode).
    Raises ValueError for an empty loader, inputs beyond -1..1 (unless `vendor_exact` or simulating), and scales applied before.
    """
    policy, model = load_policy(args if qat_policy is None else qat_policy), unwrap(model)
    policy.check_names(layers(model))
    check_weights(model)
    if not vendor_exact:
        _refuse_second(model)
    graph = trace(model)  # a network that cannot be traced is refused before the long pass
    with all_or_nothing(model), evaluating(model):
        sample, before = _measure(model, graph, train_loader, policy, progress, vendor_exact)
        apply_scales(model, vendor_exact)
        after = model(sample)
    if not vendor_exact:
        _warn_if_changed(before, after)


def _measure(model, graph: Graph, train_loader, policy: QATPolicy, progress: bool, vendor_exact: bool):
    """Set the thresholds; return the last batch and what the network made of it."""
    device, sample, output = place(model).device, None, None
    init_hist(model)
    try:
        for batch in tqdm(train_loader, desc="activation statistics", disable=not progress, leave=False):
            sample = batch[0] if isinstance(batch, (tuple, list)) else batch
            _check_input(sample, look=not vendor_exact and not target.dev.simulate)
            sample = sample.to(device)
            first, output = output is None, _output(model, sample)
            if first:
                require_same(graph, model, sample)
        if sample is None:
            raise ValueError("train_loader gave no batch; give it data (an iterator that was used up needs to be made again)")
        if not vendor_exact:
            _warn_of_unused(model)
        init_threshold(model, policy.outlier_removal_z_score, vendor_exact)
    finally:
        release_hist(model)
    return sample, output


def _warn_of_unused(model: nn.Module) -> None:
    if unused := [name for name, layer in layers(model).items() if not layer.histograms]:
        warnings.warn(
            f"{', '.join(unused)}: never called in evaluation mode, so neither measured nor scaled, and wrong where training calls "
            "it; let forward return it in evaluation mode, too, or delete it before QAT starts",
            stacklevel=4,
        )


def _check_input(inputs, look: bool) -> None:
    """The chip's input is 8-bit codes, so every real value is in -1..127/128. Exactly 1 is let through: it becomes 127/128."""
    if not isinstance(inputs, torch.Tensor) or inputs.is_complex():
        kind = getattr(inputs, "dtype", type(inputs).__name__)
        raise TypeError(f"train_loader gave a {kind}; it must give tensors of real numbers, or tuples that start with one; "
                        "of dicts, give for example [batch['image'] for batch in train_loader]")  # fmt: skip
    low, high = torch.stack(torch.aminmax(inputs.detach())).tolist() if look and inputs.numel() else (0, 0)
    if low < -1 or high > 1:
        raise ValueError(
            f"train_loader gave inputs from {low:.4g} to {high:.4g}, but the network's must be in -1..1; use "
            "ai8x.normalize()(images) on images of 0..1, or (x - 128) / 128 on bytes of 0..255, in training as well"
        )


def _output(model: nn.Module, sample: torch.Tensor):
    try:
        return model(sample)
    except RuntimeError as problem:
        shape, reason = tuple(sample.shape), str(problem).splitlines()[0]
        raise ValueError(f"train_loader gave a batch of shape {shape}, which the network cannot read: {reason}") from problem


def _refuse_second(model: nn.Module) -> None:
    for name, layer in layers(model).items():
        if layer.weight_bits.is_inference():
            raise ValueError(f"{name} was built in torch.inference_mode(), where nothing can be trained; build it outside")
        bits, threshold, final = layer.weight_bits.item(), layer.activation_threshold.item(), layer.final_scale.item()
        if bits or threshold or final:
            raise ValueError(
                f"QAT has already started ({name}: weight_bits {bits}, activation_threshold {threshold:g}, final_scale {final:g}); "
                "for other bits call initiate_qat with another policy; to start anew, build the network again, with float weights"
            )


def _warn_if_changed(before, after) -> None:
    """Powers of two are exact: what exceeds a GPU's own noise (TF32: 2^-11) comes from an operation that is not scale-invariant."""
    pairs = zip(tensors_in(before), tensors_in(after))
    change = max((((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item() for a, b in pairs), default=0.0)
    if change > 1e-3:
        warnings.warn(
            f"scaling the layers changed the network's output by {change:.0%} of its range; between two layers use only operations "
            "that commute with scaling (ReLU, pooling, sums, concatenation), and batch norm only inside ai8x layers",
            stacklevel=3,
        )


def initiate_qat(m: nn.Module, qat_policy, export: bool = False) -> None:
    """Switch quantization on in every layer, with the policy's bits (bias_bits = weight_bits), and the clamps of sums.

    Call it again to change bits. ValueError for an override that names no layer (the vendor ignores it), and as `load_policy`.
    """
    policy, found = load_policy(qat_policy), layers(m)
    policy.check_names(found)
    for name, layer in found.items():
        bits, quantile = policy.for_layer(name)
        layer.init_module(bits, bits, True, True, quantile, export)
    clamp_sums(m, True)


def clamp_sums(m: nn.Module, on: bool) -> None:
    """Switch the clamps of all element-wise operations on or off."""
    for module in m.modules():
        if isinstance(module, Eltwise):
            module.set_clamp(on)


def update_model(m: nn.Module, vendor_exact: bool = False) -> None:
    """Re-read every layer's parameters, after loading a checkpoint, writing through `.data`, or changing the device.

    Clamps of sums are not part of a checkpoint: they are switched on where any layer has bits (the vendor leaves them as they are,
    and so does this where `m` holds sums alone).
    """
    for layer in layers(m).values():
        layer.set_functions()
    if layers(m) and not vendor_exact:
        clamp_sums(m, any(layer.weight_bits.item() for layer in layers(m).values()))


def update_optimizer(m: nn.Module, optimizer: torch.optim.Optimizer, vendor_exact: bool = False) -> torch.optim.Optimizer:
    """Forget the parameters that fusing removed; momentum and moments of all others stay. Returns the same optimizer.

    The vendor (and `vendor_exact`) returns a new optimizer over all parameters, meant to carry its state over, but loses it.
    Because ours stays the same object, learning-rate schedules that hold it keep working.
    Raises ValueError for an optimizer that holds none of the model's parameters.
    """
    if vendor_exact:
        options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        new = type(optimizer)(m.parameters(), **optimizer.defaults)
        new.param_groups[0].update(options)
        return new
    alive = {id(p) for p in m.parameters()}
    if not any(id(p) in alive for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the optimizer holds none of the model's parameters; give the one that trains this model")
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) in alive]
    for p in [p for p in optimizer.state if id(p) not in alive]:
        del optimizer.state[p]
    return optimizer


def start_qat(model: nn.Module, train_loader, qat_policy, optimizer=None, progress: bool = True, vendor_exact: bool = False):
    """The whole way from float to QAT: fuse_bn_layers, pre_qat, update_optimizer, initiate_qat. Returns the optimizer (or None).

    All or nothing: whatever is refused, or interrupted, leaves the model as it was. `vendor_exact` goes to all four. Raises
    ValueError if QAT has already started, where the device simulates, and as `pre_qat` and `update_optimizer` do.
    """
    policy = load_policy(qat_policy)
    policy.check_names(layers(model))
    check_weights(model)
    _refuse_second(unwrap(model))
    if target.dev.simulate:
        raise ValueError(f"the device simulates the chip; call ai8x.set_device({target.dev.device}) before QAT starts")
    with all_or_nothing(unwrap(model)):
        fuse_bn_layers(model, vendor_exact)
        pre_qat(model, train_loader, policy, progress=progress, vendor_exact=vendor_exact)
        if optimizer is not None:
            optimizer = update_optimizer(model, optimizer, vendor_exact)
        initiate_qat(model, policy)
    return optimizer
