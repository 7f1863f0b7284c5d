"""Time and memory that kernel attention costs, beside the plain model and beside its peers: `kaconv bench`.

All variants of a model are measured in turn, round after round, so that a slow spell of the machine meets all of them.
A ratio is taken within a round, against the plain model of the same round; its median over the rounds is reported.
"""

import gc
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate, product
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm

from kaconv.bench.peers import PEERS, create_peer, peer_name
from kaconv.bench.roofline import LayerCost, Peaks, floor_seconds, layer_costs, measure_peaks, synchronise, timed
from kaconv.models import create_model, list_models
from kaconv.models.complexity import Complexity, complexity
from kaconv.models.optimize import optimize_for_inference
from kaconv.ops import use_backend
from kaconv.ops.cpu_taps import release_scratch
from kaconv.utils.provenance import provenance

MODELS = ("ka_resnet50_l", "ka_resnext50_32x4d_l", "ka_mobilenetv2_100_l")
MODES = ("inference", "training")
BACKENDS = ("reference", "eager", "fused")
COMPILED = ("plain-compiled", "fused-compiled")  # by torch.compile
OPTIMIZED = ("plain-optimized", "fused-optimized")  # by `optimize_for_inference`
BASES = {"fused-compiled": "plain-compiled", "fused-optimized": "plain-optimized"}  # the others' is "plain"
VARIANTS = ("plain", *BACKENDS, *COMPILED, *OPTIMIZED, *PEERS)
DEFAULT_VARIANTS = ("plain", *BACKENDS, *PEERS)  # compiling takes minutes on a CPU
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH_SIZES = {"cpu": 4, "cuda": 256}
ROUNDS = 7
WARM_UP_STEPS = 2
MIN_SECONDS = 0.1  # a shorter step is repeated within a round until it takes as long
LR = 1e-4  # small: random labels must not drive the weights to infinity
CLASSES = 1000


class Measurement(TypedDict):
    """Time and memory of one variant, in inference or in a training step.

    - ms: for each round, the time of a step; median_ms
    - ratios: for each round, to the plain model (None without one), or to the one in `BASES`; ratio: their median;
      ratio_quartiles
    - compile_seconds: of a compiled variant's first step, which compiles it; None for the others
    - steps: taken in a row in each round
    - peak_bytes: see `peak_bytes`
    - floor_ms: see `kaconv.bench.roofline`; None for peers
    """

    ms: list[float]
    median_ms: float
    ratios: list[float] | None
    ratio: float | None
    ratio_quartiles: list[float] | None
    compile_seconds: float | None
    steps: int
    peak_bytes: int
    floor_ms: float | None


class BenchmarkRow(TypedDict):
    """One variant of a model under measurement.

    - model, plain: names; name: of what was built
    - macs: for one image
    - error: why something is missing, or None
    - inference, training: None where it could not be measured
    """

    model: str
    plain: str
    variant: str
    name: str
    batch_size: int
    image_size: int
    params: int | None
    macs: int | None
    error: str | None
    inference: Measurement | None
    training: Measurement | None


RESULT_KEYS = {"settings", "peaks", "rows", "log", "provenance"}


@dataclass(frozen=True)
class Settings:
    """Settings that all measurements of a run share; `device` is "cpu" or "cuda", sizes are in images and pixels."""

    device: str
    dtype: str
    batch_size: int
    image_size: int
    channels_last: bool
    rounds: int
    threads: int


