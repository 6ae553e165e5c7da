"""The batch scripts of a study, from templates that users can edit (``run_scripts/slurm``)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

import megatron_kis
from megatron_kis.common.errors import InputError

TEMPLATES = Path(megatron_kis.__file__).parent / "run_scripts" / "slurm"
"""The templates that are installed with the package."""


class Templates:
    """Templates of a folder, and those of the package where it has none."""

    def __init__(self, folder: Path | None = None) -> None:
        """Opens the templates.

        Args:
            folder: edited templates; those of the package alone if not given.

        Raises:
            InputError: there is no such folder, or nothing in it replaces a template.
        """
        if folder is not None:
            _check(folder)
        folders = [TEMPLATES] if folder is None else [folder, TEMPLATES]
        # What the scripts quote, they quote for a shell: nothing here is HTML.
        self._environment = jinja2.Environment(  # noqa: S701
            loader=jinja2.FileSystemLoader(folders),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._environment.filters |= {"quote": quote, "shell": shell, "comment": comment}

    def script(self, kind: str, variables: dict[str, Any]) -> str:
        """Returns the script of a kind of job.

        Raises:
            InputError: a template with an error, with its line.
        """
        name = f"{kind}.sbatch.j2"
        try:
            return self._environment.get_template(name).render(variables)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(error.message or "wrong syntax", where=f"{error.filename}:{error.lineno}") from None
        except jinja2.TemplateNotFound as error:
            raise InputError(f"includes {error.name!r}, which does not exist", where=name) from None
        except jinja2.TemplateError as error:
            raise InputError(
                error.message or "cannot be rendered", where=name, remedy="see docs/how-to/slurm.md"
            ) from None


def quote(value: object) -> str:
    """Returns a value as one word of a shell."""
    return shlex.quote(str(value))


def shell(words: Sequence[str]) -> str:
    """Returns a command line."""
    return shlex.join(words)


def comment(value: object) -> str:
    """Returns a value for a comment: one line, whatever it is."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return " ".join(text.split())


def job_name(study: str, label: str, token: str) -> str:
    """Returns the name of a job in the queue: readable, of plain letters, and unique by its token."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", study)[:40].strip("_.-") or "study"
    return f"kis-{plain}-{label}-{token}"


def _check(folder: Path) -> None:
    own = {path.name for path in TEMPLATES.glob("*.j2")}
    if not folder.is_dir():
        raise InputError("is not a folder", where=str(folder), remedy=f"copy {TEMPLATES} and edit the copy")
    if not own & {path.name for path in folder.glob("*.j2")}:
        raise InputError("has no template", where=str(folder), remedy="named like one of " + ", ".join(sorted(own)))
