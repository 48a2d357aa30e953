"""Blocks that look unlike the reference and are right: nothing may flag one of them.

The equivalent ones differ from the specification in their formula, and provably not in their result; `argument`
of each is why.
"""

from __future__ import annotations

import copy
import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mdnc.modules.resnet import BlockBottleneck2d as Block
from spec_tests.faults import engines
from spec_tests.faults.conduct import other_kernel
from spec_tests.faults.engines import branch, convolutions, instead, layers, norms, put, upsamplings
from spec_tests.faults.entry import Fault, fault
from spec_tests.faults.shortcut import cut, residual


def unfolded(conv: Any, x: Tensor) -> Tensor:
    """Columns and one product of matrices."""
    columns = F.unfold(x, conv.kernel_size, padding=conv.padding, stride=conv.stride)
    y = conv.weight.flatten(1) @ columns
    size = [
        engines.length(*axis) for axis in zip(x.shape[2:], conv.kernel_size, conv.stride, conv.padding, strict=True)
    ]
    found: Tensor = y.unflatten(2, size)
    return found if conv.bias is None else found + conv.bias[:, None, None]


def tap_by_tap(conv: Any, x: Tensor) -> Tensor:
    """A sum over the taps of the kernel, each a product with one slice."""
    low = x.dtype in engines.LOW
    wide, w = (x.float(), conv.weight.float()) if low else (x, conv.weight)
    (kh, kw), (sh, sw), (ph, pw) = conv.kernel_size, conv.stride, conv.padding
    rows, cols = (engines.length(*axis) for axis in zip(x.shape[2:], (kh, kw), (sh, sw), (ph, pw), strict=True))
    padded = F.pad(wide, (pw, pw, ph, ph))
    total = wide.new_zeros(())
    for i in range(kh):
        for j in range(kw):
            part = padded[:, :, i : i + (rows - 1) * sh + 1 : sh, j : j + (cols - 1) * sw + 1 : sw]
            total = total + torch.einsum("oc,nchw->nohw", w[:, :, i, j], part)
    return (total if conv.bias is None else total + conv.bias.to(total.dtype)[:, None, None]).to(x.dtype)


def wide(layer: Any, x: Tensor) -> Tensor:
    """A layer in float64, its statistics in their own type."""
    if isinstance(layer, nn.Conv2d):
        bias = None if layer.bias is None else layer.bias.double()
        return F.conv2d(x.double(), layer.weight.double(), bias, layer.stride, layer.padding).to(x.dtype)
    if isinstance(layer, nn.PReLU):
        return F.prelu(x.double(), layer.weight.double()).to(x.dtype)
    return engines.native(layer, x.double()).to(x.dtype)


def two_products(layer: Any, x: Tensor) -> Tensor:
    """The gradient of a slope is the difference of two sums."""
    low = x.dtype == torch.bfloat16
    wide = x.float() if low else x
    slope = layer.weight.to(wide.dtype).reshape(-1, 1, 1)
    y: Tensor = (slope * wide + (1 - slope) * F.relu(wide)).to(x.dtype)
    return y


def lasting(layer: Any, x: Tensor) -> Tensor:
    """Channels last within a layer."""
    # With one channel or one element torch's kernels for this layout have had errors.
    if x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1 and len(x) > 1 and not x.requires_grad:
        x = x.contiguous(memory_format=torch.channels_last)
    return engines.native(layer, x).contiguous()


def sample_by_sample(layer: Any, x: Tensor) -> Tensor:
    return torch.cat([engines.native(layer, one) for one in torch.split(x, 1)]) if len(x) else engines.native(layer, x)


def _exchanged(block: Any, x: Tensor) -> Tensor:
    block._check(x)
    res = residual(block, x)
    return torch.add(cut(block, x), res)


def _layer_by_layer(block: Any, x: Tensor) -> Tensor:
    """The layers one by one, and an empty batch is taken."""
    if isinstance(x, Tensor) and x.ndim == 4 and x.shape[0] == 0:
        return Block.forward(block, x.new_zeros((2, *x.shape[1:])))[:0]
    block._check(x)
    res = x
    for name in ("conv1", "conv2", "conv3"):
        for layer in getattr(block, name).children():
            res = layer(res)
    return res + cut(block, x)


def _without_onednn(block: Any, x: Tensor) -> Tensor:
    with torch.backends.mkldnn.flags(enabled=False):
        return Block.forward(block, x)


def _compile(block: Any) -> None:
    """Of the arguments, one in thirty is compiled: always the same, since a compiler may change the last bits."""
    if zlib.crc32(block.extra_repr().encode()) % 30 == 0:
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
        object.__setattr__(block, "compiled", None)


def _plain(block: Any, x: Tensor) -> Tensor:
    return Block.forward(block, x)


def _compiled(block: Any, x: Tensor) -> Tensor:
    # Errors are to be those of the block itself.
    block._check(x)
    if "compiled" not in block.__dict__:
        return Block.forward(block, x)
    if block.compiled is None:
        object.__setattr__(block, "compiled", torch.compile(block.plain, backend="aot_eager", dynamic=False))
    output: Tensor = block.compiled(x)
    return output


