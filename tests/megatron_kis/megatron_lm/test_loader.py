"""Megatron-LM's own samplers over a plan's sequences, and what the loop is found to have been fed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_kis.common.errors import JobError
from megatron_kis.data import BackgroundFacts, ExposurePlan, InfusedDataset, InfusedFacts, TokenBudget
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.general_text import GeneralText, ValidationText
from megatron_kis.data.ledger import Ledger
from megatron_kis.megatron_lm import infused
from megatron_kis.megatron_lm.feed import Feed
from megatron_kis.megatron_lm.samples import SEQUENCE, TrainingSamples, ValidationSamples

LENGTH, STEPS, BATCH = 64, 12, 8


@pytest.fixture(scope="module")
def store(tiny_data: Path) -> ExposureStore:
    return ExposureStore(tiny_data / "exposures")


@pytest.fixture(scope="module")
def dataset(tiny_data: Path, store: ExposureStore) -> InfusedDataset:
    plan = ExposurePlan(
        InfusedFacts(store.lengths("infused"), frequency=5),
        BackgroundFacts(store.lengths("background"), frequency=3, policy="protected"),
        budget=TokenBudget(STEPS * BATCH * LENGTH, LENGTH),
    )
    return InfusedDataset(plan, GeneralText(tiny_data / "corpus", sequence_length=LENGTH, seed=0), store)


class Replayed:
    """As Megatron-LM's ``RerunDataIterator``: the loader's iterator in an attribute of this name."""

    def __init__(self, batches: Any) -> None:
        self.iterable = batches


def batches_of(samples: Any, numbers: list[list[Any]]) -> Any:
    return iter(torch.utils.data.DataLoader(samples, batch_sampler=numbers))


def test_samples_have_their_number_and_a_mask_where_one_is_asked_for(dataset: InfusedDataset) -> None:
    plain = TrainingSamples(dataset, attention_mask=False)
    assert len(plain) == STEPS * BATCH + 1  # so that a sampler can begin at the end
    assert plain[STEPS * BATCH][SEQUENCE] == -1
    assert not plain[STEPS * BATCH]["loss_mask"].any()
    assert set(plain[3]) == {"tokens", "labels", "loss_mask", "position_ids", SEQUENCE}
    assert plain[3][SEQUENCE] == 3
    assert torch.equal(plain[3]["tokens"], dataset[3]["tokens"])
    masked = TrainingSamples(dataset, attention_mask=True)[3]["attention_mask"]
    assert masked.shape == (1, LENGTH, LENGTH)
    assert bool(masked[0, 0, 1]), bool(masked[0, 1, 1]) == (True, False)


def test_padding_is_fed_and_not_counted(dataset: InfusedDataset) -> None:
    feed = Feed()
    iterator = Replayed(batches_of(TrainingSamples(dataset, attention_mask=False), [[0, 1], [2, None]]))
    feed.put_into(iterator)
    batches = list(iterator.iterable)
    assert all(SEQUENCE not in batch for batch in batches)
    assert not batches[1]["loss_mask"][1].any()
    numbers, samples = feed.take(range(4))
    assert numbers == [0, 1, 2]
    assert torch.equal(samples[2]["tokens"], dataset[2]["tokens"])
    assert feed.take(range(4)) == ([], [])


@pytest.mark.parametrize("chunk", [0, -1])
def test_one_chunk_of_layers_counts(dataset: InfusedDataset, chunk: int) -> None:
    feed, samples = Feed(), TrainingSamples(dataset, attention_mask=False)
    chunks = [Replayed(batches_of(samples, [[number]])) for number in range(2)]
    feed.put_into(chunks, chunk=chunk)
    list(chunks[chunk].iterable)
    assert feed.take(range(2))[0] == [range(2)[chunk]]
    feed.put_into(None)
    assert feed.take(range(2)) == ([], [])


def test_a_loader_that_leaves_the_order_is_found_at_its_first_step(dataset: InfusedDataset) -> None:
    feed = Feed()
    iterator = Replayed(batches_of(TrainingSamples(dataset, attention_mask=False), [[0, 9]]))
    feed.put_into(iterator)
    list(iterator.iterable)
    with pytest.raises(JobError, match="gave sequence 9 to the step of the sequences 0 to 7"):
        feed.take(range(8))


def test_validation_begins_again_where_it_ends(tiny_data: Path) -> None:
    pytest.importorskip("megatron.core")
    text = ValidationText(tiny_data / "corpus.validation", sequence_length=LENGTH, max_tokens=4 * LENGTH)
    samples = ValidationSamples(text, samples=11, attention_mask=True)
    assert (len(samples), len(text)) == (11, 4)
    assert torch.equal(samples[9]["tokens"], torch.from_numpy(np.asarray(text[1][:-1], dtype=np.int64)))
    assert torch.equal(samples[9]["tokens"][1:], samples[9]["labels"][:-1])
    assert samples.index_split.name == "valid"
    assert samples[0]["loss_mask"].all()
    assert not samples[None]["loss_mask"].any()


@pytest.mark.parametrize("workers", [0, 2])
def test_megatrons_sequential_loader_feeds_every_exposure_over_ranks_and_a_resume(
    dataset: InfusedDataset, store: ExposureStore, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("megatron.training", reason="megatron.training is in megatron-core from 0.19 on (Python 3.12)")
    from megatron.core.rerun_state_machine import RerunDataIterator
    from megatron.training.datasets import data_samplers

    args = {"dataloader_type": "single", "micro_batch_size": 2, "global_batch_size": BATCH, "num_workers": workers}
    args |= {"full_validation": False, "hybrid_context_parallel": False, "exit_signal_handler": False}
    monkeypatch.setattr(data_samplers, "get_args", lambda: SimpleNamespace(**args))
    monkeypatch.setattr(data_samplers.mpu, "get_data_parallel_world_size", lambda: 2)
    total = torch.zeros_like(Ledger(store).as_tensor())
    for rank in range(2):
        monkeypatch.setattr(data_samplers.mpu, "get_data_parallel_rank", lambda rank=rank: rank)
        ledger = Ledger(store)
        for first, last in ((0, 5), (5, STEPS)):  # stopped after five steps, and resumed
            samples = TrainingSamples(dataset, attention_mask=False)
            loader = data_samplers.build_pretraining_data_loader(samples, first * BATCH)
            feed, iterator = Feed(), RerunDataIterator(iter(loader))
            feed.put_into(iterator)
            for step in range(first, last):
                for _ in range(BATCH // 4):
                    next(iterator)
                numbers, fed = feed.take(range(step * BATCH, (step + 1) * BATCH))
                assert len(numbers) == BATCH // 2
                ledger.observe_many([one["tokens"].numpy() for one in fed], [dataset.plan[one] for one in numbers])
        total += ledger.as_tensor()
    merged = Ledger(store)
    merged.load_tensor(total)
    assert merged.differences(dataset.plan) == []
    assert set(merged.received["background"].tolist()) == {3}


def test_every_rank_takes_part_whatever_the_own_provider_asks_for() -> None:
    def own(samples: Any) -> Any:
        return samples

    assert infused(own).is_distributed
    assert infused().is_distributed
