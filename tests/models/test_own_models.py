"""Models from outside of kaconv, in every place where a registered one may stand."""

import json
import sys

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from kaconv import KAConv2d, create_model, register_builder
from kaconv.cli import main
from kaconv.data.preprocessing import DIGITS
from kaconv.models import registry
from kaconv.models.checkpoints import load_checkpoint, save_checkpoint

SOURCE = """
import torch
from torch import nn
from kaconv import convert_to_kaconv

imported = True

def net(num_classes, width=4):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]
    triple = [nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return convert_to_kaconv(nn.Sequential(*triple, *head), image_size=8)[0]

def number(num_classes):
    return 3

nothing = 5
"""
NAME = "stranger.nets:net"


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A package that kaconv does not know, not yet imported."""
    folder = tmp_path / "site" / "stranger"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "nets.py").write_text(SOURCE)
    monkeypatch.setattr(registry, "OWN_BUILDERS", registry.OWN_BUILDERS)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder.parent
    registry.OWN_BUILDERS.clear()
    for name in ("stranger.nets", "stranger"):
        sys.modules.pop(name, None)


@pytest.fixture
def checkpoint(stranger, tmp_path):
    """A checkpoint of such a model, as another process finds it: nothing is imported."""
    register_builder(NAME)
    model = create_model(NAME, num_classes=2, width=6)
    path = tmp_path / "own.safetensors"
    save_checkpoint(path, model, name=NAME, classes=["a", "b"], preprocessing=DIGITS)
    registry.OWN_BUILDERS.clear()
    sys.modules.pop("stranger.nets")
    return path, model


def test_a_checkpoint_of_it_comes_back_with_its_options(checkpoint):
    path, model = checkpoint
    loaded = load_checkpoint(path, builder=NAME)
    assert (loaded.name, loaded.options) == (NAME, {"width": 6})
    assert loaded.metadata()["options"] == {"width": 6}
    assert isinstance(loaded.model[0], KAConv2d)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.model(x), model.eval()(x))
    assert not any(getattr(module, "inplace", False) for module in loaded.model.modules())
    assert load_checkpoint(path).name == NAME  # registered now
    assert create_model(NAME, weights=path).training


def test_nothing_that_a_file_names_is_imported(checkpoint):
    with pytest.raises(ValueError, match=r"stranger.nets:net is a builder outside of kaconv, .* --builder stranger"):
        load_checkpoint(checkpoint[0])
    assert "stranger.nets" not in sys.modules


def test_the_builder_must_be_the_file_s(checkpoint):
    path, _ = checkpoint
    with pytest.raises(ValueError, match="is a builder outside of kaconv"):
        load_checkpoint(path, builder="stranger.nets:number")
    register_builder(NAME)
    with pytest.raises(ValueError, match=r"holds weights of stranger.nets:net, not of stranger.nets:number"):
        load_checkpoint(path, builder="stranger.nets:number")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("net", "given as package.module:function, got 'net'"),
        ("stranger.nets:", "given as package.module:function"),
        ("stranger.none:net", "cannot import the builder stranger.none:net: No module named 'stranger.none'"),
        ("stranger.nets:none", "cannot import the builder stranger.nets:none: .*no attribute 'none'"),
        ("stranger.nets:nothing", "the builder stranger.nets:nothing cannot be called: it is a int"),
    ],
)
def test_bad_builders(stranger, path, message):
    with pytest.raises(ValueError, match=message):
        register_builder(path)
    assert not registry.OWN_BUILDERS


def test_what_gives_no_module_is_refused(stranger):
    register_builder("stranger.nets:number")
    with pytest.raises(ValueError, match=r"the builder stranger.nets:number gave no nn.Module but a int"):
        create_model("stranger.nets:number")


def test_options_that_its_builder_does_not_know(checkpoint, tmp_path):
    register_builder(NAME)
    metadata = {"name": NAME, "classes": ["a"], "preprocessing": DIGITS.to_dict(), "info": {}, "options": {"height": 3}}
    save_file({"weight": torch.zeros(2)}, tmp_path / "a", {"kaconv": json.dumps(metadata)})
    with pytest.raises(ValueError, match=r"stranger.nets:net cannot be built with {'height': 3}: .*'height'"):
        load_checkpoint(tmp_path / "a")


def test_options_of_kaconv_s_own_models_come_back(tmp_path):
    options = {"generator_norm": "layer", "min_hidden": 8}
    model = create_model("ka_resnet11_cifar_l", 2, **options, backend="eager")
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model, name="ka_resnet11_cifar_l", classes=["a", "b"], preprocessing=DIGITS)
    loaded = load_checkpoint(path)
    assert loaded.options == options
    assert isinstance(loaded.model.layer1[0].conv2.attention_generator.norm, nn.LayerNorm)
    assert loaded.model.layer1[0].conv2.backend == "auto"
    model = create_model("ka_resnet11_cifar_l", 2, act_layer=nn.SiLU)
    with pytest.raises(ValueError, match=r"cannot hold act_layer=<class .*SiLU'>, which is not JSON-able"):
        save_checkpoint(path, model, name="ka_resnet11_cifar_l", classes=["a", "b"], preprocessing=DIGITS)


def test_a_model_that_is_no_one_s_is_refused_when_it_is_saved(tmp_path):
    with pytest.raises(ValueError, match="unknown model 'my_resnet18'"):
        save_checkpoint(
            tmp_path / "a",
            torchvision.models.resnet18(num_classes=2),
            name="my_resnet18",
            classes=["a", "b"],
            preprocessing=DIGITS,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_is_trained_evaluated_predicted_with_and_exported(stranger, tmp_path, capsys):
    options = {"--model": NAME, "--data": "digits", "--epochs": "1", "--batch-size": "256", "--out": tmp_path / "run"}
    arguments = [str(part) for pair in options.items() for part in pair]
    assert main(["train", *arguments]) == 2
    assert "--builder stranger.nets:net" in capsys.readouterr().err
    own = ["--builder", NAME]
    assert main([*own, "train", *arguments]) == 0
    best = ["--checkpoint", str(tmp_path / "run" / "best.safetensors")]
    assert main([*own, "evaluate", *best, "--data", "digits"]) == 0
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main([*own, "predict", *best, str(tmp_path / "a.png")]) == 0
    assert main([*own, "export", *best, "--format", "pt2", "--out", str(tmp_path / "a.pt2")]) == 0
    assert f"{NAME} on digits" in capsys.readouterr().out
