"""Captum's attributions of a score to the pixels of an image, behind one call."""

import difflib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from captum.attr import (
    DeepLift,
    FeatureAblation,
    GradientShap,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from kaconv.ops import use_backend
from kaconv.utils.modes import evaluating
from kaviz.attribution.scores import Score, Target, images_per_pass, target_classes

NOISE_TUNNELS = ("smoothgrad", "smoothgrad_sq", "vargrad")
SUPERPIXELS = 64
_NOISE = 0.15  # of the inputs' range, as in Smilkov et al., SmoothGrad (2017)
_PATIENCE = 2  # seconds without a progress bar


@dataclass(frozen=True)
class _Method:
    """How Captum computes a method.

    Args:
        copies: copies of each image in a pass, where no option says so.
        modules: whether it hooks activations, which only the reference backend calls as modules.
        layer: whether it takes a layer.
    """

    label: str
    captum: Callable[..., Any]
    defaults: Callable[[Tensor, int], dict[str, Any]] = lambda inputs, most: {}
    copies: int = 1
    gradient: bool = True
    modules: bool = False
    layer: bool = False
    delta: bool = False


def _occlusion_defaults(inputs: Tensor, most: int) -> dict[str, Any]:
    channels, *sides = inputs.shape[1:]
    window = [max(1, side // 5) for side in sides]
    return {
        "sliding_window_shapes": (channels, *window),
        "strides": (channels, *(max(1, side // 2) for side in window)),
        "perturbations_per_eval": max(1, most // len(inputs)),
    }


def _ablation_defaults(inputs: Tensor, most: int) -> dict[str, Any]:
    return {"feature_mask": superpixels(inputs), "perturbations_per_eval": max(1, most // len(inputs))}


_METHODS = {
    "integrated_gradients": _Method(
        "Integrated Gradients",
        IntegratedGradients,
        lambda inputs, most: {"n_steps": 32, "internal_batch_size": most},
        delta=True,
    ),
    "grad_cam": _Method("Grad-CAM", LayerGradCam, layer=True),
    "occlusion": _Method("Occlusion", Occlusion, _occlusion_defaults, copies=8, gradient=False),
    "input_x_gradient": _Method("Input × Gradient", InputXGradient),
    "saliency": _Method("Saliency", Saliency),
    "guided_backprop": _Method("Guided Backprop", GuidedBackprop, modules=True),
    "guided_grad_cam": _Method(
        "Guided Grad-CAM",
        GuidedGradCam,
        lambda inputs, most: {"interpolate_mode": "bilinear"},
        modules=True,
        layer=True,
    ),
    "deep_lift": _Method("DeepLift", DeepLift, copies=2, modules=True, delta=True),
    "gradient_shap": _Method(
        "GradientShap",
        GradientShap,
        lambda inputs, most: {"n_samples": 16, "baselines": torch.zeros_like(inputs[:1])},
        delta=True,
    ),
    "feature_ablation": _Method("Feature Ablation", FeatureAblation, _ablation_defaults, copies=8, gradient=False),
}
METHOD_LABELS = {name: method.label for name, method in _METHODS.items()}
METHODS = tuple(_METHODS)


@overload
def attribute(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    method: str = ...,
    *,
    layer: str | None = ...,
    noise_tunnel: str | None = ...,
    seed: int = ...,
    progress: bool = ...,
    return_convergence_delta: Literal[False] = ...,
    **options: Any,
) -> Tensor: ...


@overload
def attribute(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    method: str = ...,
    *,
    layer: str | None = ...,
    noise_tunnel: str | None = ...,
    seed: int = ...,
    progress: bool = ...,
    return_convergence_delta: Literal[True],
    **options: Any,
) -> tuple[Tensor, Tensor]: ...


def attribute(
    model: nn.Module,
    inputs: Tensor,
    target: Target,
    method: str = "integrated_gradients",
    *,
    layer: str | None = None,
    noise_tunnel: str | None = None,
    seed: int = 0,
    progress: bool = True,
    return_convergence_delta: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attribute the logit of a class, or the difference of two, to the input values: positive speaks for it.

    Scales differ between methods. The reference input is 0, the mean colour of normalised images. The model runs in
    eval mode; its modes, hooks, modules and gradients are afterwards what they were. Images are taken a few at a time,
    so that memory does not grow with their number.

    - Integrated gradients takes 32 steps; GradientShap takes 16 random points between a baseline and the image, without
      noise.
    - Grad-CAM gives one map at the resolution of a layer, upsampled bilinearly and repeated over the channels; it is
      not clipped at 0, so that evidence against the class shows, too. Guided Grad-CAM, which multiplies it by Guided
      Backprop, is clipped, as published.
    - Occlusion covers windows of a fifth of the side, half of it apart. Feature ablation covers superpixels, about 64
      an image: scikit-image's SLIC, or a grid of 8 × 8 where that is not installed. Each pixel gets the effect of its
      whole superpixel.
    - Guided Backprop, Guided Grad-CAM and DeepLift change the backward pass of ReLU and ReLU6 modules, so KAConv layers
      run with the reference backend. DeepLift's rules end at the product of attention and maps, where it goes on with
      the gradient: its convergence delta is not 0 for KAConv.
    - Saliency has no sign.

    Args:
        inputs: (N, C, H, W), on the model's device.
        target: class of every sample, or one for each (N,); a tuple of two for "why this and not that", the difference
            of their logits.
        method: one of `METHODS`.
        layer: for Grad-CAM and Guided Grad-CAM, a module's name; by default the last one that gives maps.
        noise_tunnel: one of `NOISE_TUNNELS`, around a method that uses gradients: mean, mean square or variance over
            10 noisy copies (`nt_samples`) whose noise has 15 % of the inputs' range as its standard deviation
            (`stdevs`).
        seed: of what is random; the generators are afterwards in the state that they were in.
        progress: show a bar after 2 s.
        return_convergence_delta: also return, for integrated gradients, DeepLift and GradientShap, how far each image's
            attributions miss the score's change from the baseline (N,).
        options: further arguments of Captum's `attribute` for this method, such as `n_steps`, `baselines`,
            `sliding_window_shapes`, `feature_mask`.

    Returns:
        (N, C, H, W), as the inputs; or a pair with the convergence delta.

    Raises:
        ValueError: for an unknown method or layer, inputs that are no batch of images, classes that the model does not
            have, or what the method does not offer.

    Example:
        >>> attribute(model, images, labels, "grad_cam", layer="layer2").shape
        torch.Size([8, 3, 32, 32])
        >>> difference = attribute(model, images, (cat, dog), "integrated_gradients")  # why a cat and not a dog
    """
    how = _method(method, layer, noise_tunnel, return_convergence_delta)
    deltas: list[Tensor] = []
    results = []
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        classes = target_classes(model, inputs, target)
        module = _maps_layer(model, inputs, layer) if how.layer else None
        if how.modules:
            stack.enter_context(use_backend("reference"))
        if method == "deep_lift":
            stack.enter_context(_relu6_as_relus(model))
        if method.startswith("guided"):
            stack.enter_context(_guided_relu6(model))
        stack.enter_context(seeded(seed, inputs.device))
        stack.enter_context(torch.set_grad_enabled(how.gradient))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Setting (forward, )?backward hooks")
        most = images_per_pass(inputs)
        given = how.defaults(inputs[:1], most) | options
        size = max(1, most // (given.get("n_steps") or given.get("n_samples") or how.copies))
        if noise_tunnel:
            options = _noise_options(inputs) | {"nt_type": noise_tunnel} | options
        bar = stack.enter_context(
            tqdm(
                total=len(inputs),
                desc=how.label,
                unit="image",
                leave=False,
                delay=_PATIENCE,
                disable=None if progress else True,
            )
        )
        for start in range(0, len(inputs), size):
            # A copy that needs a gradient: the caller's stays as it is, and frozen weights have a graph, too.
            part = inputs[start : start + size].detach().clone().requires_grad_(how.gradient)
            chosen = classes[start : start + size]
            explainer = how.captum(Score(model), module) if module is not None else how.captum(Score(model))
            arguments = how.defaults(part.detach(), most) | _of_these(options, start, size, len(inputs))
            if return_convergence_delta:
                arguments["return_convergence_delta"] = True
            if noise_tunnel:
                explainer = NoiseTunnel(explainer)
            result = explainer.attribute(part, additional_forward_args=(chosen,), **arguments)
            if return_convergence_delta:
                result, delta = result
                deltas.append(delta.detach().view(len(part), -1).mean(1))
            result = result.detach()
            if method == "grad_cam":
                result = F.interpolate(result, inputs.shape[2:], mode="bilinear").expand_as(part)
            results.append(result)
            bar.update(len(part))
    whole = torch.cat(results)
    return (whole, torch.cat(deltas)) if return_convergence_delta else whole


def superpixels(images: Tensor, count: int = SUPERPIXELS) -> Tensor:
    """Segments of about equal size: SLIC's, along the edges of each image, or a grid where scikit-image is missing.

    Args:
        images: (N, C, H, W), each taken in its own range of values.
        count: how many to aim at.

    Returns:
        Numbers of the segments from 0, (N, 1, H, W).
    """
    height, width = images.shape[2:]
    if importlib.util.find_spec("skimage") is None:
        side = round(count**0.5)
        rows, columns = (torch.arange(length) * side // length for length in (height, width))
        return (rows[:, None] * side + columns).expand(len(images), 1, -1, -1).to(images.device)
    from skimage.segmentation import slic  # an optional package

    found = []
    for image in images.detach().cpu().double().numpy():
        low, high = image.min(), image.max()
        scaled = (image - low) / max(high - low, 1e-12)
        labels = slic(np.moveaxis(scaled, 0, -1), count, start_label=0, channel_axis=-1, convert2lab=len(image) == 3)
        found.append(torch.as_tensor(labels)[None])
    return torch.stack(found).long().to(images.device)


def _method(name: str, layer: str | None, noise_tunnel: str | None, delta: bool) -> _Method:
    if str(name).lower() in ("lrp", "layer_lrp"):
        raise ValueError(
            "LRP has no rule for KAConv's product of attention and maps, nor for nn.Identity; "
            "deep_lift is the nearest method that works"
        )
    if name not in _METHODS:
        close = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(METHODS)}"
        raise ValueError(f"unknown attribution method {name!r}; {hint}")
    method = _METHODS[name]
    if layer is not None and not method.layer:
        raise ValueError(f"{name} takes no layer; {_those(lambda other: other.layer)} do")
    if delta and not method.delta:
        raise ValueError(f"{name} has no convergence delta; {_those(lambda other: other.delta)} have")
    if noise_tunnel is not None:
        if noise_tunnel not in NOISE_TUNNELS:
            raise ValueError(f"unknown noise tunnel {noise_tunnel!r}; choose from {', '.join(NOISE_TUNNELS)}")
        if not method.gradient:
            raise ValueError(f"{name} uses no gradients, so a noise tunnel does not go around it")
        if delta:
            raise ValueError("a noise tunnel averages attributions, which then have no convergence delta")
    return method


def _those(test: Callable[[_Method], bool]) -> str:
    *names, last = (name for name, method in _METHODS.items() if test(method))
    return f"{', '.join(names)} and {last}"


def _of_these(options: dict[str, Any], start: int, size: int, n: int) -> dict[str, Any]:
    """The options for some of the images: what has a value for each is cut to these."""
    per_image = ("baselines", "feature_mask")
    return {
        name: value[start : start + size]
        if name in per_image and isinstance(value, Tensor) and len(value) == n > 1
        else value
        for name, value in options.items()
    }


def _noise_options(inputs: Tensor) -> dict[str, Any]:
    spread = float(inputs.max() - inputs.min())
    return {"nt_samples": 10, "nt_samples_batch_size": 1, "stdevs": _NOISE * spread}


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Captum draws from torch's and NumPy's global generators; both go on afterwards as if it had not."""
    state = np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


class _ReLU6(nn.Module):
    """ReLU6 as the difference of two ReLUs, which DeepLift has a rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.lower(x.clone()) - self.upper(x - 6)  # a tensor for each: DeepLift hooks their gradients


@contextmanager
def _relu6_as_relus(model: nn.Module) -> Iterator[None]:
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ReLU6)
    ]
    try:
        for parent, name, child in places:
            setattr(parent, name, _ReLU6().train(child.training))
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


@contextmanager
def _guided_relu6(model: nn.Module) -> Iterator[None]:
    """Guided Backprop's rule for ReLU6, which Captum has for ReLU alone: no negative gradient passes."""
    handles = [
        module.register_full_backward_hook(
            lambda module, grad_input, grad_output: (F.relu(cast(tuple[Tensor], grad_input)[0]),)
        )
        for module in model.modules()
        if isinstance(module, nn.ReLU6)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _maps_layer(model: nn.Module, inputs: Tensor, name: str | None) -> nn.Module:
    """The layer of that name, or the last to give maps of more than one pixel, before the pooling."""
    modules = dict(model.named_modules())
    if name is not None and (name not in modules or not name):
        close = difflib.get_close_matches(str(name), [name for name in modules if name], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(filter(None, modules))}"
        raise ValueError(f"{type(model).__name__} has no layer {name!r}; {hint}")
    watched = [modules[name]] if name else [module for module in modules.values() if module is not model]
    found = []

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and (name or output.shape[2] * output.shape[3] > 1):
            found.append(module)

    handles = [module.register_forward_hook(look) for module in watched]
    try:
        with torch.no_grad():
            model(inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        what = f"layer {name!r} does not" if name else f"{type(model).__name__} has none"
        raise ValueError(f"Grad-CAM needs a layer that gives maps (N, C, h, w), and {what}")
    return found[-1]
