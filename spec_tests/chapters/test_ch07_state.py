"""Chapter 7: the state, and that it can be loaded, copied, converted and switched, alone and in a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from spec_tests.compare import Example, NonConformance, Thin, differing, equal, equal_entries, refused
from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import enumerated
from spec_tests.marks import by_norm
from spec_tests.numeric import Numeric, within
from spec_tests.states import bits, long_counted, other_state, scripted
from spec_tests.subjects.base import Array, Block, Crashed, Refused, Subject, zeros

IN_A_MODEL = "torch.nn.Sequential(OrderedDict(module=block))"
ASSIGNED = "block.whole().assign({f'module.{n}': v for n, v in case.state().items()})"
INPUT: Array = np.random.default_rng(7).standard_normal((2, 4, 5, 6)).astype(np.float32)


def equal_outputs(
    clause: str, what: str, got: Block, expected: Block, example: Example, modes: Sequence[bool] = (True, False)
) -> None:
    """Both blocks give the same output, bit for bit, in evaluation and then in training."""
    for training in reversed(modes):
        ours, theirs = got.forward(INPUT, training), expected.forward(INPUT, training)
        mode = "training" if training else "evaluation"
        differs = int(np.count_nonzero(ours != theirs)) if ours.shape == theirs.shape else ours.size
        equal(clause, f"elements of the output that differ, {what}, {mode}", differs, 0, example)


def fresh_start(clause: str, blocks: dict[str, Block], example: Example) -> None:
    """The blocks share nothing: what happens to one is not seen in the other."""
    (first, one), (second, two) = blocks.items()
    before = two.state()
    one.forward(INPUT, True)
    one.load({name: value + np.ones((), value.dtype) for name, value in one.state().items()})
    equal_entries(clause, f"state of {second} after {first} was changed", differing(two.state(), before), {}, example)


def frozen_layers(block: Block) -> None:
    """Switch every other layer to training, the block itself among them, and the rest to evaluation."""
    for number, name in enumerate(block.modes()):
        block.set_layer_mode(name, number % 2 == 0)


@pytest.mark.clause("7.1", "7.2", "7.3")
@by_norm
def test_entries(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Names and order, which entries are buffers, which train, and their types."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        block = subject.build(config.arguments())
        entries, example = block.entries(), Example.of(config)
        equal("7.1", "names of the state, in order", list(block.state()), list(config.state()), example)
        roles = {name: "buffer" if name in config.buffers() else "parameter" for name in config.state()}
        equal_entries("7.2", "roles", {name: entry.role for name, entry in entries.items()}, roles, example)
        trained = {name: entry.trainable for name, entry in entries.items()}
        equal_entries("7.2", "trainable", trained, {n: r == "parameter" for n, r in roles.items()}, example)
        missing = [name for name, entry in entries.items() if not entry.persistent]
        equal("7.2", "entries that are not part of the state", missing, [], example)
        dtypes = {name: entry.dtype for name, entry in entries.items()}
        due = {name: "int64" if name.endswith("num_batches_tracked") else "float32" for name in config.state()}
        equal_entries("7.3", "types", dtypes, due, example)


@pytest.mark.clause("7.10")
@by_norm
def test_load(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A loaded state is kept bit for bit, and gives the same outputs in every block that holds it."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        one, two = subject.build(config.arguments()), subject.build(config.arguments())
        state, example = other_state(config), Example.of(config)
        one.load(state)
        equal_entries("7.10", "entries that differ from the loaded state", differing(one.state(), state), {}, example)
        two.load(one.state())
        equal_entries("7.10", "entries that differ in the second block", differing(two.state(), state), {}, example)
        # By name: the order in which the entries come says nothing.
        other = subject.build(config.arguments())
        other.load(dict(reversed(state.items())))
        equal_entries("7.10", "entries that differ, loaded in reverse", differing(other.state(), state), {}, example)
        if "assign" in subject.features:
            plain = subject.build(config.arguments())
            plain.load_plain(state)
            what = "entries that differ, loaded from a dict of tensors, which has no _metadata"
            equal_entries("7.10", what, differing(plain.state(), state), {}, example)
        # One that declares itself tolerant has its outputs judged by 9.4.
        if "bitwise" in subject.features:
            equal_outputs("7.10", "two blocks of the same state", two, one, example, subject.modes)


@pytest.mark.clause("7.10")
@pytest.mark.needs("memory")
@by_norm
def test_load_from_another_block(subject: Subject, thin: Thin, normalizer: str) -> None:
    """The state of a block goes to another without a copy in between: neither trains the other behind that."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        one, two = subject.build(config.arguments()), subject.build(config.arguments())
        example = Example.of(config, note="two.load_state_dict(one.state_dict())")
        one.load(other_state(config))
        two.load_from(one)
        equal_entries(
            "7.10", "entries that differ in the second block", differing(two.state(), one.state()), {}, example
        )
        fresh_start("7.10", {"the first block": one, "the second one": two}, example)
        fresh_start("7.10", {"the second block": two, "the first one": one}, example)


