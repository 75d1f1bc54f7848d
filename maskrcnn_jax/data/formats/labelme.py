"""labelme: one JSON per picture, beside it.

Shapes and their points as in labelme's `shape_to_mask`, https://github.com/wkentaro/labelme.
"""

import base64
import binascii
import collections
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from pycocotools import mask as mask_utils

from maskrcnn_jax.data.formats import objects, outlines, reading
from maskrcnn_jax.data.formats.draft import Draft, Options, Picture
from maskrcnn_jax.errors import UserError

NAME = "labelme"
SUMMARY = "labelme: a folder of JSON files beside their pictures, or one such file"

# labelme's own labels for what is not to be learnt.
_NO_CLASS = ("__ignore__", "_background_")
_SAMPLE = 20  # files looked at to find out the kind of a folder
_EMBEDDED = [kind for kind in reading.SUFFIXES if kind != "MPO"]  # which Pillow opens as JPEG
_PICTURE_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".bmp")

# A part of an object: polygons, or a mask of the whole picture.
_Part = list[Float[np.ndarray, "_ 2"] | None] | Bool[np.ndarray, "H W"]


def detect(source: Path) -> bool:
    """Whether it is a labelme JSON or a folder that holds some."""
    files = (file for file, _ in zip(_files(source), range(_SAMPLE), strict=False))
    return any(_fits(reading.try_json(file)) for file in files)


def read(source: Path, options: Options) -> Draft:
    """Reads a folder, with all below it, or a file.

    Shapes of one picture that have the same label and the same `group_id` are one object. Lines
    become strokes, points are findings; the labels __ignore__... and _background_ are left out.
    Pictures that are inside their JSON only are findings: `all_pictures` gets them out.

    Raises:
      UserError: there is no labelme file.
    """
    folder = source if source.is_dir() else source.parent
    draft = Draft(NAME, source, reading.images_folder(options, (folder,)), [], [], [])
    num_read = 0
    for file in _files(source):
        try:
            content = reading.read_json(file)
        except UserError as error:
            if source.is_file():
                raise
            draft.find("error", "bad-file", "", str(error), str(file))
            continue
        if _fits(content):
            num_read += 1
            _read_file(draft, file, folder, content, options)
        else:
            draft.find("note", "other-file", "", "is no labelme file: passed over", str(file))
    if not num_read:
        reason = f"; {draft.findings[0].message}" if draft.findings else ""
        raise UserError(f"{source}: no labelme JSON (with 'shapes' and 'imagePath') here{reason}")
    draft.classes = sorted({item.label for item in draft.items})
    return draft


def all_pictures(source: Path) -> Iterator[tuple[str, bytes]]:
    """Name below the source's folder and content of each picture, inside a JSON or beside it.

    What is inside is given only if Pillow knows it as a picture, under a suffix that says so.
    """
    folder = source if source.is_dir() else source.parent
    for file in _files(source):
        content = reading.try_json(file)
        if not _fits(content):
            continue
        name = _name(content, file, folder) or ""
        data = _decode(content.get("imageData"))
        kind = _kind(data) if data else None
        if data and kind:
            clean = reading.clean_name(name)
            if clean is None or PurePosixPath(clean).suffix.lower() not in reading.SUFFIXES[kind]:
                stem = reading.relative_name(file.with_suffix(""), folder)
                clean = stem + reading.SUFFIXES[kind][0]
            yield clean, data
        else:
            found = reading.locate(folder, name)
            if found is not None:
                yield found, (folder / found).read_bytes()


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        found = (file for file in source.rglob("*.json") if not file.name.startswith("._"))
        return sorted(file for file in found if file.is_file())
    return [source] if source.suffix.lower() == ".json" and source.is_file() else []


def _fits(content: Any) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        return False
    return "imagePath" in content or "imageData" in content


def _name(content: dict[str, Any], file: Path, folder: Path) -> str | None:
    """The name of the picture relative to the folder; labelme's is relative to the JSON."""
    name = content.get("imagePath")
    if not isinstance(name, str) or not name.strip():
        return None
    if reading.clean_name(name) is None and not name.startswith("."):
        return name  # absolute: told as such
    parent = reading.relative_name(file.parent, folder)
    return name if parent == "." else f"{parent}/{name}"


def _read_file(
    draft: Draft, file: Path, folder: Path, content: dict[str, Any], options: Options
) -> None:
    where = reading.relative_name(file, folder)
    others = [f"{PurePosixPath(where).with_suffix('')}{suffix}" for suffix in _PICTURE_SUFFIXES]
    others += [PurePosixPath(other).name for other in others]
    name = _name(content, file, folder) or next(
        (other for other in others if reading.locate(draft.images, other)), ""
    )
    hw = content.get("imageHeight"), content.get("imageWidth")
    if reading.locate(draft.images, name, others) is None and content.get("imageData"):
        _tell_embedded(draft, file, where, content)
        return
    picture = reading.picture(
        draft, name, hw=None if None in hw else hw, others=others, where=where, once=True
    )
    if picture is None:
        return
    parts: dict[Any, list[_Part]] = collections.defaultdict(list)
    for number, shape in enumerate(content["shapes"]):
        place = f"{where}, shape {number}"
        label = reading.text(shape.get("label")) if isinstance(shape, dict) else ""
        if not label:
            draft.find("error", "no-class", place, "the shape has no 'label'; give it one")
        elif label.startswith(_NO_CLASS):
            draft.find("note", "ignored", place, f"{label!r} is left out")
        else:
            part = _part(draft, picture, shape, place, options)
            if part is not None:
                group = reading.whole(shape.get("group_id"))
                key = (label, f"{where}, group {group}") if group is not None else (label, place)
                parts[key].append(part)
    for (label, place), joined in parts.items():
        _add(draft, picture, label, joined, place)


