"""The settings of a training: what it depends on, what suits each bit width, and the presets of drawn people and photographs."""

import dataclasses
import math

from qatcourse.pose.data import SIDES
from qatcourse.pose.evaluate import qat_policy
from qatlib import ai8x

# weight_bits: (learning rate after QAT starts, share of the weights that sets the shift). Few bits need larger steps to cross
# the distance between two codes, and a grid that spends its codes on the many small weights, not on the few largest.
RECIPES = {None: (5e-4, 1.0), 8: (5e-4, 1.0), 4: (1e-3, 0.985), 2: (2e-3, 0.985), 1: (2e-3, 0.985)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on. `weight_bits` None trains the float network all the way (the fair comparison); `side` is that of
    the pictures, in pixels. With `teacher_epochs` a `Teacher` is trained first, from which PoseTiny learns, too.

    `qat_learning_rate` and `shift_quantile` None become what suits `weight_bits` (RECIPES).
    """

    data: str = "figures"
    side: int = SIDES[0]
    preset: str = "quick"
    weight_bits: int | None = 8
    overrides: dict = dataclasses.field(default_factory=dict)
    epochs: int = 12
    start_epoch: int = 9
    seed: int = 0
    n_train: int = 6400
    n_test: int = 1000
    batch_size: int = 64
    learning_rate: float = 2e-3
    qat_learning_rate: float | None = None
    shift_quantile: float | None = None
    weight_decay: float = 1e-4
    teacher_epochs: int = 0

    def __post_init__(self):
        whole = {"epochs": 1, "n_train": 1, "n_test": 1, "batch_size": 1, "start_epoch": 0, "seed": 0, "teacher_epochs": 0}
        for name, least in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 10**8:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least} (at most 100,000,000)")
        if self.weight_bits is not None and (type(self.weight_bits) is not int or self.weight_bits not in (1, 2, 4, 8)):
            raise ValueError(f"weight_bits is {self.weight_bits!r}; choose 1, 2, 4 or 8 (None trains without quantization)")
        if not 0 <= self.start_epoch <= self.epochs:
            raise ValueError(f"start_epoch is {self.start_epoch}; it must be in 0..epochs ({self.epochs})")
        if self.weight_bits is not None and self.start_epoch == self.epochs:
            raise ValueError(
                f"start_epoch is {self.start_epoch} of {self.epochs} epochs, so quantization would never start; choose a smaller "
                "one, or weight_bits=None for a float network"
            )
        rates = {"learning_rate": self.learning_rate, "qat_learning_rate": self.recipe()[0], "weight_decay": self.weight_decay}
        for name, value in rates.items():
            if not isinstance(value, (int, float)) or not 0 <= value < 100 or (value == 0 and name != "weight_decay"):
                raise ValueError(f"{name} is {value!r}; it must be a number above 0 (usual: 1e-4 to 1e-2)")
        if not isinstance(self.data, str):
            raise ValueError(f"data is {self.data!r}; use 'figures' or 'lsp:/path'")
        if type(self.side) is not int or self.side not in SIDES:
            raise ValueError(f"side is {self.side!r}; choose one of {', '.join(map(str, SIDES))} pixels")
        ai8x.load_policy(self.policy())

    def recipe(self) -> tuple[float, float]:
        """(learning rate after QAT starts, shift_quantile): as given, else what suits `weight_bits`."""
        usual = RECIPES[self.weight_bits]
        return tuple(own if own is not None else other for own, other in zip((self.qat_learning_rate, self.shift_quantile), usual))

    def policy(self) -> dict:
        """The QAT policy as ai8x reads it."""
        return qat_policy(self.weight_bits or 8, self.overrides, shift_quantile=self.recipe()[1])


PRESETS = {
    "smoke": {"epochs": 3, "start_epoch": 2, "n_train": 600, "n_test": 200},  # for tests: seconds, and no useful network
    "quick": {"epochs": 12, "start_epoch": 9, "n_train": 6400, "n_test": 1000},
    "full": {"epochs": 16, "start_epoch": 12, "n_train": 20000, "n_test": 2000},
}
PHOTOGRAPHS = {  # what differs for them: few, and each new in every epoch by turning, scaling and mirroring
    "smoke": {"n_train": 200, "n_test": 100},
    "quick": {"epochs": 30, "start_epoch": 24, "n_train": 9000},
    "full": {"epochs": 76, "start_epoch": 70, "n_train": 9000, "n_test": 1000, "teacher_epochs": 40},
}
FOR_PHOTOGRAPHS = {"side": 128, "batch_size": 32, "weight_decay": 0.05}


def configure(preset: str = "quick", **options) -> Config:
    """The settings of a preset ('quick': about 3 minutes on 2 cores, 'full': about 15) with `options` in their place.

    Photographs have settings of their own (PHOTOGRAPHS); 9,000 and 1,000 of them, or as many as there are.
    """
    known = [field.name for field in dataclasses.fields(Config)]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"setting {unknown[0]!r} is unknown; the settings are {', '.join(known)}")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    given = {key: value for key, value in options.items() if value is not None or key == "weight_bits"}
    photographs = {**FOR_PHOTOGRAPHS, **PHOTOGRAPHS[preset]} if str(given.get("data", "")).startswith("lsp:") else {}
    values = {**PRESETS[preset], **photographs, **given}
    if "epochs" in given and "start_epoch" not in given:
        values["start_epoch"] = max(0, min(values["start_epoch"], math.ceil(given["epochs"] * 0.7), given["epochs"] - 1))
    return Config(preset=preset, **values)
