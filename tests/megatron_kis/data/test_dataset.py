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
from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

from megatron_kis.common.errors import InputError
from megatron_kis.data import ExposurePlan, InfusedDataset
from megatron_kis.data.dataset import MegatronText
from megatron_kis.data.exposure_plan import PlacedExposure, SequenceLayout
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data.general_text import GeneralText
from megatron_kis.data.ledger import Ledger
from megatron_kis.probes.questions import read_questions

LENGTH, SEQUENCES = 64, 300


@pytest.fixture(scope="module")
def store(tiny_data: Path) -> ExposureStore:
    return ExposureStore(tiny_data / "exposures")


@pytest.fixture(scope="module")
def text(tiny_data: Path) -> GeneralText:
    return GeneralText(tiny_data / "corpus", sequence_length=LENGTH, seed=5)


def dataset_of(store: ExposureStore, text: GeneralText, frequency: Any, **changes: Any) -> InfusedDataset:
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
    return [dataset[sequence]["tokens"].numpy().astype(">u2").tobytes() for sequence in range(len(dataset))]


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
    """The text of a sequence is a prefix of its window; where an exposure follows its last token ends the document."""
    cut = 0
    for changes in ({}, {"schedule": "back_loaded"}, {"background_policy": "protected"}):
        for frequency in (0, 6, 18):
            infused = dataset_of(store, text, frequency, **changes)
            for sequence in range(SEQUENCES):
                layout = infused.plan[sequence]
                row = infused[sequence]["tokens"][layout.general_offset :][: layout.general_tokens]
                expected = text.read(sequence, layout.general_tokens).astype(np.int64)
                if layout.general_tokens and layout.general_offset + layout.general_tokens < LENGTH:
                    expected[-1], cut = store.eod_id, cut + 1
                assert row.tolist() == expected.tolist()
    assert cut > 100


def test_text_without_any_exposure_is_the_corpus(store: ExposureStore, text: GeneralText) -> None:
    sample = dataset_of(store, text, 0, background_frequency=0)[7]
    window = torch.from_numpy(text.read(7, LENGTH + 1).astype(np.int64))
    assert torch.equal(sample["tokens"], window[:-1])
    assert torch.equal(sample["labels"], window[1:])
    assert sample["loss_mask"].sum() == LENGTH


def test_labels_follow_and_only_labels_that_are_not_real_are_masked(store: ExposureStore, text: GeneralText) -> None:
    dataset = dataset_of(store, text, 24)
    kinds: Counter[str] = Counter()
    for sequence in range(SEQUENCES):
        sample, layout = dataset[sequence], dataset.plan[sequence]
        assert torch.equal(sample["labels"][:-1], sample["tokens"][1:])
        assert torch.equal(sample["position_ids"], torch.arange(LENGTH))
        end = layout.general_offset + layout.general_tokens
        mask = torch.ones(LENGTH)
        if layout.general_tokens and end == LENGTH:
            kinds["text last"] += 1
            follows = text.read(sequence, layout.general_tokens + 1)[-1]
            assert sample["labels"][-1] == int(follows)
        else:
            assert sample["tokens"][-1] == store.eod_id
            mask[-1] = 0.0  # what would follow is unknown
            if layout.general_tokens:
                kinds["text cut"] += 1
                assert sample["tokens"][end - 1] == store.eod_id
                if end > 1:
                    mask[end - 2] = 0.0  # the document does not really end here
        assert torch.equal(sample["loss_mask"], mask)
    assert min(kinds["text last"], kinds["text cut"]) > 20  # both happened


class OneSequence:
    """A plan of one sequence of 8 tokens with a given layout."""

    sequence_length = 8

    def __init__(self, offset: int, tokens: int, exposures: tuple[PlacedExposure, ...]) -> None:
        self.layout = SequenceLayout(exposures, offset, tokens)


class Counting:
    """Text of ids 100, 101, ..."""

    def read(self, sequence: int, tokens: int) -> np.ndarray:
        return 100 + np.arange(tokens)


class Sentences:
    """Exposures of ids 1 to n - 1 and the end of the document."""

    eod_id = 0

    def joined(self, exposures: list[tuple[str, int, int]]) -> np.ndarray:
        return np.array([token for _, fact, _ in exposures for token in (*range(1, fact), 0)])


