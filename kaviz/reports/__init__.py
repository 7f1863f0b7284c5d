"""Reports: notebooks run from a YAML spec, their pages, and an index of them (`kaviz report`).

A notebook needs only `project_root`, `save_metrics` and, for files of its own, `report_folder`. Reading a spec, running
it and drawing its pages live in `spec`, `run` and `page`, which a running notebook never imports.
"""

from kaviz.reports.notebook import project_root, report_folder, save_metrics

__all__ = ["project_root", "report_folder", "save_metrics"]
