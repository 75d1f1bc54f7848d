"""VGG Image Annotator 1 and 2: JSON, project files and CSV.

Regions are a dict in VIA 1 and a list in VIA 2; an entry is found by its `filename` alone. The
format is described in VIA's own documentation, https://www.robots.ox.ac.uk/~vgg/software/via/.
"""

import collections
import csv
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskrcnn_jax.data.formats import objects, outlines, reading, via3
from maskrcnn_jax.data.formats.draft import Draft, Options
from maskrcnn_jax.errors import UserError

NAME = "via"
SUMMARY = "VGG Image Annotator: JSON, project file or CSV"

_FILES = ("via_region_data.json", "via_project.json", "via_region_data.csv")
_CSV_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")
_CLASS_KEYS = ("name", "class", "label", "type", "category")
# JavaScript's bare `undefined`, which VIA writes into CSV cells; texts are passed over.
_UNDEFINED = re.compile(r'"(?:[^"\\]|\\.)*"|\bundefined\b')


def detect(source: Path) -> bool:
    """Whether it is a VIA file, of attribute definitions, too, or a folder with one."""
    file = _file(source)
    if file is None:
        return False
    if file.suffix.lower() == ".csv":
        with open(file, "rb") as stream:
            return b"region_shape_attributes" in stream.read(1000).replace(b"\0", b"")
    content = reading.try_json(file)
    return via3.fits(content) or _is_definition(content) or _fits(content)


def read(source: Path, options: Options) -> Draft:
    """Reads a file, or the one in a folder, in which VIA keeps regions.

    The class of a region is its attribute `options.class_key`; without one, the attribute that
    most regions have, preferably one called name, class, label, type or category. Circles,
    ellipses and lines become polygons; points are findings.

    Raises:
      UserError: it is none, or holds definitions of attributes only.
    """
    file = _file(source)
    if file is None:
        raise UserError(f"{source}: no VIA file here; name the JSON or CSV that VIA exported")
    entries = _csv_entries(file) if file.suffix.lower() == ".csv" else _json_entries(file)
    names = [entry.get("filename") for _, entry in entries]
    folders = (file.parent, file.parent / "images")
    draft = Draft(NAME, source, reading.images_folder(options, folders, names), [], [], [])
    regions = [list(_regions(draft, key, entry)) for key, entry in entries]
    key = options.class_key or _guess_key(draft, [r for found in regions for _, r in found])
    for (name, entry), found in zip(entries, regions, strict=True):
        where = entry.get("filename") if isinstance(entry.get("filename"), str) else name
        picture = reading.picture(draft, entry.get("filename"), where=where, once=True)
        for number, region in found if picture is not None else ():
            label = _label(draft, region, key, options, f"{where}, region {number}")
            _add(draft, picture, label, region, f"{where}, region {number}", options)
    draft.classes = sorted({item.label for item in draft.items})
    return draft


def _file(source: Path) -> Path | None:
    if source.is_file():
        return source if source.suffix.lower() in (".json", ".csv") else None
    return next((source / name for name in _FILES if (source / name).is_file()), None)


def _is_definition(content: Any) -> bool:
    """Whether it is an export of attribute definitions, which has no regions."""
    return (
        isinstance(content, dict)
        and set(content) <= {"region", "file"}
        and "region" in content
        and all(isinstance(value, dict) and "filename" not in value for value in content.values())
    )


