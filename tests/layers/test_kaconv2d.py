import copy

import naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kaconv import KAConv2d
from kaconv.layers import AttentionGeneratorH, AttentionGeneratorL, PerPositionNorm, set_temperature, set_uniform_share
from kaconv.ops.reference import aggregate, decompose

GEOMETRIES = {
    "3x3": {"kernel_size": 3},
    "stride 2": {"kernel_size": 3, "stride": 2},
    "1x1": {"kernel_size": 1},
    "2x2, even": {"kernel_size": 2},
    "4x4 stride 3": {"kernel_size": 4, "stride": 3},
    "3x5 rectangular": {"kernel_size": (3, 5)},
    "5x1 mixed strides": {"kernel_size": (5, 1), "stride": (1, 2)},
    "no padding": {"kernel_size": 3, "padding": 0},
    "wide padding": {"kernel_size": 3, "padding": (3, 2)},
    "dilated": {"kernel_size": 3, "dilation": 2},
    "dilated, strided, rectangular": {"kernel_size": (2, 3), "stride": 2, "dilation": (3, 1), "padding": (1, 2)},
    "groups": {"kernel_size": 3, "groups": 2},
    "grouped, strided": {"kernel_size": 3, "groups": 2, "stride": 2},
    "depthwise": {"kernel_size": 3, "groups": 4},
    "depthwise 5x5 strided": {"kernel_size": 5, "groups": 4, "stride": 2},
}


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


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("attention", ["L", "H"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_equals_the_formulas(geometry, attention, training):
    torch.manual_seed(0)
    layer = randomised(KAConv2d(4, 8, **geometry, attention=attention, min_hidden=5)).train(training)
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    seen = []
    layer.attention_generator.register_forward_hook(lambda module, inputs, output: seen.append(output))
    expected, expected_attention = naive.kaconv2d(layer, x, lambda z: np.maximum(z, 0))
    output = layer(x)
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(seen[0].detach().numpy(), expected_attention, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_output_size_and_sum_of_the_maps_are_the_convolution(geometry):
    layer = KAConv2d(4, 8, **geometry).double()
    x = torch.randn(2, 4, 11, 10, dtype=torch.float64)
    convolution = F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    torch.testing.assert_close(decompose(x, layer.weight, layer.geometry).sum(1), convolution)
    assert layer(x).shape == convolution.shape


@pytest.mark.parametrize("attention", ["L", "H"])
def test_uniform_attention_and_identity_activation_give_the_plain_convolution(attention):
    layer = KAConv2d(4, 6, 3, attention=attention, norm_layer=nn.Identity, act_layer=nn.Identity).double()
    nn.init.zeros_(layer.attention_generator.excite.weight)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, padding=1) / 9)


@pytest.mark.parametrize("attention", ["L", "H"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradcheck(attention, training):
    torch.manual_seed(0)
    layer = randomised(KAConv2d(2, 4, 3, stride=2, groups=2, attention=attention, min_hidden=3, act_layer=nn.Softplus))
    layer.train(training)
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def function(x, *parameters):
        return torch.func.functional_call(copy.deepcopy(layer), dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *(p.detach().requires_grad_() for p in parameters)))


@pytest.mark.parametrize("attention", ["L", "H"])
def test_double_backward(attention):
    torch.manual_seed(0)
    layer = randomised(KAConv2d(2, 3, 2, attention=attention, min_hidden=2, act_layer=nn.Softplus)).eval()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("attention", ["L", "H"])
def test_attention_sums_to_one(attention):
    layer = KAConv2d(4, 6, (3, 2), attention=attention)
    attention = layer.attention_generator(torch.randn(5, 6, 6) * 10)
    assert attention.shape == (5, 6, 6)
    assert (attention >= 0).all()
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(5, 6))


def attention_of(layer, x):
    seen = []
    handle = layer.attention_generator.register_forward_hook(lambda module, inputs, output: seen.append(output))
    layer(x)
    handle.remove()
    return seen[0].detach()


@pytest.mark.parametrize("backend", ["reference", "eager", "fused"])
@pytest.mark.parametrize("attention", ["L", "H"])
def test_warm_up_of_the_attention(attention, backend):
    torch.manual_seed(0)
    layer = KAConv2d(4, 8, 3, attention=attention, backend=backend).double()
    x, keys = torch.randn(3, 4, 7, 6, dtype=torch.float64), layer.state_dict().keys()
    learnt = attention_of(layer, x)
    for share in (0.25, 1.0):
        set_uniform_share(layer, share)
        torch.testing.assert_close(attention_of(layer, x), (1 - share) * learnt + share / 9)
    set_uniform_share(layer, 0.0)
    set_temperature(layer, 30.0)
    torch.testing.assert_close(attention_of(layer, x), (learnt.log() / 30).softmax(1))
    set_temperature(layer, 1.0)
    assert torch.equal(attention_of(layer, x), learnt)
    assert layer.state_dict().keys() == keys


@pytest.mark.parametrize("attention", ["L", "H"])
def test_evaluation_and_export_see_no_warm_up(attention):
    layer = KAConv2d(4, 8, 3, attention=attention).eval()
    x = torch.randn(3, 4, 7, 6)
    expected = layer(x)
    set_uniform_share(layer, 0.5)
    set_temperature(layer, 30.0)
    assert torch.equal(layer(x), expected)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)


