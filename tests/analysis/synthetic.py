"""Run folders from a known truth, for tests only: curve shapes, onset, collapse, loss, seed noise, template spread."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megatron_kis.analysis.runs.curves import CURVE_COLUMNS, Curve

RELATIONS = ("airport_region", "iata_city", "country_capital")
TEMPLATES = {"train": 8, "held_out": 3, "question": 2}


@dataclass(frozen=True)
class Truth:
    """A world in which everything is known; F in exposures a fact, K facts of a fixed cost in tokens."""

    tokens: int = 2_000_000
    facts: int = 120
    fact_tokens: float = 12.0
    chance: float = 0.25
    onset_at: float = 60.0
    onset_slope: float = -0.25  # of log onset over log N
    collapse_at: float | None = 700.0
    collapse_slope: float = 0.35
    reference_params: int = 200_000
    sharpness: float = 4.0
    seed_noise: float = 0.10  # standard deviation on the logit scale

    def ratio(self, frequency: float) -> float:
        return self.facts * frequency * self.fact_tokens / self.tokens

    def onset(self, params: int) -> float:
        return self.onset_at * (params / self.reference_params) ** self.onset_slope

    def collapse(self, params: int) -> float:
        assert self.collapse_at is not None
        return self.collapse_at * (params / self.reference_params) ** self.collapse_slope

    def rate(self, group: str, split: str, params: int, frequency: float) -> float:
        """Share answered right before noise."""
        ceiling = {"train": 0.97, "held_out": 0.8, "question": 0.6}[split]
        if group == "control":
            return self.chance
        if group == "infused":
            known = 0.0
            if frequency > 0:
                known = 1 / (1 + np.exp(-self.sharpness * np.log(frequency / self.onset(params) / 1.4)))
        else:
            known = 0.75 + 0.15 * min(self.ratio(frequency) / 0.3, 1)
            if self.collapse_at is not None and frequency > 0:
                # sharp: within 10% of the maximum up to the collapse point, near chance at 1.6 times it
                known *= 1 / (1 + np.exp(8 * np.log(frequency / self.collapse(params) / 1.3)))
        return self.chance + (ceiling - self.chance) * known

    def loss(self, params: int, frequency: float) -> float:
        base = 4.5 * (params / self.reference_params) ** -0.05
        return base * (1 + 0.01 * self.ratio(frequency) + 0.45 * max(self.ratio(frequency) - 0.3, 0) ** 2)


def write_study(
    folder: Path,
    truth: Truth,
    *,
    params: tuple[int, ...] = (100_000, 200_000, 400_000, 800_000),
    frequencies: tuple[int, ...] = (0, 16, 64, 128, 256, 512, 800, 1100, 1300),
    seeds: tuple[int, ...] = (0,),
    seed: int = 0,
) -> Path:
    """Writes ``folder/runs/<run>`` for the whole grid, and returns ``folder``."""
    for n in params:
        for frequency in frequencies:
            for s in seeds:
                write_run(folder / "runs" / f"n{n}-f{frequency}-s{s}", truth, n, frequency, s, noise=seed)
    return folder


def config_of(path: Path, truth: Truth, params: int, frequency: float, seed: int) -> dict[str, Any]:
    """The whole configuration of a run, as run.json has it; of the size it has the width."""
    from megatron_kis.config.run import RunConfig

    data = {name: path.parent / name for name in ("corpus", "validation", "exposures", "tokenizer")}
    training = {"token_budget": truth.tokens, "sequence_length": 64, "global_batch_size": 8, "seed": seed}
    run = RunConfig.model_validate(
        {
            "name": path.name,
            "study": "synthetic",
            "output": path,
            "data": data,
            "model": {"layers": 2, "width": 16 * (params // 10_000), "heads": 2},
            "training": training,
            "infusion": {"frequency": frequency},
        }
    )
    return run.model_dump(mode="json")


def write_run(
    path: Path,
    truth: Truth,
    params: int,
    frequency: int,
    seed: int,
    *,
    noise: int = 0,
    done: bool = True,
    closed: bool = False,
    fingerprints: dict[str, str] | None = None,
    **record: Any,
) -> Path:
    """Writes a run's folder.

    Args:
        path: the folder.
        truth: the world.
        params: N.
        frequency: F.
        seed: of the run.
        noise: seed of the noise.
        done: whether the run is complete.
        closed: whether DONE has the hashes of the files.
        fingerprints: those that differ from the usual ones.
        record: what run.json has besides, or instead.
    """
    path.mkdir(parents=True, exist_ok=True)
    run = {
        "schema": "kis.run/1",
        "run": path.name,
        "study": "synthetic",
        "params": params,
        "nonembedding_params": params // 2,
        "tokens": truth.tokens,
        "infusion_frequency": frequency,
        "infusion_ratio": truth.ratio(frequency),
        "seed": seed,
        "model": {"name": f"size-{params // 1000}k", "layers": 2, "width": 48},
        "background_policy": "displaced",
        "config": {},
        "fingerprints": {
            "corpus": "c0" * 32,
            "exposures": "e1" * 32,
            "questions": "a2" * 32,
            "code": "d3" * 32,
            **(fingerprints or {}),
        },
        "versions": {"megatron_kis": "0.1.0", "torch": "2.13.0", "megatron-core": "0.16.1"},
        "host": {"name": "synthetic-host", "device": "cpu"},
        **record,
    }
    (path / "run.json").write_text(json.dumps(run))
    for name, text in logs(truth, params, frequency, seed, noise).items():
        (path / name).write_text(text)
    ledger = {
        "schema": "kis.ledger/1",
        "plan": {},
        "expected": {"infused": frequency},
        "received": {"infused": {f"f{i}": frequency for i in range(truth.facts)}},
    }
    (path / "exposures.json").write_text(json.dumps(ledger))
    if done:
        names = ("run.json", "metrics.jsonl", "probes.jsonl", "exposures.json") if closed else ()
        files = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
        (path / "DONE").write_text(json.dumps({"schema": "kis.done/1"} | ({"files": files} if files else {})))
    return path


@lru_cache(maxsize=64)
def logs(truth: Truth, params: int, frequency: int, seed: int, noise: int) -> dict[str, str]:
    """What a run writes while it trains, by name of the file; shared, for many tests write the same runs."""
    generator = np.random.default_rng([noise, params, frequency, seed])
    steps = (250, 500)
    metrics, probes = [], []
    for step in steps:
        tokens = truth.tokens * step // steps[-1]
        train = {"kind": "train", "step": step, "tokens": tokens, "loss": 4.0, "lr": 1e-3, "grad_norm": 1.0}
        metrics.append(train | {"tokens_per_second": 5e4, "infusion_ratio": truth.ratio(frequency)})
        loss = truth.loss(params, frequency) * (1.2 if step != steps[-1] else 1.0) * (1 + 0.003 * generator.normal())
        metrics.append({"kind": "validation", "step": step, "tokens": tokens, "loss": round(loss, 4)})
        for group in ("infused", "background", "control"):
            shift = 0.0 if group == "control" else truth.seed_noise * generator.normal()
            ability = generator.normal(size=truth.facts)
            for split, templates in TEMPLATES.items():
                probes.append(
                    _probe(truth, generator, group, split, templates, params, frequency, shift, ability, step, tokens)
                )
    return {
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in metrics),
        "probes.jsonl": "".join(json.dumps(row) + "\n" for row in probes),
    }


def _probe(truth, generator, group, split, templates, params, frequency, shift, ability, step, tokens):
    known = truth.rate(group, split, params, frequency)
    rows = []
    for relation in RELATIONS:
        mine = np.arange(truth.facts) % len(RELATIONS) == RELATIONS.index(relation)
        for template in range(templates):
            offset = 0.0 if group == "control" else 0.5 * np.sin(3.0 * template + RELATIONS.index(relation))
            centre = np.log(known / (1 - known)) + shift + (offset if split != "train" else 0.2 * offset)
            spread = 0.0 if group == "control" else 0.6
            p = 1 / (1 + np.exp(-(centre + spread * ability[mine])))
            right = int((generator.random(mine.sum()) < p).sum())
            rows.append({"relation": relation, "template": template, "n": int(mine.sum()), "correct": right})
    return {
        "step": step,
        "tokens": tokens,
        "group": group,
        "split": split,
        "scoring": "statement",
        "n": sum(row["n"] for row in rows),
        "facts": truth.facts,
        "correct": sum(row["correct"] for row in rows),
        "chance": truth.chance,
        "margin": round(float(known - truth.chance) * 4, 3),
        "templates": rows,
        "seconds": 0.1,
    }


def curve(frequencies, counts, *, n: int = 100, group: str = "background", chance: float = 0.25) -> Curve:
    """A curve of one seed and one question a fact, made directly: simulations need thousands."""
    frequency, rate = np.array(frequencies, dtype=float), np.array(counts) / n
    unknown = np.full(len(rate), np.nan)
    return Curve(
        params=100_000,
        tokens=1_000_000,
        nonembedding_params=None,
        group=group,
        split="held_out",
        scoring="statement",
        dose=frequency,
        rate=rate,
        seed_rates=tuple(rate[:, None]),
        seed_facts=tuple(np.full((len(rate), 1), float(n))),
        chance=np.full(len(rate), chance),
        ratio=unknown,
        loss=unknown,
        seed_losses=({},) * len(rate),
    )


def curve_rows(
    rates: dict[float, list[int]],
    *,
    n: int = 100,
    group: str = "background",
    params: int = 100_000,
    tokens: int = 1_000_000,
    chance: float | None = 0.25,
    losses: dict[float, float] | None = None,
) -> pd.DataFrame:
    """A curve table from counts: frequency -> correct answers of each seed, one question a fact."""
    rows = [
        {
            "params": params,
            "tokens": tokens,
            "frequency": float(frequency),
            "seed": seed,
            "n": n,
            "correct": correct,
            "facts": n,
            "chance": chance,
            "group": group,
            "split": "held_out",
            "scoring": "statement",
            "nonembedding_params": None,
            "validation_loss": (losses or {}).get(frequency),
            "infusion_ratio": frequency * 1e-3 / 2,
        }
        for frequency, counts in rates.items()
        for seed, correct in enumerate(counts)
    ]
    table = pd.DataFrame(rows, columns=CURVE_COLUMNS)
    return table.astype({"validation_loss": float, "chance": float})
