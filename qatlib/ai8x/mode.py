"""The target chip: one module-wide setting, as ai8x's own interface demands, and the number formats that follow from it."""

from numbers import Integral

import torch
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function_unary


class Device:
    """Constants of a chip, and the mode in which layers compute.

    `simulate` True makes every layer compute with the chip's integers (activations -128..127 held in float tensors), for
    evaluating quantized checkpoints; False is for training, where quantization happens only once `initiate_qat` has set bits.
    `accumulator` is the dtype in which simulate adds up: float64 is exact for every legal layer, while the vendor's float32
    is not beyond 2^24; `set_device(..., accumulator=torch.float32)` gives the vendor's behaviour.
    """

    WEIGHT_BITS = DATA_BITS = ACTIVATION_BITS = 8
    FULL_ACC_BITS = 30
    WIDE_LAYER_RESOLUTION_BITS = 15
    FC_ACTIVATION_BITS = 16
    WEIGHT_INPUTS = 256
    MAX_AVG_POOL = 16
    DIM = 2

    def __init__(self, device: int, simulate: bool, round_avg: bool, accumulator: torch.dtype = torch.float64):
        self.device, self.simulate, self.round_avg = device, simulate, round_avg
        self.WEIGHT_DEPTH = 768 if device == 85 else 5120
        self.accumulator = accumulator

    def __str__(self):
        chip = {85: "MAX78000", 87: "MAX78002"}[self.device]
        return f"Device {self.device} ({chip}), simulate={self.simulate}, round_avg={self.round_avg}"

    __repr__ = __str__


dev = Device(85, simulate=False, round_avg=False)


def set_device(device: int = 85, simulate: bool = False, round_avg: bool = False, verbose: bool = True,
               accumulator: torch.dtype = torch.float64) -> None:  # fmt: skip
    """Choose the chip (85: MAX78000, 87: MAX78002) and the mode for all layers.

    Layers read it when they are built and when they run; after changing it call `update_model(model)`.
    `accumulator` is the dtype in which simulate adds up and in which it leaves wide outputs: float64, exact, or float32, which
    the vendor has. Behind a wide layer, plain torch layers need `.float()`.
    Raises ValueError for any other chip (84, the MAX78000's predecessor, has other arithmetic and is not supported).
    """
    global dev
    if device not in (85, 87):
        raise ValueError(f"device {device!r} is not supported; use 85 (MAX78000) or 87 (MAX78002)")
    if accumulator not in (torch.float32, torch.float64):
        raise ValueError(f"accumulator is {accumulator!r}; use torch.float64 (exact) or torch.float32 (the vendor's)")
    dev = Device(device, bool(simulate), bool(round_avg), accumulator)
    if verbose:
        print(f"Configuring {dev}.")


def current() -> Device:
    """The device set last (85, training mode, until `set_device` is called)."""
    return dev


class normalize:
    """Images of 0..1 to the chip's input: -1..127/128 for training, integers -128..127 with `args.act_mode_8bit`.

    >>> from types import SimpleNamespace
    >>> normalize(SimpleNamespace(act_mode_8bit=True))(torch.tensor([0.0, 0.5, 1.0])).tolist()
    [-128.0, 0.0, 127.0]
    """

    def __init__(self, args):
        self.args = args

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        codes = img.sub(0.5).mul(256.0).round().clamp(-128, 127)
        return codes if self.args.act_mode_8bit else codes.div(128.0)


def _ratio(ratio) -> tuple[int, int]:
    pair = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in pair):
        raise ValueError(f"fold_ratio is {ratio!r}; give a whole number of at least 1, or a pair of such")
    return int(pair[0]), int(pair[1])


class fold:
    """Move `fold_ratio` x `fold_ratio` neighbourhoods into channels: (C, H, W) -> (C * r * r, H / r, W / r).

    Channel order: for each row offset, for each column offset, the C channels. `fold_ratio` may be a pair (rows, columns).
    Raises ValueError for a ratio that is no whole number above 0, and for an image that it does not divide.

    >>> fold(2)(torch.arange(4.0).view(1, 2, 2)).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """

    def __init__(self, fold_ratio: int | tuple[int, int]):
        self.fold_ratio = _ratio(fold_ratio)

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        return fold_batch(img, self.fold_ratio)


def fold_batch(img: torch.Tensor, fold_ratio: tuple[int, int]) -> torch.Tensor:
    """What `fold` does; leading dimensions, such as a batch, stay."""
    if has_torch_function_unary(img):  # torch.fx traces it as one node
        return handle_torch_function(fold_batch, (img,), img, fold_ratio)
    rows, cols = fold_ratio
    if img.shape[-2] % rows or img.shape[-1] % cols:
        size = f"{img.shape[-2]}x{img.shape[-1]}"
        raise ValueError(f"an image of {size} pixels cannot be folded by {rows}x{cols}; crop or pad it first")
    return torch.cat([img[..., r::rows, c::cols] for r in range(rows) for c in range(cols)], dim=-3)


def unfold_batch(img_batch: torch.Tensor, fold_ratio: int | tuple[int, int]) -> torch.Tensor:
    """The inverse of `fold` on a batch: (N, C * r * r, H, W) -> (N, C, H * r, W * r). Raises ValueError as `fold`."""
    if has_torch_function_unary(img_batch):
        return handle_torch_function(unfold_batch, (img_batch,), img_batch, fold_ratio)
    rows, cols = _ratio(fold_ratio)
    n, channels, height, width = img_batch.shape
    if channels % (rows * cols):
        raise ValueError(f"{channels} channels cannot be unfolded by {rows}x{cols}; the channel count must divide by {rows * cols}")
    out = img_batch.new_empty(n, channels // (rows * cols), height * rows, width * cols)
    for i, part in enumerate(img_batch.chunk(rows * cols, dim=1)):
        out[:, :, i // cols :: rows, i % cols :: cols] = part
    return out


def batch_norm(dimensions: int, features: int, kind: str, eps: float, momentum: float) -> nn.Module:
    """The batch normalisation of a fused layer; `kind` is 'Affine' or 'NoAffine'."""
    cls = nn.BatchNorm1d if dimensions == 1 else nn.BatchNorm2d
    return cls(features, eps=eps, momentum=momentum, affine=kind == "Affine")
