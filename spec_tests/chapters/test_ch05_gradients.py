"""Chapter 5: gradients of the input and of every parameter, within the bounds that are derived for them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec_tests import oracle
from spec_tests.compare import (
    GRADIENTS,
    Example,
    NonConformance,
    Thin,
    differing,
    equal,
    focused,
    holds,
    shaped,
    unlike,
)
from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import WIDE, enumerated, large, named_values
from spec_tests.generators import expanded, layouts
from spec_tests.laws import GRADIENT_LAWS, Edit, Law, flat, unchanged, wide
from spec_tests.marks import by_law, by_norm, by_scaler
from spec_tests.numeric import (
    Numeric,
    count,
    equal_gradients,
    inspect,
    inspect_each,
    inspect_gradients,
    law_examples,
    named,
    numerics,
    rotation,
    same_within,
)
from spec_tests.oracle import Bounded, vjp
from spec_tests.subjects.base import Array, Block, Crashed, Gradients, Subject
from spec_tests.vectors import Vector, vectors

pytestmark = pytest.mark.needs("backward")


def differentiate(clause: str, block: Block, numeric: Numeric | Vector) -> Gradients:
    """The gradients of one call; a block that cannot be differentiated breaks the clause."""
    try:
        return block.backward(numeric.x(), numeric.dy(), numeric.training)
    except Crashed as crash:
        what = "a forward call and its backward pass"
        raise NonConformance(clause, what, crash.error, GRADIENTS, numeric.example(backward=True)) from crash


def judge(subject: Subject, clauses: tuple[str, str], numeric: Numeric, edit: Edit = unchanged) -> None:
    """Run one example, its state edited; check dx by the first clause, the gradients of parameters by the second."""
    if not numeric.config.takes(numeric.shape, numeric.training):
        return
    state = edit(numeric.config, numeric.state())
    run = numeric.expected(state)
    got = differentiate(clauses[0], numeric.built(subject, state), numeric)
    compare(clauses, got, vjp(run, numeric.dy()), numeric.example(edit=edit, backward=True), run)


def compare(
    clauses: tuple[str, str], got: Gradients, expected: oracle.Gradients, example: Example, run: oracle.Forward
) -> None:
    """Check dx by the first clause, the gradients of parameters by the second; each is one example."""
    of_input = [inspect(clauses[0], "the gradient of the input", got.dx, expected.dx, example, run, "dx")]
    of_parameters = inspect_each(clauses[1], got.params, expected.params, example, run)
    if clauses[0] == clauses[1]:
        count(clauses[0], of_input + of_parameters)
    else:
        count(clauses[0], of_input)
        count(clauses[1], of_parameters)


@pytest.mark.clause("5.1", "5.2")
@by_norm
@by_scaler
@given(data=st.data())
def test_every_combination(subject: Subject, normalizer: str, scaler: str, data: st.DataObject) -> None:
    """Every combination of named values in both modes, on drawn sizes, states, inputs and gradients."""
    drawn: Numeric = data.draw(numerics(scaler, gradients=True))
    for names, training in focused(product(named_values(normalizer=normalizer, scaler=scaler), subject.modes)):
        judge(subject, ("5.1", "5.2"), named(drawn, training, **names))


@pytest.mark.clause("5.1", "5.2")
@pytest.mark.needs("float64")
@by_norm
@given(data=st.data())
def test_float64(subject: Subject, normalizer: str, data: st.DataObject) -> None:
    """The same in float64, whose bounds are a billion times narrower."""
    for scaler in NAMED_VALUES["scaler"]:
        drawn = replace(data.draw(numerics(scaler, gradients=True)), dtype="float64")
        [names] = (n for n in rotation(drawn.seed, scaler=scaler) if n["normalizer"] == normalizer)
        for training in subject.modes:
            judge(subject, ("5.1", "5.2"), named(drawn, training, **names))


@by_law(GRADIENT_LAWS)
@given(data=st.data())
def test_law(subject: Subject, law: Law, data: st.DataObject) -> None:
    """Each statement of the chapter, on blocks in which it alone matters."""
    scalers = law.names.get("scaler", NAMED_VALUES["scaler"])
    drawn: dict[str, Numeric] = {scaler: data.draw(numerics(scaler, gradients=True)) for scaler in scalers}
    for scaler in scalers:
        for numeric in focused(law_examples(law, scaler, drawn[scaler], subject.modes), scaler):
            judge(subject, (law.clause, law.clause), numeric, law.edit)


@pytest.mark.clause("5.1", "5.2")
@by_scaler
def test_large_sizes(subject: Subject, thin: Thin, scaler: str) -> None:
    """Beyond the sizes that are drawn."""
    cases = [(case, "float32") for case in large(scaler)]
    cases += [(case, "float64") for case in large(scaler, WIDE) if "float64" in subject.features]
    for seed, ((config, shape), dtype) in thin(enumerate(cases)):
        for training in subject.modes:
            judge(subject, ("5.1", "5.2"), Numeric(config, shape, seed=seed, training=training, dtype=dtype))


@pytest.mark.clause("5.1", "5.2")
@pytest.mark.needs("layout")
@by_scaler
def test_expanded_gradients(subject: Subject, thin: Thin, scaler: str) -> None:
    """What sums send back to the output is repeated by strides of 0; and other orders of memory."""
    for seed, names in thin(enumerate(named_values(scaler=scaler))):
        numeric = Numeric(BlockConfig.of(2, 3, **names), (3, 2, 4, 5), seed=seed, training=subject.modes[0])
        run, call = numeric.expected(), "gradients = block.backward(case.x(), dy, case.training)"
        # That of the sum of all, and of the sums of the channels.
        for axes in ((0, 1, 2, 3), (2, 3)):
            dy = expanded(numeric.dy(), *axes)
            got = numeric.built(subject).backward(numeric.x(), dy, numeric.training)
            lines = [f"from spec_tests.generators import expanded; dy = expanded(case.dy(), *{axes})", call]
            compare(("5.1", "5.2"), got, vjp(run, dy), numeric.script(lines), run)
        due = vjp(run, numeric.dy())
        for layout, view in layouts(numeric.dy()).items():
            got = numeric.built(subject).backward(numeric.x(), view, numeric.training)
            lines = ["from spec_tests.generators import layouts", f"dy = layouts(case.dy())[{layout!r}]", call]
            compare(("5.1", "5.2"), got, due, numeric.script(lines), run)


@pytest.mark.clause("5.1", "5.2")
@by_norm
def test_wide_states_and_gradients(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Neither a parameter nor the gradient that arrives has a range of its own."""
    for seed, names in thin(enumerate(named_values(normalizer=normalizer))):
        numeric = Numeric(BlockConfig.of(3, 4, **names), (2, 3, 4, 5), seed=seed, training=subject.modes[0])
        for edit in (wide, flat):
            judge(subject, ("5.1", "5.2"), numeric, edit)
        # As large as the scale of a loss in half precision.
        run, dy = numeric.expected(), 65536 * numeric.dy()
        got = numeric.built(subject).backward(numeric.x(), dy, numeric.training)
        example = numeric.script(["gradients = block.backward(case.x(), 65536 * case.dy(), case.training)"])
        compare(("5.1", "5.2"), got, vjp(run, dy), example, run)


