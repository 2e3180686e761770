"""Read the tensors of a `torch.save` file with NumPy alone, and run nothing that the file asks for.

Such a file is a zip: `data.pkl` describes a dictionary of tensors, `data/0`, `data/1`, … hold their bytes. A pickle can
name any Python function to call; this reader knows three kinds of name and refuses every other one, so a hostile file
stays a file.
"""

import os
import pickle
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path

import numpy as np

STORAGES = {
    "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16", "IntStorage": "int32",
    "LongStorage": "int64", "FloatStorage": "float32", "DoubleStorage": "float64", "BoolStorage": "bool",
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries of arrays. What it hands out is a string or a throw-away function: nothing to tamper with."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str):
        super().__init__(archive.open(f"{prefix}/data.pkl"))
        self.archive, self.prefix = archive, prefix

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _tensor(storage, offset, size, stride)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise ValueError(
            f"it asks for {module}.{name}, which no compact model needs; do not trust this file, export the model "
            "again"
        )

    def persistent_load(self, pid) -> np.ndarray:
        _, dtype, key, _, count = pid
        raw = self.archive.read(f"{self.prefix}/data/{key}")
        values = np.frombuffer(raw, dtype if dtype in STORAGES.values() else "V")
        if len(values) != count:
            raise ValueError(f"tensor {key} has {len(values)} values instead of {count}")
        return values


def _tensor(values: np.ndarray, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    expected = tuple(prod(size[i + 1 :]) for i in range(len(size)))
    if any(s != e for s, e, n in zip(stride, expected, size, strict=True) if n > 1) or min(size, default=0) < 0:
        raise ValueError("it holds a transposed tensor; save contiguous tensors")
    if offset < 0 or offset + prod(size) > len(values):
        raise ValueError("a tensor reaches beyond its storage")
    return values[offset : offset + prod(size)].reshape(size)


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors of a `torch.save`d dict, as NumPy arrays, without torch.

    Raises FileNotFoundError for a missing file; ValueError, naming the file, for one that is truncated, damaged, not a
    dict of tensors, or that asks for anything but tensors (nothing in it is executed).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}; export it with quantize_model(model) and torch.save(q.state_dict(), {path.name!r})"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its entries are compressed, which torch.save never does")
            prefix = next(name for name in archive.namelist() if name.endswith("/data.pkl")).rpartition("/")[0]
            content = _Unpickler(archive, prefix).load()
        items = dict(dict.items(content))
    except zipfile.BadZipFile as problem:
        raise ValueError(
            f"{path} is truncated, damaged or no torch.save file ({problem}); copy or export it again"
        ) from problem
    except ValueError as problem:
        raise ValueError(f"{path} is refused: {problem}") from problem
    except Exception as problem:  # a hostile or foreign pickle can fail in any way; every way is a refusal
        raise ValueError(
            f"{path} is refused: it holds no plain dict of tensors ({type(problem).__name__}: {problem})"
        ) from problem
    for key, value in items.items():
        if not isinstance(key, str) or not isinstance(value, np.ndarray):
            raise ValueError(
                f"{path} is refused: entry {key!r} is a {type(value).__name__}, not a tensor; save q.state_dict() "
                "itself"
            )
    return items
