"""Keypoints of COCO's annotations: their names, their partners in a flip, their places.

COCO writes the index of a pixel, and 0 (not labelled), 1 (hidden) or 2 (visible) behind it. Inside
coordinates are continuous, so that half a pixel is added, as Detectron2 does.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from maskrcnn_jax.errors import UserError

PIXEL_CENTER = 0.5
_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}
_FARTHEST = 1e6  # pixels; what lies beyond is no place in a picture


def keypoint_table(
    path: Path, categories: Sequence[dict], number: int
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """The names of the keypoints, and the skeleton as pairs of places counted from 0.

    Both are those of the first category that has any; all that have some must agree in number.

    Raises:
      UserError: a category has another number of keypoints than `number`, or a bad list of them.
    """
    names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    for category in categories if number else ():
        found = category.get("keypoints") or []
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise UserError(
                f"{path}: category {category['id']}: 'keypoints' is not a list of names; write one "
                "name for each keypoint"
            )
        if found and len(found) != number:
            raise UserError(
                f"{path}: category {category['id']} has {len(found)} keypoints, but "
                f"model.keypoints={number}; set model.keypoints={len(found)}"
            )
        if found and not names:
            names, skeleton = tuple(found), _skeleton(category.get("skeleton"), number)
    return names, skeleton


def count_keypoints(objects: Sequence[Any]) -> int:
    """The most keypoints that an annotation of a COCO file has; what is malformed has none."""
    lists = (a.get("keypoints") for a in objects if isinstance(a, dict))
    return max((len(values) // 3 for values in lists if isinstance(values, list)), default=0)


def parse_keypoints(path: Path, a: dict, number: int) -> Float[np.ndarray, "J 3"]:
    """The keypoints of an annotation, continuous; rows of zeros where none are labelled.

    Raises:
      UserError: names the file, the annotation and the field.
    """
    values = a.get("keypoints") if number else None
    if not values:
        return np.zeros((number, 3), np.float32)
    where = f"{path}: annotation {a['id']} of image {a['image_id']}"
    if not isinstance(values, list) or len(values) != 3 * number:
        length = len(values) if isinstance(values, list) else repr(values)
        raise UserError(
            f"{where}: 'keypoints' has {length} numbers, but model.keypoints={number} needs "
            f"{3 * number}: x, y and visibility of each"
        )
    if not all(_is_place(value) for value in values):
        raise UserError(
            f"{where}: 'keypoints' holds other than places in a picture; correct or remove it, or "
            "set data.on_bad_image to 'skip'"
        )
    points = np.array(values, np.float64).reshape(number, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise UserError(
            f"{where}: 'keypoints' has a visibility other than 0 (not labelled), 1 (hidden) and "
            "2 (visible); every third number is one"
        )
    points[:, :2] += PIXEL_CENTER
    return np.where(points[:, 2:] > 0, points, 0.0).astype(np.float32)


def flip_order(
    names: Sequence[str], pairs: Sequence[tuple[int, int]], number: int, mirrors: bool = True
) -> tuple[int, ...]:
    """For each keypoint the one whose place it takes when the picture is mirrored.

    Args:
      names: of the keypoints, or none.
      pairs: that change places, counted from 0; none derives them from "left" and "right" (or the
        letters l and r alone) in the names.
      number: of the keypoints.
      mirrors: whether pictures are mirrored at all; if not, each keypoint keeps its place.

    Raises:
      UserError: there are neither names nor pairs.
    """
    order = list(range(number))
    if not number or not mirrors:
        return tuple(order)
    if not pairs and not names:
        raise UserError(
            "data.keypoint_flip is empty and the categories do not name their 'keypoints': which "
            "of them are left and right? Set data.keypoint_flip to the pairs that change places in "
            "a flip, as in ((1,2),(3,4)), or data.flip=0 and data.flip_vertical=0"
        )
    if not pairs:
        place = {name.lower(): i for i, name in enumerate(names)}
        partners = [(i, place.get(_mirrored(name.lower()), i)) for name, i in place.items()]
        pairs = [(i, partner) for i, partner in partners if i < partner]
        told = ", ".join(f"{names[a]} <-> {names[b]}" for a, b in pairs) or "none"
        logging.info("keypoints that change places in a flip: %s", told)
    for a, b in pairs:
        order[a], order[b] = b, a
    return tuple(order)


def _mirrored(name: str) -> str:
    # Words, and "left" or "right" as the beginning or the end of one: "leftEye", "eye_l".
    words = re.split(r"([^a-z0-9]+)", name)
    swapped = [_SIDES.get(word, word) for word in words]
    if swapped != words:
        return "".join(swapped)
    return re.sub("left|right", lambda found: _SIDES[found.group()], name)


def _skeleton(lines: Any, number: int) -> tuple[tuple[int, int], ...]:
    """COCO counts from 1. It only serves drawing, so that odd lines are left out."""
    good = []
    for line in lines if isinstance(lines, list) else ():
        if isinstance(line, list) and len(line) == 2 and all(type(i) is int for i in line):
            a, b = line
            if 1 <= a <= number and 1 <= b <= number:
                good.append((a - 1, b - 1))
    return tuple(good)


def _is_place(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= _FARTHEST
