"""|error| / bound of a tensor that broke a clause, as plain data that is small enough to draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from spec_tests.compare import Tensor
from spec_tests.config import BlockConfig
from spec_tests.subjects.base import Array

SIDE = 32
"""A map has at most this many cells on a side; a larger plane is pooled, and each cell shows its largest ratio."""
PLANES = 3
MOST = 1e12
"""Stands for every larger ratio, infinity and NaN: JSON has no such numbers."""


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ten arguments without a type of Python's own; None where the block must refuse them."""
    try:
        known = BlockConfig.of(**arguments).arguments()
    except (TypeError, ValueError):
        return None
    return {name: _plain(value) for name, value in known.items()}


def _plain(value: Any) -> Any:
    # A subclass of str does not pass between processes.
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, str) else value


def ratios(tensor: Tensor) -> Array:
    """|got - value| / bound of each element: at most 1 within the bound, NaN where nothing is claimed."""
    got, value, bound = (np.asarray(a, np.float64) for a in (tensor.got, tensor.value, tensor.bound))
    with np.errstate(all="ignore"):
        error = np.abs(got - value)
        found = np.where(error == 0, 0.0, error / bound)
        # NaN is right exactly where it is due.
        found = np.where(np.isnan(value) & np.isnan(got), 0.0, found)
        found = np.minimum(np.where(np.isnan(found), np.inf, found), MOST)
    return np.where(bound == np.inf, np.nan, found)


def picture(tensor: Tensor) -> dict[str, Any]:
    """The worst element, and maps: of all planes (their largest ratios), then of the worst planes."""
    ratio = ratios(tensor)
    if ratio.ndim == 4:
        first = ("out", "in") if tensor.name.endswith("weight") else ("sample", "channel")
        axes: tuple[str, ...] = (*first, "height", "width")
    else:
        axes = ("channel",) if ratio.ndim == 1 else tuple(f"axis {k}" for k in range(ratio.ndim))
    known = np.where(np.isnan(ratio), -1.0, ratio)
    worst = tuple(int(i) for i in np.unravel_index(int(known.argmax()), known.shape))
    maps = _maps(known, axes)
    facts = {"index": list(worst), "ratio": float(known[worst])}
    for name in ("got", "value", "bound"):
        number = float(getattr(tensor, name)[worst])
        facts[name] = number if np.isfinite(number) else None
    return {
        "tensor": tensor.name,
        "axes": list(axes),
        "shape": list(ratio.shape),
        "outside": float((known > 1).mean()),
        "worst": facts,
        "maps": maps,
    }


def _maps(ratio: Array, axes: tuple[str, ...]) -> list[dict[str, Any]]:
    if ratio.ndim != 4:
        flat = ratio.reshape(1, -1) if ratio.ndim < 2 else ratio.reshape(ratio.shape[0], -1)
        return [_map(flat, ["", axes[0] if axes else ""] if ratio.ndim < 2 else [axes[0], "the others"], [])]
    top = ratio.max(axis=(2, 3))
    found = [_map(top, list(axes[:2]), [])] if top.size > 1 else []
    for flat in np.argsort(-top, axis=None, kind="stable")[:PLANES]:
        one, two = (int(i) for i in np.unravel_index(int(flat), top.shape))
        if top[one, two] > 1:
            found.append(_map(ratio[one, two], list(axes[2:]), [one, two]))
    return found


def _map(plane: Array, axes: list[str], index: list[int]) -> dict[str, Any]:
    """A plane as rows, pooled where it is large; None is a cell without a claim."""
    pooled = [max(-(-n // SIDE), 1) for n in plane.shape]
    small = plane
    for axis, step in enumerate(pooled):
        small = np.maximum.reduceat(small, np.arange(0, small.shape[axis], step), axis=axis)
    rows = [[None if cell < 0 else float(f"{cell:.3g}") for cell in row] for row in small.tolist()]
    return {"index": index, "axes": axes, "shape": list(plane.shape), "pooled": pooled, "rows": rows}
