"""A real JupyterLab in a real Chromium, and what a user does in it."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

# The programs that will do as a browser, the first that is found.
CHROMIUM = [os.environ["CHROMIUM"]] if "CHROMIUM" in os.environ else ["chromium", "chromium-browser", "google-chrome"]
_CHROMIUM_FLAGS = [
    "--no-sandbox",  # root in a container has none; no page but our own is opened
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # they would cover the page
    "notebook-extension/tracker": {"windowingMode": "none"},  # else cells that are out of sight are not in the page
}
_PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"

# What the page is asked.
_KERNEL_IS_IDLE = """() => {
    const kernel = jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel;
    return kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}"""
_KERNEL_HAS_ANSWERED = "async () => { await jupyterapp.shell.currentWidget.sessionContext.session.kernel.info; }"
_HAS_STARTED = """panel => [...document.querySelectorAll(`${panel} .jp-CodeCell .jp-InputPrompt`)]
    .some(prompt => /\\[[*\\d]+\\]/.test(prompt.textContent))"""
_HAS_ENDED = """panel => {
    const prompts = [...document.querySelectorAll(`${panel} .jp-CodeCell .jp-InputPrompt`)].map(e => e.textContent);
    const outputs = jupyterapp.shell.currentWidget.content.widgets.flatMap(cell => cell.model.outputs?.toJSON() ?? []);
    const failed = outputs.some(output => output.output_type === 'error');
    const done = failed ? !prompts.some(text => text.includes('*')) : prompts.every(text => /\\[\\d+\\]/.test(text));
    return done && document.querySelector(`${panel} .jp-Notebook-ExecutionIndicator`).dataset.status === 'idle';
}"""
_SIZES = """images => Promise.all(images.map(
    image => image.decode().then(() => [image.naturalWidth, image.naturalHeight], () => [0, 0])))"""


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


@contextmanager
def running_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=_CHROMIUM_FLAGS)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab server."""

    url: str
    token: str
    log: Path

    def end_kernels(self) -> None:
        for kernel in json.loads(self.ask("GET", "api/kernels")):
            self.ask("DELETE", f"api/kernels/{kernel['id']}")

    def ask(self, method: str, path: str) -> bytes:
        """What its REST interface answers."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()


@contextmanager
def running_lab(project: Path, state: Path) -> Iterator[Lab]:
    """A JupyterLab server on the folder `project` whose settings, workspaces and log lie in the folder `state`."""
    for name, settings in _SETTINGS.items():
        path = state / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTER", "KAVIZ"))}
    port, token, log = _free_port(), secrets.token_hex(16), state / "server.log"
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *(f"--ServerApp.root_dir={project}", f"--IdentityProvider.token={token}"),
        *("--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=project,
            env=inherited | {name: str(state / folder) for name, folder in folders.items()},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C ends the tests, which then end the server
        )
    try:
        lab = Lab(f"http://127.0.0.1:{port}", token, log)
        _wait_for(lab, process)
        yield lab
    finally:
        process.terminate()  # it shuts its kernels down
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(lab: Lab, process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            lab.ask("GET", "api/status")
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab has not started; {lab.log} ends with\n{lab.log.read_text()[-3000:]}")


class NotebookPage:
    """A notebook in JupyterLab.

    Args:
        page: an empty browser page, which it takes over.
        lab: the server.
        path: the notebook's, in the server's folder.
    """

    def __init__(self, page: Page, lab: Lab, path: str) -> None:
        self.page, self.lab, self.path = page, lab, path
        self.panel = page.locator(_PANEL)

    def open(self) -> None:
        """Open it, and wait until its kernel can be given work."""
        self.page.goto(f"{self.lab.url}/lab/tree/{self.path}?reset&token={self.lab.token}")
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")
        self.panel.wait_for()
        # The indicator says idle before there is a kernel, and JupyterLab drops a Run All that comes then.
        self.page.wait_for_function(_KERNEL_IS_IDLE)
        self.page.evaluate(_KERNEL_HAS_ANSWERED)

    def run_all(self, seconds: float = 240) -> None:
        """Run, Run All Cells; and wait until all cells have run, or one has failed."""
        for _ in range(3):
            self.page.get_by_role("menuitem", name="Run", exact=True).click()
            self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            try:
                self.page.wait_for_function(_HAS_STARTED, arg=_PANEL, timeout=15_000)
                break
            except TimeoutError:  # dropped all the same
                continue
        self.page.wait_for_function(_HAS_ENDED, arg=_PANEL, timeout=1000 * seconds)

    def complaints(self) -> list[str]:
        """What the cells show in red: tracebacks, what was written to stderr, and widgets that could not be shown."""
        red = '[data-mime-type="application/vnd.jupyter.stderr"], .jupyter-widgets-error-widget'
        return self.panel.locator(red).all_inner_texts()

    def picture_sizes(self) -> list[tuple[int, int]]:
        """Width and height of every picture among the outputs, in its own pixels; (0, 0) for a broken one."""
        return [tuple(size) for size in self.panel.locator(".jp-OutputArea-output img").evaluate_all(_SIZES)]
