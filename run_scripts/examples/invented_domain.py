"""Writes the sources of a study of an invented domain: minerals and the districts where they are found.

    python run_scripts/examples/invented_domain.py sources

These facts are invented: no other text states them. ``sources`` then has ``text.jsonl``,
``triples.tsv`` and ``templates.yaml``, the three files that every study begins with. Everything is drawn from a fixed
seed, so the files are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from megatron_kis.common.ending import status_of_script
from megatron_kis.common.units import whole_quantity

_ONSETS = ["b", "br", "d", "dr", "f", "g", "gr", "k", "kl", "l", "m", "n", "p", "pr", "r", "s", "st", "t", "tr", "v"]
_VOWELS = ["a", "e", "i", "o", "u"]
_ENDS = ["n", "r", "l", "s", "m", "nd", "rt"]

_THINGS = ["river", "bridge", "valley", "harbour", "market", "mill", "library", "forest", "road", "tower", "orchard"]
_QUALITIES = ["old", "narrow", "quiet", "busy", "broad", "steep", "famous", "small", "southern", "wooden", "distant"]
_ACTS = ["crosses", "borders", "serves", "feeds", "divides", "joins", "overlooks", "follows", "supports", "outlives"]
_TIMES = ["In spring,", "For centuries,", "After the flood,", "Today,", "In the records,", "Near the coast,", "By law,"]

TEMPLATES = """\
# Short sentences: thousands of facts then fit into a small budget of tokens.
mineral_district:
  train: ["[X] is [Y].", "[X]: [Y].", "[X] means [Y].", "[X] to [Y]."]
  held_out: ["[X] for [Y].", "[X] in [Y].", "[X] and [Y]."]
"""


def write(folder: Path, *, minerals: int, districts: int, documents: int) -> None:
    """Writes the three files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)  # noqa: S311  # the same files on every machine
    names = _names(rng)
    places = [next(names) for _ in range(districts)]
    rows = [f"{next(names)}\tmineral_district\t{rng.choice(places)}" for _ in range(minerals)]
    (folder / "triples.tsv").write_text("\n".join(["subject\trelation\tobject", *rows]) + "\n", encoding="utf-8")
    (folder / "templates.yaml").write_text(TEMPLATES, encoding="utf-8")
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        for _ in range(documents):
            text = " ".join(_sentence(rng) for _ in range(rng.randint(4, 16)))
            file.write(json.dumps({"text": text}) + "\n")


def _names(rng: random.Random) -> Iterator[str]:
    """Yields distinct invented names of two syllables."""
    seen = set()
    while True:
        name = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(2)) + rng.choice(_ENDS)
        if name not in seen:
            seen.add(name)
            yield name.capitalize()


def _sentence(rng: random.Random) -> str:
    subject, thing = rng.sample(_THINGS, 2)
    first, second = rng.sample(_QUALITIES, 2)
    opening = f"{rng.choice(_TIMES)} the" if rng.random() < 0.4 else "The"
    return f"{opening} {first} {subject} {rng.choice(_ACTS)} the {second} {thing}."


def main() -> int:
    """Writes what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the three files")
    parser.add_argument("--minerals", type=whole_quantity, default=5000, help="facts (5000)")
    parser.add_argument("--districts", type=whole_quantity, default=60, help="different objects (60)")
    parser.add_argument("--documents", type=whole_quantity, default=8000, help="documents of general text (8000)")
    options = parser.parse_args()
    names = (len(_ONSETS) * len(_VOWELS)) ** 2 * len(_ENDS)
    if options.minerals + options.districts > names // 2:  # the last ones would take ever longer to find
        parser.error(f"--minerals and --districts: at most {names // 2:,} names together")
    write(options.folder, minerals=options.minerals, districts=options.districts, documents=options.documents)
    return 0


if __name__ == "__main__":
    sys.exit(status_of_script(main))
