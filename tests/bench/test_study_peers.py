from pathlib import Path

import pytest
import torch

from kaconv import create_model, register_builder
from kaconv.bench import study_peers
from kaconv.models import registry
from kaconv.models.complexity import complexity
from kaconv.training.study_spec import load_study, study_trainings

PEERS = ("se", "eca", "cbam", "sk", "condconv", "wide_flops", "wide_params")
ROOT = Path(__file__).parents[2]


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


def test_the_study_names_them(monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr(registry, "OWN_BUILDERS", {})
    names = [f"kaconv.bench.study_peers:{name}" for name in PEERS]
    for name in names:
        register_builder(name)
    path = ROOT / "reports/studies/cifar10_peers.yaml"
    spec = load_study(path)
    assert set(names) < set(spec.models)
    assert all(f"--builder {name}" in path.read_text() for name in names)
    assert len(study_trainings(spec, "runs")) == len(spec.models) * len(spec.seeds)
