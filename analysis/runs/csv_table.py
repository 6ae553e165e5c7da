"""CSV tables of other programs: header and lines, read with errors that name file, line and column."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from megatron_kis.analysis.runs.groups import CURVE_GROUPS, is_group
from megatron_kis.analysis.runs.slices import AXES, FREQUENCY, Slice, slice_of_record
from megatron_kis.analysis.runs.transitions import LEVEL
from megatron_kis.common.errors import InputError, nearest
from megatron_kis.common.files import read_text
from megatron_kis.common.units import parse_count

COUNTS_NOT_RATES = "counts, not rates: correct = round({} * n), where n is the number of questions"
"""Remedy for a rate where a count is wanted, with the place of the rate's name."""

_FEWEST_PARAMS = 1000
"""Smallest plausible N; a smaller number is probably in millions or billions."""

_MOST = 1e18
"""Largest plausible N and D; a larger number is probably one of FLOPs."""
_COUNTED = {"params": "parameters", "tokens": "training tokens"}

_UNITS = ("params", "tokens", "nonembedding_params")
"""Columns of counts, which may have a unit (7b, 1.2M)."""

_SYMBOLS = {"N": "params", "D": "tokens", "F": "frequency", "K": "infused_facts", "ρ": "infusion_ratio"}

_OTHER_NAMES = {
    "params": "param parameters numparams nparams numparameters nparameters totalparams modelparams modelsize size",
    "tokens": "token numtokens ntokens totaltokens trainingtokens traintokens tokenbudget budget tokensseen",
    "frequency": "freq exposures exposure numexposures repetitions repeats repeat dose infusionfrequency f",
    "seed": "seeds randomseed replicate trial",
    "n": "questions numquestions nquestions total count samples numsamples nsamples examples numexamples asked",
    "correct": "ncorrect numcorrect correctanswers right numright nright hits correctcount",
    "validation_loss": "loss valloss evalloss validloss testloss",
    "infusion_ratio": "ratio rho share infusedshare",
    "infused_facts": "k numinfused ninfused infusedcount",
    "facts": "numfacts nfacts distinctfacts",
    "chance": "chancelevel chancerate guessing baseline",
    "group": "factgroup groups",
    "split": "templatesplit",
    "scoring": "scoringrule rule metric",
    "nonembedding_params": "nonembparams nonembedding nonembeddingparameters",
    "kind": "type transition",
    "value": "point collapsepoint threshold fstar f estimate",
    "low": "lower lo cilow cilower lowerbound",
    "high": "upper hi cihigh ciupper upperbound",
}
"""Other names of the columns, in lower case and without characters other than letters and digits."""

_RATES = (
    "rate rates accuracy acc accnorm recall score em exactmatch hitrate correctrate percent percentage pct "
    "memorisationrate memorizationrate memorisation memorization retention"
)
"""Other names of columns of rates."""


