"""The one layer that all ai8x layers are: pool, quantized convolution or product, shift, activation, rounding, clamp.

Arithmetic of QATv2 (ai8x-training, `ai8x.py`), to the last bit; sections that comments name are of its forward pass.
In every mode 1.0 is 128 integer codes. Modes: float (bits 0), QAT (bits 1, 2, 4 or 8), and simulate (the chip's integers).
"""

import torch
import torch.nn.functional as F
from torch import nn

from qatlib.ai8x import mode as target
from qatlib.ai8x.shift import SHIFT_LIMIT, shift_of_both, shift_operator
from qatlib.quantizers import FusedQuantize, FusedWeightQuantize, fused, round_half_up, straight_through, weight_codes

_FUNCTIONS = ((nn.Linear, F.linear), (nn.ConvTranspose2d, F.conv_transpose2d), (nn.Conv2d, F.conv2d), (nn.Conv1d, F.conv1d))
_ACTIVATIONS = {"ReLU": F.relu, "Abs": torch.abs}
_STATE = (
    ("output_shift", [0.0], torch.float32),
    ("activation_threshold", 0.0, torch.float32),
    ("final_scale", 0.0, torch.float32),
    ("weight_bits", [0], torch.int64),
    ("bias_bits", [0], torch.int64),
    ("quantize_activation", [False], torch.bool),
    ("clamp_activation", [False], torch.bool),
    ("adjust_output_shift", [False], torch.bool),
    ("shift_quantile", [1.0], torch.float32),
)


def require_precise(weight: torch.Tensor, name: str = "this layer") -> None:
    """Raise ValueError for weights in half precision, in which codes and sums would not be exact."""
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} has {weight.dtype} weights, but quantization needs float32; call model.float() (for mixed "
                         "precision keep float32 weights and use torch.autocast)")  # fmt: skip


