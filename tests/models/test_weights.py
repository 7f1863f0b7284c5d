import re
from pathlib import Path

import pytest
import torch

from kaconv.cli import main
from kaconv.data.datasets import load_data
from kaconv.data.preprocessing import CIFAR10
from kaconv.inference import evaluate
from kaconv.models import create_model, list_weights, model_card, weights
from kaconv.models.checkpoints import load_checkpoint, save_checkpoint
from kaconv.models.weights import weights_path
from kaconv.training import read_study_results

ROOT = Path(__file__).parents[2]

NAME = "ka_resnet11_cifar_l"


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> torch.nn.Module:
    """A model whose weights stand in the package as NAME.noise."""
    model = create_model(NAME, num_classes=3)
    facts = {"name": NAME, "classes": ["a", "b", "c"], "preprocessing": CIFAR10, "info": {"test_error": 12.34}}
    save_checkpoint(tmp_path / f"{NAME}.noise.safetensors", model, **facts, half=True)
    (tmp_path / f"{NAME}.noise.md").write_text("# a card")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    return model


def test_weights_are_found_by_their_tag_and_by_their_name(packaged):
    by_tag, by_name = create_model(NAME, weights="noise"), load_checkpoint(f"{NAME}.noise").model
    for key, value in packaged.state_dict().items():
        for other in (by_tag.state_dict()[key], by_name.state_dict()[key]):
            assert other.dtype == value.dtype
            torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-6)
    assert list_weights() == [f"{NAME}.noise"]
    assert list_weights("mobile*") == []
    assert model_card(f"{NAME}.noise") == "# a card"


def test_half_precision_takes_about_half_of_the_room(packaged, tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_checkpoint(whole, packaged, name=NAME, classes=["a", "b", "c"], preprocessing=CIFAR10)
    assert (tmp_path / f"{NAME}.noise.safetensors").stat().st_size < 0.7 * whole.stat().st_size


def test_a_file_of_that_name_comes_first(packaged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").mkdir()
    assert weights_path("noise").is_dir()


def test_unknown_weights_are_refused_with_those_that_there_are(packaged):
    with pytest.raises(FileNotFoundError, match=rf"no weights 'nose' of {NAME}; it has noise$"):
        create_model(NAME, weights="nose")
    with pytest.raises(FileNotFoundError, match=r"of resnet50; it has torchvision$"):
        create_model("resnet50", weights="noise")
    with pytest.raises(FileNotFoundError, match=rf"the package's weights are {NAME}.noise$"):
        load_checkpoint(f"{NAME}.nose")
    with pytest.raises(ValueError, match=f"no weights 'nose'; choose from {NAME}.noise$"):
        model_card("nose")


def test_the_command_lists_them(packaged, capsys):
    main(["list", "--weights"])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["weights", "classes"]
    assert row.split()[:4] == [f"{NAME}.noise", "3", "32", "12.3"]
    assert main(["list", "resnet*", "--weights"]) == 2
    assert f"no weights match 'resnet*'; there are {NAME}.noise" in capsys.readouterr().err


def test_an_image_of_a_class_that_the_model_lacks_is_never_right():
    model = create_model("resnet11_cifar", num_classes=10)
    found = evaluate(model, load_data("photos", image_size=32).test, progress=False)
    assert (found.labels >= 10).sum() == 23
    assert found.top1_error >= 100 * 23 / 32
    assert 0 < found.loss < 100


@pytest.mark.parametrize("name", list_weights())
def test_each_has_its_card_and_its_error(name):
    checkpoint = load_checkpoint(name)
    assert f"{checkpoint.info['test_error']:.1f} %" in model_card(name)
    assert checkpoint.name == name.rpartition(".")[0]


@pytest.mark.parametrize("name", list_weights())
def test_each_card_has_the_study_s_results_over_seeds(name):
    card, model = model_card(name), name.rpartition(".")[0]
    spec, variant = re.search(r"reports/studies/(\w+)\.yaml\), variant `(\w+)`", card).groups()
    results = read_study_results(ROOT / f"reports/studies/{spec}.json")
    row = next(row for row in results["summary"] if (row["model"], row["variant"]) == (model, variant))
    seeds = f"{len(row['seeds'])} seed{'s' if len(row['seeds']) > 1 else ''}"
    assert f"top-1 error {row['test_error']:.1f} % over {seeds}, " in card


def test_all_weights_together_are_small():
    assert sum(weights_path(name).stat().st_size for name in list_weights()) <= 15e6
