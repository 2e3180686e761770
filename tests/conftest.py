"""Every test starts on device 85 in training mode with seed 0, and leaves the device like that."""

import os

import pytest
import torch
from lab import FLAGS, chromium
from orders import sums

from qatlib import ai8x
from qatlib.export import cortex_m4


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


@pytest.fixture(scope="session")
def cross_compiler():
    """Cross compiler and emulator: without them the test is skipped, or fails where QATLIB_CORTEX_REQUIRED=1 (in CI)."""
    if problem := cortex_m4.missing():
        if os.environ.get("QATLIB_CORTEX_REQUIRED") == "1":
            pytest.fail(f"{problem}; QATLIB_CORTEX_REQUIRED=1 forbids to skip")
        pytest.skip(problem)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium. Without it the test is skipped, or fails where QATLIB_BROWSER_REQUIRED=1 (in CI).

    A module each: while its driver is open, asyncio says that a loop is running.
    """
    if (path := chromium()) is None:
        if os.environ.get("QATLIB_BROWSER_REQUIRED") == "1":
            pytest.fail("Chromium is not installed, and QATLIB_BROWSER_REQUIRED=1 forbids to skip; apt-get install chromium")
        pytest.skip("Chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()
