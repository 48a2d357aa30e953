"""The documented summary table, computed from the arguments of the block alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from spec_tests.config import BlockConfig

_TYPES = {"conv": "Conv2d", "up": "Upsample"}
_NORMS = {"batch": "BatchNorm2d", "inst": "InstanceNorm2d", "pinst": "InstanceNorm2d"}
_ACTIVATIONS = {"prelu": "PReLU", "relu": "ReLU"}
_LINE = "-" * 64


def rows(config: BlockConfig, size: Sequence[int]) -> list[tuple[str, list[int], int]]:
    """Type, output shape (-1 for the batch) and number of parameters of each row (clauses 8.1 to 8.4).

    `size` is the shape (C, H, W) of one input.
    """
    parameters = config.parameters()
    found = []
    for layer, (_, *shape) in config.layer_shapes((1, *size)):
        names = {**_TYPES, "norm": _NORMS.get(config.normalizer, ""), "act": _ACTIVATIONS.get(config.activator, "")}
        count = sum(prod(s) for name, s in parameters.items() if name.rpartition(".")[0] == layer.name)
        found.append((names[layer.kind], [-1, *shape], count))
    found.append(("BlockBottleneck2d", [-1, *config.output_shape((1, *size))[1:]], 0))
    return found


def table(config: BlockConfig, size: Sequence[int]) -> str:
    """The whole table for one input of shape `size` (C, H, W), as torchsummary 1.5.1 prints it (chapter 8)."""
    lines = [_LINE, f"{'Layer (type)':>20}  {'Output Shape':>25} {'Param #':>15}", "=" * 64]
    total = elements = 0
    for number, (kind, shape, count) in enumerate(rows(config, size), start=1):
        lines.append(f"{f'{kind}-{number}':>20}  {shape!s:>25} {count:>15,}")
        total += count
        elements += prod(shape[1:])
    megabyte = 2.0**20
    input_mb, output_mb, parameters_mb = 4 * prod(size) / megabyte, 2 * 4 * elements / megabyte, 4 * total / megabyte
    lines += [
        "=" * 64,
        f"Total params: {total:,}",
        f"Trainable params: {total:,}",
        "Non-trainable params: 0",
        _LINE,
        f"Input size (MB): {input_mb:0.2f}",
        f"Forward/backward pass size (MB): {output_mb:0.2f}",
        f"Params size (MB): {parameters_mb:0.2f}",
        f"Estimated Total Size (MB): {input_mb + output_mb + parameters_mb:0.2f}",
        _LINE,
    ]
    return "\n".join(lines) + "\n"
