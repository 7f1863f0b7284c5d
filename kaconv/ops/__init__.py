"""What `KAConv2d` computes with. The layer calls `kaconv2d` from here and nothing else."""

from kaconv.ops.reference import kaconv2d

__all__ = ["kaconv2d"]
