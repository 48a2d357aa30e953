"""What is enumerated rather than drawn: named values, kinds of shortcut, and refused arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from spec_tests.config import NAMED_VALUES, BlockConfig

# One set of arguments for each kind of shortcut; with scaler="down" "output_size" is an identity.
SHORTCUTS: dict[str, dict[str, Any]] = {
    "identity": {"in_planes": 4, "out_planes": 4},
    "channels": {"in_planes": 4, "out_planes": 6},
    "stride": {"in_planes": 4, "out_planes": 4, "stride": 2},
    "output_size": {"in_planes": 4, "out_planes": 4, "output_size": (7, 10)},
    "mixed": {"in_planes": 4, "out_planes": 6, "kernel_size": (3, 5), "padding": (1, 2), "stride": (1, 2)},
}
# Height and width differ, and so do all of their images, so that no two axes can be mistaken.
INPUT_SIZE = (5, 6)

DOCUMENTED: dict[str, tuple[BlockConfig, tuple[int, int, int], int]] = {
    "down": (
        BlockConfig.of(16, 32, kernel_size=(3, 3), stride=(1, 2), padding=(1, 1), scaler="down"),
        (16, 4, 255),
        3792,
    ),
    "up": (
        BlockConfig.of(32, 16, kernel_size=(3, 3), output_size=(4, 255), padding=(1, 1), scaler="up"),
        (32, 4, 128),
        11584,
    ),
}


def named_values(**fixed: str) -> Iterator[dict[str, str]]:
    """Every combination of the named values, with those in `fixed` held."""
    choices = [(fixed[name],) if name in fixed else values for name, values in NAMED_VALUES.items()]
    for combination in product(*choices):
        yield dict(zip(NAMED_VALUES, combination, strict=True))


@cache
def _enumerated() -> tuple[tuple[dict[str, str], str, BlockConfig], ...]:
    return tuple(
        (names, "-".join([*names.values(), kind]), BlockConfig.of(**arguments, **names))
        for names in named_values()
        for kind, arguments in SHORTCUTS.items()
    )


def enumerated(**fixed: str) -> Iterator[tuple[str, BlockConfig]]:
    """Every combination of named values and kind of shortcut, with an id such as `pinst-prelu-new-down-mixed`."""
    for names, name, config in _enumerated():
        if fixed.items() <= names.items():
            yield name, config


@dataclass(frozen=True)
class BadArgument:
    """A value that `argument` must refuse, as a wrong ``"type"`` or a wrong ``"value"``."""

    argument: str
    value: Any
    kind: str

    @property
    def id(self) -> str:
        return f"{self.argument}={self.value!r}"

    def arguments(self) -> dict[str, Any]:
        return {"in_planes": 2, "out_planes": 3, self.argument: self.value}

    def wrong_entries(self) -> list[Any]:
        """Of a sequence, the entries that would be refused alone too."""
        return [entry for entry in self.value if self._refused(entry)] if isinstance(self.value, (tuple, list)) else []

    def _refused(self, value: Any) -> bool:
        try:
            BlockConfig.of(**{**self.arguments(), self.argument: value})
        except (TypeError, ValueError):
            return True
        return False


# What other frameworks call the named values.
OTHER_NAMES = {
    "normalizer": ("batchnorm", "bn", "instance", "in", "identity"),
    "activator": ("lrelu", "linear", "identity"),
    "layer_order": ("pre", "post"),
    "scaler": ("downsample", "upsample"),
}


def bad_arguments() -> Iterator[BadArgument]:
    """Every kind of refused argument (clauses 1.2 to 1.16)."""
    number_types: list[Any] = [True, False, 2.0, float("nan"), float("inf"), 1j, "3", "same", b"3", {3}, {3: 3}]
    # `int` takes all of them, and truncates; of these types a float is np.float64 alone.
    number_types += [np.float64(2.0), np.float32(3), np.float16(3), np.bool_(True)]
    number_types += [Decimal("3.7"), Decimal(3), Fraction(7, 2), Fraction(6, 2)]
    # `tuple` makes two of them, and of the last three no numbers that anybody wrote.
    number_types += [{3, 5}, {3: 1, 5: 1}, "35", b"35", bytearray(b"35")]
    for argument in ("in_planes", "out_planes"):
        for value in [*number_types, None, (3,), [3, 3]]:
            yield BadArgument(argument, value, "type")
        for value in (0, -1, np.int64(0)):
            yield BadArgument(argument, value, "value")
    for argument in ("kernel_size", "stride", "padding", "output_size"):
        missing = [] if argument == "output_size" else [None]
        pairs: list[Any] = [(1, True), (True, 1), (2.0, 1), (1, "3"), (None, 1), [1, [1]], ((1, 1), 1)]
        pairs += [(3, 1.0), ("3", 1), (3, None), (np.float32(3), 1), (1, Decimal(3)), (Fraction(6, 2), 1)]
        for value in [*number_types, *missing, *pairs]:
            yield BadArgument(argument, value, "type")
        low: list[Any] = [-1, (-1, 1), [1, -1], np.int64(-1)]
        if argument != "padding":
            low += [0, (0, 1), [1, 0]]
        for value in [*low, (), (1,), (1, 2, 3), [1, 2, 3, 4]]:
            yield BadArgument(argument, value, "value")
    for argument, names in NAMED_VALUES.items():
        others = [name for values in NAMED_VALUES.values() for name in values if name not in names][:2]
        for value in (None, 0, 1, True, False, 1.0, b"null", (names[0],), [names[0]]):
            yield BadArgument(argument, value, "type")
        spelled = [names[0].upper(), names[-1].capitalize(), f" {names[0]}", f"{names[0]}\n"]
        parts = [names[0][:1], names[0][:-1], names[-1][:-1], f"{names[0]}s"]
        for value in ("", *spelled, *parts, "none", *OTHER_NAMES[argument], *others):
            yield BadArgument(argument, value, "value")


# Arguments, and batch, height and width.
Size = tuple[dict[str, Any], tuple[int, int, int]]
LARGE: tuple[Size, ...] = (
    ({"in_planes": 3, "out_planes": 4}, (18, 5, 6)),
    ({"in_planes": 40, "out_planes": 40}, (2, 3, 4)),
    ({"in_planes": 7, "out_planes": 13}, (2, 4, 5)),
    ({"in_planes": 33, "out_planes": 70, "kernel_size": 1, "padding": 0}, (2, 4, 3)),
    ({"in_planes": 2, "out_planes": 3, "kernel_size": (7, 9), "padding": (3, 4), "stride": (1, 2)}, (2, 9, 8)),
    ({"in_planes": 2, "out_planes": 2, "stride": (4, 5)}, (2, 9, 11)),
    ({"in_planes": 2, "out_planes": 2, "stride": 2}, (1, 3, 71)),
    ({"in_planes": 1, "out_planes": 2, "stride": (2, 1)}, (1, 301, 2)),
    ({"in_planes": 1, "out_planes": 2, "stride": (1, 2)}, (1, 2, 301)),
    ({"in_planes": 1, "out_planes": 1}, (1, 70, 71)),
    ({"in_planes": 1, "out_planes": 1}, (1, 80, 96)),
    ({"in_planes": 2, "out_planes": 3}, (130, 2, 2)),
    ({"in_planes": 3, "out_planes": 4}, (8, 3, 4)),
    # What is a multiple of what registers, tiles and memory lines hold.
    ({"in_planes": 16, "out_planes": 64, "kernel_size": 1, "padding": 0}, (2, 8, 8)),
    ({"in_planes": 2, "out_planes": 256, "kernel_size": 1, "padding": 0}, (1, 2, 3)),
    ({"in_planes": 130, "out_planes": 129, "kernel_size": 1, "padding": 0}, (1, 1, 2)),
    ({"in_planes": 2, "out_planes": 2, "kernel_size": 11, "padding": 5, "stride": 7}, (1, 9, 10)),
    ({"in_planes": 2, "out_planes": 2, "kernel_size": 15, "padding": 7, "stride": 8}, (1, 9, 17)),
    ({"in_planes": 2, "out_planes": 3, "kernel_size": 7, "padding": 3, "stride": 6}, (2, 13, 14)),
    ({"in_planes": 2, "out_planes": 3, "output_size": (32, 3)}, (2, 3, 3)),
    ({"in_planes": 2, "out_planes": 3, "output_size": (4, 5)}, (2, 1, 1)),
    ({"in_planes": 2, "out_planes": 3, "output_size": 1}, (2, 9, 10)),
    # Every way beyond the drawn sizes, with every kind of shortcut.
    ({"in_planes": 3, "out_planes": 3}, (18, 4, 5)),
    ({"in_planes": 2, "out_planes": 2}, (64, 2, 3)),
    ({"in_planes": 2, "out_planes": 2, "stride": 2}, (17, 3, 4)),
    ({"in_planes": 4, "out_planes": 2, "output_size": (5, 3)}, (16, 3, 2)),
    ({"in_planes": 24, "out_planes": 24, "stride": (2, 1)}, (2, 5, 4)),
    ({"in_planes": 2, "out_planes": 3}, (1, 40, 37)),
    ({"in_planes": 3, "out_planes": 3, "kernel_size": (9, 7), "padding": (4, 3)}, (2, 8, 9)),
    ({"in_planes": 2, "out_planes": 3, "kernel_size": (7, 9), "padding": (3, 4)}, (2, 4, 5)),
)
# Sums of so many terms, and planes of so many elements, that bounds of float32 say little behind a norm.
WIDE: tuple[Size, ...] = (
    ({"in_planes": 64, "out_planes": 64}, (1, 8, 8)),
    ({"in_planes": 16, "out_planes": 32}, (16, 8, 16)),
    ({"in_planes": 1, "out_planes": 1}, (1, 257, 256)),
)

# Batches and channels beyond what a byte counts, more than once, and more elements of a channel than 4,000.
BEYOND: tuple[Size, ...] = (
    ({"in_planes": 1, "out_planes": 2, "kernel_size": 1, "padding": 0}, (1030, 2, 2)),
    ({"in_planes": 520, "out_planes": 2, "kernel_size": 1, "padding": 0}, (1, 2, 3)),
)
# One element at the first norm, at a norm behind the scaling, and at the norm of the projection alone.
SINGLE: tuple[tuple[BlockConfig, tuple[int, int, int, int]], ...] = (
    (BlockConfig.of(2, 2), (1, 2, 1, 1)),
    (BlockConfig.of(2, 3, stride=2), (1, 2, 2, 2)),
    (BlockConfig.of(2, 2, stride=(2, 3)), (1, 2, 1, 3)),
    (BlockConfig.of(2, 2, stride=3, layer_order="old"), (1, 2, 3, 2)),
    (BlockConfig.of(2, 2, stride=3, scaler="up", kernel_size=1, padding=0), (1, 2, 1, 1)),
    (BlockConfig.of(2, 2, output_size=1, scaler="up"), (1, 2, 2, 2)),
)


def large(scaler: str, sizes: Iterable[Size] = LARGE) -> Iterator[tuple[BlockConfig, tuple[int, int, int, int]]]:
    """Blocks and inputs beyond the sizes that are drawn: batches, channels, kernels, strides, lengths.

    Every normalizer comes with each, and the other names change from one to the next.
    """
    for number, (arguments, (batch, height, width)) in enumerate(sizes):
        for place, normalizer in enumerate(NAMED_VALUES["normalizer"]):
            names = {
                name: NAMED_VALUES[name][(number + place) % len(NAMED_VALUES[name])]
                for name in ("activator", "layer_order")
            }
            config = BlockConfig.of(**arguments, **names, normalizer=normalizer, scaler=scaler)
            yield config, (batch, config.in_planes, height, width)
