"""The explorer in a page of its own, opened from the disk with the network off."""

import csv
import io
import re
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
import torch
from explorer import Explorer
from PIL import Image

from kaconv import create_model
from kaconv.attention.record import AttentionRecord
from kaviz import AttentionExplorer, export_explorer
from kaviz.explorer.export import FRONT
from kaviz.explorer.views import unpack

sys.path.append(str(Path(__file__).parents[1] / "explorer"))
from records import photographs, record_of

pytestmark = pytest.mark.ui
CLASSES = ["cat", "dog", "<b>cow</b>", "hen"]
COUNT = 12


@pytest.fixture(scope="module")
def source():
    """An explorer with one of everything."""
    torch.manual_seed(0)
    model = create_model("ka_resnet11_cifar_l", num_classes=4)
    with torch.no_grad():  # so mild that no map reaches the ends of the widest scale
        for name, parameter in model.named_parameters():
            if "attention_generator" in name:
                parameter.mul_(0.3)
    images = torch.from_numpy(photographs(COUNT, 32)).movedim(-1, 1) / 127.5 - 1
    positions = {
        layer: np.random.default_rng(1).normal(size=(COUNT, 3, 3))
        for layer in ("layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2")
    }
    ids = [f"IMG_{number:04}.jpg" for number in range(COUNT)]
    explorer = AttentionExplorer(
        *(model, images),
        **{"labels": [0, 1, 2, 3] * 3, "classes": CLASSES, "ids": ids, "title": "A trial <i>of all</i>"},
        positions={"integrated gradients": positions, "ablation": positions},
    )
    explorer.intervene("uniform")
    explorer.attribute("grad_cam")
    explorer.attribute("saliency")
    yield explorer
    explorer.close()


@pytest.fixture(scope="module")
def file(source, tmp_path_factory):
    return source.export(tmp_path_factory.mktemp("page") / "view.html")


def extra(source, kind):
    """The first pack of a kind, beside the view."""
    return next(pack for pack in map(unpack, source.extra_data) if pack[0]["kind"] == kind)


@pytest.fixture
def open_page(browser):
    """`open_page(path, width=..., state=...)`: the explorer of a page, which asks for nothing and reports no error."""
    contexts, complaints = [], []

    def open_page(path, width=1200, state="", **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url[:4] == "http" else None)
        page.goto(f"file://{path}{state}")
        return Explorer(page, page.locator("body"))

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def explorer(open_page, file):
    return open_page(file, state="#explorer?b=5&method=Grad-CAM&pins=layer1.0.conv2:3")


def state(explorer):
    explorer.look()  # what is chosen gets into the address once it has been drawn
    return {name: value for name, (value,) in parse_qs(explorer.page.url.partition("?")[2]).items()}


LISTS = [
    ("Class", "dog", {"class": "1"}),
    ("Prediction", "✗ wrong", {"right": "wrong"}),
    ("Attribution", "Saliency", {"method": "Saliency"}),
    ("Sign", "absolute", {"mode": "absolute"}),
    ("Sorted by", "difference of the two", {"sort": "difference"}),
    ("Sorted by", "entropy, sharpest first", {"sort": "entropy"}),
    ("Sorted by", "share of the output", {"sort": "share"}),
    ("Sorted by", "channel number", {"sort": "number"}),
    ("Attention", "uniform in all layers", {"outcome": "uniform in all layers"}),
    ("Position attribution", "ablation", {"positions": "ablation"}),
]
OTHERS = {
    "Colours fit",
    "Name",
    "A click chooses",
    "No B",
    "Opacity",
    "Kernel positions",
    "Previous channels",
    "Next channels",
    "Copy link",
}
NAME = "element => element.ariaLabel || element.labels[0].textContent.trim()"
SAVES = {f"Save as {kind}" for kind in ("PNG", "SVG", "CSV", "npz")}


