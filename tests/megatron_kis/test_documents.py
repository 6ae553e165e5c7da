"""Facts are asked behind what they were trained behind, whatever ``documents`` says of the sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.training.trainer import train
from tests.run_files import rows
from tests.runs import OFTEN, cut_off

pytestmark = pytest.mark.slow

MakeRun = Callable[..., RunConfig]


def memorising(tiny_run: MakeRun, documents: dict[str, Any], *, steps: int, frequency: int) -> RunConfig:
    """A run that shows each infused fact in one template, often enough to be learned by heart."""
    return tiny_run(
        name="-".join(str(value) for value in documents.values()) or "tiny",
        model={"layers": 2, "width": 32, "heads": 2},
        training={"token_budget": steps * 4 * 64, "global_batch_size": 4, "optimizer": {"learning_rate": 0.02}},
        infusion={"frequency": frequency, "templates": 0, "background": {"frequency": 0}},
        probes={"templates": {"train": 1, "held_out": 1, "question": 1}},
        documents=documents,
    )


def asked(config: RunConfig) -> dict[str, Any]:
    """What a run knows of its infused facts, in the words in which it was shown them."""
    train(config)
    (row,) = (
        row
        for row in rows(config.output, "probes.jsonl")
        if (row["group"], row["split"], row["scoring"]) == ("infused", "train", "sum")
    )
    return row


@pytest.mark.parametrize("mask_boundaries", [False, True])
@pytest.mark.parametrize(("reset_attention", "steps", "frequency"), [(False, 400, 200), (True, 200, 100)])
def test_a_memorised_fact_is_known_under_every_setting_of_documents(
    tiny_run: MakeRun, reset_attention: bool, mask_boundaries: bool, steps: int, frequency: int
) -> None:
    documents = {"reset_attention": reset_attention, "mask_boundaries": mask_boundaries}
    row = asked(memorising(tiny_run, documents, steps=steps, frequency=frequency))
    assert row["correct"] == row["n"]


def test_what_was_trained_behind_nothing_is_hardly_known_behind_an_end_of_document(tiny_run: MakeRun) -> None:
    """Why the token belongs to the next document."""
    margins = [
        asked(memorising(tiny_run, {"reset_attention": True, "eod_belongs_to": to}, steps=200, frequency=100))["margin"]
        for to in ("next", "previous")
    ]
    assert margins[1] < margins[0] / 2


def test_a_run_whose_documents_ended_otherwise_is_not_resumed(tiny_run: MakeRun) -> None:
    before = {"reset_attention": True, "eod_belongs_to": "previous"}  # as every run was before there was a choice
    cut_off(tiny_run(**OFTEN, documents=before), 12)
    with pytest.raises(InputError, match=r"documents\.eod_belongs_to none -> by the tokenizer"):
        train(tiny_run(**OFTEN, documents={"reset_attention": True}))
    train(tiny_run(**OFTEN, documents=before))


def test_a_token_without_a_part_in_attention_is_refused(tiny_run: MakeRun) -> None:
    with pytest.raises(InputError, match="documents: eod_belongs_to has no effect without reset_attention"):
        tiny_run(documents={"eod_belongs_to": "next"})
