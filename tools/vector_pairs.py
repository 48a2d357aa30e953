"""Few blocks that cover every pair of arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, count, product
from typing import Any

import numpy as np

from spec_tests.config import ACTIVATORS, LAYER_ORDERS, NORMALIZERS, SCALERS, BlockConfig

Shape = tuple[int, int, int, int]

# What the vectors cover in pairs: every two values that stand together in some call are in some vector.
FACTORS: dict[str, tuple[Any, ...]] = {
    "kernel_size": (1, 2, 3, (3, 5), 4),
    "stride": (1, 2, (1, 2), 3),
    "padding": (0, 1, (1, 2)),
    "output_size": (None, (5, 7)),
    "scaler": SCALERS,
    "channels": ((3, 3), (3, 2), (2, 3)),
    "normalizer": NORMALIZERS,
    "activator": ACTIVATORS,
    "layer_order": LAYER_ORDERS,
    "mode": ("train", "eval"),
}
GEOMETRY = ("kernel_size", "stride", "padding", "output_size", "scaler")
# Of both axes, the smallest first; a norm of few elements says little.
SIZES = sorted(((h, w) for h, w in product(range(2, 10), repeat=2) if h != w), key=lambda s: (s[0] * s[1], s))
FEWEST = 6


def config_of(levels: Mapping[str, Any]) -> BlockConfig:
    arguments = {name: value for name, value in levels.items() if name not in ("channels", "mode")}
    return BlockConfig.of(*levels["channels"], **arguments)


def fitting_shape(config: BlockConfig) -> Shape | None:
    """The smallest input that the block takes with FEWEST elements behind every layer, None if there is none."""
    for size in SIZES:
        shape = (2, config.in_planes, *size)
        if config.takes(shape) and all(s[2] * s[3] >= FEWEST for _, s in config.layer_shapes(shape)):
            return shape
    return None


def pairwise() -> Iterator[dict[str, Any]]:
    """Few rows of FACTORS with every two values that stand together in some call: greedy, from the best in turn."""
    plain = {name: values[0] for name, values in FACTORS.items()}
    fitting = [
        levels
        for levels in product(*(FACTORS[name] for name in GEOMETRY))
        if fitting_shape(config_of({**plain, **dict(zip(GEOMETRY, levels, strict=True))}))
    ]
    names = [*GEOMETRY, *(name for name in FACTORS if name not in GEOMETRY)]
    free = list(product(*(FACTORS[name] for name in names if name not in GEOMETRY)))
    rows = [(*levels, *rest) for rest in free for levels in fitting]
    numbers: dict[Any, int] = {}
    pairs = np.array(
        [
            [numbers.setdefault((i, j, row[i], row[j]), len(numbers)) for i, j in combinations(range(len(names)), 2)]
            for row in rows
        ]
    )
    open_pairs = np.ones(len(numbers), bool)
    for turn in count():
        gain = open_pairs[pairs].sum(1)
        if not gain.any():
            return
        best = np.flatnonzero(gain == gain.max())
        # Not always the first: it would have the first value of everything that is covered already.
        chosen = int(best[turn * 1009 % len(best)])
        open_pairs[pairs[chosen]] = False
        yield dict(zip(names, rows[chosen], strict=True))
