import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import kaconv
from kaconv import KAConv2d, create_model, list_models
from kaconv.data.preprocessing import DIGITS
from kaconv.models.checkpoints import save_checkpoint
from kaconv.models.resnet import ResNet
from kaconv.paper.published import TABLE

KACONV_LAYERS = {"resnet50": 16, "resnet101": 33, "resnext50_32x4d": 16, "mobilenetv2_050": 17, "mobilenetv2_100": 17}


def test_the_paper_s_models_are_all_there():
    assert {row.model for row in TABLE} <= set(list_models())
    assert len({row.model for row in TABLE}) == 15


def test_list_models_takes_a_pattern():
    assert list_models("ka_resnet50_*") == ["ka_resnet50_h", "ka_resnet50_l"]
    assert list_models() == sorted(list_models("ka_*") + [name for name in list_models() if "ka_" not in name])
    assert list_models("nothing") == []


@pytest.mark.parametrize("name", list_models("*_cifar*"))
def test_small_models_train_on_pictures_of_any_small_size(name):
    model = create_model(name, num_classes=7)
    for size in (32, 17):
        output = model(torch.randn(2, 3, size, size))
        assert output.shape == (2, 7)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in list_models() if "cifar" not in name])
def test_imagenet_models_have_the_paper_s_shape(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=11).eval()
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 11)
    layers = [module for module in model.modules() if isinstance(module, KAConv2d)]
    family = name.removeprefix("ka_").removesuffix("_l").removesuffix("_h")
    assert len(layers) == (KACONV_LAYERS[family] if name.startswith("ka_") else 0)
    for layer in layers:
        assert layer.attention == name[-1].upper()
        assert layer.kernel_size == (3, 3)
        assert (layer.attention_generator.excite.bias is not None) == (family in ("resnet50", "resnet101"))
        assert isinstance(layer.act, nn.ReLU6 if "mobilenet" in name else nn.ReLU)


@pytest.mark.parametrize("name", ["ka_resnet50_l", "ka_mobilenetv2_050_h"])
def test_a_large_model_runs(name):
    model = create_model(name, num_classes=5).eval()
    with torch.no_grad():
        output = model(torch.randn(1, 3, 64, 64))
    assert output.isfinite().all()


@pytest.mark.parametrize(
    ("name", "layers", "groups", "base_width"),
    [("resnet50", (3, 4, 6, 3), 1, 64), ("resnext50_32x4d", (3, 4, 6, 3), 32, 4)],
)
def test_our_resnet_without_attention_is_torchvision_s(name, layers, groups, base_width):
    theirs = create_model(name, num_classes=10).eval()
    ours = ResNet(layers, 10, groups=groups, base_width=base_width).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_replace_stride_with_dilation_is_torchvision_s():
    dilated = {"replace_stride_with_dilation": [False, True, True]}
    theirs = create_model("resnet50", num_classes=10, **dilated).eval()
    ours = ResNet((3, 4, 6, 3), 10, **dilated).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    layers = dict(create_model("ka_resnet50_l", **dilated).named_modules())
    for name, module in theirs.named_modules():
        if name.endswith(".conv2"):
            assert layers[name].geometry.stride == module.stride
            assert layers[name].geometry.dilation == module.dilation
            assert layers[name].geometry.padding == module.padding


def test_replace_stride_with_dilation_keeps_the_size_of_the_features():
    model = create_model("ka_resnet11_cifar_l", num_classes=3, replace_stride_with_dilation=(False, True)).eval()
    assert model.layer3(model.layer2(torch.randn(1, 64, 16, 16))).shape == (1, 256, 8, 8)
    for wrong in ((True,), (True, False, True)):
        with pytest.raises(ValueError, match=r"a value for each stage but the first, 2 in all; got \(True,"):
            create_model("ka_resnet11_cifar_l", replace_stride_with_dilation=wrong)


@pytest.mark.parametrize("name", ["ka_resnet11_cifar_l", "resnet11_cifar", "ka_mobilenetv2_050_l", "mobilenetv2_050"])
def test_norm_layer_reaches_every_norm(name):
    def norm_layer(channels):
        return nn.GroupNorm(1, channels)

    model = create_model(
        name, num_classes=3, norm_layer=norm_layer, **({"generator_norm": "layer"} if "ka_" in name else {})
    )
    assert not any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in model.modules())
    model(torch.randn(1, 3, 32, 32)).sum().backward()


