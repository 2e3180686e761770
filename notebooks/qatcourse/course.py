"""What every lesson needs first: versions, the seed, and the committed network."""

import platform

import numpy
import torch

import qatlib
from qatcourse import DATA
from qatcourse.pose.checkpoint import load_model


def start(seed: int = 0) -> None:
    """Print the versions in use and seed torch and NumPy, so that a lesson gives the same numbers each time on one computer.

    Float sums keep a trace of the order in which a processor and its threads add; trained networks differ elsewhere.
    """
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    found = {"qatlib": qatlib.__version__, "torch": torch.__version__.split("+")[0], "numpy": numpy.__version__}
    print(", ".join(f"{name} {version}" for name, version in found.items()) + f", Python {platform.python_version()}; seed {seed}")


def pretrained():
    """The pose network of the course, trained in float (FP32), as `qatcourse.pose.train.load_model` returns it."""
    path = DATA / "pose_tiny_fp32.pth"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; get the whole repository, not only the notebooks, or install the wheel again")
    return load_model(path)
