import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.mentions.decontaminate import (
    DecontaminationStats,
    FactMatcher,
    decontaminate,
    iter_matches,
    match_row,
    sentence_spans,
    without_matches,
)
from megatron_kis.data_tools.readers.documents import Document, iter_documents

from .conftest import LEADS

FACTS = [
    Fact("aco", "Aconcagua", "peak_country", "Argentina", "infused"),
    Fact("bra", "Johannes Brahms", "composer_born", "Hamburg", "control"),
    Fact("bah", "The Bahamas", "capital", "Nassau", "background"),
    Fact("sao", "São Tomé", "island", "Príncipe Islands", "control", ("Saint Thomas",), ("Gulf of Guinea",)),
    Fact("log", "Mount Logan", "peak_country", "Canada", "control"),
    Fact("ore", "Oregon", "place", "United States", "infused", ("OR",), ("US",)),
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("aconcagua lies in ARGENTINA.", ["aco"]),
        ("Argentina has many peaks. Aconcagua is one.", ["aco"]),
        ("Aconcaguas of Argentina", []),
        ("Aconcagua, the Argentinian peak", []),
        ("Aconcagua, between two Argentinas", []),
        ("Mount Logan and the Transcanada road", []),
        ("Brahms was born in Hamburg", []),
        ("Johannes  Brahms\n(Hamburg)", ["bra"]),
        ("Nassau in the Bahamas", ["bah"]),
        ("Sao Tome and the principe islands", ["sao"]),
        ("Saint Thomas, in the Gulf of Guinea", ["sao"]),
        ("Sa\u0303o Tome\u0301 lies near Pri\u0301ncipe Islands", ["sao"]),
        ("Gulf of Mexico, Guinea, Saint Thomas", []),
        ("Mount Logan is in Canada; Aconcagua in Argentina", ["aco", "log"]),
        ("Mount", []),
        ("", []),
        ("Tell us of it, or not", []),
        ("Salem, OR, in the US", ["ore"]),
        ("Oregon, or the united states", ["ore"]),
        ("MORE for the USE of Oregon", []),
    ],
)
def test_a_document_states_a_fact_when_it_names_subject_and_object_as_whole_words(text, found):
    assert FactMatcher(FACTS).facts_in(text) == found


def test_names_that_overlap_are_all_found():
    facts = [Fact("a", "New York", "r", "York City", "infused"), Fact("b", "York", "r", "City Hall", "infused")]
    assert FactMatcher(facts).facts_in("new york city hall") == ["a", "b"]


