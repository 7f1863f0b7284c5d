"""Captum's attributions behind one call, and a check of what they claim.

`attribute` says how much each input value speaks for a class; `perturbation_curve` takes away, or brings in, the pixels
in the order of their attribution, and watches what the model makes of it.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, Occlusion, Saliency
from torch import Tensor, nn
from torch.nn import functional as F

from kaconv.utils.modes import evaluating

METHOD_LABELS = {
    "integrated_gradients": "Integrated Gradients",
    "grad_cam": "Grad-CAM",
    "occlusion": "Occlusion",
    "input_x_gradient": "Input × Gradient",
    "saliency": "Saliency",
}
METHODS = tuple(METHOD_LABELS)
BATCH_SIZE = 256  # pictures that go through the model at a time, where a method needs many copies of each


def attribute(
    model: nn.Module,
    inputs: Tensor,
    target: int | Tensor,
    method: str = "integrated_gradients",
    **options: Any,
) -> Tensor:
    """What each input value contributes to the logit of a class: positive speaks for it, negative against it.

    Scales differ between methods. The reference input is 0, which is the mean colour for normalised pictures. Grad-CAM
    gives one map (N, h, w) at the resolution of a layer, upsampled bilinearly and repeated over the input's channels;
    it is not clipped at 0, so that evidence against the class shows, too. Saliency has no sign.
    The model is run in eval mode; its modes, hooks and gradients are afterwards what they were.

    Args:
        inputs: (N, C, H, W), on the model's device.
        target: class of every sample, or one for each (N,).
        method: one of `METHODS`.
        options: further arguments of Captum's `attribute` for this method, such as `n_steps` and `baselines`
            (integrated gradients) or `sliding_window_shapes` and `strides` (occlusion; by default windows of a fifth
            of the side, half of it apart). Grad-CAM takes `layer`, a module's name; by default the last one that
            gives maps.

    Returns:
        (N, C, H, W), as the inputs.

    Raises:
        ValueError: for an unknown method or layer, or inputs that are no batch of pictures.

    Example:
        >>> attribute(model, images, labels, "grad_cam", layer="layer2").shape
        torch.Size([8, 3, 32, 32])
    """
    if method not in _FUNCTIONS:
        close = difflib.get_close_matches(str(method), METHODS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(METHODS)}"
        raise ValueError(f"unknown attribution method {method!r}; {hint}")
    if inputs.ndim != 4:
        raise ValueError(f"inputs must be pictures (N, C, H, W), got shape {tuple(inputs.shape)}")
    # A copy that needs a gradient: the caller's stays as it is, and the graph exists even if all weights are frozen.
    inputs = inputs.detach().clone().requires_grad_()
    with evaluating(model), torch.enable_grad():
        return _FUNCTIONS[method](model, inputs, target, **options).detach()


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
        baseline: what stands for a pixel that is away; 0 is the mean colour of normalised pictures.

    Returns:
        (N, len(fractions)), on the CPU.

    Raises:
        ValueError: for attributions of another shape than the inputs, or fractions outside [0, 1].
    """
    if attributions.shape != inputs.shape:
        raise ValueError(f"attributions {tuple(attributions.shape)} must have the inputs' shape {tuple(inputs.shape)}")
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions must lie in [0, 1], got {list(fractions)}")
    n, _, height, width = inputs.shape
    target = torch.as_tensor(target, device=inputs.device).expand(n)
    rank = attributions.sum(1).flatten(1).argsort(1, descending=True).argsort(1).view(n, 1, height, width)
    curve = []
    with evaluating(model), torch.no_grad():
        for fraction in fractions:
            chosen = rank < round(fraction * height * width)
            shown = inputs.where(chosen if insertion else ~chosen, baseline)
            probabilities = torch.cat([model(batch).softmax(1) for batch in shown.split(BATCH_SIZE)])
            curve.append(probabilities.gather(1, target[:, None]).cpu())
    return torch.cat(curve, 1)


def _integrated_gradients(model: nn.Module, inputs: Tensor, target: int | Tensor, **options: Any) -> Tensor:
    options = {"n_steps": 32, "internal_batch_size": BATCH_SIZE} | options
    return IntegratedGradients(model).attribute(inputs, target=target, **options)


def _grad_cam(
    model: nn.Module, inputs: Tensor, target: int | Tensor, layer: str | None = None, **options: Any
) -> Tensor:
    module = _module(model, layer) if layer else _last_maps(model, inputs)
    maps = LayerGradCam(model, module).attribute(inputs, target=target, **options)
    if maps.ndim != 4:
        raise ValueError(f"Grad-CAM needs a layer that gives maps (N, C, h, w), and {layer!r} does not")
    return F.interpolate(maps, inputs.shape[2:], mode="bilinear").expand_as(inputs)


def _occlusion(model: nn.Module, inputs: Tensor, target: int | Tensor, **options: Any) -> Tensor:
    window = [max(1, side // 5) for side in inputs.shape[2:]]
    options = {
        "sliding_window_shapes": (inputs.shape[1], *window),
        "strides": (inputs.shape[1], *(max(1, side // 2) for side in window)),
        "perturbations_per_eval": max(1, BATCH_SIZE // len(inputs)),
    } | options
    with torch.no_grad():
        return Occlusion(model).attribute(inputs, target=target, **options)


def _input_x_gradient(model: nn.Module, inputs: Tensor, target: int | Tensor, **options: Any) -> Tensor:
    return InputXGradient(model).attribute(inputs, target=target, **options)


def _saliency(model: nn.Module, inputs: Tensor, target: int | Tensor, **options: Any) -> Tensor:
    return Saliency(model).attribute(inputs, target=target, **options)


_FUNCTIONS = {
    "integrated_gradients": _integrated_gradients,
    "grad_cam": _grad_cam,
    "occlusion": _occlusion,
    "input_x_gradient": _input_x_gradient,
    "saliency": _saliency,
}


def _module(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name not in modules or not name:
        close = difflib.get_close_matches(str(name), [name for name in modules if name], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(filter(None, modules))}"
        raise ValueError(f"{type(model).__name__} has no layer {name!r}; {hint}")
    return modules[name]


def _last_maps(model: nn.Module, inputs: Tensor) -> nn.Module:
    """The last module to give maps of more than one pixel: the end of the last stage, before the pooling."""
    found = []

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            found.append(module)

    handles = [module.register_forward_hook(look) for module in model.modules() if module is not model]
    try:
        with torch.no_grad():
            model(inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(f"{type(model).__name__} has no layer that gives maps (N, C, h, w), as Grad-CAM needs")
    return found[-1]
