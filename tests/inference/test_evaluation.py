import csv
import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.multiprocessing import spawn
from torch.utils.data import Dataset, Subset

from kaconv.cli import main
from kaconv.data.datasets import load_data
from kaconv.data.preprocessing import IMAGENET
from kaconv.data.unreadable import UnreadablePicture
from kaconv.data.wnids import IMAGENET_WNIDS
from kaconv.inference import evaluate, evaluate_checkpoint
from kaconv.inference.evaluation import HEADERS, make_accelerator, write_details
from kaconv.models import create_model
from kaconv.models.checkpoints import save_checkpoint
from kaconv.paper.table import format_table, read_results

CLASSES = 8


class Numbered(Dataset):
    """Samples that hold their number; some cannot be read."""

    transform = staticmethod(lambda picture: torch.zeros(3, 1, 1))

    def __init__(self, n: int, unreadable: tuple[int, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(n)
        self.labels = torch.randint(CLASSES, (n,), generator=generator)
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index in self.unreadable:
            raise UnreadablePicture(f"cannot read the image {index}")
        return torch.full((3, 1, 1), float(index)), int(self.labels[index])


class Table(nn.Module):
    """A model that looks its logits up by the sample's number, and counts how often it was asked for each."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(n, CLASSES, generator=torch.Generator().manual_seed(1)))
        self.seen: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        numbers = images[:, 0, 0, 0].long()
        self.seen += numbers.tolist()
        return self.logits[numbers]


def same(one, other) -> bool:
    return all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items())


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_pictures_count_nowhere(workers, caplog):
    model, broken = Table(23), (0, 7, 22)
    kept = [index for index in range(23) if index not in broken]
    with caplog.at_level(logging.WARNING, "kaconv"):
        result = evaluate(model, Numbered(23, broken), batch_size=4, workers=workers, progress=False)
    alone = evaluate(model, Subset(Numbered(23), kept), progress=False)
    assert result.n == 20
    assert result.skipped == ["sample 0", "sample 7", "sample 22"]
    assert result.indices.tolist() == kept
    assert same(replace(result, skipped=[], indices=alone.indices), alone)
    assert [record.getMessage().split(" cannot")[0] for record in caplog.records] == result.skipped


def test_too_many_unreadable_pictures_are_an_error():
    dataset = Numbered(30, tuple(range(10, 21)))
    message = r"^11 images .* max_broken=10: sample 10, sample 11, sample 12, sample 13, sample 14, \.\.\.$"
    with pytest.raises(ValueError, match=message):
        evaluate(Table(30), dataset, progress=False)
    assert evaluate(Table(30), dataset, max_broken=11, progress=False).n == 19
    with pytest.raises(ValueError, match="max_broken=0: sample 2"):
        evaluate(Table(30), Numbered(5, (2,)), max_broken=0, progress=False)
    with pytest.raises(ValueError, match="none of the 3 images to evaluate on can be read: sample 0"):
        evaluate(Table(30), Numbered(3, (0, 1, 2)), progress=False)


def test_classes_that_the_model_does_not_know_count_in_no_error():
    class Strange(Numbered):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, label + CLASSES * (index in (1, 4))

    result = evaluate(Table(9), Strange(9), batch_size=4, progress=False)
    alone = evaluate(Table(9), Subset(Numbered(9), [0, 2, 3, 5, 6, 7, 8]), progress=False)
    assert (result.n, result.known.sum(), len(result.predictions)) == (7, 7, 9)
    assert not result.known[[1, 4]].any()
    for error in ("top1_error", "top5_error", "loss"):
        assert getattr(result, error) == getattr(alone, error)
    stranger = evaluate(Table(9), Subset(Strange(9), [1, 4]), progress=False)
    assert np.isnan([stranger.top1_error, stranger.top5_error, stranger.loss]).all()
    assert (stranger.n, len(stranger.predictions)) == (0, 2)


def test_evaluation_draws_no_random_numbers():
    torch.manual_seed(0)
    evaluate(Table(9), Numbered(9), progress=False)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


SETS = {  # n: fewer samples than processes, and numbers that nothing divides
    "few": (2, ()),
    "uneven": (23, ()),
    "broken": (23, (0, 13, 22)),
    "too broken": (23, (0, 1, 13, 14, 22)),
}


def one_of_several(rank: int, processes: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    accelerator = make_accelerator()
    assert accelerator.num_processes == processes
    results = {}
    for name, (n, broken) in SETS.items():
        bare = Table(n)
        wrapped = nn.parallel.DistributedDataParallel(bare)
        try:
            result = evaluate(
                wrapped, Numbered(n, broken), batch_size=4, progress=False, accelerator=accelerator, max_broken=4
            )
            results[name] = (result, bare.seen)
        except ValueError as error:
            results[name] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_evaluates_as_one(processes, tmp_path):
    spawn(one_of_several, (processes, free_port(), str(tmp_path)), nprocs=processes)
    # Written by this test itself: not a file that came from elsewhere.
    of_ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(processes)]
    for name, (n, broken) in SETS.items():
        if name == "too broken":
            assert {results[name] for results in of_ranks} == {
                "5 images to evaluate on cannot be read, more than max_broken=4: "
                "sample 0, sample 1, sample 13, sample 14, sample 22"
            }
            continue
        alone = evaluate(Table(n), Numbered(n, broken), progress=False)
        assert alone.n == n - len(broken)
        assert all(same(results[name][0], alone) for results in of_ranks)
        read = [number for results in of_ranks for number in results[name][1]]
        stand_ins = read.count(0) - (0 not in broken)  # zeros, which this model takes for sample 0
        assert stand_ins == len(broken)
        assert sorted(set(read) - {0}) == [index for index in range(1, n) if index not in broken]
        assert len(read) == n


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """A validation set of a tiny image for each class, and none for training."""
    root = tmp_path_factory.mktemp("imagenet")
    colours = np.random.default_rng(0).integers(0, 256, (1000, 3))
    for wnid, colour in zip(sorted(IMAGENET_WNIDS), colours.tolist(), strict=True):
        (root / "val" / wnid).mkdir(parents=True)
        Image.new("RGB", (12, 10), tuple(colour)).save(root / "val" / wnid / "ILSVRC2012_val_0.JPEG")
    return root


def checkpoint(path: Path, imagenet: Path, **preprocessing) -> Path:
    torch.manual_seed(0)
    model = create_model("ka_resnet11_cifar_l", num_classes=1000)
    classes = load_data(f"imagenet:{imagenet}").classes
    save_checkpoint(
        path,
        model,
        name="ka_resnet11_cifar_l",
        classes=classes,
        preprocessing=replace(IMAGENET, **preprocessing),
    )
    return path


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory, imagenet) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    return checkpoint(path, imagenet, image_size=8, resize=9)


def evaluate_on_the_terminal(checkpoint: Path, imagenet: Path, *options: object) -> int:
    argv = ["evaluate", "--checkpoint", checkpoint, "--data", f"imagenet:{imagenet}", *options]
    return main([str(item) for item in argv])


def test_a_result_s_way_into_the_table(small_checkpoint, imagenet, tmp_path, capsys):
    results, details = tmp_path / "results", tmp_path / "details"
    out = results / "small.json"
    assert evaluate_on_the_terminal(small_checkpoint, imagenet, "--out", out, "--details", details) == 0
    result = json.loads(out.read_text())
    assert (result["n"], result["skipped"], result["protocol"]) == (1000, [], "checkpoint")
    assert result["preprocessing"] == replace(IMAGENET, image_size=8, resize=9).to_dict() | {
        "mean": list(IMAGENET.mean),
        "std": list(IMAGENET.std),
    }
    measured = read_results(results)["ka_resnet11_cifar_l"]
    assert measured["top1_error"] == result["top1_error"]
    assert measured["provenance"]["commit"] == result["provenance"]["commit"]
    # The table has no row for the small network; as another model's, its figures appear there.
    out.write_text(json.dumps(result | {"model": "ka_resnet50_l"}))
    capsys.readouterr()
    assert main(["table", "--results", str(results), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    measured = [row["measured"] for row in rows if row["measured"]]
    assert [one["provenance"] for one in measured] == [result["provenance"]]
    row = next(line for line in format_table(rows).splitlines() if line.startswith("KAResNet50-L"))
    assert row.endswith(f"{result['top1_error']:.2f} / {result['top5_error']:.2f} of 1,000 images at 8²")
    assert {path.name for path in details.iterdir()} == set(HEADERS)


def test_imagenet_is_prepared_as_in_the_paper_unless_the_checkpoint_says_otherwise(imagenet, tmp_path, monkeypatch):
    seen = []

    def watched(model, dataset, **options):
        seen.append(dataset[0][0].shape)
        return evaluate(model, Subset(dataset, range(4)), **options)

    monkeypatch.setattr("kaconv.inference.evaluation.evaluate", watched)
    monkeypatch.setattr("kaconv.inference.evaluation.has_batch_norm", lambda model: False)  # nothing to recompute
    for changes, expected in (
        ({}, "paper"),
        ({"flip": False}, "paper"),  # concerns training only
        ({"resize": 232}, "checkpoint"),
        ({"interpolation": "bilinear"}, "checkpoint"),
    ):
        path = checkpoint(tmp_path / "a.safetensors", imagenet, **changes)
        result = evaluate_checkpoint(path, f"imagenet:{imagenet}", progress=False)
        assert result["protocol"] == expected
        assert result["preprocessing"]["resize"] == changes.get("resize", 256)
    assert set(seen) == {(3, 224, 224)}
    path = checkpoint(tmp_path / "a.safetensors", imagenet)
    folder = tmp_path / "folder"
    (folder / "val").mkdir(parents=True)
    for place in (imagenet / "val").iterdir():
        (folder / "val" / place.name).symlink_to(place)
    assert evaluate_checkpoint(path, f"folder:{folder}", progress=False)["n"] == result["n"]
    (folder / "val" / "n01440764").rename(folder / "val" / "a fish")
    with pytest.raises(ValueError, match="class 0 is 'tench' there, 'a fish' here"):
        evaluate_checkpoint(path, f"folder:{folder}", progress=False)


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_details_say_which_classes_and_which_pictures(small_checkpoint, imagenet, tmp_path):
    evaluation = []

    def watched(*args, **kwargs):
        evaluation.append(evaluate(*args, **kwargs))
        return evaluation[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kaconv.inference.evaluation.evaluate", watched)
        assert evaluate_on_the_terminal(small_checkpoint, imagenet, "--details", tmp_path) == 0
    result, classes = evaluation[0], load_data(f"imagenet:{imagenet}").classes
    by_class, mistakes = rows_of(tmp_path / "per_class.csv"), rows_of(tmp_path / "mistakes.csv")
    assert [int(row["index"]) for row in by_class] == list(range(1000))
    assert [row["class"] for row in by_class] == classes
    assert np.mean([float(row["top1_error"]) for row in by_class]) == pytest.approx(result.top1_error)
    assert np.mean([float(row["top5_error"]) for row in by_class]) == pytest.approx(result.top5_error)
    wrong = [row for row in by_class if float(row["top1_error"]) > 0]
    assert all(row["most_frequent_mistake"] == classes[result.predictions[int(row["index"])]] for row in wrong)
    assert all(row["times"] == "1" for row in wrong)
    assert len(mistakes) == 100
    confidences = [float(row["probability"]) for row in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    expected = result.probabilities.max(1)[result.predictions != result.labels].max()
    assert confidences[0] == pytest.approx(expected, abs=1e-6)
    first = mistakes[0]
    assert Path(first["picture"]).parent.name == sorted(IMAGENET_WNIDS)[int(first["index"])]
    assert first["class"] == classes[int(first["index"])] != first["predicted_class"]
    label = int(first["index"])
    assert float(first["class_probability"]) == pytest.approx(result.probabilities[label, label], abs=1e-6)


def test_details_count(tmp_path):
    """With several images of a class, and a class without any."""
    model, dataset = Table(6), Numbered(6)
    dataset.labels = torch.tensor([0, 0, 0, 0, 2, 2])
    with torch.no_grad():
        model.logits.copy_(9 * torch.eye(CLASSES)[[0, 1, 1, 3, 2, 2]] - torch.arange(CLASSES))
    write_details(tmp_path, evaluate(model, dataset, progress=False), [f"class {i}" for i in range(CLASSES)], dataset)
    rows = rows_of(tmp_path / "per_class.csv")
    assert list(rows[0].values()) == ["0", "class 0", "4", "75.00", "0.00", "class 1", "2"]
    assert list(rows[1].values()) == ["1", "class 1", "0", "", "", "", "0"]
    assert list(rows[2].values()) == ["2", "class 2", "2", "0.00", "0.00", "", "0"]
    assert [row["picture"] for row in rows_of(tmp_path / "mistakes.csv")] == ["sample 1", "sample 2", "sample 3"]


def test_unreadable_pictures_are_named_by_the_command(small_checkpoint, imagenet, tmp_path, capsys):
    for wnid in sorted(IMAGENET_WNIDS):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        os.link(imagenet / "val" / wnid / "ILSVRC2012_val_0.JPEG", tmp_path / "val" / wnid / "a.JPEG")
    broken = tmp_path / "val" / "n01440764" / "a.JPEG"
    broken.unlink()
    broken.write_text("no image")
    assert evaluate_on_the_terminal(small_checkpoint, tmp_path, "--out", tmp_path / "a.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "999 images" in lines[0]
    assert lines[1] == f"not counted, since unreadable: {broken}"
    assert json.loads((tmp_path / "a.json").read_text())["skipped"] == [str(broken)]
    assert evaluate_on_the_terminal(small_checkpoint, tmp_path, "--max-broken", 0) == 2
    message = f"kaconv: error: 1 image to evaluate on cannot be read, more than max_broken=0: {broken}\n"
    assert capsys.readouterr().err.endswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-broken", "-1"], "max_broken must be a whole number >= 0, got -1"),
        (["--details", __file__], f"{__file__} is a file, not a folder"),
        (["--details", Path(__file__) / "sub"], f"{__file__} is a file, not a folder"),
    ],
)
def test_bad_options_are_refused_before_the_work(small_checkpoint, imagenet, capsys, options, message):
    assert evaluate_on_the_terminal(small_checkpoint, imagenet, *options) == 2
    assert message in capsys.readouterr().err


def test_other_files_are_not_replaced_by_details(small_checkpoint, imagenet, tmp_path, capsys):
    (tmp_path / "mistakes.csv").write_text("years of work")
    assert evaluate_on_the_terminal(small_checkpoint, imagenet, "--details", tmp_path) == 2
    assert "mistakes.csv exists and is not such a file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mistakes.csv"]


@pytest.mark.slow
def test_torchrun_gives_the_same_result(small_checkpoint, imagenet, tmp_path):
    """On the command line: one result and one set of details, written once."""
    assert evaluate_on_the_terminal(small_checkpoint, imagenet, "--out", tmp_path / "one.json") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--master-port", free_port()]
    command += ["-m", "kaconv", "evaluate", "--checkpoint", small_checkpoint, "--data", f"imagenet:{imagenet}"]
    command += ["--batch-size", 64, "--out", tmp_path / "three.json", "--details", tmp_path / "details"]
    done = subprocess.run(
        [str(item) for item in command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout.count("images: top-1 error") == 1
    one, three = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "three.json"))
    for key in ("n", "top1_error", "top5_error", "skipped", "sha256"):
        assert three[key] == one[key]
    assert three["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert len(rows_of(tmp_path / "details" / "per_class.csv")) == 1000
