"""Stamps: a readable record of what each step of a study's data was made from, and of its outputs.

``stamps/STEP.json`` (schema ``kis.stamp/2``) holds the step's ``key`` (everything that decides its bytes: settings,
content of files, outputs of earlier steps, versions), ``labels`` (names of the files, which do not count), the
``fingerprint`` of both, and ``outputs`` (bytes and SHA-256 of each file). Comparing two keys names what changed.
Stamps of schema ``kis.stamp/1`` hold a fingerprint and sizes only; they are still read.
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
OLDER_FINGERPRINT = "versions.tokenizer_fingerprint of the model file -> of all that belongs to it"
"""Difference of data that identify an unchanged tokenizer by an older kind of fingerprint."""
VERSIONS = "versions."
"""Prefix of differences in versions only: settings and files are the same."""

DISTRACTORS = "data.select.distractors "
"""How the difference in the distractors of a question begins."""
TEMPLATES = "data.templates: "
"""How differences in the templates begin."""

FileKeys = Sequence[Mapping[str, str]]
"""Keys of files in order: ``sha256``, and ``kind`` or ``name`` if they decide how a file is read."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a study's data: everything that decides its bytes, and how to make them."""

    name: str
    """``facts``, ``tokenizer``, ``corpus`` or ``render``."""
    key: dict[str, Any]
    """``data``: settings, nested as in the study file; ``files``: content of files, by setting; ``made``: fingerprints
    of outputs of earlier steps; ``versions``. What is not known yet is left out."""
    outputs: tuple[str, ...]
    """Names of its output files, in the order in which they are written."""
    make: Callable[[Path], None]
    """Writes the outputs into a folder."""
    labels: dict[str, Any] = field(default_factory=dict)
    """Names of files in messages, by setting, and the origin of the tokenizer."""
    known: bool = True
    """Whether the key is complete: all earlier steps are done."""
    old_fingerprint: str | None = None
    """Fingerprint in a stamp of the old schema; None if unknown."""
    older_fingerprint: str | None = None
    """The same for data whose tokenizer counted by its model file only."""
    settle: Callable[[Mapping[str, Any] | None], dict[str, str]] = lambda _: {}
    """Returns versions that only a trial can determine, given a stamp that may save the trial."""
    recorded: Callable[[Path], dict[str, str]] = lambda _: {}
    """Returns versions that other files of a folder record: a stamp of the old schema has none."""
    asks_alone: Callable[[Mapping[str, Any], Sequence[str], Path], bool] = lambda *_: False
    """Returns whether differences from a stamp concern the questions alone, and nothing that a run is trained on; given
    the stamp, the differences, and the folder."""


@dataclass(frozen=True, slots=True)
class State:
    """The state of a step in a folder."""

    stamped: bool
    """Whether the folder has a stamp of the step."""
    differences: list[str]
    """Differences between what it was made from and what is wanted now."""
    damage: list[str]
    """Outputs that are missing or were changed."""
    found: bool
    """Whether any output of the step exists."""
    known: bool
    """Whether everything that decides the step is known by now."""
    old: bool = False
    """Whether the step's stamp has the old schema."""
    asks_alone: bool = False
    """Whether what is wanted now differs in the questions alone: what a run is trained on stays as it is."""

    @property
    def fresh(self) -> bool:
        """Whether making the step's outputs again would write the same bytes."""
        return self.stamped and self.known and not self.differences and not self.damage

    @property
    def only_versions(self) -> bool:
        """Whether what the outputs were made from differs from what is wanted now in versions only."""
        return bool(self.differences) and all(one.startswith(VERSIONS) for one in self.differences)

    def reasons(self, step: str) -> list[str]:
        """Returns the reasons for making it."""
        if not self.stamped:
            return [f"{step}: it is not known what was used to make it" if self.found else f"{step}: not made yet"]
        return self.differences or self.damage