@pytest.mark.clause("5.2", "5.11")
@pytest.mark.needs("constant_input")
@by_norm
def test_an_input_without_a_gradient(subject: Subject, thin: Thin, normalizer: str) -> None:
    """The first block of a network gets an input of which no gradient is wanted; those of its parameters stay."""
    for seed, names in thin(enumerate(named_values(normalizer=normalizer))):
        for training in subject.modes:
            numeric = Numeric(BlockConfig.of(3, 3 + seed % 2, **names), (2, 3, 4, 5), seed=seed, training=training)
            run, x, block = numeric.expected(), numeric.x(), numeric.built(subject)
            got, due = block.parameter_gradients(x, numeric.dy(), training), vjp(run, numeric.dy()).params
            call = "gradients = block.parameter_gradients(x, case.dy(), case.training{})"
            example = numeric.script(["x = case.x(); " + call.format("")])
            count("5.2", inspect_each("5.2", got, due, example, run))
            equal("5.11", "x is as before", x.tobytes() == numeric.x().tobytes(), True, example)
            if "frozen" in subject.features:
                # The first layers are not trained either, as where the last ones are tuned.
                last = list(due)[-1:]
                block.load(numeric.state())
                got = block.parameter_gradients(x, numeric.dy(), training, last)
                example = numeric.script(["x = case.x(); " + call.format(f", {last}")])
                some = {name: due[name] for name in last}
                count("5.2", inspect_each("5.2", got, some, example, run))


