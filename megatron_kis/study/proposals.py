"""Proposals of the analysis as entries of the study file: runs to add, and sizes to add to the ladder.

A proposed run is a model by its N and D, as the analysis knows them, and a dose. Here it becomes a run of the ladder
with a seed that is still free; what the study already plans is not planned again. A proposed size becomes an entry of
the ladder: its neighbours' shape at another width.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_text, write_text
from megatron_kis.common.parsing import parse_yaml
from megatron_kis.config.dose import Dose, dose_of
from megatron_kis.config.ladder import ModelShape
from megatron_kis.config.study import LadderEntry, ListedRun, StudyConfig
from megatron_kis.study.specs import expand_grid

Cell = tuple[int, int]
"""N (all parameters) and D (tokens fed) of a model that was trained."""


@dataclass(frozen=True)
class Wanted:
    """A run that the analysis proposes."""

    params: int
    """N, all parameters."""

    tokens: int
    """D, tokens fed."""

    frequency: float
    """F, exposures of each infused fact."""

    facts: int | None = None
    """K, number of infused facts that are shown; None: all."""

    ratio: float | None = None
    """Infusion ratio to ask for in place of ``frequency``."""


@dataclass(frozen=True)
class PlannedRun:
    """A proposal as a run of the study."""

    run: ListedRun | None
    """The run; None where the proposal's N and D are not a size and budget of the study."""

    planned: bool = False
    """Whether the study has that run already, not done yet."""


def trained_cells(study: StudyConfig, runs: Iterable[tuple[str, int, int]]) -> dict[Cell, tuple[str, int]]:
    """Returns the size and the budget, as the study names them, of every (N, D) that it trained.

    Args:
        study: the study.
        runs: (name, N, D) of the runs that are done.
    """
    names = {spec.name: (spec.entry.label, spec.tokens) for spec in expand_grid(study)}
    return {(params, tokens): names[name] for name, params, tokens in runs if name in names}


def match_proposals(
    study: StudyConfig,
    proposals: Iterable[Wanted],
    cells: Mapping[Cell, tuple[str, int]],
    done: Iterable[str],
) -> list[PlannedRun]:
    """Returns each proposal as a run of the study.

    A proposal asks for one run more at its level than are done. Where the study already plans that many, it is not
    planned again, so that asking twice before training changes nothing.

    Args:
        study: the study.
        proposals: what the analysis proposes.
        cells: result of ``trained_cells``.
        done: names of the runs that are done.
    """
    finished = set(done)
    waiting: dict[tuple[str, int, Dose], list[int]] = {}
    taken: dict[tuple[str, int, Dose], set[int]] = {}
    for spec in expand_grid(study):
        level = (spec.entry.label, spec.tokens, spec.dose)
        taken.setdefault(level, set()).add(spec.seed)
        if spec.name not in finished:
            waiting.setdefault(level, []).append(spec.seed)
    matched = []
    for wanted in proposals:
        if (wanted.params, wanted.tokens) not in cells:
            matched.append(PlannedRun(None))
            continue
        size, budget = cells[wanted.params, wanted.tokens]
        dose = _dose(study, wanted)
        level = (size, budget, dose)
        planned = bool(waiting.get(level))
        if planned:
            seed = waiting[level].pop(0)
        else:
            # The study's own seeds first: such a run reads the same text in the same order as its neighbours.
            used = taken.setdefault(level, set())
            seed = next(seed for seed in itertools.chain(study.seeds, itertools.count()) if seed not in used)
            used.add(seed)
        run = ListedRun(
            size=size,
            tokens=budget,
            facts=dose.facts,
            frequency=dose.frequency,
            infusion_ratio=dose.ratio,
            seed=seed,
        )
        matched.append(PlannedRun(run, planned))
    return matched


def _dose(study: StudyConfig, wanted: Wanted) -> Dose:
    """Returns the dose of a proposal as the study names it: all facts by their number only where it does so itself."""
    facts = wanted.facts
    if facts == study.data.select.infused and not any(spec.dose.facts == facts for spec in expand_grid(study)):
        facts = None
    return dose_of(facts, None if wanted.ratio is not None else round(wanted.frequency), wanted.ratio)


