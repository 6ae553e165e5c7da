"""The runs of a study by what distinguishes them: sizes x budgets x doses x seeds of its grid, and those it lists."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_kis.common.units import short_count
from megatron_kis.config.dose import NONE, Dose
from megatron_kis.config.study import LadderEntry, StudyConfig, TrunkConfig


@dataclass(frozen=True)
class RunSpec:
    """A run of a study, by what distinguishes it from the others."""

    entry: LadderEntry
    """Size, as an entry of the ladder."""

    tokens: int
    """Budget D as the study names it; the run feeds whole batches of it."""

    dose: Dose
    """Number of infused facts, and how often each is shown."""

    seed: int
    """Seed of weights, order and exposures."""

    @property
    def name(self) -> str:
        """Name of the run and its folder."""
        return f"{self.entry.label}_D{short_count(self.tokens)}_{self.dose.label}_s{self.seed}"

    @property
    def trunk(self) -> RunSpec:
        """The run without infusion of its size, budget and seed."""
        return replace(self, dose=NONE)

    def own_tokens(self, trunk: TrunkConfig | None) -> int:
        """Returns how many tokens the run trains itself, where a study has a trunk; the others are the trunk's."""
        if trunk is None or not self.dose.infuses:
            return self.tokens
        return self.tokens - round(trunk.share * self.tokens)


def expand_grid(study: StudyConfig) -> list[RunSpec]:
    """Returns every run of the grid, then the listed runs, then the trunks that are neither."""
    entries = {entry.label: entry for entry in study.ladder}
    grid = [RunSpec(entry, *values) for entry in study.ladder for values in study.grid_of(entry)]
    named = grid + [RunSpec(entries[run.size], run.tokens, run.dose, run.seed) for run in study.runs]
    if study.trunk is None:
        return named
    names = {spec.name for spec in named}
    trunks = {spec.trunk.name: spec.trunk for spec in named}
    return named + [spec for name, spec in trunks.items() if name not in names]
