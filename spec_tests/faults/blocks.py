"""The blocks of the catalogue: `py:spec_tests.faults.blocks:<id>` names one as a subject."""

from __future__ import annotations

from functools import cache

from torch import nn

from spec_tests.faults.catalogue import everything
from spec_tests.faults.entry import block_class


@cache
def block(name: str) -> type[nn.Module]:
    """The class of an entry: of a fault, an equivalent one or a control. Raises KeyError."""
    return block_class(everything()[name])


def __getattr__(name: str) -> type[nn.Module]:
    try:
        return block(name)
    except KeyError:
        raise AttributeError(f"the catalogue has no entry {name!r}; tools/kill_matrix.py --list shows all") from None
