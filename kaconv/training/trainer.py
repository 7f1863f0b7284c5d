"""The training loop."""

import json
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from kaconv.checkpoints import save_checkpoint
from kaconv.data import DataBundle, load_data
from kaconv.files import write_json
from kaconv.models import create_model
from kaconv.provenance import provenance
from kaconv.training.config import TrainConfig
from kaconv.training.evaluation import evaluate, make_accelerator
from kaconv.training.run import METRICS, RESULT, SUMMARY, TENSORBOARD, Run, clear_run, find_finished_run, write_config

CHECK_EVERY = 50  # steps between looks at the loss: each makes the processor wait for the accelerator


def fit(config: TrainConfig, *, progress: bool = True) -> Run:
    """Train a model into the folder `config.out`, or return the finished run of the same config that is there.

    An unfinished run of the same config is trained again from the first epoch; what it left is kept until that epoch
    has been completed. "Best" is by test error, so it is a little optimistic; for an unbiased figure take the last
    epoch's.

    Args:
        progress: show bars (where somebody watches) beside the line that is printed after every epoch.

    Raises:
        ValueError: for a bad config, a folder of another config, or data without a training split; nothing is written.
        FileNotFoundError: for missing data; nothing is written.
        FloatingPointError: if the loss is no longer finite. last.safetensors and best.safetensors stay as they were.
    """
    config.validate()
    accelerator = _accelerator(config)
    run = find_finished_run(config)
    accelerator.wait_for_everyone()  # nobody writes before all have looked
    if run:
        accelerator.print(f"{run.folder}: already trained, with {_describe(run.summary['best'])}")
        return run
    with accelerator.local_main_process_first():  # one download for all
        data = load_data(config.data, config.data_root, config.image_size)
    if data.train is None:
        raise ValueError(f"data {config.data!r} has no train/ folder, so it is good for evaluation only")
    if len(data.classes) < 2:
        raise ValueError(f"data {config.data!r} has a single class ({data.classes[0]}); there is nothing to learn")
    set_seed(config.seed)
    model = create_model(config.model, num_classes=len(data.classes))
    set_seed(config.seed, device_specific=True)  # each process augments in its own way
    return _Trainer(config, data, model, accelerator, progress).train()


