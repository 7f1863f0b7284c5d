"""Copies the notebooks and the report specs into the wheel, for `kaviz notebooks`; pyproject.toml says all else."""

import shutil
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithNotebooks(build_py):
    """The usual build, and a copy of the project's files beside `kaviz.reports`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the source tree has them
            return
        patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["kaviz"][
            "project-files"
        ]
        target = Path(self.build_lib, "kaviz", "reports", "project_files")
        shutil.rmtree(target, ignore_errors=True)
        for source in (path for pattern in patterns for path in ROOT.glob(pattern)):
            copy = target / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


setup(cmdclass={"build_py": BuildWithNotebooks})
