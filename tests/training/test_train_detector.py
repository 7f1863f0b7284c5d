"""Training of a small detector on drawn shapes."""

import json
import logging
from dataclasses import replace

import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")

from kaconv.cli import main
from kaconv.data.detection import load_detection
from kaconv.data.shapes import draw_shapes
from kaconv.inference.detection import evaluate_detector
from kaconv.models.checkpoints import load_checkpoint
from kaconv.training import detection
from kaconv.training.detection import DetectionConfig, train_detector
from kaconv.training.run import holding
from kaconv.training.state import save_state, state_files


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished training and its config."""
    folder = tmp_path_factory.mktemp("detection")
    data = draw_shapes(folder / "shapes", train=8, test=4, size=64)
    config = DetectionConfig(
        data=data, backbone="ka_mobilenetv2_050_l", out=str(folder / "run"), epochs=3, batch_size=4, image_size=64
    )
    return config, train_detector(config, progress=False)


def test_it_learns_and_says_how_well(trained):
    config, run = trained
    assert len(run.summary["losses"]) == 3
    assert run.summary["losses"][-1] < run.summary["losses"][0]
    assert 0 <= run.summary["average_precision"] <= run.summary["average_precision_50"] <= 100
    assert run.summary["test_images"] == 4
    assert run.classes == load_detection(config.data).classes


def test_its_checkpoint_detects_the_same(trained):
    config, run = trained
    checkpoint = load_checkpoint(f"{config.out}/last.safetensors", detection.BUILDER)
    assert checkpoint.classes == run.classes
    image = [load_detection(config.data).test[0][0]]
    with torch.no_grad():
        (found,), (expected,) = checkpoint.model(image), run.model(image)
    assert len(found["boxes"])
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    again = evaluate_detector(checkpoint.model, load_detection(config.data).test, progress=False)
    assert again.precision == pytest.approx(run.summary["average_precision"])


def test_a_finished_training_is_not_repeated(trained, monkeypatch):
    config, run = trained
    monkeypatch.setattr(detection, "_Training", None)
    again = train_detector(replace(config, workers=1))
    assert again.summary == run.summary
    with pytest.raises(ValueError, match="holds another training"):
        train_detector(replace(config, seed=1))


def break_off(config, steps, monkeypatch):
    """Interrupt a training before the step after these, with a state of each."""
    real, done = detection._Training._step, []

    def step(self, *args):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(args[:2])
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(detection, "SAVE_MINUTES", 0)
        patch.setattr(detection._Training, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            train_detector(config, progress=False)
    return done


@pytest.mark.parametrize("done", [3, 4, 6])
def test_an_interrupted_training_goes_on(trained, tmp_path, monkeypatch, capsys, done):
    """Within an epoch, at its end, and after the last step."""
    config = replace(trained[0], out=str(tmp_path / "run"))

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(detection, "evaluate_detector", interrupted)
        steps = break_off(config, done, monkeypatch)
    assert list(tmp_path.glob("run/state-*.pt"))
    with pytest.raises(ValueError, match="holds another training"):
        train_detector(replace(config, seed=1))
    assert steps == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)][:done]
    run = train_detector(config)
    assert ("going on with epoch" in capsys.readouterr().out) == (done < 6)
    assert run.summary["losses"] == trained[1].summary["losses"]
    expected = trained[1].model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in run.model.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "last.safetensors",
        "summary.json",
    ]


def test_a_state_of_an_earlier_version_is_taken_up(trained, tmp_path, monkeypatch):
    """They had three sums, and names for what a detector's training has not."""
    config = replace(trained[0], out=str(tmp_path / "run"))
    break_off(config, 3, monkeypatch)
    state = torch.load(state_files(tmp_path / "run")[-1], weights_only=True)
    totals = torch.tensor([state["totals"].item(), 0, state["step"]], dtype=torch.float64)
    save_state(tmp_path / "run", state | {"totals": totals, "ema": None, "scaler": None})
    assert train_detector(config, progress=False).summary["losses"] == trained[1].summary["losses"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"totals": torch.zeros(0)}, "totals must be a row of sums"),
        ({"ema": "text"}, "ema must be tensors by name or None"),
        ({"history": "[]"}, "there is no epoch 2, step 2"),
        ({"model": {}}, "Missing key"),
    ],
)
def test_a_bad_state_is_passed_over_in_a_line(trained, tmp_path, monkeypatch, caplog, change, reason):
    config = replace(trained[0], out=str(tmp_path / "run"))
    break_off(config, 3, monkeypatch)
    newest = state_files(tmp_path / "run")[-1]
    save_state(tmp_path / "run", torch.load(newest, weights_only=True) | change)
    with caplog.at_level(logging.WARNING, "kaconv"):
        assert break_off(config, 1, monkeypatch) == [(2, 1)]
    assert reason in caplog.messages[0]
    assert caplog.messages[1].startswith("the training goes on from ")


def test_a_folder_in_use_is_refused(trained, tmp_path):
    config = replace(trained[0], out=str(tmp_path / "run"))
    with holding(tmp_path / "run"), pytest.raises(ValueError, match="in use by another training"):
        train_detector(config, progress=False)


def test_the_command_shows_it(trained, capsys):
    config = trained[0]
    given = {"data": config.data, "backbone": config.backbone, "out": config.out, "epochs": 3}
    options = [f"--{name}={value}" for name, value in given.items()]
    assert main(["detect", *options, "--batch-size=4", "--image-size=64"]) == 0
    line = capsys.readouterr().out
    assert f"average precision {trained[1].summary['average_precision']:.1f} %" in line
    assert "4 test images" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector": "yolo"}, "detector must be one of faster_rcnn, retinanet, ssdlite, got 'yolo'"),
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"lr": 0.0}, "lr must be a number > 0"),
        ({"batch_size": 9}, "batch_size 9 is more than the 8 training images"),
        ({"backbone": "resnet50"}, "wants a MobileNetV2"),
    ],
)
def test_a_bad_config_writes_nothing(trained, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_detector(replace(trained[0], out=str(tmp_path / "new"), **changes), progress=False)
    assert not (tmp_path / "new").exists()


def test_a_loss_that_is_no_number_ends_it(trained, tmp_path):
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1; try a smaller lr than 1e"):
        train_detector(replace(trained[0], out=str(tmp_path / "new"), lr=1e30), progress=False)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]


def test_another_training_s_weights_are_not_replaced(trained, tmp_path):
    (tmp_path / "last.safetensors").write_text("weights")
    with pytest.raises(ValueError, match=r"last\.safetensors is of another training"):
        train_detector(replace(trained[0], out=str(tmp_path)))
    assert json.loads(json.dumps(trained[1].summary)) == trained[1].summary
