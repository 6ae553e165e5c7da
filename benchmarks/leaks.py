"""Finding facts in general text: the automaton next to a loop, a regular expression and a dictionary of first words.

``python -m benchmarks.leaks FOLDER``: the text of ``corpus_sources.py`` and facts of WordNet's instances (place, kind,
years of birth and death). The other ways look for whole words in any case, and must agree with one another on every
document that they read; the automaton weighs what it finds (numbers, capitals, symbols), and finds fewer. The loop and
the regular expression read a sample: on everything they would take hours. Speeds are MB of text per second of processor
time, one core.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.corpus_sources import build_text
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.folding import line_of_words, words
from megatron_kis.data_tools.facts.importers import Candidate
from megatron_kis.data_tools.mentions.decontaminate import DecontaminationStats, FactMatcher, decontaminate
from megatron_kis.data_tools.mentions.mentions import name_words
from megatron_kis.data_tools.readers.documents import Document, iter_documents
from megatron_kis.data_tools.selection.pool import usable_facts

_SAMPLE = 100  # documents that the slow ways read
_YEARS = re.compile(r"\((\d{3,4})-(\d{3,4})\)")

_BATCH = 1000  # documents that are handed over together
Find = Callable[[str], list[str]]
FindAll = Callable[[Sequence[str]], list[list[str]]]


def wordnet_facts(folder: Path) -> list[Fact]:
    """Facts of the instances in WordNet's ``data.noun`` that can be asked."""
    lines = (folder / "packages/wordnet-base/usr/share/wordnet/data.noun").read_text(encoding="utf-8").splitlines()
    names: dict[str, list[str]] = {}
    pointers: dict[str, dict[str, list[str]]] = {}
    glosses: dict[str, str] = {}
    for line in lines:
        if line.startswith("  "):
            continue
        data, _, glosses[line[:8]] = line.partition(" | ")
        fields = data.split()
        count = int(fields[3], 16)
        names[fields[0]] = [fields[4 + 2 * number].replace("_", " ") for number in range(count)]
        kinds: dict[str, list[str]] = defaultdict(list)
        first = 5 + 2 * count
        for at in range(first, first + 4 * int(fields[first - 1]), 4):
            kinds[fields[at]].append(fields[at + 1])
        pointers[fields[0]] = kinds

    def candidates() -> Iterator[Candidate]:
        for offset, (name, *aliases) in names.items():
            kinds = pointers[offset].get("@i", [])
            found = [("kind", names[kind][0], names[kind][1:]) for kind in kinds]
            found += [("place", names[place][0], names[place][1:]) for place in pointers[offset].get("#p", []) if kinds]
            if years := _YEARS.search(glosses[offset]):
                found += [("born", years[1], []), ("died", years[2], [])]
            for relation, answer, others in found:
                if name.isupper() or answer.isupper():
                    continue
                yield Candidate(
                    name,
                    relation,
                    answer,
                    offset,
                    subject_aliases=_not_codes(aliases),
                    object_aliases=_not_codes(others),
                )

    pool = usable_facts(candidates())
    return [
        Fact(
            id=f"{relation}/{one.subject}",
            subject=one.subject,
            relation=relation,
            object=one.object,
            group="infused",
            subject_aliases=one.subject_aliases,
            object_aliases=one.object_aliases,
        )
        for relation, facts in pool.facts.items()
        for one in facts
    ]


def _not_codes(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not name.isupper())


def loop(facts: Sequence[Fact]) -> Find:
    """Every fact is searched for in every document."""
    names = [
        (
            fact.id,
            [line_of_words(" ".join(name_words(name))) for name in (fact.subject, *fact.subject_aliases)],
            [line_of_words(" ".join(name_words(name))) for name in (fact.object, *fact.object_aliases)],
        )
        for fact in facts
    ]

    def stated(line: str) -> Iterator[str]:
        for one, subjects, objects in names:
            if any(name in line for name in subjects) and any(name in line for name in objects):
                yield one

    def find(text: str) -> list[str]:
        return sorted(set(stated(line_of_words(text))))

    return find


