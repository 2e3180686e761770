"""The tests again, with float sums in other orders:  python tests/processors.py [-k WORD] [PATH ...]   (no path: EXACT)

Processors differ in how many numbers they add at a time, libraries in how they cut a sum into blocks, and threads in who adds
which block. Each setting below makes this computer add in another such order. The table first says which sums that changed.
"""

import argparse
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXACT = (
    "catalogue", "checkpoint", "compact", "convert", "golden_layers", "integer", "modes", "network_idioms", "onnx", "pipelines",
    "properties", "qat_start", "quantizers", "scales", "statistics",
)  # fmt: skip
# What ATen, oneDNN and MKL read when torch is imported, how many threads add, and what orders.py reads.
SETTINGS = {
    "as it is, 1 thread": {"OMP_NUM_THREADS": "1"},
    "as it is, 2 threads": {"OMP_NUM_THREADS": "2"},
    "SSE4.1, 1 thread": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1",
    },
    "AVX2, 1 thread": {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "1",
    },
    "AVX2, 2 threads, channels last": {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2", "QATLIB_SUMS": "channels last",
    },
    "AVX2 in ATen, AVX-512 in oneDNN, 2 threads": {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OMP_NUM_THREADS": "2",
    },
    "channels and batches shuffled, 1 thread": {"OMP_NUM_THREADS": "1", "QATLIB_SUMS": "shuffled 1"},
    "exact sums, 1 thread": {"OMP_NUM_THREADS": "1", "QATLIB_SUMS": "exact"},
}  # fmt: skip
IN_EVERY_RUN = ("SSE4.1, 1 thread", "AVX2, 2 threads, channels last", "exact sums, 1 thread")  # of `make test`


def elsewhere(name: str) -> bool:
    """Whether this computer can pretend to be the other x86 processor that `name` stands for; ATen takes AVX2 on trust."""
    import torch

    x86 = platform.machine().lower() in ("x86_64", "amd64")
    ours = torch.backends.cpu.get_cpu_capability()
    return "ATEN_CPU_CAPABILITY" in SETTINGS[name] and x86 and ("AVX2" not in name or ours in ("AVX2", "AVX512"))


def available(name: str) -> bool:
    return "ATEN_CPU_CAPABILITY" not in SETTINGS[name] or elsewhere(name)


def environment(name: str) -> dict[str, str]:
    """This process's environment without settings of this kind, with those of `name`."""
    kinds = {key for settings in SETTINGS.values() for key in settings}
    return {key: value for key, value in os.environ.items() if key not in kinds} | SETTINGS[name]


def command(paths: list[str]) -> list[str]:
    """Pytest on `paths`, as a module of the Python that runs this."""
    tests = paths or [str(next(HERE.rglob(f"test_{name}.py"))) for name in EXACT]
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]


def digests() -> dict[str, str]:
    """The bits of some float results, as torch gives them here."""
    import torch
    import torch.nn.functional as F
    from orders import sums

    generator = torch.Generator().manual_seed(0)
    x, w, rows = (torch.rand(shape, generator=generator) - 0.5 for shape in ((8, 24, 16, 16), (16, 24, 3, 3), (64, 384)))
    with sums():
        y = F.conv2d(x, w, padding=1)
        results = {
            "convolution": y, "its gradient": torch.ops.aten.convolution_backward(
                y, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])[1],
            "1x1 convolution": F.conv2d(x, w[:, :, :1, :1]), "linear": F.linear(rows, rows), "sum": x.sum((0, 2, 3)),
            "softmax": rows.softmax(1), "batch norm": F.batch_norm(x, None, None, training=True), "exp": rows.exp(),
            "log2": (rows + 1).log2(), "histogram": torch.histc(F.conv2d(x, w), 2048),
        }  # fmt: skip
    return {name: hashlib.sha256(y.numpy().tobytes()).hexdigest()[:12] for name, y in results.items()}


@functools.cache
def digests_at(name: str) -> dict[str, str]:
    """`digests` of a process with setting `name`."""
    code = "import json, processors; print(json.dumps(processors.digests()))"
    line = [sys.executable, "-c", code]
    return json.loads(subprocess.run(line, cwd=HERE, env=environment(name), capture_output=True, text=True, check=True).stdout)


def changed(name: str) -> list[str]:
    """Which of `digests` setting `name` changes, compared with one thread of the processor as it is."""
    first, other = digests_at(next(iter(SETTINGS))), digests_at(name)
    return [key for key in first if first[key] != other[key]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", dest="word", default="", help="only settings whose name holds this word")
    parser.add_argument("paths", nargs="*", help="tests, notebooks, or pytest's options after --")
    options = parser.parse_args()
    names, failed = [name for name in SETTINGS if options.word in name and available(name)], []
    for name in names:
        print(f"{name}: changes {', '.join(changed(name)) or 'nothing'}", flush=True)
    for name in names:
        print(f"\n=== {name}", flush=True)
        if subprocess.run(command(options.paths), env=environment(name)).returncode:
            failed.append(name)
    print(f"\n{len(names) - len(failed)} of {len(names)} settings passed" + (f"; failed: {'; '.join(failed)}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
