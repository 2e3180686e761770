"""Checkpoints of every form give the same network, by every reader; ours also say what decides the numbers beside the state."""

import argparse
import collections
import contextlib
import datetime
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qatlib
from qatlib import ai8x, files, quantize_checkpoint
from qatlib.doctor.__main__ import examine
from qatlib.export import check_folder, export_all
from qatlib.export.check import from_checkpoint
from qatlib.integer import compact_from_checkpoint, quantize_model
from qatlib.integer.checkpoint import load_state, state_of, with_state


class Small(nn.Module):
    input_shape = (2, 6, 6)

    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(ai8x.FusedConv2dBNReLU(2, 4, 3, padding=1), ai8x.FusedMaxPoolConv2dBNReLU(4, 4, 3, padding=1))
        self.head = ai8x.Linear(36, classes, wide=True)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


class Pooled(Small):
    """The mean of four codes is a half in every fourth place, so that rounding decides."""

    def __init__(self):
        super().__init__()
        self.body[1] = ai8x.FusedAvgPoolConv2dReLU(4, 4, 3, padding=1)


def pictures(n=16):
    return torch.randint(-128, 128, (n, 2, 6, 6), generator=torch.Generator().manual_seed(5)) / 128


def trained(cls=Small):
    torch.manual_seed(2)
    net = cls().eval()
    ai8x.start_qat(net, [pictures()], {"weight_bits": 8}, progress=False)
    return net


@pytest.fixture(autouse=True)
def usual_device():
    ai8x.set_device(85, verbose=False)
    yield
    ai8x.set_device(85, verbose=False)


NET = trained()
STATE = NET.state_dict()
OTHER = {key: value.clone() for key, value in STATE.items()} | {"head.op.weight": -STATE["head.op.weight"]}
OPTIMIZER = torch.optim.Adam([p for p in NET.parameters() if p.requires_grad])
LOSSES = collections.defaultdict(list, loss=[1.0, 0.5])


