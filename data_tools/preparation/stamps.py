"""Stamps: what each step of a study's data was made from, in a form that can be read, and what came out.

``stamps/STEP.json`` (schema ``kis.stamp/2``) holds the step's ``key`` (all that decides its bytes: settings, content of
files, what it took from earlier steps, versions), ``labels`` (names of the files, which do not count), the
``fingerprint`` of both, and ``outputs`` (bytes and SHA-256 of each file). From two keys follows by name what changed.
Stamps of schema ``kis.stamp/1`` hold a fingerprint and sizes alone; they are still read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, read_json, write_json
from megatron_kis.common.identity import data_differences, differences
from megatron_kis.common.known_files import Seen
from megatron_kis.data_tools.selection.select import SelectConfig

SCHEMA = "kis.stamp/2"
OLD_SCHEMA = "kis.stamp/1"
OLD_VERSION = "2"
"""Version of the code that wrote the last stamps of the old schema."""
OF_THE_MODEL = "versions.tokenizer_fingerprint of the model file -> of all that belongs to it"
"""The difference of data that name an unchanged tokenizer by an older kind of fingerprint."""
VERSIONS = "versions."
"""Differences that begin so are of versions: no setting and no file is another."""

FileKeys = Sequence[Mapping[str, str]]
"""Of each file in order: ``sha256``, and where they decide what is read, ``kind`` or ``name``."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a study's data."""

    name: str
    """``facts``, ``tokenizer``, ``corpus`` or ``render``."""
    key: dict[str, Any]
    """``data``: settings, nested as in the study file; ``files``: content of files, by setting; ``made``: fingerprints
    of what earlier steps made; ``versions``. What is not known yet is left out."""
    outputs: tuple[str, ...]
    """Names of the files that it writes, the first of them first."""
    make: Callable[[Path], None]
    """Writes them into a folder."""
    labels: dict[str, Any] = field(default_factory=dict)
    """How files are called in messages, by setting, and where the tokenizer comes from."""
    known: bool = True
    """Whether the key is complete: all earlier steps are done."""
    old_fingerprint: str | None = None
    """What a stamp of the old schema holds; None where that is not known."""
    older_fingerprint: str | None = None
    """The same where the tokenizer counted by its model file alone."""
    settle: Callable[[Mapping[str, Any] | None], dict[str, str]] = lambda _: {}
    """Versions that are found out only by trying, given a stamp that may spare the trial."""
    recorded: Callable[[Path], dict[str, str]] = lambda _: {}
    """Versions that other files of a folder record: a stamp of the old schema has none."""


@dataclass(frozen=True, slots=True)
class State:
    """The state of a step in a folder."""

    stamped: bool
    """Whether it is known what was made there."""
    differences: list[str]
    """What it was made from otherwise than is wanted now."""
    damage: list[str]
    """Outputs that are missing or have changed."""
    found: bool
    """Whether there is any output."""
    known: bool
    """Whether all that decides the step is known by now."""
    old: bool = False
    """Whether its stamp has the old schema."""

    @property
    def fresh(self) -> bool:
        """Whether making it again would write the same bytes."""
        return self.stamped and self.known and not self.differences and not self.damage

    @property
    def of_versions(self) -> bool:
        """Whether nothing but versions differs."""
        return bool(self.differences) and all(one.startswith(VERSIONS) for one in self.differences)

    def reasons(self, step: str) -> list[str]:
        """Why it has to be made."""
        if not self.stamped:
            return [f"{step}: it is not known what was used to make it" if self.found else f"{step}: not made yet"]
        return self.differences or self.damage


def state_of(step: Step, folder: Path, seen: Seen) -> State:
    """The state of a step in a folder; nothing is written.

    Args:
        step: the step as it is wanted.
        folder: where its outputs and ``stamps`` are.
        seen: knows the content of files there.
    """
    found = any((folder / name).exists() for name in step.outputs)
    stamp = read_stamp(folder, step.name)
    if stamp is None:
        return State(stamped=False, differences=[], damage=[], found=found, known=step.known)
    damage = [text for name, entry in stamp["outputs"].items() if (text := _damage(folder / name, entry, seen))]
    old = stamp["schema"] == OLD_SCHEMA  # names the larger files alone
    unnamed = [name for name in step.outputs if name not in stamp["outputs"]]
    damage += [f"{name}: missing" for name in unnamed if not (old and (folder / name).exists())]
    return State(True, _differences(stamp, step, folder), damage, found, step.known, old)


def read_stamp(folder: Path, name: str) -> dict[str, Any] | None:
    """A step's stamp; None where it is missing or damaged."""
    path = folder / "stamps" / f"{name}.json"
    for schema, keys in ((SCHEMA, ("key", "labels")), (OLD_SCHEMA, ())):
        try:
            stamp = read_json(path, schema, keys=(*keys, "fingerprint", "outputs"))
        except InputError:
            continue
        if schema == OLD_SCHEMA and isinstance(stamp["outputs"], dict):
            stamp["outputs"] = {output: {"bytes": size} for output, size in stamp["outputs"].items()}
        return stamp if _is_whole(stamp) else None
    return None


