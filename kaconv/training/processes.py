"""Trainings in processes of their own: what `torchrun` does, from Python and for notebooks."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import IO

from kaconv.models.registry import OWN_BUILDERS
from kaconv.training.config import TrainConfig
from kaconv.training.run import METRICS, Run

_POLL_SECONDS = 0.5
_KEPT_LINES = 30  # of the output, for the error


def launch(config: TrainConfig, processes: int, *, on_epoch: Callable[[Run], None] | None = None) -> Run:
    """`fit` in several processes on this machine, usually one for each GPU, through `torchrun`.

    The run is followed by its metrics.jsonl. An interruption (KeyboardInterrupt) lets the processes save their state
    and end.

    Args:
        on_epoch: called after every epoch, with the run as its folder holds it.

    Raises:
        ValueError: for a bad config, or less than one process.
        RuntimeError: if the training fails, with what it said.
    """
    config.validate()
    if not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes must be a whole number >= 1, got {processes!r}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    own = ["--builder", config.model] if config.model in OWN_BUILDERS else []
    command = [*torchrun, "-m", "kaconv", *own, "train", *config.to_arguments()]
    follower = _Follower(config, on_epoch)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                follower.look()
        except BaseException:
            process.terminate()
            raise
        finally:
            status = process.wait()
        if status:
            raise RuntimeError(f"the training in {processes} processes failed: {_what_it_said(output)}")
    return Run.load(config.out)


class _Follower:
    """Prints and reports the epochs that a run's folder gets, each once."""

    def __init__(self, config: TrainConfig, on_epoch: Callable[[Run], None] | None) -> None:
        self.config, self.on_epoch = config, on_epoch
        self.metrics = Path(config.out) / METRICS
        self.before = self._written()

    def look(self) -> None:
        written = self._written()
        if written == self.before:
            return
        run = Run.load(self.config.out)
        history = run.history
        # Lines that stay as they were: a training that goes on may do so from an earlier epoch's state.
        known = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(written, self.before, strict=False))))
        self.before = written
        for epochs in range(known + 1, len(history) + 1):
            run.history = history[:epochs]
            print(run.describe_epoch(-1), flush=True)
            if self.on_epoch:
                self.on_epoch(run)

    def _written(self) -> list[bytes]:
        with suppress(FileNotFoundError):
            return self.metrics.read_bytes().splitlines()
        return []


def _what_it_said(output: IO[str]) -> str:
    """The errors that kaconv named, each once though every process may say it; else the end of the output."""
    output.seek(0)
    lines = output.readlines()
    errors = list(dict.fromkeys(line for line in lines if "kaconv: error: " in line))
    return "".join(errors or lines[-_KEPT_LINES:]).strip()
