"""LM-Pub-Quiz or lm-eval on an exported model, in an environment of its own; started by ``benchmarks.probes``.

Arguments: tool, model folder, data set folder, batch size, threads, device, output file. Prints nothing; writes seconds
and scores as JSON. lm-eval gets every option as a request of its own, as its tasks of output type ``multiple_choice``
make them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

Scores = list[tuple[str, str, int, list[float]]]
"""Relation, subject, template, and the score of each option."""


def main() -> None:
    """Scores all facts of the data set with all of its templates."""
    tool, model, data, batch_size, threads, device, output = sys.argv[1:]
    torch.set_num_threads(int(threads))
    score = {"lm_pub_quiz": _lm_pub_quiz, "lm_eval": _lm_eval}[tool](model, Path(data), int(batch_size), device)
    started, spent = time.perf_counter(), time.process_time()
    found = score()
    seconds, processor = time.perf_counter() - started, time.process_time() - spent
    Path(output).write_text(json.dumps({"seconds": seconds, "processor": processor, "scores": found}))


def _lm_pub_quiz(model: str, data: Path, batch_size: int, device: str) -> Callable[[], Scores]:
    from lm_pub_quiz import Dataset, Evaluator
    from transformers import AutoModelForCausalLM, AutoTokenizer

    evaluator = Evaluator.from_model(
        AutoModelForCausalLM.from_pretrained(model),
        device=device,
        tokenizer=AutoTokenizer.from_pretrained(model),
        model_type="CLM",
        capitalize=False,  # or it asks about another text where a statement begins with a small letter
    )
    dataset = Dataset.from_path(str(data))

    def score() -> Scores:
        result = evaluator.evaluate_dataset(dataset, batch_size=batch_size, reduction="sum")
        return [
            (relation.relation_code, row["sub_label"], row["template_index"], list(row["pll_scores"]))
            for relation in result
            for row in relation.instance_table.to_dict("records")
        ]

    return score


def _lm_eval(model: str, data: Path, batch_size: int, device: str) -> Callable[[], Scores]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, device=device, batch_size=batch_size)

    def score() -> Scores:
        context = wrapped.tokenizer.decode([wrapped.eot_token_id])
        requests: list[Instance] = []
        keys: list[tuple[str, str, int, int]] = []
        for relation, content in json.loads((data / "metadata_relations.json").read_text(encoding="utf-8")).items():
            for line in (data / f"{relation}.jsonl").read_text(encoding="utf-8").splitlines():
                subject = json.loads(line)["sub_label"]
                for number, template in enumerate(content["templates"]):
                    keys.append((relation, subject, number, len(content["answer_space_labels"])))
                    for answer in content["answer_space_labels"]:
                        before, after = template.split("[X]")
                        text = f"{before.replace('[Y]', answer)}{subject}{after.replace('[Y]', answer)}"
                        request = Instance("loglikelihood", {}, (context, text), len(requests))
                        requests.append(request)
        values = iter(wrapped.loglikelihood(requests, disable_tqdm=True))
        return [
            (relation, subject, number, [next(values)[0] for _ in range(count)])
            for relation, subject, number, count in keys
        ]

    return score


if __name__ == "__main__":
    main()
