"""One annotation of a COCO JSON file: its checks, its box and its mask."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from maskrcnn_jax.errors import UserError

# Annotation tools let boxes stick out by a few pixels, which is clipped; what sticks out by more
# than this many pixels and this share of its side has another size or another layout in mind.
_OUTSIDE_PX = 4.0
_OUTSIDE_SHARE = 0.1
# Pixels. pycocotools takes memory in proportion to an outline's length, and dies of it.
_FARTHEST = 1e6
_LARGEST_AREA = 2.0**32  # square pixels
_LARGEST = 1e300  # whole numbers of JSON may be larger than any float


def parse_annotation(path: Path, a: dict, hw: tuple[int, int]) -> tuple:
    """Checks an annotation of an image of size `hw`.

    Returns:
      box (x0, y0, x1, y1) clipped to the image, is_crowd, area, id, segmentation (polygons as a
      list of float64 arrays, or an RLE dict).

    Raises:
      UserError: names the file, the annotation and the field.
    """
    where = f"{path}: annotation {a['id']} of image {a['image_id']}"
    box = _box(where, a.get("bbox"), hw)
    segmentation = _segmentation(where, a.get("segmentation"), hw)
    area = a.get("area")
    if not _is_number(area) or not 0 <= area <= _LARGEST_AREA:
        area = float(mask_utils.area(to_rle(segmentation, *hw)))
    return box, bool(a.get("iscrowd", 0)), area, a["id"], segmentation


def to_rle(segmentation: Any, height: int, width: int) -> dict:
    """Returns the compressed RLE of polygons or of an RLE of either kind."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], str):
            return segmentation
        return mask_utils.frPyObjects(segmentation, height, width)
    return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))


def _box(where: str, bbox: Any, hw: tuple[int, int]) -> tuple[float, ...]:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise UserError(f"{where}: 'bbox' is {bbox!r}; write four numbers x, y, width, height")
    x, y, w, h = map(float, bbox)
    height, width = map(float, hw)
    for start, side, length in ((x, w, width), (y, h, height)):
        outside = max(-start, start + side - length)
        if side > 0 and outside > max(_OUTSIDE_PX, _OUTSIDE_SHARE * side):
            raise UserError(
                f"{where}: the 'bbox' {bbox} (x, y, width, height) leaves the picture of width "
                f"{width:.0f} and height {height:.0f}; correct the box or the size of the picture"
            )
    x0, y0 = max(x, 0.0), max(y, 0.0)
    x1, y1 = min(x + w, width), min(y + h, height)
    # In float32, as the box will be used.
    if not (np.float32(x1) > np.float32(x0) and np.float32(y1) > np.float32(y0)):
        raise UserError(
            f"{where}: the 'bbox' {bbox} (x, y, width, height) has no area inside the picture; "
            "correct or remove the annotation, or set data.on_bad_image to 'skip'"
        )
    return x0, y0, x1, y1


def _segmentation(where: str, segmentation: Any, hw: tuple[int, int]) -> Any:
    if not segmentation:
        raise UserError(
            f"{where}: 'segmentation' is missing or empty; mask training needs polygons or RLE: "
            "export the data set with masks, or remove annotations that are boxes only"
        )
    if isinstance(segmentation, dict):
        return _rle(where, segmentation, hw)
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        raise UserError(f"{where}: 'segmentation' is neither a list of polygons nor an RLE")
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            raise UserError(
                f"{where}: 'segmentation' has a polygon of {len(polygon)} numbers; at least three "
                "points x, y are needed: correct or remove it, or set data.on_bad_image to 'skip'"
            )
        if not all(map(_is_number, polygon)):
            raise UserError(f"{where}: 'segmentation' has a polygon that holds other than numbers")
        if max(map(abs, polygon)) > _FARTHEST:
            raise UserError(
                f"{where}: 'segmentation' has a point at {max(polygon, key=abs):.0f}, far outside "
                "the picture; correct or remove it, or set data.on_bad_image to 'skip'"
            )
    return [np.array(p, np.float64) for p in segmentation]


def _rle(where: str, rle: dict, hw: tuple[int, int]) -> dict:
    size, counts = rle.get("size"), rle.get("counts")
    if size != list(hw):
        raise UserError(
            f"{where}: the RLE's 'size' is {size}, the picture's height and width are {list(hw)}; "
            "export the data set again"
        )
    whole = isinstance(counts, list) and all(isinstance(c, int) and c >= 0 for c in counts)
    if not (isinstance(counts, str) or (whole and sum(counts) == math.prod(hw))):
        raise UserError(
            f"{where}: the RLE's 'counts' do not cover the picture's {math.prod(hw)} pixels; "
            "export the data set again"
        )
    return rle


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= _LARGEST
