"""Checks of what attributions claim: perturbed pixels, perturbed attributions, randomised weights, other methods.

Infidelity and sensitivity are Captum's; ROAD and the randomisation of parameters are Quantus', which is under the LGPL
(version 3 or later), is imported where it is needed only, and comes with `pip install 'kaconv[metrics]'`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from captum.metrics import infidelity, sensitivity_max
from scipy import stats
from torch import Tensor, nn

from kaconv.utils.extras import missing_package
from kaconv.utils.intervals import t_interval
from kaconv.utils.modes import evaluating
from kaviz.attribution.pixels import attribute, seeded
from kaviz.attribution.scores import Score, Target, images_per_pass, target_classes

FRACTIONS = (0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
PERCENTAGES = (10, 30, 50, 70, 90)
MEASURES = {
    "deletion": "mean probability as pixels go; low is good",
    "insertion": "mean probability as pixels come; high is good",
    "infidelity": "squared error of the predicted change of the logit under noise; low is good",
    "sensitivity": "largest relative change of the maps under slight noise; low is good",
    "road": "share of decisions kept as pixels go and are filled in (ROAD); low is good",
    "randomisation": "rank correlation with the maps of a network of random weights; near 0 is good",
}


def perturbation_curve(
    model: nn.Module,
    inputs: Tensor,
    target: int | Tensor,
    attributions: Tensor,
    fractions: Sequence[float],
    *,
    insertion: bool = False,
    baseline: float = 0.0,
) -> Tensor:
    """The target's probability as pixels are taken away, or brought in, those of the highest attribution first.

    Attributions that name what the model uses make a deletion curve fall, and an insertion curve rise, sooner than
    a random order does: pass `torch.rand_like(attributions)` for that reference.

    Args:
        inputs: (N, C, H, W).
        target: class of every sample, or one for each (N,).
        attributions: (N, C, H, W); a pixel counts by their sum over the channels.
        fractions: shares of the pixels, in [0, 1], at which to look.
        insertion: start from the baseline and bring pixels in, in place of the contrary.
        baseline: what stands for a pixel that is away; 0 is the mean colour of normalised images.

    Returns:
        (N, len(fractions)), on the CPU.

    Raises:
        ValueError: for attributions of another shape than the inputs, or fractions outside [0, 1].
    """
    _check_shape(attributions, inputs)
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions must lie in [0, 1], got {list(fractions)}")
    n, _, height, width = inputs.shape
    target = torch.as_tensor(target, device=inputs.device).expand(n)
    rank = _ranks(attributions)
    curve = []
    with evaluating(model), torch.no_grad():
        for fraction in fractions:
            chosen = rank < round(fraction * height * width)
            shown = inputs.where(chosen if insertion else ~chosen, baseline)
            probabilities = torch.cat([model(batch).softmax(1) for batch in shown.split(images_per_pass(inputs))])
            curve.append(probabilities.gather(1, target[:, None]).cpu())
    return torch.cat(curve, 1)


def infidelities(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    attributions: Tensor,
    *,
    noise: float = 0.1,
    samples: int = 10,
    seed: int = 0,
) -> Tensor:
    """Mean squared error with which attributions predict the change of the score under noise, by Captum; 0 is best.

    The attributions are first scaled as fits best, so that methods of other units can be compared.

    Args:
        attributions: (N, C, H, W).
        noise: standard deviation of the normal noise, as a share of the inputs' range.
        samples: noisy copies of each image.

    Returns:
        (N,), in squared units of the logit.
    """
    _check_shape(attributions, inputs)
    spread = noise * float(inputs.max() - inputs.min())

    def perturb(x: Tensor) -> tuple[Tensor, Tensor]:
        change = spread * torch.randn_like(x)
        return change, x - change

    with evaluating(model), seeded(seed, inputs.device), torch.no_grad():
        classes = target_classes(model, inputs, target)
        return infidelity(
            Score(model),
            perturb,
            inputs,
            attributions,
            additional_forward_args=(classes,),
            n_perturb_samples=samples,
            max_examples_per_batch=min(max(images_per_pass(inputs), len(inputs)), samples * len(inputs)),
            normalize=True,
        ).cpu()


def sensitivities(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    method: str = "integrated_gradients",
    *,
    radius: float = 0.02,
    samples: int = 4,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Largest change of a method's maps under slight noise, as a share of their norm, by Captum; 0 is steadiest.

    Args:
        radius: of the uniform noise on each value.
        samples: noisy copies of each image.
        options: of `kaviz.attribute` for this method.

    Returns:
        (N,).
    """
    with evaluating(model):
        classes = target_classes(model, inputs, target)

    def explain(images: tuple[Tensor], additional_forward_args: tuple[Tensor]) -> tuple[Tensor]:
        wanted = additional_forward_args[0].unbind(1)
        target = wanted if len(wanted) > 1 else wanted[0]
        return (attribute(model, images[0], target, method, progress=False, seed=seed, **options),)

    with seeded(seed, inputs.device):
        return sensitivity_max(
            explain,
            inputs,
            perturb_radius=radius,
            n_perturb_samples=samples,
            additional_forward_args=(classes,),
        ).cpu()


