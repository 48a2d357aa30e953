"""What lies beyond the drawn sizes meets every kind of shortcut, and every named value: a path may be for both only."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from spec_tests.config import NAMED_VALUES, BlockConfig
from spec_tests.enumeration import large

Shape = tuple[int, int, int, int]

BEYOND: dict[str, Callable[[BlockConfig, Shape], bool]] = {
    "batch of more than 4": lambda _, shape: shape[0] > 4,
    "batch of more than 16": lambda _, shape: shape[0] > 16,
    "more than 16 channels": lambda config, _: max(config.in_planes, config.out_planes) > 16,
    "length of more than 32": lambda _, shape: max(shape[2:]) > 32,
    "kernel of more than 5": lambda config, _: max(config.kernel_size) > 5,
}


def shortcut(config: BlockConfig) -> str:
    if not config.projects:
        return "identity"
    return "rescaled" if config.rescales else "channels"


@pytest.mark.parametrize("scaler", NAMED_VALUES["scaler"])
@pytest.mark.parametrize("way", BEYOND)
def test_sizes_meet_every_shortcut_and_name(way: str, scaler: str) -> None:
    beyond = [config for config, shape in large(scaler) if BEYOND[way](config, shape)]
    names = [(name, value) for name in ("normalizer", "activator", "layer_order") for value in NAMED_VALUES[name]]
    met = {(shortcut(c), name, getattr(c, name)) for c in beyond for name, _ in names}
    due = {(kind, *named) for kind, named in product(("identity", "channels", "rescaled"), names)}
    assert due - met == set()
