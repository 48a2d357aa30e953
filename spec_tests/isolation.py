"""Where a subject goes wrong, if no known mistake explains it: what its wrong examples share, and the first layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from spec_tests.config import NAMED_VALUES, Layer
from spec_tests.laws import identity_kernel, only_shortcut
from spec_tests.numeric import Numeric, named
from spec_tests.oracle import Bounded, judge
from spec_tests.subjects.base import Array, Crashed, Refused, Subject
from spec_tests.words import counted

FEATURES: dict[str, Callable[[Numeric], Any]] = {
    "normalizer": lambda numeric: numeric.config.normalizer,
    "activator": lambda numeric: numeric.config.activator,
    "layer_order": lambda numeric: numeric.config.layer_order,
    "scaler": lambda numeric: numeric.config.scaler,
    "training": lambda numeric: numeric.training,
    "projection": lambda numeric: numeric.config.projects,
    "change of size": lambda numeric: numeric.config.rescales,
    "batch size": lambda numeric: numeric.shape[0],
}

# How many wrong examples are asked for with another value of what they share.
VARIED = 3

_PARTS = {
    ("conv", "weight"): "kernels",
    ("conv", "bias"): "biases",
    ("norm", "weight"): "scales",
    ("norm", "bias"): "shifts",
    ("act", "weight"): "slopes",
}


def shared(
    wrong: Sequence[Numeric], right: Sequence[Numeric], fails: Callable[[Numeric], bool] | None = None
) -> dict[str, set[Any]]:
    """What wrong examples have in common and not all examples have: features, and their values.

    With `fails`, which asks for another example, what is no condition is found out: a few wrong examples are asked for
    with another value. Of what tells them from the right ones only as something else does, nothing is said.
    """
    found = {name: {value_of(numeric) for numeric in wrong} for name, value_of in FEATURES.items()}

    def alike(names: Iterable[str]) -> int:
        """How many right examples are like the wrong ones, as far as these features tell."""
        named = [*names]
        return sum(all(FEATURES[name](numeric) in found[name] for name in named) for numeric in right)

    telling = [name for name in FEATURES if not found[name] >= {FEATURES[name](numeric) for numeric in right}]
    if fails is not None:
        varied = {
            name: [v for numeric in wrong[:VARIED] for v in _varied(numeric, name, found[name])] for name in telling
        }
        telling = [name for name in telling if not any(map(fails, varied[name]))]
    for name in reversed(telling.copy()):
        others = [other for other in telling if other != name]
        # One right example is no evidence.
        if alike(others) < alike(telling) + 2:
            telling = others
    return {name: found[name] for name in telling}


def _varied(numeric: Numeric, name: str, known: set[Any]) -> Iterator[Numeric]:
    """An example with other values of a feature than those `known`, where it may have them."""
    others = [named(numeric, numeric.training, **{name: v}) for v in NAMED_VALUES.get(name, ()) if v not in known]
    if name == "training":
        others = [replace(numeric, training=not numeric.training)]
    yield from (other for other in others if other.config.takes(other.shape, other.training))


def conditions(found: Mapping[str, set[Any]]) -> Iterator[str]:
    """What `shared` found, as text."""
    for name, values in found.items():
        yield f"Wrong only with {name} = {' or '.join(sorted(map(repr, values)))}."


def kinds(wrong: set[str], right: set[str]) -> Iterator[str]:
    """Which kinds of tensors are wrong in the wrong examples, if some are right in all of them."""
    bad, good = {_kind(name) for name in wrong}, {_kind(name) for name in right}
    if good - bad:
        yield f"In the wrong examples, only these are wrong: {', '.join(sorted(bad))}."


def parts(wrong: set[tuple[Numeric, str]], right: set[tuple[Numeric, str]]) -> Iterator[str]:
    """Which kinds of parameters have wrong gradients, if nothing else is wrong, and those of other kinds are right."""
    if all(name.startswith("grad ") for _, name in wrong):
        bad, good = ({_part(numeric, name) for numeric, name in some} for some in (wrong, right))
        if good - bad - {""}:
            yield f"Of parameters, only the gradients of {' and of '.join(sorted(bad))} are wrong."


def _part(numeric: Numeric, name: str) -> str:
    """What the gradient `name` belongs to; empty for another tensor."""
    if not name.startswith("grad "):
        return ""
    layer_name, _, tensor = name[5:].rpartition(".")
    return _PARTS[next(layer.kind for layer in numeric.config.layers() if layer.name == layer_name), tensor]


def plainly(got: Array, expected: Bounded) -> str:
    """What is wrong with a tensor of whose numbers nothing can be told; empty if something can."""
    if got.shape != expected.shape:
        return f"has the shape {got.shape} and must have {expected.shape}"
    if np.isfinite(got).any() or not np.isfinite(expected.value).any():
        return ""
    return "is NaN everywhere" if np.isnan(got).all() else "is finite nowhere"


def seen(name: str, wrong: Sequence[tuple[Numeric, str]]) -> Iterator[str]:
    """What is plainly wrong with a tensor; `wrong` are the examples in which it is wrong, with what `plainly` says."""
    plain = [(numeric, words) for numeric, words in wrong if words]
    for numeric, words in plain[:1]:
        kind, mode = _kind(name), "training" if numeric.training else "evaluation"
        yield (
            f"{kind[:1].upper()}{kind[1:]} {words}, as with {numeric.config.call()} in {mode}: "
            f"in {len(plain)} of {counted(len(wrong), 'example')} in which it is wrong, and that tells no layer."
        )


def first_statistics(numeric: Numeric, wrong: set[str], right: set[str]) -> Iterator[str]:
    """Between which norms an error enters, from the running statistics, which show what each norm got."""
    norms = [layer.name for layer in numeric.config.layers() if layer.kind == "norm" and layer.branch != "in_node"]
    bad = [norm for norm in norms if f"{norm}.running_mean" in wrong or f"{norm}.running_var" in wrong]
    if bad and bad[0] != norms[0] and f"{norms[0]}.running_mean" in right:
        before = norms[norms.index(bad[0]) - 1]
        yield f"The error enters between {before}, whose running statistics are right, and {bad[0]}, whose are wrong."


def _kind(name: str) -> str:
    if name in ("y", "dx"):
        return {"y": "the output", "dx": "the gradient of the input"}[name]
    if name.startswith("grad "):
        return f"the gradients of {name[5:].partition('.')[0]}"
    return f"{name.rpartition('.')[2]} of {name.partition('.')[0]}"


def first_layer(subject: Subject, numeric: Numeric) -> Iterator[str]:
    """The first layer at which the output of an example leaves its bound.

    All layers behind one are made to pass on what they get (convolutions by a kernel with a single 1, slopes by 1,
    scales by 1 and shifts by 0), then those behind the next one, and so on.
    """
    if _leaves(subject, numeric, only_shortcut(numeric.config, numeric.state()), finite=True):
        yield "It leaves the bound in the shortcut: with the last convolution's weights 0, the output is still wrong."
    layers = [layer for layer in numeric.config.layers() if layer.branch != "in_node"]
    for index, layer in enumerate(layers):
        if _leaves(subject, numeric, _passing_on(numeric, layers[index + 1 :])):
            if index == 0:
                # Then it may be any of those behind, which pass on what they get and still run.
                yield "It leaves the bound even where every convolution and slope passes on what it gets."
                return
            yield f"The first layer of the residual branch at which it leaves the bound: {layer.name} ({layer.kind})."
            return


def _passing_on(numeric: Numeric, behind: Sequence[Layer]) -> dict[str, Array]:
    state = numeric.state()
    for layer in behind:
        for tensor, value in (("weight", 1.0), ("bias", 0.0)):
            name = f"{layer.name}.{tensor}"
            if name in state and layer.kind == "conv" and tensor == "weight":
                state[name] = identity_kernel(state[name])
            elif name in state:
                state[name] = np.full_like(state[name], value)
    return state


def _leaves(subject: Subject, numeric: Numeric, state: dict[str, Array], finite: bool = False) -> bool:
    """Whether the output leaves its bound; with `finite` only where its numbers say so: 0 times NaN is NaN."""
    try:
        y = numeric.built(subject, state).forward(numeric.x(), numeric.training)
    except (Refused, Crashed):
        return not finite
    due = numeric.expected(state).y
    return not judge(y, due).ok and (not finite or (y.shape == due.shape and bool(np.isfinite(y).all())))
