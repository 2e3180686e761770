"""Checks of lesson 05: a training loop, the share of correct keypoints, the head's gain, and the steps that start QAT."""

import copy
import operator
import sys
import warnings
from collections import OrderedDict
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from qatcourse.checks import UNTOUCHED, Exercise, NotYet, always, ask, judged, row
from qatcourse.pose import metrics
from qatlib import ai8x
from qatlib.ai8x import qat


class _Training(Exercise):
    """What is compared: the losses that come back, then the network's parameters afterwards."""

    def given(self, answer, label, net, loss_function, optimizer, batches):
        net, optimizer, batches = copy.deepcopy((net, optimizer, batches))
        losses = ask(answer, net, loss_function, optimizer, batches, where=f" (case: {label})", copied=False)
        if losses.size != len(batches):
            raise NotYet(f"must return the list of all losses, one for each batch: {len(batches)}, not {losses.size}.")
        return np.concatenate([losses.ravel(), *(p.detach().numpy().ravel().astype(float) for p in net.parameters())])

    def mistaken(self, wrong):
        return lambda *case: wrong.answer(self.reference(*copy.deepcopy(case)), *case)  # training changes its arguments


def _trainings():
    random = torch.Generator().manual_seed(2)
    batches = [(0.1 / n, torch.randn(8, 3, generator=random), torch.randn(8, 2, generator=random)) for n in (1, 2, 4)]
    torch.manual_seed(1)
    for name, make in (("SGD with momentum", lambda p: torch.optim.SGD(p, 0.5, momentum=0.9)), ("AdamW", torch.optim.AdamW)):
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        yield name, net, F.mse_loss, make(net.parameters()), batches


def _train(net, loss_function, optimizer, batches, rated=True, cleared=True, stepped=True, order=1):
    losses = []
    for rate, x, *labels in batches[::order]:
        if rated:
            optimizer.param_groups[0]["lr"] = rate
        loss = loss_function(net(x), *labels)
        if cleared:
            optimizer.zero_grad()
        loss.backward()
        if stepped:
            optimizer.step()
        losses.append(loss.item())
    return losses


check_train = _Training(
    "my_train(net, loss_function, optimizer, batches): one pass; each batch is (rate, x, *labels). The list of all losses.",
    _train,
    _trainings,
    (lambda _, *case: _train(*case, cleared=False),
     "from the second step on, gradients of earlier steps are added: optimizer.zero_grad() before backward()."),
    (lambda _, *case: _train(*case, stepped=False), "the losses are those of the untouched network: where is optimizer.step()?"),
    (lambda _, *case: _train(*case, rated=False),
     "each batch brings its learning rate: optimizer.param_groups[0]['lr'] = rate, before the step."),
    (lambda _, *case: _train(*case, order=-1), "the batches came in another order than they were given."),
    (lambda _, net, loss, optimizer, batches: _train(net, loss, torch.optim.SGD(net.parameters(), 0.1), batches),
     "use the optimizer that was given; it has momentum, or moments, that a new one lacks."),
    (lambda right, *case: (_train(*case), [2 * loss for loss in right])[1],
     "the network is right, the losses are not: return loss.item() as it is.",
     lambda got, want, *_: np.allclose(got[3:], want[3:], atol=1e-6)),
    (lambda right, net, *case: (_train(net, *case), _train(net, *case), right)[2],
     "the parameters afterwards are not those of three steps: rate, loss, zero_grad, backward, step, for each batch.", always),
    tolerance=1e-6,  # float32 sums of a few numbers below 10, in any order
    praise="Three steps, two optimizers: losses and parameters agree. Nothing in this loop knows of quantization.",
    right=[lambda *case: tuple(_train(*case)), lambda *case: np.float32(_train(*case)), lambda *case: torch.tensor(_train(*case))],
    piece=True,
)  # fmt: skip


def _people(seed: int, hidden: float):
    """Random labels and guesses (6, 14, 2) in pixels, and which labels count; hip and shoulder always do."""
    rng = np.random.default_rng(seed)
    joints = rng.uniform(8, 56, (6, 14, 2)).astype(np.float32)
    guesses = joints + rng.normal(0, 6, joints.shape).astype(np.float32)
    labelled = rng.random((6, 14)) >= hidden
    labelled[:, [2, 9]] = True
    return guesses, joints, labelled


