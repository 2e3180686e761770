"""Two recorded runs of the vendor's whole sequence, float to integers, replayed stage by stage."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded_nets import NetAdd, NetCat

import qatlib.ai8x as ai8x
from qatlib.ai8x import statistics

GOLDEN = Path(__file__).parent / "golden"
CASES = {c["name"]: c for c in json.loads((GOLDEN / "manifest.json").read_text())["cases"] if c["kind"] == "pipeline"}


class Run:
    def __init__(self, name):
        self.name, self.case, self.arrays = name, CASES[name], np.load(GOLDEN / CASES[name]["file"])
        self.layers = [key.split("/")[1] for key in self.arrays.files if key.startswith("thr/") and key.endswith("/t0")]

    def __getitem__(self, key):
        return torch.from_numpy(self.arrays[key])

    def state(self, stage):
        return {k.partition("/")[2]: self[k] for k in self.arrays.files if k.startswith(f"{stage}/")}

    def device(self, simulate=False):
        ai8x.set_device(self.case["device"], simulate, self.case["round_avg"], verbose=False)

    def build(self, stage, simulate=False):
        """The network in evaluation mode with the recorded state of `stage`."""
        self.device(simulate)
        net = {"NetAdd": NetAdd, "NetCat": NetCat}[self.case["net"]]()
        if stage != "s0_float":
            ai8x.fuse_bn_layers(net)
        if simulate:
            ai8x.initiate_qat(net, {"weight_bits": 8})
        net.load_state_dict(self.state(stage))
        ai8x.update_model(net)
        return net.eval()

    def batches(self):
        return [(self["calib_x"][i], None) for i in range(len(self["calib_x"]))]


@pytest.fixture(params=sorted(CASES))
def run(request, one_thread):
    return Run(request.param)


def assert_state(net, expected):
    state = net.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert state[key].dtype == value.dtype, key
        assert torch.equal(state[key], value), key


def call(net, x):
    with torch.no_grad():
        return net(x)


def assert_float_output(net, y, expected, x):
    """Equal bits, except behind a float Linear: its 384 products are added in an order that depends on the processor.

    Two orders of n float32 sums differ by at most 2 * n * 2^-24 * sum(|x||w| + |b|) (standard summation bound, twice).
    """
    if not hasattr(net, "fc"):
        assert torch.equal(y, expected)
        return
    seen = []
    hook = net.fc.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    call(net, x)
    hook.remove()
    magnitude = seen[0].abs() @ net.fc.op.weight.abs().T + net.fc.op.bias.abs()
    bound = 2 * net.fc.op.in_features * 2.0**-24 * magnitude * 2.0 ** net.fc.final_scale
    assert ((y - expected).abs() <= bound).all()


def test_state_dict_has_the_vendors_keys_in_order(run):
    assert list(run.build("s0_float").state_dict()) == list(run.state("s0_float"))


def test_fuse_bn_layers(run):
    net = run.build("s0_float")
    ai8x.fuse_bn_layers(net)
    assert_state(net, run.state("s1_fused"))
    assert_float_output(net, call(net, run["probe_x"]), run["probe_y_fused_float"], run["probe_x"])


def test_histograms_and_thresholds(run):
    net = run.build("s1_fused")
    z_score = run.case["policy"]["outlier_removal_z_score"]
    ai8x.init_hist(net)
    for x, _ in run.batches():
        call(net, x)
    for name, module in statistics.measured_modules(net):
        hists = module.histograms
        assert len(hists) == run[f"thr/{name}/n_hists"]
        if name != "fc":  # float sums of a Linear, see assert_float_output; its thresholds below are equal
            assert np.array_equal(np.float32([[h.low, h.high] for h in hists]), run.arrays[f"thr/{name}/hist_range"])
            assert np.array_equal(hists[0].counts, run.arrays[f"thr/{name}/hist_count0"])
            counts, edges = statistics.merge(hists)
            assert np.array_equal([edges[0], edges[-1]], run.arrays[f"thr/{name}/merged_minmax"])
            counts, values = statistics.remove_outliers(counts, edges, z_score)
            kept = [values.min(), values.max(), len(values)]
            assert np.array_equal(kept, run.arrays[f"thr/{name}/kept_minmax_nbins"])
            first, errors = statistics.quantization_errors(counts, values)
            assert np.array_equal(errors, run.arrays[f"thr/{name}/errors"])
        assert statistics.log2_threshold(hists, z_score) == run[f"thr/{name}/log2_threshold"]
    ai8x.init_threshold(net, z_score)
    ai8x.release_hist(net)
    assert_state(net, run.state("s2_thresholds"))


@pytest.mark.parametrize("vendor_exact", [False, True])
def test_apply_scales(run, vendor_exact):
    net = run.build("s2_thresholds")
    before = call(run.build("s1_fused"), run["probe_x"])
    ai8x.apply_scales(net, vendor_exact=vendor_exact)
    assert_state(net, run.state("s3_scaled"))
    after = call(net, run["probe_x"])
    assert torch.equal(after, before)  # the float function is unchanged
    assert_float_output(net, after, run["probe_y_scaled_float"], run["probe_x"])


def test_pre_qat_and_initiate_qat(run):
    net = run.build("s1_fused").train()
    ai8x.pre_qat(net, run.batches(), run.case["policy"])
    assert_state(net, run.state("s3_scaled"))
    assert net.training
    ai8x.initiate_qat(net, run.case["policy"])
    assert_state(net, run.state("s4_qat_init"))
    assert torch.equal(call(net.eval(), run["probe_x"]), run["probe_y_qat_init"])


def test_start_qat_is_the_whole_sequence(run):
    net = run.build("s0_float")
    assert ai8x.start_qat(net, run.batches(), run.case["policy"], progress=False) is None
    assert_state(net, run.state("s4_qat_init"))


def _steps(run, net, count):
    lr = 0.001 if run.name == "pipeline_add_w8" else 0.002
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    losses = []
    for i in range(count):
        loss = torch.nn.functional.cross_entropy(net.train()(run["train_x"][i].float() / 128), run["train_y"][i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_first_gradients(run):
    """A gradient adds n = batch * pixels products, in an order that may depend on the processor: 2 * n * 2^-24 of the largest."""
    net = run.build("s4_qat_init")
    _steps(run, net, 1)
    recorded = run.state("step0_grad")
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert found.keys() == recorded.keys()
    for name, grad in recorded.items():
        assert (found[name] - grad).abs().max() <= 2 * 16 * 16 * 16 * 2.0**-24 * grad.abs().max(), name


def test_twenty_training_steps(run):
    net = run.build("s4_qat_init")
    _steps(run, net, 1)
    if not all(torch.equal(dict(net.named_parameters())[k].grad, g) for k, g in run.state("step0_grad").items()):
        pytest.skip("this processor adds float products in another order than the recording's; see test_first_gradients")
    net = run.build("s4_qat_init")
    assert np.array_equal(_steps(run, net, 20), run.arrays["losses"])
    assert_state(net, run.state("s5_qat_final"))


def test_qat_evaluation_after_loading_a_checkpoint(run):
    net = run.build("s5_qat_final")
    assert torch.equal(call(net, run["sim_x"] / 128), run["qat_y"])


def test_simulate_equals_the_recorded_integers(run):
    net = run.build("s6_quantized", simulate=True)
    calls, hooks = {}, []
    for name, module in statistics.measured_modules(net):
        record = lambda m, a, y, name=name: calls.setdefault(name, []).append(y)  # noqa: E731
        hooks.append(module.register_forward_hook(record))
    y = call(net, run["sim_x"])
    assert torch.equal(y.float(), run["sim_y"])
    layers = run.state("layer_sim")
    assert {f"{name}#{i}" for name, found in calls.items() for i in range(len(found))} == layers.keys()
    for key, expected in layers.items():
        name, i = key.split("#")
        assert torch.equal(calls[name][int(i)][: len(expected)].float(), expected), key