@pytest.mark.clause("5.1", "5.2")
@pytest.mark.needs("frozen")
@by_norm
def test_frozen_parameters(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Of no parameter a gradient is wanted, of every other one, then of all; what is wanted does not depend on that."""
    for seed, names in thin(enumerate(named_values(normalizer=normalizer))):
        for training in subject.modes:
            numeric = Numeric(BlockConfig.of(2 + seed % 2, 3, **names), (2, 2 + seed % 2, 4, 5), seed=seed)
            numeric = replace(numeric, training=training)
            run = numeric.expected()
            due, every = vjp(run, numeric.dy()), list(numeric.config.parameters())
            block = numeric.built(subject)
            calls: list[str] = []
            for wanted in ([], every[::2], every[1::2], every):
                block.load(numeric.state())
                got = block.partial_gradients(numeric.x(), numeric.dy(), training, wanted)
                calls += ["block.load(case.state())"] * bool(calls)
                calls += [f"gradients = block.partial_gradients(case.x(), case.dy(), case.training, {wanted})"]
                some = replace(due, params={name: due.params[name] for name in wanted})
                compare(("5.1", "5.2"), got, some, numeric.script(calls), run)


@pytest.mark.clause("5.10", "5.11")
@pytest.mark.needs("deferred")
@by_norm
def test_backward_passes_behind_all_calls(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A backward pass is that of its own call, also behind another call, in the other mode, and when it comes again."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        training = subject.modes[seed % len(subject.modes)]
        first = Numeric(config, (2, config.in_planes, 5, 6), seed=seed, training=training)
        then = replace(first, seed=seed + 1, shape=(3, config.in_planes, 6, 5))
        # As the second branch of a network that shares its weights: another call of the same shape.
        branch = replace(first, seed=seed + 2)
        state = first.state()
        calls = [(n.x(), n.dy()) for n in (first, then, branch)]
        got = first.built(subject, state).deferred(calls, training)
        lines = [f"other = Numeric(case.config, {then.shape}, seed={seed + 1}, training={training})"]
        lines += [f"branch = Numeric(case.config, case.shape, seed={seed + 2}, training={training})"]
        lines += ["gradients = block.deferred([(n.x(), n.dy()) for n in (case, other, branch)], case.training)"]
        example = first.script(lines)
        for (x, _), numeric in zip(calls, (first, then, branch), strict=True):
            what = "x, the output of a layer before the block, is as before"
            equal("5.11", what, x.tobytes() == numeric.x().tobytes(), True, example)
        for numeric, gradients in zip((first, then, branch, first), got, strict=True):
            run = numeric.expected(state)
            compare(("5.10", "5.10"), gradients, vjp(run, numeric.dy()), example, run)


@pytest.mark.clause("5.10")
@pytest.mark.needs("accumulate")
@by_norm
def test_gradients_add_up(subject: Subject, thin: Thin, normalizer: str) -> None:
    """What a backward pass gives is added to what a parameter has received, as where a batch comes in parts."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        training = subject.modes[seed % len(subject.modes)]
        first = Numeric(config, (2, config.in_planes, 5, 6), seed=seed, training=training)
        then = replace(first, seed=seed + 1)
        state = first.state()
        got = first.built(subject, state).accumulated([(n.x(), n.dy()) for n in (first, then)], training)
        run = first.expected(state)
        one, two = (vjp(n.expected(state), n.dy()).params for n in (first, then))
        due = {name: summed(one[name], two[name]) for name in one}
        lines = [f"other = Numeric(case.config, case.shape, seed={seed + 1}, training={training})"]
        lines += ["gradients = block.accumulated([(n.x(), n.dy()) for n in (case, other)], case.training)"]
        count("5.10", inspect_each("5.10", got, due, first.script(lines), run, ", of two backward passes"))


def summed(one: Bounded, two: Bounded) -> Bounded:
    """The sum of two results of float32, which is rounded once more."""
    total = one.value + two.value
    bound = one.bound + two.bound
    return Bounded(total, bound + 2**-24 * (np.abs(total) + bound))


@pytest.mark.clause("5.6")
@by_norm
@given(seed=st.integers(0, 10_000))
def test_kinks(subject: Subject, normalizer: str, seed: int) -> None:
    """Where the input of an activation is 0, the gradient lies in the hull of the slopes of its two sides."""
    for names in focused(n for n in named_values(normalizer=normalizer) if n["activator"] != "null"):
        config = BlockConfig.of(2, 2, **names)
        judge(subject, ("5.6", "5.6"), Numeric(config, (2, 2, 3, 4), "ties", "ties", seed, subject.modes[0]))


@pytest.mark.clause("5.9")
@by_norm
def test_every_parameter_receives_its_gradient(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Every configuration can be differentiated in both modes, and leaves no parameter without a gradient."""
    broken: list[tuple[Numeric, NonConformance]] = []
    total = 0
    for seed, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        for training in subject.modes:
            numeric = Numeric(config, (2, config.in_planes, 5, 6), seed=seed, training=training)
            total, example = total + 1, numeric.example(backward=True)
            try:
                got = differentiate("5.9", numeric.built(subject), numeric)
                equal_gradients("5.9", got.params, config.parameters(), example)
                wrong = [name for name, value in got.params.items() if not np.isfinite(value).all()]
                equal("5.9", "gradients that are not finite", wrong, [], example)
            except NonConformance as error:
                broken.append((numeric, error))
    if broken:
        numeric, first = broken[0]
        got_text = f"{len(broken)} of {total} calls cannot be trained from; {first.what} of the first: {first.got}"
        raise NonConformance("5.9", first.what, got_text, first.expected, numeric.example(backward=True)) from first


@pytest.mark.clause("5.10", "5.11")
@by_norm
def test_calls_are_independent(subject: Subject, thin: Thin, normalizer: str) -> None:
    """The same backward pass gives the same gradients again, and changes nothing but the statistics."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        numeric = Numeric(
            config, (2, config.in_planes, 5, 6), seed=seed, training=subject.modes[seed % len(subject.modes)]
        )
        example = numeric.example(backward=True)
        block = numeric.built(subject)
        x, dy = numeric.x(), numeric.dy()
        first = differentiate("5.10", block, numeric)
        # A call on other numbers in between, then the first state and call again.
        differentiate("5.10", block, replace(numeric, seed=seed + 1000, shape=(1, config.in_planes, 6, 5)))
        block.load(numeric.state())
        before = block.state()
        again = block.backward(x, dy, numeric.training)
        for got in (first, again):
            shaped("5.10", "the gradient of the input", got.dx, numeric.shape, example)
            inspect_gradients("5.10", got.params, config.parameters(), example)
        pairs = {"dx": (again.dx, first.dx), **{n: (again.params[n], v) for n, v in first.params.items()}}
        bounds: dict[str, float | Array] = dict.fromkeys(pairs, 0.0)
        if "bitwise" not in subject.features:
            due = vjp(numeric.expected(), dy)
            bounds = {name: 2 * bounded.bound for name, bounded in {"dx": due.dx, **due.params}.items()}
        apart = {
            name: unlike(*two, bounds[name]) or "nan" * bool(np.isnan(two[0]).any()) for name, two in pairs.items()
        }
        wrong = [f"{name} is {told}" for name, told in apart.items() if told]
        more = [f"{len(wrong) - 3} more"] if len(wrong) > 3 else []
        equal("5.10", "gradients that differ the second time", wrong[:3] + more, [], example)
        equal("5.11", "x is as before", x.tobytes() == numeric.x().tobytes(), True, example)
        equal("5.11", "dy is as before", dy.tobytes() == numeric.dy().tobytes(), True, example)
        changed = differing(block.state(), before)
        allowed = set(config.buffers()) if numeric.training else set()
        equal("5.11", "entries of the state that changed", sorted(set(changed) - allowed), [], example)


@pytest.mark.clause("5.1")
@by_scaler
@given(data=st.data())
def test_dot_products(subject: Subject, scaler: str, data: st.DataObject) -> None:
    """Of a block that is linear in x, <dy, f(x) - f(0)> is <dx, x>, within the bounds of both sides."""
    drawn: Numeric = replace(data.draw(numerics(scaler, gradients=True)), input_kind="normal", state_kind="distinct")
    for normalizer, training in (("null", subject.modes[0]), ("batch", False)):
        numeric = named(drawn, training, normalizer=normalizer, activator="null")
        x, dy, zero = numeric.x(), numeric.dy(), np.zeros_like(numeric.x())
        block = numeric.built(subject)
        y, origin = block.forward(x, training), block.forward(zero, training)
        dx = differentiate("5.1", block, numeric).dx
        what, example = "<dy, f(x) - f(0)> and <dx, x>", numeric.example(backward=True)
        for name, got, due in (("the output", y, dy), ("the output for 0", origin, dy), ("dx", dx, x)):
            shaped("5.1", name, got, due.shape, example)
        run, run_zero = numeric.expected(), numeric.expected(x=zero)
        left = float(np.sum(dy.astype(np.float64) * (y.astype(np.float64) - origin)))
        right = float(np.sum(dx.astype(np.float64) * x))
        bound = np.sum(np.abs(dy) * (run.y.bound + run_zero.y.bound)) + np.sum(np.abs(x) * vjp(run, dy).dx.bound)
        # The sums themselves are taken in float64.
        bound += 2**-40 * (np.sum(np.abs(dy * y)) + np.sum(np.abs(dy * origin)) + np.sum(np.abs(dx * x)))
        good = not abs(left - right) > bound
        holds("5.1", what, good, f"{left!r} and {right!r}", f"a difference of at most {bound:.3g}", example)


def judge_vector(clauses: tuple[str, str], vector: Vector, got: Gradients) -> None:
    """Check the gradient of the input by the first clause, those of the parameters by the second."""
    count(clauses[0], [vector.check(clauses[0], "dx", got.dx)])
    equal_gradients(clauses[1], got.params, vector.config.parameters(), vector.example(backward=True))
    count(clauses[1], [vector.check(clauses[1], f"d.{n}", got.params[n]) for n in vector.config.parameters()])


@pytest.mark.clause("5.1", "5.2")
def test_vectors(subject: Subject, thin: Thin) -> None:
    """The test vectors, whose numbers are written down: they do not follow the oracle when it changes."""
    for vector in thin(v for v in vectors() if v.training in subject.modes and v.has_gradients):
        judge_vector(("5.1", "5.2"), vector, differentiate("5.1", vector.built(subject), vector))


@pytest.mark.clause("5.10", "5.11")
@pytest.mark.needs("train")
def test_vectors_in_sequence(subject: Subject) -> None:
    """A test vector behind another gives the gradients of a new block, and what was passed in stays as it was."""
    before = {v.id: v for v in vectors()}
    for vector in (v for v in vectors() if v.after):
        first = before[str(vector.after)]
        block = first.built(subject)
        differentiate("5.10", block, first)
        block.load(vector.state())
        x, dy, example = vector.x(), vector.dy(), vector.example(backward=True)
        got, alone = block.backward(x, dy, vector.training), differentiate("5.10", vector.built(subject), vector)
        for gradients in (got, alone):
            inspect_gradients("5.10", gradients.params, vector.config.parameters(), example)
        for name in ("dx", *(f"d.{n}" for n in vector.config.parameters())):
            one, two = ((g.dx if name == "dx" else g.params[name[2:]]) for g in (got, alone))
            bound = 2 * vector.expected[name].bound
            same_within("5.10", f"{name} on this block and on a new one", one, two, bound, example)
        equal("5.11", "x is as before", x.tobytes() == vector.x().tobytes(), True, example)
        equal("5.11", "dy is as before", dy.tobytes() == vector.dy().tobytes(), True, example)
        changed = set(differing(block.state(), vector.state())) - set(vector.config.buffers())
        equal("5.11", "parameters that changed", sorted(changed), [], example)
