"""Input of the model: the exposure plan (``exposure_plan``, ``stream``, ``packing``), text, store, dataset, ledger.

``ExposurePlan`` is a pure function from a sequence number to its layout; everything else reads files for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_kis.data.dataset import InfusedDataset
    from megatron_kis.data.exposure_plan import BackgroundFacts, ExposurePlan, InfusedFacts, TokenBudget

__all__ = ["BackgroundFacts", "ExposurePlan", "InfusedDataset", "InfusedFacts", "TokenBudget"]


def __getattr__(name: str) -> Any:
    """Imports the public classes on first use: a plan needs no torch."""
    if name not in __all__:
        raise AttributeError(name)
    module = "dataset" if name == "InfusedDataset" else "exposure_plan"
    return getattr(import_module(f"megatron_kis.data.{module}"), name)