def state_of(step: Step, folder: Path, seen: Seen) -> State:
    """Determines the state of a step in a folder; nothing is written.

    Args:
        step: the step as it is wanted.
        folder: folder of its outputs and of ``stamps``.
        seen: known hashes of the files there.
    """
    found = any((folder / name).exists() for name in step.outputs)
    stamp = read_stamp(folder, step.name)
    if stamp is None:
        return State(stamped=False, differences=[], damage=[], found=found, known=step.known)
    damage = [text for name, entry in stamp["outputs"].items() if (text := _damage(folder / name, entry, seen))]
    old = stamp["schema"] == OLD_SCHEMA  # records the larger files only
    unnamed = [name for name in step.outputs if name not in stamp["outputs"]]
    damage += [f"{name}: missing" for name in unnamed if not (old and (folder / name).exists())]
    changed = _differences(stamp, step, folder)
    alone = bool(changed) and step.known and not damage and not old and step.asks_alone(stamp, changed, folder)
    return State(True, changed, damage, found, step.known, old, alone)


def read_stamp(folder: Path, name: str) -> dict[str, Any] | None:
    """Reads a step's stamp; None if it is missing or damaged."""
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
    fits: bool = stamp["schema"] == OLD_SCHEMA or stamp["fingerprint"] == fingerprint([key, stamp["labels"]])
    return fits


def write_stamp(step: Step, folder: Path, seen: Seen, *, versions: Mapping[str, str] | None = None) -> None:
    """Records that a step's outputs in a folder are complete, and what they were made from.

    Args:
        step: the step.
        folder: folder of its outputs.
        seen: known hashes, to which those of the outputs are added.
        versions: versions that it was made with, if they differ from the current ones or were only found while making.
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
    """Returns the versions of a stamp of the old schema, as far as they are known."""
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
        older = [OLDER_FINGERPRINT] if step.known and stamp["fingerprint"] != step.old_fingerprint else []
        return older + _version_differences(old_versions(step, folder), {**step.key["versions"], **step.settle(None)})
    then, now = stamp["key"], json.loads(json.dumps(step.key))
    return [
        *_setting_differences(then["data"], now["data"]),
        *_file_differences(stamp, step, now["files"]),
        *_input_differences(stamp, step, now["made"]),
        *_version_differences(then["versions"], {**now["versions"], **step.settle(stamp)}),
    ]


def _setting_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lists settings that differ; one that was added later had its default before."""
    select = {**SelectConfig().model_dump(), **then.get("select", {})} if "select" in now else None
    before = {**then, **({"select": {key: select[key] for key in now["select"]}} if select else {})}
    return differences({"data": json.loads(json.dumps(before))}, {"data": now})


def _version_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lists versions that differ, among those that were recorded then and are known now."""
    both = [key for key in then if key in now]
    return differences({"versions": {key: then[key] for key in both}}, {"versions": {key: now[key] for key in both}})


def _input_differences(stamp: Mapping[str, Any], step: Step, now: Mapping[str, Any]) -> list[str]:
    then = {key: value for key, value in stamp["key"]["made"].items() if key in now}
    given = step.labels.get("tokenizer") == "given"
    changed = [
        f"data.tokenizer: fingerprint{one.removeprefix('tokenizer')}" if given and one.startswith("tokenizer ") else one
        for one in data_differences(then, now)
    ]
    if "tokenizer" not in now and "tokenizer" in step.labels and stamp["labels"].get("tokenizer") == "given":
        changed.append("data.tokenizer: given -> trained here")
    return changed


def _file_differences(stamp: Mapping[str, Any], step: Step, now: Mapping[str, Any]) -> list[str]:
    found = []
    for key, files in now.items():
        then = stamp["key"]["files"].get(key)
        if isinstance(files, dict):
            names = {**then, **files} if step.known else then  # before, the relations are not known
            found += [f"{key}: {name} changed" for name in names if then.get(name) != files.get(name)]
        else:
            found += _list_differences(key, then, files, stamp["labels"].get(key, []), step.labels[key])
    return found


def _list_differences(
    key: str, then: FileKeys, now: FileKeys, then_labels: Sequence[str], now_labels: Sequence[str]
) -> list[str]:
    """Lists what changed in a list of files, by their names."""
    before = [fingerprint(file) for file in then]
    after = [fingerprint(file) for file in now]
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
