"""Running a spec: each notebook through papermill in a process of its own, then its page, and after each the index."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import psutil
from tqdm import tqdm

from kaconv.utils.files import write_json, write_text
from kaviz.reports.notebook import read_notes
from kaviz.reports.page import Page, write_index, write_page, write_plain_page
from kaviz.reports.spec import Entry, Outcome, Spec

_CHILD = Path(__file__).with_name("execute.py")
_MARK = ".kaviz-report"  # the file that tells a report's folder from one that it must not write to
SINGLE_FILE = "report.html"
_LOG_EVERY = 30  # seconds between progress lines where there is no terminal


def run_report(spec: Spec, out: Path, *, single_file: bool = False) -> bool:
    """Run every entry of `spec`, and write its page to `out`/<entry>/ and the index to `out`/index.html.

    An entry that fails does not stop the others. What an earlier run left in `out` is replaced entry by entry, each
    when its new one is complete; the index is written after each, so that a run that is cut off leaves one. Returns
    whether all went well. Raises ValueError, before anything is touched, if `out` holds what no report wrote.

    Args:
        single_file: also write the whole report as one file, `out`/report.html, for sending.
    """
    began = time.monotonic()
    out = out.resolve()
    _check_folder(out, spec)
    write_text(out / _MARK, "The output of `kaviz report`, which replaces what it wrote here before.\n")
    pages: list[Page] = []
    for number, entry in enumerate(spec.entries, 1):
        _say(f"[{number}/{len(spec.entries)}] {entry.name}")
        page = run_entry(entry, spec, out)
        _say(f"      {page.status} in {page.seconds:.1f} s" + (f": {page.error}" if page.error else ""))
        for problem in page.problems:
            _say(f"      {problem}")
        pages.append(page)
        write_index(out / "index.html", spec, pages, time.monotonic() - began)
    if single_file:
        write_index(out / SINGLE_FILE, spec, pages, time.monotonic() - began, single_file=True)
    return all(page.status == "done" for page in pages)


def run_entry(entry: Entry, spec: Spec, out: Path) -> Page:
    """Run one entry, write its page, and put its folder in the place of an earlier run's."""
    draft = out / f".{entry.name}.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    executed = draft / entry.notebook.name
    outcome = execute(entry, spec.root, executed)
    facts: dict[str, Any] = {"name": entry.name, "notebook": entry.notebook.name}
    try:
        notes = read_notes(draft)
        page = write_page(draft, executed, entry, spec, outcome, notes)
        facts |= {"parameters": page.parameters, "metrics": notes.metrics}
    except OSError:  # a full disk is not the notebook's fault
        raise
    except Exception as error:  # what a notebook shows must not end the report, whatever is wrong with it
        outcome = Outcome("failed", f"no page can be made of it: {type(error).__name__}: {error}", outcome.seconds)
        page = write_plain_page(draft, executed, entry, spec, outcome)
    facts |= {"status": outcome.status, "error": outcome.error, "duration_s": round(outcome.seconds, 2)}
    write_json(draft / "metrics.json", facts)
    _swap(draft, out / entry.name)
    return page


def _check_folder(out: Path, spec: Spec) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is not a folder; a report is written to a folder")
    if any(out.iterdir()) and not (out / _MARK).is_file():
        raise ValueError(f"{out} holds files and no report; choose a new or an empty folder")
    for name in ("index.html", SINGLE_FILE):
        if (out / name).is_dir():
            raise ValueError(f"{out / name} is a folder, where the report's {name} goes")
    for entry in spec.entries:
        folder = out / entry.name
        if os.path.lexists(folder) and not _is_entry(folder):
            raise ValueError(f"{folder} was not written by a report; move it away or rename the entry")


def _is_entry(folder: Path) -> bool:
    """Whether `folder` is one that `run_entry` wrote."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(metrics, dict) and {"notebook", "status", "duration_s"} <= metrics.keys()


def execute(entry: Entry, cwd: Path, executed: Path) -> Outcome:
    """Run a notebook to the file `executed`, whose folder it gets as KAVIZ_OUT, within the entry's time limit."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch, "log"), "w+", encoding="utf-8") as log:
        progress = Path(scratch, "progress")
        progress.write_text("0")
        job = Path(scratch, "job.json")
        job.write_text(
            json.dumps(
                {
                    "notebook": str(entry.notebook),
                    "output": str(executed),
                    "parameters": entry.given,
                    "cwd": str(cwd),
                    "timeout": math.ceil(entry.timeout),  # papermill takes whole seconds
                    "progress": str(progress),
                }
            )
        )
        process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), str(job)],  # as a script: it need not import torch
            cwd=cwd,
            env=kernel_environment(executed.parent),
            stdin=subprocess.PIPE,  # it closes when this process ends
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # what the terminal sends, Ctrl-C or its end, is for this process to deal with
        )
        try:
            in_time = _wait(process, entry, progress, began)
        finally:  # also on Ctrl-C
            _kill(process)
        log.seek(0)
        last_words = log.read().strip().splitlines()[-1:]
    seconds = time.monotonic() - began
    if not _readable(executed):  # it ended before papermill's first save, or within one
        shutil.copyfile(entry.notebook, executed)
    if not in_time:
        return Outcome("timed out", f"timed out after {entry.timeout:g} s", seconds)
    if process.returncode:
        return Outcome("failed", _first_error(executed) or " ".join(last_words) or "the run ended early", seconds)
    return Outcome("done", "", seconds)


def kernel_environment(folder: Path) -> dict[str, str]:
    """The environment of a run: this Python's own kernel, inline figures, no text bars of tqdm, and KAVIZ_OUT."""
    environment = {key: value for key, value in os.environ.items() if key not in ("JUPYTER_PATH", "MPLBACKEND")}
    return environment | {
        "KAVIZ_OUT": str(folder),
        "TQDM_DISABLE": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",  # else a python3 kernel in the user's home may win
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _wait(process: subprocess.Popen, entry: Entry, progress: Path, began: float) -> bool:
    """Follow a run until it ends (True) or its time is up (False)."""
    cells = len(nbformat.read(entry.notebook, as_version=4).cells) + bool(entry.given)
    layout = "      cell {n_fmt} of {total_fmt}, {elapsed}"
    next_line = _LOG_EVERY
    with tqdm(total=cells, bar_format=layout, leave=False, disable=None) as bar:
        while process.poll() is None:
            elapsed = time.monotonic() - began
            if elapsed > entry.timeout:
                return False
            bar.n = int(progress.read_text() or bar.n)
            bar.refresh()
            if bar.disable and elapsed > next_line:
                _say(f"      cell {bar.n} of {cells}, {elapsed:.0f} s")
                next_line += _LOG_EVERY
            time.sleep(0.2)
    return True


def _kill(process: subprocess.Popen) -> None:
    """End a run with all it started: the kernel has a process group of its own, so it is found by its parent."""
    family = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()
    psutil.wait_procs(family, timeout=5)


def _readable(notebook: Path) -> bool:
    try:
        nbformat.read(notebook, as_version=4)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _first_error(executed: Path) -> str:
    for cell in nbformat.read(executed, as_version=4).cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"{output.ename}: {output.evalue}".strip().splitlines()[0]
    return ""


def _swap(draft: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    draft.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _say(line: str) -> None:
    print(line, flush=True)
