import inspect
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import kaconv
from kaconv import create_model
from kaconv.bench import study_ablations
from kaconv.layers import KAConv2d
from kaconv.models.complexity import complexity
from kaconv.training.study_spec import study_trainings
from kaconv.utils.yaml_text import load_yaml

ABLATIONS = [
    name
    for name, function in inspect.getmembers(study_ablations, inspect.isfunction)
    if function.__module__ == study_ablations.__name__ and not name.startswith("_")
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_another_network_that_learns(name):
    torch.manual_seed(0)
    model = getattr(study_ablations, name)(num_classes=7)
    x = torch.randn(4, 3, 16, 16)
    with kaconv.use_backend("reference"):
        expected = model(x)
    logits = model(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    usual = complexity(create_model("ka_resnet11_cifar_l", 7), 32).params
    assert name in ("sigmoid", "even_start") or complexity(model, 32).params != usual


def test_stages_and_kernels_are_those_that_the_names_say():
    layers = {name: _kaconvs(getattr(study_ablations, name)()) for name in ("first_stage", "last_stage", "kernel_5")}
    assert list(layers["first_stage"]) == ["layer1.0.conv2"]
    assert list(layers["last_stage"]) == ["layer3.0.conv2"]
    assert [layer.kernel_size for layer in layers["kernel_5"].values()] == [(5, 5)] * 3
    assert not _kaconvs(study_ablations.plain_kernel_5())


def test_an_even_start_is_one():
    model = study_ablations.even_start().train()
    with kaconv.AttentionCapture(model) as capture:
        model(torch.randn(2, 3, 32, 32))
    record = capture.record()
    for layer in record.layers:
        torch.testing.assert_close(torch.as_tensor(record.mean(layer)), torch.full(record.mean(layer).shape, 1 / 9))
        assert record.deviation(layer).max() < 1e-6


def test_sigmoids_start_even_and_do_not_compete():
    generator = study_ablations.SigmoidGenerator(4, 9, 8).eval()
    torch.nn.init.zeros_(generator.excite.weight)
    torch.nn.init.zeros_(generator.excite.bias)
    torch.testing.assert_close(generator(torch.randn(2, 9, 4)), torch.full((2, 9, 4), 1 / 9))
    with torch.no_grad():
        generator.excite.bias.view(9, 4)[0] = 50  # the first position's logits
    attention = generator(torch.randn(2, 9, 4))
    torch.testing.assert_close(attention[:, 0], torch.full((2, 4), 2 / 9))
    torch.testing.assert_close(attention[:, 1:], torch.full((2, 8, 4), 1 / 9))
    generator.train().uniform_share = 1.0
    torch.testing.assert_close(generator(torch.randn(2, 9, 4)), torch.full((2, 9, 4), 1 / 9))


def test_a_shared_norm_has_the_statistics_of_all_positions():
    z = torch.randn(2, 9, 4, 5, 5, dtype=torch.float64) * 3 + 1
    out = study_ablations.SharedNorm(4).double()(z.flatten(1, 2)).view_as(z)
    expected = F.batch_norm(z.transpose(1, 2).flatten(2), None, None, training=True).view(2, 4, 9, 5, 5)
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_the_study_names_them(study_with_builders):
    names = [f"kaconv.bench.study_ablations:{name}" for name in ABLATIONS]
    spec = study_with_builders("cifar10_ablations", names)
    assert set(spec.models) == {*names, "ka_resnet11_cifar_l", "ka_resnet11_cifar_h"}
    assert len(study_trainings(spec, "runs")) == (len(spec.models) + 2) * len(spec.seeds)
    peers = load_yaml((ROOT / "reports/studies/cifar10_peers.yaml").read_text())
    assert (spec.recipe, spec.data) == (peers["recipe"], peers["data"])


def _kaconvs(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, KAConv2d)}
