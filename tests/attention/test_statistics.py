import gc

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing import spawn
from torch.utils.data import DataLoader, TensorDataset

from kaconv import AttentionCapture, AttentionRecord, KAConv2d, create_model
from kaconv.attention.statistics import AttentionStatistics, attention_statistics
from kaconv.data.unreadable import UNREADABLE

CLASSES = 3


def make_model():
    torch.manual_seed(0)
    return create_model("ka_resnet11_cifar_h", num_classes=CLASSES)


@pytest.fixture
def model():
    return make_model()


def make_data(n=11):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 12, 12, generator=generator), torch.randint(0, CLASSES, (n,), generator=generator)


def batches(x, labels, size=4):
    return DataLoader(TensorDataset(x, labels), size)


def record_of(model, x, labels):
    with AttentionCapture(model.eval()) as capture, torch.no_grad():
        model(x)
    return capture.record(labels=labels)


def test_they_are_those_of_a_record_of_everything(model):
    x, labels = make_data()
    statistics = attention_statistics(model, batches(x, labels), classes=CLASSES)
    record = record_of(model, x, labels)
    assert statistics.layers == record.layers
    assert statistics.count == len(record)
    np.testing.assert_array_equal(statistics.class_counts, np.bincount(labels, minlength=CLASSES))
    for layer in record.layers:
        np.testing.assert_allclose(statistics.mean(layer), record.mean(layer), rtol=1e-5)
        np.testing.assert_allclose(statistics.variance(layer), record.variance(layer), rtol=1e-3, atol=1e-10)
        np.testing.assert_allclose(statistics.entropy(layer), record.entropy(layer).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(statistics.class_means(layer), record.class_means(layer), rtol=1e-4)
        np.testing.assert_allclose(statistics.class_distances(layer), record.class_distances(layer), atol=1e-6)
        assert statistics.class_share(layer) == pytest.approx(record.class_share(layer), rel=1e-3)
        of_first = record.select(record.labels == 0)
        np.testing.assert_allclose(
            statistics.class_variances(layer)[0], of_first.variance(layer), rtol=1e-3, atol=1e-10
        )
        np.testing.assert_allclose(
            statistics.class_entropies(layer)[0], of_first.entropy(layer).mean(axis=0), rtol=1e-5
        )


def test_batches_may_be_of_any_size_and_without_labels(model):
    x, labels = make_data()
    one = attention_statistics(model, [x])
    many = attention_statistics(model, batches(x, labels, 2))
    assert one.count == many.count == 11
    for layer in one.layers:
        np.testing.assert_allclose(one.mean(layer), many.mean(layer), rtol=1e-5)
        np.testing.assert_allclose(one.variance(layer), many.variance(layer), rtol=1e-3, atol=1e-10)


def test_layers_are_chosen_by_pattern(model):
    assert attention_statistics(model, [make_data()[0]], "layer[13].*").layers == ["layer1.0.conv2", "layer3.0.conv2"]


def test_unreadable_pictures_do_not_count(model):
    x, labels = make_data()
    with_gaps = labels.clone()
    with_gaps[3] = UNREADABLE
    known = labels != 99
    known[3] = False
    for classes in (None, CLASSES):
        statistics = attention_statistics(model, batches(x, with_gaps), classes=classes)
        expected = attention_statistics(model, batches(x[known], labels[known]), classes=classes)
        np.testing.assert_array_equal(statistics.class_counts, expected.class_counts)
        np.testing.assert_allclose(statistics.mean("layer1.0.conv2"), expected.mean("layer1.0.conv2"), rtol=1e-5)


def test_a_class_without_samples_has_no_mean(model):
    x, _ = make_data(4)
    statistics = attention_statistics(model, [(x, torch.tensor([0, 0, 2, 2]))], classes=CLASSES)
    means = statistics.class_means("layer1.0.conv2")
    assert np.isnan(means[1]).all()
    assert np.isfinite(means[[0, 2]]).all()
    assert 0 < statistics.class_share("layer1.0.conv2") < 1


def test_the_model_is_afterwards_as_it_was(model):
    x, labels = make_data()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attention_statistics(model, batches(x, labels))
    with pytest.raises(RuntimeError):
        attention_statistics(model, [torch.randn(2, 5, 8, 8)])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_memory_does_not_grow_with_the_data():
    layer = nn.Sequential(KAConv2d(3, 32, 3)).eval()
    alive = []

    def watched():
        for _ in range(5):
            yield torch.randn(8, 3, 4, 4)
            gc.collect()
            alive.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))

    attention_statistics(layer, watched())
    assert len(set(alive)) == 1


