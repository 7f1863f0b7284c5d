"""Which folders a report writes to: its own, new and empty ones. The notebooks do not run."""

import json

import pytest
from bs4 import BeautifulSoup

from kaviz.cli import main
from kaviz.reports.run import execute, run_report
from kaviz.reports.spec import load_spec

# In the place of the process that runs a notebook: copies the notebook, and the job beside it.
CHILD = """
import pathlib, shutil, sys, json
job = json.load(open(sys.argv[1]))
shutil.copyfile(job["notebook"], job["output"])
shutil.copyfile(sys.argv[1], pathlib.Path(job["output"]).with_name("job.json"))
"""


@pytest.fixture
def spec(project, monkeypatch):
    project.notebook("ask", "# Why?")
    child = project.root / "child.py"
    child.write_text(CHILD)
    monkeypatch.setattr("kaviz.reports.run._CHILD", child)
    return load_spec(project.spec("entries: [{notebook: ask, timeout: 30.5}]"))


def contents(folder) -> dict:
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("existing", [False, True])
def test_a_new_or_empty_folder_is_taken_and_then_taken_again(spec, tmp_path, existing):
    out = tmp_path / "out"
    if existing:
        out.mkdir()
    assert run_report(spec, out)
    (out / "ask" / "stale").touch()
    assert run_report(spec, out)
    assert sorted(path.name for path in out.iterdir()) == [".kaviz-report", "ask", "index.html"]
    assert not (out / "ask" / "stale").exists()


def test_a_report_that_was_killed_can_run_again(spec, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kaviz.reports.run.execute", killed)
        with pytest.raises(KeyboardInterrupt):
            run_report(spec, tmp_path / "out")
    assert not (tmp_path / "out" / "index.html").exists()
    assert run_report(spec, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".kaviz-report", "ask", "index.html"]


def test_a_report_that_is_cut_off_leaves_the_index_of_what_was_done(spec, tmp_path, monkeypatch):
    path = spec.root / "two.yaml"
    path.write_text("entries: [{notebook: ask}, {notebook: ask, name: again, title: Again}]")

    def cut_off(entry, *arguments):
        if entry.name == "again":
            raise KeyboardInterrupt
        return execute(entry, *arguments)

    monkeypatch.setattr("kaviz.reports.run.execute", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run_report(load_spec(path), tmp_path / "out")
    index = BeautifulSoup((tmp_path / "out" / "index.html").read_text(), "html.parser")
    assert [card.h2.get_text() for card in index.select(".card")] == ["Why?"]
    assert index.header.select_one(".alert").get_text() == "Not run yet: Again"


@pytest.mark.parametrize("theirs", ["index.html", "ask/thesis.txt", "ask/metrics.json", "notes.txt"])
def test_a_folder_of_other_things_is_refused_and_left_as_it_is(spec, tmp_path, capsys, theirs):
    out = tmp_path / "out"
    (out / theirs).parent.mkdir(parents=True)
    (out / theirs).write_text("mine")
    before = contents(out)
    assert main(["report", str(spec.root / "study.yaml"), "--out", str(out)]) == 2
    assert (
        capsys.readouterr().err == f"kaviz: error: {out} holds files and no report; choose a new or an empty folder\n"
    )
    assert contents(out) == before


@pytest.mark.parametrize("metrics", [None, "{", "[]", json.dumps({"test_error": 3})])
def test_a_folder_in_the_way_of_an_entry_is_refused(spec, tmp_path, metrics):
    out = tmp_path / "out"
    other = load_spec(_other(spec))
    assert run_report(other, out)
    (out / "ask").mkdir()
    if metrics is not None:
        (out / "ask" / "metrics.json").write_text(metrics)
    before = contents(out)
    with pytest.raises(ValueError, match="ask was not written by a report"):
        run_report(spec, out)
    assert contents(out) == before


def test_a_file_in_the_way_of_an_entry_is_refused(spec, tmp_path):
    assert run_report(load_spec(_other(spec)), tmp_path / "out")
    (tmp_path / "out" / "ask").write_text("mine")
    with pytest.raises(ValueError, match="ask was not written by a report"):
        run_report(spec, tmp_path / "out")


def test_a_folder_in_the_place_of_the_index_is_refused(spec, tmp_path):
    out = tmp_path / "out"
    assert run_report(spec, out)
    (out / "index.html").unlink()
    (out / "index.html").mkdir()
    before = contents(out)
    with pytest.raises(ValueError, match=r"index\.html is a folder"):
        run_report(spec, out)
    assert contents(out) == before


def test_a_file_as_the_folder_is_one_clear_line(spec, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(["report", str(spec.root / "study.yaml"), "--out", str(tmp_path / "out")]) == 2
    message = f"kaviz: error: {tmp_path / 'out'} is not a folder; a report is written to a folder\n"
    assert capsys.readouterr().err == message
    assert (tmp_path / "out").read_text() == "mine"


def test_papermill_gets_whole_seconds(spec, tmp_path):
    execute(spec.entries[0], spec.root, tmp_path / "ask.ipynb")
    timeout = json.loads((tmp_path / "job.json").read_text())["timeout"]
    assert (timeout, type(timeout)) == (31, int)


def _other(spec):
    path = spec.root / "other.yaml"
    path.write_text("entries: [{notebook: ask, name: other}]")
    return path
