import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text

from kaconv.attention.effects import ALL_LAYERS, OTHER_CLASS, SAME_CLASS, attention_correlations, pool_effects
from kaviz.figures import figure_data
from kaviz.plots import plot_attention_and_cost, plot_effects, plot_removals, plot_transplants
from kaviz.style import VARIANT_COLORS

MODELS = ["ka_resnet11_cifar_l", "ka_resnet11_cifar_h"]
LAYERS = ["layer1.0.conv2", "layer2.0.conv2", ALL_LAYERS]


def effect_row(model, seed, layer, intervention):
    error = 2.0 * seed + 10 * (intervention == OTHER_CLASS) + LAYERS.index(layer)
    row = {"model": model, "seed": seed, "layer": layer, "intervention": intervention}
    for measure, value in {"error_change": error, "log_probability_change": -error, "changed": error}.items():
        row |= {measure: value, f"{measure}_interval": (value - 1, value + 1)}
    if intervention == OTHER_CLASS:
        row |= {"donors_class": error, "donors_class_interval": (error - 1, error + 1)}
    return row


def effects(seeds=(0, 1, 2), models=MODELS, layers=LAYERS):
    interventions = ("uniform", SAME_CLASS, OTHER_CLASS)
    return pool_effects(
        [
            effect_row(m, seed, layer, name)
            for m in models
            for seed in seeds
            for layer in layers
            for name in interventions
        ]
    )


def removals(seeds=(0,), models=MODELS, size=3):
    generator = np.random.default_rng(0)
    return [
        {"model": model, "seed": seed, "layer": layer, "row": row, "column": column}
        | {"attention": generator.uniform(0.05, 0.2), "log_probability_change": -generator.uniform(0, 0.7)}
        for model in models
        for seed in seeds
        for layer in LAYERS[:2]
        for row in range(size)
        for column in range(size)
    ]


def drawers():
    rows = removals((0, 1))
    return {
        "effects": lambda ax=None: plot_effects(effects(), ax),
        "transplants": lambda ax=None: plot_transplants(effects(), ax),
        "removals": lambda ax=None: plot_removals(removals(), ax),
        "cost": lambda ax=None: plot_attention_and_cost(rows, attention_correlations(rows), ax),
    }


pytestmark = pytest.mark.usefixtures("no_open_figures")


def drawn(figure):
    figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize("name", drawers())
def test_each_is_a_figure_of_its_own_or_takes_a_place(name):
    draw = drawers()[name]
    figure = drawn(draw())
    assert isinstance(figure, Figure)
    assert len(figure_data(figure))
    whole = Figure(figsize=(16, 8), layout="constrained")
    part = draw(whole.subplots(1, 2)[1])
    assert isinstance(part, SubFigure)
    assert figure_data(part).equals(figure_data(figure))
    drawn(whole)


def test_effects_have_a_panel_for_each_layer_on_one_axis_with_zero():
    figure = drawn(plot_effects(effects()))
    assert [axes.get_title("left") or axes.get_title() for axes in figure.axes] == LAYERS
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert all(any(np.allclose(line.get_xdata(), 0) for line in axes.lines) for axes in figure.axes)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["uniform", SAME_CLASS, OTHER_CLASS]


def test_the_numbers_of_effects_go_with_the_figure():
    data = figure_data(plot_effects(effects()))
    own = data[(data.model == MODELS[0]) & (data.layer == LAYERS[0]) & (data.intervention == "uniform")]
    assert own.value.tolist() == [2, 0, 2, 4]
    assert own.seed.isna().tolist() == [True, False, False, False]
    assert (own.low[own.seed == 2].item(), own.high[own.seed == 2].item()) == (3, 5)


def test_a_network_that_has_not_changed_beyond_chance_is_hollow():
    figure = drawn(plot_effects(effects()))
    color = VARIANT_COLORS["L"]
    marks = [
        line
        for line in figure.axes[0].lines
        if line.get_marker() == "s" and line.get_color() == color and round(line.get_ydata()[0]) == 0
    ]
    fills = {line.get_xdata()[0]: to_hex(line.get_markerfacecolor()).upper() for line in marks}
    assert fills == {0: "#FFFFFF", 2: color, 4: color}


def test_many_layers_are_rows_of_a_panel_for_each_intervention():
    rows = effects()
    many = [row | {"layer": f"layer{place}"} for place in range(9) for row in rows if row["layer"] == LAYERS[0]]
    figure = drawn(plot_effects(many))
    assert [axes.get_title("left") or axes.get_title() for axes in figure.axes] == ["uniform", SAME_CLASS, OTHER_CLASS]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [f"layer{place}" for place in range(9)]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