@pytest.mark.clause("7.10")
@pytest.mark.needs("assign", "float64")
@by_norm
def test_load_in_the_place_of_its_own(subject: Subject, thin: Thin, normalizer: str) -> None:
    """The tensors of a state may take the place of the block's: calls compute with them, and train them."""
    for seed, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        for dtype in ("float32", "float64"):
            training = subject.modes[seed % len(subject.modes)]
            numeric = Numeric(config, (2, config.in_planes, 5, 6), seed=seed, training=training, dtype=dtype)
            state, block = numeric.state(), subject.build(config.arguments(), dtype=dtype)
            entries = block.entries()
            block.forward(numeric.x(), False)
            block.assign(state)
            example = numeric.script(["block.assign(case.state())", "y = block.forward(case.x(), case.training)"])
            equal_entries(
                "7.10", "entries that differ from those assigned", differing(block.state(), state), {}, example
            )
            equal_entries("7.10", "roles and types after that", block.entries(), entries, example)
            run, y = numeric.expected(), block.forward(numeric.x(), training)
            within("7.10", "the output behind an assigned state", y, run.y, example, run)
            after = block.state()
            for name in (name for name in config.buffers() if not name.endswith("num_batches_tracked")):
                what = f"{name} after a call behind an assigned state"
                within("7.10", what, after[name], run.stats[name], example, run, name)


@pytest.mark.clause("7.1", "7.10", "7.12", "7.13", "7.14", "7.15", "9.9")
@pytest.mark.needs("part", "assign", "copy", "serialize", "convert", "mode", "bfloat16")
@by_norm
def test_part_of_a_larger_model(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A model that holds the block has its state, loads, copies, converts and switches it."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        block, other, example = (
            subject.build(config.arguments()),
            subject.build(config.arguments()),
            Example.of(config, note=IN_A_MODEL),
        )
        whole, state = block.whole(), other_state(config)
        named = {f"module.{name}": value for name, value in state.items()}
        equal("7.1", "names of the state of the model, in order", list(whole.state()), list(named), example)
        block.forward(zeros((2, config.in_planes, 5, 6)), False)
        try:
            whole.load(named)
        except Refused as refusal:
            what = "loading the state of a model that holds the block"
            raise NonConformance("7.10", what, refusal.message, "no refusal", example) from refusal
        other.load(state)
        equal_entries("7.10", "entries that differ from the loaded state", differing(block.state(), state), {}, example)
        equal_outputs("7.10", "a block whose model was loaded and one that was loaded", block, other, example)
        for training in (False, True):
            whole.set_mode(training)
            wrong = [name for name, mode in block.modes().items() if mode != training]
            equal("7.15", f"layers that did not follow the model to training={training}", wrong, [], example)
        makes: dict[str, Callable[[], Block]] = {"7.12": whole.copy, "7.13": whole.serialized}
        for clause, make in makes.items():
            twin = twin_of(clause, make, example)
            equal_entries(clause, "entries that differ", differing(twin.state(), whole.state()), {}, example)
            equal_outputs(clause, "the model and its twin", twin, whole, example)
        numeric = Numeric(config, (2, 4, 5, 6), training=False)
        whole.assign({f"module.{name}": value for name, value in numeric.state().items()})
        run, y = numeric.expected(), block.forward(numeric.x(), False)
        assigned = numeric.script([ASSIGNED, "y = block.forward(case.x(), False)"])
        within("7.10", "the output of a block whose model was assigned a state", y, run.y, assigned, run)
        got = {name: entry.dtype for name, entry in whole.converted("float64").entries().items()}
        due = {name: "int64" if name.endswith("num_batches_tracked") else "float64" for name in named}
        equal_entries("7.14", "types after the model was converted to float64", got, due, example)
        low = whole.converted("bfloat16").result_dtype(INPUT, False)
        equal("9.9", "type of the output after the model was converted to bfloat16", low, "bfloat16", example)


