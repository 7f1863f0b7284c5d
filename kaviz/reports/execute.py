"""The child process that runs one notebook: `python execute.py JOB.json`.

A process of its own, because nbclient can wait for ever on a lost message and only killing it ends that.
"""

import json
import sys
from pathlib import Path

import papermill


def main(job_file: str) -> int:
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
            # The parent's limit comes first; this one ends a run whose parent was killed.
            execution_timeout=job["timeout"],
            on_cell_start=lambda cell, cell_index: progress.write_text(str(cell_index + 1)),
        )
    except papermill.PapermillExecutionError:
        return 1  # the traceback is in the notebook
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