class _Trainer:
    """What one training holds: the data, the model and its optimiser, and the folder they report to."""

    def __init__(
        self, config: TrainConfig, data: DataBundle, model: nn.Module, accelerator: Accelerator, progress: bool
    ) -> None:
        self.config, self.data, self.accelerator, self.progress = config, data, accelerator, progress
        optimizer = SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
        # Not prepared with the rest: accelerate would step it once per process.
        self.scheduler = LambdaLR(optimizer, config.lr_factor)
        self.model, self.optimizer, self.loader = accelerator.prepare(model, optimizer, _train_loader(config, data))
        self.criterion = smoothed_cross_entropy(config.label_smoothing, len(data.classes))

    def train(self) -> Run:
        """All epochs, each reported as it ends; then the summary."""
        run, best = Run(Path(self.config.out), self.config), None
        writes = self.accelerator.is_main_process
        if writes:
            write_config(run)
        with ExitStack() as stack:
            for epoch in range(1, self.config.epochs + 1):
                metrics = self._epoch(epoch)
                run.history.append(metrics)
                if best is None or metrics["test_error"] < best["test_error"]:
                    best = metrics
                if writes and epoch == 1:  # not before: until now, what an interrupted run left is the best there is
                    clear_run(run)
                    writer = stack.enter_context(closing(SummaryWriter(run.folder / TENSORBOARD)))
                if writes:
                    self._save(run, metrics, ("best", "last") if metrics is best else ("last",))
                    self._report(run, metrics, writer)
        run.summary = self._summary(run, best)
        if writes:
            write_json(run.folder / SUMMARY, run.summary)
        self.accelerator.wait_for_everyone()  # the folder is complete for every process that reads it next
        return run

    def _epoch(self, epoch: int) -> dict:
        start, lr = time.perf_counter(), self.scheduler.get_last_lr()[0]
        train_loss, train_error, images = self._train_epoch(epoch)
        train_seconds = time.perf_counter() - start
        self.scheduler.step()
        try:
            test = evaluate(
                self.model,
                self.data.test,
                batch_size=self.config.batch_size,
                workers=self.config.workers,
                progress=self.progress,
                accelerator=self.accelerator,
            )
        except FloatingPointError as error:
            raise _diverged(epoch, f"after epoch {epoch} {error}") from None
        return {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_error": train_error,
            "test_loss": test.loss,
            "test_error": test.top1_error,
            "test_top5_error": test.top5_error,
            "lr": lr,
            "seconds": time.perf_counter() - start,
            "images_per_second": images / train_seconds,
        }

    def _train_epoch(self, epoch: int) -> tuple[float, float, int]:
        """One pass over the training pictures: mean loss, error in percent, how many pictures."""
        self.model.train()
        losses, errors, images = [], [], 0
        quiet = None if self.progress and self.accelerator.is_main_process else True
        description = f"epoch {epoch}/{self.config.epochs}"
        total = min(len(self.data.train), len(self.loader) * self.config.batch_size)
        with tqdm(total=total, desc=description, unit="img", leave=False, disable=quiet) as bar:
            for step, (inputs, labels) in enumerate(self.loader, start=1):
                logits = self.model(inputs)
                loss = self.criterion(logits, labels)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
                losses.append(loss.detach())
                errors.append((logits.argmax(1) != labels).float().mean())
                images += len(labels) * self.accelerator.num_processes
                bar.update(len(labels) * self.accelerator.num_processes)
                if step % CHECK_EVERY == 0 or step == len(self.loader):
                    bar.set_postfix(loss=f"{self._checked(losses, epoch)[-1]:.3f}")
        loss, error = self._checked(losses, epoch).mean(), self._over_processes(errors).mean()
        return loss.item(), 100 * error.item(), images

    def _checked(self, losses: list[Tensor], epoch: int) -> Tensor:
        """The losses of the epoch's steps; FloatingPointError, in all processes together, if one is not finite."""
        values = self._over_processes(losses)
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            step = int(bad[0]) + 1
            loss = values[step - 1].item()
            raise _diverged(epoch, f"the loss became {loss} in epoch {epoch}, step {step} of {len(self.loader)}")
        return values

    def _over_processes(self, values: list[Tensor]) -> Tensor:
        return self.accelerator.gather(torch.stack(values)[None]).mean(0)

    def _save(self, run: Run, metrics: dict, names: Iterable[str]) -> None:
        for name in names:
            save_checkpoint(
                run.checkpoint_path(name),
                self.accelerator.unwrap_model(self.model),
                name=self.config.model,
                classes=self.data.classes,
                preprocessing=self.data.preprocessing,
                info={key: metrics[key] for key in RESULT} | {"config": self.config.identity()},
            )

    def _report(self, run: Run, metrics: dict, writer: SummaryWriter) -> None:
        with open(run.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        for name, value in metrics.items():
            writer.add_scalar(name, value, metrics["epoch"])
        writer.flush()
        print(
            f"{self.config.model} epoch {metrics['epoch']}/{self.config.epochs}: "
            f"train loss {metrics['train_loss']:.3f} error {metrics['train_error']:.2f} %, "
            f"test loss {metrics['test_loss']:.3f} error {metrics['test_error']:.2f} %, "
            f"{metrics['seconds']:.1f} s, {metrics['images_per_second']:.0f} img/s",
            flush=True,
        )

    def _summary(self, run: Run, best: dict) -> dict:
        seconds = sum(metrics["seconds"] for metrics in run.history)
        return {
            "model": self.config.model,
            "data": self.config.data,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "best": {key: best[key] for key in RESULT},
            "last": {key: run.history[-1][key] for key in RESULT},
            "seconds": seconds,
            "images_per_second": sum(metrics["images_per_second"] for metrics in run.history) / len(run.history),
            "provenance": provenance(),
        }


def smoothed_cross_entropy(smoothing: float, classes: int) -> nn.CrossEntropyLoss:
    """Cross-entropy with the authors' label smoothing: `smoothing` / (classes - 1) on each wrong class.

    torch spreads its own over all classes, the right one included, so it needs a little more to be the same.
    """
    return nn.CrossEntropyLoss(label_smoothing=smoothing * classes / (classes - 1))


def _accelerator(config: TrainConfig) -> Accelerator:
    # The state is one for the whole process: without this, a notebook could train in one precision only.
    AcceleratorState._reset_state()
    # With split batches, batch_size is that of a step, whatever the number of processes.
    loading = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True, data_seed=config.seed)
    accelerator = make_accelerator(mixed_precision=config.mixed_precision, dataloader_config=loading)
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision fp16 needs a GPU, and this machine offers none; bf16 and no work on a CPU")
    if config.batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size must be a multiple of the {accelerator.num_processes} processes, got {config.batch_size}"
        )
    return accelerator


def _train_loader(config: TrainConfig, data: DataBundle) -> DataLoader:
    return DataLoader(
        data.train,
        config.batch_size,
        shuffle=True,
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
        drop_last=len(data.train) > config.batch_size,  # batch norm suffers from a last batch of a few pictures
    )


def _diverged(epoch: int, what: str) -> FloatingPointError:
    kept = f"last.safetensors holds epoch {epoch - 1}" if epoch > 1 else "no weights were saved"
    return FloatingPointError(f"{what}; {kept}. A lower lr or some warmup_epochs may help.")


def _describe(result: dict) -> str:
    return f"test error {result['test_error']:.2f} % (epoch {result['epoch']})"
