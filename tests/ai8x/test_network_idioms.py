"""Networks built the way published ai8x networks are: each goes from float to QAT and learns, with no change to its code."""

import copy
import warnings

import pytest
import torch
from torch import nn

import qatlib.ai8x as ai8x


@torch.fx.wrap
def put(buffer, index, value):
    buffer[:, index] = value
    return buffer


class Frames(nn.Module):
    """A backbone called once per frame, dropout inside a residual sum, then 1D layers over time (action recognition)."""

    device, shape = 85, (5, 6, 6, 6)

    def __init__(self, bn="Affine", **kwargs):
        super().__init__()
        self.prep = ai8x.FusedConv2dBNReLU(6, 8, 1, stride=1, padding=0, batchnorm="NoAffine", **kwargs)
        self.down = ai8x.FusedMaxPoolConv2dBNReLU(8, 8, 3, padding=0, batchnorm=bn, **kwargs)
        self.side = ai8x.FusedConv2dBNReLU(8, 8, 1, batchnorm=bn, **kwargs)
        self.drop, self.add = nn.Dropout2d(0.5), ai8x.Add()
        self.out = ai8x.FusedConv2dBNReLU(8, 4, 1, batchnorm=bn, **kwargs)
        self.time0 = ai8x.FusedConv1dBNReLU(4, 4, 3, padding=0, stride=1, dilation=1, batchnorm=bn, **kwargs)
        self.time1 = ai8x.Conv1d(4, 5, 3, wide=True, padding=0, stride=1, dilation=1, batchnorm=bn, **kwargs)

    def forward(self, x):
        n = x.shape[0]
        frames = torch.zeros_like(x)[:, :, :4, :1, :1]
        for i in range(5):
            y = self.down(self.prep(x[:, i]))
            frames = put(frames, i, self.out(self.add(y, self.drop(self.side(y)))))
        sequence = frames.permute(0, 1, 3, 4, 2).reshape(n, 5, -1).permute(0, 2, 1)
        return self.time1(self.time0(sequence)).reshape(n, 5)


class Segmentation(nn.Module):
    """Encoder, transposed convolution, skip by torch.cat, folded output (U-Net)."""

    device, shape = 85, (3, 8, 8)

    def __init__(self, **kwargs):
        super().__init__()
        self.enc1 = ai8x.FusedConv2dBNReLU(3, 4, 3, stride=1, padding=1, bias=True, batchnorm="NoAffine", **kwargs)
        self.enc2 = ai8x.FusedMaxPoolConv2dBNReLU(4, 8, 3, stride=1, padding=1, bias=True, batchnorm="NoAffine", **kwargs)
        self.up = ai8x.ConvTranspose2d(8, 4, 3, stride=2, padding=1)
        self.dec = ai8x.FusedConv2dBNReLU(8, 8, 3, padding=1, **kwargs)
        self.conv = ai8x.FusedConv2dBN(8, 16, 1, **kwargs)

    def forward(self, x):
        skip = self.enc1(x)
        y = torch.cat((self.up(self.enc2(skip)), skip), dim=1)
        return ai8x.unfold_batch(self.conv(self.dec(y)), 2)


class Pyramid(nn.Module):
    """One Add and one head, shared by several feature maps (feature pyramid detector)."""

    device, shape = 87, (3, 8, 8)

    def __init__(self, **kwargs):
        super().__init__()
        self.fine = ai8x.FusedConv2dBNReLU(in_channels=3, out_channels=8, kernel_size=3, padding=1, **kwargs)
        self.coarse = ai8x.FusedMaxPoolConv2dBNReLU(8, 8, 3, padding=1, **kwargs)
        self.up = ai8x.ConvTranspose2d(8, 8, 3, stride=2, padding=1)
        self.add = ai8x.Add()
        self.head = ai8x.Conv2d(in_channels=8, out_channels=12, kernel_size=3, padding=1, wide=False, **kwargs)

    def forward(self, x):
        fine = self.fine(x)
        coarse = self.coarse(fine)
        maps = [self.head(m).permute(0, 2, 3, 1) for m in (self.add(fine, self.up(coarse)), coarse)]
        return torch.cat([m.contiguous().view(x.shape[0], -1, 4) for m in maps], dim=1)


