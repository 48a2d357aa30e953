"""Every decision of the specification that a port can get wrong, as data.

`Rules()` is the specification. A field holds one decision; its metadata names the clause that makes it,
the alternatives that are met in practice, and the habit behind each. The oracle runs under any rules:
a port whose numbers lie within the bounds of the rules with one field changed has that fault.
Decisions that only change a shape or a name are not here: chapters 1, 2, 3 and 7 judge them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


def _rule(default: Any, clause: str, meaning: str, habits: Mapping[Any, str]) -> Any:
    metadata = {"clause": clause, "meaning": meaning, "alternatives": tuple(habits), "habits": dict(habits)}
    return field(default=default, metadata=metadata)


_EPS = {1e-3: "Keras's default", 1e-6: "Flax's default"}
_INTERPOLATION = {
    "half_pixel": "align_corners=False, the default of torch and JAX",
    "asymmetric": "t = i L / U, the legacy resize of TensorFlow 1 and Caffe",
    "nearest": "the default mode of torch's Upsample and Keras's UpSampling2D",
}


@dataclass(frozen=True)
class Rules:
    """One value for each decision; the defaults are the specification."""

    # ------------------------------------------------------------------ norm
    eps: float = _rule(1e-5, "4.5", "ε of every norm", {**_EPS, 0.0: "a hand-written norm"})
    eps_conv1: float | None = _rule(None, "4.5", "ε of conv1's norm, None: as `eps`", _EPS)
    eps_conv2: float | None = _rule(None, "4.5", "ε of conv2's norm, None: as `eps`", _EPS)
    eps_conv3: float | None = _rule(None, "4.5", "ε of conv3's norm, None: as `eps`", _EPS)
    eps_in_node: float | None = _rule(None, "4.5", "ε of the projection's norm, None: as `eps`", _EPS)
    eps_placement: str = _rule("inside", "4.5", "√(σ² + ε)", {"outside": "√σ² + ε, hand-written norms"})
    normalizing_variance: str = _rule(
        "biased", "4.6", "the variance that normalizes", {"unbiased": "torch.var and ddof=1 in a hand-written norm"}
    )
    instance_axes: str = _rule(
        "HW",
        "4.8",
        "the axes of an instance norm's statistics",
        {"CHW": "LayerNorm, or GroupNorm with one group", "NHW": "batch norm"},
    )
    batch_axes: str = _rule(
        "NHW",
        "4.6",
        "the axes of a batch norm's statistics in training",
        {"HW": "instance norm", "CHW": "LayerNorm"},
    )
    affine: str = _rule(
        "scale_shift",
        "4.9",
        "γ·x̂ + β",
        {
            "no_scale": "scale=False",
            "no_shift": "center=False, use_bias=False",
            "missing": "affine=False, the default of torch's InstanceNorm2d",
            "swapped": "parameters taken in another order",
            "twice": "a norm with parameters, followed by scale and shift",
            "one_plus_scale": "scale stored as an offset from 1",
        },
    )

    # ------------------------------------------------------------------ batch norm
    momentum: float | None = _rule(
        0.1,
        "6.1",
        "the weight of the new statistics; None: 1 / (calls so far + 1)",
        {
            0.01: "Keras's 0.99, turned over",
            0.9: "the convention of Keras and ONNX, in which it is the weight of the old ones",
            0.99: "Keras's default, not turned over",
            None: "momentum=None: cumulative average",
        },
    )
    running_variance: str = _rule(
        "unbiased",
        "6.2",
        "the variance that enters running_var",
        {
            "biased": "Keras, Flax, ONNX: the one that normalizes",
            "corrected_twice": "n / (n - 1) times a variance that has it already",
        },
    )
    statistics_update: str = _rule(
        "training",
        "6.4",
        "when the running statistics are replaced",
        {"never": "the new state of a functional framework is dropped", "always": "no distinction of the modes"},
    )
    counter_step: int = _rule(1, "6.3", "what num_batches_tracked gains", {0: "frameworks without such a counter"})
    training_statistics: str = _rule(
        "batch",
        "6.8",
        "what normalizes in training",
        {"running": "use_running_average left on", "updated": "the running statistics are replaced before their use"},
    )
    evaluation_statistics: str = _rule(
        "running", "4.7", "what normalizes in evaluation", {"batch": "training=True left on, track_running_stats=False"}
    )

    # ------------------------------------------------------------------ activation
    slope: str = _rule(
        "channel",
        "4.11",
        "the slope of the negative side",
        {
            "first": "one slope for all channels: the first",
            "mean": "one slope for all channels: their mean",
            "reversed": "the slopes along another axis or in another order",
            "absolute": "a slope that is kept positive",
            "clamped": "a slope that is kept in [0, 1]",
            "0.25": "the initial slope, never loaded",
            "0.01": "LeakyReLU",
        },
    )
    slope_side: str = _rule(
        "negative",
        "4.11",
        "the side that the slope multiplies",
        {"positive": "a turned condition", "maximum": "max(x, a x), right only for a <= 1"},
    )
    relu: str = _rule(
        "relu",
        "4.12",
        "what `activator='relu'` computes",
        {"relu6": "MobileNet", "gelu": "newer blocks", "leaky": "LeakyReLU, slope 0.01"},
    )
    null_activator: str = _rule(
        "identity", "4.13", "what `activator='null'` computes", {"relu": "an activation by default"}
    )
    activation_missing: str = _rule(
        "none",
        "2.2",
        "the branch whose activation is left out",
        {
            "conv1": "an activation lost",
            "conv2": "an activation lost",
            "conv3": "ResNet v1: no activation before the sum",
        },
    )
    shortcut_activation: bool = _rule(
        False, "2.11", "an activation ends the shortcut", {True: "the branch code reused"}
    )
    final_activation: bool | str = _rule(
        False,
        "4.21",
        "an activation follows the addition",
        {
            True: "ResNet v1",
            "always_relu": "ResNet v1's ReLU, whatever the activator",
            "only_relu": "ResNet v1's ReLU, in blocks with `activator='relu'`",
        },
    )

    # ------------------------------------------------------------------ order
    new_order: str = _rule(
        "norm act conv",
        "4.15",
        "the layers of `layer_order='new'`",
        {"conv norm act": "ResNet v1", "act norm conv": "activation before the norm"},
    )
    old_order: str = _rule(
        "conv norm act",
        "4.16",
        "the layers of `layer_order='old'`",
        {"norm act conv": "pre-activation throughout", "conv act norm": "activation before the norm"},
    )
    null_order: str = _rule(
        "conv act",
        "4.17",
        "the layers of `normalizer='null'`",
        {"act conv": "`layer_order='new'` honoured without a norm"},
    )
    upsampling_place: str = _rule(
        "before_conv",
        "2.9",
        "where conv2 up-samples",
        {"first": "up-sampling before the norm", "last": "up-sampling after the convolution"},
    )

    # ------------------------------------------------------------------ convolution
    kernel: str = _rule(
        "correlation",
        "4.2",
        "how the kernel lies",
        {"flipped": "a mathematical convolution", "transposed": "height and width swapped"},
    )
    kernel_channels: str = _rule(
        "out_in",
        "2.21",
        "how the numbers of a weight lie",
        {
            "in_out": "transposed convolutions",
            "hwio": "taken as (kh, kw, in, out), the order of Keras, Flax and TensorFlow.js",
            "ohwi": "taken as (out, kh, kw, in), the order of TensorFlow Lite and of channels-last kernels",
        },
    )
    convolution_bias: str = _rule(
        "added", "2.5", "the bias of `normalizer='null'`", {"missing": "bias=False throughout"}
    )
    padding_mode: str = _rule(
        "zeros",
        "4.2",
        "what surrounds the input of conv2's convolution",
        {
            "edge": "padding_mode='replicate'",
            "reflect": "padding_mode='reflect'",
            "circular": "padding_mode='circular'",
        },
    )
    padding_sides: str = _rule(
        "both", "1.6", "where the padding lies", {"same": "padding='SAME' of TensorFlow and JAX"}
    )
    padding_place: str = _rule(
        "conv", "4.3", "what the padding surrounds", {"norm": "the input padded first, then normalized and activated"}
    )
    stride_place: str = _rule(
        "conv2", "4.4", "the convolution with the stride", {"conv1": "Caffe's ResNet: the first 1x1"}
    )
    dilation: int = _rule(1, "4.2", "the distance of the kernel's taps in conv2", {2: "DeepLab"})

    # ------------------------------------------------------------------ shortcut and sum
    shortcut: str = _rule(
        "projection",
        "2.6",
        "what a projection does",
        {
            "identity": "no projection where the size stays",
            "slice": "x[::s] in place of a strided convolution",
        },
    )
    shortcut_norm: bool = _rule(True, "2.7", "a norm ends the projection", {False: "a bare projection"})
    shortcut_input: str = _rule(
        "input",
        "4.18",
        "what the shortcut starts from",
        {
            "pre_activated": "He et al. 2016: the projection shares the first norm and activation",
            "conv1": "a wrong variable",
        },
    )
    shortcut_reading: str = _rule(
        "strided",
        "4.19",
        "how a projection reduces the size",
        {"offset": "a slice that starts at 1", "average": "ResNet-D: an average pooling, then stride 1"},
    )
    shortcut_weight: float = _rule(
        1.0,
        "4.21",
        "the weight of the shortcut in the sum",
        {0.0: "dropped", 0.5: "a scaled sum", 2.0: "added twice", -1.0: "subtracted"},
    )
    residual_weight: float = _rule(
        1.0, "4.21", "the weight of the residual branch", {0.0: "dropped", 0.5: "stochastic depth", -1.0: "turned over"}
    )

    # ------------------------------------------------------------------ up-sampling
    interpolation: str = _rule(
        "corners", "4.14", "the interpolation of both branches", {**_INTERPOLATION, "bicubic": "mode='bicubic'"}
    )
    residual_interpolation: str | None = _rule(
        None, "4.14", "the interpolation of conv2, None: as `interpolation`", _INTERPOLATION
    )
    shortcut_interpolation: str | None = _rule(
        None, "4.14", "the interpolation of the projection, None: as `interpolation`", _INTERPOLATION
    )

    # ------------------------------------------------------------------ gradients
    statistics_gradient: str = _rule(
        "through",
        "5.3",
        "the gradient through a norm's own statistics",
        {"detached": "stop_gradient on both", "mean_detached": "on the mean", "variance_detached": "on the variance"},
    )
    evaluation_gradient: str = _rule(
        "constant",
        "5.4",
        "what a batch norm's statistics are to the gradient in evaluation",
        {
            "batch": "the backward pass of training, with the statistics of the batch",
            "formula": "the backward formula of training, with the running statistics",
        },
    )
    activation_gradient: str = _rule(
        "slope",
        "5.1",
        "the gradient of an activation in its input",
        {
            "all_of_relu": "a ReLU that passes every gradient on: a mask forgotten, straight-through",
            "none_of_prelu": "a PReLU that passes none of its negative side on: ReLU's mask",
        },
    )
    slope_gradient: str = _rule(
        "sum",
        "5.5",
        "the gradient of a slope",
        {
            "batch_mean": "a mean over samples",
            "mean": "a mean over samples and places",
            "both_sides": "the mask of the negative side forgotten",
            "negated": "a wrong sign: max(-x, 0) in place of min(x, 0)",
            "scaled": "the slope multiplied in",
        },
    )
    kernel_gradient: str = _rule(
        "turned",
        "5.1",
        "how the kernel of conv2 lies in the gradient of its input",
        {"not_turned": "the kernel of the forward pass, not turned round"},
    )
    parameter_gradient: str = _rule(
        "sum", "5.2", "how the gradients of all parameters are reduced", {"batch_mean": "a mean over samples"}
    )
    shortcut_gradient: str = _rule(
        "added", "5.8", "the gradient through the shortcut", {"missing": "a detached shortcut"}
    )
    residual_gradient: str = _rule(
        "added", "5.8", "the input's gradient through the residual branch", {"missing": "only the shortcut's returned"}
    )


SPEC = Rules()
"""The specification."""


def alternatives() -> Iterator[tuple[str, Any, Rules]]:
    """Every (field, alternative, rules with that one change)."""
    for item in fields(Rules):
        for value in item.metadata["alternatives"]:
            yield item.name, value, replace(SPEC, **{item.name: value})
