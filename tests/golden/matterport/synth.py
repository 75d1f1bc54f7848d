"""The inputs behind Matterport's golden numbers: NumPy alone, images by whole numbers."""

import zlib

import numpy as np


def noise(h, w, seed=0):
    """[h, w, 3] int64 in 0..31: a hash of row, column, channel, seed."""
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij")
    v = (x * 7919 + y * 104729 + c * 1299709 + seed * 15485863 + 12345) & 0x7FFFFFFF
    v = (v * 1103515245 + 12345) & 0x7FFFFFFF
    v = ((v >> 7) * 1103515245 + 12345) & 0x7FFFFFFF
    return (v >> 11) & 31


def _random(state):
    while True:
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        yield state >> 8


def objects(h, w, seed=0, count=9):
    """(kind, y, x, radius, colour) of each: 0 square, 1 disc, 2 triangle."""
    draw = _random(1000003 * (seed + 1))
    found = []
    for i in range(count):
        radius = 6 + next(draw) % (min(h, w) // 5)
        y, x = next(draw) % h, next(draw) % w
        found.append((i % 3, y, x, radius, tuple(next(draw) % 224 for _ in range(3))))
    return found


def image(h, w, seed=0):
    """[h, w, 3] uint8 RGB: gradients, nine shapes painted in order, noise."""
    y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    ramps = (
        x * 223 // max(w - 1, 1),
        y * 223 // max(h - 1, 1),
        (x + y) * 223 // max(h + w - 2, 1),
    )
    out = np.stack(ramps, axis=-1)
    for kind, cy, cx, r, colour in objects(h, w, seed):
        dy, dx = y - cy, x - cx
        inside = (
            (abs(dy) <= r) & (abs(dx) <= r),
            dy * dy + dx * dx <= r * r,
            (dy <= r) & (2 * abs(dx) <= dy + r),
        )[kind]
        out[inside] = colour
    return (out + noise(h, w, seed)).astype(np.uint8)


def normal(name, shape):
    """float32 standard normal numbers, seeded by a name."""
    rng = np.random.default_rng(zlib.crc32(name.encode("ascii")))
    return rng.standard_normal(shape).astype(np.float32)
