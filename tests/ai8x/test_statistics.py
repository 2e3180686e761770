"""Thresholds from activation histograms, against the vendor's recorded values and by their properties."""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from float_sums import Values, assert_decided, errors_spread
from torch import nn

import qatlib.ai8x as ai8x
from qatlib.ai8x import statistics

GOLDEN = Path(__file__).parents[1] / "golden"
CASE = next(c for c in json.loads((GOLDEN / "manifest.json").read_text())["cases"] if c["kind"] == "threshold")
RECORDED = np.load(GOLDEN / CASE["file"])


@pytest.mark.parametrize("z_score", [8, 2])
@pytest.mark.parametrize("name", CASE["names"])
def test_recorded_thresholds(name, z_score):
    samples = list(torch.from_numpy(RECORDED[f"{name}/x"]))
    hists = [statistics.histogram(row) for row in samples]
    counts, values = statistics.remove_outliers(*statistics.merge(hists), z_score)
    first, errors = statistics.quantization_errors(counts, values)
    assert first == RECORDED[f"{name}/z{z_score}/t0"]
    recorded = RECORDED[f"{name}/z{z_score}/errors"]
    if np.ptp(samples) == 0:
        assert np.array_equal(errors, recorded), "one value, one summand"
    else:
        off = errors_spread(hists, Values(samples, [0.0] * len(samples)), first.item(), z_score)
        assert (np.abs(errors - recorded) <= off).all() and off.max() < 1e-2 * recorded.max()
        assert_decided(recorded, off)
    assert statistics.log2_threshold(hists, z_score) == RECORDED[f"{name}/z{z_score}/log2_threshold"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = ai8x.FusedConv2dReLU(3, 4, 3, padding=1)
        self.pool = ai8x.MaxPool2d(2)
        self.head = ai8x.Conv2d(4, 4, 1)
        self.add = ai8x.Add()
        self.unused = ai8x.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.pool(self.conv(x))
        return self.add(self.head(x), self.head(x))


def measured(net, batches=3):
    generator = torch.Generator().manual_seed(0)
    ai8x.init_hist(net)
    with torch.no_grad():
        for _ in range(batches):
            net(torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1)
    return net


def test_every_call_adds_one_histogram():
    net = measured(Net())
    counts = {name: len(m.histograms) for name, m in statistics.measured_modules(net)}
    assert counts == {"conv": 3, "pool": 3, "head": 6, "add": 3, "unused": 0}


def test_memory_does_not_depend_on_the_batch():
    small, large = statistics.histogram(torch.randn(100)), statistics.histogram(torch.randn(100_000))
    assert small.counts.nbytes == large.counts.nbytes == 8192
    assert large.counts.sum() == 100_000


def test_histogram_counts_every_value_once_and_merging_keeps_them():
    parts = [torch.randn(1000), torch.randn(500) * 10, torch.full((7,), 3.0)]
    hists = [statistics.histogram(p) for p in parts]
    counts, edges = statistics.merge(hists)
    assert counts.sum() == 1507
    assert edges[0] == min(p.min() for p in parts) and edges[-1] == max(p.max() for p in parts)


def test_threshold_covers_the_values_unless_halving_it_is_better():
    for top in (0.3, 0.9, 1.5, 100.0):
        values = torch.linspace(-top, top, 4097)
        threshold = statistics.log2_threshold([statistics.histogram(values)])
        assert threshold == np.ceil(np.log2(top)), top


def test_outliers_do_not_stretch_the_threshold():
    generator = torch.Generator().manual_seed(1)
    values = torch.cat((torch.randn(100_000, generator=generator), torch.tensor([1000.0])))
    assert statistics.log2_threshold([statistics.histogram(values)], 8.0) <= 3  # the largest of the others is 4.5
    assert statistics.log2_threshold([statistics.histogram(values)], 1000.0) > 3


def test_release_forgets_everything_and_unused_layers_keep_their_threshold():
    net = measured(Net())
    ai8x.init_threshold(net)
    ai8x.release_hist(net)
    assert net.unused.activation_threshold == 0
    assert net.pool.activation_threshold == net.conv.activation_threshold
    for _, module in statistics.measured_modules(net):
        assert not module._forward_hooks and not [name for name in vars(module) if name.startswith("histogram")]


def test_init_hist_twice_counts_once():
    net = Net()
    ai8x.init_hist(net)
    assert len(measured(net, batches=1).conv.histograms) == 1


def test_copies_measure_for_themselves():
    net = measured(Net(), batches=1)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin(torch.rand(2, 3, 8, 8))
    assert (len(net.conv.histograms), len(twin.conv.histograms)) == (1, 2)
    ai8x.release_hist(twin)
    assert not twin.conv._forward_hooks and net.conv._forward_hooks


def dead_net():
    net = Net()
    net.conv.op.weight.data.zero_()
    net.conv.op.bias.data.fill_(-1.0)
    return net


def test_dead_layer_gets_zero_and_one_warning_with_its_name():
    net = measured(dead_net())
    with pytest.warns(UserWarning, match="dead layer") as caught:
        ai8x.init_threshold(net)
    assert sorted(str(w.message).partition(":")[0] for w in caught) == ["conv", "pool"]
    assert net.conv.activation_threshold == 0
    assert net.head.activation_threshold.isfinite()


def test_dead_layer_as_the_vendor_leaves_it():
    net = measured(dead_net())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ai8x.init_threshold(net, vendor_exact=True)
    assert net.conv.activation_threshold == -torch.inf


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_infinite_activations_name_the_layer(bad):
    net = Net()
    net.conv.op.bias.data.fill_(bad)
    with pytest.raises(ValueError, match="^conv: .*NaN or infinite"):
        measured(net)


def test_empty_batch_is_refused():
    with pytest.raises(ValueError, match="no values"):
        statistics.histogram(torch.empty(0, 3))
