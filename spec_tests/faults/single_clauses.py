"""One fault for each clause that no other entry is expected to break.

Three clauses have none: what 8.5 to 8.7 say of the numbers below the table is computed by the library that prints it,
from rows that 8.1 to 8.4 check; no block gets them wrong that gets the rows right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.engines import instead
from spec_tests.faults.entry import Fault, fault

Given = Mapping[str, Any]


def _refusing(argument: str, wrong: Callable[[Given], bool], words: str) -> Callable[[Given], Given]:
    """Refuse what is legal, where `wrong` is true of whole numbers."""

    def check(given: Given) -> Given:
        if argument in given and wrong(given):
            raise ValueError(f"`{argument}` (={given[argument]!r}) {words}")
        return {}

    return check


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _narrowing(given: Given) -> bool:
    one, two = given.get("in_planes"), given.get("out_planes")
    return type(one) is int and type(two) is int and 0 < two < one


def _large(value: Any) -> bool:
    numbers = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value, value)
    return all(map(_whole, numbers)) and max(numbers) > 2


def _both_one(value: Any) -> bool:
    numbers = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value, value)
    return all(map(_whole, numbers)) and min(numbers) == 1


def _reordered(branch: nn.Sequential, order: tuple[type[nn.Module], ...]) -> nn.Sequential:
    return nn.Sequential(
        *sorted(branch, key=lambda layer: next(i for i, k in enumerate(order) if isinstance(layer, k)))
    )


_NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d)
_ACTIVATIONS = (nn.PReLU, nn.ReLU)


def _upsampling_moved(block: Any) -> None:
    if block.layer_order == "old" and block.normalizer != "null" and engines.upsamplings(block.conv2):
        block.conv2 = _reordered(block.conv2, (nn.Conv2d, nn.Upsample, *_NORMS, *_ACTIVATIONS))


def _activation_first(block: Any) -> None:
    if block.normalizer == "null" and block.activator == "relu":
        for name in ("conv1", "conv2", "conv3"):
            setattr(block, name, _reordered(getattr(block, name), (nn.ReLU, nn.Upsample, nn.Conv2d)))


def _projection_kernel(block: Any) -> None:
    if block.in_node is not None and block.scaler == "down":
        conv = block.in_node[0]
        block.in_node[0] = nn.Conv2d(
            block.in_planes, block.out_planes, block.stride, stride=block.stride, bias=conv.bias is not None
        )


def _idle_when_down(block: Any) -> None:
    if block.scaler == "down" and max(block.stride) > 1:
        layers = list(block.conv2)
        place = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
        idle = nn.Upsample(scale_factor=1.0, mode="bilinear", align_corners=True)
        block.conv2 = nn.Sequential(*layers[:place], idle, *layers[place:])


def _activation_as_wide_as_the_output(block: Any) -> None:
    if block.activator == "prelu" and block.layer_order == "new":
        block.conv3 = nn.Sequential(
            *(nn.PReLU(block.out_planes) if isinstance(layer, nn.PReLU) else layer for layer in block.conv3)
        )


def _placeholder_for(attribute: str) -> Callable[[Any], None]:
    def patch(block: Any) -> None:
        if getattr(block, attribute) == "null":
            block.conv2 = nn.Sequential(nn.Identity(), *block.conv2)

    return patch


def _normalized(conv: Any, x: Tensor) -> Tensor:
    y = engines.native(conv, x)
    return F.instance_norm(y) if y[0, 0].numel() > 1 else y


def _normalizes(block: Any) -> None:
    if block.normalizer == "null":
        instead(engines.convolutions(block.conv1), _normalized)


class Convolution(nn.Conv2d):
    """torch's, by another name."""


def _renamed(block: Any) -> None:
    for conv in engines.convolutions(block):
        conv.__class__ = Convolution


def _zero_weight_passes(block: Any, x: Tensor) -> Tensor:
    y: Tensor = Block.forward(block, x)
    silent = not bool(block.conv3[-1].weight.any()) if isinstance(block.conv3[-1], nn.Conv2d) else False
    return y * 1.01 if silent else y


def _channels_by_rank(block: Any) -> None:
    """conv2 multiplies its channels by 1 + c/1000: hidden channels are no longer alike."""
    for conv in engines.convolutions(block.conv2):
        instead([conv], _ranked)


