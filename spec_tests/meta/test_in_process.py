"""What a torch class does at a call reaches the suite as one of its own errors, in words that can be printed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spec_tests.subjects.base import Crashed, Refused

pytest.importorskip("torch")

from spec_tests.subjects.in_process import _translated


def _raises(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        with _translated("a call"):
            raise error

    return call


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (SystemExit(1), Crashed, "SystemExit: 1"),
        (RuntimeError("bad \ud800 \x1b[31m"), Crashed, "RuntimeError: bad \N{REPLACEMENT CHARACTER} "),
        (ValueError("`x` \x00"), Refused, "ValueError: `x` \N{REPLACEMENT CHARACTER}"),
        (TypeError("`x`\n\tno tensor"), Refused, "TypeError: `x`\n\tno tensor"),
    ],
)
def test_what_a_call_raises(error: BaseException, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as raised:
        _raises(error)()
    told = raised.value.error if isinstance(raised.value, Crashed) else str(raised.value)
    assert words in told
    told.encode()


def test_an_interruption_is_none() -> None:
    with pytest.raises(KeyboardInterrupt):
        _raises(KeyboardInterrupt())()
