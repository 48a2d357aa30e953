"""BlockBottleneck2d in Keras 3, on its JAX backend or, with `KERAS_BACKEND=torch`, on its torch backend.

Each layer is a Keras layer, made once and called as a function of its variables (`stateless_call`). On JAX it is
compiled for each shape that it meets, apart from the others: a small program compiles soon, and blocks that differ
in one layer share the rest. Between layers numbers lie in NumPy's arrays, (batch, height, width, channel). The
numbers in parentheses are clauses of SPEC.md.
"""
# ruff: noqa: E402 -- standard output is claimed before a library can write to it

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from math import sqrt
from typing import Any

import protocol

protocol.claim_stdout()
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the time, running next to none.
FLAGS = ("backend_optimization_level=0", "cpu_use_fusion_emitters=false", "cpu_parallel_codegen_split_count=1")
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in FLAGS))

import keras
import numpy as np
from keras import ops
from layers import Block, Layer, Pair
from protocol import Array, Call, Named

EPS, MOMENTUM = 1e-5, 0.1
# In the order of Keras: kernel, bias; gamma, beta; alpha.
PARAMETERS, STATISTICS = ("weight", "bias"), ("running_mean", "running_var")
OIHW_TO_HWIO, HWIO_TO_OIHW = (2, 3, 1, 0), (3, 2, 0, 1)
NCHW_TO_NHWC, NHWC_TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class PaddedConv2D(keras.layers.Conv2D):
    """With p zeros at both edges of each axis (4.2): the `same` of Keras means other ones where the stride is 2."""

    def __init__(self, layer: Layer, **options: Any) -> None:
        super().__init__(layer.out_planes, layer.kernel, layer.stride, **options)
        self.pads = [(0, 0), *((p, p) for p in layer.padding), (0, 0)]

    def call(self, x: Any) -> Any:
        return super().call(ops.pad(x, self.pads))


class Upsample(keras.layers.Layer):
    """Bilinear with aligned corners (4.14), which neither `UpSampling2D` nor `ops.image.resize` has."""

    def __init__(self, target: Pair, **options: Any) -> None:
        super().__init__(**options)
        self.target = target

    def call(self, x: Any) -> Any:
        for axis, target in enumerate(self.target, 1):
            length = x.shape[axis]
            first, rest = np.divmod(np.arange(target) * (length - 1), max(target - 1, 1))
            part = ops.convert_to_tensor(np.expand_dims(rest / max(target - 1, 1), tuple(range(1, 4 - axis))), x.dtype)
            # Where a place is whole, its neighbour is itself: a NaN next to it stays where it is.
            second = first + (rest > 0)
            x = ops.take(x, first, axis) * (1 - part) + ops.take(x, second, axis) * part
        return x


def zeros(shape: Sequence[int], dtype: Any = None) -> Array:
    """What a variable holds before it is given: NumPy's zeros, for which nothing is compiled."""
    return np.zeros(shape, dtype)


@lru_cache(maxsize=4096)
def made(layer: Layer, kind: Any) -> keras.layers.Layer:
    """A layer of Keras; one for all layers that can share it."""
    if layer.kind == "conv":
        found = PaddedConv2D(layer, use_bias=bool(kind), kernel_initializer=zeros, bias_initializer=zeros)
    elif layer.kind == "norm" and kind == "batch":
        # The momentum of Keras is the weight of the old statistics; with 0, the new ones are those of the batch.
        found = keras.layers.BatchNormalization(epsilon=EPS, momentum=0)
    elif layer.kind == "norm":
        affine = kind == "pinst"
        found = keras.layers.GroupNormalization(-1, epsilon=EPS, center=affine, scale=affine)
    elif layer.kind == "up":
        found = Upsample(kind)
    elif kind == "prelu":
        found = keras.layers.PReLU(alpha_initializer=zeros, shared_axes=[1, 2])
    else:
        found = keras.layers.ReLU()
    found.build((None, None, None, layer.in_planes))
    return found


def stateless(
    layer: keras.layers.Layer, params: Sequence[Array], stats: Sequence[Array], x: Any, training: bool
) -> tuple[Any, Sequence[Any]]:
    """The output of a layer and its new statistics."""
    mode = {"training": training} if isinstance(layer, keras.layers.BatchNormalization) else {}
    y, new = layer.stateless_call(params, stats, x, **mode)
    return y, new


if keras.backend.backend() == "jax":
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    run = partial(jax.jit, static_argnums=(0, 4))(stateless)

    @partial(jax.jit, static_argnums=(0, 5))
    def pull(
        layer: keras.layers.Layer, params: Sequence[Array], stats: Sequence[Array], x: Array, dy: Array, training: bool
    ) -> tuple[Sequence[Any], Any]:
        """The gradients of a layer's parameters and of its input."""
        _, back = jax.vjp(lambda params, x: stateless(layer, params, stats, x, training)[0], params, x)
        of_params, dx = back(dy)
        return of_params, dx

