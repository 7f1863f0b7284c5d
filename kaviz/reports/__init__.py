"""Reports: notebooks run from a YAML spec, their pages, and an index of them (`kaviz report`).

What a notebook calls is in `notebook` and named here. Reading a spec, running it and drawing its pages live in `spec`,
`run` and `page`, which a running notebook never imports; `project` lays the notebooks down in a folder.
"""

from kaviz.reports.notebook import (
    announce,
    by_depth,
    chance_warning,
    model_error,
    percent,
    project_root,
    report_folder,
    save_metrics,
    significant_digits,
    skip_section,
    without_effect,
)

__all__ = [
    "announce",
    "by_depth",
    "chance_warning",
    "model_error",
    "percent",
    "project_root",
    "report_folder",
    "save_metrics",
    "significant_digits",
    "skip_section",
    "without_effect",
]
