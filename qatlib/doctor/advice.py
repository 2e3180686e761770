"""What the doctor's findings are called, where they are taught, and what helps."""

from dataclasses import dataclass

from qatlib.doctor.measure import ENOUGH

LESSONS = {
    "01": "01_numbers_and_quantizers", "02": "02_straight_through", "03": "03_ai8x_layers", "04": "04_traditional_ptq_qat",
    "05": "05_train_pose_tiny", "06": "06_inspect_parameters", "07": "07_export_int8",
}  # fmt: skip
START = "call ai8x.start_qat(model, train_loader, policy): it fuses batch norm, measures thresholds, and switches QAT on"
SWITCH = "call ai8x.initiate_qat(model, policy) on the whole network"

# The name of a finding: (its place in the report, lesson, remedy).
ADVICE = {
    "input range": (0, "01", "bring the data to -1..127/128, then round: x = (x * 128).round().clamp(-128, 127) / 128"),
    "wrong checkpoint":
        (1, "07", "load the one that QAT saved; integers run with set_device(85, simulate=True) and inputs of -128..127"),
    "not a number": (2, "05", "go back to the last sound checkpoint; lower the learning rate"),
    "threshold": (3, "06", f"a dead layer gives -inf: go back to the float checkpoint where it lives, and {START}"),
    "graph": (3, "07", "move the decision into __init__, or use only ai8x layers and torch functions"),
    "foreign layer": (3, "03", "use the ai8x layer for it, or compute it outside the network"),
    "plain sum": (3, "03", "make it a layer: self.add = ai8x.Add(), then self.add(a, b)"),
    "refused by export": (3, "07", "change the network so that qatlib.quantize_model takes it"),
    "stale flags": (4, "03", "call ai8x.update_model(model)"),
    "QAT partly off": (4, "03", SWITCH),
    "bits": (4, "03", f"{SWITCH}: it sets all of a layer's flags"),
    "simulated start": (4, "03", f"call ai8x.set_device(85, simulate=False); then, from the float checkpoint, {START}"),
    "QAT never started": (4, "03", START),
    "batch norm not fused": (5, "03", f"from the float checkpoint, {START}"),
    "unequal scales": (5, "06", f"from the float checkpoint, {START}"),
    "changed threshold": (5, "06", f"from the float checkpoint, {START}"),
    **dict.fromkeys(("exploded weights", "learning rate"),
                    (6, "05", "start QAT from the sound float weights with a tenth of the rate, or less, and let it fall")),
    "rounding": (7, "01", "use quantizers.round_half_up"),
    "clamp missing": (7, "03", "clamp after rounding"),
    "arithmetic": (7, "07", "use the ai8x layer itself; where it begins, a comparison with integer.run tells, layer by layer"),
    "dead layer": (8, "06", "go back to a checkpoint where it lives; lower the learning rate"),
    "dead channels": (8, "06", "they cost memory and give nothing: prune them, or train longer"),
    "big bias": (9, "03", "limit the bias (a channel that is always off stays off), or shift_quantile below 1"),
    "clipped weights": (9, "03", "call ai8x.initiate_qat(model, policy) with a shift_quantile nearer to 1"),
    "wasted bit": (9, "03", "shift_quantile slightly below 1 gains it back"),
    "clipping":
        (10, "04", "thresholds were not measured, or on other data: run pre_qat on training data from the float weights"),
    "wasted levels": (10, "06", f"the threshold is too high: from the float checkpoint, {START}, on real inputs"),
    "narrow head": (11, "05", "build the last layer with wide=True (and without activation): it gives 32 bits"),
    "wide head":
        (11, "05", "give the network a head_gain() = 2^weight_shift and multiply by it before the loss, as PoseTiny does"),
    "Abs": (12, "07", "judge the integers that the chip computes, qatlib.quantize_model(model), or use ReLU and train again"),
    "outside": (12, "07", "take it out of forward, and apply it to the outputs of the exported network"),
    "never called": (12, "03", "return its output in evaluation mode, too, or delete it before QAT starts"),
    "few inputs": (12, "06", f"give diagnose at least {ENOUGH} different inputs"),
}  # fmt: skip


@dataclass
class Finding:
    """One thing found, a key of ADVICE. `problem` False: a note, which leaves the network healthy."""

    name: str
    layer: str  # "" for the whole network, "input" for the input
    text: str
    problem: bool = True
    remedy: str = ""  # here and below "": as in ADVICE
    lesson: str = ""  # its number, as in LESSONS

    def __post_init__(self):
        _, lesson, remedy = ADVICE[self.name]
        self.lesson, self.remedy = self.lesson or lesson, self.remedy or remedy


def as_told(name: str, layer: str, sentence: str) -> Finding:
    """A finding of a sentence whose remedy stands behind its last semicolon."""
    text, _, remedy = sentence.rpartition("; ")
    return Finding(name, layer, text or remedy, remedy=remedy if text else "")