@pytest.mark.parametrize(
    ("text_at", "exposures", "row", "unpredicted"),
    [
        ((0, 8), [], [100, 101, 102, 103, 104, 105, 106, 107, 108], []),
        ((3, 5), [(3, 0)], [1, 2, 0, 100, 101, 102, 103, 104, 105], []),
        ((0, 5), [(3, 5)], [100, 101, 102, 103, 0, 1, 2, 0, 0], [3, 7]),
        ((3, 2), [(3, 0), (3, 5)], [1, 2, 0, 100, 0, 1, 2, 0, 0], [3, 7]),
        ((0, 1), [(7, 1)], [0, 1, 2, 3, 4, 5, 6, 0, 0], [7]),  # one token of text: nothing comes before it
        ((3, 1), [(3, 0), (4, 4)], [1, 2, 0, 0, 1, 2, 3, 0, 0], [2, 7]),
        ((7, 1), [(7, 0)], [1, 2, 3, 4, 5, 6, 0, 100, 101], []),
        ((4, 0), [(4, 0), (4, 4)], [1, 2, 3, 0, 1, 2, 3, 0, 0], [7]),
        ((8, 0), [(8, 0)], [1, 2, 3, 4, 5, 6, 7, 0, 0], [7]),
    ],
)
def test_a_sequence_is_laid_out_token_by_token(
    text_at: tuple[int, int], exposures: list[tuple[int, int]], row: list[int], unpredicted: list[int]
) -> None:
    placed = tuple(PlacedExposure("infused", length, 0, 0, offset, length) for length, offset in exposures)
    plan: Any = OneSequence(*text_at, placed)
    store: Any = Sentences()
    tokens, places = InfusedDataset(plan, Counting(), store).assemble(0, plan.layout)
    assert tokens.tolist() == row
    assert sorted(places) == unpredicted


@pytest.mark.parametrize("reset_attention", [False, True])
@pytest.mark.parametrize("reset_positions", [False, True])
@pytest.mark.parametrize("mask_boundaries", [False, True])
def test_documents_are_kept_apart_as_megatron_keeps_them(
    store: ExposureStore, text: GeneralText, reset_attention: bool, reset_positions: bool, mask_boundaries: bool
) -> None:
    plain = dataset_of(store, text, 12)
    dataset = InfusedDataset(
        plain.plan,
        text,
        store,
        reset_attention=reset_attention,
        reset_positions=reset_positions,
        mask_boundaries=mask_boundaries,
    )
    most = 0
    for sequence in range(SEQUENCES):
        sample, before = dataset[sequence], plain[sequence]
        attention, loss, positions = _get_ltor_masks_and_position_ids(
            sample["tokens"], store.eod_id, reset_positions, reset_attention, mask_boundaries, True
        )
        most = max(most, int((sample["tokens"] == store.eod_id).sum()))
        assert torch.equal(sample["tokens"], before["tokens"])
        assert torch.equal(sample["labels"], before["labels"])
        assert torch.equal(sample["position_ids"], positions)
        assert torch.equal(sample["loss_mask"], loss * before["loss_mask"])
        assert ("attention_mask" in sample) == reset_attention
        if reset_attention:
            assert sample["attention_mask"].dtype == torch.bool
            assert torch.equal(sample["attention_mask"], attention)
    assert most >= 4


@pytest.mark.parametrize("mask_boundaries", [False, True])
@pytest.mark.parametrize("frequency", [2, 12, 32])
def test_an_exposure_is_trained_behind_what_the_probe_asks_it_behind(
    store: ExposureStore, text: GeneralText, tiny_data: Path, frequency: int, mask_boundaries: bool
) -> None:
    questions = read_questions(tiny_data / "exposures.questions.jsonl", {"train": 1, "held_out": 1, "question": 1})
    plan = dataset_of(store, text, frequency, text_first=True).plan
    dataset = InfusedDataset(plan, text, store, reset_attention=True, eod_begins=True, mask_boundaries=mask_boundaries)
    shown = 0
    for sequence, layout in enumerate(plan):
        sample = dataset[sequence]
        for exposure in layout.exposures:
            seen = ~sample["attention_mask"][0, exposure.offset]
            before = sample["tokens"][: exposure.offset][seen[: exposure.offset]].tolist()
            if layout.general_tokens:  # else nothing comes before the first exposure
                assert tuple(before) == questions.first_tokens
                shown += 1
    assert shown >= 0.9 * sum(plan.expected(group).sum() for group in ("infused", "background"))


