"""What the lax ports have in common: they look at a request before an honest port answers it."""

from __future__ import annotations

from collections.abc import Callable

from spec_tests.config import BlockConfig
from spec_tests.meta.honest_port import Answer, Port, Tensors
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array

Answers = tuple[dict[str, str], Tensors]
KNOWN = {"op", "id", "bytes", "protocol", "mode", "dtype", "shape", "seed", *(f"cfg.{name}" for name in wire.ARGUMENTS)}


def reads(value: Callable[[str], object]) -> type[Port]:
    """A port that reads the numbers among the arguments with `value`, and what that cannot read as it should."""

    def rewritten(key: str, text: str) -> str:
        if not key.startswith("cfg.") or key[4:] in ("normalizer", "activator", "layer_order", "scaler"):
            return text
        try:
            return wire.text(value(text))
        except ValueError:
            return text

    class Reads(Port):
        def config(self, header: wire.Header) -> BlockConfig:
            metadata = {key: rewritten(key, text) for key, text in header.metadata.items()}
            return super().config(wire.Header(metadata, header.tensors))

    return Reads


def before(check: Callable[[wire.Header, dict[str, Array]], object]) -> type[Port]:
    """A port that looks at each request first, and may raise an Answer."""

    class Looks(Port):
        def answer(self, header: wire.Header, given: dict[str, Array]) -> Answers:
            try:
                check(header, given)
            except Answer as answer:
                return answer.metadata, {}
            return super().answer(header, given)

    return Looks


def refused(code: str, message: str = "what?") -> Answer:
    return Answer("error", code=code, message=message)
