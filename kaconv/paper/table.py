"""The paper's ImageNet table, recomputed: what `kaconv table` prints."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

import torch
from tqdm.auto import tqdm

from kaconv.models import create_model
from kaconv.models.complexity import complexity
from kaconv.paper.published import TABLE, PublishedRow, as_printed
from kaconv.utils.checks import PERCENT, Rule, check_values, whole
from kaconv.utils.text import shortened

RESULTS_DIR = Path("reports/results")
_RULES: dict[str, Rule] = {"top1_error": PERCENT, "top5_error": PERCENT, "n": whole(1), "image_size": whole(1)}


class Published(TypedDict):
    """Published figures of a model: costs as printed, errors in percent."""

    params: str
    flops: str
    top1_error: float
    top5_error: float


class TableRow(TypedDict):
    """A row of the table.

    - name (the paper's), model (kaconv's)
    - params, paper_flops, macs: exact, for one 224×224 image
    - agrees: of params and flops, whether they equal the published figures at the printed precision
    - measured: errors, of `read_results`, where there are some
    """

    name: str
    model: str
    params: int
    paper_flops: int
    macs: int
    published: Published
    agrees: dict[str, bool]
    measured: dict[str, Any] | None


def table_row(published: PublishedRow, measured: dict[str, Any] | None = None) -> TableRow:
    """One row as plain data, ready for JSON.

    Args:
        measured: a result of `read_results` for this model, or None.
    """
    with torch.device("meta"):
        cost = complexity(create_model(published.model))
    return {
        "name": published.name,
        "model": published.model,
        "params": cost.params,
        "paper_flops": cost.paper_flops,
        "macs": cost.macs,
        "published": {
            "params": published.params,
            "flops": published.flops,
            "top1_error": published.top1_error,
            "top5_error": published.top5_error,
        },
        "agrees": {
            "params": as_printed(cost.params, published.params) == published.params,
            "flops": as_printed(cost.paper_flops, published.flops) == published.flops,
        },
        "measured": measured,
    }


def table_rows(results_dir: Path = RESULTS_DIR, progress: bool = False) -> list[TableRow]:
    """All 15 rows (see `table_row`), with the measured errors that `results_dir` holds.

    Raises:
        ValueError: if a file in `results_dir` is not a result of `kaconv evaluate`.
    """
    measured = read_results(results_dir)
    bar = tqdm(TABLE, desc="Counting", unit="model", disable=None if progress else True, leave=False)
    return [table_row(row, measured.get(row.model)) for row in bar]


def read_results(results_dir: Path) -> dict[str, dict[str, Any]]:
    """The newest ImageNet result of each model among the JSON files that `kaconv evaluate --out` wrote there.

    A dict per model: top1_error and top5_error (percent), n (images), image_size, protocol, provenance, file.

    Raises:
        FileNotFoundError: if there is no such folder; only `RESULTS_DIR` may be missing.
        ValueError: if a file there is not a result.
    """
    if not results_dir.is_dir() and results_dir != RESULTS_DIR:
        raise FileNotFoundError(f"there is no folder of results at {results_dir}")
    results: dict[str, dict[str, Any]] = {}
    for path in sorted(results_dir.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            if not result["data"].startswith("imagenet:"):
                continue
            name, entry = str(result["model"]), _measured(result) | {"file": str(path)}
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path} is not a result of `kaconv evaluate`: {shortened(reason, 300)}") from None
        if name not in results or entry["provenance"]["date"] > results[name]["provenance"]["date"]:
            results[name] = entry
    return results


def _measured(result: dict[str, Any]) -> dict[str, Any]:
    check_values(result, _RULES)
    provenance = result["provenance"]
    return {
        "top1_error": float(result["top1_error"]),
        "top5_error": float(result["top5_error"]),
        "n": result["n"],
        "image_size": result["image_size"],
        "protocol": str(result["protocol"]),
        "provenance": provenance | {"date": str(provenance["date"])},
    }


def all_agree(rows: Iterable[TableRow]) -> bool:
    """True if every row agrees with the paper in parameters and FLOPs."""
    return all(all(row["agrees"].values()) for row in rows)


def format_table(rows: list[TableRow]) -> str:
    """The rows as text, with a legend and the number of figures that agree."""
    header = ["", "params", "published", "", "FLOPs (paper)", "published", "", "multiply-adds"]
    header += ["top-1 / top-5 error %", "measured"]
    body = []
    for row in rows:
        published, agrees, measured = row["published"], row["agrees"], row["measured"]
        body.append(
            [
                row["name"],
                f"{row['params']:,}",
                published["params"],
                _mark(agrees["params"]),
                f"{row['paper_flops']:,}",
                published["flops"],
                _mark(agrees["flops"]),
                f"{row['macs']:,}",
                f"{published['top1_error']:.2f} / {published['top5_error']:.2f}",
                _describe_measured(measured) if measured else "not measured",
            ]
        )
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = [_align(line, widths) for line in [header, *body]]
    lines.insert(1, "-" * len(lines[0]))
    figures = [mark for row in rows for mark in row["agrees"].values()]
    lines += [
        "",
        f"{sum(figures)} of {len(figures)} figures agree with the paper at its printed precision (✓).",
        "One 224×224 image. FLOPs as the paper counts them; multiply-adds as torch.utils.flop_counter does.",
    ]
    return "\n".join(lines)


def _describe_measured(measured: dict[str, Any]) -> str:
    text = f"{measured['top1_error']:.2f} / {measured['top5_error']:.2f}"
    if measured["n"] != 50_000:  # not ImageNet's validation set as a whole
        text += f" of {measured['n']:,} images"
    if measured["image_size"] != 224:
        text += f" at {measured['image_size']}²"
    elif measured["protocol"] != "paper":
        text += ", prepared otherwise than in the paper"
    return text


def _align(cells: list[str], widths: list[int]) -> str:
    name, *figures = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join([name.strip().ljust(widths[0]), *figures])


def _mark(agrees: bool) -> str:
    return "✓" if agrees else "✗"
