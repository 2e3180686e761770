"""Bit for bit where arithmetic is exact, within bounds where floats are summed: also on processors that sum in another order."""

import subprocess

import processors
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in processors.IN_EVERY_RUN if processors.available(name)])
def test_golden_and_exact_tests_pass_where_sums_have_another_order(name):
    done = subprocess.run(processors.command([]), env=processors.environment(name), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    print(f"{name} changes {', '.join(processors.changed(name)) or 'nothing here'}: {done.stdout.splitlines()[-1]}")


def test_exact_sums_differ_from_every_processors():
    found = processors.changed("exact sums, 1 thread")
    assert {"convolution", "its gradient", "linear", "softmax"} <= set(found), found
