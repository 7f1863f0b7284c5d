"""The Triton kernels against plain float64 torch: on a CUDA device where there is one, else in Triton's interpreter."""

import copy
import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch

from kaconv import KAConv2d, use_backend
from kaconv.ops import dispatch, triton_taps
from kaconv.ops.geometry import Geometry
from kaconv.ops.reference import decompose
from kaconv.ops.triton_taps import TritonTaps, supported

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
USABLE = True
if DEVICE == "cpu":
    # Triton decides when it is imported whether functions are to be interpreted.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import triton.language
    USABLE = not isinstance(triton.language.sum, triton.JITFunction)

needs_kernels = pytest.mark.skipif(not USABLE, reason="Triton was imported before: see test_in_a_process_of_its_own")


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    precision = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = precision


@pytest.mark.skipif(USABLE, reason="the tests of this file run here")
def test_in_a_process_of_its_own():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout


def same_padding(kernel, stride=(1, 1), dilation=(1, 1), groups=1):
    padding = tuple(d * (k // 2) for k, d in zip(kernel, dilation, strict=True))
    return Geometry(kernel, stride, padding, dilation, groups)


# (input channels, output channels, input size, geometry)
CASES = {
    "dense": (5, 7, (5, 6), same_padding((3, 3))),
    "1x1 kernel": (5, 20, (3, 5), same_padding((1, 1))),
    "1x1 map": (5, 7, (1, 1), same_padding((3, 3))),
    "2x2 kernel": (3, 4, (5, 4), same_padding((2, 2))),
    "5x5 kernel": (3, 4, (5, 4), same_padding((5, 5))),
    "rectangular, no padding": (3, 4, (6, 7), Geometry((2, 3))),
    "wide padding": (3, 4, (2, 3), Geometry((2, 2), padding=(3, 2))),
    "stride 2": (5, 7, (7, 6), same_padding((3, 3), (2, 2))),
    "stride (2, 1), dilation 2": (5, 7, (5, 6), same_padding((3, 3), (2, 1), (2, 2))),
    "stride 3, kernel 1": (3, 4, (7, 8), Geometry((1, 1), (3, 3))),
    "several tiles": (20, 40, (13, 11), same_padding((1, 2))),
    "2 groups, stride 2": (6, 10, (5, 5), same_padding((3, 3), (2, 2), groups=2)),
    "32 groups of 4": (128, 128, (2, 2), same_padding((2, 2), groups=32)),
    "groups 3 to 2 channels": (9, 6, (4, 3), same_padding((3, 3), groups=3)),
    "depthwise": (3, 3, (5, 7), same_padding((3, 3), groups=3)),
    "depthwise, several blocks": (33, 33, (3, 2), same_padding((2, 2), groups=33)),
    "depthwise, several tiles": (3, 3, (25, 23), same_padding((1, 3), groups=3)),
    "depthwise, stride 2": (5, 5, (7, 6), same_padding((3, 3), (2, 2), groups=5)),
    "depthwise, 5x5, stride (1, 2), dilation 2": (3, 3, (6, 7), same_padding((5, 5), (1, 2), (2, 2), groups=3)),
    "depthwise, multiplier 2": (3, 6, (5, 4), same_padding((3, 3), groups=3)),
    "depthwise, multiplier 2, stride 2, 1x1 map": (3, 6, (1, 1), same_padding((3, 3), (2, 2), groups=3)),
    "one channel": (1, 3, (4, 4), same_padding((3, 3))),
}
# (Triton's interpreter cuts bfloat16 off instead of rounding it.)
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 1e-3}


class Problem:
    """Random arguments of all passes, and what they come to in float64."""

    def __init__(self, case, dtype=torch.float32, samples=2, cap=math.inf, channels_last=True):
        in_channels, channels, size, self.geometry = case
        torch.manual_seed(0)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format

        def maps(*shape):
            return torch.randn(shape).to(DEVICE, dtype).contiguous(memory_format=memory_format)

        self.x = maps(samples, in_channels, *size)
        kernel = self.geometry.kernel
        self.weight = torch.randn(channels, in_channels // self.geometry.groups, *kernel).to(DEVICE, dtype)
        self.dout = maps(samples, channels, *self.geometry.output_size(*size))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        kc, nkc = (self.geometry.positions, channels), (samples, self.geometry.positions, channels)
        self.r, self.t, self.gamma, self.beta, self.delta, self.epsilon = torch.randn(6, *kc, dtype=wide, device=DEVICE)
        self.gamma[0, 0] = 0  # random ones are of both signs
        self.alpha, self.bias = torch.randn(2, *nkc, dtype=wide, device=DEVICE)
        self.cap = cap
        self.norm = self.r, self.t, self.gamma, self.beta, cap
        self.scale_shift = self.gamma * self.r, self.gamma * self.t + self.beta

    def results(self):
        """Of every method: a tuple of tensors."""
        assert supported(self.x, self.weight, self.geometry) is None
        taps = TritonTaps(self.x, self.weight, self.geometry)
        return {
            "moments": taps.moments(),
            "pooled": (taps.pooled(*self.scale_shift, self.cap),),
            "pool": taps.pool(*self.norm),
            "aggregate": (taps.aggregate(*self.scale_shift, self.alpha, self.cap),),
            "reduce": taps.reduce(*self.norm, self.dout),
            "gradients": self.gradients(taps),
        }

    def gradients(self, taps):
        return taps.gradients(*self.norm, self.dout, self.alpha, self.bias, self.delta, self.epsilon)

    def expected(self):
        x, weight = (a.double().requires_grad_() for a in (self.x, self.weight))
        geometry = self.geometry
        z = decompose(x, weight, geometry)

        def wide(coefficient):
            return coefficient.double()[..., None, None]

        xhat = wide(self.r) * z + wide(self.t)
        pre = wide(self.gamma) * xhat + wide(self.beta)
        active, capped = ~(pre <= 0) & ~(pre >= self.cap), pre >= self.cap
        y = pre.clamp(0, self.cap)
        dout = self.dout.double()[:, None]
        dz = active * (wide(self.alpha) * dout + wide(self.bias)) - wide(self.delta) - wide(self.epsilon) * xhat
        pixels = (3, 4)
        return {
            "moments": (z.mean((0, 3, 4)), z.var((0, 3, 4), correction=0)),
            "pooled": (y.mean(pixels),),
            "pool": (active.sum(pixels).double(), (active * xhat).sum(pixels), capped.sum(pixels).double()),
            "aggregate": ((wide(self.alpha) * y).sum(1),),
            "reduce": tuple((a * dout).sum(pixels) for a in (active, active * xhat, capped)),
            "gradients": torch.autograd.grad(z, (x, weight), dz.detach()),
        }


def assert_close(actual, expected, tolerance, what):
    assert actual.shape == expected.shape, what
    error = (actual.double() - expected).abs().max()
    assert error <= tolerance * expected.abs().max().clamp(min=1e-3), f"{what}: off by {error:.2e}"


def check(problem):
    dtype = problem.x.dtype
    results, expected = problem.results(), problem.expected()
    for method, values in results.items():
        maps = method in ("aggregate", "gradients")
        # Only maps and gradients are of x's dtype: z, the coefficients and the sums are of at least float32.
        tolerance = TOLERANCE[dtype if maps or dtype == torch.float64 else torch.float32]
        for index, (value, of_reference) in enumerate(zip(values, expected[method], strict=True)):
            assert value.dtype == (dtype if maps else problem.r.dtype)
            assert_close(value, of_reference, tolerance, f"{method}[{index}]")


@needs_kernels
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_float64(case):
    check(Problem(case, cap=1.5))


@needs_kernels
@pytest.mark.parametrize("name", ["stride (2, 1), dilation 2", "2 groups, stride 2", "depthwise, stride 2"])
@pytest.mark.parametrize(
    ("dtype", "samples", "cap", "channels_last"),
    [
        (torch.bfloat16, 1, 6.0, False),
        (torch.bfloat16, 3, math.inf, True),
        (torch.float16, 1, math.inf, True),
        (torch.float64, 1, 6.0, False),
    ],
)
def test_dtypes_caps_and_memory_formats(name, dtype, samples, cap, channels_last):
    problem = Problem(CASES[name], dtype, samples, cap, channels_last)
    check(problem)
    taps = TritonTaps(problem.x, problem.weight, problem.geometry)
    out = taps.aggregate(*problem.scale_shift, problem.alpha, cap)
    assert out.stride() == problem.dout.stride()
    assert problem.gradients(taps)[0].stride() == problem.x.stride()


@pytest.mark.slow
@needs_kernels
def test_kernel_of_7():
    check(Problem((4, 4, (5, 4), same_padding((7, 7))), cap=6.0))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["stride (2, 1), dilation 2", "2 groups, stride 2"])
def test_gradients_with_stored_dz(monkeypatch, name, dtype):
    """The way of layers with many channels, in chunks of one sample."""
    monkeypatch.setattr(triton_taps, "_MOST_CHANNELS_HELD", 0)
    monkeypatch.setattr(triton_taps, "_DZ_BYTES", 1)
    problem = Problem(CASES[name], dtype, samples=3, cap=6.0)
    gradients = problem.gradients(TritonTaps(problem.x, problem.weight, problem.geometry))
    for value, expected in zip(gradients, problem.expected()["gradients"], strict=True):
        assert_close(value, expected, TOLERANCE[dtype], "gradient")


@needs_kernels
def test_many_channels():
    check(Problem((140, 70, (2, 3), Geometry((1, 2), padding=(0, 1))), torch.float16))


@needs_kernels
@pytest.mark.parametrize("name", ["dense", "depthwise"])
def test_any_strides(name):
    problem = Problem(CASES[name])
    x, dout = problem.x, problem.dout
    problem.x = torch.randn(*x.shape[:3], 2 * x.shape[3], device=DEVICE).transpose(2, 3)[:, :, ::2].transpose(2, 3)
    problem.dout = torch.randn(*dout.shape[:2], 1, 1, device=DEVICE).expand_as(dout)
    check(problem)


@needs_kernels
@pytest.mark.parametrize("name", ["dense", "depthwise, several tiles"])
def test_variance_under_a_large_mean(name):
    case = CASES[name]
    in_channels, channels, size, geometry = case
    geometry = Geometry(geometry.kernel, groups=geometry.groups)  # padding would bring variance of its own
    problem = Problem((in_channels, channels, size, geometry))
    problem.x += 3000
    variance = TritonTaps(problem.x, problem.weight, geometry).moments()[1]
    # The rounding of z itself leaves some 1e-3 of it; E[z²] - E[z]² would leave nothing.
    assert_close(variance, problem.expected()["moments"][1], 5e-3, "variance")


@needs_kernels
@pytest.mark.parametrize("cap", [math.inf, 6.0])
@pytest.mark.parametrize("name", ["dense", "depthwise"])
def test_nan_propagates(name, cap):
    in_channels, channels, _, geometry = CASES[name]
    problem = Problem((in_channels, channels, (4, 4), geometry), cap=cap)
    problem.x[0, 0, 2, 2] = math.nan
    problem.epsilon.zero_()
    results = problem.results()
    sees_it = results["moments"][0].isnan()  # (K, C): the channels of the NaN's group
    assert sees_it.all(0).any()
    assert sees_it.all() == (name == "dense")
    assert torch.equal(results["moments"][1].isnan(), sees_it)
    for values in (results["pooled"][0], results["pool"][1], results["reduce"][1]):
        assert torch.equal(values[0].isnan(), sees_it)
        assert values[1].isfinite().all()
    out = results["aggregate"][0]
    assert out[0, sees_it.all(0), 1:4, 1:4].isnan().all()
    assert out[1].isfinite().all()
    dx, dw = results["gradients"]
    assert dx[1].isfinite().all()
    assert dw[sees_it.all(0), 0].isnan().all()


@needs_kernels
@pytest.mark.parametrize("name", ["several tiles", "depthwise"])
def test_deterministic(name):
    problem = Problem(CASES[name], torch.bfloat16)
    first, second = problem.results(), problem.results()
    for method in first:
        assert all(torch.equal(a, b) for a, b in zip(first[method], second[method], strict=True)), method


@needs_kernels
def test_says_what_it_does_not_support(monkeypatch):
    problem = Problem(CASES["dense"])
    x, weight, geometry = problem.x, problem.weight, problem.geometry
    assert supported(x, weight, geometry) is None
    assert "float8" in supported(x.to(torch.float8_e4m3fn), weight, geometry)
    assert "meta" in supported(x.to("meta"), weight.to("meta"), geometry)
    assert "weight" in supported(x, weight.to("meta"), geometry)
    assert "empty" in supported(x[:0], weight, geometry)
    assert "32-bit" in supported(x[:1, :, :1, :1].expand(1, 5, 2**15, 2**15), weight, geometry)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "'cpu'" in supported(x.cpu(), weight.cpu(), geometry)


def test_importing_kaconv_does_not_import_triton():
    program = "import sys, kaconv, kaconv.ops.triton_taps; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@needs_kernels
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("channels", "groups", "stride"),
    [((5, 6), 1, 2), ((8, 8), 4, 1), ((4, 4), 4, 2)],
    ids=["dense", "grouped", "depthwise"],
)
def test_a_layer_with_these_kernels_equals_the_reference(channels, groups, stride, training, monkeypatch):
    monkeypatch.setattr(dispatch, "_fused_taps", lambda *args: (TritonTaps, None))
    torch.manual_seed(0)
    layer = KAConv2d(*channels, 3, stride, groups=groups, act_layer=torch.nn.ReLU6).double().to(DEVICE).train(training)
    x = torch.randn(2, channels[0], 5, 4, dtype=torch.float64, device=DEVICE)
    results = []
    for backend in ("reference", "fused"):
        copied, image = copy.deepcopy(layer), x.clone().requires_grad_()
        with use_backend(backend):
            output = copied(image)
            output.square().sum().backward()
            with torch.no_grad():
                inferred = copied(image)
        gradients = [parameter.grad for parameter in copied.parameters()]
        results.append([output, inferred, image.grad, *gradients, *copied.buffers()])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
