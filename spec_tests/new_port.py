"""Writes the skeleton of a new port."""

from __future__ import annotations

import shlex
from pathlib import Path

PACKAGE = Path(__file__).parent

# For each language: the files of a skeleton and where they come from, how it is built, and how it is run.
LANGUAGES: dict[str, tuple[dict[str, str], str, str]] = {
    "python": (
        {
            "port.py": "skeletons/python/port.py",
            "protocol.py": "ports/python/protocol.py",
            "layers.py": "ports/python/layers.py",
        },
        "",
        "python port.py",
    ),
    "c": ({"port.c": "skeletons/c/port.c"}, "cc -O2 -std=c11 -Wall -Wextra -o port port.c -lm", "./port"),
    "js": (
        {
            "port.js": "skeletons/js/port.js",
            "protocol.js": "ports/js/protocol.js",
            "package.json": "skeletons/js/package.json",
        },
        "",
        "node port.js",
    ),
    "rust": ({"port.rs": "skeletons/rust/port.rs"}, "rustc -O port.rs", "./port"),
}


def new_port(language: str, folder: Path) -> str:
    """Write the skeleton into `folder`, which is made if it is not there; return what to do next.

    Raises:
        FileExistsError: a file of the skeleton is there already; nothing was written.
        OSError: the folder cannot be written.
    """
    files, build, command = LANGUAGES[language]
    there = [name for name in files if (folder / name).exists()]
    if there:
        raise FileExistsError(f"{folder} already has {', '.join(there)}; nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        (folder / name).write_bytes((PACKAGE / source).read_bytes())
    steps = [f"cd {shlex.quote(str(folder))}", build, f"mdnc-spec run --subject 'cmd:{command}' --until-first-failure"]
    return "\n".join(
        [
            f"wrote {', '.join(files)}; next:",
            *(f"    {step}" for step in steps if step),
            f"what is asked and answered: {PACKAGE / 'PROTOCOL.md'}",
            f"step by step:              {PACKAGE / 'PORTING.md'}",
        ]
    )
