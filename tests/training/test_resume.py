"""Trainings that are interrupted in every way come to the weights of one that was not."""

import hashlib
import io
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import kaconv.training.trainer as trainer
from kaconv.training import Run, TrainConfig, fit
from kaconv.training import state as states
from kaconv.training.batches import StepBatches

TIMES = ("seconds", "images_per_second")


def config_for(out, **changes) -> TrainConfig:
    small = {"model": "ka_resnet11_cifar_l", "data": "fake", "epochs": 2, "batch_size": 32, "image_size": 8}
    return TrainConfig(**small | {"out": str(out), "save_minutes": 0, "ema_decay": 0.5} | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    return fit(config_for(tmp_path_factory.mktemp("runs") / "whole"), progress=False)


def assert_same(run: Run, whole: Run) -> None:
    for which in ("last", "best"):
        expected, actual = (load_file(r.checkpoint_path(which)) for r in (whole, run))
        assert all(torch.equal(value, actual[name]) for name, value in expected.items())
    for expected, actual in zip(whole.history, Run.load(run.folder).history, strict=True):
        assert {name: actual[name] for name in actual if name not in TIMES} == {
            name: expected[name] for name in expected if name not in TIMES
        }
    assert not states.state_files(run.folder)


def break_off(monkeypatch, config: TrainConfig, steps: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """Train until just before step `steps` + 1."""
    done = []

    def step(self, *args):
        if len(done) == steps:
            raise error
        done.append(args)
        return real(self, *args)

    real = trainer._Trainer._step
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_step", step)
        with pytest.raises(error):
            fit(config, progress=False)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])  # there are 3 in each of the 2 epochs
def test_a_training_goes_on_where_it_was(steps, tmp_path, whole, monkeypatch, capsys):
    config = config_for(tmp_path / "a")
    break_off(monkeypatch, config, steps)
    run = fit(config, progress=False)
    epoch, step = divmod(steps, 3)
    assert f"going on with epoch {epoch + 1}, step {step + 1}" in capsys.readouterr().out
    assert_same(run, whole)


@pytest.mark.parametrize("warmup", ["blend", "temperature"])
def test_the_attention_s_warmup_goes_on_where_it_was(warmup, tmp_path, whole, monkeypatch):
    config = config_for(tmp_path / "a", attention_warmup=warmup, attention_warmup_epochs=1)
    uninterrupted = fit(replace(config, out=str(tmp_path / "b")), progress=False)
    for _ in range(4):  # within the warm-up, at its end and after it
        break_off(monkeypatch, config, 1)
    assert_same(fit(config, progress=False), uninterrupted)
    warmed, cold = (load_file(run.checkpoint_path("last")) for run in (uninterrupted, whole))
    assert any(not torch.equal(value, cold[name]) for name, value in warmed.items())


def test_a_training_that_breaks_off_again_and_again(tmp_path, whole, monkeypatch):
    config = config_for(tmp_path / "a")
    for _ in range(5):
        break_off(monkeypatch, config, 1)
    assert_same(fit(config, progress=False), whole)


def test_every_epoch_is_kept_whatever_interrupts(tmp_path, whole, monkeypatch):
    config = config_for(tmp_path / "a", keep_epochs=True)
    for steps in (2, 2):
        break_off(monkeypatch, config, steps)
    run = fit(config, progress=False)
    assert_same(run, whole)
    assert list(run.kept_epochs()) == [0, 1, 2]
    assert load_file(run.checkpoint_path(0)).keys() == load_file(run.checkpoint_path(2)).keys()


