"""Every test starts on device 85 in training mode with seed 0, and leaves the device like that."""

import pytest
import torch
from orders import sums

from qatlib import ai8x


@pytest.fixture(scope="session", autouse=True)
def arithmetic():
    """Torch's own, or as QATLIB_SUMS asks."""
    with sums():
        yield


@pytest.fixture(autouse=True)
def training_mode():
    torch.manual_seed(0)
    ai8x.set_device(85, False, False, verbose=False)
    yield
    ai8x.set_device(85, False, False, verbose=False)


@pytest.fixture(scope="module")
def one_thread():
    """For exact sums, whose order depends on the threads, and for tiny tensors, where threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
