"""``kis plan``: layouts that fit, memory, time and GPU-hours of a model or a study, before anything is started."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kis.cli.parser import refuse_options
from megatron_kis.common.errors import InputError, placed
from megatron_kis.common.units import plural, quantity, whole_quantity
from megatron_kis.config.ladder import PRESETS

if TYPE_CHECKING:
    from megatron_kis.config.run import ParallelConfig, RunConfig
    from megatron_kis.config.study import StudyConfig
    from megatron_kis.planning.hardware import Gpu
    from megatron_kis.planning.layouts import Job, PlannedLayout
    from megatron_kis.planning.split import Split

_OF_MODELS = {"length": 2048, "batch": 512}
"""Defaults of options for a preset or a shape; a file has its own values."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "plan",
        help="show the layouts that fit, memory, time and GPU-hours; trains nothing",
        description="Show the layouts in which a model, a run or a study fits on GPUs. Memory and time are computed; "
        "a share of the peak (MFU) that you measured can be given with --mfu.",
        epilog="TP, PP, DP: tensor, pipeline and data parallel ranks; SP: parallel.sequence. Model presets: "
        + ", ".join(PRESETS),
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a preset, a shape (layers=32,width=4096,heads=32,...), RUN.yaml or STUDY.yaml"
    )
    parser.add_argument("--tokens", type=quantity, metavar="D", help="tokens of the run (for a preset or a shape)")
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs of a run (default: 1; for a file, the ranks of its layout)"
    )
    parser.add_argument("--gpu", default="h100", metavar="KIND", help="h100, h200, a100, b200, ...")
    parser.add_argument("--mfu", type=float, metavar="SHARE", help="the share of the peak that you measured, 0 to 1")
    parser.add_argument(
        "--nvlink",
        type=float,
        metavar="GB/s",
        help="speed between GPUs of a node, for each GPU in one direction (default: by --gpu; 450 for h100)",
    )
    parser.add_argument(
        "--network",
        type=float,
        metavar="GB/s",
        help="speed between nodes, for each GPU in one direction (default: by --gpu; 50 for h100)",
    )
    parser.add_argument("--vocabulary", type=int, metavar="V", help="pieces (default: 32000, or those of the study)")
    own = "for a preset or a shape; default: "
    length = f"tokens per sequence ({own}{_OF_MODELS['length']})"
    parser.add_argument("--length", type=whole_quantity, metavar="L", help=length)
    parser.add_argument("--batch", type=int, metavar="B", help=f"sequences per step ({own}{_OF_MODELS['batch']})")
    parser.add_argument("--show", type=int, default=5, metavar="K", help="layouts to show")
    parser.add_argument(
        "--interleave",
        action="store_true",
        help="also try stages of several chunks of layers (parallel.virtual)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(handler=_plan)


def _plan(options: argparse.Namespace) -> int:
    from megatron_kis.planning import hardware
    from megatron_kis.planning.table import gpu_time

    for name in ("gpus", "show", "length", "batch", "vocabulary", "tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"is {value}", where=f"--{name}", remedy="must be at least 1")
    if options.mfu is not None and not 0 < options.mfu <= 1:
        raise InputError(f"is {options.mfu}", where="--mfu", remedy="a share between 0 and 1, such as 0.4")
    kind = _linked(hardware.gpu(options.gpu), options)
    sizes: list[dict[str, Any]] = []
    hours = flops = 0.0
    for job in _jobs(options):
        params = job.job.shape.params(job.job.vocabulary)
        found, note = _layouts(job, options, kind)
        hours += job.runs * found[0].gpu_hours
        flops += job.runs * job.job.tokens * job.job.shape.flops_per_token(job.job.vocabulary, job.job.length)
        sizes.append(
            {
                "model": job.label,
                "params": params,
                "precision": job.job.precision,
                "tokens": job.job.tokens,
                "runs": job.runs,
                "gpus": found[0].split.gpus,
                "mfu": found[0].mfu,
                "mfu_source": "computed" if options.mfu is None else "given with --mfu",
                "gpu_hours": job.runs * found[0].gpu_hours,
                "as_written": job.split is not None and not note,
                "layouts": [option.as_dict() for option in found[: options.show]],
            }
        )
        if not options.json:
            _print(sizes[-1], found[: options.show], note)
    runs = sum(row["runs"] for row in sizes)
    result = {"gpu": kind.name, "gpu_hours": hours, "flops": flops, "runs": runs, "models": sizes}
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"all: {plural(runs, 'run')}, {flops:.3g} FLOPs, {gpu_time(hours)} on {kind.name}")
    return 0


def _linked(kind: Gpu, options: argparse.Namespace) -> Gpu:
    """Returns a kind of GPU with the links that are given."""
    given = {name: getattr(options, name) for name in ("nvlink", "network") if getattr(options, name) is not None}
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise InputError(
                f"is {value:g}", where=f"--{name}", remedy="GB/s of one GPU in one direction, such as 50 for 400 Gb/s"
            )
    return replace(kind, **{name: value * 1e9 for name, value in given.items()})


def _layouts(planned: Planned, options: argparse.Namespace, kind: Gpu) -> tuple[list[PlannedLayout], str]:
    """Returns the layout in a file, if it fits; else layouts that fit, and a note."""
    from megatron_kis.planning import layouts

    note = ""
    if planned.split is not None and options.gpus is None:
        option, fits = layouts.configured_layout(
            planned.job, planned.split, micro_batch=planned.micro_batch, kind=kind, mfu=options.mfu
        )
        if fits:
            return [option], ""
        note = (
            f"as written ({planned.split.label}, micro-batches of {option.micro_batch}) it needs "
            f"{option.memory.total / 1e9:.1f} GB; these fit:"
        )
    gpus = options.gpus or (planned.split.gpus if planned.split else 1)
    found = layouts.find_layouts(planned.job, gpus=gpus, kind=kind, mfu=options.mfu, interleave=options.interleave)
    return found, note


def _print(row: dict[str, Any], found: list[PlannedLayout], note: str) -> None:
    from megatron_kis.planning.table import table

    print(
        f"{row['model']}: {row['params']:,} parameters, {row['tokens']:,.0f} tokens, "
        f"{plural(row['runs'], 'run')} on {plural(row['gpus'], 'GPU')}"
    )
    if note:
        print(f"  {note}")
    print(f"  MFU {row['mfu']:.0%}{_OF_THE_PEAK.get(row['precision'], '')} ({row['mfu_source']})")
    print(*table(found), sep="\n")


_OF_THE_PEAK = {"fp32": " of the FP32 peak", "fp8": " of the BF16 peak, whose time is shown for FP8 too"}


@dataclass(frozen=True)
class Planned:
    """Runs to plan, which differ only in dose and seed."""

    label: str
    """Name of the model or the run."""

    job: Job
    """Training to plan."""

    runs: int = 1
    """Number of such runs."""

    split: Split | None = None
    """Layout that a file gives them."""

    micro_batch: int | None = None
    """Sequences per forward pass, as the file says; None: a replica's whole share."""


def _jobs(options: argparse.Namespace) -> list[Planned]:
    """Returns the runs to be planned."""
    path = Path(options.model)
    if path.suffix in (".yaml", ".yml"):
        refuse_options(options, ("tokens", *_OF_MODELS), other="a file, which has its own")
        return _jobs_of_file(path, options)
    from megatron_kis.common.configuration import parse_config
    from megatron_kis.config.run import ModelConfig

    content: dict[str, Any] = {"preset": options.model}
    if "=" in options.model:
        parts = [part.partition("=") for part in options.model.split(",")]
        content = {key: value for key, _, value in parts}
        if not all(sign for _, sign, _ in parts) or len(content) < len(parts):
            raise InputError(
                f"{options.model!r} is not a list of keys and values",
                where="MODEL",
                remedy="each once, such as layers=32,width=4096,heads=32",
            )
    model = parse_config(ModelConfig, content, source="MODEL")
    if options.tokens is None:
        raise InputError("is missing", where="--tokens", remedy="say how many tokens the run has, such as 20e9")
    length, batch = (getattr(options, name) or usual for name, usual in _OF_MODELS.items())
    return [Planned(model.label, _job(model, options, options.tokens, length, batch, None))]


def _jobs_of_file(path: Path, options: argparse.Namespace) -> list[Planned]:
    from megatron_kis.common.configuration import load_config, parse_config
    from megatron_kis.common.files import read_text
    from megatron_kis.config.layout import check_layout
    from megatron_kis.config.run import RunConfig, TrainingConfig
    from megatron_kis.config.study import StudyConfig
    from megatron_kis.study.specs import expand_grid

    if not any(line.startswith("ladder:") for line in read_text(path).splitlines()):
        run = load_config(RunConfig, path)
        training = run.training
        length, batch = training.sequence_length, training.global_batch_size
        job = _job(run.model, options, training.token_budget, length, batch, None, run)
        if options.gpus is None:
            check_layout(run.model, run.parallel, training, vocabulary=options.vocabulary)
        return [Planned(run.name, job, 1, _split(run.parallel), training.micro_batch_size)]
    study = load_config(StudyConfig, path)
    pieces = study.data.vocab_size if "vocab_size" in study.data.model_fields_set else None
    shared = study.training
    length, batch = shared.sequence_length, shared.global_batch_size
    # A size may be in the ladder several times, with other budgets, layouts or doses.
    alike = dict.fromkeys(("facts", "frequencies", "infusion_ratios"))
    kinds = Counter(
        (spot.entry.model_copy(update=alike), spot.tokens, spot.own_tokens(study.trunk)) for spot in expand_grid(study)
    )
    for rung, budget, _ in kinds if options.gpus is None else ():
        own = {"token_budget": budget, "micro_batch_size": rung.micro_batch_size or shared.micro_batch_size}
        training = parse_config(TrainingConfig, {**shared.model_dump(), **own}, source=f"{path}: {rung.label}")
        with placed(rung.label):
            check_layout(rung, rung.parallel, training, vocabulary=options.vocabulary or pieces)
    return [
        Planned(
            rung.label,
            _job(rung, options, own_tokens, length, batch, pieces, study),
            count,
            _split(rung.parallel),
            rung.micro_batch_size or shared.micro_batch_size,
        )
        for (rung, _, own_tokens), count in kinds.items()
    ]


def _split(parallel: ParallelConfig) -> Split:
    """Returns a layout as the planner knows it."""
    from megatron_kis.planning.split import Split

    return Split(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        virtual=parallel.virtual,
        data=parallel.replicas,
        context=parallel.context,
        recompute=parallel.recompute,
        sequence=parallel.sequence,
        distributed_optimizer=parallel.replicas * parallel.context > 1,
    )


def _job(
    model: Any,
    options: argparse.Namespace,
    tokens: float,
    length: int,
    batch: int,
    pieces: int | None,
    file: RunConfig | StudyConfig | None = None,
) -> Job:
    from megatron_kis.config.vocabulary import padded_vocabulary
    from megatron_kis.planning.layouts import Job

    if tokens < length * batch:
        raise InputError(
            f"{tokens:,.0f} tokens are less than one step of {batch} x {length}",
            where="MODEL",
            remedy="more --tokens, or a smaller --batch or --length",
        )
    vocabulary = padded_vocabulary(options.vocabulary or pieces or 32_000)
    job = Job(shape=model.shape(), vocabulary=vocabulary, tokens=tokens, length=length, global_batch=batch)
    return job if file is None else replace(job, **_settings(file, model))


def _settings(file: RunConfig | StudyConfig, model: Any) -> dict[str, Any]:
    """Returns other settings that decide memory; Megatron-Core's own layers are counted as ``sdpa``."""
    from megatron_kis.config.layout import check_layers
    from megatron_kis.config.training import resolve_precision
    from megatron_kis.planning.parts import EvaluationLoad

    precision, own_mask = resolve_precision(file.training.precision, cpu=False), file.documents.reset_attention
    check_layers(model.transformer_impl, own_mask=own_mask, precision=precision)
    return {
        "precision": precision,
        "layers": "sdpa" if model.transformer_impl == "local" else model.transformer_impl,
        "own_mask": own_mask,
        "evaluation": EvaluationLoad(validation_tokens=file.validation.max_tokens, probe_rows=file.probes.batch_size),
    }
