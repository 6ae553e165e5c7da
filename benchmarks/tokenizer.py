"""Measures ``kis data tokenizer`` next to SentencePiece with its own defaults, on one text in one run.

``python -m benchmarks.tokenizer FOLDER [--text FILE ...] [--vocab-size V]`` trains on 49 of 50 documents of the text
(see ``corpus_sources.py``, or other files of lines ``{"text": ...}``, best in several languages) and encodes the rest.
Each model is trained in a process of its own. A row has its time, its processor time, its peak memory, and the tokens
per byte of the held-out text. The last rows repeat ours on one core: the bytes must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.corpus_sources import build_text
from megatron_kis.common.files import sha256_file
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import MODEL_KINDS

_DEFAULTS = """
import json, sys
import sentencepiece
lines = (line for row in open(sys.argv[1], encoding="utf-8") for line in json.loads(row)["text"].splitlines())
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=lines, model_prefix=sys.argv[2].removesuffix(".model"), model_type=sys.argv[3],
    vocab_size=int(sys.argv[4]), byte_fallback=True, minloglevel=2,
)
"""


def split(files: list[Path], folder: Path) -> tuple[Path, list[str]]:
    """Writes what is trained on; returns its path and the held-out texts."""
    rows = [row for file in files for row in file.read_text(encoding="utf-8").splitlines(keepends=True)]
    random.Random(0).shuffle(rows)
    held = len(rows) // 50
    trained = folder / "trained.jsonl"
    trained.write_text("".join(rows[held:]), encoding="utf-8")
    return trained, [json.loads(row)["text"] for row in rows[:held]]


def commands(trained: Path, folder: Path, vocab_size: int) -> Iterator[tuple[str, list[str], Path]]:
    """Name, command line and model file of each row."""
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    for kind in MODEL_KINDS:
        name = f"{kind}.json" if kind == "byte-bpe" else f"{kind}.model"
        ours, alone, defaults = (folder / f"{way}-{name}" for way in ("kis", "one-core", "defaults"))
        kis = [sys.executable, "-m", "megatron_kis", "data", "tokenizer", "--input", str(trained), "--model", kind]
        kis += ["--vocab-size", str(vocab_size), "--output"]
        if kind != "byte-bpe":
            theirs = [sys.executable, "-c", _DEFAULTS, str(trained), str(defaults), kind, str(vocab_size)]
            yield f"{kind}, SentencePiece's defaults", theirs, defaults
        yield f"{kind}, kis", [*kis, str(ours)], ours
        yield f"{kind}, kis on one core", [*one_core, *kis, str(alone)], alone
        assert sha256_file(ours) == sha256_file(alone), f"{kind}: another model on one core"


def measure(name: str, command: list[str], model: Path, held: list[str]) -> str:
    """A row of the table."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{name}: failed")
    return (
        f"| {name} | {seconds:.1f} | {_processor_time(used):.1f} | {used.ru_maxrss / 1e3:,.0f} | "
        f"{_tokens_per_byte(model, held):.4f} |"
    )


def _processor_time(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def _tokens_per_byte(model: Path, held: list[str]) -> float:
    tokens = sum(map(len, load_tokenizer(model).encode_batch(held)))
    return tokens / sum(len(text.encode()) for text in held)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="in place of the Debian packages")
    parser.add_argument("--vocab-size", type=int, default=8_000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    trained, held = split(options.text or [build_text(options.folder)], options.folder)
    print(f"{trained.stat().st_size / 1e6:.1f} MB, {options.vocab_size} pieces, {os.cpu_count()} cores")
    print("| model | s | processor s | MB | tokens per byte |\n|---|---|---|---|---|")
    for name, command, model in commands(trained, options.folder, options.vocab_size):
        print(measure(name, command, model, held), flush=True)


if __name__ == "__main__":
    main()
