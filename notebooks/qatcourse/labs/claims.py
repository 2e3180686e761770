"""The design brief, claim by claim, for lesson 10: what it says (in few words), and the verdict that a measurement gives.

The brief says some things several times; `lines` names every line of it where a claim stands. A `Page` collects verdicts, each
with the sentence that a cell measured, and refuses to be shown while one of them is missing. Below it stand the measurements
that take more than a few lines: what stored runs lost, how often a weight jumps, how far a gradient is off.
"""

import copy
import math
from dataclasses import dataclass

from qatcourse.pose.train import batch_loss
from qatcourse.viz import table
from qatlib.quantizers import dequantize, quantize

HOLDS, WHEN, FALSE = "holds", "holds when", "false"
VERDICTS = (HOLDS, WHEN, FALSE)


@dataclass(frozen=True)
class Claim:
    """One claim: `number` in the page, `says` in few words, `lines` of the brief where it stands."""

    number: int
    says: str
    lines: str


_CLAIMS = (
    # what QAT is
    ("weights remain FP32 during training", "5-6, 35, 119, 150, 257, 259, 271, 277"),
    ("quantization is simulated in the forward pass", "1, 5, 7, 36, 148, 200, 260, 272, 277"),
    ("the model learns to work with quantized values", "8, 38, 149, 153, 183, 185, 261, 273"),
    ("can be quantized to 8 bits afterwards with minimal loss", "9, 152, 155, 234, 262"),
    ("traditional training: input, convolution, activation, output, all FP32", "15-19"),
    ("quantized to 8 bits later, its accuracy drops significantly", "21, 169"),
    ("a float model never saw quantized values", "22, 170"),
    ("its weights are optimized for FP32 precision", "23"),
    ("quantization introduces errors it is not prepared for", "24, 171"),
    # the QAT diagram and the layer
    ("each layer quantizes its input first", "29, 55-56"),
    ("quantize stands between convolution and activation", "29"),
    ("the output is FP32, the values in it are quantized", "29, 68"),
    ("gradients flow back to the FP32 weights", "31, 37"),
    ("backward works as if quantization did not happen", "37"),
    ("the layer is called `ai8x.FusedConv2dBNReLU`", "46"),
    ("weights are scaled and rounded to integers", "51-53, 114"),
    ("the convolution computes with quantized values", "58-59"),
    ("batch norm runs after the convolution, in the QAT forward pass", "61-62"),
    ("ReLU follows", "63"),
    ("the output is quantized to 8 bits", "65-66, 115-116"),
    # its parameters
    ("`output_shift` is a scaling factor of each layer", "75-76"),
    ("`output_shift` maximizes precision, prevents overflow and underflow", "76-77"),
    ("`output_shift` is learned", "71-73, 78, 154, 224, 226"),
    ("`activation_threshold` sets the range of activations", "80-81"),
    ("`activation_threshold` prevents saturation", "82"),
    ("`activation_threshold` is learned, from activation statistics", "71-73, 83, 154, 226"),
    ("weight scales are optimal and use the whole 8-bit range", "85-86"),
    ("weight scales minimize quantization error", "87"),
    ("weight scales are computed from weight statistics", "88"),
    # why FP32
    ("FP32 gives gradients full precision; small ones are not lost", "96-98"),
    ("FP32 weights converge better", "99"),
    ("no quantization noise in gradients", "101-102"),
    ("training dynamics remain stable", "103"),
    ("hyperparameters are easier to tune", "104"),
    ("other bit widths can be chosen later", "106-107"),
    ("quantization parameters can be fine-tuned", "108"),
    ("debugging is easier", "109"),
    ("weights, activations and gradients are stored as FP32", "118-121"),
    # the configuration
    ("`ai8x.set_device(device=85, simulate=False, round_avg=False)` configures it", "130-135, 267"),
    ("`device=85` is the MAX78000", "139"),
    ("`simulate=False` enables QAT", "140-141, 147, 270"),
    ("`simulate=True` does not simulate quantization", "142"),
    ("`simulate=True` is for evaluation only", "142"),
    ("`round_avg=False` leaves averages unrounded in average pooling", "143"),
    # PTQ beside QAT
    ("PTQ: the loss arises where the trained model is quantized", "164-166"),
    ("PTQ often loses 5 to 10 % of accuracy", "172"),
    ("train with QAT, quantize, deploy: the model is prepared", "177-179"),
    ("QAT loses less than 2 %", "184, 278"),
    # is QAT on?
    ("the loss stays similar to FP32 training when QAT is on", "195"),
    ("the model converges normally", "196"),
    ("the model's size is reported as FP32 size", "197"),
    ("the weight check runs; every parameter is float32", "199-208"),
    ("weight values lie in about -2 to 2", "209"),
    ("weights are not integers yet", "210"),
    ("the parameter check runs; both parameters exist", "212-221, 224-225"),
    # export and result
    ("`quantize_model(trained_model, bit_width=8)`, then `torch.save`", "236-239, 243, 246"),
    ("the learned quantization parameters are applied and saved", "125, 244"),
    ("export converts weights to 8-bit integers", "123-124, 245"),
    ("the file has about 400 KB", "249, 279"),
    ("98 % of FP32 accuracy remain", "250"),
    ("the size meets the 2 MB target", "279"),
    ("ready for the MAX78000, performance optimized for it", "126, 251, 280"),
    ("its sources bear it out: the AI8X documentation, Hinton et al. (2015), standard practice", "284-288"),
)
CLAIMS = tuple(Claim(number, *claim) for number, claim in enumerate(_CLAIMS, 1))


