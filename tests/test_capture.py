import numpy as np
import pytest
import torch
from torch import nn

from kaconv import AttentionCapture, AttentionRecord, KAConv2d, create_model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("ka_resnet11_cifar_l", num_classes=4).eval()


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_record_holds_what_the_layers_computed(model):
    x = torch.randn(5, 3, 16, 16)
    with AttentionCapture(model) as capture, torch.no_grad():
        outputs = torch.cat([model(x[:3]), model(x[3:])])
    record = capture.record(labels=[0, 1, 2, 3, 0])
    assert record.layers == ["layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"]
    assert len(record) == 5
    for name, channels in zip(record.layers, (16, 32, 64), strict=True):
        assert record.attention[name].shape == (5, 3, 3, channels)
        np.testing.assert_allclose(record.attention[name].sum(axis=(1, 2)), 1, rtol=1e-5)
    np.testing.assert_array_equal(record.predictions, outputs.argmax(1))
    np.testing.assert_array_equal(record.labels, [0, 1, 2, 3, 0])


def test_positions_are_in_kernel_order():
    """A generator whose logits favour position (0, 2) of a 2×3 kernel."""
    layer = KAConv2d(2, 4, (2, 3)).eval()
    nn.init.zeros_(layer.attention_generator.excite.weight)
    with torch.no_grad():
        layer.attention_generator.excite.bias.view(6, 4)[2] = 5
    with AttentionCapture(nn.Sequential(layer)) as capture:
        layer(torch.randn(1, 2, 5, 5))
    attention = capture.record().attention["0"]
    assert attention.shape == (1, 2, 3, 4)
    assert (attention[0, 0, 2] > 0.9).all()


def test_layers_are_chosen_by_pattern(model):
    with AttentionCapture(model, layers="layer[23].*") as capture:
        model(torch.randn(1, 3, 16, 16))
    assert capture.record().layers == ["layer2.0.conv2", "layer3.0.conv2"]


def test_capturing_changes_nothing(model):
    model.layer2.train()
    modes = [module.training for module in model.modules()]
    x = torch.randn(2, 3, 16, 16)
    model.eval()
    expected = model(x)
    with AttentionCapture(model):
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert hooks(model) == 0
    model.layer2.train()
    assert [module.training for module in model.modules()] == modes


def test_hooks_go_on_errors_too(model):
    with pytest.raises(ValueError, match="expects an input"), AttentionCapture(model.layer1[0].conv2):
        model.layer1[0].conv2(torch.randn(1, 5, 8, 8))
    assert hooks(model) == 0


def test_a_second_block_starts_afresh(model):
    capture = AttentionCapture(model)
    for n in (1, 3):
        with capture:
            model(torch.randn(n, 3, 16, 16))
        assert len(capture.record()) == n


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda model: AttentionCapture(model, "layer9.*"),
            r"no KAConv2d layer matches 'layer9\.\*'; there are layer1",
        ),
        (lambda model: AttentionCapture(nn.Linear(2, 2)), "Linear has no KAConv2d layer"),
        (lambda model: AttentionCapture(model).record(), "nothing was captured"),
    ],
)
def test_errors(model, make, message):
    with pytest.raises(ValueError, match=message):
        make(model)


def test_labels_must_fit(model):
    with AttentionCapture(model) as capture:
        model(torch.randn(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"2 samples were captured, but labels has shape \(3,\)"):
        capture.record(labels=[0, 1, 2])


def test_figures_of_known_maps():
    uniform = np.full((2, 3, 3, 1), 1 / 9, np.float32)
    one_position = np.zeros((2, 3, 3, 1), np.float32)
    one_position[0, 0, 0] = one_position[1, 2, 2] = 1
    record = AttentionRecord({"uniform": uniform, "moving": one_position})
    np.testing.assert_allclose(record.entropy("uniform"), 1, rtol=1e-6)
    np.testing.assert_allclose(record.entropy("moving"), 0)
    np.testing.assert_allclose(record.deviation("uniform"), 0, atol=1e-6)
    assert record.deviation("moving")[0, 0, 0, 0] == pytest.approx(8)
    np.testing.assert_allclose(record.input_dependence("uniform"), 0, atol=1e-6)
    np.testing.assert_allclose(record.input_dependence("moving"), 0.5)


def test_save_and_load(tmp_path, model):
    with AttentionCapture(model) as capture:
        model(torch.randn(2, 3, 16, 16))
    record = capture.record(labels=[1, 2])
    record.save(tmp_path / "record.npz")
    loaded = AttentionRecord.load(tmp_path / "record.npz")
    assert loaded.layers == record.layers
    for name in record.layers:
        np.testing.assert_array_equal(loaded.attention[name], record.attention[name])
    np.testing.assert_array_equal(loaded.labels, [1, 2])
    np.testing.assert_array_equal(loaded.predictions, record.predictions)
    assert [path.name for path in tmp_path.iterdir()] == ["record.npz"]


def test_what_was_captured_does_not_change_afterwards(model):
    generator = model.layer1[0].conv2.attention_generator
    with AttentionCapture(model) as capture:
        handle = generator.register_forward_hook(lambda module, inputs, attention: attention.detach().zero_())
        model(torch.randn(1, 3, 16, 16))
        handle.remove()
    np.testing.assert_allclose(capture.record().attention["layer1.0.conv2"].sum(axis=(1, 2)), 1, rtol=1e-5)


def test_a_pass_that_broke_off_is_noticed(model):
    with AttentionCapture(model) as capture:
        model(torch.randn(2, 3, 16, 16))
        handle = model.layer2.register_forward_pre_hook(lambda module, inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(torch.randn(1, 3, 16, 16))
        handle.remove()
    with pytest.raises(ValueError, match=r"broke off: .*'layer1.0.conv2': 3, 'layer2.0.conv2': 2"):
        capture.record()
