"""Checks of lessons 11 and 14: is a patient repaired? The doctor is asked, and the network has to work again, also on the chip."""

import copy
import functools

import numpy as np
import torch

from qatcourse.checks import Exercise, NotYet, always, ask, judged, row
from qatcourse.labs.break_it import FOUND_AS, WARD, Patient, admit, healthy, weighted
from qatlib import ai8x, quantizers

SEEDS = (0, 1)  # a repair must hold for two patients, not for the numbers of one
LEARNED = 0.8  # patient C's loss after training; it starts above


def _examine(letter: str, also, repair):
    for seed in SEEDS:
        before = _state(admit(letter, seed))
        mended = ask(repair, admit(letter, seed), read=_patient)
        problem = _problem(mended, admit(letter, seed), healthy(seed)) or also(mended)
        after = "-" if problem else f"{mended.diagnose().verdict}; {_state(mended)}"
        yield row(f"network {seed}, before: {before}", "healthy", after, not problem), problem or f"repaired: {after}."


def _state(p: Patient) -> str:
    said = f"finds {p.accuracy():.0%} of the spots"
    if p.name == "F":
        said += f", reports one in {p.reported(p.model)['without one']:.0%} of the pictures without any"
    return said + (f", {p.symptoms()['values that differ']} of the values differ on the chip" if p.name == "D" else "")


def _patient(answer) -> Patient:
    if not isinstance(answer, Patient):
        raise NotYet(f"must return the patient; this was a {type(answer).__name__}.")
    if ai8x.dev.simulate:
        raise NotYet("left the device simulating the chip; QAT and the doctor need ai8x.set_device(85, simulate=False).")
    return answer


@torch.no_grad()
def _problem(p: Patient, was: Patient, good: Patient) -> str:
    """What is still wrong, or an empty string."""
    if said := _input(p, was) or (_retrained(p) if p.name == "C" else ""):
        return said
    if other := {layer.weight_bits.item() for layer in weighted(p.model)} - {0, 8}:
        return f"some layers have {max(other)}-bit weights; the patient came with 8 bits and must leave with 8."
    seen, name = p.diagnose(), FOUND_AS[WARD[p.name]]
    for finding in seen.problems:
        if finding.name == name:
            return f"the doctor still finds '{name}': {finding.text}. Remedy: {finding.remedy}."
    if seen.problems and p.name != "C":
        return f"'{name}' is gone, but now there is: {seen.verdict}; {seen.problems[0].text}."
    return _another(p, was, good) or _at_work(p, good)


def _input(p: Patient, was: Patient) -> str:
    if not torch.equal(p.images, was.images) or not torch.equal(p.cells, was.cells):
        return "the pictures must stay the same; repair the network or its input, not the task."
    if not isinstance(p.x, (torch.Tensor, np.ndarray, list)):
        return f"patient.x is a {type(p.x).__name__}, not a tensor; ai8x.normalize(args) makes a function, to be called on images."
    p.x = torch.as_tensor(p.x).float()
    if p.x.shape != was.x.shape:
        return f"patient.x has shape {tuple(p.x.shape)}; it must keep {tuple(was.x.shape)}."
    wrong = ((p.x - (p.images.float() - 128) / 128).abs() > 1 / 128).float().mean().item()  # normalize may be one code off
    on_the_grid = torch.equal(p.x * 128, p.codes().float())
    return f"{wrong:.0%} of the input's values are not (byte - 128) / 128." if wrong and on_the_grid and p.x.min() < 0 else ""


def _retrained(p: Patient) -> str:
    rate = p.learning_rate
    try:
        p.learning_rate = float("" if isinstance(rate, str) else rate)
    except (TypeError, ValueError, RuntimeError):
        return f"patient.learning_rate is a {type(rate).__name__}; it must be a number."
    if not 0 < p.learning_rate < float("inf"):
        return f"patient.learning_rate is {rate}; a learning rate is above 0."
    with torch.enable_grad():
        p.train()
    first, last = p.history[0], p.history[-1]
    said = f"the loss has hardly moved, from {first:.3f} to {last:.3f}: so small a rate breaks nothing, and teaches nothing."
    return said if LEARNED < last <= first else ""


