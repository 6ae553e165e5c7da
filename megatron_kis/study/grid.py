"""The runs of a study: every cell (N, D, F) of its grid with every seed, and those it lists, as configurations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from megatron_kis.common.configuration import Config, parse_config
from megatron_kis.common.errors import InputError, KisError
from megatron_kis.common.identifiers import same_place
from megatron_kis.common.units import short_count
from megatron_kis.config.data import DataConfig, InfusionConfig
from megatron_kis.config.layout import check_layouts
from megatron_kis.config.run import ModelConfig, RunConfig, TrainingConfig
from megatron_kis.config.study import RungConfig, StudyConfig
from megatron_kis.config.vocabulary import VOCABULARY_MULTIPLE
from megatron_kis.data_tools.tokenizers.base import load_tokenizer


@dataclass(frozen=True)
class Spot:
    """Where a run of a study stands."""

    rung: RungConfig
    """Its size."""

    tokens: int
    """Budget D as the study names it; the run feeds whole batches of it."""

    frequency: int
    """F, exposures a fact."""

    seed: int
    """Seed."""

    @property
    def name(self) -> str:
        """Of the run and its folder."""
        return f"{self.rung.label}_D{short_count(self.tokens)}_F{self.frequency}_s{self.seed}"


def spots_of(study: StudyConfig) -> list[Spot]:
    """Every run of the grid, then those listed beside it."""
    rungs = {rung.label: rung for rung in study.ladder}
    grid = [Spot(rung, *cell) for rung in study.ladder for cell in study.grid_of(rung)]
    return grid + [Spot(rungs[run.size], run.tokens, run.frequency, run.seed) for run in study.runs]


def runs_of(study: StudyConfig, data: DataConfig) -> list[RunConfig]:
    """The runs of a study, the most expensive first (so that none is left alone at the end).

    Raises:
        InputError: a combination that no run can have, a layout that cannot hold its model or share its batches, or two
            runs of one name.
    """
    make = _Maker(study, data)
    runs = [make.run(spot) for spot in spots_of(study)]
    check_layouts(runs, vocabulary=_vocabulary(study))
    folded, count = Counter(same_place(run.name) for run in runs).most_common(1)[0]
    if count > 1:
        names = dict.fromkeys(repr(run.name) for run in runs if same_place(run.name) == folded)
        called = " and ".join(list(names)[:3])
        raise InputError(
            f"{count} runs would be called {called}", where="ladder", remedy="give each size its own 'name'"
        )
    return sorted(runs, key=cost, reverse=True)


def _vocabulary(study: StudyConfig) -> int | None:
    """Pieces of the study's tokenizer, before it is made; None where it does not matter or is not known yet."""
    if all(VOCABULARY_MULTIPLE % rung.parallel.tensor == 0 for rung in study.ladder):
        return None  # whatever the tokenizer, the padded rows can be split
    if study.data.tokenizer is None:
        return study.data.vocab_size
    try:
        return load_tokenizer(study.data.tokenizer).vocab_size
    except KisError:  # who prepares the data says so
        return None


def cost(run: RunConfig) -> float:
    """Relative cost of a run: weights x tokens."""
    return _weights(run.model) * float(run.training.token_budget)


@lru_cache(maxsize=1024)
def _weights(model: ModelConfig) -> int:
    return model.shape().nonembedding_params()


class _Maker:
    """Makes runs of spots. What several runs share is checked once: a study may have ten thousand."""

    def __init__(self, study: StudyConfig, data: DataConfig) -> None:
        self._study, self._data = study, data
        self._sections: dict[tuple[str, Any], Config] = {}
        self._shared = study.training.model_dump(exclude={"optimizer"})

    def run(self, spot: Spot) -> RunConfig:
        """The run of a spot.

        Raises:
            InputError: settings that no run can have.
        """
        study, rung = self._study, spot.rung
        content = {
            "name": spot.name,
            "study": study.name,
            "output": study.runs_folder / spot.name,
            "device": study.device,
            "data": self._data,
            "model": self._section("model", ModelConfig, id(rung), spot),
            "training": self._section("training", TrainingConfig, (id(rung), spot.tokens, spot.seed), spot),
            "infusion": self._section("infusion", InfusionConfig, spot.frequency, spot),
            "documents": study.documents,
            "checkpoints": study.checkpoints,
            "parallel": rung.parallel,
            "probes": study.probes,
            "validation": study.validation,
            "logging": study.logging,
        }
        return parse_config(RunConfig, content, source=f"run {spot.name}")

    def _section(self, name: str, kind: type[Config], key: Any, spot: Spot) -> Config:
        if (name, key) not in self._sections:
            content = getattr(self, f"_{name}")(spot)
            self._sections[name, key] = parse_config(kind, content, source=f"run {spot.name}: {name}")
        return self._sections[name, key]

    def _model(self, spot: Spot) -> dict[str, Any]:
        return spot.rung.model_dump(include=set(ModelConfig.model_fields))

    def _training(self, spot: Spot) -> dict[str, Any]:
        optimizer = self._study.training.optimizer
        if spot.rung.learning_rate is not None:
            optimizer = optimizer.model_copy(update={"learning_rate": spot.rung.learning_rate})
        own = {} if spot.rung.micro_batch_size is None else {"micro_batch_size": spot.rung.micro_batch_size}
        return {"token_budget": spot.tokens, "seed": spot.seed, "optimizer": optimizer, **self._shared, **own}

    def _infusion(self, spot: Spot) -> dict[str, Any]:
        study = self._study
        return {
            "frequency": spot.frequency,
            "background": study.background,
            "schedule": study.schedule,
            "templates": study.templates,
        }
