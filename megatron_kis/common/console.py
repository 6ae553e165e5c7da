"""Tables on standard output, and bars on standard error: formatted for a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_kis.common.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from rich.text import Text

_PIPED_WIDTH = 200  # piped output is not cut at 80 columns


def output_console() -> Console:
    """Returns rich's console for standard output."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def progress_bar(*columns: ProgressColumn, transient: bool = False, narrowest: int = 0) -> Progress | None:
    """Returns a bar of these columns on standard error; None where that is no terminal, or a narrower one."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal or console.width < narrowest:
        return None
    return Progress(*columns, console=console, transient=transient)


def plain(text: str) -> Text:
    """Returns a text for rich as it is: nothing in it is markup or means something to a terminal."""
    from rich.text import Text

    return Text(printable(text))


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> None:
    """Prints a table with lines on a terminal, and aligned columns elsewhere, which have no width to keep to.

    Args:
        title: line above the table.
        heads: headings of the columns; no line of headings if all are empty.
        rows: texts of the cells.
        numbers: all columns but the first are aligned to the right.
    """
    if sys.stdout.isatty():
        from rich.table import Table

        table = Table(title=plain(title), title_justify="left", show_header=any(heads))
        for index, head in enumerate(heads):
            right = numbers and index > 0
            table.add_column(plain(head), justify="right" if right else "left", no_wrap=numbers and index == 0)
        for row in rows:
            table.add_row(*map(plain, row))
        output_console().print(table)
        return
    print(printable(title))
    lines = [[printable(cell) for cell in row] for row in ([heads, *rows] if any(heads) else rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))] if lines else []
    for line in lines:
        cells = [
            cell.rjust(width) if numbers and index > 0 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())
