"""The chip's own sequence of layers: what the network's operations become.

An addition is no layer of its own where the next convolution can read its operands: these are interleaved in memory (`write_gap`).
A concatenation is none at all: its parts are written side by side, on neighbouring processors or, above 64 channels, in turn. What
is needed in another place than where it is written is copied there by a pass-through layer.
"""

from dataclasses import dataclass, field

from qatlib.chip.picture import streamed
from qatlib.chip.spec import DEVICES, PROCESSORS, LayerSpec, folds, passes, picture

SUMS = ("add", "sub", "xor", "or")


@dataclass
class Step:
    """One layer of the chip: it reads tensors `reads` from memory block `source`, combined by `eltwise`, and writes tensor `writes`
    into lane `lane` of `lanes` interleaved ones of `block`, which holds `channels`. `kind` is the layer's, or "copy"."""

    layer: LayerSpec
    kind: str
    reads: tuple[str, ...]
    writes: str
    source: str
    eltwise: str | None = None
    block: str = ""
    lane: int = 0
    lanes: int = 1
    channels: int = 0
    output: bool = False
    streams: bool = False


@dataclass
class _Homes:
    """Where tensors lie. `home`: the block, lane and lanes that the layer of a tensor writes to; `copies`: those made of a tensor,
    (name, block, lane, lanes); `stand_in`: the name of the copy that a reader's operand is."""

    home: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    copies: dict[str, list[tuple[str, str, int, int]]] = field(default_factory=dict)
    stand_in: dict[tuple[str, int], str] = field(default_factory=dict)

    def put(self, reader: LayerSpec, index: int, block: str, lanes: int, direct: bool) -> None:
        """Operand `index` of `reader` lies in `block`: written there (`direct`), or copied."""
        source = reader.inputs[index]
        place = block, index if lanes > 1 else 0, lanes
        if direct and source not in self.home:
            self.home[source] = place
        else:
            name = f"{source}>{reader.name}.{index}"
            self.copies.setdefault(source, []).append((name, *place))
            self.stand_in[reader.name, index] = name


def operands(name: str) -> str:
    """The block in which the operands of the sum `name` lie; never the one that the sum is written to."""
    return f"{name}<"


def interleaved(layer: LayerSpec) -> bool:
    """Whether a concatenation has more channels than there are processors, so that its parts are passes."""
    return layer.kind == "concat" and layer.c_out > PROCESSORS


def steps(layers: list[LayerSpec], device: int = 85) -> list[Step]:
    """The chip's layers for `layers`, in order."""
    outputs = getattr(layers, "outputs", None) or (layers[-1].name,)
    readers: dict[str, int] = dict.fromkeys(outputs, 1)
    for source in (source for layer in layers for source in layer.inputs):
        readers[source] = readers.get(source, 0) + 1
    fused = {layer.name: layer for layer in layers if readers.get(layer.name) == 1 and _fuses(layer, layers, device)}
    flowing = streamed(layers, DEVICES[device])
    free = {x.name for x in layers[flowing:] if x.kind != "concat" and x.name not in fused and not folds(x)}
    homes = _Homes()
    for layer in layers:
        for index, source in enumerate(layer.inputs if layer.kind == "concat" or layer.kind in SUMS else ()):
            lanes = 1 if layer.kind == "concat" and not interleaved(layer) else len(layer.inputs)
            direct = source in free and (lanes == 1 or readers[source] == 1)
            homes.put(layer, index, layer.name if layer.kind == "concat" else operands(layer.name), lanes, direct)
    sequence = _Sequence(layers, fused, homes, outputs).steps
    for step in sequence[:flowing]:
        step.streams = True
    return sequence


def _fuses(total: LayerSpec, layers: list[LayerSpec], device: int) -> bool:
    """A sum is computed on the way into its reader, where that is one convolution (or linear layer that flattens nothing).

    The vendor's tool refuses sums in front of a Conv1d, on the MAX78000 those whose operands and passes differ from 2 and 2
    where both are above 1, and on the MAX78002 those in front of a convolution with bias.
    """
    reader = next((layer for layer in layers if total.name in layer.inputs), None)
    if total.kind not in SUMS or reader is None or reader.kind not in ("conv2d", "linear") or reader.flatten > 1:
        return False
    several, runs = len(total.inputs), passes(total.c_out)
    if device == 85:
        return runs == 1 or several == runs == 2
    return not reader.bias or reader.groups > 1


class _Sequence:
    def __init__(self, layers: list[LayerSpec], fused: dict[str, LayerSpec], homes: _Homes, outputs: tuple[str, ...]):
        self.fused, self.homes, self.steps = fused, homes, []
        self.by_name = {layer.name: layer for layer in layers}
        self.input = picture(layers)
        self._copy_all(self.input)
        for layer in layers:
            if layer.name not in fused and layer.kind != "concat":
                self._layer(layer, layer.name in outputs)
            if layer.name not in fused:
                self._copy_all(layer)
            if layer.kind == "concat" and layer.name in outputs:
                self._copy(layer, (f"{layer.name}>", f"{layer.name}>", 0, 1), output=True)

    def _reading(self, layer: LayerSpec) -> tuple[tuple[str, ...], str, str | None]:
        """The tensors that `layer` reads, their block, and how they are combined."""
        total = self.fused.get(layer.inputs[0]) or (layer if layer.kind in SUMS else None)
        joined = self.by_name.get(layer.inputs[0])
        several = total or (joined if joined and joined.kind == "concat" else None)
        if several is None:
            return layer.inputs, self.homes.home.get(layer.inputs[0], layer.inputs)[0], None
        reads = tuple(self.homes.stand_in.get((several.name, i), name) for i, name in enumerate(several.inputs))
        return reads, operands(total.name) if total else joined.name, total and total.kind

    def _layer(self, layer: LayerSpec, output: bool) -> None:
        reads, source, eltwise = self._reading(layer)
        before = self.steps[-1].writes if self.steps else "input"
        if layer.flatten > 1 and reads != (before,):  # the tool flattens only what the previous layer wrote
            name = f"{layer.inputs[0]}>{layer.name}"
            self._copy(self.by_name.get(layer.inputs[0], self.input), (name, name, 0, 1))
            reads, source = (name,), name
        block, lane, lanes = self.homes.home.get(layer.name, (layer.name, 0, 1))
        joined = self.by_name.get(block) if lanes == 1 else None
        channels = (joined or layer).c_out
        self.steps.append(Step(layer, layer.kind, reads, layer.name, source, eltwise, block, lane, lanes, channels, output))

    def _copy_all(self, tensor: LayerSpec) -> None:
        for place in self.homes.copies.get(tensor.name, []):
            self._copy(tensor, place)

    def _copy(self, tensor: LayerSpec, place: tuple[str, str, int, int], output: bool = False) -> None:
        """A pass-through layer that puts `tensor` (a layer's output, a concatenation, the input) to `place`."""
        c, height, width = tensor.c_out, tensor.h_out, tensor.w_out
        like = LayerSpec(tensor.name, "copy", c, c, height, width, height, width, inputs=(tensor.name,))
        reads, source, _ = self._reading(like)
        name, block, lane, lanes = place
        channels = c if lanes > 1 or block not in self.by_name else self.by_name[block].c_out
        self.steps.append(Step(like, "copy", reads, name, source, None, block, lane, lanes, channels, output))


def outputs(sequence: list[Step]) -> list[Step]:
    """The steps that write what the network returns, in the order of the chip."""
    return [step for step in sequence if step.output]
