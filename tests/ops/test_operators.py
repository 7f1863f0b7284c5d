"""The fused KAConv under torch.compile and torch.export, as operators that these keep."""

import copy

import pytest
import torch
from torch import nn

from kaconv import KAConv2d, use_backend
from kaconv.ops import cpu_taps, native, operators
from kaconv.ops.geometry import Geometry

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler for the fused backend")

CHANNELS = {"depthwise": (4, 4, 4), "grouped": (8, 12, 4), "dense": (34, 36, 1)}
STAGES = {
    "train": ["batch_coefficients", "pool_maps", "hidden_statistics", "normed_relu", "softmax", "aggregate"],
    "eval": ["folded_statistics", "pooled", "normed_relu", "softmax", "weighted_sum"],
}


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()


def make(channels="depthwise", training=True, stride=1):
    torch.manual_seed(0)
    cin, cout, groups = CHANNELS[channels]
    layer = KAConv2d(cin, cout, 3, groups=groups, stride=stride, act_layer=nn.ReLU6, min_hidden=8).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        layer.norm.running_mean.normal_(std=0.5)
        layer.norm.running_var.uniform_(0.5, 2)
    return layer.train(training), torch.randn(3, cin, 7, 6, dtype=torch.float64)


class Recorded:
    """A backend of torch.compile that keeps the names of KAConv's operators, and computes with the graph as it is."""

    def __init__(self):
        self.names = []

    def __call__(self, graph, inputs):
        self.names += kept(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def kept(graph):
    return [str(node.target).split(".")[1] for node in graph.graph.nodes if "kaconv." in str(node.target)]


def results(function, layer, x, grad):
    x = x.clone().requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        y = function(x)
    if not grad:
        return {"y": y}
    (y.square().sum() + y.sum()).backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **gradients, **dict(layer.named_buffers())}


def assert_same(actual, expected):
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: name + text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "stride", "training", "grad"),
    [
        ("depthwise", 2, True, True),
        ("grouped", 1, True, True),
        ("dense", 1, True, True),
        ("dense", 2, False, True),
        ("depthwise", 1, False, False),
    ],
)
def test_compiled_equals_the_reference(channels, stride, training, grad):
    layer, x = make(channels, training, stride)
    reference, compiled = copy.deepcopy(layer), copy.deepcopy(layer)
    with use_backend("reference"):
        expected = results(reference, reference, x, grad)
    backend = Recorded()
    actual = results(torch.compile(compiled, backend=backend, fullgraph=True), compiled, x, grad)
    assert_same(actual, expected)
    assert {"pool_maps" if grad else "pooled", "prepared"} <= set(backend.names)


@pytest.mark.slow
@pytest.mark.parametrize("channels", ["depthwise", "grouped", "dense"])
def test_half_precision_loses_no_more_when_compiled(channels):
    layer, x = make(channels)
    layer, x = layer.bfloat16(), x.bfloat16()
    exact = copy.deepcopy(layer).double()(x.double())
    uncompiled = results(copy.deepcopy(layer), layer, x, grad=False)["y"]
    found = Recorded()
    y = results(torch.compile(copy.deepcopy(layer), backend=found, fullgraph=True), layer, x, grad=True)["y"]
    assert [name for name in found.names if name != "prepared"] == STAGES["train"]
    assert (y - exact).abs().mean() <= 1.1 * (uncompiled - exact).abs().mean()


def test_inductor_trains_and_infers_with_them():
    layer, x = make("dense")
    reference, compiled = copy.deepcopy(layer), copy.deepcopy(layer)
    with use_backend("reference"):
        expected = results(reference, reference, x, True)
    assert_same(results(torch.compile(compiled, fullgraph=True), compiled, x, True), expected)


@pytest.mark.slow
@pytest.mark.parametrize("channels", ["grouped", "dense"])
def test_inductor_takes_them_between_convolutions(channels):
    layer, x = make(channels)
    cin, cout, _ = CHANNELS[channels]  # torch.compile gives a convolution's output in channels_last
    network = nn.Sequential(nn.Conv2d(cin, cin, 1), layer, nn.Conv2d(cout, cout, 1)).double()
    reference, compiled = copy.deepcopy(network), copy.deepcopy(network)
    with use_backend("reference"):
        expected = results(reference, reference, x, True)
    assert_same(results(torch.compile(compiled, fullgraph=True), compiled, x, True), expected)


def test_statistics_that_average_all_batches_are_compiled():
    layer, x = make()
    layer.norm.momentum = None
    reference, compiled = copy.deepcopy(layer), copy.deepcopy(layer)
    with use_backend("reference"):
        expected = results(reference, reference, x, True)
    assert_same(results(torch.compile(compiled, backend=Recorded(), fullgraph=True), compiled, x, True), expected)


