"""The runs of a study as configurations, and what each feeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from megatron_kis.common.configuration import Config, parse_config
from megatron_kis.common.errors import InputError, KisError
from megatron_kis.common.identifiers import same_place
from megatron_kis.config.data import DataConfig, InfusionConfig
from megatron_kis.config.layout import check_layouts
from megatron_kis.config.run import CheckpointConfig, ModelConfig, RunConfig, TrainingConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.config.training import resolve_precision
from megatron_kis.config.vocabulary import VOCABULARY_MULTIPLE, padded_vocabulary
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.study.specs import RunSpec, expand_grid
from megatron_kis.study.written import naming_keys, of_some_run

_AXES = {"token_budgets", "facts", "frequencies", "infusion_ratios", "seeds"}
"""What an entry of the ladder may have of the grid."""


def runs_of(study: StudyConfig, data: DataConfig) -> list[RunConfig]:
    """Returns the runs of a study, the most expensive first (so that none is left alone at the end), trunks before all.

    Raises:
        InputError: a combination that no run can have, a layout that cannot hold its model or share its batches, or two
            runs of one name.
    """
    builder = _RunConfigBuilder(study, data)
    specs = expand_grid(study)
    runs = []
    for spec in specs:
        with naming_keys(study, spec):
            runs.append(builder.build(spec))
    try:
        check_layouts(runs, vocabulary=_vocabulary(study))
    except InputError as error:
        raise of_some_run(error, study) from None
    folded, count = Counter(same_place(run.name) for run in runs).most_common(1)[0]
    if count > 1:
        names = dict.fromkeys(repr(run.name) for run in runs if same_place(run.name) == folded)
        called = " and ".join(list(names)[:3])
        entries = [spec.entry for spec in specs if same_place(spec.name) == folded]
        places = [f"ladder.{number}" for number, entry in enumerate(study.ladder) if entry in entries]
        settings = [entry.model_dump(exclude=_AXES) for entry in entries]
        same = len(names) == 1 and all(one == settings[0] for one in settings)
        remedy = "leave that run out of all but one of them" if same else "give each size its own 'name'"
        raise InputError(
            f"{count} runs would be called {called} ({' and '.join(places)})", where="ladder", remedy=remedy
        )
    return sorted(runs, key=lambda run: (run.trunk is not None, -cost(run)))


def _vocabulary(study: StudyConfig) -> int | None:
    """Returns the vocabulary size before the tokenizer is made; None where it does not matter or is not known yet."""
    if all(VOCABULARY_MULTIPLE % entry.parallel.tensor == 0 for entry in study.ladder):
        return None  # whatever the tokenizer, the padded rows can be split
    if study.data.tokenizer is None:
        return study.data.vocab_size
    try:
        return load_tokenizer(study.data.tokenizer).vocab_size
    except KisError:  # the preparation of the data says so
        return None


def cost(run: RunConfig, own: float | None = None) -> float:
    """Returns the relative cost of a run: weights x tokens that it trains itself.

    Args:
        run: the run.
        own: share of its steps that it trains itself, where its record says so; ``own_share`` if not given.
    """
    return _weights(run.model) * float(run.training.token_budget) * (own_share(run) if own is None else own)


def own_share(run: RunConfig) -> float:
    """Returns the share of its steps that a run is to train itself; the others are its trunk's."""
    return 1.0 if run.trunk is None else 1.0 - run.begin_step / run.training.steps


@lru_cache(maxsize=1024)
def _weights(model: ModelConfig) -> int:
    return model.shape().nonembedding_params()


