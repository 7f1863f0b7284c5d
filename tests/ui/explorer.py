"""The attention explorer as a user has it: labelled controls, a picture, a caption, a line for what goes wrong."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab import NotebookPage
from playwright.sync_api import Locator

_CONTROLS = "select, input:not([type=file]), button"
# Labels tell most controls apart; buttons have a text or, where there is only a symbol, a title around them.
_NAMES = """controls => controls.map(control =>
    (control.labels?.[0]?.textContent || control.textContent || control.closest('[title]')?.title || '').trim())"""
_PIXELS = """async image => {
    try { await image.decode(); } catch { return null; }  // it is just being replaced
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext('2d').drawImage(image, 0, 0);
    return canvas.toDataURL();
}"""
_IS_IDLE = "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"


@dataclass(frozen=True)
class Look:
    """What there is to see."""

    pixels: str | None = field(repr=False)  # None: there is no picture at this moment
    caption: str
    status: str


class Explorer:
    """The explorer in a notebook whose cells have run."""

    def __init__(self, notebook: NotebookPage) -> None:
        self.notebook, self.page = notebook, notebook.page
        output = notebook.panel.locator(".jp-OutputArea-output > .jupyter-widgets")
        self.box = output.filter(has=notebook.page.locator("img.widget-image"))
        self.picture = self.box.locator("img.widget-image")
        self.picture.wait_for()
        # Without a listener of its own, the page starts to report choosers when one is expected: often too late.
        self.page.on("filechooser", lambda chooser: None)

    def names(self, which: str = "") -> list[str]:
        """Of all controls that the CSS selector holds for, in their order; a player's buttons share one."""
        selector = ", ".join(f"{control}{which}" for control in _CONTROLS.split(", "))
        names = self.box.locator(selector).evaluate_all(_NAMES)
        return list(dict.fromkeys(re.sub(r" \(\d+\)$", "", name) for name in names))  # "Upload (0)": files so far

    def control(self, name: str) -> Locator:
        """A list or a field."""
        return self.box.get_by_label(name, exact=True)

    def button(self, name: str) -> Locator:
        return self.box.get_by_role("button", name=name)

    def options(self, name: str) -> list[str]:
        return [text.replace("\xa0", " ") for text in self.control(name).locator("option").all_inner_texts()]

    def choose(self, name: str, option: str) -> Look:
        """Choose from a list, and look."""
        if self.control(name).input_value() == option:
            return self.look()
        return self.after(lambda: self.control(name).select_option(option))

    def upload(self, name: str, content: bytes) -> Look:
        """Give it a file, and look."""
        file = {"name": name, "mimeType": "image/png", "buffer": content}
        with self.page.expect_file_chooser() as chooser:
            self.button("Upload").click()
        return self.after(lambda: chooser.value.set_files(file))

    def after(self, action: Callable[[], object], seconds: float = 30) -> Look:
        """Do something, wait until something has changed, and look."""
        before, deadline = self.look(), time.monotonic() + seconds
        action()
        while self._glance() == before:
            assert time.monotonic() < deadline, f"nothing has changed within {seconds} s: {before}"
        return self.look()

    def look(self) -> Look:
        """What there is to see when it has come to rest: the kernel is idle, and two glances are alike."""
        while True:
            self.page.wait_for_function(_IS_IDLE)
            look = self._glance()
            self.page.wait_for_timeout(100)
            if look.pixels and self.page.evaluate(_IS_IDLE) and self._glance() == look:
                return look

    def cut_off(self) -> list[str]:
        """What is wider than its place: the names of controls, or the picture."""
        wide = "elements => elements.filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent || e.className)"
        return self.box.locator("button, .widget-label, .widget-box").evaluate_all(wide)

    def screenshot(self, path: Path) -> None:
        """Keep what the notebook looks like, from its toolbar to the end of the explorer's cell, the sidebar closed."""
        self.page.evaluate("() => { jupyterapp.shell.collapseLeft(); document.activeElement.blur(); }")
        cell = self.notebook.panel.locator(".jp-Cell").filter(has=self.page.locator("img.widget-image"))
        self.page.set_viewport_size({"width": 1400, "height": int(cell.bounding_box()["height"]) + 150})
        cell.evaluate("cell => cell.scrollIntoView()")
        self.look()
        clip, inside = self.notebook.panel.bounding_box(), cell.bounding_box()
        clip["height"] = inside["y"] + inside["height"] - clip["y"]
        self.page.screenshot(path=path, clip=clip)

    def _glance(self) -> Look:
        status, caption = self.box.locator(".widget-html-content").all_inner_texts()  # above and below the picture
        return Look(self.picture.evaluate(_PIXELS), caption.strip(), status.strip())
