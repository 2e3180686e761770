"""Networks that nobody wrote down: every kind of layer, in any order, compiled and compared with the NumPy integers."""

import copy
import shutil
from math import prod

import numpy as np
import pytest
from export_networks import Builder, codes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_c import LOOPS, build, outputs_of

from qatlib.chip.operations import output_shape
from qatlib.export.c_project import export_c
from qatlib.integer.source import answer_rows

ANY = ("linear", "add", "sub", "concat", "flatten", "reshape")
KINDS = {0: ANY, 1: (*["conv1d"] * 8, "pool", *ANY), 2: (*["conv2d", "conv_transpose2d"] * 6, "pool", *ANY)}  # by dimensions


def pairs(draw, low: int, high: int, dims: int) -> list[int]:
    return draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims))


def pool(draw, dims: int) -> dict:
    return {"type": draw(st.sampled_from(["max", "avg"])), "size": pairs(draw, 1, 3, dims), "stride": pairs(draw, 1, 3, dims),
            "dilation": pairs(draw, 1, 2, dims), "round": draw(st.booleans())}  # fmt: skip


def settings_of(draw, kind: str, channels: int, dims: int) -> dict:
    """Settings of a layer; the graph's own check decides later whether it fits its operand."""
    bits = draw(st.sampled_from([8, 4, 2, 1]))
    more = {"out": draw(st.integers(1, 9)), "bits": bits, "bias": draw(st.booleans()), "wide": draw(st.integers(0, 5)) == 0,
            "activation": draw(st.sampled_from([None, "relu", "abs"])),
            "shift": draw(st.sampled_from([None, -6, 0, 3]))}  # fmt: skip
    more["activation"] = None if more["wide"] else more["activation"]
    if kind != "linear":
        groups = draw(st.sampled_from([1, channels, *(g for g in range(2, channels) if channels % g == 0)]))
        more |= {"groups": groups, "kernel": pairs(draw, 1, 4, dims), "stride": pairs(draw, 1, 3, dims),
                 "dilation": pairs(draw, 1, 2, dims)}  # fmt: skip
        more["out"] = groups * draw(st.integers(1, 3)) if groups > 1 else more["out"]
        more["padding"] = [draw(st.integers(0, d * (k - 1))) for k, d in zip(more["kernel"], more["dilation"])]
        more["output_padding"] = [draw(st.integers(0, s - 1)) for s in more["stride"]]
        more["pool"] = pool(draw, dims) if draw(st.booleans()) else None
    return more


def step(draw, b: Builder, name: str) -> Builder:
    """`b` with one more operation, unless it does not fit the operand that was drawn."""
    wide = {op["name"] for op in b.ops if op.get("wide")}
    sources = [other for other in b.shapes if other not in wide]
    source = draw(st.sampled_from(sources[-2:] * 3 + sources))  # mostly a new one, so that networks are deep
    shape = b.shapes[source]
    dims = len(shape) - 1
    kind = draw(st.sampled_from(KINDS[dims]))
    inputs, more = [source], {}
    if kind in ("add", "sub", "concat"):
        free = [n for n in b.shapes if n not in wide and b.shapes[n][1:] == shape[1:]]
        alike = [n for n in free if kind == "concat" or b.shapes[n] == shape]
        inputs += draw(st.lists(st.sampled_from(alike), min_size=1, max_size=3))
    elif kind == "pool":
        more = {"pool": pool(draw, dims)}
    elif kind == "reshape":
        more = {"shape": [shape[0], *draw(st.sampled_from(factors(prod(shape[1:]))))]}
    elif kind != "flatten":
        more = settings_of(draw, kind, shape[0], dims)
    if more.get("pool") and min(output_shape({"kind": "pool", "pool": more["pool"]}, [shape])) < 1:
        return b
    longer = copy.deepcopy(b)
    try:
        longer.op(name, kind, *inputs, **more)
    except ValueError:  # a negative size
        return b
    return longer if min(longer.shapes[name]) > 0 else b


def factors(n: int) -> list[tuple[int, ...]]:
    return [(n,), *((d, n // d) for d in range(1, n + 1) if n % d == 0)]


def rearranged(draw, b: Builder, name: str) -> Builder:
    """`b` with one more operation of the host's, on anything, wide or narrow."""
    source, kind = draw(st.sampled_from([*b.shapes])), draw(st.sampled_from(["permute", "reshape", "concat"]))
    shape, inputs, more = b.shapes[source], [source], {}
    if kind == "permute":
        more = {"axes": draw(st.permutations(range(len(shape))))}
    elif kind == "reshape":
        more = {"shape": [*draw(st.sampled_from(factors(shape[0]))), *draw(st.sampled_from(factors(prod(shape[1:]))))]}
    else:
        axis = draw(st.integers(0, len(shape) - 1))
        others = [size for i, size in enumerate(shape) if i != axis]
        alike = [n for n, s in b.shapes.items() if len(s) == len(shape) and [*s[:axis], *s[axis + 1 :]] == others]
        inputs += draw(st.lists(st.sampled_from(alike), min_size=1, max_size=3))
        shifts = draw(st.lists(st.integers(0, 3), min_size=len(inputs), max_size=len(inputs)))
        more = {"axis": axis} | ({"shifts": shifts} if draw(st.booleans()) else {})
    return b.op(name, kind, *inputs, host=True, **more)


@st.composite
def networks(draw):
    places = pairs(draw, 1, 9, draw(st.sampled_from([2, 2, 2, 1, 0])))
    b = Builder((draw(st.integers(1, 6)), *places), seed=draw(st.integers(0, 99)))
    for i in range(draw(st.integers(2, 8))):
        b = step(draw, b, f"op{i}")
    for i in range(draw(st.integers(0, 4))):
        b = rearranged(draw, b, f"host{i}")
    names = list(b.shapes)
    return b.build(names[-1], *draw(st.lists(st.sampled_from(names), max_size=2, unique=True)))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("loops", LOOPS)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=networks())
def test_any_network_gives_the_same_integers(loops, model, tmp_path_factory):
    place = tmp_path_factory.mktemp("random")
    folder, x = export_c(model, place / "net"), codes(model, 3)
    program = build(folder, "-O0", "-fsanitize=undefined", "-fno-sanitize-recover=all", *LOOPS[loops])
    assert np.array_equal(outputs_of(program, model, x, place), answer_rows(model, x))
    shutil.rmtree(place)
