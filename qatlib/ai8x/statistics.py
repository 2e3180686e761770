"""Activation statistics: what range does each layer need? (vendor README, "Quantization-Aware Training")

One pass over training data fills histograms of every layer's output; outliers are dropped; then the power of two with the
smallest quantization error becomes the layer's `activation_threshold` (its logarithm: 3 means that 8.0 is full scale).
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from qatlib.ai8x.eltwise import Eltwise
from qatlib.ai8x.layer import QuantizationAwareModule

BINS = 2048
CANDIDATES = 5  # the power of two that covers everything, and the four below it
EPSILON = 1e-9


@dataclass(frozen=True)
class Histogram:
    """Counts (2048,) float32 of one output tensor, in equal bins from `low` to `high` (real values)."""

    counts: np.ndarray
    low: float
    high: float

    @property
    def edges(self) -> torch.Tensor:
        return torch.linspace(self.low, self.high, BINS + 1)


def histogram(y: torch.Tensor) -> Histogram:
    """Histogram of all values of `y` between its minimum and maximum. Raises ValueError for an empty tensor, NaN or infinity."""
    if y.numel() == 0:
        raise ValueError(f"the output has shape {tuple(y.shape)} and no values; give the loader at least one sample per batch")
    low, high = torch.stack(torch.aminmax(y.detach())).tolist()
    if not np.isfinite(high - low):
        raise ValueError("the output holds NaN or infinite values; lower the learning rate or check the data before starting QAT")
    counts = torch.histc(y.detach().float(), BINS, low, high)
    return Histogram(counts.cpu().numpy(), low, high)


def merge(histograms: list[Histogram]) -> tuple[np.ndarray, torch.Tensor]:
    """One histogram of all: counts (2049,) float64 and edges (2049,) float32; counts[i] belongs to (edges[i-1], edges[i]].

    Cumulative counts are interpolated at the common edges. As the vendor's, the float32 sums lose
    counts where one batch has more than 2^24 values.
    """
    edges = torch.linspace(min(h.low for h in histograms), max(h.high for h in histograms), BINS + 1)
    counts = np.zeros(BINS + 1)
    for h in histograms:
        cumulative = np.concatenate(([0], np.cumsum(h.counts, dtype=np.float32)))
        counts += np.diff(np.interp(edges.numpy(), h.edges.numpy(), cumulative), prepend=0)
    return counts, edges


def remove_outliers(counts: np.ndarray, edges: torch.Tensor, z_score: float = 8.0) -> tuple[np.ndarray, torch.Tensor]:
    """Drop bins farther than `z_score` standard deviations from the mean, and empty bins.

    Returns (counts, values) of the surviving bins; a bin's value is its *upper* edge (the vendor's choice, kept).
    """
    counts, edges = torch.from_numpy(counts), edges.to(torch.float32)
    middles = (edges[:-1] + edges[1:]) / 2
    mean = (counts[1:] * middles).sum() / counts[1:].sum()
    deviation = torch.sqrt((counts[1:] * (middles - mean) ** 2).sum() / counts[1:].sum())
    if deviation == 0:
        deviation = torch.tensor(EPSILON)
    middles = torch.cat((torch.zeros(1), middles))
    outlier = (middles > mean + z_score * deviation) | (middles < mean - z_score * deviation)
    keep = (counts != 0) & ~outlier
    return counts[keep].numpy(), edges[keep]


def quantization_errors(counts: np.ndarray, values: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """(first, errors): the power of two that covers all `values`, and the mean squared 8-bit error at first / 1, 2, 4, 8, 16.

    Rounding is half to even here and the range is signed, also after ReLU. first is 0 where all values are 0 (a dead layer).
    """
    weights = torch.from_numpy(counts)
    first = 2 ** torch.ceil(torch.log2(values.abs().max()))
    errors = []
    for k in range(CANDIDATES):
        scale = first / 2**k + EPSILON
        quantized = torch.round(values / scale * 128).clamp(-128, 127) * scale / 128
        errors.append(((quantized - values) ** 2 * weights).sum() / weights.sum())
    return first, torch.stack(errors).numpy()


def log2_threshold(histograms: list[Histogram], z_score: float = 8.0) -> torch.Tensor:
    """log2 of the best threshold for these outputs: a whole number as float32 (), or -inf where every output was 0.

    >>> batch = torch.linspace(-3, 3, 1000)
    >>> log2_threshold([histogram(batch)])
    tensor(2.)
    """
    first, errors = quantization_errors(*remove_outliers(*merge(histograms), z_score))
    return torch.log2(first / 2 ** int(np.argmin(errors)))


def measured_modules(m: nn.Module) -> list[tuple[str, nn.Module]]:
    """(qualified name, module) of every layer and element-wise operation of `m`, in order of definition."""
    return [(name, module) for name, module in m.named_modules() if isinstance(module, (QuantizationAwareModule, Eltwise))]


def _record(module, args, output):
    try:
        module.histograms.append(histogram(output))
    except ValueError as problem:
        raise ValueError(f"{module.histogram_name}: {problem}") from None


def init_hist(model: nn.Module) -> None:
    """Record a histogram of every output of every layer and element-wise operation of `model` from now on.

    Only counts are kept: 8 KiB per call, whatever the batch. A layer that is called n times per batch adds n histograms.
    """
    release_hist(model)
    for name, module in measured_modules(model):
        module.histograms, module.histogram_name = [], name or type(module).__name__
        module.histogram_hook = module.register_forward_hook(_record)


def release_hist(model: nn.Module) -> None:
    """Stop recording and forget the histograms."""
    for _, module in measured_modules(model):
        if hasattr(module, "histogram_hook"):
            module.histogram_hook.remove()
            del module.histograms, module.histogram_name, module.histogram_hook


def init_threshold(model: nn.Module, outlier_removal_z_score: float = 8.0, vendor_exact: bool = False) -> None:
    """Set every `activation_threshold` of `model` from the histograms recorded since `init_hist`.

    Layers that were never called keep theirs. A layer whose outputs were all 0 gets threshold 0 and a warning; the vendor
    (and `vendor_exact`) sets -inf, silently, and the next layer's bias becomes infinite or NaN.
    """
    for name, module in measured_modules(model):
        if not getattr(module, "histograms", None):
            continue
        threshold = log2_threshold(module.histograms, outlier_removal_z_score)
        if torch.isinf(threshold) and not vendor_exact:
            advice = "its threshold is set to 0; lower the learning rate, or remove the layer"
            warnings.warn(f"{name}: every output was 0 (a dead layer); {advice}", stacklevel=2)
            threshold = torch.zeros(())
        with torch.no_grad():
            module.activation_threshold.copy_(threshold)
        if hasattr(module, "set_functions"):
            module.set_functions()
