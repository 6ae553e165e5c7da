"""The names of fact groups, template splits and scoring rules, as they are written in files, settings and options."""

from __future__ import annotations

from typing import Final, Literal

Split = Literal["train", "held_out", "question"]
DeviceName = Literal["auto", "cpu", "cuda"]

INFUSED: Final = "infused"
"""Group of the domain knowledge under study."""
BACKGROUND: Final = "background"
"""Group of the earlier knowledge whose retention is watched."""
CONTROL: Final = "control"
"""Group of the facts that are never shown."""

GROUPS: tuple[str, ...] = (INFUSED, BACKGROUND, CONTROL)
"""The fact groups, in the order of facts.jsonl."""
RENDERED_GROUPS: tuple[str, ...] = (INFUSED, BACKGROUND)
"""The groups whose facts are rendered into training text, in the order of the exposure store."""

TRAIN: Final = "train"
"""Split of the templates that are rendered into training text."""
HELD_OUT: Final = "held_out"
"""Split of the templates that only probes use: they distinguish memory of a fact from memory of a sentence."""
QUESTION: Final = "question"
"""Split of the templates that ask a question and answer it; for probes only."""

SCORING_RULES: tuple[str, ...] = ("statement", "sum", "mean_token", "mean_char", "mean_byte", "pmi")
"""The scoring rules by which a probe compares options, in the order of their columns."""

LM_EVAL_RULES: dict[str, dict[str, str]] = {
    "statement": {"acc": "statement"},
    "answer": {"acc": "sum", "acc_norm": "mean_char"},
}
"""The kinds of tasks of ``kis export lm-eval``, with the scoring rule that each metric of theirs is."""

SPLITS: tuple[Split, ...] = (TRAIN, HELD_OUT, QUESTION)
"""The template splits, in the order in which questions are written."""
