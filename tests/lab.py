"""JupyterLab in headless Chromium for tests: a server on 127.0.0.1 with a token, pages, and the time a slider takes."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-quic"]  # fmt: skip
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, also those far below
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
# Resolves to milliseconds from the key press to the frame after the picture has changed.
LATENCY = """(handle) => new Promise((done, fail) => {
  const pictures = handle.closest('.jp-Cell').querySelectorAll('.widget-html-content');
  let start = null;
  const watcher = new MutationObserver(() => requestAnimationFrame(() => {
    watcher.disconnect();
    done(performance.now() - start);
  }));
  pictures.forEach(p => watcher.observe(p, {childList: true, subtree: true, characterData: true, attributes: true}));
  handle.addEventListener('keydown', () => { start = performance.now(); }, {once: true, capture: true});
  setTimeout(() => { watcher.disconnect(); fail(new Error('no change of the picture in 20 s')); }, 20000);
})"""
READY = """() => {
  const panel = window.jupyterapp?.shell?.currentWidget;
  return Boolean(panel?.sessionContext?.isReady && panel.sessionContext.session?.kernel);
}"""
ANSWERS = """async () => {
  const context = window.jupyterapp.shell.currentWidget.sessionContext;
  await context.ready;
  await context.session.kernel.info;
}"""
FINISHED = """() => {
  const panel = window.jupyterapp.shell.currentWidget;
  const cells = panel.content.widgets.filter(w => w.model.type === 'code' && w.model.sharedModel.source.trim());
  const failed = cells.some(w => w.model.outputs.toJSON().some(o => o.output_type === 'error'));
  const idle = panel.sessionContext.session.kernel.status === 'idle';
  return failed || (idle && cells.every(w => w.model.executionCount));
}"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets.filter(w => w.model.type === 'code')
  .flatMap(w => w.model.outputs.toJSON()).filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)"""


def chromium() -> str | None:
    """The path of the system's Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(folder: Path, scratch: Path):
    """A JupyterLab server of `folder`; yields (address, token). Settings and runtime files stay in `scratch`."""
    for name, content in SETTINGS.items():
        path = scratch / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    port, token = _free_port(), secrets.token_hex(16)
    environment = os.environ | {
        "QATLIB_PRESET": "smoke",
        "QATCOURSE_MINE": str(scratch / "mine"),
        "JUPYTERLAB_SETTINGS_DIR": str(scratch / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(scratch / "workspaces"),
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--expose-app-in-browser"]
    command += ["--ServerApp.port_retries=0", "--allow-root", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    with open(scratch / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait(f"http://127.0.0.1:{port}/api/status?token={token}", process, scratch / "server.log")
        yield f"http://127.0.0.1:{port}", token
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(address: str, process, log: Path, seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def run_all(page, address: str, token: str, notebook: str, seconds: int) -> list[str]:
    """Open `notebook`, run all its cells, wait until they are done; the errors that cells raised."""
    page.goto(f"{address}/lab/tree/{notebook}?token={token}&reset", wait_until="domcontentloaded")
    page.wait_for_function(READY, timeout=seconds * 1000)
    page.evaluate(ANSWERS)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_function(FINISHED, timeout=seconds * 1000, polling=250)
    return page.evaluate(ERRORS)


def press(page, handle, key: str) -> float:
    """Milliseconds from pressing `key` on a slider's handle to the frame that shows the new picture."""
    handle.focus()
    page.evaluate("(element) => { window.latency = (" + LATENCY + ")(element); }", handle)
    page.keyboard.press(key)
    return page.evaluate("() => window.latency")


def next_key(handle, key: str) -> str:
    """`key`, or the other arrow where the slider is at that end."""
    now, low, high = (float(handle.get_attribute(f"aria-value{name}")) for name in ("now", "min", "max"))
    if key == "ArrowRight" and now >= high:
        return "ArrowLeft"
    return "ArrowRight" if key == "ArrowLeft" and now <= low else key


def key_times(page, handle, presses: int = 20) -> list[float]:
    """Milliseconds of each of `presses` key presses on a slider's handle: to one end and back."""
    key, times = "ArrowRight", []
    for _ in range(presses):
        key = next_key(handle, key)
        times.append(press(page, handle, key))
    return times


def choice_times(page, cell, presses: int = 20) -> list[float]:
    """The same for a cell's radio buttons: Space on the first that is not chosen, again and again."""
    times = []
    for _ in range(presses):
        times.append(press(page, cell.query_selector("input[type=radio]:not(:checked)"), "Space"))
        page.wait_for_timeout(100)  # the buttons are drawn anew
    return times


def widget_times(page, presses: int = 20) -> list[tuple[str, list[float]]]:
    """(what moves, milliseconds of each key press) of every slider and every radio group of a picture on the page."""
    found = []
    for cell in page.query_selector_all(".jp-Cell:has(.noUi-handle)"):
        for row in cell.query_selector_all(".widget-hslider, .jupyter-widget-hslider"):
            if handle := row.query_selector(".noUi-handle"):
                name = row.query_selector(".widget-label").inner_text()
                found.append((name, key_times(page, handle, presses)))
        if cell.query_selector("input[type=radio]"):
            found.append(("radio buttons", choice_times(page, cell, presses)))
    return found
