"""The interface between the chapters and whatever they judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Conduct(NamedTuple):
    """What was wrong, each with the request that showed it, if any; and the rules that were judged."""

    complaints: list[tuple[str, bytes]]
    judged: list[str]


class Apart(NamedTuple):
    """A request of which a fresh process gives another answer.

    Attributes:
        words: that it does, and in what.
        earlier: requests that change its answer when they come before it; none where that was not found.
    """

    words: str
    earlier: tuple[bytes, ...] = ()


class SubjectError(Exception):
    """The implementation under test could not be loaded or reached; nothing was judged."""


# The kinds of refusal that a clause may want (a TypeError, a ValueError, one of them, or one of a state that does not
# fit), and of which kind what comes may be; "" is that of a subject that cannot tell.
REFUSALS = {
    "type": ("type", "invalid_input", ""),
    "value": ("value", "invalid_input", ""),
    "": ("type", "value", "invalid_input", ""),
    "state": ("type", "value", "bad_request", ""),
}
# What begins the words of a port that ended, was too slow, or wrote what is no message.
PORT_FAILED = "the port failed: "
# How they are called.
IN_PROCESS = {
    "type": "a TypeError",
    "value": "a ValueError",
    "": "a TypeError or ValueError",
    "state": "an error that refuses it",
}


class Refused(Exception):
    """The subject refused its arguments or its input.

    `kind` is ``"type"`` or ``"value"``, of a port the code of its error, ``"invalid_input"`` or ``"bad_request"``, or
    empty; `where` is the place in its code that refused, as the end of a sentence, or empty. It is no part of the
    message, whose words are judged.
    """

    def __init__(self, kind: str, message: str, doing: str = "", where: str = "") -> None:
        self.kind, self.message, self.doing, self.where = kind, message, doing, where
        super().__init__(f"{doing}: refused: {message}" if doing else message)


class Crashed(Exception):
    """The subject raised an error that is no refusal; `clause` is the one that wanted a result, if that is known."""

    clause = ""

    def __init__(self, error: str, doing: str) -> None:
        self.error, self.doing = error, doing
        super().__init__(f"{doing}: {error}")


class AtOnce(BaseException):
    """Ends a test with `error`; no Exception, because Hypothesis would ask the subject again to shrink one."""

    def __init__(self, error: Crashed | SubjectError) -> None:
        self.error = error
        super().__init__(str(error))


@dataclass(frozen=True)
class Entry:
    """A parameter or buffer of a block: `role` is ``"parameter"`` or ``"buffer"``."""

    shape: tuple[int, ...]
    dtype: str
    role: str
    trainable: bool = False
    persistent: bool = True


class State(dict[str, Array]):
    """The entries of a state by name; to ask for one that it lacks is a fault of the subject, not of who asks."""

    def __init__(self, entries: Mapping[str, Array], doing: str) -> None:
        super().__init__(entries)
        self.doing = doing

    def __missing__(self, name: str) -> Array:
        raise Crashed(f"the state has no entry {name!r}", self.doing)

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise Crashed unless it has all these entries, of these shapes."""
        for name, shape in shapes.items():
            if self[name].shape != shape:
                told = f"the entry {name!r} of the state has the shape {self[name].shape}; due is {shape}"
                raise Crashed(told, self.doing)


@dataclass(frozen=True)
class Gradients:
    """`dx` has the shape of the input; `params` has the gradient of every parameter that received one.

    `y` is the output of the forward call, where the subject has the feature ``"output"``.
    """

    dx: Array
    params: dict[str, Array]
    y: Array | None = None

    @property
    def output(self) -> Array:
        """`y`. Raises TypeError if there is none, which is no fault of the block."""
        if self.y is None:
            raise TypeError("the subject declares the feature output, and gives none")
        return self.y