@pytest.mark.clause("7.11")
@by_norm
def test_load_is_strict(subject: Subject, normalizer: str) -> None:
    """A missing, surplus or wrongly shaped entry is refused, whichever it is."""
    config = BlockConfig.of(4, 6, stride=2, normalizer=normalizer)
    state, example = other_state(config), Example.of(config)
    wrong: dict[str, dict[str, Array]] = {
        "one more entry": {**state, "conv4.0.weight": np.zeros((1,), np.float32)},
        "the entry of a layer that holds none": {**state, "conv1.9.weight": np.zeros((4,), np.float32)},
    }
    for name, value in state.items():
        wrong[f"{name} missing"] = {key: entry for key, entry in state.items() if key != name}
        wrong[f"{name} with one more axis"] = {**state, name: np.stack([value, value])}
        if value.ndim:
            wrong[f"{name} one shorter"] = {**state, name: value[:-1]}
            # What would fit if it were repeated, and what has as many elements.
            others = (value[:1], value.ravel()[0].reshape(()), value[np.newaxis], value.T, value.ravel())
            for other in (other for other in others if other.shape != value.shape):
                wrong[f"{name} of the shape {other.shape}"] = {**state, name: np.array(other)}
    # One block refuses them all: what a refused load leaves of it changes nothing of what is wrong with the next.
    loaded, assigned, part = (subject.build(config.arguments()) for _ in range(3))
    for what, entries in wrong.items():
        refused(["7.11"], f"loading a state with {what}", "state", example, loaded.load, entries)
        if "assign" in subject.features:
            refused(["7.11"], f"assigning a state with {what}", "state", example, assigned.assign, entries)
        if "part" in subject.features:
            named = {f"module.{name}": value for name, value in entries.items()}
            refused(["7.11"], f"loading a model's state with {what}", "state", example, part.whole().load, named)


@pytest.mark.clause("7.11")
@by_norm
def test_load_refuses_what_others_hold(subject: Subject, normalizer: str) -> None:
    """An entry that this block does not hold is refused, though another layer or another block has one like it."""
    kinds = [
        ({"activator": activator, "out_planes": planes}, order)
        for planes in (4, 6)
        for activator, order in zip(NAMED_VALUES["activator"], ("new", "old", "new"), strict=True)
    ]
    for arguments, order in kinds:
        config = BlockConfig.of(4, normalizer=normalizer, layer_order=order, **arguments)
        block, state = subject.build(config.arguments()), other_state(config)
        for name, value in surplus(config).items():
            what = f"loading a state with {name} of the shape {value.shape}"
            refused(["7.11"], what, "state", Example.of(config), block.load, {**state, name: value})


def surplus(config: BlockConfig) -> dict[str, Array]:
    """Every entry that a layer of a block of these channels could hold, and that none holds in this one."""
    entries: dict[str, Array] = {
        f"{branch}.{place}.{entry}": np.ones((planes,), np.float32)
        for branch, planes in (("conv1", 4), ("conv2", 4), ("conv3", config.out_planes), ("in_node", config.out_planes))
        for place in range(3)
        for entry in ("weight", "bias", "running_mean", "running_var")
    }
    entries |= {"in_node.0.weight": np.ones((config.out_planes, 4, 1, 1), np.float32)}
    entries |= {f"{branch}.0.num_batches_tracked": np.array(1) for branch in ("conv1", "conv2", "conv3", "in_node")}
    return {name: value for name, value in entries.items() if name not in config.state()}