@pytest.mark.parametrize("name", ["ka_resnet11_cifar_l", "ka_mobilenetv2_050_l", "resnet50"])
def test_frozen_norms_take_a_model_s_weights_and_give_its_outputs(name):
    model = create_model(name, num_classes=3).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    model(x)
    frozen = create_model(name, num_classes=3, norm_layer=torchvision.ops.FrozenBatchNorm2d).double()
    frozen.load_state_dict(model.state_dict())
    torch.testing.assert_close(frozen.eval()(x), model.eval()(x))


def test_plain_twins_are_torchvision_s():
    assert isinstance(create_model("resnet50"), torchvision.models.ResNet)
    expected = torchvision.models.mobilenet_v2().state_dict()
    assert {k: v.shape for k, v in create_model("mobilenetv2_100").state_dict().items()} == {
        k: v.shape for k, v in expected.items()
    }


@pytest.mark.parametrize("family", ["resnet50", "resnext50_32x4d", "mobilenetv2_100"])
def test_submodules_are_called_as_in_torchvision(family):
    """Everything that KAConv leaves alone keeps its name and shape; all that is new lies inside a KAConv2d."""
    with torch.device("meta"):
        plain, ka = create_model(family), create_model(f"ka_{family}_l")
    replaced = [name for name, module in ka.named_modules() if isinstance(module, KAConv2d)]
    theirs = {name: value.shape for name, value in plain.state_dict().items()}
    for name, value in ka.state_dict().items():
        if not any(name.startswith(f"{layer}.") for layer in replaced):
            assert theirs[name] == value.shape
    for layer in replaced:
        twin = plain.get_submodule(layer)
        convolution = twin if isinstance(twin, nn.Conv2d) else twin[0]
        assert ka.get_submodule(layer).weight.shape == convolution.weight.shape
        assert ka.get_submodule(layer).stride == convolution.stride


def test_initialisation_follows_the_recipe():
    torch.manual_seed(0)
    model = create_model("ka_resnet50_l")
    convolution = model.layer1[0].conv3
    assert convolution.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.03)
    assert model.fc.weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.03)
    assert model.layer4[2].conv2.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.03)
    assert model.fc.bias.abs().max() == 0
    assert (model.bn1.weight == 1).all()


@pytest.mark.parametrize("name", ["mobilenetv2_050", "ka_mobilenetv2_050_l", "resnet50", "ka_resnet50_h"])
def test_no_module_works_in_place(name):
    with torch.device("meta"):
        model = create_model(name)
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize("name", ["ka_resnet11_cifar_l", "ka_mobilenetv2_050_l"])
def test_what_a_hook_saw_stays(name):
    model = create_model(name, num_classes=3).eval()
    seen = []
    for module in model.modules():
        module.register_forward_hook(lambda m, i, o: seen.append((o, o.detach().clone())))
    model(torch.randn(1, 3, 32, 32))
    assert len(seen) > 20
    assert all(torch.equal(value, copied) for value, copied in seen)


