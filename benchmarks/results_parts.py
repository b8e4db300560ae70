"""What every section of docs/results.md is made of: tables, verdicts, where and when."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read(records: Path, name: str) -> Record | None:
    file = records / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def missing(name: str, command: str) -> str:
    return f"Not measured: `benchmarks/records/{name}` is missing. It is made by `{command}`."


def smoke(record: Record) -> Iterable[str]:
    if record["quick"]:
        yield "**From a smoke test (`--quick`): these figures mean nothing.**"


def verdict(mean: bool, all_of_it: bool = True, partly: str = "") -> str:
    if not mean:
        return "**no**"
    return "yes" if all_of_it else partly


def provenance(record: Record, created: Sequence[str]) -> str:
    machine = record["machine"]
    days = sorted({time[:10] for time in created})
    return (
        f"Measured {' and '.join(days)} on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['system']}, Python {machine['python']}; {versions(record['versions'])}."
    )


def versions(versions: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def markdown_table(titles: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
