"""The times that ``kis plan`` predicts, next to published ones (``published.yaml``).

    python -m benchmarks.step_times [--output step_times.json]

Prints for each run the published and the predicted seconds of a step, their ratio, and what the prediction says takes
longest besides computing. The formulas and their few constants are the planner's; what other software does otherwise
(scores of attention written to memory, whole passes computed again, FP8) is allowed for here.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from megatron_kis.config.ladder import ModelShape
from megatron_kis.planning.hardware import GPUS, Gpu
from megatron_kis.planning.split import Split
from megatron_kis.planning.times import Program, Seconds, step_time

PUBLISHED = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Compared:
    """A published run and its prediction."""

    source: str
    name: str
    layout: str
    seconds: float
    """Published, of a step."""

    predicted: Seconds

    @property
    def ratio(self) -> float:
        """Predicted over published."""
        return self.predicted.total / self.seconds


def main() -> None:
    """Prints the table, and a line for each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the results here, as JSON")
    options = parser.parse_args()
    found = compare()
    print("| source | run | layout | published, s | predicted, s | ratio | limit |\n|---|---|---|---|---|---|---|")
    for run in found:
        source = run.source.split(",")[0]
        print(
            f"| {source} | {run.name} | {run.layout} | {run.seconds:.3g} | {run.predicted.total:.3g} "
            f"| {run.ratio:.2f} | {run.predicted.limit} |"
        )
    print()
    for source in dict.fromkeys(run.source for run in found):
        ratios = sorted(run.ratio for run in found if run.source == source)
        near = sum(abs(ratio - 1) <= 0.2 for ratio in ratios)
        print(
            f"{source}: {near} of {len(ratios)} within 20%, ratios {ratios[0]:.2f} to {ratios[-1]:.2f}, "
            f"median {statistics.median(ratios):.2f}"
        )
    if options.output:
        rows = [
            {
                "source": run.source,
                "name": run.name,
                "layout": run.layout,
                "seconds": run.seconds,
                "ratio": run.ratio,
                "predicted": run.predicted.as_dict(),
            }
            for run in found
        ]
        options.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def compare() -> list[Compared]:
    """All published runs."""
    sources = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return [_compare(source, {**source.get("all", {}), **run}) for source in sources for run in source["runs"]]


def _compare(source: dict[str, Any], run: dict[str, Any]) -> Compared:
    width, heads = run["width"], run["heads"]
    shape = ModelShape(
        layers=run["layers"],
        width=width,
        heads=heads,
        query_groups=run.get("groups", heads),
        ffn_width=run.get("ffn", round(8 * width / 3)),
    )
    context = run.get("context", 1)
    data = run["gpus"] // (run["tensor"] * run["pipeline"] * context)
    recompute = run.get("recompute", "none")
    split = Split(
        tensor=run["tensor"],
        pipeline=run["pipeline"],
        virtual=run.get("virtual", 1),
        data=data,
        context=context,
        sequence=run.get("sequence", False),
        distributed_optimizer=data * context > 1,
    )
    gpu = replace(GPUS[source["gpu"]], **source.get("hardware", {}))
    attention = run.get("attention", "fused")
    if attention != "fused":
        gpu = _with_scores_written(gpu, length=run["length"], shape=shape, twice=attention.endswith("again"))
    length, batch, micro = run["length"], run["batch"], run["micro"]

    def predicted(again: bool) -> Seconds:
        return step_time(
            shape,
            run["vocabulary"],
            replace(split, recompute="full" if again else "none"),
            length=length,
            micro_batch=micro,
            micro_batches=batch // data // micro,
            gpu=gpu,
            program=Program(**source["program"]),
        )

    share = {"none": 0.0, "full": 1.0}.get(recompute, recompute)
    without, with_all = (
        predicted(again=False).scaled(1 - share).as_dict(),
        predicted(again=True).scaled(share).as_dict(),
    )
    mixed = {name: without[name] + with_all[name] for name in without if name != "total"}
    return Compared(source["source"], run["name"], split.label, _seconds(run), Seconds(**mixed))


def _seconds(run: dict[str, Any]) -> float:
    """Published seconds of a step, from whatever was published."""
    length, batch, gpus = run["length"], run["batch"], run["gpus"]
    if "seconds" in run:
        return float(run["seconds"])
    if "tokens" in run:
        return float(batch * length / (run["tokens"] * gpus))
    layers, width, rows = run["layers"], run["width"], run["vocabulary"]
    passes, head = (96, 16) if run["counted"] == "hardware" else (72, 12)
    layer = passes * batch * length * layers * width**2
    flops = layer * (1 + length / (6 * width) + rows / (head * layers * width))
    return float(flops / (gpus * run["teraflops"] * 1e12))


def _with_scores_written(gpu: Gpu, *, length: int, shape: ModelShape, twice: bool) -> Gpu:
    """A GPU whose attention writes every score to memory and computes those that the mask hides, too.

    Half precision, forward: the scores, the softmax, the drop-out with its mask, the product with the values: 11 bytes
    a score; backward 19. Batched products reach 0.8 of what large ones do. ``twice``: the forward part is computed
    again in the backward pass.
    """
    passes = 2 if twice else 1
    scores = shape.heads * length  # of a token and layer
    traffic = scores * (11 * passes + 19) / (gpu.bandwidth * 0.8)
    products = 4 * length * shape.width * (passes + 2) / (gpu.peak_bf16 * gpu.products * 0.8)
    counted = 6 * length * shape.width  # of the planner: two passes backward, half of the scores
    return replace(gpu, attention=counted / (gpu.peak_bf16 * (traffic + products)))


if __name__ == "__main__":
    main()
