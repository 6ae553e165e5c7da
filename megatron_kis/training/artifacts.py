"""Inputs that a run keeps in its own folder, so that it can be evaluated again: tokenizer and questions.

``inputs/`` is written before the first step and never changed. Later evaluations read from there, and compare what they
read with the fingerprints in ``run.json``. A run of a version without ``inputs/`` is evaluated with the files at the
old place, if they are still the same.

| file | content |
|---|---|
| ``inputs/tokenizer.model``, ``tokenizer.json`` or another name of its kind | the tokenizer, with its ``.meta.json`` |
| ``inputs/questions.jsonl.gz`` | all questions; SHA-256 of what is compressed is the fingerprint |
| ``inputs/order.jsonl.gz`` | the questions that define the order of the facts, where they differ |
| ``inputs/frequencies.tsv`` | the file of ``infusion.frequencies``, if the run has one |
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import atomic_path, not_a_folder, read_json, sha256_content, sha256_file, steadily
from megatron_kis.common.identity import QUESTIONS as ASKED
from megatron_kis.common.identity import RUN_FILE, RUN_SCHEMA, data_differences, settings_of
from megatron_kis.config.recorded import recorded_config
from megatron_kis.config.run import ProbeConfig, RunConfig
from megatron_kis.data_tools.storage.indexed import suffixed
from megatron_kis.data_tools.tokenizers.base import Tokenizer, made_with, side_file
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer, write_copy
from megatron_kis.probes.infusion_order import (
    ONE_OF_EACH,
    asks_about_every_fact,
    order_file,
    order_path,
    questions_of_run,
)
from megatron_kis.probes.questions import QuestionSet, read_questions
from megatron_kis.training.record import check_closed, setting_differences

if TYPE_CHECKING:
    from megatron_kis.checkpoint.folders import Checkpoint

FOLDER = "inputs"
QUESTIONS = f"{FOLDER}/questions.jsonl.gz"
FREQUENCIES = f"{FOLDER}/frequencies.tsv"
_BLOCK = 1 << 20
_COMPRESSION = 4  # of 9: a seventh of the time of 9, for a fifth more bytes


def keep_inputs(run: Path, config: RunConfig, tokenizer: Tokenizer, questions_sha256: str) -> dict[str, str]:
    """Copies a run's inputs to its folder; what is there already stays as it is.

    Args:
        run: the run's folder.
        config: the run's configuration, which names the questions.
        tokenizer: the run's tokenizer.
        questions_sha256: hash of the questions that the run has read.

    Returns:
        ``inputs`` of ``run.json``: names to paths relative to the run's folder.

    Raises:
        InputError: a file that is there is another one, or the questions have changed since they were read.
    """
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    inputs = {"tokenizer": f"{FOLDER}/{tokenizer.file_name}", "questions": QUESTIONS}
    model = run / inputs["tokenizer"]
    if not model.exists() or not side_file(model).exists():  # the model alone: a kill between the two
        if model.exists():
            _same(model, "tokenizer", tokenizer.model_sha256, (sha256_file(model),))
        write_copy(tokenizer, run / FOLDER)
    _same(model, "tokenizer", tokenizer.fingerprint, (load_tokenizer(model).fingerprint,))
    first = order_path(config.data.questions)
    order = order_path(run / QUESTIONS)
    if first.exists() and not asks_about_every_fact(config) and not (run / QUESTIONS).exists():
        keep_file(first, order, "order of the facts", sha256_file(first))
    keep_file(config.data.questions, run / QUESTIONS, "questions", questions_sha256)
    if order.exists():
        inputs["order"] = f"{FOLDER}/{order.name}"
    if config.infusion.frequencies is not None:
        inputs["frequencies"] = FREQUENCIES
        if not (run / FREQUENCIES).exists():  # one that is there has this plan, or the run would have been refused
            original = config.infusion.frequencies
            keep_file(original, run / FREQUENCIES, "frequencies", sha256_file(original))
    return inputs


def kept_files(run: Path, inputs: Mapping[str, str]) -> list[str]:
    """Lists the paths of all kept files, relative to the run's folder.

    Args:
        run: the run's folder.
        inputs: result of ``keep_inputs``.
    """
    names = [*inputs.values(), str(side_file(Path(inputs["tokenizer"])))]
    return sorted(name for name in names if (run / name).exists())


@dataclass(frozen=True)
class PastRun:
    """A recorded run, finished or not, with the inputs that it keeps."""

    folder: Path
    """The run's folder."""

    record: dict[str, Any]
    """Content of the run's ``run.json``."""

    @cached_property
    def config(self) -> RunConfig:
        """Configuration that it was trained with."""
        return recorded_config(self.record, self.folder)

    @property
    def _inputs(self) -> dict[str, Any]:
        kept = self.record.get("inputs")
        return kept if isinstance(kept, dict) else {}

    @property
    def questions_path(self) -> Path:
        """File of its questions."""
        kept = self._inputs.get("questions")
        return self.config.data.questions if kept is None else self.folder / kept

    @property
    def tokenizer_path(self) -> Path:
        """Model file of its tokenizer."""
        kept = self._inputs.get("tokenizer")
        return self.config.data.tokenizer if kept is None else self.folder / kept

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer.

        Raises:
            InputError: the file is missing, or another one than the run was trained with.
        """
        tokenizer = load_tokenizer(self.tokenizer_path)
        found = (tokenizer.fingerprint,) if self._inputs else (tokenizer.fingerprint, tokenizer.model_sha256)
        _same(self.tokenizer_path, "tokenizer", self._fingerprint("tokenizer"), found)
        return tokenizer

    @cached_property
    def questions_sha256(self) -> str:
        """Fingerprint of its questions, made from the file.

        Raises:
            InputError: the file is missing, or another one than the run was trained with.
        """
        found = sha256_content(self.questions_path)
        _same(self.questions_path, "questions", self._fingerprint("questions"), (found,))
        return found

    def questions(self, templates: Mapping[Any, int | None]) -> QuestionSet:
        """Reads its questions.

        Args:
            templates: see ``read_questions``.

        Raises:
            InputError: as ``questions_sha256`` and ``tokenizer``; or questions of another tokenizer.
        """
        assert self.tokenizer and self.questions_sha256  # checked in this order: new questions have a new tokenizer
        questions = read_questions(self.questions_path, templates)
        self.check_questions(questions, self.questions_path)
        return questions_of_run(questions, self.config, own=self._ordering)

    @cached_property
    def _ordering(self) -> QuestionSet | None:
        """Its questions that define the order of the facts; None where it is asked about all of them."""
        if asks_about_every_fact(self.config):
            return None
        return read_questions(order_file(self.questions_path), ONE_OF_EACH)

    def select_questions(
        self, exposures: Path | None, templates: Mapping[Any, int | None]
    ) -> tuple[Path, QuestionSet, str]:
        """Returns the run's questions, or others that it can be evaluated on.

        Args:
            exposures: prefix of other questions, as ``kis data render`` writes them; None for the run's own.
            templates: see ``read_questions``.

        Returns:
            The file, the questions, and the SHA-256 of their content.

        Raises:
            InputError: as ``questions``.
        """
        if exposures is None:
            return self.questions_path, self.questions(templates), self.questions_sha256
        path = suffixed(exposures, ".questions.jsonl")
        return path, self.other_questions(path, self.config.probes.replace(templates=templates)), sha256_file(path)

    def other_questions(self, path: Path, probes: ProbeConfig) -> QuestionSet:
        """Reads questions about the facts that the run was shown, as its own questions tell these.

        Args:
            path: file of the questions.
            probes: which of them to take: ``templates`` and ``facts_per_group``.

        Raises:
            InputError: as ``questions``.
        """
        questions = read_questions(path, probes.templates)
        self.check_questions(questions, path)
        config = self.config.replace(probes=probes)
        own = None if asks_about_every_fact(config) else read_questions(order_file(self.questions_path), ONE_OF_EACH)
        return questions_of_run(questions, config, own=own)

    def check_questions(self, questions: QuestionSet, path: Path) -> None:
        """Refuses questions that were made with another tokenizer than the run's.

        Args:
            questions: questions of the run, or others.
            path: their file, for the message.

        Raises:
            InputError: another tokenizer, with both fingerprints.
        """
        theirs, ours = questions.tokenizer_fingerprint, self.tokenizer
        end = questions.header.get("eod_id")
        if not made_with(ours, theirs, end):
            problem = f"was made with tokenizer {theirs[:12]}"
            problem += f" and the end-of-document token {end}" if theirs == ours.model_sha256 else ""
            raise InputError(
                f"{problem}, the run's is {ours.fingerprint[:12]}",
                where=str(path),
                remedy=f"make it again with {self.tokenizer_path}",
            )

    def check_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Refuses a checkpoint that is in the run's folder but belongs to another run.

        Raises:
            InputError: its weights saw other data than ``run.json`` says, or have other settings.
        """
        then = checkpoint.manifest["identity"]
        ours = {name: self.record["fingerprints"].get(name) for name in then["data"]}
        sha256 = self.tokenizer.model_sha256
        if {then["data"].get("tokenizer"), ours.get("tokenizer")} == {sha256, self.tokenizer.fingerprint}:
            ours["tokenizer"] = then["data"]["tokenizer"]  # older, and still the same
        other = data_differences(ours, then["data"])
        # Not the record's own "settings": the model is built, and the questions chosen, by its "config".
        settings = settings_of(self.record["config"])
        other += setting_differences(
            settings, then["settings"], precision=(self.record.get("precision"), then["precision"])
        )
        if other:
            raise InputError(
                f"is another run's ({', '.join(other)})",
                where=str(checkpoint.folder),
                remedy=f"take it out of {self.folder}, whose {RUN_FILE} says otherwise",
            )

    def _fingerprint(self, name: str) -> str:
        return str(self.record["fingerprints"].get(name))


