"""A figure in a notebook that follows a training."""

import time
from statistics import mean

from IPython.display import clear_output, display

from kaconv.training import Run, learning_curves
from kaviz.plots import plot_learning_curves


class LiveCurves:
    """The learning curves of a study while it runs, in place of what the cell has shown so far.

    Args:
        trainings: how many there will be.
        every: seconds between two drawings at least; drawing takes time from the training.

    Example:
        >>> live = LiveCurves(trainings=6)
        >>> study = list(train_study(models, seeds, on_epoch=live.update))
        >>> live.finish()
    """

    def __init__(self, trainings: int, every: float = 3.0) -> None:
        self.trainings, self.every = trainings, every
        self._runs: dict[str, Run] = {}
        self._shown = -every

    def update(self, run: Run) -> None:
        """Take in a run's newest epoch; to be called by `kaconv.training.fit` after each."""
        self._runs[str(run.folder)] = run
        if time.monotonic() - self._shown >= self.every:
            self._shown = time.monotonic()
            clear_output(wait=True)
            display(plot_learning_curves(learning_curves(list(self._runs.values()))))
            print(self._lines(), flush=True)

    def finish(self, runs: list[Run]) -> None:
        """Leave a line for each of the study's runs; their curves are for a cell of their own."""
        clear_output(wait=True)
        self._runs = {str(run.folder): run for run in runs}
        print(self._lines(), flush=True)

    def _lines(self) -> str:
        done = [_line(run) for run in self._runs.values() if run.summary]
        return "\n".join([f"{len(done)} of {self.trainings} trainings done{self._to_go()}", *done])

    def _to_go(self) -> str:
        """How long the rest will take, if its epochs take as long as those so far."""
        runs = list(self._runs.values())
        epochs = self.trainings * max(run.config.epochs for run in runs) - sum(len(run.history) for run in runs)
        seconds = epochs * mean(epoch["seconds"] for run in runs for epoch in run.history)
        if epochs <= 0:
            return ""
        return f", about {seconds / 60:.0f} min to go" if seconds >= 90 else f", about {seconds:.0f} s to go"


def _line(run: Run) -> str:
    error, seconds = run.summary["last"]["test_error"], run.summary["seconds"]
    return f"{run.config.model}, seed {run.config.seed}: test error {error:.2f} %, {seconds:.0f} s"
