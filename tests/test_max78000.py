"""The synthesis inputs, read back by a small model of the chip: processors, data memories, interleaved and multi-pass tensors."""

import numpy as np
import pytest
import torch
import yaml
from export_networks import Builder, avg_pool, codes, max_pool, pose_like, residual

from qatlib import ai8x
from qatlib.ai8x.meter import fit
from qatlib.compact_graph import WEIGHTED
from qatlib.export import quantize_model
from qatlib.export.max78000 import export_max78000, network_yaml
from qatlib.integer import Integer, narrow, pool


class Chip:
    """16 data memories of 8,192 words; a word holds one pixel of 4 processors' channels. Runs the layers of a network YAML.

    `until` is the last layer that reads what a word holds: a layer may not write where it, or a later one, still reads.
    """

    def __init__(self, model, network):
        self.model, self.engine = model, Integer(model)
        self.memory, self.until = np.full((16, 8192, 4), 99, np.int8), np.full((16, 8192), -1)
        self.layers, self.weighted = network["layers"], [op for op in model.ops if op["kind"] in WEIGHTED]
        self.shapes = []

    def places(self, processors, offset, shape, gap):
        """(memory, word, byte) of every value of a tensor (C, pixels)."""
        used = [p for p in range(64) if processors >> p & 1]
        passes = -(-shape[0] // len(used)) if shape[0] > 64 else 1
        channel, pixel = np.arange(shape[0])[:, None], np.arange(int(np.prod(shape[1:])))[None]
        processor = np.array(used)[channel % len(used)]
        word = offset // 4 + (pixel * passes + channel // len(used)) * (gap + 1)
        return np.broadcast_to(processor // 4, word.shape), word, np.broadcast_to(processor % 4, word.shape)

    def sources(self, index):
        found = self.layers[index].get("in_sequences", index - 1)
        return found if isinstance(found, list) else [found]

    def run(self, picture):
        self.until[:] = -1
        last = {source: index for index in range(len(self.layers)) for source in self.sources(index)}
        self.write(self.layers[0]["processors"], 0, 0, picture, -1, last[-1])
        weighted, shapes, where, result = iter(self.weighted), [picture.shape], [(self.layers[0]["processors"], 0)], None
        for index, layer in enumerate(self.layers):
            sources = self.sources(index)
            shape, offset = shapes[sources[0] + 1], layer.get("in_offset", where[sources[0] + 1][1])
            if "eltwise" not in layer and layer["operation"] not in ("Add", "Sub") and len(sources) > 1:  # joined channels
                shape = (sum(shapes[s + 1][0] for s in sources), *shape[1:])
                assert {where[s + 1][1] for s in sources} == {offset}
            x = self.read(layer, sources, offset, shape)
            op = next(weighted) if layer["operation"] != "passthrough" and layer["operation"] not in ("Add", "Sub") else None
            result = self.compute(layer, op, x)
            shapes.append(result.shape)
            following = (
                self.layers[index + 1]["processors"]
                if index + 1 < len(self.layers)
                else (1 << 64) - 1
                if result.shape[0] > 64
                else (1 << result.shape[0]) - 1
            )
            processors = layer.get("output_processors", following)
            where.append((processors, layer["out_offset"]))
            if layer.get("output_width", 8) == 8:
                self.write(processors, layer["out_offset"], layer.get("write_gap", 0), result, index, last.get(index, index))
        return result

    def write(self, processors, offset, gap, values, index, last):
        places = self.places(processors, offset, values.shape, gap)
        assert (self.until[places[:2]] < max(index, 0)).all(), f"layer {index} overwrites what is still read"
        self.memory[places], self.until[places[:2]] = values.reshape(len(values), -1), last

    def read(self, layer, sources, offset, shape):
        sums = "eltwise" in layer or layer["operation"] in ("Add", "Sub")
        count = len(sources) if sums else 1
        operands = [
            self.memory[self.places(layer["processors"], offset + 4 * i, shape, count - 1)].reshape(shape) for i in range(count)
        ]
        how = {"type": "max" if "max_pool" in layer else "avg", "round": False, "dilation": [1, 1]}
        size = layer.get("max_pool", layer.get("avg_pool"))
        if size:
            how |= {"size": size if isinstance(size, list) else [size] * 2, "stride": [layer["pool_stride"]] * 2}
        pooled = (lambda v: pool(v[None], how)[0].astype(np.int8)) if size else (lambda v: v)
        if size and layer.get("pool_first", True):
            operands = [pooled(v) for v in operands]
        if sums:
            sign = 1 if layer.get("eltwise", layer["operation"]).lower() == "add" else -1
            total = operands[0].astype(int) + sign * sum(v.astype(int) for v in operands[1:])
            operands = [np.clip(total, -128, 127).astype(np.int8)]
        return pooled(operands[0]) if size and not layer.get("pool_first", True) else operands[0]

    def compute(self, layer, op, x):
        if op is None:
            return x
        assert layer.get("activate", "none").lower() == (op["activation"] or "none")
        assert layer.get("quantization", 8) == op["weight_bits"]
        x = x.reshape(1, -1) if layer["operation"] == "MLP" else x[None]
        acc = self.engine._accumulate(op, x)[0]
        result = acc if op["wide"] else narrow(acc, op)
        return result.reshape(len(result), *(result.shape[1:] or (1, 1)))


def wide_channels():
    """128 and 65 channels: several passes, masks of 64 and 36 processors, and a sum of 3 that nothing can carry along."""
    b = Builder((3, 8, 8), 5)
    b.op("a", "conv2d", out=65, activation="relu")
    b.op("b", "conv2d", out=128, activation="relu")
    b.op("c", "conv2d", out=40)
    b.op("d", "conv2d", "c", out=40, bits=4)
    b.op("e", "conv2d", "d", out=40)
    b.op("sum", "add", "c", "d", "e")
    b.op("up", "conv_transpose2d", "sum", out=8, padding=1)
    b.op("diff", "sub", "up", "up")
    return b.op("head", "conv2d", "diff", out=9, kernel=1, wide=True).build(arch="Wide")


def joined():
    b = Builder((3, 8, 8), 6)
    b.op("a", "conv2d", out=16, activation="relu")
    b.op("b", "conv2d", "a", out=12, pool=None)
    b.op("cat", "concat", "a", "b")
    b.op("peak", "pool", "cat", pool=max_pool())
    return b.op("head", "conv2d", "peak", out=5, kernel=1, wide=True, pool=avg_pool()).build(arch="Joined")


def chained_sums():
    """y1 = y0 + f(y0), y2 = y1 + g(y1): the first sum is read twice, and is a layer of its own."""
    b = Builder((3, 8, 8), 7)
    b.op("y0", "conv2d", out=8, activation="relu")
    b.op("f", "conv2d", "y0", out=8)
    b.op("y1", "add", "y0", "f")
    b.op("g", "conv2d", "y1", out=8)
    b.op("y2", "add", "y1", "g")
    return b.op("head", "conv2d", "y2", out=5, kernel=1, wide=True).build(arch="Chained")


def difference():
    """A difference that is flattened: no convolution can carry it along."""
    b = Builder((3, 4, 4), 8)
    b.op("a", "conv2d", out=8, activation="relu")
    b.op("b", "conv2d", "a", out=8, kernel=1)
    b.op("sub", "sub", "a", "b")
    b.op("flat", "flatten")
    return b.op("fc", "linear", out=5, wide=True).build(arch="Difference")


@pytest.mark.parametrize("make", [pose_like, residual, wide_channels, joined, chained_sums, difference, lambda: residual(2)])
def test_the_chip_model_computes_the_same_from_the_yaml(make):
    model = make()
    network = yaml.safe_load(network_yaml(model, fit(model, device=85)))
    assert network["layers"][0]["data_format"] == "HWC"
    for picture in codes(model, 4):
        expected = Integer(model)(picture)
        assert np.array_equal(Chip(model, network).run(picture).ravel(), expected.ravel())
    assert len(np.unique(expected)) > 3


def test_the_yaml_of_a_residual_network_is_as_the_vendors_example():
    text = network_yaml(residual(), fit(residual(), device=85))
    layers = yaml.safe_load(text)["layers"]
    assert [layer["operation"] for layer in layers] == ["Conv2d", "Conv2d", "passthrough", "Conv2d", "Conv2d", "MLP"]
    assert [layer["processors"] for layer in layers] == [0x7, 0x3FF, 0x3FFF, 0x3FFF, 0x3FFF, 0xFF]
    assert layers[2]["write_gap"] == layers[3]["write_gap"] == 1 and layers[3]["out_offset"] == layers[2]["out_offset"] + 4
    assert layers[3]["in_sequences"] == 1 and layers[4]["in_sequences"] == [2, 3]
    assert layers[4]["eltwise"] == "add" and layers[4]["pool_first"] is False and layers[5]["flatten"] is True
    assert "processors: 0x0000000000003fff" in text


class Small(torch.nn.Module):
    input_shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.conv1 = ai8x.FusedConv2dBNReLU(3, 10, 3, padding=1)
        self.conv2 = ai8x.FusedMaxPoolConv2dBNReLU(10, 12, 3, padding=1)
        self.skip = ai8x.Conv2d(12, 12, 3, padding=1)
        self.add = ai8x.Add()
        self.head = ai8x.Conv2d(12, 4, 1, wide=True)

    def forward(self, x):
        x = self.conv2(self.conv1(x))
        return self.head(self.add(x, self.skip(x)))


def trained(bits=8):
    torch.manual_seed(0)
    net = Small().eval()
    ai8x.fuse_bn_layers(net)
    pictures = (torch.randint(-128, 128, (64, 3, 8, 8)) / 128).split(16)
    policy = {"start_epoch": 0, "weight_bits": bits, "overrides": {"skip": {"weight_bits": 4}}}
    ai8x.pre_qat(net, [(batch, 0) for batch in pictures], policy)
    ai8x.initiate_qat(net, policy)
    return net


def test_the_whole_folder(tmp_path):
    net = trained()
    sample = np.random.default_rng(1).integers(-128, 128, (3, 8, 8)).astype(np.int8)
    folder = export_max78000(net, sample, tmp_path / "synthesis")
    assert sorted(p.name for p in folder.iterdir()) == [
        ".qatlib", "README.md", "expected_small.npy", "sample_small.npy", "small.pth.tar", "small.yaml"]  # fmt: skip
    stored = torch.load(folder / "small.pth.tar", weights_only=True)
    network = yaml.safe_load((folder / "small.yaml").read_text())
    assert set(stored) == {"epoch", "arch", "state_dict", "extras"} and stored["arch"] == network["arch"] == "small"
    weights = {key: value for key, value in stored["state_dict"].items() if key.endswith("op.weight")}
    assert list(weights) == ["conv1.op.weight", "conv2.op.weight", "skip.op.weight", "head.op.weight"]
    assert all(w.dtype == torch.float32 and torch.equal(w, w.round()) for w in weights.values())
    assert weights["skip.op.weight"].abs().max() <= 8 < weights["head.op.weight"].abs().max()
    picture = np.load(folder / "sample_small.npy")
    assert picture.dtype == np.int64 and np.array_equal(picture, sample)
    expected = np.load(folder / "expected_small.npy")
    assert np.array_equal(Chip(quantize_model(net).compact, network).run(picture.astype(np.int8)), expected)
    real = net(torch.from_numpy(sample / np.float32(128))[None])[0].detach().numpy()
    exponent = quantize_model(net).compact.graph["outputs"][0]["exponent"]
    assert np.array_equal(expected * 2.0**exponent, real)
    readme = (folder / "README.md").read_text()
    assert "python ai8xize.py" in readme and "--checkpoint-file small.pth.tar" in readme and "It fits." in readme


def test_simulate_gives_the_known_answer(tmp_path):
    """The checkpoint, loaded as the vendor's own evaluation does it, computes the expected integers."""
    folder = export_max78000(trained(), None, tmp_path / "synthesis")
    stored = torch.load(folder / "small.pth.tar", weights_only=True)["state_dict"]
    ai8x.set_device(85, simulate=True, verbose=False)
    try:
        net = Small().eval()
        ai8x.fuse_bn_layers(net)
        for module in net.modules():
            if isinstance(module, ai8x.QuantizationAwareModule):
                module.init_module(8, 8, True)
        net.load_state_dict(stored, strict=False)
        ai8x.update_model(net)
        found = net(torch.from_numpy(np.load(folder / "sample_small.npy")).float()[None])[0].detach()
        assert np.array_equal(found.numpy() * 2.0 ** -net.head.final_scale.item(), np.load(folder / "expected_small.npy"))
    finally:
        ai8x.set_device(85, simulate=False, verbose=False)


def test_refusals_name_everything_at_once(tmp_path):
    b = Builder((3, 16, 16))
    b.op("a", "conv2d", out=32, layer="shared", kernel=1, padding=0)
    b.op("b", "conv2d", "a", out=600, pool=avg_pool(rounded=True))
    b.op("unused", "conv2d", "b", out=4)
    model = b.op("c", "conv2d", "b", out=5, wide=True).build("c", "b")
    with pytest.raises(ValueError) as problem:
        export_max78000(model, None, tmp_path / "net")
    text = str(problem.value)
    for part in ("a bias for 600 outputs", "round_avg=False", "unused: nothing reads it", "outputs are c, b", "MAX78000"):
        assert part in text
    assert not list(tmp_path.iterdir())
    big = Builder((3, 16, 16)).op("a", "conv2d", out=512).op("b", "conv2d", out=512).build()
    with pytest.raises(ValueError, match="kernel memory exhausted at processor 0.*4-bit"):
        export_max78000(big, None, tmp_path / "net")
