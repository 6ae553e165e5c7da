"""``kis data facts``, ``templates`` and ``export``: triples to a study's facts, and facts to other tools."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_kis.cli.data.options import add_step
from megatron_kis.cli.outputs import new_file, new_folder
from megatron_kis.cli.parser import add_settings, given_settings, naming_options, options_of
from megatron_kis.common.errors import InputError, printable
from megatron_kis.common.terms import GROUPS, HELD_OUT, SPLITS
from megatron_kis.common.units import plural


def add_facts(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(
        steps, "facts", "import triples, drop ambiguous ones, and split them into infused, background and control facts"
    )
    kinds = "a table or JSON lines (also .gz, .zst, .bz2 or .xz), or a folder of BEAR, LAMA, T-REx or Wikidata5M"
    parser.add_argument("--input", type=Path, required=True, metavar="PATH", help=kinds)
    parser.add_argument("--output", type=new_file, required=True, metavar="FILE", help="facts.jsonl to write")
    columns = "the column or JSON key of each field, such as subject=city relation=prop object=obj"
    parser.add_argument("--columns", nargs="+", action="extend", default=[], metavar="FIELD=COLUMN", help=columns)
    errors = "a malformed row ends the import, or is dropped and counted"
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help=errors)
    templates = "write the templates of BEAR or LAMA; an existing file is not replaced"
    parser.add_argument("--templates-output", type=new_file, metavar="FILE", help=templates)

    def add() -> None:
        from megatron_kis.data_tools.facts.importers import IMPORTERS
        from megatron_kis.data_tools.selection.select import SelectConfig

        parser.add_argument("--from", dest="format", choices=[*IMPORTERS], required=True, help="format of the input")
        add_settings(parser, SelectConfig, SelectConfig.model_fields)

    options_of(parser, add)
    parser.set_defaults(handler=_facts)


def _facts(options: argparse.Namespace) -> int:
    from megatron_kis.common.progress import console_progress
    from megatron_kis.data_tools.selection.imports import (
        check_import,
        import_facts,
        read_source_templates,
        write_source_templates,
    )
    from megatron_kis.data_tools.selection.select import SelectConfig

    settings = SelectConfig(**given_settings(options, SelectConfig.model_fields))
    with naming_options([*SelectConfig.model_fields, "columns"]):
        check_import(options.input, options.format, settings, options.columns)
    templates = None
    if options.templates_output:
        from megatron_kis.data_tools.readers.files import file_identities, refuse_own_outputs

        refuse_own_outputs([options.input], [options.templates_output])
        others = (options.output, options.output.with_suffix(".meta.json"))
        if {*file_identities(options.templates_output)} & {place for path in others for place in file_identities(path)}:
            raise InputError("is also the file of --output", where="--templates-output", remedy="write it elsewhere")
        if options.templates_output.exists():
            remedy = "it may have been edited and is not overwritten"
            raise InputError("exists", where=str(options.templates_output), remedy=remedy)
        templates = read_source_templates(options.input, options.format, skip_errors=options.on_error == "skip")
    with naming_options([*SelectConfig.model_fields, "columns"]):
        selection = import_facts(
            options.input,
            options.format,
            options.output,
            settings,
            columns=options.columns,
            skip_errors=options.on_error == "skip",
            progress=console_progress(),
        )
    for line in selection.summary():
        print(printable(line))
    if templates is not None:
        relations = sorted({fact.relation for fact in selection.facts})
        count = write_source_templates(templates, options.templates_output, relations)
        print(f"{options.templates_output}: templates of {plural(count, 'relation')}")
    return 0


def add_templates(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(steps, "templates", "check templates: slots, duplicates, a and an, and the number of tokens")
    parser.add_argument("--templates", type=Path, required=True, metavar="FILE", help="templates.yaml")
    parser.add_argument("--facts", type=Path, metavar="FILE", help="facts.jsonl: check with its names")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="count tokens with this tokenizer")
    parser.set_defaults(handler=_templates)


def _templates(options: argparse.Namespace) -> int:
    from megatron_kis.data_tools.facts.fact import load_facts
    from megatron_kis.data_tools.rendering.render import template_lengths, template_remarks, unasked_remarks
    from megatron_kis.data_tools.rendering.templates import load_templates
    from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

    if options.tokenizer and not options.facts:
        raise InputError("needs --facts", where="--tokenizer", remedy="tokens are counted with the names filled in")
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    facts = load_facts(options.facts) if options.facts else []
    templates = load_templates(options.templates, relations=sorted({fact.relation for fact in facts}))
    for relation, entry in templates.items():
        name = printable(relation)
        print(
            f"{name}: {len(entry.train)} train, {len(entry.held_out)} held out, "
            f"{plural(len(entry.question), 'question')}"
        )
    if tokenizer is not None:
        for place, counts in template_lengths(facts, templates, tokenizer).items():
            print(f"{printable(place)}: {counts.shortest} to {counts.longest} tokens, mean {counts.mean:.1f}")
    remarks = [*unasked_remarks(templates), *template_remarks(facts, templates)]
    for remark in remarks:
        print(f"remark: {printable(remark)}")
    print(f"{plural(len(templates), 'relation')}, {plural(len(remarks), 'remark')}")
    return 0


def add_export(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_step(steps, "export", "write facts as data sets of BEAR and LM-Pub-Quiz, one per group")
    parser.add_argument("--facts", type=Path, required=True, metavar="FILE", help="facts.jsonl")
    parser.add_argument("--templates", type=Path, required=True, metavar="FILE", help="templates.yaml")
    parser.add_argument("--output", type=new_folder, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--split", choices=SPLITS, default=HELD_OUT, help="templates to ask with")
    groups = "groups to write, each of which must have facts; all that have some by default"
    parser.add_argument("--groups", nargs="+", action="extend", choices=GROUPS, default=argparse.SUPPRESS, help=groups)
    parser.set_defaults(handler=_export)


def _export(options: argparse.Namespace) -> int:
    from megatron_kis.data_tools.facts.fact import load_facts
    from megatron_kis.data_tools.rendering.templates import load_templates
    from megatron_kis.data_tools.selection.exports import export_bear

    facts = load_facts(options.facts)
    templates = load_templates(options.templates, relations=sorted({fact.relation for fact in facts}))
    for folder in export_bear(
        facts, templates, options.output, split=options.split, groups=getattr(options, "groups", None)
    ):
        print(folder)
    return 0
