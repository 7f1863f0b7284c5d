"""The choice of the implementation that computes a KAConv."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

from kaconv.ops import eager, fused, operators, reference
from kaconv.ops.constant import assume_constant_result
from kaconv.ops.fused import has_hooks
from kaconv.ops.geometry import Geometry
from kaconv.ops.sync_batch_norm import SYNCHRONISED, has_other_processes

if TYPE_CHECKING:
    from torchvision.ops import FrozenBatchNorm2d

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
    norm: nn.Module,
    act: nn.Module,
    attention_generator: nn.Module,
    geometry: Geometry,
    backend: str = "auto",
) -> Tensor:
    """As `kaconv.ops.reference.kaconv2d`, by the backend that is asked for, or by the fastest that applies.

    Hooks on `norm` and `act` need these modules to be called, so with such hooks it is always the reference. What
    torch.compile and torch.export trace is fused as operators that they keep (`kaconv.ops.operators`), except for
    ONNX. What else PyTorch traces or transforms (torch.func, dispatch modes such as the FLOP counter) is never fused.
    """
    backend = _forced.get() or backend
    if backend == "reference" or _has_any_global_hook() or has_hooks(norm) or has_hooks(act):
        return reference.kaconv2d(x, weight, norm, act, attention_generator, geometry)
    compiling = torch.compiler.is_compiling()
    if backend == "eager" or _is_transformed() or (torch.onnx.is_in_onnx_export() if compiling else is_traced(x)):
        return eager.kaconv2d(x, weight, norm, act, attention_generator, geometry)
    device = x.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    if not compiling and _is_frozen(norm):
        norm = _as_batch_norm(norm)
    taps_type, reason = _fused_taps(x, weight, norm, act, geometry)
    if compiling and isinstance(norm, SYNCHRONISED) and has_other_processes():
        reason = "a compiled model has no kernels that share statistics between processes"
    if reason or taps_type is None:
        _log_once(f"a KAConv runs unfused: {reason}", logging.WARNING if backend == "fused" else logging.INFO)
        return eager.kaconv2d(x, weight, norm, act, attention_generator, geometry)
    assert isinstance(norm, _BatchNorm)
    assert isinstance(act, nn.ReLU | nn.ReLU6)
    if compiling:
        return operators.kaconv2d(x, weight, norm, act, attention_generator, geometry)
    return fused.kaconv2d(x, weight, norm, act, attention_generator, geometry, taps_type)


def _fused_taps(
    x: Tensor, weight: Tensor, norm: nn.Module, act: nn.Module, geometry: Geometry
) -> tuple[type[fused.Taps] | None, str | None]:
    """The passes for this device, or why there are none for this layer."""
    if type(norm) not in (nn.BatchNorm2d, *SYNCHRONISED):
        return None, f"it wants nn.BatchNorm2d as norm, not {type(norm).__name__}"
    if type(act) not in (nn.ReLU, nn.ReLU6):
        return None, f"it wants nn.ReLU or nn.ReLU6 as activation, not {type(act).__name__}"
    if x.dtype != weight.dtype:
        return None, f"input and weight differ in dtype, {x.dtype} and {weight.dtype}"
    height, width = geometry.output_size(*x.shape[2:])
    if x.shape[0] * height * width < 2:
        return None, "it wants more than one value in each channel"
    if x.device.type not in ("cpu", "cuda"):
        return None, f"there are no kernels for the device {x.device.type}"
    return operators.taps_for(x, weight, geometry)


def _is_frozen(norm: nn.Module) -> bool:
    """A FrozenBatchNorm2d. Who has one has imported torchvision, which takes as long as torch: the layer need not."""
    torchvision = sys.modules.get("torchvision.ops")
    return torchvision is not None and type(norm) is torchvision.FrozenBatchNorm2d


def _as_batch_norm(frozen: "FrozenBatchNorm2d") -> nn.BatchNorm2d:
    """The batch norm in evaluation mode that computes the same; it shares the frozen one's numbers."""
    norm = nn.BatchNorm2d(len(frozen.weight), frozen.eps, device="meta").eval()
    norm.weight, norm.bias = (nn.Parameter(value, requires_grad=False) for value in (frozen.weight, frozen.bias))
    norm.running_mean, norm.running_var = frozen.running_mean, frozen.running_var
    return norm


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()


def is_traced(x: Tensor) -> bool:
    """True if PyTorch records what is done with x, by other means than torch.compile."""
    return torch.jit.is_tracing() or _get_current_dispatch_mode() is not None or type(x) not in (Tensor, nn.Parameter)


@assume_constant_result
@cache
def _log_once(message: str, level: int) -> None:
    _LOGGER.log(level, message)
