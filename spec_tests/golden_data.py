"""The only reader of the golden data, in a checkout and in a wheel."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# A wheel carries the data inside the package; a checkout has it beside the package.
ROOT = _HERE / "_golden" if (_HERE / "_golden").is_dir() else _HERE.parent / "golden"


def documented_table(name: str) -> str:
    """One of the two tables of the block's page, ``"down"`` or ``"up"``."""
    return (ROOT / "documented" / f"{name}.txt").read_text(encoding="utf-8")


def summary_table(case: str) -> str:
    """The table of one enumerated case, such as ``"pinst-prelu-new-down-mixed"``."""
    return (ROOT / "summaries" / f"{case}.txt").read_text(encoding="utf-8")


@cache
def summary_index() -> dict[str, dict[str, str]]:
    """The rows of the index of all tables by case: block, input, parameters, output."""
    with (ROOT / "summaries" / "index.csv").open(encoding="utf-8", newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


@cache
def vector_manifest() -> dict[str, Any]:
    """What the test vectors are: for each its id, file, SHA-256, configuration, mode, clauses and purpose."""
    found: dict[str, Any] = json.loads((ROOT / "vectors" / "manifest.json").read_text(encoding="utf-8"))
    return found


def bounds_file() -> bytes:
    """Values and bounds of the oracle on recorded calls, a CSV file."""
    return (ROOT / "bounds" / "bounds.csv").read_bytes()


def vector_schema() -> dict[str, Any]:
    """The JSON schema of the manifest."""
    found: dict[str, Any] = json.loads((ROOT / "vectors" / "manifest.schema.json").read_text(encoding="utf-8"))
    return found


def vector_bytes(file: str) -> bytes:
    """The content of one test vector, a safetensors file."""
    return (ROOT / "vectors" / file).read_bytes()
