"""A subject that computes by the oracle under any rules, rounded to float32: a wrong block of a known kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spec_tests.config import BlockConfig
from spec_tests.oracle import Forward, NotApplicable, Rules, forward, vjp
from spec_tests.subjects.base import Array, Block, Entry, Gradients, Refused, State, Subject


class RuleBlock(Block):
    def __init__(self, config: BlockConfig, rules: Rules) -> None:
        self.config, self.rules = config, rules
        self._state: dict[str, Array] = {}

    def entries(self) -> dict[str, Entry]:
        raise NotImplementedError

    def state(self) -> State:
        return State({name: value.copy() for name, value in self._state.items()}, "a block by other rules")

    def load(self, state: Mapping[str, Array]) -> None:
        self._state = {name: np.array(value) for name, value in state.items()}

    def _run(self, x: Array, training: bool | None) -> Forward:
        try:
            return forward(self.config, self._state, x, training=training is not False, rules=self.rules)
        except NotApplicable:
            # Where the rules say nothing, it does as the specification says.
            return forward(self.config, self._state, x, training=training is not False)
        except ValueError as error:
            raise Refused("value", str(error)) from error

    def forward(self, x: Array, training: bool | None = None) -> Array:
        run = self._run(x, training)
        self._state.update({name: b.value.astype(self._state[name].dtype) for name, b in run.stats.items()})
        return run.y.value.astype(np.float32)

    def backward(self, x: Array, dy: Array, training: bool | None = None) -> Gradients:
        found = vjp(self._run(x, training), dy)
        return Gradients(
            found.dx.value.astype(np.float32), {name: b.value.astype(np.float32) for name, b in found.params.items()}
        )


class RuleSubject(Subject):
    """`rules` for every block."""

    designator, features = "rules", frozenset({"backward", "train"})

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def build(
        self,
        arguments: Mapping[str, Any],
        positional: Sequence[Any] = (),  # noqa: ARG002
        seed: int | None = None,  # noqa: ARG002
        dtype: str = "float32",  # noqa: ARG002
    ) -> RuleBlock:
        return RuleBlock(BlockConfig.of(**arguments), self.rules)