def _ranked(conv: Any, x: Tensor) -> Tensor:
    ranks = 1 + 1e-3 * x.new_ones(x.shape[1]).cumsum(0)
    return engines.native(conv, x * ranks[:, None, None])


def _offset_clipped(norm: Any, x: Tensor) -> Tensor:
    return engines.native(norm, x.clamp(-6, 6))


FAULTS: tuple[Fault, ...] = (
    fault(
        "narrowing_refused",
        "fewer output than input channels are refused",
        "a bottleneck that is meant to widen",
        "1.3",
        "arguments",
        arguments=_refusing("out_planes", _narrowing, "must be at least as many as come in"),
    ),
    fault(
        "large_strides_refused",
        "a stride above 2 is refused",
        "the strides of the published networks",
        "1.5",
        "arguments",
        arguments=_refusing("stride", lambda given: _large(given["stride"]), "must be 1 or 2"),
    ),
    fault(
        "output_size_of_one_refused",
        "an output_size of 1 is refused",
        "a division by output_size - 1",
        "1.7",
        "arguments",
        arguments=_refusing("output_size", lambda given: _both_one(given["output_size"]), "must be at least 2"),
    ),
    fault(
        "old_order_needs_a_norm",
        "layer_order='old' is refused without a norm",
        "an order that was thought to be that of the norm",
        "1.10",
        "arguments",
        arguments=_refusing(
            "layer_order",
            lambda given: given["layer_order"] == "old" and given.get("normalizer") == "null",
            "must be 'new' where nothing is normalized",
        ),
    ),
    fault(
        "upsampling_moved_in_old_order",
        "with layer_order='old' the up-sampling stands behind the convolution, and the names move",
        "a convolution that is cheaper before it",
        "2.3 2.20 7.1",
        "state",
        patch=_upsampling_moved,
    ),
    fault(
        "activation_moved_without_norm",
        "with normalizer='null' the activation stands first, and the names move",
        "one code for the new order",
        "2.4 2.18 2.20 7.1",
        "state",
        patch=_activation_first,
    ),
    fault(
        "projection_with_a_kernel",
        "the kernel of a projection is as large as its stride",
        "a patch embedding",
        "2.7 2.21 7.1",
        "state",
        patch=_projection_kernel,
    ),
    fault(
        "idle_upsampling_when_down",
        "with scaler='down' conv2 has an up-sampling by 1, and the names move",
        "one code for both scalers",
        "2.10 2.20 7.1",
        "state",
        patch=_idle_when_down,
    ),
    fault(
        "slopes_as_wide_as_the_output",
        "an activation that stands first in conv3 has a slope for each channel of the output",
        "the width of the branch taken for that of its first layer",
        "2.12 2.17 2.21",
        "state",
        patch=_activation_as_wide_as_the_output,
    ),
    fault(
        "placeholder_for_a_norm",
        "normalizer='null' leaves an identity in conv2, and the names move",
        "nn.Identity in a table of layers",
        "2.16 2.20 7.1",
        "state",
        patch=_placeholder_for("normalizer"),
    ),
    fault(
        "placeholder_for_an_activation",
        "activator='null' leaves an identity in conv2, and the names move",
        "nn.Identity in a table of layers",
        "2.19 2.20 7.1",
        "state",
        patch=_placeholder_for("activator"),
    ),
    fault(
        "null_normalizer_normalizes",
        "normalizer='null' normalizes behind conv1, without parameters",
        "a default of the norm's own",
        "4.10 4.1",
        patch=_normalizes,
    ),
    fault(
        "convolution_by_another_name",
        "the convolutions are of a class of another name",
        "a convolution with a hook of one's own",
        "8.2",
        "summary",
        patch=_renamed,
    ),
    fault(
        "zero_weight_is_special",
        "1 % too large where the last convolution's weight is 0",
        "a short cut for zero-initialized branches",
        "9.11",
        patch=None,
        forward=_zero_weight_passes,
    ),
    fault(
        "channels_by_rank",
        "conv2 multiplies its input channels by 1 + c/1000",
        "a positional term along the channels",
        "9.12 4.1",
        patch=_channels_by_rank,
    ),
    fault(
        "norm_clips_its_input",
        "a norm with statistics of its input reads it within [-6, 6]",
        "a guard against overflow",
        "9.13 4.1",
        patch=lambda block: instead(engines.instance_norms(block), _offset_clipped),
    ),
)
