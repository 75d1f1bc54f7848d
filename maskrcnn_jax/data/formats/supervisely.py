"""Supervisely: a project folder with meta.json and a folder of ann/ and img/ per data set.

Fields as in https://developer.supervisely.com/getting-started/supervisely-annotation-format.
"""

import base64
import binascii
import itertools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from maskrcnn_jax.data.formats import mask_files, outlines, parts, reading, trees
from maskrcnn_jax.data.formats.draft import Draft, Options, Picture
from maskrcnn_jax.errors import UserError

NAME = "supervisely"
SUMMARY = "Supervisely: a project folder with meta.json, and ann/ and img/ per data set"

_JSON = frozenset({".json"})
_DEPTH = 5  # data sets in data sets
_SAMPLE = 5  # files looked at to find out the kind
_MOST_BYTES = 64_000_000  # of an unpacked bitmap


def detect(source: Path) -> bool:
    """Whether it is a project, a data set of one, or the project's meta.json."""
    root = _root(source)
    if root is None:
        return False
    files = (f / name for f in _ann_folders(root) for name in trees.files_below(f, _JSON))
    return any(_fits(reading.try_json(file)) for file in itertools.islice(files, _SAMPLE))


def read(source: Path, options: Options) -> Draft:
    """Reads all data sets of a project.

    Polygons with holes and bitmaps are kept exactly; lines become strokes, points are findings.
    The class is `classTitle`, or the value of the tag `options.class_key`.

    Raises:
      UserError: there is no annotation file.
    """
    root = _root(source)
    folders = _ann_folders(root) if root is not None else []
    files = [(folder, name) for folder in folders for name in trees.files_below(folder, _JSON)]
    if not files:
        raise UserError(f"{source}: no ann/*.json beside img/ here; name the project's folder")
    draft = Draft(NAME, source, reading.images_folder(options, (root,)), [], [], [])
    num_read = 0
    for folder, name in files:
        file = folder / name
        try:
            content = reading.read_json(file)
        except UserError as error:
            draft.find("error", "bad-file", "", str(error), str(file))
            continue
        if _fits(content):
            num_read += 1
            _read_file(draft, root, folder, name, content, options)
        else:
            message = "is no annotation of Supervisely: it has no list 'objects'"
            draft.find("error", "bad-file", "", message, str(file))
    if not num_read:
        raise UserError(f"{source}: no annotation of Supervisely; {draft.findings[0].message}")
    used = {item.label for item in draft.items}
    declared = [] if options.class_key else _declared(root)
    draft.classes = declared + sorted(used - set(declared))
    return draft


def _root(source: Path) -> Path | None:
    if source.is_file():
        return source.parent if source.name == "meta.json" else None
    return source


def _ann_folders(root: Path) -> list[Path]:
    return [
        folder / "ann"
        for folder in trees.folders_below(root, _DEPTH)
        if folder.name not in ("ann", "img") and (folder / "ann").is_dir()
    ]


def _fits(content: Any) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
        return False
    return "size" in content or "tags" in content


def _declared(root: Path) -> list[str]:
    """Class names of the project's meta.json, in its order; of a data set's project, too."""
    content = reading.try_json(root / "meta.json") or reading.try_json(root.parent / "meta.json")
    entries = content.get("classes") if isinstance(content, dict) else None
    entries = entries if isinstance(entries, list) else []
    titles = [reading.text(e.get("title")) for e in entries if isinstance(e, dict)]
    return list(dict.fromkeys(title for title in titles if title))


def _read_file(
    draft: Draft,
    root: Path,
    folder: Path,
    name: str,
    content: dict[str, Any],
    options: Options,
) -> None:
    where = reading.relative_name(folder / name, root)
    pictures = _picture_names(draft, root, folder, name)
    size = content.get("size")
    hw = (size.get("height"), size.get("width")) if isinstance(size, dict) else (None, None)
    picture = reading.picture(
        draft,
        pictures[0],
        hw=None if None in hw else hw,
        others=pictures[1:],
        where=where,
        once=True,
    )
    if picture is None:
        return
    for number, entry in enumerate(content["objects"]):
        place = f"{where}, object {number}"
        if not isinstance(entry, dict):
            draft.find("error", "bad-region", place, "the object is no JSON object; remove it")
            continue
        label = _label(draft, entry, options, place)
        if label:
            part = _part(draft, picture, entry, place, options)
            own = reading.whole(entry.get("id"))
            if part is not None:
                parts.add(draft, picture, label, [part], place, id=own)


def _picture_names(draft: Draft, root: Path, folder: Path, name: str) -> list[str]:
    """Names that the picture of an annotation may have: a.jpg.json, before 2019 a.json."""
    stem = name[: -len(".json")]
    names = [stem] if Path(stem).suffix.lower() in trees.SUFFIXES else []
    names += [stem + suffix for suffix in sorted(trees.SUFFIXES)]
    if draft.images not in (root, *root.parents):
        return names
    images = reading.relative_name(folder.parent / "img", draft.images)
    return [f"{images}/{name}" for name in names]


