"""Chapter 9: what the output must not depend on, and what a call must not change."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec_tests.compare import Thin, differing, equal, focused, holds, shaped
from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import enumerated, named_values
from spec_tests.generators import expanded, layouts
from spec_tests.laws import only_shortcut, permuted_state
from spec_tests.marks import by_norm, by_scaler
from spec_tests.numeric import (
    Numeric,
    count,
    different_bits,
    inspect_each,
    named,
    numerics,
    rotation,
    same_within,
    within,
)
from spec_tests.oracle import vjp
from spec_tests.subjects.base import Block, Refused, Subject


def own_samples(config: BlockConfig, training: bool) -> bool:
    """Whether each sample's output is its own (all but batch norms in training)."""
    return config.normalizer != "batch" or not training


def reloaded(block: Block, numeric: Numeric) -> Block:
    """The block with the state that the example starts from; only batch norms in training have left it."""
    if not own_samples(numeric.config, numeric.training):
        block.load(numeric.state())
    return block


@pytest.mark.clause("9.1", "9.2")
@by_scaler
@given(data=st.data())
def test_batches(subject: Subject, scaler: str, data: st.DataObject) -> None:
    """A sample does not see its neighbours, and permuting the batch permutes the output."""
    drawn: Numeric = data.draw(numerics(scaler, min_elements=2))
    drawn = replace(drawn, shape=(3, *drawn.shape[1:]))
    neighbour = data.draw(st.sampled_from([0.0, -1.0, 1e4, float("nan")]))
    for names, training in focused(product(rotation(drawn.seed, scaler=scaler), subject.modes)):
        numeric = named(drawn, training, **names)
        block, x, example = numeric.built(subject), numeric.x(), numeric.example()
        run, y = numeric.expected(), block.forward(x, training)
        shaped("9.2", "the output", y, run.y.shape, example)
        order = [2, 0, 1]
        permuted = reloaded(block, numeric).forward(x[order], training)
        bound = run.y.bound + run.y.bound
        same_within("9.2", "the output of the permuted batch", permuted, y[order], bound[order], example)
        if own_samples(numeric.config, training):
            others = x.copy()
            others[1:] = neighbour
            changed = block.forward(others, training)[:1]
            what = f"the output of sample 0 with the others set to {neighbour}"
            same_within("9.1", what, changed, y[:1], bound[:1], example)
            alone = block.forward(x[:1], training)
            same_within("9.1", "the output of sample 0 alone", alone, y[:1], bound[:1], example)


@pytest.mark.clause("9.3", "9.4", "9.5", "9.6", "9.8")
@by_norm
def test_calls_leave_no_trace(subject: Subject, thin: Thin, normalizer: str) -> None:
    """The same call gives the same bits, again, after other calls, and in a new block of the same state."""
    bitwise = "bitwise" in subject.features
    for seed, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        for training in subject.modes:
            numeric = Numeric(config, (3, config.in_planes, 5, 6), seed=seed, training=training)
            block, example = numeric.built(subject), numeric.example()
            state, x = numeric.state(), numeric.x()
            bound = 2 * numeric.expected().y.bound
            first = block.forward(x, training)
            equal("9.6", "x is as before", x.tobytes() == numeric.x().tobytes(), True, example)
            changed = differing(block.state(), state)
            allowed = set(config.buffers()) if training else set()
            equal("9.5", "entries that a forward call changed", sorted(set(changed) - allowed), [], example)
            if not own_samples(config, training):
                block.load(state)
            again = block.forward(x, training)
            # Another size, the other mode and other numbers in between.
            block.forward(
                Numeric(config, (1, config.in_planes, 6, 5), seed=seed + 1).x(),
                subject.modes[-1] if training else subject.modes[0],
            )
            block.load(state)
            later = block.forward(x, training)
            fresh = numeric.built(subject, block.state() if own_samples(config, training) else state)
            for clause, what, y in (
                ("9.3", "the same call again", again),
                ("9.8", "the same call after others", later),
                ("9.4", "the same call in a new block", fresh.forward(x, training)),
            ):
                if bitwise:
                    equal(clause, f"elements that differ, {what}", different_bits(y, first), 0, example)
                else:
                    same_within(clause, what, y, first, bound, example)
            if "memory" in subject.features:
                before, after = block.marks(numeric.x(), training)
                equal("9.6", "what the tensor of the input tells beside its values", after, before, example)


