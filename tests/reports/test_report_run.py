"""One report of four tiny notebooks, run once; each test looks at one thing it left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from kaviz.cli import main
from kaviz.reports.run import run_entry, run_report
from kaviz.reports.spec import load_spec

FIGURE = """
import os, sys
import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display
from tqdm.notebook import tqdm
from kaviz.reports import report_folder, save_metrics, without_effect

without_effect("unused")
for _ in tqdm(range(epochs), desc="a bar"):
    pass
plt.figure(figsize=(4, 3))
plt.plot([1, 2])
plt.show()
(report_folder() / "data.txt").write_text("kept")
slider = ipywidgets.IntSlider(value=epochs, description="Channel:")
display(ipywidgets.HBox([slider, ipywidgets.HTML("<i>caption</i>")]))
save_metrics({"python": sys.executable, "folder": os.getcwd(), "error (%)": 2.5, "epochs": epochs})
"""

SPEC = """
title: A study
description: Of *four* notebooks.
entries:
  - notebook: figure
    parameters: {epochs: 2}
  - notebook: fails
  - notebook: hangs
    timeout: 30
  - notebook: figure
    name: last
    title: Once more
"""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(shared_project, tmp_path_factory):
    """(exit code, project, output folder) of the report."""
    project = shared_project
    project.notebook(
        "figure",
        "# Does it learn?\n\nWe ask whether $A_p$ matters.\n\nMore.",
        FIGURE,
        parameters="epochs = 1\nunused = 3",
    )
    project.notebook("fails", "# It fails", "print('before')", "1 / 0", "print('never')")
    project.notebook(
        "hangs",
        "# It hangs",
        "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid()))",
        "while True: time.sleep(1)",
    )
    # A kernel called python3 that is another environment's: it must not be taken.
    foreign = tmp_path_factory.mktemp("jupyter")
    (foreign / "kernels" / "python3").mkdir(parents=True)
    (foreign / "kernels" / "python3" / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "foreign", "language": "python"})
    )
    out = project.root / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(foreign))
        patch.setenv("JUPYTER_DATA_DIR", str(foreign))
        code = main(["report", str(project.spec(SPEC)), "--out", str(out), "--single-file"])
    return code, project, out


def metrics(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def soup(page) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(), "html.parser")


def test_a_failure_gives_exit_code_1_and_the_rest_runs(report):
    code, _, out = report
    assert code == 1
    status = {name: metrics(out / name)["status"] for name in ("figure", "fails", "hangs", "last")}
    assert status == {"figure": "done", "fails": "failed", "hangs": "timed out", "last": "done"}


def test_a_run_is_in_this_environment_and_in_the_project_folder(report):
    _, project, out = report
    got = metrics(out / "figure")["metrics"]
    assert got["python"] == sys.executable
    assert got["folder"] == str(project.root)


def test_metrics_hold_parameters_and_duration(report):
    out = report[2]
    first, last = metrics(out / "figure"), metrics(out / "last")
    assert (first["parameters"], last["parameters"]) == ({"epochs": 2}, {"epochs": 1})
    assert (first["metrics"]["epochs"], last["metrics"]["epochs"]) == (2, 1)
    assert 0 < first["duration_s"] < 120
    assert (out / "figure" / "data.txt").read_text() == "kept"


def test_a_traceback_is_on_its_page_and_only_there(report):
    out = report[2]
    page = soup(out / "fails" / "index.html").get_text()
    assert "ZeroDivisionError: division by zero" in page
    assert "Traceback (most recent call last)" in page
    assert "\x1b" not in page
    assert "before" in page
    assert "never" not in page
    assert "Traceback" not in soup(out / "last" / "index.html").main.get_text()


def test_a_notebook_out_of_time_is_killed_with_its_kernel(report):
    _, project, out = report
    result = metrics(out / "hangs")
    assert result["error"] == "timed out after 30 s"
    assert result["duration_s"] < 90
    assert not psutil.pid_exists(int((project.root / "pid").read_text()))


def test_pages_load_nothing_and_every_link_leads_somewhere(report):
    out = report[2]
    pages = [out / "index.html", *(out / name / "index.html" for name in ("figure", "fails", "hangs", "last"))]
    for page in pages:
        tree = soup(page)
        assert not tree.find_all(["script", "link", "iframe"])
        assert "@import" not in page.read_text()
        assert "url(" not in page.read_text()
        for image in tree.find_all("img"):
            assert image.has_attr("alt")
            assert image["src"].startswith("data:") or (page.parent / image["src"]).is_file()
        for link in tree.find_all("a"):
            assert (page.parent / link["href"]).is_file()
        assert "script-src 'none'" in tree.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]


def test_a_single_file_holds_index_and_pages_and_links_within_itself(report):
    tree = soup(report[2] / "report.html")
    assert [card.h2.get_text() for card in tree.select(".card")] == [
        "Does it learn?",
        "It fails",
        "It hangs",
        "Once more",
    ]
    assert [page["id"] for page in tree.select("section.page")] == ["figure", "fails", "hangs", "last"]
    assert "ZeroDivisionError: division by zero" in tree.select_one("#fails").get_text()
    assert tree.select_one("#figure .output_png img")
    identifiers = [element["id"] for element in tree.find_all(id=True)]
    assert len(set(identifiers)) == len(identifiers)
    for link in tree.find_all("a"):
        assert link["href"].removeprefix("#") in identifiers
    for image in tree.find_all("img"):
        assert image["src"].startswith("data:")


def test_the_index_says_which_are_not_done(report):
    alert = soup(report[2] / "index.html").header.select_one(".alert")
    assert " ".join(alert.get_text().split()) == "2 not done: It fails (failed), It hangs (timed out)"
    assert [link["href"] for link in alert.find_all("a")] == ["fails/index.html", "hangs/index.html"]


def test_a_page_shows_figure_formula_and_widget_but_neither_code_nor_bar(report):
    tree = soup(report[2] / "figure" / "index.html")
    assert tree.h1.get_text() == "Does it learn?"
    assert len(tree.find_all("h1")) == 1
    assert tree.select_one("img.tex")["alt"] == "A_p"
    assert tree.select_one(".output_png img")["alt"] == "Figure 1, in “Does it learn?”"
    text = tree.get_text()
    assert "Channel 2" in text
    assert "caption" in text
    assert "a bar" not in text
    assert "import" not in text
    assert [item.get_text() for item in tree.select(".parameters li")] == ["epochs = 2"]  # and no `unused`
    assert nbformat.read(report[2] / "figure" / "figure.ipynb", as_version=4).cells


def test_the_index_has_a_card_for_each_entry(report):
    out = report[2]
    tree = soup(out / "index.html")
    titles = [card.h2.get_text() for card in tree.select(".card")]
    assert titles == ["Does it learn?", "It fails", "It hangs", "Once more"]
    first, fails, hangs, _ = tree.select(".card")
    assert "We ask whether" in first.get_text()
    assert "2.5" in first.get_text()
    assert "More." not in first.get_text()
    assert fails.select_one(".badge.bad").get_text() == "failed"
    assert hangs.select_one(".badge.bad").get_text() == "timed out"
    with Image.open(out / "figure" / "thumbnail.png") as thumbnail:
        assert len(thumbnail.getcolors(1 << 20)) > 2
    assert "torch" in tree.footer.get_text()


SLEEPS = "import os, pathlib, time\npathlib.Path('pid.new').write_text(str(os.getpid()))\nos.rename('pid.new', 'pid')"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none of these signals")
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGHUP"])
def test_a_report_that_is_ended_takes_its_kernel_along(project, sent):
    if signal.getsignal(getattr(signal, sent)) == signal.SIG_IGN:
        pytest.skip("a report that nohup started goes on, and this test was started by nohup")
    project.notebook("sleeps", "# Sleeps", SLEEPS, "time.sleep(600)")
    spec = project.spec("entries: [{notebook: sleeps}]")
    command = [sys.executable, "-m", "kaviz.cli", "report", spec, "--out", project.root / "out"]
    report = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = project.root / "pid"
    _until(pid.exists, seconds=300)
    kernel = psutil.Process(int(pid.read_text()))
    os.kill(report.pid, getattr(signal, sent))
    report.wait(30)
    _until(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE, seconds=30)


def _until(happened, seconds):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_notebook_whose_page_cannot_be_made_does_not_end_the_report(project, monkeypatch):
    for name in ("bad", "good"):
        project.notebook(name, f"# {name.title()}")
    spec = load_spec(project.spec("entries: [{notebook: bad}, {notebook: good}]"))
    child = project.root / "child.py"
    child.write_text(
        "import json, pathlib, shutil, sys\njob = json.load(open(sys.argv[1]))\n"
        "shutil.copyfile(job['notebook'], job['output'])\n"
        "if 'bad' in job['output']: pathlib.Path(job['output']).with_name('metrics.json').write_text('{')"
    )
    monkeypatch.setattr("kaviz.reports.run._CHILD", child)
    out = project.root / "out"
    assert not run_report(spec, out)
    bad, good = soup(out / "index.html").select(".card")
    assert "no page can be made of it: JSONDecodeError" in bad.get_text()
    assert metrics(out / "bad")["status"] == "failed"
    assert good.select_one(".badge").get_text() == "done"


def test_a_rerun_replaces_the_entry_and_leaves_the_rest(report):
    _, project, out = report
    stale, neighbour = out / "fails" / "stale.txt", out / "runs" / "weights"
    neighbour.parent.mkdir()
    for path in (stale, neighbour):
        path.touch()
    spec = load_spec(project.spec("entries: [{notebook: fails}]"))
    assert run_entry(spec.entries[0], spec, out).status == "failed"
    assert not stale.exists()
    assert neighbour.exists()
    assert [path.name for path in out.glob(".*")] == [".kaviz-report"]


def test_a_notebook_cut_off_while_it_is_saved_still_gets_a_page(project, monkeypatch):
    project.notebook("cut", "# Cut off")
    spec = load_spec(project.spec("entries: [{notebook: cut}]"))
    child = project.root / "child.py"
    child.write_text("import json, sys; open(json.load(open(sys.argv[1]))['output'], 'w').write('{'); sys.exit(9)")
    monkeypatch.setattr("kaviz.reports.run._CHILD", child)
    summary = run_entry(spec.entries[0], spec, project.root)
    assert (summary.status, summary.error) == ("failed", "the run ended early")
    assert soup(project.root / "cut" / "index.html").h1.get_text() == "Cut off"
