"""Networks in plain torch become networks of ai8x layers: the same numbers, then QAT, the doctor, and every engine."""

import copy
import pickle
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from plain_nets import NETS, lively
from torch import nn

import qatlib
from qatlib import ai8x
from qatlib.ai8x import mode
from qatlib.export.check import check_folder, export_all


def batch(shape, n=8, seed=3):
    return torch.randint(-128, 128, (n, *shape), generator=torch.Generator().manual_seed(seed)) / 128


def network(name: str, seed: int = 0):
    cls, shape, *_ = NETS[name]
    torch.manual_seed(seed)
    return lively(cls(), shape, seed), shape


def ported(name: str, model=None, **options):
    _, shape, device, exact, trained = NETS[name]
    return ai8x.from_torch(model or network(name)[0], shape, device, (*exact, *trained), verbose=False, **options)


def rounding(model: nn.Module, x: torch.Tensor) -> float:
    """What another order of summation may change: 2^-24 of the largest sum of magnitudes for each of its terms, in every layer."""
    largest, terms, layers = 1.0, 1, 0

    def look(m, inputs, output):
        nonlocal largest, terms, layers
        fan_in = m.weight[0].numel() if hasattr(m, "weight") and m.weight is not None else inputs[0][0, 0].numel()
        gain = (
            m.weight.abs().flatten(1).sum(1).max().item()
            if hasattr(m, "weight") and m.weight is not None and m.weight.dim() > 1
            else 1.0
        )
        largest, terms, layers = max(largest, gain * inputs[0].abs().max().item()), max(terms, fan_in), layers + 1

    hooks = [m.register_forward_hook(look) for m in model.modules() if not list(m.children())]
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    return 2**-24 * terms * layers * largest


def softened(name: str):
    """The network without what only training can replace."""
    model, shape = network(name)
    if name == "resnet":
        model.maxpool = nn.MaxPool2d(2)
    if name == "autoencoder":
        model.encoder[1] = model.encoder[3] = nn.ReLU()
        model.decoder[4] = nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1)
    return model, shape


AFTER = {"kws": lambda y: F.log_softmax(y, dim=-1), "autoencoder": torch.sigmoid, "mlp": lambda y: torch.tanh(y).view(-1, 1, 8, 8)}


@pytest.mark.parametrize("name", NETS)
def test_the_float_function_is_the_same_and_the_model_as_before(name):
    model, shape = softened(name)
    _, _, device, exact, _ = NETS[name]
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    net = ai8x.from_torch(model, shape, device, exact, verbose=False)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and net.training is model.training
    x = batch(shape)
    wanted, found = model.eval()(x), AFTER.get(name, lambda y: y)(net.eval()(x))
    if name in ("kws", "unet"):  # nothing is summed in another order
        assert torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=rounding(model, x))
    assert net.input_shape == shape and type(net).__name__ == type(model).__name__


@pytest.mark.parametrize("name", NETS)
def test_everything_that_is_refused_is_told_at_once_with_a_rewrite_for_each(name):
    model, shape = network(name)
    _, _, device, exact, trained = NETS[name]
    with pytest.raises(ValueError) as refused:
        ai8x.from_torch(model, shape, device, verbose=False)
    lines = str(refused.value).splitlines()
    assert {option for option in (*exact, *trained) if f"rewrite=({option!r},)" in str(refused.value)} == {*exact, *trained}
    assert all(
        line.startswith("- ") and "; " in line and "rewrite=" in line for line in lines[1:] if not line.startswith("all of them")
    )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NETS)
def test_from_plain_torch_to_equal_engines(name, bits, tmp_path):
    _, shape, device, *_ = NETS[name]
    ai8x.set_device(device, verbose=False)
    net = ported(name).train()
    teacher = copy.deepcopy(net).eval()
    data = [(batch(shape, 16, seed),) for seed in range(4)]
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = ai8x.start_qat(net, data, {"start_epoch": 0, "weight_bits": bits}, optimizer, progress=False)
    for (x,) in data * 3:
        optimizer.zero_grad()
        F.mse_loss(net(x), teacher(x).detach()).backward()
        optimizer.step()
    found = qatlib.diagnose(net.eval(), data[0][0])
    assert found.healthy, found
    export_all(net, tmp_path / "out")
    engines = check_folder(tmp_path / "out", n=8, model=net)
    ran = {engine.name for engine in engines if engine.outputs}
    assert {"torch, fake-quantized", "ONNX Runtime", "C, gcc -O3"} <= ran, engines
    assert all(engine.differing == 0 for engine in engines if engine.outputs), engines


