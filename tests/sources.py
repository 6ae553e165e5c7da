"""Small sources that are written, not stored: documents of plain English and triples of invented names.

Everything is drawn from a fixed seed, so the files are the same on every machine.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TEMPLATES = Path(__file__).parent / "fixtures" / "templates.yaml"

_THINGS = ["river", "bridge", "valley", "harbour", "market", "mill", "library", "forest", "road", "tower", "orchard"]
_QUALITIES = ["old", "narrow", "quiet", "busy", "broad", "steep", "famous", "small", "southern", "wooden", "distant"]
_ACTS = ["crosses", "borders", "serves", "feeds", "divides", "joins", "overlooks", "follows", "supports", "outlives"]
_TIMES = ["In spring,", "For centuries,", "After the flood,", "Today,", "In the records,", "Near the coast,", "By law,"]
_ONSETS = ["b", "br", "d", "dr", "f", "g", "gr", "k", "kl", "l", "m", "n", "p", "pr", "r", "s", "st", "t", "tr", "v"]
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ei", "ou"]
_ENDS = ["n", "r", "l", "s", "m", "th", "ck", "nd", "rt", "lm"]


@dataclass(frozen=True)
class Sources:
    """Files to make a study's data from."""

    text: Path
    triples: Path
    templates: Path


def write_sources(folder: Path, *, documents: int = 360, facts_a_relation: int = 24) -> Sources:
    """Writes ``text.jsonl``, ``triples.tsv`` and ``templates.yaml`` of two relations into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(20)
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        for number in range(documents):
            text = " ".join(_sentence(rng) for _ in range(rng.randint(2, 9)))
            file.write(json.dumps({"title": f"Note {number}", "text": text}) + "\n")
    names = _names(rng, 4 * facts_a_relation)
    rows = ["subject\trelation\tobject"]
    for relation in ("town_region", "painter_teacher"):
        rows += [f"{next(names)}\t{relation}\t{next(names)}" for _ in range(facts_a_relation)]
    (folder / "triples.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    shutil.copyfile(TEMPLATES, folder / "templates.yaml")
    return Sources(folder / "text.jsonl", folder / "triples.tsv", folder / "templates.yaml")


def _sentence(rng: random.Random) -> str:
    subject, thing = rng.sample(_THINGS, 2)
    first, second = rng.sample(_QUALITIES, 2)
    opening = f"{rng.choice(_TIMES)} the" if rng.random() < 0.4 else "The"
    return f"{opening} {first} {subject} {rng.choice(_ACTS)} the {second} {thing}."


def _names(rng: random.Random, count: int) -> Iterator[str]:
    """Distinct invented names, none of which begins another."""
    seen: set[str] = set()
    while len(seen) < count:
        syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(2)]
        name = ("".join(syllables) + rng.choice(_ENDS)).capitalize()
        if not any(name[:4] == other[:4] for other in seen):
            seen.add(name)
            yield name


if __name__ == "__main__":
    write_sources(Path(sys.argv[1]))
