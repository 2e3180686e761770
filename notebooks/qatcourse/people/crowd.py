"""Drawn people for pose estimation: any number of labelled 64×64 pictures, from a seed, without a download.

>>> people = draw(2, seed=0, workers=1, progress=False)
>>> people.images.shape, people.joints.shape, str(people.images.dtype)
((2, 64, 64, 3), (2, 14, 2), 'uint8')

Guaranteed: the same seed gives the same bytes, whatever the machine, the version of NumPy, the number of workers and the
number of pictures (the first 10 of 1,000 are the 10 of 10). `drawing.py` says how; a test pins the SHA-256.

    python -m qatcourse.people.data_card --card                    # the statistics that data/README.md quotes
    python -m qatcourse.people.data_card --contact-sheet FILE.png  # 60 pictures, skeletons over some
    python -m qatcourse.people.data_card --count 20000             # draw, and print the rate
"""

import hashlib
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from psutil import virtual_memory
from tqdm.auto import tqdm

from qatcourse.people import body, clothes, drawing
from qatcourse.people.body import Difficulty
from qatcourse.people.cache import cache_folder, kept

CHUNK = 256  # pictures drawn together from one random stream; another value would give other pictures
BLOCK = 16  # of these, whole pictures are worked on in blocks that stay in the processor's cache
SPLITS = ("train", "test")
MOST_SEED = 2**31 - 1
BYTES = drawing.SIDE**2 * 3 + 14 * 2 * 4 + 14 + 14  # of one picture with its labels


class PoseArrays(NamedTuple):
    """N labelled pictures. Coordinates: x right, y down, in pixels; the centre of pixel column c is c + 0.5."""

    images: np.ndarray  # uint8 (N, 64, 64, 3), red, green, blue
    joints: np.ndarray  # float32 (N, 14, 2), order `body.JOINTS`; right and left are the person's own
    labelled: np.ndarray  # bool (N, 14): the joint lies in the picture
    visible: np.ndarray  # bool (N, 14): labelled, and not hidden by the body or by a thing in front of it


def draw(
    n: int, seed: int, workers: int | None = None, progress: bool = True, difficulty: Difficulty | None = None
) -> PoseArrays:
    """Draw `n` pictures of people on `workers` processes (None: one per core).

    Raises ValueError for `n` below 1, or of more pictures than fit in the free memory, a `seed` outside 0..2**31-1, or `workers`
    below 1; TypeError for other types.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    for name, value, low, high in (("n", n, 1, 10**8), ("seed", seed, 0, MOST_SEED), ("workers", workers, 1, 1024)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{name} = {value} is outside {low}..{high}; choose a value in that range")
    check_memory(n)
    difficulty = Difficulty() if difficulty is None else difficulty
    chunks = range(-(-n // CHUNK))
    workers = min(workers, len(chunks))
    out = PoseArrays(
        np.empty((n, drawing.SIDE, drawing.SIDE, 3), np.uint8), np.empty((n, 14, 2), np.float32),
        np.empty((n, 14), bool), np.empty((n, 14), bool),
    )  # fmt: skip
    start = time.perf_counter()
    with tqdm(total=n, desc="drawing people", unit="picture", disable=not progress) as bar:
        for chunk, drawn in zip(chunks, _drawn_chunks(seed, chunks, difficulty, workers)):
            count = min(CHUNK, n - chunk * CHUNK)
            for target, part in zip(out, drawn):
                target[chunk * CHUNK :][:count] = part[:count]
            bar.update(count)
    if progress:
        seconds = time.perf_counter() - start
        print(f"drew {n:,} pictures in {seconds:.1f} s: {n / seconds:,.0f} a second on {workers} worker(s)")
    return out


def check_memory(n: int) -> None:
    """Raise ValueError where `n` pictures do not fit in the memory that is free now; for use before long work."""
    free = virtual_memory().available
    if n * BYTES > free:
        raise ValueError(
            f"{n:,} pictures need {n * BYTES / 1e9:,.1f} GB, more than the {free / 1e9:,.1f} GB of free memory; "
            f"choose at most {free // BYTES:,}"
        )


def _drawn_chunks(seed: int, chunks: range, difficulty: Difficulty, workers: int):
    """The drawn chunks in order; in this process where one worker is asked for or this process may have no children."""
    if workers == 1 or multiprocessing.current_process().daemon:
        yield from (_draw_chunk(seed, chunk, difficulty) for chunk in chunks)
        return
    pool = _pool(workers)
    try:
        yield from pool.map(_draw_chunk, [seed] * len(chunks), chunks, [difficulty] * len(chunks))
    finally:  # after an interrupt the chunks that wait are not drawn
        pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> Executor:
    """Forked processes on Linux (the caller's script needs no `if __name__ == "__main__"`); elsewhere threads."""
    if sys.platform == "linux":
        deaf = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}  # half a result would block the others
        return ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), **deaf)
    return ThreadPoolExecutor(workers)


