"""How much of what a GPU can do training makes use of: MFU, model FLOPs utilization.

In:  a model's shape, the tokens of a step, its seconds; the GPU by the name that its driver gives.
Out: a share from 0 to 1; None where the GPU's peak is not known.

    work = operations(shape, tokens=16_384, supervised=4_000, full=True)
    utilization(work, seconds=1.2, device="NVIDIA H100 80GB HBM3", count=8)    # 0.41

After Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B): 2 operations a weight and token forward, 4 backward,
and nothing for what activation checkpointing computes again. Here a token passes only the weights that it does pass:
of experts the chosen ones, the projection to the vocabulary where it is supervised; frozen weights get no gradient of
their own (2 backward). Attention between tokens is left out, so that the share is too low rather than too high: packs
hold documents of unlike length.
"""

from collections.abc import Mapping

from ift.models.shape import Shape

# Dense bf16 with fp32 sums, operations a second of what the driver calls a device, by the vendors' data sheets (where
# these count 2:4 sparsity, half of it; docs/scaling.md has what they say). The driver's name is looked for from top to
# bottom.
PEAKS = {
    "B200": 2250e12,  # NVIDIA DGX B200
    "H200": 989e12,  # NVIDIA H200
    "GH200": 989e12,  # NVIDIA GH200
    "H100 NVL": 835e12,  # NVIDIA H100 NVL
    "H100 PCIe": 756e12,  # NVIDIA H100
    "H100": 989e12,  # NVIDIA H100 SXM
    "A100": 312e12,  # NVIDIA A100
    "L40S": 362e12,  # NVIDIA L40S
    "L4": 121e12,  # NVIDIA L4
    "A40": 150e12,  # NVIDIA A40
    "A10": 125e12,  # NVIDIA A10
    "RTX A6000": 155e12,  # NVIDIA RTX A6000
    "RTX 4090": 165e12,  # NVIDIA Ada GPU architecture, appendix A
    "RTX 3090": 71e12,  # NVIDIA Ampere GA102 architecture, appendix A
    "MI300X": 1307e12,  # AMD CDNA 3
    "MI250X": 191.5e12,  # AMD CDNA 2: the card has 383, and is two devices to its driver
}


def peak(device: str) -> float | None:
    """Operations a second of a GPU in bf16, by its name; None where it is not in the table.

    Whole words count: an A10G is no A10.
    """
    return named(device, PEAKS)


def named(device: str, table: Mapping[str, float]) -> float | None:
    """What a table by GPU has for the device of this name: the first of its keys whose words the name holds."""
    words = f" {device.replace('-', ' ').replace('_', ' ')} "
    return next((value for name, value in table.items() if f" {name} " in words), None)


def operations(shape: Shape, *, tokens: int, supervised: int, full: bool) -> float:
    """What forward and backward pass of so many tokens take; `full` where all weights are trained."""
    passed = shape.active * tokens + shape.hidden * shape.vocabulary * supervised
    return 2.0 * passed * (3 if full else 2)


def utilization(work: float, *, seconds: float, device: str, count: int) -> float | None:
    """The share of what `count` GPUs could have done in that time."""
    most = peak(device)
    return work / (seconds * most * count) if most else None
