"""KAConv in PyTorch's own operators, for every device.

At inference batch norm is folded into the kernel, and no map is copied to stand beside the others. In training it is
the reference: batch norm and its derivative need all maps.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kaconv.ops import reference
from kaconv.ops.geometry import Geometry


def kaconv2d(
    x: Tensor,
    weight: Tensor,
    norm: Callable[[Tensor], Tensor],
    act: Callable[[Tensor], Tensor],
    attention_generator: Callable[[Tensor], Tensor],
    geometry: Geometry,
) -> Tensor:
    """As `kaconv.ops.reference.kaconv2d`."""
    if type(norm) is not nn.BatchNorm2d or norm.training or norm.running_mean is None:
        return reference.kaconv2d(x, weight, norm, act, attention_generator, geometry)
    scale, shift = folded_batch_norm(norm, geometry.positions)
    views = reference.windows(reference.pad(x, geometry), geometry)
    maps = [
        act(F.conv2d(view, weight[:, :, u : u + 1, v : v + 1] * r[:, None, None, None], t, groups=geometry.groups))
        for view, (u, v), r, t in zip(views, geometry.taps(), scale, shift, strict=True)
    ]
    q = torch.stack([y.mean(dim=(-2, -1)) for y in maps], dim=1)
    attention = attention_generator(q).to(maps[0].dtype)[..., None, None]
    out = maps[0] * attention[:, 0]
    for k, y in enumerate(maps[1:], start=1):
        out = torch.addcmul(out, y, attention[:, k])
    return out


def folded_batch_norm(norm: nn.BatchNorm2d, positions: int) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm with running statistics, (K, C) each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.affine:
        shift = shift + norm.bias
    return scale.unflatten(0, (positions, -1)), shift.unflatten(0, (positions, -1))
