import copy

import pytest
import torch
from torch import nn

from kaconv import KAConv2d, create_model, optimize_for_inference
from kaconv.models.optimize import InferenceKAConv2d
from kaconv.ops import cpu_taps, native

needs_compiler = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler for the fused backend")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create_model("ka_resnet11_cifar_l", num_classes=3).double()
    model(torch.randn(8, 3, 16, 16, dtype=torch.float64))  # moves the running statistics
    return model


def layer(**options):
    torch.manual_seed(0)
    made = KAConv2d(34, 36, 3, **options).double()
    made(torch.randn(4, 34, 5, 5, dtype=torch.float64))
    return made


@needs_compiler
@torch.no_grad()
def test_the_outputs_stay_and_so_does_the_model(model):
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    optimized = optimize_for_inference(model)
    torch.testing.assert_close(optimized(x), copy.deepcopy(model).eval()(x), rtol=1e-9, atol=1e-10)
    kinds = [type(module) for module in optimized.modules()]
    assert InferenceKAConv2d in kinds
    assert not {KAConv2d, nn.BatchNorm2d, nn.BatchNorm1d} & set(kinds)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@needs_compiler
@torch.no_grad()
def test_a_deep_model_in_float32_is_as_exact_as_before():
    # Untrained, its attention logits grow to some hundreds, so that every softmax is close to an argmax: float32 then
    # loses three digits or more, the reference as well, whatever the order of the sums. With soft attention none does.
    torch.manual_seed(0)
    model = create_model("ka_resnet50_l", num_classes=10).eval()
    for module in model.modules():
        if isinstance(module, KAConv2d):
            module.attention_generator.excite.weight.mul_(1e-2)
    x = torch.randn(1, 3, 64, 64)
    exact = copy.deepcopy(model).double()(x.double())
    for form in (model, optimize_for_inference(model)):
        assert (form(x) - exact).abs().max() < 1e-5 * exact.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet11_cifar", "mobilenetv2_050"])
def test_plain_models_are_folded(name):
    model = create_model(name, num_classes=3).eval()
    optimized = optimize_for_inference(model)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(optimized(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in optimized.modules())


@needs_compiler
def test_it_refuses_to_train(model):
    optimized = optimize_for_inference(model)
    for refused in (optimized, copy.deepcopy(optimized), optimize_for_inference(layer())):
        with pytest.raises(RuntimeError, match="optimized for inference and cannot be trained"):
            refused.train()
        assert not any(module.training for module in refused.modules())
        assert refused.eval() is refused


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("attention", ["L", "H"])
@pytest.mark.parametrize("groups", [1, 2, 34])
def test_layers(attention, groups):
    torch.manual_seed(0)
    made = KAConv2d(34, 68, 3, groups=groups, attention=attention, act_layer=nn.ReLU6).double()
    x = torch.randn(4, 34, 5, 5, dtype=torch.float64)
    made(x)
    torch.testing.assert_close(optimize_for_inference(made)(x), made.eval()(x), rtol=1e-9, atol=1e-10)


@needs_compiler
@torch.no_grad()
def test_a_kernel_without_groups_is_not_packed_again():
    optimized = optimize_for_inference(layer())
    taps = cpu_taps.CPUTaps(torch.randn(1, 34, 5, 5, dtype=torch.float64), optimized.weight, optimized.geometry)
    assert taps._packed.data_ptr() == optimized.weight.data_ptr()


@needs_compiler
@torch.no_grad()
def test_a_hook_sees_the_whole_batch_and_replaces_its_attention(monkeypatch):
    monkeypatch.setattr(cpu_taps, "_AT_ONCE_BYTES", 1)  # one sample at a time, where nobody looks
    made, seen = layer().eval(), []
    optimized = optimize_for_inference(made)
    x = torch.randn(4, 34, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(optimized(x), made(x))
    for each in (made, optimized):
        each.attention_generator.register_forward_hook(
            lambda module, inputs, output: seen.append(len(output)) or torch.full_like(output, 1 / 9)
        )
    torch.testing.assert_close(optimized(x), made(x))
    assert seen == [4, 4]


def test_what_has_no_kernels_stays():
    for options in ({"act_layer": nn.SiLU}, {"norm_layer": lambda c: nn.GroupNorm(2, c)}):
        assert type(optimize_for_inference(layer(**options))) is KAConv2d


@needs_compiler
@torch.no_grad()
def test_it_is_exported_with_its_operators():
    optimized = optimize_for_inference(layer())
    x = torch.randn(3, 34, 5, 5, dtype=torch.float64)
    program = torch.export.export(optimized, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert "kaconv.weighted_sum" in program.graph_module.code
    more = torch.randn(5, 34, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(program.module()(more), optimized(more))


@needs_compiler
@torch.no_grad()
def test_a_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"expects an input \(N, 34, height, width\) of torch.float64; got \(1, 3, 5"):
        optimize_for_inference(layer())(torch.zeros(1, 3, 5, 5))