@pytest.mark.parametrize("draw", [plot_effects, plot_transplants])
def test_decisions_that_turn_are_not_called_errors(draw):
    figure = drawn(draw(effects(), measure="changed"))
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert any("Decisions that turn" in text for text in texts)
    assert any("% of the decisions" in text for text in texts)
    assert not any("error" in text for text in texts)
    assert "changed" in set(figure_data(figure)["quantity"])


def test_another_measure_is_drawn_with_its_own_numbers():
    data = figure_data(plot_effects(effects(), measure="log_probability_change"))
    own = data[(data.model == MODELS[0]) & (data.layer == LAYERS[0]) & (data.intervention == "uniform")]
    assert own.value.tolist() == [-2, 0, -2, -4]
    with pytest.raises(ValueError, match="no measure 'loss' to draw; there are error_change, changed, log_prob"):
        plot_effects(effects(), measure="loss")


def test_one_seed_is_said_to_have_an_interval_over_pictures():
    texts = [text.get_text() for text in drawn(plot_effects(effects(seeds=(0,)))).legends[0].get_texts()]
    assert any("over images" in text for text in texts)
    assert not any("seeds" in text for text in texts)


def test_transplants_are_drawn_from_the_same_class_to_the_other():
    left, right = drawn(plot_transplants(effects(seeds=(1,), models=MODELS[:1]))).axes
    lines = [line.get_ydata() for line in left.lines if len(line.get_xdata()) == 2 and line.get_alpha() == 0.5]
    np.testing.assert_allclose(lines, [[2, 12], [3, 13], [4, 14]])
    marks = [line.get_ydata()[0] for line in right.lines if line.get_marker() == "s"]
    assert marks == [12, 13, 14]


def test_transplants_need_both_donors():
    rows = [row for row in effects() if row["intervention"] != SAME_CLASS]
    with pytest.raises(ValueError, match="from the same class"):
        plot_transplants(rows)


@pytest.mark.parametrize("models", [MODELS, MODELS[:1]])
def test_removals_share_their_scales(models):
    rows = removals(models=models)
    figure = drawn(plot_removals(rows))
    images = [axes.images[0] for axes in figure.axes if axes.images]
    for name in ("RdBu_r", "cividis"):
        own = [image for image in images if image.get_cmap().name == name]
        assert len(own) == 2 * len(models)
        assert len({image.get_clim() for image in own}) == 1
    shown = next(image for image in images if image.get_cmap().name == "cividis").get_array()
    expected = [100 * (1 - np.exp(row["log_probability_change"])) for row in rows[:9]]
    np.testing.assert_allclose(np.ravel(shown), expected)
    np.testing.assert_allclose(figure_data(figure)["cost (%)"][:9], expected)


def test_removals_that_cost_nothing_are_drawn_too():
    drawn(plot_removals([row | {"log_probability_change": 0.0} for row in removals()]))
    drawn(plot_removals([row | {"log_probability_change": 0.01} for row in removals(size=2)]))


def test_many_layers_of_one_model_stand_side_by_side():
    rows = [row | {"layer": f"layer{place}"} for place in range(9) for row in removals(models=MODELS[:1])[:9]]
    figure = drawn(plot_removals(rows))
    names = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel().startswith("layer")]
    assert names == [f"layer{place}" for place in range(9)]
    maps = [axes.get_subplotspec() for axes in figure.axes if axes.images]
    assert [place.rowspan.start for place in maps] == np.repeat([0, 1, 2], 6).tolist()


def test_models_may_differ_in_their_layers():
    rows = [row for row in removals() if (row["model"], row["layer"]) != (MODELS[0], LAYERS[1])]
    figure = drawn(plot_removals(rows))
    assert sum(bool(axes.images) for axes in figure.axes) == 6
    rows = [row | {"seed": 0} for row in rows]
    drawn(plot_attention_and_cost(rows, attention_correlations(rows)))


def test_removals_are_of_one_network_of_each_model():
    with pytest.raises(ValueError, match="one seed"):
        plot_removals(removals((0, 1)))


def test_attention_is_drawn_against_the_cost_with_the_correlation():
    rows = removals((0, 1))
    first, *_ = drawn(plot_attention_and_cost(rows, attention_correlations(rows))).axes
    light = next(line for line in first.lines if line.get_marker() == "s")
    own = [row for row in rows if row["model"] == MODELS[0] and row["layer"] == LAYERS[0]]
    np.testing.assert_allclose(light.get_xdata(), [100 * row["attention"] for row in own])
    assert len(light.get_ydata()) == 18
    assert any(np.allclose(line.get_xdata(), 100 / 9) for line in first.lines)
    assert "L: ρ = " in first.get_title("left") + first.get_title()
