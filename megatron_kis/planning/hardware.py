"""GPUs: peak and memory by name, and the shares of the peak that others have published."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_kis.errors import InputError, nearest


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """Part of what the driver calls it."""

    peak_bf16: float
    """Dense BF16 operations a second (NVIDIA's data sheets; half of what they print with sparsity)."""

    memory: float
    """Bytes."""

    node: int = 8
    """GPUs a node joined by NVLink; tensor parallelism stays within."""


GPUS = {
    "h100-pcie": Gpu("H100 PCIe", 756e12, 80e9, node=2),
    "h100-nvl": Gpu("H100 NVL", 835e12, 94e9, node=2),
    "h100": Gpu("H100", 989e12, 80e9),
    "gh200": Gpu("GH200", 989e12, 96e9, node=1),
    "h200": Gpu("H200", 989e12, 141e9),
    "a100": Gpu("A100", 312e12, 80e9),
    "a100-40": Gpu("A100", 312e12, 40e9),
    "l40s": Gpu("L40S", 362e12, 48e9, node=1),
    "b200": Gpu("B200", 2250e12, 180e9),
}
"""By the name that ``kis plan --gpu`` takes; the more special names come first."""


def gpu(name: str) -> Gpu:
    """The GPU of a name.

    Raises:
        InputError: there is none of that name.
    """
    if name.lower() not in GPUS:
        raise InputError(f"no GPU {name!r}", where="--gpu", remedy=nearest(name, GPUS))
    return GPUS[name.lower()]


@dataclass(frozen=True)
class Utilisation:
    """A share of the peak, and where it is from."""

    mfu: float
    source: str


_PUBLISHED = (
    (2e9, Utilisation(0.40, "published: OLMo-core 1.2.0, 1B, sequence 4096, one H100: 39% to 41%")),
    (2e10, Utilisation(0.36, "published: torchtitan 2024-12, 8B, 8 H100: 33% to 39%")),
    (float("inf"), Utilisation(0.41, "published: Megatron-LM's README, 2B to 462B, H100: 41% to 48%, the lower end")),
)


def published_utilisation(params: float, *, kind: Gpu) -> Utilisation:
    """What others reached with a model of about this size; all figures are BF16 on H100.

    The source says where a figure is carried over to another GPU, or to a smaller model than was published.
    """
    found = next(entry for limit, entry in _PUBLISHED if params < limit)
    notes = []
    if "H100" not in kind.name:
        notes.append(f"carried over to {kind.name}")
    if params < 0.9e9:
        notes.append("smaller models reach less")
    return Utilisation(found.mfu, "; ".join([found.source, *notes]))
