"""BlockBottleneck2d in JAX and Flax NNX.

Each layer is a Flax module, compiled once for each shape that it meets, apart from the others: a small program
compiles soon, and blocks that differ in one layer share the rest. Between the compiled programs numbers lie in
NumPy's arrays, (batch, height, width, channel), since reshaping JAX's would compile too. The numbers in
parentheses are clauses of SPEC.md.
"""

# ruff: noqa: E402 -- standard output is claimed before a library can write to it

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from math import sqrt
from typing import Any

import protocol

protocol.claim_stdout()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the time, running next to none.
FLAGS = ("backend_optimization_level=0", "cpu_use_fusion_emitters=false", "cpu_parallel_codegen_split_count=1")
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in FLAGS))

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from layers import Block, Layer, Pair
from protocol import Array, Call, Named

EPS, MOMENTUM = 1e-5, 0.1
# The names of Flax for those of the specification, by the kind of the layer.
NAMES = {
    "conv": {"weight": "kernel", "bias": "bias"},
    "norm": {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"},
    "act": {"weight": "negative_slope"},
    "up": {},
}
OIHW_TO_HWIO, HWIO_TO_OIHW = (2, 3, 1, 0), (3, 2, 0, 1)
NCHW_TO_NHWC, NHWC_TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class Relu(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(x)


class Upsample(nnx.Module):
    """Bilinear with aligned corners (4.14), which `jax.image.resize` has not."""

    def __init__(self, target: Pair) -> None:
        self.target = target

    def __call__(self, x: jax.Array) -> jax.Array:
        # Neither places nor sums may be rounded to bfloat16.
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        for axis, target in enumerate(self.target, 1):
            length = x.shape[axis]
            first, rest = np.divmod(np.arange(target) * (length - 1), max(target - 1, 1))
            part = jnp.expand_dims(jnp.asarray(rest / max(target - 1, 1), y.dtype), tuple(range(1, 4 - axis)))
            # Where a place is whole, its neighbour is itself: a NaN next to it stays where it is.
            second = first + (rest > 0)
            y = y.take(first, axis) * (1 - part) + y.take(second, axis) * part
        return y.astype(x.dtype)


def build(layer: Layer, kind: Any, training: bool, dtype: Any) -> nnx.Module:
    """The module of a layer; Flax's own wherever it can be made to do what is specified."""
    rngs, planes = nnx.Rngs(0), layer.out_planes
    if layer.kind == "conv":
        ph, pw = layer.padding
        return nnx.Conv(
            layer.in_planes,
            planes,
            layer.kernel,
            layer.stride,
            padding=((ph, ph), (pw, pw)),
            use_bias=kind,
            precision="highest",
            rngs=rngs,
        )
    if layer.kind == "norm" and kind == "batch":
        # The momentum of Flax is the weight of the old statistics; with 0, the new ones are those of the batch.
        return nnx.BatchNorm(
            planes,
            use_running_average=not training,
            momentum=0,
            epsilon=EPS,
            dtype=dtype,
            use_fast_variance=False,
            rngs=rngs,
        )
    if layer.kind == "norm":
        affine = kind == "pinst"
        return nnx.InstanceNorm(
            planes, epsilon=EPS, use_scale=affine, use_bias=affine, dtype=dtype, use_fast_variance=False, rngs=rngs
        )
    if layer.kind == "act":
        return nnx.PReLU() if kind == "prelu" else Relu()
    return Upsample(kind)


@lru_cache(maxsize=4096)
def definition(layer: Layer, kind: Any, training: bool, dtype: Any) -> Any:
    """All that a layer is without its numbers; equal for layers that can share their compiled programs."""
    return nnx.graphdef(nnx.eval_shape(lambda: build(layer, kind, training, dtype)))


@partial(jax.jit, static_argnums=0)
def run(graph: Any, params: Named, stats: Named, x: Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The output of a layer and its new statistics."""
    layer = nnx.merge(graph, {**params, **stats})
    y = layer(x)
    return y, nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))


@partial(jax.jit, static_argnums=0)
def pull(graph: Any, params: Named, stats: Named, x: Array, dy: Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """The gradients of a layer's parameters and of its input."""
    _, back = jax.vjp(lambda params, x: run(graph, params, stats, x)[0], params, x)
    of_params, dx = back(dy)
    return of_params, dx


class Branch:
    """A branch with its input: the inputs of all of its layers, the output and the new statistics."""

    def __init__(self, call: Call, names: Iterable[str], x: Array) -> None:
        self.steps: list[tuple[Layer, Any, Named, Named, Array]] = []
        self.new: Named = {}
        block = call.block
        for layer in (layer for name in names for layer in block.branches.get(name, ())):
            kinds: dict[str, Any] = {"conv": block.normalizer == "null", "norm": block.normalizer}
            kinds |= {"act": block.activator, "up": block.upsampled(x.shape[1], x.shape[2])}
            graph = definition(replace(layer, name=""), kinds[layer.kind], call.training, x.dtype)
            params, stats = (taken(layer, values) for values in (call.params, call.buffers))
            shape, x = x.shape, flattened(layer, block, x)
            self.steps.append((layer, graph, params, stats, x))
            y, of_batch = run(graph, params, stats, x)
            if of_batch and call.training:
                self.new |= renamed(layer, moved(stats, of_batch, len(x)))
                counter = f"{layer.name}.num_batches_tracked"
                self.new[counter] = call.buffers[counter] + 1
            x = np.asarray(y).reshape(shape) if layer.kind in ("norm", "act") else np.asarray(y)
        self.y = x

    def back(self, dy: Array) -> tuple[Array, Named]:
        gradients: Named = {}
        for layer, graph, params, stats, x in reversed(self.steps):
            flat = layer.kind in ("norm", "act")
            of_params, dx = pull(graph, params, stats, x, dy.reshape(x.shape) if flat else dy)
            gradients |= renamed(layer, of_params)
            dy = np.asarray(dx).reshape(dy.shape) if flat else np.asarray(dx)
        return dy, gradients


def moved(stats: Named, of_batch: Mapping[str, jax.Array], n: int) -> Named:
    """The new running statistics (6.1, 6.2); the variance of Flax is the biased one."""
    unbiased = {"mean": np.asarray(of_batch["mean"]), "var": np.asarray(of_batch["var"]) * (n / (n - 1))}
    return {name: (1 - MOMENTUM) * stats[name] + MOMENTUM * value for name, value in unbiased.items()}


def flattened(layer: Layer, block: Block, x: Array) -> Array:
    """The input of a layer without the axes that mean nothing to it: fewer shapes to compile for."""
    if layer.kind == "act" or (layer.kind == "norm" and block.normalizer == "batch"):
        return x.reshape(-1, x.shape[3])
    return x.reshape(len(x), -1, x.shape[3]) if layer.kind == "norm" else x


def taken(layer: Layer, values: Named) -> Named:
    """The parameters or buffers of a layer, named and laid out as Flax has them."""
    found = {}
    for name, flax_name in NAMES[layer.kind].items():
        value = values.get(f"{layer.name}.{name}")
        if value is not None:
            found[flax_name] = value.transpose(OIHW_TO_HWIO) if value.ndim == 4 else value
            if name.startswith("running"):  # Flax keeps statistics in float32 at least
                found[flax_name] = value.astype(np.promote_types(value.dtype, np.float32))
    return found


def renamed(layer: Layer, values: Mapping[str, Any]) -> Named:
    """The way back of `taken`."""
    names = {flax_name: name for name, flax_name in NAMES[layer.kind].items()}
    arrays = {names[flax_name]: np.asarray(value) for flax_name, value in values.items()}
    return {f"{layer.name}.{name}": a.transpose(HWIO_TO_OIHW) if a.ndim == 4 else a for name, a in arrays.items()}


def branches(call: Call) -> tuple[Branch, Branch]:
    """The residual branch and the shortcut; that of an identity has no layers (2.6)."""
    x = call.x.transpose(NCHW_TO_NHWC)
    return Branch(call, ("conv1", "conv2", "conv3"), x), Branch(call, ("in_node",), x)


def forward(call: Call) -> tuple[Array, Named]:
    residual, shortcut = branches(call)
    return (residual.y + shortcut.y).transpose(NHWC_TO_NCHW), residual.new | shortcut.new


def backward(call: Call, dy: Array) -> tuple[Array, Named]:
    dy = dy.transpose(NCHW_TO_NHWC)
    (dx, gradients), (dx_shortcut, more) = (branch.back(dy) for branch in branches(call))
    return (dx + dx_shortcut).transpose(NHWC_TO_NCHW), gradients | more


def init(block: Block, seed: int) -> Named:
    """The state of a new block (7.4 to 7.7); all that is random is drawn at once."""
    layers = {layer.name: layer for branch in block.branches.values() for layer in branch}
    sizes = {name: int(np.prod(shape)) for name, shape in block.parameters.items()}
    # A power of two: few shapes, so that little is compiled.
    count = 2 ** sum(sizes.values()).bit_length()
    # JAX drops all but 32 bits of a seed.
    key = jax.random.fold_in(jax.random.key(seed % 2**32), seed // 2**32)
    drawn = np.asarray(jax.random.uniform(key, (count,), minval=-1))
    constants = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0}
    state, start = {}, 0
    for name, shape in {**block.parameters, **block.buffers}.items():
        layer, entry = layers[name.rpartition(".")[0]], name.rpartition(".")[2]
        if layer.kind == "conv":
            state[name] = drawn[start : start + sizes[name]].reshape(shape) / sqrt(layer.fan_in)
            start += sizes[name]
        elif layer.kind == "act":
            state[name] = np.full(shape, 0.25)
        else:
            state[name] = np.full(shape, constants.get(entry, float(entry == "weight")))
    return state


if __name__ == "__main__":
    np.seterr(all="ignore")  # numbers that are not finite are an input like any other (4.22)
    jax.config.update("jax_enable_x64", True)
    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event.endswith("backend_compile_duration") else None
    )
    about = {"name": "JAX port", "version": jax.__version__, "language": "Python", "compiles": "yes"}
    protocol.serve(about, forward, backward, init, dtypes={"F32": "<f4", "F64": "<f8", "BF16": ml_dtypes.bfloat16})
    print(f"{len(compiled)} compilations took {sum(compiled):.0f} s", file=sys.stderr, flush=True)
    os._exit(0)  # to free thousands of compiled programs takes longer than a port may take to stop
