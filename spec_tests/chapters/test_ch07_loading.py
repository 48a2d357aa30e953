"""Chapter 7, loading: every bit of a state, of any mapping, and below any name that a model gives to the block."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from types import MappingProxyType

import pytest

from spec_tests.compare import Thin, equal, equal_entries, taken
from spec_tests.enumeration import enumerated
from spec_tests.marks import by_norm
from spec_tests.states import bits, odd_state, other_state, scripted
from spec_tests.subjects.base import Subject

# What a model may call the block: as torch.nn.Sequential does, in a model within the model, and like one of its parts.
MODELS = ("0", "1", "encoder.1", "conv1")
MAPPINGS = {"dict": dict, "MappingProxyType": MappingProxyType, "UserDict": UserDict, "OrderedDict": OrderedDict}
LOADS = ("load", "load_plain", "assign")


@pytest.mark.clause("7.10")
@by_norm
def test_every_bit_is_kept(subject: Subject, thin: Thin, normalizer: str) -> None:
    """What is no number, infinities, the sign of a zero and subnormal numbers are loaded as they are."""
    ways = LOADS if "assign" in subject.features else LOADS[:1]
    for number, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        way, block, state = ways[number % len(ways)], subject.build(config.arguments()), odd_state(config)
        example = scripted(config, "odd_state", f"block.{way}(state); print(block.state())")
        with taken("7.10", "loading a state that holds NaN, infinities, -0.0 and subnormal numbers", example):
            getattr(block, way)(state)
        got = block.state()
        what = "entries that differ in bits from the loaded state"
        equal_entries("7.10", what, bits(got, state), bits(state, got), example)


@pytest.mark.clause("7.10")
@pytest.mark.needs("assign")
@by_norm
def test_any_mapping_is_a_state(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Also one that is no dict, or that nobody can write to; behind loading it holds what it held."""
    for number, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        block, state = subject.build(config.arguments()), other_state(config)
        kind = list(MAPPINGS)[number % len(MAPPINGS)]
        example = scripted(config, "other_state", f"held = block.load_plain(state, {kind})")
        with taken("7.10", f"loading a {kind} of names and tensors", example):
            held = block.load_plain(state, MAPPINGS[kind])
        got = block.state()
        what = f"entries that differ from a loaded {kind}"
        equal_entries("7.10", what, bits(got, state), bits(state, got), example)
        what = f"the {kind} behind loading, which takes nothing out of it"
        equal("7.10", f"names in {what}", list(held), list(state), example)
        equal_entries("7.10", f"entries that differ in {what}", bits(held, state), bits(state, held), example)


@pytest.mark.clause("7.1", "7.10")
@pytest.mark.needs("part")
@by_norm
def test_names_that_models_give(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Whatever a model calls the block, its state has the block's entries behind that name, and loads."""
    for number, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        name, block, state = MODELS[number % len(MODELS)], subject.build(config.arguments()), other_state(config)
        line = f"whole = block.whole({name!r}); whole.load({{f'{name}.{{n}}': v for n, v in state.items()}})"
        whole, example = block.whole(name), scripted(config, "other_state", line)
        named = {f"{name}.{entry}": value for entry, value in state.items()}
        what = f"names of the state of a model that calls the block {name!r}, in order"
        equal("7.1", what, list(whole.state()), list(named), example)
        with taken("7.10", f"loading the state of a model that calls the block {name!r}", example):
            whole.load(named)
        got = block.state()
        what = f"entries that differ from the state that a model loaded, which calls the block {name!r}"
        equal_entries("7.10", what, bits(got, state), bits(state, got), example)
