"""What wrong examples have in common is told, and not what they share by chance."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

from spec_tests import isolation
from spec_tests.evidence import examples
from spec_tests.meta.rule_subject import RuleSubject
from spec_tests.numeric import Numeric
from spec_tests.oracle import SPEC


def test_what_shares_a_mode_is_told_from_what_shares_an_order_by_chance() -> None:
    """Of batch norms, the examples in training have one order: others are asked for, to know which of the two it is."""
    batch: list[Numeric] = []
    others: list[Numeric] = []
    for numeric in islice(examples(RuleSubject(SPEC)), 48):
        (batch if numeric.config.normalizer == "batch" else others).append(numeric)
    wrong = [numeric for numeric in batch if numeric.training and numeric.config.layer_order == "old"]
    right = [*others, *(n for n in batch if not n.training and n.config.layer_order == "new")]
    assert isolation.shared(wrong, right) == {"normalizer": {"batch"}, "layer_order": {"old"}}
    found = isolation.shared(wrong, right, lambda other: other.config.normalizer == "batch" and other.training)
    assert found == {"normalizer": {"batch"}, "training": {True}}


def example(**features: Any) -> Any:
    """As much of an example as tells what it has in common with others."""
    usual = {"normalizer": "batch", "activator": "relu", "layer_order": "new", "scaler": "down"}
    config = SimpleNamespace(**{**usual, "projects": True, "rescales": False, **features})
    return SimpleNamespace(config=config, training=features.get("training", False), shape=(features.get("batch", 2),))


def test_what_another_feature_explains_is_no_condition() -> None:
    """The wrong examples met one order and one batch size alone, by chance; the norm and the mode tell them apart."""
    wrong = [example(layer_order="old"), example(layer_order="old", scaler="up")]
    right = [example(training=True, layer_order=order, batch=n) for order in ("new", "old") for n in (1, 2)]
    right += [example(normalizer="inst", layer_order=order, batch=n) for order in ("new", "old") for n in (1, 2)]
    due = ["Wrong only with normalizer = 'batch'.", "Wrong only with training = False."]
    assert [*isolation.conditions(isolation.shared(wrong, right))] == due
    # One right example may be chance; two are evidence.
    apart = [example(), example(batch=1)]
    assert [*isolation.conditions(isolation.shared(wrong, [*right, apart[0]]))] == due
    assert [*isolation.conditions(isolation.shared(wrong, [*right, *apart]))] == [
        due[0],
        "Wrong only with layer_order = 'old'.",
        due[1],
    ]
    assert [*isolation.conditions(isolation.shared(wrong, []))] == []
