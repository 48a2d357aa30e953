"""Chapter 2: layers, parameters, their names and shapes, all predicted from the arguments."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from spec_tests.compare import Example, Thin, equal, equal_entries, holds
from spec_tests.config import BlockConfig, Layer
from spec_tests.enumeration import DOCUMENTED, enumerated, named_values
from spec_tests.marks import by_activator, by_documented, by_norm, by_scaler
from spec_tests.strategies import geometries
from spec_tests.subjects.base import Block, Entry, Subject

BRANCHES = {"conv1", "conv2", "conv3", "in_node"}
ORDER_CLAUSE = {"new": "2.2", "old": "2.3"}
NORM_CLAUSE = {"batch": "2.13", "inst": "2.14", "pinst": "2.15", "null": "2.16"}
ACTIVATION_CLAUSE = {"prelu": "2.17", "relu": "2.18", "null": "2.19"}


def layer_entries(block: Block) -> dict[str, dict[str, Entry]]:
    """The entries of the state grouped by layer: `conv1.0` -> {`weight`: …}."""
    found: dict[str, dict[str, Entry]] = {}
    for name, entry in block.entries().items():
        layer, _, tensor = name.rpartition(".")
        found.setdefault(layer, {})[tensor] = entry
    return found


def shapes(entries: dict[str, Entry]) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for name, entry in entries.items()}


def due(config: BlockConfig, layer: Layer) -> dict[str, tuple[int, ...]]:
    """What the state must hold of one layer."""
    prefix = f"{layer.name}."
    return {name.removeprefix(prefix): s for name, s in config.state().items() if name.startswith(prefix)}


def beside(found: dict[str, dict[str, Entry]]) -> str:
    """What has entries and is no branch, for a message: a branch of another name, or the block within a wrapper."""
    others = sorted({name.split(".")[0] for name in found} - BRANCHES)
    return f" (beside the branches, the state has {', '.join(map(repr, others))})" if others else ""


def order_clause(config: BlockConfig) -> str:
    return "2.4" if config.normalizer == "null" else ORDER_CLAUSE[config.layer_order]


@pytest.mark.clause("2.1", "2.2", "2.3", "2.4", "2.5", "2.9", "2.10", "2.12", "2.21")
@by_norm
@by_scaler
def test_layers_of_the_residual_branch(subject: Subject, thin: Thin, normalizer: str, scaler: str) -> None:
    """Each of conv1, conv2, conv3 has its layers in their places, as wide as they must be."""
    for _, config in thin(enumerated(normalizer=normalizer, scaler=scaler)):
        found = layer_entries(subject.build(config.arguments()))
        example = Example.of(config)
        for layer in config.layers():
            if layer.branch == "in_node":
                continue
            got, expected = shapes(found.get(layer.name, {})), due(config, layer)
            place = f"{layer.kind} at {layer.name}" + beside(found)
            if layer.kind == "conv" and "weight" in got:
                equal("2.5", f"bias of the {place}", "bias" in got, config.normalizer == "null", example)
            # Sizes have clauses of their own.
            told = expected if got.keys() == expected.keys() else got
            equal_entries(order_clause(config), place, told, expected, example)
            if layer.kind == "conv":
                weight = got.get("weight", ())
                equal("2.1", f"channels (out, in) of the {place}", weight[:2], expected["weight"][:2], example)
                equal("2.1", f"kernel of the {place}", weight[2:], layer.kernel, example)
                equal("2.21", f"shape of the weight of the {place}", weight, expected["weight"], example)
            elif layer.kind == "up":
                equal("2.9", f"entries of the {place}", got, {}, example)
            else:
                equal("2.12", f"width of the {place}", got, expected, example)
        upsampling = [layer.name for layer in config.layers() if layer.kind == "up" and layer.branch != "in_node"]
        clause = "2.9" if scaler == "up" else "2.10"
        last = [layer.name for layer in config.layers() if layer.branch == "conv2"][-1]
        number = int(last.removeprefix("conv2."))
        deeper = [name for name in found if name.startswith("conv2.") and int(name.split(".")[1]) > number]
        what = f"layers with entries behind {last}" + (f" (up-sampling is {upsampling[0]})" if upsampling else "")
        equal(clause, what, deeper, [], example)


@pytest.mark.clause("2.6", "2.7", "2.8", "2.11", "2.20")
@by_norm
@by_scaler
def test_layers_of_the_shortcut(subject: Subject, normalizer: str, scaler: str) -> None:
    """The shortcut is a projection where it is due and holds nothing where it is not."""
    for _, config in enumerated(normalizer=normalizer, scaler=scaler):
        found = layer_entries(subject.build(config.arguments()))
        example = Example.of(config)
        shortcut = {name: shapes(entries) for name, entries in found.items() if name.startswith("in_node")}
        equal("2.6", f"the shortcut is a projection{beside(found)}", bool(shortcut), config.projects, example)
        expected = {}
        for layer in config.layers():
            if layer.branch == "in_node":
                tensors = due(config, layer)
                expected.update({layer.name: tensors} if tensors else {})
                got = shortcut.get(layer.name, {})
                clause = "2.7" if scaler == "down" else "2.8"
                equal_entries(clause, f"{layer.kind} at {layer.name}", got, tensors, example)
        wrong = sorted({name.split(".")[0] for name in found} - BRANCHES)
        equal("2.20", "branches besides conv1, conv2, conv3 and in_node", wrong, [], example)
        equal("2.11", "layers of the shortcut that hold something", sorted(shortcut), sorted(expected), example)


@pytest.mark.clause(*NORM_CLAUSE.values())
@by_norm
def test_norms(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Each normalizer brings its parameters and buffers, and no others."""
    clause = NORM_CLAUSE[normalizer]
    for _, config in thin(enumerated(normalizer=normalizer)):
        block = subject.build(config.arguments())
        example = Example.of(config)
        buffers = [name for name, entry in block.entries().items() if entry.role == "buffer"]
        equal(clause, "names of the buffers", buffers, list(config.buffers()), example)
        found = layer_entries(block)
        for layer in config.layers():
            if layer.kind == "norm":
                got = shapes(found.get(layer.name, {}))
                equal_entries(clause, f"norm at {layer.name}", got, due(config, layer), example)
        convs_and_slopes = [layer.name for layer in config.layers() if layer.kind in ("conv", "act")]
        norms = [layer.name for layer in config.layers() if layer.kind == "norm"]
        unknown = sorted(set(found) - set(convs_and_slopes) - set(norms))
        equal(clause, "layers that are neither convolution, norm nor activation", unknown, [], example)


