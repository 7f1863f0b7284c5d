import copy
import logging
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

import kaconv
from kaconv import KAConv2d, use_backend
from kaconv.ops import cpu_taps, dispatch, native

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler for the fused backend")

CHANNELS = {  # in, out, groups
    "depthwise": (4, 4, 4),
    "channel multiplier": (4, 8, 4),
    "few channels": (3, 5, 1),
    "grouped": (8, 12, 4),
    "32 groups": (128, 128, 32),
    "many channels": (40, 48, 1),
    "two groups of many": (80, 96, 2),
}
GEOMETRIES = {
    "3x3": {"kernel_size": 3},
    "stride 2": {"kernel_size": 3, "stride": 2},
    "1x1": {"kernel_size": 1},
    "2x2, even": {"kernel_size": 2},
    "5x5": {"kernel_size": 5},
    "7x7 stride 2": {"kernel_size": 7, "stride": 2},
    "dilated": {"kernel_size": 3, "dilation": 2},
    "mixed strides": {"kernel_size": 3, "stride": (2, 1)},
    "no padding": {"kernel_size": 3, "padding": 0},
    "wide padding": {"kernel_size": 3, "padding": (3, 2)},
    "1x5, dilated": {"kernel_size": (1, 5), "dilation": (1, 2)},
}


def make(channels, act=nn.ReLU, dtype=torch.float64, **geometry):
    """A layer whose parameters and statistics all matter, with some norms turned round and some switched off."""
    cin, cout, groups = channels
    layer = KAConv2d(cin, cout, groups=groups, act_layer=act, **geometry).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        layer.norm.weight[::3] *= -1
        layer.norm.weight[1] = 0
        layer.norm.running_mean.normal_(std=0.5)
        layer.norm.running_var.uniform_(0.5, 2)
    return layer.to(dtype)


def everything(layer, x, backend, dout=None):
    """Output, gradients of input and parameters, and buffers after one pass of a copy of the layer."""
    layer, x = copy.deepcopy(layer), x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with use_backend(backend):
        output = layer(x)
    output.backward(torch.ones_like(output) if dout is None else dout.to(output.dtype))
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"output": output.detach(), "dx": x.grad, **gradients, **dict(layer.named_buffers())}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS.keys())
def test_fused_equals_the_reference(channels, geometry, training, fused_only):
    torch.manual_seed(0)
    act = nn.ReLU6 if channels[0] == channels[2] else nn.ReLU
    layer = make(channels, act, attention="H" if training else "L", **geometry).train(training)
    x = 2 * torch.randn(3, channels[0], 9, 7, dtype=torch.float64)
    dout = torch.randn_like(layer.eval()(x))
    layer.train(training)
    expected, actual = everything(layer, x, "reference", dout), everything(layer, x, "fused", dout)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: name + text)
    with torch.no_grad(), use_backend("fused"):
        torch.testing.assert_close(copy.deepcopy(layer)(x), expected["output"], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("channels", [5, 16, 20])  # less than a vector of the processor, whole ones, some left over
def test_depthwise_in_channels_last_equals_the_reference(channels, geometry, training, fused_only):
    torch.manual_seed(0)
    act = nn.ReLU6 if training else nn.ReLU
    layer = make((channels, channels, channels), act, **geometry).train(training)
    x = 2 * torch.randn(3, channels, 9, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    dout = torch.randn_like(layer.eval()(x))
    layer.train(training)
    expected, actual = everything(layer, x, "reference", dout), everything(layer, x, "fused", dout)
    assert actual["output"].is_contiguous(memory_format=torch.channels_last)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: name + text)
    with torch.no_grad(), use_backend("fused"):
        torch.testing.assert_close(copy.deepcopy(layer)(x), expected["output"], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (33, 40), (64, 9)], ids=str)
