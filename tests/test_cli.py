import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from kaconv.cli import main
from kaconv.paper.published import TABLE
from kaconv.paper.table import table_row
from kaconv.training import trainer

ROOT = Path(__file__).parents[1]
TRAIN = [
    "train",
    "--model",
    "resnet11_cifar",
    "--data",
    "fake",
    "--image-size",
    "8",
    "--epochs",
    "1",
    "--batch-size",
    "32",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    assert main([*TRAIN, "--out", str(out)]) == 0
    return out


def error_of(capsys, argv) -> str:
    assert main([str(item) for item in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kaconv: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_train_says_how_it_went(tmp_path, capsys):
    assert main([*TRAIN, "--out", str(tmp_path / "a")]) == 0
    epoch, best = capsys.readouterr().out.splitlines()
    assert epoch.startswith("resnet11_cifar epoch 1/1: train loss ")
    assert best.startswith(f"{tmp_path / 'a' / 'best.safetensors'}: test error ")


def test_evaluate_writes_a_result_with_its_provenance(folder, tmp_path, capsys):
    checkpoint = folder / "best.safetensors"
    argv = ["evaluate", "--checkpoint", checkpoint, "--data", "fake", "--out", tmp_path / "new" / "result.json"]
    assert main([str(item) for item in argv]) == 0
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert (result["model"], result["data"], result["n"]) == ("resnet11_cifar", "fake", 50)
    assert result["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert result["provenance"].keys() == {"date", "command", "commit", "machine", "versions"}
    printed = capsys.readouterr().out
    assert printed == (
        f"resnet11_cifar on fake, 50 images: "
        f"top-1 error {result['top1_error']:.2f} %, top-5 error {result['top5_error']:.2f} %\n"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model", "resnet11_cifr"], "resnet11_cifar"),
        (["--data", "mnist"], "fashion_mnist"),
        (["--data", "folder:nowhere"], "nowhere"),
        (["--lr", "-1"], "lr must be a number > 0, got -1.0"),
        (["--schedule", "linear"], "cosine, step"),
        (["--batch-size", "1"], "batch_size must be a whole number from 2"),
        (["--seed", str(2**32)], "seed must be"),
        (["--out", f"{__file__}/sub"], f"{__file__} is a file"),
    ],
)
def test_mistakes_in_training_are_explained_in_a_line(tmp_path, capsys, changes, message):
    assert message in error_of(capsys, [*TRAIN, "--out", tmp_path / "a", *changes])
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_evaluation_are_explained_in_a_line(folder, tmp_path, capsys):
    checkpoint = folder / "best.safetensors"
    assert "no checkpoint" in error_of(capsys, ["evaluate", "--checkpoint", tmp_path / "x", "--data", "fake"])
    assert "class 0 is" in error_of(capsys, ["evaluate", "--checkpoint", checkpoint, "--data", "digits"])
    message = error_of(capsys, ["evaluate", "--checkpoint", checkpoint, "--data", "fake", "--out", tmp_path])
    assert "is a folder" in message


def test_only_a_result_is_replaced_by_a_result(folder, tmp_path, capsys, monkeypatch):
    argv = ["evaluate", "--checkpoint", folder / "best.safetensors", "--data", "fake", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr("kaconv.inference.evaluation.evaluate", lambda *args, **kwargs: pytest.fail("evaluated"))
        assert "must end in .json, got 'result'" in error_of(capsys, [*argv, "result"])
        for text in ("years of work", '["top1_error", "provenance"]', '{"top1_error": 3}'):
            (tmp_path / "a.json").write_text(text)
            assert "a.json exists and is not a result" in error_of(capsys, [*argv, tmp_path / "a.json"])
            assert (tmp_path / "a.json").read_text() == text
        message = error_of(capsys, [*argv, tmp_path / "a.json" / "sub" / "b.json"])
        assert f"{tmp_path / 'a.json'} is a file, not a folder" in message
    for _ in range(2):  # the second time over the first result
        assert main([str(item) for item in [*argv, tmp_path / "b.json"]]) == 0


def test_mistakes_in_prediction_are_explained_in_a_line(folder, tmp_path, capsys):
    assert "no checkpoint" in error_of(capsys, ["predict", "--checkpoint", tmp_path / "x", "a.png"])
    argv = ["predict", "--checkpoint", folder / "best.safetensors", "--topk", "0", "a.png"]
    assert "topk must be a whole number of at least 1, got 0" in error_of(capsys, argv)


def test_bounds_of_evaluation_are_explained_in_a_line(folder, capsys):
    argv = ["evaluate", "--checkpoint", folder / "best.safetensors", "--data", "fake"]
    assert "batch_size must be a whole number from 1" in error_of(capsys, [*argv, "--batch-size", "0"])
    assert "workers must be a whole number from 0 to 1024" in error_of(capsys, [*argv, "--workers", "1025"])


def test_a_training_wants_a_model(tmp_path, capsys):
    message = error_of(capsys, ["train", "--out", tmp_path / "a"])
    assert message == "kaconv: error: --model or --recipe is required; see kaconv train --help\n"
    message = error_of(capsys, ["train", "--recipe", "resnet11_cifar", "--out", tmp_path / "a"])
    assert message.startswith("kaconv: error: there is no recipe for 'resnet11_cifar'; choose from resnet50, ")


def test_a_recipe_is_overruled_by_options(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: resnet11_cifar\ndata: fake\nimage_size: 8\nepochs: 7\n")
    assert main(["train", "--recipe", str(recipe), "--epochs", "1", "--out", str(tmp_path / "a")]) == 0
    assert "epoch 1/1" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_one_line(tmp_path, capsys, workers):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / split / name / "0.png")
    broken = tmp_path / "pictures" / "train" / "dog" / "0.png"
    broken.write_bytes(b"no image")
    argv = [*TRAIN, "--out", tmp_path / "a", "--data", f"folder:{tmp_path / 'pictures'}", "--workers", workers]
    message = error_of(capsys, [*argv, "--max-broken", "0"])
    expected = f"1 image in epoch 1 cannot be read, more than max_broken=0: {broken}"
    assert message.splitlines()[-1] == f"kaconv: error: {expected}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice"),
        (["train", "--model", "resnet11_cifar"], "--out"),
        ([*TRAIN, "--out", "x", "--epochs", "many"], "invalid int value: 'many'"),
        ([*TRAIN, "--out", "x", "--epoch", "3"], "unrecognized arguments: --epoch"),
        (["predict", "--checkpoint", "x"], "IMAGE"),
        (["export", "--checkpoint", "x", "--format", "tf"], "choose from 'onnx', 'pt2'"),
    ],
)
def test_wrong_arguments_exit_with_2(capsys, argv, message):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "example"),
    [
        (["--help"], "  kaconv train --model ka_resnet29_cifar_l --data digits"),
        (["train", "--help"], "  kaconv train --model ka_resnet29_cifar_l --data digits"),
        (["evaluate", "--help"], "  kaconv evaluate --checkpoint runs/"),
        (["predict", "--help"], "  kaconv predict --checkpoint ka_resnet50_l.safetensors cat.jpg"),
        (["convert", "--help"], "  kaconv convert best_model.pkl ka_resnet50_l.safetensors"),
        (["export", "--help"], "  kaconv export --checkpoint runs/first/best.safetensors --format onnx"),
    ],
)
def test_help_teaches_with_an_example(capsys, argv, example):
    with pytest.raises(SystemExit, match="0"):
        main(argv)
    assert example in capsys.readouterr().out


