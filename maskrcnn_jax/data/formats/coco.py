"""COCO JSON, also as Roboflow, FiftyOne, CVAT and Label Studio write it.

The layout is https://cocodataset.org/#format-data; whatever tools make of it is put right here.
"""

import collections
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_jax.data.formats import objects, outlines, reading
from maskrcnn_jax.data.formats.draft import Draft, Options, Picture
from maskrcnn_jax.errors import UserError

NAME = "coco"
SUMMARY = "COCO JSON, or a folder as Roboflow, FiftyOne, CVAT or Label Studio export it"

_LISTS = ("images", "annotations", "categories")
# Where in a folder the tools put the file.
_PLACES = ("_annotations.coco.json", "labels.json", "result.json", "annotations/instances*.json")
_BOX_SLACK = 1e-3  # by which a stated area may differ from the box's to be it
_FILLS_BOX = 0.98  # an outline that fills this much of its box has its area rightly


def detect(source: Path) -> bool:
    """Whether it is a COCO JSON or a folder laid out around one."""
    files = _files(source)
    return len(files) > 1 or (len(files) == 1 and _fits(reading.try_json(files[0])))


def read(source: Path, options: Options) -> Draft:
    """Reads a COCO JSON, or the one in a folder.

    Boxes and areas are not read: they are measured on the masks. Category ids that begin with 0 and
    categories without objects are kept in the draft. An area that is the box's is a finding.

    Raises:
      UserError: it is none, or the folder has several.
    """
    files = _files(source)
    if len(files) != 1:
        found = "several" if files else "no"
        names = ", ".join(str(file) for file in files[:5])
        raise UserError(f"{source}: {found} COCO JSON files here; name one: {names or '*.json'}")
    content = reading.read_json(files[0])
    if not _fits(content):
        raise UserError(
            f"{files[0]}: has no lists 'images', 'annotations' and 'categories', so that it is no "
            "COCO data set; name an 'instances' file"
        )
    images = content["images"]
    names = [entry.get("file_name") for entry in images if isinstance(entry, dict)]
    folder = reading.images_folder(options, _image_folders(files[0]), names)
    draft = Draft(NAME, source, folder, [], [], [])
    categories = _read_categories(draft, content["categories"])
    pictures = _read_images(draft, images)
    seen: set[int] = set()
    areas: list[tuple[bool, bool]] = []
    for number, entry in enumerate(content["annotations"]):
        where = _where("annotation", number, entry)
        if not isinstance(entry, dict):
            draft.find("error", "bad-annotation", where, "is no entry with fields; remove it")
            continue
        id = _own_id(draft, entry, where, seen)
        label = categories.get(_key(entry.get("category_id")))
        if label is None:
            message = f"'category_id' is {entry.get('category_id')!r:.40}, not in 'categories'"
            draft.find("error", "unknown-category", where, message)
        elif _key(entry.get("image_id")) not in pictures:
            message = f"'image_id' is {entry.get('image_id')!r:.40}, which is not in 'images'"
            draft.find("error", "unknown-image", where, f"{message}; correct or remove it")
        else:
            picture = pictures[_key(entry["image_id"])]
            if picture is not None:
                _check_box(draft, picture, entry, where)
                _add(draft, picture, label, entry, where, id)
                areas.append(_area_is_box(entry))
    _tell_areas(draft, areas)
    return draft


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix.lower() == ".json" else []
    found = [file for place in _PLACES for file in sorted(source.glob(place))]
    return [file for file in found if file.is_file()]


def _fits(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(k), list) for k in _LISTS)


def _image_folders(file: Path) -> list[Path]:
    """Where the tools put the pictures, seen from the JSON."""
    up = file.parent.parent
    subset = file.stem.removeprefix("instances_")
    below = [file.parent, file.parent / "data", file.parent / "images"]
    return [*below, up / subset, up / "images" / subset, up / "images", up]


def _where(kind: str, number: int, entry: Any) -> str:
    id = entry.get("id") if isinstance(entry, dict) else None
    return f"{kind} {id}" if type(id) is int and abs(id) < 10**15 else f"{kind} at {number}"


def _key(id: Any) -> Any:
    """An id for looking up: some tools write numbers as text; True is not 1."""
    if isinstance(id, str):
        return id
    found = reading.whole(id)
    return ("none", type(id).__name__) if found is None else found


def _read_categories(draft: Draft, entries: list[Any]) -> dict[Any, str]:
    """Names by id; fills the draft's classes, in the order of the ids."""
    found: dict[Any, str] = {}
    for number, entry in enumerate(entries):
        where = _where("category", number, entry)
        name = reading.text(entry.get("name")) if isinstance(entry, dict) else ""
        key = _key(entry.get("id")) if isinstance(entry, dict) else ("none", "")
        if not name or isinstance(key, tuple):
            draft.find("error", "bad-category", where, "needs an 'id' and a 'name'")
        elif key in found:
            message = f"the id is used for {found[key]!r:.40}, too; {name!r:.40} is left out"
            draft.find("error", "duplicate-id", where, message)
        else:
            if name in found.values():
                message = f"the name {name!r:.40} is used twice; they are put together"
                draft.find("warning", "duplicate-name", where, message)
            found[key] = name
    order = sorted(found, key=lambda k: (isinstance(k, str), k if isinstance(k, int) else 0))
    draft.classes = list(dict.fromkeys(found[key] for key in order))
    for key in reversed(order):
        if isinstance(key, int):
            draft.category_ids[found[key]] = key
    if 0 in found:
        message = f"category ids begin with 0 ({found[0]!r:.40}); they are numbered from 1"
        draft.find("note", "category-zero", found[0], message)
    return found


