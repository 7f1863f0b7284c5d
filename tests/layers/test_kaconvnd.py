import naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kaconv import AttentionCapture, KAConv1d, KAConv2d, KAConv3d
from kaconv.ops import fused

SETTINGS = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": 2},
    "even, dilated": {"kernel_size": 2, "dilation": 2, "padding": 1},
    "grouped": {"kernel_size": 3, "groups": 2},
    "depthwise, unpadded": {"kernel_size": 3, "groups": 4, "padding": 0},
}
KINDS = [KAConv1d, KAConv3d]


def randomised(layer):
    """A float64 layer whose parameters and statistics all matter."""
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
        for name, buffer in layer.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    return layer


def image(kind, samples=3, channels=4):
    sizes = {KAConv1d: (9,), KAConv3d: (5, 4, 6)}[kind]
    return torch.randn(samples, channels, *sizes, dtype=torch.float64)


def formulas(layer, x):
    """Output and attention from the paper's formulas, in numpy, one output element after another."""
    spatial = x.ndim - 2
    weight = layer.weight.detach().numpy().reshape(layer.out_channels, -1, *layer.kernel_size[-spatial:])
    settings = [np.array(v[-spatial:]) for v in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
    kernel, stride, padding, dilation = settings
    x = x.numpy()
    sizes = (np.array(x.shape[2:]) + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    z = np.zeros((len(x), kernel.prod(), layer.out_channels, *sizes))
    per_group, group_out = weight.shape[1], layer.out_channels // layer.groups
    for p, position in enumerate(np.ndindex(*kernel)):
        for place in np.ndindex(*sizes):
            source = np.array(place) * stride + np.array(position) * dilation - padding
            if (source < 0).any() or (source >= x.shape[2:]).any():
                continue
            seen = x[(slice(None), slice(None), *source)]
            for c in range(layer.out_channels):
                first = c // group_out * per_group
                tap = weight[(c, slice(None), *position)]
                z[(slice(None), p, c, *place)] = seen[:, first : first + per_group] @ tap
    norm = naive.batch_norm_arrays(layer.norm)
    axes = (0, *range(2, x.ndim))
    channels = layer.out_channels
    y = np.stack(
        [
            naive.normalise(z[:, p], axes, norm, slice(p * channels, (p + 1) * channels), layer.training)
            for p in range(z.shape[1])
        ],
        axis=1,
    ).clip(0)
    module = layer.attention_generator
    generator = {
        "squeeze": module.squeeze.weight.detach().numpy(),
        "norm": naive.batch_norm_arrays(module.norm),
        "excite": module.excite.weight.detach().numpy(),
        "bias": module.excite.bias.detach().numpy(),
    }
    q = y.reshape(*y.shape[:3], -1).mean(axis=3)
    logits = {"L": naive.attention_l, "H": naive.attention_h}[layer.attention](q, generator, layer.training)
    attention = np.exp(logits - logits.max(axis=1, keepdims=True))
    attention /= attention.sum(axis=1, keepdims=True)
    return (attention.reshape(*attention.shape, *[1] * spatial) * y).sum(axis=1), attention


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("attention", ["L", "H"])
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_formulas(kind, setting, attention, training):
    torch.manual_seed(0)
    layer = randomised(kind(4, 4, **setting, attention=attention, min_hidden=5)).train(training)
    x = image(kind)
    seen = []
    layer.attention_generator.register_forward_hook(lambda module, inputs, output: seen.append(output))
    expected, expected_attention = formulas(layer, x)
    output = layer(x)
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(seen[0].detach().numpy(), expected_attention, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize(("kind", "convolution"), [(KAConv1d, nn.Conv1d), (KAConv3d, nn.Conv3d)])
def test_uniform_attention_and_identity_activation_give_the_plain_convolution(kind, convolution, setting):
    layer = kind(4, 8, **setting, norm_layer=nn.Identity, act_layer=nn.Identity).double()
    nn.init.zeros_(layer.attention_generator.excite.weight)
    k = setting["kernel_size"]
    plain = convolution(4, 8, **{"padding": k // 2} | setting, bias=False).double()
    plain.weight.data = layer.weight.detach().view_as(plain.weight)
    x = image(kind)
    torch.testing.assert_close(layer(x), plain(x) / layer.kernel_size[-1] ** (x.ndim - 2))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, training):
    torch.manual_seed(0)
    kernel = 2 if kind is KAConv1d else (2, 1, 2)
    layer = randomised(kind(2, 2, kernel, stride=2, min_hidden=2, act_layer=nn.Softplus)).train(training)
    sizes = (5,) if kind is KAConv1d else (3, 2, 3)
    x = torch.randn(2, 2, *sizes, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    for norm in (layer.norm, layer.attention_generator.norm):
        norm.momentum = 0.0  # the statistics stay

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *(p.detach().requires_grad_() for p in parameters)))


@pytest.mark.parametrize("attention", ["L", "H"])
def test_1d_is_fused_with_the_reference_s_gradients(attention, monkeypatch):
    torch.manual_seed(0)
    calls = []
    forward = fused.kaconv2d
    monkeypatch.setattr(fused, "kaconv2d", lambda *arguments: calls.append(1) or forward(*arguments))
    layer = KAConv1d(4, 8, 5, stride=2, groups=4, attention=attention, generator_norm="layer").double()
    x = torch.randn(1, 4, 12, dtype=torch.float64, requires_grad=True)
    results = []
    for layer.backend in ("reference", "fused"):
        output = layer(x)
        results.append((output, *torch.autograd.grad(output.square().sum(), (x, *layer.parameters()))))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert calls == [1]


def test_1d_is_captured_as_a_kernel_of_one_row():
    layer = nn.Sequential(KAConv1d(4, 8, 5))
    with AttentionCapture(layer) as capture:
        layer(torch.randn(2, 4, 20))
    assert capture.record().attention["0"].shape == (2, 1, 5, 8)


def test_3d_of_depth_one_is_2d():
    torch.manual_seed(0)
    flat, layer = KAConv2d(4, 8, 3, stride=2).double(), KAConv3d(4, 8, (1, 3, 3), stride=(1, 2, 2)).double()
    state = {key: value.unsqueeze(2) if key == "weight" else value for key, value in flat.state_dict().items()}
    layer.load_state_dict(state)
    x = torch.randn(3, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x.unsqueeze(2)).squeeze(2), flat(x))


@pytest.mark.parametrize("norm_layer", [nn.BatchNorm3d, lambda c: nn.GroupNorm(2, c)], ids=["batch", "group"])
def test_3d_trains_on_one_sample_with_other_norms(norm_layer):
    layer = KAConv3d(2, 4, 3, norm_layer=norm_layer, generator_norm="layer", act_layer=lambda: nn.SiLU(inplace=True))
    F.mse_loss(layer(torch.randn(1, 2, 4, 4, 4)), torch.zeros(1, 4, 4, 4, 4)).backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KAConv1d(4, 8, 3)(torch.randn(2, 4, 5, 5)), r"KAConv1d expects an input \(N, 4, length\); got \(2, 4"),
        (lambda: KAConv1d(4, 8, 0), r"kernel_size must be an integer of at least 1, or a pair of them; got \(1, 0\)"),
        (lambda: KAConv3d(4, 8, 3)(torch.randn(2, 4, 5, 5)), r"KAConv3d expects an input \(N, 4, depth, height, width"),
        (lambda: KAConv3d(4, 8, 5, padding=0)(torch.randn(2, 4, 9, 9, 4)), "the input's width, 4 with padding"),
        (lambda: KAConv3d(4, 8, (3, 3)), r"kernel_size must be an integer of at least 1, or three of them; got \(3, 3"),
        (lambda: KAConv3d(4, 8, 3, groups=3), "groups=3 must divide in_channels=4 and out_channels=8"),
        (lambda: KAConv3d(4, 8, 3, attention="X"), "unknown attention 'X'; choose from L, H"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
