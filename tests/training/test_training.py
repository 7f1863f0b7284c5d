import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.multiprocessing import spawn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import kaconv
import kaconv.training.fine_tuning as fine_tuning
import kaconv.training.trainer as trainer
from kaconv.cli import main
from kaconv.data.datasets import load_data
from kaconv.inference import evaluate, evaluate_checkpoint
from kaconv.layers import AttentionGeneratorL
from kaconv.models import create_model
from kaconv.models.checkpoints import load_checkpoint
from kaconv.training import Run, TrainConfig, fit
from kaconv.training.processes import launch
from kaconv.training.recipes import load_recipe
from kaconv.training.run import find_finished_run
from kaconv.training.trainer import smoothed_cross_entropy

FILES = {"config.yaml", "metrics.jsonl", "summary.json", "tensorboard", "last.safetensors", "best.safetensors"}


def config_for(out, **changes) -> TrainConfig:
    small = {"model": "resnet11_cifar", "data": "fake", "epochs": 2, "batch_size": 32, "image_size": 8}
    return TrainConfig(**small | {"out": str(out)} | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return fit(config_for(tmp_path_factory.mktemp("runs") / "a"), progress=False)


def weights(run: Run, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint_path(which))


def test_a_run_leaves_its_folder(run):
    assert {path.name for path in run.folder.iterdir()} == FILES
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["model"] == "resnet11_cifar"
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.history
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [line["lr"] for line in lines] == [0.05, 0.025]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert run.summary["provenance"]["versions"]["torch"] == torch.__version__.split("+")[0]
    loaded = Run.load(run.folder)
    assert loaded.finished
    assert loaded == run


def test_tensorboard_gets_what_metrics_jsonl_gets(run):
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("test_error")] == [1, 2]
    assert [event.value for event in events.Scalars("test_loss")] == pytest.approx(
        [line["test_loss"] for line in run.history]
    )


def test_weights_are_those_of_their_epochs(run):
    best = min(run.history, key=lambda metrics: metrics["test_error"])
    for which, metrics in {"best": best, "last": run.history[-1]}.items():
        checkpoint = run.load_checkpoint(which)
        result = evaluate_checkpoint(run.checkpoint_path(which), "fake", progress=False)
        assert checkpoint.info["epoch"] == run.summary[which]["epoch"] == metrics["epoch"]
        assert checkpoint.info["test_error"] == metrics["test_error"] == result["top1_error"]
        assert checkpoint.preprocessing.image_size == 8
        assert len(checkpoint.classes) == 10
        assert result["n"] == 50
    with pytest.raises(ValueError, match="which must be one of best, last, got 'first'"):
        run.load_checkpoint("first")


def test_the_weights_of_every_epoch_are_kept_on_demand(tmp_path, run):
    kept = fit(config_for(tmp_path / "a", keep_epochs=True), progress=False)
    assert list(kept.kept_epochs()) == [0, 1, 2]
    assert run.kept_epochs() == {}
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(kept, 2).items())
    untrained = load_checkpoint(kept.kept_epochs()[0])
    assert untrained.info["epoch"] == 0
    torch.manual_seed(0)
    fresh = create_model("resnet11_cifar", num_classes=10).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in untrained.model.state_dict().items())


