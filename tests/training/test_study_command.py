"""Studies as files: what they may hold, how they run, what they write."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from kaconv.cli import main
from kaconv.models import create_model, register_builder, registry
from kaconv.models.complexity import complexity
from kaconv.training import Run, study, study_jobs
from kaconv.training.study_results import (
    detectable_difference,
    merge_results,
    read_study_results,
    study_command,
    study_status,
)
from kaconv.training.study_spec import load_study, parse_study, study_trainings

ROOT = Path(__file__).parents[2]
PLAIN, LIGHT = "resnet11_cifar", "ka_resnet11_cifar_l"
SMALL = {
    "name": "small",
    "data": "fake",
    "models": [PLAIN, LIGHT],
    "seeds": [0, 1],
    "recipe": {"epochs": 1, "image_size": 8},
}


def write_spec(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return path


def result_of(model, seed, error, variant="plain", **config):
    config = {"model": model, "seed": seed, "data": "folder:/here/pictures"} | config
    last = {"epoch": 1, "test_error": error, "test_top5_error": 0.0}
    costs = {"epochs": 1, "seconds_per_epoch": 1.0, "params": 10, "images_per_second": 5.0}
    names = {"model": model, "variant": variant, "seed": seed, "state": "done"}
    return names | {"best": last, "last": last, "config": config, "provenance": None} | costs


def results_of(*runs):
    return {"study": parse_study(SMALL).to_dict(), "runs": list(runs), "provenance": {}}


# The file -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": [PLAIN, "resnet12_cifar"]}, "unknown model 'resnet12_cifar'; did you mean"),
        ({"models": []}, "models must be a list of names of models .*, at least one; got "),
        ({"models": [PLAIN, 3]}, "models must be names of models .*; got 3"),
        ({"seeds": [0, 1, 0]}, "seeds must be all different, but 0 is there twice"),
        ({"seeds": [-1]}, "seeds must be whole numbers from 0 to .*; got -1"),
        ({"seeds": [True]}, "seeds must be whole numbers.*; got True"),
        ({"sedes": [0]}, "unknown field 'sedes' in it; allowed: name, models, seeds, data"),
        ({"recipe": {"epoch": 3}}, "unknown field 'epoch' in recipe; allowed: epochs, batch_size"),
        ({"recipe": {"seed": 3}}, "unknown field 'seed' in recipe"),
        ({"recipe": {"epochs": "three"}}, "epochs must be a whole number >= 1, got 'three'"),
        ({"recipe": [1]}, "recipe must be a mapping"),
        ({"variants": {"slow": {"lr": -1}}}, "variant 'slow': lr must be a number > 0, got -1"),
        ({"variants": {"a": {"models": ["resnet50"]}}}, f"variant 'a': models must be some of {PLAIN}, {LIGHT}; got"),
        ({"variants": {"a": {}, "b": {"lr": 0.05}}}, f"variants 'a' and 'b' are the same training of {PLAIN}"),
        ({"data": "foto"}, "unknown data 'foto'"),
        ({"name": "../up"}, "name must be at most 64 letters.*; got '../up'"),
    ],
)
def test_a_bad_study_is_one_clear_line_before_anything_is_trained(changes, message, tmp_path):
    path = write_spec(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"study .*study.yaml: .*{message}") as error:
        load_study(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"models: [a", "is not YAML"),
        (b"name: a\nname: b", "'name' is there twice"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"[" * 20000, "nested too deeply"),
        (b"just words", "it must be a mapping"),
        (b"", "it must be a mapping"),
        (b"? [a, b]\n: 1", "found unhashable key"),
        (b"null: 1", "unknown field None"),
    ],
)
def test_what_is_no_study(content, message, tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    assert main(["study", str(path), "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kaconv: error: study ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_missing_fields_and_data_from_the_command_line(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in SMALL.items() if name != "data"}))
    with pytest.raises(ValueError, match=r"data missing \(or give --data\)"):
        load_study(path)
    assert load_study(path, "digits").data == "digits"


def test_all_of_one_seed_come_before_the_next_and_variants_override_the_recipe():
    variants = {"plain": {}, "fast": {"lr": 0.5, "models": [LIGHT]}}
    trainings = study_trainings(parse_study(SMALL | {"variants": variants}), "runs")
    assert [(t.seed, t.variant, t.model) for t in trainings] == [
        (seed, *rest) for seed in (0, 1) for rest in (("plain", PLAIN), ("plain", LIGHT), ("fast", LIGHT))
    ]
    assert [t.config.lr for t in trainings[:3]] == [0.05, 0.05, 0.5]
    assert all(t.config.epochs == 1 and t.config.save_minutes <= 5 for t in trainings)


def test_the_studies_of_the_repository_can_be_read(monkeypatch):
    monkeypatch.setattr(registry, "OWN_BUILDERS", {})
    paths = sorted((ROOT / "reports" / "studies").glob("*.yaml"))
    assert len(paths) >= 2
    for path in paths:
        for builder in re.findall(r"--builder (\S+)", path.read_text()):  # of the command that its comment gives
            pytest.importorskip("timm")
            register_builder(builder)
        assert load_study(path).name == path.stem


# Running ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study that has run, its folder, and its results."""
    folder = tmp_path_factory.mktemp("study")
    path = write_spec(folder)
    command = ["study", str(path), "--runs", str(folder / "runs"), "--results", str(folder / "found.json")]
    assert main(command) == 0
    return folder, command


