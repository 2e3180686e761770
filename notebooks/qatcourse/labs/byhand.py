"""PoseTiny's wiring, for those who scale its layers by hand in lessons 04, 05 and 15: who reads whom, and who meets in a sum."""

SOURCE = {
    "conv1": "input", "conv2": "conv1", "conv3": "conv2", "conv4": "conv3", "conv5": "conv4", "conv6": "conv5", "conv7": "conv6",
    "up8": "add7", "conv9": "add8", "up10": "conv9", "conv11": "add10", "conv12": "conv11", "head": "conv12",
}  # fmt: skip
SUMS = {"add7": ("conv5", "conv7"), "add8": ("conv4", "up8"), "add10": ("conv2", "up10")}


def equalise(thresholds: dict) -> dict:
    """Measured thresholds with those of both operands of a sum set to the sum's; input and wide head stay unscaled (0)."""
    together = {name: thresholds[total] for total, operands in SUMS.items() for name in operands}
    return thresholds | together | {"input": 0, "head": 0}
