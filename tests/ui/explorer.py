"""The attention explorer as a user has it, in JupyterLab or in a page: controls by their names, and what is drawn."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from playwright.sync_api import Locator, Page

_CONTROLS = "select, input, button, [tabindex='0']"
_NAMES = """elements => elements.map(element =>
    (element.getAttribute('aria-label') || element.labels?.[0]?.textContent || element.textContent || '').trim())"""
_PIXELS = """root => [...root.querySelectorAll('canvas, .kv-map')].filter(map => map.offsetParent)
    .map(map => map.toDataURL?.() ?? map.style.cssText).join(' ')"""
_IS_CALM = "() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(true))))"


@dataclass(frozen=True)
class Look:
    """What there is to see."""

    pixels: str = field(repr=False)
    text: str
    status: str


class Explorer:
    """An explorer whose data have been loaded."""

    def __init__(self, page: Page, inside: Locator) -> None:
        self.page = page
        self.box = inside.locator(".kaviz-explorer[data-ready]")
        self.box.wait_for(timeout=30_000)

    def names(self) -> list[str]:
        """Of all controls that can be seen."""
        controls = [control for control in self.box.locator(_CONTROLS).all() if control.is_visible()]
        return [control.evaluate(f"element => ({_NAMES})([element])[0]") for control in controls]

    def control(self, name: str) -> Locator:
        return self.box.get_by_label(name, exact=True)

    def button(self, name: str) -> Locator:
        return self.box.get_by_role("button", name=name, exact=True)

    def section(self, heading: str) -> Locator:
        return self.box.get_by_role("region", name=heading, exact=True)

    def image(self, number: int) -> Locator:
        return self.box.locator(".kv-frame").nth(number)

    def layer(self, number: int) -> Locator:
        return self.box.locator(".kv-layer").nth(number)

    def grid(self, number: int = 0) -> Locator:
        return self.box.locator(".kv-grids canvas").nth(number)

    def options(self, name: str) -> list[str]:
        return self.control(name).locator("option:enabled").all_inner_texts()

    def choose(self, name: str, option: str) -> Look:
        """Choose from a list, and look."""
        self.control(name).select_option(label=option)
        return self.look()

    def look(self) -> Look:
        self.page.evaluate(_IS_CALM)
        status = self.box.locator(".kv-status").inner_text()
        return Look(self.box.evaluate(_PIXELS), self.box.inner_text(), status)

    def after(self, action: Callable[[], object], seconds: float = 60) -> Look:
        """Do something that needs the kernel, wait until it has answered, and look."""
        before, deadline = self.look().status, time.monotonic() + seconds
        action()
        # In this order: what is asked changes the status, and then there is work to be seen until the answer is there.
        while self.look().status == before or self.box.locator(".kv-work").is_visible():
            assert time.monotonic() < deadline, f"no answer within {seconds} s: {before}"
            self.page.wait_for_timeout(50)
        return self.look()
