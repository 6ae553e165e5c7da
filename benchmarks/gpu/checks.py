"""Checks that a run on the GPU is right, with each implementation of the layers in each precision.

The chains of the variants run at the same time: their models are small, and most of their time is start-up.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.commands import Command, Failed, Skipped, kis, run
from benchmarks.gpu.runs import (
    Losses,
    compare_losses,
    compare_scores,
    last_outcomes,
    log_rows,
    losses,
    scores,
    train,
    train_command,
    write_run,
)

PART = "checks"
VARIANTS = (("auto", "bf16"), ("sdpa", "bf16"), ("transformer_engine", "fp8"), ("sdpa", "fp32"))
"""Layers and precision, each with all checks; ``auto`` is Transformer Engine's layers where they can be imported."""

LOSS = {"fp32": 1e-3, "bf16": 2e-2, "fp8": 1e-1}
"""Nats per token by which losses of one run may differ that was cut off, or trained by two or more ranks."""

SCORE = {"fp32": 1e-2, "bf16": 0.3, "fp8": 0.3}
"""Nats by which the log-likelihood of a statement may differ between devices, layers or layouts; FP8 is of training
steps alone."""

LOGIT = {"fp32": 1e-2, "bf16": 0.2, "fp8": 0.2}
"""By which a logit may differ between the run's model and the exported one in fp32 on the CPU."""

LAYOUTS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("DP2", 2, {}),
    ("TP2", 2, {"tensor": 2}),
    ("TP2 SP", 2, {"tensor": 2, "sequence": True}),
    ("PP2", 2, {"pipeline": 2}),
    ("CP2", 2, {"context": 2}),
    ("TP2 PP2", 4, {"tensor": 2, "pipeline": 2}),
    ("TP2 SP DP2", 4, {"tensor": 2, "sequence": True}),
)
"""Name, ranks and section ``parallel``."""


