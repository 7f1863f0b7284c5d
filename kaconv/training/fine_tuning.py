"""Starting from trained weights: a new head for other classes, and parameters that stay as they are."""

from fnmatch import fnmatch

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kaconv.models import create_model


def starting_model(name: str, classes: int, weights: str | None) -> tuple[nn.Module, list[str]]:
    """A model to train, and sentences on how its weights came about.

    Args:
        weights: as for `create_model`; None: new ones. Where they are of another number of classes, the last layer is
            replaced by a new one.

    Raises:
        ValueError, FileNotFoundError: those of `create_model`.
    """
    if weights is None:
        return create_model(name, num_classes=classes), []
    model = create_model(name, weights=weights)
    head_name, head = _head(model)
    if head.out_features == classes:
        return model, [f"starts from {weights}, with its {classes} classes' outputs"]
    there = head.out_features
    _replace_head(model, head_name, classes)
    return model, [f"starts from {weights}; {head_name} is new, for {classes} classes instead of {there}"]


def matching_parameters(model: nn.Module, patterns: str | None) -> list[str]:
    """Names of the parameters that one of the shell patterns (`fnmatch`), with commas between, matches.

    Raises:
        ValueError: if a pattern matches nothing, or together they match everything.
    """
    if patterns is None:
        return []
    names = [name for name, _ in model.named_parameters()]
    matched: set[str] = set()
    for pattern in patterns.split(","):
        found = [name for name in names if fnmatch(name, pattern.strip())]
        if not found:
            raise ValueError(f"freeze: no parameter matches {pattern.strip()!r}; there are {_groups(names)}")
        matched.update(found)
    if len(matched) == len(names):
        raise ValueError(f"freeze: {patterns!r} matches every parameter, nothing is left to train: {_groups(names)}")
    return [name for name in names if name in matched]


def freeze(model: nn.Module, patterns: str | None) -> list[str]:
    """Let the matching parameters want no gradient, and say how many they are."""
    names = matching_parameters(model, patterns)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    total = sum(1 for _ in model.parameters())
    return [f"{len(names)} of {total} parameter tensors are frozen"] if names else []


def keep_frozen_statistics(model: nn.Module) -> None:
    """Put batch norms whose parameters are frozen into evaluation mode: their statistics stay, too."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            parameters = list(module.parameters(recurse=False))
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()


def _head(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer, which gives the classes in every model of the registry."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def _replace_head(model: nn.Module, name: str, classes: int) -> None:
    parent, _, last = name.rpartition(".")
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    head = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    nn.init.kaiming_normal_(head.weight)  # as in a new model
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    setattr(model.get_submodule(parent), last, head)


def _groups(names: list[str]) -> str:
    """Parameters by the modules that hold them, as patterns: conv1.*, layer1.0.*."""
    prefixes: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        depth = 2 if len(parts) > 2 and parts[1].isdecimal() else 1
        prefixes[".".join([*parts[:depth], "*"]) if len(parts) > depth else name] = None
    return ", ".join(prefixes)