def _label(draft: Draft, entry: dict[str, Any], options: Options, where: str) -> str:
    if not options.class_key:
        label = reading.text(entry.get("classTitle"))
        if not label:
            draft.find("error", "no-class", where, "the object has no 'classTitle'; give it one")
        return label
    tags = entry.get("tags")
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, dict) and tag.get("name") == options.class_key:
            label = reading.text(tag.get("value"))
            if label:
                return label
    message = f"no tag {options.class_key!r}; the class is {options.default_class!r}"
    draft.find("warning", "no-class", where, message)
    return options.default_class


def _part(
    draft: Draft, picture: Picture, entry: dict[str, Any], where: str, options: Options
) -> parts.Part | None:
    kind = entry.get("geometryType") or ("bitmap" if entry.get("bitmap") else "polygon")
    if kind == "bitmap":
        return _bitmap(draft, picture, entry.get("bitmap"), where)
    points = entry.get("points")
    outer = reading.point_pairs(points.get("exterior")) if isinstance(points, dict) else None
    if kind == "polygon":
        return _polygon(draft, picture, outer, points, where)
    if kind == "rectangle":
        if outer is None or len(outer) != 2:
            return [None]
        return [outlines.rectangle(*outer.ravel().tolist())]
    if kind in ("line", "polyline"):
        if outer is None or not len(outer):
            return [None]
        message = f"a line is drawn {options.line_width:g} px wide; choose with --line-width"
        draft.find("note", "line", where, message)
        return [*outlines.stroke(outer, options.line_width)]
    if kind == "point":
        draft.find("error", "point", where, "a point has no area; draw an outline")
    else:
        draft.find("error", "unknown-shape", where, f"the shape {kind!r:.40} is not known")
    return None


def _polygon(
    draft: Draft,
    picture: Picture,
    outer: Float[np.ndarray, "n 2"] | None,
    points: Any,
    where: str,
) -> parts.Part:
    holes = points.get("interior") if isinstance(points, dict) else None
    if outer is None or len(outer) < 3 or not holes:
        return [outer]
    inner = [reading.point_pairs(hole) for hole in holes] if isinstance(holes, list) else [None]
    if any(hole is None or len(hole) < 3 for hole in inner):
        message = "a hole is not at least three points x, y of finite numbers; it is filled"
        draft.find("warning", "bad-points", where, message)
    hw = picture.height, picture.width
    if (outer < 0).any() or (outer > hw[::-1]).any():
        message = f"the polygon leaves the picture of width {hw[1]} and height {hw[0]} and is cut"
        draft.find("warning", "outside", where, message)
    return parts.rasterize([outer], hw) & ~parts.rasterize(inner, hw)


def _bitmap(
    draft: Draft, picture: Picture, bitmap: Any, where: str
) -> Bool[np.ndarray, "H W"] | None:
    """A PNG, packed by zlib, and the place of its first pixel."""
    bitmap = bitmap if isinstance(bitmap, dict) else {}
    origin = reading.numbers(bitmap.get("origin"))
    if origin is None or len(origin) != 2:
        message = "the bitmap has no 'origin' of two numbers; export it again"
        draft.find("error", "bad-mask", where, message)
        return None
    try:
        inside = _decode(bitmap.get("data"), (picture.height, picture.width))
    except (UserError, ValueError, binascii.Error, zlib.error) as error:
        draft.find("error", "bad-mask", where, f"the bitmap is damaged ({error}); export it again")
        return None
    left, top = (int(v) for v in origin)
    mask = np.zeros((picture.height, picture.width), bool)
    height, width = inside.shape
    x0, x1 = max(left, 0), min(left + width, picture.width)
    y0, y1 = max(top, 0), min(top + height, picture.height)
    if (x1 - x0, y1 - y0) != (width, height):
        message = f"the bitmap of {width}x{height} at {left}, {top} leaves the picture and is cut"
        draft.find("warning", "outside", where, message)
    if x0 < x1 and y0 < y1:
        mask[y0:y1, x0:x1] = inside[y0 - top : y1 - top, x0 - left : x1 - left]
    return mask


def _decode(data: Any, most: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Raises UserError, ValueError, binascii.Error or zlib.error if it is no such PNG."""
    if not isinstance(data, str):
        raise ValueError("'data' is no text")
    packed = base64.b64decode(data)
    if packed.startswith(b"\x89PNG"):
        content = packed
    else:
        content = zlib.decompressobj().decompress(packed, _MOST_BYTES)
    pixels, _ = mask_files.read_mask(content, most, formats=("PNG",))
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return pixels[:, :, 3] > 0  # what is not transparent
    return mask_files.numbers(pixels) != 0
