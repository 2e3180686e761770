"""The benchmark runs, measures the networks it names, and compares equal arithmetic; nothing here asserts a time."""

import json

import pytest
import torch

from qatlib import bench, bench_growth
from qatlib.pose.model import PoseTiny


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_nine_layer_network_is_the_one_described():
    net = bench.Nine()
    assert sum(p.numel() for p in net.parameters() if p.requires_grad and p.dim() != 1) + sum(
        m.op.bias.numel() for m in net.modules() if getattr(m, "op", None) is not None
    ) == 395_306
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize("network", [bench.Nine, PoseTiny])
def test_twins_compute_the_same_before_quantization(network):
    torch.manual_seed(0)
    model = network()
    x = torch.randint(-128, 128, (2, *network.input_shape)) / 128
    assert torch.equal(bench.twin(model, bench.BN).eval()(x), model.eval()(x))


@pytest.mark.parametrize("variant", [bench.QAT, bench.QAT_QUANTILE, bench.BN, bench.NO_BN, bench.TORCH_FAKE])
def test_every_variant_trains(variant):
    model = bench.build(PoseTiny, variant)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    step = bench.stepper(model, 2, PoseTiny.input_shape)
    step()
    step()
    after = [p for p in model.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after)) and all(p.isfinite().all() for p in after)


def test_rounds_are_interleaved_and_rotate():
    calls = []
    times = bench.interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4, warmup=2)
    assert {name: len(t) for name, t in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert ["".join(calls[i : i + 3]) for i in range(0, 18, 3)] == ["bca", "cab", "abc", "bca", "cab", "abc"]


def test_growth_and_its_slope():
    assert bench_growth.slope([1, 10, 100], [2.0, 20.0, 200.0]) == pytest.approx(1)
    measured = bench_growth.row("x", "pictures", (1, 2, 4), lambda n: float(n) ** 2)
    assert measured["slope"] == pytest.approx(2) and measured["seconds"] == [1, 4, 16]


@pytest.mark.slow
def test_the_command_prints_every_part_and_writes_json(tmp_path, capsys):
    assert bench.main(["--rounds", "1", "--batch", "2", "--threads", "1", "--quick", "--json", str(tmp_path / "b.json")]) == 0
    printed = capsys.readouterr().out
    for part in ("Nine, batch 2", "PoseTiny, batch 2", bench.TORCH_FAKE, "import: qatlib", "draw people", "calibration", "NumPy"):
        assert part in printed, part
    result = json.loads((tmp_path / "b.json").read_text())
    assert set(result["steps"]["Nine"][bench.QAT]) == {"ms", bench.BN, bench.NO_BN}
    assert result["steps"]["Nine"][bench.BN][bench.BN] == 1


def test_bad_options_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--rounds", "0"])
    assert "it must be at least 1" in capsys.readouterr().err
