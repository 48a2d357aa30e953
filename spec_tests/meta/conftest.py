"""Fixtures of the tests of the suite itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

# A shell starts what runs in its background with Ctrl-C ignored, and every process that a test starts would inherit
# that: what is tested here is what Ctrl-C does.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
