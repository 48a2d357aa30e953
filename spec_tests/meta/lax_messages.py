"""More ports that answer every call rightly, and one odd message wrongly; see `lax_ports`."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import BinaryIO

import numpy as np

from spec_tests.config import BlockConfig
from spec_tests.due import LARGEST_SEED
from spec_tests.meta.honest_port import Port, block
from spec_tests.meta.lax_base import KNOWN, Answers, before, refused
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array

LAX: dict[str, type[Port]] = {}
INHERITED = ("constructor", "toString")


def rewrites(keys: Iterable[str], read: Callable[[str], str], *but: str) -> type[Port]:
    """A port that reads these keys so, in all ops `but` these; what cannot be read so it reads as it should."""

    def tried(text: str) -> str:
        try:
            return read(text)
        except ValueError:
            return text

    def check(header: wire.Header, _given: object) -> None:
        if header.metadata["op"] not in but:
            header.metadata.update({key: tried(header.metadata[key]) for key in keys if key in header.metadata})

    return before(check)


def loosely(text: str) -> str:
    """An integer or a pair, read by what a library has for it."""
    return text.replace(" ", "") if text.startswith("[") else str(int(text, 0))


LAX["reads-out-planes-with-int"] = rewrites(["cfg.out_planes"], lambda text: str(int(text)))
for name in ("stride", "padding", "output_size"):
    LAX[f"reads-{name}-loosely"] = rewrites([f"cfg.{name}"], loosely)
LAX["strips-null"] = rewrites(["cfg.output_size"], lambda text: "null" if text.strip() == "null" else text)
LAX["has-inherited-names"] = rewrites(["cfg.normalizer"], lambda text: "batch" if text in INHERITED else text)
LAX["checks-arguments-in-describe"] = rewrites(
    ["cfg.in_planes", "cfg.padding"], lambda text: str(abs(int(text))), "describe"
)
LAX["numbers-its-modes"] = rewrites(["mode"], lambda text: ["train", "eval"][int(text)])
LAX["numbers-its-types"] = rewrites(["dtype"], lambda text: ["F32", "F64"][int(text)])
LAX["strips-modes"] = rewrites(["mode"], str.strip)
LAX["strips-types"] = rewrites(["dtype"], str.strip)
LAX["takes-beginnings-of-modes"] = rewrites(["mode"], lambda text: text[:4] if text.startswith("eval") else text)
LAX["has-inherited-modes"] = rewrites(["mode"], lambda text: "eval" if text in INHERITED else text)
LAX["has-inherited-types"] = rewrites(["dtype"], lambda text: "F32" if text in INHERITED else text)
LAX["has-inherited-ops"] = rewrites(["op"], lambda text: "hello" if text in INHERITED else text)


def axes(text: str) -> str:
    return "[" + ",".join(str(int(part)) for part in text[1:-1].split(",") if part.strip()) + "]"


LAX["reads-shapes-with-int"] = rewrites(["shape"], axes)
LAX["reads-seeds-with-float"] = rewrites(["seed"], lambda text: str(int(float(text))) if "e" in text else text)
LAX["reads-seeds-with-int"] = rewrites(["seed"], lambda text: str(int(re.sub(r"[L_]|\.0$", "", text))))


def of_seeds(change: Callable[[int], int]) -> type[Port]:
    """A port that keeps this of a seed."""

    def read(text: str) -> str:
        right = re.fullmatch("0|[1-9][0-9]*", text) and int(text) <= LARGEST_SEED
        return str(change(int(text))) if right else text

    return rewrites(["seed"], read)


LAX["keeps-float64-of-a-seed"] = of_seeds(lambda seed: min(int(float(seed)), LARGEST_SEED))
LAX["keeps-32-bits-of-a-seed"] = of_seeds(lambda seed: seed % 2**32)
LAX["keeps-62-bits-of-a-seed"] = of_seeds(lambda seed: seed % 2**62)
LAX["keeps-a-remainder-of-a-seed"] = of_seeds(lambda seed: seed % 65521)
LAX["keeps-the-last-digits-of-a-seed"] = of_seeds(lambda seed: seed % 10**9)
LAX["has-seeds-of-its-own"] = of_seeds(lambda seed: seed ^ os.getpid())


def wrapped(bits: int) -> Callable[[str], str]:
    """Each integer in a text as so many bits hold it, without a sign."""
    return lambda text: re.sub("[1-9][0-9]{4,}", lambda found: str(int(found[0]) % 2**bits), text)


NUMBERS = ("in_planes", "out_planes", "kernel_size", "stride", "padding", "output_size")
for name in ("in_planes", "kernel_size", "stride", "padding", "output_size"):
    LAX[f"wraps-{name}"] = rewrites([f"cfg.{name}"], wrapped(32))
LAX["wraps-channels-at-31-bits"] = rewrites(["cfg.in_planes", "cfg.out_planes"], wrapped(31))
LAX["wraps-shapes"] = rewrites(["shape"], wrapped(32))


class WrapsSizes(Port):
    """Sizes are multiplied in 32 bits."""

    bits = 32

    def taken(
        self, config: BlockConfig, shape: tuple[int, ...], training: bool, header: wire.Header
    ) -> tuple[int, ...]:
        return tuple(n % 2**self.bits for n in super().taken(config, shape, training, header))


def has_32_bits(code: str) -> type[Port]:
    """A port that answers so where an integer needs more than 31 bits."""

    def check(header: wire.Header, _given: object) -> None:
        keys = ("shape", *(f"cfg.{name}" for name in NUMBERS))
        written = [header.metadata.get(key, "") for key in keys]
        right = all(re.fullmatch(r"|null|[0-9]+|\[[0-9]+(,[0-9]+)*\]", text) for text in written)
        if right and any(int(found) >= 2**31 for text in written for found in re.findall("[0-9]+", text)):
            raise refused(code, "a number of more than 31 bits")

    return before(check)


class WrapsLargeSizes(WrapsSizes):
    bits = 64


LAX |= {"wraps-sizes-at-64-bits": WrapsLargeSizes}
LAX |= {"wraps-sizes": WrapsSizes, "takes-no-wide-numbers": has_32_bits("invalid_input")}
# Not lax: PROTOCOL.md allows it.
LEGAL: dict[str, type[Port]] = {"has-no-memory-for-wide-numbers": has_32_bits("oom")}


def default_mode(header: wire.Header, _given: object) -> None:
    if header.metadata["op"] == "backward" and not header.metadata.get("mode"):
        header.metadata["mode"] = "eval"


def refuses_negative_axes(header: wire.Header, _given: object) -> None:
    if "-" in header.metadata.get("shape", ""):
        raise refused("invalid_input")


def keys_that_end_alike(header: wire.Header, _given: object) -> None:
    """As a search for `mode":"` finds them."""
    if "mode" in header.metadata:
        header.metadata["mode"] = next(value for key, value in header.metadata.items() if key.endswith("mode"))


def values_like_keys(header: wire.Header, _given: object) -> None:
    """As a search for `"mode"` finds them."""
    if "mode" in header.metadata.values():
        header.metadata["mode"] = ""


def no_new_keys(header: wire.Header, _given: object) -> None:
    if header.metadata["op"] in ("init", "backward") and set(header.metadata) - KNOWN:
        raise refused("invalid_input")


def x_comes_first(header: wire.Header, given: dict[str, Array]) -> None:
    if header.metadata["op"] == "backward" and next(iter(given), "x") != "x":
        given.clear()


class AddsUp(Port):
    """The gradients of a request that comes again at once are those of both."""

    def __init__(self, hello: dict[str, str]) -> None:
        super().__init__(hello)
        self.last: tuple[object, ...] = ()

    def answer(self, header: wire.Header, given: dict[str, Array]) -> Answers:
        metadata, found = super().answer(header, given)
        what = (*header.metadata.items(), *((name, array.tobytes()) for name, array in given.items()))
        key = tuple(item for item in what if item[0] != "id")
        if key == self.last:
            found = {n: (dtype, 2 * array if n.startswith("d.") else array) for n, (dtype, array) in found.items()}
        self.last = key
        return metadata, found


class Tires(Port):
    """The second `init` of a seed of 3 fails."""

    def __init__(self, hello: dict[str, str]) -> None:
        super().__init__(hello)
        self.made = 0

    def answer(self, header: wire.Header, given: dict[str, Array]) -> Answers:
        self.made += header.metadata["op"] == "init" and header.metadata.get("seed") == "3"
        if self.made == 2:
            self.made += 1
            return refused("internal", "again?").metadata, {}
        return super().answer(header, given)


LAX |= {
    "adds-up-what-comes-twice": AddsUp,
    "tires": Tires,
    "has-a-default-mode-on-the-way-back": before(default_mode),
    "refuses-negative-axes": before(refuses_negative_axes),
    "finds-keys-that-end-alike": before(keys_that_end_alike),
    "finds-values-like-keys": before(values_like_keys),
    "takes-no-new-keys-on-the-way-back": before(no_new_keys),
    "needs-x-first": before(x_comes_first),
}


# ------------------------------------------------------------------ tensors


def due_shapes(header: wire.Header) -> dict[str, tuple[int, ...]]:
    return block(tuple((k, v) for k, v in header.metadata.items() if k.startswith("cfg."))).state()


def give(header: wire.Header, given: dict[str, Array], name: str, dtype: str, array: Array) -> None:
    given[name] = array
    header.tensors[name] = wire.Tensor(dtype, array.shape, 0, 0)


def in_order(*ends: str) -> type[Port]:
    """Beside batch norms, of the tensors whose names end so each is taken for the one that is due at its place."""

    def check(header: wire.Header, given: dict[str, Array]) -> None:
        for end in ends if header.metadata["op"] in ("forward", "backward") else ():
            due = [f"{kind}.{n}" for n in due_shapes(header) for kind in "pb" if f"{kind}.{n}".endswith(end)]
            came, due = [n for n in given if n in due], [n for n in due if n in given]
            if len({given[n].shape for n in came}) == 1 and any(n.startswith("b.") for n in given):
                given |= dict(zip(due, [given[n] for n in came], strict=True))

    return before(check)


LAX["takes-statistics-as-they-come"] = in_order("running_mean", "running_var", "num_batches_tracked")
LAX["takes-shifts-as-they-come"] = in_order("bias")


def counters_of_one(header: wire.Header, given: dict[str, Array]) -> None:
    for name in [n for n in given if n.endswith("num_batches_tracked") and given[n].shape == (1,)]:
        give(header, given, name, "I64", given[name].reshape(()))


def converts(*dtypes: str) -> type[Port]:
    """Takes parameters of these types."""

    def check(header: wire.Header, given: dict[str, Array]) -> None:
        for name in [n for n in given if n.startswith("p.") and header.tensors[n].dtype in dtypes]:
            if header.tensors["x"].dtype == "F32":
                give(header, given, name, "F32", given[name].astype(np.float32))

    return before(check)


def leaves_out(name: str, op: str) -> type[Port]:
    def check(header: wire.Header, given: dict[str, Array]) -> None:
        if header.metadata["op"] == op and name in given:
            del given[name], header.tensors[name]

    return before(check)


def adds_zeros(header: wire.Header, given: dict[str, Array]) -> None:
    for name, shape in due_shapes(header).items() if header.metadata["op"] == "backward" else ():
        if shape and f"b.{name}" not in given and f"p.{name}" not in given:
            give(header, given, f"p.{name}", "F32", np.zeros(shape, np.float32))


def takes_integers(header: wire.Header, given: dict[str, Array]) -> None:
    if header.metadata["op"] == "backward" and header.tensors["x"].dtype == "I64":
        give(header, given, "x", "F32", given["x"].astype(np.float32))


class InitsInFloat32(Port):
    def init(self, header: wire.Header, given: dict[str, Array]) -> Answers:
        metadata, found = super().init(header, given)
        return metadata, {n: ("F32", a.astype("f4")) if d == "F64" else (d, a) for n, (d, a) in found.items()}


class CountsInFloats(Port):
    def init(self, header: wire.Header, given: dict[str, Array]) -> Answers:
        metadata, found = super().init(header, given)
        return metadata, {n: ("F32", a.astype("f4")) if d == "I64" else (d, a) for n, (d, a) in found.items()}


LAX |= {
    "takes-counters-of-one-element": before(counters_of_one),
    "converts-integers": converts("I64"),
    "converts-booleans": converts("BOOL"),
    "converts-numbers": converts("F64"),
    "ignores-constructor": leaves_out("constructor", "forward"),
    "ignores-d-x": leaves_out("d.x", "backward"),
    "has-zeros-for-what-is-missing": before(adds_zeros),
    "takes-integers-on-the-way-back": before(takes_integers),
    "inits-in-float32": InitsInFloat32,
    "counts-in-floats": CountsInFloats,
}

# ------------------------------------------------------------------ bytes


class Source:
    """The input of a port, with a say in each read."""

    def __init__(self, source: BinaryIO, look: Callable[[int, bytes], bytes]) -> None:
        self.source, self.look, self.reads = source, look, 0

    def read(self, length: int) -> bytes:
        data = self.source.read(length)
        # Three reads a message: length, header, tensors.
        self.reads += 1
        return self.look((self.reads - 1) % 3, data) if length else data


def looks(look: Callable[[int, bytes], bytes]) -> type[Port]:
    class Looks(Port):
        def serve(self, source: BinaryIO, target: BinaryIO) -> None:
            super().serve(Source(source, look), target)  # type: ignore[arg-type]

    return Looks


def small_buffer(part: int, data: bytes) -> bytes:
    if part == 1 and len(data) > 8192:
        sys.exit("the header is too long")
    return data


def ends_well(where: int) -> type[Port]:
    """Takes nothing where this part of a message is due for the end of the input."""

    def look(part: int, data: bytes) -> bytes:
        if part == where and not data:
            os._exit(0)
        return data

    return looks(look)


def no_room(part: int, data: bytes) -> bytes:
    if part == 2 and len(data) > 300_000:
        sys.exit("the tensors are too large")
    return data


class LosesTheRest(Port):
    """Of an output more than 64 KiB are not written."""

    def call(self, header: wire.Header, given: dict[str, Array]) -> Answers:
        metadata, found = super().call(header, given)
        for _, array in found.values():
            array.reshape(-1)[16384:] = 0
        return metadata, found


class LeavesTensors(Port):
    """Of an op that it does not know it does not read the tensors."""

    def serve(self, source: BinaryIO, target: BinaryIO) -> None:
        known = (*self.ops, "stop")

        class Reads:
            def __init__(self) -> None:
                self.part, self.left = 0, False

            def read(self, length: int) -> bytes:
                part, self.part = self.part, (self.part + 1) % 3
                if part == 2 and self.left:
                    return bytes(length)
                data = source.read(length)
                if part == 1:
                    self.left = json.loads(data)["__metadata__"]["op"] not in known
                return data

        super().serve(Reads(), target)  # type: ignore[arg-type]


class SaysBye(Port):
    def serve(self, source: BinaryIO, target: BinaryIO) -> None:
        self.target = target
        super().serve(source, target)

    def stopped(self) -> None:
        self.target.write(b"bye\n")
        self.target.flush()
        super().stopped()


LAX |= {
    "has-a-small-buffer": looks(small_buffer),
    "has-a-small-buffer-for-tensors": looks(no_room),
    "loses-the-rest-of-an-output": LosesTheRest,
    "ends-well-behind-a-length": ends_well(1),
    "ends-well-behind-a-header": ends_well(2),
    "leaves-tensors-of-unknown-ops": LeavesTensors,
    "says-bye": SaysBye,
}
