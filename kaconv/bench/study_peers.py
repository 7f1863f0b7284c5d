"""Relatives of KAConv in `resnet11_cifar`, as builders for the study `reports/studies/cifar10_peers.yaml`.

SE, ECA and CBAM stand where timm's ResNets have them, behind a bottleneck's last norm and before the shortcut is added.
SK takes the place of the 3×3 convolution, its norm and its activation, as KAConv does; CondConv that of the convolution
alone. The wide ones are plain, with wider bottlenecks: about as many multiply-adds, or about as many parameters, as
`ka_resnet11_cifar_l` has.
"""

from typing import cast

from torch import nn

from kaconv.bench.peers import create_peer
from kaconv.models import create_model
from kaconv.models.resnet import Bottleneck, ResNet

PLAIN = "resnet11_cifar"
SAME_FLOPS, SAME_PARAMS = 68, 92  # base widths; the plain network's is 64


def se(num_classes: int = 10) -> nn.Module:
    """Squeeze and excitation."""
    return _behind_each_bottleneck("se", num_classes)


def eca(num_classes: int = 10) -> nn.Module:
    """Efficient channel attention."""
    return _behind_each_bottleneck("eca", num_classes)


def cbam(num_classes: int = 10) -> nn.Module:
    """Convolutional block attention."""
    return _behind_each_bottleneck("cbam", num_classes)


def sk(num_classes: int = 10) -> nn.Module:
    """Selective kernels."""
    from timm.layers import SelectiveKernel

    model = create_model(PLAIN, num_classes)
    for block in bottlenecks(model):
        conv = cast(nn.Conv2d, block.conv2)
        replace_triple(block, SelectiveKernel(conv.in_channels, conv.out_channels, stride=conv.stride[0]))
    return model


def condconv(num_classes: int = 10) -> nn.Module:
    """Conditional convolutions of four experts."""
    return create_peer("CondConv", PLAIN, num_classes)


def wide_flops(num_classes: int = 10) -> nn.Module:
    """The plain network, about as many multiply-adds as KAConv-L's."""
    return _wide(SAME_FLOPS, num_classes)


def wide_params(num_classes: int = 10) -> nn.Module:
    """The plain network, about as many parameters as KAConv-L's."""
    return _wide(SAME_PARAMS, num_classes)


def _wide(base_width: int, num_classes: int) -> nn.Module:
    return ResNet((1, 1, 1), num_classes, planes=16, small_input=True, base_width=base_width)


def _behind_each_bottleneck(kind: str, num_classes: int) -> nn.Module:
    from timm.layers import create_attn

    model = create_model(PLAIN, num_classes)
    for block in bottlenecks(model):
        block.bn3 = nn.Sequential(block.bn3, create_attn(kind, block.bn3.num_features))
    return model


def bottlenecks(model: nn.Module, stage: str = "layer") -> list[Bottleneck]:
    """The bottlenecks of a ResNet, or of the stages whose name begins so."""
    modules = model.named_modules()
    return [module for name, module in modules if name.startswith(stage) and isinstance(module, Bottleneck)]


def replace_triple(block: Bottleneck, module: nn.Module) -> None:
    """Put a module with a norm and an activation of its own in place of a bottleneck's 3×3 triple."""
    block.conv2 = module
    for name in ("bn2", "relu2"):
        setattr(block, name, nn.Identity())
