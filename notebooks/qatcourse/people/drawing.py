"""Pixels for the drawn people: random numbers, tapered capsules, backgrounds, and the camera's faults.

The same seed must give the same bytes on every machine, so this file uses only operations that IEEE 754 rounds
correctly (+ - * / sqrt floor, comparisons): no `exp`, no library `sin`, no matrix product, no floating-point sum over
an axis, whose last bits differ between builds of NumPy. Random numbers come from raw PCG64 words, whose stream NumPy
promises never to change (NEP 19).
"""

import numpy as np

SIDE = 64  # pixels along each side of a picture
OCCLUDER = 255  # the part number of things in front of the person; 0 is the background
_WINDOWS = (6, 9, 12, 15, 19, 24, 32, SIDE)  # a capsule is drawn in the smallest square window that holds it
# One capsule, in pixels: end A, end B, radius at A and at B, colour from A to `cut` and beyond it, where the colour
# changes (0 at A, 1 at B), stripes per length and per width, how dark the stripes are.
FIELDS = ("ax", "ay", "bx", "by", "ra", "rb", "r0", "g0", "b0", "r1", "g1", "b1", "cut", "bands", "lines", "contrast")


class Uniforms:
    """Uniform random numbers from raw PCG64 words; `Uniforms(seed, chunk)` is one independent stream."""

    def __init__(self, seed: int, chunk: int):
        self._words = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(chunk,)))

    def __call__(self, *shape: int, low=0.0, high=1.0) -> np.ndarray:
        """float64 array of `shape`, uniform in [low, high); `low` and `high` broadcast."""
        count = int(np.prod(shape))
        unit = (self._words.random_raw(count) >> np.uint64(11)) * 2.0**-53
        return low + unit.reshape(shape) * (np.asarray(high, np.float64) - low)

    def bytes(self, *shape: int) -> np.ndarray:
        """uint8 array of `shape`, all 256 values equally likely."""
        count = int(np.prod(shape))
        words = self._words.random_raw(-(-count // 8)).astype("<u8")
        return words.view(np.uint8)[:count].reshape(shape)


def sine(degrees: np.ndarray) -> np.ndarray:
    """sin of an angle in degrees, by a polynomial (error below 1e-9), with the same bits on every machine.

    >>> bool(np.all(np.abs(sine(np.array([0.0, 30, 90, -90, 210])) - [0, 0.5, 1, -1, -0.5]) < 1e-9))
    True
    """
    turns = np.asarray(degrees, np.float64) / 360.0
    turns = turns - np.floor(turns + 0.5)
    turns = np.where(turns > 0.25, 0.5 - turns, np.where(turns < -0.25, -0.5 - turns, turns))
    x = turns * 6.283185307179586
    square = x * x
    series = np.full_like(x, 1.0)
    for divisor in (12 * 13, 10 * 11, 8 * 9, 6 * 7, 4 * 5, 2 * 3):
        series = 1.0 - square / divisor * series
    return x * series


def cosine(degrees: np.ndarray) -> np.ndarray:
    """cos of an angle in degrees; see `sine`."""
    return sine(np.asarray(degrees, np.float64) + 90.0)


def paint(canvas: np.ndarray, parts: np.ndarray, capsules: np.ndarray, numbers: np.ndarray, light: np.ndarray) -> None:
    """Paint `capsules` (N, K, len(FIELDS)) one after another, the last on top, over `canvas` (3, N, 64, 64), in place.

    `numbers` (N, K) uint8 is written into `parts` (N, 64, 64) where a capsule covers at least half a pixel.
    `light` (N, 2) points to where the light comes from, length 0..1. A capsule of radius 0 paints nothing.
    """
    values = np.round(capsules[..., :6] * 64) / 64
    reach = np.maximum(values[..., 4], values[..., 5])[..., None] + 1
    low = np.floor(np.minimum(values[..., 0:2], values[..., 2:4]) - reach)
    high = np.ceil(np.maximum(values[..., 0:2], values[..., 2:4]) + reach)
    low, high = np.clip(low, 0, SIDE), np.clip(high, 0, SIDE)
    need = np.max(high - low, axis=-1)
    drawn = np.all(high > low, axis=-1) & (reach[..., 0] > 1)
    window = np.searchsorted(np.array(_WINDOWS), need)
    fields = np.concatenate([values, capsules[..., 6:]], axis=-1).astype(np.float32)
    flat, part_flat = canvas.reshape(3, -1), parts.reshape(-1)
    for k in range(capsules.shape[1]):
        for index, size in enumerate(_WINDOWS):
            chosen = np.flatnonzero(drawn[:, k] & (window[:, k] == index))
            if len(chosen):
                corner = np.minimum(low[chosen, k], SIDE - size).astype(np.int64)
                _paint_windows(flat, part_flat, chosen, corner, size, fields[chosen, k], numbers[chosen, k], light[chosen])


def _paint_windows(flat, part_flat, images, corner, size, fields, numbers, light) -> None:
    """One capsule in each of m `images`, in windows with the top-left pixels `corner` (x, y); arrays (size, size, m)."""
    column = {name: np.ascontiguousarray(fields[:, i]) for i, name in enumerate(FIELDS)}
    steps = np.arange(size)[:, None]
    xs, ys = corner[:, 0] + steps, corner[:, 1] + steps
    where = ((images * SIDE + ys) * SIDE)[:, None] + xs
    px = xs.astype(np.float32) + np.float32(0.5) - column["ax"]
    py = (ys.astype(np.float32) + np.float32(0.5) - column["ay"])[:, None]
    ex, ey = column["bx"] - column["ax"], column["by"] - column["ay"]
    square = np.maximum(ex * ex + ey * ey, np.float32(1 / 64))
    along = px * (ex / square) + py * (ey / square)
    t = np.minimum(np.maximum(along, 0), 1)
    px, py = px - t * ex, py - t * ey
    radius = column["ra"] + t * (column["rb"] - column["ra"])
    distance = np.sqrt(px * px + py * py)
    hit = np.flatnonzero(radius + np.float32(0.5) > distance)  # about a third of the window; the rest stays as it is
    image = hit % len(images)
    where, px, py, along, radius, distance = (v.take(hit) for v in (where, px, py, along, radius, distance))
    alpha = np.minimum(radius - distance + np.float32(0.5), 1)
    colour = {name: values.take(image) for name, values in column.items() if name not in FIELDS[:6]}
    shade = _shade(px, py, distance, radius, along, colour, light.astype(np.float32).T.take(image, axis=1))
    beyond = (along > colour["cut"]).astype(np.float32)
    for channel, name in enumerate("rgb"):
        paint = colour[name + "0"] + beyond * (colour[name + "1"] - colour[name + "0"])
        under = flat[channel].take(where)
        flat[channel][where] = under + alpha * (paint * shade - under)
    under = part_flat.take(where)
    part_flat[where] = under + (alpha >= 0.5) * (numbers.take(image) - under)  # uint8, modulo 256


def _shade(px, py, distance, radius, along, colour, light):
    """Brightness of a rounded, perhaps striped, limb: 1 in its middle, lighter towards the light, darker at the edges."""
    inverse = 1 / np.maximum(radius, np.float32(0.25))
    bent = distance * inverse
    light = light * np.float32(0.3)
    shade = 1 - np.float32(0.18) * (bent * bent) + inverse * (px * light[0] + py * light[1])
    striped = np.flatnonzero(colour["contrast"])
    bands, lines, cut, contrast = (colour[name].take(striped) for name in ("bands", "lines", "cut", "contrast"))
    along, across = along.take(striped), px.take(striped) * inverse.take(striped)
    phase = along * bands + across * lines
    odd = phase - 2 * np.floor(phase * np.float32(0.5)) >= 1
    shade[striped] *= 1 - contrast * (odd & (along <= cut))
    return shade


def background(uniforms: Uniforms, count: int) -> np.ndarray:
    """Empty scenes: (3, count, 64, 64) float32, about 0..255: gradients, blobs, texture, stripes, a floor."""
    base = uniforms(1, count, 1, 1, low=20, high=130) + uniforms(3, count, 1, 1, low=-25, high=25)
    blobs, texture = uniforms(count, 1, 1, high=80 / 128), uniforms(count, 1, 1, high=60 / 128) * uniforms(count, 1, 1)
    coarse = _enlarge(_muted(uniforms, count, 3), 17) * 0.45 + base
    coarse += (_enlarge(_muted(uniforms, count, 5), 17) - 127.5) * blobs
    coarse += (_muted(uniforms, count, 17) - 127.5) * texture
    canvas = _enlarge(coarse.astype(np.float32), SIDE)
    _add_patterns(canvas, uniforms, count)
    return canvas


def _muted(uniforms, count: int, cells: int) -> np.ndarray:
    """A (3, count, cells, cells) grid of colours near grey, 0..255."""
    grid = uniforms.bytes(4, count, cells, cells).astype(np.float32)
    return np.float32(0.55) * grid[3] + np.float32(0.45) * grid[:3]


def _enlarge(grid: np.ndarray, side: int) -> np.ndarray:
    """Bilinear enlargement of (..., c, c) to (..., side, side)."""
    cells = grid.shape[-1]
    position = (np.arange(side) + 0.5) * ((cells - 1) / side)
    left = position.astype(np.int64)
    part = (position - left).astype(np.float32)
    start = grid.take(left, axis=-1)
    grid = start + (grid.take(left + 1, axis=-1) - start) * part
    start, rise = grid.take(left, axis=-2), grid.take(left + 1, axis=-2)
    rise -= start
    rise *= part[:, None]
    rise += start
    return rise


def _add_patterns(canvas, uniforms, count) -> None:
    """Stripes (fences, bricks) in some scenes and a floor with its own colour in others, in place."""
    centre = np.arange(SIDE) + 0.5
    wave, angle = uniforms(count, 1, 1, low=3, high=14), uniforms(count, 1, 1, high=360)
    strength = np.where(uniforms(count) < 0.35, uniforms(count, low=10, high=70), 0)
    across, down = centre * (cosine(angle) / wave), centre[:, None] * (sine(angle) / wave)
    share = uniforms(count, 1, 1, low=0.2, high=0.8)
    horizon = np.where(uniforms(count) < 0.5, uniforms(count, low=30, high=60), SIDE + 9)
    slope = uniforms(count, 1, 1, low=-0.12, high=0.12)
    colour = uniforms(3, count, low=-70, high=70).astype(np.float32)
    for scene in np.flatnonzero(strength):
        phase = across[scene] + down[scene]
        bright = phase - np.floor(phase) < share[scene]
        canvas[:, scene] += (bright - np.float32(0.5)) * np.float32(strength[scene])
    for scene in np.flatnonzero(horizon < SIDE):
        floor = centre[:, None] > horizon[scene] + (centre - 32) * slope[scene, 0]
        canvas[:, scene] += floor * colour[:, scene, None, None]


def clutter(uniforms: Uniforms, count: int, most: int) -> np.ndarray:
    """Poles, branches and limb-like bars: up to `most` capsules in each scene."""
    capsules = np.zeros((count, most, len(FIELDS)))
    capsules[..., 0:2] = uniforms(count, most, 2, low=-4, high=68)
    length, angle = uniforms(count, most, low=2, high=24), uniforms(count, most, high=360)
    capsules[..., 2] = capsules[..., 0] + length * cosine(angle)
    capsules[..., 3] = capsules[..., 1] + length * sine(angle)
    present = uniforms(count, most) < uniforms(count, 1)
    capsules[..., 4] = uniforms(count, most, low=0.8, high=4) * present
    capsules[..., 5] = capsules[..., 4] * uniforms(count, most, low=0.6, high=1.2)
    for start in (6, 9):
        muted = uniforms(count, most, 4, low=10, high=235)
        capsules[..., start : start + 3] = 0.5 * muted[..., :3] + 0.5 * muted[..., 3:]
    capsules[..., 12] = uniforms(count, most, low=0.3, high=2)
    capsules[..., 13] = uniforms(count, most, high=6)
    capsules[..., 15] = np.where(uniforms(count, most) < 0.2, 0.4, 0)
    return capsules


def photograph(canvas: np.ndarray, uniforms: Uniforms, blur: float, noise: float) -> np.ndarray:
    """What a cheap camera makes of `canvas`: uneven light, contrast, blur, sensor noise; uint8 (count, 64, 64, 3)."""
    count = canvas.shape[1]
    centre = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    tilt = uniforms(count, 2, 1, 1, low=-0.55, high=0.55)
    gain = uniforms(count, 1, 1, low=0.65, high=1.15) * (1 + tilt[:, 0] * centre + tilt[:, 1] * centre[:, None])
    tint = uniforms(3, count, 1, 1, low=0.88, high=1.1)
    canvas = canvas * gain.astype(np.float32)
    canvas *= tint.astype(np.float32)
    canvas = _soften(canvas, np.maximum(uniforms(count, 1, 1, low=-0.4 * blur, high=blur), 0).astype(np.float32))
    grain = uniforms.bytes(3, count, SIDE, SIDE).astype(np.float32)
    grain -= np.float32(127.5)  # uniform, standard deviation 73.9
    grain *= (uniforms(count, 1, 1, high=noise) / 73.9).astype(np.float32)
    canvas += grain
    np.clip(canvas, 0, 255, out=canvas)
    canvas += np.float32(0.5)
    return np.ascontiguousarray(np.moveaxis(canvas.astype(np.uint8), 0, -1))


def _soften(canvas, amount):
    """Mix each pixel with its neighbours, along the rows and then along the columns; `amount` 0..1; in place."""
    half = amount * np.float32(0.5)
    for axis in (-1, -2):
        lines = np.moveaxis(canvas, axis, 0)
        change = lines[:-2] + lines[2:]
        change *= np.float32(0.5)
        change -= lines[1:-1]
        change *= np.moveaxis(half, axis, 0)
        lines[1:-1] += change
    return canvas
