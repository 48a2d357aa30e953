"""Arguments that are taken or refused by mistake, of kinds that are seldom given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from mdnc.modules.resnet import NAMES
from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.arguments import PAIRS, names, numbers
from spec_tests.faults.entry import Fault, fault, given_by_name

Given = Mapping[str, Any]

OTHER_NAMES = {
    "instance": "inst",
    "batchnorm": "batch",
    "identity": "null",
    "linear": "null",
    "pre": "new",
    "downsample": "down",
    "upsample": "up",
}


def _changed(name: str, title: str, cause: str, clause: str, arguments: Callable[[Given], Given]) -> Fault:
    return fault(name, title, cause, clause, "arguments", arguments=arguments)


def _pairs(change: Callable[[Any], Any]) -> Callable[[Given], Given]:
    """`change` for every pair, alone."""
    return lambda given: {n: change(v) for n, v in given.items() if n in PAIRS}


def _two(change: Callable[[Any, Any], Any]) -> Callable[[Given], Given]:
    """`change` for the two entries of a pair."""
    return _pairs(lambda v: change(*v) if isinstance(v, (list, tuple)) and len(v) == 2 else v)


def _single(value: Any) -> Any:
    whole = isinstance(value, (np.float16, np.float32)) and float(value).is_integer()
    return int(value) if whole else value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, (Decimal, Fraction)) and value == int(value) else value


def _second_truncated(first: Any, second: Any) -> Any:
    return (first, int(second)) if isinstance(second, float) and second.is_integer() else (first, second)


def _first_from_text(first: Any, second: Any) -> Any:
    return (int(first), second) if isinstance(first, str) and first.isdecimal() else (first, second)


def _second_is_the_first(first: Any, second: Any) -> Any:
    return (first, first) if second is None else (first, second)


def _any_two(*kinds: type) -> Callable[[Any], Any]:
    def pair(value: Any) -> Any:
        return (*value,) if type(value) in kinds and len(value) == 2 else value

    return pair


def _digits(value: Any) -> Any:
    return tuple(map(int, value)) if isinstance(value, str) and len(value) == 2 and value.isdecimal() else value


def _completed(given: Given) -> Given:
    changed = {}
    for argument, name in given.items():
        if argument in NAMES and isinstance(name, str) and name:
            fitting = [full for full in NAMES[argument] if full.startswith(name)]
            changed[argument] = fitting[0] if len(fitting) == 1 else name
    return changed


def _longer(given: Given) -> Given:
    """What begins as a name is that name."""
    changed = {}
    for argument, name in given.items():
        if argument in NAMES and isinstance(name, str):
            changed[argument] = next((short for short in NAMES[argument] if name.startswith(short)), name)
    return changed


def _large_refused(argument: str, limit: int, clause: str, cause: str) -> Fault:
    def arguments(given: Given) -> Given:
        value = given.get(argument, 1)
        numbers = value if isinstance(value, (list, tuple)) else (value,)
        if any(type(number) is int and number > limit for number in numbers):
            raise ValueError(f"`{argument}` (={value!r}) must be at most {limit}")
        return {}

    title = f"{argument} of more than {limit} is refused"
    return _changed(f"large_{argument}_refused", title, cause, clause, arguments)


def _kept_as_given(block: Any, *positional: Any, **named: Any) -> None:
    """The sizes of a call are computed with the integers that were given."""
    Block.__init__(block, *positional, **named)
    given = given_by_name(positional, named)
    for name in ("kernel_size", "stride", "padding"):
        if isinstance(given.get(name), np.integer):
            setattr(block, name, (given[name], given[name]))
    block._agrees = False


FAULTS = (
    _changed(
        "float32_is_int",
        "np.float32(3) is taken for 3",
        "a check for float, which NumPy's float64 is and its others are not",
        "1.15",
        numbers(_single),
    ),
    _changed("whole_fraction_is_int", "Decimal(3) is taken for 3", "value == int(value)", "1.15", numbers(_whole)),
    _changed(
        "second_entry_truncated",
        "the second entry of a pair may be a whole float",
        "a check of the first entry alone",
        "1.15",
        _two(_second_truncated),
    ),
    _changed(
        "first_entry_from_text",
        "the first entry of a pair may be a text",
        "a check of the last entry alone",
        "1.15",
        _two(_first_from_text),
    ),
    _changed(
        "none_is_the_other_entry",
        "None as the second entry of a pair is the first one",
        "width = height if width is None",
        "1.15",
        _two(_second_is_the_first),
    ),
    _changed("set_is_a_pair", "a set of two is taken for a pair", "tuple(value)", "1.15", _pairs(_any_two(set, dict))),
    _changed("bytes_are_a_pair", "b'35' is taken for (51, 53)", "tuple(value)", "1.15", _pairs(_any_two(bytes))),
    _changed("digits_are_a_pair", "'35' is taken for (3, 5)", "map(int, value)", "1.15", _pairs(_digits)),
    _changed("names_completed", "the beginning of a name is taken", "argparse, option files", "1.16", _completed),
    _changed("names_cut_off", "a name may go on", ".startswith()", "1.16", _longer),
    _changed(
        "names_of_others",
        "names of other frameworks are taken",
        "a table of aliases",
        "1.16",
        names(lambda v: OTHER_NAMES.get(v, v) if isinstance(v, str) else v),
    ),
    _large_refused("in_planes", 255, "1.2", "channels that are counted in eight bits"),
    _large_refused("out_planes", 255, "1.3", "channels that are counted in eight bits"),
    _large_refused("kernel_size", 15, "1.4", "sizes that a kernel generator knows"),
    _large_refused("stride", 8, "1.5", "the strides that occur"),
    _large_refused("padding", 7, "1.6", "half of the largest kernel"),
    _large_refused("output_size", 256, "1.7", "images of a data set"),
    fault(
        "platform_integers_kept",
        "sizes are computed with NumPy's integers as they came, of eight bits too",
        "value stored as it came",
        "1.14",
        "arguments",
        methods={"__init__": _kept_as_given},
    ),
)
