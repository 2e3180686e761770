"""Float sums have no defined order: how far the results of two orders may lie apart.

Convolutions, matrix products and means add float32 numbers in an order that the processor and the number of threads decide.
One sum of n products is off by at most sqrt(n) * U * (sum of the magnitudes), times LAMBDA, with a probability of at least
1 - 2 exp(-LAMBDA^2 / 2): N. Higham and T. Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci.
Comput. 41 (2019). Through a network such errors travel as independent ones do: their squares add up.
"""

import numpy as np
import torch

from qatlib import ai8x
from qatlib.ai8x import statistics

U = 2.0**-24  # float32 rounds a number by at most this share of it
LAMBDA = 8.0  # one value in 10^13 is further off


def sum_error(n: int, magnitude):
    """Size, before LAMBDA, of the error of a sum of `n` products and a bias whose magnitudes add up to `magnitude`."""
    return (n + 1) ** 0.5 * U * magnitude


def allowed(error):
    """How far two computed results may lie apart, each with an error of the size `error`."""
    return 2 * LAMBDA * error


# --- forward: a batch of [values; squared errors] through a float network -----------------------------------------------


def _outputs_and_errors(layer, inputs, y):
    values = y.chunk(2)[0]
    if isinstance(layer, ai8x.Eltwise):
        return torch.cat((values, sum(x.chunk(2)[1] for x in inputs) + (U * values) ** 2))
    x, squared = (t if layer.pool is None else layer.pool(t) for t in inputs[0].abs().chunk(2))
    weight = layer.op.weight
    added = sum_error(weight[0].numel(), layer._apply_op(x, weight.abs(), layer.op.bias.abs()))
    return torch.cat((values, layer._apply_op(squared, weight**2, None) + added**2))


@torch.no_grad()
def output_spread(net, x) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
    """How far the float32 outputs of a float network with fused batch norm may lie apart in two orders of summation.

    Returns (real values, shape of the output; layer name -> the same for the output of each call). `net` is used up.
    """
    net, layers = net.double(), {}
    for name, module in statistics.measured_modules(net):
        module.register_forward_hook(_outputs_and_errors)
        keep = lambda m, a, y, name=name: layers.setdefault(name, []).append(allowed(y.chunk(2)[1].sqrt()))  # noqa: E731
        module.register_forward_hook(keep)
    values, squared = net(torch.cat((x.double(), torch.zeros_like(x).double()))).chunk(2)
    mean = allowed(16**0.5 * U * values.abs().max())  # of up to 16 maps' outputs, behind the last layer
    return allowed(squared.sqrt()) + mean, layers


# --- histograms -----------------------------------------------------------------------------------------------------------


class Values:
    """The tensors of which histograms were made; those that recorded histograms were made of differ by at most `off[i]`."""

    def __init__(self, tensors: list[torch.Tensor], off: list[float]):
        self.sorted, self.off = [np.sort(t.flatten().double().numpy()) for t in tensors], off

    def counts_below(self, i: int, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fewest and most values of tensor `i` below each of the edges; edges and bins are found with four roundings."""
        slack = self.off[i] + 4 * U * np.ptp(self.sorted[i])
        return tuple(np.searchsorted(self.sorted[i], edges + d, side) for d, side in ((-slack, "left"), (slack, "right")))


def errors_spread(histograms, made_of: Values, first: float, z_score: float) -> np.ndarray:
    """How far the five mean squared errors that `statistics.quantization_errors` gives may lie from recorded ones.

    Where a value moves by d, its squared rounding error e^2 changes by at most 2 |e| d + d^2. Values and edges are `off`; values
    as near as that to an edge may move by a bin's width, and bins as near to the limit of the outliers may be kept or dropped.
    """
    counts, edges = (np.asarray(a, np.float64) for a in statistics.merge(histograms))
    total, width, off = counts.sum(), edges[1] - edges[0], 2 * max(made_of.off) + 4 * U * np.abs(edges).max()
    inner = np.array([h.edges.double().numpy()[1:-1] for h in histograms])
    near = np.array([np.subtract(*made_of.counts_below(i, e)[::-1]) for i, e in enumerate(inner)])
    middles, share = edges - width / 2, near.sum() / total
    mean = np.average(middles[1:], weights=counts[1:])
    deviation = np.average((middles[1:] - mean) ** 2, weights=counts[1:]) ** 0.5
    spread = min(share * np.abs(middles - mean).max() / deviation, share**0.5)  # of the deviation, in widths
    beyond, reach = np.abs(middles - mean) - z_score * deviation, (1 + z_score) * off + width * (share + z_score * spread)
    kept, doubtful, bounds = beyond < reach, np.abs(beyond) < reach, []
    for scale in first / 2.0 ** np.arange(statistics.CANDIDATES):

        def error(values, step=scale / 128):
            return np.abs(values - (values / step).round().clip(-128, 127) * step)

        moved = counts[kept] @ (2 * error(edges[kept]) * off + off**2) + (near * (2 * error(inner) * width + width**2)).sum()
        bounds.append((moved + counts[doubtful] @ error(edges[doubtful]) ** 2) / total)
    return np.array(bounds)


def assert_decided(errors: np.ndarray, off: np.ndarray) -> None:
    """The smallest error is the smallest in every order of summation, and the threshold the same on every processor."""
    best, second = np.argsort(errors)[:2]
    assert errors[second] - errors[best] > off[best] + off[second], (errors, off)


# --- backward: a batch of [gradients; errors] back through a network in QAT, whose forward pass is exact ------------------


class _Backward(torch.autograd.Function):
    """A layer's operation; backward, inputs receive [gradient; error] and weights the error of their gradient only."""

    @staticmethod
    def forward(ctx, operation, *inputs):
        ctx.operation = operation
        ctx.save_for_backward(*inputs)
        return operation(*inputs)

    @staticmethod
    @torch.enable_grad()
    def backward(ctx, upstream):
        x, weight, bias = (t.detach() for t in ctx.saved_tensors)
        (gradient, error), x = upstream.chunk(2), x.chunk(2)[0]

        def pulled_back(g, x, weight):
            inputs = [t.requires_grad_() for t in (x, weight, bias)]
            return torch.autograd.grad(ctx.operation(*inputs), inputs, g)

        outputs = gradient[:, 0].numel()
        summands = weight.numel() // x.shape[1], outputs, outputs
        sizes, carried = pulled_back(gradient.abs(), x.abs(), weight.abs()), pulled_back(error**2, x**2, weight**2)
        errors = [(c + sum_error(n, size) ** 2).sqrt() for n, size, c in zip(summands, sizes, carried)]
        return None, torch.cat((pulled_back(gradient, x.clone(), weight.clone())[0], errors[0])), *errors[1:]


def gradient_spread(net, x, target) -> dict[str, torch.Tensor]:
    """How far float32 gradients of the mean cross entropy may lie apart, by parameter.

    `net` is in QAT, with `x` on the 1/128 grid, and is used up.
    """
    net = net.double().train()
    for _, layer in statistics.measured_modules(net):
        if not isinstance(layer, ai8x.Eltwise):
            layer._apply_op = lambda *inputs, plain=layer._apply_op: _Backward.apply(plain, *inputs)
    y = net(torch.cat((x, x)).double())
    share = torch.softmax(y.detach().chunk(2)[0], 1)
    gradient = (share - torch.nn.functional.one_hot(target, share.shape[1])) / len(x)
    y.backward(torch.cat((gradient, 8 * U * share / len(x))))  # an exponential, a sum and a quotient, each good to a few U
    return {name: allowed(p.grad) for name, p in net.named_parameters() if p.grad is not None}
