"""The computations of `KAConv2d`. The layer calls `kaconv2d` from here and nothing else."""

from kaconv.ops.dispatch import BACKENDS, check_backend, kaconv2d, use_backend

__all__ = ["BACKENDS", "check_backend", "kaconv2d", "use_backend"]