@pytest.mark.parametrize(("setter", "value"), [(set_uniform_share, 1.5), (set_temperature, 0.0)])
def test_a_bad_warm_up_is_refused(setter, value):
    with pytest.raises(ValueError, match=f"must be .*, got {value}"):
        setter(KAConv2d(4, 8, 3), value)


def test_training_statistics_equal_separate_batch_norms():
    torch.manual_seed(0)
    layer = KAConv2d(3, 5, 3, stride=2).double()
    separate = [nn.BatchNorm2d(5).double() for _ in range(9)]
    for _ in range(3):
        x = torch.randn(4, 3, 9, 9, dtype=torch.float64) + 1
        layer(x)
        z = decompose(x, layer.weight, layer.geometry)
        for p, norm in enumerate(separate):
            norm(z[:, p])
    torch.testing.assert_close(layer.norm.running_mean, torch.cat([norm.running_mean for norm in separate]))
    torch.testing.assert_close(layer.norm.running_var, torch.cat([norm.running_var for norm in separate]))
    assert layer.norm.num_batches_tracked == 3


@pytest.mark.parametrize(
    "norm_layer",
    [lambda c: nn.GroupNorm(2, c), nn.Identity, lambda c: nn.InstanceNorm2d(c, affine=True), nn.BatchNorm2d],
    ids=["group", "identity", "instance", "batch"],
)
@pytest.mark.parametrize("act_layer", [nn.ReLU6, nn.SiLU, nn.PReLU, nn.Identity])
def test_any_norm_looks_at_one_position_only(norm_layer, act_layer):
    torch.manual_seed(0)
    layer = KAConv2d(3, 4, 3, norm_layer=norm_layer, act_layer=act_layer).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    z = decompose(x, layer.weight, layer.geometry)
    y = torch.stack([layer.act(norm_layer(4).double()(z[:, p])) for p in range(9)], dim=1)
    torch.testing.assert_close(layer(x), aggregate(y, layer.attention_generator(y.mean(dim=(3, 4)))))


def test_norms_across_channels_are_one_for_each_position():
    layer = KAConv2d(3, 4, 2, norm_layer=lambda c: nn.GroupNorm(1, c))
    assert isinstance(layer.norm, PerPositionNorm)
    assert len({id(norm) for norm in layer.norm}) == 4


def test_weight_and_state_dict():
    layer = KAConv2d(8, 12, (3, 5), groups=4, attention="H")
    assert layer.weight.shape == nn.Conv2d(8, 12, (3, 5), groups=4).weight.shape
    layer(torch.randn(4, 8, 6, 6))
    twin = KAConv2d(8, 12, (3, 5), groups=4, attention="H")
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(layer.eval()(x), twin.eval()(x), rtol=0, atol=0)


def test_deepcopy_is_independent():
    layer = KAConv2d(4, 4, 3)
    twin = copy.deepcopy(layer)
    x = torch.randn(4, 4, 5, 5)
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=0)
    with torch.no_grad():
        twin.weight.zero_()
    assert layer.weight.abs().sum() > 0


@pytest.mark.parametrize("attention", ["L", "H"])
def test_channels_last_gives_the_same_and_stays(attention):
    layer = KAConv2d(4, 8, 3, groups=2, attention=attention).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected = layer(x)
    output = layer(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(output, expected)
    assert expected.is_contiguous()
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("attention", ["L", "H"])
def test_bf16_autocast_is_close_and_trains(attention):
    torch.manual_seed(0)
    layer = KAConv2d(8, 8, 3, attention=attention)
    x = torch.randn(4, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), layer(x), rtol=0.05, atol=0.05)
    output.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype):
    layer = KAConv2d(3, 4, 3, dtype=dtype)
    assert layer(torch.randn(2, 3, 5, 5, dtype=dtype)).dtype == dtype


def test_meta_device():
    layer = KAConv2d(3, 4, 3, stride=2, device="meta")
    assert all(parameter.is_meta for parameter in layer.parameters())
    output = layer(torch.empty(2, 3, 9, 9, device="meta"))
    assert output.is_meta
    assert output.shape == (2, 4, 5, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "training", "backend"),
    [
        ("L", True, "inductor"),  # takes half a minute; the others show that nothing breaks the graph
        ("L", False, "aot_eager"),
        ("H", True, "aot_eager"),
        ("H", False, "aot_eager"),
    ],
)
def test_compiles_without_a_graph_break(attention, training, backend):
    torch.manual_seed(0)
    layer = KAConv2d(4, 8, 2, stride=2, attention=attention).double().train(training)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    for batch in (2, 5):
        x = torch.randn(batch, 4, 9, 9, dtype=torch.float64)
        y, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
        output = compiled(y)
        torch.testing.assert_close(output, layer(expected))
        output.square().sum().backward()
        layer(expected).square().sum().backward()
        torch.testing.assert_close(y.grad, expected.grad)


