"""Every notebook, run as a report with its smallest parameters."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from PIL import Image

from kaconv import create_model
from kaconv.data.preprocessing import FAKE
from kaconv.models.checkpoints import save_checkpoint
from kaviz.cli import main

ROOT = Path(__file__).parents[2]
SMOKE_TEXT = (ROOT / "reports/specs/smoke.yaml").read_text()
SMOKE = yaml.safe_load(SMOKE_TEXT)
ENTRIES = [entry.get("name", entry["notebook"]) for entry in SMOKE["entries"]]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The smoke report, its trainings in a folder of their own."""
    folder = tmp_path_factory.mktemp("report")
    spec = yaml.safe_load(SMOKE_TEXT.replace(SMOKE["parameters"]["runs"], str(folder / "runs")))
    for entry in spec["entries"]:  # found from anywhere; a busy machine gets more time
        entry |= {"notebook": str(ROOT / "notebooks" / f"{entry['notebook']}.ipynb"), "timeout": 300}
    (folder / "smoke.yaml").write_text(yaml.safe_dump(spec))
    (folder / "pyproject.toml").touch()  # this is the project folder, in which the notebooks run
    shutil.copytree(ROOT / "reports/studies", folder / "reports/studies")
    shutil.copytree(ROOT / "reports/weights", folder / "reports/weights")
    command = [sys.executable, "-m", "kaviz.cli", "report", folder / "smoke.yaml", "--out", folder / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return folder, done


def test_every_notebook_has_its_smoke_test():
    assert {entry["notebook"] for entry in SMOKE["entries"]} == {
        path.stem for path in (ROOT / "notebooks").glob("*.ipynb")
    }


@pytest.mark.slow
def test_the_report_is_complete(report):
    folder, done = report
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (folder / "out").glob("[!.]*")) == [*ENTRIES, "index.html"]
    assert str(folder / "out" / "index.html") in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_a_notebook_says_what_it_found(report, name):
    folder = report[0] / "out" / name
    result = json.loads((folder / "metrics.json").read_text())
    assert result["status"] == "done", result["error"]
    assert result["metrics"]
    page = (folder / "index.html").read_text()
    assert "What was found" in page
    assert len(BeautifulSoup(page, "html.parser").select("img, [data-kaviz-explorer]")) >= 2
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", re.sub(r"<a [^>]*>", "", page))
    assert (folder / "thumbnail.png").is_file()


@pytest.mark.slow
def test_what_one_notebook_trains_the_others_reuse(report):
    trained = sorted(path.name for path in (report[0] / "runs").glob("digits_*"))
    variants = ("ka_resnet11_cifar_h", "ka_resnet11_cifar_l", "resnet11_cifar")
    assert trained == [f"digits_{variant}_attention_warmup_epochs-1_epochs-2_lr-0.1_seed0" for variant in variants]


LOOKING_AT_A_CHECKPOINT = ["04_attention_maps", "06_explore", "08_interventions", "09_effective_kernels"]


@pytest.fixture(scope="module")
def guessing(tmp_path_factory):
    """A report on a network that has learned nothing, given as a checkpoint, and on images without a training split."""
    folder = tmp_path_factory.mktemp("guessing")
    noise = np.random.default_rng(0)
    for kind in ("left", "right", "up"):
        (folder / "images" / "val" / kind).mkdir(parents=True)
        for number in range(4):
            pixels = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / "val" / kind / f"{number}.png")
    torch.manual_seed(0)
    facts = {"name": "ka_resnet11_cifar_l", "classes": ["left", "right", "up"], "preprocessing": FAKE.at(16)}
    save_checkpoint(folder / "new.safetensors", create_model("ka_resnet11_cifar_l", num_classes=3), **facts)
    spec = {
        "parameters": {"data": f"folder:{folder / 'images'}", "checkpoint": str(folder / "new.safetensors")},
        "entries": [
            {"notebook": str(ROOT / "notebooks" / f"{name}.ipynb"), "timeout": 300} for name in LOOKING_AT_A_CHECKPOINT
        ],
    }
    (folder / "guessing.yaml").write_text(yaml.safe_dump(spec))
    (folder / "pyproject.toml").touch()
    command = [sys.executable, "-m", "kaviz.cli", "report", folder / "guessing.yaml", "--out", folder / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOKING_AT_A_CHECKPOINT)
def test_nothing_is_claimed_of_a_network_that_guesses(guessing, name):
    result = json.loads((guessing / "out" / name / "metrics.json").read_text())
    assert result["status"] == "done", result["error"]
    assert result["metrics"].keys() <= {"test error of the model (%)", "model", "networks", "test images"}
    assert not {"model", "models", "epochs", "lr", "image_size", "runs"} & result["parameters"].keys()
    tree = BeautifulSoup((guessing / "out" / name / "index.html").read_text(), "html.parser")
    first_headings = [heading.get_text() for heading in tree.main.find_all("h2")]
    warning = tree.main.find(string=re.compile("is no better than chance on these images"))
    assert warning.find_previous("h2") is None or warning.find_previous("h2").get_text() == first_headings[0]
    found = tree.main.find("h2", string="What was found").find_next(class_="output")
    assert "no better than chance" in found.get_text()
    assert not {"L against H", "During training"} & set(first_headings)


@pytest.mark.slow
def test_a_photo_may_be_a_file_of_the_readers(tmp_path):
    Image.new("RGB", (120, 90), "teal").save(tmp_path / "my photo.jpg")
    notebook = ROOT / "notebooks" / "01_layer.ipynb"
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "one.yaml").write_text(
        f"entries: [{{notebook: {notebook}, timeout: 300, "
        "parameters: {photo: my photo.jpg, image_width: 96, draws: 1}}]"
    )
    assert main(["report", str(tmp_path / "one.yaml")]) == 0
