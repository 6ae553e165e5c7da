import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.readers.documents import iter_part
from megatron_kis.data_tools.readers.files import check_text_files, expand
from megatron_kis.data_tools.readers.parts import head_of, plan_parts, whole_file


def test_kinds_that_are_not_read_are_refused_before_any_work(tmp_path):
    for name in ("a.parquet.gz", "a.pdf"):
        (tmp_path / name).touch()
    for name, word in (("a.parquet.gz", "unknown kind"), ("a.pdf", "unknown kind"), ("a.txt", "no such")):
        with pytest.raises(InputError, match=word):
            check_text_files([tmp_path / name])


def test_patterns_give_their_files_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    names = [path.name for path in expand([tmp_path / "d.txt", tmp_path / "**" / "*.jsonl"])]
    assert names == ["d.txt", "a.jsonl", "b.jsonl", "c.jsonl"]
    with pytest.raises(InputError, match="matches no file"):
        expand([tmp_path / "*.zst"])
    odd = tmp_path / "odd[1].jsonl"
    odd.write_text("{}")
    assert expand([odd]) == [odd]


LINES = st.lists(
    st.sampled_from(
        [
            b'{"text": "a"}',
            b'{"text": "\xc3\xa9\xe5\x8c\x97"}',
            b"",
            b"  ",
            b"word",
            b"two words",
            b"\xe3\x80\x80",
            b"\r",
        ]
    ),
    max_size=25,
)


@settings(deadline=None)
@given(lines=LINES, part_bytes=st.integers(1, 60), ends=st.booleans(), kind=st.sampled_from([".txt", ".jsonl"]))
def test_parts_hold_every_document_once_and_in_order(tmp_path_factory, lines, part_bytes, ends, kind):
    path = tmp_path_factory.mktemp("parts") / f"a{kind}"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends else b""))

    def documents(parts):
        found, bad = [], 0

        def skip(_line, _error):
            nonlocal bad
            bad += 1

        for part in parts:
            found += [document.text for document in iter_part(part, on_bad=skip)]
        return found, bad

    parts = plan_parts([path], part_bytes=part_bytes)
    assert documents(parts) == documents([whole_file(path)])


def test_the_beginning_of_a_part_holds_its_first_documents(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(1000)), encoding="utf-8")
    for part in plan_parts([path], part_bytes=5000):
        all_of_it = [document.text for document in iter_part(part)]
        first = [document.text for document in iter_part(head_of(part, 200))]
        assert 5 < len(first) < 20 < len(all_of_it)
        assert first == all_of_it[: len(first)]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(b"")
    assert head_of(whole_file(packed), 200) == whole_file(packed)


def test_a_file_with_two_names_is_not_read_twice(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
    (tmp_path / "b.jsonl").hardlink_to(tmp_path / "a.jsonl")
    for names in ([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], [tmp_path / "*.jsonl"]):
        with pytest.raises(InputError, match=r"b\.jsonl: would be read twice: it is the same file as .*a\.jsonl"):
            expand(names)
    missing = [tmp_path / "c.jsonl", tmp_path / "d.jsonl"]
    assert expand(missing) == missing