def nearest_new_size(
    params: float, trained: Mapping[int, LadderEntry], ladder: Iterable[LadderEntry] = ()
) -> tuple[LadderEntry, int] | None:
    """Returns the new entry of the ladder that comes nearest to N = ``params``, and its N.

    Depth is interpolated over log N between the neighbours, and held beyond them; so is the learning rate, which
    continues with the width where it is a power of it (``rate_exponent``). Heads are as wide as those of the nearest
    size, whose layout can hold the new one, and all else is that size's. None where the nearest shape is one of the
    study's, or where the nearest size begins with the weights of another model.

    Args:
        params: number of parameters that is wanted.
        trained: sizes that were trained, by the N (all parameters) of their models; at least one.
        ladder: all sizes of the study, also those that were not trained yet.
    """
    known = dict(sorted(trained.items()))
    near = min(known, key=lambda n: abs(math.log(n / params)))
    model = known[near]
    shape = model.shape()
    if model.init_from is not None:
        return None
    tables = 1 if shape.tied_embeddings else 2
    vocabulary = (near - shape.nonembedding_params()) // (tables * shape.width)
    layers_per_stage = model.parallel.pipeline * model.parallel.virtual
    depth = _between(params, {n: entry.shape().layers for n, entry in known.items()})
    layers = max(1, round(depth / layers_per_stage)) * layers_per_stage

    best: LadderEntry | None = None
    found = 0
    step = shape.heads // shape.query_groups * model.parallel.tensor  # so that ranks share heads and their groups
    for heads in itertools.count(step, step):
        trial = _resized(model, shape, layers=layers, heads=heads)
        size = trial.shape().params(vocabulary)
        if best is None or abs(math.log(size / params)) < abs(math.log(found / params)):
            best = trial
            found = size
        if size > params:
            break
    assert best is not None
    if any(entry.shape() == best.shape() for entry in (*known.values(), *ladder)):
        return None
    return best.model_copy(update={"learning_rate": _learning_rate(best.shape().width, params, known)}), found


_STRAIGHT = 0.1  # of log rate; files have two digits, and rates of a search are seldom nearer to a line


def rate_exponent(sizes: Mapping[int, LadderEntry]) -> float | None:
    """Returns b where the learning rates of sizes are as width^b, fitted to all of them.

    Args:
        sizes: sizes by N.

    Returns:
        The exponent; None where a size has no rate of its own, all are equally wide, or a rate is off the fit by more
        than a tenth.
    """
    rates = [entry.learning_rate for entry in sizes.values() if entry.learning_rate is not None]
    widths = [entry.shape().width for entry in sizes.values()]
    if len(rates) < len(widths) or len(set(widths)) < 2:
        return None
    (slope, offset), x, y = np.polyfit(np.log(widths), np.log(rates), 1), np.log(widths), np.log(rates)
    return float(slope) if np.abs(slope * x + offset - y).max() < _STRAIGHT else None


def rate_words(sizes: Mapping[int, LadderEntry]) -> str:
    """Says where the learning rates of new sizes come from; ``sizes`` are those that they are drawn from."""
    exponent = rate_exponent(sizes)
    if exponent is not None:
        return f"learning rates continue those of the ladder, fitted as width^{exponent:.2f}"
    if any(entry.learning_rate is not None for entry in sizes.values()):
        return (
            "learning rates are interpolated between those of the ladder, and held beyond its ends, because they are "
            "not a power of the width: try others there"
        )
    return "the learning rate is that of the study, training.optimizer.learning_rate"


def _learning_rate(width: int, params: float, known: Mapping[int, LadderEntry]) -> float | None:
    """Returns the learning rate of a new size, to two digits; None if not all known sizes have their own."""
    rates = {n: entry.learning_rate for n, entry in known.items() if entry.learning_rate is not None}
    if len(rates) < len(known):
        return None
    rate, exponent = _between(params, rates), rate_exponent(known)
    if exponent is not None and not min(known) <= params <= max(known):
        end = known[min(known) if params < min(known) else max(known)]
        rate *= (width / end.shape().width) ** exponent
    return float(f"{rate:.2g}")


