"""Runs Python in copies of a process that has torch loaded: loading it costs more than most runs of the command do.

What is ours is imported anew in each copy. It differs from a start of Python in what is settled before the first line
runs: flags, variables that are read while Python and the libraries are loaded, the seed of hashes (one for all copies),
and what `/proc` tells of the process. Tests of these, and of two runs being alike, start Python itself.
"""

from __future__ import annotations

import atexit
import functools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path

# Slow to import, and the same whatever the directory and the environment are.
LOADED = ("numpy", "torch", "pytest", "hypothesis.strategies", "rich.console", "jinja2", "safetensors.numpy")
# Variables that are read while Python and the libraries are loaded.
SETTLED = ("CI", "HYPOTHESIS", "LD_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON", "TORCH")
# How a generator, which was seeded when its module was loaded, gets a new seed.
GENERATORS = {"numpy": "random.seed", "torch": "default_generator.seed"}
STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}
# A copy of this process, as a tool that mutates code makes them, has no part in the process that is copied.
_OWNER = os.getpid()


def possible(arguments: Sequence[str], env: Mapping[str, str], usual: Mapping[str, str]) -> bool:
    """Whether a copy, made in the `usual` environment, does what `python ARGUMENTS` does in `env`."""
    settled = [{k: v for k, v in variables.items() if k.startswith(SETTLED)} for variables in (env, usual)]
    flags = arguments[0].startswith("-") and arguments[0] not in ("-m", "-c")
    return sys.platform == "linux" and os.getpid() == _OWNER and settled[0] == settled[1] and not flags


def run(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: str, timeout: float
) -> tuple[int, str, str]:
    """Run `python ARGUMENTS`, which begin with `-m`, `-c` or a file; the status and what was printed.

    Raises:
        subprocess.TimeoutExpired: it ran longer than `timeout` seconds, and was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in STREAMS]
        for stream in streams:
            stream.write_text(stdin if stream.name == "stdin" else "", encoding="utf-8")
        asked = ([*arguments], str(cwd), {**env}, streams, _path(env["PYTHONPATH"]))
        process = _server(env).Process(target=_become, args=asked)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([*arguments], timeout)
        return process.exitcode, streams[1].read_text(encoding="utf-8"), streams[2].read_text(encoding="utf-8")


@functools.cache
def _path(given: str) -> list[str]:
    """Where a start of Python with this `PYTHONPATH` looks for modules, behind its directory."""
    code = "import json, sys; print(json.dumps(sys.path[1:]))"
    env = {**os.environ, "PYTHONPATH": given}
    found: list[str] = json.loads(subprocess.check_output([sys.executable, "-c", code], env=env))
    return found


def _server(env: Mapping[str, str]) -> multiprocessing.context.ForkServerContext:
    """The process to be copied, started with the first environment, which settles the number of threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LOADED])
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _become(arguments: list[str], cwd: str, env: dict[str, str], streams: Sequence[Path], path: Sequence[str]) -> None:
    """Do in this process what `python ARGUMENTS` does."""
    for number, file in enumerate(streams):
        opened = os.open(file, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
        mode = STREAMS[file.name]
        stream = open(number, mode, 1 if number == 2 else -1, encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, file.name, stream)
        setattr(sys, f"__{file.name}__", stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mdnc", "spec_tests")]:
        del sys.modules[name]
    # Random's own does so itself.
    for name, generator in GENERATORS.items():
        if name in sys.modules:
            attrgetter(generator)(sys.modules[name])()
    first, *rest = arguments
    here = cwd if first == "-m" else "" if first == "-c" else str(Path(first).absolute().parent)
    sys.path[:] = [here, *path]
    sys.argv = ["-c", *rest[1:]] if first == "-c" else rest if first == "-m" else arguments
    try:
        if first == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})  # noqa: S102
        else:
            runpy.run_path(first, run_name="__main__")
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