class Page:
    """Verdicts on claims, as measured: `page.holds(1, "...")`, `page.when(2, "condition", "...")`, `page.false(10, "...")`."""

    def __init__(self, claims=CLAIMS):
        self.claims = {claim.number: claim for claim in claims}
        self.verdicts: dict[int, tuple[str, str, str]] = {}

    def holds(self, number: int, evidence: str) -> None:
        self.settle(number, HOLDS, "", evidence)

    def when(self, number: int, condition: str, evidence: str) -> None:
        """The claim holds on a condition, written to follow the words 'holds when'."""
        self.settle(number, WHEN, condition, evidence)

    def false(self, number: int, evidence: str) -> None:
        self.settle(number, FALSE, "", evidence)

    def settle(self, number: int, verdict: str, condition: str, evidence: str) -> None:
        if number not in self.claims:
            raise ValueError(f"there is no claim {number}; they are numbered 1 to {max(self.claims)}")
        if verdict == WHEN and not condition.strip():
            raise ValueError(f"claim {number} holds when what? Name the condition")
        if not evidence.strip():
            raise ValueError(f"claim {number} needs evidence: the sentence that a measurement gave")
        self.verdicts[number] = (verdict, condition, evidence)

    @property
    def open(self) -> list[int]:
        """Numbers of the claims without a verdict yet."""
        return [number for number in self.claims if number not in self.verdicts]

    def counts(self) -> dict[str, int]:
        """verdict -> number of claims."""
        return {verdict: sum(v == verdict for v, _, _ in self.verdicts.values()) for verdict in VERDICTS}

    def rows(self, first: int = 1, last: int | None = None) -> list[dict]:
        """Table rows of the claims `first` to `last`. Raises ValueError while one of them has no verdict."""
        chosen = [n for n in self.claims if first <= n <= (last or max(self.claims))]
        if missing := [n for n in chosen if n not in self.verdicts]:
            raise ValueError(f"no verdict yet on {', '.join(map(str, missing))}; run the cells above from the top")
        return [self._row(n) for n in chosen]

    def _row(self, number: int) -> dict:
        claim, (verdict, condition, evidence) = self.claims[number], self.verdicts[number]
        said = f"{verdict} {condition}".strip()
        return {"no.": number, "lines": claim.lines, "the brief says": claim.says, "verdict": said, "measured": evidence}

    def table(self, first: int = 1, last: int | None = None):
        """The same as a table that displays itself."""
        return table(self.rows(first, last), f"Claims {first} to {last or max(self.claims)}")

    def summary(self):
        """How many claims got each verdict, all of them settled."""
        total = len(self.rows())
        rows = [{"verdict": verdict, "claims": count, "share": f"{count / total:.0%}"} for verdict, count in self.counts().items()]
        return table(rows, f"{total} claims")


