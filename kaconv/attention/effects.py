"""Effects of interventions on the attention on a trained model's decisions, each on the same images.

An effect is a paired difference: the model under an intervention against the untouched model, image by image. It
says how much this model, trained with its attention, relies on it; not what a model trained without it would do.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict, TypeVar, cast

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from kaconv.attention.capture import AttentionCapture
from kaconv.attention.hooks import kaconv_layers
from kaconv.attention.interventions import (
    FROZEN,
    SHUFFLED,
    UNIFORM,
    Intervention,
    frozen,
    intervene,
    removed,
    shuffled,
    uniform,
)
from kaconv.attention.record import AttentionRecord
from kaconv.attention.statistics import AttentionStatistics
from kaconv.inference.evaluation import evaluate
from kaconv.utils.intervals import paired_interval, t_interval, wilson_interval
from kaconv.utils.modes import evaluating

ALL_LAYERS = "all layers"
SAME_CLASS, OTHER_CLASS = "from the same class", "from another class"
MEASURES = ("error_change", "log_probability_change", "changed", "donors_class")
_NAMES = ("model", "intervention", "reference", "layer")  # what rows of several seeds have in common

# Makes the intervention for a batch from the attention, with labels, that the untouched model gives the batch.
InterventionMaker = Callable[[AttentionRecord], Intervention]
Row = dict[str, Any]
Interval = tuple[float, float]
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Outcome:
    """A model's decisions on some images; outcomes of one measurement have the images in the same order.

    Args:
        labels: true classes (N,).
        predictions: predicted classes (N,).
        log_probabilities: natural logarithm of the true class's probability (N,).
        donor_labels: under a `Transplant`, the classes of those whose maps the images took (N,).
    """

    labels: np.ndarray
    predictions: np.ndarray
    log_probabilities: np.ndarray
    donor_labels: np.ndarray | None = None

    @property
    def wrong(self) -> np.ndarray:
        """True where the prediction is wrong (N,)."""
        return self.predictions != self.labels


class OutcomeChange(TypedDict):
    """Change from one outcome to another of the same images; intervals are of 95 %, over the drawing of the images.

    - pictures: the number of images
    - became_wrong, became_right: how many of them
    - error_change: percentage points, positive for more errors; the interval is Agresti and Min's
    - log_probability_change: mean change of the true class's, natural logarithm, negative for the worse; the interval
      is Student's, None for a single image
    - changed: predictions that are others, percent; the interval is Wilson's
    - donors_class: where maps come from images of other classes, decisions for the donor's class, percent; the interval
      is Wilson's
    """

    pictures: int
    became_wrong: int
    became_right: int
    error_change: float
    error_change_interval: Interval
    log_probability_change: float
    log_probability_change_interval: Interval | None
    changed: float
    changed_interval: Interval
    donors_class: NotRequired[float]
    donors_class_interval: NotRequired[Interval]


class EffectRow(OutcomeChange):
    """Effect of an intervention in a layer, against the untouched model or against `reference`.

    Model and seed are added by who compares several.
    """

    intervention: str
    reference: NotRequired[str]
    layer: str
    model: NotRequired[str]
    seed: NotRequired[int]


class PooledEffectRow(TypedDict):
    """Effects of an intervention in a layer in several trainings of a model, as one.

    Of each of `MEASURES` (see `OutcomeChange`):

    - its mean over seeds, under its own name
    - `{measure}_interval`: 95 % of the mean, Student's over seeds, or for a single seed that over images
    - `{measure}_values`, `{measure}_intervals`: those of the single seeds, the latter over images
    """

    model: NotRequired[str]
    intervention: str
    reference: NotRequired[str]
    layer: str
    seeds: list[int]
    error_change: float
    error_change_interval: Interval
    error_change_values: list[float]
    error_change_intervals: list[Interval]
    log_probability_change: float
    log_probability_change_interval: Interval | None
    log_probability_change_values: list[float]
    log_probability_change_intervals: list[Interval | None]
    changed: float
    changed_interval: Interval
    changed_values: list[float]
    changed_intervals: list[Interval]
    donors_class: NotRequired[float]
    donors_class_interval: NotRequired[Interval]
    donors_class_values: NotRequired[list[float]]
    donors_class_intervals: NotRequired[list[Interval]]


class RemovalRow(OutcomeChange):
    """Effect of removing one kernel position of a layer; `attention` is what it had, a mean over channels, too."""

    layer: str
    row: int
    column: int
    attention: float
    model: NotRequired[str]
    seed: NotRequired[int]


class CorrelationRow(TypedDict):
    """Rank correlation over a layer's positions between the attention and the cost of removal.

    - correlation_values: one per seed; NaN where all positions are alike
    - correlation: their mean; the interval is of 95 %, Student's over seeds, None for a single one
    """

    model: str
    layer: str
    seeds: list[int]
    correlation_values: list[float]
    correlation: float
    correlation_interval: Interval | None


@dataclass(frozen=True)
class Effects:
    """The outcomes of a model, untouched and by (intervention, layer), where the layer may be `ALL_LAYERS`."""

    untouched: Outcome
    outcomes: dict[tuple[str, str], Outcome]

    def rows(self) -> list[EffectRow]:
        """A row for each intervention and layer, against the untouched model."""
        return [
            {"intervention": intervention, "layer": layer, **compare_outcomes(outcome, self.untouched)}
            for (intervention, layer), outcome in self.outcomes.items()
        ]

    def contrast(self, intervention: str, reference: str) -> list[EffectRow]:
        """As `rows`, but of one intervention against another in place of the untouched model.

        Raises:
            ValueError: for the name of an intervention that was not measured.
        """
        names = list(dict.fromkeys(name for name, _ in self.outcomes))
        for name in (intervention, reference):
            if name not in names:
                raise ValueError(f"the intervention {name!r} was not measured; there are {', '.join(names)}")
        return [
            {
                "intervention": intervention,
                "reference": reference,
                "layer": layer,
                **compare_outcomes(outcome, self.outcomes[reference, layer]),
            }
            for (name, layer), outcome in self.outcomes.items()
            if name == intervention
        ]


@dataclass(frozen=True)
class Transplant:
    """An intervention: each image takes the maps that another one has in the untouched model, in all layers alike.

    Args:
        batch: what the untouched model gives the batch.
        donors: for each image its donor's place in the batch (N,).
    """

    batch: AttentionRecord
    donors: np.ndarray

    def __call__(self, layer: str, attention: Tensor) -> Tensor:
        """The donors' maps, in place of `attention`."""
        return torch.as_tensor(self.batch.attention[layer][self.donors]).flatten(1, 2).to(attention)


