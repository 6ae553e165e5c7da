"""The probe next to LM-Pub-Quiz and lm-eval: same checkpoint, facts, templates, options and threads, in turns.

The probe is measured twice: ``ours`` asks the run (``kis probe RUN_DIR``), ``exported`` its export to Hugging Face
(``kis probe --model``), the same folder that the other tools get.

    python -m benchmarks.probes RUN_DIR --data FOLDER --peer ENV/bin/python [--subjects 0.05] [--templates 1]
        [--threads 1] [--device cuda]

``FOLDER`` is a data set in the format of BEAR and LM-Pub-Quiz: BEAR itself, or what ``kis data export`` writes of a
group. ``ENV`` has lm-pub-quiz, lm-eval, transformers and torch. Each fact is asked with its relation's whole answer
space under every template, or the relation's first ones (``--templates``). ``--subjects`` takes a share of each
relation's facts, spread evenly over its file, for all alike.

Rule ``statement`` (LM-Pub-Quiz: reduction "sum"; lm-eval: the log-likelihood of the statement after the token that ends
documents). Tokenizing is counted on all sides. Prints JSON: seconds by the clock and of processor time (which alone
other work on the machine leaves as it is: with one thread it is what counts; with more, or on a GPU, the clock), facts
and questions per second, the largest difference of a score, and the arithmetic floor: FLOPs of the nodes over the speed
of a matrix product of the model's output layer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_kis.common.files import read_json_lines
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.vocabulary import padded_vocabulary
from megatron_kis.convert.to_huggingface import export_huggingface
from megatron_kis.data_tools.facts.importers.bear import METADATA
from megatron_kis.data_tools.rendering.statements import tokenize_in_batches
from megatron_kis.data_tools.rendering.templates import Rendered, fill
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.evaluate.restore import restored
from megatron_kis.huggingface.ask import BATCH_TOKENS, laid_out
from megatron_kis.huggingface.load import load_model
from megatron_kis.huggingface.tokens import tokenizer_of
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.probe import Probe
from megatron_kis.probes.questions import QuestionSet
from megatron_kis.probes.table import QuestionColumns
from megatron_kis.training.artifacts import open_run

_OWN = ("ours", "exported")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--subjects", type=float, default=1.0)
    parser.add_argument("--templates", type=int)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS)
    parser.add_argument("--peer-batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tools", nargs="*", default=["lm_pub_quiz", "lm_eval"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _take(options.data, folder / "data", options.subjects, options.templates)
        export_huggingface(options.run, folder / "model")
        print(json.dumps(_measure(options, folder)))


def _take(source: Path, folder: Path, share: float, templates: int | None) -> None:
    """Copies a data set, of each relation every n-th fact and the first templates (None: all)."""
    folder.mkdir()
    metadata = json.loads((source / METADATA).read_text(encoding="utf-8"))
    for content in metadata.values():
        content["templates"] = content["templates"][:templates]
    (folder / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
    for relation in metadata:
        lines = (source / f"{relation}.jsonl").read_text(encoding="utf-8").splitlines()
        wanted = np.linspace(0, len(lines) - 1, max(1, round(share * len(lines)))).round().astype(int)
        (folder / f"{relation}.jsonl").write_text("".join(f"{lines[at]}\n" for at in wanted), encoding="utf-8")


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    past = open_run(options.run)
    config, tokenizer = past.config.model_copy(update={"device": options.device}), past.tokenizer
    times: dict[str, list[dict[str, float]]] = {name: [] for name in (*_OWN, *options.tools)}
    difference = dict.fromkeys(("exported", *options.tools), 0.0)
    for _ in range(options.turns):
        peers = {tool: _peer(tool, options, folder) for tool in options.tools}
        with restored(options.run, config, vocabulary=tokenizer.vocab_size, step=None) as (engine, _):
            scorer = Scorer(engine)
            spent = [time.process_time()]
            clock = time.perf_counter()
            questions, names = _questions(folder / "data", tokenizer)
            spent.append(time.process_time())
            probe = Probe(questions, batch_size=config.probes.batch_size)
            spent.append(time.process_time())
            edges = scorer.score(probe.trees, probe._rows_per_pass)
            assert edges is not None
            spent.append(time.process_time())
            scores, _ = probe._option_scores(edges)
            spent.append(time.process_time())
            parts = dict(zip(("tokenizing", "layout", "model", "rules"), np.diff(spent).tolist(), strict=True))
            seconds = time.perf_counter() - clock
            times["ours"].append({"seconds": seconds, "processor": spent[-1] - spent[0], **parts})
        exported, spent_there = _ask_exported(folder, options)
        times["exported"].append(spent_there)
        difference["exported"] = max(difference["exported"], float(np.abs(exported - scores[:, 0]).max()))
        for tool, peer in peers.items():
            times[tool].append({"seconds": peer["seconds"], "processor": peer["processor"]})
            found = {(relation, subject, template): values for relation, subject, template, values in peer["scores"]}
            for number, key in enumerate(names):
                mine = scores[questions.table.starts[number] : questions.table.starts[number + 1], 0]
                difference[tool] = max(difference[tool], float(np.abs(mine - found[key]).max()))
    floor, speed = _floor(config.model.shape(), padded_vocabulary(tokenizer.vocab_size), probe.trees.nodes, engine)
    facts = len({key[:2] for key in names})
    counts = "processor" if options.threads == 1 and options.device == "cpu" else "seconds"
    return {
        "facts": facts,
        "questions": len(names),
        "options": len(scores),
        "tokens": len(questions.table.tokens.values),
        "nodes": probe.trees.nodes,
        **{name: _best(turns, facts, len(names), what=counts) for name, turns in times.items()},
        "ratios_by_turn": {
            own: {
                tool: [round(b[counts] / a[counts], 2) for a, b in zip(times[own], times[tool], strict=True)]
                for tool in options.tools
            }
            for own in _OWN
        },
        "largest_difference": difference,
        "floor_seconds": floor,
        "gflops_of_a_product": speed / 1e9,
    }


def _ask_exported(folder: Path, options: argparse.Namespace) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Asks the exported model.

    Returns:
        The score of each option by rule ``statement``, and seconds.
    """
    model = load_model(folder / "model", dtype="float32", device=options.device)
    tokenizer, _ = tokenizer_of(folder / "model")
    clock, spent = time.perf_counter(), [time.process_time()]
    questions, _ = _questions(folder / "data", tokenizer)
    spent.append(time.process_time())
    scorer, probe, because = laid_out(model, questions, batch_tokens=options.batch_tokens)
    assert not because, because
    spent.append(time.process_time())
    edges = scorer.score(probe.trees)
    spent.append(time.process_time())
    scores, _ = probe._option_scores(edges)
    spent.append(time.process_time())
    parts = dict(zip(("tokenizing", "layout", "model", "rules"), np.diff(spent).tolist(), strict=True))
    return scores[:, 0], {"seconds": time.perf_counter() - clock, "processor": spent[-1] - spent[0], **parts}


