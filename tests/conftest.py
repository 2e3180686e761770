"""Every test starts on device 85 in training mode with seed 0, and leaves the device like that."""

import contextlib
import os

import float_sums
import pytest
import torch

from qatlib import ai8x

SUMS = {"": contextlib.nullcontext, "exact": float_sums.ExactSums, "channels last": float_sums.ChannelsLast}


def sums():
    """The arithmetic that QATLIB_SUMS asks for, to enter: torch's own, or one that adds in another order."""
    return SUMS[os.environ.get("QATLIB_SUMS", "")]()


@pytest.fixture(autouse=True)
def training_mode():
    torch.manual_seed(0)
    ai8x.set_device(85, False, False, verbose=False)
    with sums():
        yield
    ai8x.set_device(85, False, False, verbose=False)


@pytest.fixture(scope="module")
def one_thread():
    """For exact sums, whose order depends on the threads, and for tiny tensors, where threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
