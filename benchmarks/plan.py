"""The exposure plan next to Megatron-Core's own builders: opening, memory, access to samples, share of a training step.

    python -m benchmarks.plan [--output plan.json]

Everything is made in a temporary folder; the corpora are random tokens, as neither side looks at them. Each opening is
measured in a process of its own; accesses alternate between both sides, and the median ratio of the repetitions counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

VOCABULARY, EOD = 32_000, 0
FACTS, TEMPLATES, SHORTEST, LONGEST = 1_000, 8, 12, 27
RATIO = 0.1
ACCESSES, REPETITIONS, BATCH = 2_000, 7, 32
LONG = 10**8  # sequences of a run too long for its layouts to stay in memory


def main() -> None:
    """Runs all parts, or the one that a child process is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the results here, as JSON")
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "SEQUENCES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, sequences = options.child
        print(json.dumps((open_plan if side == "kis" else build_blend)(int(sequences))))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = {"opening": openings(), "access": accesses(Path(folder)), "step": step_share(Path(folder))}
    if options.output:
        options.output.write_text(json.dumps(results, indent=1), encoding="utf-8")


def openings() -> list[dict[str, Any]]:
    """Seconds and growth of peak memory until the first sample's layout is known, by run length."""
    rows = []
    print("opening, 1,000,000 facts x 4 templates (Megatron-Core: two corpora, the blend's index alone)")
    for side, lengths in (("kis", (10**6, 10**7, 10**8, 10**9)), ("megatron", (10**6, 10**7, 10**8))):
        for sequences in lengths:
            command = [sys.executable, __file__, "--child", side, str(sequences)]
            found = [
                json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout) for _ in range(3)
            ]
            row = min(found, key=lambda result: result["seconds"])
            rows.append({"side": side, "sequences": sequences, **row})
            print(
                f"  {side:<9}{sequences:>14,} sequences  {row['seconds']:.3f} s  {row['megabytes']:8.1f} MB", flush=True
            )
    return rows


