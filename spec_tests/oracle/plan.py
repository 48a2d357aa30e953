"""The steps of the two branches, for a configuration and rules (clauses 2.1 to 2.11)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

from spec_tests.config import BlockConfig, Layer, Pair
from spec_tests.oracle.alternatives import FixedActStep, MapStep
from spec_tests.oracle.bounds import NotApplicable
from spec_tests.oracle.rules import SPEC, Rules
from spec_tests.oracle.steps import ActStep, ConvStep, NormStep, Step, UpStep

# Rules that a plan does not hold: how the branches, and gradients, are added up.
OUTSIDE = ("residual_weight", "shortcut_weight", "parameter_gradient", "shortcut_gradient", "residual_gradient")
_AXES = {"HW": (2, 3), "NHW": (0, 2, 3), "CHW": (1, 2, 3)}


@dataclass(frozen=True)
class Plan:
    """The steps of the residual branch, and of the shortcut (none: the identity), then of the sum.

    `shared` counts the steps of the residual branch that the shortcut starts behind; 0 for the input.
    """

    residual: tuple[Step, ...]
    shortcut: tuple[Step, ...]
    after: tuple[Step, ...]
    shared: int


def changes_nothing(config: BlockConfig, rules: Rules) -> bool:
    """Whether `rules` leave every step of this block, and every sum, as the specification has them.

    Raises:
        NotApplicable: an alternative of `rules` cannot be run for this configuration.
    """
    return all(getattr(rules, n) == getattr(SPEC, n) for n in OUTSIDE) and plan(config, rules) == plan(config, SPEC)


@lru_cache(maxsize=8192)
def plan(config: BlockConfig, rules: Rules) -> Plan:
    """The steps of `config` under `rules`.

    Raises:
        NotApplicable: an alternative of `rules` cannot be run for this configuration.
    """
    branches: dict[str, list[Step]] = {"conv1": [], "conv2": [], "conv3": [], "in_node": []}
    for layer in config.layers():
        branches[layer.branch].extend(_steps(layer, config, rules))
    for name in ("conv1", "conv2", "conv3"):
        branches[name] = _ordered(branches[name], config, rules)
    if rules.padding_place == "norm":
        branches["conv2"] = _padded_first(branches["conv2"], config)

    residual = _foldable([step for name in ("conv1", "conv2", "conv3") for step in branches[name]])
    shared = 0
    if rules.shortcut_input != "input":
        if not config.pre_activated and rules.shortcut_input == "pre_activated":
            raise NotApplicable("nothing is activated before the first convolution")
        convolution = next(i for i, step in enumerate(residual) if step.kind == "conv")
        shared = convolution if rules.shortcut_input == "pre_activated" else len(branches["conv1"])
    shortcut = _foldable(_shortcut(branches["in_node"], config, rules))
    if rules.shortcut_activation:
        shortcut.append(FixedActStep("shortcut activation", _activator(config)))
    return Plan(tuple(residual), tuple(shortcut), _after(config, rules), shared)


def _after(config: BlockConfig, rules: Rules) -> tuple[Step, ...]:
    """What follows the sum."""
    how = rules.final_activation
    if how is False or (how == "only_relu" and config.activator != "relu"):
        return ()
    return (FixedActStep("final activation", _activator(config) if how is True else "relu"),)


def _foldable(steps: list[Step]) -> list[Step]:
    """The steps; a convolution and a batch norm right behind it, in another branch too, are told of each other."""
    found = list(steps)
    for index, (before, step) in enumerate(pairwise(steps)):
        if isinstance(before, ConvStep) and isinstance(step, NormStep) and step.batch:
            found[index] = replace(before, folds=True)
            found[index + 1] = replace(step, behind=before.name)
    return found


def _activator(config: BlockConfig) -> str:
    if config.activator == "null":
        raise NotApplicable("the configuration has no activation")
    return config.activator


def _steps(layer: Layer, config: BlockConfig, rules: Rules) -> list[Step]:
    """One layer of `BlockConfig.layers` as steps; more than one under a few alternatives."""
    shortcut = layer.branch == "in_node"
    if layer.kind == "up":
        place = rules.shortcut_interpolation if shortcut else rules.residual_interpolation
        return [UpStep(layer.name, config, place or rules.interpolation)]
    if layer.kind == "norm":
        return [_norm(layer, config, rules)]
    if layer.kind == "act":
        return _activation(layer, config, rules)
    found = _convolution(layer, config, rules)
    if config.activator == "null" and rules.null_activator == "relu" and not shortcut:
        # `_ordered` puts it where the activation of this order would stand.
        found.append(FixedActStep(f"{layer.branch} activation", "relu"))
    return found


def _norm(layer: Layer, config: BlockConfig, rules: Rules) -> NormStep:
    """A norm; rules that it has no use for are left out, so that equal plans mean that nothing changes."""
    own: float | None = getattr(rules, f"eps_{layer.branch}")
    batch = config.normalizer == "batch"
    step = NormStep(
        layer.name,
        batch,
        _AXES[rules.batch_axes if batch else rules.instance_axes],
        rules.eps if own is None else own,
        rules.eps_placement == "outside",
        rules.normalizing_variance == "unbiased",
        "scale_shift" if config.normalizer == "inst" else rules.affine,
        gradient=rules.statistics_gradient,
    )
    if not batch:
        return step
    return replace(
        step,
        momentum=rules.momentum,
        running_corrections={"biased": 0, "unbiased": 1, "corrected_twice": 2}[rules.running_variance],
        update=rules.statistics_update,
        counter_step=rules.counter_step,
        training_statistics=rules.training_statistics,
        evaluation_statistics=rules.evaluation_statistics,
        evaluation_gradient=rules.evaluation_gradient,
    )


def _activation(layer: Layer, config: BlockConfig, rules: Rules) -> list[Step]:
    if rules.activation_missing == layer.branch:
        return []
    if config.activator == "relu" and rules.relu != "relu":
        return [FixedActStep(layer.name, rules.relu)]
    back = rules.activation_gradient
    if config.activator == "relu":
        return [ActStep(layer.name, False, back="slope" if back == "none_of_prelu" else back)]
    back = "slope" if back == "all_of_relu" else back
    return [ActStep(layer.name, True, rules.slope, rules.slope_side, rules.slope_gradient, back)]


def _convolution(layer: Layer, config: BlockConfig, rules: Rules) -> list[Step]:
    stride, padding, dilation = layer.stride, layer.padding, (1, 1)
    before: list[Step] = []
    if rules.stride_place == "conv1" and config.scaler == "down" and layer.branch in ("conv1", "conv2"):
        stride = config.stride if layer.branch == "conv1" else (1, 1)
    if layer.branch == "conv2":
        dilation = (rules.dilation, rules.dilation)
        how = rules.padding_mode if rules.padding_mode != "zeros" else "same" if rules.padding_sides == "same" else ""
        if how:
            before = [MapStep(f"{layer.name} padding", how, stride, padding, layer.kernel)]
            padding = (0, 0)
    lay = rules.kernel if rules.kernel != "correlation" else ""
    lay = lay if rules.kernel_channels == "out_in" else rules.kernel_channels
    turned = layer.kernel == (1, 1) or rules.kernel_gradient == "turned"
    with_bias = rules.convolution_bias == "added"
    return [*before, ConvStep(layer.name, stride, padding, dilation, lay, with_bias, turned=turned)]


def _ordered(steps: list[Step], config: BlockConfig, rules: Rules) -> list[Step]:
    """The steps of a branch in the order of the rules; `map` steps stay before their convolution."""
    kinds = {"fixed": "act", "map": "conv"}
    groups: dict[str, list[Step]] = {"norm": [], "act": [], "up": [], "conv": []}
    for step in steps:
        groups[kinds.get(step.kind, step.kind)].append(step)
    if config.normalizer == "null":
        order = rules.null_order if config.layer_order == "new" else "conv act"
    else:
        order = rules.new_order if config.layer_order == "new" else rules.old_order
    if order.startswith("conv") == config.pre_activated and config.in_planes != config.out_planes:
        raise NotApplicable("the norm or activation of conv3 has another width on the other side of its convolution")
    places = {"before_conv": "up conv", "last": "conv up"}.get(rules.upsampling_place)
    order = f"up {order}" if places is None else order.replace("conv", places)
    return [step for kind in order.split() for step in groups[kind]]


def _padded_first(steps: list[Step], config: BlockConfig) -> list[Step]:
    if any(step.kind == "up" for step in steps) or not config.pre_activated:
        raise NotApplicable("a branch that up-samples, or starts with its convolution, is not padded first")
    found: list[Step] = [MapStep("conv2 padding", "zeros", padding=config.padding)]
    return found + [replace(step, padding=(0, 0)) if isinstance(step, ConvStep) else step for step in steps]


def _shortcut(steps: list[Step], config: BlockConfig, rules: Rules) -> list[Step]:
    if not steps:
        return steps
    if rules.shortcut != "projection":
        if config.in_planes != config.out_planes:
            raise NotApplicable("without a projection the number of channels stays")
        if rules.shortcut == "identity":
            return []
        if config.scaler == "up":
            raise NotApplicable("a slice makes no image larger")
        return [MapStep("in_node slice", "slice", config.stride)]
    if not rules.shortcut_norm:
        steps = [step for step in steps if step.kind != "norm"]
    if rules.shortcut_reading != "strided":
        if config.scaler == "up" or max(config.stride) == 1:
            raise NotApplicable("the projection has no stride")
        one: Pair = (1, 1)
        found: list[Any] = [replace(step, stride=one) if isinstance(step, ConvStep) else step for step in steps]
        steps = [MapStep("in_node reading", rules.shortcut_reading, config.stride), *found]
    return steps