def usual_interventions(means: AttentionRecord | AttentionStatistics, seed: int = 0) -> dict[str, InterventionMaker]:
    """The interventions to compare.

    Frozen to its mean, the attention keeps each channel's preferences and loses sight of the image; uniform, it has
    no preferences either. Shuffled, each layer takes the maps of any other image of the batch. A transplant takes
    them, for all layers, from one image of the same class, or of another.

    Args:
        means: what has a `mean(layer)`; of training images, not of those that effects are measured on.
        seed: of the donors.
    """
    return {
        FROZEN: lambda batch: frozen(means),
        UNIFORM: lambda batch: uniform(),
        SHUFFLED: lambda batch: shuffled(seed),
        SAME_CLASS: lambda batch: Transplant(batch, draw_donors(_labels(batch), same_class=True, seed=seed)),
        OTHER_CLASS: lambda batch: Transplant(batch, draw_donors(_labels(batch), same_class=False, seed=seed)),
    }


def draw_donors(labels: Sequence[int] | np.ndarray, *, same_class: bool, seed: int = 0) -> np.ndarray:
    """For each image another one, drawn from those of its class, or from those of all other classes. (N,).

    Raises:
        ValueError: if an image has nobody to take from.
    """
    classes = torch.as_tensor(labels)
    allowed = (classes[:, None] == classes) == same_class
    allowed.fill_diagonal_(False)
    if (alone := ~allowed.any(1)).any():
        lacking = "only one of" if same_class else "none but of"
        raise ValueError(f"{len(classes)} images in a batch have {lacking} class {int(classes[alone][0])}: take more")
    return torch.multinomial(allowed.float(), 1, generator=torch.Generator().manual_seed(seed))[:, 0].numpy()