def road(
    model: nn.Module,
    inputs: Tensor,
    target: int | Tensor,
    attributions: Tensor,
    percentages: Sequence[int] = PERCENTAGES,
    *,
    seed: int = 0,
) -> np.ndarray:
    """Decisions that stand when the pixels of the highest attribution are removed and debiased (ROAD), by Quantus.

    Removed pixels are filled from their neighbours with noise, so that the shape of the hole tells nothing (Rong et
    al., 2022). The sooner the model leaves the class, the better the attributions.

    Args:
        target: class of every sample, or one for each (N,).
        attributions: (N, C, H, W); a pixel counts by their sum over the channels.
        percentages: of the pixels to remove.

    Returns:
        Whether the model says `target`, (N, len(percentages)).

    Raises:
        ModuleNotFoundError: without Quantus.
    """
    quantus = _quantus()
    from quantus.functions.perturb_func import noisy_linear_imputation

    _check_shape(attributions, inputs)
    channels, pixels = inputs.shape[1], inputs.shape[2] * inputs.shape[3]
    labels = torch.as_tensor(target).expand(len(inputs)).cpu().numpy()

    def fill(arr: np.ndarray, indices: np.ndarray, **options: Any) -> np.ndarray:
        # Quantus ranks values, not pixels, and its imputation wants pixels: those whose values are all chosen.
        return noisy_linear_imputation(arr, cast(Any, np.unique(indices % pixels)), **options)

    metric = quantus.ROAD(
        percentages=[channels * percentage for percentage in percentages],
        perturb_func=fill,
        normalise=False,
        disable_warnings=True,
    )
    # The order is all that counts here, and Quantus refuses maps that are negative, or the same, everywhere.
    maps = (pixels - _ranks(attributions)).cpu().numpy()
    kept = []
    with evaluating(model), seeded(seed, inputs.device), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in range(len(inputs)):  # one at a time: Quantus keeps the mean of a batch alone
            here = slice(place, place + 1)
            scores = metric(
                model,
                x_batch=inputs[here].cpu().numpy(),
                y_batch=labels[here],
                a_batch=maps[here],
                device=str(inputs.device),
                channel_first=True,
            )
            kept.append([bool(score) for score in scores.values()])
    return np.array(kept)