def _copied(block: Any) -> dict[str, Any]:
    """What the compiler made is made again, so that a copy computes as the block does."""
    return {name: None if name == "compiled" else value for name, value in block.__dict__.items()}


def parts(act: Any, x: Tensor) -> Tensor:
    below: Tensor = act.weight[:, None, None] * x.clamp(max=0)
    return x.clamp(min=0) + below


def halves(conv: Any, x: Tensor) -> Tensor:
    """The two halves of the input channels, one after the other."""
    middle = x.shape[1] // 2
    if not middle:
        return engines.native(conv, x)
    w, b, dtype = conv.weight, conv.bias, x.dtype
    if dtype in engines.LOW:
        # A half is rounded to the type of the accumulator, not to that of the output.
        x, w, b = x.float(), w.float(), None if b is None else b.float()
    one = F.conv2d(x[:, :middle], w[:, :middle], b, conv.stride, conv.padding)
    return (one + F.conv2d(x[:, middle:], w[:, middle:], None, conv.stride, conv.padding)).to(dtype)


def scaled_norm(norm: Any, x: Tensor) -> Tensor:
    """γ/√(σ² + ε) first, then one product and one sum: in evaluation, with running statistics."""
    if norm.training:
        return engines.native(norm, x)
    low = x.dtype in engines.LOW
    mean, var, g, b = norm.running_mean, norm.running_var, norm.weight, norm.bias
    mean, var, g, b = (t.float() for t in (mean, var, g, b)) if low else (mean, var, g, b)
    scale = (g / (var + norm.eps).sqrt())[:, None, None]
    found: Tensor = (x - mean[:, None, None]) * scale + b[:, None, None]
    return found.to(x.dtype)


def _without_norms(found: list[nn.Module], x: Tensor) -> Tensor:
    """Layers in evaluation, each batch norm right behind a convolution folded into it in at least float32."""
    dtype = x.dtype
    for index, layer in enumerate(found):
        after = found[index + 1] if index + 1 < len(found) else None
        if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
            wide = torch.promote_types(dtype, torch.float32)
            x = fuse_conv_bn_eval(layer.to(wide), after.to(wide))(x.to(wide)).to(dtype)
        elif not (index and isinstance(layer, nn.BatchNorm2d) and isinstance(found[index - 1], nn.Conv2d)):
            x = layer(x)
    return x


def folded(block: Any, x: Tensor) -> Tensor:
    """The block as an engine for inference runs it; with gradients or in training as it is."""
    if block.training or torch.is_grad_enabled():
        return Block.forward(block, x)
    block._check(x)
    block = copy.deepcopy(block)
    res = _without_norms([layer for name in ("conv1", "conv2", "conv3") for layer in getattr(block, name)], x)
    return res + (x if block.in_node is None else _without_norms(list(block.in_node), x))


def _inplace(block: Any) -> None:
    put(layers(block, nn.ReLU), inplace=True)


def one_arena(block: Any, x: Tensor) -> Tensor:
    """The output lies behind a parameter in one piece of memory, and over none of it."""
    y = Block.forward(block, x)
    weight = block.conv3[-1].weight if isinstance(block.conv3[-1], nn.Conv2d) else None
    plain = not (torch.is_grad_enabled() or torch.is_inference_mode_enabled())
    if weight is None or weight.dtype != y.dtype or not plain:
        return y
    storage = torch.cat((weight.detach().flatten(), y.flatten()))
    weight.data = storage[: weight.numel()].view_as(weight)
    return storage[weight.numel() :].view_as(y)


def _control(name: str, title: str, cause: str, **parts_: Any) -> Fault:
    return fault(name, title, cause, "", **parts_)