def test_every_control_has_a_name_and_a_test(explorer):
    names = explorer.names()
    assert all(names)
    grids = {name for name in names if name.startswith("Maps of")}
    pictures = {f"Grad-CAM of {name}" for name in ("A", "B")}
    items = explorer.box.locator(".kv-strip input").all()
    assert len(items) == COUNT + 3
    names = [name.partition(":")[0] for name in names if name not in {item.evaluate(NAME) for item in items}]
    pins = {name for name in names if name.startswith("Unpin")} | {"layer1.0.conv2 · channel 3"}
    assert len(grids) == 3
    assert (
        set(names) - {name.partition(":")[0] for name in grids} - pins - pictures
        == {name for name, *_ in LISTS} | OTHERS | SAVES
    )


@pytest.mark.parametrize(("name", "option", "expected"), LISTS, ids=[f"{name}-{to}" for name, to, _ in LISTS])
def test_a_choice_is_drawn_and_stands_in_the_address(explorer, name, option, expected):
    first = explorer.look()
    then = explorer.choose(name, option)
    assert (then.pixels, then.text) != (first.pixels, first.text)
    assert expected.items() <= state(explorer).items()


def test_colours_fit_one_layer_or_all(explorer):
    changed = []
    for number in range(3):
        explorer.layer(number).click()
        one, every = explorer.choose("Colours fit", "this layer"), explorer.choose("Colours fit", "all layers")
        changed.append(one != every)  # the ends of the scale stand in the text
    assert any(changed)
    assert state(explorer)["scale"] == "all"


def test_images_are_chosen_by_click_shift_click_and_keys(explorer):
    explorer.image(2).click()
    explorer.image(3).click(modifiers=["Shift"])
    assert (state(explorer)["a"], state(explorer)["b"]) == ("2", "3")
    assert "IMG_0003.jpg" in explorer.box.locator(".kv-grids figcaption").nth(1).inner_text()
    explorer.choose("A click chooses", "B")
    explorer.image(7).click()
    assert state(explorer)["b"] == "7"
    explorer.image(2).locator("input").focus()
    for key in ("ArrowRight", "Shift+ArrowLeft"):
        explorer.page.keyboard.press(key)
    assert (state(explorer)["a"], state(explorer)["b"]) == ("3", "6")
    explorer.page.keyboard.press("Delete")
    assert "b" not in state(explorer)
    assert explorer.box.locator(".kv-grids figure:visible").count() == 1
    explorer.image(4).click(modifiers=["Shift"])
    explorer.button("No B").click()
    assert "b" not in state(explorer)


def test_images_are_found_by_name_class_and_mistake(explorer):
    explorer.control("Name").fill("0003")
    assert explorer.box.locator(".kv-frame:visible").count() == 1
    explorer.control("Name").fill("")
    explorer.choose("Class", "hen")
    assert explorer.box.locator(".kv-frame:visible").count() == 3


def test_layers_are_chosen_by_click_and_keys(explorer):
    first = explorer.look()
    explorer.layer(1).click()
    assert state(explorer)["layer"] == "layer2.0.conv2"
    assert explorer.look().pixels != first.pixels
    explorer.layer(1).locator("input").focus()
    explorer.page.keyboard.press("End")
    assert state(explorer)["layer"] == "layer3.0.conv2"