# --- measurements ----------------------------------------------------------------------------------------------------------


def losses(stored: dict, version: str) -> dict[int, dict[str, float]]:
    """bits -> run -> share of FP32's PCK that `version` ("naive", "ptq" or "qat") lost, over all runs in data/reference.json.

    FP32 is the float network trained on for as long as QAT, where the run has one. A gain is negative.
    """
    found: dict[int, dict[str, float]] = {8: {}, 4: {}, 2: {}}
    for name, entry in stored.items():
        run, _, rest = name.partition(".bits")
        if rest[1:] == f".{version}.pck":
            fp32 = stored.get(f"{run}.fp32_longer.pck", stored.get(f"{run}.fp32.pck"))
            found[int(rest[0])][run] = 1 - entry["value"] / fp32["value"]
    return found


def span(values) -> str:
    """Smallest and largest share as text, in percent."""
    values = [100 * value for value in values]
    return f"{min(values):.1f} to {max(values):.1f} %"


def verdict(found: dict[int, dict[str, float]], low: float, high: float) -> tuple[str, str]:
    """(verdict, condition) for "loses `low` to `high`" over the runs of `losses`; the condition names bits and how many runs."""
    hits = {bits: sum(low <= share <= high for share in runs.values()) for bits, runs in found.items()}
    where = [f"{bits} bits" + f" in {n} of {len(found[bits])} runs" * (n < len(found[bits])) for bits, n in hits.items() if n]
    if not where or all(n == len(found[bits]) for bits, n in hits.items()):
        return HOLDS if where else FALSE, ""
    return WHEN, f"weights have {', or '.join(where)}"


def ptq_verdict(stored: dict) -> tuple[str, str, str]:
    """(verdict, condition, evidence) for "PTQ often loses 5 to 10 %", from calibrated runs; the evidence names the others too."""
    ptq, careless = losses(stored, "ptq"), [share for runs in losses(stored, "naive").values() for share in runs.values()]
    told = ", ".join(f"{bits} bits {span(runs.values())}" for bits, runs in ptq.items() if runs)
    return *verdict(ptq, 0.05, 0.10), f"calibrated, {told}; uncalibrated, {span(careless)}"


def jumps(rate, target: float = 0.3, scale: float = 1 / 8, steps: int = 100, start: float = 0.3) -> int:
    """How often the code of one weight changes in `steps` of descent on its quantized value; `rate(k)` is step k's rate."""
    w, count = start, 0
    for k in range(steps):
        code = math.floor(w / scale + 0.5)
        w -= rate(k) * (code * scale - target)
        count += code != math.floor(w / scale + 0.5)
    return count


RATES = {
    "0.2": lambda k: 0.2,
    "0.2 / (k + 1)": lambda k: 0.2 / (k + 1),
    "a cosine from 0.2 to 0": lambda k: 0.1 * (1 + math.cos(math.pi * k / 100)),
}


def gradient(model, poses, layer: str = "conv2"):
    """The pose loss's gradient at one layer's float weights, in training mode; its shape is the weights'."""
    model = copy.deepcopy(model).train()
    batch_loss(model, poses.images, poses.joints, poses.labelled).backward()
    return model.get_submodule(layer).op.weight.grad


def halved_is_better(layer) -> bool:
    """Has a 2-bit grid of half the range a smaller squared error than the one that the largest weight (or bias) sets?"""
    weight, full = layer.op.weight.detach(), 2 ** layer.weight_shift().item()
    chosen, half = ((dequantize(quantize(weight, s, 0, 2), s, 0) - weight).square().mean() for s in (full / 2, full / 4))
    return bool(half < chosen)
