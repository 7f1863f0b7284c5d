"""The cases of timm's and torchvision's own model tests, over the paper's 15 models.

By default a thin selection runs; `make test-suites` runs them all. Marked `suites`, see tests/conftest.py.
"""

import copy
import functools
import itertools

import pytest
import timm
import torch
import torchvision
from timm.models._features import FeatureGetterNet
from timm.optim import param_groups_layer_decay
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from kaconv import create_model, register, use_backend
from kaconv.layers import KAConv2d
from kaconv.models.weights import list_weights
from kaconv.paper.published import TABLE

MODELS = [row.model for row in TABLE]
RESNETS = [name for name in MODELS if "mobilenet" not in name]
MOBILENETS = [name for name in MODELS if "mobilenet" in name]
# Whichever of the two families is cheaper to build and run, plain and with attention.
THIN = ("mobilenetv2_050", "ka_mobilenetv2_050_l")
SIDE = 64


def over(names: list[str], thin: tuple[str, ...] = THIN) -> pytest.MarkDecorator:
    """A case for each model; those that are not among the thin selection carry the marker `suites`."""
    params = [name if name in thin else pytest.param(name, marks=pytest.mark.suites) for name in names]
    return pytest.mark.parametrize("name", params, scope="module")  # so that all cases of one model run together


def images(count: int = 1, side: int = SIDE, channels: int = 3, **options: object) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0)).to(**options)


def build(name: str, **options: object) -> nn.Module:
    if not options:
        return copy.deepcopy(original(name))
    torch.manual_seed(0)
    return create_model(name, **{"num_classes": 11} | options)


@functools.lru_cache(maxsize=1)
def original(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=11)


def not_in_timm(name: str) -> None:
    if not name.startswith("ka_"):
        pytest.skip("timm and torchvision have a model of their own by this name, so ours is not registered there")


# What timm asks of a model.


@over(MODELS)
def test_forward(name):
    with torch.no_grad():
        output = build(name).eval()(images(2))
    assert output.shape == (2, 11)
    assert output.isfinite().all()


@over(MODELS)
def test_backward_reaches_every_parameter(name):
    model = build(name).train()
    model(images(2)).mean().backward()
    assert not [key for key, value in model.named_parameters() if value.grad is None or not value.grad.isfinite().all()]


@over(MODELS)
def test_default_cfg(name):
    model = build(name).eval()
    state, cfg = model.state_dict(), model.default_cfg
    assert cfg == model.pretrained_cfg
    assert cfg["architecture"] == name
    assert cfg["input_size"] == (3, 224, 224)
    assert f"{cfg['first_conv']}.weight" in state
    assert f"{cfg['classifier']}.weight" in state
    with torch.device("meta"):
        empty = create_model(name).eval()
        assert empty.forward_features(torch.empty(1, *cfg["input_size"])).shape[2:] == cfg["pool_size"]


@over(MODELS)
def test_features_and_head_make_the_forward_pass(name):
    model, x = build(name).eval(), images(2)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, model.num_features, SIDE // 32, SIDE // 32)
        embedding = model.forward_head(features, pre_logits=True)
        assert embedding.shape == (2, model.head_hidden_size)
        assert torch.equal(model.forward_head(features), model(x))
        assert torch.equal(model.get_submodule(model.head)(embedding), model(x))


@over(MODELS)
def test_reset_classifier(name):
    model, x = build(name).eval(), images(2)
    keys = list(model.state_dict())
    with torch.no_grad():
        embedding = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(0)
        assert isinstance(model.get_classifier(), nn.Identity)
        assert torch.equal(model(x), embedding)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), model.forward_features(x))
        model.reset_classifier(7, "avg")
        assert model(x).shape == (2, model.num_classes) == (2, 7)
    assert list(model.state_dict()) == keys


