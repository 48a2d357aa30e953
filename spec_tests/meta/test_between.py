"""What is due behind every layer: the layers of the reference make it."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdnc.modules.resnet import BlockBottleneck2d
from spec_tests.between import TOLD, before_layers, behind_layers
from spec_tests.config import BlockConfig
from spec_tests.meta.reference_cases import REPRESENTATIVE
from spec_tests.numeric import Numeric
from spec_tests.oracle import Bounded, judge, vjp

LINE = re.compile(r"(\S+)(?: (convolution|norm|activation|up-sampling))? +(\[[\d, ]*\]): (.*), ± at most (\S+)")


def told(lines: list[str]) -> dict[str, tuple[str, list[float]]]:
    """The name, shape and numbers of each line."""
    found = {}
    for line in lines:
        match = LINE.fullmatch(line)
        assert match, line
        numbers = [float(n) for n in match[4].partition(" … ")[0].split()]
        found[match[1]] = (match[3], numbers)
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_every_layer_of_the_reference(name: str, training: bool) -> None:
    config = BlockConfig.of(in_planes=4, **REPRESENTATIVE[name])
    numeric = Numeric(config, (2, 4, 6, 8), training=training)
    block = BlockBottleneck2d(**config.arguments()).train(training)
    block.load_state_dict({n: torch.from_numpy(np.array(v)) for n, v in numeric.state().items()})
    outputs: dict[str, np.ndarray[Any, Any]] = {}
    inputs: dict[str, np.ndarray[Any, Any]] = {}

    def keep(layer: str, _module: nn.Module, _given: object, y: Tensor) -> None:
        outputs[layer] = y.detach().numpy().copy()

    def keep_back(layer: str, _module: nn.Module, dx: tuple[Tensor, ...], _dy: object) -> None:
        inputs[layer] = dx[0].detach().numpy().copy()

    for layer, module in block.named_modules():
        if "." in layer:
            module.register_forward_hook(partial(keep, layer))
            module.register_full_backward_hook(partial(keep_back, layer))
    x = torch.from_numpy(numeric.x()).requires_grad_()
    y = block(x)
    y.backward(torch.from_numpy(numeric.dy()))
    assert x.grad is not None

    run = numeric.expected()
    gradients = vjp(run, numeric.dy())
    steps: dict[str, Bounded] = {e.step.name: e.y for e in (*run.residual, *run.shortcut)}
    behind, before = told(list(behind_layers(run))), told(list(before_layers(run, gradients)))
    assert list(behind) == ["x", *outputs, "y"]
    assert set(before) == {*inputs, "dx"}
    for layer, got in outputs.items():
        assert judge(got, steps[layer]).ok, layer
        assert judge(inputs[layer], gradients.inputs[layer]).ok, layer
    pairs = {"y": (y.detach().numpy(), behind["y"]), "dx": (x.grad.numpy(), before["dx"])}
    pairs |= {f"behind {layer}": (got, behind[layer]) for layer, got in outputs.items()}
    pairs |= {f"before {layer}": (got, before[layer]) for layer, got in inputs.items()}
    for what, (got, (shape, numbers)) in pairs.items():
        assert shape == str(list(got.shape)), what
        scale = np.abs(got).max(initial=1.0)
        assert np.allclose(numbers, got.ravel()[:TOLD], rtol=0, atol=1e-4 * scale), what


def test_what_is_left_out_is_counted() -> None:
    run = Numeric(BlockConfig.of(1, 1, kernel_size=1, padding=0), (1, 1, 4, 4)).expected()
    first = next(behind_layers(run))
    assert " … (4 more), ± at most 0" in first
    assert len(told([first])["x"][1]) == TOLD
