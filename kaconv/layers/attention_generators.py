"""The two attention generators of KAConv: AG-L (light) and AG-H (heavy), and the setting of their warm-up."""

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kaconv.ops.sync_batch_norm import SYNCHRONISED

Softmax = Callable[[Tensor], Tensor]
NormReLU = Callable[[nn.Module, Tensor], Tensor]

GENERATOR_NORMS = ("batch", "layer", "group", "none")


def _generator_norm(kind: str, hidden: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm1d(hidden)
    if kind == "layer":
        return nn.LayerNorm(hidden)
    if kind == "group":
        # At least 4 values in a group: a group of one value would be normalised to zero.
        return nn.GroupNorm(next(g for g in (8, 4, 2, 1) if g == 1 or (hidden % g == 0 and hidden // g >= 4)), hidden)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"unknown generator_norm {kind!r}; choose from {', '.join(GENERATOR_NORMS)}")


def norm_relu(norm: nn.Module, hidden: Tensor) -> Tensor:
    """A generator's hidden vectors, (vectors, d), normalised and through a ReLU."""
    return F.relu(norm(hidden))


def over_positions(logits: Tensor) -> Tensor:
    """Softmax over K, of (N, K, C)."""
    return logits.softmax(dim=1)


class AttentionGenerator(nn.Module):
    """The part that both generators share: the softmax, and what a training's warm-up makes of it.

    Attributes:
        uniform_share: t, with which training takes (1 - t) A + t / K for the attention A.
        temperature: what training divides the logits by.

    Neither is kept with the weights, so neither acts in evaluation: a model is tested as its checkpoint will be.
    """

    squeeze: nn.Linear
    norm: nn.Module
    excite: nn.Linear
    samples_apart_in_eval = True  # a sample's attention does not depend on the others of its batch
    takes_steps = True  # `norm_relu` and `softmax`, as arguments: what traces a model has operators of its own for them
    uniform_share = 0.0
    temperature = 1.0

    def _attention(self, logits: Tensor, softmax: Softmax) -> Tensor:
        if not self.training:
            return softmax(logits)
        if self.temperature != 1:
            logits = logits / self.temperature
        attention = softmax(logits)
        if self.uniform_share:
            attention = (1 - self.uniform_share) * attention + self.uniform_share / attention.shape[1]
        return attention


class AttentionGeneratorL(AttentionGenerator):
    """AG-L: all positions are squeezed into one hidden vector, from which each position's logits are read.

    `U = ReLU(BN(Σ_p F_p Q_p))`, `T_p = G_p U + b_p`, `A = softmax over p of T` (paper, AG-L). The K matrices F_p
    stand side by side in `squeeze`, the K matrices G_p one above the other in `excite`.

    Args:
        channels: C, output channels of the convolution.
        positions: K, kernel positions.
        hidden: d, width of U.
        logit_bias: whether there is a b_p.
        norm: what normalises U: "batch", as in the paper; "layer" or "group" (up to 8 groups of at least 4 channels),
            which look at one sample only and so train with a batch of one; or "none".

    Shape:
        (N, K, C) to (N, K, C), non-negative, with sum 1 over K.
    """

    def __init__(
        self, channels: int, positions: int, hidden: int, logit_bias: bool = True, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.squeeze = nn.Linear(positions * channels, hidden, bias=False)
        self.norm = _generator_norm(norm, hidden)
        self.excite = nn.Linear(hidden, positions * channels, bias=logit_bias)

    def forward(self, q: Tensor, norm_relu: NormReLU = norm_relu, softmax: Softmax = over_positions) -> Tensor:
        u = self.squeeze(q.flatten(1))
        _check_values_per_channel(self.norm, u, "AG-L")
        return self._attention(self.excite(norm_relu(self.norm, u)).view_as(q), softmax)


class AttentionGeneratorH(AttentionGenerator):
    """AG-H: each position is squeezed by the same matrix; each position's logits are read from all of them.

    `V_p = ReLU(BN(F Q_p))`, `T_p = Σ_q G_{p,q} V_q + b_p`, `A = softmax over p of T` (paper, AG-H). The batch norm's
    statistics are taken over samples and positions; a layer or group norm's over one V_p.

    Args and shape: as in `AttentionGeneratorL`.
    """

    def __init__(
        self, channels: int, positions: int, hidden: int, logit_bias: bool = True, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.norm = _generator_norm(norm, hidden)
        self.excite = nn.Linear(positions * hidden, positions * channels, bias=logit_bias)

    def forward(self, q: Tensor, norm_relu: NormReLU = norm_relu, softmax: Softmax = over_positions) -> Tensor:
        v = self.squeeze(q).flatten(0, 1)
        _check_values_per_channel(self.norm, v, "AG-H")
        v = norm_relu(self.norm, v).unflatten(0, q.shape[:2])
        return self._attention(self.excite(v.flatten(1)).view_as(q), softmax)


ATTENTION_GENERATORS: dict[str, type[AttentionGeneratorL] | type[AttentionGeneratorH]] = {
    "L": AttentionGeneratorL,
    "H": AttentionGeneratorH,
}


def set_uniform_share(model: nn.Module, share: float) -> None:
    """Have all attention of a model pulled towards 1 / K in training: 0, not at all; 1, nothing else is left of it."""
    if not 0 <= share <= 1:
        raise ValueError(f"the uniform share must be from 0 to 1, got {share!r}")
    for generator in _generators(model):
        generator.uniform_share = share


def set_temperature(model: nn.Module, temperature: float) -> None:
    """Have the attention logits of a model divided by this in training: 1, as they are; more, closer to 1 / K."""
    if not temperature > 0:
        raise ValueError(f"the temperature must be > 0, got {temperature!r}")
    for generator in _generators(model):
        generator.temperature = temperature


def _generators(model: nn.Module) -> Iterator[AttentionGenerator]:
    return (module for module in model.modules() if isinstance(module, AttentionGenerator))


def _check_values_per_channel(norm: nn.Module, x: Tensor, name: str) -> None:
    # A synchronised batch norm sees the other processes' samples, too.
    if isinstance(norm, _BatchNorm) and norm.training and x.shape[0] == 1 and not isinstance(norm, SYNCHRONISED):
        raise ValueError(
            f"{name} normalises over the batch, so training needs at least 2 samples in a batch; got 1. "
            "Drop the last incomplete batch, call eval() on the model, or build it with generator_norm='layer'."
        )
