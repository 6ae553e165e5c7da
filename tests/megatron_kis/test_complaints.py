"""What is said about wrong settings: in our words, with the key as it was written, and what would be right."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from datetime import date
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from megatron_kis.common.complaints import arms_of, fields_of
from megatron_kis.common.configuration import Config, parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.analysis import AnalysisConfig
from megatron_kis.config.run import RunConfig
from megatron_kis.config.study import StudyConfig

STUDY: dict[str, Any] = {
    "name": "s",
    "output": "out",
    "data": {"text": ["text.jsonl"], "facts": "facts.tsv", "templates": "templates.yaml", "select": {}},
    "ladder": [{"layers": 1, "width": 16, "heads": 2, "parallel": {}}],
    "token_budgets": [4096],
    "frequencies": [0, 8],
    "runs": [{"size": "1x16", "tokens": 4096, "frequency": 3}],
    "trunk": {"share": 0.5},
    "background": {"groups": [{"facts": 3, "frequency": 4}], "policy": "protected"},
    "training": {"sequence_length": 64, "global_batch_size": 8, "optimizer": {}, "guard": {}},
    "checkpoints": {"moments": {}},
    "probes": {"moments": {}},
    "validation": {"moments": {}},
    "cluster": {"data": {}, "small": {}, "large": {}, "report": {}, "container": {"kind": "pyxis", "image": "i"}},
    **{section: {} for section in ("documents", "logging", "executor", "analysis")},
}
RUN: dict[str, Any] = {
    "name": "r",
    "output": "out",
    "data": {"corpus": [{"prefix": "c", "weight": 1}], "validation": "v", "exposures": "e", "tokenizer": "t"},
    "model": {"layers": 1, "width": 16, "heads": 2},
    "training": {"token_budget": 4096, "sequence_length": 64, "global_batch_size": 8, "optimizer": {}, "guard": {}},
    "infusion": {"frequency": 3, "background": {}},
    **{section: {} for section in ("documents", "parallel", "logging")},
    **{section: {"moments": {}} for section in ("probes", "validation", "checkpoints")},
}

TABLE: list[tuple[str, Any, str]] = [
    # a list where none is, and the reverse
    ("seeds", 1, "seeds: is 1; must be a list, such as [1]"),
    ("data.text", "a.jsonl", "data.text: is 'a.jsonl'; must be a list, such as ['a.jsonl']"),
    ("seeds", {}, "seeds: is a mapping; must be a list"),
    ("seeds", None, "seeds: is empty; must be a list"),
    ("ladder", [], "ladder: is an empty list; must be a list of at least 1"),
    ("trunk", 0.5, "trunk: is 0.5; must be a mapping with keys such as share"),
    ("probes", [1], "probes: is a list; must be a mapping with keys such as moments, templates, facts_per_group,"),
    ("probes.templates", 3, "probes.templates: is 3; must be a mapping"),
    ("ladder", ["7b"], "ladder.0: is '7b'; must be a mapping with keys such as preset, name, layers, width"),
    ("background", 3, "background: is 3; must be a mapping with keys such as policy, frequency, groups, schedule"),
    # an entry of a list that stands for a section
    ("background", [3], "background.0: is 3; must be a mapping with keys such as facts, frequency"),
    ("background", [{"facts": 3}], "background.0.frequency: is missing; add it"),
    ("background", [{"facts": 3, "frequency": 0}], "background.0.frequency: is 0; must be above 0"),
    ("background", [{"facts": 3, "freqency": 1, "frequency": 2}], "background.0.freqency: unknown key; did you mean"),
    ("background", {"groups": [{"facts": 3}]}, "background.groups.0.frequency: is missing; add it"),
    # a misspelt key also leaves the right one missing
    ("background", [{"fact": 3, "frequency": 2}], "background.0.fact: unknown key; did you mean 'facts'?"),
    # percentages where shares are wanted
    ("infusion_ratios", ["30%"], "infusion_ratios.0: is '30%'; must be a number; 30% is 0.3"),
    ("infusion_ratios", [0, 30], "infusion_ratios.1: is 30; must be below 1 and at least 0; 30% is 0.3"),
    (
        "training.optimizer.warmup_share",
        5,
        "training.optimizer.warmup_share: is 5; must be below 1 and at least 0; 5% is 0.05",
    ),
    ("infusion_ratios", [400], "infusion_ratios.0: is 400; must be below 1"),
    # commas
    ("frequencies", "0, 8, 16", "frequencies: is '0, 8, 16'; must be a list, such as [0, 8, 16]"),
    ("ladder", [{"layers": 1, "learning_rate": 2, "5e-3": None}], "ladder.0.5e-3: unknown key; write a number with a"),
    # true and false are no numbers
    ("probes.facts_per_group", True, "probes.facts_per_group: is true; must be a whole number"),
    ("training.optimizer.learning_rate", True, "training.optimizer.learning_rate: is true; must be a number"),
    ("infusion_ratios", [0, False], "infusion_ratios.1: is false; must be a number"),
    ("probes.templates", {"train": True}, "probes.templates.train: is true; must be a whole number"),
    ("templates", False, "templates: is false; must be a whole number"),
    ("predict", [True], "predict.0: is true; must be a number"),
    # text and numbers
    ("training.global_batch_size", "many", "training.global_batch_size: is 'many'; must be a whole number"),
    ("training.global_batch_size", "2k", "training.global_batch_size: is '2k'; must be a whole number; write 2000"),
    ("training.global_batch_size", 1.5, "training.global_batch_size: is 1.5; must be a whole number"),
    ("training.global_batch_size", None, "training.global_batch_size: is empty; must be a whole number"),
    ("training.optimizer.beta1", "x", "training.optimizer.beta1: is 'x'; must be a number"),
    ("training.optimizer.beta1", [], "training.optimizer.beta1: is an empty list; must be a number"),
    ("name", 3, "name: is 3; must be text; put it in quotes"),
    ("output", 3, "output: is 3; must be a path; put it in quotes"),
    ("output", {}, "output: is a mapping; must be a path"),
    ("training.deterministic", "maybe", "training.deterministic: is 'maybe'; must be true or false"),
    ("training.deterministic", [], "training.deterministic: is an empty list; must be true or false"),
    # bounds
    ("trunk.share", 0, "trunk.share: is 0; must be above 0 and below 1"),
    ("trunk.share", 1, "trunk.share: is 1; must be below 1 and above 0"),
    ("trunk.share", math.nan, "trunk.share: is nan; must be a finite number, above 0 and below 1"),
    ("analysis.confidence", 1, "analysis.confidence: is 1; must be below 1 and above 0"),
    ("executor.retries", -1, "executor.retries: is -1; must be at least 0"),
    ("analysis.bend", -1, "analysis.bend: is -1; must be at least 0"),
    ("analysis.looks", -1, "analysis.looks: is -1; must be at least 0"),
    ("analysis.tolerance", 0, "analysis.tolerance: is 0; must be above 0"),
    ("probes.moments.shares", [1, 150], "probes.moments.shares.1: is 150; must be at most 1 and at least 0"),
    ("training.optimizer.decay_share", 1.5, "training.optimizer.decay_share: is 1.5; must be at most 1"),
    # neither nan nor infinity is a setting
    ("training.optimizer.learning_rate", math.inf, "training.optimizer.learning_rate: is inf; must be a finite number"),
    ("infusion_ratios", [math.nan], "infusion_ratios.0: is nan; must be a finite number"),
    ("training.global_batch_size", math.nan, "training.global_batch_size: is nan; must be a finite number"),
    # choices, alone and among others
    ("device", "tpu", "device: is 'tpu'; must be 'auto', 'cpu' or 'cuda'"),
    ("templates", "first", "templates: is 'first'; must be 'round_robin' or 'random', or a whole number"),
    ("templates", -1, "templates: is -1; must be 'round_robin' or 'random', or at least 0"),
    ("schedule", 3, "schedule: is 3; must be text, or a mapping; put it in quotes"),
    ("executor.gpus", [0], "executor.gpus.0: is 0; must be text; put it in quotes"),
    ("executor.pin", "yes please", "executor.pin: is 'yes please'; must be true or false, or 'auto'"),
    # relations
    ("data.select.relations", ["a", "b", "a"], "data.select.relations: 'a' is given twice; name each relation once"),
    ("data.select", {"control_relations": ["a", "a"]}, "data.select.control_relations: 'a' is given twice; name each"),
    # keys
    ("cluster.environment", {3: "x"}, "cluster.environment.3: a key must be text; put it in quotes"),
    ("ladr", 1, "ladr: unknown key; did you mean 'ladder'?"),
    ("analysis.toleranc", 1, "analysis.toleranc: unknown key; did you mean 'tolerance'?"),
    ("probes.templates", {"held-out": 1}, "probes.templates.held-out: unknown key; did you mean 'held_out'?"),
    ("cluster.small", {"cpu": 1}, "cluster.small.cpu: unknown key; did you mean 'cpus'?"),
    ("runs", [{"tokens": 4096, "frequency": 1}], "runs.0.size: is missing; add it"),
    (3, 1, "3: a key must be text; put it in quotes"),
    (1.5, 1, "1.5: a key must be text; put it in quotes"),
    (date(2026, 1, 2), 1, "2026-01-02: a key must be text; put it in quotes"),
    # what YAML takes for a date
    ("name", date(2026, 1, 2), "name: is 2026-01-02; must be text; put it in quotes"),
    ("output", date(2026, 1, 2), "output: is 2026-01-02; must be a path; put it in quotes"),
    ("token_budgets", [date(2026, 1, 2)], "token_budgets.0: is 2026-01-02; must be a whole number"),
]


@pytest.mark.parametrize(("place", "value", "message"), TABLE)
def test_a_wrong_value_is_named_as_it_was_written(place: Any, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(StudyConfig, changed(STUDY, place, value), source="study.yaml")
    assert str(caught.value).startswith(f"study.yaml: {message}")


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (3, "data.corpus: is 3; must be a path, or a list, such as [3]; put it in quotes"),
        ([3, "a"], ""),
        ([-1, "a"], "data.corpus: has -1; expected a weight above 0, as in"),
        ([1, "a", "b", 2], "data.corpus: has 'b'; expected a weight above 0, as in"),
        ([0.5, 3], "data.corpus: has 3; expected a prefix, as in"),
        ([0.5, ["a"]], "data.corpus: has ['a']; expected a prefix, as in"),
        ([{"prefix": "a", "weight": 0}], "data.corpus.0.weight: is 0; must be above 0"),
        ([{"prefix": "a", "wieght": 1}], "data.corpus.0.wieght: unknown key; did you mean 'weight'?"),
        (["a"], "data.corpus.0: is 'a'; must be a mapping with keys such as prefix, weight"),
    ],
)
def test_a_list_of_corpora_is_explained_by_its_entries(corpus: Any, message: str) -> None:
    content = changed(RUN, "data.corpus", corpus)
    if not message:
        assert parse_config(RunConfig, content, source="run.yaml").data.corpora[0][1] == 3
        return
    with pytest.raises(InputError) as caught:
        parse_config(RunConfig, content, source="run.yaml")
    assert str(caught.value).startswith(f"run.yaml: {message}")


def test_settings_made_in_python_are_explained_alike() -> None:
    with pytest.raises(InputError, match=r"^analysis\.resamples: is 'x'; must be a whole number$"):
        AnalysisConfig(resamples="x")  # type: ignore[arg-type]


WRONG = (
    True,
    3,
    -1,
    1.5,
    10**30,
    "x",
    "1e6",
    [],
    {},
    [3],
    [-1],
    ["x"],
    [[]],
    {"a": 1},
    {3: 1},
    math.nan,
    math.inf,
    None,
)
"""Values of every kind."""

PYDANTIC = re.compile(
    r"Input |instance|valid (tuple|dict|int|num|str|bool|list)|\(got |something else|literal\[|constrained|function-"
    r"|<class|\[key\]|lax-or|tuple\[|dict\[|\bstr\b|\bint\b"
)
"""Words of pydantic's own."""


