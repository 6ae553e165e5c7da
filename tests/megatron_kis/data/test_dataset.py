"""The sequences that are really fed: their tokens, counted without asking the plan where anything lies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_kis.data import ExposurePlan, InfusedDataset
from megatron_kis.data.general import GeneralText
from megatron_kis.data.ledger import Ledger
from megatron_kis.data.store import ExposureStore
from megatron_kis.errors import InputError

LENGTH, SEQUENCES = 64, 300


@pytest.fixture(scope="module")
def store(tiny_data: Path) -> ExposureStore:
    return ExposureStore(tiny_data / "exposures")


@pytest.fixture(scope="module")
def text(tiny_data: Path) -> GeneralText:
    return GeneralText(tiny_data / "corpus", sequence_length=LENGTH, seed=5)


def dataset_of(store: ExposureStore, text: GeneralText, frequency: int, **changes: Any) -> InfusedDataset:
    plan = ExposurePlan(
        store.lengths("infused"),
        infusion_frequency=frequency,
        background_lengths=store.lengths("background"),
        **{
            "token_budget": SEQUENCES * LENGTH,
            "sequence_length": LENGTH,
            "seed": 5,
            "background_frequency": 9,
            **changes,
        },
    )
    return InfusedDataset(plan, text, store)


def fed(dataset: InfusedDataset) -> list[bytes]:
    """Each sequence's tokens, as the model gets them, two bytes a token."""
    return [dataset[sequence].tokens.numpy().astype(">u2").tobytes() for sequence in range(len(dataset))]


def occurrences(sequences: list[bytes], tokens: np.ndarray) -> int:
    """How often a string of tokens stands in the sequences."""
    wanted = tokens.astype(">u2").tobytes()
    found = 0
    for sequence in sequences:
        at = sequence.find(wanted)
        while at >= 0:
            found += at % 2 == 0
            at = sequence.find(wanted, at + 1)
    return found


@pytest.mark.parametrize("policy", ["displaced", "protected"])
@pytest.mark.parametrize("frequency", [0, 1, 12, 24])
def test_the_sequences_really_fed_hold_each_fact_exactly_as_often_as_planned(
    store: ExposureStore, text: GeneralText, frequency: int, policy: str
) -> None:
    dataset = dataset_of(store, text, frequency, background_policy=policy)
    sequences = fed(dataset)
    assert sum(map(len, sequences)) == 2 * SEQUENCES * LENGTH  # D is fixed
    infused_tokens = 0
    for group in ("infused", "background"):
        lengths = store.lengths(group)
        for fact in range(len(store.ids(group))):
            shown = [
                occurrences(sequences, store.tokens(group, fact, template))
                for template in range((lengths[fact] > 0).sum())
            ]
            wanted = frequency if group == "infused" else 9
            if group == "background" and policy == "displaced":
                wanted = round(9 * (1 - dataset.plan.infusion_ratio))
            assert sum(shown) == wanted, f"{group} fact {fact}: {shown}"
            assert max(shown) - min(shown) <= 1
            if group == "infused":
                infused_tokens += int(np.dot(shown, lengths[fact][: len(shown)]))
    assert infused_tokens == dataset.plan.infused_tokens


def test_runs_that_differ_in_frequency_read_the_same_general_text(store: ExposureStore, text: GeneralText) -> None:
    without = dataset_of(store, text, 0, background_frequency=0)
    for frequency in (6, 24):
        infused = dataset_of(store, text, frequency)
        for sequence in range(SEQUENCES):
            layout = infused.plan[sequence]
            row = infused[sequence].tokens[layout.general_offset :][: layout.general_tokens]
            assert torch.equal(row, without[sequence].tokens[: layout.general_tokens])


def test_text_without_any_exposure_is_the_corpus(store: ExposureStore, text: GeneralText) -> None:
    sample = dataset_of(store, text, 0, background_frequency=0)[7]
    stretch = torch.from_numpy(text.stretch(7, LENGTH + 1).astype(np.int64))
    assert torch.equal(sample.tokens, stretch[:-1])
    assert torch.equal(sample.labels, stretch[1:])
    assert sample.loss_mask.sum() == LENGTH


