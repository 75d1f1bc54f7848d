"""COCO JSON read for the doctor: whatever can be understood becomes rows, the rest findings.

The strict loader (`data/coco.py`) stops at the first mistake; the doctor wants to see them all.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from maskrcnn_jax.data.formats import reading
from maskrcnn_jax.data.formats.draft import Finding, Grade
from maskrcnn_jax.errors import UserError

LISTS = ("images", "annotations", "categories")
_MOST_BITS = 63  # ids travel as int64
_MAX_SIDE = 65_535  # of a JPEG; masks of larger pictures are beyond every tool
_MAX_ECHO = 60  # characters of a foreign value in a message


@dataclasses.dataclass(frozen=True)
class PictureFinding(Finding):
    """A finding that concerns one picture."""

    picture: str = ""  # its file name


@dataclasses.dataclass(slots=True)
class Photo:
    """An entry of 'images' that is an object."""

    row: int  # in the list
    id: int | None  # None where it has no usable one
    name: str  # file_name with "/"; "" if there is none
    hw: tuple[int, int] | None  # None where the entry does not tell
    file: Path | None = None  # where it lies


@dataclasses.dataclass(slots=True)
class Category:
    """An entry of 'categories' that is an object."""

    row: int
    id: int | None
    name: str
    parent: str  # supercategory, or ""


@dataclasses.dataclass(slots=True)
class Thing:
    """An entry of 'annotations' that is an object."""

    row: int
    id: int | None
    photo: int  # index in RawData.photos; -1 if its picture is not known
    category: int  # index in RawData.categories; -1 if it is not known
    crowd: bool
    box: tuple[float, float, float, float] | None = None  # xyxy, as written
    area: float | None = None  # as written
    extent: tuple[float, float, float, float] | None = None  # xyxy of the outline, as written
    polygons: list[Float[np.ndarray, "n 2"]] = dataclasses.field(default_factory=list)
    rle: dict[str, Any] | None = None  # sound, either kind


@dataclasses.dataclass
class RawData:
    """A data set as it is written, and what is wrong with it so far."""

    path: Path
    content: dict[str, Any]  # of the file; never changed
    photos: list[Photo] = dataclasses.field(default_factory=list)
    categories: list[Category] = dataclasses.field(default_factory=list)
    things: list[Thing] = dataclasses.field(default_factory=list)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    folders: list[Path] = dataclasses.field(default_factory=list)  # of the pictures
    foreign: bool = False  # of another format: suffix, EXIF, size are told, ids are not its own

    def tell(self, grade: Grade, code: str, message: str, where: str = "", photo: int = -1) -> None:
        """Adds a finding; photo: index of the picture that it concerns."""
        picture = self.photos[photo].name if photo >= 0 else ""
        self.findings.append(
            PictureFinding(grade, code, str(self.path), where, message, picture=picture)
        )

    def call(self, thing: Thing) -> str:
        """What an object is called in findings."""
        name = f"annotation {thing.id}" if thing.id is not None else f"annotations[{thing.row}]"
        return f"{name} of {self.call_photo(thing.photo)}" if thing.photo >= 0 else name

    def call_photo(self, photo: int) -> str:
        """What a picture is called in findings."""
        p = self.photos[photo]
        name = f"image {p.id}" if p.id is not None else f"images[{p.row}]"
        return f"{name} ({p.name})" if p.name else name


def echo(value: Any) -> str:
    """A foreign value as it can stand in a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _MAX_ECHO else text[: _MAX_ECHO - 3] + "..."