@pytest.mark.parametrize("changes", [{}, {"reset_attention": True, "reset_positions": True, "mask_boundaries": True}])
def test_sequences_are_the_same_one_by_one_and_in_one_pass(
    store: ExposureStore, text: GeneralText, changes: dict[str, bool]
) -> None:
    plan = dataset_of(store, text, 12).plan
    dataset = InfusedDataset(plan, text, store, **changes)
    sequences = [5, 0, SEQUENCES - 1, 3]
    together = dataset.read(sequences, [plan[sequence] for sequence in sequences])
    assert len(together) == len(sequences)
    assert any(plan[sequence].exposures for sequence in sequences)
    for sequence, sample in zip(sequences, together, strict=True):
        alone = dataset[sequence]
        assert sample.keys() == alone.keys()
        for name, value in alone.items():
            assert sample[name].dtype == value.dtype
            assert torch.equal(sample[name], value), name
    together[0]["loss_mask"][:] = 0.0
    assert torch.equal(together[1]["loss_mask"], dataset[0]["loss_mask"])


def test_a_step_is_laid_out_in_one_pass_over_its_exposures(
    store: ExposureStore, text: GeneralText, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataset_of(store, text, 12).plan
    passes: list[int] = []
    joined = ExposureStore.joined

    def counting(self: ExposureStore, exposures: Any) -> Any:
        passes.append(len(exposures))
        return joined(self, exposures)

    monkeypatch.setattr(ExposureStore, "joined", counting)
    layouts = [plan[sequence] for sequence in range(8)]
    samples = InfusedDataset(plan, text, store).read(range(8), layouts)
    Ledger(store).observe_many([sample["tokens"].numpy() for sample in samples], layouts)
    assert passes == [sum(len(layout.exposures) for layout in layouts)] * 2


def test_a_sample_may_be_changed_in_place(store: ExposureStore, text: GeneralText) -> None:
    dataset = dataset_of(store, text, 6)
    before = {name: value.clone() for name, value in dataset[3].items()}
    for sequence in (3, 4):
        sample = dataset[sequence]
        sample["loss_mask"][:] = 0.0
        sample["tokens"][:] = 1
    assert all(torch.equal(dataset[3][name], value) for name, value in before.items())


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
    assert record["expected"]["infused"] == {
        "facts": len(store.ids("infused")),
        "exposures": 16 * frequency,
        "each": frequency,
    }


def observed(dataset: InfusedDataset, store: ExposureStore) -> Ledger:
    ledger = Ledger(store)
    for sequence in range(len(dataset)):
        ledger.observe(dataset[sequence]["tokens"].numpy(), dataset.plan[sequence])
    return ledger


def test_the_ledger_does_not_count_an_exposure_whose_tokens_were_changed(
    store: ExposureStore, text: GeneralText
) -> None:
    dataset, ledger = dataset_of(store, text, 6), Ledger(store)
    spoilt = next(s for s in range(SEQUENCES) if any(e.group == "infused" for e in dataset.plan[s].exposures))
    exposure = next(e for e in dataset.plan[spoilt].exposures if e.group == "infused")
    for sequence in range(SEQUENCES):
        tokens = dataset[sequence]["tokens"].numpy().copy()
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
            ledger.observe(dataset[sequence]["tokens"].numpy(), dataset.plan[sequence])
        assert len(ledger.differences(dataset.plan)) == len({e[:2] for e in dataset.plan[full].exposures})


def test_counts_survive_a_tensor_and_add_up_over_replicas(store: ExposureStore, text: GeneralText) -> None:
    dataset = dataset_of(store, text, 6)
    whole, halves = observed(dataset, store), [Ledger(store), Ledger(store)]
    for sequence in range(SEQUENCES):
        halves[sequence % 2].observe(dataset[sequence]["tokens"].numpy(), dataset.plan[sequence])
    merged = Ledger(store)
    merged.load_tensor(halves[0].as_tensor() + halves[1].as_tensor())
    assert torch.equal(merged.as_tensor(), whole.as_tensor())
    assert merged.as_json(dataset.plan) == whole.as_json(dataset.plan)


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_loads_batches_in_any_order_and_by_any_number_of_workers(
    store: ExposureStore, text: GeneralText, workers: int
) -> None:
    dataset = dataset_of(store, text, 6)
    order = [3, 0, 299, 3, *range(5, 13)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, sampler=order, num_workers=workers)
    batches = list(loader)
    assert [len(batch["tokens"]) for batch in batches] == [4, 4, 4]
    for name, value in dataset[0].items():
        assert batches[0][name].shape == (4, *value.shape)
        assert batches[0][name].dtype == value.dtype
        together = torch.cat([batch[name] for batch in batches])
        assert all(torch.equal(row, dataset[sequence][name]) for row, sequence in zip(together, order, strict=True))


def test_samples_have_megatrons_names_types_and_shapes(store: ExposureStore, text: GeneralText) -> None:
    sample = dataset_of(store, text, 6)[0]
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in sample.items()}
    assert shapes == {
        "tokens": (torch.int64, (LENGTH,)),
        "labels": (torch.int64, (LENGTH,)),
        "loss_mask": (torch.float32, (LENGTH,)),
        "position_ids": (torch.int64, (LENGTH,)),
    }


