import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kaconv.bench.benchmark import read_benchmark
from kaconv.bench.input_speed import _needs, _stages, default_workers, format_input_benchmark, run_input_benchmark
from kaconv.cli import main
from kaconv.data.datasets import load_data

STAGES = ["reading and decoding", "evaluation", "training", "training (all Pillow)"]
SMALL = {"models": ["ka_resnet11_cifar_l"], "rounds": 1, "batch_size": 2, "image_size": 16, "threads": 1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for name in ("cat", "dog"):
        (root / "val" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "val" / name / f"{number}.jpg")
    return root


@pytest.fixture(scope="module")
def result(pictures) -> dict:
    return run_input_benchmark(f"folder:{pictures}", workers=[0, 1], pictures=36, **SMALL)


def test_every_stage_is_measured_with_each_number_of_workers(result):
    measured = result["input"]
    assert (measured["pictures"], measured["image_size"]) == (36, 16)
    assert [(row["workers"], row["stage"]) for row in measured["rows"]] == [
        (n, stage) for n in (0, 1) for stage in STAGES
    ]
    for row in measured["rows"]:
        assert len(row["seconds"]) == 1
        assert row["images_per_second"] == pytest.approx(36 / row["seconds"][0])
    assert [(need["name"], need["mode"], need["stage"]) for need in measured["needs"]] == [
        (name, mode, stage)
        for name in ("resnet11_cifar", "ka_resnet11_cifar_l")
        for mode, stage in (("training", "training"), ("inference", "evaluation"))
    ]
    plain = result["rows"][0]
    assert plain["image_size"] == 16
    need = measured["needs"][0]
    assert need["images_per_second"] == pytest.approx(2000 / plain["training"]["median_ms"])
    assert result["provenance"].keys() == {"date", "command", "commit", "machine", "versions"}


def row(stage: str, workers: int, speed: float) -> dict:
    return {"stage": stage, "workers": workers, "seconds": [1 / speed], "images_per_second": speed}


def test_what_limits_is_said():
    """A model that takes 400 images per second in training and 2000 in evaluation."""
    ms = {"training": {"median_ms": 20.0}, "inference": {"median_ms": 4.0}}
    models = [{"name": "quick", "batch_size": 8, **ms}, {"name": "failed", "training": None, "inference": None}]
    rows = [row("training", 0, 300), row("training", 2, 500), row("evaluation", 0, 250), row("evaluation", 2, 450)]
    training, evaluation = _needs({"rows": models}, rows)
    assert training == {
        "name": "quick",
        "mode": "training",
        "stage": "training",
        "images_per_second": 400,
        "loaded": 500,
        "workers": 2,
        "limited_by": "model",
        "workers_needed": 2,
    }
    assert (evaluation["limited_by"], evaluation["workers_needed"]) == ("input", 9)


def test_the_text_shows_every_figure(result):
    lines = format_input_benchmark(result).splitlines()
    assert lines[1].startswith("Images per second, 36 of folder:")
    for stage in STAGES:
        line = next(line for line in lines if line.startswith(stage + " "))
        speeds = [f"{one['images_per_second']:,.0f}" for one in result["input"]["rows"] if one["stage"] == stage]
        assert line.removeprefix(stage).split() == speeds
    assert sum(": takes " in line and " limit" in line for line in lines) == 4
    assert any(line.startswith("Reading and decoding take ") for line in lines)


def test_the_stages_do_what_they_say(pictures):
    stages = _stages(load_data(f"folder:{pictures}", image_size=16))
    assert list(stages) == STAGES
    assert stages["reading and decoding"][0] == (0, 0)
    assert [type(stages[name].loader(stages[name].samples[0][0])).__name__ for name in STAGES] == [
        "Image",
        "Image",
        "Tensor",
        "Image",
    ]
    assert {stages[name][0][0].shape for name in STAGES[1:]} == {(3, 16, 16)}


def test_data_in_memory_has_nothing_to_decode():
    assert list(_stages(load_data("digits"))) == ["evaluation", "training"]


def test_workers_go_up_to_the_cores(monkeypatch):
    for cores, expected in {1: [0, 1], 2: [0, 1, 2], 6: [0, 1, 2, 4, 6], 16: [0, 1, 2, 4, 8, 16]}.items():
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert default_workers() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": [0, -1]}, "workers must be a whole number >= 0, got -1"),
        ({"workers": []}, "workers must hold a number"),
        ({"pictures": 0}, "pictures must be a whole number >= 1, got 0"),
        ({"rounds": 0}, "rounds must be a whole number >= 1, got 0"),
        ({"models": ["resnet50"]}, "resnet50 is a plain model"),
    ],
)
def test_bad_options_are_refused(pictures, options, message):
    with pytest.raises(ValueError, match=message):
        run_input_benchmark(f"folder:{pictures}", **SMALL | options)


def test_the_command_writes_a_result_that_is_read_as_one(pictures, tmp_path, capsys):
    out = tmp_path / "input.json"
    argv = ["bench", "--input", f"folder:{pictures}", "--workers", "0", "--out", str(out)]
    for name, value in SMALL.items():
        argv += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert printed == format_input_benchmark(json.loads(out.read_text())) + "\n"
    assert read_benchmark(out)["input"]["data"] == f"folder:{pictures}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workers", "2"], "--workers has a meaning only with --input"),
        (["--input", "digits", "--variants", "eager"], "--variants has no meaning with --input"),
        (["--input", "digit"], "did you mean 'digits'"),
    ],
)
def test_options_that_do_not_go_together(argv, message, capsys):
    assert main(["bench", *argv]) == 2
    assert message in capsys.readouterr().err


def test_a_broken_picture_is_named(pictures, tmp_path):
    (tmp_path / "val" / "a").mkdir(parents=True)
    (tmp_path / "val" / "a" / "0.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read the image .*a/0\.jpg"):
        run_input_benchmark(f"folder:{tmp_path}", workers=[0], **SMALL)