@pytest.mark.parametrize("channels", [(4, 4, 4), (8, 8, 2), (40, 40, 1)], ids=["depthwise", "grouped", "dense"])
def test_fused_sizes(channels, size, fused_only):
    torch.manual_seed(0)
    layer = make(channels, kernel_size=3)
    x = torch.randn(2, channels[0], *size, dtype=torch.float64)
    expected, actual = everything(layer, x, "reference"), everything(layer, x, "fused")
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [(8, 8, 8), (16, 16, 4), (40, 40, 1)], ids=["depthwise", "grouped", "dense"])
def test_fused_in_float32_is_as_exact_as_the_reference(channels, channels_last, fused_only):
    """Both are measured from the float64 reference. Means (the norm removes them) make it harder."""
    torch.manual_seed(0)
    layer = make(channels, nn.ReLU6, dtype=torch.float32, kernel_size=3)
    x = torch.randn(4, channels[0], 12, 10) + 5
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    exact = everything(copy.deepcopy(layer).double(), x.double(), "reference")
    reference, fused = everything(layer, x, "reference"), everything(layer, x, "fused")
    assert fused["output"].stride() == reference["output"].stride()
    for name, value in exact.items():
        scale = value.double().abs().max()
        error, allowed = ((result[name].double() - value).abs().max() / scale for result in (fused, reference))
        assert error <= 5 * allowed + 1e-5, name


@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_inputs_that_are_not_contiguous(backend):
    layer = make((4, 4, 4), kernel_size=3)
    wide = torch.randn(3, 8, 18, 7, dtype=torch.float64)
    for x in (wide[:, ::2, ::2], wide[:, 4:, :9], wide[:1, :4, :9].expand(3, -1, -1, -1)):
        expected, actual = everything(layer, x, "reference"), everything(layer, x, backend)
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("backend", ["eager", "fused"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 0.1}], ids=str
)
def test_batch_norms_of_all_kinds(options, training, backend):
    torch.manual_seed(0)
    layer = KAConv2d(4, 4, 3, groups=4, norm_layer=lambda c: nn.BatchNorm2d(c, **options)).double().train(training)
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    expected, actual = everything(layer, x, "reference"), everything(layer, x, backend)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 4])
def test_frozen_batch_norms_are_fused(groups, fused_only):
    torch.manual_seed(0)
    layer = KAConv2d(4, 4, 3, groups=groups, norm_layer=FrozenBatchNorm2d, generator_norm="layer").double()
    layer.norm.running_mean.normal_()
    layer.norm.running_var.uniform_(0.5, 2)
    layer.norm.weight.normal_()
    layer.norm.bias.normal_()
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    expected, actual = everything(layer.train(), x, "reference"), everything(layer, x, "fused")
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-8, atol=1e-9)
        assert name not in dict(layer.named_buffers()) or torch.equal(value, layer.get_buffer(name))


@pytest.mark.parametrize("trained", ["input", "weight", "norm.bias", "attention_generator.excite.weight"])
def test_gradients_where_only_some_are_wanted(trained, fused_only):
    torch.manual_seed(0)
    layer = make((8, 8, 2), kernel_size=3)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == trained)
    x = torch.randn(3, 8, 5, 5, dtype=torch.float64, requires_grad=trained == "input")
    wanted = x if trained == "input" else layer.get_parameter(trained)
    gradients = []
    for backend in ("reference", "fused"):
        with use_backend(backend):
            gradients += torch.autograd.grad(layer(x).square().sum(), wanted)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


def test_a_hook_that_cuts_the_attention_off_the_graph_leaves_the_other_gradients():
    torch.manual_seed(0)
    layer = make((8, 8, 2), kernel_size=3)
    layer.attention_generator.register_forward_hook(lambda module, inputs, output: torch.full_like(output, 1 / 9))
    x = torch.randn(3, 8, 5, 5, dtype=torch.float64, requires_grad=True)
    gradients = []
    for backend in ("reference", "fused"):
        with use_backend(backend):
            gradients.append(torch.autograd.grad(layer(x).square().sum(), (x, layer.weight, layer.norm.weight)))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