def _share_within(tolerance, pred, joints, labelled):
    return (np.linalg.norm(pred - joints, axis=-1) <= tolerance)[labelled].mean()


check_pck = Exercise(
    "my_pck(pred, joints, labelled, alpha) must give the share of labelled joints within alpha torsos of their place.",
    metrics.pck,
    [("all joints labelled, alpha 0.2", *_people(1, 0.0), 0.2), ("some hidden, alpha 0.2", *_people(2, 0.3), 0.2),
     ("some hidden, alpha 0.1", *_people(3, 0.3), 0.1)],
    (lambda right, *_: 100 * right, "that is a percentage; a share lies between 0 and 1."),
    (lambda right, pred, joints, labelled, _: right * labelled.sum(),
     "a share lies between 0 and 1: count the correct joints, then divide by how many there are (or take the mean).",
     lambda got, *_: not 0 <= got <= 1),
    (lambda _, pred, joints, labelled, alpha: metrics.pck(pred, joints, labelled | True, alpha),
     "right, but joints without a label are counted too: keep only close[labelled]."),
    (lambda _, *people: _share_within(people[-1] * metrics.torso_length(*people[1:3]).mean(), *people[:3]),
     "each person needs their own torso length, (N, 1), not the mean of all."),
    (lambda _, *people: _share_within(people[-1], *people[:3]),
     "the tolerance is alpha times the person's torso, in pixels; alpha alone is a share."),
    (lambda right, *_: 1 - right, "this is the share of the misses; count distances of at most alpha torsos."),
    (lambda _, pred, joints, labelled, alpha: metrics.pck(pred, joints, labelled, 2 * alpha),
     "the tolerance is too wide: alpha times the torso is the largest distance, not the largest width."),
    tolerance=1e-6,  # shares of at most 84 joints differ by at least 1/84 where one joint is judged differently
    praise="Your measure agrees with the course's. Unlabelled joints count neither way.",
    right=[lambda *people: np.float32(metrics.pck(*people)), lambda *people: [metrics.pck(*people)]],
)  # fmt: skip

_MAPS = torch.randn(2, 14, 16, 16, generator=torch.Generator().manual_seed(5)) * 4
_BIT_POSITIONS = "the shift counts bit positions: the factor is 2 ** weight_shift, not the shift itself."

check_logits = Exercise(
    "my_logits(raw, weight_shift) must undo what QAT does to a wide head: raw * 2^weight_shift.",
    lambda raw, shift: raw * 2.0**shift,
    [(f"weight shift {shift}", _MAPS * 2.0**-shift, shift) for shift in (-2, 0, 3)],
    (lambda _, raw, shift: raw * 2.0**-shift,
     "wrong direction: the head's codes were divided by 2^{2}; multiply by 2^{2} to get back."),
    (lambda _, raw, shift: raw * shift, _BIT_POSITIONS),
    (lambda _, raw, shift: raw * 2 * shift, _BIT_POSITIONS),
    (lambda _, raw, shift: raw, "nothing was changed; a softmax would see another temperature than in float."),
    (lambda _, raw, shift: (raw - raw.mean()) * 2.0**shift, "right factor, but the mean was taken away; multiply, nothing else."),
    (lambda _, raw, shift: raw * 3, "these maps are not those of the float network; multiply all by one power of two.", always),
    praise="Every map is back to its float size. Powers of two are exact, so nothing is lost.",
    right=[lambda raw, shift: raw.numpy() * 2.0**shift, lambda raw, shift: raw.double() / 2.0**-shift,
           lambda raw, shift: torch.ldexp(raw, torch.tensor(shift)).tolist()],
)  # fmt: skip


