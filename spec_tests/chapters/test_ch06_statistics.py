"""Chapter 6: the running statistics of batch norms, after one call and after many."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec_tests.compare import SUBJECT, Example, Thin, differing, equal, equal_entries, focused, holds, shaped
from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import BEYOND, enumerated, large, named_values
from spec_tests.marks import by_scaler
from spec_tests.numeric import Numeric, count, named, numerics, same_within, within
from spec_tests.oracle import Bounded, Forward
from spec_tests.subjects.base import Array, Subject
from spec_tests.vectors import Vector, vectors

# The code of several calls.
REPEATED = """from dataclasses import replace
for step, training in enumerate({}):
    call = replace(case, seed=case.seed + step, training=training)
    y = block.forward(call.x(), training)"""
CLAUSES = {"running_mean": "6.1", "running_var": "6.2", "num_batches_tracked": "6.3"}
pytestmark = pytest.mark.needs("train")


def judge_buffers(
    got: dict[str, Array],
    run: Forward,
    example: Example,
    what: str,
    clauses: dict[str, str] | None = None,
    calls: int | None = None,
) -> None:
    """Check every buffer after a call, each by its own clause; `calls` are those that are counted, if not few."""
    for name in run.config.buffers():
        tensor = name.rpartition(".")[2]
        clause = (clauses or CLAUSES)[tensor]
        if tensor == "num_batches_tracked":
            shaped(clause, f"{name} {what}", got[name], (), example)
            counted = int(run.stats[name].value) if calls is None else calls
            equal(clause, f"{name} {what}", got[name].item(), counted, example)
        else:
            within(clause, f"{name} {what}", got[name], run.stats[name], example, run, name)


def judge_call(subject: Subject, numeric: Numeric) -> None:
    """Check every buffer after one call in training."""
    block = numeric.built(subject)
    block.forward(numeric.x(), True)
    judge_buffers(block.state(), numeric.expected(), numeric.example(), "after one call")


@pytest.mark.clause("6.1", "6.2", "6.3")
@by_scaler
@given(data=st.data())
def test_one_call(subject: Subject, scaler: str, data: st.DataObject) -> None:
    """One call in training replaces the mean and the unbiased variance of every norm, and counts."""
    drawn: Numeric = data.draw(numerics(scaler))
    for names in focused(named_values(normalizer="batch", scaler=scaler)):
        judge_call(subject, named(drawn, True, **names))


@pytest.mark.clause("6.1", "6.2", "6.3")
@by_scaler
def test_large_sizes(subject: Subject, thin: Thin, scaler: str) -> None:
    """Beyond the sizes that are drawn."""
    far = [*(large(scaler, BEYOND) if scaler == "down" else ())]
    cases = [(case, "float32") for case in (*large(scaler), *far)]
    # float64 tells n/(n - 1) from 1 where n is large.
    cases += [(case, "float64") for case in far if "float64" in subject.features]
    batch = [(config, shape, dtype) for (config, shape), dtype in cases if config.normalizer == "batch"]
    for seed, (config, shape, dtype) in thin(enumerate(batch)):
        judge_call(subject, Numeric(config, shape, seed=seed, dtype=dtype))


@pytest.mark.clause("6.1", "6.2", "6.3")
@pytest.mark.needs("float64")
def test_float64(subject: Subject, thin: Thin) -> None:
    """float64, whose bounds tell 0.1 from its neighbour in float32."""
    for seed, names in thin(enumerate(named_values(normalizer="batch"))):
        judge_call(subject, Numeric(BlockConfig.of(2, 3, **names), (2, 2, 4, 5), seed=seed, dtype="float64"))


@pytest.mark.clause("6.3", "6.6")
@pytest.mark.parametrize("calls", [999, 2**24, 2**31 - 1, 2**40, 2**53])
def test_a_call_after_many(subject: Subject, calls: int) -> None:
    """However many calls were counted before, the next one is one more, and has the same factors."""
    numeric = Numeric(BlockConfig.of(2, 3, normalizer="batch"), (2, 2, 4, 5))
    state = {n: np.array(calls) if n.endswith("tracked") else v for n, v in numeric.state().items()}
    block = numeric.built(subject, state)
    block.forward(numeric.x(), True)
    code = f"{{n: v * 0 + {calls} if n.endswith('tracked') else v for n, v in case.state().items()}}"
    example = numeric.script(["y = block.forward(case.x(), True)"], state=code)
    clauses = {**dict.fromkeys(CLAUSES, "6.6"), "num_batches_tracked": "6.3"}
    judge_buffers(
        block.state(),
        numeric.expected(state),
        example,
        f"after a call that is the {calls + 1:,}th by its counter",
        clauses,
        calls + 1,
    )


@pytest.mark.clause("6.1", "6.2", "6.3")
def test_numbers_that_are_not_finite(subject: Subject) -> None:
    """A batch counts, whatever it holds; a NaN reaches the mean of its channel, and no other one's statistics."""
    for order, value in product(NAMED_VALUES["layer_order"], (np.nan, np.inf)):
        numeric = Numeric(BlockConfig.of(2, 3, normalizer="batch", layer_order=order), (2, 2, 4, 5))
        block, x = numeric.built(subject), numeric.x()
        x[0, 1, 2, 3] = value
        block.forward(x, True)
        after, run = block.state(), numeric.expected(x=x)
        example = numeric.example(x=f"x = case.x(); x[0, 1, 2, 3] = float('{value}')")
        for name, before in numeric.state().items():
            if name.endswith("num_batches_tracked"):
                shaped("6.3", f"{name} after one call", after[name], (), example)
                equal("6.3", f"{name} after one call", after[name].item(), before.item() + 1, example)
            elif name.startswith("conv1") and "running" in name:
                clause = CLAUSES[name.rpartition(".")[2]]
                shaped(clause, f"{name} after one call", after[name], before.shape, example)
                mean, due = after[name][1].item(), "NaN" if np.isnan(value) else "not finite"
                if clause == "6.1":
                    right = np.isnan(mean) if np.isnan(value) else not np.isfinite(mean)
                    holds(clause, f"{name}[1], whose channel meets it", bool(right), mean, due, example)
                # Where the norm is the first layer, the other channel does not meet it.
                if order == "new":
                    clean = Bounded(run.stats[name].value[:1], run.stats[name].bound[:1])
                    what = f"{name}[:1], whose channel does not meet it"
                    within(clause, what, after[name][:1], clean, example, run, name)