def _another(p: Patient, was: Patient, good: Patient) -> str:
    """Is it another network? A repair and a short training leave the weights nearly parallel to what they were."""
    ai8x.fuse_bn_layers(was.float_model)
    mine, own, other = (model.conv1.op.weight.flatten() for model in (p.model, was.float_model, good.model))
    if torch.cosine_similarity(mine, own, 0) < 0.7 or p.name == "E" and torch.equal(mine, other):
        return "this is another network, a healthy one. Repair the patient itself: patient.float_model has its float weights."
    return ""


def _at_work(p: Patient, good: Patient) -> str:
    chip, maps = p.chip(), p.model(p.x)
    if chip is None or not torch.equal(maps, chip(p.codes())):
        return "the doctor is content, but the chip still computes something else than training."
    if p.name == "D" and not torch.equal(maps, good.model(good.x)):
        return "the outputs are not those of the network as it was trained; did you change its weights?"
    if p.accuracy() < 0.95:
        return f"the doctor is content, but the spot is found in {p.accuracy():.0%} of the pictures; in good health it is 100%."
    return ""


# --- the exercises, in the order of the lesson; a row is what a learner writes about the patient p ------------------------


def _code(text: str):
    """The repair of a learner who writes `text`."""

    def repair(p):
        exec(text, {"p": p, "torch": torch, "np": np, "ai8x": ai8x, "quantizers": quantizers, "copy": copy, "healthy": healthy})
        return p

    return repair


def repairs(letter: str, right: list[str], wrong: dict[str, str], also=lambda patient: ""):
    """The check of a patient's repair; `also`: what else may be wrong with one that works, in words."""
    rows = [(_code(text), words) for text, words in wrong.items()]
    return judged(f"repair_{letter.lower()}", right=[*map(_code, right)], wrong=rows)(functools.partial(_examine, letter, also))


FLOAT, SWITCH = "p.model = copy.deepcopy(p.float_model)", "ai8x.initiate_qat(p.model, {'weight_bits': 8})"
START = FLOAT + "; ai8x.start_qat(p.model, [p.x], {'weight_bits': 8}, progress=False)"
SIMULATE, ELSEWHERE = "ai8x.set_device(85, simulate=True, verbose=False)", "p.model = healthy().model"
BIAS, RATE = "op = p.model.conv4.op; op.bias.data", "p.learning_rate"
CODES = "p.model.conv3.to_codes = "

check_a = repairs("A", [
    "p.x = (p.images.float() - 128) / 128", "p.x = p.images.double() / 128 - 1", "p.x = (p.images.numpy() - 128.0) / 128",
    "p.x = (p.images.to(torch.int16) - 128) / 128", "p.x = ((p.images.float() - 128) / 128).tolist()",
    "class args: act_mode_8bit = False\np.x = ai8x.normalize(args)(p.images / 255)",
], {
    "p.x = p.images.float() / 255 - 0.5": "grid", "p.x = p.images.float() - 128": "integer codes",
    "p.x = (p.images - 128) / 128": "outside",  # bytes wrap around
    "p.x = p.images / 127.5 - 1": "outside", "p.x = ai8x.normalize()": "makes a function",
    "p.x = ai8x.normalize(p.images)": "settings first",
    "p.x = (p.images.float() - 128).flip(3) / 128": "of the input's values are not", "p.x = p.x[0]": "shape (3, 16, 16)",
    "p.images = p.images // 2; p.x = p.images / 128 - 0.5": "pictures must stay", SIMULATE: "simulating the chip",
})  # fmt: skip
check_b = repairs("B", [
    "op = p.model.conv4.op; m = op.weight.abs().max().item(); op.bias.data.clamp_(-m, m)", BIAS + "[3] = -0.25", START,
    "op = p.model.conv4.op; op.bias = torch.nn.Parameter(op.bias.detach().clamp(-0.25, 0.25))",
], {
    BIAS + "[3] = -20.0": "bits", BIAS + "[3] = 40.0": "bits", BIAS + ".clamp_(max=1.0)": "bits", SWITCH: "bits",
    "p.model.conv4.op.weight.data[3] *= 100": "bits", "p.model.conv4.op.weight.data.mul_(256)": "learning rate",
    "ai8x.initiate_qat(p.model, {'weight_bits': 4})": "4-bit weights", ELSEWHERE: "another network",
})  # fmt: skip
check_c = repairs("C", [
    RATE + " /= 10", RATE + " = 0.005", RATE + " = np.float32(0.01)", RATE + " = torch.tensor([0.01])", RATE + " = 1e-3; p.train()",
], {
    RATE + " = 0": "above 0", RATE + " = -0.1": "above 0", RATE + " = None": "NoneType; it must be a number",
    RATE + " = '0.01'": "str; it must be a number", RATE + " = 1e-6": "hardly moved", RATE + " *= 2": "the loss rises",
    "p.history.clear()": "the loss rises",
})  # fmt: skip


