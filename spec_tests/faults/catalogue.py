"""All entries, by id."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from spec_tests.faults import (
    activation,
    arguments,
    arguments_rare,
    arithmetic,
    batch_norm,
    beyond,
    calling,
    calling_rare,
    conduct,
    construction,
    construction_rare,
    controls,
    convolution,
    gradients,
    layouts,
    loading,
    lost_nan,
    models,
    norm,
    order,
    places,
    rare,
    repeated,
    shapes,
    shortcut,
    single_clauses,
    sizes,
    state,
    state_rare,
    training,
    upsampling,
    usage,
)
from spec_tests.faults.entry import Fault

_AREAS: tuple[ModuleType, ...] = (norm, batch_norm, activation, order, convolution, shortcut, upsampling, shapes, state)
_AREAS += (construction, arguments, gradients, arithmetic, conduct, single_clauses, rare, beyond, usage)
_AREAS += (models, layouts, training, sizes, places, calling, arguments_rare, construction_rare, state_rare)
_AREAS += (lost_nan, repeated, calling_rare, loading)


def _by_id(*groups: tuple[Fault, ...]) -> dict[str, Fault]:
    entries = [entry for group in groups for entry in group]
    found = {entry.id: entry for entry in entries}
    if len(found) < len(entries):
        twice = sorted({e.id for e in entries if sum(e.id == other.id for other in entries) > 1})
        raise ValueError(f"ids that the catalogue has twice: {', '.join(twice)}")
    return found


@cache
def faults() -> dict[str, Fault]:
    """What must be killed."""
    return _by_id(*(module.FAULTS for module in _AREAS))


@cache
def equivalent() -> dict[str, Fault]:
    """What differs in its formula, and not in its result: `cause` is the argument."""
    return _by_id(controls.EQUIVALENT)


@cache
def right() -> dict[str, Fault]:
    """What nothing may flag: the controls, and the equivalent entries."""
    return _by_id(controls.CONTROLS, controls.EQUIVALENT)


@cache
def everything() -> dict[str, Fault]:
    return _by_id(tuple(faults().values()), tuple(right().values()))
