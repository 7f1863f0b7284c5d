"""The passes of a fused KAConv on the CPU, which are compiled from taps.cpp.

They compute in float32, or float64 for float64; half-precision inputs and outputs are converted on the way.

With many channels in a group the K·C maps of all samples of a chunk are in a scratch buffer that is used again and
again, made by a matrix product. With few (grouped and depthwise), each pass makes the maps of one group of one sample
in the processor's cache. The passes read planes; of depthwise kernels, channels_last as well.
"""

import ctypes
import math
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kaconv.ops import native
from kaconv.ops.constant import assume_constant_result
from kaconv.ops.fused import real_dtype
from kaconv.ops.geometry import Geometry
from kaconv.ops.reference import pad, windows

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MANY_CHANNELS = 16  # from which one product for all samples is quicker than one for each
_MANY_OF_A_GROUP = 33  # the same where there are several groups
_MANY_PIXELS = 512  # of a sample, from which its matrix product alone is as quick as one for all samples
_CHUNKS = 16
_KEPT_BYTES = 2**28  # the largest scratch buffer that is kept
_AT_ONCE_BYTES = 2**24  # of maps or input, at inference: about what the last cache level holds


class _Problem(ctypes.Structure):
    """`Problem` of problem.hpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "groups", "in_group", "out_group")),
        *((name, ctypes.c_int64) for name in ("height_in", "width_in", "height", "width")),
        *((name, ctypes.c_int64 * 2) for name in ("kernel", "stride", "padding", "dilation")),
        ("chunks", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("channels_last", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "weight_of_groups", "weight_transposed", "z")),
    ]


def supported(x: Tensor, weight: Tensor, geometry: Geometry) -> str | None:
    """Why `CPUTaps` cannot take this input; None where it can."""
    if x.dtype not in _DTYPES:
        return f"the compiled CPU passes take {', '.join(map(str, _DTYPES))}, not {x.dtype}"
    if not _compiled():
        return "the CPU passes could not be compiled"
    return None


def _stores_maps(weight: Tensor, geometry: Geometry) -> bool:
    many = _MANY_CHANNELS if geometry.groups == 1 else _MANY_OF_A_GROUP
    return min(weight.shape[1], weight.shape[0] // geometry.groups) >= many


def is_depthwise(weight: Tensor, geometry: Geometry) -> bool:
    """True if each output channel reads an input channel of its own."""
    return weight.shape[1] == 1 and weight.shape[0] == geometry.groups


def packed(weight: Tensor, geometry: Geometry) -> Tensor:
    """The weight, (C, Cin/G, kh, kw), in an order in memory of which `CPUTaps` need make no copy (if G = 1, or few)."""
    positions_first = (2, 3, 0, 1)
    if _stores_maps(weight, geometry):
        return weight.permute(positions_first).contiguous().permute(positions_first)
    return weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


@assume_constant_result
def _compiled() -> bool:
    return native.library() is not None


class _Product(ctypes.Structure):
    """`Product` of products.hpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("matrices", "rows", "columns", "inner")),
        *((name, ctypes.c_int64) for name in ("a_matrix", "a_row", "b_matrix", "b_row", "c_matrix", "c_row")),
        *((name, ctypes.c_int64) for name in ("transposed", "threads")),
    ]


