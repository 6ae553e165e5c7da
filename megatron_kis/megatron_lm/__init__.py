"""Megatron-LM's own ``pretrain()`` under an exposure plan, with the data and the records of this project.

A training script adds ``add_arguments`` to its parser and wraps its provider of datasets in ``infused``. Nothing here
imports ``megatron.training`` before ``pretrain()`` has done so.
"""

from megatron_kis.megatron_lm.arguments import add_arguments
from megatron_kis.megatron_lm.provider import infused

__all__ = ["add_arguments", "infused"]
