"""KAConv1d, for sequences, and KAConv3d, for volumes and videos, with the attention generators of KAConv2d."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kaconv.layers.attention_generators import ATTENTION_GENERATORS, AttentionGenerator
from kaconv.layers.kaconv2d import NOT_SCRIPTABLE, KAConv2d, as_leaf, position_norm, reset_kaconv

Triple = tuple[int, int, int]


class KAConv1d(KAConv2d):
    """Kernel attention convolution of sequences: a KAConv2d of height 1, with its backends and its tools.

    Args:
        kernel_size, stride, padding, dilation: an int each; `padding=None` stands for
            `dilation * (kernel_size // 2)`.
        options: the other arguments of `KAConv2d`. A `norm_layer` sees (N, K·out_channels, 1, length).

    Shape:
        Input (N, in_channels, Lin), output (N, out_channels, L) with L as in `torch.nn.Conv1d`.

    Attributes:
        weight: (out_channels, in_channels / groups, 1, kernel_size).

    Raises:
        ValueError, TypeError: as `KAConv2d`.

    Example:
        >>> KAConv1d(16, 32, 5, stride=2)(torch.randn(8, 16, 100)).shape
        torch.Size([8, 32, 50])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            (1, kernel_size),
            (1, stride),
            None if padding is None else (0, padding),
            (1, dilation),
            groups,
            **options,
        )

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            return as_leaf(self, x)
        if x.ndim != 3 or x.shape[1] != self.in_channels:
            raise ValueError(f"KAConv1d expects an input (N, {self.in_channels}, length); got {tuple(x.shape)}")
        return super().forward(x.unsqueeze(2)).squeeze(2)


class KAConv3d(nn.Module):
    """Kernel attention convolution of volumes, by its definition, in PyTorch's operators: all K maps are stored.

    Args:
        kernel_size, stride, padding, dilation: an int, or a (depth, height, width) triple; `padding=None` stands for
            `dilation * (kernel_size // 2)`.
        attention, reduction, min_hidden, logit_bias, generator_norm, norm_layer, act_layer: as in `KAConv2d`; the
            norm sees (N, K·out_channels, D, H, W).

    Shape:
        Input (N, in_channels, Din, Hin, Win), output (N, out_channels, D, H, W) with sizes as in `torch.nn.Conv3d`.

    Attributes:
        weight: (out_channels, in_channels / groups, kd, kh, kw), as an ordinary convolution's; there is no bias.
        norm, attention_generator: as in `KAConv2d`, for K = kd·kh·kw positions, the first of the volume first.

    Raises:
        ValueError: as `KAConv2d`.

    Example:
        >>> KAConv3d(3, 8, 3, stride=(1, 2, 2))(torch.randn(2, 3, 4, 16, 16)).shape
        torch.Size([2, 8, 4, 8, 8])
    """

    norm: nn.Module
    act: nn.Module
    attention_generator: AttentionGenerator

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple,
        stride: int | Triple = 1,
        padding: int | Triple | None = None,
        dilation: int | Triple = 1,
        groups: int = 1,
        *,
        attention: str = "L",
        reduction: int = 16,
        min_hidden: int = 32,
        logit_bias: bool = True,
        generator_norm: str = "batch",
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm3d,
        act_layer: Callable[[], nn.Module] = nn.ReLU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if attention not in ATTENTION_GENERATORS:
            raise ValueError(f"unknown attention {attention!r}; choose from {', '.join(ATTENTION_GENERATORS)}")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _triple("kernel_size", kernel_size, least=1)
        self.stride = _triple("stride", stride, least=1)
        self.dilation = _triple("dilation", dilation, least=1)
        if padding is None:
            d, k = self.dilation, self.kernel_size
            padding = (d[0] * (k[0] // 2), d[1] * (k[1] // 2), d[2] * (k[2] // 2))
        self.padding = _triple("padding", padding, least=0)
        self.groups = groups
        self.attention = attention

        positions = math.prod(self.kernel_size)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.norm = position_norm(norm_layer, positions, out_channels)
        self.act = act_layer()
        for module in self.act.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]  # it would overwrite what a hook on `norm` has seen
        hidden = max(out_channels // reduction, min_hidden)
        self.attention_generator = ATTENTION_GENERATORS[attention](
            out_channels, positions, hidden, logit_bias, generator_norm
        )
        self.reset_parameters()
        self.to(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Kaiming-normal (fan-in of one position) weights, zero biases, fresh norms."""
        reset_kaconv(self, self.weight, self.in_channels // self.groups)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            return as_leaf(self, x)
        self._check_input(x)
        z = torch.cat([self._map(x_p, p) for x_p, p in zip(self._windows(x), self._positions(), strict=True)], dim=1)
        y = self.act(self.norm(z)).unflatten(1, (-1, self.out_channels))
        attention = self.attention_generator(y.mean(dim=(-3, -2, -1))).to(y.dtype)
        return (attention[..., None, None, None] * y).sum(dim=1, dtype=y.dtype)

    def _positions(self) -> list[tuple[int, ...]]:
        return list(product(*map(range, self.kernel_size)))

    def _windows(self, x: Tensor) -> list[Tensor]:
        """The input as each position sees it."""
        (pd, ph, pw), strides = self.padding, self.stride
        x = F.pad(x, (pw, pw, ph, ph, pd, pd))
        spans = [n - d * (k - 1) for n, d, k in zip(x.shape[2:], self.dilation, self.kernel_size, strict=True)]
        windows = []
        for position in self._positions():
            starts = [p * d for p, d in zip(position, self.dilation, strict=True)]
            cut = [slice(a, a + span, step) for a, span, step in zip(starts, spans, strides, strict=True)]
            windows.append(x[:, :, cut[0], cut[1], cut[2]])
        return windows

    def _map(self, x: Tensor, position: tuple[int, ...]) -> Tensor:
        i, j, k = position
        return F.conv3d(x, self.weight[:, :, i : i + 1, j : j + 1, k : k + 1], groups=self.groups)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"KAConv3d expects an input (N, {self.in_channels}, depth, height, width); got {tuple(x.shape)}"
            )
        for axis, name in enumerate(("depth", "height", "width")):
            padded = x.shape[2 + axis] + 2 * self.padding[axis]
            extent = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            if padded < extent:
                raise ValueError(
                    f"the input's {name}, {padded} with padding, is smaller than the kernel's extent, {extent}"
                )

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(NOT_SCRIPTABLE)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, attention={self.attention!r}"
        )


def _triple(name: str, value: int | Triple, least: int) -> Triple:
    values = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(values) != 3 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values):
        raise ValueError(f"{name} must be an integer of at least {least}, or three of them; got {value!r}")
    return values[0], values[1], values[2]
