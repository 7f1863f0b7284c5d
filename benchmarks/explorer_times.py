"""Measures how long the attention explorer takes from an input to the frame that shows what has changed.

    .venv/bin/python benchmarks/explorer_times.py --out benchmarks/results/explorer/cpu.json

The explorer stands in JupyterLab, and then in the page that it writes there, as a colleague opens it: 64 pictures, A
and B, an attribution over both, the use of the positions, two pinned channels. Chromium draws on the processor. Mouse
and keyboard are moved from outside, as a user moves them; a time runs from the input event's own time stamp to the
second animation frame after it, before which the first has been painted. It holds up to a frame (17 ms) of waiting that
nobody sees, and is never too short.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import cycle
from pathlib import Path

import nbformat
import numpy as np
import torch
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, Page

from kaconv import create_model
from kaconv.attention.hooks import kaconv_layers
from kaconv.utils.files import write_json
from kaconv.utils.provenance import provenance
from kaviz import AttentionExplorer

sys.path += [str(Path(__file__).parents[1] / "tests" / room) for room in ("ui", "explorer")]
from lab import NotebookPage, running_browser, running_lab
from records import photographs

MODELS = ("ka_resnet50_l", "ka_mobilenetv2_100_l")
IMAGES = 64
CHANGES = 40  # of each kind
VIEWPORT = {"width": 1200, "height": 900}
_CELL = """
import sys
sys.path.append({folder!r})
from explorer_times import explorer_of
explorer = explorer_of({model!r})
explorer.export("{model}.html")
explorer
"""
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
        for home, model, page in _opened(browser, Path(folder)):
            for change, times in _measure(page):
                median, late = np.percentile(times, [50, 95])
                about = {"home": home, "model": model, "change": change}
                rows.append({**about, "times_ms": times, "median_ms": median, "p95_ms": late})
                print(
                    f"{home:10} {model:22} {change:18} median {median:4.0f} ms, 95 % within {late:4.0f} ms", flush=True
                )
        about = {"browser": f"Chromium {browser.version}", "jupyterlab": version("jupyterlab")}
    write_json(
        arguments.out, {"rows": rows, **about, "images": IMAGES, "viewport": VIEWPORT, "provenance": provenance()}
    )


def explorer_of(name: str) -> AttentionExplorer:
    """An explorer with one of everything, of an untrained model."""
    model, random = create_model(name), np.random.default_rng(1)
    positions = {
        layer: random.normal(size=(IMAGES, *module.kernel_size)) for layer, module in kaconv_layers(model).items()
    }
    explorer = AttentionExplorer(
        model,
        torch.from_numpy(photographs(IMAGES)).movedim(-1, 1) / 127.5 - 1,
        labels=random.integers(0, 1000, IMAGES),
        attributions={"Grad-CAM": random.normal(size=(IMAGES, 64, 64))},
        positions={"integrated gradients": positions},
        title=name,
    )
    first, *_, last = positions
    explorer.state = {"b": 5, "method": "Grad-CAM", "pins": f"{first}:1 {last}:2"}
    return explorer


def _opened(browser: Browser, folder: Path) -> Iterator[tuple[str, str, Page]]:
    """Home, model, and the browser's page that shows an explorer."""
    with running_lab(folder, folder / "server") as lab:
        for model in MODELS:
            cell = new_code_cell(_CELL.format(folder=str(Path(__file__).parent), model=model).strip())
            metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
            nbformat.write(new_notebook(cells=[cell], metadata=metadata), folder / f"{model}.ipynb")
            notebook = NotebookPage(browser.new_page(viewport=VIEWPORT), lab, f"{model}.ipynb")
            notebook.open()
            notebook.page.evaluate("jupyterapp.shell.collapseLeft()")
            notebook.run_all()
            yield "JupyterLab", model, notebook.page
            notebook.page.close()
            lab.end_kernels()
            page = browser.new_page(viewport=VIEWPORT, offline=True)
            page.goto(f"file://{folder / model}.html")
            yield "page", model, page
            page.close()


def _measure(page: Page) -> Iterator[tuple[str, list[float]]]:
    """Kinds of change, and the milliseconds that each change took."""
    explorer = page.locator(".kaviz-explorer[data-ready]")
    explorer.wait_for()
    pictures, layers = explorer.locator(".kv-frame"), explorer.locator(".kv-layer")
    grid, panel = explorer.locator(".kv-grids canvas").first, explorer.locator(".kv-panels td")
    page.evaluate(_LISTEN)

    def times(kind: str, act: Callable[[int], object]) -> list[float]:
        """`act` makes one event of this kind."""
        page.evaluate("kind => { window.kind = kind; window.times = []; }", kind)
        for turn in range(CHANGES):
            act(turn)
            page.wait_for_function("count => times.length >= count", arg=turn + 1)
        return page.evaluate("times")

    def choose(name: str) -> Callable[[int], object]:
        select = explorer.get_by_label(name, exact=True)
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
    pages = [explorer.get_by_label(name) for name in ("Next channels", "Previous channels")]
    yield "page of channels", times("click", lambda turn: pages[turn % 2].click())
    yield "channel, pointer", times("pointermove", lambda turn: grid.hover(position=over(turn)))
    grid.focus()
    yield "channel, key", times("keydown", lambda turn: page.keyboard.press(["ArrowRight", "ArrowDown"][turn % 2]))
    yield "channel, pinned", times("click", lambda turn: grid.click(position=over(0)))
    yield "attribution's sign", times("input", choose("Sign"))
    yield "position", times("pointermove", lambda turn: panel.nth(turn % 9).hover())


if __name__ == "__main__":
    main()