@pytest.mark.clause("6.5")
def test_every_norm_has_its_own(subject: Subject, thin: Thin) -> None:
    """The norms of all branches, the projection's too, follow their own inputs."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer="batch"))):
        numeric = Numeric(config, (3, config.in_planes, 5, 6), "distinct", "offset" if seed % 2 else "normal", seed)
        block = numeric.built(subject)
        block.forward(numeric.x(), True)
        clauses = dict.fromkeys(CLAUSES, "6.5")
        judge_buffers(block.state(), numeric.expected(), numeric.example(), "after one call", clauses)


@pytest.mark.clause("6.6", "6.4")
@by_scaler
@given(data=st.data())
def test_many_calls(subject: Subject, scaler: str, data: st.DataObject) -> None:
    """Every call starts from the buffers as they are, with the same factors; evaluation leaves them alone."""
    drawn: Numeric = data.draw(numerics(scaler))
    calls = data.draw(st.lists(st.booleans(), min_size=2, max_size=5))
    numeric = named(drawn, True, normalizer="batch")
    block = numeric.built(subject)
    state = numeric.state()
    for step, training in enumerate(calls):
        call = replace(numeric, seed=numeric.seed + step, training=training)
        block.forward(call.x(), training)
        after = block.state()
        example = numeric.script(REPEATED.format(calls[: step + 1]).splitlines())
        if training:
            # The oracle starts from the subject's own buffers, so that no bound adds up.
            run = call.expected(state)
            judge_buffers(after, run, example, f"after call {step + 1}", dict.fromkeys(CLAUSES, "6.6"))
        else:
            changed = differing(after, state)
            equal_entries("6.4", "buffers after a call in evaluation", changed, {}, example)
        state = after
    # The same from a loaded state: a history that is not in the buffers would show.
    fresh = numeric.built(subject, state)
    fresh.forward(numeric.x(), True)
    run = numeric.expected(state)
    again = f"fresh = case.built({SUBJECT[0]}, block.state()); y = fresh.forward(case.x(), True)"
    example = numeric.script([*REPEATED.format(calls).splitlines(), again])
    judge_buffers(fresh.state(), run, example, "after a load", dict.fromkeys(CLAUSES, "6.6"))


@pytest.mark.clause("6.4")
def test_evaluation(subject: Subject, thin: Thin) -> None:
    """Evaluation changes no buffer, before training and after it."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer="batch"))):
        numeric = Numeric(config, (2, config.in_planes, 5, 6), seed=seed, training=False)
        block = numeric.built(subject)
        for modes in ([False], [False, True, False]):
            before = block.state()
            block.forward(numeric.x(), False)
            changed = differing(block.state(), before)
            example = numeric.script([f"y = [block.forward(case.x(), training) for training in {modes}]"])
            equal_entries("6.4", "entries after a call in evaluation", changed, {}, example)
            block.forward(numeric.x(), True)


