"""Which examples Hypothesis draws: they follow from the name of the test and the seed of the run alone.

Hypothesis itself derives them from the source text of a test, the same for all its parameters, and mixes in constants
of whatever local modules are loaded by then, so that they would change with the order of the tests and the number of
workers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis.database import DirectoryBasedExampleDatabase, ExampleDatabase

from spec_tests.chapter_run import REDIS

PREFIX = b"mdnc-spec:"


def test_seed(name: str, run_seed: int | None) -> int:
    """The seed of the test called `name` (with its parameters); `run_seed` None is that of the fixed examples."""
    return zlib.crc32(f"{run_seed or 0}:{name}".encode())


test_seed.__test__ = False  # type: ignore[attr-defined]


def seed_test(function: Callable[..., Any], name: str, run_seed: int | None, key: str) -> None:
    """Seed a test of Hypothesis for its next run; any other function is left alone.

    Its settings are today's: @given keeps those of the import, which may have been for another run of this process,
    and `hypothesis.seed` takes the database away. `key` is the test's name in the database.
    """
    if hasattr(function, "hypothesis"):
        hypothesis.seed(test_seed(name, run_seed))(function)
        function._hypothesis_internal_use_settings = hypothesis.settings.default  # type: ignore[attr-defined]
        function._hypothesis_internal_database_key = key.encode()  # type: ignore[attr-defined]


def database(where: str) -> ExampleDatabase | None:
    """Where examples that failed are kept, to be tried first: "" nowhere, redis://…, or a folder.

    Raises ImportError if the Redis client is not installed, and redis.RedisError if the server cannot be asked.
    """
    if not where:
        return None
    if where.startswith(REDIS):
        try:
            from hypothesis.extra.redis import RedisExampleDatabase
            from redis import Redis
        except ImportError as error:
            raise ImportError("the Redis client is not installed: pip install 'mdnc-spec[redis]'") from error
        client = Redis.from_url(where)
        client.ping()
        return RedisExampleDatabase(client, key_prefix=PREFIX)
    return DirectoryBasedExampleDatabase(where)


def stored(where: str) -> int:
    """How many examples a Redis server keeps."""
    from redis import Redis

    client = Redis.from_url(where)
    return sum(int(client.scard(key)) for key in client.scan_iter(PREFIX + b"*"))


def without_local_constants() -> None:
    """Draw no number because it stands in the source of a loaded module.

    There is no public setting for it. With a Hypothesis that has no such function, examples vary as said above.
    """
    try:
        from hypothesis.internal.conjecture import providers
    except ImportError:
        return
    if hasattr(providers, "_get_local_constants"):
        providers._get_local_constants = lambda: providers._local_constants
