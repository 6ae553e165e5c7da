"""From runs that would tell the most to entries of the study file.

A proposal names a model by its N and D, as the analysis knows them, and a frequency. Here they become runs of the
ladder, with a seed that the level does not have yet; what the study already plans is not planned again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_text, write_text
from megatron_kis.common.parsing import parse_yaml
from megatron_kis.config.study import ListedRun, StudyConfig
from megatron_kis.study.grid import spots_of

Cell = tuple[int, int]
"""N (all parameters) and D (tokens fed) of a model that was trained."""


@dataclass(frozen=True)
class Placed:
    """What becomes of one proposal."""

    run: ListedRun | None
    """The run of the study that it is; None where its N and D are no size and budget of the study."""

    planned: bool = False
    """Whether the study has that run already, not done yet."""


def trained_cells(study: StudyConfig, runs: Iterable[tuple[str, int, int]]) -> dict[Cell, tuple[str, int]]:
    """The size and the budget, as the study names them, of every (N, D) that it trained.

    Args:
        study: the study.
        runs: (name, N, D) of the runs that are done.
    """
    names = {spot.name: (spot.rung.label, spot.tokens) for spot in spots_of(study)}
    return {(params, tokens): names[name] for name, params, tokens in runs if name in names}


def place(
    study: StudyConfig,
    proposals: Iterable[tuple[int, int, float]],
    cells: Mapping[Cell, tuple[str, int]],
    done: Iterable[str],
) -> list[Placed]:
    """Each proposal as a run of the study.

    A proposal asks for one run more at its level than are done. Where the study already plans that many, it is not
    planned again, so that asking twice before training changes nothing.

    Args:
        study: the study.
        proposals: N, D and F of each.
        cells: of ``trained_cells``.
        done: names of the runs that are done.
    """
    finished = set(done)
    waiting: dict[tuple[str, int, int], list[int]] = {}
    taken: dict[tuple[str, int, int], set[int]] = {}
    for spot in spots_of(study):
        level = (spot.rung.label, spot.tokens, spot.frequency)
        taken.setdefault(level, set()).add(spot.seed)
        if spot.name not in finished:
            waiting.setdefault(level, []).append(spot.seed)
    placed = []
    for params, tokens, frequency in proposals:
        if (params, tokens) not in cells:
            placed.append(Placed(None))
            continue
        size, budget = cells[params, tokens]
        level = (size, budget, round(frequency))
        planned = bool(waiting.get(level))
        if planned:
            seed = waiting[level].pop(0)
        else:
            # The study's own seeds first: such a run reads the same text in the same order as its neighbours.
            used = taken.setdefault(level, set())
            seed = next(seed for seed in itertools.chain(study.seeds, itertools.count()) if seed not in used)
            used.add(seed)
        placed.append(Placed(ListedRun(size=size, tokens=budget, frequency=level[2], seed=seed), planned))
    return placed


def add_runs(path: Path, runs: Iterable[ListedRun], *, remark: str) -> None:
    """Adds runs to the ``runs`` of a study file, a line each; everything else in the file stays as it is.

    Args:
        path: the study file; written beside and renamed.
        runs: what to add.
        remark: a comment in front of them.

    Raises:
        InputError: a file in which no place for them can be found.
    """
    path = path.resolve()  # the file itself, where the name is a link
    text = read_text(path)
    before = parse_yaml(text, where=str(path))
    entries = [run.model_dump() for run in runs]
    lines = [yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=1000).strip() for entry in entries]
    changed = _with_entries(text, lines, remark)
    wanted = {**before, "runs": [*(before.get("runs") or []), *entries]}
    try:
        fits = parse_yaml(changed, where=str(path)) == wanted
    except InputError:
        fits = False
    if not fits:
        raise InputError(
            "found no place for more runs", where=f"{path}: runs", remedy="add by hand: " + ", ".join(lines)
        )
    write_text(path, changed)


def _with_entries(text: str, entries: list[str], remark: str) -> str:
    lines = text.removesuffix("\n").split("\n")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found = [(key, value) for key, value in root.value if key.value == "runs"]
    if not found:
        end = ["", "runs:", f"  # {remark}", *(f"  - {entry}" for entry in entries)]
        return "\n".join([*lines, *end]) + "\n"
    key, node = found[0]
    if not isinstance(node, yaml.SequenceNode) or node.flow_style:
        # A list in brackets, or none yet, becomes one with a line an entry; its entries keep their text.
        items = node.value if isinstance(node, yaml.SequenceNode) else ()
        old = [text[item.start_mark.index : item.end_mark.index] for item in items]
        block = ["runs:", *(f"  - {' '.join(entry.split())}" for entry in old), f"  # {remark}"]
        block += [f"  - {entry}" for entry in entries]
        after = text[node.end_mark.index :]
        return text[: key.start_mark.index] + "\n".join(block) + (after if after.startswith("\n") else "\n" + after)
    margin = " " * node.start_mark.column
    at = _last_line(node) + 1
    block = [f"{margin}# {remark}", *(f"{margin}- {entry}" for entry in entries)]
    return "\n".join([*lines[:at], *block, *lines[at:]]) + "\n"


def _last_line(node: yaml.Node) -> int:
    """The line on which a block ends; PyYAML's own mark lies behind the blank lines and comments that follow."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style:
        return int(node.end_mark.line)
    last = node.value[-1]
    return _last_line(last[1] if isinstance(last, tuple) else last)
