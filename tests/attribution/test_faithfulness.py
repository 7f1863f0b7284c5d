import builtins

import numpy as np
import pytest
import torch
from torch import nn

from kaviz.attribution import (
    MEASURES,
    attribute,
    faithfulness_table,
    infidelities,
    method_agreement,
    perturbation_curve,
    randomisation_similarity,
    road,
    sensitivities,
)


class Linear(nn.Module):
    """Logits that are linear in the pixels; its weights are the gradients."""

    def __init__(self, seed=0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 3, 6, 6))
        self.reset_parameters(seed)

    def reset_parameters(self, seed=99):
        nn.init.normal_(self.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, x):
        return torch.einsum("nchw,kchw->nk", x, self.weight)


class Net(nn.Module):
    """A linear model below another module, as Quantus wants modules that can be drawn again."""

    def __init__(self):
        super().__init__()
        self.linear = Linear()

    def forward(self, x):
        return self.linear(x)


@pytest.fixture
def images():
    return torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_perturbation_curves_of_a_linear_model(images):
    model, fractions = Linear(), [0, 0.25, 0.5, 1]
    attributions = attribute(model, images, 1, "input_x_gradient")
    deletion = perturbation_curve(model, images, 1, attributions, fractions)
    insertion = perturbation_curve(model, images, 1, attributions, fractions, insertion=True)
    with torch.no_grad():
        whole, empty = model(images).softmax(1)[:, 1], torch.full((3,), 0.25)
    torch.testing.assert_close(deletion[:, 0], whole)
    torch.testing.assert_close(deletion[:, -1], empty)
    torch.testing.assert_close(insertion[:, 0], empty)
    torch.testing.assert_close(insertion[:, -1], whole)
    # Half of the pixels, by hand.
    contributions = attributions.sum(1).flatten(1)
    for image, contribution, probability in zip(images, contributions, deletion[:, 2], strict=True):
        rest = image.flatten(1).clone()
        rest[:, contribution.topk(18).indices] = 0
        expected = model(rest.view(1, 3, 6, 6)).softmax(1)[0, 1]
        torch.testing.assert_close(probability, expected.detach())


def test_perturbation_curve_refuses_what_does_not_fit(images):
    with pytest.raises(ValueError, match="must have the inputs' shape"):
        perturbation_curve(Linear(), images, 0, images[:, :1], [0.5])
    with pytest.raises(ValueError, match=r"\[0, 1\], got \[1.5\]"):
        perturbation_curve(Linear(), images, 0, images, [1.5])


@pytest.mark.parametrize("channels", [1, 3])
def test_deletion_agrees_with_quantus(channels):
    """Probabilities within 1e-6, at every number of pixels that are away."""
    quantus = pytest.importorskip("quantus")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    x, maps = torch.randn(5, channels, 6, 6), torch.randn(5, 1, 6, 6)
    ours = perturbation_curve(model, x, 2, maps.expand_as(x), [number / 36 for number in range(1, 37)])
    metric = quantus.PixelFlipping(
        features_in_step=channels, perturb_baseline=0.0, normalise=False, disable_warnings=True
    )
    # Quantus ranks values: a pixel's channels go together if they differ a little less than pixels do.
    ranked = maps.double().numpy() + 1e-9 * np.arange(channels)[None, :, None, None]
    theirs = metric(model, x.numpy(), np.full(5, 2), ranked, device="cpu", channel_first=True)
    np.testing.assert_allclose(ours.numpy(), np.array(theirs), atol=1e-6)


def test_infidelity_of_the_gradients_of_a_linear_model_is_0(images):
    gradients = Linear().weight.detach()[1].expand_as(images)
    right = infidelities(Linear(), images, 1, gradients)
    wrong = infidelities(Linear(), images, 1, gradients.flip(-1))
    assert right.max() < 1e-6 < 1e-2 < wrong.min()


