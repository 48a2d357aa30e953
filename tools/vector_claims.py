"""Which clauses a test vector can show the violation of: wrong results are computed, and must lie far outside.

Most wrong results are those of the oracle under `Rules` with one decision changed; the rest are made here. A clause
is claimed if every wrong result that stands for it is refused, or of the alternatives of `Rules` at least one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np

from spec_tests.clauses import sort_key
from spec_tests.config import BlockConfig
from spec_tests.generators import representable
from spec_tests.oracle import SPEC, Bounded, Forward, NotApplicable, Rules, alternatives, forward, judge, vjp
from spec_tests.oracle.alternatives import axes
from spec_tests.oracle.plan import changes_nothing
from tools.vector_cases import Case
from tools.vector_numbers import Array, draw_state

Results = Mapping[str, Array]
Make = Callable[[Case, Mapping[str, Array]], dict[str, Bounded]]

FAR = 2.0
"""A wrong result is refused for certain if an element lies twice as far off as its bound allows."""
_CLAUSE_OF = {item.name: str(item.metadata["clause"]) for item in fields(Rules)}


def refused(wrong: Results, right: Mapping[str, Bounded]) -> bool:
    """Whether an element lies far outside; the NaN that is due and missing does."""
    return any(judge(wrong[name], right[name]).ratio >= FAR for name in wrong)


def claims(case: Case, inputs: Mapping[str, Array], right: Mapping[str, Bounded], make: Make) -> list[str]:
    """The clauses, in their order; `right` are the results of `make`."""
    call = _Call(case, inputs, right, make)
    found = {clause for clause, wrong in call.by_rules() if refused(wrong, right)}
    found |= {clause for clause, wrong in call.by_hand().items() if wrong and all(refused(w, right) for w in wrong)}
    if call.gradients and found:
        # Whoever looks at x, dy and the parameters after the call has them here to compare with.
        found.add("5.11")
    return sorted(found, key=sort_key)


@cache
def _wrong_rules() -> tuple[tuple[str, Any, Rules], ...]:
    return tuple(alternatives())


def _values(results: Mapping[str, Bounded]) -> dict[str, Array]:
    """What an implementation in float32 would give."""
    with np.errstate(all="ignore"):
        return {name: representable(bounded.value, "float32") for name, bounded in results.items()}


class _Call:
    def __init__(self, case: Case, inputs: Mapping[str, Array], right: Mapping[str, Bounded], make: Make) -> None:
        self.case, self.config, self.inputs, self.right, self.make = case, case.config, inputs, right, make
        self.gradients = [name for name in right if name == "dx" or name.startswith("d.")]
        self.state = {n.partition(".")[2]: value for n, value in inputs.items() if n.startswith(("p.", "b."))}
        self.plain = _values(right)

    def run(self, rules: Rules = SPEC, config: BlockConfig | None = None, training: bool | None = None) -> Forward:
        mode = self.case.training if training is None else training
        return forward(config or self.config, self.state, self.inputs["x"], training=mode, rules=rules)

    def by_rules(self) -> Iterator[tuple[str, Results]]:
        """Each clause with the results of a wrong rule."""
        if self.case.spoil is not None:
            return
        seen: set[str] = set()
        for name, value, rules in _wrong_rules():
            clauses = [_CLAUSE_OF[name]]
            if name in ("shortcut_norm", "shortcut_interpolation") and self.config.scaler == "up":
                clauses.append("4.20")
            if name == "momentum" and value is None:
                clauses = ["6.6"]
            if seen.issuperset(clauses):
                continue
            try:
                if changes_nothing(self.config, rules):
                    continue
                wrong = self._under(rules)
            except NotApplicable:
                continue
            for clause in clauses:
                yield clause, wrong
            if refused(wrong, self.right):
                seen.update(clauses)

    def _under(self, rules: Rules) -> Results:
        run = self.run(rules)
        found = {"y": run.y} | {f"new.b.{name}": bounded for name, bounded in run.stats.items()}
        if self.gradients:
            found |= self._gradients(run)
        return _values({name: found[name] for name in self.right})

    def _gradients(self, run: Forward) -> dict[str, Bounded]:
        back = vjp(run, self.inputs["dy"])
        return {"dx": back.dx} | {f"d.{name}": bounded for name, bounded in back.params.items()}

    # ------------------------------------------------------------------ what no rule says

    def by_hand(self) -> dict[str, list[Results]]:
        """For each clause the wrong results that must all be refused; none where the clause does not apply."""
        config, training = self.config, self.case.training
        if self.case.spoil is not None:
            return self._not_finite()
        found: dict[str, list[Results]] = {"4.1": [{"y": self.plain["y"] * factor} for factor in (0.99, 1.01)]}
        if config.normalizer == "null":
            other = BlockConfig(**{**config.arguments(), "normalizer": "inst"})
            if other.takes(self.case.shape):
                # The layers have other numbers in another order; the convolutions are the same.
                names = dict(zip(_convolutions(other), _convolutions(config), strict=True))
                state = {f"{a}.weight": self.state[f"{b}.weight"] for a, b in names.items()}
                drawn = draw_state(other, self.case.id, self.case.id, "distinct")
                wrong = forward(other, {**drawn, **state}, self.inputs["x"], training=training)
                found["4.10"] = [_values({"y": wrong.y})]
        if self.gradients:
            found |= self._wrong_gradients()
        if config.normalizer == "batch" and training:
            found |= self._wrong_statistics()
        return found

    def _not_finite(self) -> dict[str, list[Results]]:
        number = self.case.spoil
        wrong: list[Results] = []
        for substitute in (0.0, 3e38):
            x = np.nan_to_num(self.inputs["x"], nan=substitute, posinf=substitute, neginf=-substitute)
            wrong.append({"y": _values(self.make(self.case, {**self.inputs, "x": x}))["y"]})
        everything: list[Results] = [{"y": np.full_like(self.plain["y"], np.nan)}]
        everything_is_due = np.isnan(self.right["y"].value).all()
        clause = "4.22" if np.isnan(number or 0.0) else "4.23"
        return {clause: wrong if everything_is_due else wrong + everything}

    def _wrong_gradients(self) -> dict[str, list[Results]]:
        config = self.config
        names = [name for name in self.gradients if name != "dx"]
        parameters = {name: self.plain[name] for name in names}
        found: dict[str, list[Results]] = {
            "5.1": [{"dx": self.plain["dx"] * factor} for factor in (0.99, 1.01)],
            "5.2": [{name: value * factor for name, value in parameters.items()} for factor in (0.99, 1.01)],
            "5.9": [{name: np.zeros_like(value)} for name, value in parameters.items()],
        }
        if config.normalizer == "batch" and not self.case.training:
            found["5.4"] = [_values(self._gradients(self.run(training=True)))]
        if self._at_kinks():
            found["5.6"] = [_values(self._gradients(self._steeper()))]
        if any(entry.step.kind == "up" and entry.saved for entry in self._entries(self.run())):
            found["5.7"] = [_values(self._gradients(self._resampled_otherwise()))]
        if self.case.after is not None:
            before = replace(self.case, id=self.case.after, after=None).inputs()
            first = _values(self.make(self.case, before))
            found["5.10"] = [{name: value + first[name] for name, value in parameters.items()}]
        return found

    def _entries(self, run: Forward) -> list[Any]:
        return [*run.residual, *run.shortcut]

    def _at_kinks(self) -> bool:
        """Whether the input of an activation is exactly 0 somewhere, and no gradient is without a claim."""
        exact = any((e.x.value == 0).any() for e in self._entries(self.run()) if e.step.kind == "act")
        return exact and all(np.isfinite(self.right[name].bound).all() for name in self.gradients)

    def _steeper(self) -> Forward:
        """A slope above all of the hull where the input is 0."""
        run = self.run()
        for entry in self._entries(run):
            if entry.step.kind == "act":
                entry.saved.steep = np.where(entry.x.value == 0, 9.0, entry.saved.steep)
        return run

    def _resampled_otherwise(self) -> Forward:
        """The gradient goes back through half-pixel coordinates."""
        run = self.run()
        for entry in self._entries(run):
            if entry.step.kind == "up" and entry.saved:
                lengths = entry.x.shape[2:], entry.y.shape[2:]
                entry.saved = axes(*lengths, "half_pixel", run.run.arith.coordinate)
        return run

    def _wrong_statistics(self) -> dict[str, list[Results]]:
        new = {name: value for name, value in self.plain.items() if name.startswith("new.b.")}
        running = {name: value for name, value in new.items() if "running" in name}
        old = {name: np.asarray(self.inputs[name.removeprefix("new.")], np.float64) for name in running}
        # With t the statistics of the call, new = 0.9 old + 0.1 t.
        twice = {name: 0.9 * value + (value - 0.9 * old[name]) for name, value in running.items()}
        initial = {name: value - 0.9 * old[name] + 0.9 * name.endswith("var") for name, value in running.items()}
        norms = list(dict.fromkeys(name.rpartition(".")[0] for name in running))
        swapped = [
            {f"{a}.{key}": new[f"{b}.{key}"]}
            for a in norms
            for b in norms
            for key in ("running_mean", "running_var")
            if a < b and new[f"{a}.{key}"].shape == new[f"{b}.{key}"].shape
        ]
        unmoved = [{name: old[name]} for name in running]
        return {"6.5": [*swapped, *unmoved], "6.6": [initial], "6.7": [twice]}


def _convolutions(config: BlockConfig) -> list[str]:
    return [layer.name for layer in config.layers() if layer.kind == "conv"]
