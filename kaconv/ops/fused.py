"""A KAConv that stores none of its K·C maps: every pass recomputes them from the input, as FlashAttention does.

The passes belong to the device (`cpu_taps`, `triton_taps`); what they add up to is here. With z one of the maps, batch
norm is `xhat = r·z + t`, `pre = gamma·xhat + beta`, and the activation `min(max(pre, 0), cap)`. Where 0 < pre < cap a
map is *active*, where pre ≥ cap *capped*. The pooled maps and all derivatives are sums over active and capped pixels,
so the forward needs three passes (moments, pool, aggregate), the backward two (reduce, gradients), and between them
only the input and some vectors are kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kaconv.ops.geometry import Geometry
from kaconv.ops.sync_batch_norm import SYNCHRONISED, has_other_processes, move_statistics, moving_statistics


class Taps(Protocol):
    """The passes over the maps z_k = W_k · (input seen through position k), which are zero beyond the image.

    Coefficients r, t, gamma, beta, scale, shift are (K, C), sums and attention (N, K, C), contiguous, of the input's
    `real_dtype`. A NaN counts as active, so that it shows.
    """

    def __init__(self, x: Tensor, weight: Tensor, geometry: Geometry, z: Tensor | None = None) -> None:
        """z: what `maps` gave, where it is known already."""
        ...

    @staticmethod
    def samples_at_once(x: Tensor, weight: Tensor, geometry: Geometry) -> int:
        """Samples to take at a time at inference."""
        ...

    @staticmethod
    def maps_shape(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, ...] | None:
        """Shape of what the passes hand on to each other, the maps or what they are made from; None for nothing."""
        ...

    def maps(self) -> Tensor:
        """The tensor that is handed on, of `maps_shape`: never x itself."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance of z over samples and pixels, (K, C)."""
        ...

    def pooled(self, scale: Tensor, shift: Tensor, cap: float) -> Tensor:
        """Mean over the pixels of act(scale·z + shift)."""
        ...

    def pool(self, r: Tensor, t: Tensor, gamma: Tensor, beta: Tensor, cap: float) -> tuple[Tensor, Tensor, Tensor]:
        """Number of active pixels, sum of xhat over them, number of capped pixels."""
        ...

    def aggregate(self, scale: Tensor, shift: Tensor, attention: Tensor, cap: float) -> Tensor:
        """Sum over K of attention · act(scale·z + shift): (N, C, H, W), of the input's dtype and memory format."""
        ...

    def reduce(
        self, r: Tensor, t: Tensor, gamma: Tensor, beta: Tensor, cap: float, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of dout over the active, of dout·xhat over the active, of dout over the capped pixels."""
        ...

    def gradients(
        self,
        r: Tensor,
        t: Tensor,
        gamma: Tensor,
        beta: Tensor,
        cap: float,
        dout: Tensor,
        alpha: Tensor,
        bias: Tensor,
        delta: Tensor,
        epsilon: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """dx and dweight, from dz = [active]·(alpha·dout + bias) - delta - epsilon·xhat.

        alpha and bias are (N, K, C), delta and epsilon (K, C). It is the last pass.
        """
        ...


def kaconv2d(
    x: Tensor,
    weight: Tensor,
    norm: _BatchNorm,
    act: nn.ReLU | nn.ReLU6,
    attention_generator: nn.Module,
    geometry: Geometry,
    taps_type: type[Taps],
) -> Tensor:
    """As `kaconv.ops.reference.kaconv2d`, for batch norm with ReLU or ReLU6."""
    gamma, beta = affine(norm, x, geometry)
    call = _Call(taps_type, geometry, cap_of(act))

    def of_batch() -> tuple[Tensor, Tensor, int]:
        call.taps = taps_type(x, weight, geometry)
        call.group = _process_group(norm)
        return _over_processes(*call.taps.moments(), pixels_of(x, geometry) * len(x), call.group)

    with torch.no_grad():
        r, t, call.values = normalisation(norm, gamma, of_batch)

    if is_trained(x, weight, norm, attention_generator):
        q, *links = _Pool.apply(x, weight, gamma, beta, r, t, call)
        attention = attention_generator(q.to(x.dtype)).to(gamma.dtype)
        constants = (x.detach(), weight.detach(), gamma.detach(), beta.detach(), r, t, call)
        return _Aggregate.apply(attention, *links, *constants)
    scale, shift = gamma * r, gamma * t + beta
    return infer(x, weight, scale, shift, call.cap, attention_generator, geometry, taps_type, call.taps)


def normalisation(
    norm: _BatchNorm, gamma: Tensor, of_batch: Callable[[], tuple[Tensor, Tensor, int]]
) -> tuple[Tensor, Tensor, int]:
    """r and t of a batch norm, (K, C) as gamma, and from how many values of a map they are; 0 for moving statistics.

    of_batch: mean and biased variance of the maps, (K, C), and their number of values. Asked for where the norm goes by
    its batch; then the running statistics move, too.
    """
    if fixed := fixed_statistics(norm):
        return *coefficients_like(gamma, *fixed, norm.eps), 0
    mean, var, values = of_batch()
    if moved := moving_statistics(norm):
        move_statistics(moved, norm.momentum, mean.flatten(), unbiased(var.flatten(), values))
    return *coefficients(mean, var, norm.eps), values


def fixed_statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor] | None:
    """Mean and variance, (K·C,), that a batch norm goes by; None where it goes by its batch."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    return norm.running_mean, norm.running_var


def unbiased(var: Tensor, values: int) -> Tensor:
    """The unbiased variance, from the biased one of so many values."""
    return var * (values / (values - 1))


def coefficients(mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """r and t of a batch norm, from the statistics of the maps, all (K, C)."""
    r = (var + eps).rsqrt()
    return r, -mean * r


def coefficients_like(gamma: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """r and t, of gamma's shape and dtype, from statistics as a batch norm has them, (K·C,)."""
    return coefficients(mean.to(gamma.dtype).view_as(gamma), var.to(gamma.dtype).view_as(gamma), eps)


def real_dtype(x: Tensor) -> torch.dtype:
    """Dtype of the coefficients and sums that belong to an input: float64 for a float64 one, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def affine(norm: _BatchNorm, x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """gamma and beta of a batch norm over K·C channels, (K, C), of x's `real_dtype`."""
    dtype = real_dtype(x)
    shape = (geometry.positions, norm.num_features // geometry.positions)
    if not norm.affine:
        return torch.ones(shape, dtype=dtype, device=x.device), torch.zeros(shape, dtype=dtype, device=x.device)
    return norm.weight.to(dtype).view(shape), norm.bias.to(dtype).view(shape)


def cap_of(act: nn.ReLU | nn.ReLU6) -> float:
    """Where the activation ends."""
    return math.inf if isinstance(act, nn.ReLU) else 6.0


def has_hooks(module: nn.Module) -> bool:
    """True if hooks want a module, or one inside it, to be called."""
    # Written out, as torch.compile takes long over loops.
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    return bool(module._modules) and any(has_hooks(child) for child in module.children())


def is_trained(x: Tensor, weight: Tensor, norm: nn.Module, attention_generator: nn.Module) -> bool:
    """True if anything in a layer's call may want a gradient."""
    if not torch.is_grad_enabled():
        return False
    if x.requires_grad or weight.requires_grad:  # first, as torch.compile takes long over the parameters of modules
        return True
    return any(tensor.requires_grad for module in (norm, attention_generator) for tensor in module.parameters())


def infer(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    cap: float,
    attention_generator: nn.Module,
    geometry: Geometry,
    taps_type: type[Taps],
    taps: Taps | None = None,
) -> Tensor:
    """The output, without a gradient: batch norm is folded into scale and shift. taps: those of all of x, if any."""
    parts = [x]
    if taps is None and _takes_samples_apart(attention_generator):
        parts = x.split(taps_type.samples_at_once(x, weight, geometry))
    outputs = []
    for part in parts:
        passes = taps or taps_type(part, weight, geometry)
        attention = attention_generator(passes.pooled(scale, shift, cap).to(x.dtype)).to(scale.dtype)
        outputs.append(passes.aggregate(scale, shift, attention.contiguous(), cap))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _takes_samples_apart(attention_generator: nn.Module) -> bool:
    """Whether parts of a batch may be given one after another: a hook would see that they are parts."""
    if attention_generator.training or not getattr(attention_generator, "samples_apart_in_eval", False):
        return False
    return not has_hooks(attention_generator)


def pixels_of(x: Tensor, geometry: Geometry) -> int:
    """Pixels of an output map."""
    height, width = geometry.output_size(*x.shape[2:])
    return height * width


def output_shape(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, ...]:
    """(N, C, height, width) of the output."""
    return (x.shape[0], weight.shape[0], *geometry.output_size(*x.shape[2:]))


def _process_group(norm: _BatchNorm) -> distributed.ProcessGroup | None:
    """The processes that a synchronised batch norm shares its statistics with, where there are others."""
    if not (isinstance(norm, SYNCHRONISED) and norm.training and has_other_processes()):
        return None
    return getattr(norm, "process_group", None) or distributed.group.WORLD


def _over_processes(
    mean: Tensor, var: Tensor, values: int, group: distributed.ProcessGroup | None
) -> tuple[Tensor, Tensor, int]:
    """Mean, variance and number of values of all processes together, from those of this one."""
    if group is None:
        return mean, var, values
    mine = torch.stack([mean, var, torch.full_like(mean, values)])
    everyones = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(everyones, mine, group)
    means, variances, counts = torch.stack(everyones).unbind(dim=1)
    total = counts.sum(dim=0)
    mean = (means * counts).sum(dim=0) / total
    var = ((variances + (means - mean).square()) * counts).sum(dim=0) / total
    return mean, var, int(total[0, 0])


@dataclass
class _Call:
    """One call of the layer: what its two autograd functions share. No backward changes it: there may be several."""

    taps_type: type[Taps]
    geometry: Geometry
    cap: float
    values: int = 0  # m, from how many values of a map the statistics are; 0 for moving statistics
    group: distributed.ProcessGroup | None = None  # the processes that these values are spread over
    taps: Taps | None = None  # handed from pass to pass of the forward, so that maps which it may hold are made once

    def mean(self, total: Tensor) -> Tensor:
        """Over the values that the statistics are from, given this process's sum of what each one's gradient is."""
        if not self.values:
            return torch.zeros_like(total)
        if self.group is not None:
            total = total.clone()
            distributed.all_reduce(total, group=self.group)
        return total / self.values


def act_sum(gamma: Tensor, beta: Tensor, cap: float, active: Tensor, active_xhat: Tensor, capped: Tensor) -> Tensor:
    """The sum of act(gamma·xhat + beta), or of its product with what the three sums were weighted by."""
    total = gamma * active_xhat + beta * active
    return total if math.isinf(cap) else total + cap * capped


def through_aggregate(
    attention: Tensor, gamma: Tensor, beta: Tensor, cap: float, sums: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the attention, of gamma and of beta by way of the output, from the sums that `reduce` gives."""
    d_active, d_active_xhat, _ = sums
    dgamma, dbeta = (attention * d_active_xhat).sum(dim=0), (attention * d_active).sum(dim=0)
    return act_sum(gamma, beta, cap, *sums), dgamma, dbeta


def through_pool(
    dq: Tensor, active: Tensor, active_xhat: Tensor, dgamma: Tensor, dbeta: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of gamma and beta, from those by way of the output and dq, the gradient of the pooled sums."""
    return dgamma + (dq * active_xhat).sum(dim=0), dbeta + (dq * active).sum(dim=0)


class _Pool(torch.autograd.Function):
    """(x, weight, gamma, beta) to the pooled maps q (N, K, C) and four links, whose values mean nothing.

    The gradient of x needs both dq and dout, which belongs to `_Aggregate`. That takes the links as inputs and gives as
    their gradients dout, the attention, and its shares in the gradients of gamma and beta. So autograd keeps the order,
    and what one backward hands over reaches no other; where a backward leaves `_Aggregate` out, they are None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, r: Tensor, t: Tensor, call: _Call
    ) -> tuple[Tensor, ...]:
        call.taps = call.taps or call.taps_type(x, weight, call.geometry)
        active, active_xhat, capped = call.taps.pool(r, t, gamma, beta, call.cap)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, gamma, beta, r, t, active, active_xhat)
        q = act_sum(gamma, beta, call.cap, active, active_xhat, capped) / pixels_of(x, call.geometry)
        return q, zeros(x, output_shape(x, weight, call.geometry)), *(zeros(c, c.shape) for c in (q, gamma, beta))

    @staticmethod
    def backward(
        ctx: Any,
        dq: Tensor | None,
        dout: Tensor | None,
        attention: Tensor | None,
        dgamma: Tensor | None,
        dbeta: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        _check_first_derivative()
        call: _Call = ctx.call
        x, weight, gamma, beta, r, t, active, active_xhat = ctx.saved_tensors
        taps = getattr(dgamma, _TAPS, None) or call.taps_type(x, weight, call.geometry)
        if dout is None or attention is None or dgamma is None or dbeta is None:  # no `_Aggregate` in this backward
            dout, attention = zeros(x, output_shape(x, weight, call.geometry)), torch.zeros_like(active)
            dgamma, dbeta = torch.zeros_like(gamma), torch.zeros_like(beta)
        # None is the gradient where a hook has cut the attention off the graph.
        dq = torch.zeros_like(active) if dq is None else dq / pixels_of(x, call.geometry)
        dgamma, dbeta = through_pool(dq, active, active_xhat, dgamma, dbeta)
        slope = gamma * r
        # Moving statistics are constants: nothing flows back through them.
        delta, epsilon = slope * call.mean(dbeta), slope * call.mean(dgamma)
        norm = (r, t, gamma, beta, call.cap)
        dx, dweight = taps.gradients(*norm, dout, slope * attention, slope * dq, delta, epsilon)
        return dx, dweight, dgamma, dbeta, None, None, None


class _Aggregate(torch.autograd.Function):
    """(attention, links) to the output; everything else is a constant here. For the links see `_Pool`."""

    @staticmethod
    def forward(
        ctx: Any,
        attention: Tensor,
        link_dout: Tensor,
        link_attention: Tensor,
        link_dgamma: Tensor,
        link_dbeta: Tensor,
        x: Tensor,
        weight: Tensor,
        gamma: Tensor,
        beta: Tensor,
        r: Tensor,
        t: Tensor,
        call: _Call,
    ) -> Tensor:
        attention = attention.contiguous()
        assert call.taps is not None  # `_Pool` made it
        out = call.taps.aggregate(gamma * r, gamma * t + beta, attention, call.cap)
        call.taps = None
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(attention, x, weight, gamma, beta, r, t)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None) -> tuple[Tensor | None, ...]:
        _check_first_derivative()
        if dout is None:
            return (None,) * 12
        call: _Call = ctx.call
        attention, x, weight, gamma, beta, r, t = ctx.saved_tensors
        attention = attention.detach()
        taps = call.taps_type(x, weight, call.geometry)
        sums = taps.reduce(r, t, gamma, beta, call.cap, dout)
        dattention, dgamma, dbeta = through_aggregate(attention, gamma, beta, call.cap, sums)
        # `_Pool` would make the same maps again. They go with a gradient, so that they live as long as it does.
        setattr(dgamma, _TAPS, taps)
        return dattention, dout, attention, dgamma, dbeta, *[None] * 7


_TAPS = "_kaconv_taps"


def zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One zero that is seen as a whole tensor."""
    return like.new_zeros(()).expand(shape)


def _check_first_derivative() -> None:
    if torch.is_grad_enabled():  # which it is in a backward with create_graph=True alone
        raise RuntimeError(
            "the fused KAConv has no second derivative (create_graph=True); run the model inside "
            'kaconv.use_backend("eager") for it'
        )
