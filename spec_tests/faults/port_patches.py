"""What to change in the text of the NumPy port for it to have a fault of the catalogue, by the fault's id.

Each change is (module, what stands there once, what stands there then). Gradients and statistics follow the change,
as they would in a framework that differentiates by itself, so that a choice of rule is that rule altogether.
"""

from __future__ import annotations

Change = tuple[str, str, str]

_P, _L = "numpy_port", "layers"
_CONSTANTS, _ROOT = "EPS, MOMENTUM = 1e-5, 0.1", "1 / np.sqrt(variance + EPS)"
_MEAN_OF_SQUARES = "np.add.reduce(distance * distance, axes, keepdims=True) / n"
_SLOPE_OF_NORM = "np.add.reduce(dy * hat, axes, keepdims=True) / n"
_UNBIASED = "unbiased = variance * (n / (n - 1))"
_AXES, _COUNT = "axes = EVERYWHERE if batch_norm else (2, 3)", "(len(x) if batch_norm else 1)"
_OWN, _STATISTICS = "own = call.training or not batch_norm", "return run.y, run.stats"
_AFFINE = "else hat * scale[:, None, None] + shift[:, None, None]"
_FACTOR = "else inverse * scale[:, None, None]"
_SCALE_GRADIENT, _SHIFT_GRADIENT = "np.add.reduce(dy * hat, EVERYWHERE)", "np.add.reduce(dy, EVERYWHERE)"
_SLOPE, _SLOPE_GRADIENT = "slope = slope[:, None, None]", "np.add.reduce(dy * np.minimum(x, 0), EVERYWHERE)"
_RELU = "np.maximum(x, 0), lambda dy: np.where(x > 0, dy, 0)"
_PRELU = "np.where(x > 0, x, slope * x)"
_SLOPES_OF = 'name, slope = layer.name, self.call.params.get(f"{layer.name}.weight")'
_SUM, _BACK = "y + shortcut", "return self._residual_back(dy) + self._shortcut_back(dy)"
_PLACES = "first, rest = np.divmod(np.arange(target) * (length - 1), max(target - 1, 1))\n"
_WEIGHTS = "    return first, first + (rest > 0), (rest / max(target - 1, 1)).astype(dtype)"
_KERNEL, _KERNEL_GRADIENT = 'self.call.params[f"{layer.name}.weight"]', ".sum(0).reshape(w.shape)"
_BIAS, _BIAS_GRADIENT = "y += bias[:, None, None]", "dy.sum(EVERYWHERE)"
_PADDED = "padded[:, :, ph : ph + height, pw : pw + width] = x"
_UNPADDED = "return dx[:, :, ph : ph + height, pw : pw + width]"
_LAYERS = "for layer in branches[name]]"
_START = "rng.uniform(-limit, limit, shape)"
_OUTPUT = "    run = Run(call)\n    return run.y, run.stats"
_IF_ALLOWED = "        if text in allowed:\n"
_SLOPE_SHAPE = 'self.activator == "prelu":\n                found[f"{layer.name}.weight"] = width'
_REFUSED = "if residual != shortcut:"


def _eps_of(branch: str, eps: str) -> list[Change]:
    return [(_P, _ROOT, f'1 / np.sqrt(variance + ({eps} if name.startswith("{branch}") else EPS))')]


def _slopes(slopes: str, gradient: str) -> list[Change]:
    return [(_P, _SLOPE, f"slope = {slopes}[:, None, None]"), (_P, _SLOPE_GRADIENT, gradient)]


def _inactive(branch: str) -> list[Change]:
    lines = (
        f'if name.startswith("{branch}"):',
        "    if slope is not None:",
        '        self.grads[f"{name}.weight"] = np.zeros_like(slope)',
        "    return x, lambda dy: dy",
    )
    return [(_P, _SLOPES_OF, "\n        ".join((_SLOPES_OF, *lines)))]


