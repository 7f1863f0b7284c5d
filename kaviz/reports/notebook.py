"""What a notebook needs of its report: where it works, a folder for files, and a place for figures of merit."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kaconv.utils.files import write_json


def project_root(start: str | Path = ".") -> Path:
    """The nearest folder from `start` upwards that holds a pyproject.toml, else `start`; notebooks work there."""
    folder = Path(start).resolve()
    return next((parent for parent in (folder, *folder.parents) if (parent / "pyproject.toml").exists()), folder)


def report_folder() -> Path | None:
    """The folder that a report gave this notebook for its files (environment variable `KAVIZ_OUT`), else None."""
    folder = os.environ.get("KAVIZ_OUT")
    return Path(folder) if folder else None


def save_metrics(metrics: Mapping[str, float | int | str]) -> pd.DataFrame:
    """Hand figures of merit to the report and return them as a table, to be shown as a cell's last line.

    Names carry their unit: `{"test error (%)": 2.4}`. A second call adds to the first. Outside a report nothing is
    written. Zero-dimensional arrays and tensors count as numbers; what is neither number nor string is a TypeError.
    """
    plain = {str(name): _plain(name, value) for name, value in metrics.items()}
    if folder := report_folder():
        write_json(folder / "metrics.json", read_metrics(folder) | plain)
    return pd.DataFrame({"value": [format_value(value) for value in plain.values()]}, index=list(plain))


def read_metrics(folder: Path) -> dict:
    """The metrics saved so far by the notebook that owns `folder`."""
    path = folder / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def format_value(value: object) -> str:
    """A number as a reader wants it: four significant digits, thousands separated; other things as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)


def _plain(name: str, value: object) -> float | int | str | bool | None:
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if not isinstance(value, (int, float, str)):
        raise TypeError(f"metric {name!r} is {value!r}; a metric is one number or one string")
    # JSON knows no NaN.
    return None if isinstance(value, float) and not math.isfinite(value) else value
