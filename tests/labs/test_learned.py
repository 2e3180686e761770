"""Learned ranges: the gradients of LSQ and PACT against their definitions; PoseTiny with the same scales is the same network."""

import copy
import math

import pytest
import torch

from qatcourse import course
from qatcourse.labs import learned, ptq
from qatcourse.pose.data import load, to_input
from qatcourse.pose.evaluate import calibrated_ptq, calibration_batches


@pytest.fixture(scope="module")
def poses():
    return load("figures", "train", 100, progress=False)


@pytest.fixture(scope="module")
def calibrated(poses):
    return calibrated_ptq(course.pretrained(), calibration_batches(poses), 8)


def test_lsq_has_the_gradients_of_its_paper():
    x, scale = (4 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)), torch.tensor(0.7).double()
    x.requires_grad_(), scale.requires_grad_()
    y, q = learned.lsq(x, scale, -4, 3), (x / scale).detach()
    code = torch.floor(q + 0.5)
    inside = (code >= -4) & (code <= 3)
    y.sum().backward()
    assert torch.equal(y, code.clamp(-4, 3) * scale) and torch.allclose(x.grad, inside.double())
    wanted = torch.where(inside, code - q, code.clamp(-4, 3)).sum() / math.sqrt(500 * 3)
    assert scale.grad.item() == pytest.approx(wanted.item(), rel=1e-12)


def test_pact_is_moved_by_what_it_clips():
    x, alpha = torch.tensor([-1.0, 0.3, 0.9, 1.7, 5.0], requires_grad=True), torch.tensor(1.5, requires_grad=True)
    y = learned.pact(x, alpha, 3)
    y.sum().backward()
    assert y.tolist() == [0.0, 0.5, 1.0, 1.5, 1.5] and x.grad.tolist() == [0, 1, 1, 0, 0] and alpha.grad.item() == 2


@pytest.mark.parametrize("bits", (8, 4, 2))
def test_the_scales_of_ai8x_give_the_network_of_ai8x(calibrated, poses, bits):
    network, x = ptq.at_bits(calibrated, bits), to_input(poses.images[:8])
    assert torch.equal(learned.learned(network).logits(x), network.logits(x))


def test_versions_start_as_they_say_and_learned_scales_move(poses):
    found = learned.versions(course.pretrained(), poses, 2)
    assert list(found) == list(learned.VERSIONS)
    for name, network in list(found.items())[2:]:
        scales = [part for part in network.modules() if isinstance(part, learned.Scale)]
        powers = [math.log2(scale().item()).is_integer() for scale in scales]
        assert all(powers) != ("free" in name)
        assert any(scale.moved.requires_grad for scale in scales) == (name in ("learned", "faster", "free_learned"))
    before = copy.deepcopy(found["free_learned"].state_dict())
    network = learned.trained(found["free_learned"], poses, 2, 0)
    assert network.conv3.weights.moved.item() and network.add8.f.__self__ is network.up8.outputs is network.conv4.outputs
    assert all(torch.equal(value, before[key]) for key, value in found["free_learned"].state_dict().items()), "a copy is trained"