def test_options_reach_every_layer():
    model = create_model("ka_resnet11_cifar_l", reduction=2, min_hidden=4)
    hidden = [m.attention_generator.squeeze.out_features for m in model.modules() if isinstance(m, KAConv2d)]
    assert hidden == [8, 16, 32]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "ka_resnet50"}, "unknown model 'ka_resnet50'; did you mean ka_resnet50_"),
        ({"name": "zzz"}, "unknown model 'zzz'; choose from ka_mobilenetv2_050_h, "),
        ({"name": "resnet50", "num_classes": -1}, "num_classes must be an integer of at least 0; got -1"),
        ({"name": "resnet50", "weights": True}, "weights must be a path or 'torchvision'; got True"),
        ({"name": "resnet50", "weights": "torchvision", "num_classes": 5}, "are for 1000 classes, not 5"),
        (
            {"name": "mobilenetv2_050", "weights": "torchvision"},
            "torchvision has no weights of mobilenetv2_050; it has them of resnet50, resnet101, resnext50_32x4d",
        ),
        ({"name": "ka_resnet50_l", "weights": "torchvision"}, "torchvision has no weights of ka_resnet50_l"),
        ({"name": "resnet50", "reduction": 8}, "resnet50 has no KAConv2d, so it takes no reduction"),
        ({"name": "resnet11_cifar", "reduction": 8}, "resnet11_cifar has no KAConv2d"),
        (
            {"name": "mobilenetv2_100", "replace_stride_with_dilation": (False, True)},
            "a model without KAConv2d takes no replace_stride_with_dilation",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


@pytest.fixture
def checkpoint(tmp_path):
    model = create_model("ka_resnet11_cifar_l", num_classes=3)
    model(torch.randn(4, 3, 8, 8))
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model, name="ka_resnet11_cifar_l", classes=["a", "b", "c"], preprocessing=DIGITS)
    return path, model.state_dict()


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 3}, {"backend": "reference"}])
@pytest.mark.parametrize("kind", [str, Path])
def test_weights_of_a_checkpoint(checkpoint, arguments, kind):
    path, expected = checkpoint
    model = create_model("ka_resnet11_cifar_l", weights=kind(path), **arguments)
    assert model.training
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert model.layer1[0].conv2.backend == arguments.get("backend", "auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "ka_resnet11_cifar_h"}, "of ka_resnet11_cifar_l with 3 classes, not of ka_resnet11_cifar_h$"),
        ({"num_classes": 4}, "of ka_resnet11_cifar_l with 3 classes, not of ka_resnet11_cifar_l with 4 classes$"),
        ({"name": "resnet50", "num_classes": 4}, "ka_resnet11_cifar_l with 3 classes, not of resnet50 with 4 classes$"),
        ({"min_hidden": 4}, "the weights do not fit ka_resnet11_cifar_l with 3 classes: size mismatch"),
    ],
)
def test_weights_of_another_model_are_refused(checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**{"name": "ka_resnet11_cifar_l", "weights": checkpoint[0]} | arguments)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*a\.safetensors"):
        create_model("resnet50", weights=tmp_path / "a.safetensors")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """PyTorch's cache, empty, and no network."""

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_torchvision_s_weights(hub, capsys):
    state = create_model("mobilenetv2_100").state_dict()
    torch.save(state, hub / "mobilenet_v2-b0353104.pth")  # IMAGENET1K_V1
    model = create_model("mobilenetv2_100", weights="torchvision")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.training
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnext50_32x4d", "mobilenetv2_100"])
def test_every_torchvision_weight_is_its_model_s_v1(name, monkeypatch):
    urls = []

    def state_dict(url, **options):
        assert options["weights_only"]
        urls.append(url)
        builder = "mobilenet_v2" if "mobilenet" in name else name
        return torchvision.models.get_model(builder).state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", state_dict)
    create_model(name, weights="torchvision")
    weights = torchvision.models.get_model_weights("mobilenet_v2" if "mobilenet" in name else name)
    assert urls == [weights.IMAGENET1K_V1.url]


def test_without_a_network_torchvision_s_weights_are_one_error(hub, capsys):
    with pytest.raises(FileNotFoundError) as caught:
        create_model("resnet50", weights="torchvision")
    message = str(caught.value)
    assert message.startswith(f"cannot get torchvision's weights of resnet50 as {hub / 'resnet50-0676ba61.pth'}: ")
    assert "Name or service not known>; without a network, put https://" in message
    assert "\n" not in message
    assert list(hub.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", pickle.dumps(print, 2)])
def test_a_bad_download_is_one_error(hub, content):
    (hub / "resnet50-0676ba61.pth").write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"resnet50-0676ba61.pth: .+; remove it$") as caught:
        create_model("resnet50", weights="torchvision")
    assert "False" not in str(caught.value)  # torch advises weights_only=False
    torch.save({"fc.weight": torch.zeros(2)}, hub / "resnet50-0676ba61.pth")
    with pytest.raises(FileNotFoundError, match=r"do not fit; remove it$"):
        create_model("resnet50", weights="torchvision")


def test_version_is_the_distribution_s():
    from importlib.metadata import version

    assert kaconv.__version__ == version("kaconv")
