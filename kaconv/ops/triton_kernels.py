"""The kernels of `kaconv.ops.triton_taps`. Importing this module imports Triton.

A *tap* is one kernel position k = (u, v). Its map z_k exists only as a tile in registers, BLOCK_P pixels of one sample
by BLOCK_C output channels: made by a GEMM over the input channels (or from one value of x per element, where the
convolution is depthwise) and consumed at once. Every kernel writes each of its results from one program, in a place of
its own: there are no atomics, so results are deterministic.

Offsets inside a sample are 32-bit, those of samples and of partial sums 64-bit.
"""

import triton
import triton.language as tl

# What `taps` makes of the maps.
MOMENTS = tl.constexpr(0)  # per tile: mean, sum of squared deviations from it, and number of pixels
POOLED = tl.constexpr(1)  # per tile: sum of act(a·z + b)
POOL = tl.constexpr(2)  # per tile: number of active, sum of xhat over the active, number of capped
AGGREGATE = tl.constexpr(3)  # sum over k of attention · act(a·z + b), a map
REDUCE = tl.constexpr(4)  # per tile: sums of dout and dout·xhat over the active, and of dout over the capped
DZ = tl.constexpr(5)  # the gradient of z, all K maps of it

INTERPRETED = triton.knobs.runtime.interpret


@triton.jit
def _is_active(pre, cap, HAS_CAP: tl.constexpr):
    """0 < pre < cap, in the form that calls NaN active."""
    active = (pre <= 0) == 0
    if HAS_CAP:
        active = active & ((pre >= cap) == 0)
    return active