def test_what_is_under_the_pointer_is_the_attention_itself(explorer, source):
    explorer.choose("Sorted by", "channel number")
    box = explorer.grid().bounding_box()
    own = source.gallery.own().record.attention["layer1.0.conv2"]
    explorer.page.mouse.move(box["x"] + 3, box["y"] + 3)
    said = explorer.box.locator("[data-part=readout]").inner_text()
    assert "layer1.0.conv2 · channel 0 · row 1, column 1" in said
    error = float(re.search(r"±([\d.e-]+)", said)[1])
    a, b = (float(re.search(rf"\b{name} ([\d.]+)", said)[1]) for name in "AB")
    np.testing.assert_allclose([a, b], own[[0, 5], 0, 0, 0], atol=error + 5e-5)
    explorer.grid().focus()
    for key in ("ArrowRight", "]"):
        explorer.page.keyboard.press(key)
    said = explorer.box.locator("[data-part=readout]").inner_text()
    assert "channel 1 · row 1, column 2" in said
    assert float(re.search(r"\bA ([\d.]+)", said)[1]) == pytest.approx(own[0, 0, 1, 1], abs=error + 5e-5)
    shares = source.gallery.own().shares["layer1.0.conv2"][0, 1]
    assert float(re.search(r"share ([\d.]+) %", said)[1]) == pytest.approx(100 * shares, abs=0.02)


def test_channels_are_pinned_and_followed(explorer):
    pins = explorer.section("Pinned channels")
    explorer.grid().focus()
    explorer.page.keyboard.press("Enter")
    assert pins.locator("li").count() == 2
    first = pins.locator(".kv-map").first.get_attribute("style")
    explorer.layer(2).click()
    explorer.image(8).click()
    assert pins.locator(".kv-map").first.get_attribute("style") != first
    pins.get_by_role("button", name="layer1.0.conv2 · channel 3", exact=True).click()
    assert state(explorer)["layer"] == "layer1.0.conv2" if "layer" in state(explorer) else True
    for _ in range(2):
        pins.get_by_role("button", name=re.compile("^Unpin")).first.click()
    assert not pins.is_visible()


def test_channels_that_do_not_fit_are_paged(open_page, tmp_path):
    random = np.random.default_rng(0).dirichlet(np.ones(35), (3, 900)).reshape(3, 900, 5, 7).transpose(0, 2, 3, 1)
    record = AttentionRecord({"features.1": random.astype(np.float32)})
    explorer = open_page(export_explorer(record, tmp_path / "view.html"))
    assert "1/35" in explorer.look().text
    first = explorer.look()
    explorer.button("Next channels").click()
    assert explorer.look().pixels != first.pixels
    explorer.button("Previous channels").click()
    assert explorer.look().pixels == first.pixels
    focused = explorer.page.evaluate("document.activeElement.ariaLabel")
    assert focused == "Next channels"  # the button that was pressed is of no use any more


def test_the_attribution_gets_more_or_less_opaque(explorer):
    overlay = explorer.box.locator(".kv-picture canvas").first
    assert overlay.evaluate("canvas => getComputedStyle(canvas).opacity") == "0.7"
    explorer.control("Opacity").focus()
    explorer.page.keyboard.press("Home")
    assert overlay.evaluate("canvas => getComputedStyle(canvas).opacity") == "0"
    assert state(explorer)["opacity"] == "0"


def test_an_intervention_stands_beside_what_was_before(explorer, source):
    explorer.choose("Attention", "uniform in all layers")
    explorer.button("No B").click()
    captions = explorer.box.locator(".kv-grids figcaption:visible").all_inner_texts()
    assert [caption.partition(":")[0] for caption in captions] == ["A", "A before", "A − A before"]
    own, now = (one.probabilities[0] for one in (source.gallery.own(), source.gallery.under("uniform")))
    shown = explorer.box.locator(".kv-bars").first.inner_text()
    best = int(now.argmax())
    assert f"{now[best]:.2f} (before {own[best]:.2f})" in shown


def test_an_address_opens_the_same_view(explorer, open_page, file):
    explorer.layer(2).click()
    explorer.image(6).click()
    explorer.choose("Sorted by", "difference of the two")
    first = explorer.look()
    again = open_page(file, state="#" + explorer.page.url.partition("#")[2])
    assert again.look().pixels == first.pixels


def test_an_address_that_makes_no_sense_opens_a_view(open_page, file):
    explorer = open_page(file, state="#explorer?a=999&b=x&layer=gone&sort=no&pins=a:b%20layer1.0.conv2:99&page=-3")
    assert "IMG_0011.jpg" in explorer.look().text