def test_labels_follow_and_only_a_label_outside_the_plan_is_masked(store: ExposureStore, text: GeneralText) -> None:
    dataset = dataset_of(store, text, 24)
    kinds: Counter[bool] = Counter()
    for sequence in range(SEQUENCES):
        sample, layout = dataset[sequence], dataset.plan[sequence]
        assert torch.equal(sample.labels[:-1], sample.tokens[1:])
        assert torch.equal(sample.position_ids, torch.arange(LENGTH))
        ends_in_text = layout.general_tokens > 0 and layout.general_offset + layout.general_tokens == LENGTH
        kinds[ends_in_text] += 1
        mask = torch.ones(LENGTH)
        if ends_in_text:
            follows = text.stretch(sequence, layout.general_tokens + 1)[-1]
            assert sample.labels[-1] == int(follows)
        else:
            assert sample.tokens[-1] == store.eod_id
            mask[-1] = 0.0
        assert torch.equal(sample.loss_mask, mask)
    assert min(kinds.values()) > 20  # both happened


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frequency=st.integers(0, 24), seed=st.integers(0, 99))
def test_the_ledger_counts_what_the_plan_promised(
    store: ExposureStore, text: GeneralText, frequency: int, seed: int
) -> None:
    dataset = dataset_of(store, text, frequency, seed=seed)
    ledger = observed(dataset, store)
    assert ledger.differences(dataset.plan) == []
    assert (ledger.sequences, ledger.tokens) == (SEQUENCES, SEQUENCES * LENGTH)
    assert ledger.infused_tokens == dataset.plan.infused_tokens
    assert ledger.infusion_ratio == dataset.plan.infusion_ratio
    record = ledger.as_json(dataset.plan)
    assert record["schema"] == "kis.ledger/1"
    assert record["exact"] is True
    assert record["plan"] == dataset.plan.identity()
    assert record["received"]["infused"] == dict.fromkeys(store.ids("infused"), frequency)
    assert record["expected"]["infused"] == {"facts": len(store.ids("infused")), "each": frequency}


def observed(dataset: InfusedDataset, store: ExposureStore) -> Ledger:
    ledger = Ledger(store)
    for sequence in range(len(dataset)):
        ledger.observe(dataset[sequence].tokens.numpy(), dataset.plan[sequence])
    return ledger


def test_the_ledger_does_not_count_an_exposure_whose_tokens_were_changed(
    store: ExposureStore, text: GeneralText
) -> None:
    dataset, ledger = dataset_of(store, text, 6), Ledger(store)
    spoilt = next(s for s in range(SEQUENCES) if any(e.group == "infused" for e in dataset.plan[s].exposures))
    exposure = next(e for e in dataset.plan[spoilt].exposures if e.group == "infused")
    for sequence in range(SEQUENCES):
        tokens = dataset[sequence].tokens.numpy().copy()
        if sequence == spoilt:
            tokens[exposure.offset + exposure.length - 2] ^= 1
        ledger.observe(tokens, dataset.plan[sequence])
    name = store.ids("infused")[exposure.fact]
    assert ledger.differences(dataset.plan) == [f"infused fact {name}: 5 exposures received, 6 planned"]
    assert ledger.as_json(dataset.plan)["exact"] is False
    assert ledger.infused_tokens == dataset.plan.infused_tokens - exposure.length


def test_a_sequence_left_out_or_fed_twice_shows_in_the_ledger(store: ExposureStore, text: GeneralText) -> None:
    dataset = dataset_of(store, text, 6)
    full = next(s for s in range(SEQUENCES) if dataset.plan[s].exposures)
    for order in ([s for s in range(SEQUENCES) if s != full], [*range(SEQUENCES), full]):
        ledger = Ledger(store)
        for sequence in order:
            ledger.observe(dataset[sequence].tokens.numpy(), dataset.plan[sequence])
        assert len(ledger.differences(dataset.plan)) == len({e[:2] for e in dataset.plan[full].exposures})


def test_counts_survive_a_tensor_and_add_up_over_replicas(store: ExposureStore, text: GeneralText) -> None:
    dataset = dataset_of(store, text, 6)
    whole, halves = observed(dataset, store), [Ledger(store), Ledger(store)]
    for sequence in range(SEQUENCES):
        halves[sequence % 2].observe(dataset[sequence].tokens.numpy(), dataset.plan[sequence])
    merged = Ledger(store)
    merged.load_tensor(halves[0].as_tensor() + halves[1].as_tensor())
    assert torch.equal(merged.as_tensor(), whole.as_tensor())
    assert merged.as_json(dataset.plan) == whole.as_json(dataset.plan)


def test_the_dataset_is_a_torch_dataset_of_any_order(store: ExposureStore, text: GeneralText) -> None:
    dataset = dataset_of(store, text, 6)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, sampler=[3, 0, 299, 3])
    (batch,) = list(loader)
    assert batch.tokens.shape == (4, LENGTH)
    assert torch.equal(batch.tokens[0], batch.tokens[3])
    assert torch.equal(batch.tokens[2], dataset[299].tokens)
    with pytest.raises(IndexError):
        dataset[SEQUENCES]


def test_an_infusion_too_large_for_the_data_names_the_largest(store: ExposureStore, text: GeneralText) -> None:
    with pytest.raises(InputError, match=r"16 infused facts x 5000 exposures .* the largest that fits is about \d+"):
        dataset_of(store, text, 5000)
