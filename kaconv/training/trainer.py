"""The training loop."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, distributed, nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from kaconv.data.datasets import DataBundle, load_data
from kaconv.data.unreadable import UNREADABLE, BrokenPictures, tolerant
from kaconv.inference.evaluation import Evaluation, evaluate, make_accelerator
from kaconv.inference.fresh_statistics import with_fresh_statistics
from kaconv.layers import set_temperature, set_uniform_share
from kaconv.models.checkpoints import save_checkpoint
from kaconv.ops.sync_batch_norm import synchronise_batch_norm
from kaconv.training.batches import SeededPictures, StepBatches
from kaconv.training.config import TrainConfig
from kaconv.training.fine_tuning import freeze, keep_frozen_statistics, starting_model
from kaconv.training.run import (
    EPOCH,
    LOCK,
    METRICS,
    RESULT,
    SUMMARY,
    TENSORBOARD,
    Epoch,
    EpochResult,
    Run,
    WarmUp,
    check_numbers,
    clear_run,
    find_finished_run,
    holding,
    leftovers,
    tidy,
    write_config,
)
from kaconv.training.state import remove_states, save_state, take_up_newest_state
from kaconv.utils.files import write_json, write_text
from kaconv.utils.provenance import provenance
from kaconv.utils.seeds import mixed_seed

CHECK_EVERY = 50  # steps between looks at the loss: each makes the processor wait for the accelerator
AGREE_EVERY = 10  # steps between questions whether to save or to stop, where several processes have to agree
ATTENTION_SETTERS = {"uniform_share": set_uniform_share, "temperature": set_temperature}


def fit(config: TrainConfig, *, progress: bool = True, on_epoch: Callable[[Run], None] | None = None) -> Run:
    """Train a model into the folder `config.out`, or return the finished run of the same config that is there.

    An unfinished run of the same config goes on where its newest state was saved, and ends with the same weights as one
    that was never interrupted (bit for bit on a CPU). On SIGTERM it saves its state and leaves with exit status 143.
    "Best" is by test error, so it is a little optimistic; for an unbiased figure take the last epoch's.

    Args:
        progress: show bars (where somebody watches) beside the line that is printed after every epoch.
        on_epoch: called after every epoch, with the run as it is then.

    Raises:
        ValueError: for a bad config, a folder of another config or in use by another training, or data without a
            training split; nothing is written. For too many unreadable images.
        FileNotFoundError: for missing data or weights; nothing is written.
        FloatingPointError: if the loss is no longer finite. last.safetensors and best.safetensors stay as they were.
        OSError: if nothing more can be written; what was saved before stays.
    """
    config.validate()
    accelerator = _accelerator(config)
    if run := _find_finished_run(config, accelerator):
        return run
    with accelerator.local_main_process_first():  # one download for all
        data = load_data(config.data, config.data_root, config.image_size, val_fraction=config.val_fraction)
    if data.train is None:
        raise ValueError(f"data {config.data!r} has no train/ folder, so it is good for evaluation only")
    if len(data.classes) < 2:
        raise ValueError(f"data {config.data!r} has a single class ({data.classes[0]}); there is nothing to learn")
    set_seed(config.seed)
    model, notes = starting_model(config.model, len(data.classes), config.weights)
    notes += freeze(model, config.freeze)
    training = _Trainer(config, data, model, accelerator, progress)
    with _holding(Path(config.out), accelerator):
        # Until now, another training may have been at work there.
        if run := _find_finished_run(config, accelerator):
            return run
        for note in ([data.note] if data.note else []) + notes:
            accelerator.print(f"{config.out}: {note}", flush=True)
        return training.train(on_epoch or (lambda run: None))


def _find_finished_run(config: TrainConfig, accelerator: Accelerator) -> Run | None:
    run = find_finished_run(config)
    accelerator.wait_for_everyone()  # nobody writes before all have looked
    if run:
        accelerator.print(f"{run.folder}: already trained, with {_describe(run.summary['best'])}")
        if accelerator.is_main_process and (leftovers(run) or (run.folder / LOCK).exists()):
            with suppress(OSError), holding(run.folder) as held:  # they do no harm where they cannot be removed
                if held:
                    tidy(run)
    return run


@contextmanager
def _holding(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold a run's folder for the processes of this training; ValueError in all of them if another one does."""
    with holding(folder) if accelerator.is_main_process else nullcontext(True) as held:
        refused = torch.tensor([not held], dtype=torch.int32, device=accelerator.device)
        if accelerator.reduce(refused, "sum").item():
            raise ValueError(f"{folder} is in use by another training; wait for its end or choose another folder")
        yield


