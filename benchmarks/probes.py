"""The probe beside LM-Pub-Quiz: same checkpoint, facts, templates and options, one thread each, in turns.

    python -m benchmarks.probes RUN_DIR --facts facts.jsonl --templates templates.yaml --peer ENV/bin/python

``ENV`` has lm-pub-quiz, transformers and torch. Each fact is asked with its relation's whole answer space under every
held-out template, rule ``statement`` (LM-Pub-Quiz: reduction "sum"), tokenizing included on both sides. Prints JSON:
seconds by the clock and of processor time, facts a second, the largest difference of a score, and the arithmetic floor:
FLOPs of the nodes over the speed of a matrix product of the model's output layer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from data_tools.exports import export_bear
from data_tools.facts import load_facts
from data_tools.questions import tokenize_option
from data_tools.templates import load_templates
from data_tools.tokenizer import load_tokenizer
from megatron_kis.export.huggingface import export_huggingface
from megatron_kis.files import read_json_lines
from megatron_kis.model.ladder import ModelShape
from megatron_kis.model.vocabulary import padded_vocabulary
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.probe import Probe
from megatron_kis.probes.questions import Option, Question, QuestionSet
from megatron_kis.probes.restore import read_config, restored


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--templates", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--group", default="infused")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peer-batch", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_bear(
            load_facts(options.facts), load_templates(options.templates), folder / "data", groups=[options.group]
        )
        export_huggingface(options.run, folder / "model")
        print(json.dumps(_measure(options, folder)))


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = read_config(options.run)
    tokenizer = load_tokenizer(config.data.tokenizer)
    prepared, ours, theirs, difference = [], [], [], 0.0
    for _ in range(options.turns):
        peer = _peer(options, folder)
        with restored(options.run, config, vocabulary=tokenizer.vocab_size, step=None) as (engine, _):
            scorer = Scorer(engine)
            clock, spent = time.perf_counter(), time.process_time()
            questions, names = _questions(folder / "data" / options.group, tokenizer)
            prepared.append(time.process_time() - spent)
            probe = Probe(questions, first=tokenizer.eod_id, batch_size=config.probes.batch_size)
            edges = scorer.score(probe.forest, probe._rows_a_pass)
            assert edges is not None
            scores, _ = probe._option_scores(edges)
            ours.append((time.perf_counter() - clock, time.process_time() - spent))
        theirs.append((peer["seconds"], peer["processor"]))
        found = {(relation, subject, template): values for relation, subject, template, values in peer["scores"]}
        at = 0
        for key, question in zip(names, questions.questions, strict=True):
            mine = scores[at : at + len(question.options), 0]
            difference = max(difference, *abs(mine - found[key]).tolist())
            at += len(question.options)
    floor, speed = _floor(config.model.shape(), padded_vocabulary(tokenizer.vocab_size), probe.forest.nodes)
    (our_clock, our_spent), (their_clock, their_spent) = min(ours), min(theirs)
    tokens = sum(len(option.tokens) for question in questions.questions for option in question.options)
    return {
        "questions": len(questions.questions),
        "options": at,
        "tokens": tokens,
        "nodes": probe.forest.nodes,
        "tokenizing": min(prepared),
        "ours": {"seconds": our_clock, "processor": our_spent, "a_second": len(names) / our_clock},
        "lm_pub_quiz": {"seconds": their_clock, "processor": their_spent, "a_second": len(names) / their_clock},
        "ratio_by_turn": [round(b[1] / a[1], 2) for a, b in zip(ours, theirs, strict=True)],
        "largest_difference": difference,
        "floor_seconds": floor,
        "gflops_of_a_product": speed / 1e9,
    }


def _questions(folder: Path, tokenizer: Any) -> tuple[QuestionSet, list[tuple[str, str, int]]]:
    """Every fact of the exported data set under every template, with its relation's answer space."""
    metadata = json.loads((folder / "metadata_relations.json").read_text(encoding="utf-8"))
    questions, names = [], []
    for relation, content in metadata.items():
        for _, row in read_json_lines(folder / f"{relation}.jsonl"):
            for number, template in enumerate(content["templates"]):
                encoded = [
                    tokenize_option(template, row["sub_label"], label, tokenizer)
                    for label in content["answer_space_labels"]
                ]
                choices = tuple(Option(o["text"], tuple(o["tokens"]), tuple(o["span"])) for o in encoded)
                questions.append(
                    Question(row["fact_id"], "infused", relation, "held_out", number, row["answer_idx"], choices)
                )
                names.append((relation, row["sub_label"], number))
    return QuestionSet({}, tuple(questions)), names


def _peer(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    output = folder / "peer.json"
    script = Path(__file__).with_name("probes_peer.py")
    data = folder / "data" / options.group
    command = [str(options.peer), str(script), str(folder / "model"), str(data), str(options.peer_batch), str(output)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    content: dict[str, Any] = json.loads(output.read_text())
    return content


def _floor(shape: ModelShape, vocabulary: int, nodes: int) -> tuple[float, float]:
    """Seconds that the products of all nodes take at the speed of the output layer's, and that speed."""
    rows, weight = torch.randn(2048, shape.width), torch.randn(shape.width, vocabulary)
    best = float("inf")
    for _ in range(10):
        started = time.process_time()
        rows @ weight
        best = min(best, time.process_time() - started)
    speed = 2 * rows.numel() * vocabulary / best
    return nodes * shape.flops_per_token(vocabulary, 0) / 3 / speed, speed


if __name__ == "__main__":
    main()
