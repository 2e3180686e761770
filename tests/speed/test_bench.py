"""The benchmark runs, measures the networks it names, and compares equal arithmetic; nothing here asserts a time."""

import json
import time
from pathlib import Path

import bench
import bench_cortex
import bench_engines
import bench_growth
import bench_steps
import pytest
import torch

from qatcourse.pose.model import PoseTiny
from qatlib import ai8x


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_nine_layer_network_is_the_one_described():
    net = bench_steps.Nine()
    assert sum(p.numel() for p in net.parameters() if p.requires_grad and p.dim() != 1) + sum(
        m.op.bias.numel() for m in net.modules() if getattr(m, "op", None) is not None
    ) == 395_306
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize("network", [bench_steps.Nine, PoseTiny])
def test_twins_compute_the_same_before_quantization(network):
    torch.manual_seed(0)
    model = network()
    x = torch.randint(-128, 128, (2, *network.input_shape)) / 128
    assert torch.equal(bench_steps.twin(model, bench_steps.BN).eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    "variant", [bench_steps.QAT, bench_steps.QAT_QUANTILE, bench_steps.BN, bench_steps.NO_BN, bench_steps.TORCH_FAKE]
)
def test_every_variant_trains(variant):
    model = bench_steps.build(PoseTiny, variant)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    step = bench_steps.stepper(model, 2, PoseTiny.input_shape)
    step()
    step()
    after = [p for p in model.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after)) and all(p.isfinite().all() for p in after)


def test_rounds_are_interleaved_and_rotate():
    calls = []
    times = bench_steps.interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4, warmup=2)
    assert {name: len(t) for name, t in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert ["".join(calls[i : i + 3]) for i in range(0, 18, 3)] == ["bca", "cab", "abc", "bca", "cab", "abc"]


def test_growth_and_its_slope():
    assert bench_growth.slope([1, 10, 100], [2.0, 20.0, 200.0]) == pytest.approx(1)
    slept = bench_growth.row("x", "pictures", (1, 2, 4), lambda n: lambda: time.sleep(0.02 * n), rounds=2)
    assert slept["sizes"] == [1, 2, 4] and all(s >= 0.02 * n for n, s in zip((1, 2, 4), slept["seconds"]))
    assert slept["slope"] == bench_growth.slope((1, 2, 4), slept["seconds"])


@pytest.mark.slow
def test_the_command_prints_every_part_and_writes_json(tmp_path, capsys):
    assert bench.main(["--rounds", "1", "--batch", "2", "--threads", "1", "--quick", "--json", str(tmp_path / "b.json")]) == 0
    printed = capsys.readouterr().out
    steps = ("Nine, batch 2", "PoseTiny, batch 2", bench_steps.TORCH_FAKE)
    rows = ("import: qatlib", "draw people", "calibration, Nine, by width", "PoseTiny, by batch", "NumPy integers, by width")
    for part in (*steps, *rows, "Spotter (residual)", "Cortex-M4"):
        assert part in printed, part
    result = json.loads((tmp_path / "b.json").read_text())
    assert set(result["steps"]["Nine"][bench_steps.QAT]) == {"ms", bench_steps.BN, bench_steps.NO_BN}
    assert result["steps"]["Nine"][bench_steps.BN][bench_steps.BN] == 1


@pytest.mark.slow
def test_the_engines_are_compared_and_timed():
    result = bench_engines.engines(rounds=2, quick=True)
    assert list(result) == ["PoseTiny, 8 bits", "PoseTiny, 4 bits", "PoseTiny, 2 bits", "PoseTiny, 8, 4 and 2 bits",
                            "Spotter (residual), 8 bits"]  # fmt: skip
    for part in result.values():
        rows = {row["engine"]: row for row in part["rows"]}
        assert {"torch FP32", "torch, fake-quantized", "NumPy integers (ref.)", "ONNX Runtime"} < rows.keys()
        assert not any(row["differing"] for row in rows.values())
        untimed = {"our model of the chip", "C, Cortex-M4 in QEMU"}
        assert all(row["ms"] > 0 for name, row in rows.items() if name not in untimed and row["pictures"])
        assert rows["torch FP32"]["ratio"] == 1
        assert rows["our model of the chip"]["pictures"] > 1 and rows["ONNX Runtime"]["pictures"] == 4
    size = [part["bytes"]["model_8bit.pth"] for part in result.values()]
    assert size[0] > size[3] > size[1] > size[2] > size[4]


@pytest.mark.slow
def test_the_operations_of_the_microcontroller_add_up(cross_compiler, capsys):
    result = bench_cortex.cortex()
    bench_cortex.print_cortex(result)
    printed = capsys.readouterr().out
    assert list(result) == ["8 bits", "4 bits", "2 bits", "8, 4 and 2 bits"]
    for part in result.values():
        assert sum(one["instructions"] for one in part["operations"].values()) == part["instructions"]
        assert part["said"][0] == "PASS: 4 of 4 known answers" and f"{part['instructions']:,}" in printed
        assert part["instructions"] < 1.35 * part["macs"]  # mixed bits, too


def test_the_plain_twin_computes_the_float_network():
    from qatcourse.labs import break_it

    torch.manual_seed(0)
    model, x = break_it.RawSpotter().eval(), torch.randint(-128, 128, (2, 3, 16, 16)) / 128
    twin = bench_engines.plain(model)
    assert not any(type(module).__module__ == "qatlib.ai8x.layer" for module in twin.modules())
    ai8x.fuse_bn_layers(model)
    assert torch.equal(twin(x), model(x))


def test_the_parts_import_one_way():
    names = ("bench_steps", "bench_engines", "bench_growth")
    source = {name: Path(bench.__file__).with_name(f"{name}.py").read_text() for name in names}
    assert all("from bench import" not in text for text in source.values()) and "bench_" not in source["bench_steps"]


def test_bad_options_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--rounds", "0"])
    assert "it must be at least 1" in capsys.readouterr().err
    for option in ("--threads", "--batch"):  # threads beyond what a machine can start end the process, not only the command
        with pytest.raises(SystemExit):
            bench.main([option, "100000000"])
        assert f"{option} is 100000000; it must be at least 1 and at most" in capsys.readouterr().err
    assert bench.main(["--json", "/proc/no/b.json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("bench: ") and "/proc/no" in captured.err and not captured.out
