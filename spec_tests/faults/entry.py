"""An entry of the catalogue, and the torch block that it describes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mdnc.modules.resnet import BlockBottleneck2d as Block

VISIBLE = {
    "float32": "in the values of a single call, in float32",
    "float64": "in float64 only",
    "bfloat16": "in bfloat16 only",
    "training": "in training only",
    "evaluation": "in evaluation only",
    "gradients": "in gradients only",
    "statistics": "in the running statistics only",
    "history": "through a sequence of calls only",
    "nonfinite": "for a NaN or an infinity only",
    "layout": "for inputs that lie otherwise in memory only",
    "construction": "in the values of a new block only",
    "state": "in names, shapes and types of the state, in loading, copying and converting",
    "arguments": "in which arguments are taken",
    "shapes": "in sizes, and in which inputs are taken",
    "summary": "in the summary only",
}


@dataclass(frozen=True)
class Fault:
    """One wrong decision, and nothing else.

    Attributes:
        id: a Python name; the block is `spec_tests.faults.blocks.<id>`.
        cause: the habit or default that leads to it in practice.
        clauses: those that must notice, the most telling one first.
        visible: keys of VISIBLE, where it shows.
        rules: (field, alternative) of `spec_tests.oracle.Rules` that computes the same.
        patch: changes a block that the reference built.
        forward: replaces the block's own forward.
        arguments: from the arguments that were given, by name, those that are changed.
        methods: other members of the class.
    """

    id: str
    title: str
    cause: str
    clauses: tuple[str, ...]
    visible: tuple[str, ...] = ("float32",)
    rules: tuple[str, Any] | None = None
    patch: Callable[[Any], None] | None = None
    forward: Callable[[Any, Tensor], Tensor] | None = None
    arguments: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    methods: Mapping[str, Any] = field(default_factory=dict)
    area: str = ""
    module: str = ""


def fault(name: str, title: str, cause: str, clauses: str, visible: str = "float32", **parts: Any) -> Fault:
    """An entry; `clauses` and `visible` are words. Its area is the name of the module that calls."""
    # inspect.stack() would read the source of every caller.
    module: str = sys._getframe(1).f_globals["__name__"]
    area = module.rpartition(".")[2].replace("_", " ")
    return Fault(name, title, cause, tuple(clauses.split()), tuple(visible.split()), **parts, area=area, module=module)


def given_by_name(positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name. Raises TypeError as the call itself would."""
    bound = inspect.signature(Block).bind(*positional, **named)
    return dict(bound.arguments)


def block_class(entry: Fault) -> type[Block]:
    """The class of the wrong block. It can be pickled, as `spec_tests.faults.blocks.<id>.Block`."""
    members: dict[str, Any] = {"__module__": f"{__package__}.blocks", **entry.methods}
    # torchsummary takes what is behind the last dot, and has room for 17 letters.
    members["__qualname__"] = f"{entry.id}.Block"
    members["__doc__"] = f"{entry.title}: {entry.cause}."
    if entry.patch is not None or entry.arguments is not None:

        def __init__(self: Any, *positional: Any, **named: Any) -> None:  # noqa: N807
            if entry.arguments is not None:
                given = given_by_name(positional, named)
                Block.__init__(self, **{**given, **entry.arguments(given)})
            else:
                Block.__init__(self, *positional, **named)
            if entry.patch is not None:
                entry.patch(self)

        members["__init__"] = __init__
    if entry.forward is not None:
        own = entry.forward

        def forward(self: Any, x: Tensor) -> Tensor:
            return own(self, x)

        members["forward"] = forward
    made: Any = type("Block", (Block,), members)
    made.Block = made
    return made  # type: ignore[no-any-return]
