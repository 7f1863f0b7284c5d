import json

import pytest

from kaconv.training import Run, TrainConfig
from kaconv.training.study import compare, learning_curves, study_config, summarise, train_study
from kaconv.utils.intervals import t_interval, welch_interval, wilson_interval

PLAIN, LIGHT = "resnet11_cifar", "ka_resnet11_cifar_l"


def finished_run(model, seed, error, images_per_second=100.0):
    config = TrainConfig(model=model, data="fake", seed=seed, out=f"{model}{seed}")
    history = [
        {"epoch": epoch, "train_loss": 1 / epoch, "test_error": error, "images_per_second": images_per_second}
        for epoch in (1, 2)
    ]
    return Run(f"{model}{seed}", config, history, {"last": {"test_error": error}})


@pytest.fixture
def runs():
    """Two models, three seeds; one trains at half the other's speed."""
    errors = {PLAIN: (1.0, 2.0, 3.0), LIGHT: (4.0, 4.0, 7.0)}
    return [
        finished_run(model, seed, errors[model][seed], 96.0 if model == PLAIN else 48.0)
        for seed in range(3)
        for model in (PLAIN, LIGHT)
    ]


def test_t_interval_is_students():
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)  # t(0.975, 2) = 4.30265
    assert t_interval([1.0]) is None


def test_wilson_interval_is_the_published_one():
    # 0 errors of 10: upper end z²/(n + z²); 5 of 10: 0.2366 to 0.7634.
    assert wilson_interval(0, 10) == pytest.approx((0, 100 * 3.8415 / 13.8415), abs=1e-2)
    assert wilson_interval(50, 10) == pytest.approx((23.66, 76.34), abs=1e-2)
    for n in range(1, 100):  # not almost
        assert (wilson_interval(0, n)[0], wilson_interval(100, n)[1]) == (0, 100)


def test_welch_interval():
    # Equal variances and sizes: Student's two-sample interval with 4 degrees of freedom, t = 2.77645.
    half = 2.77645 * (2 / 3) ** 0.5
    assert welch_interval([4, 5, 6], [1, 2, 3]) == pytest.approx((3 - half, 3 + half), abs=1e-4)
    assert welch_interval([4, 4], [1, 1]) == (3, 3)
    assert welch_interval([4], [1, 2]) is None


def test_summary_and_comparison(runs):
    plain, light = summarise(runs)
    assert (plain["model"], light["model"]) == (PLAIN, LIGHT)
    assert light["test_errors"] == [4, 4, 7]
    assert light["test_error"] == 5
    assert plain["seed_interval"] == t_interval([1, 2, 3])
    assert plain["picture_interval"] == wilson_interval(2, plain["test_pictures"])
    assert (plain["train_seconds"], light["train_seconds"]) == (1, 2)  # 96 training images
    (row,) = compare([plain, light], PLAIN)
    assert row["difference"] == 3
    assert row["difference_interval"] == welch_interval([4, 4, 7], [1, 2, 3])
    assert row["train_seconds_ratio"] == 2
    assert row["params_ratio"] == light["params"] / plain["params"] > 1
    json.dumps([plain, light, row])  # plain lists and numbers
    with pytest.raises(ValueError, match="baseline 'resnet50' is not in the study: resnet11_cifar, ka_"):
        compare([plain, light], "resnet50")


def test_learning_curves_name_model_and_seed(runs):
    curves = learning_curves(runs)
    assert len(curves) == 12
    assert {key: curves[-1][key] for key in ("model", "seed", "epoch", "test_error")} == {
        "model": LIGHT,
        "seed": 2,
        "epoch": 2,
        "test_error": 7.0,
    }


def test_folders_tell_what_is_trained(tmp_path):
    config = study_config(PLAIN, 3, data="folder:my/pictures", runs=tmp_path, lr=0.5, epochs=2, data_root="x")
    assert config.out == str(tmp_path / "folder-my-pictures_resnet11_cifar_epochs-2_lr-0.5_seed3")
    assert (config.seed, config.epochs, config.data) == (3, 2, "folder:my/pictures")


@pytest.mark.parametrize(
    ("models", "seeds", "message"),
    [([], [0], "models must be at least one"), ([PLAIN], [0, 0], r"seeds .* all different, got \[0, 0\]")],
)
def test_bad_studies(models, seeds, message):
    with pytest.raises(ValueError, match=message):
        next(train_study(models, seeds))


def test_a_bad_model_comes_to_light_before_any_training(tmp_path):
    with pytest.raises(ValueError, match="unknown model 'resnet12_cifar'"):
        next(train_study([PLAIN, "resnet12_cifar"], [0], data="fake", runs=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_study_trains_and_then_reuses(tmp_path):
    arguments = {"data": "fake", "runs": tmp_path, "epochs": 1, "image_size": 8, "progress": False}
    first = list(train_study([PLAIN], [0, 1], **arguments))
    assert [run.folder.name for run in first] == [
        f"fake_resnet11_cifar_epochs-1_image_size-8_seed{seed}" for seed in (0, 1)
    ]
    written = (first[0].folder / "last.safetensors").stat().st_mtime_ns
    again = list(train_study([PLAIN], [0, 1], **arguments))
    assert [run.summary for run in again] == [run.summary for run in first]
    assert (again[0].folder / "last.safetensors").stat().st_mtime_ns == written
