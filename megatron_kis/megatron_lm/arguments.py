"""The arguments that are added to Megatron-LM's, and the run that they describe.

A run is described by its file (``--kis-run``), or by an exposure store and a dose with everything else taken from
Megatron-LM's own arguments (``--kis-exposures``). Either way the result is a ``RunConfig``, from which plan and record
are made as for any other run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_kis.common.configuration import load_config, parse_content
from megatron_kis.common.errors import InputError
from megatron_kis.common.identity import within
from megatron_kis.config.run import RunConfig
from megatron_kis.megatron_lm.settings import check_settings, content_of

_ALONE = ("exposures", "tokenizer", "output", "frequency", "ratio", "background_frequency", "background_policy")
"""Arguments that describe a run without a file."""


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds ``--kis-*`` to Megatron-LM's parser; for its ``extra_args_provider``."""
    add = parser.add_argument_group("knowledge infusion").add_argument
    add("--kis-run", type=Path, metavar="RUN.yaml", help="the run: data, dose, probes and output")
    add("--kis-exposures", type=Path, metavar="PREFIX", help="exposures of `kis data render`, in place of a run's file")
    add("--kis-tokenizer", type=Path, metavar="FILE", help="their tokenizer (default: the one next to the exposures)")
    add("--kis-output", type=Path, metavar="DIR", help="the run's folder, for its records")
    add("--kis-frequency", type=float, metavar="F", help="exposures of each infused fact")
    add("--kis-ratio", type=float, metavar="RHO", help="share of the tokens for infused facts, in place of F")
    add("--kis-background-frequency", type=int, metavar="F", help="exposures of each background fact (default: 0)")
    add("--kis-background-policy", choices=("displaced", "protected"), help="whether infusion displaces them")
    more = "further settings of the run, by their keys"
    add("--kis-set", nargs="+", action="extend", default=[], metavar="key=value", help=more)
    return parser


def run_of(args: argparse.Namespace) -> RunConfig:
    """Returns the run that parsed arguments describe.

    Raises:
        InputError: no run is described, or two are, or a setting is wrong; names the argument.
    """
    given = [name for name in _ALONE if getattr(args, f"kis_{name}") is not None]
    if args.kis_run is not None:
        if given:
            raise InputError(
                f"cannot be combined with --kis-run {args.kis_run}, which gives it",
                where=f"--kis-{given[0].replace('_', '-')}",
                remedy="leave it out; --kis-set infusion.frequency=100 changes a setting of the file",
            )
        return load_config(RunConfig, args.kis_run, args.kis_set)
    for name in ("exposures", "output"):
        if getattr(args, f"kis_{name}") is None:
            other = "" if given else ", or --kis-run RUN.yaml in place of both --kis-exposures and --kis-output"
            raise InputError("is missing; the exposure plan needs it", where=f"--kis-{name}", remedy="give it" + other)
    if (args.kis_frequency is None) == (args.kis_ratio is None):
        which = "is missing" if args.kis_frequency is None else "excludes --kis-ratio"
        raise InputError(which, where="--kis-frequency", remedy="give it, or --kis-ratio")
    _check_set(args)
    with naming_arguments(args):
        config = parse_content(RunConfig, content_of(args), source="--kis-set", overrides=args.kis_set)
        config.model.shape()  # which checks it
    return config


def _check_set(args: argparse.Namespace) -> None:
    """Refuses ``--kis-set`` of what another argument gives, also as a part of its section."""
    for setting in args.kis_set:
        section = setting.partition("=")[0]
        for key, flag in _FLAGS.items():
            given = not flag.startswith("--kis-") or getattr(args, flag[2:].replace("-", "_")) is not None
            if given and within(key, (section,)):
                said = "is" if key == section else f"replaces {key}, which is"
                remedy = f"change {flag}" if key == section else f"name its other keys one by one, or change {flag}"
                raise InputError(f"{said} given by {flag}", where=f"--kis-set {setting}", remedy=remedy)


@contextmanager
def naming_arguments(args: argparse.Namespace) -> Iterator[None]:
    """Lets errors about a run without a file name the arguments that it was made of, in place of its keys."""
    try:
        yield
    except InputError as error:
        key, *rest = (error.where or "").removeprefix("--kis-set: ").split(": ")
        flag = None if args.kis_run is not None else _FLAGS.get(key)
        if flag is None:
            raise
        raise InputError(error.problem, where=": ".join([flag, *rest]), remedy=error.remedy) from None


