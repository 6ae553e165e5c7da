"""LM-Pub-Quiz on an exported model, in an environment of its own; started by ``benchmarks.probes``.

Arguments: model folder, data set folder, batch size, output file. Prints nothing; writes seconds and scores as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from lm_pub_quiz import Dataset, Evaluator
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Scores all facts of the data set with all of its templates."""
    model, data, batch_size, output = sys.argv[1:]
    torch.set_num_threads(1)
    evaluator = Evaluator.from_model(
        AutoModelForCausalLM.from_pretrained(model), tokenizer=AutoTokenizer.from_pretrained(model), model_type="CLM"
    )
    dataset = Dataset.from_path(data)
    found, started, spent = [], time.perf_counter(), time.process_time()
    result = evaluator.evaluate_dataset(dataset, batch_size=int(batch_size), reduction="sum")
    seconds, processor = time.perf_counter() - started, time.process_time() - spent
    for relation in result:
        found += [
            [relation.relation_code, row["sub_label"], row["template_index"], list(row["pll_scores"])]
            for row in relation.instance_table.to_dict("records")
        ]
    Path(output).write_text(json.dumps({"seconds": seconds, "processor": processor, "scores": found}))


if __name__ == "__main__":
    main()
