"""Progress of a study, its results with their provenance, and their summary over the seeds."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median, stdev
from typing import Any, NotRequired, TypedDict

import numpy as np
from scipy import optimize, stats

from kaconv.models.complexity import paper_flops
from kaconv.training.run import EpochResult, Run, is_held
from kaconv.training.study_spec import PLAIN_VARIANT, StudySpec, Training, TrainingKey
from kaconv.utils.checks import PERCENT, TEXT, check_values, whole
from kaconv.utils.intervals import CONFIDENCE, t_interval
from kaconv.utils.provenance import provenance
from kaconv.utils.text import printable

POWER = 0.8  # the chance with which a detectable difference is detected
_QUANTILES = 2000
RESULT_KEYS = {"study", "runs", "summary", "differences", "provenance"}
DONE, RUNNING, INTERRUPTED, NOT_BEGUN, NOT_RUN = "done", "running", "interrupted", "not begun", "not run"


# How far it has come ------------------------------------------------------------------------------------------------


class StatusRow(TypedDict):
    """The progress of one training of a study.

    - state: done, running (a process holds its lock), interrupted or not begun
    - epoch: the last whole one, of epochs
    - test_error, test_top5_error: of that epoch, in percent; None before the first, the latter also for five classes or
      fewer
    - seconds_left: from the measured epochs of that model and variant, of any seed; None where there are none
    """

    model: str
    variant: str
    seed: int
    state: str
    epoch: int
    epochs: int
    test_error: float | None
    test_top5_error: float | None
    seconds_left: float | None


class _Names(TypedDict):
    model: str
    variant: str
    seed: int


class RunRow(_Names):
    """A training of a study, as its results hold it; only those that are done have more than their names and state.

    - state: done or not run
    - best, last: of the epoch with the lowest test error, and of the last one
    - epochs: how many
    - seconds_per_epoch: median, training and test; images_per_second: median, training
    - params, paper_flops: see `kaconv.models.complexity`; the latter for one image of the training's size
    - config: what decides the weights, see `TrainConfig.identity`
    """

    state: str
    best: NotRequired[EpochResult]
    last: NotRequired[EpochResult]
    epochs: NotRequired[int]
    seconds_per_epoch: NotRequired[float]
    params: NotRequired[int]
    paper_flops: NotRequired[int]
    images_per_second: NotRequired[float]
    config: NotRequired[dict[str, Any]]
    provenance: NotRequired[dict[str, Any] | None]


class SummaryRow(TypedDict):
    """Finished runs of one model and variant of a study.

    - test_errors: percent, one per seed, of the last epoch: the best would be chosen by the test images
    - test_error: their mean; test_error_interval: Student's 95 % over seeds, None for a single one
    - paper_flops: None where the results are of a version that did not count them
    - seconds_per_epoch, images_per_second: medians over seeds
    """

    model: str
    variant: str
    seeds: list[int]
    test_errors: list[float]
    test_error: float
    test_error_interval: tuple[float, float] | None
    params: int
    paper_flops: int | None
    seconds_per_epoch: float
    images_per_second: float


class DifferenceRow(TypedDict):
    """A model's and variant's test error minus that of the study's first model, paired by seed.

    - baseline_variant: the variant of the first model that it is compared with
    - seeds: those that both have
    - differences: percentage points, one per seed; negative is better
    - difference: their mean; difference_interval: Student's 95 % over seeds, None for a single one
    - detectable_difference: see `detectable_difference`
    """

    model: str
    variant: str
    baseline_variant: str
    seeds: list[int]
    differences: list[float]
    difference: float
    difference_interval: tuple[float, float] | None
    detectable_difference: float | None


class StudyResults(TypedDict):
    """Results of a study so far, as `kaconv study --results` writes them.

    - study: the contents of its file
    - runs: a row for each training that was planned
    - summary: a row for each model and variant with finished runs
    - differences: see `paired_differences`
    - provenance: of this file
    """

    study: dict[str, Any]
    runs: list[RunRow]
    summary: list[SummaryRow]
    differences: list[DifferenceRow]
    provenance: dict[str, Any]


def study_status(trainings: Sequence[Training], known: Mapping[TrainingKey, RunRow] | None = None) -> list[StatusRow]:
    """The state of each training of a study; nothing is trained or written.

    Args:
        known: what is finished elsewhere, see `finished_trainings`.
    """
    known = known or {}
    found = [(training, _load(training)) for training in trainings]
    costs = {
        key: median(epoch["seconds"] for epoch in epochs)
        for key in {_key(training) for training in trainings}
        if (epochs := [epoch for training, run in found if run and _key(training) == key for epoch in run.history])
    }
    return [
        _status_elsewhere(known[training.key])
        if training.key in known and not (run and run.finished)
        else _status(training, run, costs.get(_key(training)))
        for training, run in found
    ]


def format_status(rows: Sequence[StatusRow], jobs: int = 1) -> str:
    """The table of `study_status`, how many trainings are in which state, and the time left with `jobs` at a time."""
    width = max(len(_title(row)) for row in rows)
    has_top5 = any(row["test_top5_error"] is not None for row in rows)
    top5 = "  top-5 %" if has_top5 else ""
    lines = [f"{'training':{width}}  seed  state        epoch    top-1 %{top5}  time left"]
    for row in rows:
        shown = [row["test_error"], row["test_top5_error"]][: 2 if has_top5 else 1]
        errors = "  ".join(f"{_number(error):>7}" for error in shown)
        left = "-" if row["state"] == DONE else format_seconds(row["seconds_left"])
        lines.append(
            f"{_title(row):{width}}  {row['seed']:4}  {row['state']:11}  {row['epoch']:3}/{row['epochs']:<3}  "
            f"{errors}  {left:>9}"
        )
    counts = {state: sum(row["state"] == state for row in rows) for state in (DONE, RUNNING, INTERRUPTED, NOT_BEGUN)}
    lines.append(", ".join(f"{count} {state}" for state, count in counts.items()) + f"; {time_left(rows, jobs)}")
    return "\n".join(lines)


def time_left(rows: Sequence[StatusRow], jobs: int = 1) -> str:
    """A sentence of how long the rest takes at the measured cost of an epoch, with `jobs` trainings at a time."""
    unmeasured = sorted({_title(row) for row in rows if row["seconds_left"] is None})
    measured = sum(row["seconds_left"] or 0 for row in rows) / jobs
    if unmeasured:
        return f"time left: {format_seconds(measured)} and that of {', '.join(unmeasured)}, not measured yet"
    return f"time left: {format_seconds(measured)}"


def format_seconds(seconds: float | None) -> str:
    """Such as 2 h 05 min, 7 min or 12 s; "unknown" for None."""
    if seconds is None:
        return "unknown"
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _status(training: Training, run: Run | None, epoch_seconds: float | None) -> StatusRow:
    done = len(run.history) if run else 0
    last: Mapping[str, Any] = run.history[-1] if run and done else {}
    left = training.config.epochs - done
    finished = run is not None and run.finished
    return {
        "model": training.model,
        "variant": training.variant,
        "seed": training.seed,
        "state": _state(run),
        "epoch": done,
        "epochs": training.config.epochs,
        "test_error": last.get("test_error"),
        "test_top5_error": last.get("test_top5_error"),
        "seconds_left": 0.0 if finished else None if epoch_seconds is None else left * epoch_seconds,
    }


def _status_elsewhere(row: RunRow) -> StatusRow:
    return {
        "model": row["model"],
        "variant": row["variant"],
        "seed": row["seed"],
        "state": DONE,
        "epoch": row["epochs"],
        "epochs": row["epochs"],
        "test_error": row["last"]["test_error"],
        "test_top5_error": row["last"].get("test_top5_error"),
        "seconds_left": 0.0,
    }


def _state(run: Run | None) -> str:
    if run is None:
        return NOT_BEGUN
    if run.finished:
        return DONE
    return RUNNING if is_held(run.folder) else INTERRUPTED


def _load(training: Training) -> Run | None:
    """The run in the training's folder, if it is of that config."""
    try:
        run = Run.load(training.config.out)
    except FileNotFoundError:
        return None
    return run if run.config.identity() == training.config.identity() else None


