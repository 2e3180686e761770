"""Rearranging: what only renames places is part of the network, what moves values is the host's behind it, or refused before."""

import re
import shutil

import numpy as np
import pytest
import torch
from export_networks import Builder, codes
from rearranged_nets import CASES, SHAPE, Net, conv, linear, signal, trained

from qatlib import ai8x
from qatlib.chip.describe import describe
from qatlib.chip.lowering import lower
from qatlib.export import engines, export_c, export_onnx
from qatlib.export.c_plan import loops
from qatlib.export.c_project import TARGETS, check_memory, needs
from qatlib.export.c_source import Writer
from qatlib.export.max78000 import export_max78000
from qatlib.integer import load_compact, quantize_model
from qatlib.integer.compact import CompactModel
from qatlib.integer.source import answer_rows, check_accumulators, exponents, sample_codes


def agree(compact, tmp_path, pictures):
    """The integers of NumPy, having checked that ONNX Runtime and the C project give the same."""
    wanted = answer_rows(compact, pictures)
    export_onnx(compact, tmp_path / "net.onnx")
    assert np.array_equal(engines.run_onnx(tmp_path / "net.onnx", compact, pictures, None).rows, wanted)
    export_c(compact, tmp_path / "c")
    if shutil.which("gcc"):
        assert np.array_equal(engines.run_project(tmp_path / "c", compact, pictures, None).rows, wanted)
    return wanted


@pytest.mark.filterwarnings("ignore:.*(meets the network's input|is an output of the network and feeds)")
@pytest.mark.parametrize("name", CASES)
def test_every_engine_gives_the_network_s_own_outputs(name, tmp_path):
    net = trained(name)
    quantized = quantize_model(net)
    kinds = [op["kind"] + "/host" * op.get("host", False) for op in quantized.compact.ops if "layer" not in op]
    assert [kind for kind in dict.fromkeys(kinds) if kind != "add"] == CASES[name][3]
    pictures = sample_codes(quantized.compact, None, 6)
    wanted = agree(quantized.compact, tmp_path, pictures)
    assert len(np.unique(wanted)) > 15
    assert np.array_equal(engines.torch_runner(net, quantized.compact)(pictures), wanted)
    x = torch.from_numpy(pictures).float() / 128
    pairs = zip(torch.utils._pytree.tree_leaves(net(x)), torch.utils._pytree.tree_leaves(quantized(x)), strict=True)
    assert all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
    assert answer_rows(load_compact(quantized.save(tmp_path / "model_8bit.pth")).compact, pictures).tolist() == wanted.tolist()


def test_what_the_planner_sees():
    """No rearrangement is a layer; a reader of renamed places says so, and outputs are the layers that the host reads."""
    found = describe(trained("keywords"))
    assert [(x.name, x.inputs, x.in_dim) for x in found] == [
        ("a", ("input",), None), ("b", ("a",), None), ("c", ("b",), (4, 4)), ("d", ("c",), None), ("fc", ("d",), None),
    ]  # fmt: skip
    assert (found[2].h_in, found[2].w_in, found[2].c_in, found[4].c_in, found[4].flatten) == (4, 4, 5, 3, 16)
    found = describe(trained("boxes"))
    assert [x.name for x in found] == ["a", "b", "place1", "place2", "score1", "score2"]
    assert found.outputs == ("place1", "place2", "score1", "score2") and not found.refusals
    assert describe(trained("autoencoder")).outputs == ("e",)
    assert [x.in_dim for x in describe(trained("an axis of one"))] == [None, (1, 7)]
    assert [x.in_dim for x in describe(trained("a vector as a map"))] == [None, None]
    assert [x.in_dim for x in describe(trained("a sum of renamed maps"))][2:] == [(8, 3)] * 2
    told = describe(trained("a sum of a map and a signal")).refusals
    assert len(told) == 1 and told[0].startswith("s: joins maps written as 24x1 and 4x6 and renamed to one size")
    net = Net((4, 24), lambda n, x: n.c(n.s(n.a(x), n.d(n.b(x.view(-1, 4, 4, 6)).flatten(2)))), d=signal(4, 4, 1),
              a=signal(4, 4, padding=1), b=conv(4, 4), c=signal(4, 3), s=ai8x.Add)  # fmt: skip
    assert not describe(net).refusals and ai8x.fit(net).fits


NO_FIT = {"the input twice", "flat maps joined", "the maps of the input", "a sum of a map and a signal"}