@pytest.mark.parametrize("name", ["vgg", "kws"])
def test_training_steps_are_the_same_to_the_last_bit(name):
    model, shape = network(name)
    net = ported(name, model)
    x, after = batch(shape), AFTER.get(name, lambda y: y)
    for network_, last in ((model, lambda y: y), (net, after)):
        torch.manual_seed(7)
        optimizer = torch.optim.SGD(network_.train().parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            last(network_(x)).square().mean().backward()
            optimizer.step()
    tensors = {key.replace(".op.", "."): value for key, value in net.state_dict().items()}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Conv1d, nn.Linear))}
    for path, layer in layers.items():
        assert torch.equal(layer.weight, tensors[f"{path}.weight"]), path
    norms = [m.running_var for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert all(torch.equal(a, b) for a, b in zip(norms, [v for k, v in tensors.items() if k.endswith("running_var")], strict=True))


def test_keys_are_the_vendors_in_execution_order():
    net = ported("resnet")
    keys = list(net.state_dict())
    assert "layer2.0.downsample.0.op.weight" in keys and "layer1.0.conv1.bn.running_mean" in keys and "fc.op.bias" in keys
    order = [key.removesuffix(".op.weight") for key in keys if key.endswith("op.weight")]
    called = [node.target for node in net.graph.nodes if node.op == "call_module"]
    assert order == [target for target in called if f"{target}.op.weight" in keys]


def test_copies_pickles_and_checkpoints():
    net = ported("kws").eval()
    x = batch((8, 32))
    wanted = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(pickle.loads(pickle.dumps(net)))):
        assert other.input_shape == (8, 32) and type(other).__name__ == "KWS" and torch.equal(other(x), wanted)
    fresh = ported("kws", network("kws", seed=1)[0]).eval()
    assert not torch.equal(fresh(x), wanted)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x), wanted)


def test_device_random_numbers_and_gradients_are_left_alone():
    model, shape = network("vgg")
    ai8x.set_device(87, round_avg=True, verbose=False)
    device = mode.dev
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    net = ported("vgg", model)
    with pytest.raises(ValueError):
        ai8x.from_torch(model, shape, verbose=False)
    assert mode.dev is device and torch.equal(torch.rand(3), wanted)
    ai8x.set_device(85, verbose=False)
    trains = {name: p.requires_grad for name, p in net.named_parameters() if ".op." in name}
    assert [name for name, on in trains.items() if not on] == ["features.0.op.weight"]


def test_what_becomes_of_each_operation_is_printed(capsys):
    model, shape = network("mobilenet")
    ai8x.from_torch(model, shape, 87, ("stride", "adaptive_pool", "groups"))
    printed = capsys.readouterr().out
    assert re.search(r"Conv2d\(16, 16, 3x3\) \+ BatchNorm2d \+ ReLU6 +FusedDepthwiseConv2dBNReLU +16x8x8", printed)
    assert "ReLU6 became ReLU" in printed and "groups: not needed" in printed and "classifier.1: a wide output" in printed
    ai8x.from_torch(model, shape, 87, ("stride", "adaptive_pool"), verbose=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "wide", "expected"), [("unet", None, []), ("unet", True, ["outc"]), ("kws", None, ["fc"]), ("kws", False, [])]
)
def test_vectors_are_wide_outputs_and_pictures_on_demand(name, wide, expected):
    net = ported(name, wide=wide)
    assert [path for path, m in net.named_modules() if getattr(m, "wide", False)] == expected


class Shared(nn.Module):
    """A block and a pool that are called several times."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.pool(self.block(self.pool(self.block(x)))).flatten(1))


def test_shared_modules_stay_one_layer():
    model = lively(Shared(), (4, 8, 8))
    net = ai8x.from_torch(model, (4, 8, 8), verbose=False).eval()
    assert [path for path, m in net.named_modules() if getattr(m, "op", None) is not None] == ["block.0", "head"]
    x = batch((4, 8, 8))
    assert torch.equal(net(x), model.eval()(x))


class Interleaved(nn.Module):
    """Called in another order than defined: a layer of `a`, one of `b`, one of `a`."""

    def __init__(self):
        super().__init__()
        self.a = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
        self.b = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(1))

    def forward(self, x):
        return self.a[1](self.b[0](self.a[0](x)))


def test_layers_are_defined_in_execution_order_even_if_that_changes_names(capsys):
    model = Interleaved()
    net = ai8x.from_torch(model, (4, 2, 2))
    assert "names: have _ for ." in capsys.readouterr().out
    assert [key for key in net.state_dict() if key.endswith("op.weight")] == ["a_0.op.weight", "b_0.op.weight", "a_1.op.weight"]
    assert torch.equal(net(batch((4, 2, 2))), model(batch((4, 2, 2))))


class Functions(nn.Module):
    """Every function that has a module of the same meaning."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(16, 3)

    def forward(self, x, scale=None, *more, flag=False):
        assert x.dim() == 4 and x.shape[1] == 4 and x.size(0) > 0
        y = torch.add(F.relu(self.a(x)), x)
        y = torch.max_pool2d(torch.relu(self.b(y)), 2) if y.shape[-1] > 4 else y
        z = F.dropout(self.c(y).relu(), training=self.training)
        z = z - y
        z += y
        z = torch.clamp(self.a(F.avg_pool2d(z, 2, stride=2)), min=0) if not flag else z
        return self.fc(z.contiguous().reshape(len(x), -1))


