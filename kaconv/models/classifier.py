"""timm's conventions for image classifiers, which all our networks follow."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_GLOBAL_POOLS = ("avg", "")


class Classifier(nn.Module):
    """An image classifier with timm's methods: (N, in_chans, H, W) to (N, num_classes) logits.

    What it computes is `forward_head(forward_features(x))`. Names of modules and weights are the network's own.

    Attributes:
        num_classes: 0 stands for no classifier; the output then is the pooled features, (N, num_features).
        num_features, head_hidden_size: channels of the last features, and of what the classifier reads: the same.
        global_pool: "avg", or "" for none, which takes num_classes=0.
        feature_info: one dict for each resolution, with `num_chs`, `reduction` (of the image's side) and `module`.
        grad_checkpointing: see `set_grad_checkpointing`.
        default_cfg, pretrained_cfg: preprocessing and names that timm asks for, of models made by name.

    Example:
        >>> model = kaconv.create_model("ka_resnet50_l", num_classes=10)  # in_chans=1 for grey images
        >>> features = model.forward_features(images)  # (N, 2048, H / 32, W / 32)
        >>> embedding = model.forward_head(features, pre_logits=True)  # (N, 2048)
        >>> levels = model.forward_intermediates(images, indices=(1, 2, 3, 4), intermediates_only=True)
        >>> model.reset_classifier(5)  # a new last layer, for other classes
        >>> model.set_grad_checkpointing()  # less memory in training, more time
    """

    first_conv: ClassVar[str]
    head: ClassVar[str]  # the linear layer that gives the classes
    blocks: ClassVar[tuple[type[nn.Module], ...]]  # what checkpointing recomputes one at a time

    num_classes: int
    num_features: int
    feature_info: list[dict[str, Any]]
    default_cfg: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    global_pool = "avg"
    grad_checkpointing = False

    def _set_up(self, num_classes: int, in_chans: int, global_pool: str) -> None:
        """Give the finished network another number of input channels or no classifier where it is asked for.

        The network has its usual layers until here, and what stays of them is not drawn again: a seed gives the weights
        that it always gave.
        """
        if not isinstance(in_chans, int) or in_chans < 1:
            raise ValueError(f"in_chans must be an integer of at least 1; got {in_chans!r}")
        if in_chans != 3:
            old: Any = self.get_submodule(self.first_conv)
            new = nn.Conv2d(in_chans, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
            nn.init.kaiming_normal_(new.weight)
            self.set_submodule(self.first_conv, new)
        self.num_classes = num_classes
        self.num_features = cast(nn.Linear, self.get_classifier()).in_features
        self.feature_info = self._levels()
        if num_classes == 0 or global_pool != "avg":
            self.reset_classifier(num_classes, global_pool)

    def _trunk(self) -> list[str]:
        """Names of the modules that are called one after another, up to the last features."""
        raise NotImplementedError

    def _levels(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _pool(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def head_hidden_size(self) -> int:
        return self.num_features

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last features, (N, num_features, H, W), not pooled."""
        for name in self._trunk():
            x = self._run(self.get_submodule(name), x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify `forward_features`'s output; with `pre_logits`, only pool it."""
        if self.global_pool:
            x = torch.flatten(self._pool(x), 1)
        return x if pre_logits else self.get_submodule(self.head.partition(".")[0])(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> tuple[Tensor, list[Tensor]] | list[Tensor]:
        """The last features and those of the resolutions in `feature_info`.

        Args:
            indices: of `feature_info`, in the order of the result; the last ones if it is a number, all if None.
            norm: changes nothing, as these networks have no last norm.
            stop_early: end with the last module that is asked for, whose output then is the first result.
            output_fmt: "NCHW", the only one.
            intermediates_only: give the list alone.

        Raises:
            ValueError: for an index that there is not, or another `output_fmt`.
        """
        if str(getattr(output_fmt, "value", output_fmt)) != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW'; got {output_fmt!r}")
        names = [self.feature_info[index]["module"] for index in self._taken(indices)]
        found: dict[str, Tensor] = {}
        for name in self._trunk():
            x = self._run(self.get_submodule(name), x)
            if name in names:
                found[name] = x
            if (stop_early or intermediates_only) and len(found) == len(set(names)):
                break
        intermediates = [found[name] for name in names]
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what `forward_intermediates` does not need for `indices`; returns them as they count from 0.

        Args:
            prune_norm: changes nothing, as these networks have no last norm.
        """
        taken = self._taken(indices)
        trunk = self._trunk()
        for name in trunk[trunk.index(self.feature_info[max(taken)]["module"]) + 1 :]:
            self.set_submodule(name, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def _taken(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.feature_info)
        wanted = range(-count if indices is None else -indices, 0) if isinstance(indices, int | None) else indices
        taken = [index + count if index < 0 else index for index in wanted]
        if not taken or not all(0 <= index < count for index in taken):
            raise ValueError(f"the indices of features go from 0 to {count - 1}; got {indices!r}")
        return taken

    def get_classifier(self) -> nn.Module:
        """The last linear layer; an `nn.Identity` without classes."""
        return self.get_submodule(self.head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new last layer in place of the old; 0 classes take it away.

        Args:
            global_pool: "avg", "" for none (with 0 classes), or None to leave it.

        Raises:
            ValueError: for a number below 0, another `global_pool`, or classes without pooling.
        """
        global_pool = self.global_pool if global_pool is None else global_pool
        if not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f"num_classes must be an integer of at least 0; got {num_classes!r}")
        if global_pool not in _GLOBAL_POOLS:
            raise ValueError(f"global_pool must be {' or '.join(map(repr, _GLOBAL_POOLS))}; got {global_pool!r}")
        if num_classes and not global_pool:
            raise ValueError(f"global_pool='' leaves nothing to classify: it takes num_classes=0, not {num_classes}")
        self.num_classes, self.global_pool = num_classes, global_pool
        head: nn.Module = nn.Identity()
        if num_classes:
            like = next(self.parameters())
            head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            initialise_linear(head)
        self.set_submodule(self.head, head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep the input of each block only, and compute the block again in the backward pass: less memory, more time.

        Outputs, gradients and running statistics stay the same. What is recomputed leaves the statistics alone.
        """
        self.grad_checkpointing = enable

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError("TorchScript cannot script this model; use torch.jit.trace, torch.export or `kaconv export`")

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        if not self.grad_checkpointing or not torch.is_grad_enabled() or isinstance(x, fx.Proxy):
            return module(x)
        if isinstance(module, self.blocks):
            if torch.compiler.is_compiling():  # which takes no contexts
                return cast(Tensor, checkpoint(module, x, use_reentrant=False))
            return cast(Tensor, checkpoint(module, x, use_reentrant=False, context_fn=partial(_contexts, module)))
        if isinstance(module, nn.Sequential):
            for child in module:
                x = self._run(child, x)
            return x
        return module(x)


def initialise_linear(layer: nn.Linear) -> None:
    """Kaiming-normal (fan-in) weights and zero biases, as in the paper's recipe."""
    nn.init.kaiming_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def as_class(model: Classifier, kind: type[nn.Module]) -> nn.Module:
    """A model as the class of torchvision that it extends, whose own `forward` TorchScript can read."""
    if not model.global_pool:
        return Classifier.__prepare_scriptable__(model)
    twin = copy.copy(model)
    twin.__class__ = kind  # type: ignore[assignment]  # it has all that this class has
    return twin


def refuse_kaconv_options(options: dict[str, Any]) -> None:
    """ValueError if a plain model is given options of KAConv2d."""
    if options:
        raise ValueError(f"a model without KAConv2d takes no {', '.join(options)}")


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    return contextlib.nullcontext(), _statistics_alone(block)


@contextlib.contextmanager
def _statistics_alone(block: nn.Module) -> Iterator[None]:
    """Batch norms in training that do not count a batch into their running statistics: they have counted it."""
    norms = [norm for norm in block.modules() if isinstance(norm, _BatchNorm) and norm.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, count) in zip(norms, before, strict=True):
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