class Boxes(nn.Module):
    """Two outputs from one feature map, layers found by isinstance(c, nn.Conv2d), which finds none (single-shot detector)."""

    device, shape = 85, (3, 9, 9)

    def __init__(self, classes=5, **kwargs):
        super().__init__()
        self.fire1 = ai8x.FusedConv2dBNReLU(3, 8, 3, padding=1, **kwargs)
        self.fire2 = ai8x.FusedMaxPoolConv2dBNReLU(8, 8, 3, padding=1, pool_size=3, **kwargs)
        self.places = ai8x.FusedConv2dBN(8, 8, kernel_size=3, padding=1, **kwargs)
        self.scores = ai8x.FusedConv2dBN(8, 4 * classes, kernel_size=3, padding=1, **kwargs)
        for c in self.children():
            if isinstance(c, nn.Conv2d):
                nn.init.xavier_uniform_(c.weight)

    def forward(self, x):
        y, n = self.fire2(self.fire1(x)), x.size(0)
        places, scores = (layer(y).permute(0, 2, 3, 1).contiguous() for layer in (self.places, self.scores))
        return places.view(n, -1, 4), scores.view(n, -1, 5)


class Inverted(nn.Module):
    """Grouped convolution, an Empty where a layer is left out, pooling to one pixel, wide classifier (EfficientNet)."""

    device, shape = 87, (3, 8, 8)

    def __init__(self, **kwargs):
        super().__init__()
        self.stem = ai8x.FusedMaxPoolConv2dBNReLU(3, 8, 3, pool_size=2, pool_stride=2, stride=1, batchnorm="Affine", padding=1,
                                                  bias=True, eps=1e-3, momentum=0.01, **kwargs)  # fmt: skip
        self.expand = ai8x.Empty()
        self.depth = ai8x.FusedConv2dBNReLU(in_channels=8, out_channels=8, groups=8, padding=1, kernel_size=3, **kwargs)
        self.project = ai8x.FusedConv2dBN(8, 8, 1, **kwargs)
        self.resid = ai8x.Add()
        self.pool = ai8x.AvgPool2d((4, 4))
        self.fc = ai8x.Linear(8, 10, bias=True, wide=True, **kwargs)

    def forward(self, x):
        x = self.stem(x)
        x = self.pool(self.resid(self.project(self.depth(self.expand(x))), x))
        return self.fc(x.view(x.size(0), -1))


class Words(nn.Module):
    """1D layers without bias, dropout between them, the same module called twice (keyword spotting)."""

    device, shape = 85, (8, 24)

    def __init__(self, bias=False, **kwargs):
        super().__init__()
        self.drop = nn.Dropout(p=0.2)
        self.conv1 = ai8x.FusedConv1dReLU(8, 8, 1, stride=1, padding=0, bias=bias, **kwargs)
        self.conv2 = ai8x.FusedMaxPoolConv1dReLU(8, 8, 3, stride=1, padding=1, bias=bias, **kwargs)
        self.conv3 = ai8x.FusedAvgPoolConv1dReLU(8, 8, 6, stride=1, padding=1, bias=bias, **kwargs)
        self.fc = ai8x.Linear(24, 5, bias=bias, wide=True, **kwargs)

    def forward(self, x):
        x = self.conv3(self.drop(self.conv2(self.drop(self.conv1(x)))))
        return self.fc(x.view(x.size(0), -1))


class Anchors(nn.Module):
    """Heads on two feature maps, each viewed by the batch size of a third and concatenated (TinierSSD)."""

    device, shape = 85, (3, 8, 8)

    def __init__(self, **kwargs):
        super().__init__()
        self.fire4 = ai8x.FusedConv2dBNReLU(3, 8, 3, padding=1, **kwargs)
        self.fire8 = ai8x.FusedMaxPoolConv2dBNReLU(8, 8, 3, padding=1, **kwargs)
        self.fire9 = ai8x.FusedMaxPoolConv2dBNReLU(8, 8, 3, padding=1, **kwargs)
        self.places8 = ai8x.FusedConv2dBN(8, 16, 3, padding=1, **kwargs)
        self.places9 = ai8x.FusedConv2dBN(8, 16, 3, padding=1, **kwargs)

    def forward(self, x):
        fire4 = self.fire4(x)
        fire8, batch = self.fire8(fire4), fire4.size(0)
        heads = (self.places8(fire8), self.places9(self.fire9(fire8)))
        return torch.cat([y.permute(0, 2, 3, 1).contiguous().view(batch, -1, 4) for y in heads], dim=1)


NETWORKS = [Frames, Segmentation, Pyramid, Boxes, Inverted, Words, Anchors]


def tensors(output) -> tuple:
    return output if isinstance(output, tuple) else (output,)


