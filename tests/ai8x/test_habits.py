"""What users do to a network before, while and after QAT starts: their habits, on networks of their own shapes."""

import copy
import pickle
import shutil
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import qatlib
import qatlib.ai8x as ai8x
from qatlib.ai8x.graph import foreign, require_same, trace

POLICY = {"weight_bits": 8}


class Plain(nn.Module):
    """Two branches that meet in a sum, a pool in front, batch norms, a wide head."""

    input_shape = (3, 8, 8)

    def __init__(self, channels=6):
        super().__init__()
        self.stem = ai8x.FusedConv2dBNReLU(3, channels, 3, padding=1)
        self.left = ai8x.FusedConv2dBN(channels, channels, 3, padding=1)
        self.right = ai8x.Conv2d(channels, channels, 1)
        self.add = ai8x.Add()
        self.last = ai8x.FusedAvgPoolConv2dReLU(channels, 4, 3)
        self.head = ai8x.Linear(16, 5, bias=True, wide=True)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.last(self.add(self.left(x), self.right(x))).flatten(1))


def pictures(n=8, shape=(3, 8, 8), seed=0):
    return torch.randint(-128, 128, (n, *shape), generator=torch.Generator().manual_seed(seed)) / 128


def fresh(cls=Plain, *arguments, seed=0):
    torch.manual_seed(seed)
    net = cls(*arguments)
    net.train()(pictures(16))  # batch norms that are not the identity
    return net.eval()


def quantized(cls=Plain, bits=8):
    net = fresh(cls)
    ai8x.start_qat(net, [pictures()], {"weight_bits": bits}, progress=False)
    return net


