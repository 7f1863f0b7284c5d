"""KAConv as the paper writes it down: the definition that every faster path is tested against.

Symbols: samples N, input channels Cin, output channels C, kernel positions K = kh·kw (row-major, top left first),
output height and width H and W.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kaconv.ops.geometry import Geometry


def pad(x: Tensor, geometry: Geometry) -> Tensor:
    """x with the padding's rows and columns of zeros around it."""
    (top, left) = geometry.padding
    return F.pad(x, (left, left, top, top))


def windows(padded: Tensor, geometry: Geometry) -> list[Tensor]:
    """Views of a padded input, one for each kernel position: the pixels that it reads. K of (N, Cin, H, W)."""
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    # The span over which the kernel's corner moves: what the kernel's last position leaves over.
    span_h, span_w = padded.shape[2] - dh * (kh - 1), padded.shape[3] - dw * (kw - 1)
    corners = [(u * dh, v * dw) for u, v in geometry.taps()]
    return [padded[:, :, i : i + span_h : sh, j : j + span_w : sw] for i, j in corners]


def decompose(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Kernel decomposition: the convolution's contribution of each kernel position, as a map of its own.

    Args:
        x: (N, Cin, Hin, Win).
        weight: (C, Cin/groups, kh, kw).

    Returns:
        Z, (N, K, C, H, W). Its sum over K is `torch.nn.functional.conv2d(x, weight, ...)`.
    """
    maps = [
        F.conv2d(view, weight[:, :, u : u + 1, v : v + 1], groups=geometry.groups)
        for view, (u, v) in zip(windows(pad(x, geometry), geometry), geometry.taps(), strict=True)
    ]
    # cat, not stack: it keeps channels_last.
    return torch.cat(maps, dim=1).unflatten(1, (geometry.positions, weight.shape[0]))


def aggregate(y: Tensor, attention: Tensor) -> Tensor:
    """Feature aggregation: the sum over positions of the maps, each weighted by its attention.

    Args:
        y: maps Y, (N, K, C, H, W).
        attention: A, (N, K, C).

    Returns:
        (N, C, H, W), of the maps' dtype.
    """
    weighted = attention.to(y.dtype)[..., None, None] * y
    return weighted.sum(dim=1, dtype=y.dtype)  # or autocast would make it float32 on CUDA


def kaconv2d(
    x: Tensor,
    weight: Tensor,
    norm: Callable[[Tensor], Tensor],
    act: Callable[[Tensor], Tensor],
    attention_generator: Callable[[Tensor], Tensor],
    geometry: Geometry,
) -> Tensor:
    """Kernel attention convolution of x (N, Cin, Hin, Win) with weight (C, Cin/groups, kh, kw).

    Args:
        norm: maps (N, K·C, H, W) to the same shape, each position apart from the others.
        act: elementwise.
        attention_generator: maps the pooled maps Q (N, K, C) to the attention A (N, K, C).

    Returns:
        (N, C, H, W).
    """
    z = decompose(x, weight, geometry)
    y = act(norm(z.flatten(1, 2))).unflatten(1, z.shape[1:3])
    attention = attention_generator(y.mean(dim=(-2, -1)))
    out = aggregate(y, attention)
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        out = out.contiguous(memory_format=torch.channels_last)  # the sum forgets it
    return out
