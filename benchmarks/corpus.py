"""Measures ``kis data corpus`` next to the obvious pipeline and gigatoken alone, on one file in one run.

``python -m benchmarks.corpus FOLDER [--rounds N] [--memory MB ...]`` builds the text (see ``corpus_sources.py``) and a
byte-level BPE of 32,000 pieces in FOLDER, then runs each program N times in turn, each in a fresh process:

* ``pipeline``: Hugging Face tokenizers' ``encode_batch`` in two processes into Megatron-Core's IndexedDatasetBuilder;
* ``gigatoken``: gigatoken loads the model and encodes the file; nothing is written;
* ``kis``: ``kis data corpus``, whose files must be the pipeline's byte for byte;
* ``start``: ``kis data corpus`` on a file of one document.

``--memory`` repeats the file to inputs of so many MB, as files of 50 MB, and reports the peak memory of all processes.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.corpus_sources import build_text

_model: Any = None  # the tokenizer of a process of the pipeline

_VOCABULARY = 32_000
_BATCH = 1_000  # documents

_GIGATOKEN = """
import sys
import gigatoken
tokens = gigatoken.Tokenizer(sys.argv[2]).encode_files(gigatoken.JsonlFileSource([sys.argv[1]]))
print(len(tokens))
"""


def pipeline(text: Path, tokenizer: Path, prefix: Path) -> None:
    """The obvious way, as most would write it."""
    import multiprocessing

    import numpy as np
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    model = Tokenizer.from_file(str(tokenizer))
    eod = model.token_to_id("<|endoftext|>")
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(model.get_vocab_size()))
    with multiprocessing.Pool(2, _load, (tokenizer,)) as pool:
        for batch in pool.imap(_encode, _batches(text)):
            for ids in batch:
                builder.add_document(np.array([*ids, eod]), [len(ids) + 1])
    builder.finalize(f"{prefix}.idx")


def _load(tokenizer: Path) -> None:
    global _model  # noqa: PLW0603 - one model a process
    from tokenizers import Tokenizer

    _model = Tokenizer.from_file(str(tokenizer))


def _encode(lines: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in _model.encode_batch([json.loads(line)["text"] for line in lines])]


def _batches(text: Path) -> Iterator[list[str]]:
    batch = []
    with open(text, encoding="utf-8") as file:
        for line in file:
            batch.append(line)
            if len(batch) == _BATCH:
                yield batch
                batch = []
    yield batch


def timed(command: list[str]) -> float:
    """Seconds of a command."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def watched(command: list[str]) -> tuple[float, float]:
    """Seconds, and the peak memory in MB of all processes of a command: the sum of what each holds alone and shares.

    Measuring memory takes time: not for comparing speeds.
    """
    peak, done = 0, threading.Event()

    def watch(pid: int) -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, sum(map(_proportional, _family(pid))))

    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watcher = threading.Thread(target=watch, args=(process.pid,))
    watcher.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(errors.decode())
    return seconds, peak / 1e3


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(found for child in children for found in _family(int(child)))]


def _proportional(pid: int) -> int:
    """Proportional set size in kB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def speed(folder: Path, text: Path, tokenizer: Path, rounds: int) -> None:
    """Prints the median and the fastest time of each program."""
    one = folder / "one.jsonl"
    one.write_text('{"text": "One document."}\n', encoding="utf-8")
    theirs, ours, small = (folder / name / "c" for name in ("pipeline", "kis", "start"))
    kis = ["kis", "data", "corpus", "--tokenizer", str(tokenizer), "--validation-share", "0"]
    commands = {
        "pipeline": [sys.executable, "-m", "benchmarks.corpus", str(folder), "--pipeline", str(theirs)],
        "gigatoken": [sys.executable, "-c", _GIGATOKEN, str(text), str(tokenizer)],
        "kis": [*kis, "--input", str(text), "--output", str(ours)],
        "start": [*kis, "--input", str(one), "--output", str(small)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
            seconds[name].append(timed(command))
    for suffix in (".bin", ".idx"):
        same = filecmp.cmp(f"{theirs}{suffix}", f"{ours}{suffix}", shallow=False)
        print(f"{suffix}: {'the same bytes' if same else 'DIFFERENT'}")
    for name, found in seconds.items():
        print(f"{name:10} median {statistics.median(found):6.2f} s, fastest {min(found):6.2f} s")
    for way, of in (("median", statistics.median), ("fastest", min)):
        pipeline_, gigatoken, kis_ = (of(seconds[name]) for name in ("pipeline", "gigatoken", "kis"))
        print(f"{way}: {pipeline_ / kis_:.1f} times the pipeline, {gigatoken / kis_:.2f} of gigatoken alone")


def memory(folder: Path, text: Path, tokenizer: Path, sizes: list[int]) -> None:
    """Prints time and peak memory for inputs of several sizes, made of links to one file."""
    megabytes = text.stat().st_size / 1e6
    for size in sizes:
        many, out = folder / "many", folder / "large"
        for path in (many, out):
            shutil.rmtree(path, ignore_errors=True)
        many.mkdir()
        copies = max(1, round(size / megabytes))
        for number in range(copies):
            (many / f"{number:04d}.jsonl").symlink_to(text)
        command = ["kis", "data", "corpus", "--input", str(many / "*.jsonl"), "--tokenizer", str(tokenizer)]
        seconds, peak = watched([*command, "--output", str(out / "c")])
        read = copies * megabytes
        print(f"{read:7.0f} MB of input: {seconds:6.1f} s, {read / seconds:5.1f} MB/s, peak {peak:5.0f} MB")
        shutil.rmtree(out)


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="*", default=[], metavar="MB")
    parser.add_argument("--pipeline", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    text, tokenizer = build_text(folder), folder / "bpe.json"
    if options.pipeline:
        pipeline(text, tokenizer, options.pipeline)
        return
    if not tokenizer.exists():
        train = ["kis", "data", "tokenizer", "--input", str(text), "--vocab-size", str(_VOCABULARY)]
        subprocess.run([*train, "--model", "byte-bpe", "--output", str(tokenizer)], check=True)
    with open(text, "rb") as file:
        documents = sum(1 for _ in file)
    print(f"{text.stat().st_size / 1e6:.1f} MB, {documents} documents")
    if options.rounds:
        speed(folder, text, tokenizer, options.rounds)
    memory(folder, text, tokenizer, options.memory)


if __name__ == "__main__":
    main()
