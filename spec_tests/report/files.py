"""Writes the files of a report: each is whole or not there, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from spec_tests.report.model import FILE, Report
from spec_tests.verdict import BROKEN, CONFORMS, PARTIAL

PAGE = "report.html"
_COLORS = {CONFORMS: "brightgreen", BROKEN: "red", PARTIAL: "yellow"}


def badge(report: Report) -> str:
    """The badge in the endpoint format of shields.io."""
    color = _COLORS.get(report.exit_status, "lightgrey")
    told = {"schemaVersion": 1, "label": "mdnc-spec", "message": report.word, "color": color}
    return json.dumps(told) + "\n"


def write_report(report: Report, folder: Path) -> Path:
    """Write all files; return the page. Raises OSError, after which each file is the old or the new one."""
    from spec_tests.report.junit import junit
    from spec_tests.report.page import html, markdown

    texts = {
        FILE: report.dumps(),
        PAGE: html(report),
        "report.md": markdown(report),
        "junit.xml": junit(report),
        "badge.json": badge(report),
    }
    write_all(folder, texts)
    return folder / PAGE


def overwritten(folder: Path, inputs: Iterable[Path]) -> bool:
    """Whether a report that is written into the folder would replace one of these, each a folder or a file."""
    files = {(path / FILE if path.is_dir() else path).resolve() for path in inputs}
    return (folder / FILE).resolve() in files


def check_writable(folder: Path) -> None:
    """Make the folder if it is not there. Raises OSError if nothing can be written into it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Write beside, then replace: a full disk or a signal leaves no half of a file."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = {name: folder / f".{name}.{os.getpid()}" for name in texts}
    try:
        for name, text in texts.items():
            with scratch[name].open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for name, path in scratch.items():
            path.replace(folder / name)
    finally:
        for path in scratch.values():
            path.unlink(missing_ok=True)
