import pytest
import timm
import timm.data
import torch
import torchvision
from PIL import Image
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

from kaconv import KAConv1d, KAConv3d, create_model, list_models, register
from kaconv.layers import KAConv2d
from kaconv.models.weights import list_weights

NAME = "ka_resnet11_cifar_l"
PRETRAINED = "ka_mobilenetv2_050_l"  # weights of it come with the package


@pytest.fixture(scope="module", autouse=True)
def names():
    assert register() == register() == list_models("ka_*")
    return list_models("ka_*")


def test_both_libraries_know_every_model(names):
    assert set(names) <= set(torchvision.models.list_models(include="ka_*"))
    assert set(names) <= set(timm.list_models("ka_*"))
    assert timm.model_entrypoint("resnet50").__module__ == "timm.models.resnet"


@pytest.mark.parametrize("build", [timm.create_model, torchvision.models.get_model])
def test_a_model_is_the_same_as_kaconv_s(build):
    torch.manual_seed(0)
    expected = create_model(NAME, num_classes=3, min_hidden=8).state_dict()
    torch.manual_seed(0)
    found = build(NAME, num_classes=3, min_hidden=8).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


@pytest.mark.parametrize(
    ("build", "wanted"),
    [(timm.create_model, {"pretrained": True}), (torchvision.models.get_model, {"weights": "DEFAULT"})],
)
def test_pretrained_weights_that_there_are_not_are_refused(build, wanted):
    name = "ka_resnet29_cifar_l"
    with pytest.raises(ValueError, match=rf"^{name} has no pretrained weights in .*weights=PATH\) loads a checkpoint$"):
        build(name, **wanted)
    assert build(PRETRAINED).num_classes == 1000


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (timm.create_model, {"pretrained": True, "pretrained_cfg": "imagenet"}),
        (timm.create_model, {"pretrained": True, "pretrained_cfg": {"file": "weights.pt"}}),
        (torchvision.models.get_model, {"weights": "IMAGENET1K_V1"}),
        (torchvision.models.get_model, {"weights": torchvision.models.ResNet50_Weights.DEFAULT}),
    ],
)
def test_an_unknown_tag_is_told_the_known_ones(build, wanted):
    with pytest.raises(ValueError, match=rf"^{PRETRAINED} has no pretrained weights of that tag, only imagenette; "):
        build(PRETRAINED, **wanted)


def test_timm_loads_the_packaged_weights():
    expected = create_model(PRETRAINED, weights="imagenette")
    assert timm.list_pretrained("ka_*") == list_weights("ka_*")
    for name in (PRETRAINED, f"{PRETRAINED}.imagenette"):
        assert_same(timm.create_model(name, pretrained=True), expected)
    model = timm.create_model(PRETRAINED, pretrained=True, num_classes=3)
    assert model.get_classifier().out_features == 3
    assert_same(model.features, expected.features)
    assert timm.create_model(PRETRAINED, pretrained=True, num_classes=0)(torch.zeros(2, 3, 32, 32)).shape == (2, 1280)
    levels = timm.create_model(PRETRAINED, pretrained=True, features_only=True)
    assert torch.equal(levels.model.features[0][0].weight, expected.features[0][0].weight)
    config = timm.data.resolve_data_config(model=model)
    assert (config["input_size"], config["crop_pct"]) == ((3, 96, 96), 96 / 110)
    described = timm.get_pretrained_cfg(PRETRAINED)
    assert (described.tag, described.num_classes, described.input_size) == ("imagenette", 10, (3, 96, 96))


def test_torchvision_loads_the_packaged_weights():
    expected = create_model(PRETRAINED, weights="imagenette")
    weights = torchvision.models.get_model_weights(PRETRAINED)
    for given in (weights.DEFAULT, weights.IMAGENETTE, "DEFAULT", "IMAGENETTE", f"{PRETRAINED}_Weights.IMAGENETTE"):
        assert_same(torchvision.models.get_model(PRETRAINED, weights=given), expected)
    found = weights.DEFAULT.get_state_dict(progress=False)
    assert all(torch.equal(value, found[key]) for key, value in expected.state_dict().items())
    assert weights.DEFAULT.meta["categories"][0] == "tench"
    assert weights.DEFAULT.transforms()(Image.new("RGB", (200, 100))).shape == (3, 96, 96)
    with pytest.raises(ValueError, match=r"with 10 classes, not of .* with 3 classes"):
        torchvision.models.get_model(PRETRAINED, weights="DEFAULT", num_classes=3)


def assert_same(model, expected):
    found = model.state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(value, found[key]) for key, value in expected.state_dict().items())


@pytest.mark.parametrize(("name", "side"), [(NAME, 32), ("ka_mobilenetv2_050_l", 224)])
def test_timm_finds_the_preprocessing(name, side):
    config = timm.data.resolve_data_config(model=timm.create_model(name))
    assert config["input_size"] == (3, side, side)
    assert config["crop_pct"] == pytest.approx(224 / 256, abs=0.015)  # in whole pixels
    assert config["mean"] == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("name", "node"), [(NAME, "layer2.0.conv2"), ("ka_mobilenetv2_050_l", "features.3.conv.1"), (NAME, "layer1")]
)
def test_feature_extractor(name, node):
    model = create_model(name, num_classes=3).eval()
    seen = []
    model.get_submodule(node).register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(2, 3, 32, 32)
    logits = model(x)
    extractor = create_feature_extractor(model, {node: "features", "fc" if "resnet" in name else "classifier": "out"})
    outputs = extractor(x)
    torch.testing.assert_close(outputs["features"], seen[0])
    torch.testing.assert_close(outputs["out"], logits)


@pytest.mark.parametrize(("kind", "ndim"), [(KAConv1d, 1), (KAConv2d, 2), (KAConv3d, 3)])
def test_a_layer_is_a_leaf_of_torch_fx_and_refuses_torchscript(kind, ndim):
    model = nn.Sequential(kind(2, 4, 3), nn.Flatten()).eval()
    traced = fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    x = torch.randn(2, 2, *[6] * ndim)
    expected = model(x)
    torch.testing.assert_close(traced(x), expected)
    with pytest.raises(RuntimeError, match=r"\ATorchScript cannot script a KAConv layer; use torch.jit.trace[^\n]*\Z"):
        torch.jit.script(model)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)
