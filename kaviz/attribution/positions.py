"""The contribution of each kernel position of a KAConv layer to a score, through the attention that it gets."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import LayerConductance
from scipy import stats
from torch import Tensor, nn
from tqdm.auto import tqdm

from kaconv.attention.hooks import AttentionHook, kaconv_layers, watching
from kaconv.attention.interventions import Intervention, intervene
from kaconv.utils.modes import evaluating
from kaviz.attribution.scores import Score, Target, images_per_pass, target_classes

POSITION_METHODS = {
    "integrated_gradients": "integrated gradients from the even attention",
    "conductance": "conductance through the attention",
    "ablation": "one position without attention",
}
_PATIENCE = 2  # seconds without a progress bar


@dataclass(frozen=True)
class PositionAttribution:
    """Contributions of kernel positions to a score, in units of the logit.

    Args:
        method: one of `POSITION_METHODS`.
        attention: for each layer its attention, (N, kh, kw, C).
        contributions: for each layer, (N, kh, kw, C), or (N, kh, kw) for the ablation of whole positions.
        change: for each layer the change in the score (N,) that its contributions should add up to; for layers that are
            taken together, the whole change under the key "all layers". Empty where nothing is to be added up.
    """

    method: str
    attention: dict[str, np.ndarray]
    contributions: dict[str, np.ndarray]
    change: dict[str, np.ndarray]

    def maps(self, layer: str) -> np.ndarray:
        """Contributions of a layer's positions, summed over its channels. (N, kh, kw)."""
        values = self.contributions[layer]
        return values if values.ndim == 3 else values.sum(axis=-1)

    def completeness(self) -> dict[str, float]:
        """The share of the score's change that the contributions miss: the mean of `|sum − change|` over that of `|change|`.

        For conductance the rest is no error: it is what reaches the score beside the attention, through the maps and
        the shortcuts.
        """
        missing = {}
        for layer, change in self.change.items():
            layers = [layer] if layer in self.contributions else list(self.contributions)
            total = np.sum([self.maps(name).sum(axis=(1, 2)) for name in layers], axis=0)
            missing[layer] = float(np.abs(total - change).mean() / max(np.abs(change).mean(), 1e-12))
        return missing


def attribute_positions(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    method: str = "integrated_gradients",
    layers: str = "*",
    *,
    together: bool = True,
    n_steps: int = 16,
    progress: bool = True,
) -> PositionAttribution:
    """Attribute a score to the kernel positions of KAConv layers, through the attention tensor A (N, K, C).

    - "integrated_gradients": (A − 1/K) times the mean gradient with respect to A along the straight line from the even
      attention 1/K to the image's own, by Gauss and Legendre's rule. `together`: all chosen layers go along at once,
      each towards the A that it has in the undisturbed network, and the contributions of all layers add up to
      score(image) − score(image with even attention in these layers). Otherwise each goes alone, later layers answer
      with an attention of their own, and each layer's contributions add up to its own such difference; this takes as
      many times longer as there are layers. A position at exactly 1/K contributes nothing.
    - "conductance": what flows through A as the image grows out of the mean colour (Captum's LayerConductance).
    - "ablation": score − score with A = 0 at one position and the others as they are, so what the position brings;
      `kaconv.attention.interventions.removed` gives its share to the others instead.

    Args:
        inputs: (N, C, H, W), on the model's device.
        target: a class, one for each image, or a pair of them, as in `kaviz.attribute`.
        layers: shell pattern of layer names.
        n_steps: points on the way, for the first two methods.

    Raises:
        ValueError: for an unknown method, a pattern without a layer, or bad inputs or classes.
    """
    if method not in POSITION_METHODS:
        raise ValueError(f"unknown method {method!r} for positions; choose from {', '.join(POSITION_METHODS)}")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps!r}")
    chosen = kaconv_layers(model, layers)
    attention: dict[str, list[Tensor]] = {name: [] for name in chosen}
    parts: dict[str, list[Tensor]] = {name: [] for name in chosen}
    change: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        classes = target_classes(model, inputs, target)
        size = images_per_pass(inputs)
        label = POSITION_METHODS[method]
        bar = stack.enter_context(
            tqdm(
                total=len(inputs),
                desc=label,
                unit="image",
                leave=False,
                delay=_PATIENCE,
                disable=None if progress else True,
            )
        )
        for images, wanted in zip(inputs.detach().split(size), classes.split(size), strict=True):
            score = _score_of(model, images, wanted)
            own = _attention_of(model, score, layers)
            if method == "conductance":
                found, changed = _conductance(model, images, wanted, chosen, n_steps)
            elif method == "ablation":
                found, changed = _ablation(model, score, own)
            else:
                groups = [list(chosen)] if together else [[name] for name in chosen]
                found, changed = _integrated_gradients(model, score, own, groups, n_steps)
            for name in chosen:
                attention[name].append(own[name])
                parts[name].append(found[name])
            for name, values in changed.items():
                change.setdefault(name, []).append(values)
            bar.update(len(images))
    return PositionAttribution(
        method,
        {name: _array(values, chosen[name].kernel_size) for name, values in attention.items()},
        {name: _array(values, chosen[name].kernel_size) for name, values in parts.items()},
        {name: torch.cat(values).cpu().numpy() for name, values in change.items()},
    )


