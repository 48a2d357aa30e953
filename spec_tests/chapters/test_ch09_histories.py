"""Chapter 9, over histories: any sequence of calls, loads, copies and conversions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from spec_tests.compare import CALL, GRADIENTS, Example, NonConformance, Thin, differing, equal, equal_entries
from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import enumerated
from spec_tests.marks import by_norm
from spec_tests.numeric import Numeric, count, different_bits, inspect, inspect_each, named, numerics, same_within
from spec_tests.oracle import Forward, Verdict, vjp
from spec_tests.seeding import test_seed
from spec_tests.subjects.base import Block, Crashed, Refused, Subject, zeros

# What the code of a refused call needs.
REFUSES = ["import contextlib", "from spec_tests.subjects.base import Refused, zeros"]


def kind_of(config: BlockConfig, name: str) -> str:
    """What an entry of the state is, such as `norm weight`."""
    layer, _, entry = name.rpartition(".")
    return f"{next(one.kind for one in config.layers() if one.name == layer)} {entry}"


def buffers(block: Block, run: Forward, example: Example) -> list[Verdict]:
    """Of each buffer, whether it is as it must be after the call."""
    state = block.state()
    return [inspect("9.8", n, state[n], run.stats[n], example, run, n) for n in run.config.buffers()]


def differentiated(block: Block, numeric: Numeric, run: Forward, example: Example) -> list[Verdict]:
    """Of each gradient of one call, whether it is as it must be; a block that gives none breaks the clause."""
    try:
        got = block.backward(numeric.x(), numeric.dy(), numeric.training)
    except Crashed as crash:
        raise NonConformance("9.8", "a backward pass", crash.error, GRADIENTS, example) from crash
    due = vjp(run, numeric.dy())
    of_input = inspect("9.8", "the gradient of the input", got.dx, due.dx, example, run, "dx")
    return [of_input, *inspect_each("9.8", got.params, due.params, example, run)]


class History(RuleBasedStateMachine):
    """One block, whose every result follows from the state that it shows; subclasses set `subject`."""

    subject: Subject
    normalizer: str

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []
        self.twins: list[tuple[Block, bytes]] = []

    @initialize(data=st.data())
    def build(self, data: st.DataObject) -> None:
        drawn: Numeric = data.draw(numerics(data.draw(st.sampled_from(NAMED_VALUES["scaler"]))))
        self.numeric = named(drawn, normalizer=self.normalizer)
        self.block: Block = self.numeric.built(self.subject)
        # However short the history, it has a call.
        self._forward(0, self._mode(True))

    def _mode(self, training: bool) -> bool:
        return training and True in self.subject.modes

    def _call(self, seed: int, training: bool, step: str, dtype: str = "float32") -> tuple[Numeric, Example]:
        # Every other call brings one sample more, unless a new shape costs a compilation.
        batch, planes, height, width = self.numeric.shape
        shape = (batch + (seed % 2 if not self.subject.compiles else 0), planes, height, width)
        numeric = Numeric(self.numeric.config, shape, seed=seed, training=training, dtype=dtype)
        kind = "" if dtype == "float32" else f", dtype={dtype!r}"
        self.steps.append(f"c = Numeric(case.config, {shape}, seed={seed}, training={training}{kind}); {step}")
        return numeric, self._example()

    def _example(self) -> Example:
        """Code of the whole history."""
        refuses = any("suppress" in step for step in self.steps)
        return self.numeric.script([*(REFUSES if refuses else []), *self.steps])

    @contextlib.contextmanager
    def _succeeds(self) -> Iterator[None]:
        """What fails within is told with the steps before it: it may need them to fail."""
        try:
            yield
        except (Crashed, Refused) as error:
            got = error.error if isinstance(error, Crashed) else error.message + error.where
            raise NonConformance("9.8", CALL, got, "a result", self._example()) from error

    @rule(seed=st.integers(0, 9), training=st.booleans())
    def forward(self, seed: int, training: bool) -> None:
        self._forward(seed, self._mode(training))

    def _forward(self, seed: int, training: bool) -> None:
        numeric, example = self._call(seed, training, "y = block.forward(c.x(), c.training)")
        run = numeric.expected(self.block.state())
        with self._succeeds():
            y = self.block.forward(numeric.x(), training)
        count("9.8", [inspect("9.8", "the output", y, run.y, example, run), *buffers(self.block, run, example)])

    @precondition(lambda self: "inference" in self.subject.features)
    @rule(seed=st.integers(0, 9), training=st.booleans())
    def infer(self, seed: int, training: bool) -> None:
        numeric, example = self._call(seed, self._mode(training), "y = block.inferred(c.x(), c.training)")
        run, x = numeric.expected(self.block.state()), numeric.x()
        with self._succeeds():
            y = self.block.inferred(x, numeric.training)
        equal("9.8", "x is as before", x.tobytes() == numeric.x().tobytes(), True, example)
        count("9.8", [inspect("9.8", "the output", y, run.y, example, run), *buffers(self.block, run, example)])

    @precondition(lambda self: "backward" in self.subject.features)
    @rule(seed=st.integers(0, 9), training=st.booleans())
    def backward(self, seed: int, training: bool) -> None:
        training = self._mode(training)
        numeric, example = self._call(seed, training, "gradients = block.backward(c.x(), c.dy(), c.training)")
        run = numeric.expected(self.block.state())
        verdicts = differentiated(self.block, numeric, run, example)
        count("9.8", verdicts + buffers(self.block, run, example))

    @rule(seed=st.integers(0, 9))
    def load(self, seed: int) -> None:
        numeric, example = self._call(seed, True, "block.load(c.state())")
        state = numeric.state()
        with self._succeeds():
            self.block.load(state)
        wrong = differing(self.block.state(), state)
        equal_entries("9.8", "entries that differ from the loaded state", wrong, {}, example)

    @precondition(lambda self: "overwrite" in self.subject.features)
    @rule(seed=st.integers(0, 9))
    def overwrite(self, seed: int) -> None:
        numeric, _ = self._call(seed, True, "block.overwrite(c.state())")
        with self._succeeds():
            self.block.overwrite(numeric.state())

    @precondition(lambda self: "assign" in self.subject.features)
    @rule(seed=st.integers(0, 9))
    def assign(self, seed: int) -> None:
        numeric, _ = self._call(seed, True, "block.assign(c.state())")
        with self._succeeds():
            self.block.assign(numeric.state())

    @precondition(lambda self: "functional" in self.subject.features)
    @rule(seed=st.integers(0, 9), training=st.booleans())
    def forward_with_another_state(self, seed: int, training: bool) -> None:
        """A state that is given for a call is that of the call, and nothing of it stays."""
        step = "y = block.functional(c.state(), c.x(), c.training)"
        numeric, example = self._call(seed, self._mode(training), step)
        before, run = _bits(self.block), numeric.expected(numeric.state())
        with self._succeeds():
            y = self.block.functional(numeric.state(), numeric.x(), numeric.training)
        count("9.8", [inspect("9.8", "the output with another state", y, run.y, example, run)])
        what = "the block is as before a call with another state"
        equal("9.8", what, _bits(self.block) == before, True, example)

    @precondition(lambda self: "copy" in self.subject.features)
    @rule()
    def copy(self) -> None:
        self.steps.append("twin, block = block, block.copy()")
        self.twins.append((self.block, _bits(self.block)))
        with self._succeeds():
            self.block = self.block.copy()

    @precondition(lambda self: {"convert", "float64"} <= self.subject.features)
    @rule()
    def convert_there_and_back(self) -> None:
        self.steps.append("block = block.converted('float64').converted('float32')")
        with self._succeeds():
            self.block = self.block.converted("float64").converted("float32")

    @precondition(lambda self: {"convert", "float64"} <= self.subject.features)
    @rule(seed=st.integers(0, 9), training=st.booleans())
    def forward_in_float64(self, seed: int, training: bool) -> None:
        """What a call in one type left behind is not used in another one."""
        step = "y = block.converted('float64').forward(c.x(), c.training)"
        numeric, example = self._call(seed, self._mode(training), step, "float64")
        with self._succeeds():
            twin = self.block.converted("float64")
            run = numeric.expected(twin.state())
            y = twin.forward(numeric.x(), numeric.training)
        count("9.8", [inspect("9.8", "the output in float64", y, run.y, example, run)])

    @precondition(lambda self: "serialize" in self.subject.features)
    @rule()
    def serialize(self) -> None:
        self.steps.append("block = block.serialized()")
        with self._succeeds():
            self.block = self.block.serialized()

    @rule()
    def refuse(self) -> None:
        """A call that is refused leaves nothing behind."""
        shape = (2, self.numeric.config.in_planes + 1, 4, 5)
        self.steps.append(f"with contextlib.suppress(Refused): block.forward(zeros({shape}))")
        with contextlib.suppress(Refused):
            self.block.forward(zeros(shape))

    def teardown(self) -> None:
        for number, (block, bits) in enumerate(self.twins):
            example = self._example()
            what = f"the block that copy {number + 1} was made of is as it was then"
            equal("9.8", what, _bits(block) == bits, True, example)


def _bits(block: Block) -> bytes:
    return b"".join(value.tobytes() for value in block.state().values())


@pytest.mark.clause("9.8")
@pytest.mark.needs("overwrite")
@by_norm
def test_parameters_changed_in_place(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A call uses the state as it is, also if nothing was said since the last one, as between an optimizer's steps."""
    for number, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        shape = (2, config.in_planes, 4, 5)
        for training in subject.modes:
            first, then = (Numeric(config, shape, seed=number + k, training=training) for k in (0, 1))
            block = first.built(subject)
            x = first.x()
            block.forward(x, training)
            # What is folded into what must be folded again when any of it changes: one kind of entry alone, then all.
            before, after = first.state(), then.state()
            kinds = {name: kind_of(config, name) for name in after}
            different = list(dict.fromkeys(kinds.values()))
            changed = sorted(name for name in after if kinds[name] == different[number % len(different)])
            steps = [
                "x = case.x(); block.forward(x, case.training)",
                f"c = Numeric(case.config, case.shape, seed={number + 1}, training={training})",
                f"block.overwrite({{n: (c if n in {changed} else case).state()[n] for n in case.state()}})",
                "y = block.forward(x, case.training)",
            ]
            for state in ({**before, **{name: after[name] for name in changed}}, after):
                # The same x: neither what was made of the parameters is kept, nor the output.
                block.overwrite(state)
                run, example = then.expected(state, x), first.script(steps)
                y = block.forward(x, training)
                count("9.8", [inspect("9.8", "the output", y, run.y, example, run)])
                steps = [*steps, "block.overwrite(c.state()); y = block.forward(x, case.training)"]