# Results ------------------------------------------------------------------------------------------------------------


def study_results(
    spec: StudySpec, trainings: Sequence[Training], known: Mapping[TrainingKey, RunRow] | None = None
) -> StudyResults:
    """Results of a study so far, which can be written as JSON.

    Args:
        known: what is finished elsewhere, see `finished_trainings`; a finished run here goes before it.
    """
    known = known or {}
    rows = [_result(training) for training in trainings]
    rows = [known.get(_key_of(row), row) if row["state"] == NOT_RUN else row for row in rows]
    return _with_summary(spec.to_dict(), rows, provenance())


def finished_trainings(spec: StudySpec, path: Path) -> dict[TrainingKey, RunRow]:
    """Rows of a study's trainings that a file of results has as finished; none where there is no such file.

    Raises:
        ValueError: if it holds something else, or results of another study.
    """
    if not path.exists():
        return {}
    results = read_study_results(path)
    _check_same_study(spec, str(path), results)
    return {_key_of(row): row for row in results["runs"] if row["state"] == DONE}


def merge_results(spec: StudySpec, results: Sequence[tuple[str, StudyResults]]) -> tuple[StudyResults, list[str]]:
    """A study's results from several machines as one; of a run that is there twice, the first is kept.

    Args:
        results: names of the files and their contents.

    Returns:
        The results, whose provenance has those of the files in `merged`; and a sentence for each run that is there
        twice.

    Raises:
        ValueError: if one is of another study, or a run is there with two configs.
    """
    study, notes = spec.to_dict(), []
    runs: dict[TrainingKey, RunRow] = {}
    origin: dict[TrainingKey, str] = {}
    for name, result in results:
        _check_same_study(spec, name, result)
        for row in result["runs"]:
            key = _key_of(row)
            there = runs.get(key)
            if there is None or (there["state"] != DONE and row["state"] == DONE):
                runs[key], origin[key] = row, name
            elif there["state"] == row["state"] == DONE:
                _check_same(there, row, origin[key], name)
                notes.append(
                    f"{_title(row)} seed {row['seed']} is in {origin[key]} and {name}: kept that of the former"
                )
    merged = [{"file": name, "provenance": result["provenance"]} for name, result in results]
    return _with_summary(study, list(runs.values()), provenance() | {"merged": merged}), notes


