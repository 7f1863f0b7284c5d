"""The fused KAConv as operators of PyTorch, which torch.compile, torch.export and AOTInductor keep whole.

Each operator is a pass of `kaconv.ops.fused.Taps` and has a fake kernel, which tells its outputs' shapes. In training
there are `batch_coefficients`, then `pool_maps` and `aggregate`, whose derivatives are the operators `pool_backward`
and `aggregate_backward`; between the two stands the attention generator, traced as the module that it is, but for its
batch norm with ReLU and its softmax. At inference there are `folded_statistics`, `pooled` and `weighted_sum`. What is
scaled and summed around a pass belongs to an operator, small as it is: each piece left to torch.compile is one more
kernel to compile, for each size of layer. The geometry travels as `Geometry.numbers()`, what the passes hand on to each
other as the tensor z that `prepared` gives: the maps; or, in groups of few channels, the input as the passes read it,
so that it is brought into their memory format and dtype once; or nothing, with depthwise kernels and on CUDA
(`Taps.maps_shape`).

A program that holds these operators runs where `kaconv` has been imported. An operator whose derivative or outputs
change needs a new name: torch.compile keeps what it has compiled on disk, and knows it by the names of what it holds.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kaconv.ops import cpu_taps
from kaconv.ops.fused import (
    Taps,
    act_sum,
    affine,
    cap_of,
    coefficients,
    coefficients_like,
    fixed_statistics,
    has_hooks,
    is_trained,
    output_shape,
    pixels_of,
    real_dtype,
    through_aggregate,
    through_pool,
    unbiased,
    zeros,
)
from kaconv.ops.geometry import Geometry
from kaconv.ops.sync_batch_norm import move_statistics, moving_statistics


def kaconv2d(
    x: Tensor,
    weight: Tensor,
    norm: _BatchNorm,
    act: nn.ReLU | nn.ReLU6,
    attention_generator: nn.Module,
    geometry: Geometry,
) -> Tensor:
    """As `kaconv.ops.fused.kaconv2d`, of one process."""
    gamma, beta = affine(norm, x, geometry)
    numbers, cap = geometry.numbers(), finite_cap(cap_of(act))
    constants = (x.detach(), weight.detach())
    z = prepared(*constants, numbers)
    fixed, trained = fixed_statistics(norm), is_trained(x, weight, norm, attention_generator)
    values = 0
    if fixed and not trained:
        scale, shift = folded_statistics(*fixed, norm.eps, gamma, beta)
        return inferred(x, weight, z, scale, shift, cap, attention_generator, numbers)
    if fixed:
        r, t = fixed_coefficients(*fixed, norm.eps, gamma.detach())
    else:
        moved = moving_statistics(norm) or (None, None, None)
        r, t = batch_coefficients(*constants, z, *moved, norm.momentum, norm.eps, numbers)
        values = x.shape[0] * pixels_of(x, geometry)
    if not trained:
        return inferred(x, weight, z, gamma * r, gamma * t + beta, cap, attention_generator, numbers)
    q, _, _, *links = pool_maps(x, weight, z, gamma, beta, r, t, cap, numbers, values)
    attention = generated(attention_generator, q.to(x.dtype)).to(gamma.dtype)
    return aggregate(attention, links, *constants, z, gamma.detach(), beta.detach(), r, t, cap, numbers)


def inferred(
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    cap: float | None,
    attention_generator: nn.Module,
    numbers: Sequence[int],
) -> Tensor:
    """The output, without a gradient: batch norm is folded into scale and shift."""
    q = pooled(x, weight, z, scale, shift, cap, numbers)
    attention = generated(attention_generator, q.to(x.dtype)).to(scale.dtype)
    return weighted_sum(x, weight, z, scale, shift, attention, cap, numbers)


def generated(attention_generator: nn.Module, q: Tensor) -> Tensor:
    """The attention, by a generator that is traced, with its norm, ReLU and softmax as operators."""
    if getattr(attention_generator, "takes_steps", False):
        return attention_generator(q, norm_relu=norm_relu, softmax=softmax)
    return attention_generator(q)


def finite_cap(cap: float) -> float | None:
    """The cap, or None for infinity, which AOTInductor's packages cannot write down."""
    return cap if math.isfinite(cap) else None


