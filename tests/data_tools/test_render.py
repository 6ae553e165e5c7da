import json
import re
import time
from dataclasses import replace

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Fact, write_facts
from megatron_kis.data_tools.rendering.questions import expected_size
from megatron_kis.data_tools.rendering.render import render, template_lengths
from megatron_kis.data_tools.rendering.templates import RelationTemplates, fill
from megatron_kis.data_tools.storage.exposures import read_exposure_index
from megatron_kis.data_tools.storage.indexed import IndexedReader

from .conftest import TEMPLATES


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
        InputError, match=rf"exposures of more than {longest - 1} tokens: [\d,]+ \(fact '.*train\[\d\]: {longest}"
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


def test_a_relation_that_is_not_asked_about_is_remarked(tmp_path, facts, templates, tokenizer):
    other = {"peak_country": replace(templates["peak_country"], held_out=())}
    said = "peak_country: has no held_out sentences; its facts are in no result of split held_out"
    assert render(facts, other, tokenizer, tmp_path / "e").remarks == (said,)
    own = {facts[0].id: RelationTemplates((), (f"{facts[0].subject} is in [Y].",), ())}
    assert render(facts, other, tokenizer, tmp_path / "e", paraphrases=own).remarks == ()


@pytest.mark.parametrize("distractors", [3, None])
def test_the_size_of_questions_is_known_before_they_are_made(tmp_path, facts, templates, tokenizer, distractors):
    options = {"distractors": distractors, "asked": 4}
    path = render(facts, templates, tokenizer, tmp_path / "e", **options).questions_path
    size = expected_size(facts, templates, tokenizer, **options)
    assert 0.7 * size < path.stat().st_size < 1.5 * size


def test_questions_that_would_be_too_large_are_refused_before_any_work(tmp_path, templates, tokenizer, capsys):
    facts = [
        Fact(f"{group}{n}", f"Peak {n}", "peak_country", f"Land {n}", group)
        for group in ("infused", "control")
        for n in range(2_500)
    ]
    write_facts(tmp_path / "f.jsonl", facts)
    (tmp_path / "t.model").write_bytes(tokenizer.model)
    command = [
        "data",
        "render",
        "--facts",
        str(tmp_path / "f.jsonl"),
        "--templates",
        str(TEMPLATES),
        "--tokenizer",
        str(tmp_path / "t.model"),
        "--output",
        str(tmp_path / "e"),
        "--distractors",
        "all",
    ]
    begin = time.process_time()
    assert main(command) == 2
    assert time.process_time() - begin < 10
    message = capsys.readouterr().err
    assert re.search(r"e\.questions\.jsonl: would take about [\d.,]+ [GM]B, more than 4 GB; .*--asked", message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.jsonl", "t.model"]
    assert main([*command[:-1], "3", "--asked", "40", "--largest-questions", "1M"]) == 0
