import gzip
from collections import Counter

import numpy as np
import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.importers import (
    NOT_SAMPLED,
    Candidate,
    Dropped,
    import_wikidata5m,
    wikidata5m_triples,
)
from megatron_kis.data_tools.facts.importers.wikidata5m_names import EntityNames

ENTITIES = "Q30\tUnited States\tUSA\tAmerica\nQ7294\tJohannes Brahms\nQ1055\tHamburg\tHansestadt\nQ8\tHamburg\nQ9\t \n"


@pytest.fixture
def folder(tmp_path):
    def write(triples, entities=ENTITIES, name="wikidata5m_all_triplet.txt"):
        (tmp_path / "wikidata5m_entity.txt").write_text(entities, encoding="utf-8")
        (tmp_path / "wikidata5m_relation.txt").write_text("P19\tplace of birth\tborn in\nP31\tinstance of\n")
        (tmp_path / name).write_text(triples)
        return tmp_path

    return write


def test_ids_become_names_and_aliases(folder):
    path = folder("Q7294\tP19\tQ1055\n\nQ7294\tP31\tQ30\n")
    first, second = import_wikidata5m(path)
    assert (first.subject, first.relation, first.object) == ("Johannes Brahms", "P19", "Hamburg")
    assert (first.subject_id, first.object_id, first.object_aliases) == ("Q7294", "Q1055", ("Hansestadt",))
    assert second.object_aliases == ("USA", "America")
    assert second.where.endswith("triplet.txt:3")


def test_ids_without_a_name_and_shared_names_are_dropped_with_the_reason(folder):
    path = folder("Q7294\tP19\tQ77\nQ9\tP19\tQ30\nQ8\tP31\tQ30\n")
    assert list(import_wikidata5m(path)) == [
        Dropped("P19", "an id without a name"),
        Dropped("P19", "an id without a name"),
        Dropped("P31", "ambiguous: several entities have the subject's name"),
    ]


def test_relations_not_asked_for_are_passed_over(folder):
    path = folder("Q7294\tP19\tQ1055\nQ7294\tP31\tQ30\n")
    assert [fact.relation for fact in import_wikidata5m(path, relations=["P31"])] == ["P31"]
    with pytest.raises(InputError, match="no relation 'P32'; did you mean 'P31'"):
        list(import_wikidata5m(path, relations=["P32"]))


def test_the_splits_are_read_where_there_is_no_file_of_all_triples(folder):
    folder("Q7294\tP19\tQ1055\n", name="wikidata5m_transductive_train.txt")
    path = folder("Q7294\tP31\tQ30\n", name="wikidata5m_transductive_test.txt")
    assert [fact.relation for fact in import_wikidata5m(path)] == ["P19", "P31"]


@pytest.mark.parametrize(
    ("triples", "problem"),
    [
        ("Q7294\tP19\n", r"triplet\.txt:1: 2 fields"),
        ("Q7294\tP19\tHamburg\n", r"triplet\.txt:1: not an id: 'Hamburg'; expected Q and a number"),
        ("Q1\tQ19\tQ2\n", r"triplet\.txt:1: not an id: 'Q19'; expected P and a number"),
        (f"Q{'9' * 30}\tP19\tQ2\n", r"triplet\.txt:1: not an id"),
    ],
)
def test_malformed_triples_are_named_or_skipped(folder, triples, problem):
    path = folder(triples + "Q7294\tP19\tQ1055\n")
    with pytest.raises(InputError, match=problem):
        list(import_wikidata5m(path))
    dropped, fact = import_wikidata5m(path, skip_errors=True)
    kind = "2 fields" if "2 fields" in problem else "not an id"
    assert (dropped, dropped.where) == (
        Dropped("", f"malformed row ({kind})"),
        f"{path / 'wikidata5m_all_triplet.txt'}:1",
    )
    assert isinstance(fact, Candidate)


def test_an_entity_in_two_lines_and_missing_files_are_refused(folder, tmp_path):
    path = folder("Q7294\tP19\tQ1055\n", entities="Q31\tx\nQ30\ta\n\nQ30\tb\nQ31\ty\n")
    with pytest.raises(InputError, match=r"entity\.txt:4: Q30 is in two lines, the first of which is 2"):
        list(import_wikidata5m(path))
    twice, nameless = import_wikidata5m(path, skip_errors=True)
    assert twice == Dropped("", "malformed line of names (an id in two lines)", 2)
    assert twice.where == f"{path / 'wikidata5m_entity.txt'}:4"
    assert nameless.where == f"{path / 'wikidata5m_all_triplet.txt'}:1"
    (tmp_path / "wikidata5m_entity.txt").unlink()
    with pytest.raises(InputError, match=r"0 files \*_entity\.txt"):
        list(import_wikidata5m(tmp_path))