def _pairs() -> list[tuple]:
    """(label, training, chip): dicts of codes by layer name."""
    random, names = torch.Generator().manual_seed(11), ("stem", "body", "a_side", "fork", "neck", "top")
    same = {name: torch.randint(0, 128, (4, 3, 5, 5), generator=random, dtype=torch.int32) for name in names}

    def changed(**steps):
        last = torch.zeros(4, 3, 5, 5, dtype=torch.int32)
        last[-1, -1, -1, -1] = 1
        return {name: codes + steps.get(name, 0) * last for name, codes in same.items()}

    return [("from body on", same, changed(body=1, a_side=1, fork=2, neck=-30, top=3)), ("in top", same, changed(top=-1)),
            ("pictures swapped in body", same, same | {"body": same["body"].flip(0)}), ("none", same, changed()),
            ("patient D", *admit("D").layers())]  # fmt: skip


def _first(training, chip, differ=lambda a, b: not torch.equal(a, b)) -> str:
    return next((name for name in training if differ(training[name], chip[name])), "")


check_first = Exercise(
    "first_difference(training, chip): the name of the first layer whose codes differ, '' if there is none.",
    _first,
    _pairs,
    (lambda _, a, b: _first(a, b, torch.equal), "{0}: you name the first layer that is equal; the first that differs is wanted."),
    (lambda _, a, b: _first(dict(reversed(a.items())), b), "{0}: that is the last one; what follows a wrong layer is wrong, too."),
    (lambda _, a, b: _first(dict(sorted(a.items())), b), "{0}: keep the order of the dict, which is the order of execution."),
    (lambda _, a, b: max(a, key=lambda n: (a[n] - b[n]).abs().max()), "{0}: most is wrong there, but it begins in '{want}'."),
    (lambda _, a, b: _first(a, b, lambda x, y: (x - y).abs().max() > 1), "{0}: one code is a difference; allow no tolerance."),
    (lambda _, a, b: _first(a, b, lambda x, y: not torch.equal(x[0], y[0])), "{0}: compare all pictures, not the first alone."),
    (lambda _, a, b: _first(a, b, lambda x, y: x.sum() != y.sum()), "{0}: sums and means can agree where codes do not."),
    (lambda *_: "conv3", "{0}: expected '{want}', got '{got}'.", always),
    read=lambda name: str(name) or "none",
    right=[lambda a, b: [*[n for n in a if not np.array_equal(a[n].numpy(), b[n].numpy())], ""][0]],
    praise="Five pairs of engines, and the first layer that differs in each.",
)  # fmt: skip
check_d = repairs("D", [
    CODES + "quantizers.round_half_up", CODES + "lambda v: torch.floor(v + 0.5)",
    "new = ai8x.FusedConv2dReLU(12, 12, 3, padding=1); new.load_state_dict(p.model.conv3.state_dict()); p.model.conv3 = new",
], {
    CODES + "torch.floor": "arithmetic", CODES + "torch.trunc": "arithmetic", CODES + "torch.ceil": "arithmetic",
    CODES + "lambda v: v": "arithmetic", CODES + "lambda v: torch.round(v + 0.5)": "arithmetic",
    "ai8x.update_model(p.model)": "ties are rounded to even", START: "did you change its weights",
})  # fmt: skip
