"""Builds the text that the corpus benchmarks read: dictionaries, glosses and manuals out of Debian packages.

``python -m benchmarks.corpus_sources FOLDER`` fetches four packages with ``apt-get download``, unpacks them and writes
``FOLDER/text.jsonl``: about 42 MB, 230,000 documents, most of them short. Nothing is fetched twice. The data keep their
own licences (GPL, WordNet's, FOLDOC's GFDL, Python's) and are not part of this repository.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("dict-gcide", "wordnet-base", "dict-foldoc", "python3.11-doc")
_MANUALS = ("whatsnew", "howto", "tutorial", "reference")
# Digits of the numbers in dictd indices, most significant first.
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PRONUNCIATION = re.compile(r"\\[^\\\n]*\\|\[1913 Webster\]|[{}]")


def build_text(folder: Path) -> Path:
    """Fetches what is missing and writes ``folder/text.jsonl``; returns its path."""
    text = folder / "text.jsonl"
    if text.exists():
        return text
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        if not list(packages.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", name], cwd=packages, check=True)
        (deb,) = packages.glob(f"{name}_*.deb")
        subprocess.run(["dpkg-deb", "-x", deb, packages / name], check=True)
    partial = text.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as file:
        for document in _documents(packages):
            file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
    partial.rename(text)
    return text


def _documents(packages: Path) -> Iterator[str]:
    for name in ("gcide", "foldoc"):
        yield from _dictionary(packages / f"dict-{name}" / "usr/share/dictd" / name)
    yield from glosses(packages)
    for manual in _MANUALS:
        for path in sorted(packages.glob(f"python3.11-doc/**/_sources/{manual}/*.txt")):
            yield path.read_text(encoding="utf-8")


def _dictionary(path: Path) -> Iterator[str]:
    """Entries of a dictd dictionary, each once though many heads share it."""
    content = gzip.decompress(path.with_suffix(".dict.dz").read_bytes())
    places: dict[int, int] = {}
    for line in path.with_suffix(".index").read_text(encoding="utf-8").splitlines():
        head, offset, length = line.split("\t")
        if not head.startswith("00"):
            places.setdefault(_number(offset), _number(length))
    for start, size in sorted(places.items()):
        entry = content[start : start + size].decode("utf-8", errors="ignore")
        if text := re.sub(r"\s+", " ", _PRONUNCIATION.sub("", entry)).strip():
            yield text


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = 64 * value + _DIGITS.index(digit)
    return value


def glosses(packages: Path) -> Iterator[str]:
    """``word: gloss`` of every synset of WordNet; lines that start with two spaces are the licence."""
    for part in sorted((packages / "wordnet-base" / "usr/share/wordnet").glob("data.*")):
        for line in part.read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):
                data, _, gloss = line.partition(" | ")
                yield f"{data.split(' ')[4].replace('_', ' ')}: {gloss.strip()}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where packages and text are written")
    print(build_text(parser.parse_args().folder))