class QuantizationAwareModule(nn.Module):
    """Base of all layers. State-dict keys and their order are the vendor's, so its checkpoints load.

    `op` is the torch module that owns the float32 master weights (None: pooling only), `pool` a torch pooling module or None,
    `bn` a batch normalisation or None, `activation` 'ReLU', 'Abs' or None. `wide` layers give 32-bit accumulators.
    """

    def __init__(self, pooling=None, activation=None, wide=False, weight_bits=None, bias_bits=None, quantize_activation=False,
                 pool=None, op=None, bn=None, shift_quantile=1.0, clamp_activation=False):  # fmt: skip
        super().__init__()
        self.pooling, self.activation, self.wide = pooling, activation, wide
        for name, value, dtype in _STATE:
            self.register_buffer(name, torch.tensor(value, dtype=dtype))  # no parameter: nothing trains, averages or sums it
        self._values, self._versions = {}, {}  # of these, as Python numbers, and which version of the tensor each was read from
        self.pool, self.op, self.bn = pool, op, bn
        self.init_module(weight_bits, bias_bits, quantize_activation, clamp_activation, shift_quantile)

    def init_module(self, weight_bits, bias_bits, quantize_activation, clamp_activation=False, shift_quantile=1.0, export=False):
        """Switch quantization off (None, None, False) or on (bits in 1, 2, 4, 8; True). `export` is accepted and unused.

        `shift_quantile` is the share (0, 1] of the weights that the shift covers. Raises ValueError for anything else.
        """
        bits = (weight_bits, bias_bits)
        on = bool(quantize_activation)
        if on != (None not in bits) or (on and not set(bits) <= {1, 2, 4, 8}) or (not on and bits != (None, None)):
            raise ValueError(
                f"weight_bits={weight_bits}, bias_bits={bias_bits}, quantize_activation={quantize_activation}: "
                "use bits of 1, 2, 4 or 8 with quantize_activation=True, or None, None, False"
            )
        if not 0 < shift_quantile <= 1:
            raise ValueError(f"shift_quantile is {shift_quantile}; it must be above 0 and at most 1")
        values = {
            "weight_bits": weight_bits or 0,
            "bias_bits": bias_bits or 0,
            "quantize_activation": on,
            "clamp_activation": on or clamp_activation,
            "adjust_output_shift": on and not target.dev.simulate,
            "shift_quantile": shift_quantile,
        }
        for name, value in values.items():
            getattr(self, name).data.fill_(value)
        self.set_functions()

    def set_functions(self) -> None:
        """Re-read the state, also what was written through `.data` (which no version counter notices), and how to round means."""
        self._reread()
        if self.pooling == "Avg":
            self.round_avg = target.dev.round_avg

    def _reread(self) -> None:
        if not self.weight_bits.is_meta:
            self._values.update({name: getattr(self, name).item() for name, _, _ in _STATE})  # for compiled code
        self._versions.clear()

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)
        self._reread()

    def __getstate__(self):
        return self.__dict__ | {"_values": dict(self._values), "_versions": {}}

    def _host(self, name: str):
        """A state tensor as a Python number, copied from its device only when it has changed; a constant of compiled code."""
        if not torch.compiler.is_compiling():
            state = getattr(self, name)
            version = None if state.is_inference() else (state.data_ptr(), state._version)
            if version is None or self._versions.get(name) != version:
                self._values[name], self._versions[name] = state.item(), version
        return self._values[name]

    # --- shifts -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def weight_shift(self) -> torch.Tensor:
        """log2 of the weight scale's inverse, shape (1,): stored when simulating or not in QAT, else from the weights now."""
        return self._shift_of(*self._weights())

    def _shift_of(self, weight, bias):
        if not self._host("adjust_output_shift"):
            return self.output_shift.detach()
        find = shift_operator if torch.compiler.is_compiling() else shift_of_both
        return find(weight, bias, self._host("shift_quantile"))

    def _weights(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias as they are now: `torch.nn.utils.prune` and its kind compute them in hooks of `op`, never called here."""
        for hook in self.op._forward_pre_hooks.values():
            if hasattr(hook, "apply_mask") or hasattr(hook, "compute_weight"):
                hook(self.op, ())
        return self.op.weight, self.op.bias

    def effective_shift(self) -> torch.Tensor:
        """log2 of the factor between accumulator and output, shape (1,): clamp(weight_shift - activation_threshold, -15, 15)."""
        shift = self.weight_shift()
        if target.dev.simulate:
            return shift
        return (shift - self.activation_threshold.detach()).clamp(-SHIFT_LIMIT, SHIFT_LIMIT)

    def quantized_weight(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Integer codes of weight and bias, -2^(b-1)..2^(b-1)-1, in float tensors of the op's shapes.

        Raises ValueError where QAT is off (bits 0), and in simulate, where the stored weights are the codes already.
        """
        bits, bias_bits = self._host("weight_bits"), self._host("bias_bits")
        if not bits or self.op is None:
            raise ValueError("this layer has no quantized weight (weight_bits 0); call initiate_qat first")
        if target.dev.simulate:
            raise ValueError("in simulate the weights are integer codes already; read op.weight, or set_device(simulate=False)")
        weight, bias = self._weights()
        shift = self._shift_of(weight, bias)
        return weight_codes(weight, bits, shift), None if bias is None else weight_codes(bias, bias_bits, shift)

    # --- forward ------------------------------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Real values (simulate: integer codes) through pool, operation, shift, activation, rounding and clamp, in that order.

        Inside autocast a quantized layer computes in float32, which holds its sums. ValueError for weights in half precision.
        """
        if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            self.__prepare_scriptable__()
        if target.dev.simulate or self._host("quantize_activation"):
            kind = self.weight_bits.device.type
            if torch.is_autocast_enabled(kind):
                with torch.autocast(kind, enabled=False):
                    return self._forward(x.float())
        return self._forward(x)

    def __prepare_scriptable__(self):
        """What torch.jit.script calls first."""
        raise ValueError(
            "torch.jit and torch.onnx.export cannot write ai8x layers, whose shifts depend on exact logarithms; use "
            "qatlib.export.onnx_graph.export_onnx(model, path), which gives the chip's integers, or torch.export"
        )

    def _forward(self, x):
        if self.pool is not None:
            x = self._pool(x)
        if self.op is None:
            return x
        return self._simulate(x) if target.dev.simulate else self._train(x)

    def _pool(self, x):
        x, simulate = self.pool(x), target.dev.simulate
        unit = 1.0 if simulate else 128.0
        if self.pooling == "Avg" and (simulate or self._host("quantize_activation")):
            rounding = torch.round if self.round_avg else torch.trunc
            x = straight_through(x, rounding(x * unit) / unit)
        if self.pooling == "Avg" and (simulate or self._host("clamp_activation")):
            x = x.clamp(-128 / unit, 127 / unit)
        return x

    def _apply_op(self, x, weight, bias):
        op = self.op
        function = next(f for cls, f in _FUNCTIONS if isinstance(op, cls))
        if function is F.linear:
            return F.linear(x, weight, bias)
        if function is F.conv_transpose2d:
            return F.conv_transpose2d(x, weight, bias, op.stride, op.padding, op.output_padding, op.groups, op.dilation)
        return function(x, weight, bias, op.stride, op.padding, op.dilation, op.groups)

    def _train(self, x):
        """Float and QAT: the output scale is a power of two, so it is multiplied into the few weights, not the many outputs."""
        (weight, bias), gain = self._weights(), None
        if bits := self._host("weight_bits"):
            require_precise(weight)
            with torch.no_grad():
                shift = self._shift_of(weight, bias)
                scale, gain = torch.exp2(-shift), self._gain(shift)
                in_weights = gain if self.bn is None and not self.wide else torch.ones_like(gain)
            if bias is not None and self._host("bias_bits") == bits:
                weight, bias = fused(FusedWeightQuantize, scale, in_weights, bits, weight, bias)
            else:
                (weight,) = fused(FusedWeightQuantize, scale, in_weights, bits, weight)
                if bias is not None:
                    (bias,) = fused(FusedWeightQuantize, scale, in_weights, self._host("bias_bits"), bias)
            if in_weights is gain:
                gain = None
        elif self._host("activation_threshold") or self._host("output_shift"):
            gain = self._gain(self.output_shift)
        x = self._apply_op(x, weight, bias)
        if self.bn is not None:
            x = self.bn(x)
        return self._activate(x if gain is None or self.wide else x * gain)

    def _gain(self, shift):
        return torch.exp2((shift.detach() - self.activation_threshold.detach()).clamp(-SHIFT_LIMIT, SHIFT_LIMIT))

    def _activate(self, x):
        final = 2.0 ** self._host("final_scale")
        if self._host("quantize_activation"):
            if self.activation == "Abs":
                x = x.abs()
            factor, q_min, q_max = (2.0**14, -(2.0**29), 2.0**29) if self.wide else (128.0, -128.0, 127.0)
            return fused(FusedQuantize, x, factor, q_min, q_max, self.activation == "ReLU", final)
        if self.activation:
            x = _ACTIVATIONS[self.activation](x)
        if self._host("clamp_activation"):
            x = x.clamp(-(2.0**15), 2.0**15) if self.wide else x.clamp(-1.0, 127 / 128)
        return x * final if final != 1.0 else x

    def _simulate(self, x):
        """The chip's integers, but for Abs (see `integer.engine.narrow`): accumulate, shift, floor, activate, round, clamp.

        Exact in `dev.accumulator`, in which wide outputs stay: float32, which narrow ones are, cannot hold 30-bit integers.
        """
        exact = target.dev.accumulator
        bits = self._host("weight_bits") or 8  # also the bias's here, whatever bias_bits says (the vendor's section 2)
        weight = round_half_up(self.op.weight.to(exact) * 2.0 ** (8 - bits))
        bias = None if self.op.bias is None else round_half_up(self.op.bias.to(exact) * 2.0 ** (2 * (8 - bits)))
        acc = self._apply_op(x.to(exact), weight, bias)
        if self.bn is not None:
            acc = self.bn(acc.to(torch.float32)).to(exact)
        if not self.wide:
            acc = torch.floor(acc * torch.exp2(self.weight_shift()).to(exact))
        if self.activation:
            acc = _ACTIVATIONS[self.activation](acc)
        if self.wide:
            y = round_half_up(acc / 2.0 ** (8 - bits)).clamp(-(2.0**29), 2.0**29 - 1)
        else:
            y = round_half_up(acc / 128).clamp(-128, 127).to(torch.float32)
        return y * 2.0 ** self._host("final_scale")

    def extra_repr(self) -> str:
        bits, bias_bits = self._host("weight_bits"), self._host("bias_bits")
        if self.op is None:
            state = "on" if self._host("quantize_activation") else "off"
            return f"pooling only, QAT {state}" + (f", output {self._span()}" if self.pooling == "Avg" else "")
        state = f"QAT on, weight_bits={bits}" if bits else "QAT off (float weights)"
        other = f", bias_bits={bias_bits}" if bias_bits != bits else ""
        shift = f", output_shift={self.effective_shift().item():+.0f}" if bits else ""
        threshold = f", activation_threshold={self._host('activation_threshold'):g}"
        scaled = f" times 2^{self._host('final_scale'):g}" if self._host("final_scale") else ""
        return f"{state}{other}{shift}{threshold}, {'wide ' if self.wide else ''}output {self._span()}{scaled}"

    def _span(self) -> str:
        """The range of the output before `final_scale`, for `print`."""
        low = "0" if self.activation else None
        if target.dev.simulate:
            return f"{low or '-2^29'}..2^29-1 (integers)" if self.wide else f"{low or '-128'}..127 (integers)"
        if not self._host("clamp_activation"):
            return "unbounded"
        return "-2^15..2^15" if self.wide else f"{low or '-1'}..127/128"
