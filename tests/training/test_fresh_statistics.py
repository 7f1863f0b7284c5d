import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

import kaconv.training.fresh_statistics as fresh_statistics
import kaconv.training.trainer as trainer
from kaconv.data.datasets import load_data
from kaconv.inference import evaluate
from kaconv.models import create_model
from kaconv.training import Run, TrainConfig, fit
from kaconv.training.fresh_statistics import with_fresh_statistics


def config_for(out, **changes) -> TrainConfig:
    small = {"model": "ka_resnet11_cifar_l", "data": "fake", "epochs": 1, "batch_size": 32, "image_size": 8}
    return TrainConfig(**small | {"out": str(out), "fresh_statistics": True} | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return fit(config_for(tmp_path_factory.mktemp("runs") / "a"), progress=False)


def without_augmentation(dataset, preprocessing):
    dataset = copy.copy(dataset)
    dataset.transform = preprocessing.eval_transform()
    return dataset


def test_statistics_are_those_of_the_training_pictures_as_a_test_shows_them():
    data = load_data("fake", image_size=8)
    model = nn.BatchNorm2d(3)
    shown = without_augmentation(data.train, data.preprocessing)
    expected = torch.stack([shown[index][0] for index in range(len(shown))])
    fresh = with_fresh_statistics(model, data, batch_size=96, seed=0)
    torch.testing.assert_close(fresh.running_mean, expected.mean((0, 2, 3)))
    torch.testing.assert_close(fresh.running_var, expected.transpose(0, 1).flatten(1).var(1))
    assert model.running_mean.eq(0).all()
    assert fresh.momentum == model.momentum


def test_pictures_are_as_many_as_there_should_be_in_random_order(monkeypatch):
    monkeypatch.setattr(fresh_statistics, "PICTURES", 40)
    data = load_data("fake", image_size=8)
    one, again, other = (fresh_statistics._training_pictures(data, seed).indices for seed in (0, 0, 1))
    assert one == again != other
    assert len(set(one)) == 40
    assert one != sorted(one)


def test_unreadable_pictures_are_left_out(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (200, 200, 200)).save(tmp_path / split / name / f"{number}.png")
    (tmp_path / "train" / "dog" / "3.png").write_bytes(b"no picture")
    data = load_data(f"folder:{tmp_path}", image_size=8)
    fresh = with_fresh_statistics(nn.BatchNorm2d(3), data, batch_size=8, seed=0)
    torch.testing.assert_close(fresh.running_mean, data.test[0][0].mean((1, 2)))
    torch.testing.assert_close(fresh.running_var, torch.zeros(3))


def test_ruined_running_statistics_do_not_matter():
    data = load_data("fake", image_size=8)
    model = create_model("ka_resnet11_cifar_l", num_classes=10)
    ruined = copy.deepcopy(model)
    for name, buffer in ruined.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1e6)
    one, other = (
        evaluate(with_fresh_statistics(each, data, batch_size=32, seed=0), data.test, progress=False)
        for each in (model, ruined)
    )
    assert one.loss == other.loss
    assert evaluate(ruined, data.test, progress=False).loss != one.loss


def test_the_summary_has_the_error_and_the_weights_stay(tmp_path, run):
    plain = fit(config_for(tmp_path / "a", fresh_statistics=False), progress=False)
    assert "test_error_fresh_statistics" not in plain.summary["last"]
    assert {key: run.summary["last"][key] for key in plain.summary["last"]} == plain.summary["last"]
    weights, expected = (r.load_checkpoint("last").model.state_dict() for r in (run, plain))
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    data = load_data("fake", image_size=8)
    model = with_fresh_statistics(run.load_checkpoint("last").model, data, batch_size=32, seed=0)
    error = evaluate(model, data.test, batch_size=32, progress=False).top1_error
    assert Run.load(run.folder).summary["last"]["test_error_fresh_statistics"] == error


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}, {"mixed_precision": "bf16"}])
def test_the_error_does_not_depend_on_an_interruption_before_it(tmp_path, monkeypatch, changes):
    def interrupted(*args):
        raise KeyboardInterrupt

    config = config_for(tmp_path / "a", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_fresh_result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)
    one, other = (fit(c, progress=False) for c in (config, replace(config, out=str(tmp_path / "b"))))
    assert one.summary["last"] == other.summary["last"]
