"""Effective kernels, a layer's weights scaled by its attention, and the share of each position in the output.

Positions of a kernel are rows and columns (kh, kw) here, as in an `AttentionRecord`. Interventions that are in force
count everywhere.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from kaconv.attention.hooks import AttentionHook, kaconv_layers, watching
from kaconv.layers import KAConv2d
from kaconv.ops.eager import folded_batch_norm
from kaconv.ops.reference import decompose
from kaconv.utils.modes import evaluating

_MAPS = ("attention", "response", "share")


def effective_kernel(layer: KAConv2d, attention: np.ndarray, *, folded: bool = True) -> np.ndarray:
    """The kernel that a layer applies under some attention: its weights, each times that of its position.

    With the scale of the norm folded in, this is what the layer computes but for a constant and for the activation,
    which stands between the positions and their sum: without it, the output would be the convolution with this kernel
    (`linear_agreement` says how far from it the output is). The weights alone mislead, because each position's norm
    divides their size out.

    Args:
        attention: (..., kh, kw, C): of one image, of several, or a mean; 1/(kh·kw) everywhere gives the static
            kernel.
        folded: whether to multiply by the norm's scale, γ / √(variance + ε).

    Returns:
        (..., C, Cin/groups, kh, kw), float32.

    Raises:
        ValueError: for attention of another shape; with `folded`, for another norm than a batch norm with running
            statistics.
    """
    kh, kw = layer.kernel_size
    if attention.shape[-3:] != (kh, kw, layer.out_channels):
        shape = f"(..., {kh}, {kw}, {layer.out_channels})"
        raise ValueError(f"the layer's attention has the shape {shape}; got {attention.shape}")
    kernel = layer.weight
    if folded:
        if not isinstance(layer.norm, nn.BatchNorm2d) or layer.norm.running_mean is None:
            name = type(layer.norm).__name__
            raise ValueError(f"only a batch norm with running statistics can be folded, not {name}: use folded=False")
        scale, _ = folded_batch_norm(layer.norm, kh * kw)
        kernel = kernel * scale.T.unflatten(1, (1, kh, kw))
    return kernel.detach().cpu().float().numpy() * np.moveaxis(attention, -1, -3)[..., None, :, :].astype(np.float32)


def kernel_pictures(kernel: np.ndarray) -> np.ndarray:
    """Kernels as small images, one for each output channel: the weight itself where there is one for a position (a
    depthwise kernel), else the Euclidean norm of a position's weights over the input channels.

    Args:
        kernel: (..., C, Cin/groups, kh, kw).

    Returns:
        (..., kh, kw, C).
    """
    pictures = kernel[..., 0, :, :] if kernel.shape[-3] == 1 else np.linalg.norm(kernel, axis=-3)
    return np.moveaxis(pictures, -3, -1)


def position_contributions(model: nn.Module, images: Tensor, layers: str = "*") -> dict[str, np.ndarray]:
    """Contribution of each kernel position to a layer's output, A_p ⊙ Y_p; they sum to it. In eval mode.

    Args:
        images: (N, 3, H, W); few, because the maps are K times as large as the layers' outputs.
        layers: shell pattern of layer names, such as "layer3.*".

    Returns:
        For each layer (N, kh, kw, C, h, w), float32.

    Raises:
        ValueError: if no layer matches.
    """
    with _running(model, images, layers) as seen:
        weighted = {name: one.weighted(one.layer.act(one.normalised())) for name, one in seen.items()}
    return {
        name: maps.unflatten(1, seen[name].layer.kernel_size).cpu().float().numpy() for name, maps in weighted.items()
    }


def linear_agreement(model: nn.Module, images: Tensor, layers: str = "*") -> dict[str, np.ndarray]:
    """Correlation, over the places of a map, of a layer's output with the convolution with its effective kernel.

    That convolution is the layer without its activation: the correlation says how well the kernel describes the layer.

    Args:
        images, layers: as in `position_contributions`.

    Returns:
        For each layer (N, C); 1 is the same but for scale and offset, NaN is an output that is the same everywhere.
    """
    agreement = {}
    with _running(model, images, layers) as seen:
        for name, one in seen.items():
            z = one.normalised()
            linear, output = (one.weighted(maps).sum(dim=1).flatten(2).cpu().numpy() for maps in (z, one.layer.act(z)))
            agreement[name] = _correlation(linear, output, axis=2)
    return agreement


@dataclass
class _Seen:
    """What a layer was given, and the attention that it made of it."""

    layer: KAConv2d
    x: Tensor = field(init=False)
    attention: Tensor = field(init=False)  # (N, K, C)

    def keep_input(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self.x = inputs[0]

    def keep_attention(self, q: Tensor, attention: Tensor) -> None:
        self.attention = attention

    def normalised(self) -> Tensor:
        """norm_p(Z_p), (N, K·C, h, w)."""
        own = self.layer
        return own.norm(decompose(self.x, own.weight, own.geometry).flatten(1, 2))

    def weighted(self, maps: Tensor) -> Tensor:
        """Maps (N, K·C, h, w) times their attention, (N, K, C, h, w)."""
        return maps.unflatten(1, self.attention.shape[1:]) * self.attention[..., None, None]


@contextmanager
def _running(model: nn.Module, images: Tensor, layers: str) -> Iterator[dict[str, _Seen]]:
    """What the layers saw in one pass; the block is in eval mode, too, and without gradients."""
    seen = {name: _Seen(layer) for name, layer in kaconv_layers(model, layers).items()}
    with evaluating(model), torch.no_grad():
        with ExitStack() as hooks, watching(model, layers, lambda name, layer: seen[name].keep_attention):
            for one in seen.values():
                hooks.callback(one.layer.register_forward_pre_hook(one.keep_input).remove)
            model(images.to(next(model.parameters()).device))
        yield seen


@dataclass(frozen=True)
class PositionShares:
    """Share of each kernel position in each channel's output.

    The mean of a position's map A_p ⊙ Y_p over the image is A_p times Q_p, the pooled map that the attention is made
    from: so shares cost no more than a forward pass.

    Args:
        attention: for each layer A, (N, kh, kw, C).
        pooled: for each layer Q, (N, kh, kw, C).
    """

    attention: dict[str, np.ndarray]
    pooled: dict[str, np.ndarray]

    @property
    def layers(self) -> list[str]:
        """Layer names, in the order of the model."""
        return list(self.attention)

    def maps(self, layer: str) -> dict[str, np.ndarray]:
        """Three maps over the positions for every sample and channel, each with sum 1, (N, kh, kw, C).

        - attention: what the generator gives to a position.
        - response: the share of the output that it would have under even attention.
        - share: the share of the output, summed over the image, that it has.

        Response and share are NaN where no position responds, and may be negative where the activation is.
        """
        attention, pooled = self.attention[layer], self.pooled[layer]
        return {"attention": attention, "response": _of_its_sum(pooled), "share": _of_its_sum(attention * pooled)}

    def correlation(self, layer: str, one: str, other: str) -> np.ndarray:
        """Pearson correlation of two of the `maps` over the positions, for every sample and channel. (N, C).

        It is NaN where one of them is even or missing.

        Raises:
            ValueError: if there is no such map.
        """
        if unknown := [name for name in (one, other) if name not in _MAPS]:
            raise ValueError(f"unknown map {unknown[0]!r}; choose from {', '.join(_MAPS)}")
        maps = self.maps(layer)
        return _correlation(maps[one], maps[other], axis=(1, 2))


def position_shares(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor] | Tensor], layers: str = "*"
) -> PositionShares:
    """Measure the share of each kernel position, over batches of images (N, 3, H, W), with labels or without.

    The model runs in eval mode and on its own device. Everything is kept, about 280 kB an image for KAResNet50.

    Args:
        layers: shell pattern of layer names, such as "layer3.*".

    Raises:
        ValueError: if no layer matches, or there are no images.
    """
    kept: dict[str, list[np.ndarray]] = {name: [] for name in kaconv_layers(model, layers)}
    with (
        watching(model, layers, lambda name, layer: _keep(kept[name], layer.kernel_size)),
        evaluating(model),
        torch.no_grad(),
    ):
        for batch in batches:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            model(images.to(next(model.parameters()).device))
    if not all(kept.values()):
        raise ValueError("there are no images to see the contributions of")
    whole = {name: np.concatenate(parts, axis=1) for name, parts in kept.items()}
    return PositionShares(
        {name: pair[0] for name, pair in whole.items()}, {name: pair[1] for name, pair in whole.items()}
    )


def _keep(kept: list[np.ndarray], kernel_size: tuple[int, int]) -> AttentionHook:
    def hook(q: Tensor, attention: Tensor) -> None:
        pair = torch.stack([attention.float(), q.float()])
        kept.append(pair.unflatten(2, kernel_size).cpu().numpy())

    return hook


def _of_its_sum(values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return values / values.sum(axis=(1, 2), keepdims=True)


def _correlation(one: np.ndarray, other: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    # In float64 the mean of equal float32 numbers is exact, so a flat map gives NaN, not rounding's correlation.
    a, b = (values - values.mean(axis=axis, keepdims=True, dtype=np.float64) for values in (one, other))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=axis) / np.sqrt((a**2).sum(axis=axis) * (b**2).sum(axis=axis))
