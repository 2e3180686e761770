"""Checks of lesson 11: is a broken network repaired? The doctor is asked, and the network has to do its work again."""

import copy
import functools

import torch

from qatcourse.checks import NotYet, Report, ask, judged, row
from qatcourse.labs.break_it import FOUND_AS, Patient, healthy, make
from qatlib import ai8x

SEEDS = (0, 1)  # a repair must hold for two patients, not for the numbers of one


def check(name: str, repair) -> Report:
    """Break two networks with the bug `name`, let the learner's `repair(patient)` mend them, and examine them."""
    return judged(f"repair_{name}")(functools.partial(_examine, name))(repair)


def _examine(name: str, repair):
    for seed in SEEDS:
        patient = make(name, seed)
        was = patient.diagnose().verdict
        mended = ask(repair, patient, read=_patient)
        ok, said = fixed(mended, seed)
        yield row(f"network {seed}, before: {was}", "healthy", mended.diagnose().verdict, ok), said


def _patient(answer) -> Patient:
    if not isinstance(answer, Patient):
        raise NotYet(f"must return the patient; this was a {type(answer).__name__}.")
    return answer


def __getattr__(name: str):
    """`check_input_range(repair)` and so on, one for each bug."""
    bug = name.removeprefix("check_")
    if name.startswith("check_") and bug in FOUND_AS:
        return lambda repair: check(bug, repair)
    raise AttributeError(f"lesson11 has no {name!r}; it offers {', '.join(f'check_{bug}' for bug in FOUND_AS)}")


def fixed(patient: Patient, seed: int = 0) -> tuple[bool, str]:
    """(is it repaired?, a sentence): the doctor's finding is gone, and the network does again what the healthy one does."""
    if patient.name == "learning_rate":
        patient.train()
    seen, name = patient.diagnose(), FOUND_AS[patient.name]
    for finding in seen.problems:
        if finding.name == name:
            return False, f"the doctor still finds '{name}': {finding.text}. Remedy: {finding.remedy}."
    if seen.problems:
        return False, f"'{name}' is gone, but now there is: {seen.verdict}. {seen.problems[0].text}."
    problem = _behaves(patient, healthy(seed))
    return not problem, problem or f"repaired: the doctor says '{seen.verdict}', accuracy {patient.accuracy():.0%}."


@torch.no_grad()
def _behaves(p: Patient, good: Patient) -> str:
    """What is wrong with the repaired network's work, or an empty string."""
    if not torch.equal(p.images, good.images) or p.x.shape != good.x.shape:
        return "the pictures must stay the same; repair the network or its input, not the task."
    if not torch.equal(p.x, good.x):
        wrong = (p.x != good.x).float().mean()
        return f"{wrong:.0%} of the input's values are not (byte - 128) / 128."
    if not all(layer.weight_bits.item() for layer in ai8x_layers(p.model)):
        return "quantization is off in some layer; the network must stay an 8-bit one."
    if p.name in ("half_even", "missing_clamp", "wrong_checkpoint") and not torch.equal(p.model(p.x), good.model(good.x)):
        return "the doctor is content, but the outputs are not those of the network as it was trained; did you change its weights?"
    if p.name == "wide_head" and (said := _gain_follows(p)):
        return said
    if p.accuracy() < good.accuracy() - 0.05:
        return f"the doctor is content, but accuracy is {p.accuracy():.0%}; the healthy network has {good.accuracy():.0%}."
    return ""


def ai8x_layers(model) -> list:
    return [m for m in model.modules() if isinstance(m, ai8x.QuantizationAwareModule) and m.op is not None]


def _gain_follows(p: Patient) -> str:
    """Is head_gain() right for these weights, and still right when training has changed their shift?"""
    gain = getattr(p.model, "head_gain", None)
    shift = p.model.head.weight_shift()
    if not callable(gain) or not torch.equal(torch.as_tensor(gain()).float().reshape(-1), torch.exp2(shift)):
        return "head_gain() must return 2^weight_shift of the head: float and quantized heat maps then have one scale."
    saved = copy.deepcopy(p.model.head.state_dict())
    p.model.head.op.weight.mul_(8)
    p.model.head.op.bias.mul_(8)
    follows = torch.equal(torch.as_tensor(gain()).float().reshape(-1), torch.exp2(p.model.head.weight_shift()))
    p.model.head.load_state_dict(saved)
    return "" if follows else "head_gain() is a constant; when training moves the weights across a power of two it must follow."
