import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from kaconv import AttentionCapture, KAConv2d, convert_to_kaconv, create_model
from kaconv.models.complexity import complexity

PAPER = {"resnet50": "layer*.conv2", "resnet101": "layer*.conv2", "resnext50_32x4d": "layer*.conv2"} | dict.fromkeys(
    ("mobilenetv2_050", "mobilenetv2_100"), "features.*.conv.*"
)


def paper_model(family, attention):
    """The converted plain model, its table, and the model that it should be."""
    options = {} if family.startswith("resnet") else {"logit_bias": False}
    model, table = convert_to_kaconv(create_model(family), attention, PAPER[family], **options)
    return model, table, create_model(f"ka_{family}_{attention.lower()}")


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["L", "H"])
@pytest.mark.parametrize("family", PAPER)
def test_the_paper_s_families_give_the_paper_s_parameters_and_flops(family, attention):
    with torch.device("meta"):
        model, table, paper = paper_model(family, attention)
        assert table.after == complexity(paper)
    shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (model, paper)]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", PAPER)
def test_the_paper_s_families_give_the_paper_s_outputs(family):
    model, _, paper = paper_model(family, "L")
    model.load_state_dict(paper.state_dict())
    x = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), paper.eval()(x))


def converted_layers(table):
    return [row.layer for row in table.replaced]


@pytest.mark.parametrize(
    ("name", "replaced", "some"),
    [
        ("resnet18", 9, "layer2.0.conv1"),
        ("regnet_y_400mf", 17, "trunk_output.block1.block1-0.f.b"),
        ("mobilenet_v3_small", 12, "features.2.block.1"),
        ("efficientnet_b0", 17, "features.1.0.block.0"),
        ("vgg11_bn", 8, "features.4"),
    ],
)
def test_torchvision_models(name, replaced, some):
    with torch.device("cpu" if "regnet" in name else "meta"):  # RegNet's widths are computed with tensors
        model, table = convert_to_kaconv(torchvision.models.get_model(name), image_size=64)
    assert len(table.replaced) == replaced
    assert some in converted_layers(table)
    assert all(type(model.get_submodule(layer)) is KAConv2d for layer in converted_layers(table))
    assert {row.note for row in table.skipped} <= {
        "its kernel is 1×1",
        "add comes after its batch norm, not an activation that can be replaced",
    }
    assert table.params_after == sum(p.numel() for p in model.parameters())
    assert table.after.macs > table.before.macs


@pytest.mark.parametrize(
    ("name", "replaced", "some"),
    [
        ("resnet18", 9, "layer2.0.conv1"),
        ("efficientnet_b0", 17, "blocks.1.0.conv_dw"),
        ("regnety_002", 14, "stem.conv"),
    ],
)
def test_timm_models(name, replaced, some):
    with torch.device("meta"):
        model, table = convert_to_kaconv(timm.create_model(name), image_size=64)
    assert len(table.replaced) == replaced
    assert type(model.get_submodule(some)) is KAConv2d


def test_a_densenet_says_why_it_stays():
    with torch.device("meta"):
        for model in (torchvision.models.densenet121(), timm.create_model("densenet121")):
            _, table = convert_to_kaconv(model, where="*layer*.conv2", image_size=32)
            reasons = {row.note for row in table.skipped} - {"not matched by where"}
            assert not table.replaced
            assert all(reason.startswith("norm and activation come before it") for reason in reasons)


class ConvBNAct(nn.Module):
    """As in the YOLO family: one activation object for all."""

    default_act = nn.SiLU(inplace=True)

    def __init__(self, cin, cout, kernel=3, stride=1, groups=1):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=1e-3, momentum=0.03)
        self.act = ConvBNAct.default_act

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = ConvBNAct(3, 8, stride=2)
        self.two = nn.Sequential(ConvBNAct(8, 8, groups=8), ConvBNAct(8, 4))
        self.direct = nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.two(self.one(x))
        if x.sum() > 1e9:
            return x
        return self.norm(self.direct(x)).relu()