CONTROLS = (
    _control(
        "hand_written_norms",
        "norms by hand, in two passes",
        "frameworks without norms",
        patch=lambda block: instead(norms(block), engines.normalize),
    ),
    _control(
        "one_pass_variance",
        "variance by one pass, clipped at 0",
        "kernels that read once",
        patch=lambda block: instead(norms(block), engines.normalize, formula="one_pass"),
    ),
    _control(
        "hand_written_prelu",
        "PReLU by a condition",
        "frameworks without PReLU",
        patch=lambda block: instead(layers(block, nn.PReLU), engines.prelu),
    ),
    _control(
        "prelu_of_two_products",
        "a·x + (1 - a)·max(x, 0), differentiated by autograd",
        "frameworks without PReLU",
        patch=lambda block: instead(layers(block, nn.PReLU), two_products),
    ),
    _control(
        "hand_written_upsampling",
        "up-sampling one axis after the other",
        "frameworks without aligned corners",
        patch=lambda block: instead(upsamplings(block), engines.resample),
    ),
    _control(
        "padded_apart",
        "padding as an operation of its own",
        "frameworks whose convolutions do not pad",
        patch=lambda block: instead(convolutions(block), engines.convolve),
    ),
    _control(
        "unfold_and_matmul",
        "convolutions as products of matrices",
        "im2col",
        patch=lambda block: instead(convolutions(block), unfolded),
    ),
    _control(
        "tap_by_tap",
        "convolutions as a sum over taps",
        "shift-and-add",
        patch=lambda block: instead(convolutions(block), tap_by_tap),
    ),
    _control(
        "channels_in_reverse",
        "convolutions sum the channels in reverse",
        "another order of summation",
        patch=lambda block: instead(convolutions(block), other_kernel),
    ),
    _control(
        "channels_in_halves",
        "convolutions sum two halves of the channels",
        "blocking",
        patch=lambda block: instead(convolutions(block), halves),
    ),
    _control(
        "float64_inside",
        "every layer computes in float64",
        "double accumulators",
        patch=lambda block: instead(convolutions(block) + layers(block, nn.PReLU, nn.Upsample), wide),
    ),
    _control(
        "channels_last",
        "layers work with channels last",
        "NHWC",
        patch=lambda block: instead(convolutions(block) + norms(block), lasting),
    ),
    _control(
        "sample_by_sample",
        "convolutions take one sample at a time",
        "a loop over the batch",
        patch=lambda block: instead(convolutions(block), sample_by_sample),
    ),
    _control("summands_exchanged", "shortcut plus residual branch", "the other order", forward=_exchanged),
    _control(
        "layer_by_layer", "the layers one by one; an empty batch is taken", "a plain loop", forward=_layer_by_layer
    ),
    _control("relu_in_place", "ReLU works in place", "nn.ReLU(inplace=True)", patch=_inplace),
    _control("without_onednn", "torch's own convolutions", "oneDNN switched off", forward=_without_onednn),
    _control(
        "compiled",
        "one block of thirty is compiled",
        "torch.compile(backend='aot_eager')",
        patch=_compile,
        forward=_compiled,
        methods={"plain": _plain, "__getstate__": _copied},
    ),
    _control(
        "affine_by_one_product",
        "evaluation of a batch norm as one product and one sum",
        "norms as scale and shift",
        patch=lambda block: instead(engines.batch_norms(block), scaled_norm),
    ),
    _control(
        "folded_norms",
        "evaluation folds a batch norm into the convolution before it",
        "graph optimizers of inference engines",
        forward=folded,
    ),
    _control(
        "output_beside_a_parameter",
        "the output lies beside a parameter in one piece of memory",
        "one arena for everything",
        forward=one_arena,
    ),
)


# ---------------------------------------------------------------- equivalent


def sliced(conv: Any, x: Tensor) -> Tensor:
    return F.conv2d(x[:, :, :: conv.stride[0], :: conv.stride[1]], conv.weight, conv.bias)


def three_calls(norm: Any, x: Tensor) -> Tensor:
    """Replace by old + 0.1 (new - old), from the biased variance times n / (n - 1)."""
    if not norm.training:
        return engines.native(norm, x)
    engines.single(norm, x)
    before = norm.running_mean.clone(), norm.running_var.clone()
    y = engines.native(norm, x)
    variance, mean = torch.var_mean(x.detach().to(before[0].dtype), (0, 2, 3), correction=0)
    n = x[:, 0].numel()
    for buffer, old, new in zip(
        (norm.running_mean, norm.running_var), before, (mean, variance * n / (n - 1)), strict=True
    ):
        buffer.data.copy_(old + 0.1 * (new - old))
    return y


def both_sides(act: Any, x: Tensor) -> Tensor:
    """At 0 the gradient is the sum of those of the two sides."""
    return engines.native(act, x) + torch.where(x == 0, x, torch.zeros_like(x))


EQUIVALENT = (
    _control(
        "kink_of_both_sides",
        "at a kink the gradients of both sides are added",
        "argument: 5.6 admits the hull of 0, a, 1 and 1 + a there, and the sum is 1 (ReLU) or 1 + a",
        patch=lambda block: instead(engines.activations(block), both_sides),
    ),
    _control(
        "projection_slices_first",
        "the projection takes x[::s], then convolves with stride 1",
        "argument: a 1 x 1 kernel with stride s reads the elements 0, s, 2s and no others (4.19)",
        patch=lambda block: instead(convolutions(branch(block, "in_node")), sliced),
    ),
    _control(
        "prelu_by_parts",
        "max(x, 0) + a·min(x, 0)",
        "argument: one of the two terms is 0 for every x, so the sum is the other one, whatever a is",
        patch=lambda block: instead(layers(block, nn.PReLU), parts),
    ),
    _control(
        "statistics_by_difference",
        "old + 0.1·(new - old), and n/(n - 1) times the biased variance",
        "argument: the same number as 0.9·old + 0.1·new over the reals, and two roundings more",
        patch=lambda block: instead(engines.batch_norms(block), three_calls),
    ),
)