def test_weights_that_an_earlier_training_kept_do_not_stay(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_save_state", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(config_for(tmp_path / "a", keep_epochs=True), progress=False)
    assert {"epoch_000.safetensors", "epoch_001.safetensors"} <= {path.name for path in (tmp_path / "a").iterdir()}
    fit(config_for(tmp_path / "a"), progress=False)
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES


def test_best_is_the_first_of_equals(tmp_path, monkeypatch):
    def constant(*args, **kwargs):
        return replace(evaluate(*args, **kwargs), top1_error=50.0)

    monkeypatch.setattr(trainer, "evaluate", constant)
    run = fit(config_for(tmp_path / "a"), progress=False)
    assert run.summary["best"]["epoch"] == run.load_checkpoint("best").info["epoch"] == 1
    assert run.load_checkpoint("last").info["epoch"] == 2


@pytest.mark.parametrize("model", ["resnet11_cifar", "ka_resnet11_cifar_l"])
def test_the_same_config_gives_the_same_weights(tmp_path, model):
    one, other = (fit(config_for(tmp_path / name, model=model, epochs=1), progress=False) for name in "ab")
    assert one.checkpoint_path("last").read_bytes() == other.checkpoint_path("last").read_bytes()
    different = fit(config_for(tmp_path / "c", model=model, epochs=1, seed=1), progress=False)
    assert not torch.equal(weights(one)["conv1.weight"], weights(different)["conv1.weight"])


def test_workers_are_seeded_too(tmp_path):
    one, other = (fit(config_for(tmp_path / name, epochs=1, workers=2), progress=False) for name in "ab")
    assert one.checkpoint_path("last").read_bytes() == other.checkpoint_path("last").read_bytes()


def first_epoch(config: TrainConfig, monkeypatch, *, augmented: bool) -> torch.Tensor:
    """The images of the first epoch as the model gets them."""
    batches = []

    def watched(*args, **kwargs):
        model = create_model(*args, **kwargs)
        model.register_forward_pre_hook(
            lambda module, inputs: batches.append(inputs[0].clone()) if module.training else None
        )
        return model

    def load(*args, **options):
        data = load_data(*args, **options)
        return data if augmented else replace(data, train=data.test)

    monkeypatch.setattr(fine_tuning, "create_model", watched)
    monkeypatch.setattr(trainer, "load_data", load)
    fit(config, progress=False)
    return torch.cat(batches)


def test_the_order_of_the_pictures_depends_on_the_seed(tmp_path, monkeypatch):
    configs = [config_for(tmp_path / str(seed), seed=seed, epochs=1, batch_size=25) for seed in (0, 1)]
    one, other = (first_epoch(config, monkeypatch, augmented=False) for config in configs)
    assert torch.equal(one.sum((1, 2, 3)).sort().values, other.sum((1, 2, 3)).sort().values)  # the same images
    assert not torch.equal(one, other)


def test_all_models_get_the_same_pictures_from_a_seed(tmp_path, monkeypatch):
    """Initialising a KA model draws more random numbers, which must not change what it is trained on."""
    configs = [config_for(tmp_path / name, model=name, epochs=1) for name in ("resnet11_cifar", "ka_resnet11_cifar_l")]
    plain, ka = (first_epoch(config, monkeypatch, augmented=True) for config in configs)
    assert torch.equal(plain, ka)


def test_training_learns_the_digits(tmp_path):
    run = fit(TrainConfig(model="resnet11_cifar", out=tmp_path / "a", epochs=2, image_size=8, lr=0.1), progress=False)
    assert run.history[-1]["test_error"] < 40  # 90 by chance
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"]


def test_a_finished_run_is_not_trained_again(run, capsys):
    before = (run.folder / "last.safetensors").stat().st_mtime_ns
    again = fit(replace(run.config, data_root="elsewhere"), progress=False)
    assert again.history == run.history
    assert (run.folder / "last.safetensors").stat().st_mtime_ns == before
    assert "already trained" in capsys.readouterr().out


def test_an_interrupted_run_starts_again(tmp_path, run, monkeypatch):
    config = config_for(tmp_path / "a")
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)
    unfinished = Run.load(tmp_path / "a")
    assert not unfinished.finished
    assert len(unfinished.history) == 1
    (tmp_path / "a" / "notes.txt").write_text("mine")
    whole = fit(config, progress=False)
    assert len(whole.history) == len(Run.load(tmp_path / "a").history) == 2
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    for name, value in weights(run).items():
        assert torch.equal(value, weights(whole)[name])


def copy_of(run: Run, folder) -> Run:
    shutil.copytree(run.folder, folder)
    return Run(folder, replace(run.config, out=str(folder)))