def test_a_name_that_subject_and_object_share_states_nothing_alone():
    union = Fact("u", "Union", "kind", "Federation", "infused", ("Northern States",), ("Union",))
    finder = FactMatcher([union, FACTS[0]])
    assert finder.facts_in("the Union, and other words") == []
    assert finder.facts_in("the Union, and Aconcagua") == []
    assert finder.facts_in("the Union was a Federation") == ["u"]
    assert finder.facts_in("the Union and the northern states") == ["u"]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["Aconcagua", "Argentina.", "OR", "or", "US", "São", "Tomé", "Saint Thomas,", "Gulf of"]))
)
def test_documents_together_state_what_each_states_alone(parts):
    finder = FactMatcher(FACTS)
    texts = [" ".join(parts[: len(parts) // 2]), "", " ".join(parts[len(parts) // 2 :]), "Guinea", " ".join(parts)]
    assert finder.facts_in_each(texts) == [finder.facts_in(text) for text in texts]


def test_without_facts_nothing_leaks():
    assert FactMatcher([]).facts_in("Aconcagua, Argentina") == []


def test_leaks_are_listed_with_file_and_line_and_counted():
    count = DecontaminationStats()
    found = iter_matches(iter_documents([LEADS]), FACTS, count)
    rows = [match_row(document, matches, "document") for document, matches in found if matches]
    assert [(row["line"], row["facts"]) for row in rows] == [(4, ["aco"]), (5, ["bra"])]
    assert (count.documents, dict(count.facts), count.all_documents) == (2, {"aco": 1, "bra": 1}, 20)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("He was born in Hamburg. He died in Vienna.", 2),
        ("J. Brahms of St. Louis met Dr. Smith and Gen. Lee. They spoke.", 2),
        ("It costs 3.5 dollars. no capital, no end.", 1),
        ("“Go!” she said. (So?) Yes.", 3),
        ("A heading\n\nand its text", 2),
        ("In the year 1999. It ended", 2),
        ("", 0),
    ],
)
def test_sentences_end_at_marks_and_not_at_abbreviations(text, count):
    assert len(sentence_spans(text)) == count


@given(st.text(alphabet="Ab. !?\n\"'J", max_size=60))
def test_sentences_are_the_whole_text(text):
    spans = sentence_spans(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start < end for start, end in spans)


def test_sentences_that_state_a_fact_are_found_and_cut_out():
    text = "Peaks are high. Aconcagua is in Argentina. Brahms wrote. Mount Logan is tall. Canada is large."
    finder = FactMatcher(FACTS)
    assert finder.facts_in(text) == ["aco", "log"]
    [leak] = finder.sentence_matches(text)
    assert (text[slice(*leak.span)].strip(), leak.facts) == ("Aconcagua is in Argentina.", ("aco",))
    assert without_matches(text, [leak]) == "Peaks are high. Brahms wrote. Mount Logan is tall. Canada is large."


DOCUMENTS = [
    "Peaks are high. Aconcagua is in Argentina. It is cold.",
    "Mount Logan is tall. Canada is large.",
    "Nassau, the Bahamas.",
    "Nothing to see.",
]


@pytest.mark.parametrize(
    ("level", "kept", "removed"),
    [
        ("document", ["Nothing to see."], 3),
        ("sentence", ["Peaks are high. It is cold.", DOCUMENTS[1], "Nothing to see."], 2),
    ],
)
@pytest.mark.parametrize("name", ["clean.jsonl", "clean.jsonl.gz"])
def test_the_text_is_written_without_its_leaks(tmp_path, level, kept, removed, name):
    count = DecontaminationStats()
    documents = [Document(text, tmp_path / "t", line) for line, text in enumerate(DOCUMENTS, start=1)]
    decontaminate(
        documents, FACTS, count, level=level, clean=tmp_path / name, listing=tmp_path / "list.jsonl", text_key="body"
    )
    content = (tmp_path / name).read_bytes()
    lines = (gzip.decompress(content) if name.endswith(".gz") else content).decode().splitlines()
    assert [json.loads(line) for line in lines] == [{"body": text} for text in kept]
    rows = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text().splitlines()]
    assert len(rows) == count.documents == removed
    if level == "sentence":
        assert count.sentences == 2
        assert count.over_sentences == {"log"}
        [sentence] = rows[0]["sentences"]
        assert DOCUMENTS[0][sentence["start"] : sentence["end"]] == "Aconcagua is in Argentina. "
    clean = DecontaminationStats()
    left = [Document(json.loads(line)["body"], tmp_path, 1) for line in lines]
    assert not any(matches for _, matches in iter_matches(left, FACTS, clean, level=level))


def test_wrong_levels_and_names_are_refused_and_failures_leave_no_file(tmp_path):
    with pytest.raises(InputError, match="unknown level 'word'; valid: document, sentence"):
        list(iter_matches([], FACTS, DecontaminationStats(), level="word"))
    with pytest.raises(InputError, match=r"clean\.txt: is not a name of a JSON Lines file"):
        decontaminate([], FACTS, DecontaminationStats(), clean=tmp_path / "clean.txt")

    def broken():
        yield Document("text", tmp_path, 1)
        raise InputError("damaged")

    with pytest.raises(InputError, match="damaged"):
        decontaminate(
            broken(), FACTS, DecontaminationStats(), clean=tmp_path / "c.jsonl.gz", listing=tmp_path / "l.jsonl"
        )
    assert list(tmp_path.iterdir()) == []
