from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megatron_kis.common.errors import InputError
from megatron_kis.data.exposure_store import ExposureStore
from megatron_kis.data_tools.facts.fact import load_facts
from megatron_kis.data_tools.rendering.templates import load_templates
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from tests.sources import Sources


@pytest.fixture
def copied(tiny_data: Path, tmp_path: Path) -> Path:
    """A store that a test may damage."""
    for path in tiny_data.glob("exposures.*"):
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path / "exposures"


@pytest.fixture
def listed(copied: Path) -> Path:
    """The same store as it was written before: all of the index in its JSON file."""
    header = json.loads(copied.with_name("exposures.json").read_text(encoding="utf-8"))
    ids = copied.with_name("exposures.ids.txt").read_text(encoding="utf-8").splitlines()
    table = np.load(copied.with_name("exposures.facts.npy"))
    facts = [
        {
            "id": identifier,
            "group": header["groups"][group],
            "relation": header["relations"][relation],
            "first_row": first,
            "templates": count,
        }
        for identifier, (first, count, group, relation) in zip(ids, table.tolist(), strict=True)
    ]
    for suffix in (".facts.npy", ".ids.txt"):
        copied.with_name(f"exposures{suffix}").unlink()
    change_index(copied, schema="kis.exposures/1", facts=facts, groups=None, relations=None)
    return copied


def test_a_store_with_the_index_in_its_json_file_is_the_same_store(tiny_data: Path, listed: Path) -> None:
    store, old = ExposureStore(tiny_data / "exposures"), ExposureStore(listed)
    for group in ("infused", "background"):
        assert old.ids(group) == store.ids(group)
        assert (old.lengths(group) == store.lengths(group)).all()
        assert old.tokens(group, 1, 2).tolist() == store.tokens(group, 1, 2).tolist()


def change_table(prefix: Path, change: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> None:
    path = prefix.with_name(prefix.name + ".facts.npy")
    np.save(path, change(np.load(path)))


def change_index(prefix: Path, **changes: Any) -> None:
    path = prefix.with_name(prefix.name + ".json")
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_store_leads_from_fact_and_template_to_its_sentence(tiny_data: Path, tiny_sources: Sources) -> None:
    store = ExposureStore(tiny_data / "exposures")
    tokenizer = load_tokenizer(tiny_data / "tokenizer.model")
    templates = load_templates(tiny_sources.templates)
    facts = load_facts(tiny_data / "facts.jsonl")
    for group in ("infused", "background"):
        members = [fact for fact in facts if fact.group == group]
        assert store.ids(group) == [fact.id for fact in members]
        for row, fact in enumerate(members):
            for number, template in enumerate(templates[fact.relation].train):
                tokens = store.tokens(group, row, number)
                assert len(tokens) == store.lengths(group)[row, number]
                assert tokens[-1] == store.eod_id == tokenizer.eod_id
                sentence = template.replace("[X]", fact.subject).replace("[Y]", fact.object)
                assert tokenizer.decode(tokens.tolist()) == sentence
            assert (store.lengths(group)[row, len(templates[fact.relation].train) :] == 0).all()


def test_control_facts_are_in_no_exposure(tiny_data: Path) -> None:
    store = ExposureStore(tiny_data / "exposures")
    control = {fact.id for fact in load_facts(tiny_data / "facts.jsonl") if fact.group == "control"}
    assert control
    assert not control & {*store.ids("infused"), *store.ids("background")}


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json", ".facts.npy"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_store_is_refused_by_the_name_of_its_file(copied: Path, suffix: str, damage: str) -> None:
    path = copied.with_name(copied.name + suffix)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError) as caught:
        ExposureStore(copied)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["content_fingerprint", "tokenizer_fingerprint", "eod_id", "facts"])
def test_an_index_without_a_key_is_refused_by_the_key(copied: Path, key: str) -> None:
    change_index(copied, **{key: None})
    with pytest.raises(InputError, match=rf"exposures\.json.*{key}"):
        ExposureStore(copied)


def test_an_index_of_other_exposures_is_refused(copied: Path) -> None:
    change_table(copied, lambda table: table[:-1])
    with pytest.raises(InputError, match=r"exposures\.facts\.npy: int64 \[\d+, 4\], expected int64 \[\d+, 4\]"):
        ExposureStore(copied)
    facts = json.loads(copied.with_name("exposures.json").read_text(encoding="utf-8"))["facts"]
    change_index(copied, facts=facts - 1)
    with pytest.raises(InputError, match=r"exposures\.json: names \d+ exposures, .*exposures\.idx holds \d+"):
        ExposureStore(copied)


def test_an_old_index_of_other_exposures_is_refused(listed: Path) -> None:
    facts = json.loads(listed.with_name("exposures.json").read_text(encoding="utf-8"))["facts"]
    change_index(listed, facts=facts[:-1])
    with pytest.raises(InputError, match=r"exposures\.json: names \d+ exposures, .*exposures\.idx holds \d+"):
        ExposureStore(listed)


@pytest.mark.parametrize(("column", "value"), [(0, 10**6), (0, -1), (2, 2), (3, -1)])
def test_an_index_that_points_elsewhere_is_refused(copied: Path, column: int, value: int) -> None:
    def change(table: NDArray[np.int64]) -> NDArray[np.int64]:
        table[0, column] = value
        return table

    change_table(copied, change)
    with pytest.raises(InputError, match="exposures"):
        ExposureStore(copied)


def test_ids_are_read_when_they_are_asked_for_and_must_be_all(copied: Path) -> None:
    path = copied.with_name("exposures.ids.txt")
    path.write_text("one\n", encoding="utf-8")
    store = ExposureStore(copied)
    with pytest.raises(InputError, match=r"exposures\.ids\.txt: 1 ids, the table has \d+ facts"):
        store.ids("infused")


def test_another_schema_is_refused(copied: Path) -> None:
    writer = "expected the index of an exposure store, which kis data render writes"
    for schema, problem in (
        ("kis.exposures/9", r"schema is 'kis\.exposures/9', of another version of kis, not 'kis\.exposures/2'"),
        ("kis.law/1", r"is a law \(kis\.law\)"),
        ("mine", "schema is 'mine'"),
        (None, "has no 'schema'"),
    ):
        change_index(copied, schema=schema)
        with pytest.raises(InputError, match=rf"exposures\.json: {problem}; {writer}$"):
            ExposureStore(copied)