_FLAGS: dict[str, str] = {
    "infusion.frequency": "--kis-frequency",
    "infusion.ratio": "--kis-ratio",
    "infusion.background.frequency": "--kis-background-frequency",
    "infusion.background.policy": "--kis-background-policy",
    "name": "--kis-output",
    "data.exposures": "--kis-exposures",
    "data.tokenizer": "--kis-tokenizer",
    "model.layers": "--num-layers",
    "model.width": "--hidden-size",
    "model.ffn_width": "--ffn-hidden-size",
    "model.heads": "--num-attention-heads",
    "model.query_groups": "--num-query-groups",
    "model.head_width": "--kv-channels",
    "training.token_budget": "--train-iters",
    "training.sequence_length": "--seq-length",
    "training.global_batch_size": "--global-batch-size",
    "training.optimizer.learning_rate": "--lr",
    "training.optimizer.minimum_share": "--min-lr",
    "training.optimizer.warmup_share": "--lr-warmup-iters",
    "training.optimizer.decay_share": "--lr-wsd-decay-iters",
    "training.optimizer.weight_decay": "--weight-decay",
    "training.optimizer.gradient_clip": "--clip-grad",
}
"""The arguments that give a run without a file its settings, by their keys."""

_Refusal = tuple[str, Any, str, str]


def check_arguments(args: argparse.Namespace, config: RunConfig) -> None:
    """Refuses arguments that would lose exposures or contradict the run, before anything is built.

    Args:
        args: Megatron-LM's arguments, validated.
        config: the run that they describe.

    Raises:
        InputError: names the argument.
    """
    for flag, given, problem, remedy in _refusals(args):
        if given:
            raise InputError(problem, where=flag, remedy=remedy)
    if args.kis_run is not None:
        for flag in ("--data-path", "--train-data-path", "--data-args-path", "--per-split-data-args-path"):
            if getattr(args, flag[2:].replace("-", "_"), None):
                problem = f"names general text, and so does data.corpus of {args.kis_run}"
                raise InputError(problem, where=flag, remedy="leave it out, or use --kis-exposures in place of the run")
        for key, unsupported in (
            ("documents.reset_attention", config.documents.reset_attention),
            ("infusion.begins", config.infusion.begins is not None),
            ("trunk", config.trunk is not None),
            ("model.init_from", config.model.init_from is not None),
        ):
            if unsupported:
                where = f"--kis-run {args.kis_run}: {key}"
                raise InputError("is not carried over to Megatron-LM's loop", where=where, remedy="use kis train")
        check_settings(args, config)


def _refusals(args: argparse.Namespace) -> Iterator[_Refusal]:
    """Yields each argument that is refused: whether it is given, what is wrong with it, and what to do."""

    def given(name: str) -> Any:
        return getattr(args, name, None)

    single = "use --dataloader-type single"
    lost = "and the plan counts on every sequence being trained on once"
    kind = given("dataloader_type")
    out = "leave it out"
    yield (
        f"--dataloader-type {kind}",
        kind not in (None, "single"),
        f"{'shuffles and drops' if kind == 'cyclic' else 'may reorder'} sequences, {lost}",
        single,
    )
    yield "--fp16", given("fp16"), f"skips steps while it looks for a loss scale, {lost}", "use --bf16"
    for name in ("rampup_batch_size", "step_batch_size_schedule", "phase_transition_iterations"):
        yield _flag(name), given(name), "changes the steps that the plan is laid out for", out
    yield (
        _flag("decrease_batch_size_if_needed"),
        given("decrease_batch_size_if_needed"),
        f"skips sequences, {lost}",
        out,
    )
    yield _flag("iterations_to_skip"), given("iterations_to_skip"), f"skips sequences, {lost}", out
    for name in ("mock_data", "sft", "fim_data", "perform_rl_step"):
        yield _flag(name), given(name), "replaces the training data, which are the plan's", out
    yield _flag("skip_train"), given("skip_train"), "trains on none of the plan's sequences", out
    yield (
        "--full-validation",
        given("full_validation") and not given("multiple_validation_sets"),
        "ends Megatron-LM with a TypeError at its first evaluation of a single validation set",
        "give a number of --eval-iters, or add --multiple-validation-sets",
    )
    for name in ("hybrid_context_parallel", "dataloader_inter_document_masking"):
        yield _flag(name), given(name), "needs packed sequences, and the plan's have a fixed length", out
    for name in ("use_torch_fsdp2", "use_megatron_fsdp"):
        yield _flag(name), given(name), "shards weights that the probe reads whole", "use --use-distributed-optimizer"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