def download(explorer, kind):
    with explorer.page.expect_download() as waiting:
        explorer.button(f"Save as {kind}").click()
    return Path(waiting.value.path()).read_bytes(), waiting.value.suggested_filename


def test_the_view_is_saved_as_an_image(explorer):
    content, name = download(explorer, "PNG")
    assert name == "layer1.0.conv2-IMG_0000.jpg-IMG_0005.jpg.png"
    image = Image.open(io.BytesIO(content))
    assert min(image.size) > 800
    assert len(np.unique(np.asarray(image.convert("L")))) > 50
    svg, _ = download(explorer, "SVG")
    assert svg.count(b"<rect") > 3 * 16 * 9
    assert b"&lt;i&gt;of all" in svg


def test_the_numbers_are_saved(explorer, source):
    own = source.gallery.own()
    content, _ = download(explorer, "npz")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        expected = own.record.attention["layer1.0.conv2"]
        np.testing.assert_allclose(arrays["attention_a"], expected[0], atol=1.3e-4)
        np.testing.assert_allclose(arrays["difference"], expected[0] - expected[5], atol=2.5e-4)
        np.testing.assert_allclose(arrays["probability_b"], own.probabilities[5], atol=1e-6)
        _, maps = extra(source, "attribution")
        expected = (maps["percent"][0] - 100.0) / 100 * maps["scale"][0]
        np.testing.assert_allclose(arrays["attribution_a"], expected, rtol=1e-5)
        order = np.argsort(-own.record.input_dependence("layer1.0.conv2"), kind="stable")
        np.testing.assert_array_equal(arrays["channel_order"], order)
    content, _ = download(explorer, "CSV")
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    counts = Counter(row["quantity"] for row in rows)
    assert counts["attention"] == 2 * 16 * 9
    assert counts["probability"] == 2 * 4
    assert counts["contribution"] == 2 * 9
    assert counts["attribution"] == 2 * maps["percent"][0].size
    value = next(r for r in rows if (r["of"], r["channel"], r["row"], r["column"]) == ("B", "7", "2", "1"))["value"]
    assert float(value) == pytest.approx(own.record.attention["layer1.0.conv2"][5, 2, 1, 7], abs=1.3e-4)
    assert {row["image"] for row in rows} == {"IMG_0000.jpg", "IMG_0005.jpg"}


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen(open_page, file, width, scheme, tmp_path):
    explorer = open_page(file, width, "#explorer?b=5&pins=layer1.0.conv2:3", color_scheme=scheme)
    assert explorer.page.evaluate("document.documentElement.scrollWidth") <= width
    paper = explorer.box.evaluate("element => getComputedStyle(element).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 24, 28)")
    explorer.page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)


def test_the_values_of_an_attribution_are_read(explorer, source):
    readout = explorer.box.locator("[data-part=pixelReadout]")
    overlay = explorer.box.locator(".kv-picture canvas").first
    percent = extra(source, "attribution")[1]["percent"][[0, 5]].astype(int) - 100
    rows, columns = percent.shape[1:]
    size = overlay.bounding_box()
    overlay.hover(position={"x": size["width"] - 2, "y": size["height"] / 2 + 1})
    row = rows // 2
    assert f"row {row + 1}, column {columns} of {rows} × {columns}" in readout.inner_text()
    for image, name in enumerate("AB"):
        assert f"{name} {percent[image, row, -1]:+d} %".replace("+0", "0").replace("-", "−") in readout.inner_text()
    overlay.focus()
    explorer.page.keyboard.press("ArrowDown")
    assert f"row {row + 2}, column {columns}" in readout.inner_text()


