"""Shapes of labelling tools as polygons, and masks as run-length codes.

Points are float64 [n, 2], x and y in pixels, the upper left corner of the picture at 0, 0.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as mask_utils

# How far a polygon may stay behind the curve it stands for, in pixels. The rasteriser of COCO
# knows fifths of a pixel.
_SAGITTA = 0.02
_MOST_CORNERS = 2000
_MOST_SIXTHS = 6  # groups of 5 bits of one count: pictures have fewer than 2**30 pixels

Points = Float[np.ndarray, "_ 2"]


def rectangle(x0: float, y0: float, x1: float, y1: float, angle: float = 0.0) -> Points:
    """A rectangle from corner to corner, turned about its first corner.

    angle: radians, clockwise as seen (y points down).
    """
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)
    return corners[0] + _turn(corners - corners[0], angle)


def circle(x: float, y: float, radius: float) -> Points:
    """A circle, as a polygon within 0.02 px of it."""
    return ellipse(x, y, radius, radius)


def ellipse(x: float, y: float, rx: float, ry: float, theta: float = 0.0) -> Points:
    """An ellipse with half axes rx and ry, as a polygon within 0.02 px of it.

    theta: radians, clockwise as seen, from the x axis to the half axis rx (as VIA has it).
    """
    rx, ry = abs(rx), abs(ry)
    large = max(rx, ry, 1e-3)
    corners = math.pi / math.acos(max(1 - 2 * _SAGITTA / large, -0.5))
    count = min(max(math.ceil(corners), 16), _MOST_CORNERS)
    t = np.arange(count) * (2 * np.pi / count)
    # On the mean of the inner and the outer polygon: half the error, and the area is kept better.
    grow = 2 / (1 + math.cos(math.pi / count))
    outline = np.stack([rx * grow * np.cos(t), ry * grow * np.sin(t)], axis=1)
    return np.array([x, y]) + _turn(outline, theta)


def stroke(polyline: Points, width: float) -> list[Points]:
    """What a round pen of that width covers: one rectangle per piece, one circle per point.

    The parts overlap; their union is the mask.
    """
    parts = [circle(x, y, width / 2) for x, y in polyline]
    for a, b in zip(polyline[:-1], polyline[1:], strict=True):
        length = float(np.hypot(*(b - a)))
        if length > 0:
            side = np.array([a[1] - b[1], b[0] - a[0]]) * (width / 2 / length)
            parts.append(np.stack([a - side, b - side, b + side, a + side]))
    return parts


def _turn(offsets: Points, angle: float) -> Points:
    cos, sin = math.cos(angle), math.sin(angle)
    return offsets @ np.array([[cos, sin], [-sin, cos]])


def clip_polygon(polygon: Points, hw: tuple[int, int]) -> Points:
    """The part of a polygon inside a picture of size hw; no points if there is none.

    Source: Sutherland and Hodgman, "Reentrant polygon clipping", CACM 1974. What falls apart stays
    joined by edges along the border, which have no area.
    """
    for axis, limit in ((0, float(hw[1])), (1, float(hw[0]))):
        for sign, bound in ((1.0, 0.0), (-1.0, -limit)):
            polygon = _clip_side(polygon, axis, sign, bound)
    return polygon


def _clip_side(polygon: Points, axis: int, sign: float, bound: float) -> Points:
    """Keeps the side where sign * coordinate >= bound."""
    depth = sign * polygon[:, axis] - bound
    inside = depth >= 0
    if inside.all() or not inside.any():
        return polygon if inside.all() else polygon[:0]
    following, next_depth = np.roll(polygon, -1, 0), np.roll(depth, -1)
    crosses = inside != np.roll(inside, -1)
    share = np.divide(depth, depth - next_depth, out=np.zeros_like(depth), where=crosses)
    crossing = polygon + share[:, None] * (following - polygon)
    crossing[:, axis] = sign * bound  # exactly on the border
    both = np.stack([polygon, crossing], axis=1).reshape(-1, 2)
    return both[np.stack([inside, crosses], axis=1).ravel()]


def polygon_area(polygon: Points) -> float:
    """The area that a polygon encloses; what it winds around twice counts twice."""
    x, y = (polygon - polygon[:1]).T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def mask_to_rle(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """A mask as a compressed COCO RLE."""
    rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def counts_to_rle(counts: Int[np.ndarray, " n"], hw: tuple[int, int]) -> dict[str, Any]:
    """Counts of a column-wise run-length code, background first, as a compressed COCO RLE."""
    rle = mask_utils.frPyObjects({"size": list(hw), "counts": counts.tolist()}, *hw)
    return {"size": list(hw), "counts": rle["counts"].decode("ascii")}


def rle_counts(counts: Any) -> Int[np.ndarray, " n"] | None:
    """The counts of a COCO RLE of either kind; None if they are damaged.

    pycocotools reads past the end of a damaged text, so that it must not see one.
    """
    if isinstance(counts, str):
        return _decompress(counts)
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int}:
        return None
    if not all(0 <= count < 2**31 for count in counts):
        return None
    return np.array(counts, np.int64)


def _decompress(text: str) -> Int[np.ndarray, " n"] | None:
    """Source: pycocotools' `rleFrString`: LEB128 with 6 bits a character, signed differences."""
    if not text.isascii():
        return None
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63:
        return None
    last = (codes & 0x20) == 0
    if not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_SIXTHS + 1:
        return None
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    values -= np.where(codes[ends] & 0x10, 1 << (5 * lengths), 0)
    # From the fourth count on, each is written as its difference from the last but one.
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return None if values.min() < 0 else values