@pytest.mark.filterwarnings("ignore:.*(meets the network's input|is an output of the network and feeds)")
@pytest.mark.parametrize("name", sorted(CASES.keys() - NO_FIT))
def test_the_chip_gives_what_its_layers_compute(name, tmp_path):
    compact = quantize_model(trained(name)).compact
    export_max78000(compact, None, tmp_path / "chip")
    outcome = engines.run_chip(tmp_path / "chip", compact, sample_codes(compact, None, 3), None)
    assert len(outcome.rows) == 4 and np.array_equal(outcome.rows, outcome.wanted)
    assert [x.in_dim for x in describe(trained("the input is a signal"))] == [(24, 1)]
    joined = describe(trained("flat maps joined"))
    assert [(x.c_in, x.c_out, x.h_out, x.w_out, x.flatten) for x in joined[2:]] == [(5, 5, 4, 6, 1), (5, 5, 1, 1, 24)]


REMEDY = r" between channels or places; the chip cannot: keep the channels, as x.view\(x.size\(0\), .* where the host does it"
REFUSED = {
    "features as places": ((9,), lambda n, x: n.b(n.a(x).view(-1, 4, 2, 2)), {"a": linear(9, 16), "b": conv(4, 2)},
                           [r"view: reshaping \(16,\) to \(4, 2, 2\) moves values" + REMEDY]),
    "one channel": ((9,), lambda n, x: n.b(n.a(x).view(-1, 1, 16)), {"a": linear(9, 16), "b": signal(1, 2)},
                    [r"view: reshaping \(16,\) to \(1, 16\) moves values"]),
    "pixels as channels": (SHAPE, lambda n, x: n.b(n.a(x).view(-1, 72, 1, 1)), {"a": conv(3, 3), "b": conv(72, 2, 1)},
                           [r"view: reshaping \(3, 4, 6\) to \(72, 1, 1\) moves values"]),
    "flat, then pixels as channels": (SHAPE, lambda n, x: n.b(n.a(x).flatten(1).unsqueeze(2)),
                                      {"a": conv(3, 3), "b": signal(72, 2, 1)},
                                      [r"unsqueeze: reshaping \(3, 4, 6\) to \(72, 1\) moves values"]),
    "rows and columns": (SHAPE, lambda n, x: n.b(n.a(x).mT), {"a": conv(3, 3), "b": conv(3, 2)},
                         [r"mT: permuting \(3, 4, 6\) to \(3, 6, 4\) moves values" + REMEDY]),
    "permuted, then viewed": (SHAPE, lambda n, x: n.b(n.a(x).permute(0, 2, 3, 1).reshape(-1, 3, 4, 6)),
                              {"a": conv(3, 3), "b": conv(3, 2)}, [r"permute: permuting \(3, 4, 6\) to \(4, 6, 3\) moves values"]),
    "flattened by rows": (SHAPE, lambda n, x: n.b(n.a(x).permute(0, 2, 3, 1).flatten(1)), {"a": conv(3, 3), "b": linear(72, 2)},
                          [r"permute: permuting \(3, 4, 6\)"]),
    "joined rows": (SHAPE, lambda n, x: n.b(torch.cat([n.a(x), n.a(x)], 2)), {"a": conv(3, 3), "b": conv(3, 2)},
                    [r"cat: concatenation along axis 2; the chip joins channels only: use torch.cat\(..., dim=1\)"]),
    "flat maps of two sizes": (SHAPE, lambda n, x: n.b(torch.cat([n.a(x).flatten(1), n.p(x).flatten(1)], 1)),
                               {"a": conv(3, 3), "p": lambda: ai8x.MaxPool2d(2), "b": linear(90, 2)},
                               [r"cat: concatenation of flat maps of several sizes; .* of equal maps"]),
    "the batch": (SHAPE, lambda n, x: n.b(n.a(x)).transpose(0, 1), {"a": conv(3, 3), "b": conv(3, 2)},
                  [r"transpose moves the batch, .* keep that first"]),
    "a batch of rows": (SHAPE, lambda n, x: n.b(n.a(x)).view(-1, 6), {"a": conv(3, 3), "b": conv(3, 2)}, ["view moves the batch"]),
    "read by two": (SHAPE, lambda n, x: (n.b(n.a(x).mT), n.b(n.a(x).mT.relu()), n.a(x).mT), {"a": conv(3, 3), "b": conv(3, 2)},
                    ["the chip cannot compute relu", "mT: permuting"]),
    "in 32 bits": (SHAPE, lambda n, x: n.b(n.a(x).flatten(2)), {"a": conv(3, 3, wide=True), "b": signal(3, 2)},
                   [r"b: its operand 'flatten' is a wide \(32-bit\) output"]),
    "kernel 1 by 2": ((4, 24), lambda n, x: n.a(x), {"a": signal(4, 5, 1, 2)}, ["dilates 1D kernels of 2 or 3, .* not 1 by 2"]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the chip dilates")
@pytest.mark.parametrize("name", REFUSED)
def test_what_moves_values_between_layers_is_refused(name):
    shape, forward, layers, sentences = REFUSED[name]
    refusals = lower(Net(shape, forward, **layers)).refusals
    for sentence in sentences:
        assert any(re.search(sentence, told) for told in refusals), refusals
    assert list(ai8x.fit(Net(shape, forward, **layers)).violations)[: len(refusals)] == refusals


def test_a_long_dilated_kernel_is_refused_when_it_is_built():
    with pytest.raises(ValueError, match="dilation=3 with kernel_size=4"):
        ai8x.Conv1d(4, 4, 4, dilation=3)
    with pytest.raises(ValueError, match="dilation=5 with kernel_size=3, padding=1"):
        ai8x.Conv1d(4, 4, 3, dilation=5, padding=1)


def test_heads_of_several_scales_come_to_one(tmp_path):
    b = Builder(SHAPE)
    b.op("a", "conv2d", out=4, wide=True).op("b", "conv2d", "input", out=4)
    b.op("c", "concat", "a", "b", axis=2, host=True, shifts=[0, 5])
    b.op("d", "permute", "c", axes=[2, 0, 1], host=True).op("e", "reshape", "d", shape=[6, 32], host=True)
    model = b.build("d", "b", "e")
    pictures = codes(model, 5)
    wanted = agree(model, tmp_path, pictures)
    assert np.abs(wanted[:, :192]).max() > 255
    model.ops[2]["shifts"][0] = 20
    with pytest.raises(OverflowError, match="c: its sums may exceed 32 bits"):
        check_accumulators(CompactModel(model.graph, model.tensors))


def test_each_layer_of_a_rearranged_output_has_its_own_scale():
    compact = quantize_model(trained("boxes of both widths")).compact
    joined, known = [op for op in compact.ops if op["kind"] == "concat"], exponents(compact)
    assert all("shifts" in op for op in joined)
    for name, module in trained("boxes of both widths").named_children():
        if name not in "ab":
            assert known[name] == module.final_scale.item() - (14 if module.wide else 7)


def test_sums_that_are_no_output_themselves_need_room():
    b = Builder((1, 100, 100))
    b.op("a", "conv2d", out=1, wide=True)
    plain, host = (b.build("a"), b.op("t", "permute", axes=[0, 2, 1], host=True).build("t"))
    assert needs(Writer(host), TARGETS["cortex-m4"])[1] == needs(Writer(plain), TARGETS["cortex-m4"])[1] + 40_000
    check_memory(Writer(plain), TARGETS["cortex-m4"])
    with pytest.raises(ValueError, match="bytes of RAM"):
        b = Builder((1, 130, 130)).op("a", "conv2d", out=1, wide=True)
        check_memory(Writer(b.op("t", "permute", axes=[0, 2, 1], host=True).build("t")), TARGETS["cortex-m4"])


def test_an_edited_graph_is_refused():
    b = Builder(SHAPE)
    b.op("a", "conv2d", out=4).op("p", "permute", axes=[1, 0, 2], host=True).op("r", "reshape", "a", shape=[4, 24])
    b.op("c", "concat", "p", "p", axis=1, host=True, shifts=[0, 1])
    model = b.build("c", "r")
    for index, change, sentence in [
        (1, {"host": False}, "p: a permute that moves values between channels, and is not the host's"),
        (1, {"axes": [0, 0, 2]}, "p: permute cannot read"), (1, {"axes": [0, 1]}, "p: permute cannot read"),
        (1, {"axes": [0, 1, 7]}, "p: permute cannot read"),
        (2, {"shape": [8, 12]}, "r: a reshape that moves values"), (2, {"shape": [4, 25]}, "r: reshape cannot read"),
        (3, {"shifts": [0]}, "c: concat cannot read"), (3, {"shifts": [0, -1]}, "c: concat cannot read"),
        (3, {"axis": 5}, "c: "), (3, {"host": False}, "p: permuting .* moves values"),
    ]:  # fmt: skip
        ops = [op | (change if i == index else {}) for i, op in enumerate(model.ops)]
        with pytest.raises(ValueError, match=sentence):
            CompactModel(model.graph | {"ops": ops}, model.tensors)


def test_loops_go_through_every_order_of_a_tensor():
    rng = np.random.default_rng(0)
    for _ in range(50):
        order = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).transpose(rng.permutation(4)).ravel()
        places = [np.zeros(2, int)]
        for count, *steps in loops(np.stack([order, np.arange(120)]))[::-1]:
            places = [place + i * np.array(steps) for i in range(count) for place in places]
        assert np.array_equal(np.transpose(places), np.stack([order, np.arange(120)]))
    assert loops(np.array([[0, 1, 3, 4, 5]])) is None and loops(np.array([[7]])) == [(1, 0)]
