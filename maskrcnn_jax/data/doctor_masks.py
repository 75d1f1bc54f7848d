"""The doctor's look at masks: what they cover, against boxes, areas and each other."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float
from pycocotools import mask as mask_utils

from maskrcnn_jax.data.doctor_read import RawData, Thing
from maskrcnn_jax.data.formats import outlines
from maskrcnn_jax.data.formats.draft import Grade

TINY_SIDE, TINY_AREA = 4.0, 16.0  # px, square px: below these an object is hardly learnt
DUPLICATE_IOU = 0.95
_BOX_SLACK_PX, _BOX_SLACK_SHARE = 3.0, 0.05  # by which a box may differ from its mask
_AREA_SLACK = 0.1  # share; and not less than these square pixels
_AREA_SLACK_PX = 20.0
_BOX_AREA = 0.005  # share by which an area may differ from the box's and still be that
_FULL = 0.97  # share of its box that a mask covers which is nearly a rectangle
_CANDIDATE_IOU = 0.6  # of boxes whose masks are compared
_MOST_OBJECTS = 5000  # of one picture that are compared with each other
_ROWS = 128  # boxes compared with all others at a time

Tell = Callable[[Grade, str, str], None]


@dataclasses.dataclass(frozen=True)
class Measures:
    """What the masks cover, by object; NaN where there is no mask."""

    area: Float[np.ndarray, " m"]  # pixels, as pycocotools rasterises
    bounds: Float[np.ndarray, "m 4"]  # xyxy of polygons, of the pixels of an RLE
    twins: list[tuple[int, int, float, float]]  # objects, IoU of boxes, IoU of masks (NaN: none)


def measure(raw: RawData) -> Measures:
    """Rasterises all masks, picture by picture, and finds objects that are there twice."""
    count = len(raw.things)
    area, bounds = np.full(count, np.nan), np.full((count, 4), np.nan)
    twins: list[tuple[int, int, float, float]] = []
    for photo, members in things_by_photo(raw).items():
        hw = raw.photos[photo].hw
        rles = {i: rle for i, rle in zip(members, _rasterise(raw, members, hw), strict=True) if rle}
        if rles:
            rows = list(rles)
            # One by one: pycocotools' area of a list fails from 256 masks on.
            area[rows] = [mask_utils.area(rle) for rle in rles.values()]
            bounds[rows] = [_bounds(raw.things[i], rles[i]) for i in rows]
        twins += _twins(raw, members, bounds, rles)
    return Measures(area, bounds, twins)


def things_by_photo(raw: RawData) -> dict[int, list[int]]:
    """The objects of every picture that has some and is known, by index."""
    found: dict[int, list[int]] = {}
    for i, thing in enumerate(raw.things):
        if thing.photo >= 0:
            found.setdefault(thing.photo, []).append(i)
    return found


def to_rle(thing: Thing, hw: tuple[int, int] | None) -> dict | None:
    """The compressed RLE of an object's mask; None if it has none."""
    if hw is None:
        return None
    if thing.rle is not None:
        return _compressed(thing.rle, hw)
    if not thing.polygons:
        return None
    return mask_utils.merge(mask_utils.frPyObjects([p.ravel() for p in thing.polygons], *hw))


def _compressed(rle: dict, hw: tuple[int, int]) -> dict:
    if isinstance(rle["counts"], str):
        return rle
    return outlines.counts_to_rle(np.array(rle["counts"], np.int64), hw)


def _rasterise(
    raw: RawData, members: Sequence[int], hw: tuple[int, int] | None
) -> list[dict | None]:
    """As `to_rle` of each, the polygons of one picture in one call."""
    things = [raw.things[i] for i in members]
    if hw is None:
        return [None] * len(things)
    flat = [p.ravel() for t in things for p in t.polygons]
    parts = iter(mask_utils.frPyObjects(flat, *hw) if flat else [])
    found: list[dict | None] = []
    for thing in things:
        own = list(itertools.islice(parts, len(thing.polygons)))
        if thing.rle is not None:
            found.append(_compressed(thing.rle, hw))
        else:
            found.append((own[0] if len(own) == 1 else mask_utils.merge(own)) if own else None)
    return found


def _bounds(thing: Thing, rle: dict) -> list[float]:
    if thing.polygons:
        low = np.min([p.min(0) for p in thing.polygons], axis=0)
        high = np.max([p.max(0) for p in thing.polygons], axis=0)
        return [*low.tolist(), *high.tolist()]
    x, y, w, h = mask_utils.toBbox(rle).tolist()
    return [x, y, x + w, y + h]


def _twins(
    raw: RawData, members: Sequence[int], bounds: Float[np.ndarray, "m 4"], rles: dict[int, dict]
) -> list[tuple[int, int, float, float]]:
    classes: dict[int, list[int]] = {}
    for i in members:
        if not raw.things[i].crowd:  # a crowd may lie on what it is made of
            classes.setdefault(raw.things[i].category, []).append(i)
    found = []
    for rows in classes.values():
        if len(rows) > _MOST_OBJECTS:
            where = raw.call_photo(raw.things[rows[0]].photo)
            message = f"of {len(rows)} objects of one class, {_MOST_OBJECTS} are compared"
            raw.tell("note", "not-compared", message, where, raw.things[rows[0]].photo)
        if len(rows) > 1:
            found += _pairs(raw, rows[:_MOST_OBJECTS], bounds, rles)
    return found