def test_functions_and_operators_are_recognised():
    model = Functions().eval()
    net = ai8x.from_torch(model, (4, 8, 8), verbose=False)
    assert torch.equal(net(batch((4, 8, 8))), model(batch((4, 8, 8))))
    assert {"Add", "Sub", "FusedConv2dReLU", "MaxPool2d", "AvgPool2d", "Dropout"} <= {type(m).__name__ for m in net.modules()}


class InPlace(nn.Module):
    """The sum reads what the in-place ReLU has made of its operand."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x):
        y = self.a(x)
        return self.c(self.b(F.relu_(y)) + y)


def test_in_place_operations_change_what_is_read_later():
    model = InPlace()
    net = ai8x.from_torch(model, (4, 4, 4), verbose=False)
    assert torch.equal(net(batch((4, 4, 4))), model(batch((4, 4, 4))))


class Awkward(nn.Module):
    """Names that the result has itself, a pad of nothing, one pool for maps of two sizes, a constant made in forward."""

    def __init__(self):
        super().__init__()
        self.code, self.graph = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.meta, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 3)

    def forward(self, x):
        n, c, h, w = x.size()
        y = F.pad(self.graph(F.max_pool2d(torch.relu(self.code(x)), 2)), [0, 0, (h - h) // 2, 0])
        if torch.zeros(1).dim() == 1:
            x = x + 0
        return self.fc(torch.cat([self.meta(x), self.meta(y)], 1).view(n, 2 * c))


def test_awkward_but_harmless():
    model = Awkward()
    attributes = set(vars(model))
    net = ai8x.from_torch(model, (4, 8, 8), rewrite=("adaptive_pool",), verbose=False)
    x = batch((4, 8, 8))
    torch.testing.assert_close(net(x), model(x), rtol=0, atol=2**-24 * 64 * 16)
    assert {"code_.op.weight", "graph_.op.weight", "fc.op.weight"} <= net.state_dict().keys() and set(vars(model)) == attributes
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_what_tracing_gets_wrong_is_refused():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.a(x) if isinstance(x, torch.Tensor) else x

    with pytest.raises(ValueError, match="computes something else when traced"):
        ai8x.from_torch(Asks(), (3, 4, 4), verbose=False)


def test_batch_norms_keep_eps_momentum_and_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=False), nn.ReLU())
    model[1].eval()
    layer = ai8x.from_torch(model, (3, 4, 4), verbose=False).get_submodule("0")
    assert (layer.bn.eps, layer.bn.momentum, layer.bn.affine, layer.bn.training) == (1e-3, None, False, False)
    assert layer.training and layer.op.bias is not None


def test_a_branch_of_training_alone_is_left_out_and_said(capsys):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.aux = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = self.a(x)
            return (y, self.aux(y)) if self.training else y

    ai8x.from_torch(Auxiliary(), (3, 4, 4))
    assert "aux: left out" in capsys.readouterr().out


def test_wrapped_models_single_layers_and_networks_with_ai8x_layers():
    x = batch((3, 4, 4))
    conv = nn.Conv2d(3, 4, 1)
    for model in (conv, nn.DataParallel(conv), nn.Sequential(conv, nn.Identity())):
        assert torch.equal(ai8x.from_torch(model, (3, 4, 4), verbose=False)(x), conv(x))
    mixed = nn.Sequential(conv, nn.ReLU(), ai8x.Conv2d(4, 4, 1), ai8x.MaxPool2d(2))
    assert torch.equal(ai8x.from_torch(mixed, (3, 4, 4), verbose=False)(x), mixed(x))


def test_depthwise_layers_in_one_dimension():
    conv = nn.Conv1d(4, 4, 3, groups=4)
    net = ai8x.from_torch(nn.Sequential(conv, nn.ReLU()), (4, 16), 87, verbose=False)
    assert torch.equal(net(batch((4, 16))), conv(batch((4, 16))).relu())
    assert net.get_submodule("0").op.groups == 4


def test_inside_inference_mode_the_result_can_be_trained():
    with torch.inference_mode():
        net = ai8x.from_torch(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (3, 4, 4), verbose=False)
    net(batch((3, 4, 4))).sum().backward()
    assert net.get_submodule("0").op.weight.grad is not None