def test_a_hook_on_the_generator_sees_the_whole_batch_at_inference(monkeypatch):
    monkeypatch.setattr(cpu_taps, "_AT_ONCE_BYTES", 1)  # one sample at a time, where nobody looks
    layer = make((40, 40, 1), kernel_size=3).eval()
    x = torch.randn(4, 40, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        one_by_one, seen = layer(x), []
        layer.attention_generator.squeeze.register_forward_hook(lambda m, i, output: seen.append(len(output)))
        torch.testing.assert_close(layer(x), one_by_one)
    assert seen == [4]


def test_backward_twice_through_one_graph_and_second_derivatives():
    layer = make((4, 4, 4), kernel_size=3)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    with use_backend("fused"):
        output = layer(x).square().sum()
    first = torch.autograd.grad(output, x, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(output, x, retain_graph=True)[0], first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r'no second derivative.*use_backend\("eager"\)'):
        torch.autograd.grad(output, x, create_graph=True)
    with use_backend("eager"):
        assert torch.autograd.gradgradcheck(layer.eval(), x)


def test_no_map_is_kept_for_the_backward():
    """Everything autograd holds between the passes is smaller than one of the K·C maps' stack by far."""
    layer, x = make((4, 4, 4), kernel_size=3), torch.randn(2, 4, 32, 32, dtype=torch.float64)
    elements = {}
    for backend in ("reference", "fused"):
        kept = {}
        with (
            use_backend(backend),
            torch.autograd.graph.saved_tensors_hooks(
                lambda tensor, kept=kept: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor),
                lambda tensor: tensor,
            ),
        ):
            layer(x)
        elements[backend] = sum(tensor.numel() for tensor in kept.values())
    assert elements["reference"] > 2 * 9 * x.numel()
    assert elements["fused"] < 1.5 * x.numel()


@pytest.mark.parametrize("channels", [(8, 8, 8), (16, 16, 4), (40, 40, 1)], ids=["depthwise", "grouped", "dense"])
def test_fused_is_deterministic(channels):
    layer, x = make(channels, dtype=torch.float32, kernel_size=3), torch.randn(5, channels[0], 20, 20)
    first, second = (everything(layer, x, "fused") for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("channels", [(8, 8, 8), (16, 16, 4)], ids=["depthwise", "grouped"])
def test_the_number_of_threads_changes_no_more_than_rounding(channels):
    layer, x = make(channels, kernel_size=3), torch.randn(5, channels[0], 9, 9, dtype=torch.float64)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append(everything(layer, x, "fused"))
    finally:
        torch.set_num_threads(threads)
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("channels", [(4, 4, 4), (8, 8, 2), (40, 40, 1)], ids=["depthwise", "grouped", "dense"])
def test_nan_and_infinity_come_through(channels, training):
    layer = make(channels, nn.ReLU6, dtype=torch.float32, kernel_size=3).train(training)
    for value in (torch.nan, torch.inf):
        x = torch.randn(2, channels[0], 5, 5)
        x[0, 0, 2, 2] = value
        with use_backend("reference"):
            expected = copy.deepcopy(layer)(x).isnan()
        with use_backend("fused"):
            actual = copy.deepcopy(layer)(x).isnan()
        assert expected.any() <= actual.any()


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(4, 4, 4), (8, 8, 2), (40, 40, 1)], ids=["depthwise", "grouped", "dense"])
def test_the_output_is_finite_where_the_reference_is(channels, stride, act, training, grad, fused_only):
    torch.manual_seed(0)
    layer = make(channels, act, dtype=torch.float32, kernel_size=3, stride=stride).train(training)
    for value in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(2, channels[0], 6, 6)
        x[0, 1, 2, 2] = value
        x.requires_grad_(grad)
        finite = []
        for backend in ("reference", "fused"):
            with use_backend(backend), torch.set_grad_enabled(grad):
                finite.append(copy.deepcopy(layer)(x).isfinite())
        assert torch.equal(*finite), value


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    torch.manual_seed(0)
    layer = make((8, 8, 2), kernel_size=3)
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    with use_backend("fused"):
        plain = torch.autograd.grad(layer(x).square().sum(), (x, layer.weight))
        checkpointed = checkpoint(layer, x, use_reentrant=use_reentrant).square().sum()
        checkpointed.backward()
    torch.testing.assert_close((x.grad, layer.weight.grad), plain)