class Block(ABC):
    """One block that the subject built. Arrays go in and come out as NumPy arrays.

    NumPy has no bfloat16: its numbers travel as float32, which holds each of them exactly.
    """

    @abstractmethod
    def entries(self) -> dict[str, Entry]:
        """Every parameter and buffer by name, in the order of the state."""

    @abstractmethod
    def forward(self, x: Array, training: bool | None = None) -> Array:
        """The output for `x` (N, C, H, W), in the given mode, or in the first that the subject has.

        Raises:
            Refused: the block refuses the input.
            Crashed: anything else went wrong.
        """

    @abstractmethod
    def state(self) -> State:
        """Copies of all entries of the state, in its order."""

    @abstractmethod
    def load(self, state: Mapping[str, Array]) -> None:
        """Replace the state, strictly. Raises Refused if it does not fit."""

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the output for an input of `shape`. Raises Refused and Crashed as `forward` does."""
        return self.forward(zeros(shape)).shape

    def result_dtype(self, x: Array, training: bool | None = None, differentiated: bool = False) -> str:  # noqa: ARG002
        """The type of the output for `x`, also of a call that is to be differentiated."""
        return str(self.forward(x, training).dtype)

    # What follows exists for subjects that declare the feature that is named.

    def backward(self, x: Array, dy: Array, training: bool | None = None) -> Gradients:
        """The gradients of sum(dy * y) of one forward call and one backward pass (feature ``"backward"``).

        Raises:
            Refused: the block refuses the input.
            Crashed: anything else went wrong.
        """
        raise NotImplementedError

    def parameter_gradients(
        self, x: Array, dy: Array, training: bool | None = None, wanted: Collection[str] | None = None
    ) -> dict[str, Array]:
        """As `backward`, for an `x` of which no gradient is wanted (feature ``"constant_input"``).

        With `wanted`, of these parameters alone (feature ``"frozen"``).
        """
        raise NotImplementedError

    def partial_gradients(self, x: Array, dy: Array, training: bool | None, wanted: Collection[str]) -> Gradients:
        """As `backward`, with gradients wanted of x and of these parameters alone (feature ``"frozen"``)."""
        raise NotImplementedError

    def freeze(self, names: Collection[str]) -> None:
        """Let these parameters, and no others, be trained no more (feature ``"frozen"``)."""
        raise NotImplementedError

    def accumulated(self, calls: Sequence[tuple[Array, Array]], training: bool) -> dict[str, Array]:
        """What the parameters received in several backward passes, each of (x, dy) (feature ``"accumulate"``)."""
        raise NotImplementedError

    def deferred(self, calls: Sequence[tuple[Array, Array]], training: bool) -> list[Gradients]:
        """The gradients of several forward calls, each of (x, dy) (feature ``"deferred"``).

        All backward passes come behind the last of the calls and behind one like the first of which nothing is
        differentiated, in the other mode; that of the first call comes again at the end. The inputs are outputs of a
        layer before the block, and the parameters have received gradients before.
        """
        raise NotImplementedError

    def aliases(self, x: Array, training: bool | None = None) -> list[str]:
        """What the output for `x` shares memory with (feature ``"memory"``).

        ``"x"``, names of entries, or ``"the output of a later call"``.
        """
        raise NotImplementedError

    def overwrite(self, state: Mapping[str, Array]) -> None:
        """Write a state into the memory of the block's own, as an optimizer does (feature ``"overwrite"``)."""
        raise NotImplementedError

    def refilled(self, xs: Sequence[Array], training: bool | None = None) -> list[Array]:
        """The outputs for arrays of one shape, each written into one tensor in turn (feature ``"overwrite"``)."""
        raise NotImplementedError

    def load_from(self, other: Block) -> None:
        """Load the state that the other block gives, its very tensors (feature ``"memory"``)."""
        raise NotImplementedError

    def marks(self, x: Array, training: bool | None = None) -> tuple[str, str]:
        """What the tensor of `x` tells beside its values, before and behind calls with it (feature ``"memory"``)."""
        raise NotImplementedError

    def load_plain(self, state: Mapping[str, Array], make: Callable[[Any], Mapping[str, Any]] = dict) -> State:
        """As `load`, of a mapping of names to tensors and nothing else, as files of other kinds give (``"assign"``).

        `make` makes it of a dict. What it holds behind that is given back.
        """
        raise NotImplementedError

    def assign(self, state: Mapping[str, Array]) -> None:
        """Put the tensors of a state in the place of the block's own (feature ``"assign"``).

        They lie as parts of one memory, as those of a file that is mapped do, with gaps, and convolution weights with
        their axes in another order. Raises Refused if the state does not fit.
        """
        raise NotImplementedError

    def functional(self, state: Mapping[str, Array], x: Array, training: bool | None = None) -> Array:
        """As `forward`, of the block with another state, which it does not keep (feature ``"functional"``)."""
        raise NotImplementedError

    def inferred(self, x: Array, training: bool | None = None) -> Array:
        """As `forward`, where the framework is told that nothing will be differentiated (feature ``"inference"``)."""
        raise NotImplementedError

    def recorded(self, x: Array, training: bool | None = None) -> Array:
        """As `forward`, where the framework keeps what a backward pass needs, and none follows (``"inference"``)."""
        raise NotImplementedError

    def rearranged(self) -> Block:
        """A copy whose convolution weights lie in memory with the channels last (feature ``"layout"``)."""
        raise NotImplementedError

    def whole(self, name: str = "module") -> Block:
        """A larger model that holds this block, and nothing else (feature ``"part"``).

        It names the block's entries and layers behind `name` and a dot; a dot within `name` makes a model in a model.
        """
        raise NotImplementedError

    def copy(self) -> Block:
        """An independent copy (feature ``"copy"``)."""
        raise NotImplementedError

    def serialized(self) -> Block:
        """The block after it was serialized and read back (feature ``"serialize"``)."""
        raise NotImplementedError

    def converted(self, dtype: str, short: bool = False) -> Block:
        """A copy whose floating-point entries have another type (feature ``"convert"``).

        With `short`, by the form that is named for the type.
        """
        raise NotImplementedError

    def modes(self) -> dict[str, bool]:
        """Whether each layer is in training; the block itself is ``""`` (feature ``"mode"``)."""
        raise NotImplementedError

    def set_mode(self, training: bool, short: bool = False) -> bool:
        """Switch between training and evaluation; whether that gives the block itself (feature ``"mode"``).

        With `short`, by the form that takes no argument.
        """
        raise NotImplementedError

    def set_layer_mode(self, name: str, training: bool) -> None:
        """Switch one layer, as those do who freeze its statistics (feature ``"mode"``)."""
        raise NotImplementedError

    def memory(self) -> dict[str, tuple[int, int]]:
        """First address and number of bytes of each entry (feature ``"memory"``)."""
        raise NotImplementedError

    def summary(self, shape: Sequence[int]) -> str:
        """The table of torchsummary for one input of `shape` (C, H, W) (feature ``"summary"``)."""
        raise NotImplementedError


