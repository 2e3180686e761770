"""Checks of lesson 06: which layers are off, which outputs are off the grid, and what threshold a layer needs."""

import copy

import numpy as np
import torch

from qatlib import ai8x, break_it
from qatlib.checks import UNTOUCHED, Report, compare, failed, no_function


def _networks() -> dict:
    """Small networks by description: QAT on, off, off in one layer, and one that only had its device set."""
    patient = break_it.healthy()
    partly = copy.deepcopy(patient.model)
    partly.conv3.init_module(None, None, False)
    ai8x.set_device(85, simulate=False, round_avg=False, verbose=False)
    return {"QAT on": patient.model, "float, set_device called": patient.float_model, "conv3 left out": partly}


def check_layers_off(my_layers_off) -> Report:
    """`my_layers_off(model)`: names of the layers with weights where quantization is off, in order of definition."""
    name = "my_layers_off"
    if not callable(my_layers_off):
        return no_function(name, my_layers_off)
    rows, message = [], None
    for label, model in _networks().items():
        want = [n for n, m in model.named_modules() if isinstance(m, ai8x.QuantizationAwareModule) and not m.weight_bits.item()]
        try:
            got = my_layers_off(model)
            if got is None:
                return failed(name, UNTOUCHED.format(name=name))
            got = [str(item) for item in got]
        except Exception as problem:
            return failed(name, f"not yet: {name} stopped with {type(problem).__name__}: {problem}.")
        ok = got == want
        said = [", ".join(names) or "none" for names in (want, got)]
        rows.append({"case": label, "expected": said[0], "got": said[1], "ok": "yes" if ok else "no"})
        message = message or (None if ok else _advice(label, want, got))
    return Report(name, message is None, "Three networks, every layer right." if message is None else f"not yet: {message}", rows)


def _advice(label: str, want: list, got: list) -> str:
    if set(want) == set(got):
        return "the names are right, their order is not: go through model.named_modules() once."
    if not got:
        return f"{label}: you found none. output_shift is 0 and dtype is float32 in every case; look at weight_bits."
    if not want:
        return f"{label}: all layers are quantized, yet you list {got[0]}. In QAT output_shift stays 0, weights float32."
    extra = [name for name in got if name not in want]
    return f"{label}: expected {', '.join(want)}" + (f"; {extra[0] or 'the whole network'} is not one of them." if extra else ".")


def check_off_grid(my_off_grid) -> Report:
    """`my_off_grid(y)`: the share, 0..1, of values of y that are no multiple of 1/128."""
    torch.manual_seed(6)
    grid = torch.randint(-128, 128, (40,)) / 128
    cases = [(torch.tensor([0.0, 0.0, 0.3, 1.0]),), (torch.randn(40),), (torch.cat([grid[:30], grid[:10] + 1 / 256]),), (grid,)]
    labels = ["0, 0, 0.3, 1", "normal numbers", "a quarter lies half a step off", "on the grid"]

    def expected(y):
        return (y * 128 != torch.round(y * 128)).double().mean()

    def advice(case, want, got):
        if np.isclose(got, 100 * want):
            return "you return per cent; a share lies between 0 and 1."
        if np.isclose(got, 1 - want):
            return "you counted the values on the grid; count the others."
        if np.isclose(got, want * case[0].numel()):
            return "you return a count; divide by the number of values."
        if want == 0.25 and got == 0:
            return "half a step away is off the grid too; compare y * 128 with its rounded value exactly, without a tolerance."
        return "a value is on the grid if y * 128 is a whole number."

    return compare("my_off_grid", my_off_grid, expected, cases, advice, 1e-6, "Four cases agree.", labels)


def check_threshold(my_threshold) -> Report:
    """`my_threshold(values)`: the smallest whole number t with max|values| <= 2^t."""
    cases = [(torch.tensor(v),) for v in ([0.3, -5.1, 2.0], [0.9, 0.1], [4.0, -1.0], [0.2, 0.1], [-17.0, 3.0])]

    def expected(values):
        return torch.ceil(torch.log2(values.abs().max()))

    def advice(case, want, got):
        largest = case[0].abs().max()
        if np.isclose(got, np.log2(largest)):
            return "a shift needs a whole number; round the logarithm up."
        if got == np.floor(np.log2(largest)):
            return f"2^{got:g} is below {largest:g}, which would be clipped: round up, not down."
        if np.isclose(got, 2.0**want):
            return "you return the full scale 2^t; the parameter holds its logarithm t."
        if got == np.ceil(np.log(largest)):
            return "that is the natural logarithm; use log2."
        if got == np.ceil(np.log2(max(float(case[0].max()), 1e-9))):
            return "negative values count too: take the absolute values first."
        return None

    labels = ["largest " + f"{case[0].abs().max():g}" for case in cases]
    return compare("my_threshold", my_threshold, expected, cases, advice, 0.0, "Five layers, five thresholds.", labels)
