"""What PROTOCOL.md and SPEC.md say that a request is answered with: taken, refused, or not offered."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from math import prod
from typing import NamedTuple

from spec_tests.config import BlockConfig
from spec_tests.subjects.wire import Header, WireError, arguments, parse_entry

# What the metadata of each op must say beside the arguments.
NEEDED = {
    "hello": ("protocol",),
    "describe": ("dtype",),
    "init": ("dtype", "seed"),
    "forward": ("mode",),
    "backward": ("mode",),
}
MODES = ("train", "eval")
TYPES = ("F32", "F64", "BF16")
LARGEST_SEED = 2**63 - 1
_SEED = re.compile(r"0|[1-9][0-9]{0,18}")
_SHAPE = re.compile(r"\[((0|[1-9][0-9]{0,17})(,(0|[1-9][0-9]{0,17}))*)?\]")


class Due(NamedTuple):
    """`answer` is ``"ok"``, the code of an error or ``"unsupported"``; `why` is empty for the first.

    `feature` is what a reply ``unsupported`` must name.
    """

    answer: str
    why: str = ""
    feature: str = ""


OK = Due("ok")


def entry_text(dtype: str, shape: tuple[int, ...]) -> str:
    """Type and shape as `describe` writes them."""
    # Also of sizes that no argument could have, which follow from the largest arguments.
    return f"{dtype} [{','.join(map(str, shape))}]"


def state_entries(config: BlockConfig, dtype: str) -> dict[str, str]:
    """The entries of the state as `describe` and `init` must have them, with the prefix ``p.`` or ``b.``."""
    return {
        f"{'b' if name in config.buffers() else 'p'}.{name}": entry_text("I64" if shape == () else dtype, shape)
        for name, shape in config.state().items()
    }


def input_shape(request: Header) -> tuple[int, ...]:
    """The shape of the input of which a request speaks. Raises WireError if its text is none."""
    if "x" in request.tensors:
        return request.tensors["x"].shape
    written = request.metadata["shape"]
    if not _SHAPE.fullmatch(written):
        raise WireError(f"shape is {written!r:.80}; due is a list of integers such as [2,16,4,255]")
    return parse_entry(f"F32 {written}")[1]


def answer_due(request: Header, offers: Mapping[str, Collection[str]]) -> Due:
    """The answer that is due to a request; `offers` are the `ops`, `modes` and `dtypes` of the port's `hello`.

    Of several reasons the first counts, where the page says which comes first; else any.
    """
    op = request.metadata.get("op", "")
    if op not in {*offers["ops"], "hello"}:
        return Due("unsupported", f"the op is {op!r:.80}", op)
    for key, right in (("mode", MODES), ("dtype", TYPES)):
        given = request.metadata.get(key)
        if key in NEEDED[op] and given not in right:
            return Due("bad_request", f"{key} is {given!r:.80}; due is one of {', '.join(right)}")
        if key in NEEDED[op] and given not in offers[f"{key}s"]:
            return Due("unsupported", f"{key} is {given}", str(given))
    seed = request.metadata.get("seed", "")
    if "seed" in NEEDED[op] and not (_SEED.fullmatch(seed) and int(seed) <= LARGEST_SEED):
        return Due("bad_request", f"seed is {seed!r:.80}; due is an integer from 0 to {LARGEST_SEED}")
    try:
        config = BlockConfig.of(**arguments(request.metadata))
    except (TypeError, ValueError) as error:
        return Due("invalid_input", str(error))
    if op == "describe" and "shape" in request.metadata:
        try:
            shape = input_shape(request)
        except WireError as error:
            return Due("bad_request", str(error))
        return _shape(config, shape, False)
    return _call(request, config, offers["dtypes"]) if op in ("forward", "backward") else OK


def is_wide(request: Header) -> bool:
    """Whether numbers of a `describe` need more than 31 bits, so that a port may answer `oom`."""
    if request.metadata.get("op") != "describe":
        return False
    written = [text for key, text in request.metadata.items() if key == "shape" or key.startswith("cfg.")]
    numbers = sorted(int(number) for text in written for number in re.findall("[0-9]{1,19}", text))
    # Up-sampling multiplies two of them.
    return prod(numbers[-2:]) >= 2**31


def _shape(config: BlockConfig, shape: tuple[int, ...], training: bool) -> Due:
    """Whether the block takes an input of this shape."""
    try:
        config.output_shape(shape)
    except ValueError as error:
        return Due("invalid_input", str(error))
    layer = config.single_element_norm(shape, training)
    return Due("invalid_input", f"{layer.name} meets a single element") if layer is not None else OK


def _call(request: Header, config: BlockConfig, offered: Collection[str]) -> Due:
    """A `forward` or `backward`: the input first, then the other tensors."""
    if "x" not in request.tensors:
        return Due("bad_request", "x is missing")
    dtype, shape = request.tensors["x"][:2]
    if dtype not in TYPES:
        return Due("invalid_input", f"x is {dtype}")
    found = _shape(config, shape, request.metadata["mode"] == "train")
    if found != OK:
        return found
    # Which of several types would be the feature, the page does not say; a mixture is tried with offered ones only.
    lacks = [t.dtype for t in request.tensors.values() if t.dtype in TYPES and t.dtype not in offered]
    if lacks:
        return Due("unsupported", f"a tensor is {lacks[0]}", lacks[0])
    right = {**state_entries(config, dtype), "x": entry_text(dtype, shape)}
    if request.metadata["op"] == "backward":
        right["dy"] = entry_text(dtype, config.output_shape(shape))
    got = {name: entry_text(tensor.dtype, tensor.shape) for name, tensor in request.tensors.items()}
    wrong = sorted(name for name in {**right, **got} if got.get(name) != right.get(name))
    return Due("bad_request", f"missing, too many or of another shape or type: {', '.join(wrong)}") if wrong else OK
