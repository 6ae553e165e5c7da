import pytest

from data_tools.facts import Fact
from data_tools.leaks import LeakCount, LeakFinder, iter_leaks
from data_tools.text import iter_documents

from .conftest import LEADS

FACTS = [
    Fact("aco", "Aconcagua", "peak_country", "Argentina", "infused"),
    Fact("bra", "Johannes Brahms", "composer_born", "Hamburg", "control"),
    Fact("bah", "The Bahamas", "capital", "Nassau", "background"),
    Fact("sao", "São Tomé", "island", "Príncipe Islands", "control", ("Saint Thomas",), ("Gulf of Guinea",)),
    Fact("log", "Mount Logan", "peak_country", "Canada", "control"),
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
    ],
)
def test_a_document_states_a_fact_when_it_names_subject_and_object_as_whole_words(text, found):
    assert LeakFinder(FACTS).find(text) == found


def test_leaks_are_listed_with_file_and_line_and_counted():
    count = LeakCount()
    rows = list(iter_leaks(iter_documents([LEADS]), FACTS, count))
    assert [(row["line"], row["facts"]) for row in rows] == [(4, ["aco"]), (5, ["bra"])]
    assert (count.documents, dict(count.facts)) == (2, {"aco": 1, "bra": 1})