@pytest.mark.parametrize("name", ["wikidata5m_entity.txt", "wikidata5m_all_triplet.txt"])
@pytest.mark.parametrize("skip_errors", [False, True])
def test_packed_names_and_triples_are_to_be_unpacked(folder, name, skip_errors):
    path = folder("Q7294\tP19\tQ1055\n")
    (path / name).write_bytes(gzip.compress((path / name).read_bytes()))
    with pytest.raises(InputError, match=rf"{name}: is packed with gzip; unpack it"):
        list(import_wikidata5m(path, skip_errors=skip_errors))


def test_names_are_found_whatever_the_order_of_the_ids(tmp_path):
    path = tmp_path / "entity.txt"
    numbers = [(n * 7919) % 10007 for n in range(1, 2000)]
    path.write_text("".join(f"Q{n}\tname {n}\talias {n}\n" for n in numbers))
    with EntityNames(path) as entities:
        found = entities.look_up(np.array(sorted([*numbers, 10**6])))
        assert len(entities) == len(numbers)
    assert found == {n: (f"name {n}", (f"alias {n}",), False) for n in numbers}


def test_a_name_is_shared_where_it_is_the_one_shown_and_written_alike(tmp_path):
    names = {1: "\tTogo", 2: "\tLomé", 3: "टोगो", 4: "टोंगा", 5: "TOGO", 6: "C++", 7: "C#", 8: " \t "}
    path = tmp_path / "entity.txt"
    path.write_text("".join(f"Q{n}\t{name}\n" for n, name in names.items()), encoding="utf-8")
    with EntityNames(path) as entities:
        found = entities.look_up(np.array([*names]))
    assert {n for n, (*_, shared) in found.items() if shared} == {1, 5}
    assert (found[1][0], 8 in found) == ("Togo", False)


def test_of_more_triples_than_wanted_those_of_a_random_sample_of_subjects_are_named(folder):
    numbers = range(1, 2001)
    entities = "".join(f"Q{n}\tname {n}\n" for n in numbers)
    triples = "".join(f"Q{n}\tP{relation}\tQ{n % 2000 + 1}\n" for n in numbers for relation in (19, 31))
    path = folder(triples, entities)
    found = list(import_wikidata5m(path, limit=1000, seed=1))
    kept = [fact for fact in found if isinstance(fact, Candidate)]
    assert 800 < len(kept) <= 1000
    subjects = Counter(fact.subject for fact in kept)
    assert set(subjects.values()) == {2}  # all triples of a subject or none
    assert 150 < sum(int(name.split()[1]) > 1000 for name in subjects) < 350  # from all over the ids
    left_out = {row.relation: row.count for row in found if isinstance(row, Dropped)}
    assert left_out == {"P19": 2000 - len(subjects), "P31": 2000 - len(subjects)}
    other = {fact.subject for fact in import_wikidata5m(path, limit=1000, seed=2) if isinstance(fact, Candidate)}
    assert len(other & set(subjects)) < 200  # the seed's: about a quarter of either are in both
    assert all(isinstance(fact, Candidate) for fact in import_wikidata5m(path, limit=4000))
    assert {row.reason for row in found if isinstance(row, Dropped)} == {NOT_SAMPLED}


def test_a_malformed_line_among_many_is_read_around_and_named(folder, monkeypatch):
    monkeypatch.setattr(wikidata5m_triples, "_BLOCK", 64)
    lines = [f"Q7294\tP19\tQ{1055 if n % 2 else 30}" for n in range(40)]
    expected = [fact.where.rpartition(":")[2] for fact in import_wikidata5m(folder("\n".join(lines)))]
    assert expected == [str(n) for n in range(1, 41)]
    lines[25] = "Q7294\tQ19\tQ30"
    path = folder("\r\n".join(lines))
    with pytest.raises(InputError, match=r"triplet\.txt:26: not an id: 'Q19'"):
        list(import_wikidata5m(path))
    found = list(import_wikidata5m(path, skip_errors=True))
    assert [row.count for row in found if isinstance(row, Dropped)] == [1]
    assert [int(fact.where.rpartition(":")[2]) for fact in found if isinstance(fact, Candidate)] == [
        number for number in range(1, 41) if number != 26
    ]
