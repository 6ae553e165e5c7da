"""Measures ``kis data corpus`` next to Megatron-LM's own tools, on one file in one run.

``python -m benchmarks.corpus_megatron FOLDER --checkout MEGATRON --python PYTHON [--rounds N]`` builds the text,
WordNet's glosses three times (see ``corpus_sources.py``), trains a SentencePiece bpe model and a byte-level BPE of
32,000 pieces in FOLDER, then runs each program N times in turn, each in a fresh process:

* ``tool``: ``tools/preprocess_data.py`` with the SentencePiece model, two workers;
* ``kis sp``: ``kis data corpus`` with that model;
* ``fast``: ``tools/preprocess_data_fast.py``, which has gigatoken encode the whole file, with the byte-level BPE;
* ``kis bpe``: ``kis data corpus`` with that tokenizer;
* ``start`` and ``peer start``: ours and the fast tool on a file of one document.

The files of both sides must be the same byte for byte. MEGATRON is a checkout of Megatron-LM, PYTHON an interpreter
that runs its tools (Python 3.12 with torch, triton, transformers, sentencepiece, gigatoken, awkward and omegaconf).
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
from pathlib import Path

from benchmarks.corpus import timed
from benchmarks.corpus_sources import build_text, glosses

_VOCABULARY = 32_000
_EOD = "<|endoftext|>"


def build(folder: Path) -> Path:
    """Writes ``glosses.jsonl``, the two models and what the peer's loader wants next to them."""
    build_text(folder)
    text = folder / "glosses.jsonl"
    if not text.exists():
        with open(text, "w", encoding="utf-8") as file:
            for document in [*glosses(folder / "packages")] * 3:
                file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
    for kind, name in (("bpe", "sp.model"), ("byte-bpe", "hf/tokenizer.json")):
        (folder / name).parent.mkdir(exist_ok=True)
        if not (folder / name).exists():
            train = ["kis", "data", "tokenizer", "--input", str(text), "--vocab-size", str(_VOCABULARY)]
            subprocess.run([*train, "--model", kind, "--output", str(folder / name)], check=True)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _EOD}
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "one.jsonl").write_text('{"text": "One document."}\n', encoding="utf-8")
    return text


def main() -> None:
    """Runs all programs in turn and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkout", type=Path, required=True, help="of Megatron-LM")
    parser.add_argument("--python", type=Path, required=True, help="the interpreter for its tools")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    text = build(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(options.checkout), os.environ.get("PYTHONPATH", "")])
    seconds: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, command in commands(folder, text, options.checkout, options.python).items():
            shutil.rmtree(folder / "out" / name, ignore_errors=True)
            (folder / "out" / name).mkdir(parents=True)
            seconds.setdefault(name, []).append(timed(command))
    print(f"{text.stat().st_size / 1e6:.1f} MB, {os.cpu_count()} cores, {options.rounds} rounds")
    for ours, theirs in (("kis sp", "tool"), ("kis bpe", "fast")):
        for suffix in (".bin", ".idx"):
            pair = (folder / "out" / ours / f"c{suffix}", folder / "out" / theirs / f"c_text_document{suffix}")
            print(f"{ours}{suffix}: {'the same bytes' if filecmp.cmp(*pair, shallow=False) else 'DIFFERENT'}")
    for name, found in seconds.items():
        print(f"{name:10} median {statistics.median(found):6.2f} s, fastest {min(found):6.2f} s")
    for ours, theirs in (("kis sp", "tool"), ("kis bpe", "fast")):
        ratios = [their / our for our, their in zip(seconds[ours], seconds[theirs], strict=True)]
        print(f"{ours}: {statistics.median(ratios):.1f} times {theirs} ({min(ratios):.1f} to {max(ratios):.1f})")


def commands(folder: Path, text: Path, checkout: Path, python: Path) -> dict[str, list[str]]:
    """The command of each program."""
    sp, bpe, out, one = folder / "sp.model", folder / "hf", folder / "out", folder / "one.jsonl"

    def tool(script: str, source: Path, name: str, *more: str) -> list[str]:
        prefix = ["--input", str(source), "--output-prefix", str(out / name / "c"), "--append-eod"]
        return [str(python), str(checkout / "tools" / script), *prefix, *more]

    def kis(source: Path, model: Path, name: str) -> list[str]:
        made = ["--input", str(source), "--tokenizer", str(model), "--output", str(out / name / "c")]
        return ["kis", "data", "corpus", *made, "--validation-share", "0"]

    sentencepiece = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(sp), "--workers", "2"]
    fast = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(bpe), "--use-gigatoken"]
    return {
        "tool": tool("preprocess_data.py", text, "tool", *sentencepiece),
        "kis sp": kis(text, sp, "kis sp"),
        "fast": tool("preprocess_data_fast.py", text, "fast", *fast),
        "kis bpe": kis(text, bpe / "tokenizer.json", "kis bpe"),
        "start": kis(one, bpe / "tokenizer.json", "start"),
        "peer start": tool("preprocess_data_fast.py", one, "peer start", *fast),
    }


if __name__ == "__main__":
    main()