class CsvLine:
    """The cells of one line."""

    def __init__(self, path: Path, line: int, cells: Mapping[str, str], shown: Mapping[str, str] | None = None) -> None:
        """Takes a line.

        Args:
            path: the file.
            line: its number, from 1.
            cells: column to text.
            shown: column to its name in the file, where it has another there.
        """
        self.path, self.line, self.cells = path, line, cells
        self._shown = shown or {}

    def error(self, column: str, problem: str, remedy: str) -> InputError:
        """Returns the error of a cell."""
        return InputError(
            f"column {self._shown.get(column, column)!r}: {problem}", where=f"{self.path}:{self.line}", remedy=remedy
        )

    def missing(self, column: str, problem: str, remedy: str) -> InputError:
        """Returns the error of an empty cell; of the header where it lacks the column."""
        if column not in self.cells:
            return InputError(f"no column {column!r}", where=f"{self.path}:1", remedy=remedy)
        return self.error(column, problem, remedy)

    def params(self) -> int:
        """Returns N, the number of parameters."""
        count = self._large("params")
        if count < _FEWEST_PARAMS:
            raise self.error("params", f"is {count}", "the number of parameters, not of millions or billions")
        return count

    def tokens(self) -> int:
        """Returns D, the number of training tokens."""
        return self._large("tokens")

    def _large(self, column: str) -> int:
        count = self.number(column, least=1, whole=True)
        if count > _MOST:
            raise self.error(column, f"is {self.cells[column]}", f"the number of {_COUNTED[column]}, not of FLOPs")
        return int(count)

    def asked(self) -> tuple[int, int]:
        """Returns n, the number of questions, and how many were answered right."""
        n = self.number("n", least=0, whole=True)
        if n == 0:
            raise self.error("n", "is 0", "the number of questions; leave out a row in which none was asked")
        text = self.cells.get("correct", "")
        rate = float(text[:-1] if text.endswith("%") else text) if _NUMBER.fullmatch(text) else 0.0
        if text.endswith("%") or not rate.is_integer():
            problem = "is a percentage" if text.endswith("%") else "is not whole"
            raise self.error("correct", f"{text} {problem}", COUNTS_NOT_RATES.format("rate"))
        correct = self.number("correct", least=0, whole=True)
        if correct > n:
            raise self.error("correct", f"{correct:g} of {n:g} questions", "a count of at most n, not a rate")
        return int(n), int(correct)

    def level(self, column: str) -> float:
        """Returns the level of an interval."""
        level = self.optional(column, least=0, most=1)
        if level in (0, 1):
            raise self.error(column, f"is {level:g}", "a level between 0 and 1, such as 0.95")
        return LEVEL if math.isnan(level) else level

    def number(
        self, column: str, *, least: float, most: float = math.inf, whole: bool = False, infinite: bool = False
    ) -> float:
        """Returns the number of a cell.

        Raises:
            InputError: it is none, is out of range, or not whole.
        """
        text = self.cells.get(column, "")
        bound = f"a {'whole ' if whole else ''}number" + ("" if least == -math.inf else f" of at least {least:g}")
        bound += "" if most == math.inf else f" and at most {most:g}"
        count = parse_count(text) if column in _UNITS else None  # 7b, 1.2M
        try:
            value = float(text if count is None else count)
        except ValueError:
            raise self.error(column, f"{text!r} is not a number" if text else "is empty", bound) from None
        if math.isnan(value) or (math.isinf(value) and not infinite) or not least <= value <= most:
            raise self.error(column, f"{text} is out of range", bound)
        if whole and not value.is_integer():
            raise self.error(column, f"{text} is not whole", bound)
        return value

    def optional(
        self, column: str, *, least: float, most: float = math.inf, whole: bool = False, infinite: bool = False
    ) -> float:
        """Returns the number, or NaN if the column is absent or the cell is empty."""
        if self.cells.get(column, "").lower() in ("", "nan", "none", "na"):
            return math.nan
        return self.number(column, least=least, most=most, whole=whole, infinite=infinite)

    def group(self, default: str) -> str:
        """Returns the group of a curve or a point."""
        text = self.cells.get("group", "") or default
        if not is_group(text):
            raise self.error("group", f"is {text!r}", f"{nearest(text, CURVE_GROUPS)}, or background@<exposures>")
        return text

    def slice(self) -> Slice:
        """Returns the axis of a point and what was held."""
        axis = self.one_of("axis", AXES, FREQUENCY)
        held_by, held = self.cells.get("held_by") or None, self.optional("held", least=0)
        record = {"axis": axis, "held_by": held_by, "held": None if math.isnan(held) else held}
        if (held_by is None) != math.isnan(held):
            raise self.error("held_by", "held_by and held: one without the other", "both, or neither")
        try:
            return slice_of_record(record, where=f"{self.path}:{self.line}")
        except InputError as error:
            column = error.problem.partition(" ")[0]  # what is wrong comes first
            raise self.error(column, error.problem, error.remedy or "") from None

    def one_of(self, column: str, choices: Sequence[str], default: str | None) -> str:
        """Returns the text of a cell, which is one of some."""
        text = self.cells.get(column, "") or default or ""
        if text not in choices:
            raise self.error(column, f"is {text!r}", nearest(text, choices))
        return text


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?%?", re.I | re.A)


_QUOTED = re.compile(r'"[^"\n]*"([;\t])')  # a first name in quotes, which another separator follows


def read_table(
    path: Path,
    needed: Sequence[str] = (),
    known: Collection[str] | None = None,
    *,
    others: Mapping[str, str] | None = None,
) -> Iterator[CsvLine]:
    """Yields the lines of a CSV file that have any text, after its header was checked.

    Args:
        path: the file; a byte order mark and any kind of line end are fine.
        needed: columns that must be there.
        known: columns that may be there; None: any.
        others: column that tells a file of another kind -> what to do with that file.

    Raises:
        InputError: a wrong header, or a line with another number of cells than the header.
    """
    text = read_text(path).removeprefix("\ufeff")
    if not text.strip():
        raise InputError("is empty", where=f"{path}:1", remedy=_header_remedy(needed))
    if quoted := _QUOTED.match(text):
        _check_kind([quoted[1]], f"{path}:1", needed, {})
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines = _lines(reader, path)
    header = [name.strip() for name in next(lines)]
    if not any(header):
        raise InputError("the first line is empty", where=f"{path}:1", remedy=_header_remedy(needed))
    _check_header(header, str(path), needed, known, others or {})
    empty = True
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{len(cells)} cells", where=f"{path}:{reader.line_num}", remedy=f"the header has {len(header)} columns"
            )
        empty = False
        yield CsvLine(path, reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True)))
    if empty:
        raise InputError("holds no row", where=str(path), remedy="a header line, and one row per run or point")


