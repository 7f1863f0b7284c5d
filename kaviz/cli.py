"""The command `kaviz`."""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

from kaconv.utils.extras import missing_package

DEFAULT_SPEC = "reports/specs/default.yaml"

_REPORT_HELP = """\
Run the notebooks of a spec and turn them into pages that open with no network.

A spec is a YAML file:

  title: KAConv on handwritten digits
  description: What the page says below the title.
  parameters:                   # for every notebook that declares them
    runs: reports/out/runs
  entries:
    - notebook: 02_training     # in notebooks/, or a path from the spec or the project folder
      name: training-smoke      # its folder and address; default: the notebook's name
      title: Training, briefly  # default: the notebook's first heading
      timeout: 90               # seconds for the whole notebook; default: 600
      parameters:               # by the names and types of its `parameters` cell
        epochs: 1

The project folder is the one above the spec, else above the current folder, that holds a pyproject.toml or was made by
`kaviz notebooks`; else the spec's own. The same notebook may appear again under another name. Everything is checked
before anything runs; a notebook that fails leaves its traceback on its page, and the others run. Each runs in the
project folder, with KAVIZ_OUT set to the folder that holds its page, its executed notebook and its metrics.json. DIR
must be new, empty or an earlier report.

Exit status: 0 if all went well, 1 if a notebook failed or ran out of time, 2 if the spec or the command is wrong.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command `kaviz`; its exit status."""
    parser = argparse.ArgumentParser(prog="kaviz", description="Seeing what kernel attention convolutions do.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report",
        help="run the notebooks of a spec and write their pages",
        description=_REPORT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_argument("spec", nargs="?", default=DEFAULT_SPEC, metavar="SPEC", help=f"default: {DEFAULT_SPEC}")
    report.add_argument("--out", metavar="DIR", help="default: reports/out/<spec name> in the spec's project folder")
    report.add_argument(
        "--single-file", action="store_true", help="also write DIR/report.html, the whole report in one file, to send"
    )
    report.add_argument(
        "--builder",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="let the notebooks import this function, of which a checkpoint's model is; repeatable",
    )
    notebooks = commands.add_parser(
        "notebooks",
        help="lay down the notebooks and the report specs in a folder",
        description="Write the notebooks, report specs, what they read and the photographs to DIR, a project folder in "
        "which `kaviz report` and JupyterLab run them. Files that are there and differ are never replaced.",
    )
    notebooks.add_argument("folder", metavar="DIR", help="new or existing")
    args = parser.parse_args(argv)
    _exit_on_signals()
    try:
        if args.command == "notebooks":
            return _notebooks(args.folder)
        _pass_on(args.builder)
        return _report(args.spec, args.out, args.single_file)
    except ModuleNotFoundError as error:
        print(f"kaviz: error: {missing_package(error, needed='notebooks')}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"kaviz: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kaviz: interrupted", file=sys.stderr)
        return 130


def _pass_on(builders: list[str]) -> None:
    """Import builders, so that a wrong one comes to light, and name them to the notebooks, other processes."""
    if builders:
        from kaconv.models.registry import BUILDERS_VARIABLE, register_builders

        register_builders(builders)
        os.environ[BUILDERS_VARIABLE] = ",".join(builders)


def _exit_on_signals() -> None:
    """Let a terminated report, or one whose terminal is gone, end its notebook too: `finally` runs on an exception."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup's
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def _notebooks(folder: str) -> int:
    from kaviz.reports.project import lay_down

    written = lay_down(Path(folder))
    print(f"{len(written)} files written to {folder}" if written else f"{folder} holds all files already")
    print(f"Next: cd {shlex.quote(folder)} && kaviz report")
    print(f"  or: cd {shlex.quote(folder)} && jupyter lab notebooks")
    return 0


def _report(spec_path: str, out: str | None, single_file: bool) -> int:
    from kaviz.reports.run import SINGLE_FILE, run_report
    from kaviz.reports.spec import load_spec

    spec = load_spec(spec_path)
    folder = Path(out) if out else spec.root / "reports" / "out" / spec.name
    index = (folder / "index.html").resolve()
    all_done = run_report(spec, folder, single_file=single_file)
    if not all_done:
        print("kaviz: not every notebook ran to its end; the index says which", file=sys.stderr)
    print(f"\nReport: {os.path.relpath(index)}\n        {index}")
    if single_file:
        print(f"To send: {(folder / SINGLE_FILE).resolve()}")
    return 0 if all_done else 1


if __name__ == "__main__":
    sys.exit(main())
