"""The layers as steps of a branch: which parameters each reads, and which gradients and statistics it leaves.

A step is built once for a configuration and rules, and holds settings only; tensors are in the `Run`.
`forward` returns the output and what `vjp` needs; `vjp` returns dx and adds to `run.gradients`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from spec_tests.config import BlockConfig, Pair
from spec_tests.oracle import activation, alternatives, conv, norm, upsample
from spec_tests.oracle.bounds import Arith, Array, Bounded


@dataclass(slots=True)
class Run:
    """One call: the state as float64 arrays, and what the steps leave behind.

    `statistics` are the buffers after the call, `gradients` those of the parameters, each multiplied by `reduction`.
    """

    state: dict[str, Array]
    training: bool
    arith: Arith
    statistics: dict[str, Bounded]
    gradients: dict[str, Bounded]
    reduction: float = 1.0

    def channel(self, name: str) -> Array | None:
        """A parameter with one entry a channel, shaped (C, 1, 1); None where the block has no such parameter."""
        array = self.state.get(name)
        return None if array is None else array.reshape(-1, 1, 1)

    def add_gradient(self, name: str, gradient: Bounded) -> None:
        """Add `gradient`, times `reduction`, to what the parameter `name` has received."""
        if self.reduction != 1:
            gradient = Bounded(self.reduction * gradient.value, self.reduction * gradient.bound)
        if name in self.gradients:
            gradient = alternatives.plus(self.gradients[name], gradient)
        self.gradients[name] = gradient


class Step(Protocol):
    """One layer of a branch.

    `forward` maps x (N, C, H, W) to y (N, C', H', W') and returns with it what `vjp` needs. `vjp` maps dy, shaped as y,
    to dx, shaped as x, and adds the gradients of the layer's parameters to `run.gradients`.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def forward(self, x: Bounded, run: Run) -> tuple[Bounded, Any]: ...

    def vjp(self, saved: Any, dy: Bounded, run: Run) -> Bounded: ...


@dataclass(frozen=True)
class ConvStep:
    """A convolution; `lay` names how the weight is read (`alternatives.lay`), `folds`: a batch norm is right behind.

    `turned` is false for the wrong rule that the gradient of the input meets the kernel as it lies.
    """

    name: str
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)
    lay: str = ""
    with_bias: bool = True
    folds: bool = False
    turned: bool = True
    kind: ClassVar[str] = "conv"

    def forward(self, x: Bounded, run: Run) -> tuple[Bounded, Any]:
        w = run.state[f"{self.name}.weight"]
        b = run.state.get(f"{self.name}.bias") if self.with_bias else None
        if self.lay:
            w = alternatives.lay(w, self.lay)
        folded = self.folds and run.arith.folded_norm and not run.training
        y = conv.convolve(x, w, b, self.stride, self.padding, run.arith, self.dilation, folded)
        return y, (x, w, b is not None)

    def vjp(self, saved: Any, dy: Bounded, run: Run) -> Bounded:
        x, w, has_bias = saved
        dx, dw, db = conv.convolve_vjp(x, w, has_bias, self.stride, self.padding, dy, run.arith, self.dilation)
        if self.lay:
            dw = Bounded(alternatives.lay_back(dw.value, self.lay), alternatives.lay_back(dw.bound, self.lay))
        if not self.turned:
            across = alternatives.lay(w, "flipped")
            dx, *_ = conv.convolve_vjp(x, across, False, self.stride, self.padding, dy, run.arith, self.dilation)
        run.add_gradient(f"{self.name}.weight", dw)
        bias = f"{self.name}.bias"
        if db is not None:
            run.add_gradient(bias, db)
        elif bias in run.state:
            run.add_gradient(bias, Bounded.exact(np.zeros_like(run.state[bias])))
        return dx


