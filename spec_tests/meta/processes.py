"""Starts the command line in processes of its own, as a user does."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spec_tests.meta import forks

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = "py:mdnc.modules.resnet:BlockBottleneck2d"

# Several runs in one process: importing torch costs more than most of them.
_MANY = """
import contextlib, io, json, sys
from spec_tests import cli
found = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(arguments)
        except SystemExit as error:
            status = error.code
    found.append([status, out.getvalue(), err.getvalue()])
json.dump(found, sys.stdout)
"""


@dataclass(frozen=True)
class Ended:
    """A run that ended: its exit status and what it printed."""

    status: int
    out: str
    err: str

    def failures(self) -> dict[str, dict[str, str]]:
        """The broken clauses, each with what was told about it (`what`, `example`, `got`, `expected`, `replay`)."""
        found: dict[str, dict[str, str]] = {}
        story: dict[str, str] = {}
        label = ""
        for line in self.out.splitlines():
            title = re.match(r"(?:FAILED|ADVICE) (\S+) ", line)
            if title:
                story = found.setdefault(title[1], {})
            elif re.match(r" {4}\w", line):
                label, _, text = line.strip().partition(" ")
                story[label] = text.strip()
            elif line.startswith(" " * 14) and label:
                story[label] += "\n" + line.strip()
            else:
                label = ""
        return found


def environment(**more: str) -> dict[str, str]:
    """The environment of this process, with the checkout importable and without what a pytest or a CI added."""
    dropped = ("CI", "COLUMNS", "FORCE_COLOR", "PYTHONOPTIMIZE", "PYTHONPATH", "PYTHONUNBUFFERED")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "HYPOTHESIS")) and k not in dropped}
    path = os.pathsep.join(p for p in (more.pop("PYTHONPATH", ""), str(ROOT)) if p)
    return {**plain, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def run_arguments(subject: str, *more: str, profile: str = "smoke") -> list[str]:
    """The arguments of `mdnc-spec run`."""
    return ["run", "--subject", subject, "--profile", profile, *more]


def python(
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = 240,
    anew: bool = False,
) -> Ended:
    """Run this Python with `arguments` in the directory `cwd`: started `anew`, or a copy where that is the same."""
    env = environment() if env is None else env
    if not anew and forks.possible(arguments, env, environment()):
        return Ended(*forks.run(arguments, cwd=cwd, env=env, stdin=stdin or "", timeout=timeout))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=dict(env),
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def mdnc_spec(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None, anew: bool = False) -> Ended:
    """Run `mdnc-spec` with `arguments`."""
    return python("-m", "spec_tests", *arguments, cwd=cwd, env=env, anew=anew)


def mdnc_spec_many(
    runs: Sequence[Sequence[str]], *, cwd: Path, env: Mapping[str, str] | None = None, flags: Sequence[str] = ()
) -> list[Ended]:
    """Run `mdnc-spec` several times in one process, with `flags` for Python."""
    asked = json.dumps([list(run) for run in runs])
    done = python(*flags, "-c", _MANY, cwd=cwd, env=env, stdin=asked)
    if done.status:
        raise RuntimeError(done.err)
    return [Ended(*found) for found in json.loads(done.out)]


@contextmanager
def loaded(tool: Path) -> Iterator[Any]:
    """A tool of tools/ as a module of its own, which others of this process do not see. Skips where there is none."""
    if not tool.exists():
        pytest.skip("tools/ is not part of an installed package")
    spec = importlib.util.spec_from_file_location(f"{tool.stem}_under_test", tool)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    # dataclasses look their module up.
    sys.modules[spec.name] = found
    try:
        spec.loader.exec_module(found)
        yield found
    finally:
        del sys.modules[spec.name]