def test_the_values_of_a_kernel_position_are_read(explorer, source):
    readout = explorer.box.locator("[data-part=positionReadout]")
    explorer.box.locator(".kv-panels td").nth(5).hover()
    header, arrays = extra(source, "positions")
    value = arrays["values/layer1.0.conv2"][0].flat[5]
    assert "row 2, column 3" in readout.inner_text()
    assert f"{header['method']} {value:+.6g}".replace("-", "−") in readout.inner_text()
    explorer.section("Attention and use of the kernel positions").locator(".kv-panels").focus()
    explorer.page.keyboard.press("]")
    assert "row 3, column 1" in readout.inner_text()


def test_it_is_printed_on_white_without_its_controls(open_page, file, tmp_path):
    explorer = open_page(file, 794, "#explorer?b=5&method=Grad-CAM&pins=layer1.0.conv2:3", color_scheme="dark")
    explorer.page.emulate_media(media="print", color_scheme="dark")
    assert [name for name in explorer.names() if name in {name for name, *_ in LISTS} | OTHERS | SAVES] == [
        "Kernel positions"
    ]
    look = explorer.box.evaluate(
        "box => [getComputedStyle(box).backgroundColor, getComputedStyle(box).printColorAdjust]"
    )
    assert look == ["rgb(255, 255, 255)", "exact"]  # else tables of colours come out empty
    assert explorer.page.evaluate("document.documentElement.scrollWidth") <= 794
    assert explorer.box.locator(".kv-frame").last.bounding_box()["x"] < 794  # the strips go on below, not to the right
    explorer.page.pdf(path=tmp_path / "view.pdf")


def test_nothing_moves_by_itself(explorer):
    """So there is nothing to be reduced for who prefers reduced motion."""
    explorer.image(2).click()
    assert explorer.page.evaluate("document.getAnimations({subtree: true}).length") == 0


def test_only_the_one_module_may_run(open_page, file, tmp_path):
    text = file.read_text(encoding="utf-8")
    assert text.count("script-src 'sha256-") == 1
    assert "unsafe" not in text.partition("</head>")[0].partition("Policy")[2].partition(">")[0]
    wrong = tmp_path / "wrong.html"
    wrong.write_text(text.replace("<main>", "<main><script>document.title = 'taken over'</script>"), encoding="utf-8")
    context = open_page(file).page.context
    page = context.new_page()
    page.goto(f"file://{wrong}")
    assert page.title() != "taken over"


def test_each_file_of_the_front_end_is_a_module_by_itself(browser):
    """What is delivered is one module, joined from them."""
    page = browser.new_page()
    page.route("http://front/*", lambda route: route.fulfill(path=FRONT / route.request.url.rpartition("/")[2]))
    page.goto("http://front/explorer.html")
    for file in FRONT.glob("*.js"):
        assert page.evaluate("file => import(`./${file}`).then(Object.keys)", file.name), file.name
    page.close()


@pytest.mark.parametrize(("model", "layers"), [("ka_resnet50_l", 16), ("ka_mobilenetv2_100_l", 17)])
def test_a_model_of_full_size_is_shown(open_page, tmp_path, model, layers):
    """How quickly it changes: benchmarks/explorer_times.py."""
    path = export_explorer(record_of(model, 64), tmp_path / "view.html", images=photographs(64), title=model)
    explorer = open_page(path, state="#explorer?b=5")
    assert explorer.box.locator(".kv-layer").count() == layers
    assert explorer.box.locator(".kv-frame").count() == 64


def test_layers_of_an_own_model_are_told_apart(open_page, tmp_path):
    """Names are shortened where all of them stay different."""
    for layers, shown in (
        (("layer1.0.conv2", "layer2.0.conv2"), ["layer1.0", "layer2.0"]),
        (("down.0.0", "down.0.3"), ["down.0.0", "down.0.3"]),
    ):
        record = AttentionRecord({layer: np.full((1, 3, 3, 4), 1 / 9, np.float32) for layer in layers})
        page = export_explorer(record, tmp_path / "view.html", images=photographs(1, 32))
        assert open_page(page).box.locator(".kv-layer .kv-name").all_text_contents() == shown
