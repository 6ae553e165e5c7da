"""``kis schema``: the keys of a run's or a study's file, for editors."""

from __future__ import annotations

import argparse
import json


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "schema",
        help="print the JSON Schema of a run's or a study's file",
        description="Print a JSON Schema with every key, its type, default and meaning. An editor that reads it "
        "completes keys and marks errors.",
    )
    parser.add_argument("kind", choices=("run", "study"), help="the file of kis train, or the file of kis study")
    parser.set_defaults(handler=_schema)


def _schema(options: argparse.Namespace) -> int:
    from megatron_kis.common.configuration import json_schema
    from megatron_kis.config.run import RunConfig
    from megatron_kis.config.study import StudyConfig

    schema = json_schema(RunConfig if options.kind == "run" else StudyConfig)
    print(json.dumps(schema, indent=1, ensure_ascii=False))
    return 0
