"""Chapter 4: the values of the output, every element within the bound that is derived for it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spec_tests.compare import Thin, focused, holds, shaped
from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import BEYOND, DOCUMENTED, WIDE, enumerated, large, named_values
from spec_tests.generators import layouts
from spec_tests.laws import (
    VALUE_LAWS,
    Edit,
    Law,
    flat,
    only_conv1,
    only_shortcut,
    unchanged,
    wide,
    without_biases,
    zero_weights,
)
from spec_tests.marks import by_documented, by_law, by_norm, by_normalizing, by_scaler
from spec_tests.numeric import Numeric, count, grade, law_examples, named, numerics, rotation, within
from spec_tests.subjects.base import Array, Subject
from spec_tests.vectors import Vector, vectors


def judge(subject: Subject, clause: str, numeric: Numeric, edit: Edit = unchanged) -> None:
    """Run one example, its state edited, and check its output."""
    if not numeric.config.takes(numeric.shape, numeric.training):
        return
    state = edit(numeric.config, numeric.state())
    run = numeric.expected(state)
    y = numeric.built(subject, state).forward(numeric.x(), numeric.training)
    within(clause, "the output", y, run.y, numeric.example(edit=edit), run)


@pytest.mark.clause("4.1")
@by_norm
@by_scaler
@given(data=st.data())
def test_every_combination(subject: Subject, normalizer: str, scaler: str, data: st.DataObject) -> None:
    """Every combination of named values in both modes, on drawn sizes, states and inputs."""
    numeric: Numeric = data.draw(numerics(scaler))
    for names, training in focused(product(named_values(normalizer=normalizer, scaler=scaler), subject.modes)):
        judge(subject, "4.1", named(numeric, training, **names))


@pytest.mark.clause("4.1")
@by_norm
def test_every_kind_of_shortcut(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Every combination of named values and kind of shortcut, with variances near ε."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        shape = (2, config.in_planes, 5, 6)
        for training in subject.modes:
            judge(subject, "4.1", Numeric(config, shape, "near_eps", "near_eps", seed, training))


@pytest.mark.clause("4.1")
@by_scaler
def test_large_sizes(subject: Subject, thin: Thin, scaler: str) -> None:
    """What a fixed buffer, a vector register or a table of cases may not hold."""
    wide = [*large(scaler, WIDE), *(large(scaler, BEYOND) if scaler == "down" else ())]
    cases = [(case, "float32") for case in (*large(scaler), *wide)]
    # float64 tells where float32 says little.
    cases += [(case, "float64") for case in wide if "float64" in subject.features]
    for seed, ((config, shape), dtype) in thin(enumerate(cases)):
        for training in subject.modes:
            judge(subject, "4.1", Numeric(config, shape, seed=seed, training=training, dtype=dtype))


@pytest.mark.clause("4.1")
@by_norm
def test_usual_geometries(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Kernels and strides for which libraries have a path of their own, beside 3 and 1 with 1 and 2."""
    geometries = ((4, 2, 1), (2, 2, 0), (5, 2, 2), (7, 2, 3), (3, 3, 1))
    cases = product(named_values(normalizer=normalizer, scaler="down"), subject.modes)
    for seed, (names, training) in thin(enumerate(cases)):
        for kernel, stride, padding in geometries[:2] if subject.compiles else geometries:
            config = BlockConfig.of(3, 4, kernel_size=kernel, stride=stride, padding=padding, **names)
            judge(subject, "4.1", Numeric(config, (2, 3, 6, 8), seed=seed, training=training))