def study_command(spec: str | Path, study: Mapping[str, Any]) -> str:
    """The command that runs a study, or goes on with it from the results beside its file.

    Args:
        spec: path of its file.
        study: its contents.
    """
    builders = "".join(f" --builder {model}" for model in study["models"] if ":" in model)
    return f"kaconv{builders} study {Path(spec).as_posix()} --jobs 2 --threads 1 --results"


def read_study_results(path: str | Path) -> StudyResults:
    """Read what `kaconv study --results` wrote; ValueError for something else, FileNotFoundError if it is missing."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no results {path.resolve()}")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not result.keys() >= RESULT_KEYS or not isinstance(result["study"], dict):
            raise ValueError("it lacks " + ", ".join(sorted(RESULT_KEYS - result.keys())))
        for row in result["runs"]:
            if row["state"] == DONE:
                check_values(row["last"], {"test_error": PERCENT})
                dict(row["config"])
            check_values(row, {"model": TEXT, "variant": TEXT, "seed": whole(0)})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} does not hold results of `kaconv study`: {error}") from None
    return result


def _result(training: Training) -> RunRow:
    run = _load(training)
    if run is None or not run.finished:
        return {**_names(training), "state": NOT_RUN}
    return {
        **_names(training),
        "state": DONE,
        "best": run.summary["best"],
        "last": run.summary["last"],
        "epochs": len(run.history),
        "seconds_per_epoch": median(epoch["seconds"] for epoch in run.history),
        "params": run.summary["parameters"],
        "paper_flops": _paper_flops(run.folder),
        "images_per_second": median(epoch["images_per_second"] for epoch in run.history),
        "config": run.config.identity(),
        "provenance": run.summary.get("provenance"),
    }


@cache  # results are written after each training, with those of before
def _paper_flops(folder: Path) -> int:
    checkpoint = Run.load(folder).load_checkpoint("last")
    return paper_flops(checkpoint.model, checkpoint.preprocessing.image_size)


def _check_same_study(spec: StudySpec, name: str, results: StudyResults) -> None:
    """Its images may be in another place."""
    study, other = spec.to_dict(), results["study"]
    different = [key for key in study if key != "data" and study[key] != other.get(key)]
    if different:
        raise ValueError(f"{name} holds results of another study than {spec.name}: {', '.join(different)} differ")


def _check_same(row: RunRow, other: RunRow, name: str, other_name: str) -> None:
    """The same training on another machine may have its images in another place."""
    configs = [each["config"] | {"data": _without_place(each["config"]["data"])} for each in (row, other)]
    different = sorted(
        key for key in configs[0].keys() | configs[1].keys() if configs[0].get(key) != configs[1].get(key)
    )
    if different:
        changes = ", ".join(f"{key} ({configs[0].get(key)!r} and {configs[1].get(key)!r})" for key in different)
        raise ValueError(f"{_title(row)} seed {row['seed']} is not the same run in {name} and {other_name}: {changes}")


def _without_place(data: str) -> str:
    name, colon, path = data.partition(":")
    return f"{name}{colon}{Path(path).name}" if colon else name


# What they say ------------------------------------------------------------------------------------------------------


def _summarised(runs: Sequence[RunRow]) -> list[SummaryRow]:
    groups: dict[tuple[str, str], list[RunRow]] = {}
    for row in runs:
        if row["state"] == DONE:
            groups.setdefault((row["variant"], row["model"]), []).append(row)
    rows: list[SummaryRow] = []
    for (variant, model), group in groups.items():
        group.sort(key=lambda row: row["seed"])
        errors = [row["last"]["test_error"] for row in group]
        rows.append(
            {
                "model": model,
                "variant": variant,
                "seeds": [row["seed"] for row in group],
                "test_errors": errors,
                "test_error": float(np.mean(errors)),
                "test_error_interval": t_interval(errors),
                "params": group[0]["params"],
                "paper_flops": group[0].get("paper_flops"),
                "seconds_per_epoch": median(row["seconds_per_epoch"] for row in group),
                "images_per_second": median(row["images_per_second"] for row in group),
            }
        )
    return rows


def paired_differences(summary: Sequence[SummaryRow], baseline: str) -> list[DifferenceRow]:
    """Compare with a study's model `baseline`, seed by seed: a row for each that shares a finished seed with it.

    The baseline's runs are those of the same variant, or where that variant is not for it, of the first that is. With
    the first its own other variants are compared, too.
    """
    plain = {row["variant"]: row for row in summary if row["model"] == baseline}
    first = next(iter(plain.values()), None)
    rows: list[DifferenceRow] = []
    for row in summary:
        reference = first if row["model"] == baseline else plain.get(row["variant"], first)
        if reference is None or reference is row:
            continue
        errors, others = (dict(zip(each["seeds"], each["test_errors"], strict=True)) for each in (row, reference))
        seeds = [seed for seed in row["seeds"] if seed in others]
        if not seeds:
            continue
        differences = [errors[seed] - others[seed] for seed in seeds]
        rows.append(
            {
                "model": row["model"],
                "variant": row["variant"],
                "baseline_variant": reference["variant"],
                "seeds": seeds,
                "differences": differences,
                "difference": float(np.mean(differences)),
                "difference_interval": t_interval(differences),
                "detectable_difference": detectable_difference(differences),
            }
        )
    return rows


def detectable_difference(differences: Sequence[float]) -> float | None:
    """The true mean difference that as many pairs, spread like these, would have shown with a probability of 80 %.

    To show it is to have a 95 % interval (Student's, paired) without zero. None for a single pair.
    """
    n = len(differences)
    if n < 2:
        return None
    critical = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)

    # Over the quantiles of the measured spread: SciPy's noncentral t gives NaN for two pairs.
    spread = np.sqrt(stats.chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, n - 1) / (n - 1))

    def lack(shift: float) -> float:
        return POWER - stats.norm.cdf(shift - critical * spread).mean()

    shift = optimize.brentq(lack, 0, 10 * critical)
    return float(shift * stdev(differences) / n**0.5)


def format_results(results: StudyResults) -> str:
    """The summary and the paired differences as text."""
    if not results["summary"]:
        return "no training has finished yet"
    width = max(len(_title(row)) for row in results["summary"])
    lines = ["test error of the last epoch, %; in brackets the 95 % interval over seeds"]
    lines += [
        f"  {_title(row):{width}}  {row['test_error']:6.2f} {_interval(row['test_error_interval'])}  "
        f"{_seeds(row)}, {row['params'] / 1e6:.2f} M parameters, {row['images_per_second']:.0f} img/s"
        for row in results["summary"]
    ]
    if results["differences"]:
        lines.append(f"minus {results['study']['models'][0]}, percentage points, paired by seed")
    for row in results["differences"]:
        detectable = row["detectable_difference"]
        power = "" if detectable is None else f"  {POWER:.0%} power for a difference of {detectable:.2f}"
        lines.append(
            f"  {_title(row):{width}}  {row['difference']:+6.2f} {_interval(row['difference_interval'])}  "
            f"{_seeds(row)}{power}"
        )
    return "\n".join(lines)


def _with_summary(study: dict[str, Any], runs: list[RunRow], origin: dict[str, Any]) -> StudyResults:
    summary = _summarised(runs)
    differences = paired_differences(summary, study["models"][0])
    return {"study": study, "runs": runs, "provenance": origin, "summary": summary, "differences": differences}


def _interval(interval: Sequence[float] | None) -> str:
    return "[a single seed]" if interval is None else f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def _seeds(row: Mapping[str, Any]) -> str:
    return f"{len(row['seeds'])} seed{'s' if len(row['seeds']) > 1 else ''}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _names(training: Training) -> _Names:
    return {"model": training.model, "variant": training.variant, "seed": training.seed}


def _key(training: Training) -> tuple[str, str]:
    return training.variant, training.model


def _key_of(row: RunRow) -> TrainingKey:
    return row["variant"], row["model"], row["seed"]


def _title(row: Mapping[str, Any]) -> str:
    return printable(row["model"] if row["variant"] == PLAIN_VARIANT else f"{row['model']} {row['variant']}")
