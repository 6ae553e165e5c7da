"""``kis export``: a run for other tools."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kis.cli.outputs import new_folder
from megatron_kis.cli.parser import refuse_options
from megatron_kis.common.units import plural


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "write a run's checkpoint, or its questions, for other tools"
    parser = commands.add_parser("export", help=summary, description=summary)
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    huggingface = formats.add_parser(
        "hf",
        help="Hugging Face: Llama, Qwen2 or Qwen3 architecture, safetensors, tokenizer",
        description="Write a checkpoint of any parallel layout, or a start of kis import, as a folder that "
        "transformers opens: weights, configuration and tokenizer. The logits are those of the run.",
    )
    huggingface.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's folder, or a start")
    huggingface.add_argument(
        "--output", type=new_folder, required=True, metavar="DIR", help="folder to write; must be new or empty"
    )
    huggingface.add_argument("--step", type=int, metavar="S", help="step of the checkpoint (default: the newest)")
    huggingface.add_argument("--no-tokenizer", action="store_true", help="leave the tokenizer out")
    huggingface.set_defaults(handler=_huggingface)
    megatron = formats.add_parser(
        "megatron",
        help="Megatron-LM: a release checkpoint in the format torch_dist",
        description="Write a checkpoint of any parallel layout for Megatron-LM's --load, which starts from it at "
        "iteration 0. Give Megatron-LM also --dist-ckpt-strictness log_all.",
    )
    megatron.add_argument("run", type=Path, metavar="RUN_DIR", help="the run's folder")
    megatron.add_argument(
        "--output", type=new_folder, required=True, metavar="DIR", help="folder to write; must be new or empty"
    )
    megatron.add_argument("--step", type=int, metavar="S", help="step of the checkpoint (default: the newest)")
    megatron.set_defaults(handler=_megatron)
    tasks = formats.add_parser(
        "lm-eval",
        help="lm-evaluation-harness: the run's questions as tasks",
        description="Write two tasks per group and split, 'statement' (acc is our rule statement) and 'answer' (acc "
        "is sum, acc_norm is mean_char), for the model of kis export hf: lm_eval --model hf --model_args "
        "pretrained=MODEL --include_path DIR --tasks kis_infused_held_out_statement. The tasks name their documents by "
        "absolute path.",
    )
    tasks.add_argument("run", type=Path, nargs="?", metavar="RUN_DIR", help="the run's folder")
    tasks.add_argument("--questions", type=Path, metavar="FILE", help="without a run: questions of kis data questions")
    tasks.add_argument("--tokenizer", type=Path, metavar="PATH", help="with --questions: the tokenizer, or its folder")
    tasks.add_argument(
        "--output", type=new_folder, required=True, metavar="DIR", help="folder to write; must be new or empty"
    )
    tasks.add_argument("--exposures", type=Path, metavar="PREFIX", help="other facts: prefix of kis data render")
    tasks.add_argument(
        "--all-templates", action="store_true", help="ask with every template (default: the run's choice)"
    )
    tasks.set_defaults(handler=_lm_eval)


def _huggingface(options: argparse.Namespace) -> int:
    from megatron_kis.convert.to_huggingface import export_huggingface

    print(export_huggingface(options.run, options.output, step=options.step, tokenizer=not options.no_tokenizer))
    return 0


def _megatron(options: argparse.Namespace) -> int:
    from megatron_kis.convert.to_megatron import export_megatron

    print(export_megatron(options.run, options.output, step=options.step))
    return 0


def _lm_eval(options: argparse.Namespace) -> int:
    from megatron_kis.common.files import read_json
    from megatron_kis.convert.lm_eval import TASKS_SCHEMA, export_lm_eval, export_questions

    _check_source(options)
    if options.run is None:
        counts = export_questions(options.questions, options.tokenizer, options.output)
    else:
        counts = export_lm_eval(
            options.run, options.output, exposures=options.exposures, all_templates=options.all_templates
        )
    for task, count in counts.items():
        print(
            f"{task}: {plural(count['questions'], 'question')}, {count['left_out']} left out (the harness would "
            "split them differently)"
        )
    if more := read_json(options.output / "export.json", TASKS_SCHEMA)["model_args"]:
        print(f"the contexts spell out the tokenizer's first token: ask with --model_args pretrained=MODEL,{more}")
    return 0


def _check_source(options: argparse.Namespace) -> None:
    """Refuses a run together with other questions, and a call with neither.

    Raises:
        InputError: names the option.
    """
    from megatron_kis.common.errors import InputError

    both = "give RUN_DIR, or --questions FILE and --tokenizer PATH"
    if options.run is None and (options.questions is None or options.tokenizer is None):
        missing = "--questions" if options.questions is None else "--tokenizer"
        raise InputError("is missing, and there is no RUN_DIR", where=missing, remedy=both)
    if options.run is None:
        refuse_options(options, ("exposures", "all_templates"), other="--questions", remedy=both)
    else:
        refuse_options(options, ("questions", "tokenizer"), other="RUN_DIR", remedy=both)
