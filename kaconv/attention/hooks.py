"""The layers of a model whose attention can be watched."""

from fnmatch import fnmatch

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from kaconv.layers import KAConv2d


def kaconv_layers(model: nn.Module, pattern: str = "*") -> dict[str, KAConv2d]:
    """The KAConv2d layers of a model by name, in the order of the model, that match a shell pattern.

    Names are those in the model itself, without what a wrapper for several processes puts before them.

    Raises:
        ValueError: if there is none; it names those that there are.
    """
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        model = model.module
    layers = {name: module for name, module in model.named_modules() if isinstance(module, KAConv2d)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no KAConv2d layer")
    chosen = {name: module for name, module in layers.items() if fnmatch(name, pattern)}
    if not chosen:
        raise ValueError(f"no KAConv2d layer matches {pattern!r}; there are {', '.join(layers)}")
    return chosen
