"""What the vendor's data loaders do to images: to the chip's input range, and neighbourhoods of pixels to channels and back."""

from numbers import Integral

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary


class normalize:
    """Images of 0..1 to the chip's input: -1..127/128 for training, integers -128..127 with `args.act_mode_8bit`.

    Called twice, as the vendor's: with settings (or none), then with images. Raises TypeError for images in the first call.

    >>> from types import SimpleNamespace
    >>> normalize(SimpleNamespace(act_mode_8bit=True))(torch.tensor([0.0, 0.5, 1.0])).tolist()
    [-128.0, 0.0, 127.0]
    """

    def __init__(self, args=None):
        if isinstance(args, torch.Tensor):
            raise TypeError("normalize is given settings first, or nothing, and then images: ai8x.normalize()(images)")
        self.args = args

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        codes = img.sub(0.5).mul(256.0).round().clamp(-128, 127)
        return codes if getattr(self.args, "act_mode_8bit", False) else codes.div(128.0)


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
