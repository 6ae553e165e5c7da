"""How the laws of a report were fitted, law by law: the page describes the method that was used, and no other."""

from __future__ import annotations

from megatron_kis.analysis.findings.result import AnalysisResult
from megatron_kis.analysis.law.law import Law
from megatron_kis.analysis.law.looks import percent
from megatron_kis.analysis.report import formatting as fmt


def methods(result: AnalysisResult) -> list[str]:
    """Returns sentences on the laws; none where there is no law."""
    laws = result.laws
    if not laws:
        return []
    form = (
        "The form with a term for everything that was varied is used, unless another one predicts the largest N, held "
        "out, better by more than one unit of log score."
        if result.settings.law == "auto"
        else f"The form “{result.settings.law}” was declared."
    )
    said = [
        f"The logarithm of the transition’s dose is linear in log N and log D, with a scatter σ between models. {form}"
    ]
    curves = [law for law in laws if law.surface is not None]
    points = [law for law in laws if law.surface is None]
    level = percent(laws[0].confidence)
    if curves:
        said.append(
            f"{_names(curves)}: from the answers of all runs, in one likelihood of all curves; points are drawn for "
            f"the eye. The {level} interval of a new model is that of the likelihood’s draws, for a law that may bend "
            "in log N beyond the sizes trained."
        )
    if points:
        bent = [law for law in points if law.bend is not None]
        may = ", and a bend in log N beyond the sizes trained" if len(bent) == len(points) else ""
        if bent and not may:
            may = f", for {_names(bent)} also a bend in log N beyond the sizes trained"
        said.append(
            f"{_names(points)}: from the points, by censored regression: a bracket or an open end contributes the "
            f"probability of its interval (σ by REML, Knapp–Hartung scaling). The {level} interval of a new model is "
            f"Student’s t of the law’s mean and of the scatter{may}."
        )
    said += _bootstrap(laws)
    return said


def _bootstrap(laws: list[Law]) -> list[str]:
    """Returns what was resampled, as a check of the intervals."""
    checked = [law for law in laws if law.calibration]
    if not checked:
        return []
    numbers = sorted({int(law.calibration["resamples"]) for law in checked if law.calibration})
    counts = " or ".join(f"{number:,}" for number in numbers)
    kinds = list(dict.fromkeys(str(law.calibration.get("method", "")) for law in checked if law.calibration))
    how = fmt.listed([kind for kind in kinds if kind])
    return [
        f"In addition, as a check and not as the interval: {counts} bootstrap resamples{f' ({how})' if how else ''}."
    ]


def _names(laws: list[Law]) -> str:
    return fmt.listed([fmt.kind_title(law.kind, law.group, law.slice) for law in laws])
