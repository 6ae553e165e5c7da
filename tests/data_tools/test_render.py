import json
from dataclasses import replace

import pytest

from data_tools.exposures import read_exposure_index
from data_tools.indexed import IndexedReader
from data_tools.render import render, template_lengths
from data_tools.templates import fill
from megatron_kis.errors import InputError


def test_rows_lead_back_to_fact_and_template_and_control_facts_are_never_rendered(
    tmp_path, facts, templates, tokenizer
):
    summary = render(facts, templates, tokenizer, tmp_path / "exposures")
    reader = IndexedReader(tmp_path / "exposures")
    index = read_exposure_index(tmp_path / "exposures", exposures=len(reader))
    by_id = {fact.id: fact for fact in facts}
    rows = 0
    for identifier, (first, count, group, relation) in zip(index.ids, index.table.tolist(), strict=True):
        fact = by_id[identifier]
        assert (index.groups[group], index.relations[relation]) == (fact.group, fact.relation)
        assert first == rows
        assert count == len(templates[fact.relation].train)
        for number, template in enumerate(templates[fact.relation].train):
            tokens = reader[rows + number].tolist()
            assert tokens[-1] == index.header["eod_id"]
            assert tokenizer.decode(tokens[:-1]) == fill(template, fact.subject, fact.object).text
        rows += count
    assert rows == len(reader) == summary.exposures
    assert index.ids == [fact.id for fact in facts if fact.group != "control"]
    controls = {fact.subject for fact in facts if fact.group == "control"}
    shown = " ".join(tokenizer.decode(reader[row].tolist()) for row in range(rows))
    assert not any(subject in shown for subject in controls)
    assert summary.longest == int(reader.lengths.max())


def test_rendering_again_gives_the_same_bytes(tmp_path, facts, templates, tokenizer):
    for name in ("one", "two"):
        render(facts, templates, tokenizer, tmp_path / name / "exposures", seed=5)
    for name in (
        "exposures.bin",
        "exposures.idx",
        "exposures.json",
        "exposures.facts.npy",
        "exposures.ids.txt",
        "exposures.questions.jsonl",
    ):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_questions_header_records_what_affects_scores(tmp_path, facts, templates, tokenizer):
    summary = render(facts, templates, tokenizer, tmp_path / "e", distractors=2, seed=7)
    header, *rows = [json.loads(line) for line in summary.questions_path.read_text(encoding="utf-8").splitlines()]
    assert header["schema"] == "kis.questions/1"
    assert (header["seed"], header["distractors_per_question"], header["chance"]) == (7, 2, 1 / 3)
    assert (header["bos"], header["space_before_answer"]) == ("eod", "answer")
    assert header["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert len(rows) == summary.questions
    assert {len(row["options"]) for row in rows} == {3}
    assert {row["group"] for row in rows} == {"infused", "background", "control"}


def test_exposures_that_no_sequence_holds_are_refused_by_name_and_nothing_is_left(
    tmp_path, facts, templates, tokenizer
):
    longest = render(facts, templates, tokenizer, tmp_path / "whole").longest
    with pytest.raises(
        InputError, match=rf"exposures are longer than {longest - 1} tokens \(fact '.*train\[\d\]: {longest}"
    ):
        render(facts, templates, tokenizer, tmp_path / "cut" / "e", longest_exposure=longest - 1)
    assert list((tmp_path / "cut").iterdir()) == []
    assert render(facts, templates, tokenizer, tmp_path / "e", longest_exposure=longest).longest == longest


def test_lengths_are_reported_by_relation_and_template(tmp_path, facts, templates, tokenizer):
    summary = render(facts, templates, tokenizer, tmp_path / "e")
    reader = IndexedReader(tmp_path / "e")
    [counts] = summary.relations.values()
    assert (counts.exposures, counts.tokens) == (len(reader), reader.tokens)
    assert (counts.shortest, counts.longest) == (reader.lengths.min(), reader.lengths.max())
    shown = [fact for fact in facts if fact.group != "control"]
    by_template = template_lengths(shown, templates, tokenizer)
    for number in range(len(templates["peak_country"].train)):
        assert (
            by_template[f"peak_country.train[{number}]"].tokens
            == reader.lengths[number :: len(templates["peak_country"].train)].sum()
        )


def test_an_article_that_does_not_fit_is_remarked(tmp_path, facts, templates, tokenizer):
    other = {"peak_country": replace(templates["peak_country"], train=("[X] is a [Y] peak.",))}
    remarks = render(facts, other, tokenizer, tmp_path / "e").remarks
    assert any("peak_country.train[0]: the article does not fit" in remark for remark in remarks)
    assert render(facts, templates, tokenizer, tmp_path / "e").remarks == ()
