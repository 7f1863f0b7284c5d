"""Relatives of KAConv as timm has them, for comparison: SE, SK and CondConv in the models that KAConv is used in.

- SE (squeeze and excitation): timm's `seresnet50` and `seresnext50_32x4d`; in MobileNetV2, timm's SE module behind
  every depthwise triple, where timm's own MobileNets have it.
- SK (selective kernels): timm's `skresnet50` and `skresnext50_32x4d`, in which two 3×3 convolutions, one of them
  dilated, see half of the channels each.
- CondConv: timm's `CondConv2d` with 4 experts in place of every 3×3 convolution that KAConv replaces; as in timm, a
  linear layer with a sigmoid, on the convolution's pooled input, says how much of each expert a sample gets.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

from kaconv.models import create_model
from kaconv.utils.extras import missing_package

PEERS = ("SE", "SK", "CondConv")
EXPERTS = 4
SE_REDUCTION = 16

_TIMM_MODELS = {
    "resnet50": {"SE": "seresnet50", "SK": "skresnet50"},
    "resnext50_32x4d": {"SE": "seresnext50_32x4d", "SK": "skresnext50_32x4d"},
}


def peer_name(peer: str, plain: str) -> str | None:
    """The name of the `peer` form of a plain model in a table; None where there is no such form."""
    if peer == "CondConv":
        return f"{plain}, CondConv with {EXPERTS} experts"
    if peer == "SE" and plain.startswith("mobilenetv2"):
        return f"{plain}, SE"
    name = _TIMM_MODELS.get(plain, {}).get(peer)
    return name and f"timm's {name}"


def create_peer(peer: str, plain: str, num_classes: int = 1000) -> nn.Module:
    """The `peer` form of a plain model.

    Raises:
        ModuleNotFoundError: if timm is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_package(error), name=error.name) from None
    if name := _TIMM_MODELS.get(plain, {}).get(peer):
        return timm.create_model(name, pretrained=False, num_classes=num_classes)
    model = create_model(plain, num_classes)
    if peer == "CondConv":
        _add_experts(model)
    else:
        _add_squeeze_and_excitation(model)
    return model


def _add_experts(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            # All but the stem.
            if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3) and child.in_channels > 3:
                setattr(module, name, _RoutedConv2d(child))


def _add_squeeze_and_excitation(model: nn.Module) -> None:
    from timm.layers import SEModule

    for block in model.modules():
        if isinstance(block, InvertedResidual):
            index = next(i for i, triple in enumerate(block.conv) if triple[0].groups > 1)
            block.conv[index].append(SEModule(block.conv[index][0].out_channels, rd_ratio=1 / SE_REDUCTION))


class _RoutedConv2d(nn.Module):
    """A CondConv2d of a convolution's shape, and its routing: (N, Cin, H, W) to (N, C, H', W')."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        from timm.layers import CondConv2d

        self.routing = nn.Linear(conv.in_channels, EXPERTS)
        self.conv = CondConv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            conv.stride[0],
            conv.padding[0],
            groups=conv.groups,
            num_experts=EXPERTS,
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.conv(x, self.routing(pooled).sigmoid())
