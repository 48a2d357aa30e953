"""BlockBottleneck2d as an ONNX graph that ONNX Runtime runs: evaluation only, in float32.

The graph of a block is built once, for inputs of any batch, height and width; its parameters are inputs of the
graph, under the names of SPEC.md, so that one session serves every state. The numbers in parentheses are clauses
of SPEC.md.
"""

# ruff: noqa: E402 -- standard output is claimed before a library can write to it

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import protocol

protocol.claim_stdout()

import numpy as np
import onnxruntime
from layers import Block, Layer
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from protocol import Array, Call, Named

EPS = 1e-5
OPSET, IR_VERSION = 18, 8


class Graph:
    """The nodes of a block, in the order in which they run."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Array] = {}
        residual = self.through("x", ("conv1", "conv2", "conv3"))
        self.node("Add", [residual, self.through("x", ("in_node",))], "y")

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, values: Any, dtype: str = "f4") -> str:
        self.constants[name] = np.asarray(values, dtype)
        return name

    def through(self, x: str, names: Iterable[str]) -> str:
        """The name of the output of a branch; that of an identity is its input (2.6)."""
        kinds = {"conv": self.convolve, "norm": self.normalize, "act": self.activate, "up": self.upsample}
        for layer in (layer for name in names for layer in self.block.branches.get(name, ())):
            x = kinds[layer.kind](layer, x)
        return x

    def convolve(self, layer: Layer, x: str) -> str:
        entries = ["weight", "bias"] if self.block.normalizer == "null" else ["weight"]
        inputs = [x, *(f"{layer.name}.{entry}" for entry in entries)]
        return self.node(
            "Conv", inputs, layer.name, kernel_shape=layer.kernel, strides=layer.stride, pads=layer.padding * 2
        )

    def normalize(self, layer: Layer, x: str) -> str:
        name = layer.name
        if self.block.normalizer == "batch":
            entries = ("weight", "bias", "running_mean", "running_var")
            return self.node("BatchNormalization", [x, *(f"{name}.{e}" for e in entries)], name, epsilon=EPS)
        if self.block.normalizer == "pinst":
            scale, shift = f"{name}.weight", f"{name}.bias"
        else:
            scale = self.constant(f"{name}.one", np.ones(layer.out_planes))
            shift = self.constant(f"{name}.zero", np.zeros(layer.out_planes))
        return self.node("InstanceNormalization", [x, scale, shift], name, epsilon=EPS)

    def activate(self, layer: Layer, x: str) -> str:
        if self.block.activator == "relu":
            return self.node("Relu", [x], layer.name)
        return self.node("PRelu", [x, f"{layer.name}.weight"], layer.name)

    def upsample(self, layer: Layer, x: str) -> str:
        name = layer.name
        if self.block.output_size:
            sizes = self.constant(f"{name}.sizes", self.block.output_size, "i8")
            inputs = [x, "", "", sizes]
        else:
            inputs = [x, "", self.constant(f"{name}.scales", self.block.stride)]
        corners = "align_corners"
        return self.node("Resize", inputs, name, mode="linear", coordinate_transformation_mode=corners, axes=[2, 3])

    def model(self) -> ModelProto:
        shapes: dict[str, tuple[Any, ...]] = {"x": ("n", self.block.in_planes, "h", "w"), **inputs(self.block)}
        graph = helper.make_graph(
            self.nodes,
            "BlockBottleneck2d",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", self.block.out_planes, None, None))],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def inputs(block: Block) -> dict[str, tuple[int, ...]]:
    """The shape in the graph of every parameter and buffer that evaluation reads."""
    slopes = {f"{layer.name}.weight" for layers in block.branches.values() for layer in layers if layer.kind == "act"}
    shapes = {**block.parameters, **block.buffers}
    # A slope is broadcast from the last axis on, so that alone it would be one of each column.
    return {
        name: (*shape, 1, 1) if name in slopes else shape
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
    }


@lru_cache(maxsize=256)
def session(block: Block) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        Graph(block).model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def forward(call: Call) -> tuple[Array, Named]:
    state = {**call.params, **call.buffers}
    feed = {name: state[name].reshape(shape) for name, shape in inputs(call.block).items()}
    (y,) = session(call.block).run(["y"], {"x": call.x, **feed})
    return y, {}


if __name__ == "__main__":
    about = {"name": "ONNX Runtime port", "version": onnxruntime.__version__, "language": "Python"}
    # Of float64, ONNX Runtime has no convolution.
    protocol.serve(about, forward, modes=("eval",))
