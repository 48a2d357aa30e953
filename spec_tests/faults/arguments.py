"""Which arguments are taken, and as what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mdnc.modules.resnet import NAMES
from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults.entry import Fault, fault, given_by_name

PAIRS = ("kernel_size", "stride", "padding", "output_size")
NUMBERS = ("in_planes", "out_planes", *PAIRS)

Given = Mapping[str, Any]


def numbers(change: Callable[[Any], Any]) -> Callable[[Given], Given]:
    """`change` for every number, alone or in a pair."""

    def each(value: Any) -> Any:
        return type(value)(map(change, value)) if isinstance(value, (list, tuple)) else change(value)

    return lambda given: {n: each(v) for n, v in given.items() if n in NUMBERS}


def names(change: Callable[[Any], Any]) -> Callable[[Given], Given]:
    return lambda given: {n: change(v) for n, v in given.items() if n in NAMES}


def _changed(name: str, title: str, cause: str, clauses: str, arguments: Callable[[Given], Given]) -> Fault:
    return fault(name, title, cause, clauses, "arguments", arguments=arguments)


def _factory_arguments(block: Any, *positional: Any, device: Any = None, dtype: Any = None, **named: Any) -> None:
    Block.__init__(block, *positional, **named)
    block.to(device=device, dtype=dtype)


def _eleventh_ignored(block: Any, *positional: Any, **named: Any) -> None:
    Block.__init__(block, *positional[:10], **named)


def _true_height(given: Given) -> Given:
    pairs = {n: v for n, v in given.items() if n in PAIRS and isinstance(v, tuple) and len(v) == 2}
    return {n: (1, v[1]) for n, v in pairs.items() if v[0] is True}


def _axes_exchanged(given: Given) -> Given:
    return {n: tuple(v)[::-1] for n, v in given.items() if n in PAIRS and isinstance(v, (list, tuple))}


def _height_only(given: Given) -> Given:
    stride = given.get("stride", 1)
    return {"stride": (stride, 1)} if type(stride) is int and stride >= 1 else {}


def _null_for_none(given: Given) -> Given:
    return {n: "null" for n in ("normalizer", "activator") if n in given and given[n] is None}


def _unknown_is_batch(given: Given) -> Given:
    name = given.get("normalizer", "pinst")
    return {"normalizer": "batch"} if isinstance(name, str) and name not in ("inst", "pinst", "null") else {}


def _zero_is_one(value: Any) -> Any:
    return 1 if type(value) is int and value == 0 else value


def _without_zeros(given: Given) -> Given:
    changed = numbers(_zero_is_one)(given)
    return {n: v for n, v in changed.items() if n != "padding"}


def _clipped(given: Given) -> Given:
    padding = given.get("padding", 1)
    return {"padding": max(padding, 0)} if type(padding) is int else {}


def _scaler_unchecked(given: Given) -> Given:
    idle = given.get("stride", 1) in (1, (1, 1)) and given.get("output_size") is None
    return {"scaler": "down"} if idle and isinstance(given.get("scaler"), str) and given["scaler"] != "up" else {}


def _size_unchecked(given: Given) -> Given:
    return {} if given.get("scaler", "down") == "up" else {"output_size": None}


def _stride_unchecked(given: Given) -> Given:
    beside = given.get("scaler") == "up" and given.get("output_size") is not None
    return {"stride": 2} if beside else {}


def _to_int(value: Any) -> Any:
    return int(value) if isinstance(value, float) and 0 < value < 9 else value


def _from_text(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _from_bool(value: Any) -> Any:
    return int(value) if value is True else value


def _first_two(given: Given) -> Given:
    return {n: v[:2] for n, v in given.items() if n in PAIRS and isinstance(v, (list, tuple)) and len(v) > 2}


def _one_in_a_list(given: Given) -> Given:
    return {n: v[0] for n, v in given.items() if n in PAIRS and isinstance(v, (list, tuple)) and len(v) == 1}


def _plain_ints_only(given: Given) -> Given:
    for name in NUMBERS:
        for value in given[name] if isinstance(given.get(name), (list, tuple)) else (given.get(name),):
            if isinstance(value, np.integer):
                raise TypeError(f"`{name}` (={value!r}) must be an int")
    return {}


def _tuples_only(given: Given) -> Given:
    for name in PAIRS:
        if isinstance(given.get(name), list):
            raise TypeError(f"`{name}` (={given[name]!r}) must be an int or a tuple")
    return {}


def _small_kernels_only(given: Given) -> Given:
    value = given.get("kernel_size", 3)
    for number in value if isinstance(value, (list, tuple)) else (value,):
        if type(number) is int and number > 0 and number % 2 == 0:
            raise ValueError(f"`kernel_size` (={value!r}) must be odd")
    return {}


def _extra_ignored(block: Any, *positional: Any, **named: Any) -> None:
    known = (*NUMBERS, *NAMES)
    Block.__init__(block, *positional, **{n: v for n, v in named.items() if n in known})


def _with_dropout(block: Any, *positional: Any, dropout: float = 0.0, **named: Any) -> None:
    Block.__init__(block, *positional, **named)
    block.dropout = dropout


def _terse(block: Any, *positional: Any, **named: Any) -> None:
    try:
        Block.__init__(block, *positional, **named)
    except (TypeError, ValueError) as error:
        raise type(error)("bad argument") from None


def _wrong_kind(block: Any, *positional: Any, **named: Any) -> None:
    """A wrong type is a ValueError too."""
    try:
        Block.__init__(block, *positional, **named)
    except TypeError as error:
        raise ValueError(*error.args) from None


def _at_the_call(block: Any, *positional: Any, **named: Any) -> None:
    """Sizes are stored as they come, and the layers are built as if they were 1."""
    given = given_by_name(positional, named)
    block_error = None
    try:
        Block.__init__(block, **given)
    except ValueError as error:
        sizes: dict[str, Any] = {name: 1 for name in ("kernel_size", "stride") if name in given}
        Block.__init__(block, **{**given, **sizes})
        block_error = str(error)
    block.late = block_error


def _late(block: Any, x: Any) -> Any:
    if block.late:
        raise ValueError(block.late)
    return Block.forward(block, x)


FAULTS = (
    _changed("axes_exchanged", "pairs are taken as (width, height)", "OpenCV, PIL", "1.12 2.21", _axes_exchanged),
    _changed(
        "stride_of_the_height_only",
        "an integer stride is that of the height",
        "(stride, 1), as in spectrograms",
        "1.12",
        _height_only,
    ),
    _changed(
        "none_is_null",
        "None is taken for 'null'",
        "None as the usual way to say nothing",
        "1.15 1.8 1.9",
        _null_for_none,
    ),
    _changed("bool_is_int", "True is taken for 1", "isinstance(True, int)", "1.15", numbers(_from_bool)),
    _changed("float_truncated", "2.0 is taken for 2", "int(value)", "1.15", numbers(_to_int)),
    _changed("text_is_int", "'3' is taken for 3", "int(value), values of a command line", "1.15", numbers(_from_text)),
    _changed("zero_is_one", "0 is taken for 1", "max(value, 1), `value or 1`", "1.16", _without_zeros),
    _changed(
        "any_case",
        "names are taken in any case",
        ".lower()",
        "1.16",
        names(lambda v: v.lower() if isinstance(v, str) else v),
    ),
    _changed(
        "spaces_stripped",
        "names are taken with spaces around them",
        ".strip()",
        "1.16",
        names(lambda v: v.strip() if isinstance(v, str) else v),
    ),
    _changed(
        "unknown_norm_is_batch", "an unknown normalizer is 'batch'", "if, elif, else", "1.16 1.8", _unknown_is_batch
    ),
    _changed("padding_clipped", "a negative padding is 0", "max(padding, 0)", "1.16 1.6", _clipped),
    _changed(
        "three_numbers_taken", "of a longer sequence the first two are taken", "value[0], value[1]", "1.13", _first_two
    ),
    _changed(
        "sequence_of_one_taken",
        "a sequence of one stands for both axes",
        "np.broadcast_to(value, 2)",
        "1.13 1.16",
        _one_in_a_list,
    ),
    _changed("plain_ints_only", "NumPy's integers are refused", "type(value) is int", "1.14", _plain_ints_only),
    _changed("tuples_only", "a list is refused", "isinstance(value, tuple)", "1.13", _tuples_only),
    _changed(
        "odd_kernels_built_only",
        "an even kernel is refused",
        "padding = kernel // 2 in mind",
        "1.4 1.2",
        _small_kernels_only,
    ),
    _changed(
        "scaler_unchecked", "scaler is not checked where nothing is scaled", "the toolkit", "1.11", _scaler_unchecked
    ),
    _changed(
        "output_size_unchecked",
        "output_size is not checked with scaler='down'",
        "an argument that is not looked at",
        "1.19",
        _size_unchecked,
    ),
    _changed(
        "stride_unchecked",
        "stride is not checked beside output_size",
        "an argument that is not looked at",
        "1.20",
        _stride_unchecked,
    ),
    fault(
        "surplus_ignored",
        "arguments of other names are ignored",
        "**kwargs",
        "1.1",
        "arguments",
        methods={"__init__": _extra_ignored},
    ),
    fault(
        "dtype_taken",
        "arguments `device` and `dtype` are taken",
        "the constructors of torch's own layers",
        "1.1",
        "arguments",
        methods={"__init__": _factory_arguments},
    ),
    fault(
        "dropout_taken",
        "an eleventh argument is taken by name only",
        "an addition that breaks no caller",
        "1.1",
        "arguments",
        methods={"__init__": _with_dropout},
    ),
    fault(
        "eleventh_by_position_ignored",
        "an eleventh argument by position is ignored",
        "*args",
        "1.1",
        "arguments",
        methods={"__init__": _eleventh_ignored},
    ),
    _changed(
        "true_height_taken",
        "a boolean is taken for the first entry of a pair",
        "a check of the last entry, which covers the first one by mistake",
        "1.15",
        _true_height,
    ),
    fault(
        "terse_refusals",
        "a refusal names neither argument nor value",
        "assert",
        "1.18",
        "arguments",
        methods={"__init__": _terse},
    ),
    fault(
        "wrong_type_is_a_wrong_value",
        "a wrong type is refused as a wrong value",
        "one error for all",
        "1.15",
        "arguments",
        methods={"__init__": _wrong_kind},
    ),
    fault(
        "refused_at_the_call",
        "a wrong kernel_size or stride is refused when the block is called",
        "the toolkit does not check sizes",
        "1.17 1.16",
        "arguments",
        methods={"__init__": _at_the_call},
        forward=_late,
    ),
)