def _cap(cap: float | None) -> float:
    return math.inf if cap is None else cap


def taps_for(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[type[Taps], str | None]:
    """The passes for the device of x, and why they cannot be used; None where they can."""
    if x.device.type == "cpu":
        return cpu_taps.CPUTaps, cpu_taps.supported(x, weight, geometry)
    from kaconv.ops import triton_taps  # not every machine has Triton

    return triton_taps.TritonTaps, triton_taps.supported(x, weight, geometry)


def _taps(x: Tensor, weight: Tensor, numbers: Sequence[int], z: Tensor | None = None) -> Taps:
    geometry = Geometry.from_numbers(weight.shape[2:], numbers)
    taps_type, reason = taps_for(x, weight, geometry)
    if reason:
        raise RuntimeError(f"this program holds a fused KAConv, which cannot run here: {reason}")
    return taps_type(x, weight, geometry, None if z is None or z.numel() == 0 else z)


def _maps_shape(x: Tensor, weight: Tensor, numbers: Sequence[int]) -> tuple[int, ...]:
    if x.device.type != "cpu":
        return (0,)
    return cpu_taps.CPUTaps.maps_shape(x, weight, Geometry.from_numbers(weight.shape[2:], numbers)) or (0,)


def _new_output(x: Tensor, weight: Tensor, numbers: Sequence[int]) -> Tensor:
    return _as(x, x.new_empty(output_shape(x, weight, Geometry.from_numbers(weight.shape[2:], numbers))))


def _as(x: Tensor, maps: Tensor) -> Tensor:
    """The maps in the memory format that the passes give them for an input x."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return maps.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _new_sums(x: Tensor, like: Tensor) -> Tensor:
    """(N, K, C), of the coefficients' dtype."""
    return like.new_empty(x.shape[0], *like.shape)


def _operator(name: str, mutates_args: Sequence[str] = ()) -> Callable[[Callable[..., Any]], torch.library.CustomOpDef]:
    """An operator that takes its arguments in whatever memory format they are in, as the passes do.

    Otherwise torch.compile, which gives its convolutions' outputs in channels_last, copies each argument of each
    operator into the format that it was traced with, by kernels that have to be compiled.
    """
    flexible = torch.Tag.flexible_layout
    return torch.library.custom_op(f"kaconv::{name}", mutates_args=mutates_args, tags=(flexible,))


# Passes without a derivative of their own ------------------------------------------------------------------------


@_operator("prepared")
def prepared(x: Tensor, weight: Tensor, numbers: Sequence[int]) -> Tensor:
    """`Taps.maps`, or an empty tensor where nothing is handed on."""
    shape = _maps_shape(x, weight, numbers)
    return x.new_empty(0, dtype=real_dtype(x)) if shape == (0,) else _taps(x, weight, numbers).maps()


@prepared.register_fake
def _(x: Tensor, weight: Tensor, numbers: Sequence[int]) -> Tensor:
    return x.new_empty(_maps_shape(x, weight, numbers), dtype=real_dtype(x))


@_operator("batch_coefficients", mutates_args=("running_mean", "running_var", "num_batches_tracked"))
def batch_coefficients(
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    eps: float,
    numbers: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """r and t from `Taps.moments`, towards which a batch norm's running statistics move, if they are given."""
    mean, var = _taps(x, weight, numbers, z).moments()
    values = x.shape[0] * pixels_of(x, Geometry.from_numbers(weight.shape[2:], numbers))
    _move((running_mean, running_var, num_batches_tracked), momentum, mean.flatten(), var.flatten(), values)
    return coefficients(mean, var, eps)


def _move(
    running: tuple[Tensor | None, Tensor | None, Tensor | None],
    momentum: float | None,
    mean: Tensor,
    var: Tensor,
    values: int,
) -> None:
    """Move running statistics, if they are given, towards those of so many values, of which var is biased."""
    running_mean, running_var, batches = running
    if running_mean is not None and running_var is not None and batches is not None:
        move_statistics((running_mean, running_var, batches), momentum, mean, unbiased(var, values))


@batch_coefficients.register_fake
def _(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    r = x.new_empty(weight.shape[2] * weight.shape[3], weight.shape[0], dtype=real_dtype(x))
    return r, torch.empty_like(r)


@_operator("fixed_coefficients")
def fixed_coefficients(mean: Tensor, var: Tensor, eps: float, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """r and t from statistics that do not move, (K, C) as gamma."""
    return coefficients_like(gamma, mean, var, eps)


@fixed_coefficients.register_fake
def _(mean: Tensor, var: Tensor, eps: float, gamma: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gamma), torch.empty_like(gamma)


@_operator("folded_statistics")
def folded_statistics(mean: Tensor, var: Tensor, eps: float, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift, (K, C), of a batch norm whose statistics do not move."""
    r, t = coefficients_like(gamma, mean, var, eps)
    return gamma * r, gamma * t + beta


@folded_statistics.register_fake
def _(mean: Tensor, var: Tensor, eps: float, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gamma), torch.empty_like(gamma)


@_operator("pooled")
def pooled(
    x: Tensor, weight: Tensor, z: Tensor, scale: Tensor, shift: Tensor, cap: float | None, numbers: Sequence[int]
) -> Tensor:
    """`Taps.pooled`."""
    return _taps(x, weight, numbers, z).pooled(scale, shift, _cap(cap))


@pooled.register_fake
def _(x: Tensor, weight: Tensor, z: Tensor, scale: Tensor, *_: Any) -> Tensor:
    return _new_sums(x, scale)


@_operator("weighted_sum")
def weighted_sum(
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    attention: Tensor,
    cap: float | None,
    numbers: Sequence[int],
) -> Tensor:
    """`Taps.aggregate`."""
    return _taps(x, weight, numbers, z).aggregate(scale, shift, attention.contiguous(), _cap(cap))


@weighted_sum.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    attention: Tensor,
    cap: float | None,
    numbers: Sequence[int],
) -> Tensor:
    return _new_output(x, weight, numbers)


# The two stages of a training step ---------------------------------------------------------------------------------


@_operator("pool_maps")
def pool_maps(
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    r: Tensor,
    t: Tensor,
    cap: float | None,
    numbers: Sequence[int],
    values: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The pooled maps; two sums for the backward pass; five links to `aggregate`, as in `fused._Pool`.

    The fifth link hands on the maps. values: from how many of a map the statistics are; 0 for moving statistics.
    """
    geometry = Geometry.from_numbers(weight.shape[2:], numbers)
    active, active_xhat, capped = _taps(x, weight, numbers, z).pool(r, t, gamma, beta, _cap(cap))
    q = act_sum(gamma, beta, _cap(cap), active, active_xhat, capped) / pixels_of(x, geometry)
    return q, active, active_xhat, *_links(x, weight, q, gamma, numbers)


def _links(
    x: Tensor, weight: Tensor, q: Tensor, gamma: Tensor, numbers: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    geometry = Geometry.from_numbers(weight.shape[2:], numbers)
    return (
        zeros(x, output_shape(x, weight, geometry)),
        zeros(q, q.shape),
        zeros(gamma, gamma.shape),
        zeros(gamma, gamma.shape),
        zeros(gamma, _maps_shape(x, weight, numbers)),
    )


@pool_maps.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    r: Tensor,
    t: Tensor,
    cap: float | None,
    numbers: Sequence[int],
    values: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q = _new_sums(x, gamma)
    return q, torch.empty_like(q), torch.empty_like(q), *_links(x, weight, q, gamma, numbers)


def _pool_saves(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, gamma, beta, r, t, ctx.cap, ctx.numbers, ctx.values = inputs
    _, active, active_xhat, *_ = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(active, active_xhat)
    ctx.save_for_backward(x, weight, gamma, beta, r, t, active, active_xhat)


@_operator("pool_backward", mutates_args=("z",))
def pool_backward(
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    r: Tensor,
    t: Tensor,
    active: Tensor,
    active_xhat: Tensor,
    dq: Tensor,
    dout: Tensor,
    attention: Tensor,
    dgamma: Tensor,
    dbeta: Tensor,
    cap: float | None,
    numbers: Sequence[int],
    values: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, gamma and beta; see `fused._Pool`. Those of the maps stay in z."""
    dq = dq / pixels_of(x, Geometry.from_numbers(weight.shape[2:], numbers))
    dgamma, dbeta = through_pool(dq, active, active_xhat, dgamma, dbeta)
    slope = gamma * r
    delta, epsilon = (slope * (total / values if values else torch.zeros_like(total)) for total in (dbeta, dgamma))
    slopes = (slope * attention, slope * dq, delta, epsilon)
    dx, dweight = _taps(x, weight, numbers, z).gradients(r, t, gamma, beta, _cap(cap), dout, *slopes)
    return dx, dweight.contiguous(), dgamma, dbeta


@pool_backward.register_fake
def _(
    x: Tensor, weight: Tensor, z: Tensor, gamma: Tensor, beta: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    return _as(x, torch.empty_like(x)), dweight, torch.empty_like(gamma), torch.empty_like(beta)


def _pool_gradients(
    ctx: Any,
    dq: Tensor | None,
    _active: None,
    _active_xhat: None,
    dout: Tensor | None,
    attention: Tensor | None,
    dgamma: Tensor | None,
    dbeta: Tensor | None,
    z: Tensor | None,
) -> tuple[Tensor | None, ...]:
    x, weight, gamma, beta, r, t, active, active_xhat = ctx.saved_tensors
    if dout is None or attention is None or dgamma is None or dbeta is None:  # no `aggregate` in this backward
        dout = zeros(x, output_shape(x, weight, Geometry.from_numbers(weight.shape[2:], ctx.numbers)))
        attention, dgamma, dbeta = torch.zeros_like(active), torch.zeros_like(gamma), torch.zeros_like(beta)
    dq = torch.zeros_like(active) if dq is None else dq
    # A copy, as `pool_backward` overwrites it; torch.compile leaves the copy out.
    z = prepared(x, weight, ctx.numbers) if z is None else z.clone()
    known = (gamma, beta, r, t, active, active_xhat, dq, dout, attention, dgamma, dbeta)
    dx, dweight, dgamma, dbeta = pool_backward(x, weight, z, *known, ctx.cap, ctx.numbers, ctx.values)
    return dx, dweight, None, dgamma, dbeta, None, None, None, None, None


pool_maps.register_autograd(_pool_gradients, setup_context=_pool_saves)


@_operator("aggregate")
def aggregate(
    attention: Tensor,
    links: Sequence[Tensor],
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    r: Tensor,
    t: Tensor,
    cap: float | None,
    numbers: Sequence[int],
) -> Tensor:
    """The output, from the attention; for the links see `pool_maps`. All else is a constant here."""
    return _taps(x, weight, numbers, z).aggregate(gamma * r, gamma * t + beta, attention.contiguous(), _cap(cap))


@aggregate.register_fake
def _(
    attention: Tensor,
    links: Sequence[Tensor],
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    r: Tensor,
    t: Tensor,
    cap: float | None,
    numbers: Sequence[int],
) -> Tensor:
    return _new_output(x, weight, numbers)


def _aggregate_saves(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    attention, _, x, weight, _, gamma, beta, r, t, ctx.cap, ctx.numbers = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(attention, x, weight, gamma, beta, r, t)


@_operator("aggregate_backward")
def aggregate_backward(
    x: Tensor,
    weight: Tensor,
    z: Tensor,
    gamma: Tensor,
    beta: Tensor,
    r: Tensor,
    t: Tensor,
    dout: Tensor,
    attention: Tensor,
    cap: float | None,
    numbers: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the attention, and the output's shares in those of gamma and beta."""
    sums = _taps(x, weight, numbers, z).reduce(r, t, gamma, beta, _cap(cap), dout)
    return through_aggregate(attention, gamma, beta, _cap(cap), sums)


@aggregate_backward.register_fake
def _(x: Tensor, weight: Tensor, z: Tensor, gamma: Tensor, beta: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _new_sums(x, gamma), torch.empty_like(gamma), torch.empty_like(beta)


def _aggregate_gradients(ctx: Any, dout: Tensor | None) -> tuple[Any, ...]:
    if dout is None:
        return (None,) * 11
    attention, x, weight, gamma, beta, r, t = ctx.saved_tensors
    z = prepared(x, weight, ctx.numbers)
    known = (gamma, beta, r, t, dout, attention)
    dattention, dgamma, dbeta = aggregate_backward(x, weight, z, *known, ctx.cap, ctx.numbers)
    return dattention, [dout, attention, dgamma, dbeta, z], *[None] * 9


aggregate.register_autograd(_aggregate_gradients, setup_context=_aggregate_saves)


# The batch norm, with ReLU, and the softmax of the attention generators ---------------------------------------------


def norm_relu(norm: nn.Module, hidden: Tensor) -> Tensor:
    """As `kaconv.layers.attention_generators.norm_relu`; as operators where it is a batch norm that nothing watches."""
    if type(norm) is not nn.BatchNorm1d or norm.weight is None or has_hooks(norm):
        return F.relu(norm(hidden))
    fixed, moved = fixed_statistics(norm), moving_statistics(norm) or (None, None, None)
    statistics = fixed or hidden_statistics(hidden.detach(), *moved, norm.momentum)
    affine_and_statistics = (value.to(real_dtype(hidden)) for value in (norm.weight, norm.bias, *statistics))
    return normed_relu(hidden, *affine_and_statistics, norm.eps, fixed is None)


@_operator("hidden_statistics", mutates_args=("running_mean", "running_var", "num_batches_tracked"))
def hidden_statistics(
    hidden: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (d,), of vectors, (vectors, d); running statistics move as in `batch_coefficients`."""
    var, mean = torch.var_mean(hidden.to(real_dtype(hidden)), dim=0, correction=0)
    _move((running_mean, running_var, num_batches_tracked), momentum, mean, var, len(hidden))
    return mean, var


@hidden_statistics.register_fake
def _(hidden: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    mean = hidden.new_empty(hidden.shape[1], dtype=real_dtype(hidden))
    return mean, torch.empty_like(mean)


@_operator("normed_relu")
def normed_relu(
    hidden: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float, of_batch: bool
) -> Tensor:
    """Vectors, (vectors, d), after batch norm and ReLU. of_batch: whether the statistics are those of the vectors."""
    r, t = coefficients(mean, var, eps)
    return F.relu(gamma * (r * hidden + t) + beta).to(hidden.dtype)


@normed_relu.register_fake
def _(hidden: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


@_operator("normed_relu_backward")
def normed_relu_backward(
    hidden: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float, of_batch: bool, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, gamma and beta."""
    r, t = coefficients(mean, var, eps)
    xhat = r * hidden + t
    dpre = torch.where(gamma * xhat + beta <= 0, 0, dout.to(xhat.dtype))
    dgamma, dbeta = (dpre * xhat).sum(dim=0), dpre.sum(dim=0)
    if of_batch:  # through the statistics, too
        dpre = dpre - (dbeta + xhat * dgamma) / len(hidden)
    return (gamma * r * dpre).to(hidden.dtype), dgamma, dbeta


@normed_relu_backward.register_fake
def _(hidden: Tensor, gamma: Tensor, beta: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dhidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    return dhidden, torch.empty_like(gamma), torch.empty_like(beta)


def _normed_relu_saves(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.of_batch = inputs
    ctx.save_for_backward(*tensors)


def _normed_relu_gradients(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return *normed_relu_backward(*ctx.saved_tensors, ctx.eps, ctx.of_batch, dout), None, None, None, None


normed_relu.register_autograd(_normed_relu_gradients, setup_context=_normed_relu_saves)


@_operator("softmax")
def softmax(logits: Tensor) -> Tensor:
    """Over the positions, of (N, K, C)."""
    return logits.softmax(dim=1).contiguous()


@softmax.register_fake
def _(logits: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@_operator("softmax_backward")
def softmax_backward(dattention: Tensor, attention: Tensor) -> Tensor:
    """Gradient of the logits."""
    weighted = dattention * attention
    return (weighted - attention * weighted.sum(dim=1, keepdim=True)).contiguous()


@softmax_backward.register_fake
def _(dattention: Tensor, attention: Tensor) -> Tensor:
    return torch.empty_like(attention, memory_format=torch.contiguous_format)


def _softmax_saves(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _softmax_gradient(ctx: Any, dattention: Tensor) -> Tensor:
    (attention,) = ctx.saved_tensors
    return softmax_backward(dattention, attention)


softmax.register_autograd(_softmax_gradient, setup_context=_softmax_saves)
softmax.register_autocast("cuda", torch.float32)  # as of PyTorch's own
