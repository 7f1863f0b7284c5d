"""The layers of a model whose attention can be watched, and the one way to watch or replace it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from kaconv.layers import KAConv2d

# Gets the pooled maps Q and the attention A, both (N, K, C); what it returns, if not None, takes A's place.
AttentionHook = Callable[[Tensor, Tensor], Tensor | None]


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


@contextmanager
def watching(
    model: nn.Module, layers: str, make_hook: Callable[[str, KAConv2d], AttentionHook]
) -> Iterator[dict[str, KAConv2d]]:
    """Call a hook on the attention of a model's KAConv layers while the block runs, under every backend.

    Hooks run in the order in which they were added. At the end, on errors too, they are gone and nothing else has
    changed.

    Args:
        layers: shell pattern of layer names, such as "layer3.*".
        make_hook: gives the hook for a layer, from its name and the layer.

    Yields:
        The watched layers by name.

    Raises:
        ValueError: if no layer matches.
    """
    chosen = kaconv_layers(model, layers)
    with ExitStack() as stack:
        for name, layer in chosen.items():
            hook = _as_forward_hook(make_hook(name, layer))
            stack.callback(layer.attention_generator.register_forward_hook(hook).remove)
        yield chosen


def _as_forward_hook(hook: AttentionHook) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
    return lambda generator, inputs, attention: hook(inputs[0], attention)
