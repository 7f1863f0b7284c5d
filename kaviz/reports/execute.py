"""The child process that runs one notebook: `python execute.py JOB.json`.

A process of its own, because nbclient can wait for ever on a lost message and only killing it ends that. Its input is
a pipe that the report holds open: when that closes, the report is gone, however it ended, and so are this process and
the notebook's kernel.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import papermill
import psutil


def end_with_the_report() -> None:
    """Wait for the end of the input, then end this process and all that it started."""
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.buffer.read(), whose lock would crash the end of a good run
    for member in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            member.kill()
    os._exit(1)


def main(job_file: str) -> int:
    """Run the notebook that a job file describes; 0 if it ran to its end."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    progress = Path(job["progress"])
    try:
        papermill.execute_notebook(
            job["notebook"],
            job["output"],
            parameters=job["parameters"],
            kernel_name="python3",
            language="python",
            cwd=job["cwd"],
            progress_bar=False,
            execution_timeout=job["timeout"],
            on_cell_start=lambda cell, cell_index: progress.write_text(str(cell_index + 1)),
        )
    except papermill.PapermillExecutionError:
        return 1  # the traceback is in the notebook
    return 0


if __name__ == "__main__":
    Thread(target=end_with_the_report, daemon=True).start()
    sys.exit(main(sys.argv[1]))
