"""Batch norm statistics over all processes of a training, on a CPU, too, where PyTorch's own form takes none."""

from typing import Any

from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncBatchNorm(_BatchNorm):
    """As `torch.nn.SyncBatchNorm`, in operators that every device has."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm expects an input (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and has_other_processes()):
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        # Two rounds: the variance round the common mean loses no digits, where a mean of squares would.
        count = input.new_tensor([input.numel() / input.shape[1]])
        distributed.all_reduce(count)
        mean = _SumOfProcesses.apply(input.sum(axes)) / count
        centred = input - _along_channels(mean, input)
        var = _SumOfProcesses.apply(centred.square().sum(axes)) / count
        if moved := moving_statistics(self):
            move_statistics(moved, self.momentum, mean.detach(), (var * count / (count - 1)).detach())
        normalised = centred * _along_channels((var + self.eps).rsqrt(), input)
        if self.affine:
            normalised = normalised * _along_channels(self.weight, input) + _along_channels(self.bias, input)
        return normalised


SYNCHRONISED = (nn.SyncBatchNorm, CPUSyncBatchNorm)


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """The model, with the statistics of its batch norms taken over all processes. Its state keeps its keys."""
    if next(model.parameters()).device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, _BatchNorm):
                setattr(parent, name, _for_cpu(module))
    return model


def moving_statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor, Tensor] | None:
    """Mean and variance, (C,), and number of batches, if a batch norm moves them with each batch."""
    if not (norm.training and norm.track_running_stats):
        return None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    return norm.running_mean, norm.running_var, norm.num_batches_tracked


def move_statistics(
    moved: tuple[Tensor, Tensor, Tensor], momentum: float | None, mean: Tensor, unbiased_var: Tensor
) -> None:
    """Move `moving_statistics` towards a batch's, as a batch norm's own forward pass in training does."""
    running_mean, running_var, batches = moved
    batches.add_(1)
    weight = momentum if momentum is not None else 1 / batches.item()
    for running, value in ((running_mean, mean), (running_var, unbiased_var)):
        # .data, because F.batch_norm's update is no new version either: a graph of an earlier pass may hold the buffer.
        running.data.lerp_(value.to(running.dtype), weight)


def has_other_processes() -> bool:
    """True in one of several processes that train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class _SumOfProcesses(Function):
    """The sum of every process's tensor, in each of them; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    total = values.clone()
    distributed.all_reduce(total)
    return total


def _for_cpu(norm: _BatchNorm) -> CPUSyncBatchNorm:
    other = CPUSyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    other.train(norm.training)
    for name in (*norm._parameters, *norm._buffers):
        setattr(other, name, getattr(norm, name))
    return other


def _along_channels(values: Tensor, input: Tensor) -> Tensor:
    return values.view(-1, *[1] * (input.ndim - 2))
