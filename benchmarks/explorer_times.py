"""Measures how long the attention explorer takes from an input to the frame that shows what has changed.

    .venv/bin/python benchmarks/explorer_times.py --out benchmarks/results/explorer/cpu.json

The explorer stands in a page, as a colleague opens it: 64 pictures, A and B, an attribution over both, the use of the
positions, two pinned channels. Chromium draws on the processor. Mouse and keyboard are moved from outside, as a user
moves them; a time runs from the input event's own time stamp to the second animation frame after it, before which the
first has been painted. It holds up to a frame (17 ms) of waiting that nobody sees, and is never too short.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
from playwright.sync_api import Page

from kaconv.utils.files import write_json
from kaconv.utils.provenance import provenance
from kaviz import export_explorer

sys.path += [str(Path(__file__).parents[1] / "tests" / room) for room in ("ui", "explorer")]
from lab import running_browser
from records import photographs, record_of

MODELS = ("ka_resnet50_l", "ka_mobilenetv2_100_l")
IMAGES = 64
CHANGES = 40  # of each kind
VIEWPORT = {"width": 1200, "height": 900}
_LISTEN = """() => {
    window.times = [];
    const measure = ({timeStamp}) => requestAnimationFrame(() => requestAnimationFrame(
        () => times.push(performance.now() - timeStamp)));
    for (const kind of ['click', 'input', 'keydown', 'pointermove']) {
        addEventListener(kind, event => kind === window.kind && measure(event), {capture: true});
    }
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    rows = []
    with running_browser() as browser, tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            page = browser.new_page(viewport=VIEWPORT, offline=True)
            page.goto(_export(model, Path(folder)))
            page.locator(".kaviz-explorer[data-ready]").wait_for()
            page.evaluate(_LISTEN)
            for change, times in _measure(page):
                median, late = np.percentile(times, [50, 95])
                rows.append({"model": model, "change": change, "times_ms": times, "median_ms": median, "p95_ms": late})
                print(f"{model:22} {change:24} median {median:4.0f} ms, 95 % within {late:4.0f} ms", flush=True)
            page.close()
        about = {"browser": f"Chromium {browser.version}", "images": IMAGES, "viewport": VIEWPORT}
    write_json(arguments.out, {"rows": rows, **about, "provenance": provenance()})


def _export(model: str, folder: Path) -> str:
    """The address of a page with one of everything."""
    record, random = record_of(model, IMAGES), np.random.default_rng(1)
    path = export_explorer(
        record,
        folder / f"{model}.html",
        images=photographs(IMAGES),
        probabilities=random.dirichlet(np.ones(10), IMAGES),
        attributions={"Grad-CAM": random.normal(size=(IMAGES, 64, 64))},
        positions={"integrated gradients": {name: maps.mean(-1) for name, maps in record.attention.items()}},
        title=model,
    )
    first, *_, last = record.attention
    return f"file://{path}#explorer?b=5&method=Grad-CAM&pins={first}:1%20{last}:2"


def _measure(page: Page) -> Iterator[tuple[str, list[float]]]:
    """Kinds of change, and the milliseconds that each change took."""
    pictures, layers = page.locator(".kv-frame"), page.locator(".kv-layer")
    grid, panel = page.locator(".kv-grids canvas").first, page.locator(".kv-panels td")

    def times(kind: str, act: Callable[[int], object]) -> list[float]:
        """`act` makes one event of this kind."""
        page.evaluate("kind => { window.kind = kind; window.times = []; }", kind)
        for turn in range(CHANGES):
            act(turn)
            page.wait_for_function("count => times.length >= count", arg=turn + 1)
        return page.evaluate("times")

    def choose(name: str) -> Callable[[int], object]:
        select = page.get_by_label(name, exact=True)
        values = [option.get_attribute("value") for option in select.locator("option:enabled").all()]
        following = cycle(values[1:] + values[:1])
        return lambda turn: select.select_option(next(following))

    def over(turn: int) -> dict[str, float]:
        """A place among the maps, none twice in a row."""
        box = grid.bounding_box()
        return {"x": (37 * turn + 5) % box["width"], "y": (23 * turn + 5) % box["height"]}

    yield "picture A", times("click", lambda turn: pictures.nth((7 * turn + 3) % IMAGES).click())
    yield "picture B", times("click", lambda turn: pictures.nth((5 * turn + 1) % IMAGES).click(modifiers=["Shift"]))
    yield "layer", times("click", lambda turn: layers.nth((7 * turn + 3) % layers.count()).click())
    layers.last.click()
    yield "colours", times("input", choose("Colours fit"))
    yield "sorting", times("input", choose("Sorted by"))
    pages = [page.get_by_label(name) for name in ("Next channels", "Previous channels")]
    yield "page of channels", times("click", lambda turn: pages[turn % 2].click())
    yield "channel, pointer", times("pointermove", lambda turn: grid.hover(position=over(turn)))
    grid.focus()
    yield "channel, key", times("keydown", lambda turn: page.keyboard.press(["ArrowRight", "ArrowDown"][turn % 2]))
    yield "channel, pinned", times("click", lambda turn: grid.click(position=over(0)))
    yield "attribution's sign", times("input", choose("Sign"))
    yield "position", times("pointermove", lambda turn: panel.nth(turn % 9).hover())


if __name__ == "__main__":
    main()
