"""Checks of lesson 10: verdicts on six claims, a test that tells whether QAT is on, and two meanings of "2 %"."""

import torch
from torch import nn

from qatlib import ai8x
from qatlib.checks import UNTOUCHED, Report, compare, failed, no_function
from qatlib.claims import FALSE, HOLDS, VERDICTS, WHEN

_TRUTH = {
    "output_shift is learned by gradient descent": (FALSE, "does the parameter need a gradient, and what does it hold afterwards?"),
    "master weights stay float32 during QAT": (HOLDS, "look at the dtype of op.weight while QAT is on."),
    "set_device(simulate=False) switches QAT on": (FALSE, "what is weight_bits right after this line?"),
    "8-bit quantization without QAT loses little accuracy": (WHEN, "compare the two 8-bit bars of the first figure."),
    "batch norm runs inside the QAT forward pass": (FALSE, "what is layer.bn when QAT is on?"),
    "backward works as if quantization did not happen": (WHEN, "what is the gradient of a value that was cut off?"),
}


def check_verdicts(my_verdicts) -> Report:
    """`my_verdicts`: claim -> "holds", "holds when" or "false", for the six claims of the exercise."""
    name = "my_verdicts"
    if not isinstance(my_verdicts, dict):
        return failed(name, f"not yet: my_verdicts is a {type(my_verdicts).__name__}; keep it a dict of claim to verdict.")
    if missing := [claim for claim in _TRUTH if not my_verdicts.get(claim)]:
        return failed(name, f"not yet: no verdict on {len(missing)} of {len(_TRUTH)} claims, the first is '{missing[0]}'.")
    unknown = [v for claim in _TRUTH if (v := my_verdicts[claim]) not in VERDICTS]
    if unknown:
        return failed(name, f"not yet: {unknown[0]!r} is no verdict; write {', '.join(map(repr, VERDICTS))}.")
    wrong = [claim for claim, (verdict, _) in _TRUTH.items() if my_verdicts[claim] != verdict]
    rows = [{"case": claim, "got": my_verdicts[claim], "ok": "no" if claim in wrong else "yes"} for claim in _TRUTH]
    if not wrong:
        return Report(name, True, "All six verdicts are what the cells measured.", rows)
    return Report(name, False, f"not yet: {len(wrong)} to go. On '{wrong[0]}': {_TRUTH[wrong[0]][1]}", rows)


def networks() -> dict[str, tuple[nn.Module, bool]]:
    """Small networks by description, each with the truth: is QAT on in all its layers with weights?"""

    def net(*bits, **extra):
        layers = [ai8x.FusedConv2dReLU(3, 3, 3, padding=1) for _ in bits]
        for layer, b in zip(layers, bits):
            if b:
                layer.init_module(b, b, True)
        return nn.Sequential(*layers, *extra.values())

    clamped = net(0, 0)
    for layer in clamped:
        layer.init_module(None, None, False, clamp_activation=True)
    half = net(8, 8)
    half[1].quantize_activation.data.fill_(False)
    return {
        "a new network": (net(0, 0), False),
        "QAT with 8 bits": (net(8, 8), True),
        "QAT with 4 and 2 bits": (net(4, 2), True),
        "clamped, not quantized": (clamped, False),
        "the last layer left in float": (net(8, 0), False),
        "activations of one layer not quantized": (half, False),
        "QAT, and a pooling layer without weights": (net(8, pool=ai8x.MaxPool2d(2)), True),
        "plain torch layers": (nn.Sequential(nn.Conv2d(3, 3, 3)), False),
    }


def check_qat_is_on(my_qat_is_on) -> Report:
    """`my_qat_is_on(model)` must be True where every layer with weights quantizes weights and activations, else False."""
    if not callable(my_qat_is_on):
        return no_function("my_qat_is_on", my_qat_is_on)
    cases = networks()
    hints = {
        "a new network": "set_device alone switches nothing on. Look at weight_bits.",
        "clamped, not quantized": "a clamp is not quantization: weight_bits is still 0.",
        "the last layer left in float": "one float layer makes the network a float network: ask all layers, not any.",
        "activations of one layer not quantized": "look at quantize_activation, too.",
        "QAT, and a pooling layer without weights": "a pooling layer has no weights to quantize: skip layers whose op is None.",
        "plain torch layers": "a network without any ai8x layer is not in QAT: all() of nothing is True.",
    }
    rows = []
    for label, (model, truth) in cases.items():
        try:
            got = my_qat_is_on(model)
        except Exception as problem:
            return failed("my_qat_is_on", f"not yet: on '{label}' it stopped with {type(problem).__name__}: {problem}.")
        if got is None:
            return failed("my_qat_is_on", UNTOUCHED.format(name="my_qat_is_on"))
        if isinstance(got, torch.Tensor):
            got = bool(got.all())
        ok = bool(got) == truth
        rows.append({"case": label, "expected": str(truth), "got": str(bool(got)), "ok": "yes" if ok else "no"})
    wrong = next((row["case"] for row in rows if row["ok"] == "no"), None)
    if wrong is None:
        return Report("my_qat_is_on", True, f"All {len(rows)} networks are told apart. The brief's checks could not do that.", rows)
    said = hints.get(wrong, "it is quantized with these bits, all layers; any weight_bits above 0 counts.")
    return Report("my_qat_is_on", False, f"not yet: '{wrong}': {said}", rows)


def check_loss(my_loss) -> Report:
    """`my_loss(fp32, quantized)` must give (points, relative loss), both in percent."""

    def advice(case, want, got):
        fp32, quantized = case
        if (got == -want).all():
            return "the signs are turned: a loss is positive where the quantized network is worse."
        if abs(got * 100 - want).max() < 1e-6:
            return "these are fractions; both are wanted in percent."
        if abs(got - want[::-1]).max() < 1e-6:
            return "the two are swapped: points first, relative second."
        if abs(got[1] - 100 * (fp32 - quantized) / quantized) < 1e-6:
            return "relative to the float accuracy, not to the quantized one."
        return None

    cases = [(0.8, 0.78), (0.5, 0.49), (0.9, 0.91)]
    labels = [f"{a:g} to {b:g}" for a, b in cases]
    praise = "Both agree. Quantization may gain a little, too: then the loss is negative."
    # float64 rounding of two operations on numbers below 100: far below 1e-9
    return compare("my_loss", my_loss, lambda a, b: (100 * (a - b), 100 * (a - b) / a), cases, advice, 1e-9, praise, labels)