@over(MODELS)
def test_no_classes_and_no_pooling_from_the_beginning(name):
    x = images()
    with torch.no_grad():
        assert build(name, num_classes=0).eval()(x).ndim == 2
        model = build(name, num_classes=0, global_pool="").eval()
        assert model(x).shape == (1, model.num_features, SIDE // 32, SIDE // 32)


@over(MODELS)
@pytest.mark.parametrize("channels", [1, 5])
def test_in_chans(name, channels):
    model = build(name, in_chans=channels).eval()
    with torch.no_grad():
        assert model(images(channels=channels)).shape == (1, 11)
    with pytest.raises((RuntimeError, ValueError), match="channels"):
        model(images(channels=channels + 1))


@over(MODELS)
@pytest.mark.parametrize("side", [96, 75])
def test_other_sizes_of_the_input(name, side):
    with torch.no_grad():
        assert build(name).eval()(images(side=side)).shape == (1, 11)


@over(MODELS)
def test_features_only(name):
    model, x = build(name).eval(), images(2)
    expected = {}
    for level in model.feature_info:
        seen = expected.setdefault(level["module"], [])
        model.get_submodule(level["module"]).register_forward_hook(lambda m, i, o, seen=seen: seen.append(o))
    with torch.no_grad():
        model(x)
        features = FeatureGetterNet(model, out_indices=5)
        outputs = features(x)
    info = features.feature_info
    assert len(outputs) == 5
    for output, channels, reduction, module in zip(
        outputs, info.channels(), info.reduction(), info.module_name(), strict=True
    ):
        assert output.shape == (2, channels, SIDE // reduction, SIDE // reduction)
        assert torch.equal(output, expected[module][0])


@over(MODELS)
def test_features_only_by_name(name):
    not_in_timm(name)
    register()
    model = timm.create_model(name, features_only=True, out_indices=(1, 3)).eval()
    whole = create_model(name)
    assert model.feature_info.channels() == [whole.feature_info[i]["num_chs"] for i in (1, 3)]
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())
    with torch.no_grad():
        assert [output.shape[1] for output in model(images())] == model.feature_info.channels()


@over(MODELS)
def test_features_of_trained_weights(name):
    not_in_timm(name)
    pytest.skip("there are no pretrained weights of these models in timm, and the call that asks for them is refused")


@over(MODELS)
def test_forward_intermediates(name):
    model, x = build(name).eval(), images()
    count = len(model.feature_info)
    with torch.no_grad():
        last, levels = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x))
        assert [level.shape[1] for level in levels] == [level["num_chs"] for level in model.feature_info]
        assert all(level.isfinite().all() for level in levels)
        for indices, wanted in ((2, [count - 2, count - 1]), ([0, -1], [0, count - 1]), ((3, 1), [3, 1])):
            found = model.forward_intermediates(x, indices, intermediates_only=True)
            assert all(torch.equal(a, levels[i]) for a, i in zip(found, wanted, strict=True))
        early, _ = model.forward_intermediates(x, [1], stop_early=True)
        assert torch.equal(early, levels[1])
    for wrong in ([count], [-count - 1], 0, []):
        with pytest.raises(ValueError, match=f"indices of features go from 0 to {count - 1}"):
            model.forward_intermediates(x, wrong)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW'; got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


@over(MODELS)
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(name):
    model, x = build(name, drop_rate=0.0).double().train(), images(2, dtype=torch.float64)
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    assert twin.grad_checkpointing
    for network in (model, twin):
        network(x).square().sum().backward()
    for (key, value), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, value.grad, msg=lambda text, key=key: f"{key}: {text}")
    for (key, value), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(other, value, msg=lambda text, key=key: f"{key}: {text}")
    twin.set_grad_checkpointing(False)
    assert not twin.grad_checkpointing


@over(MODELS)
def test_layer_wise_learning_rates(name):
    model = build(name)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
    assert sum(len(group["params"]) for group in groups) == sum(1 for _ in model.parameters())
    assert len({group["lr_scale"] for group in groups}) > 10
    by_name = {id(value): key for key, value in model.named_parameters()}
    first = min(groups, key=lambda group: group["lr_scale"])
    assert model.first_conv + ".weight" in [by_name[id(value)] for group in groups for value in group["params"]]
    assert all(by_name[id(value)].startswith(("conv1", "bn1", "features.0.")) for value in first["params"])