def header_of(path: Path) -> list[str]:
    """Returns the names of the columns of a CSV file, as they are there."""
    text = read_text(path).removeprefix("\ufeff")
    return [name.strip() for name in next(_lines(csv.reader(io.StringIO(text, newline="")), path), [])]


def _lines(reader: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    number = 0
    try:
        for cells in reader:
            number = reader.line_num  # type: ignore[attr-defined]  # csv.reader
            yield cells
    except csv.Error as error:
        raise InputError(f"not valid CSV ({error})", where=f"{path}:{number + 1}", remedy="close every quote") from None


def _check_header(
    header: Sequence[str], path: str, needed: Sequence[str], known: Collection[str] | None, others: Mapping[str, str]
) -> None:
    where = f"{path}:1"
    absent = [name for name in needed if name not in header]
    _check_kind(header, where, needed, others if absent else {})
    for number, name in enumerate(header, start=1):
        if not name and known is not None:
            remedy = "leave it out (pandas: to_csv(..., index=False))"
            raise InputError(f"column {number} has no name", where=where, remedy=remedy)
        if name and header.count(name) > 1:
            raise InputError(f"column {name!r} is given twice", where=where, remedy="keep one")
    unknown = [] if known is None else [name for name in header if name not in known]
    if absent:
        problem = f"no column{'s' if len(absent) > 1 else ''} {', '.join(map(repr, absent))}"
        raise InputError(problem, where=where, remedy=_renamed(absent, needed, unknown))
    for name in unknown:
        remedy = _unknown(name, [column for column in known or () if column not in header])
        raise InputError(f"unknown column {name!r}", where=where, remedy=remedy)


def _check_kind(header: Sequence[str], where: str, needed: Sequence[str], others: Mapping[str, str]) -> None:
    """Refuses a file that is not such a table at all."""
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise InputError(f"the columns are separated by {word}", where=where, remedy="separate them by commas")
    if all(_NUMBER.fullmatch(name) for name in header):
        raise InputError("has numbers instead of a header", where=where, remedy=_header_remedy(needed))
    for column, remedy in others.items():
        if column in header:
            raise InputError(f"has a column {column!r}", where=where, remedy=remedy)


def _header_remedy(needed: Sequence[str]) -> str:
    return f"the first line is the header: {','.join(needed)}" if needed else "the first line is the header"


def _renamed(absent: Sequence[str], needed: Sequence[str], unknown: Sequence[str]) -> str:
    """Returns the remedy for columns that are not there: which of the unknown ones they may be."""
    meant = _meant(absent, unknown)
    rate = next((name for name in unknown if _plain(name) in _RATES.split() and name not in meant), None)
    parts = []
    if meant:
        parts.append("rename " + ", ".join(f"{name!r} to {column!r}" for name, column in meant.items()))
    if "correct" in absent and rate:
        parts.append(COUNTS_NOT_RATES.format(rate))
    return "; ".join(parts) or f"needed are {','.join(needed)}"


def _unknown(name: str, free: Sequence[str]) -> str:
    """Returns the remedy for an unknown column, where the columns ``free`` are not there."""
    if _plain(name) in _RATES.split():
        return "leave it out: a rate follows from n and correct"
    meant = _meant(free, [name])
    return f"did you mean {meant[name]!r}?" if meant else f"leave it out; {nearest(name, free)}"


def _meant(columns: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Returns which columns some unknown names may stand for, each once: the surest match first."""
    found: dict[str, str] = {}

    def match(test: Mapping[str, Collection[str]]) -> None:
        for column in columns:
            for name in names:
                if name not in found and column not in found.values() and name in test.get(column, ()):
                    found[name] = column

    match({column: [name for name in names if _same(column, name) and len(name) > 1] for column in columns})
    match({column: [name for name, meant in _SYMBOLS.items() if meant == column] for column in columns})
    match({column: [name for name in names if _same(column, name)] for column in columns})
    close = [name for name in names if _plain(name) not in _RATES.split()]
    match({column: difflib.get_close_matches(column, close, n=1, cutoff=0.75) for column in columns})
    return {name: found[name] for name in names if name in found}


def _same(column: str, name: str) -> bool:
    plain = _plain(name)
    return plain == _plain(column) or plain in _OTHER_NAMES.get(column, "").split()


def _plain(name: str) -> str:
    """Returns a name in lower case, without characters other than letters and digits."""
    return re.sub(r"[\W_]", "", name.lower())