@pytest.mark.parametrize(("kind", "base"), [(StudyConfig, STUDY), (RunConfig, RUN)], ids=["study", "run"])
def test_no_value_of_any_key_is_refused_in_the_words_of_pydantic(kind: type[Config], base: dict[str, Any]) -> None:
    parse_config(kind, base, source="file")
    refused = 0
    for place, annotation in keys_of(kind, base):
        for value in WRONG:
            try:
                parse_config(kind, changed(base, place, value), source="file")
            except InputError as error:
                refused += 1
                assert not PYDANTIC.search(str(error)), f"{place} = {value!r}: {error}"
                assert re.match(r"file: [\w.]+( |:|$)", str(error)), f"{place} = {value!r}: {error}"
            else:
                arms = {annotation, *arms_of(annotation)}
                truth = isinstance(value, bool) and arms & {int, float} and bool not in arms
                assert not truth, f"{place} takes {value!r} for a number"
                assert not (isinstance(value, float) and not math.isfinite(value)), f"{place} takes {value!r}"
    assert refused > 1000


def keys_of(kind: type[BaseModel], content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each key of a class of settings with its type, those of the sections that the content has as well."""
    for name, annotation in fields_of(kind).items():
        yield f"{place}{name}", annotation
        there = content.get(name)
        for arm in (annotation, *arms_of(annotation)):
            if fields_of(arm) and isinstance(there, dict):
                yield from keys_of(arm, there, f"{place}{name}.")
            elif get_origin(arm) is tuple and isinstance(there, list):
                for section in (get_args(arm)[0], *arms_of(get_args(arm)[0])):
                    if fields_of(section):
                        yield from keys_of(section, there[0], f"{place}{name}.0.")


def changed(content: dict[str, Any], place: Any, value: Any) -> dict[str, Any]:
    """Returns a copy of the content with another value at a place."""
    content = copy.deepcopy(content)
    *path, last = place.split(".") if isinstance(place, str) else [place]
    section: Any = content
    for part in path:
        section = section[int(part) if isinstance(section, list) else part]
    section[last] = value
    return content
