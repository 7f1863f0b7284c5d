"""The explorer as a browser drives it: `set_state` is what one sends."""

import gc
import io

import ipywidgets as W
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from ipywidgets.widgets.widget import _instances
from matplotlib.figure import Figure
from PIL import Image

from kaconv import create_model
from kaconv.data.preprocessing import Preprocessing
from kaviz import AttentionExplorer

CLASSES = ["cat", "dog", "<b>cow</b>", "hen"]
LABELS = [0, 1, 2, 3] * 3
PREPROCESSING = Preprocessing(16, 16, "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("ka_resnet11_cifar_l", num_classes=4)


@pytest.fixture(scope="module")
def images():
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def explorer(model, images, tmp_path):
    options = {"labels": LABELS, "classes": CLASSES, "preprocessing": PREPROCESSING, "save_to": tmp_path / "saved"}
    explorer = AttentionExplorer(model, images, **options)
    yield explorer
    explorer.close()


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    assert not plt.get_fignums()


def choose(control, **state):
    """What a browser sends when a choice is made."""
    control.set_state(state)


def upload(explorer, content, name="a.png"):
    file = {"name": name, "type": "image/png", "size": len(content), "last_modified": 0, "content": memoryview(content)}
    choose(explorer.upload, value=[file])


def png(*size, mode="RGB", color="red"):
    data = io.BytesIO()
    Image.new(mode, size, color).save(data, "PNG")
    return data.getvalue()


def pixels(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.picture.value)).convert("RGB"))


def controls(explorer):
    return [widget for widget in leaves(explorer) if not isinstance(widget, (W.HTML, W.Label, W.Image, W.Play))]


def leaves(widget):
    children = getattr(widget, "children", ())
    return [leaf for child in children for leaf in leaves(child)] or [widget]


def test_the_first_picture_is_there_at_once(explorer):
    assert pixels(explorer).shape[1] >= 800
    caption = explorer.caption.value
    for part in ("A is picture 0, a “cat”", "layer1.0.conv2", "mean of all 16 channels", "No intervention", "1/9"):
        assert part in caption
    assert explorer.status.value == ""
    assert explorer.picture_b.label == "none"


CHANGES = [
    ("picture_a", {"index": 5}, {}, "A is picture 5, a “dog”"),
    ("picture_b", {"index": 3}, {}, "B is picture 2, a “&lt;b&gt;cow&lt;/b&gt;”"),
    ("layer", {"index": 2}, {}, "layer3.0.conv2: mean of all 64 channels"),
    ("play", {"value": 1}, {}, "layer2.0.conv2: mean of all 32 channels"),
    ("maps_of", {"index": 1}, {}, "the mean over 3 pictures of the class “cat”"),
    ("channels", {"index": 1}, {}, "channel 0 of 16"),
    ("channels", {"index": 2}, {}, "the 8 of 16 channels that move most"),
    ("channel", {"value": 7}, {"channels": "one channel"}, "channel 7 of 16"),
    ("scale", {"index": 1}, {}, "in all layers"),
    ("intervention", {"index": 1}, {}, "Intervention in all layers: 1/k² at every position"),
    ("intervention", {"index": 2}, {}, "the mean maps of all pictures"),
    ("intervention", {"index": 3}, {"picture_b": 1}, "the maps of B"),
    ("intervention", {"index": 4}, {}, "the maps of another one"),
    ("intervention", {"index": 5}, {}, "“centre” gets nothing"),
    ("where", {"index": 1}, {"intervention": "uniform"}, "Intervention in layer1.0.conv2 only"),
    ("position", {"index": 0}, {"intervention": "one position removed"}, "“top left” gets nothing"),
]


@pytest.mark.parametrize(("name", "state", "before", "says"), CHANGES, ids=lambda value: str(value))
def test_every_control_changes_the_picture_and_the_caption(explorer, name, state, before, says):
    for control, value in before.items():
        getattr(explorer, control).value = value
    picture, caption = pixels(explorer), explorer.caption.value
    choose(getattr(explorer, name), **state)
    assert explorer.status.value == ""
    assert not np.array_equal(pixels(explorer), picture)
    assert explorer.caption.value != caption
    assert says in explorer.caption.value


