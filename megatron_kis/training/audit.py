"""Exposures that a run planned for its facts, compared with those that they received."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json
from megatron_kis.common.identity import RUN_FILE, RUN_SCHEMA, changed_data, short
from megatron_kis.common.progress import Progress
from megatron_kis.common.terms import RENDERED_GROUPS
from megatron_kis.common.units import plural
from megatron_kis.data.ledger import LEDGER_SCHEMA, Ledger

_SEQUENCES_PER_PASS = 64


def is_run(folder: Path) -> bool:
    """Returns whether a folder holds a run."""
    return (folder / RUN_FILE).exists()


def audit_run(folder: Path, *, recount: Progress | None = None) -> dict[str, Any]:
    """Compares the exposures that a run planned with those that were counted in the sequences it was fed.

    Args:
        folder: folder of a run that has reached its end.
        recount: assemble every sequence again from the data on disk and count there, too, with this progress; if the
            counts agree, plan and data are still those of the run.

    Returns:
        ``run``, ``sequences``, ``infusion_ratio``; and by group ``facts``, ``expected``, ``received`` (exposures of all
        facts), ``fewest``, ``most``, and ``differences``: {fact: {expected, received, recounted}}.

    Raises:
        InputError: no run, one that has not reached its end, or damaged files.
    """
    record = read_json(folder / RUN_FILE, RUN_SCHEMA, keys=("run", "config", "plan", "fingerprints"))
    path = folder / "exposures.json"
    if not path.exists():
        remedy = "a run writes it at its end; resume it with kis train"
        raise InputError("is not there yet", where=str(path), remedy=remedy)
    ledger = read_json(path, LEDGER_SCHEMA, keys=("expected", "received", "sequences", "infusion_ratio", "plan"))
    recounted = _recount(record, folder, recount) if recount else None
    result: dict[str, Any] = {name: ledger[name] for name in ("sequences", "infusion_ratio")}
    result["run"] = record["run"]
    result["recounted"] = recounted is not None
    for group in RENDERED_GROUPS:
        received, promised = ledger["received"][group], ledger["expected"][group]
        expected = promised.get("by_fact") or dict.fromkeys(received, promised.get("each", 0))
        again = recounted[group] if recounted else received
        if not set(expected) == set(received) == set(again):
            raise InputError(f"names other {group} facts than it counts", where=str(path), remedy="run it again")
        counts = received.values()
        result[group] = {
            "facts": len(received),
            "expected": sum(expected.values()),
            "received": sum(counts),
            "fewest": min(counts, default=0),
            "most": max(counts, default=0),
            "differences": {
                fact: {"expected": expected[fact], "received": count, "recounted": again[fact]}
                for fact, count in received.items()
                if not expected[fact] == count == again[fact]
            },
        }
    return result


def describe_audit(result: dict[str, Any], *, most: int = 20) -> list[str]:
    """Returns the result of ``audit_run`` as lines to read."""
    again = ", counted again from the data" if result["recounted"] else ""
    lines = [
        f"{result['run']}: {plural(result['sequences'], 'sequence')}, infusion ratio "
        f"{result['infusion_ratio']:.6f}{again}",
        f"{'group':<12}{'facts':>10}{'expected':>14}{'received':>14}{'fewest':>10}{'most':>10}{'different':>12}",
    ]
    for group in RENDERED_GROUPS:
        row = result[group]
        lines.append(
            f"{group:<12}{row['facts']:>10}{row['expected']:>14}{row['received']:>14}{row['fewest']:>10}"
            f"{row['most']:>10}{len(row['differences']):>12}"
        )
        for fact, counts in list(row["differences"].items())[:most]:
            found = f", {counts['recounted']} in the data now" if result["recounted"] else ""
            lines.append(f"  {fact}: {counts['expected']} expected, {counts['received']} received{found}")
        if len(row["differences"]) > most:
            lines.append(f"  and {len(row['differences']) - most} more")
    return lines


def differences_of(result: dict[str, Any]) -> int:
    """Returns the number of facts that did not get the planned exposures."""
    return sum(len(result[group]["differences"]) for group in RENDERED_GROUPS)


def _recount(record: dict[str, Any], folder: Path, progress: Progress) -> dict[str, dict[str, int]]:
    """Counts exposures in the sequences that the run's configuration gives now, by group and fact."""
    from megatron_kis.config.recorded import recorded_config
    from megatron_kis.training.artifacts import QUESTIONS
    from megatron_kis.training.inputs import open_inputs

    own = folder / QUESTIONS
    inputs = open_inputs(recorded_config(record, folder), questions=own if own.exists() else None)
    then, now = record["fingerprints"], inputs.fingerprints
    changed = changed_data(then, now, model_sha256=inputs.tokenizer.model_sha256)
    for name in (one for one in changed if one in now):
        raise InputError(
            f"was trained on another {name} ({short(then.get(name))}, now {short(now[name])})",
            where=str(folder),
            remedy="count again where its data are",
        )
    ledger = Ledger(inputs.store)
    sequences = len(inputs.plan)
    firsts, steps = range(0, sequences, _SEQUENCES_PER_PASS), -(-sequences // _SEQUENCES_PER_PASS)
    for first in progress.track(firsts, description=f"counting, {_SEQUENCES_PER_PASS} sequences per step", total=steps):
        numbers = range(first, min(first + _SEQUENCES_PER_PASS, sequences))
        for number, sample in zip(numbers, inputs.dataset.__getitems__(numbers), strict=True):
            ledger.observe(sample["tokens"].numpy(), inputs.plan[number])
    return {
        group: dict(zip(inputs.store.ids(group), ledger.received[group].tolist(), strict=True))
        for group in RENDERED_GROUPS
    }
