import json

from data_tools.indexed import IndexedReader
from data_tools.render import render
from data_tools.templates import fill
from megatron_kis.files import read_json


def test_rows_lead_back_to_fact_and_template_and_control_facts_are_never_rendered(
    tmp_path, facts, templates, tokenizer
):
    summary = render(facts, templates, tokenizer, tmp_path / "exposures")
    reader = IndexedReader(tmp_path / "exposures")
    index = read_json(tmp_path / "exposures.json", "kis.exposures/1")
    by_id = {fact.id: fact for fact in facts}
    rows = 0
    for entry in index["facts"]:
        fact = by_id[entry["id"]]
        assert (entry["group"], entry["relation"]) == (fact.group, fact.relation)
        assert entry["first_row"] == rows
        assert entry["templates"] == len(templates[fact.relation].train)
        for number, template in enumerate(templates[fact.relation].train):
            tokens = reader[rows + number].tolist()
            assert tokens[-1] == index["eod_id"]
            assert tokenizer.decode(tokens[:-1]) == fill(template, fact.subject, fact.object).text
        rows += entry["templates"]
    assert rows == len(reader) == summary.exposures
    assert [entry["id"] for entry in index["facts"]] == [fact.id for fact in facts if fact.group != "control"]
    controls = {fact.subject for fact in facts if fact.group == "control"}
    shown = " ".join(tokenizer.decode(reader[row].tolist()) for row in range(rows))
    assert not any(subject in shown for subject in controls)
    assert summary.longest == int(reader.lengths.max())


def test_rendering_again_gives_the_same_bytes(tmp_path, facts, templates, tokenizer):
    for name in ("one", "two"):
        render(facts, templates, tokenizer, tmp_path / name / "exposures", seed=5)
    for name in ("exposures.bin", "exposures.idx", "exposures.json", "exposures.questions.jsonl"):
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
