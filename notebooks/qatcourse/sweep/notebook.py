"""The notebook of a sweep, and the storage services that papermill reads and writes notebooks in."""

import json
from importlib import import_module
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from papermill import inspect_notebook
from papermill.iorw import papermill_io

from qatlib.wording import need, sentence

STORAGE = {  # what papermill's handlers import, and papermill's extra that installs it
    "s3://": ("boto3", "s3"),
    "gs://": ("gcsfs", "gcs"),
    "abs://": ("azure.storage.blob", "azure"),
    "adl://": ("azure.datalake.store", "azure"),
    "hdfs://": ("pyarrow", "hdfs"),
    "https://github.com/": ("github", "github"),
    "http://github.com/": ("github", "github"),
}


def read_notebook(notebook, grid: dict) -> tuple[str, str]:
    """(JSON text, the part of it that decides results) of a notebook that takes all the parameters of `grid`.

    Raises FileNotFoundError, or ValueError for a file that is no notebook, has no `parameters` cell, lacks a name of the grid,
    or asks for a kernel that is not installed.
    """
    text = _text(notebook)
    try:
        node = nbformat.reads(text, as_version=4)
        nbformat.validate(node)
    except Exception as problem:
        raise ValueError(f"{notebook} is not a notebook; give the path of an .ipynb file") from problem
    language = _language(notebook, node)
    if "name" not in node.metadata.get("language_info", {}):  # never run in Jupyter; papermill needs the language
        node.metadata["language_info"] = {"name": language}
        text = nbformat.writes(node)
    known = inspect_notebook(node)
    if not known:
        raise ValueError(f"{notebook} takes no parameters; tag a cell `parameters` and set each with a literal there")
    unknown = [name for name in grid if name not in known]
    if unknown:
        raise ValueError(f"{notebook} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    return text, json.dumps([[cell.cell_type, cell.source, cell.metadata.get("tags", [])] for cell in node.cells])


def _language(notebook, node) -> str:
    """The language of the notebook's kernel, which must be installed."""
    name, installed = node.metadata.get("kernelspec", {}).get("name"), KernelSpecManager().find_kernel_specs()
    if name not in installed:
        raise ValueError(f"{notebook} asks for the kernel {name!r}; choose an installed one in Jupyter ({', '.join(installed)})")
    return KernelSpecManager().get_kernel_spec(name).language


def _text(notebook) -> str:
    if "://" in str(notebook):
        _check_handler(str(notebook))
        try:
            return papermill_io.read(str(notebook), [".ipynb"])
        except Exception as problem:  # each service raises its own kinds
            raise OSError(None, f"cannot read {notebook} ({sentence(problem)}); correct the address or your access") from problem
    path = Path(notebook)
    if not path.is_file():
        raise FileNotFoundError(f"no notebook at {path}; give the path of an .ipynb file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not a notebook (not UTF-8 text); give the path of an .ipynb file") from problem


def check_target(url: str) -> None:
    """Raise ValueError for a URL that papermill cannot write to, ImportError where its handler lacks a package."""
    if url.partition("://")[2].startswith("github.com/"):
        raise ValueError(f"notebooks cannot go to {url!r}; papermill only reads from GitHub, give a folder of a storage service")
    _check_handler(url)


def _check_handler(url: str) -> None:
    schemes = sorted({scheme for scheme, _ in papermill_io._handlers if scheme.endswith("://")})
    if not url.startswith(tuple(schemes)):
        raise ValueError(f"notebooks cannot go to {url!r}; papermill writes to {', '.join(schemes)}")
    for scheme, (package, extra) in STORAGE.items():
        if url.startswith(scheme):
            _check_package(scheme, package, extra)


def _check_package(scheme: str, package: str, extra: str) -> None:
    try:
        import_module(package)
    except ImportError as problem:
        if extra == "s3":  # the only one that is an extra of ours too
            raise need(package, extra) from problem
        raise ImportError(f"{scheme} needs {package}; install it with: pip install 'papermill[{extra}]'") from problem
