"""Is everything here that the lessons use? One row a thing, with what it is for and what to do where it is missing."""

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata

import psutil

DEBIAN = {"arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi"}  # where the package has another name
PACKAGES = {
    "torch": "all lessons",
    "numpy": "all lessons",
    "matplotlib": "figures",
    "jupyterlab": "opening the lessons",
    "ipywidgets": "sliders and questions",
    "papermill": "sweeps (09)",
    "onnx": "export (07)",
    "onnxruntime": "export (07)",
}


def packages() -> list[dict]:
    """Each package with its version, or with the command that installs it."""
    return [{"what": name, "found": _version(name), "for": use} for name, use in PACKAGES.items()]


def _version(name: str) -> str:
    try:
        return metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:
        return "missing: pip install 'qatlib[course]'"


def tools() -> list[dict]:
    """Python, processors, memory, the compilers, the emulator and Chromium; all but the first three are optional."""
    browsers = ("chromium", "chromium-browser", "google-chrome")
    memory = psutil.virtual_memory().total / 2**30
    return [
        {"what": "Python", "found": platform.python_version(), "for": "3.11 or newer"},
        {"what": "processors", "found": str(os.cpu_count()), "for": "2 are enough"},
        {"what": "memory", "found": f"{memory:.0f} GiB", "for": "4 GiB are enough"},
        {"what": "C compiler", "found": _command(("gcc", "clang", "cc")), "for": "the C engine of lesson 07 (optional)"},
        {"what": "cross compiler", "found": _command(("arm-none-eabi-gcc",)), "for": "the same on a Cortex-M4 (optional)"},
        {"what": "emulator", "found": _command(("qemu-system-arm",)), "for": "to run that without a board (optional)"},
        {"what": "Chromium", "found": _command(browsers), "for": "browser tests only (optional)"},
    ]


def _command(names: tuple[str, ...]) -> str:
    found = next((name for name in names if shutil.which(name)), None)
    if found is None:
        return f"missing: apt-get install {DEBIAN.get(names[0], names[0])}"
    said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30).stdout
    version = re.search(r"\d+(\.\d+)+", said)
    return f"{found} {version.group() if version else '(version unknown)'}"


def missing(rows: list[dict] | None = None) -> list[str]:
    """Names of the things that are missing and not optional."""
    rows = packages() + tools() if rows is None else rows
    return [row["what"] for row in rows if row["found"].startswith("missing") and "optional" not in row["for"]]