def test_what_is_drawn_is_what_the_model_computed(explorer):
    explorer.layer.value, explorer.channels.value, explorer.channel.value = "layer2.0.conv2", "one channel", 9
    explorer.picture_a.value = 4
    own = explorer.gallery.own().record.attention["layer2.0.conv2"][4, ..., 9]
    np.testing.assert_array_equal(explorer.shown.panels[0].maps, own[None])


def test_controls_are_labelled_and_only_those_that_apply_are_enabled(explorer):
    labels = [control.description for control in controls(explorer)]
    assert all(labels)
    assert len(set(labels)) == len(labels) == 12
    off = {control.description for control in controls(explorer) if control.disabled}
    assert off == {"Channel", "Intervene in", "Position"}
    explorer.channels.value, explorer.intervention.value = "one channel", "one position removed"
    assert not any(control.disabled for control in controls(explorer))


def test_a_layer_with_fewer_channels_takes_the_last_of_its_own(explorer):
    explorer.layer.value, explorer.channels.value, explorer.channel.value = "layer3.0.conv2", "one channel", 60
    explorer.layer.value = "layer1.0.conv2"
    assert explorer.channel.value == 15
    assert "channel 15 of 16" in explorer.caption.value


def test_playing_goes_on_from_the_layer_that_was_chosen(explorer):
    explorer.layer.value = "layer2.0.conv2"
    assert explorer.play.value == 1
    choose(explorer.play, value=2)
    assert explorer.layer.value == "layer3.0.conv2"


def test_an_intervention_without_what_it_needs_says_so_and_leaves_the_picture(explorer):
    picture, caption = explorer.picture.value, explorer.caption.value
    explorer.intervention.value = "attention of B"
    assert "choose one" in explorer.status.value
    assert (explorer.picture.value, explorer.caption.value) == (picture, caption)
    explorer.picture_b.value = 1
    assert explorer.status.value == ""


def test_an_uploaded_picture_is_shown_and_can_be_chosen(explorer):
    upload(explorer, png(40, 30), "<i>red</i>.png")
    assert explorer.picture_a.value == 12
    assert "A is uploaded: &lt;i&gt;red&lt;/i&gt;.png, taken for" in explorer.caption.value
    np.testing.assert_allclose(explorer.shown.panels[0].picture, np.broadcast_to([1.0, 0, 0], (16, 16, 3)), atol=1e-6)
    assert explorer.upload.value == ()  # nothing is kept, and the same file can come again
    upload(explorer, png(40, 30), "<i>red</i>.png")
    assert len(explorer.picture_a.options) == 14
    explorer.maps_of.value = "its class, mean"
    assert "which the model takes it for" in explorer.caption.value


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "no known format"),
        (b"", "no known format"),
        (png(40, 30)[:-30], "truncated"),
        (png(20_000, 10, mode="L", color=0), "20000 x 10 pixels"),
    ],
    ids=["text", "empty", "truncated", "wide"],
)
def test_a_wrong_upload_gives_a_line_of_text(explorer, content, says, capsys):
    picture, options = explorer.picture.value, explorer.picture_a.options
    upload(explorer, content, "<i>bad</i>.png")
    assert says in explorer.status.value
    assert "&lt;i&gt;bad&lt;/i&gt;.png" in explorer.status.value
    assert "\n" not in explorer.status.value
    assert (explorer.picture.value, explorer.picture_a.options) == (picture, options)
    assert "Traceback" not in "".join(capsys.readouterr())
    explorer.picture_a.value = 1  # all goes on
    assert explorer.status.value == ""


def test_without_preprocessing_nothing_can_be_uploaded(model, images):
    explorer = AttentionExplorer(model, images)
    assert explorer.upload.disabled
    assert explorer.maps_of.disabled
    explorer.close()