def test_what_an_interrupted_run_left_is_kept_for_an_epoch(tmp_path, run, monkeypatch):
    unfinished = copy_of(run, tmp_path / "a")
    (unfinished.folder / "summary.json").unlink()
    before = {path: path.read_bytes() for path in unfinished.folder.rglob("*") if path.is_file()}

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(unfinished.config, progress=False)
    after = {path: path.read_bytes() for path in unfinished.folder.rglob("*") if path.is_file()}
    assert {path.name for path in before} == {path.name for path in after}
    assert all(after[path] == before[path] for path in before if path.name != "config.yaml")  # it says where it lies

    def worse(*args, **kwargs):
        return replace(evaluate(*args, **kwargs), top1_error=99.0)

    monkeypatch.setattr(trainer, "evaluate", worse)
    whole = fit(unfinished.config, progress=False)
    assert whole.load_checkpoint("best").info["test_error"] == whole.load_checkpoint("last").info["test_error"] == 99
    assert Run.load(whole.folder) == whole
    assert len(list((whole.folder / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"epoch": 1, "tr', "Unterminated string"),
        ("metrics.jsonl", '{"epoch": 1}', "it must have a number for test_error"),
        ("metrics.jsonl", "[1]", "there must be an object"),
        ("summary.json", '{"model": "resn', "Unterminated string"),
        ("summary.json", '{"a": 1}', "it must have a number for parameters"),
        ("summary.json", "[]", "there must be an object"),
        ("config.yaml", "", "fields as `name: value`"),
        ("config.yaml", "model: [", "while parsing"),
        ("config.yaml", "1: 2\nmodel: a", "fields as `name: value`"),
        ("config.yaml", "model: a", "config fields missing: out"),
        ("config.yaml", "model: \x00", "special characters"),
    ],
)
def test_a_damaged_file_is_named_in_a_line(tmp_path, run, name, text, message):
    folder = copy_of(run, tmp_path / "a").folder
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=rf"^cannot read .*{name}: .*{re.escape(message)}[^\n]*\Z"):
        Run.load(folder)


def test_a_damaged_history_matters_only_to_a_finished_run(tmp_path, run):
    damaged = copy_of(run, tmp_path / "a")
    (damaged.folder / "metrics.jsonl").write_text('{"epoch": 1, "tr')
    with pytest.raises(ValueError, match=r"cannot read .*metrics\.jsonl"):
        fit(damaged.config, progress=False)
    (damaged.folder / "summary.json").unlink()
    assert find_finished_run(damaged.config) is None


@pytest.mark.parametrize("name", ["summary.json", "best.safetensors", "last.safetensors"])
def test_a_run_without_its_summary_or_weights_is_not_finished(tmp_path, run, name):
    whole = copy_of(run, tmp_path / "a")
    assert find_finished_run(whole.config).history == run.history
    (whole.folder / name).unlink()
    assert not Run.load(whole.folder).finished
    assert find_finished_run(whole.config) is None
    with pytest.raises(ValueError, match="another config: lr"):  # there is still something to lose
        find_finished_run(replace(whole.config, lr=0.2))


def test_a_truncated_summary_is_no_end(tmp_path, run):
    damaged = copy_of(run, tmp_path / "a")
    (damaged.folder / "summary.json").write_text('{"model": "resn')
    assert fit(damaged.config, progress=False).finished
    assert Run.load(damaged.folder).finished


