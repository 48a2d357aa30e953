"""Configurations, states and inputs on which wrong blocks show: NumPy only, the same for the same seed.

Draw a *kind* and a seed, never single elements. What decides whether a fault is seen:
- every channel has its own scale, shift, slope and running statistics (a slope shared by all channels is
  invisible at the initial 0.25);
- variances near ε (a wrong ε is invisible beside a variance of 1): small inputs for the first norm, small
  convolution weights for the others;
- odd and unequal sizes, numbers that differ along every axis, and exact zeros at the kink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spec_tests.config import ACTIVATORS, LAYER_ORDERS, NORMALIZERS, SCALERS, BlockConfig

FORMATS = ("float32", "float64", "bfloat16", "float16")

STATE_KINDS: dict[str, str] = {
    "distinct": "every number its own: slopes in [-0.3, 1.3], scales of both signs, weights of unit gain",
    "near_eps": "as distinct, and each convolution scaled by 10^U(-3.2, -1.5) with probability 0.6",
    "ties": "as distinct, with shifts and biases of 0 or whole, so that zeros meet the kink",
    "initial": "as at construction: scale 1, shift 0, slope 0.25, running statistics 0 and 1",
}

INPUT_KINDS: dict[str, str] = {
    "normal": "standard normal",
    "near_eps": "zero mean, each channel with a deviation of 10^U(-3.2, -1.5)",
    "offset": "standard normal plus an offset of 10^U(-0.5, 1.2) for each channel",
    "integers": "whole numbers from -3 to 3",
    "ties": "halves of whole numbers, symmetric about 0 with many zeros",
    "sparse": "nine of ten elements 0",
    "impulse": "a single element that is not 0, in each sample",
    "ramp": "another step along each axis",
    "extreme": "each sample scaled by 10^U(-15, 10)",
    "constant": "one channel of the first sample constant, the rest standard normal",
}


def representable(array: Any, form: str) -> NDArray[Any]:
    """`array` rounded to the format, as float64 for "float64" and as float32 for every other."""
    if form == "float64":
        return np.asarray(array, np.float64)
    single = np.asarray(array, np.float32)
    if form == "float16":
        return np.asarray(single.astype(np.float16), np.float32)
    if form == "bfloat16":
        bits = np.ascontiguousarray(single).view(np.uint32).astype(np.uint64)
        bits = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)
        return np.asarray(bits.astype(np.uint32).view(np.float32).reshape(single.shape))
    if form != "float32":
        raise ValueError(f"`form` (={form!r}) must be one of {', '.join(FORMATS)}")
    return single


def draw_state(
    config: BlockConfig, rng: np.random.Generator, kind: str = "distinct", form: str = "float32"
) -> dict[str, NDArray[Any]]:
    """A value for every entry of the state of `config`, of one of STATE_KINDS."""
    if kind not in STATE_KINDS:
        raise ValueError(f"`kind` (={kind!r}) must be one of {', '.join(STATE_KINDS)}")
    roles = {f"{layer.name}.weight": layer.kind for layer in config.layers()}
    state: dict[str, NDArray[Any]] = {}
    for name, shape in config.state().items():
        entry = name.rpartition(".")[2]
        if entry == "num_batches_tracked":
            state[name] = np.array(0 if kind == "initial" else rng.integers(0, 1000), np.int64)
            continue
        if kind == "initial" and entry == "weight" and roles[name] != "conv":
            value = np.full(shape, 1.0 if roles[name] == "norm" else 0.25)
        elif kind == "initial" and len(shape) == 1:
            # The bias of a convolution is not 0 at construction.
            drawn = rng.uniform(-0.5, 0.5, shape) if config.normalizer == "null" else np.zeros(shape)
            value = {"running_mean": np.zeros(shape), "running_var": np.ones(shape)}.get(entry, drawn)
        elif entry == "weight":
            value = _weight(roles[name], shape, rng, kind)
        elif entry == "bias":
            value = rng.integers(-1, 2, shape) if kind == "ties" else rng.normal(0, 0.5, shape)
        elif entry == "running_mean":
            value = rng.normal(0, 0.5, shape)
        else:
            value = 10 ** rng.uniform(-5.0, 0.5, shape)
        state[name] = representable(value, form)
    return state


def _weight(role: str, shape: tuple[int, ...], rng: np.random.Generator, kind: str) -> NDArray[Any]:
    if role == "act":
        return np.asarray(rng.uniform(-0.3, 1.3, shape))
    if role == "norm":
        return np.asarray(rng.uniform(0.3, 1.7, shape) * rng.choice([-1.0, 1.0], shape, p=[0.3, 0.7]))
    value: NDArray[Any] = rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))
    if kind == "ties":
        value = np.round(value * 4) / 4
    if kind == "near_eps" and rng.random() < 0.6:
        value = value * 10 ** rng.uniform(-3.2, -1.5)
    return value


def draw_input(
    config: BlockConfig, shape: Sequence[int], rng: np.random.Generator, kind: str = "normal", form: str = "float32"
) -> NDArray[Any]:
    """An input of `shape` (N, C, H, W), of one of INPUT_KINDS."""
    shape = tuple(shape)
    if len(shape) != 4 or shape[1] != config.in_planes:
        raise ValueError(f"`shape` (={shape}) must be (N, {config.in_planes}, H, W)")
    channels = (1, shape[1], 1, 1)
    value: NDArray[Any] = rng.normal(0, 1, shape)
    if kind == "near_eps":
        value = value - value.mean((2, 3), keepdims=True)
        value = value * 10 ** rng.uniform(-3.2, -1.5, channels)
    elif kind == "offset":
        value = value + rng.choice([-1.0, 1.0], channels) * 10 ** rng.uniform(-0.5, 1.2, channels)
    elif kind == "integers":
        value = rng.integers(-3, 4, shape)
    elif kind == "ties":
        value = rng.integers(-2, 3, shape) / 2
        # Opposite elements cancel, so that the mean, and with it the middle of a norm's output, is exactly 0.
        value = (value - value[:, :, ::-1, ::-1]) / 2
    elif kind == "sparse":
        value = value * (rng.random(shape) < 0.1)
    elif kind == "impulse":
        value = np.zeros(shape)
        for sample in value:
            sample[tuple(rng.integers(0, n) for n in shape[1:])] = rng.choice([-1.0, 1.0]) * 2.0 ** rng.integers(-2, 3)
    elif kind == "ramp":
        steps = rng.permutation([0.3, 1.1, 0.7, 0.13])
        value = sum(step * axis for step, axis in zip(steps, np.ogrid[tuple(map(slice, shape))], strict=True))
        value = value - rng.uniform(0, 4)
    elif kind == "extreme":
        value = value * 10 ** rng.uniform(-15, 10, (shape[0], 1, 1, 1))
        if form == "float16":
            value = np.clip(value, -1e4, 1e4)
    elif kind == "constant":
        value[0, rng.integers(0, shape[1])] = rng.normal()
    elif kind != "normal":
        raise ValueError(f"`kind` (={kind!r}) must be one of {', '.join(INPUT_KINDS)}")
    return representable(value, form)


def draw_case(rng: np.random.Generator) -> tuple[BlockConfig, tuple[int, int, int, int]]:
    """A configuration and a shape (N, C, H, W) that it takes in training and evaluation; H and W at most 8."""
    while True:
        scaler = str(rng.choice(SCALERS))
        kernel = tuple(int(n) for n in rng.choice([1, 2, 3, 3, 3, 4, 5], 2))
        odd = tuple((k - 1) // 2 for k in kernel)
        config = BlockConfig(
            in_planes=int(rng.integers(1, 6)),
            out_planes=int(rng.integers(1, 6)),
            kernel_size=kernel,  # type: ignore[arg-type]
            stride=tuple(int(n) for n in rng.choice([1, 1, 2, 2, 3], 2)) if rng.random() < 0.6 else (1, 1),  # type: ignore[arg-type]
            padding=odd,  # type: ignore[arg-type]
            output_size=tuple(int(n) for n in rng.integers(2, 11, 2))  # type: ignore[arg-type]
            if scaler == "up" and rng.random() < 0.5
            else None,
            normalizer=str(rng.choice(NORMALIZERS, p=[0.3, 0.2, 0.35, 0.15])),
            activator=str(rng.choice(ACTIVATORS, p=[0.6, 0.25, 0.15])),
            layer_order=str(rng.choice(LAYER_ORDERS)),
            scaler=scaler,
        )
        if rng.random() < 0.3:
            config = BlockConfig(**{**config.arguments(), "out_planes": config.in_planes})
        height, width = (int(n) for n in rng.integers(1, 9, 2))
        shape = (int(rng.integers(1, 4)), config.in_planes, height, width)
        if config.takes(shape):
            return config, shape


def layouts(x: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The numbers of x (N, C, H, W) in other orders of memory."""
    wide = np.zeros((*x.shape[:3], 2 * x.shape[3]), x.dtype)
    wide[..., ::2] = x
    framed = np.zeros((*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2), x.dtype)
    framed[:, :, 1:-1, 1:-1] = x
    longer = np.concatenate([np.zeros_like(x[:1]), x])
    more = np.concatenate([np.zeros_like(x[:, :1]), x, np.zeros_like(x[:, :1])], axis=1)
    apart = np.zeros((*x.shape, 2), x.dtype)
    apart[..., 0] = x
    channels, rows = (np.ascontiguousarray(np.moveaxis(apart, -1, axis)) for axis in (2, 3))
    return {
        "channels last": np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "height and width swapped": np.ascontiguousarray(x.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2),
        "channels before the batch": np.ascontiguousarray(x.transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3),
        "every other element": wide[..., ::2],
        "the inside of a larger one": framed[:, :, 1:-1, 1:-1],
        "the end of a larger batch": longer[1:],
        "some of the channels": more[:, 1:-1],
        "every other channel": channels[:, :, 0],
        "every other row": rows[:, :, :, 0],
    }


def expanded(x: NDArray[Any], *axes: int) -> NDArray[Any]:
    """The first index of axes of x (N, C, H, W), repeated along them by strides of 0; a batch becomes one of 3."""
    shape = (3, *x.shape[1:]) if 0 in axes else x.shape
    strides = [0 if axis in axes else step for axis, step in enumerate(x.strides)]
    return np.lib.stride_tricks.as_strided(x, shape, strides)
