import pytest
import torch

from kaconv import create_model
from kaconv.bench import study_peers
from kaconv.models.complexity import complexity
from kaconv.training.study_spec import study_trainings

PEERS = ("se", "eca", "cbam", "sk", "condconv", "wide_flops", "wide_params")


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_the_plain_network_with_something_more(name):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    model, plain = getattr(study_peers, name)(num_classes=7), create_model("resnet11_cifar", 7)
    logits = model(torch.randn(2, 3, 16, 16))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert complexity(model, 32).params != complexity(plain, 32).params


def test_the_wide_ones_are_as_costly_as_kaconv():
    kaconv, plain = (complexity(create_model(name, 10), 32) for name in ("ka_resnet11_cifar_l", "resnet11_cifar"))
    costly, large = complexity(study_peers.wide_flops(), 32), complexity(study_peers.wide_params(), 32)
    assert plain.paper_flops < kaconv.paper_flops <= costly.paper_flops < 1.05 * kaconv.paper_flops
    assert plain.params < 0.95 * kaconv.params < large.params < 1.05 * kaconv.params


def test_the_study_names_them(study_with_builders):
    pytest.importorskip("timm")
    names = [f"kaconv.bench.study_peers:{name}" for name in PEERS]
    spec = study_with_builders("cifar10_peers", names)
    assert set(names) < set(spec.models)
    assert len(study_trainings(spec, "runs")) == len(spec.models) * len(spec.seeds)