def _add(draft: Draft, picture: Picture, label: str, parts: list[_Part], where: str) -> None:
    if all(isinstance(part, list) for part in parts):
        polygons = [polygon for part in parts for polygon in part]
        objects.add_polygons(draft, picture, label, polygons, where)
        return
    mask = np.zeros((picture.height, picture.width), bool)
    for part in parts:
        if isinstance(part, list):
            flat = [polygon.ravel().tolist() for polygon in part if polygon is not None]
            rle = mask_utils.frPyObjects([f for f in flat if len(f) >= 6], *mask.shape)
            mask |= mask_utils.decode(mask_utils.merge(rle)).astype(bool) if rle else False
        else:
            mask |= part
    objects.add_mask(draft, picture, label, mask, where)


def _part(
    draft: Draft, picture: Picture, shape: dict[str, Any], where: str, options: Options
) -> _Part | None:
    kind = shape.get("shape_type") or "polygon"  # labelme 3 knew only polygons at first
    points = reading.point_pairs(shape.get("points"))
    if points is None or not len(points):
        message = "'points' is not a list of x, y of finite numbers; correct or remove it"
        draft.find("error", "bad-points", where, message)
    elif kind == "mask":
        return _mask(draft, picture, shape, points, where)
    elif kind in ("polygon", "rotation", "oriented_rectangle") or (
        kind == "rectangle" and len(points) > 2
    ):
        return [points]
    elif kind in ("line", "linestrip"):
        message = f"a line is drawn {options.line_width:g} px wide; choose with --line-width"
        draft.find("note", "line", where, message)
        return [*outlines.stroke(points, options.line_width)]
    elif kind in ("point", "points"):
        draft.find("error", "point", where, "a point has no area; draw an outline")
    elif kind not in ("rectangle", "circle", "ellipse"):
        draft.find("error", "unknown-shape", where, f"the shape {kind!r:.40} is not known")
    elif len(points) != 2:
        draft.find("error", "bad-points", where, f"a {kind} needs two points; draw it again")
    else:
        return [_outline(kind, *points.tolist())]
    return None


def _outline(kind: str, a: list[float], b: list[float]) -> Float[np.ndarray, "_ 2"]:
    if kind == "rectangle":
        return outlines.rectangle(*a, *b)
    if kind == "circle":  # the centre and a point on it
        return outlines.circle(*a, float(np.hypot(b[0] - a[0], b[1] - a[1])))
    # Forks of labelme: between two corners.
    middle = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
    return outlines.ellipse(*middle, (b[0] - a[0]) / 2, (b[1] - a[1]) / 2)


def _mask(
    draft: Draft, picture: Picture, shape: dict, points: Float[np.ndarray, "_ 2"], where: str
) -> Bool[np.ndarray, "H W"] | None:
    """The bitmap of labelme 5, a PNG of the rectangle from the first to the last point."""
    mask = np.zeros((picture.height, picture.width), bool)
    x, y = (int(v) for v in points[0])
    data = _decode(shape.get("mask"))
    try:
        with Image.open(io.BytesIO(data or b""), formats=["PNG"]) as image:
            fits = 0 <= x <= x + image.width <= picture.width
            if fits and 0 <= y <= y + image.height <= picture.height:
                bitmap = np.asarray(image.convert("L")) > 0
                mask[y : y + image.height, x : x + image.width] = bitmap
                return mask
            reason = f"of {image.width}x{image.height} at {x}, {y} leaves the picture"
    except Exception as error:  # Pillow's readers raise many kinds on damaged data
        reason = f"is not a PNG ({error})"
    draft.find("error", "bad-mask", where, f"the bitmap {reason}; draw it again")
    return None


def _decode(data: Any) -> bytes | None:
    try:
        return base64.b64decode(data) if isinstance(data, str) else None
    except (binascii.Error, ValueError):
        return None


def _kind(data: bytes) -> str | None:
    """Pillow's name of the format of a picture; None if it is none that we write."""
    try:
        with Image.open(io.BytesIO(data), formats=_EMBEDDED) as image:
            return image.format
    except Exception:  # Pillow's readers raise many kinds on damaged data
        return None


def _tell_embedded(draft: Draft, file: Path, where: str, content: dict[str, Any]) -> None:
    name, data = content.get("imagePath"), _decode(content["imageData"])
    if data and _kind(data):
        message = f"{name!r:.100} is inside the JSON only; get it out with --extract-images"
    else:
        message = f"{name!r:.100} is not there, and 'imageData' in the JSON is no picture"
    draft.find("error", "missing-image", where, message, str(file))