def test_a_folder_of_a_failed_first_epoch_is_taken_over(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("cannot read the image")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", broken)
        with pytest.raises(ValueError, match="cannot read the image"):
            fit(config_for(tmp_path / "a", lr=0.2), progress=False)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["config.yaml"]
    run = fit(config_for(tmp_path / "a", epochs=1), progress=False)
    assert run.finished
    assert Run.load(run.folder).config.lr == 0.05


def test_another_run_s_folder_is_refused(run):
    files = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    with pytest.raises(ValueError, match=r"another config: lr \(0\.05 there, 0\.2 here\), seed \(0 there, 3 here\)"):
        fit(replace(run.config, lr=0.2, seed=3), progress=False)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == files


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="files that are not a run's"):
        fit(config_for(tmp_path), progress=False)
    with pytest.raises(ValueError, match="is a file"):
        fit(config_for(tmp_path / "thesis.txt"), progress=False)
    with pytest.raises(ValueError, match=r"out must be .*thesis\.txt/sub/a'.* .*thesis\.txt is a file"):
        fit(config_for(tmp_path / "thesis.txt" / "sub" / "a"), progress=False)
    (tmp_path / "config.yaml").write_text("server: localhost")
    with pytest.raises(ValueError, match=r"cannot read .*config\.yaml: unknown config fields: server"):
        fit(config_for(tmp_path), progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        Run.load(tmp_path / "nothing")


HOLD = """
import os, sys, time
from pathlib import Path
from kaconv.training.run import holding
with holding(Path(sys.argv[1])) as held:
    if os.fork() == 0:  # as a process that loads images
        time.sleep(60)
    print(held, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forked processes")
def test_a_folder_is_held_until_the_training_ends_or_is_killed(tmp_path):
    config = config_for(tmp_path / "a", epochs=1)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, config.out], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "True\n"
        with pytest.raises(ValueError, match=rf"^{config.out} is in use by another training; [^\n]*\Z"):
            fit(config, progress=False)
        process.kill()
        process.wait()
        assert (tmp_path / "a" / ".lock").exists()
        assert fit(config, progress=False).finished
        assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_two_trainings_at_once_in_one_folder(tmp_path):
    """The second looks into the folder before the first has written anything."""
    config, refused = config_for(tmp_path / "a", epochs=1), []

    def start_another(run):
        with pytest.raises(ValueError, match="is in use by another training"):
            fit(replace(config, seed=1), progress=False)
        refused.append(run)

    def without_a_look(config):
        return None

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(trainer, "find_finished_run", without_a_look)
        assert fit(config, progress=False, on_epoch=start_another).finished
    assert refused
    assert Run.load(tmp_path / "a").config.seed == 0


def test_a_run_that_another_training_finished_meanwhile_is_taken(tmp_path, run, monkeypatch):
    config = config_for(tmp_path / "a")

    def finish_meanwhile(*args, **options):
        if not (tmp_path / "a").exists():
            copy_of(run, tmp_path / "a")
        return load_data(*args, **options)

    monkeypatch.setattr(trainer, "load_data", finish_meanwhile)
    assert fit(config, progress=False).history == run.history
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ValueError, match="another config: seed"):
        fit(replace(config, seed=1), progress=False)


def test_half_written_files_of_a_killed_training_go(tmp_path, run):
    finished = copy_of(run, tmp_path / "finished")
    names = (".lock", ".config.yaml.12.tmp", ".state-00001-0000002.pt.12.tmp", ".last.safetensors.345.tmp")
    for folder in (finished.folder, tmp_path / "new"):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_bytes(b"half")
        fit(replace(run.config, out=str(folder)), progress=False)
        assert {path.name for path in folder.iterdir()} == FILES
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".thesis.txt.12.tmp").write_text("years of work")
    with pytest.raises(ValueError, match="files that are not a run's"):
        fit(config_for(tmp_path / "mine"), progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ka_resnet11_cifar"}, "ka_resnet11_cifar_l"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"data": "folder:nowhere"}, "nowhere"),
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"epochs": "5"}, "epochs must be a whole number >= 1, got '5'"),
        ({"epochs": True}, "epochs must be"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2 to 1048576, got 1"),
        ({"batch_size": 2**20 + 1}, "batch_size must be"),
        ({"lr": -0.1}, "lr must be a number > 0, got -0.1"),
        ({"lr": math.nan}, "lr must be"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\)"),
        ({"weight_decay": -1}, "weight_decay must be"),
        ({"schedule": "linear"}, "schedule must be one of cosine, step, exponential, got 'linear'"),
        ({"warmup_epochs": 2}, "warmup_epochs must be less than epochs"),
        ({"attention_warmup": "mix"}, "attention_warmup must be one of blend, temperature, got 'mix'"),
        ({"attention_warmup_epochs": -1}, "attention_warmup_epochs must be a whole number >= 0, got -1"),
        ({"attention_warmup_epochs": 2}, r"attention_warmup_epochs must be less than epochs \(2\), got 2"),
        ({"accumulation": 0}, "accumulation must be"),
        ({"accumulation": 3}, r"batch_size must be a multiple of processes x accumulation \(1 x 3\).*got 32"),
        ({"accumulation": 32}, "with 2 images for each part"),
        ({"lr_batch_size": 0}, "lr_batch_size must be a whole number from 1 to 1048576, or None, got 0"),
        ({"nesterov": "yes"}, "nesterov must be true or false, got 'yes'"),
        ({"ema_decay": 1.0}, r"ema_decay must be a number in \[0, 1\), got 1.0"),
        ({"save_minutes": -1.0}, "save_minutes must be a number >= 0, got -1.0"),
        ({"prefetch": 0}, "prefetch must be"),
        ({"max_broken": -1}, "max_broken must be"),
        ({"label_smoothing": 0.5}, "label_smoothing must be"),
        ({"fresh_statistics": 1}, "fresh_statistics must be true or false, got 1"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be"),
        ({"image_size": 0}, "image_size must be"),
        ({"workers": -1}, "workers must be a whole number from 0 to 1024, got -1"),
        ({"workers": 1025}, "workers must be"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of no, bf16, fp16"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fit(config_for(tmp_path / "a", **changes), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_data_without_a_training_split_is_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / "val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "val" / name / "0.png")
    with pytest.raises(ValueError, match="has no train/ folder"):
        fit(config_for(tmp_path / "a", data=f"folder:{tmp_path / 'pictures'}"), progress=False)
    assert not (tmp_path / "a").exists()


def test_divergence_stops_with_the_good_weights_kept(tmp_path, monkeypatch):
    def lr_factor(self, epoch):
        return 1.0 if epoch == 0 else 1e30

    monkeypatch.setattr(TrainConfig, "lr_factor", lr_factor)
    with pytest.raises(FloatingPointError, match=r"epoch 2, step \d of 3; last\.safetensors holds epoch 1"):
        fit(config_for(tmp_path / "a", epochs=3), progress=False)
    run = Run.load(tmp_path / "a")
    assert not run.finished
    assert len(run.history) == 1
    assert all(value.isfinite().all() for value in weights(run).values())


def test_lr_schedules(tmp_path):
    cosine = config_for(tmp_path, epochs=4)
    assert [cosine.lr_factor(epoch) for epoch in range(5)] == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    step = config_for(tmp_path, epochs=100, schedule="step")
    factors = [step.lr_factor(epoch) for epoch in (0, 29, 30, 59, 60, 89, 90, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    exponential = config_for(tmp_path, epochs=100, schedule="exponential")
    assert [exponential.lr_factor(epoch) for epoch in (0, 1, 99)] == pytest.approx([1, 0.92, 0.92**99])
    warm = config_for(tmp_path, epochs=6, warmup_epochs=3)
    assert [warm.lr_factor(epoch) for epoch in range(4)] == pytest.approx([0.1, 0.4, 0.7, 1.0])


def test_the_attention_s_warmup_ends_exactly(tmp_path):
    places = (0, 1 / 3, 1.5, 3, 4)
    blend = config_for(tmp_path, epochs=5, attention_warmup_epochs=3)
    assert [blend.attention_warmup_value(place)[1] for place in places] == pytest.approx([1, 8 / 9, 0.5, 0, 0])
    cooling = replace(blend, attention_warmup="temperature")
    values = [cooling.attention_warmup_value(place)[1] for place in places]
    assert values == pytest.approx([30, 1 + 29 * 8 / 9, 15.5, 1, 1])
    assert blend.attention_warmup_value(3) == ("uniform_share", 0)
    assert cooling.attention_warmup_value(3) == ("temperature", 1)
    off = config_for(tmp_path)
    assert off.attention_warmup_value(0) == ("uniform_share", 0)


@pytest.mark.parametrize("kind", ["uniform_share", "temperature"])
def test_attention_warms_up_step_by_step(tmp_path, monkeypatch, kind):
    seen, real = [], AttentionGeneratorL._attention

    def watched(self, logits, softmax):
        attention = real(self, logits, softmax)
        seen.append((self.training, getattr(self, kind), torch.equal(attention, logits.softmax(1))))
        return attention

    monkeypatch.setattr(AttentionGeneratorL, "_attention", watched)
    warmup = "blend" if kind == "uniform_share" else "temperature"
    config = config_for(
        tmp_path / "a",
        model="ka_resnet11_cifar_l",
        epochs=3,
        ema_decay=0.5,
        attention_warmup=warmup,
        attention_warmup_epochs=2,
    )
    run = fit(config, progress=False)
    start, end = {"uniform_share": (1, 0), "temperature": (30, 1)}[kind]
    of_steps = list(dict.fromkeys(value for training, value, _ in seen if training))
    assert of_steps == pytest.approx([end + (start - end) * (6 - step) / 6 for step in range(7)])  # 3 steps an epoch
    assert of_steps[-1] == end
    assert all(as_it_is == (value == end) for training, value, as_it_is in seen if training)
    assert all(as_it_is for training, _, as_it_is in seen if not training)
    assert [epoch[f"attention_{kind}"] for epoch in run.history] == [start, (start + end) / 2, end]
    assert Run.load(run.folder).history == run.history
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars(f"attention_{kind}")] == [start, (start + end) / 2, end]


def test_a_plain_model_s_training_is_not_changed_by_an_attention_warmup(tmp_path, run):
    warm = fit(config_for(tmp_path / "a", attention_warmup_epochs=1), progress=False)
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(warm).items())


def test_the_learning_rate_follows_the_batch_size(tmp_path):
    config = config_for(tmp_path / "a", epochs=1, lr=0.1, lr_batch_size=256, batch_size=64)
    assert config.peak_lr == pytest.approx(0.025)
    assert fit(config, progress=False).history[0]["lr"] == pytest.approx(0.025)


def test_accumulation_gives_the_same_steps_where_no_statistics_are_taken(tmp_path, monkeypatch):
    """Without batch norm's statistics of a part, parts of a step add up to the step."""
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: x * self.weight[:, None, None] / 10)
    runs = [fit(config_for(tmp_path / str(parts), accumulation=parts, lr=0.01), progress=False) for parts in (1, 4)]
    for name in ("train_loss", "test_loss"):
        one, four = ([epoch[name] for epoch in run.history] for run in runs)
        assert four == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("name", ["resnet50", "ka_resnet101_h", "ka_resnext50_32x4d_l", "ka_mobilenetv2_050_h"])