class CPUTaps:
    """One input and one kernel; see `kaconv.ops.fused` for the meaning of the passes and of their arguments."""

    def __init__(self, x: Tensor, weight: Tensor, geometry: Geometry, z: Tensor | None = None) -> None:
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        self._format = torch.channels_last if last else torch.contiguous_format
        self._input, self._real_dtype = x, real_dtype(x)
        self._weight, self._geometry = weight.to(self._real_dtype), geometry
        self._out_channels, self._groups = weight.shape[0], geometry.groups
        self._in_group, self._out_group = weight.shape[1], weight.shape[0] // geometry.groups
        self._size = geometry.output_size(*x.shape[2:])
        self._aligned = geometry.stride == (1, 1) and self._size == tuple(x.shape[2:])
        self._depthwise = is_depthwise(weight, geometry)
        self._channels_last = self._depthwise and last
        self._passes_format = torch.channels_last if self._channels_last else torch.contiguous_format
        self._stores_maps = _stores_maps(weight, geometry)
        self._z = z
        # Parts of the batch whose sums of dweight are apart: enough to run side by side, whatever the threads are.
        self._chunks = max(1, min(len(x), _CHUNKS // self._groups))

    @cached_property
    def _packed(self) -> Tensor:
        """The kernel as the matrix products take it: (G, K, C/G, Cin/G)."""
        grouped = self._weight.unflatten(0, (self._groups, self._out_group)).flatten(-2)
        return grouped.permute(0, 3, 1, 2).contiguous()

    @cached_property
    def _side_by_side(self) -> Tensor:
        """The kernel as the passes of few channels take it: (Cin/G, K, C)."""
        return self._weight.flatten(-2).permute(1, 2, 0).contiguous()

    @cached_property
    def _x(self) -> Tensor:
        """The input as the passes of few channels read it."""
        return self._real(self._input) if self._stores_maps or self._z is None else self._z

    @staticmethod
    def samples_at_once(x: Tensor, weight: Tensor, geometry: Geometry) -> int:
        """Samples to take at a time at inference, so that what both passes read stays in the cache."""
        shape = CPUTaps.maps_shape(x[:1], weight, geometry) or x.shape[1:]
        sample = math.prod(shape) * real_dtype(x).itemsize
        return max(1, _AT_ONCE_BYTES // max(1, sample))

    @staticmethod
    def maps_shape(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, ...] | None:
        """(G, K, C/G, N·pixels) with many channels in a group; else that of the input, which each pass reads."""
        if is_depthwise(weight, geometry):  # each pass reads the input as it is
            return None
        if not _stores_maps(weight, geometry):
            return tuple(x.shape)
        height, width = geometry.output_size(*x.shape[2:])
        return geometry.groups, geometry.positions, weight.shape[0] // geometry.groups, x.shape[0] * height * width

    def moments(self) -> tuple[Tensor, Tensor]:
        """See `kaconv.ops.fused.Taps.moments`."""
        total, squares = (self._sums(torch.float64) for _ in range(2))
        self._call("moments", total, squares)
        pixels = self._size[0] * self._size[1]
        mean = total.mean(dim=0) / pixels
        spread = squares.sum(dim=0) + pixels * (total / pixels - mean).square().sum(dim=0)
        var = spread / (len(self._input) * pixels)
        if not self._stores_maps and self._depthwise:  # of the input: the maps are it, times one weight
            w = self._side_by_side[0].double()
            mean, var = mean * w, var * w.square()
        return mean.to(self._real_dtype), var.to(self._real_dtype)

    def pooled(self, scale: Tensor, shift: Tensor, cap: float) -> Tensor:
        """See `kaconv.ops.fused.Taps.pooled`."""
        q = self._sums()
        self._call("pooled", self._times_weight(scale), shift, cap, q)
        return q

    def pool(self, r: Tensor, t: Tensor, gamma: Tensor, beta: Tensor, cap: float) -> tuple[Tensor, Tensor, Tensor]:
        """See `kaconv.ops.fused.Taps.pool`."""
        active, active_xhat, capped = (self._sums() for _ in range(3))
        self._call("pool", self._times_weight(r), t, gamma, beta, cap, active, active_xhat, capped)
        return active, active_xhat, capped

    def aggregate(self, scale: Tensor, shift: Tensor, attention: Tensor, cap: float) -> Tensor:
        """See `kaconv.ops.fused.Taps.aggregate`."""
        shape = (len(self._input), self._out_channels, *self._size)
        out = torch.empty(shape, dtype=self._real_dtype, memory_format=self._passes_format)
        self._call("aggregate", self._times_weight(scale), shift, attention, cap, out)
        return out.to(self._input.dtype).contiguous(memory_format=self._format)

    def reduce(
        self, r: Tensor, t: Tensor, gamma: Tensor, beta: Tensor, cap: float, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `kaconv.ops.fused.Taps.reduce`."""
        d_active, d_active_xhat, d_capped = (self._sums() for _ in range(3))
        norm = (self._times_weight(r), t, gamma, beta, cap)
        self._call("reduce", *norm, self._real(dout), d_active, d_active_xhat, d_capped)
        return d_active, d_active_xhat, d_capped

    def gradients(
        self,
        r: Tensor,
        t: Tensor,
        gamma: Tensor,
        beta: Tensor,
        cap: float,
        dout: Tensor,
        alpha: Tensor,
        bias: Tensor,
        delta: Tensor,
        epsilon: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `kaconv.ops.fused.Taps.gradients`."""
        norm = (self._times_weight(r), t, gamma, beta, cap)
        slopes = (self._real(dout), alpha, bias, delta, epsilon)
        if self._stores_maps:
            self._call("gradients", *norm, *slopes, None, None)
            dx, dpacked = self._map_gradients()
            dweight = dpacked.permute(0, 2, 3, 1)
        else:
            dx = torch.empty_like(self._x)
            parts = self._sums() if self._channels_last else self._new(self._chunks, *self._packed.shape)
            self._call("gradients", *norm, *slopes, dx, parts)
            dweight = parts.sum(dim=0)
            dweight = dweight.t() if self._channels_last else dweight.permute(0, 2, 3, 1)
        dweight, dtype = dweight.reshape(self._weight.shape), self._input.dtype
        return dx.to(dtype).contiguous(memory_format=self._format), dweight.to(dtype)

    # The maps of many channels, as matrix products ----------------------------------------------------------------

    def maps(self) -> Tensor:
        """Z of all samples, or a copy of the input in the passes' format and dtype; of `maps_shape`."""
        if not self._stores_maps:
            return self._input.to(self._real_dtype, copy=True, memory_format=torch.contiguous_format)
        if self._z is None:
            pixels = self._size[0] * self._size[1]
            samples = len(self._input)
            self._z = _scratch((*self._packed.shape[:-1], samples * pixels), self._weight)
            z = self._z.view(*self._kernels().shape[:-1], samples, pixels)
            planes = self._groups == 1 and self._format is torch.contiguous_format
            if self._aligned and planes and pixels >= _MANY_PIXELS:  # sample by sample, without a copy of the input
                _multiply(self._kernels().expand(samples, -1, -1), self._x.flatten(2), z[0].movedim(1, 0))
            else:
                _multiply(self._kernels(), self._seen(), z.flatten(-2))
        return self._z

    def _kernels(self) -> Tensor:
        """The kernel as matrices: one for each group where all positions see the same input, else for each position."""
        return self._packed.flatten(1, 2) if self._aligned else self._packed.flatten(0, 1)

    def _seen(self) -> Tensor:
        """The input that each of `_kernels` is multiplied with, (G or G·K, Cin/G, N·pixels)."""
        if self._aligned:  # in channels_last with one group, as the input is
            x = self._input.to(self._real_dtype).unflatten(1, (self._groups, self._in_group))
            return x.permute(1, 2, 0, 3, 4).flatten(2)
        views = self._windows(pad(self._x, self._geometry))
        return torch.stack([view.permute(1, 2, 0, 3, 4).flatten(2) for view in views], dim=1).flatten(0, 1)

    def _windows(self, padded: Tensor) -> list[Tensor]:
        return [view.unflatten(1, (self._groups, self._in_group)) for view in windows(padded, self._geometry)]

    def _map_gradients(self) -> tuple[Tensor, Tensor]:
        """dx and the gradient of the packed weight, from the gradients of the maps, which stand in their place."""
        kernels = self._kernels()
        dz = self.maps().view(*kernels.shape[:-1], -1)
        seen = self._seen()
        dpacked = _multiply(dz, seen.mT, kernels.new_empty(kernels.shape)).view_as(self._packed)
        dseen = _multiply(_transposed(kernels), dz, seen.new_empty(seen.shape))
        dseen = dseen.unflatten(-1, (len(self._input), *self._size))
        self._z = None  # it holds the gradients
        if self._aligned:
            return dseen.permute(2, 0, 1, 3, 4).flatten(1, 2), dpacked
        # Each position's window of dx takes what the position saw.
        (top, left), (height, width) = self._geometry.padding, self._input.shape[2:]
        dx = self._new(*self._input.shape[:2], height + 2 * top, width + 2 * left).zero_()
        dseen = dseen.unflatten(0, (self._groups, -1)).unbind(dim=1)
        for window, dwindow in zip(self._windows(dx), dseen, strict=True):
            window += dwindow.permute(2, 0, 1, 3, 4)
        return dx[:, :, top : top + height, left : left + width], dpacked

    # Calls --------------------------------------------------------------------------------------------------------

    def _sums(self, dtype: torch.dtype | None = None) -> Tensor:
        return self._new(len(self._input), self._geometry.positions, self._out_channels, dtype=dtype)

    def _new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self._weight.new_empty(shape, dtype=dtype)

    def _real(self, maps: Tensor) -> Tensor:
        return maps.contiguous(memory_format=self._passes_format).to(self._real_dtype)

    def _times_weight(self, scale: Tensor) -> Tensor:
        """With depthwise maps the planes are the input's, so that their scale holds the weight."""
        if not self._stores_maps and self._depthwise:
            scale = scale * self._side_by_side[0]
        return scale

    def _call(self, name: str, *arguments: Any) -> None:
        sources = self._sources(name)
        problem = self._problem(**sources)
        real = ctypes.c_double if self._real_dtype == torch.float64 else ctypes.c_float
        # What has pixels is in the format of the passes already.
        arguments = tuple(a.contiguous() if isinstance(a, Tensor) and a.ndim < 4 else a for a in arguments)
        values = [real(_reachable(a)) if isinstance(a, float) else _pointer(a) for a in arguments]
        _function(name, self._real_dtype)(ctypes.byref(problem), *values)

    def _sources(self, name: str) -> dict[str, Tensor]:
        """What a pass makes the maps from, as fields of the problem."""
        if self._stores_maps:
            return {"z": self.maps()}
        if name == "gradients" and not self._channels_last:
            transposed = self._packed.permute(0, 3, 1, 2).contiguous()
            return {"x": self._x, "weight_of_groups": self._packed, "weight_transposed": transposed}
        return {"x": self._x, "weight": self._side_by_side}

    def _problem(self, **tensors: Tensor) -> _Problem:
        g = self._geometry
        return _Problem(
            len(self._input), self._groups, self._in_group, self._out_group, *self._input.shape[2:], *self._size,
            *((ctypes.c_int64 * 2)(*pair) for pair in (g.kernel, g.stride, g.padding, g.dilation)),
            self._chunks,
            torch.get_num_threads(),
            self._channels_last,
            **{name: _pointer(tensor) for name, tensor in tensors.items()},
        )  # fmt: skip


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """The products of the matrices a (B, M, K) and b (B, K, N), into out (B, M, N), which it returns.

    Rows of a and out are contiguous, of b rows or columns.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # only there may PyTorch's library leave vectors unused
        for to, left, right in zip(out, a, b, strict=True):
            torch.mm(left, right, out=to)
        return out
    transposed = b.stride(-1) != 1
    lines = (a, b.mT if transposed else b, out)  # each with its lines contiguous
    strides = [stride for matrices in lines for stride in matrices.stride()[:2]]
    problem = _Product(*out.shape, a.shape[-1], *strides, transposed, torch.get_num_threads())
    _function("product", a.dtype)(ctypes.byref(problem), *map(_pointer, (a, b, out)))
    return out


def _transposed(matrices: Tensor) -> Tensor:
    """A copy of matrices (B, M, N) as (B, N, M), one by one: PyTorch takes several times as long for all at once."""
    out = matrices.new_empty(matrices.mT.shape)
    for to, matrix in zip(out, matrices, strict=True):
        to.copy_(matrix.mT)
    return out


def release_scratch() -> None:
    """Free the buffer that is kept for the next layer's maps."""
    _kept.clear()


def _function(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    function = getattr(native.library(), f"{name}_{'double' if dtype == torch.float64 else 'float'}")
    function.restype = None
    return function


def _reachable(cap: float) -> float:
    """A cap of NaN in place of none: infinite values would reach an infinite cap, and so not be active."""
    return math.nan if math.isinf(cap) else cap


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


_kept: list[Tensor] = []


def _scratch(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor for maps, in a buffer that is kept for the next layer when the tensor has gone.

    One buffer is kept, because fresh memory costs as much as filling it.
    """
    size = math.prod(shape) * like.element_size()
    try:
        buffer = _kept.pop()
    except IndexError:
        buffer = torch.empty(0, dtype=torch.uint8)
    if buffer.numel() < size:
        buffer = torch.empty(size, dtype=torch.uint8)
    lease = buffer.numpy()[:size]  # the tensor's storage holds this array, which so dies with it
    weakref.finalize(lease, _give_back, buffer).atexit = False
    return torch.from_numpy(lease).view(like.dtype).view(shape)


def _give_back(buffer: Tensor) -> None:
    if buffer.numel() <= _KEPT_BYTES and not _kept:
        _kept.append(buffer)
