"""Which implementation computes a KAConv."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

from kaconv.ops import cpu_taps, eager, fused, reference
from kaconv.ops.geometry import Geometry
from kaconv.ops.sync_batch_norm import SYNCHRONISED

BACKENDS = ("auto", "reference", "eager", "fused")

_LOGGER = logging.getLogger("kaconv")
_forced: ContextVar[str | None] = ContextVar("kaconv_backend", default=None)


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Computes every KAConv2d that runs inside the block with one backend, whatever the layers say.

    The choice belongs to this thread (and asyncio task) alone, and is made when the forward runs: a backward follows
    its forward, wherever it runs. Threads started inside the block, such as those of `nn.DataParallel`, and forwards
    that activation checkpointing repeats on autograd's own threads, go by the layers; give these `backend=`.

    Args:
        backend: "reference" is the definition, with every map stored; "eager" is PyTorch's operators with less memory;
            "fused" is compiled kernels that store no map; "auto" takes "fused" where it applies, else "eager".

    Raises:
        ValueError: for another name.
    """
    token = _forced.set(check_backend(backend))
    try:
        yield
    finally:
        _forced.reset(token)


def check_backend(backend: str) -> str:
    """The name, if it is one of `BACKENDS`; else a ValueError."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    return backend


def kaconv2d(
    x: Tensor,
    weight: Tensor,
    norm: Callable[[Tensor], Tensor],
    act: Callable[[Tensor], Tensor],
    attention_generator: Callable[[Tensor], Tensor],
    geometry: Geometry,
    backend: str = "auto",
) -> Tensor:
    """As `kaconv.ops.reference.kaconv2d`, by the backend that is asked for, or by the fastest that applies.

    Hooks on `norm` and `act` need these modules to be called, so with such hooks it is always the reference. What
    PyTorch traces or transforms (torch.compile, torch.export, torch.func, dispatch modes such as the FLOP counter) is
    never fused.
    """
    backend = _forced.get() or backend
    if backend == "reference" or _is_hooked(norm) or _is_hooked(act):
        return reference.kaconv2d(x, weight, norm, act, attention_generator, geometry)
    if backend == "eager" or _is_traced(x):
        return eager.kaconv2d(x, weight, norm, act, attention_generator, geometry)
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        x, weight = x.to(dtype), weight.to(dtype)
    taps_type, reason = _fused_taps(x, weight, norm, act, geometry)
    if reason:
        _log_once(f"a KAConv runs unfused: {reason}", logging.WARNING if backend == "fused" else logging.INFO)
        return eager.kaconv2d(x, weight, norm, act, attention_generator, geometry)
    return fused.kaconv2d(x, weight, norm, act, attention_generator, geometry, taps_type)


def _fused_taps(
    x: Tensor, weight: Tensor, norm: object, act: object, geometry: Geometry
) -> tuple[type[fused.Taps] | None, str | None]:
    """The passes for this device, or why there are none for this layer."""
    if type(norm) not in (nn.BatchNorm2d, *SYNCHRONISED):
        return None, f"it wants nn.BatchNorm2d as norm, not {type(norm).__name__}"
    if type(act) not in (nn.ReLU, nn.ReLU6):
        return None, f"it wants nn.ReLU or nn.ReLU6 as activation, not {type(act).__name__}"
    if x.dtype != weight.dtype:
        return None, f"input and weight differ in dtype, {x.dtype} and {weight.dtype}"
    height, width = geometry.output_size(*x.shape[2:])
    if len(x) * height * width < 2:
        return None, "it wants more than one value in each channel"
    if x.device.type == "cpu":
        if torch.is_autocast_enabled("cpu"):
            return None, "the compiled CPU passes take no autocast"
        return cpu_taps.CPUTaps, cpu_taps.supported(x, weight, geometry)
    if x.device.type == "cuda":
        from kaconv.ops import triton_taps  # not every machine has Triton

        return triton_taps.TritonTaps, triton_taps.supported(x, weight, geometry)
    return None, f"there are no kernels for the device {x.device.type}"


def _is_hooked(module: object) -> bool:
    if not isinstance(module, nn.Module):
        return False
    if _has_any_global_hook():
        return True
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, name) for part in module.modules() for name in hooks)


def _is_traced(x: Tensor) -> bool:
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
        or type(x) not in (Tensor, nn.Parameter)
    )


@cache
def _log_once(message: str, level: int) -> None:
    _LOGGER.log(level, message)
