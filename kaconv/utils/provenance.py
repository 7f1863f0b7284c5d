"""Where a figure comes from: the machine, the versions, the commit and the command."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("kaconv", "torch", "torchvision")


def provenance() -> dict:
    """Collect the provenance of a result, as a JSON-able dict.

    Keys: `date` (UTC, ISO 8601), `command`, `commit` (see `git_commit`), `machine` (`platform`, `cpu`, `threads`,
    `gpu` or None) and `versions`.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "commit": git_commit(),
        "machine": {
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def git_commit() -> str | None:
    """Commit of the checkout that kaconv runs from, with `-dirty` if the package's files differ from it.

    None where kaconv was installed without its repository.
    """
    package = Path(__file__).parents[1]
    # An installed package may lie in somebody else's repository (a .venv in it): only one that tracks it counts.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    return f"{commit}-dirty" if _git(package, "status", "--porcelain", "--", ".") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _command() -> str:
    script = Path(sys.argv[0])
    if script.name == "ipykernel_launcher.py":  # its arguments are a temporary file's name
        return "notebook"
    if script.name == "_submit.py":  # submitit's; its argument is a folder of this machine
        return "a job of kaconv study"
    program = f"python -m {script.parent.name}" if script.name == "__main__.py" else script.name
    return shlex.join([*program.split(), *sys.argv[1:]])


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