def _draw_chunk(seed: int, chunk: int, difficulty: Difficulty) -> PoseArrays:
    """Chunk number `chunk` of the pictures of `seed`: always CHUNK pictures, from its own random stream."""
    uniforms = drawing.Uniforms(seed, chunk)
    blocks = range(0, CHUNK, BLOCK)
    canvas = np.concatenate([drawing.background(uniforms, BLOCK) for _ in blocks], axis=1)
    clutter = drawing.clutter(uniforms, CHUNK, difficulty.clutter)
    parts = np.zeros((CHUNK, drawing.SIDE, drawing.SIDE), np.uint8)
    light = uniforms(CHUNK, 2, low=-0.7, high=0.7)
    drawing.paint(canvas, parts, clutter, np.zeros(clutter.shape[:2], np.uint8), light)
    angles = body.pose_angles(uniforms, CHUNK)
    roll = uniforms(CHUNK, low=-difficulty.roll, high=difficulty.roll)
    points = body.skeleton(angles, uniforms, body.view_yaw(uniforms, CHUNK, difficulty), roll)
    points, height = body.place(points, uniforms, difficulty)
    drawing.paint(canvas, parts, *clothes.dress(points, height, uniforms, difficulty.kit), light)
    front = body.occluders(uniforms, CHUNK, difficulty.occluded)
    drawing.paint(canvas, parts, front, np.full(front.shape[:2], drawing.OCCLUDER, np.uint8), light)
    taken = [drawing.photograph(canvas[:, i : i + BLOCK], uniforms, difficulty.blur, difficulty.noise) for i in blocks]
    return PoseArrays(np.concatenate(taken), *clothes.labels(points, parts, height))


def cached(n: int, seed: int, split: str, folder: str | os.PathLike | None = None, workers: int | None = None,
           progress: bool = True) -> PoseArrays:  # fmt: skip
    """`n` pictures of `split` ("train" or "test", never from one random stream), drawn once and then read from a file.

    `folder`: default `cache_folder()`. A missing, damaged or outdated file is drawn again; where nothing can be written
    the pictures are returned all the same. Raises ValueError for another split, and as `draw` does.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MOST_SEED // 2:
        raise ValueError(f"seed = {seed!r} must be an integer in 0..{MOST_SEED // 2}")
    folder, name = Path(folder or cache_folder()), f"figures-{split}-seed{seed}-n{n}-"
    path = folder / f"{name}{_recipe()}.npz"
    check_memory(n)
    outdated = set(folder.glob(f"{name}*.npz")) - {path}
    stream = 2 * int(seed) + SPLITS.index(split)
    return PoseArrays(*kept(path, n, PoseArrays._fields, drawing.SIDE, lambda: draw(n, stream, workers, progress), outdated))


def _recipe() -> str:
    """Eight hex digits that change with the drawing code and Difficulty, so that no outdated file is read."""
    sources = [Path(module.__file__).read_bytes() for module in (body, clothes, drawing)]
    return hashlib.sha256(b"".join(sources) + repr((CHUNK, Difficulty())).encode()).hexdigest()[:8]
