"""What every annotation format is read into: pictures, objects, and what is odd about them.

A format module has
    NAME: str                                         what --from calls it
    SUMMARY: str                                      one line for the help
    detect(source: Path) -> bool                      quick and sure, from the content
    read(source: Path, options: Options) -> Draft
"""

import dataclasses
from pathlib import Path
from typing import Literal

Grade = Literal["error", "warning", "note"]
# COCO's two forms: polygons x, y, x, y, ... in pixels, the parts of one object, or a compressed
# RLE {"size": [height, width], "counts": text}.
Segmentation = list[list[float]] | dict


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may say about a source; each format uses what concerns it."""

    images: Path | None = None  # folder of the pictures; None: where the format has them
    classes: tuple[str, ...] = ()  # names by number, for formats that have numbers only
    class_key: str = ""  # VIA, Supervisely tags: the attribute that holds the class; "": guessed
    line_width: float = 3.0  # pixels, of lines (polyline, linestrip) made into masks
    default_class: str = "object"  # of objects to which the format gives no class


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something odd in a data set."""

    grade: Grade  # "error": it cannot be used; "warning": it can, but look; "note": good to know
    code: str  # a word with hyphens that groups findings: "missing-image", "outside", "tiny"
    file: str  # the file it is in
    where: str  # the picture, entry or id in it; "" for the whole file
    message: str  # what is wrong, and the remedy


@dataclasses.dataclass
class Picture:
    """A picture as it is shown: after EXIF rotation, unless the annotations say otherwise."""

    name: str  # path below Draft.images, with "/"; unique
    height: int
    width: int
    group: str = ""  # pictures with one group, near-duplicates, are never split apart
    id: int | None = None  # the format's own number, kept where there is one


@dataclasses.dataclass
class Item:
    """One object: all its parts, its holes left out."""

    picture: str  # Picture.name
    label: str
    segmentation: Segmentation
    crowd: bool = False
    id: int | None = None  # the format's own number, kept where there is one


@dataclasses.dataclass
class Draft:
    """A data set on its way to COCO JSON."""

    kind: str  # NAME of the format
    source: Path
    images: Path  # the folder that the names of the pictures are relative to
    classes: list[str]  # every class, in the format's own order if it has one, else sorted
    pictures: list[Picture]
    items: list[Item]
    findings: list[Finding] = dataclasses.field(default_factory=list)
    category_ids: dict[str, int] = dataclasses.field(default_factory=dict)  # the format's own
    # What has been asked of reading.picture, by name; None: it cannot be used.
    known: dict[str, Picture | None] = dataclasses.field(default_factory=dict, repr=False)

    def find(self, grade: Grade, code: str, where: str, message: str, file: str = "") -> None:
        """Adds a finding; about the source itself unless a file is named."""
        self.findings.append(Finding(grade, code, file or str(self.source), where, message))