@over(MODELS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_is_refused_in_one_line_where_it_cannot_script(name):
    model, x = build(name).eval(), images()
    if any(isinstance(module, KAConv2d) for module in model.modules()):
        with pytest.raises(RuntimeError, match=r"\ATorchScript cannot script [^\n]*torch.jit.trace[^\n]*\Z"):
            torch.jit.script(model)
        return
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@over(MODELS, thin=THIN[:1])  # with KAConv2d a layer's own test stands for it, in test_ecosystem.py
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_torch_jit_trace(name):
    model, x = build(name).eval(), images()
    with torch.no_grad():
        traced = torch.jit.trace(model, x, check_trace=False)  # which traces it twice more
        with use_backend("eager"):  # whose operators a trace holds
            torch.testing.assert_close(traced(x), model(x))
        assert traced(images(3)).shape == (3, 11)


@over(MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_torch_fx(name, training):
    model, x = build(name, drop_rate=0.0).train(training), images(2)
    twin = fx.symbolic_trace(copy.deepcopy(model))
    outputs = [network.train(training)(x) for network in (model, twin)]
    torch.testing.assert_close(*outputs)
    if training:
        for output in outputs:
            output.mean().backward()
        for key, value in model.named_parameters():
            torch.testing.assert_close(twin.get_parameter(key).grad, value.grad)


# What torchvision asks of one.


@over(MODELS)
def test_get_model(name):
    not_in_timm(name)
    register()
    model = torchvision.models.get_model(name, num_classes=11).eval()
    with torch.no_grad():
        assert model(images()).shape == (1, 11)
    assert name in torchvision.models.list_models(include="ka_*")
    if list_weights(f"{name}.*"):
        torchvision.models.get_model(name, weights="DEFAULT")
    else:
        with pytest.raises(ValueError, match="no pretrained weights"):
            torchvision.models.get_model(name, weights="DEFAULT")


@over(MODELS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_create_feature_extractor(name):
    model, x = build(name).eval(), images()
    names = [level["module"] for level in model.feature_info]
    train_nodes, eval_nodes = get_graph_node_names(model)
    assert train_nodes == eval_nodes
    extractor = create_feature_extractor(model, names).eval()
    with torch.no_grad():
        outputs = extractor(x)
        levels = model.forward_intermediates(x, intermediates_only=True)
    assert list(outputs) == names
    for output, level in zip(outputs.values(), levels, strict=True):
        torch.testing.assert_close(output, level)


@over(MODELS)
def test_gradients_of_the_input(name):
    x = images().requires_grad_()
    build(name).eval()(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).any()


@over(MODELS)
def test_channels_last(name):
    # In float64 and by the batch's statistics: the numbers of an untrained network without them run away.
    model, x = build(name, drop_rate=0.0).double().train(), images(4, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        output = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@over(MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(name, dtype):
    with torch.no_grad():
        output = build(name).eval().to(dtype)(images(dtype=dtype))
    assert output.dtype == dtype
    assert output.isfinite().all()


@over(MODELS)
def test_autocast(name):
    model, x = build(name).eval(), images()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
    assert output.isfinite().all()


@over(MODELS)
def test_autocast_on_a_gpu(name):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    model, x = build(name).eval().cuda(), images().cuda()
    with torch.no_grad(), torch.autocast("cuda"):
        assert model(x).isfinite().all()


@over(MODELS)
def test_weights_go_from_one_model_to_another(name):
    model, other = build(name).eval(), create_model(name, num_classes=11).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(images()), other(images()))


@over(MODELS)
def test_quantised_form(name):
    pytest.skip("torchvision's quantised models are definitions of their own; KAConv2d has no quantised kernels")


DILATIONS = list(itertools.product((False, True), repeat=3))


@over(MODELS)
@pytest.mark.parametrize("dilated", DILATIONS, ids=["".join("01"[d] for d in dilated) for dilated in DILATIONS])
def test_dilation(name, dilated):
    if name in MOBILENETS:
        pytest.skip("torchvision's MobileNetV2 has no replace_stride_with_dilation either")
    with torch.device("meta"):
        model = create_model(name, num_classes=0, replace_stride_with_dilation=dilated).eval()
        features = model.forward_features(torch.empty(1, 3, 224, 224))
    side = 7 * 2 ** sum(dilated)
    assert features.shape == (1, 2048, side, side)
    assert model.feature_info[-1]["reduction"] == 224 // side


@over(MODELS)
def test_norm_layer(name):
    def norm_layer(channels: int) -> nn.Module:
        return nn.GroupNorm(1, channels)

    model = build(name, norm_layer=norm_layer).eval()
    assert any(isinstance(module, nn.BatchNorm2d) for module in build(name).modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    with torch.no_grad():
        assert model(images()).isfinite().all()
