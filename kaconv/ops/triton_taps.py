"""The passes of the fused KAConv on CUDA devices, as Triton kernels.

As FlashAttention does with its matrix, no map Z_k or Y_k is stored: each pass makes them again, tile by tile, in
registers (`kaconv.ops.triton_kernels`). The kernels read x and dout K times through the taps, in runs of channels, so
what does not have its channels side by side is copied to channels_last first. Results, written once, are stored through
strides, in whatever memory format they are to have.
"""

import functools
import importlib.util
import math
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kaconv.ops.constant import assume_constant_result
from kaconv.ops.geometry import Geometry
from kaconv.ops.triton_tiles import Blocks, blocks_for

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Most that the maps of dz may take where they are stored for a while (a chunk of samples at a time), in bytes.
_DZ_BYTES = 256 * 2**20
# Programs that fill a large GPU (some 130 multiprocessors) a few times. A constant: what is summed in which order
# must not depend on the device.
_PROGRAMS = 528
# Channels of a group are brought to at least this many where a GEMM makes the maps: what the tensor cores take at once.
_LEAST_CHANNELS = 32
# Input channels for which a tile of x with all of them, and of dx, fits in registers.
_MOST_CHANNELS_HELD = 128


def _kernels() -> ModuleType:
    from kaconv.ops import triton_kernels  # not at the top: it imports Triton, which not every platform has

    return triton_kernels


