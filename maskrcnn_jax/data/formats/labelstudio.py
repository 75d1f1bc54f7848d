"""Label Studio's own JSON export ("JSON", and "JSON-MIN"). Its COCO export is read by `coco`.

Places are percent of the picture's width and height; shapes as in Label Studio's documentation,
https://labelstud.io/guide/export and https://labelstud.io/tags.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from jaxtyping import Float

from maskrcnn_jax.data.formats import brush, objects, outlines, reading
from maskrcnn_jax.data.formats.draft import Draft, Options, Picture
from maskrcnn_jax.errors import UserError

NAME = "labelstudio"
SUMMARY = "Label Studio: its JSON or JSON-MIN export"

_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")  # that Label Studio gives to uploaded files
_IMAGE = re.compile(r"\.(jpe?g|jfif|png|bmp|gif|webp|tiff?)$", re.IGNORECASE)
_SHAPE_KEYS = ("points", "rle", "radiusX", "width")


def detect(source: Path) -> bool:
    """Whether it is a JSON with a list of tasks."""
    file = _file(source)
    content = reading.try_json(file) if file else None
    return isinstance(content, list) and any(_fits(task) for task in content[:20])


def read(source: Path, options: Options) -> Draft:
    """Reads a JSON export, or the only one in a folder.

    A task's pictures are named by its `file_upload`, or by an entry of its `data`. Of several
    annotations of a task the ground truth is taken, else the last that was not cancelled.

    Raises:
      UserError: it is none.
    """
    file = _file(source)
    if file is None:
        raise UserError(f"{source}: no JSON file here; name the one that Label Studio exported")
    tasks = reading.read_json(file)
    if not isinstance(tasks, list) or not any(_fits(task) for task in tasks):
        raise UserError(f"{file}: is no list of tasks; in Label Studio use Export > JSON")
    names = [_names(task)[0] for task in tasks if _fits(task) and _names(task)]
    folders = (file.parent / "images", file.parent)
    draft = Draft(NAME, source, reading.images_folder(options, folders, names), [], [], [])
    for number, task in enumerate(tasks):
        where = f"task {task['id']}" if isinstance(task, dict) and "id" in task else f"[{number}]"
        if _fits(task):
            _read_task(draft, task, where[:60], options)
        else:
            message = "is no task with 'annotations' and 'data'; export again"
            draft.find("error", "bad-task", where[:60], message)
    draft.classes = sorted({item.label for item in draft.items})
    return draft


def _file(source: Path) -> Path | None:
    if source.is_dir():
        files = sorted(source.glob("*.json"))
        return files[0] if len(files) == 1 else None
    return source if source.suffix.lower() == ".json" and source.is_file() else None


def _fits(task: Any) -> bool:
    if not isinstance(task, dict):
        return False
    return isinstance(task.get("annotations"), list) or any(_min_regions(task))


def _min_regions(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The regions of a task of the JSON-MIN export, which lie in lists beside its data."""
    if isinstance(task.get("annotations"), list):
        return
    for key, values in task.items():
        for value in values if isinstance(values, list) else ():
            if isinstance(value, dict) and "original_width" in value:
                yield {"id": f"{key}-{id(value)}", "value": value, **_sizes(value)}


def _sizes(region: dict[str, Any]) -> dict[str, Any]:
    return {key: region.get(key) for key in ("original_width", "original_height", "rle")}


def _names(task: dict[str, Any]) -> list[str]:
    """What the task's picture may be called, most likely first."""
    data = task.get("data") if isinstance(task.get("data"), dict) else task
    addresses = [task.get("file_upload"), data.get("image"), *data.values()]
    texts = [a for a in addresses if isinstance(a, str) and a.strip()]
    names: list[str] = []
    for address in texts:
        name = _file_name(address)
        if _IMAGE.search(name):
            last = name.rpartition("/")[2]
            names += [name, last, _PREFIX.sub("", last, count=1)]
    return list(dict.fromkeys(name for name in names if name))


def _file_name(address: str) -> str:
    """The file that an address names: /data/upload/8/a.jpg, /data/local-files/?d=x/a.jpg, s3://..."""
    try:
        parts = urlsplit(address.replace("\\", "/"))
        local = parse_qs(parts.query).get("d")
        path = local[0] if local else unquote(parts.path)
    except ValueError:
        return address
    if local:
        return path
    if parts.scheme or parts.netloc or path.startswith("/data/"):
        return path.rpartition("/")[2]  # the folders are those of a server
    return path


