import numpy as np
import pytest
from matplotlib.figure import Figure

from kaviz.plots import plot_cost_and_benefit, plot_learning_curves, plot_test_errors
from kaviz.style import VARIANT_COLORS

MODELS = {"plain": "resnet11_cifar", "L": "ka_resnet11_cifar_l", "H": "ka_resnet11_cifar_h"}


def curves(seeds=(0, 1)):
    return [
        {"model": model, "seed": seed, "epoch": epoch, "train_loss": (seed + 1) / epoch, "test_error": 4.0 * seed}
        for model in MODELS.values()
        for seed in seeds
        for epoch in (1, 2, 3)
    ]


def summary(seeds=2):
    return [
        {
            "model": model,
            "test_errors": [1.0, 3.0][:seeds],
            "test_error": 2.0 if seeds == 2 else 1.0,
            "seed_interval": (0.5, 3.5) if seeds == 2 else None,
            "picture_interval": (1.2, 3.1),
            "test_pictures": 599,
        }
        for model in MODELS.values()
    ]


def comparison(interval=(0.5, 1.5)):
    return [
        {
            "model": MODELS[variant],
            "difference": 1.0,
            "difference_interval": interval,
            "params_ratio": ratio,
            "paper_flops_ratio": 1.1,
            "train_seconds_ratio": 2.0,
        }
        for variant, ratio in (("L", 1.5), ("H", 3.0))
    ]


pytestmark = pytest.mark.usefixtures("no_open_figures")


def drawn(figure):
    figure.draw_without_rendering()
    return figure


def test_learning_curves_draw_every_seed_and_the_mean():
    figure = drawn(plot_learning_curves(curves()))
    assert isinstance(figure, Figure)
    loss, _ = figure.axes
    light = [line for line in loss.lines if line.get_color() == VARIANT_COLORS["L"]]
    assert len(light) == 3
    np.testing.assert_allclose(light[0].get_ydata(), [1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(light[-1].get_ydata(), [1.5, 0.75, 0.5])
    assert loss.get_yscale() == "log"


def test_an_error_of_zero_is_still_drawn():
    _, error = drawn(plot_learning_curves(curves())).axes
    assert all((np.asarray(line.get_ydata()) > 0).all() for line in error.lines)
    drawn(plot_learning_curves([row | {"test_error": 0.0} for row in curves()]))


def test_a_single_seed_has_one_line():
    loss, _ = drawn(plot_learning_curves(curves(seeds=(0,)))).axes
    assert len(loss.lines) == len(MODELS)


def test_test_errors_show_seeds_and_both_intervals():
    figure = drawn(plot_test_errors(summary()))
    axes = figure.axes[0]
    data = [list(line.get_xdata()) for line in axes.lines]
    assert data[:4] == [[1.2, 3.1], [0.5, 3.5], [1.0, 3.0], [2.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "KAConv-L", "KAConv-H"]
    legend = " ".join(text.get_text() for text in axes.get_legend().get_texts())
    assert "over 2 seeds" in legend
    assert "599 test images (Wilson)" in legend


def test_a_single_seed_has_no_interval_over_seeds():
    axes = drawn(plot_test_errors(summary(seeds=1))).axes[0]
    assert "Student" not in " ".join(text.get_text() for text in axes.get_legend().get_texts())


def test_test_errors_draw_into_given_axes():
    axes = Figure().subplots()
    assert plot_test_errors(summary(), ax=axes) is axes.figure


def test_models_of_one_variant_keep_their_names():
    rows = summary()[:2]
    rows[0]["model"] = "ka_resnet20_cifar_l"
    axes = drawn(plot_test_errors(rows)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ka_resnet20_cifar_l", MODELS["L"]]


@pytest.mark.parametrize("interval", [(0.5, 1.5), None])
def test_cost_and_benefit_share_the_benefit_axis(interval):
    figure = drawn(plot_cost_and_benefit(comparison(interval)))
    assert len(figure.axes) == 3
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    for axes, ratio in zip(figure.axes, (1.5, 1.1, 2.0), strict=True):
        places = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
        assert ([1], [0]) in places
        assert ([ratio], [1.0]) in places
        assert (([ratio] * 2, [0.5, 1.5]) in places) == (interval is not None)
