"""ONNX Runtime gives the integers of the NumPy engine, with its default graph optimisation, also at the ends of every range."""

import numpy as np
import onnx
import onnxruntime
import pytest
from export_networks import NETWORKS, Builder, codes

from qatlib.export.onnx_graph import OPSET, export_onnx
from qatlib.integer.engine import Integer


def run(path, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"codes": x})


def compare(model, path, x):
    export_onnx(model, path)
    expected, results = Integer(model)(x), run(path, x)
    for wanted, found in zip(expected if isinstance(expected, tuple) else (expected,), results, strict=True):
        assert found.dtype == wanted.dtype and np.array_equal(found, wanted)
    return results


@pytest.mark.parametrize("name", NETWORKS)
def test_same_integers(name, tmp_path):
    model = NETWORKS[name]()
    results = compare(model, tmp_path / "net.onnx", codes(model))
    assert all(len(np.unique(y)) > 10 for y in results), "a nearly constant output compares nothing"
    if name in ("assortment", "conv1d"):
        return
    inner = Integer(model)(codes(model), keep=[op["name"] for op in model.ops[:-1]])
    assert all(len(np.unique(y)) > 5 for y in inner.values())


@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("shift", [-15, -9, 0, 15])
def test_worst_legal_layer(weight, shift, tmp_path):
    """1,024 channels, 3x3: accumulators reach 1.5e8, far beyond what float32 holds exactly."""
    b = Builder((1024, 4, 4), extreme=weight)
    b.op("narrow", "conv2d", out=3, shift=shift)
    b.op("exact", "conv2d", "input", out=3, wide=True)
    model = b.build("narrow", "exact")
    x = codes(model, 4)
    x[2] = np.where(np.arange(1024)[:, None, None] % 2, 127, -127)
    results = compare(model, tmp_path / "net.onnx", x)
    assert np.abs(results[1].astype(np.int64)).max() > 2**26


@pytest.mark.parametrize("n", [1, 4, 22])
def test_rounds_half_up(n, tmp_path):
    """Weights of one and a bias step through every accumulator near a tie: y = floor(acc / 2^n + 1/2)."""
    b = Builder((1, 16, 16), extreme=1)
    model = b.op("y", "conv2d", out=1, kernel=1, shift=7 - n, bias=False).build()
    x = np.arange(-128, 128).reshape(1, 1, 16, 16).astype(np.int8)
    (found,) = compare(model, tmp_path / "net.onnx", x)
    assert np.array_equal(found, np.floor(x / 2**n + 0.5).astype(np.int8))


def test_file_states_opset_and_exponents(tmp_path):
    export_onnx(NETWORKS["residual8"](), tmp_path / "net.onnx")
    proto = onnx.load(tmp_path / "net.onnx")
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", OPSET)]
    assert {p.key: p.value for p in proto.metadata_props} == {"exponent.fc": "-7"}
    onnx.checker.check_model(proto, full_check=True)


def test_nothing_is_left_when_refused(tmp_path):
    with pytest.raises(TypeError, match="cannot be exported"):
        export_onnx(3, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