def open_run(folder: Path) -> PastRun:
    """Reads the record of a run.

    Raises:
        InputError: there is no such run.
    """
    path = folder / RUN_FILE
    if not path.exists():
        problem = f"has no {RUN_FILE}" if folder.is_dir() else not_a_folder(folder)
        raise InputError(problem, where=str(folder), remedy="give the folder of a run")
    record = read_json(path, RUN_SCHEMA, keys=("run", "config", "fingerprints"))
    for name in ("config", "fingerprints"):
        if not isinstance(record[name], dict):
            raise InputError(f"{name!r} is not an object", where=str(path))
    inputs = record.get("inputs")
    if inputs is not None and not (isinstance(inputs, dict) and all(isinstance(name, str) for name in inputs.values())):
        raise InputError("'inputs' does not name files", where=str(path), remedy="restore the file")
    positions = record.get("max_position_embeddings")
    if positions is not None and type(positions) is not int:
        raise InputError(f"'max_position_embeddings' is {positions!r}", where=str(path), remedy="a whole number")
    check_closed(folder)
    return PastRun(folder, record)


def as_begun(config: RunConfig) -> tuple[RunConfig, Path | None]:
    """Returns how an unfinished run resumes: it is asked the same questions as at its start.

    Otherwise its logs would hold answers to two sets of questions. A study with new questions asks it again
    when it has ended (``kis study probe``).

    Args:
        config: the run's configuration as it is now.

    Returns:
        The configuration with the run's own choice of questions, and the file of these; None where the run has none of
        its own yet, or is asked the same ones.

    Raises:
        InputError: the questions that it keeps were changed.
    """
    kept, path = config.output / QUESTIONS, config.output / RUN_FILE
    saved = any((config.output / "checkpoints").glob("step-*"))  # else it begins again, with the present questions
    if (config.output / "DONE").exists() or not (saved and kept.is_file() and path.is_file()):
        return config, None
    try:
        past = open_run(config.output)
        then = past.config.probes
    except InputError:  # a checkpoint says what is resumed, and the record is written again
        return config, None
    chosen = {"templates": then.templates, "facts_per_group": then.facts_per_group}
    same = all(getattr(config.probes, name) == value for name, value in chosen.items())
    there = config.data.questions
    if same and there.is_file() and sha256_file(there) == past.questions_sha256:
        return config, None
    expected = {name: value for name, value in config.data.fingerprints.items() if name != ASKED}
    changes = {"probes": config.probes.replace(**chosen), "data": config.data.replace(fingerprints=expected)}
    return config.replace(**changes), kept


def keep_file(source: Path, target: Path, what: str, wanted: str) -> None:
    """Copies a file, compressed if the target ends in ``.gz``; the bytes depend on the content alone.

    Args:
        source: the file, not compressed.
        target: where it is kept; one that is there stays.
        what: what it is, for the message.
        wanted: SHA-256 of its content.

    Raises:
        InputError: it, or the one that is there, has another content.
    """
    if target.exists():
        _same(target, what, wanted, (sha256_content(target),))
        return
    digest = hashlib.sha256()
    with atomic_path(target) as partial, open(partial, "wb") as raw:
        file = gzip.GzipFile("", "wb", _COMPRESSION, fileobj=raw, mtime=0) if target.suffix == ".gz" else raw
        with steadily(lambda: open(source, "rb"), source) as original:
            while block := original.read(_BLOCK):
                digest.update(block)
                file.write(block)
        if file is not raw:
            file.close()
        _same(source, what, wanted, (digest.hexdigest(),))


def _same(path: Path, what: str, wanted: str, found: tuple[str, ...]) -> None:
    if wanted not in found:
        raise InputError(
            f"these are not the {what} of the run ({wanted[:16]}, found {found[0][:16]})",
            where=str(path),
            remedy="restore the file that the run was trained with",
        )