def named(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def below(part, inner):
    return {key.replace(f"{part}.", f"{part}.{inner}.", 1): value for key, value in STATE.items()}


def averaged():
    model = torch.optim.swa_utils.AveragedModel(NET)
    model.update_parameters(NET)
    return model.state_dict()


FORMS = {
    "plain": STATE,
    "a dict without metadata": dict(STATE),
    "DataParallel": named("module."),
    "twice parallel": named("module.module."),
    "compiled": named("_orig_mod."),
    "DDP of compiled": named("module._orig_mod."),
    "compiled DDP": named("_orig_mod.module."),
    "checkpointed part": below("body", "_checkpoint_wrapped_module"),
    "compiled part": below("body", "_orig_mod"),
    "parallel part": below("body", "module"),
    "Lightning": {"state_dict": named("model."), "hyper_parameters": {"lr": 0.1}, "callbacks": {}},
    "Lightning with a loss": {"state_dict": named("net.") | {"criterion.weight": torch.ones(3)}},
    "a deeper wrapper": {"state_dict": named("model.net.module.")},
    "model": {"model": STATE, "optimizer": OPTIMIZER.state_dict(), "epoch": 3},
    "net": {"net": STATE, "acc": 0.5},
    "model_state_dict": {"model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER.state_dict(), "loss": 1.0},
    "EMA alone": {"ema": named("module."), "updates": 7},
    "SWA": averaged(),
    "SWA in a checkpoint": {"swa": averaged()},
    "nested": {"state_dict": {"model": STATE}},
    "any name": {"weights_of_the_best": STATE},
    "two, one of them in state_dict": {"ema": OTHER, "state_dict": STATE, "best": OTHER},
    "state_dict_ema": {"state_dict": STATE, "state_dict_ema": OTHER},
    "the vendor's": {"epoch": 3, "arch": "small", "state_dict": named("module."), "optimizer_state_dict": OPTIMIZER.state_dict(),
                     "optimizer_type": torch.optim.Adam, "compression_sched": {"masks_dict": {"a": None}},
                     "extras": {"current_top1": 91.5, "best_top1": np.float64(92.0), "best_epoch": 2}},
    "arguments, paths, dates": {"model": STATE, "args": argparse.Namespace(lr=0.1, out=Path("runs"), also=[Path("x")]),
                                "when": datetime.datetime(2024, 1, 1), "opt": torch.optim.SGD},
    "scores": {"model": STATE, "best": np.float32(0.5), "all": np.arange(3), "history": LOSSES, "config": ["a"]},
    "a schedule": {"model": STATE, "schedule": torch.optim.lr_scheduler.MultiStepLR(OPTIMIZER, [2, 4]).state_dict()},
}  # fmt: skip


def integers(compact):
    return {key: value.tobytes() for key, value in compact.to_state_dict().items()}


WANTED = integers(quantize_model(NET).compact)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_every_reader_of_files_takes_every_form(form, legacy, tmp_path):
    path = tmp_path / "any.pth"
    torch.save(FORMS[form], path, _use_new_zipfile_serialization=not legacy)
    assert integers(quantize_model(qatlib.load_checkpoint(path, Small())).compact) == WANTED
    assert integers(quantize_model(from_checkpoint(path, Small())).compact) == WANTED
    assert len(examine(path, Small(), pictures(8)).layers) == len(examine(path).layers) == 3


@pytest.mark.parametrize("form", FORMS)
def test_every_reader_of_dicts_takes_every_form(form):
    before = {key: value.clone() for key, value in STATE.items()}
    assert integers(quantize_model(with_state(Small(), FORMS[form])).compact) == WANTED
    if form != "Lightning with a loss":  # a loss is no part of a network: without one nobody knows
        whole = quantize_checkpoint(FORMS[form])
        assert integers(compact_from_checkpoint(Small(), {"model": whole}).compact) == WANTED
        if not form.startswith(("Lightning", "a deeper", "parallel part", "checkpointed")):
            assert list(whole) == list(STATE)
    float_net = Small()
    load_state(float_net, {"model": named("module.", Small().state_dict())})
    assert float_net.body[0].bn is not None
    assert all(torch.equal(before[key], value) for key, value in STATE.items())


def test_a_network_that_is_wrapped_itself_gets_its_own_names():
    compiled, parallel = torch.compile(Small()), nn.DataParallel(Small())
    for network in (compiled, parallel):
        for form in ("plain", "DDP of compiled", "Lightning"):
            assert integers(quantize_model(with_state(network, FORMS[form])).compact) == WANTED
    inner = Small()
    inner.body = nn.DataParallel(inner.body)
    assert set(state_of(STATE, own=inner.state_dict())) <= set(inner.state_dict())


class Held(nn.Module):
    """A network whose own name for its layers is what wrappers use."""

    def __init__(self):
        super().__init__()
        self.module = Small()


def test_names_that_look_like_a_wrapper_s_are_kept_where_the_network_has_them():
    held = Held()
    held.module = trained()
    state = held.state_dict()
    for given in (state, named("module.", state), {"model": named("_orig_mod.", state)}):
        assert torch.equal(with_state(Held(), given).module(pictures()), NET(pictures()))


TWO = [
    ({"model": STATE, "ema": OTHER}, r"holds several states that may be meant \(model, ema\)"),
    ({"state_dict": named("student.") | named("teacher.", OTHER)}, r"\(state_dict.student, state_dict.teacher\)"),
    (named("ema_model.") | named("online_model.", OTHER), r"\(ema_model, online_model\)"),
]


@pytest.mark.parametrize(("content", "says"), TWO)
def test_of_two_states_none_is_guessed_and_the_remedy_works(content, says, tmp_path):
    path = tmp_path / "two.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"two.pth {says}|{says}.*; save the one that you mean alone, as"):
        qatlib.load_checkpoint(path, Small())
    chosen = content.get("model") or state_of_first(content)
    torch.save({"state_dict": chosen}, path)
    assert integers(quantize_model(qatlib.load_checkpoint(path, Small())).compact) == WANTED


def state_of_first(content):
    state = content.get("state_dict", content)
    first = next(iter(state)).partition(".")[0] + "."
    return {key.removeprefix(first): value for key, value in state.items() if key.startswith(first)}


def test_the_state_that_fits_the_network_is_taken():
    content = {"teacher": trained_teacher(), "student": STATE}
    assert integers(quantize_model(with_state(Small(), content)).compact) == WANTED


def trained_teacher():
    return {key: torch.cat([value, value]) if key.endswith("op.weight") else value for key, value in STATE.items()}


FOREIGN = {
    "another head": (named("", Small(4).state_dict()), r"head.op.weight is \(4, 36\), not \(3, 36\)"),
    "a layer less": ({key: value for key, value in STATE.items() if "head" not in key}, "it lacks head.output_shift"),
    "a layer more": (STATE | {"tail.weight": torch.ones(2)}, "tail.weight is of no layer"),
    "nothing": ({}, "it lacks body.0.output_shift"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_state_changes_nothing(kind):
    content, says = FOREIGN[kind]
    net = Small()
    before, mode = {key: value.clone() for key, value in net.state_dict().items()}, net.training
    for load in (with_state, load_state):
        reason = says if load is with_state else ""  # load_state misses the fused batch norms first
        with pytest.raises(ValueError, match=f"does not belong to Small; give the network that was trained.*{reason}"):
            load(net, content)
    assert list(before) == list(net.state_dict()) and net.training == mode
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


# ---- nothing in a file is run -----------------------------------------------------------------------------------------


class Touch:
    """An object whose pickle calls a function with arguments, and gives the result a state."""

    def __init__(self, function, arguments):
        self.parts = (function, arguments, {"x": 1})

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_that_are_let_through_are_neither_made_nor_called(tmp_path, monkeypatch, legacy):
    made = []
    monkeypatch.setattr(torch.optim.SGD, "__init__", lambda self, *_: made.append("SGD"))
    monkeypatch.setattr(torch.optim.SGD, "__setstate__", lambda self, _: made.append("state"), raising=False)
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda self, **_: made.append("Namespace"))
    path = tmp_path / "a.pth"
    content = {"state_dict": STATE, "optimizer": Touch(torch.optim.SGD, ([1], 0.1)), "args": Touch(argparse.Namespace, ())}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    read = files.load(path)
    assert not made and not isinstance(read["optimizer"], torch.optim.Optimizer)
    for one, name, given in ((read["optimizer"], "torch.optim.sgd.SGD", ([1], 0.1)), (read["args"], "argparse.Namespace", ())):
        assert isinstance(one, files.Unread) and f"{type(one).__module__}.{type(one).__qualname__}" == name
        assert one.given == given and one.state == {"x": 1}


class Sink:
    """Whoever imports, calls or builds it leaves a trace."""

    traces = []

    def __new__(cls, *given):
        cls.traces.append("new")
        return super().__new__(cls)

    def __init__(self, *given):
        self.traces.append("init")

    def __setstate__(self, state):
        self.traces.append("state")

    def __eq__(self, other):
        return self.traces.append("eq") or True

    __hash__ = object.__hash__


def trap(*given):
    Sink.traces.append("called")
    return given


INNER = Touch(eval, ("__import__('test_saved').trap()",))
TRAPS = {
    "a function": Touch(trap, (1,)),
    "eval": INNER,
    "in the arguments of another": Touch(print, (Touch(exec, ("import test_saved; test_saved.trap()",)), [INNER])),
    "in a list in a dict in a tuple": ({"x": [Touch(subprocess.Popen, (["touch", "x"],))]}, INNER),
    "in the arguments of an optimizer": Touch(torch.optim.SGD, (2, {"deep": INNER})),
    "getattr of a module": Touch(getattr, (Touch(__import__, ("test_saved",)), "trap")),
    "torch.load": Touch(torch.load, ("elsewhere.pth",)),
    "a class alone": Sink,
    "an object": Sink(),
    "an object as a key": {Sink(): 1},
    "a parameter of one": Touch(torch._utils._rebuild_parameter, (INNER, False, collections.OrderedDict())),
    "a tensor of a subclass": Touch(torch._tensor._rebuild_from_type_v2, (trap, Sink, (1,), {})),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", TRAPS)
def test_nothing_that_a_file_names_is_called_built_or_imported(tmp_path, name, legacy, monkeypatch):
    path = tmp_path / "a.pth"
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "more": TRAPS[name]}, path, _use_new_zipfile_serialization=not legacy)
    Sink.traces.clear()
    try:
        read = files.load(path)
    except ValueError as problem:  # what even an inert object would not go through, such as a parameter of no tensor
        assert name.startswith(("a parameter", "a tensor")) and "a.pth is no checkpoint that can be read safely" in str(problem)
    else:
        assert all(torch.equal(read["state_dict"][key], value) for key, value in STATE.items())
        assert integers(quantize_model(qatlib.load_checkpoint(path, Small())).compact) == WANTED
    assert not Sink.traces and [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_the_traps_do_spring_without_the_reader(tmp_path):
    path = tmp_path / "a.pth"
    for name in ("a function", "in the arguments of another", "an object", "in the arguments of an optimizer"):
        torch.save({"more": TRAPS[name]}, path)
        Sink.traces.clear()
        with contextlib.suppress(TypeError, AttributeError):
            torch.load(path, weights_only=False)
        assert Sink.traces, name


@pytest.mark.parametrize("function", [os.getcwd, os.system])
def test_the_operating_system_is_refused_by_name(tmp_path, function):
    path = tmp_path / "a.pth"
    torch.save({"state_dict": STATE, "more": Touch(function, ())}, path)
    with pytest.raises(ValueError, match=rf"a.pth .*Python objects in it, here \w+.{function.__name__}: save its state_dict alone"):
        files.load(path)


class Scheduler:
    """As a training loop may keep one: with a reference to what it schedules."""

    def __init__(self):
        self.optimizer, self.rates = OPTIMIZER, collections.deque([0.1, 0.2], 5)


def test_a_checkpoint_of_train_py_with_any_optimizer_class_and_objects_beside_it(tmp_path):
    content = {"epoch": 2, "arch": "small", "state_dict": STATE, "optimizer_state_dict": OPTIMIZER.state_dict()}
    content |= {"optimizer_type": Scheduler, "extras": {"best": collections.deque([1, 2]), "by": collections.defaultdict(list)}}
    torch.save(content | {"compression_sched": Scheduler()}, tmp_path / "qat_best.pth.tar")
    read = files.load(tmp_path / "qat_best.pth.tar")
    assert read["optimizer_type"].__name__ == "Scheduler" and issubclass(read["optimizer_type"], files.Unread)
    assert read["extras"] == {"best": [1, 2], "by": {}} and read["compression_sched"].state["rates"] == [0.1, 0.2]
    assert read["compression_sched"].state["optimizer"].state["param_groups"][0]["lr"] == OPTIMIZER.param_groups[0]["lr"]
    assert integers(quantize_model(from_checkpoint(tmp_path / "qat_best.pth.tar", Small())).compact) == WANTED
    assert examine(tmp_path / "qat_best.pth.tar").healthy


def test_more_kinds_than_any_training_saves_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    kinds = {f"kind{i}": type(f"Kind{i}", (), {"__module__": __name__}) for i in range(files.KINDS + 5)}
    globals().update({kind.__name__: kind for kind in kinds.values()})
    torch.save({"state_dict": STATE} | dict(list(kinds.items())[:90]), path)
    assert "state_dict" in files.load(path)
    torch.save({"state_dict": STATE} | kinds, path)
    with pytest.raises(ValueError, match="a.pth is no checkpoint that can be read safely"):
        files.load(path)


def test_damage_where_python_looks_for_an_archive_is_one_sentence_too(tmp_path):
    files.save(path := tmp_path / "a.pth", {"state_dict": Small().state_dict()})
    raw = bytearray(path.read_bytes())
    disks = raw.rindex(b"PK\x06\x07") + 16
    raw[disks] += 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="is truncated, damaged or no checkpoint .zipfiles that span multiple disks"):
        files.load(path)


def test_what_is_not_read_is_named_and_the_remedy_works(tmp_path):
    path = tmp_path / "whole.pth"
    for content, where in (({"model": NET}, "whole.pth holds a Small, a Python"), (NET, r"here [\w.]*test_saved.Small: save its")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(content, path)
        for read in (lambda: qatlib.load_checkpoint(path, Small()), lambda: from_checkpoint(path, None), lambda: examine(path)):
            with pytest.raises(ValueError, match=where + ".*save its state_dict alone|" + where + " state_dict alone"):
                read()
    torch.save(torch.load(path, weights_only=False).state_dict(), path)
    assert integers(quantize_model(qatlib.load_checkpoint(path, Small())).compact) == WANTED


# ---- what decides the numbers -----------------------------------------------------------------------------------------


def saved(tmp_path, round_avg, device=85):
    ai8x.set_device(device, round_avg=round_avg, verbose=False)
    net = trained(Pooled)
    qatlib.save_checkpoint(tmp_path / "ours.pth", net, epoch=4)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "theirs.pth")
    torch.save(files.load(tmp_path / "ours.pth") | {"state_dict": quantize_checkpoint(net.state_dict())}, tmp_path / "integers.pth")
    return net, net(pictures(64)).detach()


@pytest.mark.parametrize("now", [True, False])
@pytest.mark.parametrize("round_avg", [True, False])
def test_rounding_of_average_pools_is_that_of_training(round_avg, now, tmp_path):
    net, wanted = saved(tmp_path, round_avg)
    export_all(net, tmp_path / "all")
    assert list(files.load(tmp_path / "ours.pth")["state_dict"]) == list(net.state_dict())
    ai8x.set_device(85, round_avg=now, verbose=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = qatlib.load_checkpoint(tmp_path / "ours.pth", Pooled())
        compact = compact_from_checkpoint(Pooled(), files.load(tmp_path / "integers.pth"))
        results = check_folder(tmp_path / "all", 32, Pooled())
    assert torch.equal(again(pictures(64)), wanted) and torch.equal(compact(pictures(64)), wanted)
    assert torch.equal(quantize_model(again)(pictures(64)), wanted)
    assert not any(result.differing for result in results)
    assert len(said) == 3 * (round_avg != now)
    for warning in said:
        text = str(warning.message)
        assert f"was saved with device=85, round_avg={round_avg}, but set_device says device=85, round_avg={now}" in text
        assert f"call ai8x.set_device(device=85, round_avg={round_avg}) before" in text


def test_the_other_rounding_would_give_other_numbers_and_its_absence_is_named(tmp_path):
    net, wanted = saved(tmp_path, True)
    ai8x.set_device(85, verbose=False)
    with pytest.warns(UserWarning, match=r"theirs.pth does not say how .* call ai8x.set_device\(85, round_avg=True\)"):
        other = qatlib.load_checkpoint(tmp_path / "theirs.pth", Pooled())
    assert (other(pictures(64)) != wanted).float().mean() > 0.05
    ai8x.set_device(85, round_avg=True, verbose=False)  # the remedy
    with pytest.warns(UserWarning, match="does not say"):
        assert torch.equal(qatlib.load_checkpoint(tmp_path / "theirs.pth", Pooled())(pictures(64)), wanted)


@pytest.mark.filterwarnings("error")
def test_the_remedy_lasts_through_update_model_and_nothing_is_said_where_nothing_is_rounded(tmp_path):
    net, wanted = saved(tmp_path, True)
    again = qatlib.load_checkpoint(tmp_path / "ours.pth", Pooled())
    ai8x.update_model(again)
    assert torch.equal(again(pictures(64)), wanted)
    ai8x.set_device(85, verbose=False)
    with_state(Small(), STATE)  # no average pools
    with_state(Pooled(), Pooled().state_dict())  # in float they do not round


def test_another_chip_is_named(tmp_path):
    net, _ = saved(tmp_path, False, device=87)
    assert files.load(tmp_path / "ours.pth")["chip"] == {"device": 87, "round_avg": False}
    ai8x.set_device(85, verbose=False)
    with pytest.warns(UserWarning, match="saved with device=87, round_avg=False, but set_device says device=85"):
        qatlib.load_checkpoint(tmp_path / "ours.pth", Pooled())


@pytest.mark.parametrize("chip", ["MAX78000", {"device": 85}, {"name": "x", "flash": 3}, 85, None])
def test_a_chip_of_another_meaning_is_none(chip):
    with pytest.warns(UserWarning, match="does not say how"):
        with_state(Pooled(), {"state_dict": trained(Pooled).state_dict(), "chip": chip})


def test_more_is_saved_beside_the_state(tmp_path):
    path = qatlib.save_checkpoint(tmp_path / "a.pth", nn.DataParallel(NET), epoch=4, optimizer=OPTIMIZER.state_dict())
    content = torch.load(path, weights_only=True)
    assert content["epoch"] == 4 and list(content["state_dict"]) == list(STATE)
    assert content["network"].endswith("test_saved:Small") and content["optimizer"]["param_groups"]
    with pytest.raises(ValueError, match=r"b.pth would hold a Python object, test_saved.Small; give state dicts"):
        qatlib.save_checkpoint(tmp_path / "b.pth", NET, best=NET)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    again = torch.optim.Adam([p for p in NET.parameters() if p.requires_grad])
    again.load_state_dict(content["optimizer"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_by_name_and_the_remedy_works(dtype, tmp_path):
    net = trained().to(dtype)
    tries = (quantize_model, ai8x.fit, lambda net: export_all(net, tmp_path / "all"), lambda net: quantize_model(net, 4),
             lambda net: compact_from_checkpoint(net, quantize_checkpoint(STATE)))  # fmt: skip
    for call in tries:
        with pytest.raises(ValueError, match=rf"^body.0 has {dtype} weights.*call model.float\(\)"):
            call(net)
    with pytest.raises(ValueError, match=rf"body.0: activation_threshold is {dtype}; give .* after model.float\(\)"):
        quantize_checkpoint(net.state_dict())
    assert not list(tmp_path.iterdir())
    assert torch.equal(quantize_model(net.float())(pictures()), net(pictures()))
    quantize_checkpoint(net.state_dict())


WITHOUT = """
    import sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("psutil", "onnx", "scipy", "matplotlib", "PIL", "papermill"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Missing())
    import torch
    import qatlib
    from qatlib import ai8x
    from qatlib.export import check_folder, export_all, export_c

    net = torch.nn.Sequential(ai8x.FusedConv2dReLU(2, 3, 3, padding=1), ai8x.Conv2d(3, 2, 1, wide=True)).eval()
    net.input_shape = (2, 4, 4)
    ai8x.start_qat(net, [torch.randint(-128, 128, (8, 2, 4, 4)) / 128], {"weight_bits": 8}, progress=False)
    qatlib.save_checkpoint("net.pth", net)
    export_c(net, "c")
    for _ in range(2):
        export_all(net, "all")
    assert not any(result.differing for result in check_folder("all", 4, net))
"""


def test_the_library_needs_torch_numpy_tqdm_and_yaml(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(WITHOUT)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
