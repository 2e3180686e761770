"""The target chip: one module-wide setting, as ai8x's own interface demands, and the number formats that follow from it."""

import torch
from torch import nn


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


def batch_norm(dimensions: int, features: int, kind: str, eps: float, momentum: float) -> nn.Module:
    """The batch normalisation of a fused layer; `kind` is 'Affine' or 'NoAffine'."""
    return (nn.BatchNorm1d, nn.BatchNorm2d)[dimensions - 1](features, eps=eps, momentum=momentum, affine=kind == "Affine")
