import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from kaviz.figures import attach_data, figure_data, save_figure
from kaviz.style import canvas


@pytest.fixture
def figure():
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([1, 2], [3, 4])
    axes.set_title("Größe × 2")
    return figure


@pytest.fixture
def frame():
    return pd.DataFrame({"layer": ["a", "b"], "value": [0.25, 1 / 3]})


def test_data_goes_with_its_figure(figure, frame):
    assert attach_data(figure, frame) is figure
    assert figure_data(figure) is frame
    part = figure.add_gridspec(1, 2)[0]
    part = attach_data(figure.add_subfigure(part), frame[:1])
    assert len(figure_data(part)) == 1
    assert len(figure_data(figure)) == 2


def test_a_figure_without_data_says_so(figure):
    with pytest.raises(ValueError, match="no data"):
        figure_data(figure)


def test_a_figure_is_saved_in_three_formats_with_its_data(figure, frame, tmp_path):
    files = save_figure(attach_data(figure, frame), tmp_path / "new" / "layer3.0")  # the dot is no suffix
    assert [file.name for file in files] == ["layer3.0.png", "layer3.0.svg", "layer3.0.pdf", "layer3.0.csv"]
    assert sorted(tmp_path.rglob("*.*")) == sorted(files)
    with Image.open(files[0]) as image:
        assert image.width > 300
    assert "Größe × 2" in files[1].read_text(encoding="utf-8")  # text stays text
    assert files[2].read_bytes().startswith(b"%PDF")
    pd.testing.assert_frame_equal(pd.read_csv(files[3]), frame)


def test_some_formats_only_and_no_data(figure, tmp_path):
    assert save_figure(figure, tmp_path / "x", formats=["svg"]) == [tmp_path / "x.svg"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.svg"]


def test_the_same_figure_gives_the_same_files(figure, frame, tmp_path):
    attach_data(figure, frame)
    first = [file.read_bytes() for file in save_figure(figure, tmp_path / "one" / "x")]
    second = [file.read_bytes() for file in save_figure(figure, tmp_path / "two" / "x")]
    assert first == second


def test_an_unknown_format_is_refused_before_anything_is_written(figure, tmp_path):
    with pytest.raises(ValueError, match=r"'gif'.*png, svg, pdf"):
        save_figure(figure, tmp_path / "x", formats=["png", "gif"])
    assert not list(tmp_path.iterdir())


def test_a_figure_that_cannot_be_drawn_leaves_the_old_file(figure, tmp_path):
    (path,) = save_figure(figure, tmp_path / "x", formats=["png"])
    before = path.read_bytes()
    figure.axes[0].set_title("$\\nonsense$")
    with pytest.raises(ValueError, match=re.escape("\\nonsense")):
        save_figure(figure, tmp_path / "x", formats=["png"])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_a_canvas_is_a_new_figure_or_the_place_of_the_given_axes():
    figure = canvas(None, (4, 3))
    assert isinstance(figure, Figure)
    assert figure.get_size_inches().tolist() == [4, 3]
    parent = Figure(layout="constrained")
    grid = parent.subplots(2, 2)
    part = canvas(grid[1, 1], (4, 3))
    part.subplots()
    assert isinstance(part, SubFigure)
    assert part.figure is parent
    assert grid[1, 1] not in parent.axes
    assert all(axes in parent.axes for axes in grid.flat[:3])
    parent.draw_without_rendering()
    centre = (part.bbox.x0 + part.bbox.x1) / 2, (part.bbox.y0 + part.bbox.y1) / 2
    np.testing.assert_allclose(centre, (0.75 * parent.bbox.width, 0.25 * parent.bbox.height), rtol=0.1)


def test_axes_outside_of_a_grid_are_refused_and_left_alone():
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    with pytest.raises(ValueError, match="grid"):
        canvas(axes, (4, 3))
    assert axes in figure.axes
