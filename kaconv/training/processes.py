"""Trainings in processes of their own: what `torchrun` does, from Python and for notebooks."""

import subprocess
import sys
from collections import deque
from collections.abc import Callable

from kaconv.training.config import TrainConfig
from kaconv.training.run import Run

_KEPT_LINES = 30  # of the output, for the error


def launch(config: TrainConfig, processes: int, *, on_epoch: Callable[[Run], None] | None = None) -> Run:
    """`fit` in several processes on this machine, usually one for each GPU, through `torchrun`.

    An interruption (KeyboardInterrupt) lets them save their state and end.

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
    command = [*torchrun, "-m", "kaconv", "train", *config.to_arguments()]
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    errors: list[str] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
    try:
        for line in process.stdout:
            last.append(line)
            if "kaconv: error: " in line and line not in errors:  # which every process may say
                errors.append(line)
            if line.startswith(f"{config.model} epoch "):
                print(line, end="", flush=True)
                if on_epoch:
                    on_epoch(Run.load(config.out))
    except KeyboardInterrupt:
        process.terminate()
        raise
    finally:
        status = process.wait()
    if status:
        raise RuntimeError(f"the training in {processes} processes failed: {''.join(errors or last).strip()}")
    return Run.load(config.out)