class Chain:
    """The checks of one variant, which share a run."""

    def __init__(self, bench: Bench, implementation: str, precision: str, data: Path) -> None:
        """Prepares."""
        self._bench, self._data, self._precision = bench, data, precision
        self.name = f"{implementation} {precision}"
        self._stem = f"{implementation}-{precision}"
        self._sections: dict[str, Any] = {
            "model": {"transformer_impl": implementation},
            "training": {"precision": precision},
        }
        self.run: Path | None = None

    def all(self) -> None:
        """The run, and if it is there what depends on it."""
        if not self.attempt("train", self._train, needed=True):
            return
        for name, work in (
            ("resume", self._resume),
            ("kis probe", lambda: self._probe(self._bench.device)),
            ("kis probe on the CPU", lambda: self._probe("cpu")),
            ("export", self._export),
            ("probe with other layers", self._other_layers),
        ):
            self.attempt(name, work)

    def attempt(self, name: str, work: Callable[[], dict[str, Any]], *, needed: bool = False) -> bool:
        """One check."""
        return self._bench.rows.attempt(PART, f"{self.name}: {name}", work, needed=needed)

    def write(self, name: str, **sections: dict[str, Any]) -> Path:
        """The configuration of a run of this variant."""
        both = {key: {**self._sections.get(key, {}), **sections.get(key, {})} for key in {*self._sections, *sections}}
        return write_run(self._bench, f"{self._stem}-{name}", self._data, steps=self._bench.options.steps, **both)

    def _train(self) -> dict[str, Any]:
        folder = train(self._bench, self.write("whole"))
        found = losses(folder)
        first, last = found[min(found)], found[max(found)]
        if not last < first:
            raise Failed(f"the loss does not fall: {first:.3f} to {last:.3f}")
        self.run = folder
        end = log_rows(folder, "train")[-1]
        validation = log_rows(folder, "validation")[-1]["loss"]
        return {
            "loss": [round(first, 4), round(last, 4)],
            "validation_loss": validation,
            "tokens_per_second": end["tokens_per_second"],
            "memory_bytes": end["memory_bytes"],
        }

    def _resume(self) -> dict[str, Any]:
        """Asked to stop at a third of the run, killed at two thirds, and brought to its end by the same command."""
        assert self.run is not None
        path, bench, cuts = self.write("cut"), self._bench, []
        steps = bench.options.steps
        for number, step, wanted in ((signal.SIGTERM, steps // 3, 75), (signal.SIGKILL, 2 * steps // 3, -9)):
            folder = path.with_suffix("")
            with Command(train_command(path), log=bench.log(path.stem), limit=bench.limit) as command:
                if command.wait_until(lambda at=step, run=folder: max(losses_so_far(run), default=0) >= at):  # type: ignore[misc]
                    command.send(number)
                status = command.wait()
                if status == 0:
                    break
                if status != wanted:
                    raise Failed(f"after {number.name}: {command.reason()}")
            cuts.append(f"{number.name} at {max(losses_so_far(folder))}")
        if not cuts:
            raise Failed("it ended before it could be cut off; give it more --steps")
        found = losses(train(bench, path))
        tolerance = 0.0 if bench.on_host else LOSS[self._precision]
        return {"cuts": cuts, **compare_losses(found, losses(self.run), tolerance)}

    def _probe(self, device: str) -> dict[str, Any]:
        """The run's last checkpoint, loaded in a new process, next to the run's own last probe."""
        assert self.run is not None
        outcomes = self._bench.work / f"{self._stem}-{device}.npz"
        run(
            kis("probe", self.run, "--device", device, "--json", "--outcomes", outcomes),
            log=self._bench.log(f"{self._stem}-probe-{device}"),
            limit=self._bench.limit,
        )
        same = device == self._bench.device == "cpu"
        return compare_scores(scores(outcomes), scores(last_outcomes(self.run)), 0 if same else SCORE[self._precision])

    def _export(self) -> dict[str, Any]:
        """Logits and validation loss of the exported model in ``transformers``, in fp32 on the CPU."""
        assert self.run is not None
        folder = self._bench.work / f"{self._stem}-hf"
        run(
            kis("export", "hf", self.run, "--output", folder),
            log=self._bench.log(f"{self._stem}-export"),
            limit=self._bench.limit,
        )
        found = self._bench.measure(
            f"{self._stem}-exported", "exported", run=self.run, model=folder, device=self._bench.device
        )
        for key, tolerance in (("logits", LOGIT[self._precision]), ("validation_loss", LOSS[self._precision])):
            if not found[key]["difference"] <= tolerance:
                raise Failed(f"{key} differ by {found[key]['difference']:.3g} > {tolerance:g}")
        return found

    def _other_layers(self) -> dict[str, Any]:
        """Log-likelihoods of the same checkpoint with two implementations of the layers."""
        assert self.run is not None
        others = ["sdpa", "local" if te_problem(self._bench) else "transformer_engine"]
        found = self._bench.measure(
            f"{self._stem}-layers", "implementations", run=self.run, device=self._bench.device, names=others
        )
        if not found["largest_difference"] <= SCORE[self._precision]:
            raise Failed(f"log-likelihoods of {' and '.join(others)} differ by {found['largest_difference']:.3g} nats")
        return found


def losses_so_far(folder: Path) -> Losses:
    """Losses of a run that may have just been started or cut off."""
    try:
        return {row["step"]: row["loss"] for row in log_rows(folder, "train")}
    except (OSError, json.JSONDecodeError):  # while the log is being replaced
        return {}


def te_problem(bench: Bench) -> str | None:
    """Why Transformer Engine's layers cannot be used; None where they can."""
    if bench.on_host:
        return "Transformer Engine needs CUDA"
    problem = bench.machine["no_transformer_engine"]
    return None if problem is None else f"Transformer Engine: {problem}"


def why_not(bench: Bench, implementation: str, precision: str) -> str | None:
    """Why a variant cannot be trained here; None where it can."""
    if bench.on_host and precision != "fp32":
        return f"{precision} is not trained on a CPU"
    return te_problem(bench) if implementation == "transformer_engine" else None


def checks(bench: Bench) -> None:
    """All variants at the same time, then what needs the machine to itself."""
    data = bench.data("small")
    chains = []
    for implementation, precision in VARIANTS:
        reason = why_not(bench, implementation, precision)
        if reason is None:
            chains.append(Chain(bench, implementation, precision, data))
        else:
            bench.rows.add(PART, f"{implementation} {precision}", "skipped", message=reason)
    first = chains[0]
    with ThreadPoolExecutor(bench.options.jobs) as pool:
        every: list[Future[Any]] = [pool.submit(chain.all) for chain in chains]
        every.append(pool.submit(bench.rows.attempt, PART, "sdpa fp8: refused", lambda: _refused(bench, data)))
        every.append(pool.submit(first.attempt, "twice with training.deterministic", lambda: _twice(bench, first)))
        for future in every:
            future.result()
    for name, ranks, parallel in LAYOUTS:
        first.attempt(
            f"{name} beside one rank",
            lambda n=name, r=ranks, p=parallel: _layout(bench, first, n, r, p),  # type: ignore[misc]
        )


def _refused(bench: Bench, data: Path) -> dict[str, Any]:
    """FP8 without Transformer Engine's layers: one message, before anything is computed."""
    sections = {"model": {"transformer_impl": "sdpa"}, "training": {"precision": "fp8"}}
    path = write_run(bench, "refused", data, steps=2, **sections)
    with Command(train_command(path), log=bench.log("refused"), limit=bench.limit) as command:
        status = command.wait()
        if status != 2:
            raise Failed(f"status {status} where 2 should be: {command.reason()}")
        return {"message": command.reason()}


def _twice(bench: Bench, chain: Chain) -> dict[str, Any]:
    """Two runs with ``training.deterministic`` have the same bits."""
    one, two = (train(bench, chain.write(name, training={"deterministic": True})) for name in ("one", "two"))
    first, second = (scores(last_outcomes(folder)) for folder in (one, two))
    return {**compare_losses(losses(one), losses(two), 0.0), "probe": compare_scores(first, second, 0.0)}


def _layout(bench: Bench, chain: Chain, name: str, ranks: int, parallel: dict[str, Any]) -> dict[str, Any]:
    """A run under a layout next to the run of one rank, and its checkpoint probed by one rank.

    PyTorch compares the ranks' collective calls (TORCH_DISTRIBUTED_DEBUG), and a step that hangs ends the run.
    """
    there = bench.options.devices or bench.machine["devices"]
    if there < ranks:
        raise Skipped(f"needs {ranks} GPUs, there are {there}")
    if chain.run is None:
        raise Skipped("the run of one rank failed")
    stem = name.replace(" ", "-")
    path = chain.write(stem, parallel=parallel, training={"guard": {"hang_minutes": 2.0}})
    folder = train(bench, path, ranks, {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"})
    precision = chain.name.split()[-1]
    found = compare_losses(losses(folder), losses(chain.run), LOSS[precision])
    outcomes = bench.work / f"{stem}.npz"
    run(
        kis("probe", folder, "--device", bench.device, "--json", "--outcomes", outcomes),
        log=bench.log(f"{stem}-probe"),
        limit=bench.limit,
    )
    probe = compare_scores(scores(outcomes), scores(last_outcomes(folder)), SCORE[precision])
    return {**found, "probe_by_one_rank": probe["largest_difference"]}