@pytest.mark.parametrize("network", NETWORKS)
def test_scales_follow_values_not_shapes(network):
    """Large features, so that a layer held at a threshold of 0 by mistake would clip; powers of two leave floats as they are."""
    ai8x.set_device(network.device, False, False, verbose=False)
    torch.manual_seed(0)
    model, x = network(), torch.randint(-128, 128, (8, *network.shape)) / 128
    ai8x.fuse_bn_layers(model)
    first = next(m for m in model.modules() if isinstance(m, ai8x.QuantizationAwareModule) and m.op is not None)
    with torch.no_grad():
        first.op.weight.mul_(16)
    vendor, before = copy.deepcopy(model), tensors(model.eval()(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ai8x.pre_qat(model, [x], {"weight_bits": 8})
    ai8x.pre_qat(vendor, [x], {"weight_bits": 8}, vendor_exact=True)
    for (name, ours), theirs in zip(model.state_dict().items(), vendor.state_dict().values()):
        assert torch.equal(ours, theirs), name
    assert first.activation_threshold.item() > 0, "else clipping would not show"
    for a, b in zip(before, tensors(model(x))):
        assert torch.equal(a, b)
    ai8x.initiate_qat(model, {"weight_bits": 8})
    for a, b in zip(before, tensors(model(x))):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.99


READS = {
    "size": lambda s, x: s.head(s.b(s.a(x)).reshape(x.size(0), 8, 6, 6)),
    "shape": lambda s, x: s.head(s.b(s.a(x)).view(x.shape[0], -1, x.shape[2], x.shape[3])),
    "zeros_like": lambda s, x: s.head(torch.cat([s.a(x)[:, :5], torch.zeros_like(x)], 1)),
    "new_zeros": lambda s, x: s.head(torch.cat([s.a(x)[:, :5], x.new_zeros(8, 3, 6, 6)], 1)),
    "device": lambda s, x: s.head(s.b(s.a(x)).to(x.device)),
    "type_as": lambda s, x: s.head(s.b(s.a(x)).type_as(x)),
    "interpolate": lambda s, x: s.head(nn.functional.interpolate(s.b(s.a(x))[..., ::2, ::2], size=x.shape[-2:])),
}


@pytest.mark.parametrize("read", READS)
def test_reading_a_shape_or_type_of_the_input_fixes_no_scale(read):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = ai8x.FusedConv2dReLU(3, 8, 3, padding=1), ai8x.FusedConv2dReLU(8, 8, 3, padding=1)
            self.head = ai8x.Conv2d(8, 4, 1)

        def forward(self, x):
            return READS[read](self, x)

    torch.manual_seed(0)
    net, x = Net(), torch.randint(-128, 128, (8, 3, 6, 6)) / 128
    with torch.no_grad():
        net.a.op.weight.mul_(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "interpolate .* is no ai8x layer|b: never called")  # both are so
        ai8x.pre_qat(net, [x], {"weight_bits": 8})
    assert net.a.activation_threshold.item() >= 3


def test_a_sum_with_the_input_still_does():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.add, self.head = ai8x.Conv2d(3, 3, 1), ai8x.Add(), ai8x.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.head(self.add(self.a(x), x))

    torch.manual_seed(0)
    net, x = Net(), torch.randint(-128, 128, (8, 3, 6, 6)) / 128
    with torch.no_grad():
        net.a.op.weight.mul_(8)
    with pytest.warns(UserWarning, match="a meets the network's input"):
        ai8x.pre_qat(net, [x], {"weight_bits": 8})
    assert net.a.activation_threshold.item() == 0


@pytest.mark.parametrize("network", NETWORKS)
def test_from_float_to_learning_in_qat(network):
    ai8x.set_device(network.device, False, False, verbose=False)
    model, policy = network(), {"start_epoch": 1, "weight_bits": 8}
    x = torch.randint(-128, 128, (4, *network.shape)) / 128
    ai8x.fuse_bn_layers(model)
    ai8x.pre_qat(model, [x], policy)
    optimizer = ai8x.update_optimizer(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    ai8x.initiate_qat(model, policy)
    outputs = model.train()(x)
    sum(y.square().sum() for y in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    layers = [m for m in model.modules() if isinstance(m, ai8x.QuantizationAwareModule) and m.op is not None]
    before = [layer.op.weight.clone() for layer in layers]
    optimizer.step()
    assert all(layer.weight_bits.item() == 8 and layer.op.weight.grad.isfinite().all() for layer in layers)
    assert any(not torch.equal(old, layer.op.weight) for old, layer in zip(before, layers))
    loaded = network()
    ai8x.fuse_bn_layers(loaded)
    loaded.load_state_dict(model.state_dict())
    ai8x.update_model(loaded)
    for a, b in zip(*(out if isinstance(out, tuple) else (out,) for out in (model.eval()(x), loaded.eval()(x)))):
        assert torch.equal(a, b), "a loaded checkpoint computes the same"
