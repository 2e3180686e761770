"""QAT policies: when quantization starts, and how many bits each layer's weights get (vendor: `policies/qat_policy.yaml`).

    start_epoch: 10                # needed in files; used by the training loop
    weight_bits: 8                 # 1, 2, 4 or 8
    shift_quantile: 0.995          # optional, 1.0: no weight saturates
    outlier_removal_z_score: 8.0   # optional
    overrides:                     # optional, by qualified layer name
      conv1: {weight_bits: 4, shift_quantile: 0.98}
"""

import difflib
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qatlib.wording import short

BITS = (1, 2, 4, 8)
_SETTINGS = {  # what is valid, its type, what to choose
    "weight_bits": (lambda bits: bits in BITS, int, "1, 2, 4 or 8"),
    "shift_quantile": (lambda share: 0 < share <= 1, float, "a number above 0, at most 1 (usual: 0.98 to 1.0)"),
    "outlier_removal_z_score": (lambda z: 0 < z < 1e30, float, "a number above 0 (usual: 2 to 8)"),
    "start_epoch": (lambda epoch: 0 <= epoch < 2**31 and epoch == int(epoch), int, "a whole number of at least 0"),
}


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of the `known` names that look like `name`, most similar first."""
    return difflib.get_close_matches(str(name), list(known), n=count, cutoff=0.5)


@dataclass(frozen=True)
class QATPolicy:
    """A checked policy. `overrides` maps a layer's qualified name to (weight_bits, shift_quantile), defaults filled in.

    >>> load_policy({"weight_bits": 8, "overrides": {"fc": {"weight_bits": 4}}}).for_layer("fc")
    (4, 1.0)
    """

    weight_bits: int
    shift_quantile: float = 1.0
    outlier_removal_z_score: float = 8.0
    start_epoch: int | None = None
    overrides: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def for_layer(self, name: str) -> tuple[int, float]:
        """(weight_bits, shift_quantile) of the layer called `name`."""
        return self.overrides.get(name, (self.weight_bits, self.shift_quantile))

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ValueError for an override that names no layer (the vendor ignores it silently)."""
        names = list(names)
        for name in self.overrides:
            if name not in names:
                close = nearest(name, names) or names[:5]
                close = " or ".join(map(repr, close))
                raise ValueError(f"the QAT policy overrides {short(name)}, but no layer has this name; did you mean {close}?")


def load_policy(policy) -> QATPolicy:
    """Check a policy given as dict, YAML file, `QATPolicy`, or an object with `.qat_policy` (the vendor's `args`).

    Raises FileNotFoundError for a missing file and ValueError, with the value and the remedy, for anything else that is wrong.
    """
    if isinstance(policy, QATPolicy):
        return policy
    if isinstance(policy, (str, os.PathLike)):
        return _checked(_read_yaml(Path(policy)), f"the QAT policy {policy}", required=("start_epoch", "weight_bits"))
    if isinstance(policy, Mapping):
        return _checked(policy, "the QAT policy", required=("weight_bits",))
    if getattr(policy, "qat_policy", None) is not None:
        return load_policy(policy.qat_policy)
    raise TypeError(f"the QAT policy is of type {type(policy).__name__}; give a dict or the path of a YAML file")


def _read_yaml(path: Path):
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"there is no QAT policy file {path}; write one or give the policy as a dict")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:  # all from PyYAML
        raise ValueError(f"the QAT policy {path} is not valid YAML: {' '.join(str(problem).split())}") from None


def _checked(values, where: str, required: tuple[str, ...]) -> QATPolicy:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} holds {short(values)}; it must be keys and values such as 'weight_bits: 8'")
    _check_keys(values, where, (*_SETTINGS, "overrides"))
    for key in required:
        if values.get(key) is None:
            raise ValueError(f"{where} lacks {short(key)}; add {key}: {8 if key == 'weight_bits' else 10}")
    bits, quantile = _setting(values, "weight_bits", where), _setting(values, "shift_quantile", where, 1.0)
    overrides = values.get("overrides") or {}
    if not isinstance(overrides, Mapping):
        raise ValueError(f"overrides of {where} is {short(overrides)}; it must map layer names to settings")
    return QATPolicy(
        weight_bits=bits,
        shift_quantile=quantile,
        outlier_removal_z_score=_setting(values, "outlier_removal_z_score", where, 8.0),
        start_epoch=None if values.get("start_epoch") is None else _setting(values, "start_epoch", where),
        overrides={str(k): _override(v, f"override {short(k)} of {where}", bits, quantile) for k, v in overrides.items()},
    )


def _override(entry, where: str, bits: int, quantile: float) -> tuple[int, float]:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is {short(entry)}; write it as {{weight_bits: 4}}")
    _check_keys(entry, where, ("weight_bits", "shift_quantile"))
    return _setting(entry, "weight_bits", where, bits), _setting(entry, "shift_quantile", where, quantile)


def _check_keys(values: Mapping, where: str, known: tuple[str, ...]) -> None:
    """A key that looks like a known one is a typing error; any other is ignored, as the vendor does, but not silently."""
    for key in values:
        if key in known:
            continue
        if close := difflib.get_close_matches(str(key), known, n=1, cutoff=0.8):
            raise ValueError(f"{where} has the key {short(key)}; did you mean {close[0]!r}?")
        warnings.warn(f"{where} has the key {short(key)}, which is unknown and ignored; known are {', '.join(known)}", stacklevel=4)


def _setting(values: Mapping, key: str, where: str, default=None):
    """The value of `key`, checked and as the right type of number."""
    (valid, kind, advice), value = _SETTINGS[key], values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not valid(value):
        raise ValueError(f"{key} of {where} is {short(value)}; choose {advice}")
    return kind(value)
