"""The compact file: packing, checksum, the reader that runs nothing, and the graph's checks."""

import copy
import pickle
import zipfile

import numpy as np
import pytest
import torch
from compact_nets import convolution, graph, linear, pooling, random_tensors, recorded_network
from hypothesis import given, settings
from hypothesis import strategies as st

from qatlib.integer.compact import CompactModel, checksum, pack, unpack

BITS = st.sampled_from([1, 2, 4, 8])


@settings(max_examples=200, deadline=None)
@given(data=st.data(), bits=BITS, shape=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_packing_round_trip(data, bits, shape):
    size, half = int(np.prod(shape)), 1 << bits - 1
    codes = np.array(data.draw(st.lists(st.integers(-half, half - 1), min_size=size, max_size=size)), np.int8).reshape(shape)
    raw = pack(codes, bits)
    assert raw.nbytes == -(-size * bits // 8)
    assert np.array_equal(unpack(raw, bits, shape), codes)


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(min_size=1, max_size=40), bits=st.sampled_from([1, 2, 4]))
def test_unpacking_round_trip(raw, bits):
    stored = np.frombuffer(raw, np.uint8)
    assert np.array_equal(pack(unpack(stored, bits, (len(raw) * 8 // bits,)), bits), stored)


def test_first_code_is_in_the_lowest_bits():
    assert pack(np.array([1, 0, -1, -2, 1]), 2).tolist() == [0b10_11_00_01, 0b01]
    assert pack(np.array([-1, 0, 0, -1, 0, 0, 0, 0, -1]), 1).tolist() == [0b1001, 1]


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit 1 bits"):
        pack(np.array([0, 1]), 1)
    with pytest.raises(ValueError, match="1, 2, 4 or 8"):
        pack(np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="not as uint8"):
        unpack(np.zeros(3, np.uint8), 4, (7,))


def example() -> CompactModel:
    ops = [
        convolution("body", "input", 3, 5, padding=1, activation="relu", weight_bits=4, output_shift=-3, pool=pooling("avg")),
        {"name": "flat", "kind": "flatten", "inputs": ["body"]},
        linear("head", "flat", 80, 3, wide=True, weight_bits=1),
    ]
    return CompactModel(graph((3, 8, 8), ops), random_tensors(ops, np.random.default_rng(0)))


def saved(model: CompactModel, path):
    torch.save({key: torch.from_numpy(value.copy()) for key, value in model.to_state_dict().items()}, path)
    return path


def test_file_round_trip_with_and_without_torch(tmp_path):
    model = example()
    path = saved(model, tmp_path / "model_8bit.pth")
    with_torch = {key: value.numpy() for key, value in torch.load(path, weights_only=True).items()}
    for other in (CompactModel.load(path), CompactModel.from_state_dict(with_torch)):
        assert other.graph == model.graph
        assert other.tensors.keys() == model.tensors.keys()
        assert all(np.array_equal(other.tensors[key], value) for key, value in model.tensors.items())
    assert CompactModel.load(path).weight("head").shape == (3, 80)
    assert CompactModel.load(path).bias("body").dtype == np.int8


def test_fewer_bits_make_a_smaller_file(tmp_path):
    sizes = {}
    for bits in (8, 4, 2, 1):
        ops = [convolution("c", "input", 64, 64, padding=1, weight_bits=bits)]
        model = CompactModel(graph((64, 8, 8), ops), random_tensors(ops, np.random.default_rng(bits)))
        sizes[bits] = saved(model, tmp_path / f"{bits}.pth").stat().st_size
    rest = sizes[8] - 64 * 64 * 9
    assert 0 < rest < 4096  # graph, checksum, bias and the zip's own entries
    for bits in (4, 2, 1):
        assert abs(sizes[bits] - rest - 64 * 64 * 9 * bits // 8) <= 64  # torch aligns entries to 64 bytes


# --- damaged, edited and hostile files ----------------------------------------------------------------------------------


def test_every_truncation_is_refused(tmp_path):
    whole = saved(example(), tmp_path / "whole.pth").read_bytes()
    cut = tmp_path / "cut.pth"
    for size in [0, 1, 3, 40, 500, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut.pth is (truncated|no checkpoint that can be read safely)"):
            CompactModel.load(cut)


def test_a_changed_byte_in_any_tensor_is_refused(tmp_path):
    path = saved(example(), tmp_path / "whole.pth")
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.header_offset, entry.file_size) for entry in archive.infolist() if "/data/" in entry.filename]
    assert len(entries) == 6
    for offset, size in entries:
        start = offset + 30 + int.from_bytes(whole[offset + 26 : offset + 28], "little")
        start += int.from_bytes(whole[offset + 28 : offset + 30], "little")
        damaged = whole.copy()
        damaged[start + size // 2] ^= 4
        (tmp_path / "edited.pth").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"edited\.pth (is damaged in|.*checksum)"):
            CompactModel.load(tmp_path / "edited.pth")


def test_an_edited_number_is_refused_by_the_checksum(tmp_path):
    path = saved(example(), tmp_path / "m.pth")
    for key in ("body.weight", "head.bias", "graph"):
        state = torch.load(path, weights_only=True)
        state[key][3 % len(state[key])] += 1
        torch.save(state, tmp_path / "edited.pth")
        with pytest.raises(ValueError, match=r"edited\.pth is refused: the checksum does not match"):
            CompactModel.load(tmp_path / "edited.pth")


def test_checksum_covers_names_types_and_shapes():
    codes = np.arange(6, dtype=np.int8)
    variants = [{"a": codes}, {"b": codes}, {"a": codes.view(np.uint8)}, {"a": codes.reshape(2, 3)}, {"a": codes[:5]}, {}]
    sums = [checksum(b"{}", tensors).tobytes() for tensors in variants] + [checksum(b"{ }", {"a": codes}).tobytes()]
    assert len(set(sums)) == 7


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    torch.save({"conv.op.weight": torch.zeros(3)}, tmp_path / "float.pth")
    with pytest.raises(ValueError, match="no graph and checksum; export the network with quantize_model"):
        CompactModel.load(tmp_path / "float.pth")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="no graph and checksum"):
        CompactModel.load(tmp_path / "whole.pth")
    with pytest.raises(FileNotFoundError, match="no file .*nowhere.pth"):
        CompactModel.load(tmp_path / "nowhere.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="module.pth is no checkpoint that can be read safely .*with Python objects in it"):
        CompactModel.load(tmp_path / "module.pth")


class Call:
    """An object whose pickle asks the reader to call `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.parts = (function, arguments)

    def __reduce__(self):
        return self.parts


def forged(path, pickled: bytes, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("m/version", "3\n")
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/data/0", bytes(8))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, protocol):
    import os

    marker = tmp_path / "executed"
    for call in (Call(os.system, f"touch {marker}"), Call(open, str(marker), "w"), Call(eval, f"open({str(marker)!r}, 'w')")):
        path = forged(tmp_path / "hostile.pth", pickle.dumps({"graph": call}, protocol))
        with pytest.raises(ValueError, match=r"hostile\.pth"):
            CompactModel.load(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Call(open, str(marker), "w"), protocol)).close()
    assert marker.exists(), "the same pickle does run when nothing guards it"


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x04\x8c\x0bcollections\x8c\x15OrderedDict.__class__\x93.",  # a dotted name behind an allowed one
        b"ctorch\nByteStorage\n(tR.",  # an allowed name, called
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",  # the tensor builder without arguments
        b"ctorch._utils\n_rebuild_tensor_v2\n}S'__code__'\nNs\x86b.",  # state forced into the builder
        b"ctorch\nFloatStorage\n}(S'x'\nI1\nub.",
        b"(S'storage'\nS'O'\nS'0'\nS'cpu'\nI1\ntQ.",  # a storage of Python objects
        b"(S'storage'\nS'int8'\nS'../../etc/passwd'\nS'cpu'\nI1\ntQ.",
        b"(S'storage'\nS'int8'\nS'0'\nS'cpu'\nI9\ntQ.",  # more values than the entry holds
        b"}.truncated",
        b"garbage",
        b"",
        b"]q\x00h\x00a.",  # a list that contains itself
    ],
)
def test_forged_pickles_end_in_one_sentence(tmp_path, pickled):
    path = forged(tmp_path / "forged.pth", pickled)
    with pytest.raises(ValueError) as refused:
        CompactModel.load(path)
    assert "\n" not in str(refused.value)


def test_compressed_entries_are_refused(tmp_path):
    path = forged(tmp_path / "bomb.pth", pickle.dumps({}), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        CompactModel.load(path)


# --- graphs that cannot be run ------------------------------------------------------------------------------------------


def change_op(index, **changes):
    return lambda graph, tensors: graph["ops"][index].update(changes)


UNUSABLE = {
    "unknown kind 'conv3d'": change_op(0, kind="conv3d"),
    "body: weight_bits is 3": change_op(0, weight_bits=3),
    r"body: output_shift 12 is outside \[-19, 11\]": change_op(0, output_shift=12),
    r"body: output_shift -20 is outside": change_op(0, output_shift=-20),
    "body: output_shift 0.5": change_op(0, output_shift=0.5),
    "body: activation 'gelu'": change_op(0, activation="gelu"),
    "head: activation 'relu' with wide=True": change_op(2, activation="relu"),
    "operand 'flat' is not computed before": change_op(0, inputs=["flat"]),
    "body: it expects 4 channels and is given 3": change_op(0, in_channels=4),
    r"body: the graph says shape \[5, 9, 9\]": change_op(0, shape=[5, 9, 9]),
    "body: pooling .* is neither": change_op(0, pool={"type": "min"}),
    "body: its operand .* too small": change_op(0, pool=pooling("max", 16), padding=[0, 0]),
    "body: conv2d with 2 operands": change_op(0, inputs=["input", "input"]),
    "3 groups do not divide": change_op(0, groups=3),
    "two operations of the graph are called 'body'": change_op(1, name="body"),
    "incomplete": lambda graph, tensors: graph["ops"][0].pop("kernel"),
    "format 2": lambda graph, tensors: graph.update(format=2),
    "names no operation": lambda graph, tensors: graph.update(outputs=[{"op": "tail", "exponent": 0}]),
    "no output": lambda graph, tensors: graph.update(outputs=[]),
    "the tensor body.weight is missing": lambda graph, tensors: tensors.pop("body.weight"),
    "no operation uses extra.weight": lambda graph, tensors: tensors.update({"extra.weight": np.zeros(1, np.int8)}),
    "body: 4-bit codes .* are stored as": lambda graph, tensors: tensors.update({"body.weight": np.zeros(9, np.uint8)}),
    "body: its bias is int32": lambda graph, tensors: tensors.update({"body.bias": np.zeros(5, np.int32)}),
    r"body: its bias leaves \[-8, 7\]": lambda graph, tensors: tensors.update({"body.bias": np.full(5, 8, np.int8)}),
}


@pytest.mark.parametrize("sentence", UNUSABLE)
def test_unusable_graph_is_refused_by_name(sentence):
    model = example()
    described, tensors = copy.deepcopy(model.graph), dict(model.tensors)
    UNUSABLE[sentence](described, tensors)
    with pytest.raises(ValueError, match=sentence):
        CompactModel(described, tensors)


def test_a_wide_output_feeds_nothing():
    ops = [convolution("wide", "input", 3, 3, 1, wide=True), convolution("next", "wide", 3, 3, 1)]
    with pytest.raises(ValueError, match="next: its operand 'wide' is a wide .* wide=False"):
        CompactModel(graph((3, 4, 4), ops), {})


def test_operands_of_an_addition_have_one_shape():
    described = copy.deepcopy(recorded_network("pipeline_add_w8").graph)
    described["ops"][4]["inputs"] = ["conv1", "conv4"]
    with pytest.raises(ValueError, match="add: operands of shapes .* do not fit together"):
        CompactModel(described, {})