elif keras.backend.backend() == "torch":
    import torch
    from keras.src import ops as used_by_layers

    # Keras lays images out channels last, in which oneDNN's backward pass of a strided 1 x 1 convolution writes beyond
    # its memory (torch 2.13 on a CPU).
    torch.backends.mkldnn.enabled = False
    one_pass = used_by_layers.moments

    def moments(x: Any, axes: Any, **options: Any) -> tuple[Any, Any]:
        """On torch, Keras takes the variance in one pass; of a constant channel it may be below 0 and have no root."""
        mean, variance = one_pass(x, axes, **options)
        return mean, ops.maximum(variance, 0)

    used_by_layers.moments = moments

    def tensors(arrays: Sequence[Array], requires_grad: bool = False) -> list[torch.Tensor]:
        return [torch.tensor(array, requires_grad=requires_grad) for array in arrays]

    def run(
        layer: keras.layers.Layer, params: Sequence[Array], stats: Sequence[Array], x: Array, training: bool
    ) -> tuple[Any, Sequence[Any]]:
        with torch.no_grad():
            return stateless(layer, tensors(params), tensors(stats), torch.tensor(x), training)

    def pull(
        layer: keras.layers.Layer, params: Sequence[Array], stats: Sequence[Array], x: Array, dy: Array, training: bool
    ) -> tuple[Sequence[Any], Any]:
        *leaves, place = tensors([*params, x], requires_grad=True)
        y, _ = stateless(layer, leaves, tensors(stats), place, training)
        *of_params, dx = torch.autograd.grad(y, [*leaves, place], torch.tensor(dy))
        return of_params, dx

else:
    sys.exit("KERAS_BACKEND must be jax or torch")


class Branch:
    """A branch with its input: the inputs of all of its layers, the output and the new statistics."""

    def __init__(self, call: Call, names: Iterable[str], x: Array) -> None:
        self.training = call.training
        self.steps: list[tuple[Layer, keras.layers.Layer, list[Array], list[Array], Array]] = []
        self.new: Named = {}
        block = call.block
        for layer in (layer for name in names for layer in block.branches.get(name, ())):
            kinds: dict[str, Any] = {"conv": block.normalizer == "null", "norm": block.normalizer}
            kinds |= {"act": block.activator, "up": block.upsampled(x.shape[1], x.shape[2])}
            of_keras = made(replace(layer, name=""), kinds[layer.kind])
            params, stats = taken(layer, PARAMETERS, call.params), taken(layer, STATISTICS, call.buffers)
            shape, x = x.shape, flattened(layer, block, x)
            self.steps.append((layer, of_keras, params, stats, x))
            training = call.training and bool(stats)  # to other layers the modes are one
            y, of_batch = run(of_keras, params, stats, x, training)
            if training:
                self.new |= named(layer, STATISTICS, moved(stats, of_batch, x.size // x.shape[3]))
                counter = f"{layer.name}.num_batches_tracked"
                self.new[counter] = call.buffers[counter] + 1
            x = array(y).reshape(shape) if layer.kind in ("norm", "act") else array(y)
        self.y = x

    def back(self, dy: Array) -> tuple[Array, Named]:
        gradients: Named = {}
        for layer, of_keras, params, stats, x in reversed(self.steps):
            flat = layer.kind in ("norm", "act")
            training = self.training and bool(stats)
            of_params, dx = pull(of_keras, params, stats, x, dy.reshape(x.shape) if flat else dy, training)
            gradients |= named(layer, PARAMETERS, of_params)
            dy = array(dx).reshape(dy.shape) if flat else array(dx)
        return dy, gradients


def moved(stats: Sequence[Array], of_batch: Sequence[Any], n: int) -> list[Array]:
    """The new running statistics (6.1, 6.2); the variance of Keras is the biased one."""
    unbiased = (1.0, n / (n - 1))
    parts = zip(stats, of_batch, unbiased, strict=True)
    return [(1 - MOMENTUM) * old + MOMENTUM * factor * array(new) for old, new, factor in parts]


def array(tensor: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(tensor))


def flattened(layer: Layer, block: Block, x: Array) -> Array:
    """The input of a layer without the axes that mean nothing to it: fewer shapes to compile for."""
    if layer.kind == "act" or (layer.kind == "norm" and block.normalizer == "batch"):
        return x.reshape(1, 1, -1, x.shape[3])
    return x.reshape(len(x), 1, -1, x.shape[3]) if layer.kind == "norm" else x


def taken(layer: Layer, entries: Sequence[str], values: Named) -> list[Array]:
    """The parameters or buffers of a layer, laid out as Keras has them."""
    found = [values[name] for name in (f"{layer.name}.{entry}" for entry in entries) if name in values]
    if layer.kind == "act":
        return [value[None, None] for value in found]
    return [value.transpose(OIHW_TO_HWIO) if value.ndim == 4 else value for value in found]


def named(layer: Layer, entries: Sequence[str], values: Sequence[Any]) -> Named:
    """The way back of `taken`."""
    arrays = [array(value) for value in values]
    laid = [a.transpose(HWIO_TO_OIHW) if a.ndim == 4 else a.reshape(-1) for a in arrays]
    return {f"{layer.name}.{entry}": a for entry, a in zip(entries, laid)}  # noqa: B905 -- a bias may be missing


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
    # Keras takes seeds of 32 bits.
    word = int(np.random.SeedSequence(seed).generate_state(1)[0])
    drawn = array(keras.random.uniform((count,), -1.0, 1.0, seed=word))
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
    backend = keras.backend.backend()
    about = {"name": f"Keras port on {backend}", "version": keras.__version__, "language": "Python"}
    about["compiles"] = "yes" if backend == "jax" else "no"
    # Only float32: whatever `dtype` says, the norms of Keras compute in that on these backends.
    protocol.serve(about, forward, backward, init)
    os._exit(0)  # to free thousands of compiled programs takes longer than a port may take to stop
