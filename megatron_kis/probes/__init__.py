"""The knowledge probe: its questions (``questions``), scoring rules (``scoring``) and the pass (``probe``)."""

from megatron_kis.probes.scoring import RULES, grade, score_options, token_log_probs

__all__ = ["RULES", "grade", "score_options", "token_log_probs"]