def test_save_and_load(tmp_path, model):
    x, labels = make_data()
    statistics = attention_statistics(model, batches(x, labels), classes=CLASSES)
    statistics.save(tmp_path / "attention.npz")
    loaded = AttentionStatistics.load(tmp_path / "attention.npz")
    assert loaded.layers == statistics.layers
    np.testing.assert_array_equal(loaded.class_counts, statistics.class_counts)
    for layer in loaded.layers:
        np.testing.assert_array_equal(loaded.class_variances(layer), statistics.class_variances(layer))
        np.testing.assert_array_equal(loaded.class_entropies(layer), statistics.class_entropies(layer))
    assert [path.name for path in tmp_path.iterdir()] == ["attention.npz"]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "there are no samples"),
        ([torch.randn(2, 3, 8, 8)], {"classes": 2}, "cannot be told apart without labels"),
        ([(torch.randn(2, 3, 8, 8), torch.tensor([0, 2]))], {"classes": 2}, "labels must be from 0 to 1; got 2"),
        ([], {"layers": "conv9"}, "no KAConv2d layer matches 'conv9'"),
    ],
)
def test_errors(data, options, message, model):
    with pytest.raises(ValueError, match=message):
        attention_statistics(model, data, **options)


def test_without_classes_there_are_no_statistics_of_classes(model):
    with pytest.raises(ValueError, match="were not told apart"):
        attention_statistics(model, [make_data()[0]]).class_means("layer1.0.conv2")


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(make_model().eval())
    x, labels = make_data()
    mine = [slice(0, 8), slice(8, 11)][rank]
    attention_statistics(model, batches(x[mine], labels[mine]), classes=CLASSES).save(f"{folder}/{rank}.npz")
    with AttentionCapture(model) as capture, torch.no_grad():
        model(x[mine])
    capture.record(labels=labels[mine], ids=range(11)[mine]).save(f"{folder}/record{rank}.npz")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_samples(tmp_path, model):
    spawn(one_of_two, (str(tmp_path),), nprocs=2)
    x, labels = make_data()
    whole = attention_statistics(model, batches(x, labels), classes=CLASSES)
    for rank in range(2):
        statistics = AttentionStatistics.load(tmp_path / f"{rank}.npz")
        np.testing.assert_array_equal(statistics.class_counts, whole.class_counts)
        for layer in whole.layers:  # named as in the model itself
            np.testing.assert_allclose(statistics.class_means(layer), whole.class_means(layer), rtol=1e-5)
            np.testing.assert_allclose(statistics.variance(layer), whole.variance(layer), rtol=1e-3, atol=1e-10)
    record = AttentionRecord.concatenate([AttentionRecord.load(tmp_path / f"record{rank}.npz") for rank in range(2)])
    expected = record_of(model, x, labels)
    np.testing.assert_array_equal(record.labels, expected.labels)
    np.testing.assert_array_equal(record.predictions, expected.predictions)
    np.testing.assert_array_equal(record.ids, range(11))
    for layer in expected.layers:
        np.testing.assert_allclose(record.attention[layer], expected.attention[layer], rtol=1e-4, atol=1e-7)