@pytest.mark.clause("6.7")
@pytest.mark.needs("backward")
def test_backward_updates_nothing(subject: Subject, thin: Thin) -> None:
    """A forward call with its backward pass leaves the statistics of the forward call alone."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer="batch"))):
        numeric = Numeric(config, (2, config.in_planes, 5, 6), seed=seed)
        block = numeric.built(subject)
        block.backward(numeric.x(), numeric.dy(), True)
        clauses, example = dict.fromkeys(CLAUSES, "6.7"), numeric.example(backward=True)
        judge_buffers(block.state(), numeric.expected(), example, "after a backward pass", clauses)


@pytest.mark.clause("6.1", "6.2", "6.3")
@pytest.mark.needs("frozen")
def test_frozen_parameters(subject: Subject, thin: Thin) -> None:
    """The statistics are replaced too where no parameter is trained."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer="batch"))):
        numeric = Numeric(config, (2, config.in_planes, 5, 6), seed=seed)
        block = numeric.built(subject)
        block.partial_gradients(numeric.x(), numeric.dy(), True, [])
        example = numeric.script(["block.partial_gradients(case.x(), case.dy(), True, [])"])
        judge_buffers(block.state(), numeric.expected(), example, "after a call with frozen parameters")


@pytest.mark.clause("6.3")
@pytest.mark.needs("bfloat16")
def test_calls_in_bfloat16_count(subject: Subject, thin: Thin) -> None:
    """In bfloat16, too, whose running statistics are not judged."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer="batch"))):
        numeric = Numeric(config, (2, config.in_planes, 5, 6), seed=seed, dtype="bfloat16")
        block = numeric.built(subject)
        block.forward(numeric.x(), True)
        after = block.state()
        for name, before in numeric.state().items():
            if name.endswith("num_batches_tracked"):
                shaped("6.3", f"{name} after one call", after[name], (), numeric.example())
                equal("6.3", f"{name} after one call", after[name].item(), before.item() + 1, numeric.example())


@pytest.mark.clause("6.1", "6.8")
@by_scaler
@given(data=st.data())
def test_the_current_statistics_normalize(subject: Subject, scaler: str, data: st.DataObject) -> None:
    """In training the output does not depend on the buffers, neither before nor after their replacement."""
    drawn: Numeric = data.draw(numerics(scaler))
    for order in focused(NAMED_VALUES["layer_order"]):
        numeric = named(drawn, True, normalizer="batch", layer_order=order)
        state = numeric.state()
        run = numeric.expected(state)
        for number in (77.0, np.nan, np.inf):
            far = {name: np.full_like(value, number) if "running" in name else value for name, value in state.items()}
            block = numeric.built(subject, far)
            y = block.forward(numeric.x(), True)
            far_state = f"{{n: v * 0 + float('{number}') if 'running' in n else v for n, v in case.state().items()}}"
            example = numeric.script(["y = block.forward(case.x(), True)"], state=far_state)
            within("6.8", f"the output in training, buffers of {number}", y, run.y, example, run)
            if not np.isfinite(number):
                # A mean of NaN or infinity stays: the new one is blended with it.
                running = {name: value for name, value in block.state().items() if "running" in name}
                finite = [name for name, value in running.items() if np.isfinite(value).any()]
                equal("6.1", "running statistics that became finite", finite, [], example)


@pytest.mark.clause("6.3", "6.6")
def test_many_calls_count(subject: Subject) -> None:
    """Twelve calls count twelve; the mean goes to that of the input at the pace of 0.9 a call."""
    config = BlockConfig.of(2, 2, normalizer="batch", activator="null")
    numeric = Numeric(config, (4, 2, 3, 3), "initial", "offset", 5)
    block = numeric.built(subject)
    state = block.state()
    for step in range(12):
        block.forward(numeric.x(), True)
        run = numeric.expected(state)
        state = block.state()
        example = numeric.script([f"y = [block.forward(case.x(), True) for _ in range({step + 1})]"])
        judge_buffers(state, run, example, f"after call {step + 1}", dict.fromkeys(CLAUSES, "6.6"))
    for name in config.buffers():
        if name.endswith("num_batches_tracked"):
            equal("6.3", f"{name} after twelve calls", state[name].item(), 12, example)


def statistical(subject: Subject) -> list[Vector]:
    """The test vectors that say what the buffers are after a call."""
    return [v for v in vectors() if v.training in subject.modes and any(n.startswith("new.b.") for n in v.tensors)]


def judge_vector(vector: Vector, got: dict[str, Array], clauses: dict[str, str]) -> None:
    """Check every buffer after the call, each by the clause of its kind."""
    for name in vector.config.buffers():
        clause = clauses[name.rpartition(".")[2]]
        count(clause, [vector.check(clause, f"new.b.{name}", got[name])])


@pytest.mark.clause("6.1", "6.2", "6.3")
def test_vectors(subject: Subject, thin: Thin) -> None:
    """The test vectors in training, whose numbers are written down: they do not follow the oracle when it changes."""
    for vector in thin(v for v in statistical(subject) if v.training):
        block = vector.built(subject)
        block.forward(vector.x(), True)
        judge_vector(vector, block.state(), CLAUSES)


@pytest.mark.clause("6.4")
def test_vectors_in_evaluation(subject: Subject, thin: Thin) -> None:
    """The test vectors in evaluation: every buffer is exactly what it was."""
    for vector in thin(v for v in statistical(subject) if not v.training):
        block = vector.built(subject)
        block.forward(vector.x(), False)
        judge_vector(vector, block.state(), dict.fromkeys(CLAUSES, "6.4"))


def judge_same(clause: str, vector: Vector, what: str, got: dict[str, Array], subject: Subject) -> None:
    """Check that the buffers are those that a new block has after this call alone."""
    block = vector.built(subject)
    block.forward(vector.x(), vector.training)
    alone = block.state()
    for name in vector.config.buffers():
        bound = 2 * vector.expected[f"new.b.{name}"].bound
        same_within(clause, f"{name} {what} and on a new block", got[name], alone[name], bound, vector.example())


@pytest.mark.clause("6.6")
def test_vectors_in_sequence(subject: Subject) -> None:
    """A second call on one block, from the buffers that were loaded after the first, does as that of a new block."""
    before = {v.id: v for v in vectors()}
    for vector in (v for v in statistical(subject) if v.after):
        first = before[str(vector.after)]
        block = first.built(subject)
        block.forward(first.x(), first.training)
        block.load(vector.state())
        block.forward(vector.x(), vector.training)
        judge_same("6.6", vector, "after another call", block.state(), subject)


@pytest.mark.clause("6.7")
@pytest.mark.needs("backward")
def test_vectors_with_a_backward_pass(subject: Subject, thin: Thin) -> None:
    """The test vectors in training, with the backward pass: the buffers are those of the forward call alone."""
    for vector in thin(v for v in statistical(subject) if v.training):
        block = vector.built(subject)
        block.backward(vector.x(), vector.dy(), True)
        judge_same("6.7", vector, "after a backward pass", block.state(), subject)