def picture_of(net):
    """Everything that a refused call must leave alone."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    return state, [(name, type(m), m.training, getattr(m, "clamped", None)) for name, m in net.named_modules()]


def assert_unchanged(net, before):
    state, modules = picture_of(net)
    assert modules == before[1] and list(state) == list(before[0])
    assert all(torch.equal(value, before[0][name]) for name, value in state.items())


# --- QAT starts whole or not at all ---------------------------------------------------------------------------------------


def interrupted():
    yield pictures()
    raise KeyboardInterrupt


LOADERS = {
    "bytes": (lambda: [pictures(), pictures() * 128 + 128], ValueError, "-1..1"),
    "dicts": (lambda: [{"image": pictures()}], TypeError, r"\[batch\['image'\] for batch in train_loader\]"),
    "text": (lambda: ["a batch"], TypeError, "tensors of real numbers"),
    "other channels": (lambda: [pictures(), pictures(4, (5, 8, 8))], ValueError, "cannot read"),
    "nothing": (list, ValueError, "no batch"),
    "NaN": (lambda: [pictures() * float("nan")], ValueError, "NaN"),
    "Ctrl-C": (interrupted, KeyboardInterrupt, None),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("start", ["start_qat", "pre_qat"])
def test_what_is_refused_or_interrupted_leaves_the_network_as_it_was(name, start):
    loader, error, said = LOADERS[name]
    net = fresh()
    net.train()
    net.left.eval()
    before, wanted = picture_of(net), copy.deepcopy(net).eval()(pictures())
    with pytest.raises(error, match=said):
        getattr(ai8x, start)(net, loader(), POLICY, progress=False)
    assert_unchanged(net, before)
    assert torch.equal(net.eval()(pictures()), wanted)
    ai8x.start_qat(net, [pictures()], POLICY, progress=False)  # and it starts when asked rightly


def test_a_stranger_of_an_optimizer_or_a_policy_leaves_it_too():
    net = fresh()
    before = picture_of(net)
    with pytest.raises(ValueError, match="none of the model's parameters"):
        ai8x.start_qat(net, [pictures()], POLICY, torch.optim.SGD(Plain().parameters(), 0.1), progress=False)
    assert_unchanged(net, before)
    with pytest.raises(ValueError, match="did you mean"):
        ai8x.start_qat(net, [pictures()], POLICY | {"overrides": {"lft": {"weight_bits": 4}}}, progress=False)
    assert_unchanged(net, before)


def test_a_batch_norm_without_statistics_leaves_those_in_front_of_it():
    net = fresh()
    net.left.bn = nn.BatchNorm2d(6, track_running_stats=False)
    before = picture_of(net)
    with pytest.raises(ValueError, match="left: .*track_running_stats=True"):
        ai8x.start_qat(net, [pictures()], POLICY, progress=False)
    assert_unchanged(net, before)


def test_qat_does_not_start_while_the_device_simulates():
    net = fresh()
    before = picture_of(net)
    ai8x.set_device(85, simulate=True, verbose=False)
    try:
        with pytest.raises(ValueError, match=r"ai8x\.set_device\(85\)"):
            ai8x.start_qat(net, [pictures()], POLICY, progress=False)
    finally:
        ai8x.set_device(85, verbose=False)
    assert_unchanged(net, before)


# --- the graph is that of the call ----------------------------------------------------------------------------------------


class Skipping(Plain):
    """Leaves a block out at random while it trains, as stochastic depth does."""

    def forward(self, x):
        x = self.stem(x)
        y = self.right(x) if self.training and torch.rand(()) < 0.5 else self.add(self.left(x), self.right(x))
        return self.head(self.last(y).flatten(1))


def test_a_network_is_seen_in_evaluation_mode_and_its_mode_comes_back():
    net = quantized(Skipping)
    wanted = qatlib.quantize_model(net.eval())
    net.train()
    for _ in range(4):
        assert qatlib.quantize_model(net).compact.graph["ops"] == wanted.compact.graph["ops"]
        assert ai8x.fit(net).layers == ai8x.fit(copy.deepcopy(net).eval()).layers
    assert all(module.training for module in net.modules())
    net.right.eval()
    ai8x.fit(net)
    assert net.training and not net.right.training


class Optional(Plain):
    def forward(self, x, skip=None, scale: float = 1.0, *more, deep=True, **options):
        x = self.stem(x)
        if skip is not None:
            x = self.add(x, skip)
        if not deep or more or options.get("short") or scale > 2:
            return self.right(x)
        return self.head(self.last(self.add(self.left(x), self.right(x))).flatten(1))


def test_optional_arguments_are_what_a_call_without_them_makes_of_them():
    net = fresh(Optional)
    names = [node.name for node in trace(net)]
    assert names == [node.name for node in trace(fresh())] and names[-1] == "head"
    ai8x.start_qat(net, [pictures()], POLICY, progress=False)
    assert torch.equal(qatlib.quantize_model(net)(pictures()), net.eval()(pictures()))


ANSWERED_WRONGLY = {
    "isinstance": lambda s, x: s.right(x) if isinstance(x, torch.Tensor) else s.left(x),
    "hasattr": lambda s, x: s.right(x) if hasattr(x, "mask") else s.left(x),
    "callable": lambda s, x: s.right(x) if callable(x) else s.left(x),
    "other forward": lambda s, x: s.left(x) if s.other else s.right(x),
    "random": lambda s, x: s.right(x) + torch.randn(6, 8, 8),
}


@pytest.mark.parametrize("question", ANSWERED_WRONGLY)
def test_a_graph_that_computes_something_else_is_refused_before_anything_changes(question):
    class Asking(Plain):
        other = False

        def forward(self, x):
            return self.last(ANSWERED_WRONGLY[question](self, self.stem(x)))

    torch.manual_seed(0)
    net = Asking()
    if question == "other forward":
        net.forward = lambda x: (Plain.forward(net, x), x)  # of the object: torch.fx reads that of the class
    before = picture_of(net)
    for call in (lambda: ai8x.start_qat(net, [pictures()], POLICY, progress=False), lambda: ai8x.fit(net)):
        with pytest.raises(ValueError, match="computes something else than its call"):
            call()
    assert_unchanged(net, before)


class Named(nn.Module):
    """Layers with names that torch.fx keeps for itself, and sizes computed on the way."""

    input_shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.code, self.graph = ai8x.Conv2d(3, 6, 1), ai8x.Conv2d(6, 6, 1)
        self.recompile = ai8x.Linear(384, 5, bias=True, wide=True)

    def forward(self, x):
        x = self.graph(self.code(x))
        return self.recompile(x.view(x.size(0), x.size(1) * x.size(2) * x.shape[3]))


def test_any_name_of_a_layer_will_do_and_sizes_are_no_values():
    net = Named()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ai8x.start_qat(net, [pictures()], POLICY, progress=False)
    with torch.no_grad():
        assert torch.equal(net(pictures()), net.recompile(net.graph(net.code(pictures())).flatten(1)))
    assert [row.name for row in qatlib.diagnose(net, pictures()).layers] == ["code", "graph", "recompile"] and ai8x.fit(net).fits


def test_a_network_that_writes_into_its_input_is_traced_as_it_is():
    class Writing(Plain):
        def forward(self, x):
            x.mul_(0.5)
            return super().forward(x)

    net = fresh(Writing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "scaling the layers changed")  # the second call halves once more
        ai8x.start_qat(net, [pictures()], POLICY, progress=False)
    assert net.head.weight_bits == 8


def test_a_graph_is_compared_with_the_call():
    net, x = fresh(), pictures(2)
    graph = trace(net)
    require_same(graph, net, x)
    with torch.no_grad():
        net.head.op.bias[0] += 2**-10  # the graph is of calls: both change
    require_same(graph, net, x)
    with pytest.raises(ValueError, match="something else"):
        require_same(graph, fresh(seed=1), x)


class Auxiliary(Plain):
    def __init__(self):
        super().__init__()
        self.extra = ai8x.Conv2d(6, 2, 1, wide=True)

    def forward(self, x):
        x = self.stem(x)
        y = self.head(self.last(self.add(self.left(x), self.right(x))).flatten(1))
        return (y, self.extra(x)) if self.training else y


class Always(Auxiliary):
    def forward(self, x):
        return Plain.forward(self, x), self.extra(self.stem(x))


def test_a_branch_of_training_only_is_named_and_both_remedies_help():
    net = fresh(Auxiliary)
    with pytest.warns(UserWarning, match="extra: never called in evaluation mode"):
        ai8x.start_qat(net, [pictures()], POLICY, progress=False)
    deleted, always = fresh(Auxiliary), fresh(Always)
    del deleted.extra
    for net in (deleted, always):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ai8x.start_qat(net, [pictures()], POLICY, progress=False)


FOREIGN = {
    "BatchNorm2d": (nn.BatchNorm2d(6), "batchnorm='Affine'"),
    "Conv2d": (nn.Conv2d(6, 6, 1), "use ai8x.Conv2d"),
    "ReLU": (nn.ReLU(), "activation='ReLU'"),
    "leaky": (nn.LeakyReLU(0.1), "activation='ReLU'"),
    "sigmoid": (torch.sigmoid, "outside the network"),
    "max_pool2d": (lambda x: nn.functional.max_pool2d(x, 1), "use ai8x.MaxPool2d"),
    "+": (lambda x: x + x, r"use ai8x\.Add\(\)"),
    "iadd": (lambda x: x.add_(x), r"use ai8x\.Add\(\)"),
    "-": (lambda x: x - 2 * x, r"use ai8x\.Sub\(\)"),
    "ConvTranspose": (nn.ConvTranspose2d(6, 6, 1), "use ai8x.ConvTranspose2d"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_operations_that_are_no_layers_are_named_with_what_to_use(name):
    operation, remedy = FOREIGN[name]

    class Mixed(Plain):
        def __init__(self):
            super().__init__()
            self.between = operation

        def forward(self, x):
            x = self.between(self.stem(x))
            return self.head(self.last(self.add(self.left(x), self.right(x))).flatten(1))

    with pytest.warns(UserWarning, match=remedy):
        ai8x.start_qat(fresh(Mixed), [pictures()], POLICY, progress=False)


def test_operations_behind_the_last_layer_and_those_that_move_values_are_none():
    class Fine(Plain):
        def forward(self, x):
            x = self.stem(x).permute(0, 2, 3, 1).permute(0, 3, 1, 2)
            x = self.head(self.last(self.add(self.left(x), nn.functional.dropout(self.right(x)))).flatten(1))
            return torch.softmax(x, 1), x + 1

    net = fresh(Fine)
    assert foreign(trace(net)) == {}


# --- state is no parameter ------------------------------------------------------------------------------------------------


def test_parameters_are_weights_and_nothing_else():
    net = quantized()
    assert {name.rpartition(".")[2] for name, _ in net.named_parameters()} == {"weight", "bias"}
    assert all(p.is_floating_point() and p.requires_grad for p in net.parameters())
    net.requires_grad_(False).requires_grad_(True)
    before = {name: value.clone() for name, value in net.state_dict().items() if "op." not in name}
    optimizer = torch.optim.SGD(net.parameters(), 0.01, weight_decay=0.1)
    (net(pictures()).square().mean() + 1e-3 * sum(p.abs().sum() for p in net.parameters())).backward()
    optimizer.step()
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(net.parameters()), net.parameters())


@pytest.mark.parametrize("average", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.97), "use_buffers": True}])
def test_averaged_models_keep_the_state_and_average_the_weights(average):
    net = quantized(bits=4)
    averaged = AveragedModel(net, **average)
    averaged.update_parameters(net)
    with torch.no_grad():
        net.head.op.weight.mul_(2)
    for _ in range(3):
        averaged.update_parameters(net)
    other = averaged.module.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in net.state_dict().items() if "op." not in name)
    assert 1 < (averaged.module.head.op.weight / net.head.op.weight * 2).mean() < 2
    assert averaged(pictures()).shape == (8, 5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_compute_the_same_and_see_their_own_changes(copied):
    net = quantized()
    twin = copied(net)
    assert torch.equal(twin(pictures()), net(pictures()))
    ai8x.initiate_qat(twin, {"weight_bits": 2})
    assert not torch.equal(twin(pictures()), net(pictures()))


# --- numbers of other kinds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inside_autocast_a_quantized_layer_computes_in_float32(dtype):
    net = quantized()
    with torch.no_grad():
        net.head.op.weight.mul_(1e3)  # wide sums beyond what float16 holds
    wanted = net(pictures())
    wanted.sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with torch.autocast("cpu", dtype):
        got = net(pictures())
    got.sum().backward()
    assert torch.equal(got, wanted) and all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients))


def test_calibration_inside_autocast_is_the_one_outside():
    net, other = fresh(), fresh()
    ai8x.start_qat(other, [pictures()], POLICY, progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        ai8x.start_qat(net, [pictures()], POLICY, progress=False)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())


def test_inference_mode_around_everything():
    net, two_bits, calibrated, x = quantized(), quantized(bits=2), fresh(), pictures()
    ai8x.fuse_bn_layers(calibrated)
    ai8x.pre_qat(calibrated, [x], POLICY)
    wanted = net(x)
    with torch.inference_mode():
        twin = copy.deepcopy(net)
        assert torch.equal(twin(x), wanted) and torch.equal(qatlib.quantize_model(twin)(x), wanted)
        assert qatlib.quantize_model(calibrated, 4)(x).shape == wanted.shape
        twin.load_state_dict(two_bits.state_dict())
        assert not torch.equal(twin(x), wanted) and ai8x.fit(twin).fits and qatlib.diagnose(twin, x).rows()
        with pytest.raises(ValueError, match="inference_mode"):
            ai8x.start_qat(Plain(), [x], POLICY, progress=False)
    net.load_state_dict(twin.state_dict())
    with torch.no_grad():
        assert torch.equal(net(x), twin(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_refused_by_their_dtype_and_the_remedy_helps(dtype):
    net = fresh().to(dtype)
    with pytest.raises(ValueError, match=rf"stem has {dtype} weights.*model\.float\(\)"):
        ai8x.start_qat(net, [pictures()], POLICY, progress=False)
    ai8x.start_qat(net.float(), [pictures()], POLICY, progress=False)
    with pytest.raises(ValueError, match=str(dtype)):
        net.to(dtype)(pictures().to(dtype))


def test_double_precision_works():
    net = fresh().double()
    ai8x.start_qat(net, [pictures().double()], POLICY, progress=False)
    assert torch.equal(net(pictures().double()).float(), copy.deepcopy(net).float()(pictures()))
    assert torch.equal(qatlib.quantize_model(net)(pictures()), net(pictures().double()).float())


PARAMETRISED = {
    "prune": (lambda op: prune.l1_unstructured(op, "weight", 0.5), lambda op: prune.remove(op, "weight")),
    "structured": (lambda op: prune.ln_structured(op, "weight", 0.5, n=2, dim=0), lambda op: prune.remove(op, "weight")),
    "weight_norm": (parametrizations.weight_norm, lambda op: nn.utils.parametrize.remove_parametrizations(op, "weight")),
    "spectral_norm": (parametrizations.spectral_norm, lambda op: nn.utils.parametrize.remove_parametrizations(op, "weight")),
    "old weight_norm": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "old spectral_norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
}


@pytest.mark.parametrize("name", PARAMETRISED)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_computed_weights_train_and_are_refused_by_name_until_they_are_final(name):
    make, remove = PARAMETRISED[name]
    net = fresh()
    make(net.right.op)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    for _ in range(2):  # twice: a stale weight would go backward through a freed graph
        optimizer.zero_grad()
        net(pictures()).square().mean().backward()
        optimizer.step()
    net.eval()
    before = net(pictures())
    assert ai8x.fit(net).weight_bytes == ai8x.fit(fresh()).weight_bytes, "the meter needs no final weights"
    for call in (lambda: ai8x.start_qat(net, [pictures()], POLICY, progress=False), lambda: qatlib.quantize_model(net, 8)):
        with pytest.raises(ValueError, match="right: its weights are computed"):
            call()
    remove(net.right.op)
    assert torch.allclose(net(pictures()), before, rtol=1e-4, atol=1e-5)
    ai8x.start_qat(net, [pictures()], POLICY, progress=False)
    assert torch.equal(qatlib.quantize_model(net)(pictures()), net.eval()(pictures()))


def test_pruning_during_qat_keeps_its_mask():
    net = quantized()
    prune.l1_unstructured(net.left.op, "weight", 0.5)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        net(pictures()).square().mean().backward()
        optimizer.step()
    prune.remove(net.left.op, "weight")
    compact = qatlib.quantize_model(net).compact
    assert (compact.weight("left") == 0).mean() >= 0.5


# --- other tools ----------------------------------------------------------------------------------------------------------


def test_torch_func_sees_the_same_gradients():
    net, x = quantized(), pictures()

    def loss(parameters, pictures=x):
        return torch.func.functional_call(net, parameters, (pictures,)).square().sum()

    weights = {name: p.detach() for name, p in net.named_parameters()}
    loss(dict(net.named_parameters())).backward()
    found = torch.func.grad(loss)(weights)
    assert all(torch.equal(found[name], p.grad) for name, p in net.named_parameters())
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x[:, None])
    for name, p in net.named_parameters():  # another order of at most 8 * 8 * 8 float32 sums
        assert (each[name].sum(0) - p.grad).abs().max() <= 512 * 2**-24 * each[name].abs().sum(0).max()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("bits", [8, 2])
def test_torch_export_gives_the_same_numbers(strict, bits):
    net, x = quantized(bits=bits).eval(), pictures()
    program = torch.export.export(net, (x,), strict=strict)
    assert torch.equal(program.module()(pictures(seed=1)), net(pictures(seed=1)))


def test_tools_that_cannot_write_a_layer_are_refused_by_name_and_the_remedy_works(tmp_path):
    from qatlib.export.onnx_graph import export_onnx

    net, x = quantized().eval(), pictures(1)
    for call in (
        lambda: torch.jit.trace(net, x),
        lambda: torch.jit.script(net),
        lambda: torch.onnx.export(net, (x,), str(tmp_path / "a.onnx"), dynamo=False),
    ):
        with pytest.raises(ValueError, match=r"export_onnx\(model, path\)"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    pytest.importorskip("onnx")
    assert export_onnx(net, tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("bits, share", [(8, 1.0), (2, 0.9)])
def test_a_compiled_network_is_one_graph_and_computes_the_same(bits, share):
    net, x = fresh(), pictures()
    ai8x.start_qat(net, [x], {"weight_bits": bits, "shift_quantile": share}, progress=False)
    torch._dynamo.reset()
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)  # fullgraph: a break would raise
    for _ in range(2):
        for network in (net, compiled):
            network.zero_grad()
            network(x).square().sum().backward()
        assert torch.equal(compiled(x), net(x))
        for a, b in zip(twin.parameters(), net.parameters()):
            assert (a.grad - b.grad).abs().max() <= 512 * 2**-24 * b.grad.abs().max() * 8  # float sums in another order
        with torch.no_grad():
            for a, b in zip(twin.parameters(), net.parameters()):
                a.mul_(1.7)  # the shift must follow the weights
                b.mul_(1.7)
    ai8x.initiate_qat(twin, {"weight_bits": 4})
    ai8x.initiate_qat(net, {"weight_bits": 4})
    assert torch.equal(compiled(x), net(x)), "other bits, the same compiled network"
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_network_compiled_by_inductor_computes_the_same():
    net, x = quantized(), pictures()
    torch._dynamo.reset()
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True)
    for network in (net, compiled):
        network(x).square().sum().backward()
    assert torch.equal(compiled(x), net(x))
    for a, b in zip(twin.parameters(), net.parameters()):
        assert (a.grad - b.grad).abs().max() <= 512 * 2**-24 * b.grad.abs().max() * 8
    torch._dynamo.reset()
