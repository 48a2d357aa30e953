"""A pytest plugin for mutation testing: every test computes anew, nothing comes from the cache of one before.

mutmut forks a process in which all tests have run: what they left in a cache would hide a changed function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

# The sources that are mutated, and what is drawn by them; the golden data are read once.
PACKAGES = ("mdnc.", "spec_tests.compare", "spec_tests.config", "spec_tests.numeric", "spec_tests.oracle")


def clearers() -> Iterator[Callable[[], None]]:
    """What empties the caches of our functions and methods."""
    for name, module in list(sys.modules.items()):
        if name.startswith(PACKAGES):
            for item in vars(module).values():
                members = list(vars(item).values()) if isinstance(item, type) else []
                yield from (f.cache_clear for f in (item, *members) if callable(getattr(f, "cache_clear", None)))


@pytest.fixture(autouse=True, scope="session")
def _clearers() -> list[Callable[[], None]]:
    return list(clearers())


@pytest.fixture(autouse=True)
def _cleared(_clearers: list[Callable[[], None]]) -> None:
    for clear in _clearers:
        clear()
