"""Causal models of Hugging Face, or of a training loop of your own, asked with the probe (``probe_model``)."""

from megatron_kis.huggingface.ask import ModelAnswers, probe_model
from megatron_kis.huggingface.load import load_model

__all__ = ["ModelAnswers", "load_model", "probe_model"]