def read_content(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """The content of a COCO JSON file, its three lists there, and what was wrong with the whole.

    Raises:
      UserError: it cannot be read, is no JSON, or has nothing of COCO.
    """
    try:
        content = reading.read_json(path)
    finally:
        reading.forget()
    if isinstance(content, list) and content and isinstance(content[0], dict):
        keys = {"image_id", "category_id"}
        if keys <= content[0].keys():
            raise UserError(
                f"{path}: is a list of results, without 'images' and 'categories'; name the "
                "annotations that they are results for"
            )
    if not isinstance(content, dict) or not any(isinstance(content.get(k), list) for k in LISTS):
        raise UserError(
            f"{path}: has none of the lists 'images', 'annotations', 'categories', so it is not a "
            "COCO data set; say with --from which format it is in"
        )
    findings = _encoding(path)
    for key in LISTS:
        if not isinstance(content.get(key), list):
            message = f"there is no list '{key}'; export the data set again, with pictures, "
            message += "annotations and classes"
            findings.append(Finding("error", "no-list", str(path), "", message))
        elif not content[key]:
            message = f"the list '{key}' is empty; name an annotated data set"
            findings.append(Finding("error", "empty-list", str(path), "", message))
    lists = {k: content[k] if isinstance(content.get(k), list) else [] for k in LISTS}
    return content | lists, findings


def _encoding(path: Path) -> list[Finding]:
    # JSON is UTF-8, 16 or 32, by its standard; the strict loader takes nothing else.
    content = path.read_bytes()
    try:
        content.decode(json.detect_encoding(content))
    except UnicodeDecodeError:
        message = "the text is not UTF-8 and was read as Windows-1252; save it as UTF-8, or --fix"
        return [Finding("error", "encoding", str(path), "", message)]
    return []


def collect(path: Path, content: dict[str, Any], findings: Sequence[Finding] = ()) -> RawData:
    """Pictures, classes and objects of a COCO JSON, with references resolved.

    Boxes and outlines are filled in by `doctor_outlines.parse`.

    Args:
      content: has the three lists; what is in them is not trusted.
      findings: what is known already.
    """
    raw = RawData(path, content, findings=list(findings))
    for row, entry, id in _entries(raw, "categories"):
        raw.categories.append(Category(row, id, _class_name(raw, row, entry, id), _parent(entry)))
    for row, entry, id in _entries(raw, "images"):
        photo = Photo(row, id, "", None)
        raw.photos.append(photo)
        photo.name = _file_name(raw, entry)
        photo.hw = _size(raw, entry)
    photos = _first_by_id(raw.photos)
    categories = _first_by_id(raw.categories)
    for row, entry, id in _entries(raw, "annotations"):
        thing = Thing(row, id, -1, -1, False)
        thing.photo = _refer(raw, thing, entry, "image_id", photos)
        thing.category = _refer(raw, thing, entry, "category_id", categories)
        thing.crowd = _crowd(raw, thing, entry)
        raw.things.append(thing)
    return raw


def whole_id(value: Any) -> int | None:
    """The id that a value stands for: a whole number, or its text; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        digits = text.removeprefix("-")
        value = int(text) if digits.isascii() and digits.isdigit() and len(text) < 20 else None
    number = reading.whole(value)
    return number if number is not None and number.bit_length() <= _MOST_BITS else None


def _entries(raw: RawData, field: str) -> list[tuple[int, dict, int | None]]:
    """The rows of a list that are objects, with their ids; tells what is wrong with these."""
    found, seen = [], set()
    for row, entry in enumerate(raw.content[field]):
        where = f"{field}[{row}]"
        if not isinstance(entry, dict):
            raw.tell("error", "bad-entry", f"is {echo(entry)}, no object; remove it", where)
            continue
        id = whole_id(entry.get("id"))
        if id is None or type(entry["id"]) is not int:
            message = f"'id' is {echo(entry.get('id'))}; give it a whole number"
            raw.tell("error", "bad-id", message, where)
        elif id in seen:
            message = f"the 'id' {id} occurs in {field} before; make the ids unique"
            raw.tell("error", "duplicate-id", message, where)
        seen.add(id)
        found.append((row, entry, id))
    return found


def _first_by_id(entries: Sequence[Photo] | Sequence[Category]) -> dict[int | None, int]:
    table: dict[int | None, int] = {}
    for index, entry in enumerate(entries):
        if entry.id is not None:
            table.setdefault(entry.id, index)
    return table


def _refer(raw: RawData, thing: Thing, entry: dict, field: str, table: dict) -> int:
    value = entry.get(field)
    id = whole_id(value)
    index = table.get(id, -1) if id is not None else -1
    where = raw.call(thing)
    if index < 0:
        kind = "images" if field == "image_id" else "categories"
        message = f"'{field}' is {echo(value)}, which is not in '{kind}'; correct it or remove it"
        raw.tell("error", f"orphan-{field.replace('_', '-')}", message, where)
    elif type(value) is not int:
        raw.tell("error", "bad-id", f"'{field}' is {echo(value)}; write the number {id}", where)
    return index


def _crowd(raw: RawData, thing: Thing, entry: dict) -> bool:
    value = entry.get("iscrowd", 0)
    if value in (0, 1) and isinstance(value, int | float):  # true and false are common, and clear
        return bool(value)
    crowd = value == "1"
    message = f"'iscrowd' is {echo(value)}, read as {int(crowd)}; write 0 or 1"
    raw.tell("warning", "bad-crowd", message, raw.call(thing), thing.photo)
    return crowd


def _class_name(raw: RawData, row: int, entry: dict, id: int | None) -> str:
    name = entry.get("name")
    where = f"category {id}" if id is not None else f"categories[{row}]"
    if not isinstance(name, str) or not name.strip():
        grade: Grade = "warning" if isinstance(name, str) else "error"
        raw.tell(grade, "no-class-name", f"'name' is {echo(name)}; give it one", where)
        return ""
    if name != " ".join(name.split()):
        message = f"the name {echo(name)} has stray blanks; write {echo(' '.join(name.split()))}"
        raw.tell("warning", "stray-blanks", message, where)
    return name


def _parent(entry: dict) -> str:
    parent = entry.get("supercategory")
    return parent if isinstance(parent, str) else ""


def _file_name(raw: RawData, entry: dict) -> str:
    photo, name = len(raw.photos) - 1, entry.get("file_name")
    where = raw.call_photo(photo)
    if not isinstance(name, str) or not name.strip():
        message = f"'file_name' is {echo(name)}; name the picture"
        raw.tell("error", "no-name", message, where)
        return ""
    if "\\" in name:
        raw.photos[photo].name = name.replace("\\", "/")
        where = raw.call_photo(photo)
        message = f"{echo(name)} has back-slashes, which are read as '/'"
        raw.tell("note", "back-slash", message, where, photo)
    return name.replace("\\", "/")


def _size(raw: RawData, entry: dict) -> tuple[int, int] | None:
    sides = entry.get("height"), entry.get("width")
    photo = len(raw.photos) - 1
    if all(type(s) is int and 0 < s <= _MAX_SIDE for s in sides):
        return sides
    message = f"'height' and 'width' are {echo(sides[0])} and {echo(sides[1])}; write the size of "
    raw.tell("error", "bad-size", message + "the picture in pixels", raw.call_photo(photo), photo)
    return None
