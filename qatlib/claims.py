"""The design brief of train_pose_tiny.py, claim by claim: what it says (in few words) and the verdict that a measurement gives.

The brief says some things several times; `lines` names every line of it where a claim stands. A `Page` collects verdicts, each
with the sentence that a cell measured, and refuses to be shown while one of them is missing.
"""

from dataclasses import dataclass

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
    ("`simulate=True` does not simulate quantization; for evaluation only", "142"),
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
    ("sources: the AI8X documentation, Hinton et al. (2015), standard practice", "284-288"),
)
CLAIMS = tuple(Claim(number, *claim) for number, claim in enumerate(_CLAIMS, 1))


class Page:
    """Verdicts on claims, as measured: `page.holds(1, "...")`, `page.when(2, "condition", "...")`, `page.false(10, "...")`."""

    def __init__(self, claims=CLAIMS):
        self.claims = {claim.number: claim for claim in claims}
        self.verdicts: dict[int, tuple[str, str, str]] = {}

    def holds(self, number: int, evidence: str) -> None:
        self._settle(number, HOLDS, "", evidence)

    def when(self, number: int, condition: str, evidence: str) -> None:
        """The claim holds on a condition, written to follow the words 'holds when'."""
        if not condition.strip():
            raise ValueError(f"claim {number} holds when what? Name the condition")
        self._settle(number, WHEN, condition, evidence)

    def false(self, number: int, evidence: str) -> None:
        self._settle(number, FALSE, "", evidence)

    def _settle(self, number: int, verdict: str, condition: str, evidence: str) -> None:
        if number not in self.claims:
            raise ValueError(f"there is no claim {number}; they are numbered 1 to {max(self.claims)}")
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
        return {"no.": number, "the brief says": claim.says, "verdict": f"{verdict} {condition}".strip(), "measured": evidence}

    def table(self, first: int = 1, last: int | None = None):
        """The same as a table that displays itself."""
        from qatlib.viz import table

        return table(self.rows(first, last), f"Claims {first} to {last or max(self.claims)}")

    def summary(self):
        """How many claims got each verdict, all of them settled."""
        from qatlib.viz import table

        total = len(self.rows())
        rows = [{"verdict": verdict, "claims": count, "share": f"{count / total:.0%}"} for verdict, count in self.counts().items()]
        return table(rows, f"{total} claims")