@dataclass(frozen=True)
class ActStep:
    """A ReLU (`prelu` false) or PReLU; `slope`, `side`, `gradient` and `back` are rules for the slopes."""

    name: str
    prelu: bool
    slope: str = "channel"
    side: str = "negative"
    gradient: str = "sum"
    back: str = "slope"
    kind: ClassVar[str] = "act"

    def forward(self, x: Bounded, run: Run) -> tuple[Bounded, Any]:
        if not self.prelu:
            return activation.activate(x, activation.RELU, run.arith)
        a = run.state[f"{self.name}.weight"]
        if self.slope == "channel" and self.side == "negative":
            return activation.activate(x, a.reshape(-1, 1, 1), run.arith)
        return alternatives.activate(x, a, self.slope, self.side, run.arith)

    def vjp(self, saved: Any, dy: Bounded, run: Run) -> Bounded:
        if not self.prelu:
            return dy if self.back == "all_of_relu" else activation.activate_vjp(saved, dy, run.arith)
        a = run.state[f"{self.name}.weight"]
        as_specified = self.slope == "channel" and self.side == "negative"
        if as_specified and self.gradient != "both_sides" and self.back == "slope":
            dx = activation.activate_vjp(saved, dy, run.arith)
            da = activation.slope_vjp(saved, dy, run.arith)
        else:
            changed = (saved, 1.0, np.eye(len(a))) if as_specified else saved
            masked, everywhere = self.back != "slope", self.gradient == "both_sides"
            dx, da = alternatives.activate_vjp(changed, dy, run.arith, masked, everywhere)
        if self.gradient not in ("sum", "both_sides"):
            factor = self._factor(dy, a)
            da = Bounded(factor * da.value, np.abs(factor) * da.bound)
        run.add_gradient(f"{self.name}.weight", da)
        return dx

    def _factor(self, dy: Bounded, a: Array) -> Array:
        """What a wrong rule multiplies the gradient of the slopes (C) by."""
        if self.gradient == "scaled":
            return a
        count = {"negated": -1.0, "batch_mean": len(dy.value), "mean": dy.value.size / dy.shape[1]}[self.gradient]
        return np.full_like(a, 1 / count)