def test_parts_of_a_model_that_cannot_be_traced():
    torch.manual_seed(0)
    given = Untraceable()
    state = copy.deepcopy(given.state_dict())
    model, table = convert_to_kaconv(given, image_size=16)
    assert converted_layers(table) == ["one.conv", "two.0.conv", "two.1.conv"]
    assert [row.note for row in table.skipped] == ["torch.fx cannot trace the module that calls it"]
    layer = model.one.conv
    assert (layer.stride, layer.norm.eps, layer.norm.momentum, type(layer.act)) == ((2, 2), 1e-3, 0.03, nn.SiLU)
    assert not layer.act.inplace
    assert type(model.one.act) is type(model.one.bn) is nn.Identity
    assert torch.equal(layer.weight, given.one.conv.weight)
    # what was given is as it was
    assert type(given.one.act) is nn.SiLU
    assert all(torch.equal(value, state[name]) for name, value in given.state_dict().items())


def test_the_table_reads_well():
    _, table = convert_to_kaconv(Untraceable(), image_size=16)
    text = str(table)
    assert text.startswith("replaced 3 of 4 convolutions\n  one.conv")
    assert "skipped 1: torch.fx cannot trace the module that calls it (direct)" in text
    # without computing, a choice by value cannot be made
    assert "multiply-adds  not counted: the model does not run on one image of 16 with 3 channels: " in text
    assert "multiply-adds  " in str(convert_to_kaconv(Block(nn.ReLU()), image_size=16)[1])


class Block(nn.Module):
    """Everything once: what may follow a convolution."""

    def __init__(self, act):
        super().__init__()
        self.shared = nn.Conv2d(3, 4, 3, padding="same", dilation=2)
        self.bn1 = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, (3, 5), padding="valid")
        self.bn2 = nn.BatchNorm2d(4, affine=False)
        self.act = act
        self.functional = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.bn3 = nn.BatchNorm2d(4)
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.bn4 = nn.BatchNorm2d(4)
        self.silu = nn.Conv2d(4, 4, 3)
        self.bn5 = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3)
        self.gn = nn.GroupNorm(2, 4)
        self.twice = nn.Conv2d(4, 4, 3)
        self.bn6 = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 4, 3)

    def forward(self, x):
        x = self.act(self.bn2(self.again(self.act(self.bn1(self.shared(x))))))
        x = F.relu(self.bn3(self.functional(x)))
        x = F.relu(self.bn4(self.mirrored(x)))
        x = F.silu(self.bn5(self.silu(x)))
        x = F.relu(self.gn(self.grouped(x)))
        x = F.relu(self.bn6(self.twice(self.twice(x))))
        return self.up(x)


SKIPPED = {
    "mirrored": "its padding is 'reflect', not zeros",
    "silu": "silu comes after its batch norm, not an activation that can be replaced",
    "grouped": "GroupNorm comes after it, not a batch norm",
    "twice": "it is called more than once",
    "up": "it is a ConvTranspose2d, not a plain Conv2d",
}


def test_what_is_replaced_and_what_is_not_and_why():
    torch.manual_seed(0)
    given = Block(nn.ReLU())
    nn.init.uniform_(given.bn1.weight)
    model, table = convert_to_kaconv(given, "H", min_hidden=5, image_size=32)
    assert converted_layers(table) == ["shared", "again", "functional"]
    assert {row.name: row.note for row in table.skipped} == SKIPPED
    assert model.shared.padding == (2, 2)
    assert model.again.padding == (0, 0)
    assert not model.again.norm.affine
    assert model.functional.groups == 2
    torch.testing.assert_close(model.shared.norm.weight.view(9, 4), given.bn1.weight.expand(9, 4))
    # the shared ReLU stays, and changes nothing
    x = torch.randn(2, 3, 32, 32)
    out = model.shared(x)
    assert torch.equal(model.act(out), out)
    assert [row.note for row in table.replaced] == ["its bias went"] * 3
    assert table.before.params == table.params_before == sum(p.numel() for p in given.parameters())
    change = sum(row.params_after - row.params_before for row in table.rows)
    assert table.params_after - table.params_before == change


def test_an_activation_that_would_act_twice_is_a_reason():
    _, table = convert_to_kaconv(Block(nn.SiLU()), image_size=32)
    assert converted_layers(table) == ["functional"]
    notes = {row.name: row.note for row in table.skipped}
    assert notes["shared"] == notes["again"] == "its activation, SiLU, is called elsewhere too, and would act twice"