def _pairs(
    raw: RawData, rows: list[int], bounds: Float[np.ndarray, "m 4"], rles: dict[int, dict]
) -> list[tuple[int, int, float, float]]:
    boxes = np.array([raw.things[i].box or (np.nan,) * 4 for i in rows])
    outer = np.where(np.isnan(bounds[rows]), boxes, bounds[rows])
    found = []
    partner: set[int] = set()
    for i, j in _near(outer):
        if j in partner:
            continue  # of a heap of copies each is told once
        pair = rows[i], rows[j]
        mask_iou = float("nan")
        if pair[0] in rles and pair[1] in rles:
            mask_iou = float(mask_utils.iou([rles[pair[0]]], [rles[pair[1]]], [0])[0, 0])
        box_iou = float(_iou(boxes[i : i + 1], boxes[j : j + 1])[0, 0])
        if box_iou > DUPLICATE_IOU or mask_iou > DUPLICATE_IOU:
            found.append((*pair, box_iou, mask_iou))
            partner.add(j)
    return found


def _near(boxes: Float[np.ndarray, "n 4"]) -> Iterator[tuple[int, int]]:
    for start in range(0, len(boxes), _ROWS):
        rows = boxes[start : start + _ROWS]
        i, j = np.nonzero(_iou(rows, boxes[start:]) > _CANDIDATE_IOU)
        later = j > i
        yield from zip((i[later] + start).tolist(), (j[later] + start).tolist(), strict=True)


def _iou(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    sizes = [np.clip(v[:, 2:] - v[:, :2], 0, None).prod(-1) for v in (a, b)]
    union = sizes[0][:, None] + sizes[1][None] - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)


def check(raw: RawData, measures: Measures) -> None:
    """Tells what boxes, areas and masks have against each other."""
    for i, thing in enumerate(raw.things):
        if not np.isnan(measures.area[i]):
            _check_one(raw, thing, float(measures.area[i]), measures.bounds[i])
    for i, j, box_iou, mask_iou in measures.twins:
        shared = f"masks {mask_iou:.2f}" if mask_iou > DUPLICATE_IOU else f"boxes {box_iou:.2f}"
        first = raw.things[i]
        name = f"annotation {first.id}" if first.id is not None else f"annotations[{first.row}]"
        message = f"is the same object as {name} (IoU of the {shared}); remove one"
        raw.tell("warning", "duplicate-object", message, raw.call(raw.things[j]), first.photo)


def _check_one(raw: RawData, thing: Thing, area: float, bounds: Float[np.ndarray, "4"]) -> None:
    def tell(grade: Grade, code: str, message: str) -> None:
        raw.tell(grade, code, message, raw.call(thing), thing.photo)

    width, height = (bounds[2:] - bounds[:2]).tolist()
    if area == 0 and not sum(outlines.polygon_area(p) for p in thing.polygons) > 0:
        tell("error", "no-area", "the outline encloses nothing; correct or remove the annotation")
        return
    if area == 0:
        tell("warning", "no-pixel", f"the mask of {width:.1f} x {height:.1f} px covers no pixel")
    elif min(width, height) < TINY_SIDE or area < TINY_AREA:
        message = f"the object has {width:.1f} x {height:.1f} px and covers {area:.0f}; "
        tell("warning", "tiny", message + "hardly to be learnt: look, or use larger pictures")
    if thing.box is None:
        return
    hw = raw.photos[thing.photo].hw
    box = np.clip(thing.box, 0, [hw[1], hw[0]] * 2)
    x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
    if not same_box(box, bounds):
        if same_box(np.array(thing.box) - [0, 0, *thing.box[:2]], bounds):
            message = "'bbox' holds two corners; write x, y, width, height, or --fix"
            tell("error", "box-corners", message)
        else:
            told = ", ".join(f"{v:.1f}" for v in (*bounds[:2], width, height))
            seen = ", ".join(f"{v:.1f}" for v in (x, y, w, h))
            message = f"'bbox' is {seen}, around the mask it is {told} (x, y, width, height)"
            tell("warning", "box-not-mask", f"{message}; --fix measures it")
    if not thing.crowd:  # COCO measures the areas of its crowds otherwise
        _check_area(tell, thing, area)


def same_area(told: float, covered: float) -> bool:
    """Whether an area as written is that of the mask, as tools round it."""
    return abs(told - covered) <= max(_AREA_SLACK_PX, _AREA_SLACK * covered)


def same_box(a: Float[np.ndarray, "4"], b: Float[np.ndarray, "4"]) -> bool:
    """Whether box a is that of a mask with the bounds b, as tools round it; both xyxy."""
    slack = np.maximum(_BOX_SLACK_PX, _BOX_SLACK_SHARE * np.tile(b[2:] - b[:2], 2))
    return bool(np.all(np.abs(a - b) <= slack))


def _check_area(tell: Tell, thing: Thing, area: float) -> None:
    if thing.area is None or same_area(thing.area, area):
        return
    x0, y0, x1, y1 = thing.box
    box_area = (x1 - x0) * (y1 - y0)
    if abs(thing.area - box_area) <= _BOX_AREA * box_area and area < _FULL * box_area:
        message = f"'area' {thing.area:.0f} is that of the box, the mask covers {area:.0f}: small, "
        tell("warning", "box-area", message + "medium and large are told by it; --fix measures")
    else:
        message = f"'area' is {thing.area:.0f}, the mask covers {area:.0f}; --fix measures it"
        tell("warning", "area-not-mask", message)
