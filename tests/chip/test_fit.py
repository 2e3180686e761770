"""The fit meter reproduces what the vendor's synthesis tool was measured to do."""

from dataclasses import replace

import numpy as np
import pytest

from qatlib.chip.describe import Layers
from qatlib.chip.memory import data_memory
from qatlib.chip.meter import fit
from qatlib.chip.placement import place
from qatlib.chip.schedule import steps
from qatlib.chip.spec import LayerSpec, kernel_words, processors


def chain(*layers, channels=48, size=16, bits=8):
    """A network from short forms: "64" a 3x3 convolution, "p64" with a pool in front, "t64" transposed, "h14" a wide 1x1 head."""
    result, source = [], "input"
    for i, form in enumerate(layers):
        kind, out = (form[0], int(form[1:])) if form[0] in "pth" else ("c", int(form))
        pooled, kernel = size // 2 if kind == "p" else size, 1 if kind == "h" else 3
        grown = 2 * pooled if kind == "t" else pooled
        pool = {"pool": (2, 2), "pool_stride": (2, 2), "pool_kind": "max"} if kind == "p" else {}
        form = {"stride": 2 if kind == "t" else 1, "bits": bits, "bias": True, "wide": kind == "h", "layer": f"layer{i}", **pool}
        operation = "conv_transpose2d" if kind == "t" else "conv2d"
        sizes = (channels, out, size, size, grown, grown, (kernel, kernel), kernel // 2)
        result.append(LayerSpec(f"layer{i}", operation, *sizes, inputs=(source,), **form))
        source, channels, size = f"layer{i}", out, grown
    return result


ACCEPTED = chain("64", "p64", "128", "p128", "t64", "t64", "h14")
REFUSED = chain("32", "p64", "96", "p128", "128", "t64", "t32", "h14")


@pytest.mark.parametrize(
    ("c_in", "c_out", "words", "used"), [(3, 64, 64, 3), (64, 128, 128, 64), (128, 128, 256, 64), (3, 65, 72, 3), (65, 64, 128, 36)]
)
def test_words_as_measured(c_in, c_out, words, used):
    layer = LayerSpec("a", "conv2d", c_in, c_out, kernel=(3, 3))
    assert (kernel_words(layer), processors(c_in)) == (words, used)


def test_linear_after_flatten_as_measured():
    layer = LayerSpec("fc", "linear", 12, 4, flatten=4)
    assert (kernel_words(layer), processors(12), layer.weights) == (2, 12, 192)


def test_four_layers_704_of_768():
    net = chain("64", "128", "128", "128", channels=3)
    plan = place(net)
    assert not plan.problem and plan.used[:3] == [704] * 3 and plan.offset["layer1"] == plan.words["layer0"] == 64
    assert sum(layer.weight_bytes for layer in net) == 370_368


def test_the_accepted_pose_network():
    result = fit(ACCEPTED, device=85)
    assert result.fits and "It fits." in str(result)
    assert (result.weight_bytes, result.bias_bytes, result.layers) == (397_184, 526, 7)
    assert result.macs == 30_900_224 and "89.8 %" in str(result)


def test_the_refused_pose_network():
    result = fit(REFUSED, device=85)
    assert result.weight_bytes == 438_208 and not result.fits
    (sentence,) = result.violations
    assert "processor 0: offset 516, needed 256, of 768 words (layer3): give" in sentence
    assert fit(chain("32", "p64", "96", "p128", "128", "t64", "t32", "h14", bits=4), device=85).fits
    assert fit(REFUSED, device=87).fits


def test_cycles_of_the_recorded_network():
    def layer(name, c_in, c_out, size, out, kernel, pool):
        window = (pool, pool)
        return LayerSpec(
            name, "conv2d", c_in, c_out, size, size, out, out, (kernel, kernel), kernel // 2, pool=window, pool_stride=window
        )

    net = [
        layer("1", 3, 12, 16, 16, 3, 1),
        layer("2", 12, 16, 16, 8, 3, 2),
        layer("3", 16, 16, 8, 4, 3, 2),
        layer("4", 16, 12, 4, 2, 1, 2),
    ]
    net.append(LayerSpec("5", "linear", 12, 4, 2, 2, flatten=4))
    chained = [replace(n, inputs=(str(i) if i else "input",)) for i, n in enumerate(net)]
    assert sum(n.macs for n in net) == 231_360 and fit(chained, device=85).cycles == 5_729


@pytest.mark.parametrize("seed", range(20))
def test_words_never_overlap(seed):
    """Rebuild the processor x word map from the plan: each word belongs to one layer, and `used` is its height."""
    rng = np.random.default_rng(seed)
    net = chain(*(str(n) for n in rng.integers(1, 150, 8)), channels=int(rng.integers(1, 70)), bits=int(rng.choice([1, 2, 4, 8])))
    plan = place(net, balance=bool(seed % 2))
    grid = np.zeros((64, 768), int)
    for name, offset in plan.offset.items():
        grid[plan.start[name] : plan.start[name] + plan.count[name], offset : offset + plan.words[name]] += 1
        assert offset % 4 == 0
    assert grid.max() == 1
    assert [row.nonzero()[0].max(initial=-1) + 1 for row in grid] == plan.used
    assert bool(plan.problem) == (len(plan.offset) < len(net))


def test_masks_move_where_processor_0_would_overflow():
    """Many thin layers fit only if they spread over the processors."""
    net = chain(*["16"] * 60, channels=16)
    assert "processor 0" in place(net, balance=False).problem
    plan = place(net)
    assert not plan.problem and len(set(plan.start.values())) > 2


def test_violations_name_layer_rule_and_remedy():
    def broken(**form):
        base = {
            "kind": "conv2d",
            "c_in": 3,
            "c_out": 8,
            "h_in": 16,
            "w_in": 16,
            "h_out": 16,
            "w_out": 16,
            "kernel": (3, 3),
            "padding": 1,
            "inputs": ("input",),
        }
        return fit([LayerSpec("bad", **(base | form))], device=85).violations

    assert broken() == []
    long = {"kind": "conv1d", "padding": 0}
    for form, rule, remedy in [
        ({"stride": 2}, "stride 1 only, not 2", "pool in front, or fold the input"),
        (long | {"kernel": (5, 1), "dilation": 3}, "longer ones up to a span of 9, not 5 by 3", "dilation=1"),
        (long | {"kernel": (1, 1), "dilation": 2}, "a span of 9, not 1 by 2", "dilation=1"),
        (long | {"kernel": (3, 1), "dilation": 1024}, "dilation 1024, the chip has 1 to 1023", "pool first"),
        ({"kind": "conv_transpose2d", "kernel": (1, 1), "stride": 2, "padding": 0}, "3x3 kernels only, not 1x1", "kernel_size=3"),
        ({"kernel": (5, 5)}, "kernel (5, 5)", "two 3x3 layers"),
        ({"c_in": 1025}, "1025 channels", "use fewer"),
        ({"h_in": 200, "w_in": 200, "padding": 0}, "data memory holds 8192", "pool earlier; streaming ends with a layer that pads"),
        ({"h_in": 1024, "w_in": 1, "h_out": 1024, "w_out": 1}, "1024 rows or columns", "crop"),
        ({"c_out": 513, "bias": True}, "a bias for 513 outputs", "bias=False"),
        ({"groups": 3}, "not groups=3 of 3 to 8 channels", "use groups=1"),
        ({"pool": (17, 17), "pool_stride": (17, 17)}, "at most 16", "two steps"),
        ({"kind": "softmax"}, "no operation of the chip", "outside the network"),
        ({"kind": "xor", "inputs": ("input", "input")}, "no exact integer form", "use Add or Sub"),
        ({"kind": "add", "inputs": ("input",) * 17}, "17 operands, at most 16", "two steps"),
        ({"kernel": (1, 1), "padding": 1}, "padding 1 around a kernel of 1", "at most 0"),
        ({"pool": (2, 2), "pool_kind": "avg", "pool_rounds": True}, "average pooling with rounding", "round_avg=False"),
        ({"pool": (2, 2), "pool_kind": "max", "pool_dilation": 2}, "pooling with dilation 2", "dilation 1"),
        ({"kind": "linear", "rows": 5}, "a linear layer on 5 rows", "flatten first"),
    ]:
        sentence = broken(**form)[0]
        assert sentence.startswith("bad: ") and rule in sentence and remedy in sentence
    assert "586 bytes" not in str(broken())
    many = [LayerSpec(f"l{i}", "conv2d", 8, 8, 8, 8, 8, 8, (1, 1), inputs=(f"l{i - 1}" if i else "input",)) for i in range(33)]
    assert fit(many, device=85).violations == ["33 layers, the MAX78000 has 32: merge or drop layers"]
    assert fit(many, device=87).fits


def layers(*specs):
    """8x8 layers from (name, inputs, changes): convolutions of 16 channels without a pool."""
    base = {"kind": "conv2d", "c_in": 16, "c_out": 16, "h_in": 8, "w_in": 8, "h_out": 8, "w_out": 8}
    return [LayerSpec(name, inputs=tuple(inputs.split()), **base | changes) for name, inputs, changes in specs]


def test_every_layer_of_the_chip_counts():
    deep, source = [], "input"
    for i in range(10):
        total = (f"sum{i}", f"{source} b{i}", {"kind": "add"})
        deep += layers((f"a{i}", source, {}), (f"b{i}", f"a{i}", {}), total, (f"d{i}", f"sum{i}", {}))
        source = f"d{i}"
    assert [fit(deep, device=device).layers for device in (85, 87)] == [40, 40]
    assert fit(deep, device=85).violations == [
        "40 layers (10 of them copy, pool or add), the MAX78000 has 32: use fewer skip connections, or merge or drop layers"
    ]
    assert fit(deep, device=87).fits


def test_biases_of_a_layer_lie_within_one_memory():
    def net(*widths, c_in=64, device=85):
        sizes = zip((c_in, *widths), widths)
        specs = [(f"l{i}", f"l{i - 1}" if i else "input", {"c_in": a, "c_out": b, "bias": True, "bits": 1})
                 for i, (a, b) in enumerate(sizes)]  # fmt: skip
        return [sentence for sentence in fit(layers(*specs), device=device).violations if "bias" in sentence]

    assert net(300, 300, 300, 300) == net(512, 512, 512, 512) == net(300, 300, 300, 300, 300, device=87) == []
    assert net(300, 300, 300, 300, 300) == [
        "l4: 300 biases, the emptiest of the bias memories in use (4) has 212 bytes left: use bias=False in wide layers, "
        "or more processors"
    ]
    assert net(212, 300, 300, 300, 300) == []  # the largest first
    assert net(*[16] * 32, c_in=16) == [] and "memories in use (1) has 0 bytes" in net(*[16] * 33, c_in=16)[0]


def test_biases_of_depthwise_layers_lie_in_their_own_quadrants():
    form = {"c_in": 2048, "c_out": 2048, "h_in": 1, "w_in": 1, "h_out": 1, "w_out": 1, "groups": 2048, "bias": True, "bits": 1}
    names = [(f"l{i}", f"l{i - 1}" if i else "input", form) for i in range(5)]
    assert fit(layers(*names[:4]), device=87).fits
    assert fit(layers(*names), device=87).violations == [
        "quadrant 0: 2560 bytes of depthwise bias, at most 2048: use bias=False in some of these layers"
    ]


def test_rules_of_the_larger_chip():
    def broken(device, **form):
        base = {"kind": "conv2d", "c_in": 12, "c_out": 12, "h_in": 16, "w_in": 16, "h_out": 16, "w_out": 16}
        return fit([LayerSpec("bad", inputs=("input",), **base | form)], device=device).violations

    pool = {"kind": "pool", "c_in": 128, "c_out": 128, "h_out": 8, "w_out": 8, "pool": (2, 2), "pool_stride": (2, 2)}
    assert broken(87, **pool) == [] and "pooling 128 channels without a convolution, at most 64" in broken(85, **pool)[0]
    assert broken(87, groups=12) == []
    for form in ({"groups": 2}, {"groups": 12, "c_out": 24}):
        assert "ordinary and depthwise convolutions only" in broken(87, **form)[0]
    padded = {"kind": "conv1d", "c_in": 100, "w_in": 1, "w_out": 1, "kernel": (3, 1), "padding": 1}
    assert broken(85, **padded) == [] and broken(87, **padded) == [
        "bad: padding 1 with 100 channels, of Conv1d at most 64: use padding=0"
    ]


def test_a_large_picture_is_read_in_chw_by_the_first_layer_alone():
    pool = {"pool": (2, 2), "pool_stride": (2, 2), "pool_kind": "max"}
    first = ("a", "input", {"c_in": 3, "h_in": 128, "w_in": 128, "h_out": 64, "w_out": 64, **pool})
    second = {"h_in": 64, "w_in": 64, "h_out": 32, "w_out": 32, **pool}
    result = fit(layers(first, ("b", "a", second)), device=85)
    assert result.fits and list(result.placement.columns_of("a")) == [0, 4, 8] and result.memory.size["input"] == 128 * 128
    import matplotlib.pyplot as plt

    axes = result.plot()
    assert len(axes.patches) == 4
    plt.close(axes.figure)
    for changes in ({"c_in": 17}, {"h_in": 256, "w_in": 256}, {"kind": "pool"}):
        again = fit(layers((*first[:2], first[2] | changes)), device=85).violations
        assert "; streaming is planned for " in again[0]


def test_what_concerns_the_whole_network_is_judged_too():
    def sentences(*specs, device=85):
        return fit(layers(*specs), device=device).violations

    assert sentences(("a", "input", {"c_out": 6}), ("b", "input", {"c_out": 5}), ("cat", "a b", {"kind": "concat", "c_in": 11}),
                     ("c", "cat", {"c_in": 11})) == [
        "cat: joins parts of 5 and 6 channels, the vendor's tool only equal ones: give each part as many",
        "cat: joins parts of 5 and 6 channels, which are no multiple of 4: use 4, 8, 12, ..."]  # fmt: skip
    assert sentences(("a", "input", {}), ("b", "a", {}), ("c", "a", {})) == []  # two outputs
    assert sentences(("a", "input", {"layer": "x"}), ("b", "a", {"layer": "x"})) == [
        "x: its weights are used twice: give each call a layer of its own"
    ]
    unused = Layers(layers(("a", "input", {}), ("b", "input", {}), ("c", "a", {})), ("c",))
    assert fit(unused, device=85).violations == ["b: nothing reads it: drop it"]


def test_a_tensor_joined_at_two_places_is_refused_by_name():
    total = {"kind": "add", "c_in": 16, "c_out": 16}
    pair = {"kind": "concat", "c_in": 8, "c_out": 8}
    net = layers(("a", "input", {"c_out": 4}), ("b", "a", {"c_in": 4, "c_out": 4}), ("cat", "a b", pair), ("other", "b a", pair),
                 ("c", "cat", {"c_in": 8}), ("d", "other", {"c_in": 8}), ("sum", "c d", total), ("e", "sum", {}))  # fmt: skip
    (sentence,) = fit(net, device=85).violations
    assert "is joined at two different places: give each concatenation and sum a layer of its own" in sentence


def residual():
    """conv1 feeds conv2 and, with it, a sum; the sum feeds one convolution."""

    def layer(name, *inputs, kind="conv2d", c_in=16, c_out=16):
        return LayerSpec(name, kind, c_in, c_out, 12, 12, 12, 12, (3, 3), 1, inputs=inputs)

    return [
        layer("conv1", "input", c_in=3),
        layer("conv2", "conv1"),
        layer("sum", "conv1", "conv2", kind="add"),
        layer("conv3", "sum"),
    ]


def test_a_sum_rides_in_front_of_the_next_layer():
    sequence = steps(residual())
    assert [(s.layer.name, s.kind, s.eltwise) for s in sequence] == [
        ("conv1", "conv2d", None), ("conv1", "copy", None), ("conv2", "conv2d", None), ("conv3", "conv2d", "add")]  # fmt: skip
    assert [(s.block, s.lane, s.lanes) for s in sequence] == [("conv1", 0, 1), ("sum<", 0, 2), ("sum<", 1, 2), ("conv3", 0, 1)]
    memory = data_memory(sequence)
    assert memory.size["sum<"] == 2 * memory.size["conv1"] and not memory.problem


def chained_sums():
    """y1 = y0 + f(y0), y2 = y1 + g(y1): the first sum is read twice, so that no convolution can carry it along."""

    def layer(name, *inputs, kind="conv2d", c_in=16):
        return LayerSpec(name, kind, c_in, 16, 8, 8, 8, 8, (3, 3), 1, inputs=inputs)

    return [
        layer("y0", "input", c_in=3),
        layer("f", "y0"),
        layer("y1", "y0", "f", kind="add"),
        layer("g", "y1"),
        layer("y2", "y1", "g", kind="sub"),
    ]


def test_a_sum_of_its_own_does_not_overwrite_its_operands():
    memory = data_memory(sequence := steps(chained_sums()))
    for step in (step for step in sequence if step.kind in ("add", "sub")):
        low, operands = memory.offset[step.block], memory.offset[step.source]
        assert low + memory.size[step.block] <= operands or operands + memory.size[step.source] <= low


def test_data_memory_never_overlaps_what_is_needed():
    for net in (ACCEPTED, residual(), chained_sums(), chain("64", "64", "64", size=44)):
        sequence = steps(net)
        memory = data_memory(sequence)
        assert not memory.problem
        for i, step in enumerate(sequence):
            needed = {s.source for s in sequence[i:] if any(s.source == e.block for e in sequence[:i]) or s.source == "input"}
            low = memory.offset[step.block]
            assert step.source != step.block and (step.lanes > 1 or step.block not in needed)
            for other in needed - {step.block}:
                assert low + memory.size[step.block] <= memory.offset[other] or memory.offset[other] + memory.size[other] <= low
    assert "data memory exhausted" in data_memory(steps(chain("64", "64", size=80))).problem


def test_from_torch_networks_before_and_after_quantization():
    torch = pytest.importorskip("torch")
    from qatlib import ai8x

    class Net(torch.nn.Module):
        input_shape = (3, 12, 12)

        def __init__(self):
            super().__init__()
            self.conv1 = ai8x.FusedConv2dBNReLU(3, 10, 3, padding=1)
            self.conv2 = ai8x.FusedMaxPoolConv2dBNReLU(10, 14, 3, padding=1)
            self.conv3 = ai8x.Conv2d(14, 14, 3, padding=1, bias=False)
            self.sum = ai8x.Add()
            self.fc = ai8x.Linear(14 * 36, 5, wide=True)

        def forward(self, x):
            x = self.conv2(self.conv1(x))
            return self.fc(self.sum(x, self.conv3(x)).flatten(1))

    net = Net()
    result = fit(net, device=85)
    assert result.fits, str(result)
    assert [row.name for row in result.rows] == ["conv1", "conv2", "conv2>sum.0", "conv3", "sum", "fc"]
    assert [row.weights for row in result.rows] == [270, 1260, 0, 1764, 0, 2520]
    assert result.rows[5].words == 36 * 5 / 9 and result.rows[1].data_in == 1440 and result.bias_bytes == 24
    before = result.weight_bytes
    ai8x.fuse_bn_layers(net)
    for layer in (net.conv1, net.conv2, net.conv3, net.fc):
        layer.init_module(4, 4, True)
    assert fit(net, device=85).weight_bytes == before / 2
    assert {row.bits for row in fit(net, device=85).rows} == {0, 4}


def test_a_trained_network_is_judged_as_its_export_is():
    torch = pytest.importorskip("torch")
    from qatlib import ai8x

    class Net(torch.nn.Module):
        input_shape = (3, 8, 8)

        def __init__(self):
            super().__init__()
            self.conv, self.twice, self.xor = ai8x.Conv2d(3, 8, 1), ai8x.Conv2d(8, 8, 1), ai8x.BitwiseXor()
            self.head = ai8x.FusedAvgPoolConv2d(8, 4, 1)
            self.rows = ai8x.Linear(4, 4)

        def forward(self, x):
            x = self.twice(self.twice(self.conv(x)))
            return self.rows(self.head(self.xor(x, x))), x

    ai8x.set_device(85, round_avg=True, verbose=False)
    try:
        text = str(fit(Net()))
    finally:
        ai8x.set_device(85, verbose=False)
    for words in ("xor: BitwiseXor has no exact integer form", "head: average pooling with rounding",
                  "twice: its weights are used twice",
                  "rows: a linear layer on 16 rows"):  # fmt: skip
        assert words in text


def test_bad_arguments():
    with pytest.raises(ValueError, match="device 84"):
        fit(ACCEPTED, device=84)
    with pytest.raises(ValueError, match="no layer"):
        fit([])


def test_fit_is_the_function_however_often_it_is_asked_for():
    from qatlib import ai8x

    assert ai8x.fit is fit and ai8x.fit is fit
    assert ai8x.fit(ACCEPTED, device=85).fits