@pytest.mark.clause("9.7")
@pytest.mark.needs("memory")
@by_norm
def test_the_output_is_its_own(subject: Subject, thin: Thin, normalizer: str) -> None:
    """The output shares memory with neither the input nor an entry of the state, nor with a later output."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        for training in subject.modes:
            numeric = Numeric(config, (2, config.in_planes, 5, 6), seed=seed, training=training)
            shared = numeric.built(subject).aliases(numeric.x(), training)
            example = numeric.script(["shared = block.aliases(case.x(), case.training)"])
            equal("9.7", "what the output shares memory with", shared, [], example)


@pytest.mark.clause("9.9")
@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(d, marks=pytest.mark.needs(d)) for d in ("float64", "bfloat16"))]
)
def test_types(subject: Subject, thin: Thin, dtype: str) -> None:
    """The output has the type of the input."""
    for seed, (_, config) in thin(enumerate(enumerated())):
        numeric = Numeric(
            config,
            (2, config.in_planes, 5, 6),
            seed=seed,
            training=subject.modes[seed % len(subject.modes)],
            dtype=dtype,
        )
        block = numeric.built(subject)
        for differentiated in (False, True):
            got = block.result_dtype(numeric.x(), numeric.training, differentiated)
            equal("9.9", f"type of the output for {dtype}", got, dtype, numeric.example(backward=differentiated))
        # An empty batch may be refused.
        with contextlib.suppress(Refused):
            got = block.result_dtype(numeric.x()[:0], numeric.training)
            equal(
                "9.9",
                f"type of the output for an empty batch of {dtype}",
                got,
                dtype,
                numeric.example(x="x = case.x()[:0]"),
            )


@pytest.mark.clause("9.10")
@pytest.mark.needs("layout")
@by_scaler
@given(data=st.data())
def test_layouts(subject: Subject, scaler: str, data: st.DataObject) -> None:
    """Views, other orders of the axes and expanded axes give the values of the plain copy."""
    drawn: Numeric = data.draw(numerics(scaler))
    for names, training in focused(product(rotation(drawn.seed, scaler=scaler), subject.modes)):
        numeric = named(drawn, training, **names)
        x, run = numeric.x(), numeric.expected()
        block = numeric.built(subject)
        for layout, view in layouts(x).items():
            y = reloaded(block, numeric).forward(view, training)
            code = f"x = layouts(case.x())[{layout!r}]"
            example = numeric.example(x=f"from spec_tests.generators import layouts; {code}")
            within("9.10", f"the output for x laid out as {layout}", y, run.y, example, run)
            if "inference" in subject.features:
                y = reloaded(block, numeric).inferred(view, training)
                lines = ["from spec_tests.generators import layouts", f"{code}; y = block.inferred(x, case.training)"]
                within("9.10", f"the output for x laid out as {layout}", y, run.y, numeric.script(lines), run)
        # An axis of stride 0 repeats one sample, channel, row or column; the plain copy repeats it in memory.
        for axis, name in enumerate(("sample", "channel", "row", "column")):
            repeated = expanded(x, axis)
            run = numeric.expected(x=repeated.copy())
            y = reloaded(block, numeric).forward(repeated, training)
            code = f"from spec_tests.generators import expanded; x = expanded(case.x(), {axis})"
            within("9.10", f"the output for an expanded {name}", y, run.y, numeric.example(x=code), run)


@pytest.mark.clause("9.10")
@pytest.mark.needs("layout", "backward", "output")
@by_scaler
def test_layouts_of_calls_that_are_differentiated(subject: Subject, thin: Thin, scaler: str) -> None:
    """Nor do the output and the gradients of a call that is differentiated depend on them."""
    for seed, names in thin(enumerate(named_values(scaler=scaler))):
        numeric = Numeric(BlockConfig.of(2, 3, **names), (2, 2, 4, 5), seed=seed, training=subject.modes[0])
        run = numeric.expected()
        due = vjp(run, numeric.dy())
        block = numeric.built(subject)
        for layout, view in layouts(numeric.x()).items():
            code = f"from spec_tests.generators import layouts; x = layouts(case.x())[{layout!r}]"
            example = numeric.example(x=code, backward=True)
            got = reloaded(block, numeric).backward(view, numeric.dy(), numeric.training)
            within("9.10", f"the output for x laid out as {layout}", got.output, run.y, example, run)
            within("9.10", f"the gradient of x laid out as {layout}", got.dx, due.dx, example, run, "dx")
            for verdict in inspect_each("9.10", got.params, due.params, example, run, f", x laid out as {layout}"):
                count("9.10", [verdict])


@pytest.mark.clause("9.10")
@pytest.mark.needs("layout", "copy", "float64")
@by_scaler
def test_layouts_of_the_weights(subject: Subject, thin: Thin, scaler: str) -> None:
    """The weights may lie with the channels last, as those bring them who look for speed; x plainly or otherwise."""
    cases = product(named_values(scaler=scaler), subject.modes, ("float32", "float64"))
    for seed, (names, training, dtype) in thin(enumerate(cases)):
        numeric = Numeric(BlockConfig.of(3, 4, **names), (2, 3, 4, 5), seed=seed, training=training, dtype=dtype)
        block, run = numeric.built(subject).rearranged(), numeric.expected()
        for layout, x in {"plain": numeric.x(), **layouts(numeric.x())}.items():
            laid = "case.x()" if layout == "plain" else f"layouts(case.x())[{layout!r}]"
            call = f"block = block.rearranged(); y = block.forward({laid}, case.training)"
            example = numeric.script(["from spec_tests.generators import layouts", call])
            y = reloaded(block, numeric).forward(x, training)
            within("9.10", f"the output, weights with the channels last, x {layout}", y, run.y, example, run)


@pytest.mark.clause("9.10")
@pytest.mark.needs("layout", "copy", "backward")
@by_scaler
def test_layouts_of_the_weights_of_calls_that_are_differentiated(subject: Subject, thin: Thin, scaler: str) -> None:
    """Nor do gradients depend on how the weights lie."""
    for seed, (names, training) in thin(enumerate(product(named_values(scaler=scaler), subject.modes))):
        numeric = Numeric(BlockConfig.of(3, 4, **names), (2, 3, 4, 5), seed=seed, training=training)
        block, run = numeric.built(subject).rearranged(), numeric.expected()
        call = "gradients = block.backward(case.x(), case.dy(), case.training)"
        example = numeric.script(["block = block.rearranged()", call])
        got, due = block.backward(numeric.x(), numeric.dy(), training), vjp(run, numeric.dy())
        within("9.10", "the gradient of x, weights with the channels last", got.dx, due.dx, example, run, "dx")
        for verdict in inspect_each("9.10", got.params, due.params, example, run, ", weights with the channels last"):
            count("9.10", [verdict])


@pytest.mark.clause("9.11")
@by_scaler
@given(data=st.data())
def test_zero_last_weight(subject: Subject, scaler: str, data: st.DataObject) -> None:
    """With a last weight of 0 the residual branch may hold anything: the output is the shortcut."""
    drawn: Numeric = data.draw(numerics(scaler))
    for names, training in focused(product(rotation(drawn.seed, scaler=scaler), subject.modes)):
        numeric = named(drawn, training, **{**names, "layer_order": "new"})
        state = only_shortcut(numeric.config, numeric.state())
        # The same shortcut, and another residual branch.
        other = only_shortcut(numeric.config, replace(numeric, seed=numeric.seed + 1, state_kind="distinct").state())
        other.update({name: value for name, value in state.items() if name.startswith("in_node")})
        x = numeric.x()
        y, z = (numeric.built(subject, s).forward(x, training) for s in (state, other))
        bound = numeric.expected(state).y.bound + numeric.expected(other).y.bound
        example = numeric.example(edit=only_shortcut)
        same_within("9.11", "the outputs for two residual branches", y, z, bound, example)
        if not numeric.config.projects:
            bound = numeric.expected(state).y.bound
            same_within("9.11", "the output and x (an identity shortcut)", y, x, bound, example)


@pytest.mark.clause("9.12")
@by_scaler
@given(data=st.data())
def test_hidden_channels(subject: Subject, scaler: str, data: st.DataObject) -> None:
    """The order of the hidden channels is nobody's business."""
    drawn: Numeric = data.draw(numerics(scaler))
    for names, training in focused(product(rotation(drawn.seed, scaler=scaler), subject.modes)):
        numeric = named(drawn, training, in_planes=4, **names)
        state, x = numeric.state(), numeric.x()
        order = np.random.default_rng(numeric.seed).permutation(4).tolist()
        block, lines = numeric.built(subject), ["x = case.x(); y = block.forward(x, case.training)"]
        y, bound = block.forward(x, training), 2 * numeric.expected().y.bound
        for first in ("conv1", "conv2"):
            block.load(permuted_state(numeric.config, state, first, order))
            z = block.forward(x, training)
            permuted = f"laws.permuted_state(case.config, case.state(), {first!r}, {order})"
            lines += [f"block.load({permuted}); z = block.forward(x, case.training)"]
            example = numeric.script(["from spec_tests import laws", *lines])
            same_within("9.12", f"the outputs for two orders of the channels behind {first}", z, y, bound, example)


