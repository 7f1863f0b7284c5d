"""Interventions: attention replaced while a model runs, to see what the model makes of it.

An intervention takes the name of a layer and its attention (N, K, C), and gives what takes its place. K = kh·kw
positions are in row-major order, as in the paper.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from kaconv.attention.hooks import kaconv_layers
from kaconv.attention.record import AttentionRecord
from kaconv.attention.statistics import AttentionStatistics

Intervention = Callable[[str, Tensor], Tensor]


def uniform() -> Intervention:
    """1/K everywhere: no preference."""
    return lambda layer, attention: torch.full_like(attention, 1 / attention.shape[1])


def frozen(means: AttentionRecord | AttentionStatistics | Mapping[str, np.ndarray]) -> Intervention:
    """The same maps for every picture, such as the mean over a data set: KAConv without its dependence on the input.

    Args:
        means: what has a `mean(layer)`, or for each layer its maps (kh, kw, C).
    """
    return _constant(means if isinstance(means, Mapping) else {layer: means.mean(layer) for layer in means.layers})


def transplanted(record: AttentionRecord, sample: int) -> Intervention:
    """The maps of one picture for every picture.

    Args:
        sample: its place in the record.
    """
    if not -len(record) <= sample < len(record):
        raise ValueError(f"the record has {len(record)} samples; there is no sample {sample}")
    return _constant({layer: maps[sample] for layer, maps in record.attention.items()})


def shuffled(seed: int = 0) -> Intervention:
    """Every picture takes the maps of another one of its batch, which each layer draws anew. Nobody keeps its own.

    A batch of a data set in the order of its classes mixes only pictures of a class: shuffle the samples before.
    """
    generator = torch.Generator().manual_seed(seed)

    def replace(layer: str, attention: Tensor) -> Tensor:
        if len(attention) < 2:
            raise ValueError("shuffling attention between pictures needs at least 2 of them in a batch; got 1")
        ring = torch.randperm(len(attention), generator=generator)  # each takes from its neighbour in a random ring
        donors = torch.empty_like(ring)
        donors[ring] = ring.roll(1)
        return attention[donors.to(attention.device)]

    return replace


def removed() -> Intervention:
    """No attention at all; it needs `positions` of `intervene`, since something has to be left."""
    return _nothing


@contextmanager
def intervene(
    model: nn.Module, intervention: Intervention, layers: str = "*", positions: Sequence[int] | None = None
) -> Iterator[None]:
    """Replaces the attention of a model's KAConv layers while the block runs, under every backend.

    An `AttentionCapture` that is entered inside sees what takes the attention's place; one that is entered outside sees
    what the generators gave. At the end, on errors too, the model is as it was.

    Args:
        layers: shell pattern of layer names, such as "layer3.*".
        positions: row-major numbers of the kernel positions to replace, 0 ... K-1; the others share what is left of 1
            in their own proportions. None: all.

    Raises:
        ValueError: if no layer matches; for positions that a layer has not; if nothing would be left. From a forward
            pass, if the intervention has no maps for a layer, or maps of another shape.

    Example:
        >>> with intervene(model, removed(), "layer1.*", positions=[4]):
        ...     logits = model(images)  # the centres of all 3×3 kernels are gone
    """
    chosen = kaconv_layers(model, layers)
    if intervention is _nothing and positions is None:
        raise ValueError("removed() needs positions: give the numbers of the kernel positions to remove")
    for name, layer in chosen.items():
        k = layer.kernel_size[0] * layer.kernel_size[1]
        if positions is not None and (not positions or not all(0 <= position < k for position in positions)):
            raise ValueError(f"positions of {name} are numbers from 0 to {k - 1}; got {list(positions)}")
        if intervention is _nothing and len(set(positions)) == k:
            raise ValueError(f"removing all {k} positions of {name} would leave nothing")
    with ExitStack() as stack:
        for name, layer in chosen.items():
            hook = _hook(name, intervention, positions)
            stack.callback(layer.attention_generator.register_forward_hook(hook).remove)
        yield


def _hook(name: str, intervention: Intervention, positions: Sequence[int] | None) -> Callable[..., Tensor]:
    def replace(module: nn.Module, inputs: tuple[Tensor, ...], attention: Tensor) -> Tensor:
        new = intervention(name, attention)
        if new.shape != attention.shape:
            shapes = f"{tuple(new.shape)} for {tuple(attention.shape)}"
            raise ValueError(f"an intervention must keep the shape (N, K, C) of the attention; {name} got {shapes}")
        return new if positions is None else _at_positions(attention, new, positions)

    return replace


def _at_positions(attention: Tensor, new: Tensor, positions: Sequence[int]) -> Tensor:
    """`new` at these positions; the others keep their proportions, or share evenly where they had nothing."""
    here = torch.zeros(attention.shape[1], 1, dtype=torch.bool, device=attention.device)
    here[list(positions)] = True
    others = attention.masked_fill(here, 0)
    others = torch.where(others.sum(1, keepdim=True) > 0, others, (~here).to(attention))
    total = others.sum(1, keepdim=True).clamp_min(torch.finfo(attention.dtype).tiny)  # 0 where no others are left
    new = new.masked_fill(~here, 0)
    return new + others / total * (1 - new.sum(1, keepdim=True)) * ~here


def _constant(maps: Mapping[str, np.ndarray]) -> Intervention:
    def replace(layer: str, attention: Tensor) -> Tensor:
        if layer not in maps:
            raise ValueError(f"there are no maps for the layer {layer}; there are some for {', '.join(maps)}")
        kept = torch.as_tensor(maps[layer]).flatten(0, 1)
        if kept.shape != attention.shape[1:]:
            raise ValueError(
                f"the maps for {layer} are {tuple(kept.shape)}, its attention {tuple(attention.shape[1:])}"
            )
        return kept.to(attention).expand_as(attention)

    return replace


def _nothing(layer: str, attention: Tensor) -> Tensor:
    return torch.zeros_like(attention)
