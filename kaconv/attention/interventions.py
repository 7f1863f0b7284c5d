"""Interventions: attention replaced while a model runs, to see what the model makes of it.

An intervention takes the name of a layer and its attention (N, K, C), and gives what takes its place. K = kh·kw
positions are in row-major order, as in the paper.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kaconv.attention.hooks import AttentionHook, kaconv_layers, watching
from kaconv.attention.record import AttentionRecord
from kaconv.attention.statistics import AttentionStatistics

Intervention = Callable[[str, Tensor], Tensor]


def uniform() -> Intervention:
    """1/K everywhere: no preference."""
    return lambda layer, attention: torch.full_like(attention, 1 / attention.shape[1])


def frozen(means: AttentionRecord | AttentionStatistics | Mapping[str, np.ndarray]) -> Intervention:
    """The same maps for every image, such as the mean over a data set: KAConv without its dependence on the input.

    Args:
        means: what has a `mean(layer)`, or for each layer its maps (kh, kw, C).
    """
    return _constant(means if isinstance(means, Mapping) else {layer: means.mean(layer) for layer in means.layers})


def transplanted(record: AttentionRecord, sample: int) -> Intervention:
    """The maps of one image for every image.

    Args:
        sample: its place in the record.
    """
    if not -len(record) <= sample < len(record):
        raise ValueError(f"the record has {len(record)} samples; there is no sample {sample}")
    return _constant({layer: maps[sample] for layer, maps in record.attention.items()})


def shuffled(seed: int = 0) -> Intervention:
    """The maps of another image of the batch for every image, drawn in each layer by itself. None keeps its own.

    A batch of a data set in the order of its classes mixes only images of a class: shuffle the samples before.
    """
    generator = torch.Generator().manual_seed(seed)

    def replace(layer: str, attention: Tensor) -> Tensor:
        if len(attention) < 2:
            raise ValueError("shuffling attention between images needs at least 2 of them in a batch; got 1")
        ring = torch.randperm(len(attention), generator=generator)  # each takes from its neighbour in a random ring
        donors = torch.empty_like(ring)
        donors[ring] = ring.roll(1)
        return attention[donors.to(attention.device)]

    return replace


class Removed:
    """No attention at all; `intervene` asks for the positions, since something has to be left."""

    def __call__(self, layer: str, attention: Tensor) -> Tensor:
        """Zeros in the place of `attention`."""
        return torch.zeros_like(attention)


def removed() -> Removed:
    """No attention at all; it needs `positions` of `intervene`, since something has to be left."""
    return Removed()


def _from_donor(own: AttentionRecord, donor: int | None) -> Intervention:
    if donor is None:
        raise ValueError("the attention of B needs an image B: choose one")
    return transplanted(own, donor)


@dataclass(frozen=True)
class InterventionKind:
    """An intervention that a user can choose by name.

    Args:
        description: of what takes the attention's place, in a few words.
        make: the intervention, from the untouched model's attention and the number of the donor, which is None unless
            one is needed.
        needs_position: whether it is for some of a kernel's positions only, which have to be given.
        needs_donor: whether the maps of one sample take the place of all others'.
    """

    description: str
    make: Callable[[AttentionRecord, int | None], Intervention]
    needs_position: bool = False
    needs_donor: bool = False


UNIFORM, FROZEN, TRANSPLANTED, SHUFFLED, REMOVED = (
    "uniform",
    "frozen to the mean",
    "attention of B",
    "shuffled",
    "one position removed",
)
INTERVENTION_KINDS = {
    UNIFORM: InterventionKind("1/k² at every position", lambda own, donor: uniform()),
    FROZEN: InterventionKind("every image gets the mean maps of all images", lambda own, donor: frozen(own)),
    TRANSPLANTED: InterventionKind("every image gets the maps of B", _from_donor, needs_donor=True),
    SHUFFLED: InterventionKind("every image gets the maps of another one", lambda own, donor: shuffled()),
    REMOVED: InterventionKind(
        "one position gets nothing, the others share its part", lambda own, donor: removed(), needs_position=True
    ),
}


@contextmanager
def intervene(
    model: nn.Module, intervention: Intervention, layers: str = "*", positions: Sequence[int] | None = None
) -> Iterator[None]:
    """Replace the attention of a model's KAConv layers while the block runs, under every backend.

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
    removing = isinstance(intervention, Removed)
    if removing and positions is None:
        raise ValueError("removed() needs positions: give the numbers of the kernel positions to remove")
    for name, layer in kaconv_layers(model, layers).items():
        k = layer.kernel_size[0] * layer.kernel_size[1]
        if positions is not None and (not positions or not all(0 <= position < k for position in positions)):
            raise ValueError(f"positions of {name} are numbers from 0 to {k - 1}; got {list(positions)}")
        if removing and len(set(positions or ())) == k:
            raise ValueError(f"removing all {k} positions of {name} would leave nothing")
    with watching(model, layers, lambda name, layer: _hook(name, intervention, positions)):
        yield


def _hook(name: str, intervention: Intervention, positions: Sequence[int] | None) -> AttentionHook:
    def replace(q: Tensor, attention: Tensor) -> Tensor:
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
