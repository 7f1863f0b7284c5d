"""A report's pages in a real browser: no script runs, nothing is wider than a phone, and dark mode is dark."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kaviz.reports.notebook import Notes
from kaviz.reports.page import write_index, write_page
from kaviz.reports.sanitise import content_security_policy
from kaviz.reports.spec import Entry, Outcome, Spec

SCRIPT = "document.title='hacked'"
ATTACKS = [
    f'<svg onload="{SCRIPT}"></svg>',
    f'<details open ontoggle="{SCRIPT}"><summary>s</summary></details>',
    f'<input autofocus onfocus="{SCRIPT}">',
    f'<img src="data:," onerror="{SCRIPT}">',
    f'<video><source src="data:," onerror="{SCRIPT}"></video>',
    f'<style>@keyframes k{{to{{color:red}}}}</style><p style="animation:k 1ms" onanimationstart="{SCRIPT}">p</p>',
    f'<script>{SCRIPT}</script>',
    f'<a id="link" href="javascript:void({SCRIPT})">a link</a>',
]  # fmt: skip


def shows(browser, path) -> str:
    """The title of the page after its scripts, if any, have had their time, and its link, if any, was followed."""
    page = browser.new_page()
    page.goto(path.as_uri())
    if (link := page.get_by_text("a link")).count():
        link.first.click()
    page.wait_for_timeout(300)
    title = page.title()
    page.close()
    return title


@pytest.fixture
def report(tmp_path):
    """Write a report of one notebook with an HTML output and a wide one; return its folder."""

    def report(html):
        outputs = [
            new_output("display_data", data={"text/html": html}),
            new_output("display_data", data={"text/html": f"<table><tr>{'<td>a wide table</td>' * 40}</tr></table>"}),
            new_output("stream", text="x" * 300),
        ]
        cells = [new_markdown_cell(f"# Page\n\nQuestion {html}\n\n`{'x' * 200}`"), new_code_cell("", outputs=outputs)]
        nbformat.write(new_notebook(cells=cells), tmp_path / "n.ipynb")
        entry = Entry("e", "Page", tmp_path / "n.ipynb", {}, {"runs": "x" * 200}, 1)
        spec = Spec("s", "Index", html, tmp_path, (entry,))
        (tmp_path / "e").mkdir()
        outcome = Outcome("failed", "ValueError: " + "x" * 300, 1)
        page = write_page(tmp_path / "e", tmp_path / "n.ipynb", entry, spec, outcome, Notes({"error (%)": 2.5}))
        write_index(tmp_path / "index.html", spec, [page], 1)
        write_index(tmp_path / "report.html", spec, [page], 1, single_file=True)
        return tmp_path

    return report


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_script_runs(browser, report, attack):
    folder = report(attack)
    for path, title in (("index.html", "Index"), ("report.html", "Index"), ("e/index.html", "Page · Index")):
        assert shows(browser, folder / path) == title
    bare = folder / "bare.html"  # the attack works without both guards, and the second alone stops it
    bare.write_text(f"<title>bare</title>{attack}")
    assert shows(browser, bare) == "hacked"
    policy = f'<meta http-equiv="Content-Security-Policy" content="{content_security_policy()}">'
    bare.write_text(f"{policy}<title>bare</title>{attack}")
    assert shows(browser, bare) == "bare"


@pytest.mark.parametrize("path", ["index.html", "report.html", "e/index.html"])
def test_pages_fit_a_phone_and_follow_its_colours(browser, report, path):
    folder = report("<b>bold</b>")
    for scheme, light in (("light", True), ("dark", False)):
        context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        page = context.new_page()
        page.goto((folder / path).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        paper, ink = (
            sum(map(int, page.evaluate(f"getComputedStyle(document.body).{part}.match(/\\d+/g).slice(0, 3)")))
            for part in ("backgroundColor", "color")
        )
        assert (paper > ink + 300) if light else (ink > paper + 300)
        context.close()
