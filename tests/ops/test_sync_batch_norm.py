import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing import spawn

from kaconv import KAConv2d, use_backend
from kaconv.ops import native
from kaconv.ops.sync_batch_norm import synchronise_batch_norm

SAMPLES, STEPS = 7, 3


def make():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), KAConv2d(8, 8, 3, groups=2), KAConv2d(8, 8, 3, groups=8)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def train(model, x, target):
    """The summed losses of a few steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(STEPS):
        loss = (model(x) - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def data():
    generator = torch.Generator().manual_seed(1)
    options = {"generator": generator, "dtype": torch.float64}
    return torch.randn(SAMPLES, 3, 9, 9, **options), torch.randn(SAMPLES, 8, **options)


def one_of_two(rank, backend, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(synchronise_batch_norm(make()))
    mine = [slice(0, 4), slice(4, SAMPLES)][rank]
    x, target = (part[mine] for part in data())
    for parameter in model.parameters():  # DistributedDataParallel takes the mean of the gradients, we want their sum
        parameter.register_hook(lambda gradient: gradient * 2)
    with use_backend(backend):
        losses = train(model, x, target)
    torch.save({"losses": losses, "state": model.module.state_dict()}, f"{folder}/{rank}.pt")
    distributed.barrier()  # a process that is gone makes the other abort
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_two_processes_train_as_one(backend, tmp_path):
    """With parts of unequal size; the state is that of an ordinary model, key by key."""
    if backend == "fused" and native.library() is None:
        pytest.skip("there is no C++ compiler for the fused backend")
    spawn(one_of_two, (backend, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    model = make()
    with use_backend(backend):
        losses = train(model, *data())
    together = [a + b for a, b in zip(first["losses"], second["losses"], strict=True)]
    assert together == pytest.approx(losses, rel=1e-10)
    assert list(first["state"]) == list(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(first["state"][name], value, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(second["state"][name], value, rtol=1e-9, atol=1e-10)


def test_alone_it_is_an_ordinary_batch_norm():
    model, synchronised = make(), synchronise_batch_norm(make())
    x, target = data()
    assert train(synchronised, x, target) == train(model, x, target)
    with torch.no_grad():
        torch.testing.assert_close(synchronised.eval()(x), model.eval()(x), rtol=0, atol=0)