@pytest.mark.parametrize("sequence", [-1, SEQUENCES])
def test_samples_outside_the_run_do_not_exist(store: ExposureStore, text: GeneralText, sequence: int) -> None:
    dataset = dataset_of(store, text, 6)
    assert len(dataset) == SEQUENCES
    with pytest.raises(IndexError):
        dataset[sequence]
    with pytest.raises(IndexError):
        dataset.__getitems__([0, sequence])


def test_unequal_frequencies_are_counted_by_fact(store: ExposureStore, text: GeneralText) -> None:
    listed = np.arange(16) % 5
    dataset = dataset_of(store, text, listed)
    ledger = observed(dataset, store)
    assert ledger.differences(dataset.plan) == []
    record = ledger.as_json(dataset.plan)
    by_fact = dict(zip(store.ids("infused"), listed.tolist(), strict=True))
    assert record["exact"] is True
    assert record["received"]["infused"] == by_fact
    assert record["expected"]["infused"] == {"facts": 16, "exposures": int(listed.sum()), "by_fact": by_fact}
    sequences = fed(dataset)
    for fact, wanted in enumerate(listed):
        templates = (store.lengths("infused")[fact] > 0).sum()
        shown = [occurrences(sequences, store.tokens("infused", fact, template)) for template in range(templates)]
        assert sum(shown) == wanted


def test_an_infusion_too_large_for_the_data_names_the_largest(store: ExposureStore, text: GeneralText) -> None:
    with pytest.raises(InputError, match=r"16 infused facts x 5000 exposures .* the largest that fits is about \d+"):
        dataset_of(store, text, 5000)


@pytest.mark.parametrize("kind", [np.int64, np.int32, torch.tensor])
def test_a_sampler_may_give_any_kind_of_integer(store: ExposureStore, text: GeneralText, kind: Any) -> None:
    wanted = dataset_of(store, text, 6)
    assert torch.equal(dataset_of(store, text, 6)[kind(9)]["tokens"], wanted[9]["tokens"])
    assert dataset_of(store, text, 6).plan[kind(9)] == wanted.plan[9]


def test_none_pads_a_batch_with_a_sequence_that_has_no_loss(store: ExposureStore, text: GeneralText) -> None:
    dataset = dataset_of(store, text, 6)
    first = dataset[0]
    assert first["loss_mask"].any()
    for padding in (dataset[None], dataset.__getitems__([3, None])[1]):
        assert torch.equal(padding["tokens"], first["tokens"])
        assert not padding["loss_mask"].any()
    assert torch.equal(dataset.__getitems__([3, None])[0]["loss_mask"], dataset[3]["loss_mask"])


def test_a_rank_that_needs_no_data_has_text_that_cannot_be_read(store: ExposureStore, text: GeneralText) -> None:
    none = MegatronText(None, sequence_length=LENGTH, sequences=SEQUENCES)
    dataset = InfusedDataset(dataset_of(store, text, 6).plan, none, store)
    assert len(dataset) == SEQUENCES
    with pytest.raises(InputError, match="this rank has no dataset"):
        dataset[0]
