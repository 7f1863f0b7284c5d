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


def test_it_is_a_program():
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    assert SCRIPT.stat().st_mode & 0o111
