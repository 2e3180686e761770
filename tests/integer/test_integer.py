"""The integer engine against the vendor's recorded integers, against direct sums, and at its limits."""

import subprocess
import sys

import numpy as np
import pytest
from compact_nets import CASES, convolution, golden, graph, integer_tensors, linear, pooling, random_tensors, recorded_network

from qatlib.integer.compact import CompactModel
from qatlib.integer.engine import Integer, narrow, pool, real_values, round_shift, run

SIMULATED = [n for n, case in CASES.items() if case.get("mode") == "simulate" and "Add" != case["layer"] != "FusedConv2dAbs"]


def operation_of(case) -> dict:
    """The operation that a recorded layer case describes, from its class name and arguments."""
    name, args, kwargs = case["layer"], case["args"], case["kwargs"]
    changes = {"activation": "relu" if "ReLU" in name else "abs" if "Abs" in name else None, "wide": kwargs.get("wide", False)}
    dims = 1 if "1d" in name else 2
    if "Pool" in name:
        changes["pool"] = pooling("max" if "Max" in name else "avg", dims=dims, round=case["round_avg"])
    if name == "AvgPool2d":
        return {"name": "x", "kind": "pool", "inputs": ["input"], "pool": changes["pool"]}
    if "Linear" in name:
        return linear("x", "input", args[0], args[1], **changes)
    kind = "conv1d" if dims == 1 else "conv_transpose2d" if "Transpose" in name else "conv2d"
    return convolution("x", "input", args[0], args[1], args[2], kind, kwargs.get("padding", 0), **changes)


@pytest.mark.parametrize("name", SIMULATED)
def test_recorded_layer(name):
    arrays, op = golden(name), operation_of(CASES[name])
    tensors = integer_tensors(arrays, "state.", op) if "weight_bits" in op else {}
    model = CompactModel(graph(arrays["x"].shape[1:], [op]), tensors)
    got = run(model, arrays["x"].astype(np.int8))
    assert got.dtype == (np.int32 if op.get("wide") else np.int8)
    assert np.array_equal(got * 2.0 ** CASES[name]["final_scale"], arrays["y"])


def test_recorded_sum_of_three():
    arrays = golden("add3_sim")
    x = np.concatenate([arrays[f"x{i}"] for i in range(3)], axis=1).astype(np.int8)
    identity = np.eye(9, dtype=np.int8).reshape(9, 9, 1, 1)
    parts = [convolution(f"part{i}", "input", 9, 3, 1, output_shift=7) for i in range(3)]
    tensors = {f"part{i}.weight": identity[3 * i : 3 * i + 3] for i in range(3)}
    add = {"name": "add", "kind": "add", "inputs": ["part0", "part1", "part2"]}
    got = run(CompactModel(graph((9, 5, 5), [*parts, add]), tensors), x)
    assert np.array_equal(got, arrays["y"])


@pytest.mark.parametrize("name", ["pipeline_add_w8", "pipeline_cat_mixed"])
def test_recorded_network_layer_by_layer(name):
    arrays, model = golden(name), recorded_network(name)
    x = arrays["sim_x"].astype(np.int8)
    kept = run(model, x, keep=True)
    assert np.array_equal(kept["input"], x)
    compared = 0
    for key, want in arrays.items():
        if not key.startswith("layer_sim/"):
            continue
        layer, _, call = key.removeprefix("layer_sim/").partition("#")
        codes = kept[layer if call == "0" else f"{layer}_{call}"]
        scale = 2.0 ** arrays[f"s6_quantized/{layer}.final_scale"] if layer != "add" else 1
        assert np.array_equal(codes[: len(want)] * scale, want), key
        compared += 1
    assert compared == 7
    if name == "pipeline_add_w8":
        assert np.array_equal(kept["fc"] * 2.0 ** arrays["s6_quantized/fc.final_scale"], arrays["sim_y"])
    else:
        assert np.array_equal(kept["head"].mean((2, 3)) * 4, arrays["sim_y"])


