"""Two recorded runs of the vendor's whole sequence, float to integers, replayed stage by stage.

Exact on every processor, hence compared bit for bit: states, thresholds, everything in QAT and in integers. Float outputs,
their histograms, and gradients are sums whose order is the processor's: they are compared within the bounds of `float_sums`.
"""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from float_sums import U, Values, allowed, assert_decided, errors_spread, gradient_spread, output_spread, sum_error
from orders import ExactSums
from recorded_nets import NetAdd, NetCat

import qatlib.ai8x as ai8x
from qatlib.ai8x import statistics

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {c["name"]: c for c in json.loads((GOLDEN / "manifest.json").read_text())["cases"] if c["kind"] == "pipeline"}


class Run:
    def __init__(self, name):
        self.name, self.case, self.arrays = name, CASES[name], np.load(GOLDEN / CASES[name]["file"])

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


def assert_float_output(run, y, expected):
    """`y`, the fused float network's output for `probe_x`, equals the recorded one but for the order of its sums."""
    bound, _ = output_spread(run.build("s1_fused"), run["probe_x"])
    assert bound.max() < 1e-3 * expected.abs().max(), "a bound that forgives more would hide mistakes"
    assert ((y - expected).abs() <= bound).all()


def test_state_dict_has_the_vendors_keys_in_order(run):
    assert list(run.build("s0_float").state_dict()) == list(run.state("s0_float"))


def test_fuse_bn_layers(run):
    net = run.build("s0_float")
    ai8x.fuse_bn_layers(net)
    assert_state(net, run.state("s1_fused"))
    assert_float_output(run, call(net, run["probe_x"]), run["probe_y_fused_float"])


def measured(run) -> tuple[torch.nn.Module, dict[str, Values]]:
    """The fused network with its histograms, and what they were made from."""
    net, outputs, spreads = run.build("s1_fused"), {}, {}
    ai8x.init_hist(net)
    for name, module in statistics.measured_modules(net):
        module.register_forward_hook(lambda m, a, y, name=name: outputs.setdefault(name, []).append(y))
    for x, _ in run.batches():
        call(net, x)
        for name, found in output_spread(run.build("s1_fused"), x)[1].items():
            spreads.setdefault(name, []).extend(found)
    return net, {name: Values(outputs[name], [spread.max().item() for spread in spreads[name]]) for name in outputs}


def test_histograms_and_thresholds(run):
    net, layers = measured(run)
    z_score = run.case["policy"]["outlier_removal_z_score"]
    for name, module in statistics.measured_modules(net):
        hists, layer = module.histograms, layers[name]
        assert len(hists) == run[f"thr/{name}/n_hists"] == len(layer.sorted)
        ranges, recorded = np.array([[h.low, h.high] for h in hists]), run.arrays[f"thr/{name}/hist_range"].astype(np.float64)
        assert (np.abs(ranges - recorded) <= np.array(layer.off)[:, None]).all()
        fewest, most = layer.counts_below(0, np.linspace(*recorded[0], statistics.BINS + 1)[1:-1])
        below = np.cumsum(run.arrays[f"thr/{name}/hist_count0"], dtype=np.float64)
        assert (fewest <= below[:-1]).all() and (below[:-1] <= most).all() and below[-1] == len(layer.sorted[0])
        counts, edges = statistics.merge(hists)
        assert np.abs(edges.numpy()[[0, -1]] - run.arrays[f"thr/{name}/merged_minmax"]).max() <= max(layer.off)
        first, errors = statistics.quantization_errors(*statistics.remove_outliers(counts, edges, z_score))
        off, recorded = errors_spread(hists, layer, first.item(), z_score), run.arrays[f"thr/{name}/errors"]
        assert first == run[f"thr/{name}/t0"] and (np.abs(errors - recorded) <= off).all()
        assert_decided(recorded, off)
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
    assert_float_output(run, after, run["probe_y_scaled_float"])


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


def batch(run, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    return run["train_x"][i].float() / 128, run["train_y"][i]


def sgd(run, net):
    lr = 0.001 if run.name == "pipeline_add_w8" else 0.002
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)


def step(net, optimizer, x, target) -> float:
    loss = torch.nn.functional.cross_entropy(net.train()(x), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_first_gradients(run):
    net = run.build("s4_qat_init")
    step(net, sgd(run, net), *batch(run, 0))
    recorded, found = run.state("step0_grad"), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    bounds = gradient_spread(run.build("s4_qat_init"), *batch(run, 0))
    assert found.keys() == recorded.keys() == bounds.keys()
    for name, grad in recorded.items():
        assert bounds[name].max() < 1e-3 * grad.abs().max(), "a bound that forgives more would hide mistakes"
        assert ((found[name] - grad).abs() <= bounds[name]).all(), name


def test_twenty_training_steps(run):
    """The recorded order of sums is another processor's; here they are exact, so that this test is the same everywhere.

    Gradients depend on the weights through their codes alone. While all codes agree, which the losses and the last codes show,
    a float weight is off by the rate times what its gradients and the few roundings of each step have summed up to.
    """
    net, recorded = run.build("s4_qat_init"), run.state("s5_qat_final")
    optimizer, off = sgd(run, net), {}
    (group,) = optimizer.param_groups
    with ExactSums():
        for i, loss in enumerate(run.arrays["losses"]):
            bounds = gradient_spread(copy.deepcopy(net), *batch(run, i))
            assert abs(step(net, optimizer, *batch(run, i)) - loss) <= allowed(sum_error(sum(run["probe_y_qat_init"].shape), loss))
            for name, p in net.named_parameters():
                if name in bounds:
                    velocity, weight = off.get(name, (0, 0))
                    rounded = 4 * U * optimizer.state[p]["momentum_buffer"].abs()
                    velocity = group["momentum"] * velocity + bounds[name] + group["weight_decay"] * weight + rounded
                    off[name] = velocity, weight + group["lr"] * velocity + 2 * U * p.detach().abs()
    state = net.state_dict()
    for name, (_, weight) in off.items():
        assert weight.max() < 2.0**-13, "far less than the distance of two codes"
        assert ((state.pop(name) - recorded.pop(name)).abs() <= weight).all(), name
    assert all(torch.equal(value, recorded[name]) for name, value in state.items()) and state.keys() == recorded.keys()
    expected = run.build("s5_qat_final")
    for (name, ours), (_, theirs) in zip(statistics.measured_modules(net), statistics.measured_modules(expected)):
        if getattr(ours, "op", None) is not None:
            assert all(torch.equal(a, b) for a, b in zip(ours.quantized_weight(), theirs.quantized_weight())), name


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
