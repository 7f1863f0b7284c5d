"""The sizes of a convolution, from which follows the input pixel that each kernel position reads."""

from collections.abc import Sequence
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

    def numbers(self) -> list[int]:
        """All but the kernel, as an operator's schema takes them; see `from_numbers`."""
        return [*self.stride, *self.padding, *self.dilation, self.groups]

    @classmethod
    def from_numbers(cls, kernel: Sequence[int], numbers: Sequence[int]) -> "Geometry":
        """The geometry that `numbers` were taken from, of this kernel size."""
        kh, kw = kernel
        sh, sw, ph, pw, dh, dw, groups = numbers
        return cls((kh, kw), (sh, sw), (ph, pw), (dh, dw), groups)

    def taps(self) -> list[Pair]:
        """(u, v) of each kernel position, row by row, the top left first."""
        return list(product(range(self.kernel[0]), range(self.kernel[1])))

    def output_size(self, height: int, width: int) -> Pair:
        """(H, W) of the output for an input of this height and width."""
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self.kernel, self.stride, self.padding, self.dilation
        return (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