def test_a_study_runs_and_writes_its_results(trained):
    folder, _ = trained
    results = read_study_results(folder / "found.json")
    assert results["study"]["models"] == [PLAIN, LIGHT]
    assert [(row["seed"], row["model"], row["state"]) for row in results["runs"]] == [
        (seed, model, "done") for seed in (0, 1) for model in (PLAIN, LIGHT)
    ]
    row = results["runs"][0]
    (run,) = (
        Run.load(path)
        for path in (folder / "runs").iterdir()
        if path.name.endswith(f"e_{PLAIN}_epochs-1_image_size-8_seed0")
    )
    assert row["last"] == run.summary["last"]
    assert row["params"] == run.summary["parameters"]
    assert row["paper_flops"] == complexity(create_model(PLAIN, 10), 8).paper_flops
    assert row["seconds_per_epoch"] == run.history[0]["seconds"]
    assert {"commit", "machine", "versions", "command"} <= results["provenance"].keys()
    (difference,) = results["differences"]
    assert difference["seeds"] == [0, 1]


def test_what_is_finished_is_not_trained_again(trained, capsys, monkeypatch):
    monkeypatch.setattr(study, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
    assert main(trained[1]) == 0
    assert "4 trainings, 4 of them finished" in capsys.readouterr().out


def test_status_trains_nothing(trained, tmp_path, capsys):
    path = write_spec(tmp_path, seeds=[0, 1, 2])
    assert main(["study", str(path), "--runs", str(trained[0] / "runs"), "--status"]) == 0
    out = capsys.readouterr().out
    assert "4 done, 0 running, 0 interrupted, 2 not begun" in out
    trainings = study_trainings(load_study(path), trained[0] / "runs")
    rows = study_status(trainings)
    assert [row["state"] for row in rows] == ["done"] * 4 + ["not begun"] * 2
    assert rows[4]["seconds_left"] == pytest.approx(
        sum(Run.load(training.config.out).history[0]["seconds"] for training in trainings[:4:2]) / 2
    )
    assert not Path(trainings[4].config.out).exists()


def test_what_is_finished_elsewhere_counts_and_is_kept(trained, tmp_path, monkeypatch, capsys):
    results = read_study_results(trained[0] / "found.json")
    results["runs"][2:] = [row | {"state": "not run"} for row in results["runs"][2:]]
    path, found = write_spec(tmp_path), tmp_path / "found.json"
    found.write_text(json.dumps(results))
    command = ["study", str(path), "--runs", str(tmp_path / "runs"), "--results", str(found)]
    assert main([*command, "--status"]) == 0
    assert "2 done, 0 running, 0 interrupted, 2 not begun" in capsys.readouterr().out
    assert [row["state"] for row in read_study_results(found)["runs"]] == ["done"] * 2 + ["not run"] * 2

    trained_here = []
    real_fit = study.fit

    def fit(config, **kwargs):
        trained_here.append((config.seed, config.model))
        if trained_here[1:]:  # what the first one found is written before the second ends
            assert [row["state"] for row in read_study_results(found)["runs"]] == ["done"] * 3 + ["not run"]
        return real_fit(config, **kwargs)

    monkeypatch.setattr(study, "fit", fit)
    assert main(command) == 0
    assert trained_here == [(1, PLAIN), (1, LIGHT)]
    after = read_study_results(found)
    assert after["runs"][:2] == results["runs"][:2]
    assert [row["state"] for row in after["runs"]] == ["done"] * 4


def test_results_of_another_study_are_not_replaced(trained, tmp_path, capsys):
    found = tmp_path / "found.json"
    found.write_text((trained[0] / "found.json").read_text())
    before = found.read_bytes()
    path = write_spec(tmp_path, seeds=[0])
    command = ["study", str(path), "--runs", str(tmp_path / "runs"), "--results", str(found)]
    assert main(command) == 2
    assert "holds results of another study than small: seeds differ" in capsys.readouterr().err
    assert found.read_bytes() == before
    assert not (tmp_path / "runs").exists()


def test_one_failure_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def fit(config, **kwargs):
        if config.model == PLAIN:
            raise FloatingPointError("the loss became nan")

    monkeypatch.setattr(study, "fit", fit)
    path = write_spec(tmp_path)
    assert main(["study", str(path), "--runs", str(tmp_path / "runs")]) == 1
    out, err = capsys.readouterr()
    assert f"{PLAIN} seed 1 failed: the loss became nan" in err
    assert f"{LIGHT} seed 1: 4 of 4 done" in out


def test_missing_data_come_to_light_before_any_training(tmp_path, capsys):
    path = write_spec(tmp_path)
    assert main(["study", str(path), "--data", "folder:nowhere", "--runs", str(tmp_path / "runs")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_killed_study_goes_on(tmp_path):
    path = write_spec(tmp_path, models=[PLAIN], seeds=[0], recipe=SMALL["recipe"] | {"epochs": 400, "save_minutes": 0})
    (training,) = study_trainings(load_study(path), tmp_path / "runs")
    command = [sys.executable, "-m", "kaconv", "study", str(path), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline, metrics = time.monotonic() + 120, Path(training.config.out, "metrics.jsonl")
        # A state of the third epoch: two are behind it, whatever happens between metrics and state.
        while not [*metrics.parent.glob("state-0000[3-9]-*.pt")] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert study_status([training])[0]["state"] == "running"
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    (row,) = study_status([training])
    assert row["state"] == "interrupted"
    assert 2 <= row["epoch"] < 400
    metrics = Path(training.config.out, "metrics.jsonl")
    done = metrics.read_text().splitlines()[0]

    def stop(run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.fit(training.config, progress=False, on_epoch=stop)
    assert metrics.read_text().splitlines()[0] == done  # the first epoch was not trained again


def test_jobs_run_side_by_side(tmp_path, capsys):
    pytest.importorskip("submitit")
    path = write_spec(tmp_path, models=[PLAIN])
    assert main(["study", str(path), "--runs", str(tmp_path / "runs"), "--jobs", "2", "--threads", "1"]) == 0
    assert "2 of 2 done" in capsys.readouterr().out
    trainings = study_trainings(load_study(path), tmp_path / "runs")
    runs = [Run.load(training.config.out) for training in trainings]
    assert all(run.finished for run in runs)
    assert [run.summary["provenance"]["machine"]["threads"] for run in runs] == [1, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_jobs_of_a_study_in_the_background_end_with_it(tmp_path):
    pytest.importorskip("submitit")
    path = write_spec(tmp_path, models=[PLAIN], seeds=[0], recipe=SMALL["recipe"] | {"epochs": 4000})
    (training,) = study_trainings(load_study(path), tmp_path / "runs")
    command = [sys.executable, "-m", "kaconv", "study", str(path), "--runs", str(tmp_path / "runs"), "--jobs", "2"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a shell's "&" does so
    try:
        process = subprocess.Popen([*command, "--threads", "1"], cwd=ROOT, stdout=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        metrics = Path(training.config.out, "metrics.jsonl")
        _wait(lambda: metrics.exists(), 120)
        assert study_status([training])[0]["state"] == "running"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        _wait(lambda: study_status([training])[0]["state"] == "interrupted", 30)
    finally:
        process.kill()


def _wait(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


OWN_NET = """
from torch import nn

def net(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
"""


def test_own_models_train_in_jobs(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    (tmp_path / "own_nets.py").write_text(OWN_NET)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    path = write_spec(tmp_path, models=["own_nets:net"], seeds=[0])
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "kaconv", "--builder", "own_nets:net", "study", str(path), "--runs", str(runs)]
    done = subprocess.run([*command, "--jobs", "2"], cwd=ROOT, capture_output=True, text=True)
    assert "1 of 1 done" in done.stdout, done.stdout + done.stderr


def test_without_submitit_a_line_says_which_extra_brings_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["study", str(write_spec(tmp_path)), "--runs", str(tmp_path / "runs"), "--jobs", "2"]) == 2
    assert "pip install 'kaconv[cluster]'" in capsys.readouterr().err


def test_slurm_options():
    assert study_jobs.parse_slurm_options(["partition=gpu", "gpus=4", "timeout=60"]) == {
        "slurm_partition": "gpu",
        "gpus_per_node": 4,
        "timeout_min": 60,
    }
    for text, message in (
        ("memory=3", "takes partition=VALUE, gpus=VALUE, timeout=VALUE; got 'memory=3'"),
        ("gpus=x", "gpus must be"),
    ):
        with pytest.raises(ValueError, match=message):
            study_jobs.parse_slurm_options([text])


def test_gpus_are_shared():
    assert study_jobs.share_gpus([], 2) == [(), ()]
    assert study_jobs.share_gpus([4, 5, 6], 2) == [(4, 6), (5,)]
    assert study_jobs.share_gpus([0, 1], 3) == [(0,), (1,), (0,)]


# Results ------------------------------------------------------------------------------------------------------------


def test_detectable_difference_is_that_of_the_paired_t_test():
    # R: power.t.test(n, sd = 1, power = 0.8, type = "paired")
    assert detectable_difference([-1.0, 0.0, 1.0]) == pytest.approx(3.264, abs=1e-3)
    assert detectable_difference([1.0]) is None
    assert detectable_difference([1.0, 3.0]) > 0


def test_differences_are_paired_by_seed():
    runs = [result_of(PLAIN, seed, error) for seed, error in ((0, 10.0), (1, 20.0), (2, 30.0))]
    runs += [result_of(LIGHT, seed, error) for seed, error in ((2, 29.0), (1, 18.0))]  # another order; one is missing
    merged, _ = merge_results(parse_study(SMALL), [("one", results_of(*runs))])
    (row,) = merged["differences"]
    assert (row["seeds"], row["differences"], row["difference"]) == ([1, 2], [-2.0, -1.0], -1.5)


def test_variants_of_the_first_model_are_compared_with_its_first():
    spec = parse_study(SMALL | {"variants": {"plain": {}, "slow": {"lr": 0.01}}})
    errors = {("plain", PLAIN): 10.0, ("slow", PLAIN): 12.0, ("plain", LIGHT): 9.0, ("slow", LIGHT): 8.0}
    runs = [result_of(model, 0, error, variant) for (variant, model), error in errors.items()]
    merged, _ = merge_results(spec, [("one", results_of(*runs) | {"study": spec.to_dict()})])
    found = {(row["variant"], row["model"]): row["difference"] for row in merged["differences"]}
    assert found == {("slow", PLAIN): 2.0, ("plain", LIGHT): -1.0, ("slow", LIGHT): -4.0}


def test_the_command_of_a_study_opts_in_to_its_builders(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "OWN_BUILDERS", {})
    path = ROOT / "reports/studies/cifar10_ablations.yaml"
    words = study_command("reports/studies/cifar10_ablations.yaml", yaml.safe_load(path.read_text())).split()
    assert words[:3] == ["kaconv", "--builder", "kaconv.bench.study_ablations:no_logit_bias"]
    assert words[words.index("study") + 1] == "reports/studies/cifar10_ablations.yaml"
    monkeypatch.chdir(tmp_path)  # where there are no runs yet
    assert main([*words[1 : words.index("study") + 1], str(path), "--status"]) == 0


def test_merging_keeps_the_first_and_refuses_another_run():
    spec = parse_study(SMALL)
    not_run = {"model": LIGHT, "variant": "plain", "seed": 0, "state": "not run"}
    one = results_of(result_of(PLAIN, 0, 10.0), not_run)
    other = results_of(result_of(PLAIN, 0, 11.0, data="folder:/there/pictures"), result_of(LIGHT, 0, 9.0))
    merged, notes = merge_results(spec, [("one", one), ("other", other)])
    assert [row["last"]["test_error"] for row in merged["runs"]] == [10.0, 9.0]
    assert notes == [f"{PLAIN} seed 0 is in one and other: kept that of the former"]
    assert merged["differences"][0]["difference"] == -1
    assert [each["file"] for each in merged["provenance"]["merged"]] == ["one", "other"]
    with pytest.raises(ValueError, match=r"not the same run in one and other: lr \(None and 0.5\)"):
        merge_results(spec, [("one", one), ("other", results_of(result_of(PLAIN, 0, 11.0, lr=0.5)))])
    with pytest.raises(ValueError, match="one holds results of another study than small: seeds differ"):
        merge_results(parse_study(SMALL | {"seeds": [0]}), [("one", one)])


def test_merge_on_the_command_line(trained, tmp_path, capsys):
    folder, command = trained
    found, both = str(folder / "found.json"), tmp_path / "both.json"
    assert main([*command[:2], "--merge", found, found, "--results", str(both)]) == 0
    assert "kept that of the former" in capsys.readouterr().out
    assert json.loads(both.read_text())["summary"] == read_study_results(found)["summary"]
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    assert main([*command[:2], "--merge", str(bad)]) == 2
    assert "does not hold results of `kaconv study`" in capsys.readouterr().err