def _read_images(draft: Draft, entries: list[Any]) -> dict[Any, Picture | None]:
    """Pictures by id; None for one that cannot be used."""
    found: dict[Any, Picture | None] = {}
    for number, entry in enumerate(entries):
        where = _where("image", number, entry)
        key = _key(entry.get("id")) if isinstance(entry, dict) else ("none", "")
        if isinstance(key, tuple):
            draft.find("error", "bad-image", where, "needs an 'id' and a 'file_name'")
            continue
        if key in found:
            draft.find("error", "duplicate-id", where, "the id is used twice; make them unique")
            continue
        hw = entry.get("height"), entry.get("width")
        found[key] = reading.picture(
            draft,
            entry.get("file_name"),
            hw=None if None in hw else hw,
            where=where,
            once=True,
            group=reading.text(entry.get("group")),
            id=key if isinstance(key, int) else None,
        )
    return found


def _own_id(draft: Draft, entry: dict[str, Any], where: str, seen: set[int]) -> int | None:
    id = reading.whole(entry.get("id"))
    if id in seen:
        draft.find("warning", "duplicate-id", where, "the id is used twice; all get new ones")
        return None
    if id is not None:
        seen.add(id)
    return id


def _add(
    draft: Draft, picture: Picture, label: str, entry: dict[str, Any], where: str, id: int | None
) -> None:
    segmentation, crowd = entry.get("segmentation"), entry.get("iscrowd") in (1, True)
    if not segmentation:
        state = "empty" if "segmentation" in entry else "missing"
        message = f"'segmentation' is {state}: a box only; export outlines or masks"
        draft.find("error", "no-segmentation", where, message)
    elif isinstance(segmentation, dict):
        objects.add_rle(draft, picture, label, segmentation, where, crowd=crowd, id=id)
    elif not isinstance(segmentation, list):
        message = f"'segmentation' is {segmentation!r:.40}, neither polygons nor an RLE"
        draft.find("error", "bad-points", where, message)
    else:
        if not isinstance(segmentation[0], list):
            message = "'segmentation' is one list of numbers, not a list of such; read as one"
            draft.find("warning", "flat-polygon", where, message)
            segmentation = [segmentation]
        polygons = [reading.points(polygon) for polygon in segmentation]
        objects.add_polygons(draft, picture, label, polygons, where, crowd=crowd, id=id)


def _check_box(draft: Draft, picture: Picture, entry: dict[str, Any], where: str) -> None:
    """Tells a box that cannot be right; it is measured on the mask in any case."""
    box = reading.numbers(entry.get("bbox"))
    if box is None or box.size != 4:
        message = f"'bbox' is {entry.get('bbox')!r:.60}, not four numbers x, y, width, height"
        draft.find("note", "bad-box", where, f"{message}; boxes are measured on the masks")
        return
    side = np.array([picture.width, picture.height])
    excess = float(np.max([-box[:2], box[:2] + box[2:] - side]))
    if excess > objects.OUTSIDE_PX:
        message = f"'bbox' leaves the picture by {excess:.0f} px: {box.tolist()} in {side.tolist()}"
        draft.find("warning", "box-outside", where, f"{message}; is it x, y, width, height?")


def _area_is_box(entry: dict[str, Any]) -> tuple[bool, bool]:
    """Whether an object has outlines that leave much of its box, and states the box's area."""
    box, area = reading.numbers(entry.get("bbox")), reading.number(entry.get("area"))
    parts = entry.get("segmentation")
    if box is None or box.size != 4 or area is None or not isinstance(parts, list):
        return False, False
    whole = float(box[2] * box[3])
    polygons = [p for p in map(reading.points, parts) if p is not None and len(p) >= 3]
    filled = sum(outlines.polygon_area(p) for p in polygons)
    if not 0 < filled < _FILLS_BOX * whole:
        return False, False
    return True, bool(np.isclose(area, whole, rtol=_BOX_SLACK))


def _tell_areas(draft: Draft, areas: list[tuple[bool, bool]]) -> None:
    counts = collections.Counter(areas)
    judged, boxes = counts[True, True] + counts[True, False], counts[True, True]
    if boxes > judged / 2:
        message = (
            f"'area' is the area of the box in {boxes} of {judged} objects whose outline fills "
            "less; areas are measured on the masks"
        )
        draft.find("warning", "box-area", "", message)
