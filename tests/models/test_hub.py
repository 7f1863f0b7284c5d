"""Saving, pushing and loading through huggingface_hub's mixin; nothing here reaches a network."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, hub_mixin

from kaconv.data.preprocessing import DIGITS
from kaconv.models import create_model, register_builder, registry
from kaconv.models.checkpoints import Checkpoint, save_checkpoint
from kaconv.models.complexity import complexity
from kaconv.models.hub import HubCheckpoint

NAME = "ka_resnet11_cifar_l"
INFO = {"epoch": 3, "test_error": 2.5, "config": {"data": "folder:/home/me/pictures", "epochs": 3}}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("this would reach a network")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model(NAME, num_classes=2, min_hidden=8).eval()


@pytest.fixture
def checkpoint(model) -> Checkpoint:
    return Checkpoint(model, NAME, ["cat", "a|b"], DIGITS, INFO, {"min_hidden": 8})


def test_a_saved_folder_comes_back(tmp_path, checkpoint):
    HubCheckpoint.from_checkpoint(checkpoint).save_pretrained(tmp_path / "folder")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    loaded = HubCheckpoint.from_pretrained(tmp_path / "folder")
    assert (loaded.name, loaded.classes, loaded.preprocessing) == (NAME, ["cat", "a|b"], DIGITS)
    assert loaded.options == {"min_hidden": 8}
    assert loaded.info["test_error"] == 2.5
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), checkpoint.model(x))
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert (config["name"], config["classes"]) == (NAME, ["cat", "a|b"])


def test_the_card_says_what_is_known(checkpoint):
    card = HubCheckpoint.from_checkpoint(checkpoint).generate_model_card(license="cc-by-4.0")
    cost = complexity(checkpoint.model, 16)
    for text in (
        f"| architecture | {NAME} with min_hidden=8 |",
        "| classes | 2: cat, a\\|b |",
        f"| parameters | {cost.params:,} |",
        f"| multiply-adds of one image | {cost.macs:,} |",
        f"| FLOPs as the paper counts them | {cost.paper_flops:,} |",
        "| trained on | folder |",
        "| test error | 2.50 % |",
        "| licence of the weights | cc-by-4.0 |",
    ):
        assert text in card.content
    assert "/home/me" not in card.content
    facts = ModelCard(card.content).data
    assert (facts.library_name, facts.license, facts.pipeline_tag) == ("kaconv", "cc-by-4.0", "image-classification")
    assert [(result.dataset_name, result.metric_value) for result in facts.eval_results] == [("folder", 0.975)]


def test_the_card_says_what_is_not_known(checkpoint):
    checkpoint.info = {}
    card = HubCheckpoint.from_checkpoint(checkpoint).generate_model_card()
    assert "| test error | not recorded |" in card.content
    assert "| licence of the weights | not stated |" in card.content
    assert ModelCard(card.content).data.eval_results is None


def test_a_card_that_is_there_stays(tmp_path, checkpoint):
    (tmp_path / "README.md").write_text("mine")
    HubCheckpoint.from_checkpoint(checkpoint).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_what_is_pushed_can_be_loaded(tmp_path, checkpoint, monkeypatch):
    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **options):
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **options):
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    assert HubCheckpoint.from_checkpoint(checkpoint).push_to_hub("me/mine") == "https://hub/me/mine"
    assert HubCheckpoint.from_pretrained(tmp_path / "me" / "mine").info["epoch"] == 3


def test_damaged_and_missing_weights(tmp_path, checkpoint):
    HubCheckpoint.from_checkpoint(checkpoint).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 255
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        HubCheckpoint.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*model\.safetensors"):
        HubCheckpoint.from_pretrained(tmp_path)


def test_nothing_that_a_repository_names_is_imported(tmp_path, monkeypatch):
    name = "hubstranger:net"
    source = f"from kaconv import create_model\ndef net(num_classes):\n    return create_model({NAME!r}, num_classes)\n"
    (tmp_path / "hubstranger.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    register_builder(name)
    save_checkpoint(tmp_path / "a", create_model(name, 2), name=name, classes=["a", "b"], preprocessing=DIGITS)
    HubCheckpoint.from_checkpoint(tmp_path / "a").save_pretrained(tmp_path / "folder")
    assert f"add `builder='{name}'`" in Path(tmp_path, "folder", "README.md").read_text()
    registry.OWN_BUILDERS.clear()
    sys.modules.pop("hubstranger")
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"builder": name}))
    with pytest.raises(ValueError, match="hubstranger:net is a builder outside of kaconv"):
        HubCheckpoint.from_pretrained(tmp_path / "folder")
    assert "hubstranger" not in sys.modules
    assert HubCheckpoint.from_pretrained(tmp_path / "folder", builder=name).name == name
    registry.OWN_BUILDERS.clear()
    sys.modules.pop("hubstranger")
