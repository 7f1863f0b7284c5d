"""Sizes of a convolution: which input pixel each kernel position reads."""

from dataclasses import dataclass
from itertools import product

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Kernel size, stride, padding and dilation, each (height, width), and the number of groups."""

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def positions(self) -> int:
        """K, the number of kernel positions."""
        return self.kernel[0] * self.kernel[1]

    def offsets(self) -> list[Pair]:
        """For each kernel position, row-major, the (row, column) it reads, relative to output index times stride."""
        (kh, kw), (dh, dw), (ph, pw) = self.kernel, self.dilation, self.padding
        return [(u * dh - ph, v * dw - pw) for u, v in product(range(kh), range(kw))]

    def output_size(self, height: int, width: int) -> Pair:
        """(H, W) of the output for an input of this height and width."""
        sizes = zip((height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)