def _fits(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    metadata = content.get("_via_img_metadata", content)
    values = list(metadata.values()) if isinstance(metadata, dict) else []
    good = [v for v in values[:100] if isinstance(v, dict) and "filename" in v and "regions" in v]
    return "_via_img_metadata" in content or len(good) > 0


def _json_entries(file: Path) -> list[tuple[str, dict[str, Any]]]:
    content = reading.read_json(file)
    if via3.fits(content):
        return via3.entries(content)
    if _is_definition(content):
        raise UserError(
            f"{file}: holds definitions of attributes only, no regions; in VIA use Annotation > "
            "Export Annotations (as json), and name that file"
        )
    metadata = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(metadata, dict):
        raise UserError(f"{file}: is no VIA export; use Annotation > Export Annotations (as json)")
    entries = [(key, value) for key, value in metadata.items() if isinstance(value, dict)]
    if not any("filename" in value for _, value in entries):
        raise UserError(f"{file}: no entry has a 'filename', so it is no VIA export of regions")
    return entries


def _csv_entries(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a CSV as entries like those of the JSON; a cell that is no JSON stays a text."""
    entries: dict[str, dict[str, Any]] = {}
    text = reading.read_text(file).lstrip("#\ufeff")
    limit = csv.field_size_limit(sys.maxsize // 2**32)  # long outlines; a C long
    try:
        rows = csv.DictReader(io.StringIO(text))
        missing = [name for name in _CSV_COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise UserError(f"{file}: has no column {missing[0]!r}; export the CSV from VIA again")
        for row in rows:
            name = row["filename"] or ""
            entry = entries.setdefault(name, {"filename": name, "regions": []})
            if (row["region_shape_attributes"] or "{}").strip() != "{}":
                region = {
                    "shape_attributes": _cell(row["region_shape_attributes"], file),
                    "region_attributes": _cell(row["region_attributes"], file),
                }
                entry["regions"].append(region)
    except csv.Error as error:
        raise UserError(f"{file}: not readable as CSV ({error}); export it again") from error
    finally:
        csv.field_size_limit(limit)
    return list(entries.items())


def _cell(text: str | None, file: Path) -> Any:
    fixed = _UNDEFINED.sub(lambda m: "null" if m.group() == "undefined" else m.group(), text or "")
    try:
        return reading.parse_json(fixed, file)
    except UserError:
        return text


def _regions(draft: Draft, key: str, entry: dict[str, Any]) -> Iterator[tuple[str, dict]]:
    regions = entry.get("regions")
    if isinstance(regions, dict):
        pairs = list(regions.items())
    else:
        several = regions if isinstance(regions, list) else [regions]
        pairs = [] if regions is None else list(enumerate(several))
    for number, region in pairs:
        if isinstance(region, dict) and isinstance(region.get("shape_attributes"), dict):
            yield str(number), region
        else:
            message = "it has no 'shape_attributes'; remove it or export again"
            draft.find("error", "bad-region", f"{key}, region {number}", message)


def _attributes(region: dict[str, Any]) -> dict[str, Any]:
    attributes = region.get("region_attributes")
    return attributes if isinstance(attributes, dict) else {}


def _guess_key(draft: Draft, regions: list[dict[str, Any]]) -> str:
    """The attribute that most regions have; "" if there is none."""
    counts = collections.Counter(
        key for r in regions for key, value in _attributes(r).items() if _value(value)
    )
    if not counts:
        if regions:
            message = "no region has attributes; all objects are of one class"
            draft.find("note", "class-key", "", message)
        return ""
    common = [key for key in counts if counts[key] > len(regions) / 2] or list(counts)
    rank = {key: i for i, key in enumerate(_CLASS_KEYS)}
    key = min(common, key=lambda k: (rank.get(k.lower(), len(rank)), -counts[k], k))
    message = (
        f"the class is taken from the attribute {key!r}, which {counts[key]} of {len(regions)} "
        f"regions have; the attributes are {sorted(counts)}: choose another with --class-key"
    )
    draft.find("note", "class-key", key, message)
    return key


def _value(value: Any) -> str:
    """The text of an attribute; of checkboxes the one that is ticked."""
    if isinstance(value, dict):
        ticked = [key for key, on in value.items() if on is True]
        return ticked[0].strip() if len(ticked) == 1 else ""
    return reading.text(value)


def _label(draft: Draft, region: dict, key: str, options: Options, where: str) -> str:
    label = _value(_attributes(region).get(key)) if key else ""
    if not label and key:
        message = f"the attribute {key!r} is empty; the class is {options.default_class!r}"
        draft.find("warning", "no-class", where, message)
    return label or options.default_class


def _add(
    draft: Draft, picture: Any, label: str, region: dict, where: str, options: Options
) -> None:
    shape = region["shape_attributes"]
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        polygon = _points(shape)
        if kind == "polyline" and polygon is not None:
            objects.add_stroke(draft, picture, label, polygon, options.line_width, where)
        else:
            objects.add_polygons(draft, picture, label, [polygon], where, pixels=True)
        return
    if kind == "point":
        draft.find("error", "point", where, "a point has no area; draw an outline")
        return
    fields, outline = _SHAPES.get(kind if isinstance(kind, str) else "", ((), None))
    if outline is None:
        draft.find("error", "unknown-shape", where, f"the shape {kind!r:.40} is not known")
        return
    # Only an ellipse drawn upright lacks its angle.
    values = reading.numbers([shape.get(f, 0.0 if f == "theta" else None) for f in fields])
    if values is None:
        given = {f: shape.get(f) for f in fields}
        message = f"the {kind} needs finite numbers, it has {given!r:.120}; draw it again"
        draft.find("error", "bad-points", where, message)
        return
    objects.add_polygons(draft, picture, label, [outline(*values.tolist())], where)


_SHAPES = {
    "rect": (
        ("x", "y", "width", "height"),
        lambda x, y, w, h: outlines.rectangle(x, y, x + w, y + h),
    ),
    "circle": (("cx", "cy", "r"), outlines.circle),
    "ellipse": (("cx", "cy", "rx", "ry", "theta"), outlines.ellipse),
}


def _points(shape: dict[str, Any]) -> Any:
    x, y = (reading.numbers(shape.get(f"all_points_{axis}")) for axis in "xy")
    if x is None or y is None or len(x) != len(y):
        return None
    return reading.stack(x, y)
