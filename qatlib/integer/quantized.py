"""The compact int8 model as a torch module: same buffers as the file, real values in and out, integers in between."""

import os

import numpy as np
import torch
from torch import nn

from qatlib.files import save
from qatlib.integer.compact import CompactModel
from qatlib.integer.engine import engine_of, real_values


class QuantizedModel(nn.Module):
    """The integer network: buffers int8 and uint8, nothing to train. Its `state_dict()` is the content of `model_8bit.pth`.

    `q(x)` takes real values on the 1/128 grid in [-1, 127/128], (N, *input_shape), and returns the QAT network's real
    outputs, float32, bit for bit (while its sums stay below 2^24, where float32 is exact). Only Abs the chip takes otherwise than
    training: `q(x, abs_first=True)` gives the QAT network's outputs there, too (see `engine.narrow`).
    """

    def __init__(self, compact: CompactModel):
        super().__init__()
        if not isinstance(compact, CompactModel):
            raise TypeError(f"a {type(compact).__name__} is no compact model; use quantize_model(model) or load_compact(path)")
        for key, value in compact.to_state_dict().items():
            *path, name = key.split(".")
            if path and hasattr(nn.Module, path[0]) or path and path[0] in ("graph", "checksum", "compact"):
                raise ValueError(f"a layer called {path[0]!r} cannot be stored, the name is taken; rename the layer")
            _child(self, path).register_buffer(name, torch.from_numpy(np.array(value)))
        self._compact = compact
        self.register_load_state_dict_post_hook(QuantizedModel._reload)

    @property
    def compact(self) -> CompactModel:
        """The same network for the NumPy engine and the exporters."""
        return self._compact

    def forward(self, x: torch.Tensor, abs_first: bool = False) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Real outputs, float32, of real inputs on the grid, or of int8 codes; raises as `Integer` does."""
        codes = x.detach() if x.dtype == torch.int8 else _codes(x)
        outputs = real_values(self.compact, engine_of(self.compact, abs_first)(codes.cpu().numpy()))
        tensors = tuple(torch.from_numpy(y).to(x.device) for y in (outputs if isinstance(outputs, tuple) else (outputs,)))
        return tensors if isinstance(outputs, tuple) else tensors[0]

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, torch.Tensor]) -> "QuantizedModel":
        """The inverse of `state_dict()`. Raises ValueError for an edited or unusable one."""
        return cls(CompactModel.from_state_dict({key: value.detach().cpu().numpy() for key, value in state_dict.items()}))

    def save(self, path: str | os.PathLike):
        """Write the compact file, whole or not at all; the same network gives the same bytes."""
        return save_compact(self.compact, path)

    def dequantize(self) -> dict[str, torch.Tensor]:
        """Real weights and biases, float32, that the integers stand for: code / 2^(bits-1) * 2^weight_shift."""
        state, result = self.compact.graph["state"], {}
        for layer, stored in state.items():
            if f"{layer}.weight" not in self.compact.tensors:
                continue
            step = 2.0 ** (stored["output_shift"][0][0] - stored["weight_bits"][0][0] + 1)
            for name, codes in (("weight", self.compact.weight(layer)), ("bias", self.compact.bias(layer))):
                if codes is not None:
                    result[f"{layer}.{name}"] = torch.from_numpy(codes.astype(np.float32)) * step
        return result

    def extra_repr(self) -> str:
        graph = self.compact.graph
        return f"{graph['arch']}, {len(graph['ops'])} operations, input {tuple(graph['input_shape'])}, int8 codes"

    def _reload(self, _) -> None:
        self._compact = CompactModel.from_state_dict({k: v.cpu().numpy() for k, v in self.state_dict().items()})


def save_compact(compact: CompactModel, path: str | os.PathLike):
    """Write the compact file of a model, whole or not at all, and return its path."""
    return save(path, {key: torch.from_numpy(np.array(value)) for key, value in compact.to_state_dict().items()})


def _child(module: nn.Module, path: list[str]) -> nn.Module:
    for name in path:
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module._modules[name]
    return module


def _codes(x: torch.Tensor) -> torch.Tensor:
    codes = x.detach() * 128
    rounded = codes.round()
    if not torch.equal(codes, rounded) or codes.min() < -128 or codes.max() > 127:
        raise ValueError(
            "the input is not on the 1/128 grid in [-1, 127/128]; use ai8x.normalize()(images), or round(128·x)/128 and clamp"
        )
    return rounded.to(torch.int8)


def load_compact(path: str | os.PathLike) -> QuantizedModel:
    """Read `model_8bit.pth`. Raises FileNotFoundError or ValueError, naming the file, as `CompactModel.load` does."""
    return QuantizedModel(CompactModel.load(path))