def small_network():
    """(network, calibration batches): a float network of two batch norms, for which the order of fusing and scaling matters."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layers = {name: ai8x.FusedConv2dBNReLU(*shape, 3, padding=1) for name, shape in {"conv1": (4, 8), "conv2": (8, 8)}.items()}
    for layer in layers.values():
        layer.bn.running_var.copy_(torch.linspace(0.002, 0.05, 8))
        layer.bn.running_mean.copy_(torch.linspace(-0.3, 0.2, 8))
        layer.bn.bias.data.copy_(torch.linspace(-0.5, 2, 8))
    batches = [(torch.randint(-128, 128, (16, 4, 8, 8), generator=random) / 128,) for _ in range(2)]
    return torch.nn.Sequential(OrderedDict(layers, head=ai8x.Conv2d(8, 2, 1, wide=True))).eval(), batches


_STEPS = {
    "batch norm left": "batch norm is still there: ai8x.fuse_bn_layers(model) comes first, the chip has no batch norm.",
    "activation_threshold": "the thresholds were not measured on the fused network: ai8x.pre_qat(model, batches, policy) comes "
    "after fusing and before initiate_qat.",
    "weight_bits": "weight_bits is still 0, so nothing is quantized: ai8x.initiate_qat(model, policy) switches it on.",
    "outputs": "all switches are set, but the outputs differ: fuse first, then measure, then switch on.",
}
_BY_HAND = "left switches that do not belong together: ai8x.initiate_qat(model, policy) sets weight_bits and all others."


@torch.no_grad()
def _measured(model, inputs) -> tuple:
    bits = tuple(int(layer.weight_bits.item()) for layer in model)
    if any(bool(layer.weight_bits.item()) != bool(layer.quantize_activation.item()) for layer in model):
        raise NotYet(_BY_HAND)
    return sum(layer.bn is not None for layer in model), model.conv1.activation_threshold.item(), bits, model.eval()(inputs)


def _steps(*names: str):
    """A learner who calls these functions of ai8x, in this order."""

    def my_start(model, batches, policy):
        given = {"fuse_bn_layers": (), "pre_qat": (batches, policy), "initiate_qat": (policy,), "start_qat": (batches, policy)}
        for name in names:
            getattr(ai8x, name)(model, *given[name])

    return my_start


def _bits_by_hand(model, batches, policy):
    _steps("fuse_bn_layers", "pre_qat")(model, batches, policy)
    for layer in model:
        layer.weight_bits.data.fill_(4)


def _fuse_unless_short(m, vendor_exact=False, fuse=qat.fuse_bn_layers):
    if sys._getframe(1).f_code is qat.start_qat.__code__:
        raise NotYet("calls start_qat, which does all of it; here write its steps yourself: fuse, measure, switch on.")
    fuse(m, vendor_exact)


@judged(
    "my_start", "Bit for bit what start_qat does: QAT is on.",
    wrong=[
        (_steps("fuse_bn_layers"), "the thresholds were not measured"),
        (_steps("initiate_qat"), "batch norm is still there"),
        (_steps("fuse_bn_layers", "initiate_qat"), "the thresholds were not measured"),
        (_steps("fuse_bn_layers", "pre_qat"), "weight_bits is still 0"),
        (_steps("pre_qat", "fuse_bn_layers", "initiate_qat"), "fuse first, then measure"),
        (_steps("start_qat"), "calls start_qat"),
        (_bits_by_hand, "switches that do not belong together"),
    ],
    right=[_steps("fuse_bn_layers", "pre_qat", "initiate_qat"),
           lambda model, *rest: (_steps("fuse_bn_layers", "pre_qat", "initiate_qat")(model, *rest), model)[1]],
)  # fmt: skip
def check_start(my_start):
    """my_start(model, batches, policy) must bring a float network into QAT, as `ai8x.start_qat` does, by its steps."""
    model, batches = small_network()
    want, got = copy.deepcopy(model), copy.deepcopy(model)
    policy = {"start_epoch": 0, "weight_bits": 4}
    ai8x.start_qat(want, batches, policy, progress=False)
    with mock.patch.object(qat, "fuse_bn_layers", _fuse_unless_short), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a wrong order, which the report names
        # in a list, since None is fine here: my_start may change the network itself
        (returned,) = ask(lambda *arguments: [my_start(got, *arguments)], batches, policy, read=list)
    got = returned if isinstance(returned, torch.nn.Module) else got
    if [*want._modules] != [*got._modules]:
        raise NotYet("must bring the network that it was given into QAT; another one came back.")
    (*want, outputs), (*got, found) = (_measured(network, batches[0][0]) for network in (want, got))
    same = torch.equal(outputs, found)
    want.append("equal to the last bit")
    got.append(want[-1] if same else "different")
    if not any(map(operator.eq, want, got)):
        raise NotYet(UNTOUCHED.replace("returned None", "changed nothing"))
    for (what, said), a, b in zip(_STEPS.items(), want, got):
        yield row(what, a, "equal" if same and what == "outputs" else b, a == b, "what"), said
