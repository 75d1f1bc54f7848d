"""A repaired copy of a COCO JSON file: what is clear is corrected, what is of no use left out.

Nothing is guessed: coordinates that look exchanged, fractions or percent are told by the doctor
and left alone.
"""

import collections
import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as mask_utils

from maskrcnn_jax.data import doctor_masks
from maskrcnn_jax.data.annotation import parse_annotation
from maskrcnn_jax.data.doctor import Examined
from maskrcnn_jax.data.doctor_read import LISTS, RawData, Thing
from maskrcnn_jax.data.formats import outlines
from maskrcnn_jax.data.formats.reading import safe_join
from maskrcnn_jax.data.formats.to_coco import write_bytes
from maskrcnn_jax.errors import UserError

_DECIMALS = 3  # of pixels
_BAD_PICTURE = ("missing-image", "unreadable-image", "size-mismatch", "unsafe-name", "no-name")


def repair(
    examined: Examined, drop_duplicates: bool = False
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """A copy that the strict loader takes.

    Args:
      drop_duplicates: leave out objects whose mask another one of their class has.

    Returns:
      The content, and what was done: kind of repair -> names of the entries.

    Raises:
      UserError: nothing is left to train on.
    """
    raw, done = examined.raw, collections.defaultdict(list)
    categories = _categories(raw, done)
    images = _images(raw, done)
    twins = {j for _, j, _, iou in examined.measures.twins if iou > doctor_masks.DUPLICATE_IOU}
    kept = []
    for index, thing in enumerate(raw.things):
        if thing.photo not in images or thing.category not in categories:
            done["left out: object of no usable picture or class"].append(raw.call(thing))
        elif drop_duplicates and index in twins:
            done["left out: duplicate object"].append(raw.call(thing))
        else:
            image, category = images[thing.photo], categories[thing.category]
            bounds = examined.measures.bounds[index]
            entry = _annotation(raw, thing, bounds, image, category["id"], done)
            if entry is not None:
                kept.append((thing, entry))
    if not kept:
        raise UserError(
            f"{raw.path}: nothing usable is left to write: no object has a picture, a class and a "
            "sound mask; the findings above say why"
        )
    _number(raw, kept, done)
    content = {
        **{k: v for k, v in raw.content.items() if k not in LISTS},
        "images": list(images.values()),
        "annotations": [entry for _, entry in kept],
        "categories": list(categories.values()),
    }
    return content, dict(done)


def write(path: Path, content: dict[str, Any], sources: list[Path]) -> None:
    """Writes the copy, never over what was read.

    Raises:
      UserError: `path` is one of the sources, or cannot be written.
    """
    for source in sources:
        if path.resolve() == source.resolve() or (path.exists() and path.samefile(source)):
            raise UserError(f"--fix {path}: is the data set itself; give the name of a new file")
    if not path.parent.is_dir() or path.is_dir():
        raise UserError(f"--fix {path}: give the name of a file in a folder that exists")
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError:  # NaN among what other tools added
        text = json.dumps(_finite(content), allow_nan=False)
    write_bytes(path, text.encode("ascii"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fresh(taken: set[int]) -> int:
    """The id after the largest; 1 and on."""
    id = max(taken, default=0) + 1
    if id >= 2**53:  # beyond what JavaScript reads: the first gap
        id = next(i for i in range(1, len(taken) + 2) if i not in taken)
    taken.add(id)
    return id


def _categories(raw: RawData, done: dict) -> dict[int, dict]:
    """The usable categories by index, with ids that are whole and unique."""
    taken: set[int] = set()
    own = {c.id for c in raw.categories if c.id is not None}
    found = {}
    for index, category in enumerate(raw.categories):
        id = category.id
        if id is not None and id in taken:
            done["left out: class with the id of another"].append(f"categories[{category.row}]")
            continue
        if id is None:
            id = _fresh(own)
            done["numbered: class"].append(f"categories[{category.row}]")
        taken.add(id)
        name = " ".join(category.name.split()) or f"class {id}"
        if name != category.name:
            done["renamed: class"].append(f"{category.name!r} to {name!r}")
        found[index] = {**raw.content["categories"][category.row], "id": id, "name": name}
    return found


def _images(raw: RawData, done: dict) -> dict[int, dict]:
    """The usable pictures by index."""
    taken: set[int] = set()
    own = {p.id for p in raw.photos if p.id is not None}
    bad = {}
    for finding in raw.findings:
        if finding.code in _BAD_PICTURE:
            bad[finding.where] = finding.code
    found = {}
    for index, photo in enumerate(raw.photos):
        where = raw.call_photo(index)
        name = photo.name
        absolute = safe_join(Path(), name) is None and ".." not in PurePosixPath(name).parts
        if absolute:
            name = PurePosixPath(name).name
        reason = bad.get(where, "bad-size" if photo.hw is None else "")
        if not reason and safe_join(Path(), name) is None:
            reason = "no-name"
        if not reason and photo.id is not None and photo.id in taken:
            reason = "duplicate-id"
        if reason:
            done[f"left out: picture ({reason})"].append(where)
            continue
        id = photo.id
        if id is None:
            id = _fresh(own)
            done["numbered: picture"].append(where)
        taken.add(id)
        if name != raw.content["images"][photo.row]["file_name"]:
            done["corrected: file_name"].append(where)
        found[index] = {**raw.content["images"][photo.row], "id": id, "file_name": name}
    return found


def _annotation(
    raw: RawData,
    thing: Thing,
    bounds: Float[np.ndarray, "4"],
    image: dict,
    category_id: int,
    done: dict,
) -> dict[str, Any] | None:
    """The repaired entry; None if nothing of it is of use. bounds: of the mask."""
    where, hw = raw.call(thing), (image["height"], image["width"])
    rle = doctor_masks.to_rle(thing, hw)
    if rle is None:
        done["left out: object without a sound mask"].append(where)
        return None
    told = raw.content["annotations"][thing.row]
    if {type(told["image_id"]), type(told["category_id"])} != {int}:
        done["written as a number: reference"].append(where)
    entry = {**told, "image_id": image["id"], "category_id": category_id}
    entry |= {"iscrowd": int(thing.crowd), "segmentation": thing.rle}
    if thing.rle is None:
        entry["segmentation"] = told["segmentation"]
        if told["segmentation"] != [p.ravel().tolist() for p in thing.polygons]:
            done["cut off or reduced: outline"].append(where)
            rounded = [np.round(p, _DECIMALS).ravel().tolist() for p in thing.polygons]
            entry["segmentation"] = rounded
    area, tight = _measure(thing, rle)
    if thing.area is None or not (thing.crowd or doctor_masks.same_area(thing.area, area)):
        done["measured: area"].append(where)
        entry["area"] = area
    limits = np.array([hw[1], hw[0]] * 2, np.float64)
    box = None if thing.box is None else np.clip(thing.box, 0, limits)
    if box is None or not doctor_masks.same_box(box, bounds):
        done["measured: bbox"].append(where)
        box = tight
    elif np.any(box != thing.box):
        done["cut off: bbox"].append(where)
    else:
        box = None
    if box is not None:
        x0, y0, x1, y1 = box.tolist()
        entry["bbox"] = [round(v, _DECIMALS) for v in (x0, y0, x1 - x0, y1 - y0)]
    try:
        parse_annotation(raw.path, {**entry, "id": 1}, hw)
    except UserError:
        done["left out: object without area"].append(where)
        return None
    return entry


def _measure(thing: Thing, rle: dict) -> tuple[float, Float[np.ndarray, "4"]]:
    """Area and bounds of the mask; of the outline if it is too thin to cover a pixel."""
    area = float(mask_utils.area(rle))
    if area > 0:
        x, y, w, h = mask_utils.toBbox(rle).tolist()
        return area, np.array([x, y, x + w, y + h])
    points = np.concatenate(thing.polygons)
    area = sum(outlines.polygon_area(p) for p in thing.polygons)
    return area, np.concatenate([points.min(0), points.max(0)])


def _number(raw: RawData, kept: list[tuple[Thing, dict]], done: dict) -> None:
    """Gives every annotation an id of its own; never 0, which COCO's evaluation takes for none."""
    taken: set[int] = set()
    own = {thing.id for thing, _ in kept if thing.id is not None}
    for thing, entry in kept:
        id = thing.id
        if not id or id in taken:
            id = _fresh(own)
            done["numbered: annotation"].append(raw.call(thing))
        elif type(entry["id"]) is not int:
            done["written as a number: id"].append(raw.call(thing))
        taken.add(id)
        entry["id"] = id
