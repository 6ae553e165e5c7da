"""How much to infuse into a model that was not trained: in words, and as probabilities and rates against the dose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.decision import INDEPENDENT, NOT_RECOMMENDED, USED_UP, Decision
from megatron_kis.analysis.law.looks import percent
from megatron_kis.analysis.law.new_model import NewModel
from megatron_kis.analysis.law.predicted_curve import EARLY, band, kept, known
from megatron_kis.analysis.report import formatting as fmt
from megatron_kis.analysis.report.axes import label_log_axis
from megatron_kis.analysis.report.figures import Drawing
from megatron_kis.analysis.report.theme import COLOURS, Panel, kind_colour, panel, to_svg
from megatron_kis.analysis.runs.slices import FREQUENCY

_DOSES = 80
_CURVES = 1000  # models of which a band is the middle share
_ALMOST = 1e-3  # probability up to which the axis reaches


@dataclass(frozen=True)
class Advice:
    """One decision of the report."""

    title: str
    sentence: str
    drawings: list[Drawing]
    warnings: tuple[str, ...]


def advice(result: AnalysisResult) -> list[Advice]:
    """Returns what the report says of every decision."""
    return [
        Advice(_title(decision), sentence(decision), _drawings(decision), _beside(decision))
        for decision in result.decisions
    ]


def _beside(decision: Decision) -> tuple[str, ...]:
    """Returns the warnings that the sentence does not say: it calls a dose that nothing recommends an estimate."""
    return tuple(warning for warning in decision.warnings if not warning.endswith(NOT_RECOMMENDED))


def _title(decision: Decision) -> str:
    return f"N = {fmt.size(decision.params)}, D = {fmt.size(decision.tokens)}{fmt.along(decision.slice)}"


def sentence(decision: Decision) -> str:
    """Puts a decision into words."""
    level = percent(decision.confidence)
    kinds = list(dict.fromkeys((limit.kind, limit.group) for limit in decision.limits))
    of_text = "loss on general text beyond its tolerance"
    lost = [of_text if kind == "tolerance" else _lost(kind, group) for kind, group in kinds]
    if decision.dose is None:
        return (
            f"There is no dose at which {fmt.listed(lost)} is avoided with {level}: by these laws not even at "
            f"{fmt.smallest_dose(decision.slice)}. What is lost first: {decision.limited_by}."
        )
    often = decision.slice.axis == FREQUENCY
    dose = fmt.frequency(decision.dose) if often else fmt.facts(decision.dose)
    amounts = ", ".join(
        f"{name} {value}" if name == "infusion ratio" else f"{value} {name}"
        for name, value in fmt.amounts(decision.amounts)
    )
    said = (
        f"show each fact at most {fmt.counted(dose, 'time')}"
        if often
        else f"infuse at most {fmt.counted(dose, 'fact')}"
    )
    if any(model.prediction.recommended is None for model in decision.models):
        said = f"as a first estimate, {said}"
    text = f"{said[0].upper()}{said[1:]}{f' ({amounts})' if amounts else ''}. "
    text += f"With a probability of {level} there is {fmt.listed([f'no {name}' for name in lost])} at that dose."
    if len(decision.limits) > 1 or decision.limited_by == USED_UP:
        text += f" Limited by: {decision.limited_by}."
    if decision.learned is not None:
        text += (
            " Facts are learned at that dose with a probability of "
            f"{fmt.probability(decision.learned.probability)}; for {level} it takes "
            f"{fmt.dose(decision.slice, decision.learned.dose)}."
        )
    return text


def _lost(kind: str, group: str) -> str:
    return "loss beyond its tolerance" if kind == "tolerance" else f"{kind} of {fmt.group_words(group)}"


def _drawings(decision: Decision) -> list[Drawing]:
    """Draws probabilities against the dose, with the choice; and the predicted curves, where the laws predict them."""
    x = _log_doses(decision)
    shares = _shares(decision, x)
    return [_probabilities(decision, x), *([_curves(decision, x, shares)] if shares else [])]


def _probabilities(decision: Decision, x: np.ndarray) -> Drawing:
    one = decision.slice
    doses = np.exp(x).tolist()
    alt = f"Probability that nothing is lost against the {fmt.dose_name(one)}, {_title(decision)}."
    with _panel(decision, "decision", alt, x) as drawn:
        axes = drawn.axes
        for model in decision.models:
            law = model.law
            colour = kind_colour(law.kind, law.group)
            label = f"no {_lost(law.kind, law.group)}"
            drawn.line(doses, model.beyond(x).tolist(), series="limit", colour=colour, linewidth=1.2, label=label)
        if decision.onset is not None:
            learned = (1 - decision.onset.beyond(x)).tolist()
            drawn.line(doses, learned, series="learned", colour="onset", linewidth=1.2, label="facts are learned")
        drawn.line(
            doses, decision.kept(x).tolist(), series="kept", colour="ink", linewidth=2.4, label="nothing is lost"
        )
        axes.axhline(decision.confidence, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
        if decision.dose is not None and decision.probability is not None:
            tip = f"{fmt.decided(decision)}\nnothing lost with {fmt.probability(decision.probability)}"
            drawn.points(
                [decision.dose],
                [decision.probability],
                [tip],
                series="decision",
                colour="ink",
                marker="*",
                markersize=12,
                zorder=5,
            )
        axes.set_ylabel("probability")
        _legend(drawn)
        return Drawing(to_svg(drawn), _caption(decision))


def _curves(decision: Decision, x: np.ndarray, shares: dict[str, np.ndarray]) -> Drawing:
    """Draws the predicted curves of shares [R, L] by group, with their bands."""
    doses = np.exp(x).tolist()
    alt = f"Predicted shares of facts known against the {fmt.dose_name(decision.slice)}, {_title(decision)}."
    with _panel(decision, "predicted", alt, x) as drawn:
        for group, drawn_from in shares.items():
            middle, low, high = band(drawn_from, decision.confidence)
            label = {"infused": "infused facts known", "background": "background knowledge kept"}[group]
            drawn.line(doses, middle.tolist(), series="share", colour=group, linewidth=1.8, label=label)
            drawn.axes.fill_between(doses, low, high, color=COLOURS[group], alpha=0.14, linewidth=0)
        drawn.axes.set_ylabel("share, corrected for chance")
        _legend(drawn)
        level = percent(decision.confidence)
        return Drawing(to_svg(drawn), f"The predicted curves. Bands: {level} of such models at each dose.")


@contextmanager
def _panel(decision: Decision, name: str, alt: str, x: np.ndarray) -> Iterator[Panel]:
    one = decision.slice
    whole = fmt.slug(name, str(decision.params), str(decision.tokens), one.name)
    with panel(whole, alt, height=3.4) as drawn:
        axes = drawn.axes
        drawn.make_room(below=1.15, above=0.32)
        axes.set_xscale("log")
        axes.set_ylim(-0.02, 1.04)
        axes.set_xlim(math.exp(x[0]), math.exp(x[-1]))
        label_log_axis(axes.xaxis, fmt.frequency)
        axes.set_xlabel(f"{one.symbol} ({one.unit})")
        axes.set_title({"decision": "Probability that nothing is lost", "predicted": "Predicted curves"}[name])
        if decision.dose is not None:
            axes.axvline(decision.dose, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
        yield drawn


def _legend(drawn: Panel) -> None:
    drawn.axes.legend(
        loc="upper center", bbox_to_anchor=(0.45, -0.19), ncols=2, fontsize=10, handlelength=1.4, columnspacing=1.0
    )


def _log_doses(decision: Decision) -> np.ndarray:
    """Returns [L] log doses over which anything changes, up to all tokens of the budget."""
    models = [*decision.models, *([] if decision.onset is None else [decision.onset])]
    wide = np.linspace(math.log(0.1), math.log(1e7), 400)
    changes = np.array([(p > _ALMOST) & (p < 1 - _ALMOST) for p in (model.beyond(wide) for model in models)])
    between = wide[changes.any(axis=0)] if changes.any() else wide
    last = float(between[-1]) if decision.most is None else min(float(between[-1]), math.log(decision.most))
    dose = math.log(decision.dose or 1.0)
    return np.linspace(min(float(between[0]), dose) - 0.3, max(last, dose + 0.1), _DOSES)


def _shares(decision: Decision, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns draws [R, L] of the shares of infused facts known, and of background knowledge kept, by group."""
    found = {}
    if decision.onset is not None and decision.onset.surface is not None:
        found["infused"] = known(decision.onset, x, _CURVES, _generator())
        infused = _of(decision, "infused")
        if infused is not None:
            found["infused"] = found["infused"] * _kept(infused, x)
    background = _of(decision, "background")
    if background is not None:
        found["background"] = _kept(background, x)
    return found


def _of(decision: Decision, group: str) -> NewModel | None:
    """Returns the law of a group's collapse, where it predicts whole curves."""
    wanted = ("collapse", group)
    found = (m for m in decision.models if (m.law.kind, m.law.group) == wanted and m.surface is not None)
    return next(found, None)


def _kept(model: NewModel, x: np.ndarray) -> np.ndarray:
    """Returns [R, L] shares that are kept of what is known without infusion."""
    return np.asarray(kept(model, np.concatenate([[EARLY], x]), _CURVES, _generator())[:, 1:])


def _generator() -> np.random.Generator:
    return np.random.default_rng(0)


def _caption(decision: Decision) -> str:
    end = "" if decision.most is None else f" All tokens are used at {fmt.dose(decision.slice, decision.most)}."
    return f"Star: the chosen dose. {INDEPENDENT[0].upper()}{INDEPENDENT[1:]}.{end}"
