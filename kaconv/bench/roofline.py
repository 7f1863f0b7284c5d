"""The least time that a model's convolutions need on a machine: bytes over bandwidth, or arithmetic over its peak.

What is assumed, always in the machine's favour:

- Inference: each convolution, KAConv2d and linear layer reads its input and its weights once and writes its output
  once. Norms, activations, pooling, additions and the weighted sum of a KAConv are free, as if fused into them.
- Training step: as in inference; then the gradients of input and weights in one pass, which reads the input, the
  weights and the output's gradient once and writes both gradients once. The first layer needs no gradient of its
  input. The arithmetic is three times that of inference, in the first layer twice. The optimizer is free.
- Arithmetic: the multiply-adds of `kaconv.models.complexity`, two operations each, at the measured rate of a matrix
  product or of a 3×3 convolution, whichever is higher: on some processors PyTorch has a better library for the one.
- Maps are of the run's dtype; weights and their gradients are float32, as autocast keeps them.
- Bandwidth is that of copying arrays which fit no cache.

So it is a bound, not a forecast. A batch norm in training cannot be fused into its convolution, for its statistics need
the whole output, and maps that stay in a cache move faster than a copy: then a layer may even run below its floor.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from kaconv.layers import KAConv2d
from kaconv.models import create_model
from kaconv.ops import use_backend
from kaconv.utils.modes import evaluating

REPEATS = 5


@dataclass(frozen=True)
class Peaks:
    """The best that a machine reaches.

    Args:
        flops: operations of a matrix product or a convolution per second; a multiply-add is two.
        bandwidth: bytes per second, read and written ones, of a copy.
    """

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class LayerCost:
    """Unavoidable costs of a layer in a forward pass: multiply-adds, and bytes of its input, weights and output."""

    name: str
    macs: int
    input: int
    weight: int
    output: int
    is_first: bool

    def seconds(self, peaks: Peaks) -> dict[str, float]:
        """The layer's floor in "inference" and in a "training" step."""
        forward = self.input + self.weight + self.output
        backward = self.input + 2 * self.weight + self.output + (0 if self.is_first else self.input)
        work = {"inference": (1, forward), "training": (2 if self.is_first else 3, forward + backward)}
        return {
            mode: max(2 * self.macs * times / peaks.flops, moved / peaks.bandwidth)
            for mode, (times, moved) in work.items()
        }


def layer_costs(model_name: str, batch_size: int, image_size: int, dtype: torch.dtype) -> list[LayerCost]:
    """The layers of a model of `kaconv.list_models()` that move or compute something, in the order they run."""
    costs: list[LayerCost] = []

    def count(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kernel = module.get_parameter("weight")
            macs = output.numel() * kernel[0].numel()
            weight = kernel.numel() * kernel.itemsize
            read, written = (maps.numel() * dtype.itemsize for maps in (inputs[0], output))
            costs.append(LayerCost(name, macs, read, weight, written, is_first=inputs[0] is x))

        return hook

    with torch.device("meta"):
        model = create_model(model_name)
        x = torch.empty(batch_size, 3, image_size, image_size)
    for name, module in model.named_modules():
        # A KAConv2d is the convolution of its weight; its generator's linear layers come on top.
        if isinstance(module, nn.Conv2d | nn.Linear | KAConv2d):
            module.register_forward_hook(count(name))
    with evaluating(model), torch.no_grad(), use_backend("reference"):
        model(x)
    return costs


def floor_seconds(costs: Iterable[LayerCost], peaks: Peaks) -> dict[str, float]:
    """The sum of the layers' floors, in "inference" and in a "training" step."""
    floors = [cost.seconds(peaks) for cost in costs]
    return {mode: sum(floor[mode] for floor in floors) for mode in ("inference", "training")}


def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """The best of some matrix products and convolutions, and of some copies; takes about a second."""
    size, samples, copied = (8192, 256, 2**30) if device.type == "cuda" else (1024, 4, 2**27)
    a = torch.randn(size, size, device=device, dtype=dtype)
    product = torch.empty_like(a)
    x = torch.randn(samples, 128, 28, 28, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with _convolutions_precision(device), torch.inference_mode():
        of_product = 2 * size**3 / _best_seconds(lambda: torch.mm(a, a, out=product), device)
        of_convolution = 2 * x.numel() * weight[0].numel() / _best_seconds(lambda: conv2d(x, weight, padding=1), device)
    flops = max(of_product, of_convolution)
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Peaks(flops, 2 * copied / _best_seconds(lambda: target.copy_(source), device))


@contextmanager
def _convolutions_precision(device: torch.device) -> Iterator[None]:
    # On CUDA, float32 convolutions may use TF32 where matrix products do not; the floor is that of convolutions.
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _best_seconds(action: Callable[[], object], device: torch.device) -> float:
    action()
    return min(timed(action, device) for _ in range(REPEATS))


def timed(action: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Seconds that `action` takes, the mean of `times` runs in a row, all work on `device` finished."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(times):
        action()
    synchronise(device)
    return (time.perf_counter() - start) / times


def synchronise(device: torch.device) -> None:
    """Wait for the work on a CUDA device; on the CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