@pytest.mark.clause("7.12")
@pytest.mark.needs("copy", "mode", "frozen")
@by_norm
def test_copy(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A copy has the same state, mode and outputs, and shares nothing."""
    judge_twin(subject, thin, normalizer, "7.12", lambda block: block.copy())


@pytest.mark.clause("7.13")
@pytest.mark.needs("serialize", "mode", "frozen")
@by_norm
def test_serialize(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A block that is serialized and read back has the same state, mode and outputs."""
    judge_twin(subject, thin, normalizer, "7.13", lambda block: block.serialized())


def twin_of(clause: str, make: Callable[[], Block], example: Example) -> Block:
    """A copy of a block, or one that was serialized and read back; one that cannot be made breaks the clause."""
    try:
        return make()
    except (Crashed, Refused) as error:
        words = error.error if isinstance(error, Crashed) else error.message + error.where
        raise NonConformance(clause, "its twin", words, "a block", example) from error


def judge_twin(subject: Subject, thin: Thin, normalizer: str, clause: str, make: Any) -> None:
    for _, config in thin(enumerated(normalizer=normalizer)):
        how = {"7.12": "block.copy()", "7.13": "block.serialized()"}[clause]
        shape = (2, config.in_planes, 5, 6)
        call = f"import numpy; block.forward(numpy.zeros({shape}, 'float32'), True)"
        example = scripted(config, "long_counted", f"block.load(state); {call}; twin = {how}")
        block = subject.build(config.arguments())
        block.load(long_counted(config))
        for training in (True, False):
            block.set_mode(training)
            # What a call leaves in the block must not hinder.
            block.forward(zeros(shape), training)
            twin = twin_of(clause, partial(make, block), example)
            equal_entries(clause, "modes of the layers", twin.modes(), block.modes(), example)
            one, two = twin.state(), block.state()
            equal_entries(clause, "entries that differ", bits(one, two), bits(two, one), example)
        frozen_layers(block)
        mixed = twin_of(clause, partial(make, block), example).modes()
        equal_entries(clause, "modes of the layers, which differ", mixed, block.modes(), example)
        block.set_mode(False)
        frozen = list(config.parameters())[::2]
        block.freeze(frozen)
        got = {
            name: entry.trainable for name, entry in twin_of(clause, partial(make, block), example).entries().items()
        }
        due = {name: entry.trainable for name, entry in block.entries().items()}
        equal_entries(clause, "trainable, of a block that is frozen in part", got, due, example)
        block.freeze([])
        equal_entries(clause, "roles and types", twin.entries(), block.entries(), example)
        equal_outputs(clause, "the block and its twin", twin, block, example)
        fresh_start(clause, {"the twin": twin, "the block": block}, example)
        fresh_start(clause, {"the block": block, "the twin": twin}, example)


@pytest.mark.clause("7.12", "7.13")
@pytest.mark.needs("convert", "copy", "serialize", "float64", "bfloat16")
@by_norm
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_twins_of_another_type(subject: Subject, normalizer: str, dtype: str) -> None:
    """A block of another type stays one; NumPy, through which a file may go, has no bfloat16."""
    config = BlockConfig.of(2, 3, normalizer=normalizer)
    block = subject.build(config.arguments()).converted(dtype)
    codes = {"7.12": "copy.deepcopy(block)", "7.13": "pickle.loads(pickle.dumps(block))"}
    makes: dict[str, Callable[[], Block]] = {"7.12": block.copy, "7.13": block.serialized}
    for clause, make in makes.items():
        example = Example(config.arguments(), f"block.to(torch.{dtype})\ntwin = {codes[clause]}")
        twin = twin_of(clause, make, example)
        equal_entries(clause, "roles and types", twin.entries(), block.entries(), example)
        equal_entries(clause, "entries that differ", differing(twin.state(), block.state()), {}, example)


def counters(block: Block) -> dict[str, Array]:
    return {name: value for name, value in block.state().items() if name.endswith("num_batches_tracked")}


@pytest.mark.clause("7.14")
@pytest.mark.needs("convert", "frozen")
@by_norm
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_convert(subject: Subject, thin: Thin, normalizer: str, dtype: str) -> None:
    """Every floating-point entry takes the new type, the counter stays an integer."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        block = subject.build(config.arguments())
        block.load(long_counted(config))
        example = Example.of(config)
        before = {name: entry.dtype for name, entry in block.entries().items()}
        block.freeze(list(config.parameters())[::2])
        converted, short = block.converted(dtype), block.converted(dtype, short=True)
        got_trained, trained = (
            {name: entry.trainable for name, entry in one.entries().items()} for one in (converted, block)
        )
        equal_entries("7.14", f"trainable after the conversion to {dtype}", got_trained, trained, example)
        got = {name: entry.dtype for name, entry in converted.entries().items()}
        due = {name: "int64" if name.endswith("num_batches_tracked") else dtype for name in config.state()}
        equal_entries("7.14", f"types after the conversion to {dtype}", got, due, example)
        got = {name: entry.dtype for name, entry in short.entries().items()}
        equal_entries("7.14", f"types after the method named for {dtype}", got, due, example)
        counted = counters(block)
        for one, how in ((converted, f"conversion to {dtype}"), (short, f"method named for {dtype}")):
            line = f"block.load(state); counted = block.converted({dtype!r}).state()"
            script = scripted(config, "long_counted", line)
            got, due = bits(counters(one), counted), bits(counted, counters(one))
            equal_entries("7.14", f"counters after the {how}", got, due, script)
        after = {name: entry.dtype for name, entry in block.entries().items()}
        equal_entries("7.14", "types of the block that was converted from", after, before, example)
        if dtype == "float64":
            exact = {
                name: value.astype(np.float64) if value.dtype == np.float32 else value
                for name, value in block.state().items()
            }
            equal_entries("7.14", "entries with another value", differing(converted.state(), exact), {}, example)
            # What is loaded in between, and is not what was there, is what comes back.
            state = {
                name: value if value.dtype == np.int64 else value / 2 for name, value in other_state(config).items()
            }
            converted.load({n: v if v.dtype == np.int64 else v.astype(np.float64) for n, v in state.items()})
            for form in (False, True):
                back = converted.converted("float32", short=form).state()
                what = "entries with another value on the way back"
                equal_entries("7.14", what, differing(back, state), {}, example)


@pytest.mark.clause("7.15")
@pytest.mark.needs("mode")
@by_norm
def test_modes(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A new block is in training; the switch reaches every layer, back and forth."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        block, example = subject.build(config.arguments()), Example.of(config)
        equal(
            "7.15", "layers of a new block in evaluation", [n for n, t in block.modes().items() if not t], [], example
        )
        for training, short in ((False, False), (True, False), (False, True), (True, True)):
            frozen_layers(block)
            itself = block.set_mode(training, short)
            how = ("train()" if training else "eval()") if short else f"training={training}"
            equal("7.15", f"the switch to {how} gives the block itself", itself, True, example)
            wrong = [name for name, mode in block.modes().items() if mode != training]
            equal("7.15", f"layers that did not follow to {how}", wrong, [], example)
            block.forward(zeros((2, config.in_planes, 5, 6)), training)
            wrong = [name for name, mode in block.modes().items() if mode != training]
            equal("7.15", f"layers that a call in training={training} switched", wrong, [], example)
        # In a block in training some layers are frozen; neither a call nor a refusal thaws them or freezes others.
        frozen_layers(block)
        before = block.modes()
        for planes in (config.in_planes, config.in_planes + 1):
            with contextlib.suppress(Refused):
                block.forward(zeros((2, planes, 5, 6)), True)
            wrong = [name for name, mode in block.modes().items() if mode != before[name]]
            equal("7.15", f"layers that a call with {planes} channels switched", wrong, [], example)


@pytest.mark.clause("7.15")
@pytest.mark.needs("mode", "frozen")
@by_norm
def test_modes_of_a_frozen_block(subject: Subject, thin: Thin, normalizer: str) -> None:
    """A switch leaves frozen what is frozen, and nothing else: who fine-tunes switches at every epoch."""
    for _, config in thin(enumerated(normalizer=normalizer)):
        block, example = subject.build(config.arguments()), Example.of(config)
        names = list(config.parameters())
        for frozen in (names[::2], names, []):
            block.freeze(frozen)
            due = {name: entry.trainable for name, entry in block.entries().items()}
            for training in (False, True):
                for short in (False, True):
                    block.set_mode(not training)
                    block.set_mode(training, short)
                    got = {name: entry.trainable for name, entry in block.entries().items()}
                    what = f"trainable behind the switch to training={training}, {len(frozen)} being frozen"
                    equal_entries("7.15", what, got, due, example)
                    wrong = [name for name, mode in block.modes().items() if mode != training]
                    what = f"layers that did not follow to training={training}, {len(frozen)} parameters being frozen"
                    lines = [f"for name in {frozen}: block.get_parameter(name).requires_grad_(False)"]
                    lines += [f"block.train({not training}).train({training})"]
                    equal("7.15", what, wrong, [], Example(config.arguments(), "\n".join(lines)))


@pytest.mark.clause("7.15")
@pytest.mark.needs("mode", "inference", "backward")
@by_norm
def test_calls_switch_nothing(subject: Subject, thin: Thin, normalizer: str) -> None:
    """Neither a call of inference nor one that is differentiated, and its backward pass."""
    for number, (_, config) in thin(enumerate(enumerated(normalizer=normalizer))):
        block, training = subject.build(config.arguments()), number // 2 % 2 == 0
        x = zeros((2, config.in_planes, 5, 6))
        block.set_mode(training)
        # Some layers in the other mode, as those are who freeze their statistics.
        frozen = list(block.modes())[1::2] if training else []
        for name in frozen:
            block.set_layer_mode(name, False)
        before = block.modes()
        if number % 2:
            what, code = "of inference", "with torch.inference_mode():\n    block(x)"
            block.inferred(x, training)
        else:
            what, code = "that is differentiated", "block(x).sum().backward()"
            block.backward(x, zeros(config.output_shape(x.shape)), training)
        wrong = [name for name, mode in block.modes().items() if mode != before[name]]
        lines = [f"x = torch.zeros({x.shape})", f"block.train({training})"]
        lines += [f"for name in {frozen}: block.get_submodule(name).eval()"] if frozen else []
        example = Example(config.arguments(), "\n".join([*lines, code]))
        equal("7.15", f"layers that a call {what} in training={training} switched", wrong, [], example)
