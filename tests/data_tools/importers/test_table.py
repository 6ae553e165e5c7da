import pytest

from data_tools.importers import Candidate, Dropped, import_csv, import_tsv
from megatron_kis.errors import InputError


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("Rysy\tpeak_country", "t.tsv:2: object is missing"),
        ("Rysy\tpeak_country\t", "t.tsv:2: object is missing"),
        ("\tpeak_country\tPoland", "t.tsv:2: subject is missing"),
        ("Rysy\tpeak_country\tPoland\tx", "t.tsv:2: 4 fields"),
    ],
)
def test_a_triple_without_an_object_is_named_by_file_and_line(tmp_path, line, problem):
    path = write(tmp_path / "t.tsv", f"Musala\tpeak_country\tBulgaria\n{line}\n")
    with pytest.raises(InputError) as error:
        list(import_tsv(path))
    assert problem in str(error.value)


def test_malformed_rows_are_dropped_and_counted_where_errors_are_skipped(tmp_path):
    path = write(tmp_path / "t.tsv", "a\tr\tb\nRysy\tpeak_country\n\tr\tx\nc\tr\td\n")
    rows = list(import_tsv(path, skip_errors=True))
    assert [row.subject for row in rows if isinstance(row, Candidate)] == ["a", "c"]
    assert [row.reason for row in rows if isinstance(row, Dropped)] == [
        "malformed row (object is missing)",
        "malformed row (subject is missing)",
    ]


def test_a_header_is_skipped_only_where_it_stands_first(tmp_path):
    path = write(tmp_path / "t.tsv", "\ufeffSubject\tRelation\tObject\r\nRysy\tpeak_country\tPoland\r\n")
    assert [(fact.subject, fact.object, fact.where) for fact in import_tsv(path)] == [("Rysy", "Poland", f"{path}:2")]
    path = write(tmp_path / "t.tsv", "Rysy\tpeak_country\tPoland\nsubject\trelation\tobject\n")
    assert len(list(import_tsv(path))) == 2


def test_a_header_gives_the_columns_in_any_order_and_brings_ids_and_aliases(tmp_path):
    text = "object,note,subject,relation,subject_id,object_aliases\nPoland,x,Rysy,peak_country,Q1,Polska| Republic \n"
    [fact] = import_csv(write(tmp_path / "t.csv", text))
    assert (fact.subject, fact.relation, fact.object) == ("Rysy", "peak_country", "Poland")
    assert (fact.subject_id, fact.object_aliases) == ("Q1", ("Polska", "Republic"))
    with pytest.raises(InputError, match=r"t\.csv:2: 2 fields|t\.csv:2: object is missing"):
        list(import_csv(write(tmp_path / "t.csv", "subject,relation,object,id\na,b\n")))


def test_quoted_fields_hold_commas_quotes_and_line_breaks(tmp_path):
    text = 'subject,relation,object\r\n"Rysy, the ""High""",r,"two\nlines"\r\nb,r,c\r\n'
    first, second = import_csv(write(tmp_path / "t.csv", text))
    assert (first.subject, first.object, first.where[-2:]) == ('Rysy, the "High"', "two lines", ":2")
    assert second.where.endswith(":4")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'a,b,c\n"open,b,c\n', r"t\.csv:2: not valid CSV"),
        (b"a,b,c\na,\xff,c\n", r"t\.csv:2: not UTF-8 \(byte 2"),
        (b"a\tb\tc\n", r"t\.csv:1: 1 field: .*found tabs: use --from tsv"),
    ],
)
def test_damaged_csv_is_named_by_file_and_line(tmp_path, content, problem):
    with pytest.raises(InputError, match=problem):
        list(import_csv(write(tmp_path / "t.csv", content)))


def test_a_missing_file_is_an_input_error(tmp_path):
    for read in (import_tsv, import_csv):
        with pytest.raises(InputError, match="cannot be read"):
            list(read(tmp_path / "absent"))