def measure_effects(
    model: nn.Module,
    dataset: Dataset,
    interventions: Mapping[str, InterventionMaker],
    layers: str = "*",
    *,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Effects:
    """Run a model over a data set untouched and under each intervention, in each layer and in all of them together.

    The model runs on its own device, in eval mode. Each batch has its share of every class, so that what is taken from
    other images of it comes from all classes, and of none a single image, if the data have more.

    Args:
        dataset: yields (image, label), of the model's classes; `kaconv.attention.decisions.label_with_decisions` labels
            others.
        interventions: by name, such as `usual_interventions`; one that does not care for the batch is
            `lambda batch: uniform()`.
        layers: shell pattern of layer names.
        batch_size: images in a batch at most, but for two that may come with others of their class.
        seed: of which images come together in a batch.

    Raises:
        ValueError: if there are no interventions or no layer matches; and as the interventions and `evaluate` do.
    """
    if not interventions:
        raise ValueError("there are no interventions to measure")
    places = {name: name for name in kaconv_layers(model, layers)}
    if len(places) > 1:
        places[ALL_LAYERS] = layers
    conditions = {
        (name, layer): _Condition(make, pattern)
        for layer, pattern in places.items()
        for name, make in interventions.items()
    }
    return Effects(*_outcomes(model, dataset, conditions, layers, batch_size, seed, progress))


def measure_removals(
    model: nn.Module,
    dataset: Dataset,
    means: AttentionRecord | AttentionStatistics,
    layers: str = "*",
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> list[RemovalRow]:
    """Take the attention from each kernel position of each layer; the others share it in their own proportions.

    Args:
        dataset: as of `measure_effects`, and so are the other arguments.
        means: what has a `mean(layer)`, for the attention that the positions had.

    Returns:
        A row for each position.

    Raises:
        ValueError: if there is no mean for a layer; and as `measure_effects` does.
    """
    if missing := [layer for layer in kaconv_layers(model, layers) if layer not in means.layers]:
        raise ValueError(f"there is no mean for the layer {missing[0]}; there are some for {', '.join(means.layers)}")
    maps = {layer: means.mean(layer).mean(axis=-1) for layer in kaconv_layers(model, layers)}
    conditions = {
        (layer, position): _Condition(lambda batch: removed(), layer, [position])
        for layer in maps
        for position in range(maps[layer].size)
    }
    untouched, outcomes = _outcomes(model, dataset, conditions, layers, batch_size, 0, progress)
    rows: list[RemovalRow] = []
    for (layer, position), outcome in outcomes.items():
        row, column = divmod(position, maps[layer].shape[1])
        attention = float(maps[layer][row, column])
        change = compare_outcomes(outcome, untouched)
        rows.append(RemovalRow(layer=layer, row=row, column=column, attention=attention, **change))
    return rows


def compare_outcomes(outcome: Outcome, reference: Outcome) -> OutcomeChange:
    """Compare two outcomes of the same images, with 95 % intervals over the drawing of the images.

    A change is from `reference` to `outcome`.
    """
    n = len(outcome.labels)
    became_wrong = int((outcome.wrong & ~reference.wrong).sum())
    became_right = int((reference.wrong & ~outcome.wrong).sum())
    differences = outcome.log_probabilities - reference.log_probabilities
    changed = 100 * float((outcome.predictions != reference.predictions).mean())
    change = OutcomeChange(
        pictures=n,
        became_wrong=became_wrong,
        became_right=became_right,
        error_change=100 * (became_wrong - became_right) / n,
        error_change_interval=paired_interval(became_wrong, became_right, n),
        log_probability_change=float(differences.mean()),
        log_probability_change_interval=t_interval(differences),
        changed=changed,
        changed_interval=wilson_interval(changed, n),
    )
    if outcome.donor_labels is not None and (outcome.donor_labels != outcome.labels).all():
        change["donors_class"] = 100 * float((outcome.predictions == outcome.donor_labels).mean())
        change["donors_class_interval"] = wilson_interval(change["donors_class"], n)
    return change


def pool_effects(rows: Sequence[EffectRow]) -> list[PooledEffectRow]:
    """Effects in several trainings of a model as one: a row for each group of rows that differ in the seed alone.

    Args:
        rows: those of `Effects.rows` or `Effects.contrast`, each with its model and seed.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in cast(Sequence[Row], rows):
        groups.setdefault(tuple((name, row[name]) for name in _NAMES if name in row), []).append(row)
    pooled = []
    for names, group in groups.items():
        new = dict(names) | {"seeds": [row["seed"] for row in group]}
        for measure in (measure for measure in MEASURES if measure in group[0]):
            values, intervals = ([row[key] for row in group] for key in (measure, f"{measure}_interval"))
            new |= {measure: float(np.mean(values)), f"{measure}_values": values, f"{measure}_intervals": intervals}
            new[f"{measure}_interval"] = t_interval(values) or intervals[0]
        pooled.append(cast(PooledEffectRow, new))
    return pooled


def attention_correlations(rows: Sequence[RemovalRow]) -> list[CorrelationRow]:
    """Spearman's rank correlation, over positions, between the mean attention and the cost of removal.

    The cost is the fall of the true class's log-probability.

    Args:
        rows: those of `measure_removals`, each with its model and seed.

    Returns:
        A row for each model and layer.
    """
    groups: dict[tuple[str, str], dict[int, list[RemovalRow]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["layer"]), {}).setdefault(row["seed"], []).append(row)
    found: list[CorrelationRow] = []
    for (model, layer), by_seed in groups.items():
        values = [_correlation(group) for group in by_seed.values()]
        interval = t_interval(values)
        found.append(
            {
                "model": model,
                "layer": layer,
                "seeds": list(by_seed),
                "correlation_values": values,
                "correlation": float(np.mean(values)),
                "correlation_interval": interval and (max(interval[0], -1.0), min(interval[1], 1.0)),
            }
        )
    return found


class _Condition(NamedTuple):
    """Under which a model runs; the rest are arguments of `intervene`."""

    make: InterventionMaker
    layers: str
    positions: Sequence[int] | None = None


def _correlation(rows: Sequence[RemovalRow]) -> float:
    attention, cost = [row["attention"] for row in rows], [-row["log_probability_change"] for row in rows]
    alike = np.ptp(attention) == 0 or np.ptp(cost) == 0
    return float("nan") if alike else float(stats.spearmanr(attention, cost).statistic)


def _outcomes(
    model: nn.Module,
    dataset: Dataset,
    conditions: Mapping[_Key, _Condition],
    layers: str,
    batch_size: int,
    seed: int,
    progress: bool,
) -> tuple[Outcome, dict[_Key, Outcome]]:
    """The outcome of the untouched model, and that under each condition."""
    found = evaluate(model, dataset, batch_size=batch_size, progress=progress)  # it passes over unreadable images
    batches = _mixed_batches(found.labels, found.indices, batch_size, seed)
    device = next(model.parameters()).device
    untouched: list[Outcome] = []
    outcomes: dict[_Key, list[Outcome]] = {key: [] for key in conditions}
    total = len(batches) * len(conditions)
    bar = tqdm(total=total, desc="interventions", unit="batch", leave=False, disable=None if progress else True)
    with evaluating(model), torch.no_grad(), bar:
        for images, labels in DataLoader(dataset, batch_sampler=batches):
            images = images.to(device)
            with AttentionCapture(model, layers, thumbnail=0) as capture:
                untouched.append(_judge(model(images), labels))
            batch = capture.record(labels=labels)
            for key, condition in conditions.items():
                intervention = condition.make(batch)
                donors = _labels(batch)[intervention.donors] if isinstance(intervention, Transplant) else None
                with intervene(model, intervention, condition.layers, condition.positions):
                    outcomes[key].append(_judge(model(images), labels, donors))
                bar.update()
    return _joined(untouched), {key: _joined(parts) for key, parts in outcomes.items()}


def _mixed_batches(labels: np.ndarray, indices: np.ndarray, batch_size: int, seed: int) -> list[list[int]]:
    """Batches of about one size: the images, class by class, dealt out like cards, two or three at a time.

    So an image has another one of its class in its batch, unless it is the only one.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    batches: list[list[int]] = [[] for _ in range(-(-len(labels) // batch_size))]
    for label in np.unique(labels):
        members = indices[order[labels[order] == label]]
        for few in np.array_split(members, max(1, len(members) // 2)):
            min(batches, key=len).extend(few.tolist())
    return batches


def _labels(batch: AttentionRecord) -> np.ndarray:
    assert batch.labels is not None  # `_outcomes` gives them
    return batch.labels


def _judge(logits: Tensor, labels: Tensor, donor_labels: np.ndarray | None = None) -> Outcome:
    logits = logits.cpu().double()
    if (largest := int(labels.max())) >= logits.shape[1]:
        raise ValueError(
            f"effects are counted in errors, so images must be of the model's {logits.shape[1]} classes; got a label "
            f"{largest}. For images of others, see kaconv.attention.decisions.label_with_decisions"
        )
    log_probabilities = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    return Outcome(labels.numpy(), logits.argmax(1).numpy(), log_probabilities.numpy(), donor_labels)


def _joined(parts: Sequence[Outcome]) -> Outcome:
    donors = [part.donor_labels for part in parts if part.donor_labels is not None]
    return Outcome(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.predictions for part in parts]),
        np.concatenate([part.log_probabilities for part in parts]),
        np.concatenate(donors) if donors else None,
    )
