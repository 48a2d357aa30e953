"""Ports whose answers depend on what they were asked before, or on chance; see `hostile_ports`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from spec_tests.meta.honest_port import Port, Tensors
from spec_tests.subjects import wire
from spec_tests.subjects.base import Array


class KeepsState(Port):
    """The running statistics of the last call count, not those of the request."""

    def __init__(self, hello: dict[str, str]) -> None:
        super().__init__(hello)
        self.kept: dict[str, Array] = {}

    def call(self, header: wire.Header, given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        fits = {name: array for name, array in self.kept.items() if name in given and array.shape == given[name].shape}
        metadata, found = super().call(header, {**given, **fits})
        self.kept.update({name: array for name, (_, array) in found.items() if name.startswith("b.")})
        return metadata, found


class WrongCache(Port):
    """Forward results are kept by configuration and mode alone, as if the numbers did not matter."""

    def __init__(self, hello: dict[str, str]) -> None:
        super().__init__(hello)
        self.cache: dict[tuple[object, ...], tuple[dict[str, str], Tensors]] = {}

    def call(self, header: wire.Header, given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        shapes = tuple((name, array.shape) for name, array in given.items())
        key = (header.metadata["op"], header.metadata["mode"], header.metadata["cfg.activator"], *shapes)
        if key not in self.cache:
            self.cache[key] = super().call(header, given)
        return self.cache[key]


class AddsGradientsUp(Port):
    """Gradients are added to those of earlier requests, as in a framework where nobody sets them to zero."""

    def __init__(self, hello: dict[str, str]) -> None:
        super().__init__(hello)
        self.sums: dict[tuple[object, ...], Array] = {}

    def call(self, header: wire.Header, given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        metadata, found = super().call(header, given)
        for name, (dtype, array) in found.items():
            if name.startswith("d."):
                key = (name, dtype, array.shape)
                self.sums[key] = self.sums.get(key, np.zeros_like(array)) + array
                found[name] = (dtype, self.sums[key])
        return metadata, found


class WearsOut(Port):
    """Every call from the tenth on ends the process."""

    def __init__(self, hello: dict[str, str]) -> None:
        super().__init__(hello)
        self.calls = 0

    def call(self, header: wire.Header, given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        self.calls += 1
        if self.calls >= 10:
            os._exit(1)
        return super().call(header, given)


class HangsLater(Port):
    """The first process gives zeros, and every later one hangs in its first call."""

    def started(self) -> None:
        folder = Path(os.environ["MDNC_STARTED"])
        self.first = not any(folder.iterdir())
        (folder / str(os.getpid())).touch()

    def call(self, header: wire.Header, given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        if not self.first:
            time.sleep(3600)
        metadata, found = super().call(header, given)
        return metadata, {name: (dtype, np.zeros_like(array)) for name, (dtype, array) in found.items()}


class Guesses(Port):
    """Outputs are wrong, and by another number each time."""

    size = 1.0

    def __init__(self, hello: dict[str, str]) -> None:
        super().__init__(hello)
        self.rng = np.random.default_rng()

    def call(self, header: wire.Header, given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        metadata, found = super().call(header, given)
        if "y" in found:
            dtype, y = found["y"]
            found["y"] = (dtype, (y + 1 + self.size * self.rng.standard_normal(y.shape)).astype(y.dtype))
        return metadata, found


class GuessesClosely(Guesses):
    """Outputs are wrong by nearly the same each time."""

    size = 1e-6


class Flaky(Port):
    """Every other result is wrong, whatever was asked."""

    def __init__(self, hello: dict[str, str]) -> None:
        super().__init__(hello)
        self.calls = 0

    def call(self, header: wire.Header, given: dict[str, Array]) -> tuple[dict[str, str], Tensors]:
        metadata, found = super().call(header, given)
        self.calls += 1
        if "y" in found and self.calls % 2 == 0:
            found["y"] = (found["y"][0], found["y"][1] + np.float32(1.0))
        return metadata, found


REMEMBERING: dict[str, type[Port]] = {
    "keeps-state": KeepsState,
    "caches-wrongly": WrongCache,
    "adds-gradients-up": AddsGradientsUp,
    "wears-out": WearsOut,
    "hangs-later": HangsLater,
    "guesses": Guesses,
    "guesses-closely": GuessesClosely,
    "is-flaky": Flaky,
}