@pytest.mark.clause("9.13")
@by_scaler
@given(data=st.data())
def test_constant_added_to_a_channel(subject: Subject, scaler: str, data: st.DataObject) -> None:
    """Where both branches normalize with their input's own statistics, a constant in a channel vanishes."""
    # Whole numbers, so that adding the constant does not round.
    drawn: Numeric = replace(data.draw(numerics(scaler)), input_kind="integers")
    constant = data.draw(st.integers(-8, 8))
    training = subject.modes[0]
    norms = ("batch", "inst", "pinst") if training else ("inst", "pinst")
    for normalizer, activator in focused(product(norms, NAMED_VALUES["activator"])):
        names = {"normalizer": normalizer, "activator": activator, "layer_order": "new"}
        numeric = named(drawn, training, in_planes=2, out_planes=3, **names)
        x = numeric.x()
        raised = x.copy()
        raised[:, 1] += constant
        y, z = (numeric.built(subject).forward(value, training) for value in (x, raised))
        bound = numeric.expected().y.bound + numeric.expected(x=raised).y.bound
        example = numeric.example(x=f"x = case.x(); x[:, 1] += {constant}")
        same_within("9.13", "the outputs with and without the constant", z, y, bound, example)


@pytest.mark.clause("9.14")
@pytest.mark.needs("train")
@by_norm
def test_modes(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Only batch norms know the mode."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        numeric = Numeric(config, (2, config.in_planes, 5, 6), seed=seed)
        y, z = (numeric.built(subject).forward(numeric.x(), training) for training in subject.modes)
        example = numeric.example()
        if normalizer == "batch":
            what = "the outputs in training and evaluation (the statistics differ)"
            holds("9.14", what, different_bits(y, z) > 0, "equal", "different", example)
        else:
            bound = 2 * numeric.expected().y.bound
            same_within("9.14", "the outputs in training and evaluation", y, z, bound, example)
