"""The table that torchsummary prints of a module."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import torchsummary
from torch import nn


def table_of(module: nn.Module, shape: Sequence[int], device: str) -> str:
    """What is printed for inputs of `shape`, the module called by its documented name."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        # torchsummary leaves out the model that it is given; in a Sequential the block has its row.
        torchsummary.summary(nn.Sequential(module), tuple(shape), device=device.partition(":")[0])
    own = type(module).__name__
    return "".join(_renamed(line, own) for line in printed.getvalue().splitlines(keepends=True))


def _renamed(line: str, own: str) -> str:
    """A line of a table; the block's own row gets the documented name in place of that of its class, of any length."""
    name = line.strip().partition(" ")[0]
    if not name.startswith(f"{own}-"):
        return line
    documented = f"BlockBottleneck2d{name.removeprefix(own)}"
    return f"{documented:>20}{line[line.index(name) + len(name) :]}"