def open_plan(sequences: int) -> dict[str, float]:
    """Opens a plan of a million facts and lays out a sequence in its middle."""
    from megatron_kis.data import ExposurePlan

    length = 4096
    lengths = np.random.default_rng(0).integers(12, 40, size=(10**6, 4), dtype=np.int16)
    frequency = max(1, round(RATIO * sequences * length / lengths.mean() / len(lengths)))
    before, start = _peak_memory(), time.perf_counter()
    plan = ExposurePlan(lengths, token_budget=sequences * length, sequence_length=length, infusion_frequency=frequency)
    layout = plan[sequences // 2]
    seconds = time.perf_counter() - start
    assert layout.general_tokens + sum(exposure.length for exposure in layout.exposures) == length
    return {"seconds": seconds, "megabytes": _peak_memory() - before + lengths.nbytes / 1e6}


def build_blend(samples: int) -> dict[str, float]:
    """Builds the index of a blend of two corpora, as ``BlendedDataset`` does it."""
    from megatron_kis.distributed.megatron_imports import quiet_megatron

    with quiet_megatron():
        from megatron.core.datasets import helpers
    before, start = _peak_memory(), time.perf_counter()
    datasets, places = np.zeros(samples, dtype=np.int16), np.zeros(samples, dtype=np.int64)
    helpers.build_blending_indices(datasets, places, [1 - RATIO, RATIO], 2, samples, False)
    return {"seconds": time.perf_counter() - start, "megabytes": _peak_memory() - before}


def accesses(folder: Path) -> list[dict[str, Any]]:
    """Time of a sample, by sequence length and order, on the same corpus."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    rows = []
    print("microseconds per sample: Megatron-Core's BlendedDataset over GPTDataset, InfusedDataset, in batches of 32")
    for length in (128, 2048):
        samples = 50_000
        megatron, infused = _both(folder, length, samples)
        _, long = _both(folder, length, LONG, blend=False)  # Megatron-Core's side stays the short one
        rng = np.random.default_rng(2)
        first = int(rng.integers(0, samples - ACCESSES))
        orders = {
            "random": (infused, rng.integers(0, samples, ACCESSES).tolist()),
            "in order": (infused, list(range(first, first + ACCESSES))),
            "random, long": (long, rng.integers(0, samples, ACCESSES).tolist()),
            "in order, long": (long, list(range(first, first + ACCESSES))),
        }
        for order, (ours, numbers) in orders.items():
            times: dict[str, list[float]] = {"megatron": [], "one by one": [], "batches": []}
            for _ in range(REPETITIONS):
                times["megatron"].append(_clock(megatron.__getitem__, numbers))
                times["one by one"].append(_clock(ours.__getitem__, numbers))
                times["batches"].append(
                    _clock(ours.__getitems__, [numbers[at : at + BATCH] for at in range(0, ACCESSES, BATCH)])
                )
            row = {
                "length": length,
                "order": order,
                **{side: statistics.median(values) / ACCESSES * 1e6 for side, values in times.items()},
                **{f"{side} / megatron": _ratio(times[side], times["megatron"]) for side in ("one by one", "batches")},
            }
            rows.append(row)
            print(
                f"  L={length:<5}{order:<15}{row['megatron']:8.1f}{row['one by one']:8.1f}{row['batches']:8.1f}   "
                f"ratios {row['one by one / megatron']:.2f} and {row['batches / megatron']:.2f}",
                flush=True,
            )
    dist.destroy_process_group()
    return rows


def step_share(folder: Path) -> dict[str, float]:
    """The share of a training step of the smallest preset that goes into its samples."""
    from megatron_kis.common.configuration import parse_config
    from megatron_kis.config.run import RunConfig
    from megatron_kis.distributed.device import open_device
    from megatron_kis.distributed.groups import close_groups, open_groups
    from megatron_kis.engine.engine import Engine

    length, batch, steps = 128, 8, 60
    _, infused = _both(folder, length, 100_000, blend=False)
    content = {
        "name": "step",
        "output": str(folder / "run"),
        "device": "cpu",
        "data": dict.fromkeys(("corpus", "validation", "exposures", "tokenizer"), "unused"),
        "model": {"preset": "cpu-48"},
        "training": {"token_budget": 10**6, "sequence_length": length, "global_batch_size": batch},
        "infusion": {"frequency": 0},
    }
    config = parse_config(RunConfig, content, source="benchmark")
    device = open_device("cpu")
    layout = open_groups(device)
    engine = Engine(config, vocabulary=2048, layout=layout, device=device)
    loading = computing = 0.0
    for step in range(steps):
        start = time.perf_counter()
        samples = infused.__getitems__(range(step * batch, (step + 1) * batch))
        for sample in samples:  # the benchmark's ids are those of a larger vocabulary
            sample["tokens"] %= 2048
        middle = time.perf_counter()
        engine.train_step(samples, micro_batch_size=batch, learning_rate=1e-3, accept=lambda *_: True)
        if step >= 10:
            loading += middle - start
            computing += time.perf_counter() - middle
    close_groups()
    share = loading / (loading + computing)
    print(
        f"samples take {share:.2%} of a step of cpu-48 ({1e3 * (loading + computing) / (steps - 10):.1f} ms per step)"
    )
    return {"share": share, "milliseconds": 1e3 * (loading + computing) / (steps - 10)}


def _both(folder: Path, length: int, samples: int, *, blend: bool = True) -> tuple[Any, Any]:
    """Megatron's blend of a corpus and of facts, and ours of the same."""
    from megatron_kis.data import ExposurePlan, InfusedDataset
    from megatron_kis.data.general_text import GeneralText
    from megatron_kis.data_tools.storage.indexed import IndexedReader
    from megatron_kis.distributed.megatron_imports import quiet_megatron

    rng = np.random.default_rng(0)
    lengths = rng.integers(SHORTEST, LONGEST + 1, size=(FACTS, TEMPLATES))
    corpus = _corpus(folder / "general", rng.integers(250, 750, 20_000))
    facts = _corpus(folder / "facts", lengths.ravel())
    reader = IndexedReader(facts)
    store: Any = SimpleNamespace(eod_id=EOD, tokens=lambda _group, fact, template: reader[fact * TEMPLATES + template])
    plan = ExposurePlan(lengths, token_budget=samples * length, sequence_length=length, infusion_ratio=RATIO)
    infused = InfusedDataset(plan, GeneralText(corpus, sequence_length=length, seed=0), store)
    if not blend:
        return None, infused
    with quiet_megatron():
        from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=length,
        blend=([str(corpus), str(facts)], [1 - RATIO, RATIO]),
        split="1,0,0",
        path_to_cache=str(folder / f"cache-{length}"),
        tokenizer=SimpleNamespace(vocab_size=VOCABULARY, eod=EOD, pad=-1, unique_identifiers={"eod": EOD}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    megatron, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()
    return megatron, infused


def _corpus(prefix: Path, lengths: np.ndarray) -> Path:
    """A corpus of random tokens with documents of these lengths."""
    from megatron_kis.data_tools.storage.indexed import IndexedWriter

    if prefix.with_name(prefix.name + ".idx").exists():
        return prefix
    rng = np.random.default_rng(1)
    with IndexedWriter(prefix, vocab_size=VOCABULARY) as writer:
        for length in lengths.tolist():
            writer.add([*rng.integers(1, VOCABULARY, length - 1).tolist(), EOD])
    meta = {"schema": "kis.corpus/1", "content_fingerprint": writer.content_fingerprint, "tokenizer_fingerprint": "-"}
    prefix.with_name(prefix.name + ".meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return prefix


def _clock(get: Any, asked: Any) -> float:
    start = time.perf_counter()
    for one in asked:
        get(one)
    return time.perf_counter() - start


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(mine / their for mine, their in zip(ours, theirs, strict=True))


def _peak_memory() -> float:
    """Megabytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


if __name__ == "__main__":
    main()
