"""The doctor's look at boxes and outlines as they are written: numbers, borders, crossings."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from maskrcnn_jax.data.doctor_read import RawData, Thing, echo
from maskrcnn_jax.data.formats import outlines, reading
from maskrcnn_jax.data.formats.objects import OUTSIDE_PX, OUTSIDE_SHARE

# A box may stick out so far before the strict loader refuses it: pixels, and share of its side.
_BOX_OUTSIDE_PX, _BOX_OUTSIDE_SHARE = 4.0, 0.1
_LEAST_FOR_FRACTIONS = 16  # px; in smaller pictures an object of one pixel is an object
_LONGEST = 1e6  # px of outline; the rasteriser takes memory in proportion to it
_WORK = 200  # edges that an edge is compared with, on an average
_STEP = 500  # comparisons that take as long as to begin with another one of each edge
_LARGEST = 2.0**32  # square px, of an area
_CHUNK = 200_000  # edges looked at together: about 50 MB

HW = tuple[int, int]


def parse(raw: RawData) -> None:
    """Fills in box, area, polygons and RLE of every object; what is wrong becomes a finding."""
    for thing in raw.things:
        entry = raw.content["annotations"][thing.row]
        hw = raw.photos[thing.photo].hw if thing.photo >= 0 else None
        area = entry.get("area")
        if type(area) in (int, float) and 0 <= area <= _LARGEST:
            thing.area = float(area)
        if "area" in entry and thing.area is None:
            message = f"'area' is {echo(area)}; leave it out, it is measured on the mask"
            raw.tell("warning", "bad-area", message, raw.call(thing), thing.photo)
        thing.box = _box(raw, thing, entry.get("bbox"), hw)
        _segmentation(raw, thing, entry.get("segmentation"), hw)
        if hw is not None and thing.polygons:
            _borders(raw, thing, hw)


def _box(raw: RawData, thing: Thing, bbox: Any, hw: HW | None) -> tuple | None:
    values = reading.numbers(bbox) if isinstance(bbox, list) and len(bbox) == 4 else None
    if values is None:
        message = f"'bbox' is {echo(bbox)}; write four numbers x, y, width, height in pixels"
        raw.tell("error", "bad-box", message, raw.call(thing), thing.photo)
        return None
    x, y, w, h = values.tolist()
    height, width = hw or (math.inf, math.inf)
    x1, y1 = min(x + w, width), min(y + h, height)
    if not (np.float32(x1) > np.float32(max(x, 0)) and np.float32(y1) > np.float32(max(y, 0))):
        message = f"'bbox' {echo(bbox)} (x, y, width, height) has no area inside the picture"
        message += "; correct or remove it"
        raw.tell("error", "empty-box", message, raw.call(thing), thing.photo)
        return (x, y, x + w, y + h)
    over = [(max(-x, x + w - width), w), (max(-y, y + h - height), h)]
    if any(o > max(_BOX_OUTSIDE_PX, _BOX_OUTSIDE_SHARE * side) for o, side in over):
        message = f"'bbox' {echo(bbox)} (x, y, width, height) leaves the picture of width {width} "
        message += f"and height {height}; correct the box or the size of the picture"
        raw.tell("error", "box-far-outside", message, raw.call(thing), thing.photo)
    elif any(o > 0 for o, _ in over):
        by = max(o for o, _ in over)
        message = f"'bbox' sticks out of the picture by {by:.2f} px; it is cut off at the border"
        raw.tell("note", "box-outside", message, raw.call(thing), thing.photo)
    return (x, y, x + w, y + h)


def _segmentation(raw: RawData, thing: Thing, value: Any, hw: HW | None) -> None:
    def tell(code: str, message: str) -> None:
        raw.tell("error", code, message, raw.call(thing), thing.photo)

    if not value:
        what = "is missing" if value is None else f"is {echo(value)}"
        tell("no-segmentation", f"'segmentation' {what}; mask training needs polygons or RLE")
    elif isinstance(value, dict):
        thing.rle = _rle(tell, value, hw)
    elif isinstance(value, list) and reading.points(value) is not None and len(value) >= 6:
        thing.polygons.append(reading.points(value))
        tell("flat-polygon", "'segmentation' is one list of numbers, not a list of such; or --fix")
    elif not isinstance(value, list) or not all(isinstance(p, list) for p in value):
        tell("bad-mask", f"'segmentation' is {echo(value)}, neither a list of polygons nor an RLE")
    else:
        for polygon in value:
            points = reading.points(polygon)
            if len(polygon) < 6 or len(polygon) % 2:
                message = f"a polygon has {len(polygon)} numbers; at least three points x, y are "
                tell("few-points", message + "needed: correct or remove it")
            elif points is None:
                tell("bad-points", "a polygon holds other than finite numbers; correct it")
            else:
                thing.polygons.append(points)


def _rle(tell: Callable[[str, str], None], rle: dict, hw: HW | None) -> dict | None:
    if hw is None:
        return None
    size, counts = rle.get("size"), rle.get("counts")
    if size != list(hw):
        message = f"the RLE has the 'size' {echo(size)}, the picture's height and width are "
        tell("bad-rle", f"{message}{list(hw)}; export it again")
        return None
    values = outlines.rle_counts(counts)
    if values is None or values.sum() != hw[0] * hw[1]:
        message = f"the 'counts' of the RLE do not cover the {hw[0] * hw[1]} pixels of the picture"
        tell("bad-rle", f"{message}; export it again")
        return None
    if not values[1::2].any():
        tell("no-area", "the mask is empty; remove the annotation")
        return None
    return {"size": list(hw), "counts": counts}


def _borders(raw: RawData, thing: Thing, hw: HW) -> None:
    """Cuts polygons off at the border, and tells how far they went."""
    points = np.concatenate(thing.polygons)
    low, high, side = points.min(0), points.max(0), np.array(hw[::-1], np.float64)
    excess = np.maximum(np.maximum(-low, high - side), 0)
    thing.extent = (*low.tolist(), *high.tolist())
    where = raw.call(thing)
    if excess.any():
        by = f"the outline leaves the picture of width {hw[1]} and height {hw[0]} by "
        by += f"{excess.max():.1f} px"
        parts = [outlines.clip_polygon(p, hw) for p in thing.polygons]
        thing.polygons = [p for p in parts if len(p) >= 3]
        if not thing.polygons:
            message = f"{by}, all of it; correct or remove it"
            raw.tell("error", "wholly-outside", message, where, thing.photo)
        elif np.any(excess > np.maximum(OUTSIDE_PX, OUTSIDE_SHARE * side)):
            message = f"{by}; look whether x and y are exchanged, or the picture is another one"
            raw.tell("warning", "far-outside", message, where, thing.photo)
        else:
            raw.tell("warning", "outside", f"{by}; it is cut off there", where, thing.photo)
    elif 0 < high.max() <= 1 and min(hw) >= _LEAST_FOR_FRACTIONS:
        message = "all coordinates are between 0 and 1: likely fractions of width and height; "
        message += "multiply them, or convert from the format that has them so"
        raw.tell("error", "fractions", message, where, thing.photo)
    most = float(sum(hw)) * len(points)  # no edge is longer than width and height together
    if most > _LONGEST and any(_length(p) > _LONGEST for p in thing.polygons):
        message = f"an outline is more than {_LONGEST:.0f} px long, which is no object; remove it"
        raw.tell("error", "endless", message, where, thing.photo)
        thing.polygons = []


def _length(polygon: Float[np.ndarray, "n 2"]) -> float:
    return float(np.hypot(*(np.roll(polygon, -1, 0) - polygon).T).sum())


def check_crossings(raw: RawData) -> None:
    """Tells which outlines cross themselves."""
    owners = [t for t in raw.things for _ in t.polygons]
    polygons = [p for t in raw.things for p in t.polygons]
    crossing, complete = self_crossing(polygons)
    told: set[int] = set()
    for i in np.flatnonzero(crossing):
        thing = owners[i]
        if thing.row not in told:
            told.add(thing.row)
            message = "an outline crosses itself, so that part of it may count as outside; redraw"
            raw.tell("warning", "self-crossing", message, raw.call(thing), thing.photo)
    if not complete.all():
        count = int((~complete).sum())
        message = f"{count} outlines were not wholly tested for crossings: their edges are too many"
        raw.tell("note", "not-tested", message)


def self_crossing(
    polygons: list[Float[np.ndarray, "_ 2"]],
) -> tuple[Bool[np.ndarray, " q"], Bool[np.ndarray, " q"]]:
    """Which polygons have two edges that cross at a point inside both, and which tests are whole.

    Edges that touch, or lie on each other, do not cross. A sweep over the edges of all polygons in
    the order of their left (or upper) ends: each is compared with those that begin before it ends.
    Near n log n for outlines, whose edges are short; given up where they take too long.
    """
    crossing, complete = np.zeros(len(polygons), bool), np.ones(len(polygons), bool)
    sizes = np.array([len(p) for p in polygons], np.int64)
    ends = np.cumsum(sizes)
    first = 0
    while first < len(polygons):
        done = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, done + _CHUNK, side="right")), first + 1)
        _sweep(polygons[first:last], crossing[first:last], complete[first:last])
        first = last
    return crossing, complete


def _sweep(
    polygons: list[np.ndarray], crossing: Bool[np.ndarray, " q"], complete: Bool[np.ndarray, " q"]
) -> None:
    a = np.concatenate(polygons)
    b = np.concatenate([np.roll(p, -1, axis=0) for p in polygons])
    sizes = np.array([len(p) for p in polygons])
    owner = np.repeat(np.arange(len(polygons)), sizes)
    upright = _along_y(a, b, sizes)[owner]
    a[upright], b[upright] = a[upright, ::-1], b[upright, ::-1]
    left, right = np.minimum(a[:, 0], b[:, 0]), np.maximum(a[:, 0], b[:, 0])
    order = np.lexsort((left, owner))
    a, b, owner, left, right = a[order], b[order], owner[order], left[order], right[order]
    low, high = np.minimum(a[:, 1], b[:, 1]), np.maximum(a[:, 1], b[:, 1])
    alive = np.arange(len(a))
    step, work = 0, 0
    while work < _WORK * (len(a) + _CHUNK // 8):
        step, work = step + 1, work + len(alive) + _STEP
        alive = alive[alive + step < len(a)]
        other = alive + step
        keep = (owner[alive] == owner[other]) & (left[other] <= right[alive])
        keep &= ~crossing[owner[alive]]
        alive, other = alive[keep], other[keep]
        if not alive.size:
            return
        near = (low[alive] <= high[other]) & (low[other] <= high[alive])
        i, j = alive[near], other[near]
        crossing[owner[i[_cross(a[i], b[i], a[j], b[j])]]] = True
    complete[owner[alive]] = False


def _along_y(a: np.ndarray, b: np.ndarray, sizes: Int[np.ndarray, " q"]) -> Bool[np.ndarray, " q"]:
    """Of which polygons the edges overlap less from top to bottom than from left to right."""
    starts = np.cumsum(sizes) - sizes
    extent = np.maximum.reduceat(a, starts) - np.minimum.reduceat(a, starts)
    share = np.add.reduceat(np.abs(b - a), starts) / np.maximum(extent, 1e-9)
    return share[:, 1] < share[:, 0]


def _cross(
    a: Float[np.ndarray, "n 2"],
    b: Float[np.ndarray, "n 2"],
    c: Float[np.ndarray, "n 2"],
    d: Float[np.ndarray, "n 2"],
) -> Bool[np.ndarray, " n"]:
    """Whether a-b and c-d cross, each with the ends of the other on both of its sides."""
    return (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)


def _side(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> Int[np.ndarray, " n"]:
    cross = (b[:, 0] - a[:, 0]) * (p[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (p[:, 0] - a[:, 0])
    # Ends that several edges share are on neither side; rounding must not put them on one.
    scale = np.abs(b - a).sum(1) * np.abs(p - a).sum(1)
    return np.where(np.abs(cross) <= 1e-12 * scale, 0, np.sign(cross)).astype(np.int8)
