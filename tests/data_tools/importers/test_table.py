import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.importers import Candidate, Dropped, import_csv, import_tsv


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
    for skip_errors in (False, True):
        with pytest.raises(InputError, match=r"t\.tsv:2: looks like a header .* below other rows"):
            list(import_tsv(path, skip_errors=skip_errors))


ABOVE = ["# exported 2026", "#", "Exported by|Ann Smith|2026", "Export||", "# by|me|2026", "a|b|c|d", "two|fields"]


@pytest.mark.parametrize("above", [[line] for line in ABOVE] + [ABOVE])
@pytest.mark.parametrize("columns", [None, {"object": "1", "relation": "2", "subject": "3"}])
@pytest.mark.parametrize(("name", "between"), [("t.tsv", "\t"), ("t.csv", ",")])
def test_what_is_above_a_header_does_not_settle_the_columns(tmp_path, above, columns, name, between):
    if columns and "a|b|c|d" in above:
        pytest.skip("four columns whose numbers are given are a table of four columns")
    read = import_tsv if between == "\t" else import_csv
    lines = [*above, "object|relation|subject", "Ankara|capital|Turkey", "Paris|capital|France"]
    path = write(tmp_path / name, "".join(f"{line}\n" for line in lines).replace("|", between))
    problem = "is a comment; begin with the header" if above[0].startswith("#") else ""
    with pytest.raises(InputError, match=rf"{name}:1: {problem}"):
        list(read(path, columns=columns))
    found = list(read(path, columns=columns, skip_errors=True))
    triples = [(one.subject, one.relation, one.object) for one in found if isinstance(one, Candidate)]
    assert triples == [("Turkey", "capital", "Ankara"), ("France", "capital", "Paris")]
    assert [one.where for one in found if isinstance(one, Dropped)] == [f"{path}:{n + 1}" for n in range(len(above))]


@pytest.mark.parametrize("header", ["object|relation|subject", "value|attribute|entity"])
def test_a_header_below_what_reads_as_a_triple_is_refused_also_where_errors_are_skipped(tmp_path, header):
    path = write(tmp_path / "t.csv", f"Export,by,Ann\n{header}\nAnkara,capital,Turkey\n".replace("|", ","))
    with pytest.raises(InputError, match=r"t\.csv:2: looks like a header"):
        list(import_csv(path, skip_errors=True))


def test_a_header_that_comes_again_is_no_triple(tmp_path):
    path = write(tmp_path / "t.csv", "object,relation,subject\nb,r,a\nobject,relation,subject\nd,r,c\n")
    with pytest.raises(InputError, match=r"t\.csv:3: the header once more"):
        list(import_csv(path))
    found = list(import_csv(path, skip_errors=True))
    assert [(one.subject, one.object) for one in found if isinstance(one, Candidate)] == [("a", "b"), ("c", "d")]
    path = write(tmp_path / "t.csv", "object,relation,subject\nb,r,a\nsubject,relation,object\nc,r,d\n")
    with pytest.raises(InputError, match=r"t\.csv:3: another header"):
        list(import_csv(path, skip_errors=True))


def test_a_name_may_begin_with_a_number_sign(tmp_path):
    assert [one.subject for one in import_tsv(write(tmp_path / "t.tsv", "#MeToo\tstart\t2006\n"))] == ["#MeToo"]


@pytest.mark.parametrize("field", ['"""Weird"" Al"', '"The ""High"" One"', '""'])
@pytest.mark.parametrize("place", range(2))
def test_the_quotes_of_csv_are_no_part_of_a_tsv_s_names(tmp_path, field, place):
    row = "\t".join([field, "r", "x"][:: -1 if place else 1])
    path = write(tmp_path / "t.tsv", f"a\tr\tb\n{row}\n")
    with pytest.raises(InputError, match=r"t\.tsv:2: (subject|object) is quoted as in CSV: .* QUOTE_NONE|t\.tsv:2: "):
        list(import_tsv(path))
    _, dropped = import_tsv(path, skip_errors=True)
    assert dropped == Dropped("", f"malformed row ({'object' if place else 'subject'} is quoted as in CSV)")


def test_quotes_that_are_not_csv_s_stay_and_pandas_lists_are_read(tmp_path):
    text = 'subject\trelation\tobject\tsubject_aliases\n"Heroes"\tby\tthe "Duke"\t"[""a"", ""b""]"\n'
    [fact] = import_tsv(write(tmp_path / "t.tsv", text))
    assert (fact.subject, fact.object, fact.subject_aliases) == ('"Heroes"', 'the "Duke"', ("a", "b"))


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
        with pytest.raises(InputError, match="no such file"):
            list(read(tmp_path / "absent"))
