import numpy as np

from kaviz import plots
from kaviz.figures import figure_data


def rows(base):
    places = [("none", 0)] + [(name, severity) for name in ("noise", "blur") for severity in (1, 5)]
    return [
        {
            "corruption": name,
            "severity": severity,
            "n": 100,
            "top1_error": base + 5.0 * severity,
            "top1_error_interval": (base + 5.0 * severity - 3, base + 5.0 * severity + 4),
        }
        for name, severity in places
    ]


def test_each_corruption_begins_at_the_clean_images_and_models_stand_side_by_side():
    models = {"mobilenetv2_050": rows(40), "ka_mobilenetv2_050_l": rows(50)}
    figure = plots.plot_corruptions(models)
    assert [axes.get_title() for axes in figure.axes] == ["noise", "blur"]
    for axes in figure.axes:
        plain, light = (container.lines[0] for container in axes.containers)
        np.testing.assert_allclose(plain.get_ydata(orig=False), [40, 45, 65])
        np.testing.assert_allclose(light.get_ydata(orig=False), [50, 55, 75])
        assert (light.get_xdata(orig=False) > plain.get_xdata(orig=False)).all()
        np.testing.assert_allclose(plain.get_xdata(orig=False), [0, 1, 5], atol=0.1)
    assert len(figure_data(figure)) == 10
