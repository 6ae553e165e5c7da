"""``kis probe``: asks a checkpoint what it knows, after training."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatron_kis.cli.outputs import new_file
from megatron_kis.cli.parser import flag_of, naming_options, refuse_options
from megatron_kis.cli.probe_model import add_model_options, ask_model, check_kind, print_answers
from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.units import plural

_USUAL = {"device": "auto", "tensor": 1, "pipeline": 1}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "probe",
        help="ask a checkpoint what it knows",
        description="Score a checkpoint of a run on the questions it was trained with, or on others that were made "
        "with the same tokenizer (kis data render). Under torchrun, the ranks beyond --tensor x --pipeline share "
        "the questions. With --model, any causal model of Hugging Face is asked.",
    )
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN_DIR", help="the run's folder")
    parser.add_argument("--step", type=int, metavar="S", help="step of the checkpoint (default: the newest)")
    parser.add_argument("--exposures", type=Path, metavar="PREFIX", help="other facts: prefix of kis data render")
    parser.add_argument(
        "--all-templates", action="store_true", help="ask with every template (default: the run's choice)"
    )
    parser.add_argument("--scoring", metavar="RULE", default="statement", help="rule of the table (default: statement)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="options in a forward pass (default: the run's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="ranks that share each layer (default: 1)")
    parser.add_argument("--pipeline", type=int, default=1, metavar="N", help="pipeline stages (default: 1)")
    parser.add_argument("--json", action="store_true", help="print all rules and the choices behind them as JSON")
    parser.add_argument("--outcomes", type=new_file, metavar="FILE.npz", help="write one record per question")
    kept = "store the answers in the folder of a finished run, for the analysis (as kis study probe does)"
    parser.add_argument("--keep", action="store_true", help=kept)
    section = "section probes of a study, as JSON, instead of the run's own; needs --keep"
    parser.add_argument("--probes", metavar="JSON", help=section)
    when = "write when each question was learned, forgotten and learned again in the run's own probes"
    parser.add_argument("--histories", type=new_file, metavar="FILE.csv", help=when)
    add_model_options(parser)
    parser.set_defaults(handler=_probe)


def _probe(options: argparse.Namespace) -> int:
    from megatron_kis.probes.scoring import RULES

    check_kind(options)
    if options.scoring not in RULES:
        raise InputError(
            f"no scoring rule {options.scoring!r}", where="--scoring", remedy=nearest(options.scoring, RULES)
        )
    if options.model is not None:
        return ask_model(options)
    for name in ("batch_size", "tensor", "pipeline"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"is {value}", where=flag_of(name), remedy="use 1 or more")
    from megatron_kis.distributed.device import check_device
    from megatron_kis.evaluate.checkpoint import evaluate_checkpoint

    with naming_options(("device",)):
        check_device(options.device)

    if options.keep:
        return _keep(options)
    if options.probes is not None:
        raise InputError("needs --keep", where="--probes", remedy="use --all-templates, or add --keep")
    if options.histories is not None:
        from megatron_kis.evaluate.history import write_histories

        asking = ("step", "exposures", "all_templates", "batch_size", "outcomes", "json", *_USUAL)
        refuse_options(options, asking, other="--histories, which asks nothing", usual=_USUAL)
        moments = write_histories(options.run, options.histories, rule=options.scoring)
        print(f"{options.histories}: {plural(moments, 'moment')}, rule {options.scoring}")
        return 0
    found = evaluate_checkpoint(
        options.run,
        step=options.step,
        exposures=options.exposures,
        all_templates=options.all_templates,
        batch_size=options.batch_size,
        device=options.device,
        tensor=options.tensor,
        pipeline=options.pipeline,
        outcomes=options.outcomes,
    )
    if found is None:  # a rank that does not report
        return 0
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        parameters = f"{found['parameters']:,} parameters"
        print(f"{found['run']}, step {found['step']}, {found['tokens']:,} tokens, {parameters}, rule {options.scoring}")
        print_answers(found["rows"], options.scoring)
    return 0


def _keep(options: argparse.Namespace) -> int:
    from megatron_kis.common.configuration import parse_config
    from megatron_kis.common.parsing import parse_json
    from megatron_kis.common.terms import SPLITS
    from megatron_kis.config.run import ProbeConfig
    from megatron_kis.data_tools.storage.indexed import suffixed
    from megatron_kis.evaluate.ask import ask_again
    from megatron_kis.training.artifacts import open_run

    of_others = ("step", "outcomes", "histories", "json")
    refuse_options(options, of_others, other="--keep, which keeps the answers of the last step")
    given = None
    if options.probes is not None:
        given = parse_config(ProbeConfig, parse_json(options.probes, where="--probes"), source="--probes")
    probes = given or open_run(options.run).config.probes
    if options.all_templates:
        probes = probes.replace(templates=dict.fromkeys(SPLITS))
    place = ask_again(
        options.run,
        questions=None if options.exposures is None else suffixed(options.exposures, ".questions.jsonl"),
        probes=probes,
        batch_size=options.batch_size,
        device=options.device,
        tensor=options.tensor,
        pipeline=options.pipeline,
    )
    if place is not None:
        print(place)
    return 0