def _is_whole(stamp: Mapping[str, Any]) -> bool:
    outputs, key = stamp["outputs"], stamp.get("key")
    if not isinstance(outputs, dict) or not all(
        isinstance(entry, dict) and "bytes" in entry for entry in outputs.values()
    ):
        return False
    return stamp["schema"] == OLD_SCHEMA or stamp["fingerprint"] == fingerprint([key, stamp["labels"]])


def write_stamp(step: Step, folder: Path, seen: Seen, *, versions: Mapping[str, str] | None = None) -> None:
    """Says that a step's outputs in a folder are whole and what they were made from.

    Args:
        step: the step.
        folder: where its outputs are.
        seen: where their hashes are noted.
        versions: those that it was made with, where they are not those of now, or found out only while it was made.
    """
    outputs = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": seen.sha256(folder / name)} for name in step.outputs
    }
    key = {**step.key, "versions": {**step.key["versions"], **(versions or {})}}
    content = {
        "schema": SCHEMA,
        "step": step.name,
        "key": key,
        "labels": step.labels,
        "fingerprint": fingerprint([key, step.labels]),
        "outputs": outputs,
    }
    write_json(folder / "stamps" / f"{step.name}.json", content)


def old_versions(step: Step, folder: Path) -> dict[str, str]:
    """Versions that made what a stamp of the old schema describes, as far as they are known."""
    return {"code": OLD_VERSION, **step.recorded(folder)}


def _damage(path: Path, entry: Mapping[str, Any], seen: Seen) -> str | None:
    try:
        size = path.stat().st_size
    except OSError:
        return f"{path.name}: missing"
    if size != entry["bytes"] or ("sha256" in entry and seen.sha256(path) != entry["sha256"]):
        return f"{path.name}: changed since it was made"
    return None


def _differences(stamp: Mapping[str, Any], step: Step, folder: Path) -> list[str]:
    if stamp["schema"] == OLD_SCHEMA:
        if step.known and stamp["fingerprint"] not in (step.old_fingerprint, step.older_fingerprint):
            return [f"{step.name}: made from other settings or files (its stamp does not say which)"]
        older = [OF_THE_MODEL] if step.known and stamp["fingerprint"] != step.old_fingerprint else []
        return older + _of_versions(old_versions(step, folder), {**step.key["versions"], **step.settle(None)})
    then, now = stamp["key"], json.loads(json.dumps(step.key))
    return [
        *_of_settings(then["data"], now["data"]),
        *_of_files(stamp, step, now["files"]),
        *_of_made(stamp, step, now["made"]),
        *_of_versions(then["versions"], {**now["versions"], **step.settle(stamp)}),
    ]


def _of_settings(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A setting that came later had its default before."""
    select = {**SelectConfig().model_dump(), **then.get("select", {})} if "select" in now else None
    before = {**then, **({"select": {key: select[key] for key in now["select"]}} if select else {})}
    return differences({"data": json.loads(json.dumps(before))}, {"data": now})


def _of_versions(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was not recorded then, or is not known yet, is not known to differ."""
    both = [key for key in then if key in now]
    return differences({"versions": {key: then[key] for key in both}}, {"versions": {key: now[key] for key in both}})


def _of_made(stamp: Mapping[str, Any], step: Step, now: Mapping[str, Any]) -> list[str]:
    then = {key: value for key, value in stamp["key"]["made"].items() if key in now}
    given = step.labels.get("tokenizer") == "given"
    changed = [
        f"data.tokenizer: fingerprint{one.removeprefix('tokenizer')}" if given and one.startswith("tokenizer ") else one
        for one in data_differences(then, now)
    ]
    if "tokenizer" not in now and "tokenizer" in step.labels and stamp["labels"].get("tokenizer") == "given":
        changed.append("data.tokenizer: given -> trained here")
    return changed


def _of_files(stamp: Mapping[str, Any], step: Step, now: Mapping[str, Any]) -> list[str]:
    found = []
    for key, files in now.items():
        then = stamp["key"]["files"].get(key)
        if isinstance(files, dict):
            names = {**then, **files} if step.known else then  # which relations there will be is not known before
            found += [f"{key}: {name} changed" for name in names if then.get(name) != files.get(name)]
        else:
            found += _of_list(key, then, files, stamp["labels"].get(key, []), step.labels[key])
    return found


def _of_list(
    key: str, then: FileKeys, now: FileKeys, then_labels: Sequence[str], now_labels: Sequence[str]
) -> list[str]:
    """What changed in a list of files, by their names."""
    before, after = (list(map(fingerprint, files)) for files in (then, now))
    if before == after:
        return []
    if sorted(before) == sorted(after):
        return [f"{key}: other order of the files"]
    if len(before) == len(after):
        pairs = zip(before, after, then_labels, now_labels, strict=True)
        return [
            f"{key}: {new}: content changed" if Path(old).name == Path(new).name else f"{key}: {old} -> {new}"
            for was, is_, old, new in pairs
            if was != is_
        ]
    gone = [f"{key}: without {label}" for one, label in zip(before, then_labels, strict=True) if one not in after]
    more = [f"{key}: {label} added" for one, label in zip(after, now_labels, strict=True) if one not in before]
    return gone + more or [f"{key}: {len(before)} files -> {len(after)}"]
