import copy
import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import kaconv.training.trainer as trainer
from kaconv.cli import main
from kaconv.data.datasets import load_data
from kaconv.inference import evaluate, evaluate_checkpoint
from kaconv.inference.fresh_statistics import _images, with_fresh_statistics
from kaconv.models import create_model
from kaconv.models.checkpoints import load_checkpoint, save_checkpoint
from kaconv.training import Run, TrainConfig, fit


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


def test_images_are_as_many_as_there_should_be_in_random_order():
    data = load_data("fake", image_size=8)
    one, again, other = (_images(data, seed, 40).indices for seed in (0, 0, 1))
    assert one == again != other
    assert len(set(one)) == 40
    assert one != sorted(one)


def test_unreadable_pictures_are_left_out(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (200, 200, 200)).save(tmp_path / split / name / f"{number}.png")
    (tmp_path / "train" / "dog" / "3.png").write_bytes(b"no image")
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
        patch.setattr(trainer._Trainer, "_fresh_error", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)
    one, other = (fit(c, progress=False) for c in (config, replace(config, out=str(tmp_path / "b"))))
    assert one.summary["last"] == other.summary["last"]


@pytest.fixture(scope="module")
def stale(tmp_path_factory) -> Path:
    """A network that knows its two classes, with running statistics of other images."""
    folder = tmp_path_factory.mktemp("stale")
    for split in ("train", "val"):
        for name, colour in (("dark", 60), ("light", 190)):
            (folder / split / name).mkdir(parents=True)
            for number in range(20):
                Image.new("L", (8, 8), colour + number).save(folder / split / name / f"{number}.png")
    config = config_for(folder / "run", data=f"folder:{folder}", model="resnet11_cifar", epochs=4, batch_size=10)
    checkpoint = fit(replace(config, fresh_statistics=False), progress=False).load_checkpoint("last")
    for buffer_name, buffer in checkpoint.model.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.add_(5)
    save_checkpoint(
        folder / "stale.safetensors",
        checkpoint.model,
        name=checkpoint.name,
        classes=checkpoint.classes,
        preprocessing=checkpoint.preprocessing,
    )
    return folder


def test_a_warning_where_fresh_statistics_change_the_error_a_good_deal(stale, caplog):
    with caplog.at_level(logging.WARNING, "kaconv"):
        result = evaluate_checkpoint(stale / "stale.safetensors", f"folder:{stale}", progress=False)
    found = result["fresh_statistics"]
    assert (found["n"], found["images"], found["split"]) == (40, 40, "train")
    assert found["top1_error_before"] == result["top1_error"] == 50
    assert found["top1_error"] < 10
    assert found["interval"][0] > 0
    (message,) = caplog.messages
    assert "recomputed from 40 training images, the top-1 error of 40 test images is" in message
    assert message.endswith("instead of 50.0 %; --fresh-statistics FILE.safetensors writes a checkpoint with them")


def test_no_warning_where_they_change_little(stale, caplog):
    with caplog.at_level(logging.WARNING, "kaconv"):
        result = evaluate_checkpoint(stale / "run" / "last.safetensors", f"folder:{stale}", progress=False)
    assert result["fresh_statistics"]["n"] == 40
    assert caplog.messages == []


def test_fresh_statistics_are_offered_and_written(stale, tmp_path, capsys):
    out = tmp_path / "fresh.safetensors"
    argv = ["evaluate", "--data", f"folder:{stale}", "--checkpoint"]
    assert main([*argv, str(stale / "stale.safetensors"), "--fresh-statistics", str(out)]) == 0
    before, after = capsys.readouterr().out.splitlines()
    assert before.endswith("40 images: top-1 error 50.00 %")
    assert after.startswith(f"{out}: top-1 error ")
    error = float(after.split()[-2])
    assert evaluate_checkpoint(out, f"folder:{stale}", progress=False)["top1_error"] == pytest.approx(error, abs=0.01)
    assert load_checkpoint(out).info["fresh_statistics"]["split"] == "train"
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    result = evaluate_checkpoint(out, f"folder:{stale}", fresh_statistics=out, progress=False)  # in its own place
    assert result["sha256"] == digest
    assert main([*argv, str(out), "--fresh-statistics", str(tmp_path / "model.pt")]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err


def test_without_training_images_those_of_the_test_tell_and_nothing_is_written(stale, tmp_path, caplog):
    shutil.copytree(stale / "val", tmp_path / "val")
    with caplog.at_level(logging.WARNING, "kaconv"):
        result = evaluate_checkpoint(stale / "stale.safetensors", f"folder:{tmp_path}", progress=False)
    assert result["fresh_statistics"]["split"] == "test"
    (message,) = caplog.messages
    assert "recomputed from 40 test images" in message
    assert "--fresh-statistics" not in message
    out = tmp_path / "fresh.safetensors"
    with pytest.raises(ValueError, match=r"statistics cannot be recomputed: data 'folder:.*' has no train/ folder"):
        evaluate_checkpoint(stale / "stale.safetensors", f"folder:{tmp_path}", fresh_statistics=out, progress=False)
    assert not out.exists()
