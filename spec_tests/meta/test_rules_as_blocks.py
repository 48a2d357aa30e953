"""The wrong rules of the oracle and the wrong blocks of the catalogue are the same mistakes."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from spec_tests.config import BlockConfig
from spec_tests.generators import draw_case, draw_input, draw_state
from spec_tests.oracle import NotApplicable, Rules, alternatives, forward, judge, vjp
from spec_tests.oracle.plan import OUTSIDE, plan

torch = pytest.importorskip("torch")
catalogue: Any = importlib.import_module("spec_tests.faults.catalogue")
blocks: Any = importlib.import_module("spec_tests.faults.blocks")

RULES = {e.rules: e for e in catalogue.faults().values() if e.rules}


def call(block: Any, x: Any, training: bool, gradients: bool = True) -> dict[str, Any]:
    """Everything that a call gives: output, buffers, gradients."""
    block.train(training)
    given = torch.from_numpy(np.array(x)).requires_grad_(gradients)
    y = block(given)
    found = {"y": y}
    if gradients:
        block.zero_grad(set_to_none=True)
        y.backward(torch.from_numpy(np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)))
        found |= {"dx": given.grad, **{f"grad {n}": p.grad for n, p in block.named_parameters() if p.grad is not None}}
    found |= {f"buffer {n}": b.clone() for n, b in block.named_buffers()}
    return {name: value.detach().numpy().copy() for name, value in found.items()}


def filled(kind: Any, config: BlockConfig, state: dict[str, Any]) -> Any:
    block = kind(**config.arguments())
    block.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return block


def example(seed: int, rule: str, rules: Rules) -> bool:
    """Whether call `seed` says something of the rule; if so, the block's numbers must be within the rule's bounds."""
    rng = np.random.default_rng(seed)
    config, shape = draw_case(rng)
    state, training = draw_state(config, rng, "near_eps" if seed % 2 else "distinct"), bool(seed % 3)
    x = draw_input(config, shape, rng)
    try:
        if plan(config, rules) == plan(config, Rules()) and rule not in OUTSIDE:
            return False
        agrees(seed, config, state, x, training, rule, rules)
    except NotApplicable:
        return False
    return True


def agrees(
    seed: int, config: BlockConfig, state: dict[str, Any], x: Any, training: bool, rule: str, rules: Rules
) -> None:
    """Check that the numbers of the rule's block are within the rule's bounds. Raises NotApplicable."""
    run = forward(config, state, x, training=training, rules=rules)
    back = vjp(run, np.random.default_rng(0).standard_normal(run.y.shape).astype(np.float32))
    due = {"y": run.y, "dx": back.dx, **{f"buffer {n}": b for n, b in run.stats.items()}}
    due |= {f"grad {n}": b for n, b in back.params.items()}
    got = call(filled(blocks.block(RULES[rule, getattr(rules, rule)].id), config, state), x, training)
    for name, bounded in due.items():
        # A parameter that nothing depends on receives no gradient, which for the oracle is 0.
        verdict = judge(got.get(name, np.zeros(bounded.shape, np.float32)), bounded)
        assert verdict.ok, (seed, config.call(), training, name, verdict.describe())


CASES = [pytest.param(name, value, id=f"{name}={value}") for name, value, _ in alternatives()]


@pytest.mark.parametrize(("rule", "value"), CASES)
@pytest.mark.usefixtures("one_thread")
def test_a_rule_as_a_block_is_that_rule(rule: str, value: Any) -> None:
    """What the block computes is explained by the oracle with that one rule changed, gradients and statistics too."""
    rules, count = Rules(**{rule: value}), 0
    for seed in range(400):
        count += example(seed, rule, rules)
        if count == 4:
            return
    assert count, "no call says anything of it"


@pytest.mark.usefixtures("one_thread")
def test_what_cancels_in_the_shift_of_an_affine_that_is_applied_twice() -> None:
    """Of its gradient, sum(dy) and sum(g dy) are added, which cancel for g near -1."""
    config = BlockConfig.of(2, 3, kernel_size=3, padding=1, stride=2, normalizer="batch", layer_order="old")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        state = dict(draw_state(config, rng, "distinct"))
        for name, value in state.items():
            if name.endswith("1.weight"):
                state[name] = np.float32(-1) + np.float32(2.0**-9) * value
        agrees(seed, config, state, draw_input(config, (2, 2, 5, 4), rng), True, "affine", Rules(affine="twice"))