def _strided_otherwise(tensor):
    """The same values, the first axis innermost."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


@pytest.mark.parametrize("channels", CHANNELS)
def test_arguments_may_have_any_strides(channels):
    layer, x = make(channels)
    weight, numbers = layer.weight.detach(), layer.geometry.numbers()
    r, t, gamma, beta = torch.rand(4, 9, len(weight), dtype=torch.float64).unbind()
    active, active_xhat, dq, attention = torch.rand(4, len(x), 9, len(weight), dtype=torch.float64).unbind()
    dout = torch.randn(operators.output_shape(x, weight, layer.geometry), dtype=torch.float64)
    coefficients, sums = (gamma, beta, r, t), (active, active_xhat, dq, dout, attention, r, t)

    def run(change):
        x_, weight_, *rest = map(change, (x, weight, *coefficients, *sums))
        coefficients_, sums_ = rest[:4], rest[4:]
        z = operators.prepared(x_, weight_, numbers)
        yield operators.pooled(x_, weight_, z, *coefficients_[2:], 6.0, numbers)
        yield operators.weighted_sum(x_, weight_, z, *coefficients_[2:], sums_[4], 6.0, numbers)
        yield from operators.aggregate_backward(x_, weight_, z, *coefficients_, *sums_[3:5], 6.0, numbers)
        yield from operators.pool_backward(x_, weight_, z, *coefficients_, *sums_, 6.0, numbers, 17)

    expected = list(run(lambda tensor: tensor))
    for change in (_strided_otherwise, _channels_last):
        for actual, value in zip(run(change), expected, strict=True):
            torch.testing.assert_close(actual, value)


def _channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def test_a_hook_replaces_the_attention_in_a_compiled_layer():
    layer, x = make(training=False)
    layer.attention_generator.register_forward_hook(lambda module, inputs, output: torch.full_like(output, 1 / 9))
    with torch.no_grad(), use_backend("reference"):
        expected = layer(x)
    backend = Recorded()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, backend=backend, fullgraph=True)(x), expected)
    assert "weighted_sum" in backend.names


@pytest.mark.parametrize("training", [True, False])
def test_a_hook_on_the_generators_norm_is_called_in_a_compiled_layer(training):
    layer, x = make(training=training)
    layer.attention_generator.norm.register_forward_hook(lambda module, inputs, output: output + 1)
    with torch.no_grad(), use_backend("reference"):
        expected = copy.deepcopy(layer)(x)
    backend = Recorded()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, backend=backend, fullgraph=True)(x), expected)
    assert "normed_relu" not in backend.names


@pytest.mark.parametrize("of_batch", [True, False])
def test_the_generators_norm_and_relu_have_their_derivative(of_batch):
    hidden, gamma, beta = torch.randn(5, 4), torch.randn(4), torch.randn(4)
    hidden, gamma, beta = (tensor.double().requires_grad_() for tensor in (hidden, gamma, beta))
    mean, var = torch.randn(4).double(), torch.rand(4).double() + 0.1

    def by_operators(hidden, gamma, beta):
        statistics = operators.hidden_statistics(hidden.detach(), None, None, None, 0.1) if of_batch else (mean, var)
        return operators.normed_relu(hidden, gamma, beta, *statistics, 1e-5, of_batch)

    def by_pytorch(hidden, gamma, beta):
        statistics = (None, None) if of_batch else (mean, var)
        return torch.nn.functional.batch_norm(hidden, *statistics, gamma, beta, training=of_batch).relu()

    dout = torch.randn(5, 4).double()
    found, expected = (function(hidden, gamma, beta) for function in (by_operators, by_pytorch))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y, (hidden, gamma, beta), dout) for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_the_generators_norm_is_as_exact_as_pytorchs_in_half_precision():
    torch.manual_seed(0)
    hidden, norm = 3 * torch.randn(64, 32).bfloat16(), nn.BatchNorm1d(32)
    norm.running_mean.normal_(std=3)
    norm.running_var.uniform_(0.01, 2)
    norm = norm.bfloat16().eval()
    exact = copy.deepcopy(norm).double()(hidden.double()).relu()
    found, expected = operators.norm_relu(norm, hidden), norm(hidden).relu()
    assert (found - exact).abs().mean() <= 1.01 * (expected - exact).abs().mean()


def exported(layer, x):
    batch = torch.export.Dim("batch", min=2)
    with torch.no_grad():
        return torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))


def test_an_exported_program_keeps_them_for_any_batch_size():
    layer, x = make("dense", training=False)
    program = exported(layer, x)
    assert [name for name in kept(program) if name != "prepared"] == STAGES["eval"]
    x = torch.cat([x, x[:2]])
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.slow
def test_a_package_of_aotinductor_runs_them(tmp_path):
    # ReLU and ReLU6, with maps that are handed on and without.
    layers = nn.Sequential(KAConv2d(34, 36, 3), KAConv2d(36, 36, 3, groups=36, act_layer=nn.ReLU6)).double()
    layers(torch.randn(4, 34, 7, 6, dtype=torch.float64))
    x = torch.randn(3, 34, 7, 6, dtype=torch.float64)
    program = exported(layers.eval(), x)
    assert [name for name in kept(program) if name != "prepared"] == 2 * STAGES["eval"]
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layers.pt2"))
    package = torch._inductor.aoti_load_package(path)
    for batch in (x, torch.cat([x, 2 * x])):
        with torch.no_grad(), use_backend("reference"):
            expected = layers(batch)
        torch.testing.assert_close(package(batch), expected, rtol=1e-8, atol=1e-9)


def test_an_exported_program_says_why_it_cannot_run(monkeypatch):
    layer, x = make(training=False)
    program = exported(layer, x)
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(RuntimeError, match="a fused KAConv, which cannot run here: the CPU passes could not be"):
        program.module()(x)


def test_without_a_compiler_there_is_the_plain_decomposition(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    layer, x = make(training=False)
    assert kept(exported(layer, x)) == []


def test_onnx_gets_the_plain_decomposition(monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    layer, x = make(training=False)
    assert kept(exported(layer, x)) == []


@pytest.mark.slow
@pytest.mark.parametrize("channels", ["grouped", "dense"])
def test_opcheck(channels):
    layer, x = make(channels)
    layer, x = layer.float(), x.float()
    geometry: Geometry = layer.geometry
    numbers, weight, cap = geometry.numbers(), layer.weight.detach(), 6.0 if channels == "grouped" else None
    kc, nkc = (9, len(weight)), (len(x), 9, len(weight))
    r, t, gamma, beta, delta, epsilon = torch.randn(6, *kc).unbind()
    attention, bias = torch.rand(2, *nkc).unbind()
    dout = torch.randn(len(x), len(weight), *geometry.output_size(*x.shape[2:]))
    z = operators.prepared(x, weight, numbers)
    assert z.shape == ((1, 9, 36, x[:, 0].numel()) if channels == "dense" else x.shape)
    coefficients = (gamma, beta, r, t)
    torch.library.opcheck(operators.prepared, (x, weight, numbers))
    for moved in ((None,) * 3, (torch.zeros(9 * len(weight)), torch.ones(9 * len(weight)), torch.tensor(0))):
        torch.library.opcheck(operators.batch_coefficients, (x, weight, z, *moved, 0.1, 1e-5, numbers))
    running = (layer.norm.running_mean, layer.norm.running_var)
    torch.library.opcheck(operators.fixed_coefficients, (*running, 1e-5, gamma))
    torch.library.opcheck(operators.folded_statistics, (*running, 1e-5, gamma, beta))
    for logits in (attention, _strided_otherwise(attention)):
        torch.library.opcheck(operators.softmax, (logits.clone().requires_grad_(),))
        torch.library.opcheck(operators.softmax_backward, (logits, attention))
    hidden, ends = torch.randn(5, 36), torch.rand(4, 36).unbind()
    for moved in ((None,) * 3, (torch.zeros(36), torch.ones(36), torch.tensor(0))):
        torch.library.opcheck(operators.hidden_statistics, (hidden, *moved, 0.1))
    torch.library.opcheck(operators.normed_relu_backward, (hidden, *ends, 1e-5, True, hidden + 1))
    wanted = [tensor.clone().requires_grad_() for tensor in (hidden, *ends[:2])]
    torch.library.opcheck(operators.normed_relu, (*wanted, *ends[2:], 1e-5, True))
    torch.library.opcheck(operators.pooled, (x, weight, z, r, t, cap, numbers))
    torch.library.opcheck(operators.weighted_sum, (x, weight, z, r, t, attention, cap, numbers))
    torch.library.opcheck(operators.aggregate_backward, (x, weight, z, *coefficients, dout, attention, cap, numbers))
    sums = (*torch.rand(2, *nkc).unbind(), bias, dout, attention, delta, epsilon)
    torch.library.opcheck(operators.pool_backward, (x, weight, z, *coefficients, *sums, cap, numbers, 17))
    wanted = [a.clone().requires_grad_() for a in (x, weight, gamma, beta)]
    pool_inputs = (*wanted[:2], z, *wanted[2:], r, t, cap, numbers, 0)
    torch.library.opcheck(operators.pool_maps, pool_inputs)
    links = [link.detach() for link in operators.pool_maps(*pool_inputs)[3:]]
    attention.requires_grad_()
    torch.library.opcheck(operators.aggregate, (attention, links, x, weight, z, gamma, beta, r, t, cap, numbers))


def test_the_buffer_of_maps_that_have_gone_is_kept_for_the_next():
    cpu_taps.release_scratch()
    layer, x = make("dense", training=False)
    addresses = []
    for _ in range(2):
        z = operators.prepared(x, layer.weight.detach(), layer.geometry.numbers())
        addresses.append(z.data_ptr())
        assert not cpu_taps._kept
        del z
        assert len(cpu_taps._kept) == 1
    assert addresses[0] == addresses[1]
    cpu_taps.release_scratch()