class Subject(ABC):
    """The implementation under test.

    Attributes:
        designator: how the user named it.
        features: what it can do beyond building, describing and running a block in evaluation.
        absent: features that nobody can miss in a subject of this kind.
        given: clauses that hold by the way in which a subject of this kind is asked.
        modes: those that it has, training (True) first.
        arithmetic: what it does with float32 numbers, ``"float32"`` or ``"tf32"``.
        compiles: whether every new shape costs it a compilation.
        refusal: how each kind of refusal is called, for messages.
        device: where it computes, if the suite chooses that: ``"cpu"``, or a name of torch's.
    """

    designator: str
    features: frozenset[str]
    absent: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    modes: tuple[bool, ...] = (True, False)
    arithmetic: str = "float32"
    compiles: bool = False
    refusal: Mapping[str, str] = MappingProxyType(IN_PROCESS)
    device: str = "cpu"

    @abstractmethod
    def build(
        self,
        arguments: Mapping[str, Any],
        positional: Sequence[Any] = (),
        seed: int | None = None,
        dtype: str = "float32",
    ) -> Block:
        """Build a block; `seed` (feature ``"seed"``) makes its initial parameters repeatable.

        `dtype` is the type of its floating-point entries and of its inputs; any but float32 is a feature.

        Raises:
            Refused: the subject refuses the arguments.
            Crashed: anything else went wrong.
        """

    def expressible(self, arguments: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whether these arguments, right or wrong, can be said to the subject at all."""
        return True

    def further_arguments(self) -> dict[str, Any]:
        """What the constructor says to take beyond the ten arguments, by name, each with its default or None."""
        return {}

    def spelled(self, value: Any) -> str:
        """An argument's value as a message of the subject would write it."""
        return repr(value)

    def begin_test(self) -> None:  # noqa: B027 -- most subjects have nothing to do
        """The plugin calls this before each test."""

    def restart(self) -> bool:
        """Forget all earlier calls, as a new process does; False if that cannot be had."""
        return False

    def conduct(self) -> Conduct:
        """Try what no call of a block leads to."""
        return Conduct([], [])

    def close(self) -> list[str]:
        """End the subject; return what was wrong with how it ended."""
        return []

    def last_request(self) -> bytes:
        """What can be replayed of the last call, as a message of PROTOCOL.md; empty if nothing can."""
        return b""

    def asked_alone(self) -> Apart | None:
        """Make the last call without those before it; None if that changes nothing, or cannot be had."""
        return None


def zeros(shape: Sequence[int]) -> Array:
    """A float32 input of zeros, for where only shapes matter."""
    return np.zeros(tuple(shape), np.float32)
