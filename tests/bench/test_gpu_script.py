import re
import subprocess
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_in_a_line_and_writes_nothing(tmp_path):
    folder = tmp_path / "results"
    run = subprocess.run(["bash", str(SCRIPT), str(folder)], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.endswith("finds no CUDA device, so nothing was measured\n")
    assert run.stderr.count("\n") == 1
    assert not folder.exists()


def test_help_says_what_it_does_and_writes_nothing(tmp_path):
    run = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0
    assert "benchmarks/gpu.sh [FOLDER]" in run.stdout
    assert "tile sizes" in run.stdout
    assert "set -" not in run.stdout
    assert not list(tmp_path.iterdir())


def test_unknown_options_are_named():
    run = subprocess.run(["bash", str(SCRIPT), "--quick"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "gpu.sh: takes one folder or --help, not: --quick\n"


def test_its_limits_come_to_ten_minutes():
    text = SCRIPT.read_text()
    steps = [int(seconds) for seconds in re.findall(r"timeout (\d+)", text)]
    for models, seconds in re.findall(r"for model in (.+); do\n    measure \S+ (\d+) ", text):
        steps += [int(seconds)] * len(models.split())
    assert len(steps) == 7
    assert sum(steps) <= 600


def test_it_is_a_program():
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    assert SCRIPT.stat().st_mode & 0o111
