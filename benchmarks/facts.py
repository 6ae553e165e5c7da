"""Memory and time of importing facts, over sources of growing size.

``python -m benchmarks.facts FOLDER``: writes a generated Wikidata5M folder of a million entities into ``FOLDER`` and
imports from it at three numbers of triples; then writes and opens the index of an exposure store of a million facts, in
this layout and in the earlier one. Peak memory is that of a fresh process a measurement.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

_ENTITIES = 1_000_000
_RELATIONS = 50
_TEMPLATES = 12
_BLOCK = 1 << 17  # triples written together


def write_wikidata5m(folder: Path, triples: int) -> None:
    """Writes entities, relations and ``triples`` random triples."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    bounds = ((1, _ENTITIES + 1), (0, _RELATIONS), (1, _ENTITIES + 1))
    with open(folder / "wikidata5m_entity.txt", "w", encoding="utf-8") as file:
        for number in range(1, _ENTITIES + 1):
            name = f"{_word(number)} {_word(number * 7919 % _ENTITIES)}"
            file.write(f"Q{number}\t{name} {number}\talias of {name}\n")
    with open(folder / "wikidata5m_relation.txt", "w", encoding="utf-8") as file:
        file.writelines(f"P{number}\trelation {number}\n" for number in range(_RELATIONS))
    with open(folder / "wikidata5m_all_triplet.txt", "w", encoding="utf-8") as file:
        for start in range(0, triples, _BLOCK):
            count = min(_BLOCK, triples - start)
            columns = [rng.integers(low, high, count).tolist() for low, high in bounds]
            file.writelines(
                f"Q{subject}\tP{number}\tQ{answer}\n" for subject, number, answer in zip(*columns, strict=True)
            )


def _word(number: int) -> str:
    letters = ""
    while number:
        number, digit = divmod(number, 20)
        letters += "bcdfghjklmnpqrstvwxz"[digit] + "aeiou"[digit % 5]
    return letters.capitalize() or "Ba"


def import_all(folder: Path) -> int:
    """Streams a folder and keeps nothing."""
    from megatron_kis.data_tools.facts.importers import import_wikidata5m

    return sum(1 for _ in import_wikidata5m(folder))


def select_some(folder: Path) -> int:
    """Chooses 3,000 facts with 200,000 triples held at most."""
    return _select(folder, 200_000)


def select_default(folder: Path) -> int:
    """Chooses 3,000 facts with as many triples held as a user gets without saying."""
    from megatron_kis.data_tools.selection.select import SelectConfig

    return _select(folder, SelectConfig().memory_limit)


def _select(folder: Path, limit: int) -> int:
    from megatron_kis.data_tools.selection.imports import read_triples
    from megatron_kis.data_tools.selection.select import SelectConfig, select_facts

    settings = SelectConfig(infused=1000, background=1000, control=1000, memory_limit=limit)
    return len(select_facts(read_triples(folder, "wikidata5m", settings), settings).facts)


def write_store(folder: Path) -> int:
    """Writes a million facts' exposures of one token each, and both layouts of their index."""
    from megatron_kis.data_tools.facts.fact import Fact
    from megatron_kis.data_tools.storage.exposures import write_exposure_index
    from megatron_kis.data_tools.storage.indexed import IndexedWriter

    facts = [Fact(f"relation/{_word(n)} {n}", "s", f"relation{n % 50}", "o", "infused") for n in range(1_000_000)]
    rows = len(facts) * _TEMPLATES
    header = {"content_fingerprint": "c", "tokenizer_fingerprint": "t", "eod_id": 1}
    for name in ("columns", "list"):
        with IndexedWriter(folder / name, vocab_size=100) as writer:
            writer.add_batch(np.ones(rows, np.int64), np.ones(rows, np.int64))
    write_exposure_index(folder / "columns", facts, [_TEMPLATES] * len(facts), header)
    entries = [
        {"id": f.id, "group": f.group, "relation": f.relation, "first_row": n * _TEMPLATES, "templates": _TEMPLATES}
        for n, f in enumerate(facts)
    ]
    content = {"schema": "kis.exposures/1", **header, "facts": entries}
    (folder / "list.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return rows


def open_columns(folder: Path) -> int:
    """Opens the store's index with its table mapped, and looks one exposure up."""
    from megatron_kis.data_tools.storage.exposures import read_exposure_index

    return int(read_exposure_index(folder / "columns", exposures=1_000_000 * _TEMPLATES).table[777_777, 0])


def open_list(folder: Path) -> int:
    """Opens the store's index as a list of objects."""
    from megatron_kis.data_tools.storage.exposures import read_exposure_index

    return int(read_exposure_index(folder / "list", exposures=1_000_000 * _TEMPLATES).table[777_777, 0])


_WORK: dict[str, Callable[[Path], int]] = {
    work.__name__: work for work in (import_all, select_some, select_default, write_store, open_columns, open_list)
}


def measured(work: str, folder: Path) -> str:
    """Runs a piece of work in a fresh process and describes it."""
    command = [sys.executable, __file__, str(folder), "--work", work]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Prints one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--triples", type=int, nargs="+", default=[250_000, 1_000_000, 4_000_000])
    parser.add_argument("--work", choices=_WORK)
    options = parser.parse_args()
    if options.work:
        started = time.perf_counter()
        result = _WORK[options.work](options.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        wall = time.perf_counter() - started
        print(
            f"{options.work}: {result} in {wall:.2f} s ({time.process_time():.2f} s of processor), peak {peak:.0f} MB"
        )
        return
    for triples in options.triples:
        write_wikidata5m(options.folder / "wikidata5m", triples)
        for work in ("import_all", "select_some", "select_default"):
            print(f"{triples} triples, {measured(work, options.folder / 'wikidata5m')}", flush=True)
    for work in ("write_store", "open_columns", "open_list"):
        print(measured(work, options.folder), flush=True)


if __name__ == "__main__":
    main()
