import pytest

from data_tools.importers import Candidate, Dropped, import_wikidata5m, relation_names
from data_tools.importers.wikidata5m import EntityNames
from megatron_kis.errors import InputError

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
    assert relation_names(path) == {"P19": "place of birth", "P31": "instance of"}


def test_ids_without_a_name_and_shared_names_are_dropped_with_the_reason(folder):
    path = folder("Q7294\tP19\tQ77\nQ9\tP19\tQ30\nQ8\tP31\tQ30\n")
    assert list(import_wikidata5m(path)) == [
        Dropped("P19", "an id without a name"),
        Dropped("P19", "an id without a name"),
        Dropped("P31", "ambiguous: several entities bear the subject's name"),
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
    assert dropped == Dropped("", "malformed row")
    assert isinstance(fact, Candidate)


def test_an_entity_in_two_lines_and_missing_files_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"entity\.txt: Q30 stands in two lines"):
        list(import_wikidata5m(folder("Q7294\tP19\tQ1055\n", entities="Q30\ta\nQ30\tb\n")))
    (tmp_path / "wikidata5m_entity.txt").unlink()
    with pytest.raises(InputError, match=r"0 files \*_entity\.txt"):
        list(import_wikidata5m(tmp_path))


def test_names_are_found_whatever_the_order_of_the_ids(tmp_path):
    path = tmp_path / "entity.txt"
    numbers = [(n * 7919) % 10007 for n in range(1, 2000)]
    path.write_text("".join(f"Q{n}\tname {n}\talias {n}\n" for n in numbers))
    with EntityNames(path) as entities:
        found = entities.look_up(sorted([*numbers, 10**6]))
        assert len(entities) == len(numbers)
    assert found == {n: (f"name {n}", (f"alias {n}",), False) for n in numbers}
