"""The rows of a file of results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import FAILED, OK, SKIPPED, read_rows, said

Row = dict[str, Any]
_OWN = {"part", "item", "status", "message"}
_MEMORY = ("static", "passes", "update", "validation", "probe", "save", "peak", "reserved", "context")
_WAYS = {"ours": "`kis`", "exported": "`kis probe --model`"}
_MACHINE = ("driver", "cuda", "cudnn", "nccl", "python")


def table(path: Path) -> str:
    """Tables of each machine and state of the code in the file; of rows of one name the newest counts."""
    machines: dict[tuple[str, ...], tuple[Row, dict[tuple[str, str], Row]]] = {}
    now: dict[tuple[str, str], Row] = {}
    for row in read_rows(path):
        if row["part"] == "header" and row["status"] == OK:
            key = (row["device"], row["code"], str(row["versions"]))
            now = machines.setdefault(key, (row, {}))[1]
        else:
            now[row["part"], row["item"]] = row
    return "\n\n".join(_machine(header, list(rows.values())) for header, rows in machines.values())


def _machine(header: Row, rows: list[Row]) -> str:
    versions = {**header["versions"], **{name: header[name] for name in _MACHINE if header.get(name)}}
    code = f"commit {(header['commit'] or 'unknown')[:12]}{' with changes' if header['changed'] else ''}"
    lines = [
        f"{header['devices']} x {header['device']}, {header['time'][:10]}, {code}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    ]
    for name, make in (
        ("checks", _checks),
        ("memory", _memory),
        ("speed", _speed),
        ("probes", _probes),
        ("side-by-side", _together),
    ):
        mine = [row for row in rows if row["part"] == name]
        done = [row for row in mine if row["status"] == OK]
        if name == "checks" and mine:
            lines.append(_checks(mine))
        elif done:
            lines.append(make(done))
        if name != "checks":
            lines += [f"- {name}, {row['item']}: {row['status']}, {row['message']}" for row in mine if row not in done]
    return "\n\n".join(lines)


def _grid(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [list(head), ["---"] * len(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _checks(rows: list[Row]) -> str:
    order = {FAILED: 0, OK: 1, SKIPPED: 2}
    found = sorted(rows, key=lambda row: order[row["status"]])
    values = ({key: value for key, value in row.items() if key not in _OWN} for row in found)
    cells = (
        [row["item"], row["status"], row.get("message") or said(more)] for row, more in zip(found, values, strict=True)
    )
    return _grid(["check", "result", "found"], cells)


def _memory(rows: list[Row]) -> str:
    """GB; a part that ``kis plan`` has too with its ratio, measured over planned."""

    def cell(part: Row | None) -> str:
        if part is None:
            return ""
        ratio = f" ({part['ratio']:.3f})" if "ratio" in part else ""
        return f"{part['bytes'] / 1e9:.3f}{ratio}"

    head = ["GB (ratio to `kis plan`)", *_MEMORY]
    return _grid(head, ([row["item"], *(cell(row["parts"].get(name)) for name in _MEMORY)] for row in rows))


def _speed(rows: list[Row]) -> str:
    found = {(row["preset"], row["length"], row["kind"]): row for row in rows}
    cells = []
    for preset, length in dict.fromkeys((row["preset"], row["length"]) for row in rows):
        kinds = {kind: found.get((preset, length, kind)) for kind in ("ours", "compiled", "sdpa", "fp8")}
        ours, peer = kinds["ours"], kinds["compiled"]
        ratio = f"{ours['tokens_per_second'] / peer['tokens_per_second']:.3f}" if ours and peer else ""
        cells.append([preset, length, *(_rate(row) for row in kinds.values()), ratio])
    head = ["model", "L", "`kis`, tok/s", "compiled, tok/s", "`sdpa`, tok/s", "`fp8`, tok/s", "`kis` over compiled"]
    return _grid(head, cells)


def _rate(row: Row | None) -> str:
    if row is None:
        return ""
    mfu = f", MFU {row['mfu']:.1%}" if "mfu" in row else ""
    return f"{row['tokens_per_second']:,}{mfu}, {row['memory_bytes'] / 1e9:.1f} GB"


def _probes(rows: list[Row]) -> str:
    cells = []
    for row in rows:
        by_turn = row["ratios_by_turn"]["ours"]
        for tool in (*_WAYS, *by_turn):
            ratios = ", ".join(map(str, by_turn.get(tool, [])))
            cells.append(
                [
                    row["item"],
                    _WAYS.get(tool, tool),
                    f"{row[tool]['seconds']:.2f}",
                    f"{row[tool]['questions_a_second']:,.0f}",
                    ratios,
                ]
            )
    return _grid(["model", "tool", "seconds", "questions per second", "ratio by turn"], cells)


def _together(rows: list[Row]) -> str:
    cells = ([row["processes"], row["preset"], f"{row['tokens_per_second']:,}", row["runs_per_hour"]] for row in rows)
    return _grid(
        ["processes", "model", "tok/s together", f"runs of {rows[0]['run_tokens']:.0e} tokens per hour"], cells
    )
