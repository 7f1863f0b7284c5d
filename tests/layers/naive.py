"""KAConv evaluated from its formulas in float64 with loops; shares no code with the library."""

import numpy as np


def kernel_maps(x, weight, stride, padding, dilation, groups):
    """Z[n, p, c, i, j] = Σ_m W[c, m, u, v] · X[n, m', i·s + u·d − pad, j·s + v·d − pad], zero outside the image."""
    n_samples, _, height, width = x.shape
    cout, per_group, kh, kw = weight.shape
    out_h = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_w = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    z = np.zeros((n_samples, kh * kw, cout, out_h, out_w))
    for n, c, i, j in np.ndindex(n_samples, cout, out_h, out_w):
        group = c // (cout // groups)
        for u, v, m in np.ndindex(kh, kw, per_group):
            row = i * stride[0] + u * dilation[0] - padding[0]
            column = j * stride[1] + v * dilation[1] - padding[1]
            if 0 <= row < height and 0 <= column < width:
                z[n, u * kw + v, c, i, j] += weight[c, m, u, v] * x[n, group * per_group + m, row, column]
    return z


def normalise(values, axes, norm, index, training):
    """Batch norm of one position or of the generator: `norm` holds weight, bias, mean, var and eps as arrays."""
    if training:
        mean, var = values.mean(axis=axes, keepdims=True), values.var(axis=axes, keepdims=True)
    else:
        mean, var = norm["mean"][index], norm["var"][index]
        shape = [1] * values.ndim
        shape[1] = -1
        mean, var = mean.reshape(shape), var.reshape(shape)
    shape = [1] * values.ndim
    shape[1] = -1
    scale, shift = norm["weight"][index].reshape(shape), norm["bias"][index].reshape(shape)
    return (values - mean) / np.sqrt(var + norm["eps"]) * scale + shift


def attention_l(q, generator, training):
    samples, positions, channels = q.shape
    hidden = generator["squeeze"].shape[0]
    squeeze = generator["squeeze"].reshape(hidden, positions, channels)
    excite = generator["excite"].reshape(positions, channels, hidden)
    u = np.zeros((samples, hidden))
    for p in range(positions):
        u += q[:, p] @ squeeze[:, p].T
    u = np.maximum(normalise(u, 0, generator["norm"], slice(None), training), 0)
    return np.stack([u @ excite[p].T + generator["bias"].reshape(positions, channels)[p] for p in range(positions)], 1)


def attention_h(q, generator, training):
    _, positions, channels = q.shape
    hidden = generator["squeeze"].shape[0]
    excite = generator["excite"].reshape(positions, channels, positions, hidden)
    v = np.stack([q[:, p] @ generator["squeeze"].T for p in range(positions)], axis=2)  # samples, hidden, positions
    v = np.maximum(normalise(v, (0, 2), generator["norm"], slice(None), training), 0)
    logits = np.zeros_like(q)
    for p in range(positions):
        for other in range(positions):
            logits[:, p] += v[:, :, other] @ excite[p, :, other].T
        logits[:, p] += generator["bias"].reshape(positions, channels)[p]
    return logits


def batch_norm_arrays(module):
    names = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    arrays = {ours: getattr(module, theirs).detach().numpy().copy() for ours, theirs in names.items()}
    return {**arrays, "eps": module.eps}


def kaconv2d(layer, x, act):
    """The output and the attention of `layer` (a float64 KAConv2d with batch norms) on x; `act` is a numpy function."""
    kh, kw = layer.kernel_size
    positions, channels = kh * kw, layer.out_channels
    z = kernel_maps(
        x.detach().numpy(), layer.weight.detach().numpy(), layer.stride, layer.padding, layer.dilation, layer.groups
    )
    norm = batch_norm_arrays(layer.norm)
    y = np.empty_like(z)
    for p in range(positions):
        own = slice(p * channels, (p + 1) * channels)
        y[:, p] = act(normalise(z[:, p], (0, 2, 3), norm, own, layer.training))
    module = layer.attention_generator
    bias = module.excite.bias
    generator = {
        "squeeze": module.squeeze.weight.detach().numpy(),
        "norm": batch_norm_arrays(module.norm),
        "excite": module.excite.weight.detach().numpy(),
        "bias": np.zeros(positions * channels) if bias is None else bias.detach().numpy(),
    }
    q = y.mean(axis=(3, 4))
    logits = {"L": attention_l, "H": attention_h}[layer.attention](q, generator, layer.training)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    attention = exponentials / exponentials.sum(axis=1, keepdims=True)
    return sum(attention[:, p, :, None, None] * y[:, p] for p in range(positions)), attention
