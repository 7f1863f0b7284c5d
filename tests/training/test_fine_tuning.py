"""Trainings that start from trained weights."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from kaconv.cli import main
from kaconv.models import create_model
from kaconv.models.checkpoints import load_checkpoint
from kaconv.training import Run, TrainConfig, fit, trainer
from kaconv.training.fine_tuning import freeze, keep_frozen_statistics, matching_parameters

MODEL = "ka_resnet11_cifar_l"
FROZEN = "conv1.*, layer1.*,bn1.*"


def config_for(out, **changes) -> TrainConfig:
    small = {"model": MODEL, "data": "fake", "epochs": 1, "batch_size": 32, "image_size": 8}
    return TrainConfig(**small | {"out": str(out), "save_minutes": 0} | changes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A checkpoint of ten classes."""
    run = fit(config_for(tmp_path_factory.mktemp("runs") / "first"), progress=False)
    return str(run.checkpoint_path("last"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    """Three classes, whose images differ in colour, without splits."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("apple", "red"), ("leaf", "green"), ("sky", "blue")):
        (folder / name).mkdir()
        for number in range(20):
            Image.new("RGB", (10, 10 + number % 3), colour).save(folder / name / f"IMG_{number}.png")
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, weights, pictures) -> Run:
    config = config_for(tmp_path_factory.mktemp("runs") / "tuned", weights=weights, data=pictures, freeze=FROZEN)
    return fit(config, progress=False)


def test_another_number_of_classes_gets_a_new_head_and_frozen_parts_stay(tuned, weights):
    before, after = load_file(weights), load_file(tuned.checkpoint_path("last"))
    assert after["fc.weight"].shape == (3, before["fc.weight"].shape[1])
    names = {name for name in before if name.startswith(("conv1.", "bn1.", "layer1."))}
    assert any("norm.running_mean" in name for name in names)
    for name in names:
        assert torch.equal(before[name], after[name]), name  # the statistics of the norms, too
    changed = [name for name in before.keys() - names if "num_batches" not in name]
    assert not any(torch.equal(before[name], after[name]) for name in changed)
    assert load_checkpoint(tuned.checkpoint_path("last")).classes == ["apple", "leaf", "sky"]


def test_the_config_says_what_it_started_from(tuned, weights, pictures):
    values = yaml.safe_load((tuned.folder / "config.yaml").read_text())
    assert (values["weights"], values["freeze"], values["val_fraction"]) == (weights, FROZEN, 0.2)
    with pytest.raises(ValueError, match=r"another config: freeze \('conv1.*' there, None here\)"):
        fit(config_for(tuned.folder, weights=weights, data=pictures), progress=False)


def test_an_interrupted_fine_tuning_comes_to_the_same_weights(tuned, tmp_path, monkeypatch):
    config = TrainConfig.from_dict(tuned.config.to_dict() | {"out": str(tmp_path / "a")})
    real, done = trainer._Trainer._step, []

    def step(self, *args):
        done.append(args)
        real(self, *args)
        if len(done) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer._Trainer, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        fit(config, progress=False)
    run = fit(config, progress=False)
    expected, actual = (load_file(each.checkpoint_path("last")) for each in (tuned, run))
    assert all(torch.equal(value, actual[name]) for name, value in expected.items())


def test_the_command_says_what_is_new(tmp_path, weights, pictures, capsys):
    argv = ["train", "--model", MODEL, "--data", pictures, "--image-size", "8", "--epochs", "1", "--weights", weights]
    assert main([*argv, "--freeze", "layer*", "--out", str(tmp_path / "a")]) == 0
    split, head, frozen, epoch, _ = capsys.readouterr().out.splitlines()
    assert split.endswith("12 of its 60 images, 20% of each class, are kept for testing; their names decide which")
    assert head == f"{tmp_path / 'a'}: starts from {weights}; fc is new, for 3 classes instead of 10"
    assert frozen.startswith(f"{tmp_path / 'a'}: ")
    assert frozen.endswith("parameter tensors are frozen")
    assert epoch.startswith(MODEL)


def test_the_same_number_of_classes_keeps_the_head(tmp_path, weights, capsys):
    config = config_for(tmp_path / "a", weights=Path(weights), freeze="[!f]*", lr=1e-9)
    fit(config, progress=False)
    assert "with its 10 classes' outputs" in capsys.readouterr().out
    before, after = load_file(weights), load_file(tmp_path / "a" / "last.safetensors")
    torch.testing.assert_close(before["fc.weight"], after["fc.weight"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "features.*"}, r"no parameter matches 'features.\*'; there are conv1.*layer1.0.*fc\."),
        ({"freeze": "conv1.*,"}, "no parameter matches ''"),
        ({"freeze": "*"}, r"'\*' matches every parameter, nothing is left to train"),
        ({"freeze": "[a-e]*,[f-z]*"}, "matches every parameter"),
        ({"freeze": 3}, "freeze must be text, or None, got 3"),
        ({"weights": 3}, "weights must be a path, a name or None, got 3"),
        ({"weights": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"weights": "torchvision"}, "torchvision has no weights of ka_resnet11_cifar_l"),
        ({"val_fraction": 1.0}, "val_fraction must be a number between 0 and 1, got 1.0"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fit(config_for(tmp_path / "a", **changes), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model_are_refused(tmp_path, weights):
    with pytest.raises(ValueError, match="weights of ka_resnet11_cifar_l with 10 classes, not of resnet11_cifar"):
        fit(config_for(tmp_path / "a", model="resnet11_cifar", weights=weights), progress=False)


def test_only_norms_whose_parameters_are_all_frozen_keep_their_statistics():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), nn.Linear(2, 2))
    assert freeze(model, "0.*,1.weight") == ["3 of 6 parameter tensors are frozen"]
    keep_frozen_statistics(model)
    assert [module.training for module in model] == [False, True, True, True]


def test_matching_parameters_come_in_the_model_s_order():
    model = create_model("mobilenetv2_050", num_classes=3)
    names = matching_parameters(model, "features.18.*,features.0.*")
    assert names[0] == "features.0.0.weight"
    assert names[-1] == "features.18.1.bias"
    assert matching_parameters(model, None) == []