def test_breaking_off_while_the_epoch_is_written(tmp_path, whole, monkeypatch):
    """After the weights, before the metrics; after the metrics, before the state."""
    config = config_for(tmp_path / "a")
    for name in ("_report", "_save_state"):
        real = getattr(trainer._Trainer, name)

        def crash(self, *args, name=name, real=real):
            if name == "_report" or args == (2, 0):
                raise KeyboardInterrupt
            return real(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(trainer._Trainer, name, crash)
            with pytest.raises(KeyboardInterrupt):
                fit(config, progress=False)
    assert_same(fit(config, progress=False), whole)


def test_breaking_off_between_the_last_epoch_and_the_summary(tmp_path, whole, monkeypatch):
    def crash(self):
        raise KeyboardInterrupt

    config = config_for(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_summary", crash)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)
    run = fit(config, progress=False)
    assert_same(run, whole)
    assert run.summary["best"] == whole.summary["best"]


def test_how_the_work_is_done_may_change_on_the_way(tmp_path, whole, monkeypatch):
    config = config_for(tmp_path / "a")
    break_off(monkeypatch, config, 4)
    assert_same(fit(replace(config, workers=1, save_minutes=60.0), progress=False), whole)


def test_two_states_are_kept_and_none_after_the_end(tmp_path, monkeypatch):
    config = config_for(tmp_path / "a")
    break_off(monkeypatch, config, 5)
    names = [path.name for path in states.state_files(tmp_path / "a")]
    assert names == ["state-00002-0000001.pt", "state-00002-0000002.pt"]
    with pytest.raises(ValueError, match="another config: seed"):
        fit(replace(config, seed=1), progress=False)


def with_checksum(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return with_checksum(buffer.getvalue())


class Malicious:
    def __init__(self, canary) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    for place in range(len(content) // 2, len(content) // 2 + 64):
        changed[place] ^= 255
    return bytes(changed)


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


def of_another_shape(state: dict) -> dict:
    name, value = next(iter(state["model"].items()))
    return state | {"model": state["model"] | {name: value[:-1].clone()}}


def with_other_momentum(state: dict) -> dict:
    buffers = {number: {"momentum_buffer": torch.zeros(1, 2)} for number in state["optimizer"]["state"]}
    return state | {"optimizer": state["optimizer"] | {"state": buffers}}


DAMAGES = {
    "truncated": (lambda content, state: content[:5000], "damaged"),
    "a byte less": (lambda content, state: content[:-1], "damaged"),
    "empty": (lambda content, state: b"", "damaged"),
    "garbage": (lambda content, state: b"hello" * 100, "damaged"),
    "64 flipped bytes": (lambda content, state: flipped(content), "damaged"),
    "something else": (lambda content, state: saved([1, 2]), "holds no training's state"),
    "epoch as text": (lambda content, state: saved(state | {"epoch": "two"}), "epoch must be a whole number >= 1, got"),
    "negative step": (lambda content, state: saved(state | {"step": -1}), "step must be a whole number >= 0, got -1"),
    "a step too many": (lambda content, state: saved(state | {"step": 3}), "no epoch 2, step 4 in this training"),
    "no totals": (lambda content, state: saved(without(state, "totals")), "lacks totals"),
    "totals of no shape": (lambda content, state: saved(state | {"totals": torch.zeros(())}), "must be a row of sums"),
    "two totals": (
        lambda content, state: saved(state | {"totals": torch.zeros(2)}),
        "2 sums of the epoch in place of 3",
    ),
    "no history": (lambda content, state: saved(state | {"history": "[]"}), "history is not that of the epochs"),
    "no model": (lambda content, state: saved(state | {"model": {}}), "Missing key"),
    "another shape": (lambda content, state: saved(of_another_shape(state)), "size mismatch"),
    "other momentum": (lambda content, state: saved(with_other_momentum(state)), "momentum is that of another model"),
    "no ema": (lambda content, state: saved(without(state, "ema")), "lacks ema"),
    "ema of None": (lambda content, state: saved(state | {"ema": None}), "lacks ema"),
    "ema as text": (lambda content, state: saved(state | {"ema": "two"}), "ema must be tensors by name or None, got"),
    "scaler as text": (lambda content, state: saved(state | {"scaler": "two"}), "scaler must be a gradient scaler's"),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """The folder of a training that broke off before the last step, with two states."""
    folder = tmp_path_factory.mktemp("interrupted") / "a"
    with pytest.MonkeyPatch.context() as monkeypatch:
        break_off(monkeypatch, config_for(folder), 5)
    return folder


def copy_of(interrupted: Path, folder: Path) -> tuple[Path, Path]:
    """The older and the newest state of a copy."""
    shutil.copytree(interrupted, folder)
    older, newest = states.state_files(folder)
    return older, newest


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_state_is_passed_over_in_a_line(damage, tmp_path, interrupted, monkeypatch, caplog):
    older, newest = copy_of(interrupted, tmp_path / "a")
    change, reason = DAMAGES[damage]
    newest.write_bytes(change(newest.read_bytes(), torch.load(newest, weights_only=True)))
    with caplog.at_level(logging.WARNING, "kaconv"):
        break_off(monkeypatch, config_for(tmp_path / "a"), 0)
    first, second = caplog.messages
    assert first.startswith(f"{newest} cannot be read and is passed over: ")
    assert reason in first
    assert second == f"the training goes on from {older}"
    assert not any("\n" in message for message in caplog.messages)


def test_a_state_need_not_name_what_the_training_has_not(tmp_path, interrupted, monkeypatch, caplog):
    _, newest = copy_of(interrupted, tmp_path / "a")
    newest.write_bytes(saved(without(torch.load(newest, weights_only=True), "scaler")))
    with caplog.at_level(logging.WARNING, "kaconv"):
        break_off(monkeypatch, config_for(tmp_path / "a"), 0)
    assert not caplog.messages


@pytest.mark.parametrize("wrap", [bytes, with_checksum])
@pytest.mark.parametrize("dump", [pickle.dumps, lambda value: saved(value)[:-32]])
def test_a_malicious_state_is_passed_over_in_a_line_of_ours(wrap, dump, tmp_path, interrupted, monkeypatch, caplog):
    _, newest = copy_of(interrupted, tmp_path / "a")
    newest.write_bytes(wrap(dump({"epoch": Malicious(tmp_path / "canary")})))
    with caplog.at_level(logging.WARNING, "kaconv"):
        break_off(monkeypatch, config_for(tmp_path / "a"), 0)
    assert f"{newest} cannot be read" in caplog.text
    assert "weights_only" not in caplog.text
    assert not (tmp_path / "canary").exists()


def test_a_training_with_a_damaged_state_comes_to_the_same_end(tmp_path, whole, interrupted):
    _, newest = copy_of(interrupted, tmp_path / "a")
    newest.write_bytes(flipped(newest.read_bytes()))
    assert_same(fit(config_for(tmp_path / "a"), progress=False), whole)


def test_states_that_were_passed_over_replace_no_good_one(tmp_path):
    state = {"epoch": 2, "step": 1}
    states.save_state(tmp_path, state)
    for name in ("state-00003-0000000.pt", "state-00003-0000001.pt"):
        (tmp_path / name).write_bytes(b"")
    states.save_state(tmp_path, state | {"step": 2})
    assert [path.name for path in states.state_files(tmp_path)] == ["state-00002-0000001.pt", "state-00002-0000002.pt"]


def test_without_any_good_state_nothing_is_overwritten(tmp_path, monkeypatch):
    config = config_for(tmp_path / "a")
    break_off(monkeypatch, config, 2)
    for path in states.state_files(tmp_path / "a"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no state in .* can be read \(state-.*remove them"):
        fit(config, progress=False)


@pytest.mark.parametrize("failing", ["write_json", "remove_states"])
def test_what_stops_between_the_last_epoch_and_the_end_is_made_up_for(failing, tmp_path, whole, monkeypatch, capsys):
    config = config_for(tmp_path / "a")

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, failing, full)
        with pytest.raises(OSError, match="No space left"):
            fit(config, progress=False)
    assert [path.name for path in states.state_files(tmp_path / "a")][-1] == "state-00003-0000000.pt"
    assert_same(fit(config, progress=False), whole)
    if failing != "remove_states":
        assert "going on with the summary" in capsys.readouterr().out
    assert Run.load(tmp_path / "a").summary.keys() == whole.summary.keys()


def test_a_full_disk_loses_nothing(tmp_path, whole, monkeypatch):
    config = config_for(tmp_path / "a")

    calls = []

    def full(number):
        calls.append(number)
        if len(calls) == 4:  # after three steps and the first of the second epoch
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(states.os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*state-00002-0000001\.pt'"):
            fit(config, progress=False)
    assert [path.name for path in states.state_files(tmp_path / "a")][-1] == "state-00002-0000000.pt"
    assert not list((tmp_path / "a").glob(".*"))
    assert_same(fit(config, progress=False), whole)


def test_unreadable_pictures_are_named_and_passed_over(tmp_path, caplog):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(tmp_path / f"pictures/{split}/{name}/{number}.png")
    broken = tmp_path / "pictures" / "train" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    config = config_for(tmp_path / "a", data=f"folder:{tmp_path / 'pictures'}", batch_size=8, max_broken=1)
    with caplog.at_level(logging.WARNING, "kaconv"):
        run = fit(config, progress=False)
    assert caplog.text.count(f"{broken} cannot be read and is passed over") == config.epochs
    counted = [epoch["train_error"] * 15 / 100 for epoch in run.history]  # errors among the 15 others
    assert counted == pytest.approx([round(errors) for errors in counted])
    with pytest.raises(ValueError, match=rf"^1 image in epoch 1 cannot be read, more than max_broken=0: {broken}$"):
        fit(replace(config, out=str(tmp_path / "b"), max_broken=0), progress=False)
    assert not (tmp_path / "b" / "last.safetensors").exists()


def start(config: TrainConfig, **options) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, "-m", "kaconv", "train", *config.to_arguments()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


@pytest.mark.slow
def test_sigkill_and_sigterm(tmp_path, whole):
    config = config_for(tmp_path / "a")
    process = start(config)
    wait_for(lambda: len(states.state_files(tmp_path / "a")) == 2, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    position = states.state_files(tmp_path / "a")[-1]
    process = start(config)
    wait_for(lambda: states.state_files(tmp_path / "a")[-1:] != [position], process)
    process.terminate()
    output = process.communicate()[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "SIGTERM; saved before epoch" in output
    assert "Traceback" not in output
    assert_same(fit(config, progress=False), whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    import resource

    config = config_for(tmp_path / "a")
    process = start(config, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    output = process.communicate()[0]
    assert process.returncode == 2, output
    assert re.search(r"^kaconv: error: .*File too large: '.*/a/state-00001-0000001\.pt'$", output, re.M), output
    assert "Traceback" not in output
    assert not list((tmp_path / "a").glob("*.pt"))


def test_parts_of_a_step_are_the_same_however_they_are_shared():
    def parts(processes, accumulation):
        samplers = [
            StepBatches(50, 12, 3, accumulation=accumulation, processes=processes, rank=rank)
            for rank in range(processes)
        ]
        return [
            [key for sampler in per_rank for key in sampler]
            for per_rank in zip(*[_chunks(sampler, accumulation) for sampler in samplers], strict=True)
        ]

    def _chunks(sampler, size):
        batches = list(sampler)
        return [batches[i : i + size] for i in range(0, len(batches), size)]

    assert parts(1, 4) == parts(2, 2) == parts(4, 1)
    steps = parts(1, 4)
    assert len(steps) == 4
    assert len({index for step in steps for part in step for _, index in part}) == 48


def test_the_order_starts_anywhere_and_differs_by_epoch():
    batches = StepBatches(50, 12, 3)
    first = list(batches)
    batches.first_step = 2
    assert list(batches) == first[2:]
    assert len(batches) == 2
    batches.first_step, batches.epoch = 0, 2
    assert [[index for _, index in batch] for batch in batches] != [[index for _, index in batch] for batch in first]


def test_ema_is_the_moving_average(tmp_path, monkeypatch):
    seen = []
    real = trainer._Trainer._step

    def step(self, *args):
        real(self, *args)
        seen.append({name: value.clone() for name, value in self.model.state_dict().items()})

    monkeypatch.setattr(trainer._Trainer, "_step", step)
    run = fit(config_for(tmp_path / "a", epochs=1, ema_decay=0.75), progress=False)
    average = seen[0]
    for weights in seen[1:]:
        average = {
            name: 0.75 * average[name] + 0.25 * value if value.is_floating_point() else value
            for name, value in weights.items()
        }
    kept = load_file(run.checkpoint_path("last"))
    for name, value in average.items():
        if value.is_floating_point():
            torch.testing.assert_close(kept[name], value)


def test_metrics_are_one_line_an_epoch(whole):
    lines = (whole.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