class _Trainer:
    """What one training holds: the data, the model and its optimiser, and the folder they report to."""

    def __init__(
        self, config: TrainConfig, data: DataBundle, model: nn.Module, accelerator: Accelerator, progress: bool
    ) -> None:
        self.config, self.data, self.accelerator, self.progress = config, data, accelerator, progress
        self.format = torch.channels_last if config.channels_last else torch.contiguous_format
        model = model.to(accelerator.device).to(memory_format=self.format)
        if config.sync_batch_norm:
            model = synchronise_batch_norm(model)
        optimizer = SGD(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=config.peak_lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov and config.momentum > 0,
        )
        self.ema = None
        if config.ema_decay:  # copied before `prepare`, which may change how the model is called
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.batches, self.loader = _train_loader(config, data, accelerator)
        self.criterion = smoothed_cross_entropy(config.label_smoothing, len(data.classes), reduction="sum")
        self.run = Run(Path(config.out), config)
        self.losses: list[Tensor] = []  # of the steps since somebody last looked
        self.totals = torch.zeros(3, dtype=torch.float64)  # of the epoch so far: loss, errors, images
        self.epoch_seconds = 0.0
        self.terminated = False
        self.last_saved = time.monotonic()

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes."""
        return self.accelerator.is_main_process

    @property
    def tested(self) -> nn.Module:
        """The model that is tested and kept."""
        return self.ema.module if self.ema else self.accelerator.unwrap_model(self.model)

    def train(self, on_epoch: Callable[[Run], None]) -> Run:
        """All epochs, or those that are left after the newest state, each reported as it ends; then the summary."""
        run = self.run
        if self.writes:
            tidy(run)
        position = take_up_newest_state(run.folder, self._restore)
        first_epoch, first_step = position or (1, 0)
        if self.writes:
            write_config(run)
            if position:
                _write_metrics(run)
                print(f"{run.folder}: going on with {self._describe_position(*position)}", flush=True)
            elif self.config.keep_epochs:
                self._save_weights({"epoch": 0}, (0,))
        with ExitStack() as stack:
            stack.enter_context(self._noting_sigterm())
            writer = stack.enter_context(closing(self._writer(first_epoch))) if self.writes and run.history else None
            for epoch in range(first_epoch, self.config.epochs + 1):
                metrics = self._epoch(epoch, first_step if epoch == first_epoch else 0)
                run.history.append(metrics)
                if self.writes and writer is None:  # until now, what an earlier run left was the best there is
                    clear_run(run)
                    writer = stack.enter_context(closing(self._writer(epoch)))
                if writer is not None:  # this is the process that writes
                    kept = (epoch,) if self.config.keep_epochs else ()
                    self._save_weights(metrics, (*kept, "last", *(("best",) if metrics is _best(run.history) else ())))
                    self._report(metrics, writer)
                self._save_state(epoch + 1, 0)
                self._leave_if_terminated(epoch + 1, 0)
                on_epoch(run)
        run.summary = self._summary()
        if self.writes:
            write_json(run.folder / SUMMARY, run.summary)
            remove_states(run.folder)
        self.accelerator.wait_for_everyone()  # the folder is complete for every process that reads it next
        return run

    def _writer(self, epoch: int) -> SummaryWriter:
        # What a crash made obsolete is hidden.
        return SummaryWriter(self.run.folder / TENSORBOARD, purge_step=epoch)

    # Epochs and steps ---------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int, first_step: int) -> Epoch:
        lr = self.config.peak_lr * self.config.lr_factor(epoch - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        images = self._train_epoch(epoch, first_step)
        train_seconds = self.epoch_seconds
        loss, errors, pictures = self._summed(self.totals).tolist()
        start = time.perf_counter()
        self._share_buffers()
        try:
            test = self._test(self.tested)
        except FloatingPointError as error:
            raise _diverged(epoch, f"after epoch {epoch} {error}") from None
        self.totals, self.epoch_seconds = torch.zeros_like(self.totals), 0.0
        return {
            "epoch": epoch,
            "train_loss": loss / pictures,
            "train_error": 100 * errors / pictures,
            "test_loss": test.loss,
            "test_error": test.top1_error,
            "test_top5_error": test.top5_error,
            "lr": lr,
            **self._attention_warmup(epoch),
            "seconds": train_seconds + time.perf_counter() - start,
            "images_per_second": images / train_seconds,
        }

    def _test(self, model: nn.Module) -> Evaluation:
        return evaluate(
            model,
            self.data.test,
            batch_size=self.config.batch_size,
            workers=self.config.workers,
            progress=self.progress,
            accelerator=self.accelerator,
            max_broken=self.config.max_broken,
        )

    def _train_epoch(self, epoch: int, first_step: int) -> int:
        """The steps of an epoch from `first_step` (counted from 0) on; returns the number of images of all steps."""
        self.model.train()
        keep_frozen_statistics(self.model)
        self.batches.epoch, self.batches.first_step = epoch, first_step
        broken = BrokenPictures(cast(Dataset, self.data.train), self.config.max_broken, f"in epoch {epoch}")
        step_size, images = self.batches.batch_size, self.batches.steps * self.batches.batch_size
        quiet = None if self.progress and self.writes else True
        description = f"epoch {epoch}/{self.config.epochs}"
        bar = tqdm(
            total=images, initial=first_step * step_size, desc=description, unit="img", leave=False, disable=quiet
        )
        start, before = time.perf_counter(), self.epoch_seconds
        with bar:
            batches = iter(self.loader)
            for step in range(first_step + 1, self.batches.steps + 1):
                self._step(epoch, step, batches, broken)
                self.epoch_seconds = before + time.perf_counter() - start
                bar.update(step_size)
                if len(self.losses) == CHECK_EVERY or step == self.batches.steps:
                    bar.set_postfix(loss=f"{self._check_losses(epoch, step):.3f}")
                if step < self.batches.steps:
                    self._save_or_leave(epoch, step)
        return images

    def _step(self, epoch: int, step: int, batches: Iterator, broken: BrokenPictures) -> None:
        loss_of_step = torch.zeros(())
        self._warm_up_attention(epoch, step)
        # Whatever else is random, such as dropout, follows from where the training stands: nothing has to be restored.
        torch.manual_seed(mixed_seed(self.config.seed, epoch, step, self.accelerator.process_index))
        for part in range(self.config.accumulation):
            images, labels, indices = next(batches)
            broken.note(labels, indices)
            images = images.to(self.accelerator.device, memory_format=self.format, non_blocking=True)
            labels = labels.to(self.accelerator.device, non_blocking=True)
            is_last = part == self.config.accumulation - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                logits = self.model(images)
                loss = self.criterion(logits.float(), labels)
                # The processes' gradients are averaged: together they are those of the mean over the step's images.
                self.accelerator.backward(loss * (self.accelerator.num_processes / self.batches.batch_size))
            loss = loss.detach()
            loss_of_step = loss_of_step + loss
            counted = labels != UNREADABLE
            errors = ((logits.argmax(1) != labels) & counted).sum()
            self.totals = self.totals.to(loss.device) + torch.stack([loss, errors, counted.sum()])
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update_parameters(self.accelerator.unwrap_model(self.model))
        self.losses.append(loss_of_step)

    def _warm_up_attention(self, epoch: int, step: int) -> None:
        """Set the attention's warm-up for a step; it follows from where the training stands: nothing is restored."""
        if self.config.attention_warmup_epochs:
            name, value = self.config.attention_warmup_value(epoch - 1 + (step - 1) / self.batches.steps)
            ATTENTION_SETTERS[name](self.accelerator.unwrap_model(self.model), value)

    def _attention_warmup(self, epoch: int) -> WarmUp:
        """For the report of an epoch: what the warm-up set in its first step; nothing without one."""
        if not self.config.attention_warmup_epochs:
            return {}
        name, value = self.config.attention_warmup_value(epoch - 1)
        return {"attention_temperature": value} if name == "temperature" else {"attention_uniform_share": value}

    def _check_losses(self, epoch: int, step: int) -> float:
        """The mean loss of an image in the step that ended; FloatingPointError, in all processes together, if one
        since the last look is not finite."""
        losses = self._summed(torch.stack(self.losses)) / self.batches.batch_size
        first, self.losses = step - len(self.losses) + 1, []
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            where = f"epoch {epoch}, step {first + int(bad[0])} of {self.batches.steps}"
            raise _diverged(epoch, f"the loss became {losses[bad[0]].item()} in {where}")
        return losses[-1].item()

    def _summed(self, values: Tensor) -> Tensor:
        """Over all processes."""
        return self.accelerator.reduce(values.to(self.accelerator.device), "sum")

    def _share_buffers(self) -> None:
        """Test everywhere what is saved: the main process's batch norm statistics."""
        if self.accelerator.num_processes > 1:
            for buffer in self.tested.buffers():
                distributed.broadcast(buffer, 0)

    # Going on after an interruption -------------------------------------------------------------------------------

    def _save_or_leave(self, epoch: int, step: int) -> None:
        """Between steps: save the state if it is time, or if the process was asked to end."""
        together = self.accelerator.num_processes > 1
        if together and step % AGREE_EVERY:
            return
        is_time = self.writes and time.monotonic() - self.last_saved >= 60 * self.config.save_minutes
        wishes = torch.tensor([is_time, self.terminated], dtype=torch.int32)
        save, leave = (self._summed(wishes) if together else wishes).tolist()
        self.terminated = bool(leave)
        if save or leave:
            if self.losses:
                self._check_losses(epoch, step)
            self._save_state(epoch, step)
            self._leave_if_terminated(epoch, step)

    def _save_state(self, epoch: int, step: int) -> None:
        """What `_restore` needs to go on with the step of an epoch that comes after `step`."""
        totals = self._summed(self.totals)
        self.last_saved = time.monotonic()
        if not self.writes:
            return
        state = {
            "epoch": epoch,
            "step": step,
            "history": json.dumps(self.run.history),
            "totals": totals.cpu(),
            "epoch_seconds": self.epoch_seconds,
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }
        save_state(self.run.folder, state)

    def _restore(self, state: dict) -> tuple[int, int]:
        """Take up a state; the epoch to go on with, and how many of its steps are done.

        It raises whatever the wrong state makes of torch; another one may be taken up after it.
        """
        epoch, step, history = state["epoch"], state["step"], json.loads(state["history"])
        # After the last epoch comes the summary.
        if epoch > self.config.epochs + 1 or step >= (self.batches.steps if epoch <= self.config.epochs else 1):
            raise ValueError(f"there is no epoch {epoch}, step {step + 1} in this training")
        if not isinstance(history, list) or len(history) != epoch - 1:
            raise ValueError("its history is not that of the epochs before")
        for metrics in history:
            check_numbers(metrics, EPOCH)
        if state["totals"].shape != self.totals.shape:
            raise ValueError(f"it has {len(state['totals'])} sums of the epoch in place of {len(self.totals)}")
        if self.ema and state.get("ema") is None:
            raise ValueError("it lacks ema, the averaged weights")
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():
            momentum = values.get("momentum_buffer")
            if momentum is not None and momentum.shape != parameter.shape:  # nobody else looks
                raise ValueError("its momentum is that of another model")
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.run.history = history
        if self.writes:  # the other processes' part of the sums is in it
            self.totals = state["totals"]
        self.epoch_seconds = state["epoch_seconds"]
        return epoch, step

    def _describe_position(self, epoch: int, step: int) -> str:
        return f"epoch {epoch}, step {step + 1}" if epoch <= self.config.epochs else "the summary"

    @contextmanager
    def _noting_sigterm(self) -> Iterator[None]:
        """SIGTERM is remembered until the step has ended."""

        def note(number: int, frame: object) -> None:
            self.terminated = True

        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _leave_if_terminated(self, epoch: int, step: int) -> None:
        if self.accelerator.num_processes > 1 and step == 0:
            self.terminated = bool(self._summed(torch.tensor([self.terminated], dtype=torch.int32)).item())
        if self.terminated and epoch <= self.config.epochs:
            self.accelerator.print(
                f"{self.run.folder}: SIGTERM; saved before epoch {epoch}, step {step + 1}; the same command goes on",
                flush=True,
            )
            raise SystemExit(128 + signal.SIGTERM)

    # Reports ------------------------------------------------------------------------------------------------------

    def _save_weights(self, metrics: Mapping[str, Any], which: Iterable[str | int]) -> None:
        for each in which:
            save_checkpoint(
                self.run.checkpoint_path(each),
                self.tested,
                name=self.config.model,
                classes=self.data.classes,
                preprocessing=self.data.preprocessing,
                info={key: metrics[key] for key in RESULT if key in metrics} | {"config": self.config.identity()},
            )

    def _report(self, metrics: Mapping[str, Any], writer: SummaryWriter) -> None:
        _write_metrics(self.run)
        for name, value in metrics.items():
            if value is not None:
                writer.add_scalar(name, value, metrics["epoch"])
        writer.flush()
        print(self.run.describe_epoch(-1), flush=True)

    def _summary(self) -> dict:
        history = self.run.history
        best, last = _result(_best(history)), _result(history[-1])
        if self.config.fresh_statistics:
            last["test_error_fresh_statistics"] = self._fresh_error()
        return {
            "model": self.config.model,
            "data": self.config.data,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "best": best,
            "last": last,
            "seconds": sum(metrics["seconds"] for metrics in history),
            "images_per_second": sum(metrics["images_per_second"] for metrics in history) / len(history),
            "provenance": provenance(),
        }

    def _fresh_error(self) -> float:
        """The last epoch's test error with fresh batch norm statistics."""
        config = self.config
        model = with_fresh_statistics(
            self.tested, self.data, batch_size=config.batch_size, seed=config.seed, workers=config.workers
        )
        return self._test(model).top1_error


