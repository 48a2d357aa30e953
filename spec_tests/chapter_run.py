"""How the chapters are run by pytest in this process, whatever the set-up of who runs them."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parent
# How the address of a database that is no folder begins, that of a Redis server.
REDIS = ("redis://", "rediss://", "unix://")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def one_thread() -> None:
    """One thread for NumPy and torch, unless the user wants more; to be called before they are imported.

    The tensors are small, and threads would only wait for each other.
    """
    for name in THREADS:
        os.environ.setdefault(name, "1")


def ignore_own_setup() -> None:
    """Let nothing of the user's own set-up of pytest in, of this process and of those that it starts."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        os.environ.pop(name, None)


def arguments() -> list[str]:
    """Those of pytest for a quiet run of the chapters, which writes nothing where it runs."""
    return [
        # By module name: pytest takes no path with brackets in it.
        *("--pyargs", "spec_tests.chapters", "-c", str(PACKAGE / "suite.ini"), "--rootdir", str(PACKAGE)),
        *("-p", "spec_tests.plugin", "-p", "no:cacheprovider", "-p", "no:terminalreporter"),
        # Next to a name that is no path, pytest looks where it runs. Its own way to tell a failure prints all arguments
        # and parses every source, which takes longer than the tests of a wrong block.
        *("-p", "no:unraisableexception", "-q", "--assert=plain", "--noconftest", "--tb=native"),
    ]
