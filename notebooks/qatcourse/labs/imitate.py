"""One quantized layer that learns to give the outputs of its float original, for lessons 02 and 10."""

import torch
from torch import nn

from qatlib import ai8x


def student_layer(teacher, inputs, weight_bits: int, shift_quantile: float = 1.0):
    """A quantized copy of one ai8x convolution with ReLU (batch norm fused), calibrated on `inputs`.

    Its output is in the teacher's units: `final_scale`, a power of two, undoes the threshold of its activations.
    """
    op = teacher.op
    layer = ai8x.FusedConv2dReLU(op.in_channels, op.out_channels, op.kernel_size, padding=op.padding)
    layer.op.load_state_dict(op.state_dict())
    policy = {"weight_bits": weight_bits, "shift_quantile": shift_quantile}
    ai8x.start_qat(nn.Sequential(layer), [(inputs,)], policy, progress=False)
    return layer


def imitate(teacher, inputs, others, weight_bits: int, shift_quantile=1.0, steps: int = 60, rate: float = 3e-3) -> dict:
    """Train a `student_layer` on `inputs` to give its teacher's outputs. Relative squared errors on `others`, before and after.

    Returns {"PTQ": before, "QAT": after, "losses": relative training error at each step, "layer": the student}.
    """
    with torch.no_grad():
        wanted, wanted_others = teacher(inputs), teacher(others)
    student = student_layer(teacher, inputs, weight_bits, shift_quantile)

    def error(x, y):
        return (student(x) - y).square().mean() / y.square().mean()

    optimizer, losses, before = torch.optim.Adam(student.op.parameters(), lr=rate), [], error(others, wanted_others)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        loss = error(inputs, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"PTQ": before.item(), "QAT": error(others, wanted_others).item(), "losses": torch.stack(losses), "layer": student}
