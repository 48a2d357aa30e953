"""Counted and listed nouns, and texts of several lines, as people write them."""

from __future__ import annotations

from collections.abc import Collection


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 check", "1,657 checks"; `many` is the plural that takes more than an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(noun: str, names: Collection[str]) -> str:
    """A noun with names: "clause 4.1", "clauses 4.1, 4.2"."""
    return f"{noun}{'s' * (len(names) != 1)} {', '.join(names)}"


def hanging(text: str) -> str:
    """A text whose further lines are indented, so that they belong to the first."""
    return "\n      ".join(text.splitlines())


def shown(text: str, limit: int = 2000) -> str:
    """What another program wrote, for people: at most `limit` characters, and none that steers a terminal."""
    cut = text if len(text) <= limit else f"{text[:limit]}…"
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in cut)