@dataclass(frozen=True)
class NormStep:
    """A norm. `axes` are those of its own statistics; `batch` has running ones, and the rules for them.

    `running_corrections`: how often the variance that enters running_var is multiplied by n / (n - 1). `behind` names
    the convolution right before it, empty for none.
    """

    name: str
    batch: bool
    axes: tuple[int, ...]
    eps: float
    eps_outside: bool = False
    unbiased: bool = False
    affine: str = "scale_shift"
    momentum: float | None = 0.1
    running_corrections: int = 1
    update: str = "training"
    counter_step: int = 1
    training_statistics: str = "batch"
    evaluation_statistics: str = "running"
    gradient: str = "through"
    evaluation_gradient: str = "constant"
    behind: str = ""
    kind: ClassVar[str] = "norm"

    def own_statistics(self, training: bool) -> bool:
        """Whether it normalizes with the statistics of its input."""
        source = self.training_statistics if training else self.evaluation_statistics
        return not self.batch or source == "batch"

    def forward(self, x: Bounded, run: Run) -> tuple[Bounded, Any]:
        updates = self.batch and (self.update == "always" or (run.training and self.update == "training"))
        own = self.own_statistics(run.training)
        # Used, and dropped where nothing is to be replaced.
        ahead = run.training and self.training_statistics == "updated"
        given = norm.moments(x, self.axes, run.arith) if own or updates or ahead else None
        new = self._replaced(given, run) if given is not None and (updates or ahead) else {}
        if updates:
            run.statistics.update(new)
        if given is None or not own:
            given = self._running(x, run, new if ahead else {})
        elif self.unbiased:
            given = alternatives.unbiased(given)

        g, b = run.channel(f"{self.name}.weight"), run.channel(f"{self.name}.bias")
        if self.affine != "scale_shift":
            g, b = alternatives.affine(g, b, self.affine)
        folds = self.behind and run.arith.folded_norm and not (own or run.training)
        folded = run.state[f"{self.behind}.weight"][0].size if folds else 0
        y, saved = norm.normalize(x, g, b, self.eps, given, run.arith, self.eps_outside, folded)
        if self.unbiased and own:
            saved.curvature = saved.curvature * (given.n / (given.n - 1))
        if self.evaluation_gradient != "constant" and not (own or run.training):
            saved = self._as_in_training(x, saved, run)
        return y, (saved, g)

    def _as_in_training(self, x: Bounded, saved: norm.Normalized, run: Run) -> norm.Normalized:
        """What the backward pass needs, if it passes in evaluation through statistics."""
        batch = norm.moments(x, self.axes, run.arith)
        if self.evaluation_gradient == "batch":
            return norm.normalize(x, None, None, self.eps, batch, run.arith, self.eps_outside)[1]
        given = saved.moments
        taken = norm.Moments(given.mean, given.variance, given.spread, batch.axes, batch.n)
        return replace(saved, moments=taken)

    def _replaced(self, given: norm.Moments, run: Run) -> dict[str, Bounded]:
        """running_mean and running_var, from the statistics that normalize (6.1, 6.2), and the counter (6.3)."""
        counter = run.state[f"{self.name}.num_batches_tracked"]
        momentum = 1 / (float(counter) + 1) if self.momentum is None else self.momentum
        factor = (given.n / (given.n - 1)) ** self.running_corrections
        variance = Bounded(factor * given.variance.value, factor * given.variance.bound)
        found = {f"{self.name}.num_batches_tracked": Bounded.exact(counter + self.counter_step)}
        for key, new in (("running_mean", given.mean), ("running_var", variance)):
            name = f"{self.name}.{key}"
            old = Bounded.exact(run.state[name])
            if new.shape == (1, old.value.size, 1, 1):
                flat = Bounded(new.value.ravel(), new.bound.ravel())
            else:
                flat = alternatives.each_channel(new, old.value.size)
            found[name] = norm.running(old, flat, momentum, run.arith)
        return found

    def _running(self, x: Bounded, run: Run, new: Mapping[str, Bounded]) -> norm.Moments:
        """The buffers of the state (4.7), or the new ones under a wrong rule."""
        found = []
        for key in ("running_mean", "running_var"):
            name = f"{self.name}.{key}"
            buffer = new[name] if new else Bounded.exact(run.state[name])
            shape = (1, -1, 1, 1)
            found.append(Bounded(buffer.value.reshape(shape), buffer.bound.reshape(shape)))
        return norm.given_moments(x, found[0], found[1])

    def vjp(self, saved: Any, dy: Bounded, run: Run) -> Bounded:
        normalized, g = saved
        weight, bias = f"{self.name}.weight", f"{self.name}.bias"
        if weight in run.state:
            dg, db = norm.affine_vjp(normalized, dy, run.arith)
            if self.affine != "scale_shift":
                dg, db = alternatives.affine_vjp(dg, db, run.state[weight], run.state[bias], self.affine)
            run.add_gradient(weight, dg)
            run.add_gradient(bias, db)
        if g is not None and 1 in normalized.moments.axes:
            # Channels that share their statistics have scales of their own, which come before the means.
            dy, g = alternatives.scaled(dy, g, run.arith), None
        return norm.normalize_vjp(
            normalized,
            g,
            dy,
            run.arith,
            through_mean=self.gradient in ("through", "variance_detached"),
            through_variance=self.gradient in ("through", "mean_detached"),
        )


@dataclass(frozen=True)
class UpStep:
    """Up-sampling to the size of clause 3.3."""

    name: str
    config: BlockConfig
    interpolation: str = "corners"
    kind: ClassVar[str] = "up"

    def forward(self, x: Bounded, run: Run) -> tuple[Bounded, Any]:
        length: Pair = (x.shape[2], x.shape[3])
        target = self.config.upsampled_size(length)
        if self.interpolation == "corners":
            rows, cols = upsample.axes(length, target, run.arith)
        else:
            rows, cols = alternatives.axes(length, target, self.interpolation, run.arith.coordinate)
        return upsample.resample(x, rows, cols, run.arith), (rows, cols)

    def vjp(self, saved: Any, dy: Bounded, run: Run) -> Bounded:
        rows, cols = saved
        return upsample.resample_vjp(rows, cols, dy, run.arith)