@pytest.mark.clause(*ACTIVATION_CLAUSE.values())
@by_activator
def test_activations(subject: Subject, thin: Thin, activator: str) -> None:
    """PReLU has a slope a channel, ReLU holds nothing but counts, "null" is no layer."""
    clause = ACTIVATION_CLAUSE[activator]
    for _, config in thin(enumerated(activator=activator)):
        found = layer_entries(subject.build(config.arguments()))
        example = Example.of(config)
        for layer in config.layers():
            got = shapes(found.get(layer.name, {}))
            if layer.kind == "act":
                equal_entries(clause, f"activation at {layer.name}", got, due(config, layer), example)
            elif layer.kind == "conv":
                # A layer without parameters shows only in the index of the convolution behind it.
                holds(
                    clause,
                    f"convolution at {layer.name}",
                    len(got.get("weight", ())) == 4,
                    got,
                    "a weight of 4 axes",
                    example,
                )


@pytest.mark.clause("2.20", "2.21")
@given(arguments=geometries())
def test_names_and_shapes(subject: Subject, arguments: dict[str, Any]) -> None:
    """For any sizes, and every combination of named values, names and shapes are the predicted ones."""
    for names in named_values():
        config = BlockConfig.of(**arguments, **names)
        entries = subject.build(config.arguments()).entries()
        example = Example.of(config)
        equal("2.20", "names of parameters and buffers", list(entries), list(config.state()), example)
        equal_entries("2.21", "shapes of parameters and buffers", shapes(entries), config.state(), example)


def parameter_count(block: Block) -> int:
    total = 0
    for entry in block.entries().values():
        if entry.role == "parameter":
            count = 1
            for length in entry.shape:
                count *= length
            total += count
    return total


@pytest.mark.clause("2.22")
@given(arguments=geometries())
def test_number_of_parameters(subject: Subject, arguments: dict[str, Any]) -> None:
    """The number of parameters is the closed form."""
    for names in named_values():
        config = BlockConfig.of(**arguments, **names)
        block = subject.build(config.arguments())
        equal("2.22", "number of parameters", parameter_count(block), config.parameter_count(), Example.of(config))


@pytest.mark.clause("2.23")
@by_documented
def test_documented_numbers_of_parameters(subject: Subject, example_id: str) -> None:
    """The documented blocks have 3,792 and 11,584 parameters."""
    config, _, count = DOCUMENTED[example_id]
    block = subject.build(config.arguments())
    equal("2.23", "number of parameters", parameter_count(block), count, Example.of(config))
    frozen = [n for n, entry in block.entries().items() if entry.role == "parameter" and not entry.trainable]
    equal("2.23", "parameters that are not trainable", frozen, [], Example.of(config))
