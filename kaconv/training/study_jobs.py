"""Running the trainings of a study: one after another in this process, or as jobs of submitit."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from kaconv.data.datasets import load_data
from kaconv.models.registry import OWN_BUILDERS, register_builder
from kaconv.training.config import TrainConfig
from kaconv.training.run import find_finished_run
from kaconv.training.study import train
from kaconv.training.study_spec import Training
from kaconv.utils.extras import missing_package

if TYPE_CHECKING:
    from submitit import Job

JOBS_FOLDER = "jobs"  # what submitit writes, in the folder of the runs
LOCAL_TIMEOUT_MINUTES = 60 * 24 * 365  # submitit's own is five minutes
SLURM_TIMEOUT_MINUTES = 60 * 24
MOST_TIMEOUTS = 100  # after which a training on Slurm is given up
# The options of --slurm: submitit's name of each, and the type.
SLURM_OPTIONS = {"partition": ("slurm_partition", str), "gpus": ("gpus_per_node", int), "timeout": ("timeout_min", int)}
# What a training may fail with that says nothing against the others.
FAILURES = (ValueError, OSError, FloatingPointError, RuntimeError)


def check_before_training(trainings: Sequence[Training]) -> list[Training]:
    """Those that are not finished yet.

    Raises:
        ValueError: for a folder that holds something else, or data that nothing can be trained on.
        FileNotFoundError: for missing data.
    """
    left = [training for training in trainings if find_finished_run(training.config) is None]
    places = ((t.config.data, str(t.config.data_root), t.config.image_size, t.config.val_fraction) for t in left)
    for spec, root, size, fraction in dict.fromkeys(places):
        if load_data(spec, root, size, val_fraction=fraction).train is None:
            raise ValueError(f"data {spec!r} has no train/ folder, so it is good for evaluation only")
    return left


def run_here(trainings: Sequence[Training], threads: int | None = None) -> Iterator[tuple[Training, str | None]]:
    """Train one after another in this process, each on all GPUs; yield each as it ends, with its error if it failed."""
    if threads is not None:
        torch.set_num_threads(threads)
    for training in trainings:
        print(f"{training}: {training.config.out}", flush=True)
        yield training, _failure(training.config, max(1, torch.cuda.device_count()))


def run_locally(
    trainings: Sequence[Training], jobs: int, runs: str | Path, threads: int | None = None
) -> Iterator[tuple[Training, str | None]]:
    """Train `jobs` at a time in processes of submitit's local executor, which share the threads and the GPUs.

    Yields:
        Each training as it ends, with its error if it failed.

    Raises:
        ModuleNotFoundError: without submitit.
    """
    submitit = import_submitit()
    share = threads or max(1, torch.get_num_threads() // jobs)
    executors: SimpleQueue = SimpleQueue()
    for gpus in share_gpus(_visible_gpus(), jobs):
        executor = submitit.LocalExecutor(Path(runs) / JOBS_FOLDER)
        executor.update_parameters(timeout_min=LOCAL_TIMEOUT_MINUTES, gpus_per_node=len(gpus), visible_gpus=gpus)
        executors.put((executor, max(1, len(gpus))))
    running: set[Job] = set()

    def train(training: Training) -> str | None:
        executor, processes = executors.get()
        try:
            job = executor.submit(Task(training.config, processes, share))
            running.add(job)
            print(f"{training}: {training.config.out}, log {job.paths.stdout}", flush=True)
            try:
                return job.result()
            except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError):
                return f"it ended without a result; see {job.paths.stderr}"
            finally:
                running.discard(job)
        finally:
            executors.put((executor, processes))

    with ThreadPoolExecutor(jobs) as pool, _leaving_on_sigterm():
        futures: dict[Future, Training] = {pool.submit(train, training): training for training in trainings}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for job in list(running):
                job.cancel()
            raise


def submit_to_slurm(trainings: Sequence[Training], jobs: int, runs: str | Path, options: dict[str, Any]) -> list[str]:
    """Submit the trainings as one array of Slurm, `jobs` of them at a time; the ids of the jobs.

    They need nobody who waits. One that runs out of time is put into the queue again and goes on.

    Args:
        options: parameters of submitit's AutoExecutor, from `parse_slurm_options`.

    Raises:
        ModuleNotFoundError: without submitit.
        ValueError: if this machine has no Slurm.
    """
    submitit = import_submitit()
    try:
        executor = submitit.AutoExecutor(Path(runs) / JOBS_FOLDER, cluster="slurm", slurm_max_num_timeout=MOST_TIMEOUTS)
    except RuntimeError as error:
        raise ValueError(f"--slurm: {error}") from None
    executor.update_parameters(**{"slurm_array_parallelism": jobs, "timeout_min": SLURM_TIMEOUT_MINUTES} | options)
    gpus = options.get("gpus_per_node", 0)
    tasks = [Task(training.config, max(1, gpus), None) for training in trainings]
    return [job.job_id for job in executor.map_array(_call, tasks)]


def parse_slurm_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parameters of submitit's AutoExecutor from `KEY=VALUE`; ValueError for another key or a bad value."""
    options = {}
    for text in texts:
        key, _, value = text.partition("=")
        if key not in SLURM_OPTIONS:
            raise ValueError(f"--slurm takes {', '.join(f'{name}=VALUE' for name in SLURM_OPTIONS)}; got {text!r}")
        name, kind = SLURM_OPTIONS[key]
        if not value or (kind is int and (not value.isdecimal() or int(value) < 1)):
            raise ValueError(
                f"--slurm {key} must be {'a whole number >= 1' if kind is int else 'a name'}; got {value!r}"
            )
        options[name] = kind(value)
    return options


def import_submitit() -> Any:
    """The package; ModuleNotFoundError says which extra brings it."""
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_package(error), name=error.name) from None
    return submitit


def share_gpus(gpus: Sequence[int], jobs: int) -> list[tuple[int, ...]]:
    """The GPUs of each of `jobs` jobs side by side; with fewer GPUs than jobs, several jobs take one together."""
    if not gpus:
        return [()] * jobs
    return [tuple(gpus[job::jobs]) or (gpus[job % len(gpus)],) for job in range(jobs)]


class Task:
    """One training as a job: what submitit calls, and calls again when the job had to make room."""

    def __init__(self, config: TrainConfig, processes: int, threads: int | None) -> None:
        self.config, self.processes, self.threads = config, processes, threads
        self.own_builder = config.model if config.model in OWN_BUILDERS else None  # the job is another process

    def __call__(self) -> str | None:
        """Train; what went wrong, if something did."""
        if self.own_builder is not None:
            register_builder(self.own_builder)
        if self.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)  # for the processes that it starts
            torch.set_num_threads(self.threads)
        return _failure(self.config, self.processes)

    def checkpoint(self) -> Any:
        """Go on in another job: the run's folder says where."""
        return import_submitit().helpers.DelayedSubmission(self)


def _call(task: Task) -> str | None:
    return task()


def _failure(config: TrainConfig, processes: int) -> str | None:
    try:
        train(config, processes, progress=False)
    except FAILURES as error:
        return str(error) or type(error).__name__
    return None


def _visible_gpus() -> list[int]:
    """The numbers by which CUDA_VISIBLE_DEVICES would name what this process sees."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if all(name.strip().isdecimal() for name in named):
        return [int(name) for name in named][: torch.cuda.device_count()]
    return list(range(torch.cuda.device_count()))


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, so that its jobs end with it.

    They are ended by SIGINT, which a shell lets its background processes ignore, and those whatever they start.
    """
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)
