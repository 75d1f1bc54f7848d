"""CVAT for images 1.1: an XML with all pictures.

Elements and attributes as in https://docs.cvat.ai/docs/dataset_management/formats/format-cvat.
"""

import collections
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool, Float

from maskrcnn_jax.data.formats import outlines, parts, reading, xml_files
from maskrcnn_jax.data.formats.draft import Draft, Options, Picture
from maskrcnn_jax.errors import UserError

NAME = "cvat"
SUMMARY = "CVAT for images 1.1: annotations.xml, or the folder with it and images/"

_FILE = "annotations.xml"
_NO_SHAPE = ("tag", "attribute")


def detect(source: Path) -> bool:
    """Whether it is a CVAT XML or a folder with an annotations.xml."""
    file = _file(source)
    return file is not None and xml_files.root_name(file) == "annotations"


def read(source: Path, options: Options) -> Draft:
    """Reads polygons, boxes, ellipses, lines and masks of the pictures, in the order of their z.

    Shapes of one picture with the same label and the same group are one object. Points, cuboids
    and skeletons are findings.

    Raises:
      UserError: it is no XML of CVAT, or one of a video.
    """
    file = _file(source)
    if file is None:
        raise UserError(f"{source}: no {_FILE} here; name the XML that CVAT exported")
    root = xml_files.read_xml(file)
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        video = root.find("track") is not None
        reason = "a CVAT export of a video" if video else "no XML of CVAT with pictures"
        raise UserError(f"{file}: is {reason}; export it as 'CVAT for images 1.1'")
    folders = (file.parent / "images", file.parent)
    names = [name for image in images for name in _names(image)[:2]]
    candidates = [f for f in folders if f.is_dir()]
    draft = Draft(NAME, source, reading.images_folder(options, candidates, names), [], [], [])
    for number, image in enumerate(images):
        _read_image(draft, image, number, options)
    used = {item.label for item in draft.items}
    declared = [reading.text(label.findtext("name", "")) for label in _labels(root)]
    draft.classes = list(dict.fromkeys(name for name in declared if name))
    draft.classes += sorted(used - set(draft.classes))
    return draft


def _file(source: Path) -> Path | None:
    if source.is_file():
        return source if source.suffix.lower() == ".xml" else None
    return source / _FILE if (source / _FILE).is_file() else None


def _labels(root: ElementTree.Element) -> list[ElementTree.Element]:
    """The labels of a task, job or project; not the points of skeletons."""
    labels = root.findall("meta/*/labels/label") or root.findall("meta/labels/label")
    return [label for label in labels if label.find("parent") is None]


def _names(image: ElementTree.Element) -> list[str]:
    """The names that the picture may have: CVAT puts subsets into folders."""
    name, subset = image.get("name", ""), image.get("subset", "default")
    return [name, f"{subset}/{name}", f"images/{name}", f"images/{subset}/{name}"]


def _read_image(draft: Draft, image: ElementTree.Element, number: int, options: Options) -> None:
    name, *others = _names(image)
    size = [reading.parse_number(image.get(side)) for side in ("height", "width")]
    if None in size:
        message = "the <image> has no height and width in numbers; export it again"
        draft.find("warning", "no-size", name or f"image {number}", message)
    own = reading.whole(reading.parse_number(image.get("id")))
    picture = reading.picture(
        draft,
        name,
        hw=None if None in size else (size[0], size[1]),
        others=others,
        where=name or f"image {number}",
        once=True,
        id=own,
    )
    if picture is None:
        return
    shapes = [(s, i) for i, s in enumerate(image) if s.tag not in _NO_SHAPE]
    shapes.sort(key=lambda pair: reading.parse_number(pair[0].get("z_order")) or 0.0)
    joined: dict[tuple[str, str], list[parts.Part]] = collections.defaultdict(list)
    for shape, index in shapes:
        where = f"{name}, {shape.tag} {index}"
        label = reading.text(shape.get("label"))
        if not label:
            draft.find("error", "no-class", where, "the shape has no 'label'; give it one")
            continue
        part = _part(draft, picture, shape, where, options)
        if part is not None:
            group = reading.whole(reading.parse_number(shape.get("group_id")))
            joined[label, f"{name}, group {group}" if group else where].append(part)
    for (label, where), found in joined.items():
        parts.add(draft, picture, label, found, where)


def _part(
    draft: Draft, picture: Picture, shape: ElementTree.Element, where: str, options: Options
) -> parts.Part | None:
    if shape.tag == "mask":
        return _mask(draft, picture, shape, where)
    if shape.tag in ("polygon", "polyline"):
        points = _points(shape.get("points"))
        if shape.tag == "polygon" or points is None:
            return [points]
        message = f"a line is drawn {options.line_width:g} px wide; choose with --line-width"
        draft.find("note", "line", where, message)
        return [*outlines.stroke(points, options.line_width)]
    if shape.tag == "box":
        values = _values(shape, "xtl", "ytl", "xbr", "ybr")
        return [None if values is None else _box(*values)]
    if shape.tag == "ellipse":
        values = _values(shape, "cx", "cy", "rx", "ry")
        if values is None:
            return [None]
        *rest, angle = values
        return [outlines.ellipse(*rest, theta=math.radians(angle))]
    if shape.tag == "points":
        draft.find("error", "point", where, "points have no area; draw an outline")
    else:
        message = f"the shape {shape.tag!r:.40} is not known; draw an outline"
        draft.find("error", "unknown-shape", where, message)
    return None


def _points(text: str | None) -> Float[np.ndarray, "n 2"] | None:
    """Points of "x,y;x,y"."""
    pairs = [pair.split(",") for pair in (text or "").strip().strip(";").split(";")]
    return reading.point_pairs([[reading.parse_number(v) for v in pair] for pair in pairs])


def _values(shape: ElementTree.Element, *names: str) -> list[float] | None:
    """The numbers of these attributes and the rotation in degrees; None if one is no number."""
    values = [reading.parse_number(shape.get(name)) for name in names]
    values.append(reading.parse_number(shape.get("rotation", "0")))
    return None if None in values else values


def _box(x0: float, y0: float, x1: float, y1: float, degrees: float) -> Float[np.ndarray, "n 2"]:
    """A box turned about its centre, clockwise as seen."""
    corners = outlines.rectangle(x0, y0, x1, y1)
    if not degrees:
        return corners
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return centre + (corners - centre) @ np.array([[cos, sin], [-sin, cos]])


def _mask(
    draft: Draft, picture: Picture, shape: ElementTree.Element, where: str
) -> Bool[np.ndarray, "H W"] | None:
    """CVAT's run-length code: row-wise in its box, background first."""
    names = ("left", "top", "width", "height")
    box = [reading.whole(reading.parse_number(shape.get(name))) for name in names]
    words = [reading.parse_number(word) for word in (shape.get("rle") or "").split(",")]
    counts = [reading.whole(word) for word in words]
    good = None not in box and None not in counts and min(counts) >= 0
    good = good and 0 <= box[0] < box[0] + box[2] <= picture.width
    good = good and 0 <= box[1] < box[1] + box[3] <= picture.height
    if not good or sum(counts) != box[2] * box[3]:
        message = "the 'rle' does not fill the box left, top, width, height inside the picture"
        draft.find("error", "bad-rle", where, f"{message}; export it again")
        return None
    left, top, width, height = box
    values = np.arange(len(counts)) % 2 == 1
    mask = np.zeros((picture.height, picture.width), bool)
    inside = np.repeat(values, counts).reshape(height, width)
    mask[top : top + height, left : left + width] = inside
    return mask
