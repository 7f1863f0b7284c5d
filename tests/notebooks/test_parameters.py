"""Parameters at the ends of what they allow."""

import json
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


@pytest.mark.slow
def test_attributions_that_nobody_asks_for_are_left_out(tmp_path):
    noise = np.random.default_rng(0)
    for kind in ("left", "right"):
        (tmp_path / "images" / "val" / kind).mkdir(parents=True)
        for number in range(3):
            pixels = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / "val" / kind / f"{number}.png")
    torch.manual_seed(0)
    facts = {"name": "ka_resnet11_cifar_l", "classes": ["left", "right"], "preprocessing": FAKE.at(16)}
    save_checkpoint(tmp_path / "new.safetensors", create_model("ka_resnet11_cifar_l", num_classes=2), **facts)
    none = dict.fromkeys(("examples", "mistakes", "positioned", "tested", "checked"), 0)
    parameters = {
        "data": "folder:images",
        "checkpoint": "new.safetensors",
        "compare": [],
        "methods": ["saliency"],
        **none,
    }
    entry = {"notebook": str(ROOT / "notebooks/05_attributions.ipynb"), "timeout": 300, "parameters": parameters}
    (tmp_path / "pyproject.toml").touch()  # this is the project folder, in which the notebook runs
    (tmp_path / "none.yaml").write_text(yaml.safe_dump({"entries": [entry]}))
    status = main(["report", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out/05_attributions/metrics.json").read_text())
    assert status == 0, result["error"]
    assert not {"model", "epochs", "runs"} & result["parameters"].keys()
    tree = BeautifulSoup((tmp_path / "out/05_attributions/index.html").read_text(), "html.parser")
    assert [heading.get_text() for heading in tree.main.find_all("h2")] == ["The methods", "What was found"]
    assert not tree.main.find_all("img")
