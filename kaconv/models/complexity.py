"""The cost of a model: parameters, FLOPs as the paper counts them, and true multiply-adds."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from kaconv.layers import KAConv2d
from kaconv.ops import use_backend
from kaconv.utils.modes import evaluating


@dataclass(frozen=True)
class Complexity:
    """Of one sample.

    Args:
        params: number of parameters.
        paper_flops: see `paper_flops`.
        macs: multiply-adds of convolutions and matrix products, as `torch.utils.flop_counter` sees them run.
    """

    params: int
    paper_flops: int
    macs: int


def complexity(model: nn.Module, image_size: int | tuple[int, int] = 224, channels: int = 3) -> Complexity:
    """The cost of `model` for one image of `image_size`: a side, or (height, width), in pixels.

    Counters that go by modules, such as torchinfo, thop and ptflops, find no convolution in a KAConv2d: of
    KAResNet50-L's 4.09 G multiply-adds they see 2.24 G. This function counts them all.

    The model is run once in eval mode, on the device where its parameters lie; build it under
    `torch.device("meta")` to count without computing. Its mode is restored.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    like = next(model.parameters(), torch.empty(0))
    x = like.new_empty(1, channels, height, width)
    counter = _PaperFlops(model)
    try:
        with (
            evaluating(model),
            torch.no_grad(),
            use_backend("reference"),
            FlopCounterMode(display=False) as flop_counter,
        ):
            model(x)
    finally:
        counter.remove()
    params = sum(p.numel() for p in model.parameters())
    return Complexity(params, counter.total, flop_counter.get_total_flops() // 2)


def paper_flops(model: nn.Module, image_size: int | tuple[int, int] = 224, channels: int = 3) -> int:
    """FLOPs of one image by the paper's convention, that of an old version of THOP.

    A convolution counts one operation for each multiply-add, and one for each output element where it has a bias; a
    linear layer (2·in − 1)·out; a batch norm 2 for each element; an adaptive average pooling module one for each
    element in and out; activations, max pooling, softmax and weighted sums nothing. A KAConv counts by its
    definition, whatever the implementation fuses.
    """
    return complexity(model, image_size, channels).paper_flops


class _PaperFlops:
    """Sums the FLOPs of every module that runs, through forward hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        layers = [module for module in model.modules() if isinstance(module, KAConv2d)]
        inside = {part for layer in layers for part in layer.modules() if part is not layer}
        self._handles = [
            module.register_forward_hook(self._count) for module in model.modules() if module not in inside
        ]

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, KAConv2d):
            self.total += _kaconv_flops(module, output)
        elif isinstance(module, nn.Conv2d):
            self.total += output.numel() * (math.prod(module.weight.shape[1:]) + (module.bias is not None))
        elif isinstance(module, nn.Linear):
            self.total += (2 * module.in_features - 1) * output.numel()
        elif isinstance(module, _BatchNorm):
            self.total += 2 * output.numel()
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            self.total += inputs[0].numel() + output.numel()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _kaconv_flops(layer: KAConv2d, output: Tensor) -> int:
    channels, positions = layer.out_channels, layer.kernel_size[0] * layer.kernel_size[1]
    maps = positions * output.numel()
    taps = maps * layer.in_channels // layer.groups
    norms = 2 * maps
    pooling = maps + positions * channels
    generator = layer.attention_generator
    hidden = generator.squeeze.out_features
    # The authors' generator is made of convolutions: AG-L squeezes all positions at once, AG-H each by itself.
    squeezed = hidden if layer.attention == "L" else positions * hidden
    squeeze = squeezed * generator.squeeze.in_features
    excite = positions * channels * (generator.excite.in_features + (generator.excite.bias is not None))
    normalised = 0 if isinstance(generator.norm, nn.Identity) else 2 * squeezed
    return taps + norms + pooling + squeeze + normalised + excite