def plan_rows(study: StudyConfig, runs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Returns one row per run: its size, budget, infusion and cost.

    Seeds share what is shown of a plan, so one of them is opened: ten thousand runs are a few hundred plans. Each run's
    own plan is checked before any starts.

    Args:
        study: the study, whose keys errors name.
        runs: its runs.

    Raises:
        InputError: data that are missing or a plan that does not fit.
    """
    from megatron_kis.study.doses import check_ratio, facts_shown
    from megatron_kis.training.inputs import InputsOfMany, plan_key

    opened = InputsOfMany()
    rows = []
    shared: dict[Any, tuple[dict[str, Any], int]] = {}
    for run in runs:
        key = plan_key(run, seed=False)
        if key not in shared:  # sizes share their plans, too
            with naming_keys(study, run.name):
                inputs = opened.open(run)
                plan = inputs.plan
                check_ratio(run, plan)
            fed: dict[str, Any] = {
                "tokens": plan.token_budget,
                "facts": facts_shown(plan),
                "infusion_frequency": plan.infusion_frequency,
                "configured_ratio": run.infusion.ratio,
                "infusion_ratio": plan.infusion_ratio,
                "background_frequency": plan.background_frequency,
                "background_groups": [group.model_dump() for group in run.infusion.background.groups],
                "background_facts": len(plan.expected("background")),
                "epochs": max(read.epochs for read in inputs.text.epochs(len(plan))),
            }
            shared[key] = (fed, padded_vocabulary(inputs.vocabulary))
        fed, vocabulary = shared[key]
        params, nonembedding, flops = _size(run.model, vocabulary, run.training.sequence_length)
        rows.append(
            {
                "run": run.name,
                "size": run.model.label,
                "params": params,
                "nonembedding_params": nonembedding,
                **fed,
                "seed": run.training.seed,
                "flops": flops * fed["tokens"] * own_share(run),
                "checkpoint_bytes": params * _bytes_per_parameter(run),
                "trunk": None if run.trunk is None else run.trunk.name,
            }
        )
    return rows


@lru_cache(maxsize=1024)
def _size(model: ModelConfig, vocabulary: int, length: int) -> tuple[int, int, float]:
    """Returns N, N without embeddings, and FLOPs per token."""
    shape = model.shape()
    return shape.params(vocabulary), shape.nonembedding_params(), shape.flops_per_token(vocabulary, length)


def _bytes_per_parameter(run: RunConfig) -> int:
    """Returns the bytes of a checkpoint for each parameter: the weight, and the optimizer's state in fp32."""
    precision = resolve_precision(run.training.precision, cpu=run.device == "cpu")
    return 4 + 8 if precision == "fp32" else 2 + 12


def _with_branching(study: StudyConfig) -> CheckpointConfig:
    """Returns the settings of a trunk's checkpoints: that from which others branch stays."""
    settings = study.checkpoints
    if study.trunk is None or study.trunk.share in settings.moments.shares:
        return settings
    shares = tuple(sorted((*settings.moments.shares, study.trunk.share)))
    return settings.replace(moments=settings.moments.replace(shares=shares))


class _RunConfigBuilder:
    """Builds the configurations of runs. Sections that runs share are checked once: a study may have ten thousand."""

    def __init__(self, study: StudyConfig, data: DataConfig) -> None:
        self._study = study
        self._data = data
        self._sections: dict[tuple[Any, ...], Config] = {}
        self._shared_training = study.training.model_dump(exclude={"optimizer"})
        self._trunk_checkpoints = _with_branching(study)

    def build(self, spec: RunSpec) -> RunConfig:
        """Returns the configuration of a run.

        Raises:
            InputError: settings that no run can have.
        """
        study = self._study
        entry = spec.entry
        content = {
            "name": spec.name,
            "study": study.name,
            "output": study.runs_folder / spec.name,
            "device": study.device,
            "data": self._data,
            "model": self._section("model", ModelConfig, (id(entry),), spec, self._model),
            "training": self._section(
                "training", TrainingConfig, (id(entry), spec.tokens, spec.seed), spec, self._training
            ),
            "infusion": self._section("infusion", InfusionConfig, (spec.dose,), spec, self._infusion),
            "trunk": study.runs_folder / spec.trunk.name if study.trunk and spec.dose.infuses else None,
            "documents": study.documents,
            "checkpoints": study.checkpoints if spec.dose.infuses else self._trunk_checkpoints,
            "parallel": entry.parallel,
            "probes": study.probes,
            "validation": study.validation,
            "logging": study.logging,
        }
        return parse_config(RunConfig, content, source="")

    def _section(
        self,
        name: str,
        kind: type[Config],
        key: tuple[Any, ...],
        spec: RunSpec,
        content: Callable[[RunSpec], dict[str, Any]],
    ) -> Config:
        """Returns a section, checked once per key."""
        if (name, *key) not in self._sections:
            self._sections[name, *key] = parse_config(kind, content(spec), source="", section=name)
        return self._sections[name, *key]

    def _model(self, spec: RunSpec) -> dict[str, Any]:
        return spec.entry.model_dump(include=set(ModelConfig.model_fields))

    def _training(self, spec: RunSpec) -> dict[str, Any]:
        entry = spec.entry
        optimizer = self._study.training.optimizer
        if entry.learning_rate is not None:
            optimizer = optimizer.model_copy(update={"learning_rate": entry.learning_rate})
        own = {} if entry.micro_batch_size is None else {"micro_batch_size": entry.micro_batch_size}
        return {"token_budget": spec.tokens, "seed": spec.seed, "optimizer": optimizer, **self._shared_training, **own}

    def _infusion(self, spec: RunSpec) -> dict[str, Any]:
        study = self._study
        dose = spec.dose
        facts = {} if dose.facts is None else {"facts": dose.facts}
        often = {"frequency": dose.frequency} if dose.ratio is None else {"ratio": dose.ratio}
        return {
            **facts,
            **often,
            **({} if study.trunk is None else {"begins": study.trunk.share}),
            "background": study.background,
            "schedule": study.schedule,
            "templates": study.templates,
        }