@triton.jit
def _act(pre, cap, HAS_CAP: tl.constexpr):
    y = tl.maximum(pre, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if HAS_CAP:
        y = tl.minimum(y, cap, propagate_nan=tl.PropagateNan.ALL)
    return y


@triton.jit
def _dz(z, dout, norm, slopes, offsets, cap, HAS_CAP: tl.constexpr):
    """Gradient of a tile of z. norm (r, t, gamma, beta), slopes (alpha, bias) and offsets (delta, epsilon) are rows."""
    r, t, gamma, beta = norm
    alpha, bias = slopes
    delta, epsilon = offsets
    xhat = r * z + t
    active = _is_active(gamma * xhat + beta, cap, HAS_CAP)
    return tl.where(active, alpha * dout + bias, 0.0) - delta - epsilon * xhat


# Rows and tiles ------------------------------------------------------------------------------------------------------


@triton.jit
def _row(pointer, index, mask, ACC: tl.constexpr):
    """One value per channel, as a row that broadcasts over pixels."""
    return tl.load(pointer + index, mask=mask, other=0.0).to(ACC)[None, :]


@triton.jit
def _two_rows(pointers, index, mask, ACC: tl.constexpr):
    return _row(pointers[0], index, mask, ACC), _row(pointers[1], index, mask, ACC)


@triton.jit
def _norm_rows(norm, index, mask, ACC: tl.constexpr):
    """r, t, gamma and beta."""
    r, t = _two_rows(norm, index, mask, ACC)
    return r, t, _row(norm[2], index, mask, ACC), _row(norm[3], index, mask, ACC)


@triton.jit
def _tile(pointer, rows, row_mask, columns, column_mask, EVEN: tl.constexpr):
    """Loads a tile, zero where masked. EVEN: every column exists."""
    mask = row_mask[:, None] if EVEN else row_mask[:, None] & column_mask[None, :]
    return tl.load(pointer + rows[:, None] + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _x_tile(
    x,
    pixels,
    inside,
    x_c,
    first,
    c,
    c_mask,
    DEPTHWISE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    BLOCK_CI: tl.constexpr,
):
    """x (of one sample) at `pixels`, zero where not `inside`: pixels by the group's input channels (from `first` on);
    DEPTHWISE: by the input channels of the output channels c.
    """
    if DEPTHWISE:
        return _tile(x, pixels, inside, (c // CO) * x_c, c_mask, False)
    else:
        ci = tl.arange(0, BLOCK_CI)
        return _tile(x, pixels, inside, (first + ci) * x_c, ci < CI, CI == BLOCK_CI)


@triton.jit
def _z_of(
    seen,
    w,
    c,
    c_mask,
    DEPTHWISE: tl.constexpr,
    CI: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of z_k for the output channels c, from `_x_tile` and w (C, CI) of tap k. DEPTHWISE: x itself; there w is
    part of the coefficients that z is multiplied by.
    """
    if DEPTHWISE:
        return seen.to(ACC)
    else:
        ci = tl.arange(0, BLOCK_CI)
        weight = _tile(w, c * CI, c_mask, ci, ci < CI, CI == BLOCK_CI)
        return tl.dot(seen.to(DOT), tl.trans(weight.to(DOT)), out_dtype=ACC, input_precision=PRECISION)


@triton.jit
def _z_of_many(
    x,
    pixels,
    inside,
    x_c,
    w,
    first,
    c,
    c_mask,
    CI: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of z_k from more input channels than a tile of x holds."""
    z = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for start in range(0, CI, BLOCK_CI):
        ci = start + tl.arange(0, BLOCK_CI)
        seen = _tile(x, pixels, inside, (first + ci) * x_c, ci < CI, CI % BLOCK_CI == 0)
        weight = _tile(w, c * CI, c_mask, ci, ci < CI, CI % BLOCK_CI == 0)
        z = tl.dot(seen.to(DOT), tl.trans(weight.to(DOT)), z, input_precision=PRECISION, out_dtype=ACC)
    return z


# Which pixels and channels a program has -----------------------------------------------------------------------------


@triton.jit
def _program(tiles, blocks):
    """Sample, tile of pixels and block of channels. Neighbours share the tile: channel blocks run fastest."""
    program = tl.program_id(0)
    return (program // blocks // tiles).to(tl.int64), (program // blocks) % tiles, program % blocks


@triton.jit
def _channels(block, SIZE, BLOCK: tl.constexpr):
    """Group, channels within it and their mask, for a block of the SIZE channels of each group."""
    per_group = tl.cdiv(SIZE, BLOCK)
    local = (block % per_group) * BLOCK + tl.arange(0, BLOCK)
    return block // per_group, local, local < SIZE


@triton.jit
def _offset(k, KERNEL: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr):
    """How far below and right of an output pixel (times the stride) tap k looks."""
    return (k // KERNEL[1]) * DILATION[0] - PADDING[0], (k % KERNEL[1]) * DILATION[1] - PADDING[1]


@triton.jit
def _seen_pixels(i, j, valid, below, right, HIN, WIN, x_strides, STRIDE: tl.constexpr):
    """Offsets of the input pixels that a tap sees from the output pixels (i, j), and whether they are in the image."""
    row = i * STRIDE[0] + below
    column = j * STRIDE[1] + right
    inside = valid & (row >= 0) & (row < HIN) & (column >= 0) & (column < WIN)
    return row * x_strides[2] + column * x_strides[3], inside


@triton.jit
def _input_pixels(tile, HIN, WIN, STRIDE: tl.constexpr, BLOCK_P: tl.constexpr):
    """A tile of input pixels (row, column) = (a + SH·i, b + SW·j) of one residue class (a, b).

    All of them are read by the same taps, and by each tap from one output pixel. Tiles of all classes are counted.
    """
    a = (tile % (STRIDE[0] * STRIDE[1])) // STRIDE[1]
    b = tile % STRIDE[1]
    wide = tl.cdiv(WIN, STRIDE[1])
    p = (tile // (STRIDE[0] * STRIDE[1])) * BLOCK_P + tl.arange(0, BLOCK_P)
    i = p // wide
    j = p % wide
    row = a + STRIDE[0] * i
    column = b + STRIDE[1] * j
    return a, b, i, j, row, column, (row < HIN) & (column < WIN)


@triton.jit
def _seen_by(
    a, b, i, j, valid, k, H, W,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
):  # fmt: skip
    """The output pixels that see `_input_pixels` through tap k: whether the stride leads there; where; which exist."""
    below, right = _offset(k, KERNEL, PADDING, DILATION)
    up = a - below
    left = b - right
    out_i = i + up // STRIDE[0]
    out_j = j + left // STRIDE[1]
    exists = valid & (out_i >= 0) & (out_i < H) & (out_j >= 0) & (out_j < W)
    return (up % STRIDE[0] == 0) & (left % STRIDE[1] == 0), out_i, out_j, exists


# What is summed over a tile of z -------------------------------------------------------------------------------------


@triton.jit
def _moments(z, counted, outside, HELD: tl.constexpr, ACC: tl.constexpr):
    """Mean, sum of squared deviations from it, and number of pixels."""
    count = tl.sum(counted.to(ACC), 0)
    mean = tl.sum(tl.where(counted[:, None], z, 0.0), 0) / tl.maximum(count, 1.0)
    deviation = tl.where(counted[:, None], z - mean[None, :], 0.0)
    squares = tl.sum(deviation * deviation, 0)
    if HELD:
        # Chan's combination with the zeros outside.
        both = tl.maximum(count + outside, 1.0)
        squares += mean * mean * (count * outside / both)
        mean = mean * (count / both)
        count += outside
    return mean, squares, count


@triton.jit
def _active_sums(z, weight, norm, cap, counted, outside, HELD: tl.constexpr, HAS_CAP: tl.constexpr):
    """Sums of weight and weight·xhat over the active, and of weight over the capped pixels. HELD: weight is 1."""
    a, b, gamma, beta = norm
    xhat = a * z + b
    pre = gamma * xhat + beta
    active = _is_active(pre, cap, HAS_CAP) & counted[:, None]
    total = tl.sum(tl.where(active, weight, 0.0), 0)
    total_xhat = tl.sum(tl.where(active, weight * xhat, 0.0), 0)
    capped = total
    if HAS_CAP:
        capped = tl.sum(tl.where((pre >= cap) & counted[:, None], weight, 0.0), 0)
    if HELD:
        pre_outside = gamma * b + beta
        active_outside = _is_active(pre_outside, cap, HAS_CAP)
        total += outside * tl.sum(tl.where(active_outside, 1.0, 0.0), 0)
        total_xhat += outside * tl.sum(tl.where(active_outside, b, 0.0), 0)
        if HAS_CAP:
            capped += outside * tl.sum(tl.where(pre_outside >= cap, 1.0, 0.0), 0)
    return total, total_xhat, capped


# The kernels ---------------------------------------------------------------------------------------------------------
# Strides are those of samples, channels, rows and columns. KERNEL, STRIDE, PADDING and DILATION are (height, width).


@triton.jit(do_not_specialize=["HIN", "WIN", "H", "W", "tiles", "blocks", "samples"])
def taps(
    x,
    w,
    result,
    dout,
    norm,  # (K, C): r, t, gamma, beta; scale and shift in place of r and t (POOLED, AGGREGATE)
    slopes,  # (N, K, C): alpha, bias; the attention in place of alpha (AGGREGATE)
    offsets,  # (K, C): delta, epsilon
    cap,
    samples,
    C,
    HIN,
    WIN,
    H,
    W,
    x_strides,
    o_strides,  # of the result (AGGREGATE) or of dout (REDUCE, DZ)
    tiles,
    blocks,
    MODE: tl.constexpr,
    HELD: tl.constexpr,
    DEPTHWISE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: one tile of output pixels of one sample, one block of output channels of one group, all K taps.

    HELD (sums without dout, stride 1, CI <= BLOCK_CI): a sum over pixels does not ask at which output pixel a tap saw
    an input pixel. So tiles are of input pixels, whose x is read once and held for all taps; `counted` are those that
    tap k brings to the output. Output pixels for which it looks outside the image, where z = 0, are counted by tile 0.

    Partial sums go to result[quantity, sample, tile, k, c]; DZ to result[sample, k, pixel, c], of x's dtype.
    """
    K: tl.constexpr = KERNEL[0] * KERNEL[1]
    n, tile, block = _program(tiles, blocks)
    if DEPTHWISE:  # a plain range, so that what it reads and writes is known to be aligned
        first = 0
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)
        c_mask = c < C
    else:
        group, local, c_mask = _channels(block, CO, BLOCK_C)
        first = group * CI
        c = group * CO + local

    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    x += n * x_strides[0]
    x_c = x_strides[1]
    outside = 0.0
    if HELD:
        pixel_mask = p < HIN * WIN
        row = p // WIN
        column = p % WIN
        pixels = row * x_strides[2] + column * x_strides[3]
        seen = _x_tile(x, pixels, pixel_mask, x_c, first, c, c_mask, DEPTHWISE, CI, CO, BLOCK_CI)
    else:
        counted = p < H * W
        i = p // W
        j = p % W
        if (MODE == AGGREGATE) or (MODE == REDUCE) or (MODE == DZ):  # noqa: SIM109 (Triton has no `in`)
            at_output = n * o_strides[0] + (i * o_strides[2] + j * o_strides[3])[:, None] + c[None, :] * o_strides[1]
    if MODE == AGGREGATE:
        out = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    if (MODE == REDUCE) or (MODE == DZ):  # noqa: SIM109
        g = tl.load(dout + at_output, counted[:, None] & c_mask[None, :], other=0.0).to(ACC)
    elif MODE == POOL:
        g = tl.full((BLOCK_P, BLOCK_C), 1.0, ACC)

    for k in range(K):
        at = k * C + c
        at_sample = n * K * C + at
        # Coefficients before the GEMM, so that it hides their latency.
        if (MODE == POOLED) or (MODE == AGGREGATE):  # noqa: SIM109
            scale, shift = _two_rows(norm, at, c_mask, ACC)
        elif MODE != MOMENTS:
            norm_k = _norm_rows(norm, at, c_mask, ACC)
        if MODE == AGGREGATE:
            attention = _row(slopes[0], at_sample, c_mask, ACC)
        elif MODE == DZ:
            slopes_k = _two_rows(slopes, at_sample, c_mask, ACC)
            offsets_k = _two_rows(offsets, at, c_mask, ACC)

        below, right = _offset(k, KERNEL, PADDING, DILATION)
        w_k = w + k * C * CI
        if HELD:
            i = row - below
            j = column - right
            counted = pixel_mask & (i >= 0) & (i < H) & (j >= 0) & (j < W)
            z = _z_of(seen, w_k, c, c_mask, DEPTHWISE, CI, BLOCK_CI, ACC, DOT, PRECISION)
            rows = tl.maximum(tl.minimum(H, HIN - below) - tl.maximum(0, -below), 0)
            columns = tl.maximum(tl.minimum(W, WIN - right) - tl.maximum(0, -right), 0)
            outside = tl.where(tile == 0, H * W - rows * columns, 0).to(ACC)
        else:
            pixels, inside = _seen_pixels(i, j, counted, below, right, HIN, WIN, x_strides, STRIDE)
            if DEPTHWISE or CI <= BLOCK_CI:
                # No inner loop: this one is pipelined.
                seen = _x_tile(x, pixels, inside, x_c, first, c, c_mask, DEPTHWISE, CI, CO, BLOCK_CI)
                z = _z_of(seen, w_k, c, c_mask, DEPTHWISE, CI, BLOCK_CI, ACC, DOT, PRECISION)
            else:
                z = _z_of_many(
                    x, pixels, inside, x_c, w_k, first, c, c_mask,
                    CI, BLOCK_P, BLOCK_C, BLOCK_CI, ACC, DOT, PRECISION,
                )  # fmt: skip

        # Offset of [quantity 0, n, tile, k, c], and the distance between quantities.
        partial = (n * tiles + tile) * K * C + at
        quantity = samples.to(tl.int64) * tiles * K * C
        if MODE == MOMENTS:
            mean, squares, count = _moments(z, counted, outside, HELD, ACC)
            tl.store(result + partial, mean, c_mask)
            tl.store(result + quantity + partial, squares, c_mask)
            tl.store(result + 2 * quantity + partial, tl.zeros((BLOCK_C,), ACC) + count, c_mask)
        elif MODE == AGGREGATE:
            out += attention * _act(scale * z + shift, cap, HAS_CAP)
        elif MODE == POOLED:
            total = tl.sum(tl.where(counted[:, None], _act(scale * z + shift, cap, HAS_CAP), 0.0), 0)
            if HELD:
                total += outside * tl.sum(_act(shift, cap, HAS_CAP), 0)
            tl.store(result + partial, total, c_mask)
        elif MODE == DZ:
            dz = _dz(z, g, norm_k, slopes_k, offsets_k, cap, HAS_CAP)
            targets = result + (n * K + k) * H * W * C + p[:, None] * C + c[None, :]
            tl.store(targets, dz.to(result.dtype.element_ty), counted[:, None] & c_mask[None, :])
        else:
            total, total_xhat, capped = _active_sums(z, g, norm_k, cap, counted, outside, HELD, HAS_CAP)
            tl.store(result + partial, total, c_mask)
            tl.store(result + quantity + partial, total_xhat, c_mask)
            if HAS_CAP:
                tl.store(result + 2 * quantity + partial, capped, c_mask)

    if MODE == AGGREGATE:
        tl.store(result + at_output, out.to(result.dtype.element_ty), counted[:, None] & c_mask[None, :])


@triton.jit(do_not_specialize=["HIN", "WIN", "H", "W", "tiles", "blocks"])
def depthwise_gradients(
    x,
    w,
    dx,
    dw,
    dout,
    norm,  # r is times the weight
    slopes,
    offsets,
    cap,
    C,
    HIN,
    WIN,
    H,
    W,
    x_strides,
    dx_strides,
    g_strides,
    tiles,
    blocks,
    MULTIPLIER: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """dx, and dw's partial sums dw[sample, tile, k, c], from one look at x.

    A program owns `_input_pixels`, for which z_k = w_k · x at the one output pixel that sees them through tap k.
    """
    K: tl.constexpr = KERNEL[0] * KERNEL[1]
    n, tile, block = _program(tiles, blocks)
    ci = block * BLOCK_C + tl.arange(0, BLOCK_C)
    ci_mask = ci < C // MULTIPLIER
    a, b, i, j, row, column, valid = _input_pixels(tile, HIN, WIN, STRIDE, BLOCK_P)
    mask = valid[:, None] & ci_mask[None, :]
    pixels = (row * x_strides[2] + column * x_strides[3])[:, None]
    seen = tl.load(x + n * x_strides[0] + pixels + ci[None, :] * x_strides[1], mask, other=0.0).to(ACC)
    gradient = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    dout += n * g_strides[0]
    dw += (n * tiles + tile) * K * C

    for k in range(K):
        reached, out_i, out_j, exists = _seen_by(a, b, i, j, valid, k, H, W, KERNEL, STRIDE, PADDING, DILATION)
        for m in range(MULTIPLIER):
            c = ci * MULTIPLIER + m
            at = k * C + c
            total = tl.zeros((BLOCK_C,), ACC)
            if reached:
                targets = dout + (out_i * g_strides[2] + out_j * g_strides[3])[:, None] + c[None, :] * g_strides[1]
                g = tl.load(targets, exists[:, None] & ci_mask[None, :], other=0.0).to(ACC)
                weight = _row(w, at, ci_mask, ACC)
                norm_k = _norm_rows(norm, at, ci_mask, ACC)
                slopes_k = _two_rows(slopes, n * K * C + at, ci_mask, ACC)
                offsets_k = _two_rows(offsets, at, ci_mask, ACC)
                dz = tl.where(exists[:, None], _dz(seen, g, norm_k, slopes_k, offsets_k, cap, HAS_CAP), 0.0)
                gradient += weight * dz
                total = tl.sum(dz * seen, 0)
            tl.store(dw + at, total, ci_mask)

    pixels = (row * dx_strides[2] + column * dx_strides[3])[:, None]
    targets = dx + n * dx_strides[0] + pixels + ci[None, :] * dx_strides[1]
    tl.store(targets, gradient.to(dx.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["HIN", "WIN", "H", "W", "tiles", "blocks"])
def input_gradient(
    x,
    w,
    dx,
    dout,
    dz_maps,
    norm,
    slopes,
    offsets,
    cap,
    C,
    HIN,
    WIN,
    H,
    W,
    x_strides,
    dx_strides,
    g_strides,
    tiles,
    blocks,
    RECOMPUTE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx of a group with many or few channels, for `_input_pixels`.

    RECOMPUTE: a program holds its pixels' x with all CI <= BLOCK_CI input channels, and makes z_k, dz_k and dx from it
    in registers, as FlashAttention's backward pass does. Otherwise dz_k is read from dz_maps (sample, K, pixel, C).
    """
    K: tl.constexpr = KERNEL[0] * KERNEL[1]
    n, tile, block = _program(tiles, blocks)
    group, ci, ci_mask = _channels(block, CI, BLOCK_CI)
    a, b, i, j, row, column, valid = _input_pixels(tile, HIN, WIN, STRIDE, BLOCK_P)
    gradient = tl.zeros((BLOCK_P, BLOCK_CI), ACC)
    if RECOMPUTE:
        pixels = row * x_strides[2] + column * x_strides[3]
        channels = (group * CI + ci) * x_strides[1]
        seen = _tile(x + n * x_strides[0], pixels, valid, channels, ci_mask, CI % BLOCK_CI == 0).to(DOT)
        dout += n * g_strides[0]

    for k in range(K):
        reached, out_i, out_j, exists = _seen_by(a, b, i, j, valid, k, H, W, KERNEL, STRIDE, PADDING, DILATION)
        if reached:
            for start in range(0, CO, BLOCK_C):
                local = start + tl.arange(0, BLOCK_C)
                c_mask = local < CO
                c = group * CO + local
                at = k * C + c
                weight = _tile(w, at * CI, c_mask, ci, ci_mask, CI % BLOCK_CI == 0).to(DOT)
                if RECOMPUTE:
                    targets = out_i * g_strides[2] + out_j * g_strides[3]
                    g = _tile(dout, targets, exists, c * g_strides[1], c_mask, CO % BLOCK_C == 0).to(ACC)
                    z = tl.dot(seen, tl.trans(weight), out_dtype=ACC, input_precision=PRECISION)
                    norm_k = _norm_rows(norm, at, c_mask, ACC)
                    slopes_k = _two_rows(slopes, n * K * C + at, c_mask, ACC)
                    offsets_k = _two_rows(offsets, at, c_mask, ACC)
                    dz = _dz(z, g, norm_k, slopes_k, offsets_k, cap, HAS_CAP)
                    dz = tl.where(exists[:, None], dz, 0.0).to(w.dtype.element_ty)
                else:
                    maps = dz_maps + (n * K + k) * H * W * C
                    dz = _tile(maps, (out_i * W + out_j) * C, exists, c, c_mask, CO % BLOCK_C == 0)
                gradient = tl.dot(dz.to(DOT), weight, gradient, input_precision=PRECISION, out_dtype=ACC)

    pixels = (row * dx_strides[2] + column * dx_strides[3])[:, None]
    targets = dx + n * dx_strides[0] + pixels + (group * CI + ci)[None, :] * dx_strides[1]
    tl.store(targets, gradient.to(dx.dtype.element_ty), valid[:, None] & ci_mask[None, :])


@triton.jit(do_not_specialize=["HIN", "WIN", "H", "W", "tiles", "all_tiles", "splits"])
def weight_gradient(
    x,
    w,
    dw,
    dout,
    dz_maps,
    norm,
    slopes,
    offsets,
    cap,
    C,
    HIN,
    WIN,
    H,
    W,
    x_strides,
    g_strides,
    tiles,
    all_tiles,
    splits,
    RECOMPUTE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Partial sums of dw, dw[split, k, c, ci]: a split is a run of (sample, tile of output pixels)."""
    K: tl.constexpr = KERNEL[0] * KERNEL[1]
    program = tl.program_id(0)
    k = program % K  # the taps of a tile read nearly the same x and dout: run them side by side
    split = (program // K) % splits
    block = program // K // splits
    ci_blocks = tl.cdiv(CI, BLOCK_CI)
    ci = (block % ci_blocks) * BLOCK_CI + tl.arange(0, BLOCK_CI)
    ci_mask = ci < CI
    group, local, c_mask = _channels(block // ci_blocks, CO, BLOCK_C)
    c = group * CO + local
    at = k * C + c
    below, right = _offset(k, KERNEL, PADDING, DILATION)

    if RECOMPUTE:
        weight = tl.trans(_tile(w, at * CI, c_mask, ci, ci_mask, CI % BLOCK_CI == 0)).to(DOT)
        norm_k = _norm_rows(norm, at, c_mask, ACC)
        offsets_k = _two_rows(offsets, at, c_mask, ACC)
    gradient = tl.zeros((BLOCK_C, BLOCK_CI), ACC)
    per_split = tl.cdiv(all_tiles, splits)
    for index in range(split * per_split, tl.minimum((split + 1) * per_split, all_tiles)):
        n = (index // tiles).to(tl.int64)
        p = (index % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        valid = p < H * W
        i = p // W
        j = p % W
        pixels, inside = _seen_pixels(i, j, valid, below, right, HIN, WIN, x_strides, STRIDE)
        channels = (group * CI + ci) * x_strides[1]
        seen = _tile(x + n * x_strides[0], pixels, inside, channels, ci_mask, CI % BLOCK_CI == 0).to(DOT)
        if RECOMPUTE:
            targets = i * g_strides[2] + j * g_strides[3]
            g = _tile(dout + n * g_strides[0], targets, valid, c * g_strides[1], c_mask, CO % BLOCK_C == 0).to(ACC)
            z = tl.dot(seen, weight, out_dtype=ACC, input_precision=PRECISION)
            slopes_k = _two_rows(slopes, n * K * C + at, c_mask, ACC)
            dz = _dz(z, g, norm_k, slopes_k, offsets_k, cap, HAS_CAP)
            dz = dz.to(w.dtype.element_ty)  # where not `inside`, x is 0
        else:
            dz = _tile(dz_maps + (n * K + k) * H * W * C, p * C, valid, c, c_mask, CO % BLOCK_C == 0)
        gradient = tl.dot(tl.trans(dz.to(DOT)), seen, gradient, input_precision=PRECISION, out_dtype=ACC)

    targets = dw + (split.to(tl.int64) * K * C + at)[:, None] * CI + ci[None, :]
    tl.store(targets, gradient, c_mask[:, None] & ci_mask[None, :])
