"""What every lesson needs first: versions, the seed, and the files that come with the course."""

import platform
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"


def start(seed: int = 0) -> None:
    """Print the versions in use and seed torch and NumPy, so that a lesson gives the same numbers each time on one computer.

    Float sums keep a trace of the order in which a processor and its threads add; trained networks differ elsewhere.
    """
    import numpy
    import torch

    import qatlib

    torch.manual_seed(seed)
    numpy.random.seed(seed)
    found = {"qatlib": qatlib.__version__, "torch": torch.__version__.split("+")[0], "numpy": numpy.__version__}
    print(", ".join(f"{name} {version}" for name, version in found.items()) + f", Python {platform.python_version()}; seed {seed}")


def data(name: str) -> Path:
    """The path of a file in the course's `data` folder. Raises FileNotFoundError where it is missing."""
    path = DATA / name
    if not path.exists() or DATA not in path.resolve().parents:
        raise FileNotFoundError(f"{name} is not in the course's data folder; get the whole repository, not only the notebooks")
    return path


def pretrained():
    """The pose network of the course, trained in float (FP32), as `qatlib.train_pose_tiny.load_model` returns it."""
    from qatlib.train_pose_tiny import load_model

    return load_model(data("pose_tiny_fp32.pth"))


def student_layer(teacher, inputs, weight_bits: int, shift_quantile: float = 1.0):
    """A quantized copy of one ai8x convolution with ReLU (batch norm fused), calibrated on `inputs`.

    Its output is in the teacher's units: `final_scale`, a power of two, undoes the threshold of its activations.
    """
    from torch import nn

    from qatlib import ai8x

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
    import torch

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
