import json

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from kaconv import AttentionCapture, AttentionRecord, KAConv2d, use_backend
from kaconv.data.preprocessing import CIFAR10
from kaconv.ops import native


@pytest.fixture
def model(small_model):
    return small_model


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
    with pytest.raises(ValueError, match=r"2 samples were captured, but ids has shape \(1,\)"):
        capture.record(ids=["a.png"])


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
    record = capture.record(labels=[1, 2], ids=["a.png", "b.png"])
    record.save(tmp_path / "record.npz")
    loaded = AttentionRecord.load(tmp_path / "record.npz")
    assert loaded.layers == record.layers
    for name in record.layers:
        np.testing.assert_array_equal(loaded.attention[name], record.attention[name])
    np.testing.assert_array_equal(loaded.labels, [1, 2])
    np.testing.assert_array_equal(loaded.predictions, record.predictions)
    np.testing.assert_array_equal(loaded.ids, ["a.png", "b.png"])
    np.testing.assert_array_equal(loaded.thumbnails, record.thumbnails)
    assert [path.name for path in tmp_path.iterdir()] == ["record.npz"]


UNIFORM = np.full((4, 3, 3, 2), 1 / 9, np.float32)
DAMAGED = {
    "2-d maps": ({"a": UNIFORM[:, :, 0, 0]}, {}, "attention/a must be floats"),
    "text": ({"a": np.full((4, 3, 3, 2), "x")}, {}, "attention/a must be floats"),
    "NaN": ({"a": UNIFORM * np.nan}, {}, "attention/a must be finite"),
    "sums": ({"a": UNIFORM * 2}, {}, "attention/a must be finite"),
    "other N": ({"a": UNIFORM, "b": UNIFORM[:2]}, {}, "attention/b has 2 samples"),
    "labels": ({"a": UNIFORM}, {"labels": np.arange(99)}, "labels must be of 4 samples"),
    "ids": ({"a": UNIFORM}, {"ids": np.zeros(4)}, "ids must be of 4 samples"),
    "scalar": ({"a": np.float32(1)}, {}, "attention/a must be floats"),
    "none": ({}, {}, "it has no layers"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_that_is_no_record_is_refused_by_its_field(tmp_path, case):
    attention, rest, message = DAMAGED[case]
    arrays = {f"attention/{name}": maps for name, maps in attention.items()}
    np.savez(tmp_path / "record.npz", layers=json.dumps(list(attention)), **arrays, **rest)
    with pytest.raises(ValueError, match=rf"record.npz is not an attention record: {message}"):
        AttentionRecord.load(tmp_path / "record.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04cut"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "record.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"record.npz is not an attention record"):
        AttentionRecord.load(tmp_path / "record.npz")


def test_a_record_without_its_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "record.npz", layers=json.dumps(["a"]))
    with pytest.raises(ValueError, match=r"not an attention record: .*attention/a"):
        AttentionRecord.load(tmp_path / "record.npz")
    with pytest.raises(FileNotFoundError, match="there is no attention record"):
        AttentionRecord.load(tmp_path / "other.npz")


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


@pytest.mark.parametrize("backend", ["reference", "eager", "fused"])
def test_every_backend_shows_the_same_attention(backend, model):
    if backend == "fused" and native.library() is None:
        pytest.skip("there is no C++ compiler for the fused backend")
    x = torch.randn(2, 3, 16, 16)
    records = []
    for name in (backend, "reference"):
        with use_backend(name), AttentionCapture(model) as capture, torch.no_grad():
            model(x)
        records.append(capture.record())
    for layer in records[0].layers:
        one, other = (record.attention[layer] for record in records)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_samples_are_numbered_unless_they_have_names(model):
    with AttentionCapture(model) as capture:
        model(torch.randn(3, 3, 16, 16))
    np.testing.assert_array_equal(capture.record().ids, [0, 1, 2])
    np.testing.assert_array_equal(capture.record(ids=["x", "y", "z"]).ids, ["x", "y", "z"])


def test_thumbnails_show_the_pictures(model):
    pictures = torch.rand(2, 3, 16, 24)
    normalised = v2.Normalize(CIFAR10.mean, CIFAR10.std)(pictures)
    with AttentionCapture(model, preprocessing=CIFAR10) as capture:
        model(normalised[:1])
        model(normalised[1:])
    expected = (pictures.movedim(1, -1) * 255).round().numpy()
    np.testing.assert_allclose(capture.record().thumbnails, expected, atol=1)


def test_thumbnails_are_small_and_use_their_range(model):
    with AttentionCapture(model, thumbnail=12) as capture:
        model(torch.randn(2, 3, 16, 24))
    thumbnails = capture.record().thumbnails
    assert thumbnails.shape == (2, 8, 12, 3)
    assert thumbnails.dtype == np.uint8
    with AttentionCapture(model) as capture:
        model(torch.randn(1, 3, 16, 24) * 100 - 7)
    full = capture.record().thumbnails
    assert (full.min(), full.max()) == (0, 255)


@pytest.mark.parametrize("sizes", [[(16, 16)], [(16, 16), (24, 16)]])
def test_there_are_no_thumbnails_where_none_are_wanted_or_sizes_differ(sizes, model):
    with AttentionCapture(model, thumbnail=64 if len(sizes) > 1 else 0) as capture:
        for size in sizes:
            model(torch.randn(1, 3, *size))
    record = capture.record()
    assert record.thumbnails is None
    assert len(record) == len(record.predictions) == len(sizes)


def test_a_part_of_a_record(model):
    with AttentionCapture(model) as capture:
        model(torch.randn(4, 3, 16, 16))
    record = capture.record(labels=[0, 1, 0, 1], ids=list("abcd"))
    part = record.select([3, 1])
    np.testing.assert_array_equal(part.ids, ["d", "b"])
    np.testing.assert_array_equal(part.labels, [1, 1])
    np.testing.assert_array_equal(part.thumbnails, record.thumbnails[[3, 1]])
    for layer in record.layers:
        np.testing.assert_array_equal(part.attention[layer], record.attention[layer][[3, 1]])
    np.testing.assert_array_equal(record.select(record.labels == 0).ids, ["a", "c"])


def test_parts_put_together_are_the_whole(model):
    with AttentionCapture(model) as capture:
        model(torch.randn(4, 3, 16, 16))
    record = capture.record(labels=[0, 1, 0, 1], ids=list("abcd"))
    whole = AttentionRecord.concatenate([record.select([0]), record.select([1, 2, 3])])
    for name in ("labels", "predictions", "ids", "thumbnails"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(record, name))
    without = AttentionRecord.concatenate([record, AttentionRecord(record.attention)])
    assert without.labels is without.thumbnails is None
    other = AttentionRecord({"another": record.attention[record.layers[0]]})
    for records in ([], [record, other]):
        with pytest.raises(ValueError, match="must be of the same layers"):
            AttentionRecord.concatenate(records)


def test_a_tidy_table(model):
    with AttentionCapture(model, "layer[12].*") as capture:
        model(torch.randn(2, 3, 16, 16))
    record = capture.record(labels=[5, 6], ids=["a", "b"])
    frame = record.to_frame()
    columns = ["sample", "layer", "row", "column", "channel", "attention", "label", "prediction"]
    assert list(frame.columns) == columns
    assert len(frame) == 2 * 9 * (16 + 32)
    row = frame.query("sample == 'b' and layer == 'layer2.0.conv2' and row == 2 and column == 0 and channel == 31")
    assert row["attention"].item() == record.attention["layer2.0.conv2"][1, 2, 0, 31]
    assert row["label"].item() == 6
    assert row["prediction"].item() == record.predictions[1]
    assert "label" not in AttentionRecord(record.attention).to_frame()


def test_layers_of_a_wrapped_model_keep_their_names(model):
    wrapped = nn.DataParallel(model)
    with AttentionCapture(wrapped, "layer1.*") as capture:
        wrapped(torch.randn(2, 3, 16, 16))
    record = capture.record()
    assert record.layers == ["layer1.0.conv2"]
    assert len(record.predictions) == 2
