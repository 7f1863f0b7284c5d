"""Backward passes of the fused KAConv that ask for parts of the graph, again, out of order, or side by side."""

import copy
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kaconv import KAConv2d, use_backend
from kaconv.ops import cpu_taps, native

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler for the fused backend")

CHANNELS = {"depthwise": (4, 4, 4), "grouped": (4, 6, 2), "dense": (34, 36, 1)}
NAMES = [
    *("a", "x", "weight", "norm.weight", "norm.bias"),
    *(f"attention_generator.{name}" for name in ("squeeze.weight", "norm.weight", "norm.bias", "excite.weight")),
]
SHAPE = (3, 4)


def make(channels="depthwise", attention="L", act=nn.ReLU, training=True, seed=0):
    """A layer with gradients of all sizes, and an input."""
    torch.manual_seed(seed)
    cin, cout, groups = CHANNELS[channels]
    layer = KAConv2d(cin, cout, 3, groups=groups, attention=attention, act_layer=act, min_hidden=8).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        layer.norm.running_mean.normal_(std=0.5)
        layer.norm.running_var.uniform_(0.5, 2)
    return layer.train(training), 2 * torch.randn(2, cin, *SHAPE, dtype=torch.float64)


class Graph:
    """One forward of a copy of a layer: the output y, the attention a, and what they may be derived by."""

    def __init__(self, layer, x, backend):
        self.layer, self.x = copy.deepcopy(layer), x.clone().requires_grad_()
        self.layer.attention_generator.register_forward_hook(self._keep)
        with use_backend(backend):
            self.y = self.layer(self.x)
        self.inputs = {"a": self.a, "x": self.x, **dict(self.layer.named_parameters())}

    def _keep(self, module, inputs, output):
        self.a = output

    def gradients(self, outputs, names, seed=0, retain_graph=True):
        """Of the outputs, each weighed by numbers of its own, by the inputs of these names."""
        generator = torch.Generator().manual_seed(seed)
        values = [getattr(self, output) for output in sorted(outputs)]
        weights = [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in values]
        inputs = [self.inputs[name] for name in names]
        return torch.autograd.grad(values, inputs, weights, retain_graph=retain_graph, allow_unused=True)


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        if other is None:
            assert one is None or not one.any()
        else:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_gradients_of_the_attention_alone():
    layer, x = make()
    expected, actual = (Graph(layer, x, backend).gradients({"a"}, NAMES) for backend in ("reference", "fused"))
    assert_same(actual, expected)


def test_an_earlier_backward_that_stops_at_the_generator_leaves_nothing_behind():
    layer, x = make()
    expected = Graph(layer, x, "reference").gradients({"a"}, NAMES)
    fused = Graph(layer, x, "fused")
    fused.gradients({"y"}, ["attention_generator.excite.weight"])
    assert_same(fused.gradients({"a"}, NAMES), expected)


STEPS = st.lists(
    st.tuples(
        st.integers(0, 1),  # of which of the graphs that are alive
        st.sets(st.sampled_from(["y", "a"]), min_size=1),
        st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    steps=STEPS,
    channels=st.sampled_from(sorted(CHANNELS)),
    attention=st.sampled_from("LH"),
    act=st.sampled_from([nn.ReLU, nn.ReLU6]),
    training=st.booleans(),
)
def test_any_backward_passes_in_any_order_equal_the_reference(steps, channels, attention, act, training):
    layer, x = make(channels, attention, act, training)
    expected, actual = ([Graph(layer, x / (1 + i), b) for i in range(2)] for b in ("reference", "fused"))
    for which, outputs, names, seed in steps:
        assert_same(actual[which].gradients(outputs, names, seed), expected[which].gradients(outputs, names, seed))


@pytest.mark.parametrize("channels", CHANNELS)
def test_backward_passes_of_one_graph_in_two_threads(channels):
    layer, x = make(channels)
    reference, fused = (Graph(layer, x, backend) for backend in ("reference", "fused"))
    wanted = [({"y"}, NAMES), ({"a"}, NAMES), ({"y"}, NAMES[-1:]), ({"a", "y"}, NAMES[:2])]
    expected, actual = [reference.gradients(*ask) for ask in wanted], {}

    def run(thread):
        for i in range(8):
            actual[thread, i] = fused.gradients(*wanted[(thread + i) % len(wanted)])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(actual) == 16
    for (thread, i), gradients in actual.items():
        assert_same(gradients, expected[(thread + i) % len(wanted)])


def test_without_retain_graph_the_attention_still_has_its_gradient():
    layer, x = make()
    expected = Graph(layer, x, "reference").gradients({"a"}, NAMES)
    fused = Graph(layer, x, "fused")
    fused.layer.zero_grad()
    fused.gradients({"y"}, ["attention_generator.excite.bias"])
    assert_same(fused.gradients({"a"}, NAMES, retain_graph=False), expected)
    with pytest.raises(RuntimeError, match="second time"):
        fused.gradients({"a"}, NAMES)


@pytest.mark.parametrize("output", ["y", "a"])
def test_second_derivatives_are_refused(output):
    graph = Graph(*make(), "fused")
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(getattr(graph, output).square().sum(), graph.x, create_graph=True)


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_step_makes_the_maps_once_in_its_backward(channels, monkeypatch):
    graph = Graph(*make(channels), "fused")
    made, init = [], cpu_taps.CPUTaps.__init__
    monkeypatch.setattr(cpu_taps.CPUTaps, "__init__", lambda *args: made.append(1) or init(*args))
    graph.gradients({"y"}, NAMES)
    assert len(made) == 1