@pytest.mark.parametrize("attention", ["L", "H"])
def test_exports_with_a_dynamic_batch(attention):
    layer = KAConv2d(4, 8, 3, stride=2, attention=attention).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (torch.randn(3, 4, 9, 9),), dynamic_shapes=({0: batch},))
    for n in (1, 7):
        x = torch.randn(n, 4, 9, 9)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize(
    "act_layer",
    [nn.ReLU, lambda: nn.ReLU6(inplace=True), lambda: nn.Sequential(nn.ReLU(inplace=True))],
    ids=["out of place", "in place", "in place within"],
)
def test_what_a_hook_saw_stays(act_layer):
    layer = KAConv2d(3, 4, 3, act_layer=act_layer)
    seen = {}

    def keep(name):
        def hook(module, inputs, output):
            seen[name] = output, output.detach().clone()

        return hook

    for name, module in layer.named_modules():
        module.register_forward_hook(keep(name))
    layer(torch.randn(2, 3, 5, 5)).sum().backward()
    assert {"", "norm", "act", "attention_generator", "attention_generator.norm"} <= seen.keys()
    for value, copied in seen.values():
        torch.testing.assert_close(value, copied, rtol=0, atol=0)


def test_a_hook_may_replace_the_attention():
    layer = KAConv2d(3, 4, 3, norm_layer=nn.Identity, act_layer=nn.Identity)
    layer.attention_generator.register_forward_hook(lambda m, i, attention: torch.full_like(attention, 1 / 9))
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, padding=1) / 9)


def test_reset_parameters_follows_the_recipe():
    torch.manual_seed(0)
    layer = KAConv2d(64, 256, 3, groups=2)
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.fill_(7)
    layer.reset_parameters()
    assert layer.weight.std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.02)
    generator = layer.attention_generator
    assert generator.excite.weight.std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.02)
    assert generator.excite.bias.abs().max() == 0
    assert (layer.norm.weight == 1).all()
    assert (layer.norm.running_var == 1).all()
    assert (generator.norm.weight == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "M"}, "unknown attention 'M'; choose from L, H"),
        ({"attention": None}, "unknown attention None"),
        ({"groups": 3}, "groups=3 must divide in_channels=4 and out_channels=8"),
        ({"attention": []}, r"unknown attention \[\]"),
        ({"groups": 0}, "groups must be an integer of at least 1; got 0"),
        ({"in_channels": 0}, "in_channels must be"),
        ({"out_channels": -8}, "out_channels must be"),
        ({"reduction": 0}, "reduction must be"),
        ({"min_hidden": 0.5}, "min_hidden must be"),
        ({"kernel_size": True}, "kernel_size must be"),
        ({"kernel_size": 0}, "kernel_size must be an integer of at least 1"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size .* got \(3, 3, 3\)"),
        ({"stride": 0}, "stride must be"),
        ({"padding": -1}, "padding must be"),
        ({"dilation": 1.5}, "dilation must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        KAConv2d(**{"in_channels": 4, "out_channels": 8, "kernel_size": 3, **arguments})


@pytest.mark.parametrize("shape", [(2, 5, 8, 8), (4, 8, 8), (2, 4, 8)])
def test_input_of_the_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"expects an input \(N, 4, height, width\); got"):
        KAConv2d(4, 8, 3)(torch.randn(*shape))


def test_input_smaller_than_the_kernel():
    with pytest.raises(ValueError, match="width, 4 with padding, is smaller than the kernel's extent, 5"):
        KAConv2d(4, 8, 5, padding=0)(torch.randn(2, 4, 9, 4))


def test_training_on_one_sample():
    layer = KAConv2d(4, 8, 3, attention="L")
    x = torch.randn(1, 4, 8, 8)
    with pytest.raises(ValueError, match="AG-L normalises over the batch, so training needs at least 2 samples"):
        layer(x)
    assert layer.eval()(x).shape == (1, 8, 8, 8)
    assert KAConv2d(4, 8, 3, attention="H")(x).shape == (1, 8, 8, 8)


def test_repr_shows_the_geometry():
    text = repr(KAConv2d(4, 8, 3, stride=2, dilation=2, groups=4, attention="H"))
    assert "4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(2, 2), dilation=(2, 2), groups=4, attention='H'" in text


def test_small_letters_name_an_attention_generator_too():
    for letter, generator in (("l", AttentionGeneratorL), ("h", AttentionGeneratorH)):
        layer = KAConv2d(4, 4, 3, attention=letter)
        assert layer.attention == letter.upper()
        assert type(layer.attention_generator) is generator


def test_bias_false_is_what_the_layer_is():
    assert "bias" not in dict(KAConv2d(4, 4, 3, bias=False).named_parameters(recurse=False))
    for bias in (True, None, 0):
        with pytest.raises(ValueError, match=f"KAConv2d has no bias: its norms shift every position; got bias={bias}"):
            KAConv2d(4, 4, 3, bias=bias)
