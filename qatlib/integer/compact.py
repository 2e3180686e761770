"""The compact int8 model, `model_8bit.pth`: a graph in JSON, packed integer weights, and a checksum.

The file is an ordinary `torch.save`d dict of tensors, so `torch.load(path, weights_only=True)` reads it too:

- `graph`: uint8, the UTF-8 JSON of `qatlib.chip.operations`; `checksum`: uint8[32], SHA-256 over everything else;
- `<layer>.weight`: int8 codes in the layer's own layout, or uint8, packed, for 4, 2 and 1 bits;
- `<layer>.bias`: int8 codes on the weights' grid (absent without a bias).

The checksum finds accidents (a lost byte, an edited number). It is no signature: whoever edits can also recompute it.
"""

import json
import os
from collections.abc import Mapping
from math import prod

import numpy as np

from qatlib.chip import operations
from qatlib.files import load, sha256


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack signed integer codes of `bits` (8, 4, 2 or 1) bits, the first code in the lowest bits of the first byte.

    8 bits give int8 of the same shape; fewer give flat uint8 of ceil(n·bits/8) bytes, filled up with zeros. Codes are
    two's complement: a 1-bit field holds 0 or -1, as the chip's 1-bit weights do. Raises ValueError for a code outside
    the range, TypeError for anything but integers.

    >>> pack(np.array([1, -2, 7]), 4)
    array([225,   7], dtype=uint8)
    """
    _check_bits(bits)
    if not isinstance(codes, np.ndarray) or not np.issubdtype(codes.dtype, np.integer):
        found = getattr(codes, "dtype", type(codes).__name__)
        raise TypeError(f"codes are {found}; give a NumPy array of integers (quantize first, then .astype(np.int8))")
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    if codes.size and not low <= codes.min() <= codes.max() <= high:
        raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit {bits} bits ({low} to {high}); quantize them first")
    if bits == 8:
        return np.ascontiguousarray(codes, np.int8)
    per_byte = 8 // bits
    fields = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    fields[: codes.size] = codes.astype(np.int8).ravel().view(np.uint8) & ((1 << bits) - 1)
    places = np.arange(per_byte, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(fields.reshape(-1, per_byte) << places, axis=1).astype(np.uint8)


def unpack(raw: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack`: int8 codes of `shape`. Raises ValueError unless `raw` has exactly the bytes they need.

    >>> unpack(np.array([225, 7], np.uint8), 4, (3,))
    array([ 1, -2,  7], dtype=int8)
    """
    _check_bits(bits)
    if not isinstance(raw, np.ndarray):
        raise TypeError(f"raw is a {type(raw).__name__}; give the NumPy array that pack() returned")
    wanted, dtype = (tuple(shape), np.int8) if bits == 8 else ((-(-prod(shape) * bits // 8),), np.uint8)
    if raw.shape != wanted or raw.dtype != dtype:
        raise ValueError(
            f"{bits}-bit codes of shape {tuple(shape)} are stored as {np.dtype(dtype)} {wanted}, not as {raw.dtype} {raw.shape}"
        )
    if bits == 8:
        return raw
    places = np.arange(8 // bits, dtype=np.uint8) * bits
    fields = (raw[:, None] >> places & ((1 << bits) - 1)).ravel()[: prod(shape)].astype(np.int8)
    sign = 1 << bits - 1
    return ((fields ^ sign) - sign).reshape(shape)


def _check_bits(bits: int) -> None:
    if bits not in operations.BITS:
        raise ValueError(f"bits is {bits!r}; weights have 1, 2, 4 or 8 bits")


def checksum(graph: bytes, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """SHA-256, uint8[32], over the graph and, in sorted order of keys, each tensor's key, dtype, shape and bytes."""
    parts = [graph]
    for key in sorted(tensors):
        value = tensors[key]
        parts += [f"{key} {value.dtype} {list(value.shape)}\n".encode(), np.ascontiguousarray(value).tobytes()]
    return np.frombuffer(sha256(*parts), np.uint8)


class CompactModel:
    """A network as the chip holds it: `graph` (see `qatlib.chip.operations`) and `tensors` (packed codes by key).

    Everything is checked when it is built. Raises ValueError naming the layer: unknown kind, missing tensor, wrong
    shape or dtype, bits not in {1, 2, 4, 8}, `output_shift` outside the chip's register, tensors that no operation
    uses.
    """

    def __init__(self, graph: dict, tensors: dict[str, np.ndarray]):
        try:
            operations.check(graph)
        except (KeyError, TypeError, AttributeError) as problem:
            raise ValueError(f"the graph is incomplete ({type(problem).__name__}: {problem}); export the model again") from problem
        self.graph, self.tensors = graph, dict(tensors)
        self._by_layer = {op["layer"]: op for op in self.ops if op["kind"] in operations.WEIGHTED}
        self._check_tensors()

    @property
    def ops(self) -> list[dict]:
        """Operations in execution order."""
        return self.graph["ops"]

    def weight(self, layer: str) -> np.ndarray:
        """Integer codes of a layer's weights, int8, unpacked, in the operation's own layout."""
        op = self._by_layer[layer]
        return unpack(self.tensors[f"{layer}.weight"], op["weight_bits"], operations.weight_shape(op))

    def bias(self, layer: str) -> np.ndarray | None:
        """Integer codes of a layer's bias, int8 (out_channels,), on the weights' grid; None without a bias."""
        return self.tensors.get(f"{layer}.bias")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an operation's result, or of "input", without the batch."""
        shapes = {"input": self.graph["input_shape"], **{op["name"]: op["shape"] for op in self.ops}}
        return tuple(shapes[name])

    def largest_sum(self, op: dict) -> int:
        """No input drives an accumulator of this layer, rounding included, beyond this: 128·(Σ|w| + |bias|) + 2^(n-1)."""
        weight, bias = self.weight(op["layer"]).astype(np.int32), self.bias(op["layer"])
        axes = (0, 2, 3) if op["kind"] == "conv_transpose2d" else tuple(range(1, weight.ndim))
        reach = int(np.abs(weight).sum(axis=axes, dtype=np.int64).max())
        offset = 0 if bias is None else int(np.abs(bias.astype(np.int64)).max())
        return 128 * (reach + offset) + (1 << max(op["weight_bits"] - 2 - op["output_shift"], 0))

    def to_state_dict(self) -> dict[str, np.ndarray]:
        """The content of the file: `graph`, `checksum` and the tensors."""
        graph = json.dumps(self.graph, separators=(",", ":")).encode()
        return {"graph": np.frombuffer(graph, np.uint8), "checksum": checksum(graph, self.tensors), **self.tensors}

    @classmethod
    def from_state_dict(cls, state: dict[str, np.ndarray]) -> "CompactModel":
        """Build from the file's content. Raises ValueError: missing entry, wrong checksum or unusable graph."""
        tensors = dict(state) if isinstance(state, Mapping) else {}
        if not {"graph", "checksum"} <= tensors.keys():
            raise ValueError(
                "this is no compact model: it has no graph and checksum; export the network with quantize_model(model)"
            )
        if other := [key for key, value in tensors.items() if not isinstance(value, np.ndarray)]:
            raise ValueError(f"{other[0]} is a {type(tensors[other[0]]).__name__}, not a NumPy array; give arrays (tensor.numpy())")
        graph, stored = tensors.pop("graph").tobytes(), tensors.pop("checksum")
        if not np.array_equal(checksum(graph, tensors), stored):
            raise ValueError("the checksum does not match: the file was edited or damaged; copy or export it again")
        try:
            parsed = json.loads(graph)
        except ValueError as problem:
            raise ValueError(f"the graph is no JSON ({problem}); export the model again") from problem
        return cls(parsed, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "CompactModel":
        """Read `model_8bit.pth`, running nothing in it. Raises as `files.load` and `from_state_dict`, naming the file."""
        return cls.from_file(load(path), path)

    @classmethod
    def from_file(cls, state: dict, path: str | os.PathLike) -> "CompactModel":
        """What `load` makes of the content of the file `path`, which was read already."""
        try:
            return cls.from_state_dict({key: value.numpy() if hasattr(value, "numpy") else value for key, value in state.items()})
        except ValueError as problem:
            raise ValueError(f"{path} is refused: {problem}") from problem

    def _check_tensors(self) -> None:
        known = set()
        for op in self.ops:
            if op["kind"] not in operations.WEIGHTED:
                continue
            layer, name = op["layer"], op["name"]
            if any(op[key] != self._by_layer[layer][key] for key in ("kind", "groups", "weight_bits") if key in op):
                raise ValueError(f"{name}: it shares {layer!r} with a call of another form; export the model again")
            if f"{layer}.weight" not in self.tensors:
                raise ValueError(f"{name}: the tensor {layer}.weight is missing; export the model again")
            try:
                self.weight(layer)
            except ValueError as problem:
                raise ValueError(f"{name}: {problem}; export the model again") from problem
            self._check_bias(op)
            known |= {f"{layer}.weight", f"{layer}.bias"}
        if surplus := self.tensors.keys() - known:
            raise ValueError(f"no operation uses {', '.join(sorted(surplus))}; export the model again")

    def _check_bias(self, op: dict) -> None:
        bias, limit = self.bias(op["layer"]), 1 << op["weight_bits"] - 1
        if bias is None:
            return
        if bias.dtype != np.int8 or bias.shape != (op["out_channels"],):
            raise ValueError(
                f"{op['name']}: its bias is {bias.dtype} {bias.shape}, not int8 ({op['out_channels']},); export the model again"
            )
        if bias.min() < -limit or bias.max() >= limit:
            raise ValueError(
                f"{op['name']}: its bias leaves [{-limit}, {limit - 1}] of {op['weight_bits']} bits; export the model again"
            )