def direct(x, w, b, op):
    """A convolution from its definition, one product at a time, in Python's own unbounded integers."""
    n, groups, stride, pad = len(x), op["groups"], op["stride"], op["padding"]
    out, per_out = np.zeros((n, *op["shape"]), object), op["out_channels"] // groups
    per_in = op["in_channels"] // groups
    for place in np.ndindex(n, op["out_channels"], per_in, *op["kernel"]):
        i, o, c, *tap = place
        source = x[i, (o // per_out) * per_in + c]
        for where in np.ndindex(*source.shape if op["kind"] == "conv_transpose2d" else out.shape[2:]):
            if op["kind"] == "conv_transpose2d":
                to = tuple(p * s + t - d for p, s, t, d in zip(where, stride, tap, pad))
                if all(0 <= t < m for t, m in zip(to, out.shape[2:])):
                    weight = w[((o // per_out) * per_in + c, o % per_out, *tap)]
                    out[(i, o, *to)] += int(source[where]) * int(weight)
            else:
                at = tuple(p + t * d - e for p, t, d, e in zip(where, tap, op["dilation"], pad))
                if all(0 <= a < m for a, m in zip(at, source.shape)):
                    out[(i, o, *where)] += int(source[at]) * int(w[(o, c, *tap)])
    return out + (b.astype(object) * 128).reshape(-1, *[1] * len(op["kernel"]))


@pytest.mark.parametrize(
    ("shape", "op"),
    [
        ((4, 5, 6), convolution("a", "input", 4, 6, 3, padding=1, groups=2, wide=True)),
        ((4, 5, 5), convolution("b", "input", 4, 4, 3, padding=2, groups=4, dilation=[2, 2], wide=True)),
        ((3, 17), convolution("c", "input", 3, 2, 3, "conv1d", 2, dilation=[3], wide=True)),
        ((4, 4, 5), convolution("d", "input", 4, 6, 3, "conv_transpose2d", 1, groups=2, wide=True)),
        ((3, 3, 4), convolution("e", "input", 3, 2, 3, "conv_transpose2d", 2, wide=True)),
        ((3, 3, 4), convolution("f", "input", 3, 2, 3, "conv_transpose2d", 0, wide=True)),
        ((2, 3, 3), convolution("g", "input", 2, 3, 1, "conv_transpose2d", 0, wide=True)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else str(value),
)
def test_convolutions_from_their_definition(shape, op):
    rng = np.random.default_rng(5)
    model = CompactModel(graph(shape, [op]), random_tensors([op], rng))
    x = rng.integers(-128, 128, (2, *shape)).astype(np.int8)
    assert np.array_equal(run(model, x), direct(x, model.weight(op["name"]), model.bias(op["name"]), op))


def test_pooling_with_stride_and_dilation():
    x = np.arange(-32, 32, dtype=np.int8).reshape(1, 1, 8, 8)
    got = pool(x, {"type": "max", "size": [3, 2], "stride": [2, 2], "dilation": [1, 2], "round": False})
    want = [[max(int(x[0, 0, r + i, c + 2 * j]) for i in range(3) for j in range(2)) for c in (0, 2, 4)] for r in (0, 2, 4)]
    assert got[0, 0].tolist() == want


def test_average_truncates_toward_zero_or_rounds_half_to_even():
    pairs = np.array([[-3, 0], [3, 0], [-1, 0], [5, 0], [-128, -128], [127, 127], [-1, -4]], np.int8)[:, None]
    how = {"type": "avg", "size": [2], "stride": [2], "dilation": [1], "round": False}
    assert pool(pairs, how).ravel().tolist() == [-1, 1, 0, 2, -128, 127, -2]
    assert pool(pairs, {**how, "round": True}).ravel().tolist() == [-2, 2, 0, 2, -128, 127, -2]


@pytest.mark.parametrize("n", range(-8, 23))
def test_round_shift_is_floor_of_half_up(n):
    acc = np.concatenate([np.arange(-600, 600), np.random.default_rng(n + 8).integers(-(2**30), 2**30, 500)])
    exact = [min(max((int(a) * 2 ** max(-n, 0) * 2 + 2 ** max(n, 0)) // 2 ** (max(n, 0) + 1), -128), 127) for a in acc]
    assert np.clip(round_shift(acc.astype(np.int32), n), -128, 127).tolist() == exact


def test_abs_comes_after_rounding_and_in_training_before_it():
    op = {"weight_bits": 8, "output_shift": 0, "activation": "abs"}
    acc = np.array([-192, 192, -193, -64, -65, -16320, -20000])  # -1.5 codes, 1.5, a little more, -0.5, a little more, the end
    assert narrow(acc, op).tolist() == [1, 2, 2, 0, 1, 127, 127]
    assert narrow(acc, op, abs_first=True).tolist() == [2, 2, 2, 1, 1, 127, 127]
    assert narrow(np.array([-3, 3, -64]), {**op, "output_shift": 8}).tolist() == [6, 6, 127]  # n < 0: no halves


def test_abs_of_the_recorded_layers():
    """In training recorded and computed are the same; the vendor's simulation gives one more for sums that floor to a half."""
    arrays, op = golden("convabs_qat_w8"), operation_of(CASES["convabs_qat_w8"])
    bits = {key: 128 * arrays[f"calc.{key}_q"] for key in ("weight", "bias")}
    threshold = arrays["state.activation_threshold"].item()
    op |= {"weight_bits": 8, "output_shift": int(arrays["calc.output_shift_weights"].item() - threshold)}
    model = CompactModel(graph((3, 6, 6), [op]), {f"x.{key}": np.round(value).astype(np.int8) for key, value in bits.items()})
    x = (arrays["x"] * 128).astype(np.int8)
    assert np.array_equal(Integer(model, abs_first=True)(x), arrays["y"] * 128)

    arrays, op = golden("convabs_sim_w8"), operation_of(CASES["convabs_sim_w8"])
    tensors = integer_tensors(arrays, "state.", op)
    x, n = arrays["x"].astype(np.int8), op["weight_bits"] - 1 - op["output_shift"]
    got = run(CompactModel(graph((3, 6, 6), [op]), tensors), x)
    acc = run(CompactModel(graph((3, 6, 6), [op | {"activation": None, "wide": True}]), tensors), x)
    rest = -(acc >> max(n - 7, 0)) % 128
    assert np.array_equal(arrays["y"] - got, (acc < 0) & (rest == 64) & (got < 127))


def test_difference_saturates_at_the_end_only():
    one = np.full((1, 1, 1, 1), 127, np.int8)
    ops = [
        convolution("p", "input", 1, 1, 1, output_shift=1),
        convolution("q", "input", 1, 1, 1, output_shift=0),
        {"name": "s", "kind": "sub", "inputs": ["p", "q", "q"]},
    ]
    model = CompactModel(graph((1, 1, 1), ops), {"p.weight": one, "q.weight": one})
    kept = run(model, np.array([[[100]]], np.int8), keep=["p", "q", "s"])
    assert [int(kept[name].item()) for name in "pqs"] == [127, 99, -71]
    kept = run(model, np.array([[[-100]]], np.int8), keep=["p", "q", "s"])
    assert [int(kept[name].item()) for name in "pqs"] == [-128, -99, 70]


def test_wide_outputs_several_outputs_and_real_values():
    ops = [convolution("body", "input", 2, 3, 1, weight_bits=4, output_shift=-2), convolution("head", "body", 3, 2, 1, wide=True)]
    described = graph((2, 4, 4), ops, outputs=["head", "body"])
    described["outputs"][0]["exponent"] = -12
    model = CompactModel(described, random_tensors(ops, np.random.default_rng(1)))
    x = np.random.default_rng(2).integers(-128, 128, (3, 2, 4, 4)).astype(np.int8)
    head, body = run(model, x)
    assert head.dtype == np.int32 and body.dtype == np.int8
    real = real_values(model, (head, body))
    assert np.array_equal(real[0], head / 4096.0) and np.array_equal(real[1], body / 128.0)


def test_batch_equals_single_pictures():
    model = recorded_network("pipeline_add_w8")
    x = np.random.default_rng(3).integers(-128, 128, (37, 3, 16, 16)).astype(np.int8)
    engine = Integer(model)
    together = engine(x)
    assert together.shape == (37, 10)
    assert all(np.array_equal(engine(picture), row) for picture, row in zip(x, together, strict=True))


def wide_layer(inputs: int, code: int) -> CompactModel:
    op = linear("sum", "input", inputs, 1, wide=True)
    return CompactModel(graph((inputs,), [op]), {"sum.weight": np.full((1, inputs), code, np.int8)})


def test_overflow_is_named_and_the_last_fitting_sum_is_exact():
    fits, breaks = wide_layer(131071, -128), wide_layer(131072, -128)
    lowest = np.full(131072, -128, np.int8)
    assert run(fits, lowest[1:]).item() == 131071 * 2**14
    assert run(breaks, np.where(np.arange(131072) == 7, 0, lowest).astype(np.int8)).item() == 131071 * 2**14
    with pytest.raises(OverflowError, match=r"sum: an accumulator reaches 2147483648"):
        run(breaks, lowest)
    assert run(breaks, np.full(131072, 127, np.int8)).item() == -131072 * 127 * 128
    negative = wide_layer(262145, 64)
    lowest = np.full(262145, -128, np.int8)
    lowest[-1] = 0
    assert run(negative, lowest).item() == -(2**31)
    negative.tensors["sum.weight"][0, -1], lowest[-1] = 1, -1
    with pytest.raises(OverflowError, match=r"sum: an accumulator reaches -2147483649"):
        run(negative, lowest)


def test_a_bad_input_is_refused_by_name():
    engine = Integer(recorded_network("pipeline_add_w8"))
    with pytest.raises(TypeError, match="float32"):
        engine(np.zeros((3, 16, 16), np.float32))
    with pytest.raises(ValueError, match=r"\(16, 16, 3\)"):
        engine(np.zeros((16, 16, 3), np.int8))
    with pytest.raises(ValueError, match="255"):
        engine(np.full((3, 16, 16), 255, np.uint8))
    with pytest.raises(ValueError, match="conv9"):
        engine(np.zeros((3, 16, 16), np.int8), keep=["conv9"])


def test_no_float_and_no_torch():
    kept = run(recorded_network("pipeline_cat_mixed"), np.zeros((3, 16, 16), np.int8), keep=True)
    assert {value.dtype.kind for value in kept.values()} == {"i"}
    code = "import qatlib.integer.engine, sys; assert not {'torch', 'onnx', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