def test_the_figure_and_its_data_are_saved(explorer, tmp_path):
    explorer.picture_b.value = 1
    explorer.save.click()
    explorer.save.click()
    kinds = (".csv", ".pdf", ".png", ".svg")
    names = [path.name for path in sorted((tmp_path / "saved").iterdir())]
    assert names == [f"view-{number:03}{kind}" for number in (1, 2) for kind in kinds]
    assert "view-002.png" in explorer.status.value
    data = pd.read_csv(tmp_path / "saved/view-001.csv").query("quantity == 'attention' and panel == 'B'")
    np.testing.assert_allclose(data["value"], explorer.shown.panels[1].maps.ravel(), rtol=1e-5)


def test_what_cannot_be_saved_is_said(explorer, tmp_path):
    (tmp_path / "saved").write_text("a file where the folder should be")
    explorer.save.click()
    assert "saved" in explorer.status.value
    assert 'role="alert"' in explorer.status.value


def test_figures_of_other_settings_leave_the_controls_alone(explorer):
    picture = explorer.picture.value
    figure = explorer.figure(layer="layer2.0.conv2", intervention="uniform")
    assert isinstance(figure, Figure)
    assert explorer.picture.value == picture
    with pytest.raises(ValueError, match="one of"):
        explorer.figure(intervention="none at all")


def test_without_a_kernel_there_is_the_picture_the_caption_and_the_settings(explorer):
    explorer.picture_a.value = 2
    page = explorer._repr_mimebundle_()["text/html"]
    assert page.count("<img") == 1
    assert 'alt="A is picture 2, a “&lt;b&gt;cow&lt;/b&gt;”' in page
    assert "<th>Layer</th><td>layer1.0.conv2</td>" in page
    assert explorer.caption.value in page
    for gone in ("<b>cow", "Position", "Upload", "Save"):  # what does not apply, and what cannot be clicked
        assert gone not in page


def test_the_model_is_left_as_it_was(model, images):
    model.train()
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    explorer = AttentionExplorer(model, images)
    explorer.intervention.value = "uniform"
    assert model.training
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    explorer.close()


def test_closing_leaves_nothing(model, images):
    before = dict(_instances)
    explorer = AttentionExplorer(model, images, labels=LABELS, preprocessing=PREPROCESSING)
    upload(explorer, png(10, 10))
    parts = controls(explorer)
    assert len(_instances) > len(before)
    explorer.close()
    explorer.close()
    assert dict(_instances) == before
    assert not any(observers(part) for part in parts)


def test_bad_arguments_are_refused_at_once_and_leave_no_widget(model, images):
    before = dict(_instances)
    for wrong, message in [
        ({"images": images[:, :1]}, "N, 3, H, W"),
        ({"images": images, "labels": [0, 1]}, "12 images, but 2 labels"),
        ({"images": images, "labels": [9] * 12}, "from 0 to 3"),
        ({"images": images, "ids": ["a"]}, "but 1 ids"),
        ({"images": images, "classes": ["a"]}, "4 classes"),
        ({"images": images[..., :8, :8], "preprocessing": PREPROCESSING}, "16 x 16"),
    ]:
        with pytest.raises(ValueError, match=message):
            AttentionExplorer(model, **wrong)
    with pytest.raises(ValueError, match="no KAConv2d layer"):
        AttentionExplorer(torch.nn.Linear(2, 2), images)
    assert dict(_instances) == before


def observers(widget):
    return sum(len(handlers) for by_type in widget._trait_notifiers.values() for handlers in by_type.values())


def alive(kind):
    gc.collect()
    return sum(type(thing) is kind for thing in gc.get_objects())


def click_about(explorer, times):
    for turn in range(times):
        name, state, _, _ = CHANGES[turn % len(CHANGES)]
        control = getattr(explorer, name)
        if turn // len(CHANGES) % 2:  # and back
            state = dict.fromkeys(state, 0)
        choose(control, **state)


def counts():
    return {"widgets": len(_instances), "observers": sum(map(observers, _instances.values())), "figures": alive(Figure)}


@pytest.mark.slow
def test_nothing_leaks_in_200_changes(explorer):
    click_about(explorer, len(CHANGES))
    before, objects = counts(), len(gc.get_objects())
    click_about(explorer, 200)
    assert counts() == before
    assert len(gc.get_objects()) - objects < 1_000  # of any kind: that is 5 for a change
    assert len(explorer.gallery._kept) <= 2
