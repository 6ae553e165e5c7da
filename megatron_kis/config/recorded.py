"""The configuration of a run as its own record says it, wherever its folder was moved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_kis.common.configuration import parse_config
from megatron_kis.common.identity import RUN_FILE
from megatron_kis.common.paths import Moved
from megatron_kis.config.run import RunConfig


def recorded_config(record: Mapping[str, Any], folder: Path) -> RunConfig:
    """Returns the configuration in a ``run.json``, with ``folder`` as its output.

    Paths in it begin at the run's folder. A run that keeps no inputs is older: there they begin where the run was
    started, and its own folder is named from there as well. A file of frequencies that the run has kept takes the place
    of the original.

    Args:
        record: content of ``run.json``.
        folder: the run's.

    Raises:
        InputError: it is no configuration of a run.
    """
    kept = record.get("inputs")
    base: Path | Moved = folder
    if not isinstance(kept, dict):
        base = Moved(folder, Path(str(record["config"].get("output", "."))))
    content = dict(record["config"])
    documents = content.get("documents")
    if isinstance(documents, dict):
        if documents.get("reset_attention"):
            content["documents"] = {"eod_belongs_to": "previous", **documents}  # what older runs did, which name none
        else:  # it had no effect, and is refused by now
            content["documents"] = {name: value for name, value in documents.items() if name != "eod_belongs_to"}
    config = parse_config(RunConfig, content, source=str(folder / RUN_FILE), base=base)
    changes: dict[str, Any] = {"output": folder}
    if isinstance(kept, dict) and "frequencies" in kept:
        changes["infusion"] = config.infusion.model_copy(update={"frequencies": folder / kept["frequencies"]})
    return config.model_copy(update=changes)