def run_benchmark(
    models: Sequence[str] = MODELS,
    variants: Sequence[str] = DEFAULT_VARIANTS,
    *,
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int | None = None,
    image_size: int = 224,
    channels_last: bool = False,
    rounds: int = ROUNDS,
    threads: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure KAConv models, their plain twins and their peers, inference and training step.

    A training step is forward pass, cross entropy, backward pass and a step of SGD with momentum, on one batch of
    random images. bfloat16 means autocast over float32 weights.

    Args:
        models: names of `kaconv.list_models("ka_*")`.
        variants: some of `VARIANTS`; "plain" is always measured, what is in `BASES` along with what it is for. A peer
            that a model has no form of is left out. Optimized models are measured at inference alone.
        device: "cpu" or "cuda"; None: CUDA where there is one.
        batch_size: None: 4 on the CPU, 256 on CUDA.
        threads: of torch, on the CPU; None: as many as it has.

    Returns:
        A JSON-able dict: settings; peaks (flops and bandwidth of this machine, per second); log (lines that kaconv
        logged); provenance; and rows, each a `BenchmarkRow`.

    Raises:
        ValueError: for an unknown model, variant, device or dtype, or a number out of range.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if batch_size is None:
        batch_size = BATCH_SIZES.get(device, 1)
    threads = torch.get_num_threads() if threads is None else threads
    settings = Settings(device, dtype, batch_size, image_size, channels_last, rounds, threads)
    _check(models, variants, settings)
    plan = {model: [variant for variant in VARIANTS if _exists(variant, model, variants)] for model in models}
    total = sum(map(len, plan.values())) * len(MODES) * (1 + rounds)
    log = _Log()
    with _set_up(settings), log.listening():
        peaks = measure_peaks(torch.device(device), DTYPES[dtype])
        rows = []
        with tqdm(total=total, unit="step", disable=None if progress else True, leave=False) as bar:
            for model, chosen in plan.items():
                subjects = _compare(model, chosen, settings, bar)
                rows += [_row(subject, _base_of(subject, subjects), peaks) for subject in subjects]
        origin = provenance()
    origin["versions"]["timm"] = _timm_version()
    return {"settings": asdict(settings), "peaks": asdict(peaks), "rows": rows, "log": log.lines, "provenance": origin}


def _exists(variant: str, model: str, wanted: Sequence[str]) -> bool:
    if variant == "plain" or variant in (BASES.get(name) for name in wanted):
        return True
    return variant in wanted and (variant not in PEERS or peer_name(variant, plain_twin(model)) is not None)


def _check(models: Sequence[str], variants: Sequence[str], settings: Settings) -> None:
    kaconv_models = list_models("ka_*")
    for name in models:
        with torch.device("meta"):
            create_model(name)  # says what a misspelt name may mean
        if name not in kaconv_models:
            raise ValueError(f"{name} is a plain model, which is measured along with its KAConv form; try ka_{name}_l")
    for what, value, allowed in (
        *(("variant", variant, VARIANTS) for variant in variants),
        ("device", settings.device, tuple(BATCH_SIZES)),
        ("dtype", settings.dtype, tuple(DTYPES)),
    ):
        if value not in allowed:
            raise ValueError(f"unknown {what} {value!r}; choose from {', '.join(allowed)}")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda is not available on this machine; choose cpu")
    for name in ("batch_size", "image_size", "rounds", "threads"):
        value = getattr(settings, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


@contextmanager
def _set_up(settings: Settings) -> Iterator[None]:
    """torch as the settings want it, its random numbers kept, and all of it back afterwards."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = True  # for all variants: each convolution takes its quickest algorithm
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = cudnn


class _Log(logging.Handler):
    """What kaconv logs during a run, such as that a kernel does not apply: it belongs to the result."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if (line := record.getMessage()) not in self.lines:
            self.lines.append(line)

    @contextmanager
    def listening(self) -> Iterator[None]:
        logger = logging.getLogger("kaconv")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)


class _Subject:
    """One variant of a model under measurement. What fails is measured no further, and its reason kept."""

    def __init__(self, model: str, variant: str, settings: Settings) -> None:
        self.model, self.variant, self.settings = model, variant, settings
        self.plain = plain_twin(model)
        self.device = torch.device(settings.device)
        self.module: nn.Module | None = None
        self.compile_seconds: dict[str, float] = {}
        self.cost: Complexity | None = None
        self.layers: list[LayerCost] = []
        self.errors: dict[str, str] = {}
        self.times: dict[str, list[float]] = {mode: [] for mode in MODES}
        self.steps: dict[str, int] = {}
        self.peaks: dict[str, int] = {}

    @property
    def name(self) -> str:
        if self.variant in PEERS:
            return peer_name(self.variant, self.plain) or self.variant
        return self.plain if self.variant == "plain" or self.variant in BASES.values() else self.model

    @property
    def _built(self) -> nn.Module:
        assert self.module is not None  # `measures` is asked first
        return self.module

    def measures(self, mode: str) -> bool:
        return not {"build", mode} & self.errors.keys()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A block that may fail: another variant can still be measured."""
        try:
            yield
        except Exception as error:  # whatever it is, it is a result
            self.errors[what] = _reason(error)
            self._drop_leftovers()

    def _drop_leftovers(self) -> None:
        """Free what a failed step had come to, for the variants after this one."""
        if self.module is not None:
            self.module.zero_grad()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def build(self) -> None:
        """Count the cost; make the model, its optimizer and its batch."""
        settings = self.settings
        with torch.device("meta"):
            self.cost = complexity(self._create(), settings.image_size)
        if self.variant not in PEERS:
            self.layers = layer_costs(self.name, settings.batch_size, settings.image_size, DTYPES[settings.dtype])
        torch.manual_seed(0)
        memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.module = self._create().to(self.device).to(memory_format=memory_format)
        if self.variant in COMPILED:
            torch.compiler.reset()  # the limit on recompiled frames is one for all models of a kind
            self.module.compile(fullgraph=True)
        if self.variant in OPTIMIZED:
            self.module = optimize_for_inference(self.module)
            self.errors["training"] = "an optimized model does not train"
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=LR, momentum=0.9)
        x = torch.randn(settings.batch_size, 3, settings.image_size, settings.image_size)
        self.x = x.to(self.device, memory_format=memory_format)
        self.y = torch.arange(settings.batch_size, device=self.device) % CLASSES

    def _create(self) -> nn.Module:
        return create_peer(self.variant, self.plain, CLASSES) if self.variant in PEERS else create_model(self.name)

    def prepare(self, mode: str) -> None:
        """Warm up, measure memory, and choose how many steps make a round."""
        with self._mode(mode):
            if self.variant in COMPILED:
                self.compile_seconds[mode] = timed(lambda: self._step(mode), self.device)
            for _ in range(WARM_UP_STEPS):
                seconds = timed(lambda: self._step(mode), self.device)
            release_scratch()  # a buffer that outlives the step counts, too
            self.peaks[mode] = peak_bytes(lambda: self._step(mode), self.device)
        self.steps[mode] = max(1, math.ceil(MIN_SECONDS / seconds))

    def measure(self, mode: str) -> None:
        """One round: the mean time of a step."""
        with self._mode(mode), _no_gc():
            self.times[mode].append(timed(lambda: self._step(mode), self.device, self.steps[mode]))

    @contextmanager
    def _mode(self, mode: str) -> Iterator[None]:
        self._built.train(mode == "training")
        backend = use_backend(self.variant) if self.variant in BACKENDS else nullcontext()
        with backend, torch.inference_mode(mode == "inference"):
            yield

    def _step(self, mode: str) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.dtype == "bfloat16"):
            logits = self._built(self.x)
            if mode == "inference":
                return
            loss = F.cross_entropy(logits, self.y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()  # here, so that each step begins with the same memory


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in lines[0]:
        return "out of memory"
    known = isinstance(error, RuntimeError | ValueError | ModuleNotFoundError)
    return lines[0] if known else f"{type(error).__name__}: {lines[0]}"


def _compare(model: str, variants: Sequence[str], settings: Settings, bar: tqdm) -> list[_Subject]:
    """Measure the variants of one model in turn."""
    subjects = [_Subject(model, variant, settings) for variant in variants]
    for subject in subjects:
        bar.set_description(f"{model}: {subject.variant} warms up")
        with subject.attempt("build"):
            subject.build()
        for mode in MODES:
            if subject.measures(mode):
                with subject.attempt(mode):
                    subject.prepare(mode)
            bar.update()
    for i in range(settings.rounds):
        bar.set_description(f"{model}: round {i + 1} of {settings.rounds}")
        gc.collect()  # it is off while a step is timed
        start = i % len(subjects)  # nobody is always first
        for mode, subject in product(MODES, subjects[start:] + subjects[:start]):
            if subject.measures(mode):
                with subject.attempt(mode):
                    subject.measure(mode)
            bar.update()
    return subjects


def _base_of(subject: _Subject, subjects: Sequence[_Subject]) -> _Subject:
    """What a variant's times are divided by."""
    base = BASES.get(subject.variant, "plain")
    return next(each for each in subjects if each.variant == base)


def _row(subject: _Subject, plain: _Subject, peaks: Peaks) -> BenchmarkRow:
    settings, cost = subject.settings, subject.cost
    floors = floor_seconds(subject.layers, peaks) if subject.layers else dict.fromkeys(MODES)
    return {
        "model": subject.model,
        "plain": subject.plain,
        "variant": subject.variant,
        "name": subject.name,
        "batch_size": settings.batch_size,
        "image_size": settings.image_size,
        "params": cost.params if cost else None,
        "macs": cost.macs if cost else None,
        "error": "; ".join(f"{why} ({what})" for what, why in subject.errors.items()) or None,
        "inference": _measurement(subject, plain, "inference", floors["inference"]),
        "training": _measurement(subject, plain, "training", floors["training"]),
    }


def _measurement(subject: _Subject, plain: _Subject, mode: str, floor: float | None) -> Measurement | None:
    if not subject.measures(mode):
        return None
    times = subject.times[mode]
    ratios = [a / b for a, b in zip(times, plain.times[mode], strict=True)] if plain.measures(mode) else None
    return {
        "ms": [1000 * seconds for seconds in times],
        "median_ms": 1000 * float(np.median(times)),
        "ratios": ratios,
        "ratio": float(np.median(ratios)) if ratios else None,
        "ratio_quartiles": np.percentile(ratios, (25, 75)).tolist() if ratios else None,
        "compile_seconds": subject.compile_seconds.get(mode),
        "steps": subject.steps[mode],
        "peak_bytes": subject.peaks[mode],
        "floor_ms": None if floor is None else 1000 * floor,
    }


@contextmanager
def _no_gc() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The most that torch has allocated during `step` beyond what is allocated before it.

    What lives before and after, weights, optimizer state and the batch, does not count; activations, gradients and
    scratch tensors do, also those of a kernel's library where they come from torch's allocator (CUDA's do, oneDNN's do
    not). On the CPU these are the bytes asked for, a sum over the profiler's allocations and frees in their order, and
    so the same in every run; on CUDA the caching allocator's blocks, rounded up to 512 bytes.
    """
    with _no_gc():
        if device.type == "cuda":
            synchronise(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            step()
            return torch.cuda.max_memory_allocated(device) - before
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler writes lines of its own to the terminal
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
            # Allocations alone: a record of millions of operations would take minutes to come back.
            torch.autograd._enable_record_function(False)
            try:
                step()
            finally:
                torch.autograd._enable_record_function(True)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0))


def plain_twin(model: str) -> str:
    """The name of the plain model that a KAConv model is made from."""
    return model.removeprefix("ka_").removesuffix("_l").removesuffix("_h")


def _timm_version() -> str | None:
    try:
        return version("timm")
    except PackageNotFoundError:
        return None


def format_benchmark(result: dict[str, Any]) -> str:
    """A result as text: for each model a table of inference and one of training steps, then what the columns mean."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["model"] == model]
        for mode in MODES:
            lines += _format_mode(rows, mode)
    peaks = result["peaks"]
    lines += [
        describe_machine(result),
        f"ms: median of {result['settings']['rounds']} rounds, in each of which all variants took their turn.",
        "× plain: median of the ratios to the plain model in the same round; in brackets their quartiles.",
        "  Of a compiled or optimized KAConv model, to the plain model in the same form.",
        "compile: how long a compiled model's first step takes, which compiles it.",
        "× floor: times the least that the convolutions need to move or compute, at the rates measured in this run:",
        f"  {peaks['flops'] / 1e9:,.0f} GFLOP/s in a matrix product or convolution, "
        f"{peaks['bandwidth'] / 1e9:,.1f} GB/s in a copy.",
        "MiB: the most memory that a step takes beyond weights, optimizer state and batch (gradients count).",
        "extra: MiB beyond the plain model's.",
    ]
    return "\n".join([*lines, *(f"Note: {line}" for line in result["log"])])


def describe_machine(result: dict[str, Any]) -> str:
    """The machine and the dtype of a measured result, in a line."""
    settings, origin = result["settings"], result["provenance"]
    machine = origin["machine"]
    where = machine["gpu"] if settings["device"] == "cuda" else f"{machine['cpu']}, torch threads: {machine['threads']}"
    layout = ", channels_last" if settings["channels_last"] else ""
    return f"{where}; {settings['dtype']}{layout}; torch {origin['versions']['torch']}"


def _format_mode(rows: list[dict[str, Any]], mode: str) -> list[str]:
    sizes = f"batch {rows[0]['batch_size']}, {rows[0]['image_size']}×{rows[0]['image_size']} pixels"
    header = [{"inference": "Inference", "training": "Training step"}[mode] + f", {sizes}"]
    header += ["params", "mult.-adds", "ms", "× plain", "", "× floor", "MiB", "extra", "compile"]
    plain = rows[0][mode]
    body = [[_label(row), *_figures(row, row[mode], plain)] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(header, *body, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place in (0, 5) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in (header, *body)
    ]
    rule = "-" * len(lines[0])
    for i, row in enumerate(rows, start=1):
        if row[mode] is None:
            lines[i] = f"{body[i - 1][0].ljust(widths[0])}  not measured: {row['error']}"
    return [lines[0], rule, *(line.rstrip() for line in lines[1:]), ""]


def _label(row: dict[str, Any]) -> str:
    return f"{row['name']}, {row['variant']}" if row["variant"] not in ("plain", *PEERS) else row["name"]


def _figures(row: dict[str, Any], measured: dict[str, Any] | None, plain: dict[str, Any] | None) -> list[str]:
    if measured is None:
        return [""] * 9
    ratio, quartiles, floor = measured["ratio"], measured["ratio_quartiles"], measured["floor_ms"]
    is_plain, compile_seconds = row["variant"] == "plain", measured.get("compile_seconds")
    extra = None if is_plain or plain is None else measured["peak_bytes"] - plain["peak_bytes"]
    return [
        f"{row['params'] / 1e6:.2f}M",
        f"{row['macs'] / 1e9:.2f}G" if row["macs"] >= 1e9 else f"{row['macs'] / 1e6:.1f}M",
        f"{measured['median_ms']:,.{1 if measured['median_ms'] < 1000 else 0}f}",
        "" if ratio is None else "1" if is_plain else f"{ratio:.2f}",
        "" if ratio is None or is_plain else "({:.2f}–{:.2f})".format(*quartiles),
        "" if floor is None else f"{measured['median_ms'] / floor:.1f}",
        f"{measured['peak_bytes'] / 2**20:.1f}",
        "" if extra is None else f"{extra / 2**20:+.1f}".replace("-", "−"),
        "" if compile_seconds is None else f"{compile_seconds:.0f} s",
    ]


def read_benchmark(path: str | Path) -> dict[str, Any]:
    """A result that `kaconv bench --out` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a result of `kaconv bench`: {error}") from error
    missing = RESULT_KEYS - (result.keys() if isinstance(result, dict) else set())
    if missing:
        raise ValueError(f"{path} is not a result of `kaconv bench`: it has no {', '.join(sorted(missing))}")
    return result
