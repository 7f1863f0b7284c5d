"""The two attention generators of KAConv: AG-L (light) and AG-H (heavy)."""

import torch.nn.functional as F
from torch import Tensor, nn

from kaconv.ops.sync_batch_norm import SYNCHRONISED


class AttentionGeneratorL(nn.Module):
    """AG-L: all positions are squeezed into one hidden vector, from which each position's logits are read.

    `U = ReLU(BN(Σ_p F_p Q_p))`, `T_p = G_p U + b_p`, `A = softmax over p of T` (paper, AG-L). The K matrices F_p
    stand side by side in `squeeze`, the K matrices G_p one above the other in `excite`.

    Args:
        channels: C, output channels of the convolution.
        positions: K, kernel positions.
        hidden: d, width of U.
        logit_bias: whether there is a b_p.

    Shape:
        (N, K, C) to (N, K, C), non-negative, with sum 1 over K.
    """

    samples_apart_in_eval = True  # a sample's attention does not depend on the others of its batch

    def __init__(self, channels: int, positions: int, hidden: int, logit_bias: bool = True) -> None:
        super().__init__()
        self.squeeze = nn.Linear(positions * channels, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.excite = nn.Linear(hidden, positions * channels, bias=logit_bias)

    def forward(self, q: Tensor) -> Tensor:
        u = self.squeeze(q.flatten(1))
        _check_values_per_channel(self.norm, u, "AG-L")
        return self.excite(F.relu(self.norm(u))).view_as(q).softmax(dim=1)


class AttentionGeneratorH(nn.Module):
    """AG-H: each position is squeezed by the same matrix; each position's logits are read from all of them.

    `V_p = ReLU(BN(F Q_p))`, `T_p = Σ_q G_{p,q} V_q + b_p`, `A = softmax over p of T` (paper, AG-H). The batch norm's
    statistics are taken over samples and positions.

    Args and shape: as in `AttentionGeneratorL`.
    """

    samples_apart_in_eval = True  # a sample's attention does not depend on the others of its batch

    def __init__(self, channels: int, positions: int, hidden: int, logit_bias: bool = True) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.excite = nn.Linear(positions * hidden, positions * channels, bias=logit_bias)

    def forward(self, q: Tensor) -> Tensor:
        v = self.squeeze(q).flatten(0, 1)
        _check_values_per_channel(self.norm, v, "AG-H")
        v = F.relu(self.norm(v)).unflatten(0, q.shape[:2])
        return self.excite(v.flatten(1)).view_as(q).softmax(dim=1)


ATTENTION_GENERATORS = {"L": AttentionGeneratorL, "H": AttentionGeneratorH}


def _check_values_per_channel(norm: nn.Module, x: Tensor, name: str) -> None:
    # A synchronised batch norm sees the other processes' samples, too.
    if norm.training and x.shape[0] == 1 and not isinstance(norm, SYNCHRONISED):
        raise ValueError(
            f"{name} normalises over the batch, so training needs at least 2 samples in a batch; got 1. "
            "Drop the last incomplete batch, or call eval() on the model."
        )
