"""VIA 3 project files, as the entries of VIA 2.

Shapes are lists of numbers that begin with a code: https://gitlab.com/vgg/via, `_via_shape.js`.
"""

from typing import Any

# Code of a shape: VIA 2's name and its fields; points are x, y, x, y, ...
_SHAPES: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("point", ("cx", "cy")),
    2: ("rect", ("x", "y", "width", "height")),
    3: ("circle", ("cx", "cy", "r")),
    4: ("ellipse", ("cx", "cy", "rx", "ry")),
    5: ("polyline", ()),  # a line
    6: ("polyline", ()),
    7: ("polygon", ()),
}


def fits(content: Any) -> bool:
    """Whether a JSON is a project of VIA 3."""
    tables = ("file", "metadata", "view")
    return isinstance(content, dict) and all(isinstance(content.get(t), dict) for t in tables)


def entries(content: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The pictures of a project with their regions, laid out as VIA 2 does."""
    found: dict[str, dict[str, Any]] = {}
    for key, file in content["file"].items():
        name = file.get("fname") if isinstance(file, dict) else None
        found[key] = {"filename": name, "regions": []}
    attributes = content.get("attribute")
    for entry in content["metadata"].values():
        file = _file_of(content, entry)
        # Entries without a shape are about the whole picture.
        if file in found and entry.get("xy") != []:
            values = entry.get("av") if isinstance(entry.get("av"), dict) else {}
            region = {
                "shape_attributes": _shape(entry.get("xy")),
                "region_attributes": _named(values, attributes),
            }
            found[file]["regions"].append(region)
    return list(found.items())


def _file_of(content: dict[str, Any], entry: Any) -> str:
    """The key of the file that a metadata entry is about: that of its view's only file."""
    view = content["view"].get(str(entry.get("vid"))) if isinstance(entry, dict) else None
    files = view.get("fid_list") if isinstance(view, dict) else None
    return str(files[0]) if isinstance(files, list) and len(files) == 1 else ""


def _shape(numbers: Any) -> Any:
    """The numbers of a shape as VIA 2's fields; None if they are no list."""
    if not isinstance(numbers, list) or not numbers or type(numbers[0]) is not int:
        return None
    name, fields = _SHAPES.get(numbers[0], (f"number {numbers[0]}", ()))
    if fields:
        return {"name": name} | dict(zip(fields, numbers[1:], strict=False))
    return {"name": name, "all_points_x": numbers[1::2], "all_points_y": numbers[2::2]}


def _named(values: dict[str, Any], attributes: Any) -> dict[str, Any]:
    """Attributes by their names, and options by theirs."""
    named = {}
    for key, value in values.items():
        definition = attributes.get(key) if isinstance(attributes, dict) else None
        definition = definition if isinstance(definition, dict) else {}
        options = definition.get("options")
        if isinstance(options, dict) and isinstance(value, str):
            value = options.get(value, value)
        named[str(definition.get("aname", key))] = value
    return named