def _best(turns: list[dict[str, float]], facts: int, questions: int, *, what: str) -> dict[str, float]:
    """The turn of the least time."""
    best = min(turns, key=lambda turn: turn[what])
    return {**best, "facts_a_second": facts / best[what], "questions_a_second": questions / best[what]}


def _questions(folder: Path, tokenizer: Tokenizer) -> tuple[QuestionSet, list[tuple[str, str, int]]]:
    """Every fact of a data set under every template, with its relation's answer space."""
    metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    columns, names = QuestionColumns(), []

    def drafts() -> Iterator[tuple[tuple[str, dict[str, Any], int, int], list[Rendered]]]:
        for relation, content in metadata.items():
            for number, row in read_json_lines(folder / f"{relation}.jsonl"):
                for template, text in enumerate(content["templates"]):
                    filled = [fill(text, row["sub_label"], answer) for answer in content["answer_space_labels"]]
                    yield (relation, row, number, template), filled

    for (relation, row, number, template), tokens, spans in tokenize_in_batches(drafts(), tokenizer):
        answers = metadata[relation]["answer_space_labels"]
        columns.add(f"{relation}/{number}", "infused", relation, "held_out", template, row["answer_idx"], len(answers))
        for own in zip(answers, tokens, spans.tolist(), strict=True):
            columns.add_option(*own)
        names.append((relation, row["sub_label"], template))
    return QuestionSet({"first_tokens": tokenizer.frame[0] or [tokenizer.eod_id]}, columns.table()), names


def _peer(tool: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    output = folder / "peer.json"
    script = Path(__file__).with_name("probes_peer.py")
    command = [str(options.peer), str(script), tool, str(folder / "model"), str(folder / "data")]
    command += [str(options.peer_batch), str(options.threads), options.device, str(output)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    content: dict[str, Any] = json.loads(output.read_text())
    return content


def _floor(shape: ModelShape, vocabulary: int, nodes: int, engine: Any) -> tuple[float, float]:
    """Seconds that the products of all nodes take at the speed of the output layer's, and that speed."""
    place, dtype = engine.device.torch_device, next(engine.chunks[0].parameters()).dtype
    sizes = (2048, shape.width), (shape.width, vocabulary)
    rows, weight = (torch.randn(*size, device=place, dtype=dtype) for size in sizes)

    def now() -> float:
        if engine.device.is_cpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    best = float("inf")
    for _ in range(10):
        started = now()
        rows @ weight
        best = min(best, now() - started)
    speed = 2 * rows.numel() * vocabulary / best
    return nodes * shape.flops_per_token(vocabulary, 0) / 3 / speed, speed


if __name__ == "__main__":
    main()