@pytest.mark.clause("4.1")
@by_normalizing
def test_large_constants(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Constant channels far from 0: a variance of one pass that is not clipped at 0 has no root."""
    for seed, names in thin(enumerate(named_values(normalizer=normalizer))):
        numeric = Numeric(BlockConfig.of(8, 3, **names), (4, 8, 5, 7), seed=seed, training=subject.modes[0])
        x = numeric.x()
        # For batch norms in training a channel is constant over the batch.
        x[:] = 50 * (x[:1, :, :1, :1] if normalizer == "batch" else x[:, :, :1, :1])
        run, y = numeric.expected(x=x), numeric.built(subject).forward(x, numeric.training)
        code = f"x = case.x(); x[:] = 50 * x[:{'1' if normalizer == 'batch' else ''}, :, :1, :1]"
        within("4.1", "the output", y, run.y, numeric.example(x=code), run)


@pytest.mark.clause("4.1")
@by_scaler
def test_scales(subject: Subject, thin: Thin, scaler: str) -> None:
    """Without norms, numbers near the ends of the range of float32 are what they are."""
    cases = product((2.0**-100, 2.0**100), named_values(scaler=scaler, normalizer="null"))
    for seed, (scale, names) in thin(enumerate(cases)):
        numeric = Numeric(BlockConfig.of(2, 2 + seed % 2, **names), (2, 2, 4, 5), seed=seed, training=subject.modes[0])
        x = numeric.x() * scale
        state = without_biases(numeric.config, numeric.state())
        run, y = numeric.expected(state, x), numeric.built(subject, state).forward(x, numeric.training)
        example = numeric.example(edit=without_biases, x=f"x = case.x() * {scale}")
        within("4.1", "the output", y, run.y, example, run)


@pytest.mark.clause("4.1")
@by_norm
def test_wide_states(subject: Subject, thin: Thin, normalizer: str) -> None:
    """No parameter and no statistic has a range of its own."""
    for seed, names in thin(enumerate(named_values(normalizer=normalizer))):
        for training in subject.modes:
            numeric = Numeric(BlockConfig.of(3, 4, **names), (2, 3, 4, 5), seed=seed, training=training)
            for edit in (wide, flat):
                judge(subject, "4.1", numeric, edit)


@pytest.mark.clause("4.1")
@by_norm
def test_one_sign(subject: Subject, thin: Thin, normalizer: str) -> None:
    """No element of the input above 0, and none below: a path for either, or a maximum that begins at 0, shows."""
    cases = product(("-", ""), named_values(normalizer=normalizer), subject.modes)
    for seed, (sign, names, training) in thin(enumerate(cases)):
        numeric = Numeric(BlockConfig.of(3, 3, **names), (2, 3, 4, 5), seed=seed, training=training)
        x = np.abs(numeric.x())
        x = -x if sign else x
        run, y = numeric.expected(x=x), numeric.built(subject).forward(x, numeric.training)
        within("4.1", "the output", y, run.y, numeric.example(x=f"x = {sign}abs(case.x())"), run)


@pytest.mark.clause("4.1")
def test_strict_grade(subject: Subject, thin: Thin) -> None:
    """Inputs with an offset, on which a one-pass variance loses digits: within the bounds, and in the strict ones?"""
    for seed, names in thin(enumerate(named_values())):
        for number, training in enumerate(subject.modes):
            kind = ("normal", "offset")[seed % 2]
            numeric = Numeric(BlockConfig.of(4, 4, **names), (3, 4, 5, 6), "distinct", kind, seed, training)
            x = numeric.x()
            example = numeric.example()
            # So far that the bounds which admit a one-pass variance say nothing, and the strict ones much.
            if (seed // 2 + number) % 2 == 0:
                x, example = x + 1000, numeric.example(x="x = case.x() + 1000")
            run, y = numeric.expected(x=x), numeric.built(subject).forward(x, training)
            within("4.1", "the output", y, run.y, example, run)
            grade(numeric, x, y)


@pytest.mark.clause("4.1")
@pytest.mark.needs("float64")
@by_documented
def test_documented_examples(subject: Subject, example_id: str) -> None:
    """The documented blocks on inputs of their documented size, where a float32 bound would be vacuous."""
    config, size, _ = DOCUMENTED[example_id]
    for training in subject.modes:
        judge(subject, "4.1", Numeric(config, (1, *size), training=training, dtype="float64"))


@by_law(VALUE_LAWS)
@given(data=st.data())
def test_law(subject: Subject, law: Law, data: st.DataObject) -> None:
    """Each formula of the chapter, on blocks in which it alone matters."""
    scalers = law.names.get("scaler", NAMED_VALUES["scaler"])
    drawn: dict[str, Numeric] = {scaler: data.draw(numerics(scaler)) for scaler in scalers}
    for scaler in scalers:
        for numeric in focused(law_examples(law, scaler, drawn[scaler], subject.modes), scaler):
            judge(subject, law.clause, numeric, law.edit)


@pytest.mark.clause("4.20")
def test_projection_that_keeps_the_size(subject: Subject, thin: Thin) -> None:
    """With `output_size` the shortcut is a projection even where nothing changes its size."""
    for names, training in thin(product(named_values(scaler="up"), subject.modes)):
        config = BlockConfig.of(3, 3, output_size=(5, 6), **names)
        judge(subject, "4.20", Numeric(config, (2, 3, 5, 6), training=training))


@pytest.mark.clause("4.1")
@pytest.mark.needs("float64")
@given(data=st.data())
def test_float64(subject: Subject, data: st.DataObject) -> None:
    """float64, whose bounds are a billion times narrower."""
    for scaler in NAMED_VALUES["scaler"]:
        numeric = replace(data.draw(numerics(scaler)), dtype="float64")
        for names, training in product(rotation(numeric.seed, scaler=scaler), subject.modes):
            judge(subject, "4.1", named(numeric, training, **names))


@pytest.mark.clause("4.1")
@pytest.mark.needs("float64", "part", "convert")
def test_float64_of_a_model(subject: Subject, thin: Thin) -> None:
    """A model is converted with all of the block's constants: ε too, where variances are near it."""
    for seed, names in thin(enumerate(named_values())):
        config = BlockConfig.of(2, 3, **names)
        numeric = Numeric(config, (2, 2, 4, 5), "near_eps", "near_eps", seed, subject.modes[0], "float64")
        whole = subject.build(config.arguments()).whole().converted("float64")
        whole.load({f"module.{name}": value for name, value in numeric.state().items()})
        run, y = numeric.expected(), whole.forward(numeric.x(), numeric.training)
        steps = ["whole = block.whole()", "y = whole.forward(case.x(), case.training)"]
        within("4.1", "the output in a model that was converted", y, run.y, numeric.script(steps), run)


@pytest.mark.clause("4.1")
@pytest.mark.needs("bfloat16")
def test_bfloat16_sums(subject: Subject, thin: Thin) -> None:
    """One convolution alone in bfloat16: behind another one, a rounded partial sum looks like a rounded input."""
    for seed, (edit, scaler) in thin(enumerate(product((only_shortcut, only_conv1), NAMED_VALUES["scaler"]))):
        # Up-sampled, so that its weights matter; down, every element of the input matters to the sums.
        stride = (2, 3) if scaler == "up" else 1
        names = {"normalizer": "null", "activator": "null", "scaler": scaler}
        config = BlockConfig.of(6, 5, kernel_size=3, padding=1, stride=stride, **names)
        numeric = Numeric(config, (3, 6, 7, 8), seed=seed, training=False, dtype="bfloat16")
        judge(subject, "4.1", numeric, edit)
        if "layout" in subject.features:
            state = edit(config, numeric.state())
            run, built = numeric.expected(state), numeric.built(subject, state)
            for layout, x in layouts(numeric.x()).items():
                code = f"from spec_tests.generators import layouts; x = layouts(case.x())[{layout!r}]"
                y, example = built.forward(x, numeric.training), numeric.example(edit=edit, x=code)
                within("4.1", f"the output for x laid out as {layout}", y, run.y, example, run)


@pytest.mark.clause("4.1")
@pytest.mark.needs("bfloat16")
@by_normalizing
def test_bfloat16_statistics(subject: Subject, normalizer: str) -> None:
    """The projection's norm in bfloat16, over so many elements that a sum kept in bfloat16 stops growing."""
    for order, training in product(NAMED_VALUES["layer_order"], subject.modes):
        names = {"normalizer": normalizer, "activator": "null", "layer_order": order}
        config = BlockConfig.of(2, 3, kernel_size=3, padding=1, **names)
        numeric = Numeric(config, (2, 2, 24, 25), training=training, dtype="bfloat16")
        judge(subject, "4.1", numeric, only_shortcut)
        # Variances near ε.
        judge(subject, "4.1", replace(numeric, input_kind="near_eps"), only_shortcut)


@pytest.mark.clause("4.1")
@pytest.mark.needs("bfloat16")
@given(data=st.data())
def test_bfloat16(subject: Subject, data: st.DataObject) -> None:
    """bfloat16, where its bounds say something: behind no norm that takes its statistics from rounded numbers."""
    for scaler in NAMED_VALUES["scaler"]:
        numeric = replace(data.draw(numerics(scaler)), dtype="bfloat16")
        for activator in NAMED_VALUES["activator"]:
            judge(subject, "4.1", named(numeric, False, normalizer="batch", activator=activator))
            for training in subject.modes:
                judge(subject, "4.1", named(numeric, training, normalizer="null", activator=activator))


def first_of(wrong: Array, among: Array, y: Array) -> str:
    """The first wrong element of an output, and how many of how many are wrong; empty if none is."""
    if not wrong.any():
        return ""
    place = np.argwhere(wrong)[0].tolist()
    return f"{float(y[tuple(place)])!r} at {place}, the first of {wrong.sum()} wrong elements among {among.sum()}"


def judge_nonfinite(
    subject: Subject,
    clause: str,
    numeric: Numeric,
    value: float,
    place: tuple[int, ...],
    edit: Edit = unchanged,
    way: str = "forward",
) -> None:
    """One element of the input is not finite: what depends on it is as the clause says, the rest is as ever."""
    x = numeric.x()
    index = tuple(i % n for i, n in zip(place, x.shape, strict=True))
    x[index] = value
    state = edit(numeric.config, numeric.state())
    run = numeric.expected(state, x)
    block = numeric.built(subject, state)
    training = numeric.training
    calls = {"forward": block.forward, "inferred": block.inferred}
    y = calls[way](x, training) if way in calls else block.backward(x, numeric.dy(), training).output
    code = f"x = case.x(); x[{', '.join(map(str, index))}] = float('{value}')"
    example = numeric.example(edit=edit, x=code, backward=way == "backward", call=way)
    shaped(clause, "the output", y, run.y.shape, example)
    due = np.isnan(run.y.value) & (run.y.bound == 0)
    # Where nothing is claimed, nothing is checked, and nothing counts.
    if due.any():
        wrong = due & ~np.isnan(y)
        holds(clause, "the output that depends on it", not wrong.any(), first_of(wrong, due, y), "nan", example)
    claimed = np.isfinite(run.y.bound) & ~due
    if claimed.any():
        with np.errstate(all="ignore"):
            wrong = claimed & ~(np.abs(y - run.y.value) <= run.y.bound)
        first = tuple(np.argwhere(wrong)[0]) if wrong.any() else (0,) * 4
        allowed = f"{float(run.y.value[first])!r} ± {run.y.bound[first]:.3g}"
        got = first_of(wrong, claimed, y)
        holds(clause, "the output that does not depend on it", not wrong.any(), got, allowed, example)


@pytest.mark.clause("4.22", "4.23")
@by_norm
@given(data=st.data())
def test_numbers_that_are_not_finite(subject: Subject, normalizer: str, data: st.DataObject) -> None:
    """A NaN reaches all that depends on it and no other sample; an infinity becomes a NaN in a norm."""
    scalers, places = NAMED_VALUES["scaler"], st.tuples(*[st.integers(0, 8)] * 4)
    drawn = {scaler: (data.draw(numerics(scaler, max_batch=2)), data.draw(places)) for scaler in scalers}
    for scaler, (numeric, place) in drawn.items():
        plain = replace(numeric, input_kind="normal", state_kind="distinct")
        combinations = product(named_values(normalizer=normalizer, scaler=scaler), subject.modes)
        for names, training in focused(combinations, scaler):
            case = named(plain, training, **names)
            judge_nonfinite(subject, "4.22", case, np.nan, place)
            judge_nonfinite(subject, "4.23", case, np.inf, place)
            judge_nonfinite(subject, "4.23", case, -np.inf, place)


@pytest.mark.clause("4.22", "4.23")
@by_norm
def test_numbers_that_are_not_finite_in_other_calls(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Nor is a NaN healed in another type, far away, in a call that is differentiated, or under inference."""
    values = (("4.22", np.nan), ("4.23", np.inf), ("4.23", -np.inf))
    for seed, (names, training) in thin(enumerate(product(named_values(normalizer=normalizer), subject.modes))):
        numeric = Numeric(BlockConfig.of(2, 3, **names), (2, 2, 7, 9), seed=seed, training=training)
        for dtype in ("float32", *sorted({"float64", "bfloat16"} & subject.features)):
            judge_nonfinite(subject, "4.22", replace(numeric, dtype=dtype), np.nan, (1, 0, 5, 7))
        if {"backward", "output"} <= subject.features:
            clause, value = values[seed % 3]
            judge_nonfinite(subject, clause, numeric, value, (0, 1, 6, 8), way="backward")
        if "inference" in subject.features:
            judge_nonfinite(subject, "4.22", numeric, np.nan, (1, 1, 4, 3), way="inferred")


@pytest.mark.clause("4.22")
@by_scaler
def test_nan_through_zero_weights(subject: Subject, thin: Thin, scaler: str) -> None:
    """A NaN times 0 is a NaN: no weight keeps it back."""
    for seed, names in thin(enumerate(named_values(scaler=scaler))):
        numeric = Numeric(BlockConfig.of(2, 3, **names, stride=2), (2, 2, 4, 5), seed=seed, training=subject.modes[0])
        judge_nonfinite(subject, "4.22", numeric, np.nan, (1, 0, 2, 2), zero_weights)


@pytest.mark.clause("4.22")
def test_nan_where_up_sampling_changes_no_size(subject: Subject, thin: Thin) -> None:
    """Other samples are free of it; whether its neighbours are is up to the implementation."""
    for seed, names in thin(enumerate(named_values(scaler="up", normalizer="null"))):
        config = BlockConfig.of(2, 3, kernel_size=1, padding=0, **names)
        numeric = Numeric(config, (2, 2, 4, 5), seed=seed, training=subject.modes[0])
        judge_nonfinite(subject, "4.22", numeric, np.nan, (0, 0, 1, 2))


@pytest.mark.clause("4.1")
@example(seed=0)
@given(seed=st.integers(0, 1000))
def test_extreme_sizes_of_channels(subject: Subject, seed: int) -> None:
    """One channel, and more channels than a vector register holds."""
    rng = np.random.default_rng(seed)
    for planes in ((1, 1), (1, 17), (33, 2)):
        normalizer = NAMED_VALUES["normalizer"][int(rng.integers(4))]
        config = BlockConfig.of(*planes, normalizer=normalizer, activator="prelu", stride=(1, 2))
        judge(subject, "4.1", Numeric(config, (1, planes[0], 3, 4), seed=seed, training=subject.modes[0]))


def judge_vector(subject: Subject, clause: str, vector: Vector) -> None:
    """Run one test vector and check its output."""
    y = vector.built(subject).forward(vector.x(), vector.training)
    count(clause, [vector.check(clause, "y", y)])


@pytest.mark.clause("4.1")
def test_vectors(subject: Subject, thin: Thin) -> None:
    """The test vectors, whose numbers are written down: they do not follow the oracle when it changes."""
    for vector in thin(v for v in vectors() if v.training in subject.modes and "4.1" in v.clauses):
        judge_vector(subject, "4.1", vector)


@pytest.mark.clause("4.22", "4.23")
def test_vectors_that_are_not_finite(subject: Subject, thin: Thin) -> None:
    """The test vectors with a NaN or an infinity in the input."""
    for clause in ("4.22", "4.23"):
        for vector in thin(v for v in vectors() if v.training in subject.modes and clause in v.clauses):
            judge_vector(subject, clause, vector)
