"""Messages of a run, a study or a data step to its user: one logger, which the command line shows on standard error.

Modules log to ``logging.getLogger(__name__)``. A message is a whole line as the user reads it; its level says whether
it is progress (info) or something to look at (warning). Used as a library, nothing is shown but warnings, as Python's
logging has it; ``show_messages`` shows all.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

_NAME = "megatron_kis"


class _StandardError(logging.StreamHandler[Any]):
    """Writes to what ``sys.stderr`` is when a message comes, which a test or a notebook may have replaced."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


def show_messages() -> None:
    """Shows this package's messages on standard error, one line each. Calling it again changes nothing."""
    logger = logging.getLogger(_NAME)
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        logger.addHandler(_StandardError())
    logger.setLevel(logging.INFO)
    logger.propagate = False
