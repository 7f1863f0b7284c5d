"""A study as a YAML file: models x variants x seeds x recipe."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from kaconv.training.config import TrainConfig
from kaconv.training.study import study_config
from kaconv.utils.checks import MOST_SEED
from kaconv.utils.text import short_repr
from kaconv.utils.yaml_text import load_yaml

PLAIN_VARIANT = "plain"  # the only one where a spec names none
SAVE_MINUTES = 2.0  # a killed study loses no more than that of each training
GIVEN = ("model", "data", "out", "seed")  # fields of a config that do not belong into a recipe
ALLOWED_FIELDS = tuple(item.name for item in fields(TrainConfig) if item.name not in GIVEN)
SEEDS = f"whole numbers from 0 to {MOST_SEED}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """The models, seeds, data and recipe of a study.

    `variants` names sets of fields that each override the recipe; where one has `models`, it is for these only.
    """

    name: str
    models: list[str]
    seeds: list[int]
    data: str
    question: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=lambda: {PLAIN_VARIANT: {}})

    def to_dict(self) -> dict:
        """YAML- and JSON-able."""
        return asdict(self)


TrainingKey = tuple[str, str, int]  # variant, model and seed


@dataclass(frozen=True)
class Training:
    """One training of a study."""

    model: str
    variant: str
    seed: int
    config: TrainConfig

    @property
    def key(self) -> TrainingKey:
        """Identity among the study's trainings, wherever it runs."""
        return self.variant, self.model, self.seed

    def __str__(self) -> str:
        variant = "" if self.variant == PLAIN_VARIANT else f" {self.variant}"
        return f"{self.model}{variant} seed {self.seed}"


def load_study(path: str | Path, data: str | None = None) -> StudySpec:
    """Read a study and check all of it, each training's config included.

    Args:
        data: a data spec instead of the file's.

    Raises:
        ValueError: for the first bad value, with the file's name and what is allowed.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no study {path.resolve()}")
    try:
        spec = parse_study(load_yaml(path.read_text(encoding="utf-8")), data)
        study_trainings(spec, ".")
    except UnicodeDecodeError:
        raise ValueError(f"study {path}: it is not YAML: it is not text in UTF-8") from None
    except ValueError as error:
        raise ValueError(f"study {path}: {error}") from None
    return spec


def parse_study(contents: object, data: str | None = None) -> StudySpec:
    """A study from a YAML file's contents; ValueError for what is wrong in its form."""
    _check_mapping("it", contents, [item.name for item in fields(StudySpec)])
    values = dict(cast(Mapping[str, Any], contents))
    if data is not None:
        values["data"] = data
    missing = [name for name in ("name", "data", "models", "seeds") if name not in values]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing{' (or give --data)' if missing == ['data'] else ''}")
    if not isinstance(values["name"], str) or not _NAME.fullmatch(values["name"]):
        raise _bad("name", "at most 64 letters, digits, dots, _ and -, since it names folders", values["name"])
    for name in ("question", "data"):
        if not isinstance(values.get(name, ""), str):
            raise _bad(name, "text", values[name])
    _check_list("models", values["models"], str, "names of models (see `kaconv list`)")
    _check_list("seeds", values["seeds"], int, SEEDS)
    bad_seed = next((seed for seed in values["seeds"] if not 0 <= seed <= MOST_SEED), None)
    if bad_seed is not None:
        raise _bad("seeds", SEEDS, bad_seed)
    _check_mapping("recipe", values.get("recipe", {}), ALLOWED_FIELDS)
    _check_variants(values.get("variants", {PLAIN_VARIANT: {}}), values["models"])
    return StudySpec(**values)


def study_trainings(spec: StudySpec, runs: str | Path) -> list[Training]:
    """All trainings in the order in which they are run: all models and variants of one seed before the next seed.

    Args:
        runs: the folder of their folders.

    Raises:
        ValueError: if one has a bad value, or two are the same.
    """
    trainings = []
    for seed in spec.seeds:
        for variant, changes in spec.variants.items():
            options = {"save_minutes": SAVE_MINUTES} | spec.recipe | changes
            for model in options.pop("models", spec.models):
                config = study_config(model, seed, data=spec.data, runs=runs, **options)
                trainings.append(Training(model, variant, seed, config))
    folders: dict[str, Training] = {}
    for training in trainings:
        if training.seed == spec.seeds[0]:  # the others differ in the seed alone
            _validate(training)
        same = folders.setdefault(training.config.out, training)
        if same is not training:
            raise ValueError(
                f"variants {same.variant!r} and {training.variant!r} are the same training of {training.model}; "
                "let them differ, or remove one"
            )
    return trainings


def _validate(training: Training) -> None:
    try:
        training.config.validate()
    except ValueError as error:
        where = "" if training.variant == PLAIN_VARIANT else f"variant {training.variant!r}: "
        raise ValueError(f"{where}{error}") from None


def _check_variants(variants: object, models: Sequence[str]) -> None:
    if not isinstance(variants, dict) or not variants:
        raise _bad("variants", "a mapping of names to fields that override the recipe", variants)
    for name, changes in variants.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _bad("a variant's name", "at most 64 letters, digits, dots, _ and -", name)
        where = f"variant {name!r}"
        _check_mapping(where, changes, [*ALLOWED_FIELDS, "models"])
        if "models" in changes:
            _check_list(f"{where}: models", changes["models"], str, "some of the study's models")
            others = [model for model in changes["models"] if model not in models]
            if others:
                raise _bad(f"{where}: models", f"some of {', '.join(models)}", others[0])


def _check_mapping(where: str, values: object, allowed: Sequence[str]) -> None:
    if not isinstance(values, Mapping):
        raise _bad(where, "a mapping, `name: value` on each line", values)
    unknown = next((key for key in values if key not in allowed), None)
    if unknown is not None or None in values:
        raise ValueError(f"unknown field {short_repr(unknown)} in {where}; allowed: {', '.join(allowed)}")


def _check_list(where: str, values: object, kind: type, what: str) -> None:
    if not isinstance(values, list) or not values:
        raise _bad(where, f"a list of {what}, at least one", values)
    for position, value in enumerate(values):
        if type(value) is not kind:
            raise _bad(where, what, value)
        if value in values[:position]:
            raise ValueError(f"{where} must be all different, but {short_repr(value)} is there twice")


def _bad(where: str, allowed: str, value: object) -> ValueError:
    return ValueError(f"{where} must be {allowed}; got {short_repr(value)}")
