from types import SimpleNamespace

import numpy as np

import kaviz.live
from kaviz import LiveCurves

EPOCH = {
    "train_loss": 1.0,
    "train_error": 50.0,
    "test_loss": 1.0,
    "test_error": 40.0,
    "test_top5_error": 0.0,
    "lr": 0.1,
}


def run_of(epochs, seed=0, finished=False):
    summary = {"last": {"test_error": 40.0}, "seconds": 2.0} if finished else {}
    history = [EPOCH | {"epoch": epoch, "seconds": 1.0, "images_per_second": 9.0} for epoch in range(1, epochs + 1)]
    config = SimpleNamespace(model="resnet11_cifar", seed=seed, epochs=7)
    return SimpleNamespace(folder=f"runs/{seed}", config=config, history=history, summary=summary)


def test_curves_follow_the_epochs_at_their_own_pace(monkeypatch, capsys):
    shown, now = [], [100.0]
    monkeypatch.setattr(kaviz.live, "display", shown.append)
    monkeypatch.setattr(kaviz.live.time, "monotonic", lambda: now[0])
    live = LiveCurves(trainings=2, every=3)
    for epoch in range(1, 8):
        live.update(run_of(epoch))
        now[0] += 1
    assert "0 of 2 trainings done, about 13 s to go" in capsys.readouterr().out
    assert len(shown) == 3  # at 0, 3 and 6 seconds
    longest = max(len(line.get_xdata()) for axes in shown[-1].axes for line in axes.lines)
    assert longest == 7
    live.finish([run_of(7, finished=True), run_of(7, seed=1, finished=True)])
    assert capsys.readouterr().out.endswith(
        "2 of 2 trainings done\nresnet11_cifar, seed 0: test error 40.00 %, 2 s\n"
        "resnet11_cifar, seed 1: test error 40.00 %, 2 s\n"
    )


def test_a_training_that_still_runs_has_a_shorter_line(monkeypatch):
    shown = []
    monkeypatch.setattr(kaviz.live, "display", shown.append)
    live = LiveCurves(trainings=2, every=0)
    live.update(run_of(5, finished=True))
    live.update(run_of(2, seed=1))
    first, second, mean = (line.get_ydata() for line in shown[-1].axes[0].lines)
    assert [np.isfinite(line).sum() for line in (first, second, mean)] == [5, 2, 2]
