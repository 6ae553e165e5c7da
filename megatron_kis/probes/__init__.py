"""The knowledge probe: its questions (``questions``), scoring rules (``scoring``) and evaluation (``probe``)."""

from megatron_kis.probes.scoring import RULES, score_rules

__all__ = ["RULES", "score_rules"]
