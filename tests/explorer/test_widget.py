"""The explorer as a browser drives it: `_handle_custom_msg` is what one sends."""

import gc
import io
import threading

import numpy as np
import pytest
import torch
from ipywidgets.widgets.widget import _instances
from PIL import Image
from records import packs_in

from kaconv import create_model
from kaconv.data.preprocessing import Preprocessing
from kaviz import AttentionExplorer
from kaviz.explorer.gallery import INTERVENTIONS
from kaviz.explorer.views import unpack

CLASSES = ["cat", "dog", "<b>cow</b>", "hen"]
LABELS = [0, 1, 2, 3] * 3
PREPROCESSING = Preprocessing(16, 16, "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
RUN = {"ask": "intervene", "kind": "uniform", "layers": "*", "position": 4, "donor": -1}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("ka_resnet11_cifar_l", num_classes=4)


@pytest.fixture(scope="module")
def images():
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def explorer(model, images):
    explorer = AttentionExplorer(model, images, labels=LABELS, classes=CLASSES, preprocessing=PREPROCESSING)
    explorer.sent = []
    explorer.send = explorer.sent.append
    yield explorer
    explorer.wait()
    explorer.close()


def ask(explorer, message, *buffers):
    """What a browser asks for, and the last that it is told."""
    explorer._handle_custom_msg(message, [memoryview(content) for content in buffers])
    explorer.wait()
    return explorer.sent[-1]


def extras(explorer):
    return [unpack(content) for content in explorer.extra_data]


def png(*size, mode="RGB", color="red"):
    data = io.BytesIO()
    Image.new(mode, size, color).save(data, "PNG")
    return data.getvalue()


def test_all_that_the_browser_needs_is_there_at_once(explorer, model, images):
    header, arrays = unpack(explorer.view_data)
    assert header["classes"] == CLASSES
    assert header["labels"] == LABELS
    assert header["title"] == type(model).__name__
    with torch.no_grad():
        expected = model.eval()(images).softmax(1)
    np.testing.assert_allclose(arrays["probabilities"], expected, atol=1e-5)
    own = explorer.gallery.own().record.attention["layer2.0.conv2"]
    np.testing.assert_allclose(arrays["attention/layer2.0.conv2"], own, atol=2e-4)
    assert set(explorer.abilities["interventions"]) == set(INTERVENTIONS) - {"none"}


@pytest.mark.parametrize("kind", [kind for kind in INTERVENTIONS if kind != "none"])
def test_every_intervention_can_be_asked_for(explorer, kind):
    said = ask(explorer, RUN | {"kind": kind, "donor": 3})
    assert said["say"] == "done"
    ((header, arrays),) = extras(explorer)
    assert said["show"] == {"outcome": header["name"]}
    which = {"position": 4 if kind == "one position removed" else None, "donor": 3 if "B" in kind else None}
    expected = explorer.gallery.under(kind, **which).probabilities
    np.testing.assert_allclose(arrays["probabilities"], expected, atol=1e-6)
    assert f"of {len(LABELS)} predictions change" in said["text"]
    assert any(message["say"] == "progress" for message in explorer.sent)


def test_an_intervention_in_one_layer_has_its_own_name(explorer):
    said = ask(explorer, RUN | {"kind": "one position removed", "layers": "layer2.0.conv2", "position": 0})
    assert said["show"] == {"outcome": "top left removed in layer2.0.conv2"}


def test_the_last_four_interventions_are_kept(explorer):
    layers = ["*", *explorer.gallery.layers, "layer1.*"]
    for pattern in layers:
        explorer.intervene("uniform", pattern)
    assert [header["name"] for header, _ in extras(explorer)] == [f"uniform in {pattern}" for pattern in layers[1:]]


def test_an_attribution_is_computed_for_all_images(explorer):
    said = ask(explorer, {"ask": "attribute", "method": "saliency"})
    ((header, arrays),) = extras(explorer)
    assert said["show"] == {"method": header["method"]} == {"method": "Saliency"}
    assert arrays["percent"].shape == (12, 16, 16)
    assert (arrays["scale"] > 0).all()


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (RUN | {"kind": "attention of B"}, "choose one"),
        (RUN | {"layers": "gone"}, "no KAConv2d layer matches"),
        (RUN | {"kind": "one position removed", "position": 9}, "from 0 to 8"),
        ({"ask": "attribute", "method": "magic"}, "magic"),
        ({"ask": "the impossible"}, "impossible"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line(explorer, message, says, capsys):
    said = ask(explorer, message)
    assert said["say"] == "error"
    assert says in said["text"]
    assert explorer.extra_data == []
    assert "Traceback" not in "".join(capsys.readouterr())


def test_several_images_are_uploaded_at_once_and_wrong_ones_are_named(explorer):
    explorer.intervene("uniform")
    names = ["<i>red</i>.png", "bad.png", "again.png"]
    said = ask(explorer, {"ask": "upload", "names": names}, png(40, 30), b"hello", png(40, 30))
    assert said["text"].splitlines() == [
        "2 images uploaded.",
        "cannot read the image bad.png: it is in no known format",
    ]
    header, arrays = unpack(explorer.view_data)
    assert header["names"][11:] == ["image 11", "<i>red</i>.png", "again.png"]
    assert header["labels"][12:] == [-1, -1]
    assert len(arrays["probabilities"]) == 14
    assert explorer.extra_data == []  # the means have changed


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
def test_a_wrong_upload_gives_a_line_of_text(explorer, content, says):
    before = explorer.view_data
    said = ask(explorer, {"ask": "upload", "names": ["bad.png"]}, content)
    assert said["say"] == "error"
    assert says in said["text"]
    assert "bad.png" in said["text"]
    assert "\n" not in said["text"]
    assert explorer.view_data is before


def test_without_preprocessing_nothing_can_be_uploaded(model, images):
    explorer = AttentionExplorer(model, images)
    assert not explorer.abilities["uploads"]
    with pytest.raises(ValueError, match="preprocessed"):
        explorer.upload([("a.png", png(4, 4))])
    explorer.close()


def test_work_is_cancelled_and_meanwhile_nothing_else_begins(explorer, model):
    at_work, go_on = threading.Event(), threading.Event()

    def wait(module, inputs):
        at_work.set()
        assert go_on.wait(60)

    handle = model.register_forward_pre_hook(wait)
    try:
        explorer._handle_custom_msg({"ask": "attribute", "method": "saliency"}, [])
        assert at_work.wait(60)  # this thread, the kernel's, is free
        explorer._handle_custom_msg(RUN, [])
        assert "at work" in explorer.sent[-1]["text"]
        explorer._handle_custom_msg({"ask": "cancel"}, [])
        go_on.set()
        explorer.wait()
    finally:
        handle.remove()
        go_on.set()
    assert "Cancelled" in explorer.sent[-1]["text"]
    assert explorer.extra_data == []
    assert ask(explorer, RUN)["say"] == "done"


def test_the_page_holds_what_is_seen(explorer, tmp_path):
    explorer.intervene("uniform")
    explorer.state = {"b": 3}
    page = explorer.export(tmp_path / "view.html").read_text(encoding="utf-8")
    assert [pack["kind"] for pack in packs_in(page)] == ["view", "outcome"]
    assert 'data-state="{&quot;b&quot;: 3}"' in page


def test_the_model_is_left_as_it_was(model, images):
    model.train()
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    explorer = AttentionExplorer(model, images)
    explorer.intervene("uniform")
    explorer.attribute("grad_cam")
    assert model.training
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    explorer.close()


def test_closing_leaves_nothing(model, images):
    before = dict(_instances)
    explorer = AttentionExplorer(model, images, labels=LABELS, preprocessing=PREPROCESSING)
    ask_for = {"ask": "upload", "names": ["a.png"]}
    explorer._handle_custom_msg(ask_for, [memoryview(png(10, 10))])
    explorer.wait()
    assert len(_instances) > len(before)
    explorer.close()
    explorer.close()
    assert dict(_instances) == before


def test_bad_arguments_are_refused_at_once_and_leave_no_widget(model, images):
    before = dict(_instances)
    for wrong, message in [
        ({"images": images[:, :1]}, "N, 3, H, W"),
        ({"images": images, "labels": [0, 1]}, "12 images, but 2 labels"),
        ({"images": images, "labels": [9] * 12}, "from 0 to 3"),
        ({"images": images, "ids": ["a"]}, "but 1 ids"),
        ({"images": images, "classes": ["a"]}, "4 classes"),
        ({"images": images[..., :8, :8], "preprocessing": PREPROCESSING}, "16 x 16"),
        ({"images": images, "attributions": {"m": np.ones(3)}}, "finite maps"),
    ]:
        with pytest.raises(ValueError, match=message):
            AttentionExplorer(model, **wrong)
    with pytest.raises(ValueError, match="no KAConv2d layer"):
        AttentionExplorer(torch.nn.Linear(2, 2), images)
    assert dict(_instances) == before


def test_nothing_leaks_in_many_requests(explorer):
    def work(times):
        for turn in range(times):
            explorer.intervene("uniform", ["*", "layer1.*"][turn % 2])
            explorer.state = {"a": turn % 12}
        explorer.sent.clear()
        gc.collect()
        return len(gc.get_objects())

    work(4)
    before, widgets = work(4), len(_instances)
    assert work(40) - before < 100
    assert len(_instances) == widgets
    assert threading.active_count() < 20
