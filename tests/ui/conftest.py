"""Fixtures of the browser tests. `make test-ui` runs them; plain pytest does not come here (norecursedirs)."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import papermill
import playwright.sync_api
import pytest
from lab import CHROMIUM, NotebookPage, find_chromium, running_browser, running_lab

from kaviz.reports.spec import load_spec

ROOT = Path(__file__).parents[2]


def pytest_configure(config):
    if find_chromium() is None:
        raise pytest.UsageError(
            f"the browser tests need Chromium, and there is no {' or '.join(CHROMIUM)} on PATH: "
            "apt-get install chromium, or set CHROMIUM to the program's path"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What the browser showed when a test failed, and the server's log."""
    report = yield
    if report.failed and report.when != "teardown" and {"browser", "lab"} <= item.funcargs.keys():
        log = item.funcargs["lab"].log
        report.sections.append(("JupyterLab", f"log: {log}"))
        for number, page in enumerate(page for context in item.funcargs["browser"].contexts for page in context.pages):
            picture = log.with_name(re.sub(r"\W+", "-", f"{item.name} {report.when} {number}") + ".png")
            with suppress(playwright.sync_api.Error):  # of a page that is gone
                page.screenshot(path=picture)
                report.sections.append(("Chromium", f"screenshot: {picture}"))
    return report


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A project folder with copies of the notebooks, set to their smallest parameters and one folder of trainings."""
    project = tmp_path_factory.mktemp("project")
    (project / "pyproject.toml").touch()
    (project / "notebooks").mkdir()
    shutil.copytree(ROOT / "reports/studies", project / "reports/studies")
    shutil.copytree(ROOT / "reports/weights", project / "reports/weights")
    for entry in load_spec(ROOT / "reports/specs/smoke.yaml").entries:
        if entry.name != entry.notebook.stem:
            continue  # a second look by the same notebook
        parameters = entry.given | ({"runs": "runs"} if "runs" in entry.given else {})
        if entry.name == "06_explore" and "KAVIZ_SCREENSHOT" in os.environ:
            parameters = {"runs": "runs"}  # a picture to be shown is of a model that has learned something
        copy = project / "notebooks" / entry.notebook.name
        papermill.execute_notebook(entry.notebook, copy, parameters, prepare_only=True, progress_bar=False)
    return project


@pytest.fixture(scope="session")
def lab(project, tmp_path_factory):
    with running_lab(project, tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="session")
def browser():
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def open_notebook(browser, lab):
    """`open_notebook(path, request)` opens a notebook of the project, to be closed with the request's scope."""

    def open_notebook(path, request):
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        # Not a block around a yield, which a failure here would leave before its screenshot is taken.
        request.addfinalizer(lab.end_kernels)
        request.addfinalizer(context.close)
        notebook = NotebookPage(context.new_page(), lab, path)
        notebook.open()
        return notebook

    return open_notebook