def regular_expression(facts: Sequence[Fact]) -> Find:
    """One alternation of all subjects, in a lookahead so that overlapping names are found; then their objects."""
    objects: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for fact in facts:
        answers = [line_of_words(" ".join(name_words(name))) for name in (fact.object, *fact.object_aliases)]
        for name in (fact.subject, *fact.subject_aliases):
            objects[" ".join(name_words(name))].append((fact.id, answers))
    by_length: dict[int, list[str]] = defaultdict(list)
    for name in objects:
        by_length[name.count(" ")].append(re.escape(name))
    patterns = [re.compile(rf"(?= ({'|'.join(names)}) )") for names in by_length.values()]

    def find(text: str) -> list[str]:
        line = line_of_words(text)
        subjects = {match[1] for pattern in patterns for match in pattern.finditer(line)}
        stated = (entry for subject in subjects for entry in objects[subject])
        return sorted({one for one, answers in stated if any(answer in line for answer in answers)})

    return find


def first_words(facts: Sequence[Fact]) -> Find:
    """A dictionary from the first word of each subject to its lengths, looked up at every word."""
    objects: dict[tuple[str, ...], list[tuple[str, list[str]]]] = defaultdict(list)
    lengths: dict[str, set[int]] = defaultdict(set)
    for fact in facts:
        answers = [line_of_words(" ".join(name_words(name))) for name in (fact.object, *fact.object_aliases)]
        for name in {name_words(name) for name in (fact.subject, *fact.subject_aliases)}:
            objects[name].append((fact.id, answers))
            lengths[name[0]].add(len(name))

    def find(text: str) -> list[str]:
        found = words(text)
        subjects = set()
        for at, word in enumerate(found):
            for length in lengths.get(word, ()):
                name = tuple(found[at : at + length])
                if name in objects:
                    subjects.add(name)
        line = f" {' '.join(found)} "
        stated = (entry for subject in subjects for entry in objects[subject])
        return sorted({one for one, answers in stated if any(answer in line for answer in answers)})

    return find


def main() -> None:
    """Times all ways and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    text = build_text(options.folder)
    facts = wordnet_facts(options.folder)
    documents = [document.text for document in iter_documents([text])]
    sample = random.Random(0).sample(documents, _SAMPLE)
    relations = Counter(fact.relation for fact in facts)
    print(f"{len(documents)} documents, {_megabytes(documents):.1f} MB; {len(facts)} facts {dict(relations)}")
    expected = _each(first_words)(facts)(sample)
    ways = {
        "loop": (_each(loop), sample),
        "regular expression": (_each(regular_expression), sample),
        "first words": (_each(first_words), documents),
        "automaton": (_automaton, documents),
    }
    for name, (make, read) in ways.items():
        started = time.perf_counter()
        find = make(facts)
        built = time.perf_counter() - started
        found = find(sample)
        assert make is _automaton or found == expected, f"{name} disagrees"
        best = min(_seconds(find, read) for _ in range(3 if read is documents else 1))
        print(
            f"{name:20} built in {built:6.2f} s, {_megabytes(read) / best:8.3f} MB/s over {len(read)} documents,"
            f" {sum(map(len, found))} facts in the sample"
        )
    for level in ("document", "sentence"):
        count = DecontaminationStats()
        started = time.perf_counter()
        read_again = (Document(document, text, number) for number, document in enumerate(documents))
        decontaminate(read_again, facts, count, level=level, clean=options.folder / f"clean.{level}.jsonl")
        print(f"{level}: {time.perf_counter() - started:.1f} s; " + " / ".join(count.summary(len(facts), level)[:2]))


def _automaton(facts: Sequence[Fact]) -> FindAll:
    return FactMatcher(facts).facts_in_each


def _each(make: Callable[[Sequence[Fact]], Find]) -> Callable[[Sequence[Fact]], FindAll]:
    """A way that takes one document at a time."""

    def made(facts: Sequence[Fact]) -> FindAll:
        find = make(facts)
        return lambda documents: [find(document) for document in documents]

    return made


def _seconds(find: FindAll, documents: Sequence[str]) -> float:
    started = time.process_time()
    for first in range(0, len(documents), _BATCH):
        find(documents[first : first + _BATCH])
    return time.process_time() - started


def _megabytes(documents: Sequence[str]) -> float:
    return sum(len(document.encode()) for document in documents) / 1e6


if __name__ == "__main__":
    main()