def test_recipes_are_the_paper_s(name, tmp_path):
    config = TrainConfig(**load_recipe(name), data="imagenet:somewhere", out=str(tmp_path))
    config.validate()
    mobile = "mobilenet" in name
    assert (config.model, config.epochs, config.label_smoothing, config.momentum) == (name, 100, 0.1, 0.9)
    assert (config.batch_size, config.peak_lr) == ((320, 0.045) if mobile else (256, 0.1))
    assert config.weight_decay == (4e-5 if mobile else 1e-4)
    assert not config.nesterov
    factors = [0.92**epoch for epoch in (0, 30, 99)] if mobile else [1, 0.1, 1e-3]
    assert [config.lr_factor(epoch) for epoch in (0, 30, 99)] == pytest.approx(factors)


@pytest.mark.parametrize(
    "path", sorted((Path(kaconv.__file__).parent / "training" / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_recipes_are_parameters_of_the_training_notebook(path):
    notebook = Path(kaconv.__file__).parents[1] / "notebooks" / "02_training.ipynb"
    cells = json.loads(notebook.read_text())["cells"]
    parameters = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    names = set(re.findall(r"^(\w+):", parameters, re.M))
    assert yaml.safe_load(path.read_text()).keys() <= names


def test_recipes_of_one_s_own(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: resnet11_cifar\nepochs: 3\n")
    assert load_recipe(str(mine)) == {"model": "resnet11_cifar", "epochs": 3}
    with pytest.raises(FileNotFoundError, match=r"no recipe .*other\.yaml"):
        load_recipe(str(tmp_path / "other.yaml"))
    mine.write_text("[1, 2]")
    with pytest.raises(ValueError, match="fields as `name: value`"):
        load_recipe(str(mine))
    with pytest.raises(ValueError, match="no recipe for 'resnet11_cifar'; choose from resnet50, ka_resnet50_l"):
        load_recipe("resnet11_cifar")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("model: [resnet11_cifar]", "model must be a single value, got ['resnet11_cifar']"),
        ("data: {digits: 1}", "data must be a single value, got {'digits': 1}"),
        ("lr: &a [*a]", "lr must be a single value, got [["),
        ("lr: " + "[" * 20_000, "recipe RECIPE: it is nested too deeply"),
        ("lr: 1" + "0" * 400, "lr must be a number > 0, got 1000"),
        ("lr_batch_size: 1" + "0" * 400, "lr_batch_size must be a whole number from 1 to 1048576, or None, got 1000"),
        ("image_size: 100000", "image_size must be a whole number from 1 to 8192, or None, got 100000"),
        ("lr: 1" + "0" * 5000, "recipe RECIPE: it is not YAML: "),
        ("lr: 2026-99-99", "recipe RECIPE: it is not YAML: "),
        ("lr: 1\nlr: 2", "recipe RECIPE: it is not YAML: 'lr' is there twice"),
        ("lr: .nan", "lr must be a number > 0, got nan"),
        ("attention_warmup: ''", "attention_warmup must be one of"),
        ("weight_decay: -.inf", "weight_decay must be a number >= 0, got -inf"),
    ],
)
def test_a_strange_recipe_is_one_line(tmp_path, capsys, recipe, message):
    path = tmp_path / "mine.yaml"
    model = "" if recipe.startswith("model") else "model: resnet11_cifar\n"
    path.write_text(f"{model}{recipe}\n")
    assert main(["train", "--recipe", str(path), "--out", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kaconv: error: " + message.replace("RECIPE", str(path)))
    assert error.count("\n") == 1
    assert len(error) < 600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("changes", [{"model": ["resnet11_cifar"]}, {"lr": 10**400}, {"data": ["digits"]}])
def test_strange_values_are_refused_without_a_recipe_too(tmp_path, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        fit(config_for(tmp_path / "a", **changes), progress=False)
    assert list(tmp_path.iterdir()) == []


def train_as_one_of_two(rank, config, port):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=port)
    fit(config, progress=False)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """The same loss curve, within rounding; so does one process that takes its steps in two parts, where each part has
    its own statistics."""
    together = config_for(tmp_path / "two", model="ka_resnet11_cifar_l", sync_batch_norm=True, lr=0.01)
    apart = replace(together, out=str(tmp_path / "apart"), sync_batch_norm=False)
    for config in (together, apart):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        spawn(train_as_one_of_two, (config, port), nprocs=2)
    for two, one in (
        (together, replace(together, out=str(tmp_path / "one"), sync_batch_norm=False)),
        (apart, replace(apart, out=str(tmp_path / "parts"), accumulation=2)),
    ):
        expected, actual = fit(one, progress=False).history, Run.load(two.out).history
        names = ("train_loss", "train_error") if two is apart else ("train_loss", "train_error", "test_loss")
        for name in names:  # with statistics of their own, the moving ones differ: the first process's are kept
            assert [epoch[name] for epoch in actual] == pytest.approx([epoch[name] for epoch in expected], rel=2e-3)


def test_launch_says_what_the_processes_said(tmp_path):
    with pytest.raises(ValueError, match="processes must be a whole number >= 1, got 0"):
        launch(config_for(tmp_path / "a"), 0)
    with pytest.raises(RuntimeError, match=r"kaconv: error: looked for val/ or test/"):
        launch(config_for(tmp_path / "a", data=f"folder:{tmp_path}"), 1)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_launch_trains_and_reports(tmp_path, run, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    epochs = []
    launched = launch(config_for(tmp_path / "a"), 1, on_epoch=lambda run: epochs.append(len(run.history)))
    assert epochs == [1, 2]
    assert launched.finished
    assert "epoch 2/2" in capsys.readouterr().out
    assert launched.history[-1]["train_loss"] == pytest.approx(run.history[-1]["train_loss"], rel=1e-4)


def test_epochs_are_reported_as_they_end(tmp_path):
    seen = []
    fit(config_for(tmp_path / "a"), progress=False, on_epoch=lambda run: seen.append(len(run.history)))
    assert seen == [1, 2]


def test_label_smoothing_is_the_authors():
    classes, smoothing = 7, 0.1
    logits, labels = torch.randn(5, classes, dtype=torch.float64), torch.randint(classes, (5,))
    targets = torch.full((5, classes), smoothing / (classes - 1), dtype=torch.float64)
    targets[torch.arange(5), labels] = 1 - smoothing
    expected = -(targets * F.log_softmax(logits, 1)).sum(1).mean()
    torch.testing.assert_close(smoothed_cross_entropy(smoothing, classes)(logits, labels), expected)


def test_one_notebook_may_train_in_two_precisions(tmp_path):
    for precision in ("bf16", "no"):
        run = fit(config_for(tmp_path / precision, epochs=1, mixed_precision=precision), progress=False)
        assert weights(run)["conv1.weight"].dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_fp16_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        fit(config_for(tmp_path / "a", mixed_precision="fp16"), progress=False)
    assert list(tmp_path.iterdir()) == []


class Table(nn.Module):
    """A model that gives logits by looking them up: images hold the sample's number."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def numbered(n: int, labels: torch.Tensor) -> TensorDataset:
    return TensorDataset(torch.arange(n).float().view(n, 1, 1, 1).expand(n, 3, 1, 1), labels)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluate_counts_every_sample_once_and_in_order(batch_size):
    n, classes = 23, 8
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    model = Table(logits).train()
    result = evaluate(model, numbered(n, labels), batch_size=batch_size, progress=False)
    ranks = [sorted(row, reverse=True).index(row[label]) for row, label in zip(logits.tolist(), labels, strict=True)]
    assert result.n == n
    assert result.top1_error == pytest.approx(100 * np.mean([rank >= 1 for rank in ranks]))
    assert result.top5_error == pytest.approx(100 * np.mean([rank >= 5 for rank in ranks]))
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert result.labels.tolist() == labels.tolist()
    assert result.predictions.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(result.probabilities, logits.softmax(1), rtol=1e-6)
    assert model.training


def test_evaluate_leaves_frozen_parts_frozen():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.LazyLinear(4))
    model(torch.zeros(2, 3, 1, 1))
    model[0].eval()
    evaluate(model, numbered(4, torch.zeros(4, dtype=torch.long)), progress=False)
    assert [module.training for module in model.modules()] == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to 1048576, got 0"),
        ({"batch_size": 2**20 + 1}, "batch_size must be"),
        ({"workers": -1}, "workers must be a whole number from 0 to 1024, got -1"),
        ({"workers": 1025}, "workers must be"),
    ],
)
def test_evaluation_has_bounds_too(run, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_checkpoint(run.checkpoint_path("best"), "fake", **options)


def test_evaluate_refuses_what_has_no_answer():
    with pytest.raises(ValueError, match="no samples"):
        evaluate(Table(torch.zeros(1, 3)), numbered(0, torch.zeros(0)), progress=False)
    logits = torch.zeros(4, 3)
    logits[1, 2] = math.nan
    with pytest.raises(FloatingPointError, match="not finite for 1 of 4 samples"):
        evaluate(Table(logits), numbered(4, torch.zeros(4, dtype=torch.long)), progress=False)


@pytest.mark.parametrize(("classes", "top5"), [(3, None), (5, None), (6, 0.0)])
def test_five_classes_or_fewer_have_no_top5_error(classes, top5):
    result = evaluate(Table(torch.eye(classes)[:3]), numbered(3, torch.tensor([0, 1, 0])), progress=False)
    assert (result.top1_error, result.top5_error) == (pytest.approx(100 / 3), top5)


def test_evaluating_on_other_classes_is_refused(run):
    with pytest.raises(ValueError, match="class 0 is 'class 0' there, '0' here"):
        evaluate_checkpoint(run.checkpoint_path("best"), "digits", progress=False)
