"""KAConv2d: convolution, norm and activation with an attention over kernel positions."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kaconv import ops
from kaconv.layers.attention_generators import ATTENTION_GENERATORS, AttentionGenerator
from kaconv.ops.geometry import Geometry

_CAST_BY_AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)

NOT_SCRIPTABLE = "TorchScript cannot script a KAConv layer; use torch.jit.trace, torch.export or `kaconv export`"


class KAConv2d(nn.Module):
    """Kernel attention convolution, which replaces a whole convolution, norm, activation triple.

    Every position of the kernel is a 1×1 convolution with a norm of its own (`Y_p = act(norm_p(Z_p))`); the output is
    their sum, weighted by an attention that differs by sample, output channel and kernel position, and is computed
    from the pooled Y_p (KAConv, Neurocomputing 2022, section 3).

    Args:
        kernel_size, stride, padding, dilation: an int, or a (height, width) pair. `padding=None` stands for
            `dilation * (kernel_size // 2)`, which keeps the size of the input where the kernel is odd and the
            stride is 1.
        bias: False, as the convolution has none: the norms shift every position.
        attention: "L" (light) or "H" (heavy) attention generator; small letters will do.
        reduction, min_hidden: the generator's hidden width is `max(out_channels // reduction, min_hidden)`.
        logit_bias: whether the attention logits have a bias (the paper's ResNets have, its ResNeXts and
            MobileNetV2s have not).
        generator_norm: the norm inside the generator: "batch", as in the paper, or "layer", "group" or "none", with
            which a batch of one trains, too.
        norm_layer: called with a number of channels, gives the norm of one position.
        act_layer: called without arguments, gives an elementwise activation. It is never run in place.
        backend: "auto", "reference", "eager" or "fused"; see `kaconv.use_backend`.

    Shape:
        Input (N, in_channels, Hin, Win), output (N, out_channels, H, W) with H and W as in `torch.nn.Conv2d`.

    Attributes:
        weight: (out_channels, in_channels / groups, kh, kw), as an ordinary convolution's; there is no bias.
        norm: the norms of all K = kh·kw positions, on (N, K·out_channels, H, W).
        attention_generator: (N, K, out_channels) pooled maps to (N, K, out_channels) attention. A forward hook on it
            sees the attention and may replace it.

    Raises:
        ValueError: for sizes that do not fit together, an unknown `attention` or `generator_norm`, an input of the
            wrong shape, or a training batch of one sample with AG-L and a batch norm in it.
        TypeError: for an input of another dtype than the weights', unless autocast brings both to one.

    Example:
        >>> layer = KAConv2d(64, 128, 3, stride=2, attention="H")
        >>> layer(torch.randn(8, 64, 32, 32)).shape
        torch.Size([8, 128, 16, 16])
    """

    norm: nn.Module
    act: nn.Module
    attention_generator: AttentionGenerator

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        *,
        bias: bool = False,
        attention: str = "L",
        reduction: int = 16,
        min_hidden: int = 32,
        logit_bias: bool = True,
        generator_norm: str = "batch",
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act_layer: Callable[[], nn.Module] = nn.ReLU,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        letter = attention.upper() if isinstance(attention, str) else attention  # models' names have it small
        if letter not in tuple(ATTENTION_GENERATORS):
            raise ValueError(f"unknown attention {attention!r}; choose from {', '.join(ATTENTION_GENERATORS)}")
        if bias is not False:
            raise ValueError(f"KAConv2d has no bias: its norms shift every position; got bias={bias!r}")
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
        for name, value in {**sizes, "reduction": reduction, "min_hidden": min_hidden}.items():
            if not _is_integer(value, least=1):
                raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair("kernel_size", kernel_size, least=1)
        self.stride = _pair("stride", stride, least=1)
        self.dilation = _pair("dilation", dilation, least=1)
        same = self.dilation[0] * (self.kernel_size[0] // 2), self.dilation[1] * (self.kernel_size[1] // 2)
        self.padding = same if padding is None else _pair("padding", padding, least=0)
        self.groups = groups
        self.attention = letter
        self.backend = ops.check_backend(backend)

        positions = self.kernel_size[0] * self.kernel_size[1]
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.norm = position_norm(norm_layer, positions, out_channels)
        self.act = act_layer()
        module: Any
        for module in self.act.modules():
            if getattr(module, "inplace", False):
                setattr(module, "inplace", False)  # noqa: B010 (it would overwrite what a hook on `norm` has seen)
        hidden = max(out_channels // reduction, min_hidden)
        self.attention_generator = ATTENTION_GENERATORS[letter](
            out_channels, positions, hidden, logit_bias, generator_norm
        )
        self.reset_parameters()
        self.to(device=device, dtype=dtype)

    @property
    def geometry(self) -> Geometry:
        """Kernel size, stride, padding, dilation and groups together."""
        return Geometry(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)

    def reset_parameters(self) -> None:
        """Kaiming-normal (fan-in) weights, zero biases, fresh norms.

        The fan-in of the kernel is that of one position, in_channels / groups: each is normalised by itself.
        """
        reset_kaconv(self, self.weight, self.in_channels // self.groups)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            return as_leaf(self, x)
        geometry = self.geometry
        self._check_input(x, geometry)
        return ops.kaconv2d(x, self.weight, self.norm, self.act, self.attention_generator, geometry, self.backend)

    def _check_input(self, x: Tensor, geometry: Geometry) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"KAConv2d expects an input (N, {self.in_channels}, height, width); got {tuple(x.shape)}")
        if x.dtype != self.weight.dtype and x.dtype not in (allowed := self._allowed_dtypes(x.device.type)):
            raise TypeError(f"KAConv2d expects an input of dtype {' or '.join(map(str, allowed))}; got {x.dtype}")
        height, width = geometry.output_size(*x.shape[2:])
        if height < 1 or width < 1:
            raise ValueError(self._too_small(x, axis=0 if height < 1 else 1))

    def _too_small(self, x: Tensor, axis: int) -> str:
        padded = x.shape[2 + axis] + 2 * self.padding[axis]
        extent = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (
            f"the input's {('height', 'width')[axis]}, {padded} with padding, is smaller than the kernel's extent, "
            f"{extent}"
        )

    def _allowed_dtypes(self, device: str) -> tuple[torch.dtype, ...]:
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        return _CAST_BY_AUTOCAST if autocast and self.weight.dtype in _CAST_BY_AUTOCAST else (self.weight.dtype,)

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(NOT_SCRIPTABLE)

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}"
        )
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text + f", attention={self.attention!r}"


def as_leaf(layer: nn.Module, x: fx.Proxy) -> Any:
    """A KAConv layer as one node of a torch.fx graph, whatever the tracer would look into."""
    return x.tracer.create_proxy("call_module", cast(fx.Tracer, x.tracer).path_of_module(layer), (x,), {})


def reset_kaconv(layer: nn.Module, weight: Tensor, fan_in: int) -> None:
    """Initialise the weight of a KAConv layer, its attention generator and its norms."""
    nn.init.normal_(weight, std=(2 / fan_in) ** 0.5)
    for module in layer.modules():
        reset = getattr(module, "reset_parameters", None)
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif module is not layer and callable(reset):
            reset()


class PerPositionNorm(nn.ModuleList):
    """One norm for each kernel position, for norms that look across channels: (N, K·C, H, W) to the same."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([norm(z_p) for norm, z_p in zip(self, z.chunk(len(self), dim=1), strict=True)], dim=1)


def position_norm(norm_layer: Callable[[int], nn.Module], positions: int, channels: int) -> nn.Module:
    """The norms of all positions as one module, (N, K·C, ...) to the same."""
    norm = norm_layer(channels)
    if isinstance(norm, _BatchNorm) or getattr(norm, "running_mean", None) is not None:
        # Batch norms, frozen ones too, treat channels apart: one over K·C channels is K of them over C, in one call.
        return norm_layer(positions * channels)
    return PerPositionNorm([norm, *(norm_layer(channels) for _ in range(positions - 1))])


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(_is_integer(v, least) for v in pair):
        raise ValueError(f"{name} must be an integer of at least {least}, or a pair of them; got {value!r}")
    return pair


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
