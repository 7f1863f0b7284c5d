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
def _dz(z, dout, r, t, gamma, beta, cap, alpha, bias, delta, epsilon, HAS_CAP: tl.constexpr):
    """Gradient of a tile of z; the coefficients are rows, one value per channel."""
    xhat = r * z + t
    active = _is_active(gamma * xhat + beta, cap, HAS_CAP)
    return tl.where(active, alpha * dout + bias, 0.0) - delta - epsilon * xhat


@triton.jit
def _row(pointer, index, mask, ACC: tl.constexpr):
    """One value per channel, as a row that broadcasts over pixels."""
    return tl.load(pointer + index, mask=mask, other=0.0).to(ACC)[None, :]


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


@triton.jit(do_not_specialize=["HIN", "WIN", "H", "W", "tiles", "blocks", "samples"])
def taps(
    x,
    w,
    result,
    dout,
    coefficient_0,  # (K, C): scale (POOLED, AGGREGATE), else r
    coefficient_1,  # (K, C): shift (POOLED, AGGREGATE), else t
    gamma,
    beta,
    alpha,  # (N, K, C): attention (AGGREGATE), else alpha
    bias,
    delta,
    epsilon,
    cap,
    samples,
    C,
    HIN,
    WIN,
    H,
    W,
    x_n,
    x_c,
    x_h,
    x_w,
    o_n,  # strides of the result (AGGREGATE) or of dout (REDUCE, DZ)
    o_c,
    o_h,
    o_w,
    tiles,
    blocks,
    MODE: tl.constexpr,
    HELD: tl.constexpr,
    DEPTHWISE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    K: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
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
    # Neighbouring programs share the tile of x: channel blocks run fastest.
    program = tl.program_id(0)
    block = program % blocks
    tile = (program // blocks) % tiles
    n = (program // blocks // tiles).to(tl.int64)
    if DEPTHWISE:
        first = 0
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)
        c_mask = c < C
    else:
        per_group = tl.cdiv(CO, BLOCK_C)
        group = block // per_group
        first = group * CI
        local = (block % per_group) * BLOCK_C + tl.arange(0, BLOCK_C)
        c = group * CO + local
        c_mask = local < CO

    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    x += n * x_n
    if HELD:
        pixel_mask = p < HIN * WIN
        row = p // WIN
        column = p % WIN
        seen = _x_tile(x, row * x_h + column * x_w, pixel_mask, x_c, first, c, c_mask, DEPTHWISE, CI, CO, BLOCK_CI)
    else:
        counted = p < H * W
        i = p // W
        j = p % W
    if MODE == AGGREGATE:
        out = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    if (MODE == REDUCE) or (MODE == DZ):  # noqa: SIM109 (Triton has no `in`)
        targets = dout + n * o_n + (i * o_h + j * o_w)[:, None] + c[None, :] * o_c
        g = tl.load(targets, counted[:, None] & c_mask[None, :], other=0.0).to(ACC)

    for k in range(K):
        at = k * C + c
        # Before the GEMM, so that it hides their latency.
        if MODE != MOMENTS:
            a = _row(coefficient_0, at, c_mask, ACC)
            b = _row(coefficient_1, at, c_mask, ACC)
        if (MODE == AGGREGATE) or (MODE == DZ):  # noqa: SIM109
            alpha_k = _row(alpha, n * K * C + at, c_mask, ACC)
        if (MODE == POOL) or (MODE == REDUCE) or (MODE == DZ):  # noqa: SIM109
            gamma_k = _row(gamma, at, c_mask, ACC)
            beta_k = _row(beta, at, c_mask, ACC)
        if MODE == DZ:
            bias_k = _row(bias, n * K * C + at, c_mask, ACC)
            delta_k = _row(delta, at, c_mask, ACC)
            epsilon_k = _row(epsilon, at, c_mask, ACC)

        below = (k // KW) * DH - PH
        right = (k % KW) * DW - PW
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
            seen_row = i * SH + below
            seen_column = j * SW + right
            inside = counted & (seen_row >= 0) & (seen_row < HIN) & (seen_column >= 0) & (seen_column < WIN)
            pixels = seen_row * x_h + seen_column * x_w
            if DEPTHWISE or CI <= BLOCK_CI:
                # No inner loop: this one is pipelined.
                seen = _x_tile(x, pixels, inside, x_c, first, c, c_mask, DEPTHWISE, CI, CO, BLOCK_CI)
                z = _z_of(seen, w_k, c, c_mask, DEPTHWISE, CI, BLOCK_CI, ACC, DOT, PRECISION)
            else:
                z = tl.zeros((BLOCK_P, BLOCK_C), ACC)
                for start in range(0, CI, BLOCK_CI):
                    ci = start + tl.arange(0, BLOCK_CI)
                    seen = _tile(x, pixels, inside, (first + ci) * x_c, ci < CI, CI % BLOCK_CI == 0)
                    weight = _tile(w_k, c * CI, c_mask, ci, ci < CI, CI % BLOCK_CI == 0)
                    z = tl.dot(seen.to(DOT), tl.trans(weight.to(DOT)), z, input_precision=PRECISION, out_dtype=ACC)

        # Offset of [quantity 0, n, tile, k, c], and the distance between quantities.
        partial = (n * tiles + tile) * K * C + at
        quantity = samples.to(tl.int64) * tiles * K * C
        if MODE == MOMENTS:
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
            tl.store(result + partial, mean, c_mask)
            tl.store(result + quantity + partial, squares, c_mask)
            tl.store(result + 2 * quantity + partial, tl.zeros((BLOCK_C,), ACC) + count, c_mask)
        elif MODE == AGGREGATE:
            out += alpha_k * _act(a * z + b, cap, HAS_CAP)
        elif MODE == POOLED:
            total = tl.sum(tl.where(counted[:, None], _act(a * z + b, cap, HAS_CAP), 0.0), 0)
            if HELD:
                total += outside * tl.sum(_act(b, cap, HAS_CAP), 0)
            tl.store(result + partial, total, c_mask)
        elif MODE == DZ:
            dz = _dz(z, g, a, b, gamma_k, beta_k, cap, alpha_k, bias_k, delta_k, epsilon_k, HAS_CAP)
            targets = result + (n * K + k) * H * W * C + p[:, None] * C + c[None, :]
            tl.store(targets, dz.to(result.dtype.element_ty), counted[:, None] & c_mask[None, :])
        else:
            of_one = tl.full((BLOCK_P, BLOCK_C), 1.0, ACC) if MODE == POOL else g
            xhat = a * z + b
            pre = gamma_k * xhat + beta_k
            active = _is_active(pre, cap, HAS_CAP) & counted[:, None]
            total = tl.sum(tl.where(active, of_one, 0.0), 0)
            total_xhat = tl.sum(tl.where(active, of_one * xhat, 0.0), 0)
            if HELD:
                pre_outside = gamma_k * b + beta_k
                active_outside = _is_active(pre_outside, cap, HAS_CAP)
                total += outside * tl.sum(tl.where(active_outside, 1.0, 0.0), 0)
                total_xhat += outside * tl.sum(tl.where(active_outside, b, 0.0), 0)
            tl.store(result + partial, total, c_mask)
            tl.store(result + quantity + partial, total_xhat, c_mask)
            if HAS_CAP:
                capped = tl.sum(tl.where((pre >= cap) & counted[:, None], of_one, 0.0), 0)
                if HELD:
                    capped += outside * tl.sum(tl.where(pre_outside >= cap, 1.0, 0.0), 0)
                tl.store(result + 2 * quantity + partial, capped, c_mask)

    if MODE == AGGREGATE:
        targets = result + n * o_n + (i * o_h + j * o_w)[:, None] + c[None, :] * o_c
        tl.store(targets, out.to(result.dtype.element_ty), counted[:, None] & c_mask[None, :])


@triton.jit(do_not_specialize=["HIN", "WIN", "H", "W", "tiles", "blocks"])
def depthwise_gradients(
    x,
    w,
    dx,
    dw,
    dout,
    r,
    t,
    gamma,
    beta,
    alpha,
    bias,
    delta,
    epsilon,
    cap,
    C,
    HIN,
    WIN,
    H,
    W,
    x_n,
    x_c,
    x_h,
    x_w,
    dx_n,
    dx_c,
    dx_h,
    dx_w,
    g_n,
    g_c,
    g_h,
    g_w,
    tiles,
    blocks,
    MULTIPLIER: tl.constexpr,
    K: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """dx, and dw's partial sums dw[sample, tile, k, c], from one look at x. r is times the weight.

    A program owns input pixels (a + SH·i, b + SW·j) of one residue class (a, b): all of them are read by the same taps,
    and by each tap from one output pixel, where z_k = w_k · x[this pixel]. `tiles` counts the tiles of all classes.
    """
    program = tl.program_id(0)
    block = program % blocks
    tile = (program // blocks) % tiles
    n = (program // blocks // tiles).to(tl.int64)
    ci = block * BLOCK_C + tl.arange(0, BLOCK_C)
    ci_mask = ci < C // MULTIPLIER

    a = (tile % (SH * SW)) // SW
    b = tile % SW
    wide = tl.cdiv(WIN, SW)
    p = (tile // (SH * SW)) * BLOCK_P + tl.arange(0, BLOCK_P)
    i = p // wide
    j = p % wide
    row = a + SH * i
    column = b + SW * j
    valid = (row < HIN) & (column < WIN)
    mask = valid[:, None] & ci_mask[None, :]
    seen = tl.load(x + n * x_n + (row * x_h + column * x_w)[:, None] + ci[None, :] * x_c, mask, other=0.0).to(ACC)
    gradient = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    dout += n * g_n
    dw += (n * tiles + tile) * K * C

    for k in range(K):
        # Output pixel that sees this one through tap k: (i, j) + (up, left), if the stride leads there at all.
        up = a + PH - (k // KW) * DH
        left = b + PW - (k % KW) * DW
        reached = (up % SH == 0) & (left % SW == 0)
        out_i = i + up // SH
        out_j = j + left // SW
        seen_by = valid & (out_i >= 0) & (out_i < H) & (out_j >= 0) & (out_j < W)
        for m in range(MULTIPLIER):
            c = ci * MULTIPLIER + m
            at = k * C + c
            total = tl.zeros((BLOCK_C,), ACC)
            if reached:
                targets = dout + (out_i * g_h + out_j * g_w)[:, None] + c[None, :] * g_c
                g = tl.load(targets, seen_by[:, None] & ci_mask[None, :], other=0.0).to(ACC)
                weight = _row(w, at, ci_mask, ACC)
                dz = _dz(
                    seen, g, _row(r, at, ci_mask, ACC), _row(t, at, ci_mask, ACC),
                    _row(gamma, at, ci_mask, ACC), _row(beta, at, ci_mask, ACC), cap,
                    _row(alpha, n * K * C + at, ci_mask, ACC), _row(bias, n * K * C + at, ci_mask, ACC),
                    _row(delta, at, ci_mask, ACC), _row(epsilon, at, ci_mask, ACC), HAS_CAP,
                )  # fmt: skip
                dz = tl.where(seen_by[:, None], dz, 0.0)
                gradient += weight * dz
                total = tl.sum(dz * seen, 0)
            tl.store(dw + at, total, ci_mask)

    targets = dx + n * dx_n + (row * dx_h + column * dx_w)[:, None] + ci[None, :] * dx_c
    tl.store(targets, gradient.to(dx.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["HIN", "WIN", "H", "W", "tiles", "blocks"])
def input_gradient(
    x,
    w,
    dx,
    dout,
    dz_maps,
    r,
    t,
    gamma,
    beta,
    alpha,
    bias,
    delta,
    epsilon,
    cap,
    C,
    HIN,
    WIN,
    H,
    W,
    x_n,
    x_c,
    x_h,
    x_w,
    dx_n,
    dx_c,
    dx_h,
    dx_w,
    g_n,
    g_c,
    g_h,
    g_w,
    tiles,
    blocks,
    RECOMPUTE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    K: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx of a group with many or few channels. Tiles of input pixels are as in `depthwise_gradients`.

    RECOMPUTE: a program holds its pixels' x with all CI <= BLOCK_CI input channels, and makes z_k, dz_k and dx from it
    in registers, as FlashAttention's backward pass does. Otherwise dz_k is read from dz_maps (sample, K, pixel, C).
    """
    program = tl.program_id(0)
    block = program % blocks
    tile = (program // blocks) % tiles
    n = (program // blocks // tiles).to(tl.int64)
    per_group = tl.cdiv(CI, BLOCK_CI)
    group = block // per_group
    ci = (block % per_group) * BLOCK_CI + tl.arange(0, BLOCK_CI)
    ci_mask = ci < CI

    a = (tile % (SH * SW)) // SW
    b = tile % SW
    wide = tl.cdiv(WIN, SW)
    p = (tile // (SH * SW)) * BLOCK_P + tl.arange(0, BLOCK_P)
    i = p // wide
    j = p % wide
    row = a + SH * i
    column = b + SW * j
    valid = (row < HIN) & (column < WIN)
    gradient = tl.zeros((BLOCK_P, BLOCK_CI), ACC)
    if RECOMPUTE:
        pixels = row * x_h + column * x_w
        seen = _tile(x + n * x_n, pixels, valid, (group * CI + ci) * x_c, ci_mask, CI % BLOCK_CI == 0).to(DOT)
        dout += n * g_n

    for k in range(K):
        up = a + PH - (k // KW) * DH
        left = b + PW - (k % KW) * DW
        if (up % SH == 0) & (left % SW == 0):
            out_i = i + up // SH
            out_j = j + left // SW
            seen_by = valid & (out_i >= 0) & (out_i < H) & (out_j >= 0) & (out_j < W)
            for start in range(0, CO, BLOCK_C):
                local = start + tl.arange(0, BLOCK_C)
                c_mask = local < CO
                c = group * CO + local
                at = k * C + c
                weight = _tile(w, at * CI, c_mask, ci, ci_mask, CI % BLOCK_CI == 0).to(DOT)
                if RECOMPUTE:
                    g = _tile(dout, out_i * g_h + out_j * g_w, seen_by, c * g_c, c_mask, CO % BLOCK_C == 0).to(ACC)
                    z = tl.dot(seen, tl.trans(weight), out_dtype=ACC, input_precision=PRECISION)
                    r_k = _row(r, at, c_mask, ACC)
                    t_k = _row(t, at, c_mask, ACC)
                    gamma_k = _row(gamma, at, c_mask, ACC)
                    beta_k = _row(beta, at, c_mask, ACC)
                    alpha_k = _row(alpha, n * K * C + at, c_mask, ACC)
                    bias_k = _row(bias, n * K * C + at, c_mask, ACC)
                    delta_k = _row(delta, at, c_mask, ACC)
                    epsilon_k = _row(epsilon, at, c_mask, ACC)
                    dz = _dz(z, g, r_k, t_k, gamma_k, beta_k, cap, alpha_k, bias_k, delta_k, epsilon_k, HAS_CAP)
                    dz = tl.where(seen_by[:, None], dz, 0.0).to(w.dtype.element_ty)
                else:
                    maps = dz_maps + (n * K + k) * H * W * C
                    dz = _tile(maps, (out_i * W + out_j) * C, seen_by, c, c_mask, CO % BLOCK_C == 0)
                gradient = tl.dot(dz.to(DOT), weight, gradient, input_precision=PRECISION, out_dtype=ACC)

    targets = dx + n * dx_n + (row * dx_h + column * dx_w)[:, None] + (group * CI + ci)[None, :] * dx_c
    tl.store(targets, gradient.to(dx.dtype.element_ty), valid[:, None] & ci_mask[None, :])


@triton.jit(do_not_specialize=["HIN", "WIN", "H", "W", "tiles", "all_tiles", "splits"])
def weight_gradient(
    x,
    w,
    dw,
    dout,
    dz_maps,
    r,
    t,
    gamma,
    beta,
    alpha,
    bias,
    delta,
    epsilon,
    cap,
    C,
    HIN,
    WIN,
    H,
    W,
    x_n,
    x_c,
    x_h,
    x_w,
    g_n,
    g_c,
    g_h,
    g_w,
    tiles,
    all_tiles,
    splits,
    RECOMPUTE: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    K: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Partial sums of dw, dw[split, k, c, ci]: a split is a run of (sample, tile of output pixels)."""
    program = tl.program_id(0)
    k = program % K  # the taps of a tile read nearly the same x and dout: run them side by side
    split = (program // K) % splits
    block = program // K // splits
    ci_blocks = tl.cdiv(CI, BLOCK_CI)
    ci = (block % ci_blocks) * BLOCK_CI + tl.arange(0, BLOCK_CI)
    ci_mask = ci < CI
    per_group = tl.cdiv(CO, BLOCK_C)
    group = block // ci_blocks // per_group
    local = (block // ci_blocks % per_group) * BLOCK_C + tl.arange(0, BLOCK_C)
    c = group * CO + local
    c_mask = local < CO
    at = k * C + c
    below = (k // KW) * DH - PH
    right = (k % KW) * DW - PW

    if RECOMPUTE:
        weight = tl.trans(_tile(w, at * CI, c_mask, ci, ci_mask, CI % BLOCK_CI == 0)).to(DOT)
        r_k = _row(r, at, c_mask, ACC)
        t_k = _row(t, at, c_mask, ACC)
        gamma_k = _row(gamma, at, c_mask, ACC)
        beta_k = _row(beta, at, c_mask, ACC)
        delta_k = _row(delta, at, c_mask, ACC)
        epsilon_k = _row(epsilon, at, c_mask, ACC)
    gradient = tl.zeros((BLOCK_C, BLOCK_CI), ACC)
    per_split = tl.cdiv(all_tiles, splits)
    for index in range(split * per_split, tl.minimum((split + 1) * per_split, all_tiles)):
        n = (index // tiles).to(tl.int64)
        p = (index % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        valid = p < H * W
        i = p // W
        j = p % W
        row = i * SH + below
        column = j * SW + right
        inside = valid & (row >= 0) & (row < HIN) & (column >= 0) & (column < WIN)
        pixels = row * x_h + column * x_w
        seen = _tile(x + n * x_n, pixels, inside, (group * CI + ci) * x_c, ci_mask, CI % BLOCK_CI == 0).to(DOT)
        if RECOMPUTE:
            g = _tile(dout + n * g_n, i * g_h + j * g_w, valid, c * g_c, c_mask, CO % BLOCK_C == 0).to(ACC)
            z = tl.dot(seen, weight, out_dtype=ACC, input_precision=PRECISION)
            alpha_k = _row(alpha, n * K * C + at, c_mask, ACC)
            bias_k = _row(bias, n * K * C + at, c_mask, ACC)
            dz = _dz(z, g, r_k, t_k, gamma_k, beta_k, cap, alpha_k, bias_k, delta_k, epsilon_k, HAS_CAP)
            dz = dz.to(w.dtype.element_ty)  # where not `inside`, x is 0
        else:
            dz = _tile(dz_maps + (n * K + k) * H * W * C, p * C, valid, c, c_mask, CO % BLOCK_C == 0)
        gradient = tl.dot(tl.trans(dz.to(DOT)), seen, gradient, input_precision=PRECISION, out_dtype=ACC)

    targets = dw + (split.to(tl.int64) * K * C + at)[:, None] * CI + ci[None, :]
    tl.store(targets, gradient, c_mask[:, None] & ci_mask[None, :])
