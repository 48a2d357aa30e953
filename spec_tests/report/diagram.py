"""The block of a configuration as a diagram, with the layers at which an error could have entered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spec_tests.config import BlockConfig, Layer
from spec_tests.verdict import Failure

BRANCHES = ("conv1", "conv2", "conv3", "in_node")
_KINDS = {"conv": "convolution", "norm": "norm", "act": "activation", "up": "up-sampling"}
_NAME = re.compile(r"\b(?:conv[123]|in_node)\.\d+")
_FIRST = re.compile(r"leaves the bound: (\S+) \((\w+)\)")
_BETWEEN = re.compile(r"enters between (\S+), whose .* and (\S+), whose")


@dataclass(frozen=True)
class Box:
    """A layer; `mark` is ``"guilty"``, ``"suspect"`` or empty."""

    name: str
    kind: str
    text: str
    mark: str = ""


@dataclass(frozen=True)
class Diagram:
    """The branches with their boxes, in order; `told` says in words what is marked."""

    call: str
    branches: tuple[tuple[str, tuple[Box, ...]], ...]
    addition: str
    told: str


def diagram(failure: Failure, lines: Iterable[str] = (), changes: Iterable[tuple[str, Any]] = ()) -> Diagram | None:
    """The block of a failure, if its arguments are known and legal.

    Guilty are the layers that a diagnosis changes; without one, those that its words or the failure's name.
    """
    if failure.arguments is None:
        return None
    try:
        config = BlockConfig.of(**failure.arguments)
    except (TypeError, ValueError):
        return None
    guilty: set[str] = set()
    if failure.picture is not None:
        guilty = _changed(config, dict(changes)) or _named(config, lines)
    else:
        guilty = {*_NAME.findall(f"{failure.what} {failure.got} {failure.expected}")}
        if not guilty:
            guilty = {layer.name for layer in config.layers() if re.search(rf"\b{layer.branch}\b", failure.what)}
    # Where all layers are suspects, as of an output, that says nothing.
    suspects = set() if guilty or len(failure.suspects) > len(config.layers()) else {*failure.suspects}

    def mark(name: str) -> str:
        return "guilty" if name in guilty else "suspect" if name in suspects else ""

    boxes: dict[str, list[Box]] = {branch: [] for branch in BRANCHES}
    for layer in config.layers():
        boxes[layer.branch].append(Box(layer.name, _KINDS[layer.kind], _text(layer, config), mark(layer.name)))
    told = []
    for word, names in (("The error is at", guilty), ("It could have entered at", suspects)):
        known = [box.name for found in boxes.values() for box in found if box.name in names]
        known += ["the addition"] if "addition" in names else []
        if known:
            told.append(f"{word} {', '.join(known)}.")
    branches = tuple((branch, tuple(found)) for branch, found in boxes.items())
    return Diagram(config.call(), branches, mark("addition"), " ".join(told))


def _text(layer: Layer, config: BlockConfig) -> str:
    if layer.kind == "norm":
        return f"{config.normalizer} norm"
    if layer.kind == "act":
        return config.activator
    if layer.kind == "up":
        return "up-sampling"
    stride = f" /{_pair(layer.stride)}" if max(layer.stride) > 1 else ""
    return f"conv {_pair(layer.kernel, '×')}{stride}, {layer.in_planes}→{layer.out_planes}"


def _pair(pair: tuple[int, int], between: str = ",") -> str:
    return str(pair[0]) if pair[0] == pair[1] and between == "," else f"{pair[0]}{between}{pair[1]}"


def _changed(config: BlockConfig, changes: Mapping[str, Any]) -> set[str]:
    """The layers whose steps differ under the rules of a diagnosis."""
    from spec_tests.oracle import SPEC, NotApplicable
    from spec_tests.oracle.plan import plan

    if not changes:
        return set()
    # No step of the plan: the weights are those of the sum.
    added = {"addition"} if {"residual_weight", "shortcut_weight"} & {*changes} else set()
    try:
        wrong, right = plan(config, replace(SPEC, **changes)), plan(config, SPEC)
    except (NotApplicable, TypeError, ValueError):
        return added
    names = {layer.name for layer in config.layers()}
    one, two = ([*p.residual, *p.shortcut] for p in (wrong, right))
    found = {step.name for step in one if step not in two} | {step.name for step in two if step not in one}
    # A step of its own, such as "conv1 activation", stands for its branch's layer of that kind, or for the branch.
    found |= {name for name in names for extra in found - names if name.split(".")[0] == extra.split()[0].split(".")[0]}
    if not found & names and one != two:
        # The same steps in another order.
        found = {a.name for a, b in zip(one, two, strict=False) if a != b}
    if not found & names and wrong.after != right.after:
        return {"addition"}
    return found & names | added


def _named(config: BlockConfig, lines: Iterable[str]) -> set[str]:
    """The layers that the words of a diagnosis name, if this block has them."""
    text = "\n".join(lines)
    layers = [layer for layer in config.layers() if layer.branch != "in_node"]
    first = _FIRST.search(text)
    if first:
        return {layer.name for layer in layers if (layer.name, layer.kind) == first.groups()}
    between = _BETWEEN.search(text)
    if between:
        at = {layer.name: i for i, layer in enumerate(layers)}
        one, two = (at.get(name) for name in between.groups())
        if one is not None and two is not None:
            return {layer.name for layer in layers[one + 1 : two + 1]}
    if "leaves the bound in the shortcut" in text:
        return {layer.name for layer in config.layers() if layer.branch == "in_node"} or {"addition"}
    return set()
