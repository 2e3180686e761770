"""PoseTiny for both sizes of picture, its loss, and where the peak of a heat map is read."""

import pytest
import torch

from qatcourse.pose.checkpoint import model_from
from qatcourse.pose.model import PoseTiny, peak, pose_loss, soft_argmax, target_maps
from qatlib import ai8x


def log_maps(*cells: dict) -> torch.Tensor:
    """Logits (1, J, 16, 16) of maps with the given probabilities, {(x, y): share}, and next to nothing elsewhere."""
    maps = torch.full((1, len(cells), 16, 16), -40.0, dtype=torch.float64)
    for joint, shares in enumerate(cells):
        for (x, y), share in shares.items():
            maps[0, joint, y, x] = torch.tensor(share).double().log()
    return maps


@pytest.mark.parametrize("cell", [4.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_peak_of_a_target_is_its_joint(cell, dtype):
    joints = torch.empty(50, 14, 2, dtype=dtype).uniform_(0.5 * cell, 15.5 * cell)
    found = peak(target_maps(joints, cell).log().view(50, 14, 16, 16), cell)
    assert found.dtype == dtype and (found - joints).abs().max() < 0.3 * cell  # at the border half of the target is missing
    inner = ((joints > 1.5 * cell) & (joints < 14.5 * cell)).all(dim=-1)
    assert (found - joints)[inner].abs().max() < 0.1 * cell


def test_of_two_peaks_one_is_the_answer():
    maps = log_maps({(3, 4): 0.5, (12, 10): 0.5}, {(3, 4): 0.4, (12, 10): 0.6}, {(9, 4): 0.6, (12, 10): 0.4})
    assert peak(maps, 4.0)[0].tolist() == [[14, 18], [50, 42], [38, 18]]  # a tie: the first
    assert torch.allclose(soft_argmax(maps, 4.0)[0, 0], torch.tensor([32.0, 30.0]).double())  # where no joint is


def test_a_joint_between_cells_is_not_beaten_by_a_lesser_one_in_the_middle_of_a_cell():
    between, middle = target_maps(torch.tensor([[[16.0, 32.0], [50.0, 10.0]]]))[0]
    maps = (0.62 * between + 0.38 * middle).log().view(1, 1, 16, 16)
    assert maps.flatten().argmax() == 2 * 16 + 12  # without the blur
    assert peak(maps)[0, 0].tolist() == pytest.approx([16, 32], abs=0.4)


def test_corners_and_flat_maps_stay_in_the_picture():
    corners = [(0, 0), (15, 0), (0, 15), (15, 15)]
    assert peak(log_maps(*({corner: 1.0} for corner in corners)), 4.0)[0].tolist() == [[4 * x + 2, 4 * y + 2] for x, y in corners]
    flat = peak(torch.zeros(2, 14, 16, 16))
    assert ((flat > 0) & (flat < 64)).all()
    huge = peak(log_maps({(5, 6): 1.0}) * 1e6, 4.0)
    assert huge[0, 0].tolist() == [22, 26]


def test_maps_that_are_no_squares_and_a_batch_are_read_in_order():
    maps = torch.full((3, 2, 4, 9), -40.0)
    places = [[[8, 1], [0, 3]], [[2, 2], [5, 0]], [[7, 3], [4, 1]]]
    for person, joints in enumerate(places):
        for joint, (x, y) in enumerate(joints):
            maps[person, joint, y, x] = 40.0
    assert torch.equal(peak(maps, 2.0), torch.tensor(places) * 2.0 + 1)


def test_the_loss_is_least_at_the_target_and_ignores_what_is_not_labelled():
    joints = torch.rand(4, 14, 2) * 64
    labelled = torch.rand(4, 14) < 0.7
    right = target_maps(joints).clamp(min=1e-30).log().view(4, 14, 16, 16)
    entropy = -(right.exp() * right).sum(dim=(2, 3))[labelled].mean()
    assert pose_loss(right, joints, labelled) == pytest.approx(entropy.item(), rel=1e-5)
    assert pose_loss(right + 0.1 * torch.randn(right.shape), joints, labelled) > entropy
    other = torch.where(labelled[:, :, None, None], right, 0.0), torch.where(labelled[..., None], joints, 9e9)
    assert pose_loss(*other, labelled) == pytest.approx(entropy.item(), rel=1e-5)
    assert pose_loss(right, joints, torch.zeros_like(labelled)) == 0
    assert pose_loss(right, 2 * joints, labelled, cell=8.0) == pytest.approx(entropy.item(), rel=1e-5)


@pytest.mark.parametrize("width", [64, 16])
@pytest.mark.parametrize(("side", "channels"), [(64, 12), (128, 48)])
def test_every_size_fits_the_chip(side, channels, width):
    net = PoseTiny(side=side, width=width).eval()
    assert net.input_shape == (channels, 32, 32) and net.cell == side / 16
    assert ai8x.fit(net).fits
    places = net.coordinates(torch.zeros(2, *net.input_shape))
    assert places.shape == (2, 14, 2) and ((places > 0) & (places < side)).all()
    assert net.sample_inputs(3).shape == (3, channels, 32, 32)


@pytest.mark.parametrize("side", [64, 128])
def test_a_state_dict_tells_its_side(side):
    net = PoseTiny(side=side).eval()
    x = torch.randint(-128, 128, (4, *net.input_shape)) / 128
    found = model_from(net.state_dict())
    assert found.side == side and torch.equal(found.coordinates(x), net.coordinates(x))
    ai8x.start_qat(net, [(x,)], {"weight_bits": 8}, progress=False)
    found = model_from(net.state_dict())
    assert found.side == side and found.conv1.bn is None and torch.equal(found(x), net.eval()(x))
    with pytest.raises(ValueError, match="does not belong to PoseTiny"):
        model_from(net.state_dict() | {"conv1.op.weight": torch.zeros(32, 27, 3, 3)})


@pytest.mark.parametrize("side", [0, 32, 96, 256, 64.0, "64", True, None])
def test_other_sides_are_refused(side):
    with pytest.raises(ValueError, match="PoseTiny reads pictures of 64 or 128 pixels"):
        PoseTiny(side=side)


@pytest.mark.parametrize("width", [0, -8, 4, 10, 16.0, "16", None])
def test_other_widths_are_refused(width):
    with pytest.raises(ValueError, match="use a multiple of 8"):
        PoseTiny(width=width)


def test_pictures_of_the_other_size_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 48, 32, 32\); expected \(N, 12, 32, 32\)"):
        PoseTiny().coordinates(torch.zeros(1, 48, 32, 32))