@assume_constant_result
@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@assume_constant_result
def _interpreted() -> bool:
    """Whether kernels run in Triton's interpreter. Triton reads the variable once, when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on") and _kernels().INTERPRETED


@assume_constant_result
def _capable(device: int) -> bool:
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def supported(x: Tensor, weight: Tensor, geometry: Geometry) -> str | None:
    """Why `TritonTaps` cannot be used with these, or None if it can."""
    if not _installed():
        return "Triton is not installed"
    if x.dtype not in _DTYPES:
        return f"dtype {x.dtype} is not among {', '.join(str(dtype) for dtype in _DTYPES)}"
    if x.device != weight.device:
        return f"the input is on {x.device}, the weight on {weight.device}"
    if x.device.type == "cuda":
        if not _capable(x.device.index):
            return "the device's compute capability is below 8.0"
    elif x.device.type != "cpu" or not _interpreted():
        return f"no Triton kernels for device type {x.device.type!r}"
    if x.numel() == 0 or min(geometry.output_size(*x.shape[2:])) < 1:
        return "the input or the output is empty"
    sample = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    height, width = geometry.output_size(*x.shape[2:])
    if max(sample, math.prod(x.shape[1:]), weight.shape[0] * geometry.positions * height * width) >= 2**31:
        return "a sample has too many elements for 32-bit offsets"
    return None


class TritonTaps:
    """Sums over, and gradients of, the maps z_k of one convolution; see `kaconv.ops.fused` for the whole.

    Sums over pixels are taken per tile inside the kernels and over tiles by torch, each in a fixed order:
    results are deterministic, and the same on every call.

    Args:
        x: (N, Cin, Hin, Win), of any strides.
        weight: (C, Cin/groups, kh, kw). It is rounded to x's dtype.
    """

    def __init__(self, x: Tensor, weight: Tensor, geometry: Geometry, z: Tensor | None = None) -> None:
        self.kernels = _kernels()
        self.x = _channels_last(x)
        self.like_x = x
        self.weight = weight
        self.geometry = geometry
        self.samples, self.in_channels, self.in_height, self.in_width = x.shape
        self.channels = weight.shape[0]
        self.positions = geometry.positions
        self.height, self.width = geometry.output_size(self.in_height, self.in_width)
        self.accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.depthwise = geometry.groups == self.in_channels
        # A GEMM wants more channels than the groups of a ResNeXt have: `merge` neighbouring groups become one, with
        # zeros where they do not touch. That costs FLOPs that the tensor cores have to spare.
        self.merge = 1 if self.depthwise else _groups_to_merge(geometry.groups, self.in_channels, self.channels)
        self.groups = geometry.groups // self.merge
        self.packed = self._pack()

    @staticmethod
    def samples_at_once(x: Tensor, weight: Tensor, geometry: Geometry) -> int:
        """All: no map is stored, so parts of the batch would save nothing."""
        return max(1, len(x))

    @staticmethod
    def maps_shape(x: Tensor, weight: Tensor, geometry: Geometry) -> None:
        """None: no map is stored."""

    def maps(self) -> Tensor:
        """Never asked for: no map is stored."""
        raise NotImplementedError

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of z over samples and pixels, each (K, C)."""
        # Each (N, tiles, K, C); depthwise: of x. Chan's combination of what is known of tiles: nothing large cancels.
        mean, squares, count = self._sums(self.kernels.MOMENTS, 3)
        total = self.samples * self.height * self.width
        pooled = (mean * count).sum((0, 1)) / total
        deviation = mean - pooled
        variance = (squares + count * deviation * deviation).sum((0, 1)) / total
        return (self._scaled(pooled), self._scaled(self._scaled(variance))) if self.depthwise else (pooled, variance)

    def pooled(self, scale: Tensor, shift: Tensor, cap: float) -> Tensor:
        """Mean over pixels of act(scale·z + shift), (N, K, C); scale and shift are (K, C)."""
        (total,) = self._sums(self.kernels.POOLED, 1, cap, r=self._scaled(scale), t=shift)
        return total.sum(1) / (self.height * self.width)

    def pool(self, r: Tensor, t: Tensor, gamma: Tensor, beta: Tensor, cap: float) -> tuple[Tensor, Tensor, Tensor]:
        """Number of active pixels, sum of xhat over them, and number of capped pixels, each (N, K, C)."""
        return self._active_sums(self.kernels.POOL, r, t, gamma, beta, cap, None)

    def aggregate(self, scale: Tensor, shift: Tensor, attention: Tensor, cap: float) -> Tensor:
        """Sum over k of attention (N, K, C) times act(scale·z + shift): (N, C, H, W)."""
        out = _empty_like_format(self.like_x, (self.samples, self.channels, self.height, self.width))
        scale, strides = self._scaled(scale), out.stride()
        self._taps(self.kernels.AGGREGATE, out, cap, None, strides, r=scale, t=shift, alpha=attention)
        return out

    def reduce(
        self, r: Tensor, t: Tensor, gamma: Tensor, beta: Tensor, cap: float, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over pixels of dout and dout·xhat over the active, and of dout over the capped, each (N, K, C)."""
        return self._active_sums(self.kernels.REDUCE, r, t, gamma, beta, cap, _channels_last(dout))

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
        """(dx, dweight) from dz_k = [active] · (alpha·dout + bias) - delta - epsilon·xhat.

        alpha and bias are (N, K, C), the other coefficients (K, C).
        """
        coefficients = {"r": self._scaled(r), "t": t, "gamma": gamma, "beta": beta}
        coefficients |= {"alpha": alpha, "bias": bias, "delta": delta, "epsilon": epsilon}
        coefficients = self._coefficients(coefficients)
        dout = _channels_last(dout)
        if self.depthwise:
            dx, dw = self._depthwise_gradients(dout, cap, coefficients)
        else:
            dx, dw = self._dense_gradients(dout, cap, coefficients)
        return dx, self._unpack(dw)

    # -- sums and maps over output pixels

    def _active_sums(self, mode, r, t, gamma, beta, cap, dout) -> tuple[Tensor, Tensor, Tensor]:
        coefficients = {"r": self._scaled(r), "t": t, "gamma": gamma, "beta": beta}
        if math.isfinite(cap):
            active, active_xhat, capped = self._sums(mode, 3, cap, dout, **coefficients).sum(2)
            return active, active_xhat, capped
        active, active_xhat = self._sums(mode, 2, cap, dout, **coefficients).sum(2)
        return active, active_xhat, torch.zeros_like(active)

    def _sums(self, mode, quantities: int, cap: float = math.inf, dout: Tensor | None = None, **coefficients) -> Tensor:
        """Partial sums, (quantities, N, tiles, K, C)."""
        shape = (quantities, self.samples, self._tiles(mode), self.positions, self.channels)
        result = torch.empty(shape, dtype=self.accumulator, device=self.x.device)
        strides = (0, 0, 0, 0) if dout is None else dout.stride()
        self._taps(mode, result, cap, dout, strides, **coefficients)
        return result

    def _taps(
        self,
        mode,
        result: Tensor,
        cap: float,
        dout: Tensor | None = None,
        strides: tuple[int, ...] = (0, 0, 0, 0),
        samples: slice = slice(None),
        **coefficients: Tensor,
    ) -> None:
        x = self.x[samples]
        blocks = self._blocks(mode)
        if self.depthwise:
            channel_blocks = _ceil_div(self.channels, blocks["BLOCK_C"])
        else:
            channel_blocks = self.groups * _ceil_div(self.channels // self.groups, blocks["BLOCK_C"])
        self._launch(
            self.kernels.taps,
            x.shape[0] * self._tiles(mode) * channel_blocks,
            x=x,
            w=self.packed,
            result=result,
            dout=result if dout is None else dout[samples],
            # What a mode does not read is stood in for by a pointer that it has.
            **_grouped(self._coefficients(coefficients), result),
            **self._sizes(x, cap),
            samples=x.shape[0],
            o_strides=strides,
            tiles=self._tiles(mode),
            blocks=channel_blocks,
            MODE=mode.value,
            HELD=self._held(mode),
            DEPTHWISE=self.depthwise,
            **self._gemm_constants(),
            **blocks,
        )

    # -- gradients

    def _depthwise_gradients(self, dout: Tensor, cap: float, coefficients: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        blocks = self._blocks(self.kernels.DZ)
        tiles = self._input_tiles(blocks["BLOCK_P"])
        channel_blocks = _ceil_div(self.in_channels, blocks["BLOCK_C"])
        dx = _empty_like_format(self.like_x, self.like_x.shape)
        shape = (self.samples, tiles, self.positions, self.channels)
        dw = torch.empty(shape, dtype=self.accumulator, device=self.x.device)
        self._launch(
            self.kernels.depthwise_gradients,
            self.samples * tiles * channel_blocks,
            x=self.x,
            w=self.packed,
            dx=dx,
            dw=dw,
            dout=dout,
            **_grouped(coefficients),
            **self._sizes(self.x, cap),
            dx_strides=dx.stride(),
            g_strides=dout.stride(),
            tiles=tiles,
            blocks=channel_blocks,
            MULTIPLIER=self.channels // self.in_channels,
            **self._constants(),
            BLOCK_P=blocks["BLOCK_P"],
            BLOCK_C=blocks["BLOCK_C"],
        )
        return dx, dw.sum((0, 1)).unsqueeze(-1)

    def _dense_gradients(self, dout: Tensor, cap: float, coefficients: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Where a tile with all input channels fits in registers, dz never exists outside them (two more GEMMs' worth
        of FLOPs than plain gradients, no more traffic). With more channels z would be made again for every block of
        them; there dz is stored, for as many samples at a time as fit into `_DZ_BYTES`: its K maps are small compared
        with the FLOPs of so many channels.
        """
        dx = _empty_like_format(self.like_x, self.like_x.shape)
        if self.in_channels // self.groups <= _MOST_CHANNELS_HELD:
            return dx, self._dense_gradients_of(slice(None), None, dx, dout, cap, coefficients)
        of_sample = self.positions * self.height * self.width * self.channels
        step = min(self.samples, max(1, _DZ_BYTES // (of_sample * self.x.element_size())))
        dz_maps = torch.empty(step * of_sample, dtype=self.x.dtype, device=self.x.device)
        dw = torch.zeros(self.packed.shape, dtype=self.accumulator, device=self.x.device)
        for start in range(0, self.samples, step):
            chunk = slice(start, start + step)
            of_chunk = {name: c[chunk] if c.ndim == 3 else c for name, c in coefficients.items()}
            self._taps(self.kernels.DZ, dz_maps, cap, dout, dout.stride(), chunk, **of_chunk)
            dw += self._dense_gradients_of(chunk, dz_maps, dx, dout, cap, of_chunk)
        return dx, dw

    def _dense_gradients_of(
        self,
        samples: slice,
        dz_maps: Tensor | None,
        dx: Tensor,
        dout: Tensor,
        cap: float,
        coefficients: dict[str, Tensor],
    ) -> Tensor:
        """Writes dx of these samples; returns their share in dw, (K, C, Cin/groups), groups merged."""
        x, dx, dout = self.x[samples], dx[samples], dout[samples]
        recompute = dz_maps is None
        shared = {
            "x": x,
            "w": self.packed,
            "dout": dout,
            "dz_maps": x if recompute else dz_maps,
            **_grouped(coefficients),
            **self._sizes(x, cap),
            "g_strides": dout.stride(),
            "RECOMPUTE": recompute,
            **self._gemm_constants(),
        }
        blocks = self._gradient_blocks(self._class_pixels(), recompute, of_weight=False)
        tiles = self._input_tiles(blocks["BLOCK_P"])
        channel_blocks = self.groups * _ceil_div(self.in_channels // self.groups, blocks["BLOCK_CI"])
        self._launch(
            self.kernels.input_gradient,
            x.shape[0] * tiles * channel_blocks,
            **shared,
            dx=dx,
            dx_strides=dx.stride(),
            tiles=tiles,
            blocks=channel_blocks,
            **blocks,
        )
        blocks = self._gradient_blocks(self.height * self.width, recompute, of_weight=True)
        tiles = _ceil_div(self.height * self.width, blocks["BLOCK_P"])
        all_tiles = x.shape[0] * tiles
        ci_blocks = _ceil_div(self.in_channels // self.groups, blocks["BLOCK_CI"])
        channel_blocks = self.groups * ci_blocks * _ceil_div(self.channels // self.groups, blocks["BLOCK_C"])
        splits = min(all_tiles, max(1, _PROGRAMS // (self.positions * channel_blocks)))
        dw = torch.empty((splits, *self.packed.shape), dtype=self.accumulator, device=x.device)
        self._launch(
            self.kernels.weight_gradient,
            self.positions * splits * channel_blocks,
            **shared,
            dw=dw,
            tiles=tiles,
            all_tiles=all_tiles,
            splits=splits,
            **blocks,
        )
        return dw.sum(0)

    # -- the weight, as the kernels want it

    def _scaled(self, coefficient: Tensor) -> Tensor:
        """Coefficient (K, C) of what the kernels take for z: x where the convolution is depthwise, and z = weight·x."""
        return coefficient * self.packed.squeeze(-1).to(coefficient.dtype) if self.depthwise else coefficient

    def _pack(self) -> Tensor:
        """(K, C, Cin/self.groups), of x's dtype, neighbouring groups merged."""
        weight = self.weight.detach().to(self.x.dtype).flatten(2).permute(2, 0, 1)  # (K, C, Cin/groups)
        if self.merge == 1:
            return weight.contiguous()
        packed = weight.new_zeros(self.positions, self.channels, self.in_channels // self.groups)
        self._blocks_on_diagonal(packed).copy_(
            weight.unflatten(1, (self.groups, self.merge, -1)).permute(0, 1, 3, 4, 2)
        )
        return packed

    def _unpack(self, dw: Tensor) -> Tensor:
        """The gradient of the weight from that of the packed one."""
        if self.merge > 1:
            dw = self._blocks_on_diagonal(dw).permute(0, 1, 4, 2, 3).flatten(1, 3)
        return dw.permute(1, 2, 0).reshape(self.weight.shape).to(self.weight.dtype)

    def _blocks_on_diagonal(self, packed: Tensor) -> Tensor:
        """A view (K, groups, C/groups, Cin/groups, merged) of what belongs to the weight's own groups."""
        blocks = packed.unflatten(1, (self.groups, self.merge, -1)).unflatten(4, (self.merge, -1))
        return blocks.diagonal(dim1=2, dim2=4)

    # -- sizes

    def _blocks(self, mode) -> Blocks:
        """Tile of output pixels by output channels, and the step over input channels."""
        depthwise_gradients = self.depthwise and mode == self.kernels.DZ
        kernel = "depthwise_gradients" if depthwise_gradients else _MODES[mode.value]
        shape_class = self._shape_class(kernel, self._pixels(mode))
        return blocks_for(shape_class, self._reckoned_blocks(mode), self.x.device)

    def _shape_class(self, kernel: str, pixels: int) -> str:
        """What shapes a kernel's measured tiles are good for."""
        groups = self.channels if self.depthwise else self.groups
        per_group = [_next_power_of_2(channels // groups) for channels in (self.in_channels, self.channels)]
        kind = f"depthwise {_next_power_of_2(self.channels)}" if self.depthwise else "{} to {}".format(*per_group)
        kernel_size, stride = ("x".join(map(str, pair)) for pair in (self.geometry.kernel, self.geometry.stride))
        dtype = str(self.x.dtype).removeprefix("torch.")
        return f"{kernel}, {kind} channels, {kernel_size}, stride {stride}, {_next_power_of_2(pixels)} pixels, {dtype}"

    def _reckoned_blocks(self, mode) -> Blocks:
        """Such that nothing spills out of the registers: modes that hold dout, or write dz, get smaller tiles."""
        crowded = mode in (self.kernels.REDUCE, self.kernels.DZ) or (self.depthwise and mode == self.kernels.POOL)
        pixels, size = self._pixels(mode), self.accumulator.itemsize // 4
        if self.depthwise:
            # 64 elements (32 where crowded) in each thread's registers: fewer, and reducing across threads weighs more.
            block_c = _block(self.channels, 16, 32)
            block_p = _pixel_block(pixels, (4096 if crowded else 8192) // block_c // size, 1.1)
            return {"BLOCK_P": block_p, "BLOCK_C": block_c, "BLOCK_CI": 1, "num_warps": 4, "num_stages": 2}
        most = {2: 128, 4: 64, 8: 32}[self.x.element_size()]
        block_p = _pixel_block(pixels, most)
        block_c = _block(self.channels // self.groups, 16, min(most, 64) if crowded else most)
        block_ci = _block(self.in_channels // self.groups, 16, _step_most(self.x))
        warps = 8 if block_p * block_c > (64 if crowded else 128) * 64 else 4
        return {"BLOCK_P": block_p, "BLOCK_C": block_c, "BLOCK_CI": block_ci, "num_warps": warps, "num_stages": 3}

    def _gradient_blocks(self, pixels: int, recompute: bool, of_weight: bool) -> Blocks:
        """Tiles of the dense gradients."""
        kernel = ("weight" if of_weight else "input") + "_gradient" + ("" if recompute else ", stored dz")
        reckoned = self._reckoned_gradient_blocks(pixels, recompute, of_weight)
        return blocks_for(self._shape_class(kernel, pixels), reckoned, self.x.device)

    def _reckoned_gradient_blocks(self, pixels: int, recompute: bool, of_weight: bool) -> Blocks:
        """With the dimension that is summed over made short where z is not held."""
        most = {2: 128, 4: 64, 8: 32}[self.x.element_size()]
        half = most // 2
        block_c = _block(self.channels // self.groups, 16, most if of_weight and not recompute else half)
        block_ci = _block(self.in_channels // self.groups, 16, _MOST_CHANNELS_HELD if recompute else most)
        # The smaller one also keeps within the 99 KiB of shared memory that the smaller devices have.
        block_p = _pixel_block(pixels, half if of_weight and (not recompute or block_ci > half) else most)
        warps = 8 if max(block_p, block_c) * max(block_ci, block_c) > 64 * 64 else 4
        stages = 2 if recompute else 3
        return {"BLOCK_P": block_p, "BLOCK_C": block_c, "BLOCK_CI": block_ci, "num_warps": warps, "num_stages": stages}

    def _tiles(self, mode) -> int:
        return _ceil_div(self._pixels(mode), self._blocks(mode)["BLOCK_P"])

    def _pixels(self, mode) -> int:
        """What the tiles of `taps` cover."""
        return self.in_height * self.in_width if self._held(mode) else self.height * self.width

    def _held(self, mode) -> bool:
        """Whether x is held while the taps go by (HELD of the kernel)."""
        sums = mode in (self.kernels.MOMENTS, self.kernels.POOLED, self.kernels.POOL)
        few = self.depthwise or self.in_channels // self.groups <= _step_most(self.x)
        return sums and few and self.geometry.stride == (1, 1)

    def _input_tiles(self, block_p: int) -> int:
        """Tiles of input pixels: those of one residue class of the stride, times the number of classes."""
        sh, sw = self.geometry.stride
        return sh * sw * _ceil_div(self._class_pixels(), block_p)

    def _class_pixels(self) -> int:
        sh, sw = self.geometry.stride
        return _ceil_div(self.in_height, sh) * _ceil_div(self.in_width, sw)

    def _coefficients(self, coefficients: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: c.to(self.accumulator).contiguous() for name, c in coefficients.items()}

    def _sizes(self, x: Tensor, cap: float) -> dict[str, Any]:
        finite = math.isfinite(cap)
        sizes: dict[str, Any] = {"cap": float(cap) if finite else 0.0, "HAS_CAP": finite}
        sizes |= {"C": self.channels, "HIN": self.in_height, "WIN": self.in_width, "H": self.height, "W": self.width}
        return sizes | {"x_strides": x.stride()}

    def _constants(self) -> dict:
        geometry, tl = self.geometry, self.kernels.tl
        return {
            "KERNEL": geometry.kernel, "STRIDE": geometry.stride,
            "PADDING": geometry.padding, "DILATION": geometry.dilation,
            "ACC": tl.float64 if self.accumulator == torch.float64 else tl.float32,
        }  # fmt: skip

    def _gemm_constants(self) -> dict:
        tl = self.kernels.tl
        dot = getattr(tl, str(self.x.dtype).removeprefix("torch."))
        if self.kernels.INTERPRETED and dot == tl.bfloat16:
            dot = tl.float32  # Triton's interpreter cannot multiply bfloat16; the products are exact in both
        return {
            "CI": self.in_channels // self.groups, "CO": self.channels // self.groups,
            "DOT": dot, "PRECISION": _float32_precision(), **self._constants(),
        }  # fmt: skip

    def _launch(self, kernel: Any, programs: int, **arguments) -> None:
        if self.x.is_cuda:
            with torch.cuda.device(self.x.device):
                kernel[(programs,)](**arguments)
        else:
            kernel[(programs,)](**arguments)


def _groups_to_merge(groups: int, in_channels: int, channels: int) -> int:
    """Least divisor of `groups` that brings both sides of a group to `_LEAST_CHANNELS`, or all groups."""
    least = min(in_channels, channels) // groups
    return next(d for d in range(1, groups + 1) if groups % d == 0 and (d * least >= _LEAST_CHANNELS or d == groups))


def _channels_last(maps: Tensor) -> Tensor:
    return maps if maps.stride(1) == 1 else maps.contiguous(memory_format=torch.channels_last)


def _empty_like_format(x: Tensor, shape: Sequence[int]) -> Tensor:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


_MODES = ("moments", "pooled", "pool", "aggregate", "reduce", "dz")  # of `kaconv.ops.triton_kernels.taps`
_GROUPS = {"norm": ("r", "t", "gamma", "beta"), "slopes": ("alpha", "bias"), "offsets": ("delta", "epsilon")}


def _grouped(coefficients: dict[str, Tensor], stand_in: Tensor | None = None) -> dict[str, tuple[Tensor | None, ...]]:
    """Coefficients as the kernels take them."""
    return {group: tuple(coefficients.get(name, stand_in) for name in names) for group, names in _GROUPS.items()}


def _float32_precision() -> str:
    """As torch's own convolutions: TF32 where the user (or torch's default) allows it."""
    convolutions: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009 (its stub does not know it)
    return "tf32" if convolutions.fp32_precision == "tf32" else "ieee"


def _step_most(x: Tensor) -> int:
    """Most input channels that a GEMM takes at a time."""
    return 128 // x.element_size()


def _block(size: int, least: int, most: int) -> int:
    return min(max(_next_power_of_2(size), least), most)


def _pixel_block(pixels: int, most: int, penalty: float = 1.25) -> int:
    """Largest tile that wastes little: small maps would leave much of a large tile empty.

    Smaller tiles are slower (a GEMM's reads the weight more often): each halving counts `penalty` times as much.
    """
    sizes = [most]
    while sizes[-1] > 16:
        sizes.append(sizes[-1] // 2)
    return min(sizes, key=lambda size: _ceil_div(pixels, size) * size * penalty ** math.log2(most / size))


def _next_power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