def randomisation_similarity(
    model: nn.Module,
    inputs: Tensor,
    target: int | Tensor,
    method: str = "integrated_gradients",
    *,
    seed: int = 0,
    **options: Any,
) -> np.ndarray:
    """Rank correlation of a method's maps with those for a copy of the model with random weights, by Quantus.

    Maps that stay alike show the image and not what the network has learned (Adebayo et al., Sanity Checks for
    Saliency Maps, 2018). All parameters are drawn again; the model itself is not touched.

    Args:
        target: class of every sample, or one for each (N,).
        options: of `kaviz.attribute` for this method.

    Returns:
        (N,).

    Raises:
        ModuleNotFoundError: without Quantus.
    """
    quantus = _quantus()
    labels = torch.as_tensor(target).expand(len(inputs)).cpu().numpy()

    def explain(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        images = torch.as_tensor(inputs, device=device, dtype=dtype)
        maps = attribute(model, images, torch.as_tensor(targets), method, progress=False, seed=seed, **options)
        maps = maps.sum(1, keepdim=True).double().cpu().numpy()
        return maps - maps.min()  # Quantus refuses maps that are negative everywhere; the ranks stay as they are

    device, dtype = inputs.device, inputs.dtype
    metric = quantus.MPRT(
        seed=seed,
        return_last_correlation=True,
        skip_layers=True,
        abs=False,
        normalise=False,
        disable_warnings=True,
    )
    with evaluating(model), seeded(seed, inputs.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = metric(
            model,
            x_batch=inputs.cpu().numpy(),
            y_batch=labels,
            explain_func=explain,
            device=str(device),
            channel_first=True,
            batch_size=len(inputs),
        )
    return np.asarray(scores, float)


def method_agreement(maps: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Spearman's rank correlation of each two methods' maps, its mean over images with a 95 % interval.

    Args:
        maps: for each method (N, H, W).

    Returns:
        Rows with the columns method, other, mean, low, high, images; the two that agree most first.
    """
    rows = []
    for (name, ours), (other, theirs) in combinations(maps.items(), 2):
        values = [
            stats.spearmanr(a.ravel(), b.ravel()).statistic
            for a, b in zip(ours, theirs, strict=True)
            if np.ptp(a) and np.ptp(b)
        ]
        rows.append({"method": name, "other": other, **_summary(values)})
    return pd.DataFrame(rows).sort_values("mean", ascending=False, ignore_index=True) if rows else pd.DataFrame()


def faithfulness_table(
    models: Mapping[str, nn.Module],
    inputs: Tensor,
    methods: Sequence[str] = ("integrated_gradients", "grad_cam"),
    measures: Sequence[str] = tuple(MEASURES),
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Each measure for each method and model, its mean over images with a 95 % interval (Student's).

    Every model is explained for the classes that it predicts itself. Deletion and insertion have a row for a random
    order, too.

    Args:
        models: by name, such as the plain one, L and H; all take the same inputs.
        inputs: (N, C, H, W).
        methods: of `kaviz.attribution.METHODS`.
        measures: of `MEASURES`; "road" and "randomisation" want Quantus.

    Returns:
        Rows with the columns model, method, measure, mean, low, high, images.
    """
    unknown = [name for name in measures if name not in MEASURES]
    if unknown:
        raise ValueError(f"unknown measure {unknown[0]!r}; choose from {', '.join(MEASURES)}")
    rows = []
    for name, model in models.items():
        with evaluating(model), torch.no_grad():
            target = torch.cat([model(part).argmax(1) for part in inputs.split(images_per_pass(inputs))])
        maps = {method: attribute(model, inputs, target, method, seed=seed) for method in methods}
        noise = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(seed)).to(inputs)
        for method, found in {**maps, "random order": noise}.items():
            for measure in measures:
                if method == "random order" and measure not in ("deletion", "insertion", "road"):
                    continue
                values = _measured(measure, model, inputs, target, method, found, seed)
                rows.append({"model": name, "method": method, "measure": measure, **_summary(values)})
    return pd.DataFrame(rows)


def _measured(
    measure: str, model: nn.Module, inputs: Tensor, target: Tensor, method: str, maps: Tensor, seed: int
) -> Sequence[float]:
    """One value for each image."""
    if measure in ("deletion", "insertion"):
        curves = perturbation_curve(model, inputs, target, maps, FRACTIONS, insertion=measure == "insertion")
        return np.trapezoid(curves.numpy(), FRACTIONS, axis=1)
    if measure == "road":
        return road(model, inputs, target, maps, seed=seed).mean(axis=1)
    computed: dict[str, Callable[[], Any]] = {
        "infidelity": lambda: infidelities(model, inputs, target, maps, seed=seed).numpy(),
        "sensitivity": lambda: sensitivities(model, inputs, target, method, seed=seed).numpy(),
        "randomisation": lambda: randomisation_similarity(model, inputs, target, method, seed=seed),
    }
    return computed[measure]()


def _summary(values: Sequence[float]) -> dict[str, float]:
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    low, high = t_interval(list(finite)) or (float("nan"), float("nan"))
    mean = float(finite.mean()) if len(finite) else float("nan")
    return {"mean": mean, "low": low, "high": high, "images": len(finite)}


def _ranks(attributions: Tensor) -> Tensor:
    """The place of each pixel when those of the highest attribution go first, from 0, (N, 1, H, W)."""
    n, _, height, width = attributions.shape
    return attributions.sum(1).flatten(1).argsort(1, descending=True).argsort(1).view(n, 1, height, width)


def _check_shape(attributions: Tensor, inputs: Tensor) -> None:
    if attributions.shape != inputs.shape:
        raise ValueError(f"attributions {tuple(attributions.shape)} must have the inputs' shape {tuple(inputs.shape)}")


def _quantus() -> Any:
    try:
        import quantus
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_package(error), name=error.name) from None
    return quantus