_KEPT = ("tied_embeddings", "rope_base", "norm_epsilon", "head_width", "qkv_bias", "qk_norm", "rope_scaling")


def _resized(model: LadderEntry, shape: ModelShape, *, layers: int, heads: int) -> LadderEntry:
    """Returns an entry of the ladder with another depth and width."""
    width = round(heads * shape.width / shape.heads)
    explicit = {"layers": layers, "width": width, "heads": heads, "preset": None, "name": None}
    explicit |= {name: getattr(shape, name) for name in _KEPT}
    if shape.query_groups != shape.heads:
        explicit["query_groups"] = heads * shape.query_groups // shape.heads
    usual = LadderEntry(layers=shape.layers, width=shape.width, heads=shape.heads).shape().ffn_width
    scaled = max(16, round(shape.ffn_width * width / shape.width / 16) * 16)
    explicit["ffn_width"] = None if shape.ffn_width == usual else scaled
    return model.model_copy(update=explicit)


def _between(params: float, values: Mapping[int, float]) -> float:
    """Interpolates log y linearly over log N; constant beyond the ends."""
    sizes = np.log(list(values))
    return float(np.exp(np.interp(math.log(params), sizes, np.log(list(values.values())))))


def add_runs(path: Path, runs: Iterable[ListedRun], *, remark: str) -> None:
    """Adds runs to the ``runs`` of a study file, one line each; everything else in the file stays as it is.

    The text is edited at the places that PyYAML's parser reports. A round trip through a YAML library would keep the
    comments but not the layout: it joins entries that the user wrapped, and indents all lists alike.

    Args:
        path: the study file; replaced atomically.
        runs: runs to add.
        remark: a comment before them.

    Raises:
        InputError: a file in which no place for them can be found.
    """
    path = path.resolve()  # the file itself, where the name is a link
    text = read_text(path)
    before = parse_yaml(text, where=str(path))
    entries = [run.model_dump(exclude_none=True) for run in runs]
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
    """Returns the text of a study file with more entries in ``runs``."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    node = next((value for key, value in root.value if key.value == "runs"), None)
    block = [f"# {remark}", *(f"- {entry}" for entry in entries)]
    if node is None:
        return text.removesuffix("\n") + "\n\nruns:\n" + "".join(f"  {line}\n" for line in block)
    if isinstance(node, yaml.SequenceNode) and node.value and node.flow_style:
        return _with_flow_entries(text, node, entries, remark)
    if isinstance(node, yaml.SequenceNode) and node.value:
        return _with_lines(text, _last_line(node) + 1, block, " " * node.start_mark.column)
    # No list yet, or an empty one in brackets.
    start, end = node.start_mark.index, node.end_mark.index
    return _with_lines(text[:start].rstrip(" ") + text[end:], node.start_mark.line + 1, block, "  ")


def _with_flow_entries(text: str, node: yaml.SequenceNode, entries: list[str], remark: str) -> str:
    """Returns the text with more entries before the bracket that closes a list; comments in the list stay."""
    last, close = node.value[-1].end_mark.index, node.end_mark.index - 1
    comma = "" if re.search(r"^[^#\n]*,", text[last:close], flags=re.M) else ","
    tail = text[last:close].rstrip(" \n")
    added = "".join(f"\n  {one}," for one in entries).removesuffix(",")
    end = "\n" if "\n" in text[last:close] else ""
    return f"{text[:last]}{comma}{tail}\n  # {remark}{added}{end}{text[close:]}"


def _with_lines(text: str, at: int, block: list[str], margin: str) -> str:
    """Returns the text with lines inserted before line ``at``."""
    lines = text.removesuffix("\n").split("\n")
    return "\n".join([*lines[:at], *(margin + line for line in block), *lines[at:]]) + "\n"


def _last_line(node: yaml.Node) -> int:
    """Returns the line on which a block ends; PyYAML's own mark is after the blank lines and comments that follow."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style:
        return int(node.end_mark.line)
    last = node.value[-1]
    return _last_line(last[1] if isinstance(last, tuple) else last)