def test_sensitivity_of_a_linear_model(images):
    """Saliency does not change with the image; input × gradient changes by weight × noise."""
    model, radius = Linear(), 0.02
    assert sensitivities(model, images, (1, 0), "saliency", radius=radius).max() == 0
    found = sensitivities(model, images, 1, "input_x_gradient", radius=radius)
    weight = model.weight.detach()[1]
    bound = radius * weight.norm() / (weight * images).flatten(1).norm(dim=1)
    assert (found > 0.3 * bound).all()
    assert (found < bound).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_road_leaves_a_class_sooner_where_the_order_is_right(channels):
    pytest.importorskip("quantus")

    class Bright(nn.Module):
        """Whether the upper left quarter is bright."""

        def forward(self, x):
            value = x[:, :, :4, :4].mean((1, 2, 3)) - 0.5
            return torch.stack([-value, value], 1)

    images = torch.zeros(2, channels, 8, 8)
    images[:, :, :4, :4] = 1
    right = images + 0.01 * torch.rand(images.shape)
    kept = road(Bright(), images, 1, right, [10, 30, 60])
    assert kept.tolist() == [[True, False, False]] * 2
    assert road(Bright(), images, 1, -right, [10, 30, 60]).all()  # negative everywhere, as Grad-CAM's maps can be
    assert road(Bright(), images, 1, torch.ones_like(images), [60]).shape == (2, 1)  # a map of one value, too


def test_randomised_weights_are_found_out(images):
    pytest.importorskip("quantus")
    model = Net()
    before = model.linear.weight.clone()
    found = randomisation_similarity(model, images, torch.tensor([0, 1, 2]), "saliency")
    assert found.shape == (3,)
    assert np.abs(found).max() < 0.6  # 36 pixels
    again = Linear(seed=99)
    expected = method_agreement(
        {
            "own": attribute(model, images, 1, "saliency").sum(1).numpy(),
            "random": attribute(again, images, 1, "saliency").sum(1).numpy(),
        }
    )
    at_1 = randomisation_similarity(model, images, 1, "saliency")
    np.testing.assert_allclose(at_1.mean(), expected["mean"][0], atol=1e-6)
    assert torch.equal(model.linear.weight, before)


def test_agreement_names_the_two_that_agree_and_has_them_first():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 3, 6, 6))
    found = method_agreement({"one": one, "other": other, "cube of other": other**3, "minus one": -one})
    assert found["mean"].is_monotonic_decreasing
    first, *_, last = zip(found["method"], found["other"], found["mean"], strict=True)
    assert first == ("other", "cube of other", pytest.approx(1))
    assert last == ("one", "minus one", pytest.approx(-1))


def test_maps_that_are_negative_everywhere_can_be_compared_with_randomised_ones(images):
    pytest.importorskip("quantus")
    model = Net()
    with torch.no_grad():
        model.linear.weight[1] = -images[0]
    found = randomisation_similarity(model, images[:1], 1, "input_x_gradient")
    expected = method_agreement(
        {
            "own": -(images[:1] ** 2).sum(1).numpy(),
            "random": attribute(Linear(seed=99), images[:1], 1, "input_x_gradient").sum(1).numpy(),
        }
    )
    np.testing.assert_allclose(found, expected["mean"], atol=1e-6)


def test_a_table_has_a_mean_and_an_interval_for_each_measure(images):
    pytest.importorskip("quantus")
    methods = ["saliency", "input_x_gradient"]
    table = faithfulness_table({"plain": Net(), "L": Net()}, images, methods)
    assert set(table.columns) == {"model", "method", "measure", "mean", "low", "high", "images"}
    assert len(table) == 2 * (len(methods) * len(MEASURES) + 3)
    assert (table.low <= table["mean"]).all()
    assert (table["mean"] <= table.high).all()
    assert table[table.model == "plain"]["mean"].tolist() == table[table.model == "L"]["mean"].tolist()
    with pytest.raises(ValueError, match="unknown measure 'beauty'; choose from deletion"):
        faithfulness_table({"plain": Net()}, images, methods, ["beauty"])


def test_agreement_of_methods():
    maps = np.random.default_rng(0).normal(size=(4, 5, 5))
    table = method_agreement({"a": maps, "b": 3 * maps + 1, "c": -maps})
    assert table["mean"].round(6).tolist() == [1, -1, -1]
    assert list(zip(table.method, table.other, strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_without_quantus_one_sentence(monkeypatch, images):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "quantus":
            raise ModuleNotFoundError("No module named 'quantus'", name="quantus")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r"needs quantus, .* pip install 'kaconv\[metrics\]'"):
        road(Net(), images, 1, images)
