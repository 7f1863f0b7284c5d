"""KAConv as the paper writes it down: the definition that every faster path is tested against.

Symbols: samples N, input channels Cin, output channels C, kernel positions K = kh·kw (row-major, top left first),
output height and width H and W.
"""

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def windows(x: Tensor, kernel: Pair, stride: Pair, dilation: Pair) -> list[Tensor]:
    """What each kernel position sees of an input that is already padded: K views of it, (N, Cin, H, W) each."""
    # What the last position of the kernel leaves over: the span over which the kernel's corner moves.
    span_h = x.shape[2] - dilation[0] * (kernel[0] - 1)
    span_w = x.shape[3] - dilation[1] * (kernel[1] - 1)
    corners = [(u * dilation[0], v * dilation[1]) for u, v in product(range(kernel[0]), range(kernel[1]))]
    return [x[:, :, i : i + span_h : stride[0], j : j + span_w : stride[1]] for i, j in corners]


def pad(x: Tensor, padding: Pair) -> Tensor:
    """x with rows and columns of zeros around."""
    return F.pad(x, (padding[1], padding[1], padding[0], padding[0]))


def decompose(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """Kernel decomposition: the convolution's contribution of each kernel position, as a map of its own.

    Args:
        x: input, (N, Cin, Hin, Win).
        weight: kernel, (C, Cin/groups, kh, kw).

    Returns:
        Z, (N, K, C, H, W). Its sum over K is `torch.nn.functional.conv2d(x, weight, ...)`.
    """
    kh, kw = weight.shape[2:]
    views = windows(pad(x, padding), (kh, kw), stride, dilation)
    maps = [
        F.conv2d(view, weight[:, :, u : u + 1, v : v + 1], groups=groups)
        for view, (u, v) in zip(views, product(range(kh), range(kw)), strict=True)
    ]
    # cat, not stack: it keeps channels_last.
    return torch.cat(maps, dim=1).unflatten(1, (kh * kw, weight.shape[0]))


def aggregate(y: Tensor, attention: Tensor) -> Tensor:
    """Feature aggregation: the sum over positions of the maps, each weighed by its attention.

    Args:
        y: maps Y, (N, K, C, H, W).
        attention: A, (N, K, C).

    Returns:
        (N, C, H, W), of the maps' dtype.
    """
    weighed = attention.to(y.dtype)[..., None, None] * y
    return weighed.sum(dim=1, dtype=y.dtype)  # said outright, because autocast would make it float32 on CUDA


def kaconv2d(
    x: Tensor,
    weight: Tensor,
    norm: Callable[[Tensor], Tensor],
    act: Callable[[Tensor], Tensor],
    attention_generator: Callable[[Tensor], Tensor],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Kernel attention convolution of x (N, Cin, Hin, Win) with weight (C, Cin/groups, kh, kw).

    Args:
        norm: maps (N, K·C, H, W) to the same shape, each position apart from the others.
        act: elementwise.
        attention_generator: maps the pooled maps Q (N, K, C) to the attention A (N, K, C).

    Returns:
        (N, C, H, W).
    """
    z = decompose(x, weight, stride, padding, dilation, groups)
    y = act(norm(z.flatten(1, 2))).unflatten(1, z.shape[1:3])
    attention = attention_generator(y.mean(dim=(-2, -1)))
    out = aggregate(y, attention)
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        out = out.contiguous(memory_format=torch.channels_last)  # the sum forgets it
    return out