def test_an_interrupt_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "load_data", interrupted)
    assert main([*TRAIN, "--out", str(tmp_path / "a")]) == 130
    assert capsys.readouterr().err == "kaconv: interrupted\n"


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "kaconv", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: kaconv ")


def test_table_exits_with_1_when_a_row_disagrees(monkeypatch, capsys):
    rows = [table_row(TABLE[9]), table_row(replace(TABLE[12], params="3.6M"))]
    monkeypatch.setattr("kaconv.paper.table.table_rows", lambda *args, **kwargs: rows)
    assert main(["table", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out) == rows
    assert main(["table"]) == 1
    assert "3 of 4 figures agree" in capsys.readouterr().out
    monkeypatch.setattr("kaconv.paper.table.table_rows", lambda *args, **kwargs: rows[:1])
    assert main(["table"]) == 0


def test_list_takes_a_pattern(capsys):
    assert main(["list", "ka_resnet50_*"]) == 0
    assert capsys.readouterr().out == "ka_resnet50_h\nka_resnet50_l\n"
    assert "no model matches 'nothing'; there are " in error_of(capsys, ["list", "nothing"])


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the reader is missed at the end, or in the middle of the command
def test_a_reader_who_has_seen_enough_ends_a_command_quietly(unbuffered):
    command = f"{sys.executable} -m kaconv list | head -0; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


def test_a_name_of_two_million_letters_is_not_echoed(capsys, tmp_path):
    message = error_of(capsys, ["train", "--model", "A" * 2_000_000, "--out", tmp_path / "a"])
    assert len(message) < 1100
    assert message.endswith("resnet29_cifar, resnet50, resnext50_32x4d\n")
    assert "characters left out" in error_of(capsys, ["predict", "--checkpoint", "A" * 2_000_000, "a.png"])


def test_an_error_obeys_no_escape(capsys, tmp_path):
    message = error_of(capsys, ["train", "--model", "\x1b[2Jresnet\nx", "--out", tmp_path / "a"])
    assert "\x1b" not in message
