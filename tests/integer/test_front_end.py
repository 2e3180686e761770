"""Odd networks: the fit meter, `quantize_model` and the exporters accept and refuse the same ones, with the same sentences."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from qatlib import ai8x, quantize_model
from qatlib.chip.lowering import lower
from qatlib.export.c_source import Writer
from qatlib.export.max78000 import export_max78000
from qatlib.export.onnx_graph import build

pytestmark = pytest.mark.filterwarnings("ignore:.*the chip")


def layer(make):
    """A step that builds a layer for the channels (or features) it is given, and calls it."""
    return lambda net, x, y: net.called(lambda: make(x.shape[1]), x)


def changed(layer: nn.Module, **attributes) -> nn.Module:
    for name, value in attributes.items():
        setattr(layer.pool, name, value)
    return layer


SOUND = {
    "conv": layer(lambda c: ai8x.FusedConv2dReLU(c, 4, 3, padding=1)),
    "pooled": layer(lambda c: ai8x.FusedMaxPoolConv2d(c, 4, 1)),
    "average": layer(lambda c: ai8x.AvgPool2d(2)),
    "transposed": layer(lambda c: ai8x.ConvTranspose2d(c, 4, 3, stride=2, padding=1)),
    "plain": layer(lambda c: ai8x.Conv2d(c, 8, 1, bias=False)),
    "linear": layer(lambda c: ai8x.Linear(c, 5, bias=True)),
    "again": lambda net, x, y: net.called(lambda: net.last, x),
    "sum": lambda net, x, y: net.called(ai8x.Add, x, y),
    "difference": lambda net, x, y: net.called(ai8x.Sub, x, y),
    "joined": lambda net, x, y: torch.cat((x, y), dim=1),
    "joined from behind": lambda net, x, y: torch.cat((x, y), -3),
    "flat": lambda net, x, y: x.flatten(1),
    "viewed": lambda net, x, y: x.view(x.size(0), -1),
    "renamed": lambda net, x, y: x.view(x.size(0), x.size(1), -1, 2),
    "a signal": lambda net, x, y: x.flatten(2),
    "back": lambda net, x, y: x.flatten(1).view(x.shape),
    "dropout": lambda net, x, y: F.dropout(x, 0.5, training=False),
    "copied": lambda net, x, y: x.clone().contiguous(),
    "identity": lambda net, x, y: net.called(nn.Identity, x),
}
ODD = {
    "wide": layer(lambda c: ai8x.Conv2d(c, 4, 1, wide=True)),
    "stride": layer(lambda c: ai8x.Conv2d(c, 4, 3, stride=2)),
    "ceil": layer(lambda c: changed(ai8x.FusedMaxPoolConv2d(c, 4, 1, pool_size=3, pool_stride=2), ceil_mode=True)),
    "padded pool": layer(lambda c: changed(ai8x.FusedAvgPoolConv2d(c, 4, 1), padding=1)),
    "xor": lambda net, x, y: net.called(ai8x.BitwiseXor, x, y),
    "own eltwise": lambda net, x, y: net.called(lambda: ai8x.Eltwise(torch.maximum), x, y),
    "stacked rows": lambda net, x, y: torch.cat((x, y), dim=2),
    "stacked batch": lambda net, x, y: torch.cat((x, y)),
    "reshaped": lambda net, x, y: x.reshape(x.size(0), -1, 2, 2),
    "all flat": lambda net, x, y: x.flatten(),
    "slice": lambda net, x, y: x[:, :2],
    "first": lambda net, x, y: x[0],
    "mT": lambda net, x, y: x.mT,
    "permuted": lambda net, x, y: x.permute(0, 1, 3, 2),
    "halves": lambda net, x, y: torch.chunk(x, 2, dim=1)[1],
    "largest": lambda net, x, y: x.max(1, keepdim=True)[0],
    "plus": lambda net, x, y: x + y,
    "twice": lambda net, x, y: x * 2,
    "in place": lambda net, x, y: x.clone().add_(1),
    "relu": lambda net, x, y: F.relu(x, inplace=True),
    "relu layer": lambda net, x, y: net.called(nn.ReLU, x),
    "plain layer": layer(lambda c: nn.Conv2d(c, 4, 1)),
    "mean": lambda net, x, y: x.mean((2, 3)),
    "resized": lambda net, x, y: F.interpolate(x, scale_factor=2),
    "constant": lambda net, x, y: torch.ones_like(x),
    "parameter": lambda net, x, y: x * net.gain,
    "folded": lambda net, x, y: ai8x.unfold_batch(x, 2),
}
RETURNS = {
    "last": lambda values: values[-1],
    "two": lambda values: (values[-1], values[-2]),
    "same twice": lambda values: [values[-1], values[-1]],
    "named": lambda values: {"a": values[-1], "b": {"c": values[-2]}},
    "size too": lambda values: (values[-1], values[-1].size(1)),
    "sizes": lambda values: values[-1].shape,
}


class Network(nn.Module):
    """Steps of the tables above; built by running once, so that each layer has the channels it is given."""

    def __init__(self, steps, returns, inputs, shape=(4, 8, 8)):
        super().__init__()
        self.input_shape, self.kept, self.returns = shape, [], RETURNS[returns]
        self.gain, self.made, self.building = nn.Parameter(torch.ones(1)), nn.ModuleList(), True
        values = [torch.zeros(1, *shape) for _ in range(inputs)]
        for name, first, second in steps:
            before = len(self.made)
            try:
                value = (SOUND | ODD)[name](self, values[-1 - first % len(values)], values[-1 - second % len(values)])
                assert min(value.shape) > 0
            except Exception:  # the step does not suit its operands
                del self.made[before:]
                continue
            values.append(value)
            self.kept.append((name, first, second))
        self.building = False

    @property
    def last(self):
        return next(m for m in reversed(self.made) if isinstance(m, ai8x.QuantizationAwareModule))

    def called(self, make, *operands):
        if self.building:
            self.made.append(make())
            return self.made[-1](*operands)
        self.calls += 1
        return self.made[self.calls - 1](*operands)

    def forward(self, x):
        return self.run([x])

    def run(self, values):
        self.calls = 0
        for name, first, second in self.kept:
            values.append((SOUND | ODD)[name](self, values[-1 - first % len(values)], values[-1 - second % len(values)]))
        return self.returns(values if len(values) > 1 else values * 2)


class Siamese(Network):
    """The same with a second input."""

    def forward(self, x, y):
        return self.run([x, y])


def trained(net):
    for module in net.modules():
        if isinstance(module, ai8x.QuantizationAwareModule):
            module.init_module(8, 8, True, True)
        elif isinstance(module, ai8x.Eltwise):
            module.set_clamp(True)
    return net.eval()


def sentence(function, *arguments):
    """What it raises, as text; None where it raises nothing. Only what is documented passes."""
    try:
        function(*arguments)
    except ValueError as problem:
        return str(problem)


operand = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 5])  # how far back: mostly what was computed last
odd = st.tuples(st.sampled_from([*SOUND] * 4 + [*ODD]), operand, operand)
sound = st.tuples(st.sampled_from([*SOUND]), operand, operand)
begun = [("conv", 0, 0)]
networks = st.one_of(st.lists(odd, max_size=7), st.lists(sound, min_size=1, max_size=9).map(lambda drawn: begun + drawn))


# Each of these once ended in an error of Python's own.
@example([("conv", 0, 0), ("conv", 0, 0), ("joined", 0, 1), ("sum", 0, 0)], "last", 1)
@example([("conv", 0, 0), ("joined", 0, 0), ("flat", 1, 0), ("sum", 0, 0), ("linear", 0, 0)], "last", 1)
@example([("all flat", 0, 0), ("stacked batch", 0, 0)], "last", 1)
@example([("pooled", 0, 0), ("flat", 1, 0), ("dropout", 1, 0)], "last", 1)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(networks, st.sampled_from(["last"] * 9 + [*RETURNS]), st.sampled_from([1] * 7 + [2]))
def test_meter_and_exporters_agree(tmp_path, drawn, returns, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agree(trained((Network, Siamese)[inputs - 1](drawn, returns, inputs)), tmp_path)


def agree(net, folder):
    refused, untold = sentence(quantize_model, net), sentence(ai8x.fit, net)
    if untold:  # it cannot even be listed
        assert refused == untold or refused.endswith(untold) or untold in refused
        return
    report, refusals = ai8x.fit(net), lower(net).refusals
    assert all(refusal in report.violations for refusal in refusals)
    assert bool(refused) == bool(refusals) and all(refusal in refused for refusal in refusals)
    assert sentence(export_max78000, net, None, folder / "chip") is not None or report.fits
    if refused:
        return
    quantized = quantize_model(net)
    assert ai8x.fit(quantized).violations == report.violations
    assert sentence(export_max78000, quantized, None, folder / "chip") is None or not report.fits
    x = torch.randint(-128, 128, (2, *net.input_shape)) / 128
    wanted, got = (torch.utils._pytree.tree_leaves(y) for y in (net(x), quantized(x)))
    wanted = [y for y in wanted if isinstance(y, torch.Tensor)]
    assert len(wanted) == len(got) and all(torch.equal(a, b) for a, b in zip(wanted, got))
    build(quantized.compact), Writer(quantized.compact).values()


@pytest.mark.parametrize("step", ODD)
def test_every_odd_step_is_refused_by_name(step):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = trained(Network([("conv", 0, 0), (step, 0, 0), ("conv", 0, 0)], "last", 1))
    assert [name for name, _, _ in net.kept][1:2] == [step]
    refusals = lower(net).refusals
    assert refusals and sentence(quantize_model, net) in (refusals[0], sentence(lower(net).require))
    assert ai8x.fit(net).violations[: len(refusals)] == refusals


def test_an_input_too_many_is_told():
    net = trained(Siamese([("sum", 0, 1), ("conv", 0, 0)], "last", 2))
    for shape in (None, ((4, 8, 8), (4, 8, 8))):
        assert "has several inputs" in ai8x.fit(net, shape).violations[0]
        with pytest.raises(ValueError, match="has several inputs; a compact model has one: concatenate them outside"):
            quantize_model(net, input_shape=shape)
    for asked in (ai8x.fit, lambda net, shape: quantize_model(net, input_shape=shape)):
        with pytest.raises(ValueError, match="is of 3 inputs, the network has 2; give each one"):
            asked(net, ((4, 8, 8),) * 3)
