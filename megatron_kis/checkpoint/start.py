"""A start as a run finds it (``model.init_from``): what its ``start.json`` says, checked without reading a weight."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError, placed
from megatron_kis.common.files import fingerprint, read_json
from megatron_kis.config.ladder import ModelShape
from megatron_kis.data_tools.tokenizers.base import Tokenizer, made_with
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

START_SCHEMA = "kis.start/1"
START_NAME = "start.json"
WEIGHTS = "weights"


@dataclass(frozen=True)
class Start:
    """A start on disk."""

    folder: Path
    """Folder of the start."""

    content: dict[str, Any]
    """Content of the start's ``start.json``."""

    @property
    def positions(self) -> int | None:
        """Longest sequence that the model was made for, in tokens; None where the start does not say."""
        found = self.content.get("max_position_embeddings")
        return None if found is None else int(found)

    @property
    def shape(self) -> ModelShape:
        """Shape of the model."""
        try:
            return ModelShape(**self.content["model"])
        except TypeError as error:
            remedy = "use the version that wrote it"
            raise InputError(f"another model ({error})", where=str(self.folder / START_NAME), remedy=remedy) from None

    @property
    def fingerprint(self) -> str:
        """Fingerprint of shape and weights: a run that starts from others is another run."""
        return fingerprint({key: self.content[key] for key in ("model", "vocabulary", "files")})


def open_start(folder: Path, shape: ModelShape, *, vocabulary: int | None = None, longest: int | None = None) -> Start:
    """Reads a start and checks that it fits the run.

    Args:
        folder: folder of the start.
        shape: shape of the run's model.
        vocabulary: number of rows of the run's embedding, padded; None if its tokenizer is not known yet.
        longest: the run's sequence length; None where nothing will be trained.

    Raises:
        InputError: there is no start, a file of another size, a model of another shape or vocabulary, or one that was
            made for shorter sequences.
    """
    with placed("model.init_from"):
        start = read_start(folder)
    path, content = folder / START_NAME, start.content
    defaults = {field.name: field.default for field in fields(shape)}
    for name, value in asdict(shape).items():
        theirs = content["model"].get(name, defaults[name])
        if theirs != value:
            raise InputError(
                f"is {value}, that of the start {theirs}",
                where=f"model.{name}",
                remedy=f"take the model section of {path}",
            )
    if vocabulary is not None and content["vocabulary"] != vocabulary:
        raise InputError(
            f"has {content['vocabulary']} rows in its embedding, the run's tokenizer needs {vocabulary}",
            where=f"model.init_from: {path}",
            remedy="make the data with the tokenizer next to it",
        )
    if longest is not None and start.positions is not None and longest > start.positions:
        raise InputError(
            f"is {longest}, the model of {path} was made for {start.positions} positions at most"
            " (max_position_embeddings)",
            where="training.sequence_length",
            remedy=f"use {start.positions} or less",
        )
    return start


def check_start_tokenizer(start: Start, tokenizer: Tokenizer, path: Path) -> None:
    """Refuses another tokenizer than the start's, where the start has one.

    A file of another library (``tokenizer.model`` and the ``tokenizer.json`` that was made from it) is the same
    tokenizer if each id has the same piece and the same token ends documents.

    Args:
        start: the start.
        tokenizer: the run's tokenizer.
        path: its file, for the message.

    Raises:
        InputError: it is another tokenizer.
    """
    entry = start.content.get("tokenizer")
    if entry is None or made_with(tokenizer, entry["fingerprint"], entry.get("eod_id")):
        return
    own = start.folder / entry["file"]
    if own.is_file() and (theirs := load_tokenizer(own)).library != tokenizer.library:
        size = theirs.vocab_size
        alike = (size, theirs.eod_id) == (tokenizer.vocab_size, tokenizer.eod_id)
        if alike and all(theirs.piece(at) == tokenizer.piece(at) for at in range(size)):
            return
    problem = f"is tokenizer {tokenizer.fingerprint[:12]}, that of the start {entry['fingerprint'][:12]}"
    raise InputError(problem, where=str(path), remedy=f"make the data with {own}")


def read_start(folder: Path) -> Start:
    """Reads a start, whose files must be there in their sizes.

    Raises:
        InputError: there is no start, or a file of another size.
    """
    content = read_json(folder / START_NAME, START_SCHEMA, keys=("model", "vocabulary", "files"))
    for name, facts in content["files"].items():
        file = folder / WEIGHTS / name
        if Path(name).name != name or not file.is_file() or file.stat().st_size != facts["bytes"]:
            raise InputError("is missing or of another size", where=str(file), remedy="import the model again")
    return Start(folder, content)
