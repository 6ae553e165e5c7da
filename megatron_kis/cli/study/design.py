"""The design check of ``kis study plan``: what a study can show, and what to change before it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_kis.common.errors import printable
from megatron_kis.common.units import in_table, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megatron_kis.analysis.design_check import DesignCheck, Simulated
    from megatron_kis.config.study import StudyConfig
    from megatron_kis.study.preflight import Remark

_NO_USE = 1000  # a wider interval says nothing
_MANY_TIMES = 4  # number of times that a text is read, beyond which more text would help


class Design:
    """The assessment of a study, for the terminal and for JSON."""

    def __init__(self, study: StudyConfig, rows: Sequence[dict[str, Any]], remarks: Sequence[Remark]) -> None:
        """Judges a study.

        Args:
            study: the study.
            rows: its runs, as ``study.grid.plan_rows`` has them.
            remarks: what ``check_study`` found weak.

        Raises:
            InputError: what makes its analysis impossible.
        """
        from megatron_kis.analysis.design.outline import outline_of
        from megatron_kis.analysis.design.requirements import requirements
        from megatron_kis.analysis.design_check import design_check

        outline = outline_of(study, rows)
        self.check: DesignCheck = design_check(outline, study.analysis, study.predict)
        weak = [*remarks, *requirements(outline, study.analysis, study.predict)]
        self.remarks = list(dict.fromkeys([*weak, *self.check.remarks, *_read_often(rows)]))

    def record(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return {**self.check.record(), "remarks": [remark.record() for remark in self.remarks]}

    def lines(self) -> list[str]:
        """Returns it for the terminal."""
        return [printable(line) for line in [*self._shown(), *self._weak()]]

    def _shown(self) -> list[str]:
        check = self.check
        lines = []
        for power in check.powers:
            seeds = plural(power.seeds, "seed")
            lines.append(
                f"{power.group}: {plural(power.facts, 'fact')}, {seeds}: a level is distinguished from chance at "
                "a rate of "
                f"{power.told:.2f}, and a fall of {power.detectable:.2f} is seen (needed: {power.needed:.2f})"
            )
        if check.known:
            likely = [known.exposures for known in check.known if known.likely]
            least = min(check.known, key=lambda known: known.share)
            lines.append(
                f"background without infusion: {len(likely)} of {len(check.known)} groups and models likely known; "
                f"least {least.share:.0%} of what can be known, {plural(least.exposures, 'exposure')} at N = "
                f"{in_table(least.params)}"
            )
        lines += [self._simulated(one) for one in check.simulated]
        return lines and ["design check: what this study can show", *(f"- {line}" for line in lines)]

    def _simulated(self, one: Simulated) -> str:
        symbol = one.slice.symbol_at_transition
        line = (
            f"{one.kind} of {one.group} facts, in {one.studies} simulated studies with the transition in the "
            "middle of the levels:"
            f" found in {one.found:.0%} of {plural(one.models, 'model')}"
        )
        if one.factor is not None:
            line += f", {symbol} within a factor of {one.factor:.2g}"
        if not self.check.targets:
            return line
        line += f"; {one.validated} of {one.studies} studies have a law to rely on"
        factors = [
            f"{_factor(factor)} at N = {params:.3g}"
            for (params, _), factor in zip(self.check.targets, one.law_factors, strict=True)
            if factor is not None
        ]
        return f"{line}, with prediction intervals {', '.join(factors)} wide" if factors else line

    def _weak(self) -> list[str]:
        if not self.remarks:
            return ["design check: nothing to change"]
        return ["change before training:", *(f"- {remark}" for remark in self.remarks)]


def _factor(factor: float) -> str:
    return f"a factor of {factor:.2g}" if factor < _NO_USE else f"more than a factor of {_NO_USE:,}"


def _read_often(rows: Sequence[dict[str, Any]]) -> list[Remark]:
    """Returns the remark that the general text is read many times."""
    from megatron_kis.study.preflight import Remark

    most = max(row["epochs"] for row in rows)
    if most <= _MANY_TIMES:
        return []
    tokens = max(row["tokens"] for row in rows)
    problem = f"the general text is read {most:.1f} times, so that a model also memorises the text itself"
    change = (
        f"give {most / _MANY_TIMES:.1f} times as much text, or budgets of {in_table(int(tokens * _MANY_TIMES / most))}"
    )
    return [Remark("data.text", problem, change)]