def test_torch_func_transforms():
    layer = make((4, 4, 4), kernel_size=3).eval()
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    per_sample = torch.vmap(torch.func.grad(lambda sample: layer(sample[None]).square().sum()))(x)
    x.requires_grad_()
    torch.testing.assert_close(per_sample, torch.autograd.grad(layer(x).square().sum(), x)[0])


def test_autocast_leaves_float64_alone():
    layer, x = make((8, 8, 2), kernel_size=3), torch.randn(3, 8, 6, 6, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16), use_backend("fused"):
        output = copy.deepcopy(layer)(x)
    assert torch.equal(output, everything(layer, x, "fused")["output"])


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.int64, torch.uint8, torch.bool], ids=str)
def test_inputs_of_another_dtype_are_named(dtype, autocast):
    layer, x = KAConv2d(4, 4, 3), torch.ones(2, 4, 5, 5, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with pytest.raises(TypeError, match=rf"input of dtype torch\.float32.*; got {dtype}"):
            layer(x)
        with pytest.raises(TypeError, match=rf"input of dtype torch\.float32.*; got {dtype}"):
            layer.to("meta")(x.to("meta"))


def test_half_inputs_want_half_weights_or_autocast():
    x = torch.randn(2, 4, 5, 5)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=rf"input of dtype torch\.float32; got {dtype}"):
            KAConv2d(4, 4, 3)(x.to(dtype))
        assert KAConv2d(4, 4, 3, dtype=dtype)(x.to(dtype)).dtype == dtype
        with torch.autocast("cpu", torch.bfloat16):
            assert KAConv2d(4, 4, 3)(x.to(dtype)).dtype == torch.bfloat16


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer, x = make((8, 8, 2), dtype=torch.float32, kernel_size=3), torch.randn(3, 8, 6, 6)
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(layer))
        with use_backend("fused"):
            wrapped(x).square().sum().backward()
            layer(x).square().sum().backward()
        for (name, actual), expected in zip(wrapped.module.named_parameters(), layer.parameters(), strict=True):
            torch.testing.assert_close(actual.grad, expected.grad, msg=name)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("part", ["norm", "act"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_hooks_on_norm_and_activation_are_called(part, kind):
    layer = make((4, 4, 4), kernel_size=3)
    x, calls = torch.randn(2, 4, 5, 5, dtype=torch.float64), []
    handle = getattr(getattr(layer, part), kind)(lambda *args: calls.append(args))
    with use_backend("fused"):
        layer(x).sum().backward()
        handle.remove()
        layer(x).sum().backward()
    assert len(calls) == 1


def test_capture_sees_the_same_attention_under_every_backend():
    model = kaconv.create_model("ka_resnet11_cifar_l", num_classes=4).eval()
    x = torch.randn(3, 3, 32, 32)
    records = {}
    for backend in kaconv.ops.BACKENDS:
        with torch.no_grad(), use_backend(backend), kaconv.AttentionCapture(model) as capture:
            model(x)
        records[backend] = capture.record()
    for record in records.values():
        for name, maps in record.attention.items():
            torch.testing.assert_close(*map(torch.from_numpy, (maps, records["reference"].attention[name])))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_eager_inference_equals_the_reference(geometry, channels_last):
    layer = make((4, 8, 2), **geometry).eval()
    x = torch.randn(3, 4, 9, 7, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        with use_backend("reference"):
            expected = layer(x)
        with use_backend("eager"):
            actual = layer(x)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)
    assert actual.is_contiguous(memory_format=torch.channels_last) == expected.is_contiguous(
        memory_format=torch.channels_last
    )


def test_forced_backends_nest_and_end_with_the_block():
    assert dispatch._forced.get() is None
    with use_backend("reference"):
        with use_backend("fused"):
            assert dispatch._forced.get() == "fused"
        with pytest.raises(ZeroDivisionError), use_backend("fused"):
            1 / 0  # noqa: B018
        assert dispatch._forced.get() == "reference"
    assert dispatch._forced.get() is None


def test_threads_that_enter_and_leave_in_turn_choose_apart():
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    seen = {}

    def first():
        with use_backend("reference"):
            first_is_in.set()
            second_is_in.wait(5)
            seen["first, inside"] = dispatch._forced.get()
        seen["first, after"] = dispatch._forced.get()
        first_is_out.set()

    def second():
        first_is_in.wait(5)
        seen["second, before"] = dispatch._forced.get()
        with use_backend("eager"):
            second_is_in.set()
            first_is_out.wait(5)
            seen["second, inside"] = dispatch._forced.get()
        seen["second, after"] = dispatch._forced.get()

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {when: backend for when, backend in seen.items() if backend} == {
        "first, inside": "reference",
        "second, inside": "eager",
    }
    assert dispatch._forced.get() is None


def test_unknown_backends_are_named():
    with pytest.raises(ValueError, match=r"'quick'.*auto, reference, eager, fused"), use_backend("quick"):
        pass
    with pytest.raises(ValueError, match="'quick'"):
        KAConv2d(4, 4, 3, backend="quick")


def test_a_layer_keeps_to_its_backend(monkeypatch):
    def unwanted(*args):
        raise AssertionError("fused")

    monkeypatch.setattr(dispatch.fused, "kaconv2d", unwanted)
    model = kaconv.create_model("ka_resnet11_cifar_l", num_classes=3, backend="reference")
    model(torch.randn(2, 3, 16, 16))
    with pytest.raises(AssertionError), use_backend("fused"):
        model(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"norm_layer": lambda c: nn.GroupNorm(2, c)}, "PerPositionNorm"),
        ({"act_layer": nn.SiLU}, "SiLU"),
    ],
    ids=["norm", "activation"],
)
def test_what_does_not_apply_falls_back_with_one_line(options, reason, caplog):
    dispatch._log_once.cache_clear()
    layer, x = KAConv2d(4, 4, 3, **options), torch.randn(2, 4, 5, 5)
    with caplog.at_level(logging.WARNING, "kaconv"), use_backend("fused"):
        first = copy.deepcopy(layer)(x)
        copy.deepcopy(layer)(x)
    assert len(caplog.records) == 1
    assert reason in caplog.text
    with use_backend("reference"):
        torch.testing.assert_close(first, layer(x))


def test_without_a_compiler_everything_works_and_one_line_says_so(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    layer, x = KAConv2d(4, 4, 3), torch.randn(2, 4, 5, 5)
    try:
        with caplog.at_level(logging.WARNING, "kaconv"):
            outputs = [copy.deepcopy(layer)(x) for _ in range(2)]
    finally:
        native.library.cache_clear()
    assert len([record for record in caplog.records if "no-such-compiler" in record.getMessage()]) == 1
    with use_backend("reference"):
        torch.testing.assert_close(outputs[0], layer(x))
    assert not list(tmp_path.rglob("*.so"))


def test_the_build_is_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = native._built()
    stamp = first.stat().st_mtime_ns
    assert native._built() == first
    assert first.stat().st_mtime_ns == stamp
    assert {path.name for path in first.parent.iterdir()} == {first.name, f"{first.stem}.sha256"}
