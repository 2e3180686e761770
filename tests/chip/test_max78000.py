"""The synthesis inputs, executed by the model of the chip: processors, data memories, interleaved and multi-pass tensors."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from export_networks import Builder, avg_pool, codes, max_pool, pose_like, residual
from plans import checkpoint

from qatlib import ai8x
from qatlib.chip import Simulator
from qatlib.chip.meter import fit
from qatlib.chip.synthesis import network_yaml
from qatlib.export import check
from qatlib.export.max78000 import export_max78000
from qatlib.integer import quantize_model
from qatlib.integer.engine import Integer


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
    b.op("b", "conv2d", "a", out=16, pool=None)
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


def signal():
    """1D: a residual sum in front of a pooled Conv1d, and a pool by itself."""
    b = Builder((4, 40), 9)
    pool = {"type": "max", "size": [2], "stride": [2], "dilation": [1], "round": False}
    b.op("a", "conv1d", out=8, activation="relu")
    b.op("b", "conv1d", "a", out=8)
    b.op("sum", "add", "a", "b")
    b.op("c", "conv1d", "sum", out=6, kernel=5, pool=pool)
    b.op("peak", "pool", "c", pool={**pool, "type": "avg"})
    return b.op("head", "conv1d", "peak", out=3, kernel=1, wide=True).build(arch="Signal")


def three_operands():
    """80 channels take two passes: no convolution may carry a sum of three along."""
    b = Builder((3, 4, 4), 10)
    b.op("a", "conv2d", out=80, activation="relu")
    b.op("b", "conv2d", "a", out=80, kernel=1)
    b.op("c", "conv2d", "b", out=80, kernel=1)
    b.op("sum", "add", "a", "b", "c")
    return b.op("head", "conv2d", "sum", out=5, kernel=1, wide=True).build(arch="Three")


def large_picture():
    """128x128 pixels: more than HWC holds; the first layer reads CHW."""
    b = Builder((3, 128, 128), 11)
    b.op("a", "conv2d", out=16, activation="relu", pool=max_pool())
    return b.op("head", "conv2d", "a", out=4, kernel=1, wide=True, pool=max_pool(4)).build(arch="Large")


def ran(network, state, picture):
    """The integers of the only output."""
    (output,) = Simulator(network, state, picture.shape).run(picture).values()
    return output.ravel()


MADE = [pose_like, residual, wide_channels, joined, chained_sums, difference, signal, three_operands, large_picture]


@pytest.mark.parametrize("make", [*MADE, lambda: residual(2)])
def test_the_chip_model_computes_the_same_from_the_yaml(make):
    model = make()
    network = yaml.safe_load(network_yaml(fit(model, device=85), "net"))
    assert network["layers"][0]["data_format"] == ("CHW" if make is large_picture else "HWC")
    for picture in codes(model, 4):
        expected = Integer(model)(picture)
        assert np.array_equal(ran(network, checkpoint(model), picture), expected.ravel())
    assert len(np.unique(expected)) > 3


def test_what_the_vendors_tool_refuses_is_a_layer_of_its_own():
    def layers(model):
        return yaml.safe_load(network_yaml(fit(model, device=85), "net"))["layers"]

    one = layers(signal())
    assert [x["operation"] for x in one] == ["Conv1d", "passthrough", "Conv1d", "Add", "Conv1d", "passthrough", "Conv1d"]
    assert not any("eltwise" in x for x in one) and (one[4]["max_pool"], one[5]["avg_pool"]) == (2, [2, 1])
    assert [x["operation"] for x in layers(three_operands())][-2:] == ["Add", "Conv2d"]
    two = Builder((3, 4, 4)).op("a", "conv2d", out=192, kernel=1).op("b", "conv2d", "a", out=192, kernel=1)
    two = two.op("sum", "add", "a", "b").op("head", "conv2d", "sum", out=5, kernel=1, wide=True).build()
    assert [x["operation"] for x in layers(two)][-2:] == ["Add", "Conv2d"]
    both = Builder((3, 4, 4)).op("a", "conv2d", out=80, kernel=1).op("b", "conv2d", "a", out=80, kernel=1)
    both = both.op("sum", "add", "a", "b").op("head", "conv2d", "sum", out=5, kernel=1, wide=True).build()
    assert layers(both)[-1]["eltwise"] == "add"


def test_a_picture_in_chw_lies_one_channel_a_memory():
    first = yaml.safe_load(network_yaml(fit(large_picture(), device=85), "net"))["layers"][0]
    assert (first["processors"], first["data_format"]) == (0x111, "CHW")


def test_a_vector_is_stored_as_channels_of_one_pixel(tmp_path):
    net = torch.nn.Sequential(ai8x.FusedLinearReLU(16, 8, bias=True), ai8x.Linear(8, 4, bias=True, wide=True))
    ai8x.initiate_qat(net, {"start_epoch": 0, "weight_bits": 8})
    check.export_all(net, tmp_path / "all", input_shape=(16,))
    assert check.check_folder(tmp_path / "all", 4, model=net)[-1].differing == 0
    folder = tmp_path / "all" / "max78000"
    picture = np.load(folder / "sample_sequential.npy")
    assert picture.shape == (16, 1, 1) and "int64 16 x 1 x 1" in (folder / "README.md").read_text()
    state = torch.load(folder / "sequential.pth.tar", weights_only=True)["state_dict"]
    found = ran((folder / "sequential.yaml").read_text(), state, picture)
    assert np.array_equal(found, np.load(folder / "expected_sequential.npy"))


def test_linear_on_rows_is_refused(tmp_path):
    model = Builder((5, 16)).op("a", "linear", out=8, activation="relu").op("b", "linear", out=4, wide=True).build(arch="Rows")
    with pytest.raises(ValueError, match="a: a linear layer on 5 rows, the chip reads one: flatten first, or use a 1x1"):
        export_max78000(model, None, tmp_path / "net")


def test_the_commands_work_from_the_folder(tmp_path):
    """The README's own shell lines, with a stand-in for the vendor's tool that opens the files it is given."""
    folder = export_max78000(trained(), None, tmp_path / "synthesis")
    text = (folder / "README.md").read_text()
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    (tmp_path / "ai8x-synthesis").mkdir()
    (tmp_path / "ai8x-synthesis" / "ai8xize.py").write_text(
        "import sys\nfor flag in ('--checkpoint-file', '--config-file', '--sample-input'):\n"
        "    print(len(open(sys.argv[sys.argv.index(flag) + 1], 'rb').read()))\n"
    )
    script = "\n".join(["set -e", f'python() {{ {sys.executable} "$@"; }}', *lines]).replace("/path/to", str(tmp_path))
    ran = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True)
    sizes = [(folder / name).stat().st_size for name in ("small.pth.tar", "small.yaml", "sample_small.npy")]
    assert ran.stdout.split() == [str(size) for size in sizes], ran.stderr


def test_the_yaml_of_a_residual_network_is_as_the_vendors_example():
    text = network_yaml(fit(residual(), device=85), "net")
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
    assert np.array_equal(ran(network, stored["state_dict"], picture), expected.ravel())
    real = net(torch.from_numpy(sample / np.float32(128))[None])[0].detach().numpy()
    exponent = quantize_model(net).compact.graph["outputs"][0]["exponent"]
    assert np.array_equal(expected * 2.0**exponent, real)
    readme = (folder / "README.md").read_text()
    assert "python ai8xize.py" in readme and '--checkpoint-file "$HERE/small.pth.tar"' in readme and "It fits." in readme


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
    for part in ("a bias for 600 outputs", "round_avg=False", "unused: nothing reads it", "MAX78000"):
        assert part in text
    assert not list(tmp_path.iterdir())
    big = Builder((3, 16, 16)).op("a", "conv2d", out=512).op("b", "conv2d", out=512).build()
    with pytest.raises(ValueError, match="kernel memory exhausted at processor 0.*4-bit"):
        export_max78000(big, None, tmp_path / "net")