@pytest.mark.clause("9.3", "9.8")
@by_norm
def test_many_calls(subject: Subject, normalizer: str) -> None:
    """Twenty calls, behind which what is tuned, compiled or shed in time has come into use."""
    for number, (_, config) in list(enumerate(enumerated(normalizer=normalizer)))[::24]:
        numeric = Numeric(config, (2, config.in_planes, 4, 5), seed=number, training=False)
        block, run, x = numeric.built(subject), numeric.expected(), numeric.x()
        first = block.forward(x, False)
        for calls in range(2, 21):
            lines = ["x = case.x(); first = block.forward(x, False)"]
            lines += [f"for _ in range({calls - 1}): y = block.forward(x, False)"]
            y, example = block.forward(x, False), numeric.script(lines)
            what = f"the output of call {calls}"
            count("9.8", [inspect("9.8", what, y, run.y, example, run)])
            if "bitwise" in subject.features:
                equal("9.3", f"elements that differ, {what}", different_bits(y, first), 0, example)
            else:
                same_within("9.3", what, y, first, 2 * run.y.bound, example)


@pytest.mark.clause("9.8")
@pytest.mark.needs("overwrite")
@by_norm
def test_input_filled_anew(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A call uses the input as it is: it may be the tensor of the last call with other numbers, a static buffer."""
    for number, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        training = subject.modes[number % len(subject.modes)]
        case = Numeric(config, (2, config.in_planes, 4, 5), seed=number, training=training)
        xs = [replace(case, seed=number + k).x() for k in (0, 1)]
        block = case.built(subject)
        lines = [f"other = Numeric(case.config, case.shape, seed={number + 1}).x()"]
        for place, (x, y) in enumerate(zip(xs, block.refilled(xs, training), strict=True)):
            call = f"y = block.refilled([case.x(), other], case.training)[{place}]"
            run, example, what = case.expected(x=x), case.script([*lines, call]), ("first", "second")[place]
            count("9.8", [inspect("9.8", f"the output for the {what} numbers", y, run.y, example, run)])


@pytest.mark.clause("9.8")
@pytest.mark.needs("inference")
@by_norm
def test_parameters_changed_between_inferences(subject: Subject, thin: Thin, normalizer: str) -> None:
    """What is made of the parameters where nothing will be differentiated is made of those of now."""
    for number, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        training = subject.modes[number % len(subject.modes)]
        first = Numeric(config, (2, config.in_planes, 4, 5), seed=number, training=training)
        then, x = replace(first, seed=number + 1), first.x()
        block = first.built(subject)
        block.inferred(x, training)
        block.load(then.state())
        run, y = then.expected(x=x), block.inferred(x, training)
        lines = [f"x = case.x(); c = Numeric(case.config, case.shape, seed={number + 1})"]
        lines += ["block.inferred(x, case.training); block.load(c.state()); y = block.inferred(x, case.training)"]
        example = first.script(lines)
        count("9.8", [inspect("9.8", "the output", y, run.y, example, run)])
        equal("9.8", "x is as before", x.tobytes() == first.x().tobytes(), True, example)


@pytest.mark.clause("9.8")
@pytest.mark.needs("inference", "backward")
@by_norm
def test_backward_behind_inference(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A first call of which nothing will be differentiated leaves nothing that a backward pass cannot use."""
    for number, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        numeric = Numeric(
            # Of a length that no other test has: what is kept for it is made here, where nothing is recorded.
            config,
            (2, config.in_planes, 4, 13),
            seed=number,
            training=subject.modes[number % len(subject.modes)],
        )
        block = numeric.built(subject)
        run, y = numeric.expected(), block.inferred(numeric.x(), numeric.training)
        lines = ["y = block.inferred(case.x(), case.training)"]
        example = numeric.script(lines)
        count("9.8", [inspect("9.8", "the output", y, run.y, example, run), *buffers(block, run, example)])
        lines.append("block.load(case.state())")
        example = numeric.script(lines)
        try:
            block.load(numeric.state())
        except (Crashed, Refused) as error:
            raise NonConformance("9.8", "loading its state", str(error), "no error", example) from error
        example = numeric.script([*lines, "gradients = block.backward(case.x(), case.dy(), case.training)"])
        count("9.8", differentiated(block, numeric, run, example))


@pytest.mark.clause("9.8")
@pytest.mark.drawn
@by_norm
def test_histories(subject: Subject, request: pytest.FixtureRequest, normalizer: str) -> None:
    """Whatever happened before, a result follows from arguments, state, mode and input."""
    machine = type("History", (History,), {"subject": subject, "normalizer": normalizer})
    machine = seed(test_seed(request.node.name, request.config.option.seed))(machine)
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=12))
