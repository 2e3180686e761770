"""What the vendor's tool said about 72 networks (tests/golden): whether it takes them, and how many cycles they need."""

import json
from pathlib import Path
from statistics import median

import pytest

from qatlib.chip.meter import fit
from qatlib.chip.spec import LayerSpec

VERDICTS = json.loads((Path(__file__).parents[1] / "golden" / "synthesis-verdicts.json").read_text())
PAIRS = ("kernel", "pool", "pool_stride", "inputs")
PLANNED_OTHERWISE = {  # refused as they were exported then; what the plan has now instead
    "b20": ("cat>m.fc", "copy"),  # a flattening layer behind a concatenation reads a copy, the layer before it
    "b26": ("m.l4", "add"),  # a sum in front of a convolution with bias is a layer of its own
}


def network(verdict) -> list[LayerSpec]:
    return [LayerSpec(**{key: tuple(v) if key in PAIRS else v for key, v in layer.items()}) for layer in verdict["layers"]]


@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda verdict: verdict["id"])
def test_the_meter_agrees_with_the_tool(verdict):
    result = fit(network(verdict), device=verdict["device"])
    if verdict["id"] in PLANNED_OTHERWISE:
        assert not verdict["accepted"] and PLANNED_OTHERWISE[verdict["id"]] in [(s.writes, s.kind) for s in result.sequence]
        assert result.fits
    else:
        assert result.fits == (verdict["accepted"] and verdict["equal"]), result.violations
    if verdict["tool_cycles"]:
        assert result.cycles == verdict["tool_cycles"]


def test_the_verdicts_are_of_every_kind():
    kinds = [{layer["kind"] for layer in verdict["layers"]} for verdict in VERDICTS]
    counts = {kind: sum(kind in found for found in kinds) for kind in ("add", "sub", "concat", "pool", "conv1d", "linear")}
    assert len(VERDICTS) == 72 and min(counts.values()) >= 3, counts
    assert [v["id"] for v in VERDICTS if not v["accepted"]] == ["a45", "b20", "b26"]
    assert median(v["tool_cycles"] for v in VERDICTS if v["tool_cycles"]) > 1000


def test_what_the_tool_cannot_reshape_is_refused_with_its_remedy():
    (sentence,) = fit(network(next(v for v in VERDICTS if v["id"] == "a45")), device=85).violations
    assert sentence == (
        "m.fc: 70 channels are flattened, in 2 passes only multiples of 8 can be: give the layer before 72 channels, "
        "or pool to 1x1 first"
    )