def test_prelu():
    one, many = nn.PReLU(init=0.1), nn.PReLU(4)
    given = nn.Sequential(*(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), one), *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), many))
    model, table = convert_to_kaconv(given, image_size=16)
    assert converted_layers(table) == ["0"]
    assert model[0].act.weight.item() == pytest.approx(0.1)
    assert table.skipped[0].note == "its activation, PReLU, has a parameter for each channel"


def test_hooks_and_shared_convolutions_are_left_alone():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    given = nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), conv, nn.BatchNorm2d(3), nn.ReLU())
    assert convert_to_kaconv(given, image_size=8)[1].skipped[0].note == "it has several places in the model"
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3))
    given = nn.Sequential(normed, nn.BatchNorm2d(3), nn.ReLU())
    assert "ParametrizedConv2d" in convert_to_kaconv(given, image_size=8)[1].skipped[0].note


def test_modes_dtypes_and_frozen_weights_carry_over():
    given = nn.Sequential(ConvBNAct(3, 4), ConvBNAct(4, 4)).double()
    given[0].eval().requires_grad_(False)
    model, _ = convert_to_kaconv(given, image_size=8)
    first, second = model[0].conv, model[1].conv
    assert (first.training, first.norm.training, second.training) == (False, False, True)
    assert first.weight.dtype == first.norm.weight.dtype == torch.float64
    assert (first.weight.requires_grad, first.norm.weight.requires_grad) == (False, False)
    assert second.weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"where": "head.*"}, r"where='head\.\*' matches none of the model's 2 convolutions \(0\.conv, 1\.conv"),
        ({"attention": "X"}, "unknown attention 'X'; choose from L, H"),
        ({"norm_layer": nn.Identity}, "norm_layer is not an option of a conversion; choose from reduction, "),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        convert_to_kaconv(nn.Sequential(ConvBNAct(3, 4), ConvBNAct(4, 4)), **arguments)


class UNet(nn.Module):
    def __init__(self, classes, width=4):
        super().__init__()
        self.down = self.double(1, width)
        self.deep = self.double(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.merge = self.double(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def double(cin, cout):
        triples = [(nn.Conv2d(c, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU(True)) for c in (cin, cout)]
        return nn.Sequential(*triples[0], *triples[1])

    def forward(self, x):
        first = self.down(x)
        return self.head(self.merge(torch.cat([first, self.up(self.deep(F.max_pool2d(first, 2)))], dim=1)))


@pytest.mark.slow
def test_a_unet_trains_exports_and_shows_its_attention():
    torch.manual_seed(0)
    model, table = convert_to_kaconv(UNet(2), image_size=16)
    assert converted_layers(table) == [f"{part}.{i}" for part in ("down", "deep", "merge") for i in (0, 3)]
    x = torch.randn(4, 1, 16, 16)
    target = (x[:, 0] > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    with AttentionCapture(model) as capture, torch.no_grad():
        model(x)
    assert list(capture.record().attention) == converted_layers(table)


def test_frozen_norms_are_named_with_what_to_do():
    body = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    _, table = convert_to_kaconv(body, where="layer1*", image_size=32)
    assert not table.replaced
    reasons = {row.note for row in table.skipped if row.name.startswith("layer1")}
    assert reasons == {
        "its batch norm is frozen, with statistics of the whole kernel: build it with norm_layer=nn.BatchNorm2d"
    }


def test_a_detector_is_converted_trained_and_watched():
    build = torchvision.models.detection.retinanet_resnet50_fpn
    detector = build(weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=96)
    model, table = convert_to_kaconv(detector, where="backbone.body.layer4*")
    assert len(table.replaced) == 3
    assert len(str(table).splitlines()[-1]) < 250  # torch has a paragraph on why it cannot be counted
    images = [torch.rand(3, 64, 80), torch.rand(3, 70, 64)]
    targets = [{"boxes": torch.tensor([[4.0, 4, 40, 50]]), "labels": torch.tensor([1])}] * 2
    sum(model(images, targets).values()).backward()
    assert model.backbone.body.layer4[0].conv2.weight.grad.abs().max() > 0
    with torch.no_grad(), AttentionCapture(model.eval()) as capture:
        model(images)
    assert len(capture.record()) == 2
