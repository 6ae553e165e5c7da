"""What the model is fed: the exposure plan (``plan``, ``stream``, ``packing``), text, store, dataset and ledger.

``ExposurePlan`` is a pure function from a sequence number to its layout; everything else reads files for it.
"""

from typing import Any

__all__ = ["ExposurePlan", "InfusedDataset"]


def __getattr__(name: str) -> Any:
    """Imports the public classes on first use: a plan needs no torch."""
    if name == "ExposurePlan":
        from megatron_kis.data.exposure_plan import ExposurePlan

        return ExposurePlan
    if name == "InfusedDataset":
        from megatron_kis.data.dataset import InfusedDataset

        return InfusedDataset
    raise AttributeError(name)