def _weighed(residual: str, shortcut: str) -> list[Change]:
    back = f"return self._residual_back({residual} * dy) + self._shortcut_back({shortcut} * dy)"
    return [(_P, _SUM, f"{residual} * y + {shortcut} * shortcut"), (_P, _BACK, back)]


def _interpolated(places: str, nearest: bool = False) -> list[Change]:
    """`places` are positions in the input; numbers beyond the last element are those of the last."""
    lines = f"place = {places}\n    first = np.minimum(place.astype(int), length - 1)\n"
    part = "0 * (place - first)" if nearest else "(place - first)"
    ends = f"    return first, np.minimum(first + 1, length - 1), {part}.astype(dtype)"
    return [(_P, _PLACES, lines), (_P, _WEIGHTS, ends)]


def _padded(places: str) -> list[Change]:
    """The border repeats the elements at `places`; their gradients are added to those of the elements."""
    lines = (
        f"rows_of, cols_of = ({places} for p, length in ((ph, height), (pw, width)))",
        "padded = x[:, :, rows_of][..., cols_of]",
    )
    back = (
        "if not (ph or pw):",
        "    return dx",
        "folded = np.zeros_like(x)",
        "np.add.at(folded, (slice(None), slice(None), rows_of[:, None], cols_of), dx)",
        "return folded",
    )
    return [(_P, _PADDED, "\n            ".join(lines)), (_P, _UNPADDED, "\n            ".join(back))]


def _default(name: str, due: str, instead: str) -> list[Change]:
    return [(_L, f'"{name}": ("{due}",', f'"{name}": ("{instead}",')]


def _started(text: str) -> list[Change]:
    return [(_P, _START, text)]


def _too_large(where: str) -> list[Change]:
    """One part in a hundred too large, if `where`."""
    return [(_P, _OUTPUT, f"    run, x = Run(call), call.x\n    return run.y * (1.01 if {where} else 1), run.stats")]


