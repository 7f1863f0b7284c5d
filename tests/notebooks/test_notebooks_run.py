"""Every notebook, run as a report with its smallest parameters."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The smoke report, its trainings in a folder of their own."""
    folder = tmp_path_factory.mktemp("report")
    spec = yaml.safe_load((ROOT / "reports/specs/smoke.yaml").read_text())
    spec["parameters"]["runs"] = str(folder / "runs")
    for entry in spec["entries"]:  # found from anywhere; a busy machine gets more time
        entry |= {"notebook": str(ROOT / "notebooks" / f"{entry['notebook']}.ipynb"), "timeout": 300}
    (folder / "smoke.yaml").write_text(yaml.safe_dump(spec))
    (folder / "pyproject.toml").touch()  # this is the project folder, in which the notebooks run
    command = [sys.executable, "-m", "kaviz.cli", "report", folder / "smoke.yaml", "--out", folder / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return folder, done


@pytest.mark.slow
def test_the_report_is_complete(report):
    folder, done = report
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (folder / "out").glob("[!.]*")) == [*NOTEBOOKS, "index.html"]
    assert str(folder / "out" / "index.html") in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_says_what_it_found(report, name):
    folder = report[0] / "out" / name
    result = json.loads((folder / "metrics.json").read_text())
    assert result["status"] == "done", result["error"]
    assert result["metrics"]
    page = (folder / "index.html").read_text()
    assert "What was found" in page
    assert page.count("<img") >= 2
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", re.sub(r"<a [^>]*>", "", page))
    assert (folder / "thumbnail.png").is_file()


@pytest.mark.slow
def test_what_one_notebook_trains_the_others_reuse(report):
    trained = sorted(path.name for path in (report[0] / "runs").iterdir())
    variants = ("ka_resnet11_cifar_h", "ka_resnet11_cifar_l", "resnet11_cifar")
    assert trained == [f"digits_{variant}_epochs-2_lr-0.1_seed0" for variant in variants]