def _best(history: list[Epoch]) -> Epoch:
    return min(history, key=lambda metrics: metrics["test_error"])  # the first of equals


def _result(epoch: Epoch) -> EpochResult:
    return {
        "epoch": epoch["epoch"],
        "test_error": epoch["test_error"],
        "test_top5_error": epoch["test_top5_error"],
    }


def _write_metrics(run: Run) -> None:
    """Rewrite all of it in one step: nothing is there twice after a crash."""
    write_text(run.folder / METRICS, "".join(json.dumps(metrics) + "\n" for metrics in run.history))


def smoothed_cross_entropy(smoothing: float, classes: int, reduction: str = "mean") -> nn.CrossEntropyLoss:
    """Cross-entropy with the authors' label smoothing: `smoothing` / (classes - 1) on each wrong class.

    torch spreads its own over all classes, the right one included, so it needs a little more to be the same.
    """
    spread = smoothing * classes / (classes - 1)
    return nn.CrossEntropyLoss(ignore_index=UNREADABLE, label_smoothing=spread, reduction=reduction)


def _accelerator(config: TrainConfig) -> Accelerator:
    # The state is one for the whole process: without this, a notebook could train in one precision only.
    AcceleratorState._reset_state()
    accelerator = make_accelerator(mixed_precision=config.mixed_precision)
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision fp16 needs a GPU, and this machine offers none; bf16 and no work on a CPU")
    parts = accelerator.num_processes * config.accumulation
    if config.batch_size % parts or config.batch_size < 2 * parts:
        raise ValueError(
            f"batch_size must be a multiple of processes x accumulation ({accelerator.num_processes} x "
            f"{config.accumulation}), with 2 images for each part at least; got {config.batch_size}"
        )
    return accelerator


def _train_loader(config: TrainConfig, data: DataBundle, accelerator: Accelerator) -> tuple[StepBatches, DataLoader]:
    processes = accelerator.num_processes
    train = cast(Any, data.train)  # there is one, and it has a length
    if len(train) < 2 * processes * config.accumulation:
        raise ValueError(
            f"data {config.data!r} has {len(train)} training images, too few for {processes} processes with "
            f"accumulation {config.accumulation}"
        )
    batches = StepBatches(
        len(train),
        config.batch_size,
        config.seed,
        accumulation=config.accumulation,
        processes=processes,
        rank=accelerator.process_index,
    )
    loader = DataLoader(
        SeededPictures(tolerant(train), config.seed),
        batch_sampler=batches,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        pin_memory=accelerator.device.type == "cuda",
    )
    return batches, loader


def _diverged(epoch: int, what: str) -> FloatingPointError:
    kept = f"last.safetensors holds epoch {epoch - 1}" if epoch > 1 else "no weights were saved"
    return FloatingPointError(f"{what}; {kept}. A lower lr or some warmup_epochs may help.")


def _describe(result: dict) -> str:
    return f"test error {result['test_error']:.2f} % (epoch {result['epoch']})"
