"""Backbones for torchvision's detectors and segmentation heads: maps, norms, what is trained."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.resnet import Bottleneck
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.ops import FrozenBatchNorm2d

from kaconv import KAConv2d, convert_to_kaconv, create_model, list_models
from kaconv.data.preprocessing import FAKE
from kaconv.layers.kaconv2d import PerPositionNorm
from kaconv.models import backbone, detector
from kaconv.models.checkpoints import save_checkpoint
from kaconv.models.dense import DETECTORS, FrozenBatchNorm1d, group_norm
from kaconv.models.resnet import ResNet

THE_15 = [name for name in list_models() if not name.removesuffix("_l").removesuffix("_h").endswith("_cifar")]
MOBILE = "ka_mobilenetv2_050_l"
TARGETS = [{"boxes": torch.tensor([[4.0, 6, 40, 50]]), "labels": torch.tensor([1])}]


def small(attention="L", layers=(1, 2, 1, 1)):
    """A ResNet of all five stages, narrow."""
    return ResNet(layers, 10, planes=8, attention=attention)


def trained(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def batch_norms(module):
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


@pytest.mark.parametrize("name", THE_15)
def test_every_model_gives_the_maps_that_the_heads_want(name):
    assert len(THE_15) == 15
    with torch.device("meta"):
        images = torch.zeros(2, 3, 64, 96)
        model = create_model(name, num_classes=2)
        pyramid = backbone(model)(images)
        assert [maps.shape for maps in pyramid.values()] == [(2, 256, 64 // s, 96 // s) for s in (4, 8, 16, 32)] + [
            (2, 256, 1, 2)
        ]
        assert list(pyramid) == ["0", "1", "2", "3", "pool"]
        pyramid = backbone(model, "retinanet")(images)
        assert list(pyramid) == ["0", "1", "2", "p6", "p7"]
        assert pyramid["0"].shape == (2, 256, 8, 12)
        if "mobilenet" in name:
            lite = backbone(model, "ssdlite")
            maps = lite(images)
            assert [found.shape[1] for found in maps.values()] == lite.out_channels
            assert [found.shape[2] for found in maps.values()] == [4, 2, 1, 1, 1, 1]
        else:
            with pytest.raises(ValueError, match="wants a MobileNetV2"):
                backbone(model, "ssdlite")
        dilated = backbone(model, "segmentation")
        assert {key: found.shape for key, found in dilated(images).items()} == {
            "aux": (2, dilated.aux_channels, 8, 12),
            "out": (2, dilated.out_channels, 8, 12),
        }


@pytest.mark.parametrize("attention", ["L", "H"])
def test_frozen_norms_compute_as_the_norms_did_in_evaluation(attention):
    model = small(attention)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 64, 64) * 2 + 1)  # statistics that are no longer those of a new norm
    images = torch.randn(3, 3, 64, 64)
    expected = backbone(model.eval(), "retinanet").body(images)
    body = backbone(model, "retinanet", norm="frozen").body.train()
    assert not batch_norms(body)
    layers = [part for part in body.modules() if isinstance(part, KAConv2d)]
    assert len(layers) == 5
    for layer in layers:
        assert type(layer.norm) is FrozenBatchNorm2d
        assert len(layer.norm.weight) == 9 * layer.out_channels  # the norm of each position, side by side
        assert type(layer.attention_generator.norm) is FrozenBatchNorm1d
    before = {name: value.clone() for name, value in body.named_buffers()}
    found = body(images)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key])
    body(images[:1])["2"].sum().backward()  # one image is enough
    assert all(torch.equal(value, before[name]) for name, value in body.named_buffers())
    assert layers[0].weight.grad.abs().max() > 0


def test_group_norms_take_the_place_of_all_norms_and_train_on_one_image():
    body = backbone(small(), norm="group").body
    assert not batch_norms(body)
    layers = [part for part in body.modules() if isinstance(part, KAConv2d)]
    assert all(isinstance(layer.norm, PerPositionNorm) and len(layer.norm) == 9 for layer in layers)
    assert all(isinstance(layer.attention_generator.norm, nn.GroupNorm) for layer in layers)
    sum(found.sum() for found in body(torch.randn(1, 3, 64, 64)).values()).backward()
    assert all(parameter.grad is not None for parameter in body.parameters())


def test_a_generator_s_norm_is_as_it_was_asked_for():
    with torch.device("meta"):
        body = backbone(MOBILE, norm="group", generator_norm="layer")
    norms = {type(part.attention_generator.norm) for part in body.modules() if isinstance(part, KAConv2d)}
    assert norms == {nn.LayerNorm}


@pytest.mark.parametrize(("channels", "groups"), [(1280, 32), (256, 32), (96, 8), (64, 16), (24, 2), (12, 1), (10, 1)])
def test_groups_divide_the_channels_and_hold_four_at_least(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("stages", range(6))
def test_the_last_stages_are_trained_as_in_torchvision(stages):
    body = backbone(small(), trainable_layers=stages).body
    theirs = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=stages, norm_layer=nn.BatchNorm2d
    ).body
    tops = {name.split(".")[0] for name in trained(body)}
    assert tops == {name.split(".")[0] for name in trained(theirs)}
    frozen = {name for name, _ in body.named_parameters()} - trained(body)
    assert all(name.split(".")[0] not in tops for name in frozen)  # generators and norms go with their layer


def test_with_weights_norms_are_frozen_and_three_stages_trained(tmp_path):
    model = create_model(MOBILE, num_classes=3)
    save_checkpoint(tmp_path / "m.safetensors", model, name=MOBILE, classes=list("abc"), preprocessing=FAKE)
    body = backbone(MOBILE, "retinanet", weights=tmp_path / "m.safetensors").body
    assert not batch_norms(body)
    assert {int(name.split(".")[0]) for name in trained(body)} == set(range(4, 19))  # strides 8, 16 and 32
    there = body.state_dict()
    kept = {key: value for key, value in model.features.state_dict().items() if "num_batches" not in key}
    assert there.keys() == kept.keys()
    assert all(torch.equal(there[key], value) for key, value in kept.items())


def test_dilation_is_torchvision_s():
    model = torchvision.models.ResNet(Bottleneck, [1, 2, 2, 2], width_per_group=8)
    dilated = torchvision.models.ResNet(
        Bottleneck, [1, 2, 2, 2], width_per_group=8, replace_stride_with_dilation=[False, True, True]
    )
    dilated.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = backbone(model.eval(), "segmentation")(images)["out"]
        x = images
        for name, child in dilated.eval().named_children():
            x = child(x)
            if name == "layer4":
                break
    assert torch.equal(found, x)


def test_dilation_of_a_kaconv_is_that_of_the_convolution():
    ours = backbone(small(layers=(1, 2, 2, 2)), "segmentation")
    plain = backbone(small(None, layers=(1, 2, 2, 2)), "segmentation")
    for name, module in plain.named_modules():
        if name.endswith(".conv2"):
            assert ours.get_submodule(name).geometry.dilation == module.dilation
            assert ours.get_submodule(name).geometry.padding == module.padding
            assert ours.get_submodule(name).geometry.stride == module.stride


def test_segmentation_heads_train_on_it():
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    for kind, head in ((FCN, FCNHead), (DeepLabV3, DeepLabHead)):
        maps = backbone(small(), "segmentation")
        model = kind(maps, head(maps.out_channels, 3), FCNHead(maps.aux_channels, 3))
        found = model(images)
        assert found["out"].shape == found["aux"].shape == (2, 3, 64, 64)
        nn.functional.cross_entropy(found["out"], labels).backward()
        assert maps.layer1[0].conv2.weight.grad.abs().max() > 0


def test_a_converted_resnet_becomes_a_detector():
    converted, table = convert_to_kaconv(torchvision.models.resnet18(), where="layer*")
    maps = backbone(converted, norm="group", trainable_layers=3)
    sizes = tuple((side,) for side in (8, 16, 32, 64, 128))
    options = {"min_size": 64, "max_size": 96, "box_detections_per_img": 5}
    model = FasterRCNN(maps, 2, rpn_anchor_generator=AnchorGenerator(sizes, ((1.0,),) * 5), **options)
    losses = model([torch.rand(3, 64, 80)], TARGETS)  # a batch of one
    sum(losses.values()).backward()
    assert table.replaced
    assert maps.body.layer4[0].conv1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("head", DETECTORS)
def test_detectors_learn_and_detect(head):
    torch.manual_seed(0)
    model = detector(MOBILE, head, 2, image_size=64, norm="group", generator_norm="layer")
    losses = model([torch.rand(3, 48, 64)], TARGETS)
    loss = sum(losses.values())
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    with torch.no_grad():
        found = model.eval()([torch.rand(3, 48, 64), torch.rand(3, 64, 50)])
    for one, (height, width) in zip(found, ((48, 64), (64, 50)), strict=True):
        assert set(one) == {"boxes", "labels", "scores"}
        assert (one["boxes"] <= torch.tensor([width, height] * 2)).all()
        assert one["labels"].numel() == 0 or one["labels"].max() <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet5"}, "unknown model 'resnet5'"),
        ({"model": MOBILE, "head": "yolo"}, "head must be one of faster_rcnn, retinanet, ssdlite, segmentation"),
        ({"model": MOBILE, "norm": "none"}, "norm must be one of batch, frozen, group, got 'none'"),
        (
            {"model": MOBILE, "trainable_layers": 6},
            "trainable_layers must be a whole number from 0 to 5, or None, got 6",
        ),
        ({"model": MOBILE, "weights": "x.safetensors", "norm": "group"}, 'norm="group" puts new norms in place'),
        ({"model": "resnet11_cifar"}, "a backbone has layer1 to layer4, or features; ResNet has conv1"),
        ({"model": nn.Sequential()}, "a backbone has layer1 to layer4, or features; Sequential has"),
        ({"model": nn.Sequential(), "weights": "x"}, "Sequential is built already: it takes no weights"),
        ({"model": torchvision.models.vgg11_bn(init_weights=False)}, "this one's are"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        backbone(**arguments)


def test_a_pooling_stride_cannot_be_dilated():
    with torch.device("meta"):
        densenet = torchvision.models.densenet121()
        assert backbone(densenet).out_channels == 256
        with pytest.raises(ValueError, match="the last map still has stride 32"):
            backbone(densenet, "segmentation")
