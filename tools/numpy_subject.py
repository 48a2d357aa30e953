"""The functions of the NumPy port as a subject of this process, to be compared with the port behind its pipe."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spec_tests.config import BlockConfig, render_call
from spec_tests.subjects.base import Array, Block, Entry, Gradients, Refused, State, Subject
from spec_tests.subjects.port_block import texts

PORTS = Path(__file__).resolve().parents[1] / "spec_tests" / "ports" / "python"
SHORT = {"float32": "F32", "float64": "F64"}


class NumpyBlock(Block):
    """A block whose state is a mapping, as it is for a port."""

    def __init__(self, port: Any, arguments: Mapping[str, Any], dtype: str, seed: int) -> None:
        self.port, self.dtype, self.code = port, dtype, render_call(arguments)
        try:
            self.block = port.layers.Block.parse(texts(arguments))
        except port.layers.InvalidInput as error:
            raise Refused("", str(error)) from error
        found = port.numpy_port.init(self.block, seed)
        self._state = {name: np.array(value, None if "num" in name else dtype) for name, value in found.items()}

    def entries(self) -> dict[str, Entry]:
        return {
            name: Entry(value.shape, str(value.dtype), "parameter" if name in self.block.parameters else "buffer", True)
            for name, value in self._state.items()
        }

    def state(self) -> State:
        return State({name: value.copy() for name, value in self._state.items()}, self.code)

    def load(self, state: Mapping[str, Array]) -> None:
        self._state = {name: np.array(value) for name, value in state.items()}

    def _call(self, x: Array, training: bool | None) -> Any:
        mode, state = training is not False, self._state
        params, buffers = ({name: state[name] for name in of} for of in (self.block.parameters, self.block.buffers))
        try:
            self.block.output_shape(x.shape, mode)
        except self.port.layers.InvalidInput as error:
            raise Refused("", str(error)) from error
        return self.port.protocol.Call(self.block, SHORT[self.dtype], mode, x, params, buffers)

    def _keep(self, buffers: Mapping[str, Array]) -> None:
        self._state.update({name: np.asarray(value, self._state[name].dtype) for name, value in buffers.items()})

    def forward(self, x: Array, training: bool | None = None) -> Array:
        y, buffers = self.port.numpy_port.forward(self._call(x, training))
        self._keep(buffers)
        return np.asarray(y, self.dtype)

    def backward(self, x: Array, dy: Array, training: bool | None = None) -> Gradients:
        run = self.port.numpy_port.Run(self._call(x, training))
        dx = np.asarray(run.back(dy), self.dtype)
        self._keep(run.stats)
        return Gradients(dx, {name: np.asarray(value, self.dtype) for name, value in run.grads.items()})


class NumpySubject(Subject):
    """The port's own functions, without its pipe."""

    designator = "the NumPy port in this process"
    features = frozenset({"backward", "init", "seed", "train", "float64", "bitwise"})

    def __init__(self) -> None:
        sys.path.insert(0, str(PORTS))
        self.layers, self.protocol, self.numpy_port = map(importlib.import_module, ("layers", "protocol", "numpy_port"))
        np.seterr(all="ignore")

    def build(
        self,
        arguments: Mapping[str, Any],
        positional: Sequence[Any] = (),  # noqa: ARG002 -- as for a port, arguments have names
        seed: int | None = None,
        dtype: str = "float32",
    ) -> NumpyBlock:
        return NumpyBlock(self, {**BlockConfig.of(1, 1).arguments(), **arguments}, dtype, seed or 0)