def _read_task(draft: Draft, task: dict[str, Any], where: str, options: Options) -> None:
    regions = list(_min_regions(task)) or list(_regions(draft, task, where))
    shapes = [r for r in regions if _has_shape(r)]
    names = _names(task)
    if not names:
        message = "neither 'file_upload' nor 'data' names a picture; export again"
        draft.find("error", "no-name", where, message)
        return
    sizes = [(r.get("original_height"), r.get("original_width")) for r in shapes]
    given = next((hw for hw in sizes if None not in hw), None)
    picture = reading.picture(
        draft, names[0], hw=given, others=names[1:], where=where, scales=True, once=True
    )
    if picture is None:
        return
    labels = _labels(draft, picture, regions)
    for region in regions:
        place = f"{picture.name}, region {str(region.get('id'))[:40]}"
        label = _own_label(region) or labels.get(region.get("id"), "")
        if not _has_shape(region):
            # A label without a shape belongs to a shape of the same id.
            if not label or _value(region).keys().isdisjoint({"labels"}):
                message = f"a region of type {region.get('type')!r:.40} has no area"
                draft.find("note", "no-shape", place, message)
            continue
        if not label:
            message = f"the region has no label; the class is {options.default_class!r}"
            draft.find("warning", "no-class", place, message)
        _add(draft, picture, label or options.default_class, region, place)


def _value(region: dict[str, Any]) -> dict[str, Any]:
    value = region.get("value")
    return value if isinstance(value, dict) else {}


def _has_shape(region: dict[str, Any]) -> bool:
    return any(key in _value(region) for key in _SHAPE_KEYS)


def _regions(draft: Draft, task: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """The regions of the annotation that counts."""
    done = [a for a in task.get("annotations") or () if isinstance(a, dict)]
    done = [a for a in done if not a.get("was_cancelled")]
    if not done:
        return
    if len(done) > 1:
        message = f"{len(done)} annotations; the ground truth is taken, else the last"
        draft.find("warning", "several-annotations", where, message)
    chosen = next((a for a in done if a.get("ground_truth") is True), done[-1])
    result = chosen.get("result")
    for number, region in enumerate(result if isinstance(result, list) else [result]):
        if isinstance(region, dict):
            yield region
        else:
            message = "is no region; export again"
            draft.find("error", "bad-region", f"{where}, region {number}", message)


def _own_label(region: dict[str, Any]) -> str:
    """The first entry of its polygonlabels, brushlabels, labels, ...; "" if it has none."""
    for key, names in _value(region).items():
        if key.endswith("labels") and isinstance(names, list) and names:
            return reading.text(names[0])
    return ""


def _labels(draft: Draft, picture: Picture, regions: list[dict[str, Any]]) -> dict[Any, str]:
    """Classes by region id, for shapes whose label is a region of its own; tells several labels."""
    found: dict[Any, str] = {}
    for region in regions:
        id = region.get("id")
        if isinstance(id, str | int) and _own_label(region):
            found.setdefault(id, _own_label(region))
        for key, names in _value(region).items():
            if key.endswith("labels") and isinstance(names, list) and len(names) > 1:
                message = f"the region has {len(names)} labels; the first is taken"
                place = f"{picture.name}, region {str(id)[:40]}"
                draft.find("warning", "several-labels", place, message)
    return found


def _add(draft: Draft, picture: Picture, label: str, region: dict[str, Any], where: str) -> None:
    value = _value(region)
    turned = region.get("image_rotation", value.get("image_rotation"))
    if turned not in (None, 0):
        message = f"labelled on a picture turned by {turned!r:.20} degrees; save it turned"
        draft.find("error", "image-rotation", where, message)
    elif "rle" in value:
        mask = brush.decode_brush(value["rle"], (picture.height, picture.width))
        if mask is None:
            message = "the brush's 'rle' is damaged or of another size than the picture"
            draft.find("error", "bad-rle", where, message)
        else:
            objects.add_mask(draft, picture, label, mask, where)
    else:
        objects.add_polygons(draft, picture, label, [_outline(picture, value)], where)


def _outline(picture: Picture, value: dict[str, Any]) -> Float[np.ndarray, "_ 2"] | None:
    unit = np.array([picture.width, picture.height]) / 100
    if "points" in value:
        points = reading.point_pairs(value["points"])
        return None if points is None else points * unit
    fields = (
        ("x", "y", "radiusX", "radiusY") if "radiusX" in value else ("x", "y", "width", "height")
    )
    numbers = reading.numbers([*(value.get(f) for f in fields), value.get("rotation", 0)])
    if numbers is None:
        return None
    (x, y), (a, b) = numbers[:2] * unit, numbers[2:4] * unit
    angle = math.radians(numbers[4])
    if "radiusX" in value:
        return outlines.ellipse(x, y, a, b, angle)
    return outlines.rectangle(x, y, x + a, y + b, angle)
