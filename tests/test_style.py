import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kaviz.style import finish_grid, fit, legend_columns, place_legend, signed


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [(-1.5, "+g", "−1.5"), (2, "+g", "+2"), (0, "+g", "0"), (-0.001, ".2f", "0.00"), (-0.4, "+.1f", "−0.4")],
)
def test_signed_numbers_have_a_true_minus_and_zero_no_sign(value, form, text):
    assert signed(value, form) == text


def test_names_are_broken_where_they_can_be_and_keep_their_ends():
    assert fit("cat", 2) == "cat"
    assert fit("golden retriever", 0.8) == "golden\nretriever"
    lines = fit("IMG_20240512_183214.jpg", 0.8).split("\n")
    assert "".join(lines) == "IMG_20240512_183214.jpg"
    assert len(lines) > 1
    long = fit("abcdefgh" * 20 + "_end.jpg", 0.8, lines=2)
    assert long.count("\n") == 1
    assert long.split("\n")[1].startswith("…")
    assert long.endswith("_end.jpg")
    assert fit("French_horn_players", 0.8, lines=1).startswith("French_")


def test_a_dollar_in_a_name_is_no_formula():
    assert fit("a$b$", 2) == r"a\$b\$"


def test_a_legend_takes_as_many_columns_as_there_is_room_for():
    assert legend_columns(["a", "b", "c"], 8, "small") == 3
    assert legend_columns(["a very long label " * 4] * 3, 8, "small") == 1


@pytest.mark.parametrize("inches", [6, 6.5, 7, 7.5, 8])
def test_a_legend_in_columns_of_unequal_height_stays_within_its_figure(inches):
    # Five entries in four columns: matplotlib lays them 2, 1, 1, 1.
    labels = ["features.1.conv.1.module", "features.17.conv.1.module", "untrained, mean over layers (up to 20.8)"]
    handles = [Line2D([], [], label=label) for label in [*labels, "another of its class", "another picture"]]
    figure = Figure(figsize=(inches, 2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    place_legend(figure, handles, "outside lower center")
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_the_letters_of_a_screen_fit_into_the_place_of_a_name():
    text = "another picture of its class"
    figure = Figure(dpi=110)
    FigureCanvasAgg(figure)
    inches = figure.text(0, 0, text, fontsize="small").get_window_extent().width / 110
    assert fit(text, inches - 0.01).count("\n") == 1


def test_an_unfinished_row_of_panels_leaves_no_column_without_its_axis():
    figure = Figure()
    grid = figure.subplots(3, 2, sharex=True)
    finish_grid(grid, 3, "seconds")
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "seconds", "seconds"]
    assert [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes] == [False, True, True]
