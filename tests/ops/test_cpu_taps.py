"""What the CPU passes are made of: matrix products, sums that hold under a large mean, weights as they are read."""

import pytest
import torch
from torch.nn import functional

from kaconv.ops import native
from kaconv.ops.cpu_taps import CPUTaps, _multiply, packed
from kaconv.ops.geometry import Geometry

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler for the fused backend")

# (matrices, rows, terms, columns): single ones, no whole tile, several panels, several runs of terms
SIZES = [(1, 1, 1, 1), (2, 9, 3, 5), (3, 36, 600, 33), (1, 100, 64, 1100), (4, 7, 1100, 64), (2, 20, 513, 17)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products(size, dtype, threads):
    matrices, rows, terms, columns = size
    torch.manual_seed(0)
    a = torch.randn(matrices, rows, terms, dtype=dtype)
    for b in (
        torch.randn(matrices, terms, columns, dtype=dtype),
        torch.randn(matrices, columns, terms, dtype=dtype).mT,
    ):
        exact = a.double() @ b.double()
        for number in (1, 3):
            threads(number)
            room = torch.full((matrices, rows, columns + 3), torch.nan, dtype=dtype)  # rows need not follow each other
            found = _multiply(a, b, room[..., :columns])
            assert (found - exact).abs().max() <= terms * torch.finfo(dtype).eps * exact.abs().max()
            assert room[..., columns:].isnan().all()


@pytest.mark.parametrize("channels", [(8, 8, 8), (8, 12, 4), (40, 48, 1)], ids=["depthwise", "grouped", "dense"])
@pytest.mark.parametrize("kind", ["large mean", "unlike first rows"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_moments_lose_no_digits(channels, kind, memory_format):
    in_channels, out_channels, groups = channels
    torch.manual_seed(0)
    x = torch.randn(3, in_channels, 30, 31)
    weight = torch.rand(out_channels, in_channels // groups, 3, 3)
    if kind == "large mean":
        x += 300
    else:
        x[:, :, 3:] += 300  # the sums are taken about what the first rows are like
    geometry = Geometry((3, 3), groups=groups)  # padding would bring variance of its own
    mean, variance = CPUTaps(x.contiguous(memory_format=memory_format), weight, geometry).moments()
    for k in range(geometry.positions):
        u, v = divmod(k, 3)
        seen, one = x[:, :, u : u + 28, v : v + 29].double(), weight[:, :, u, v, None, None].double()
        z = functional.conv2d(seen, one, groups=groups)
        torch.testing.assert_close(mean[k].double(), z.mean((0, 2, 3)), rtol=1e-6, atol=0)
        torch.testing.assert_close(variance[k].double(), z.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


def test_weights_that_are_packed_are_the_same_weights():
    for out_channels, in_group, groups in ((40, 36, 1), (8, 4, 2), (8, 1, 8)):
        weight = torch.randn(out_channels, in_group, 3, 3)
        found = packed(weight, Geometry((3, 3), groups=groups))
        assert torch.equal(found, weight)
        taps = CPUTaps(torch.randn(2, in_group * groups, 5, 5), found, Geometry((3, 3), groups=groups))
        read = taps._packed if taps._stores_maps else taps._side_by_side
        assert read.data_ptr() == found.data_ptr(), "they were copied"