PATCHES: dict[str, list[Change]] = {
    # ------------------------------------------------------------ norms
    "eps_1e3_everywhere": [(_P, _CONSTANTS, "EPS, MOMENTUM = 1e-3, 0.1")],
    "eps_1e6_everywhere": [(_P, _CONSTANTS, "EPS, MOMENTUM = 1e-6, 0.1")],
    "eps_0_everywhere": [(_P, _CONSTANTS, "EPS, MOMENTUM = 0.0, 0.1")],
    "eps_1e3_conv1": _eps_of("conv1", "1e-3"),
    "eps_1e3_conv2": _eps_of("conv2", "1e-3"),
    "eps_1e3_conv3": _eps_of("conv3", "1e-3"),
    "eps_1e3_in_node": _eps_of("in_node", "1e-3"),
    "eps_outside_the_root": [
        (_P, _ROOT, "1 / (np.sqrt(variance) + EPS)"),
        (_P, "hat * slope", "hat * (slope / (np.sqrt(variance) * inverse))"),
    ],
    "unbiased_variance": [
        (_P, _MEAN_OF_SQUARES, _MEAN_OF_SQUARES.replace("/ n", "/ (n - 1)")),
        (_P, _UNBIASED, "unbiased = variance"),
        (_P, _SLOPE_OF_NORM, _SLOPE_OF_NORM.replace("/ n", "/ (n - 1)")),
    ],
    "instance_axes_nhw": [(_P, _AXES, "axes = EVERYWHERE"), (_P, _COUNT, "len(x)")],
    "affine_no_scale": [
        (_P, _AFFINE, "else hat + shift[:, None, None]"),
        (_P, _FACTOR, "else inverse"),
        (_P, _SCALE_GRADIENT, "np.zeros_like(scale)"),
    ],
    "affine_no_shift": [
        (_P, _AFFINE, "else hat * scale[:, None, None]"),
        (_P, _SHIFT_GRADIENT, "np.zeros_like(scale)"),
    ],
    "affine_missing": [
        (_P, _AFFINE, "else hat"),
        (_P, _FACTOR, "else inverse"),
        (_P, _SCALE_GRADIENT, "np.zeros_like(scale)"),
        (_P, _SHIFT_GRADIENT, "np.zeros_like(scale)"),
    ],
    "affine_one_plus_scale": [
        (_P, _AFFINE, "else hat * (1 + scale[:, None, None]) + shift[:, None, None]"),
        (_P, _FACTOR, "else inverse * (1 + scale[:, None, None])"),
    ],
    "affine_swapped": [
        (_P, _AFFINE, "else hat * shift[:, None, None] + scale[:, None, None]"),
        (_P, _FACTOR, "else inverse * shift[:, None, None]"),
        (_P, _SCALE_GRADIENT, _SHIFT_GRADIENT),
        (_P, _SHIFT_GRADIENT, _SCALE_GRADIENT),
    ],
    "root_of_12_bits": [(_P, "inverse = " + _ROOT, f"inverse = ({_ROOT}).astype(np.float16).astype(x.dtype)")],
    # ------------------------------------------------------------ running statistics
    "momentum_0_01": [(_P, _CONSTANTS, "EPS, MOMENTUM = 1e-5, 0.01")],
    "momentum_0_9": [(_P, _CONSTANTS, "EPS, MOMENTUM = 1e-5, 0.9")],
    "momentum_0_99": [(_P, _CONSTANTS, "EPS, MOMENTUM = 1e-5, 0.99")],
    "running_variance_biased": [(_P, _UNBIASED, "unbiased = variance")],
    "running_deviation": [(_P, _UNBIASED, "unbiased = np.sqrt(variance * (n / (n - 1)))")],
    "statistics_never_updated": [(_P, _STATISTICS, "return run.y, call.buffers")],
    "counter_stands_still": [(_P, 'num_batches_tracked"] + 1', 'num_batches_tracked"] + 0')],
    "counter_counts_samples": [(_P, 'num_batches_tracked"] + 1', 'num_batches_tracked"] + len(x)')],
    "counter_of_finite_batches": [
        (_P, 'num_batches_tracked"] + 1', 'num_batches_tracked"] + int(np.isfinite(x).all())')
    ],
    "nan_kept_from_the_mean": [
        (
            _P,
            "(1 - MOMENTUM) * old + MOMENTUM * value.reshape(-1)",
            "np.where(np.isnan(value.reshape(-1)), old, (1 - MOMENTUM) * old + MOMENTUM * value.reshape(-1))",
        )
    ],
    "counter_in_float64": [
        (
            _P,
            'call.buffers[f"{name}.num_batches_tracked"] + 1',
            'np.int64(call.buffers[f"{name}.num_batches_tracked"] + 1.0)',
        )
    ],
    "batch_statistics_in_evaluation": [(_P, _OWN, "own = True")],
    "running_statistics_in_training": [
        (
            _P,
            "        inverse = " + _ROOT,
            "        if batch_norm and own:\n"
            '            distance = x - call.buffers[f"{name}.running_mean"][:, None, None]\n'
            '            variance, own = call.buffers[f"{name}.running_var"][:, None, None], False\n'
            "        inverse = " + _ROOT,
        )
    ],
    # ------------------------------------------------------------ activations
    "slope_first": _slopes(
        "np.broadcast_to(slope[:1], slope.shape)", "np.eye(1, x.shape[1])[0] * np.sum(dy * np.minimum(x, 0))"
    ),
    "slope_mean": _slopes(
        "np.full_like(slope, slope.mean())", "np.full(x.shape[1], np.sum(dy * np.minimum(x, 0)) / x.shape[1])"
    ),
    "slope_reversed": _slopes("slope[::-1]", f"{_SLOPE_GRADIENT}[::-1]"),
    "slope_absolute": _slopes("np.abs(slope)", f'{_SLOPE_GRADIENT} * np.sign(self.call.params[f"{{name}}.weight"])'),
    "slope_0_25": _slopes("np.full_like(slope, 0.25)", "np.zeros(x.shape[1])"),
    "slope_0_01": _slopes("np.full_like(slope, 0.01)", "np.zeros(x.shape[1])"),
    "slope_on_the_positive_side": [
        (_P, "return np.where(x > 0, x, slope * x), back", "return np.where(x > 0, slope * x, x), back"),
        (_P, "return np.where(x > 0, dy, slope * dy)", "return np.where(x > 0, slope * dy, dy)"),
        (_P, _SLOPE_GRADIENT, _SLOPE_GRADIENT.replace("minimum", "maximum")),
    ],
    "relu_is_relu6": [(_P, _RELU, "np.clip(x, 0, 6), lambda dy: np.where((x > 0) & (x < 6), dy, 0)")],
    "relu_is_leaky_relu": [(_P, _RELU, "np.where(x > 0, x, 0.01 * x), lambda dy: np.where(x > 0, dy, 0.01 * dy)")],
    "activation_of_conv1_lost": _inactive("conv1"),
    "activation_of_conv2_lost": _inactive("conv2"),
    "activation_of_conv3_lost": _inactive("conv3"),
    "old_order_conv_act_norm": [
        (
            _P,
            _LAYERS,
            'for layer in sorted(branches[name], key=lambda layer: call.block.layer_order == "old" and '
            '["up", "conv", "act", "norm"].index(layer.kind))]',
        )
    ],
    # ------------------------------------------------------------ convolutions
    "kernel_flipped": [
        (_P, _KERNEL, _KERNEL + "[..., ::-1, ::-1]"),
        (_P, _KERNEL_GRADIENT, _KERNEL_GRADIENT + "[..., ::-1, ::-1]"),
    ],
    "bias_not_added": [(_P, _BIAS, "pass"), (_P, _BIAS_GRADIENT, "np.zeros_like(bias)")],
    "bias_twice": [(_P, _BIAS, "y += 2 * bias[:, None, None]"), (_P, _BIAS_GRADIENT, f"2 * {_BIAS_GRADIENT}")],
    "padding_edge": _padded("np.clip(np.arange(-p, length + p), 0, length - 1)"),
    "padding_circular": _padded("np.arange(-p, length + p) % length"),
    "float16_products": [
        (_P, "(matrix @ columns)", "(matrix.astype(np.float16) @ columns.astype(np.float16)).astype(x.dtype)")
    ],
    # ------------------------------------------------------------ the sum, up-sampling
    "shortcut_dropped": _weighed("1", "0"),
    "shortcut_halved": _weighed("1", "0.5"),
    "shortcut_twice": _weighed("1", "2"),
    "shortcut_subtracted": _weighed("1", "-1"),
    "residual_halved": _weighed("0.5", "1"),
    "residual_subtracted": _weighed("-1", "1"),
    "up_half_pixel": _interpolated("np.maximum((np.arange(target) + 0.5) * length / target - 0.5, 0)"),
    "up_asymmetric": _interpolated("np.arange(target) * length / target"),
    "up_nearest": _interpolated("np.arange(target) * length / target", nearest=True),
    "up_gradient_of_nearest": [
        (_P, "matrix[places, first] = 1 - part.reshape(-1)", "half = part.reshape(-1) > 0.5"),
        (_P, "matrix[places, second] += part.reshape(-1)", "matrix[places, np.where(half, second, first)] = 1"),
    ],
    # ------------------------------------------------------------ gradients
    "statistics_detached": [(_P, "            if own:\n", "            if False:\n")],
    "mean_detached": [(_P, "dy - np.add.reduce(dy, axes, keepdims=True) / n - hat", "dy - hat")],
    "variance_detached": [(_P, " / n - hat * slope", " / n")],
    "slope_gradient_averaged": [(_P, _SLOPE_GRADIENT, f"{_SLOPE_GRADIENT} / len(x)")],
    "slope_gradient_mean": [(_P, _SLOPE_GRADIENT, f"{_SLOPE_GRADIENT} / (x.size // x.shape[1])")],
    "parameter_gradients_averaged": [
        (
            _P,
            "return run.back(dy), run.grads",
            "dx = run.back(dy)\n    return dx, {name: value / len(dy) for name, value in run.grads.items()}",
        )
    ],
    "shortcut_detached": [(_P, _BACK, "return self._residual_back(dy) + 0 * self._shortcut_back(dy)")],
    "relu_passes_every_gradient": [(_P, _RELU, "np.maximum(x, 0), lambda dy: dy")],
    # ------------------------------------------------------------ sizes and refusals
    "output_size_ignored": [(_L, "return self.output_size or (", "return (")],
    "up_sizes_swapped": [
        (_L, "(height * self.stride[0], width * self.stride[1])", "(width * self.stride[1], height * self.stride[0])")
    ],
    "odd_kernels_only": [
        (_L, _REFUSED, _REFUSED[:-1] + " or any(2 * p != k - 1 for p, k in zip(self.padding, self.kernel_size)):")
    ],
    "too_many_channels_taken": [(_L, "shape[1] != self.in_planes", "shape[1] < self.in_planes")],
    "one_element_normalized": [
        (_L, 'if self.normalizer == "null" or (', 'if self.normalizer in ("null", "inst", "pinst") or (')
    ],
    "batch_of_one_element_taken": [
        (_L, 'if self.normalizer == "null" or (', 'if self.normalizer in ("null", "batch") or (')
    ],
    "one_element_refused_in_evaluation": [(_L, 'self.normalizer == "batch" and not training', "False")],
    # ------------------------------------------------------------ arguments, structure, construction
    "default_stride_2": _default("stride", "1", "2"),
    "default_kernel_size_1": _default("kernel_size", "3", "1"),
    "default_padding_0": _default("padding", "1", "0"),
    "default_normalizer_batch": _default("normalizer", "pinst", "batch"),
    "default_activator_relu": _default("activator", "prelu", "relu"),
    "default_layer_order_old": _default("layer_order", "new", "old"),
    "default_scaler_up": _default("scaler", "down", "up"),
    "axes_exchanged": [(_L, "return (numbers[0], numbers[1]) if pair", "return (numbers[-1], numbers[0]) if pair")],
    "any_case": [(_L, _IF_ALLOWED, _IF_ALLOWED.replace("if", "text = (text or '').lower()\n        if"))],
    "bias_always": [(_L, 'if self.normalizer == "null":\n', "if True:\n")],
    "one_slope_parameter": [(_L, _SLOPE_SHAPE, _SLOPE_SHAPE.replace("width", "(1,)"))],
    "slopes_start_at_0": [(_P, "np.full(shape, 0.25)", "np.full(shape, 0.0)")],
    "running_variance_starts_at_0": [(_P, '"running_var": 1.0', '"running_var": 0.0')],
    "weights_of_one_sign": _started("rng.uniform(0, limit, shape)"),
    "he": _started("rng.uniform(-limit * sqrt(6), limit * sqrt(6), shape)"),
    "every_layer_the_same_seed": _started("np.random.default_rng(seed).uniform(-limit, limit, shape)"),
    "seed_has_no_effect": [(_P, "np.random.default_rng(seed)", "np.random.default_rng(0)")],
    # ------------------------------------------------------------ special cases
    "relu_of_nan_is_0": [(_P, _RELU, _RELU.replace("maximum", "fmax"))],
    "prelu_of_nan_is_0": [(_P, _PRELU, "np.fmax(x, 0) + slope * np.fmin(x, 0)")],
    "activations_of_nan_are_0": [
        (_P, _RELU, _RELU.replace("maximum", "fmax")),
        (_P, _PRELU, "np.fmax(x, 0) + slope * np.fmin(x, 0)"),
    ],
    "nan_removed": [(_P, "self._through(residual, call.x)", "self._through(residual, np.nan_to_num(call.x))")],
    "wrong_beyond_two_samples": _too_large("len(x) > 2"),
    "wrong_unless_square": _too_large("x.shape[2] != x.shape[3]"),
    "wrong_for_one_channel": _too_large("x.shape[1] == 1"),
    "wrong_beyond_16_channels": _too_large("x.shape[1] > 16"),
}