def position_agreement(
    attention: Mapping[str, np.ndarray], contributions: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Spearman's rank correlation of attention and contribution over a layer's positions, for each image.

    Near 1: what is attended is what is used. NaN where one of the two is the same at all positions.

    Args:
        attention, contributions: for each layer (N, kh, kw) or (N, kh, kw, C); channels are averaged and summed.

    Returns:
        For each layer (N,).
    """
    found = {}
    for layer, maps in contributions.items():
        weights = attention[layer]
        weights = weights if weights.ndim == 3 else weights.mean(axis=-1)
        used = maps if maps.ndim == 3 else maps.sum(axis=-1)
        found[layer] = np.array([_rank_correlation(a.ravel(), b.ravel()) for a, b in zip(weights, used, strict=True)])
    return found


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float("nan") if np.ptp(a) == 0 or np.ptp(b) == 0 else float(stats.spearmanr(a, b).statistic)


def _score_of(model: nn.Module, images: Tensor, classes: Tensor) -> Callable[[], Tensor]:
    return lambda: Score(model)(images, classes)


def _array(values: list[Tensor], kernel: tuple[int, int]) -> np.ndarray:
    return torch.cat(values).unflatten(1, kernel).cpu().numpy()


def _attention_of(model: nn.Module, score: Callable[[], Tensor], layers: str) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def make_hook(name: str, layer: nn.Module) -> AttentionHook:
        def keep(q: Tensor, attention: Tensor) -> None:
            seen[name] = attention.detach().clone()

        return keep

    with watching(model, layers, make_hook), torch.no_grad():
        score()
    return seen


def _replaced(model: nn.Module, attention: Mapping[str, Tensor]) -> ExitStack:
    """The context in which these layers have this attention, and the others their own."""
    stack = ExitStack()
    for name, values in attention.items():
        stack.enter_context(intervene(model, _given(values), layers=_exactly(name)))
    return stack


def _given(values: Tensor) -> Intervention:
    return lambda layer, own: values


def _exactly(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _integrated_gradients(
    model: nn.Module, score: Callable[[], Tensor], own: dict[str, Tensor], groups: list[list[str]], n_steps: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    found: dict[str, Tensor] = {}
    change: dict[str, Tensor] = {}
    with torch.no_grad():
        here = score()
    for names in groups:
        away = {name: own[name] - 1 / own[name].shape[1] for name in names}
        sums = {name: torch.zeros_like(own[name]) for name in names}
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            point = {name: (1 / own[name].shape[1] + float(node) * away[name]).requires_grad_() for name in names}
            with torch.enable_grad(), _replaced(model, point):
                gradients = torch.autograd.grad(score().sum(), list(point.values()))
            for name, gradient in zip(names, gradients, strict=True):
                sums[name] += float(weight) * gradient
        found |= {name: away[name] * sums[name] for name in names}
        even = {name: torch.full_like(own[name], 1 / own[name].shape[1]) for name in names}
        with torch.no_grad(), _replaced(model, even):
            change[names[0] if len(groups) > 1 or len(own) == 1 else "all layers"] = here - score()
    return found, change


def _conductance(
    model: nn.Module, images: Tensor, classes: Tensor, layers: Mapping[str, nn.Module], n_steps: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    scored = Score(model)
    with torch.no_grad():
        change = scored(images, classes) - scored(torch.zeros_like(images), classes)
    found = {}
    for name, layer in layers.items():
        explainer = LayerConductance(scored, layer.attention_generator)
        inputs = images.clone().requires_grad_()
        arguments = {"n_steps": n_steps, "internal_batch_size": images_per_pass(images)}
        with torch.enable_grad():
            found[name] = explainer.attribute(inputs, additional_forward_args=(classes,), **arguments).detach()
    return found, dict.fromkeys(layers, change)


def _ablation(
    model: nn.Module, score: Callable[[], Tensor], own: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    found = {}
    with torch.no_grad():
        here = score()
        for name, attention in own.items():
            drops = []
            for position in range(attention.shape[1]):
                without = attention.clone()
                without[:, position] = 0
                with _replaced(model, {name: without}):
                    drops.append(here - score())
            found[name] = torch.stack(drops, dim=1)
    return found, {}
