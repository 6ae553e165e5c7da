"""Megatron-Core's own datasets as the general text of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_kis.common.errors import InputError
from megatron_kis.data import ExposurePlan, InfusedDataset
from megatron_kis.data.dataset import MegatronText
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.ledger import Ledger
from tests.megatron_kis.data.test_general_text import write_corpus

LENGTH, SEQUENCES = 64, 90


class Vocabulary:
    """What Megatron-Core asks of a tokenizer."""

    def __init__(self, eod: int) -> None:
        self.eod, self.pad, self.vocab_size = eod, -1, 70_000
        self.unique_identifiers = {"class": "Vocabulary"}


@pytest.fixture(scope="module")
def store(tiny_data: Path) -> ExposureStore:
    return ExposureStore(tiny_data / "exposures")


@pytest.fixture(scope="module", params=["one corpus", "two corpora"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, store: ExposureStore) -> Any:
    """A GPTDataset, or a BlendedDataset, of texts in which every token has an id of its own."""
    folder = tmp_path_factory.mktemp("megatron")
    one = write_corpus(folder / "one", 8000, first=1000)
    blend: tuple[list[str], list[float] | None] = ([str(one)], None)
    if request.param == "two corpora":
        blend = ([str(one), str(write_corpus(folder / "two", 4000, first=10_000))], [0.7, 0.3])
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        blend=blend,
        split="1,0,0",
        tokenizer=Vocabulary(store.eod_id),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, [SEQUENCES, 0, 0], lambda: True, config).build()[0]
    assert isinstance(dataset, GPTDataset if request.param == "one corpus" else BlendedDataset)
    return dataset


def plan_of(store: ExposureStore, frequency: int) -> ExposurePlan:
    return ExposurePlan(
        store.lengths("infused"),
        infusion_frequency=frequency,
        token_budget=SEQUENCES * LENGTH,
        sequence_length=LENGTH,
        background_lengths=store.lengths("background"),
        background_frequency=3 if frequency else 0,
    )


def text_of(base: Any) -> MegatronText:
    return MegatronText(base, sequence_length=LENGTH, sequences=SEQUENCES)


def test_without_exposures_the_samples_are_the_bases(base: Any, store: ExposureStore) -> None:
    dataset = InfusedDataset(plan_of(store, 0), text_of(base), store)
    for sequence in range(SEQUENCES):
        sample, wanted = dataset[sequence], base[sequence]
        for name in ("tokens", "labels", "loss_mask", "position_ids"):
            assert torch.equal(sample[name], wanted[name]), name


def test_between_exposures_lies_the_bases_text(base: Any, store: ExposureStore) -> None:
    dataset, ledger = InfusedDataset(plan_of(store, 8), text_of(base), store), Ledger(store)
    for sequence in range(SEQUENCES):
        layout, sample = dataset.plan[sequence], dataset[sequence]
        first, tokens = layout.general_offset, layout.general_tokens
        kept = tokens if first + tokens == LENGTH else max(0, tokens - 1)
        assert torch.equal(sample["tokens"][first : first + kept], base[sequence]["tokens"][:kept])
        if kept < tokens:
            assert sample["tokens"][first + kept] == store.eod_id
        elif tokens:
            assert sample["labels"][-1] == base[sequence]["labels"][tokens - 1]
        ledger.observe(sample["tokens"].numpy(), layout)
    assert ledger.differences(dataset.plan) == []
    assert ledger.received["infused"].tolist() == [8] * 16


def test_batches_of_both_have_the_same_shape(base: Any, store: ExposureStore) -> None:
    ours = InfusedDataset(plan_of(store, 8), text_of(base), store)
    batches = [next(iter(torch.utils.data.DataLoader(dataset, batch_size=5))) for dataset in (ours, base)]
    shapes = [
        {name: (batch[name].dtype, batch[name].shape) for name in ("tokens", "labels", "loss_mask", "position_ids")}
        for batch in batches
    ]
    assert shapes[0] == shapes[1]


def test_a_window_is_a_sample_and_its_last_label(base: Any) -> None:
    text = text_of(base)
    whole = text.read(7, LENGTH + 1)
    assert whole.tolist() == [*base[7]["tokens"].tolist(), int(base[7]["labels"][-1])]
    for tokens in (0, 1, LENGTH):
        assert text.read(7, tokens).tolist() == whole[:tokens].tolist()
    assert np.issubdtype(whole.dtype, np.integer)


def test_a_base_that_is_too_small_or_of_other_sequences_is_refused(base: Any) -> None:
    many = len(base) + 1
    with pytest.raises(
        InputError,
        match=rf"text: the dataset has {many - 1} samples, the plan {many} sequences; build it with at least",
    ):
        MegatronText(base, sequence_length=LENGTH, sequences=many)
    with pytest.raises(InputError, match=r"text: the dataset's samples have 64 tokens, the plan's sequences 32; "):
        MegatronText(base, sequence_length=32, sequences=SEQUENCES)
