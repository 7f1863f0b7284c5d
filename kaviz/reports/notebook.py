"""Help for notebooks in a report: where they work, places for files and figures of merit, and wording."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown, display

from kaconv.utils.files import write_json
from kaconv.utils.intervals import no_better_than_chance

PROJECT_MARK = ".kaviz-project"  # in a folder that `kaviz notebooks` made, which has no pyproject.toml
SKIPPED = {"kaviz": {"skipped": True}}  # the metadata of an output that says that its section does not apply
_LONGEST_CHAIN = 4
_NOTES = "metrics.json"


@dataclass
class Notes:
    """Messages of a notebook to its report: figures of merit, their digits, and parameters without effect."""

    metrics: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    digits: dict[str, int] = field(default_factory=dict)
    without_effect: list[str] = field(default_factory=list)


def find_project(start: str | Path = ".") -> Path | None:
    """The nearest folder from `start` upwards that holds a pyproject.toml or was laid down by `kaviz notebooks`."""
    folder = Path(start).resolve()
    marks = ("pyproject.toml", PROJECT_MARK)
    return next(
        (parent for parent in (folder, *folder.parents) if any((parent / mark).exists() for mark in marks)), None
    )


def project_root(start: str | Path = ".") -> Path:
    """The project folder that `start` is in, else `start`; notebooks work there."""
    return find_project(start) or Path(start).resolve()


def report_folder() -> Path | None:
    """The folder that a report gave this notebook for its files (environment variable `KAVIZ_OUT`), else None."""
    folder = os.environ.get("KAVIZ_OUT")
    return Path(folder) if folder else None


def save_metrics(metrics: Mapping[str, float | int | str], *, images: int | None = None) -> pd.DataFrame:
    """Hand figures of merit to the report and return them as a table, to be shown as a cell's last line.

    Names carry their unit: `{"test error (%)": 2.4}`. A second call adds to the first. Outside a report nothing is
    written. Zero-dimensional arrays and tensors count as numbers; what is neither number nor string is a TypeError.

    Args:
        images: how many images the figures were measured on; they are shown with the digits that so many allow.
    """
    plain = {str(name): _plain(name, value) for name, value in metrics.items()}
    digits = significant_digits(images)
    if folder := report_folder():
        notes = read_notes(folder)
        notes.metrics |= plain
        notes.digits |= dict.fromkeys(plain, digits)
        write_json(folder / _NOTES, vars(notes))
    return pd.DataFrame({"value": [format_value(value, digits) for value in plain.values()]}, index=list(plain))


def without_effect(*names: str) -> None:
    """Tell the report which parameters have no effect under the given ones, so that its page does not list them."""
    if folder := report_folder():
        notes = read_notes(folder)
        notes.without_effect += names
        write_json(folder / _NOTES, vars(notes))


def read_notes(folder: Path) -> Notes:
    """The messages so far of the notebook that owns `folder`."""
    path = folder / _NOTES
    return Notes(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Notes()


def skip_section(reason: str) -> None:
    """Say why this section of a notebook does not apply; a report's page leaves the section out, heading and all."""
    display(Markdown(f"*{reason}*"), metadata=SKIPPED)


def announce(seconds: float, work: str) -> None:
    """Say before a long cell how long it will take: "About 3 min: 16 passes over 599 images"; nothing below 5 s."""
    if seconds >= 5:
        print(
            f"About {seconds / 60:.0f} min: {work}" if seconds >= 90 else f"About {seconds:.0f} s: {work}", flush=True
        )


def chance_warning(name: str, error: float, images: int, classes: int) -> Markdown | None:
    """A sentence on a network whose errors are those of guessing, else None; a notebook then claims nothing of it.

    Args:
        error: the network's, in percent.
        images: how many it was measured on; nothing is said of none.
    """
    correct = round(images * (1 - error / 100)) if images else 0
    if not images or not no_better_than_chance(correct, images, classes):
        return None
    return Markdown(
        f"**{name} is no better than chance on these images:** {correct} of {images} right, with {classes} classes. "
        "The figures below show what such a network looks like; nothing is claimed from them."
    )


def by_depth(values: Mapping[str, float], form: str = "{:.2f}") -> str:
    """A quantity from the first layer to the last: a chain of a few; of many the first, the last and the extremes."""
    said = {name: form.format(value) for name, value in values.items()}
    names = list(said)
    if len(names) <= _LONGEST_CHAIN:
        return " → ".join(said.values())
    defined = [name for name in names if not math.isnan(values[name])] or names
    least, most = min(defined, key=lambda name: values[name]), max(defined, key=lambda name: values[name])
    ends = f"{said[names[0]]} in the first of {len(names)} layers, {said[names[-1]]} in the last"
    return f"{ends}, least in {least} ({said[least]}), most in {most} ({said[most]})"


def significant_digits(images: int | None) -> int:
    """The digits of a share or an error that are worth reading when it was measured on so many images."""
    return 4 if images is None or images >= 100_000 else 3 if images >= 1_000 else 2


def percent(value: float, images: int) -> str:
    """An error or a share in percent with the digits that so many images allow; NaN is "not known"."""
    return "not known" if math.isnan(value) else f"{format_value(float(value), significant_digits(images))} %"


def format_value(value: object, digits: int = 4) -> str:
    """A number as a reader wants it: rounded to significant digits, thousands separated; other things as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if abs(value) >= 10**digits:  # no rounding within whole numbers, and no exponent
            return f"{value:,.0f}"
        return f"{value:.{digits}g}"
    return str(value)


def _plain(name: str, value: Any) -> float | int | str | bool | None:
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if not isinstance(value, (int, float, str)):
        raise TypeError(f"metric {name!r} is {value!r}; a metric is one number or one string")
    # JSON knows no NaN.
    return None if isinstance(value, float) and not math.isfinite(value) else value
