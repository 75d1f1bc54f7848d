"""YOLO segmentation labels: a text file per picture, a line `class x y x y ...` per object.

Layout as in https://docs.ultralytics.com/datasets/segment: `labels` beside `images`, in the set's
folder or in one for each split; coordinates are fractions of width and height.
"""

import itertools
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from maskrcnn_jax.data.formats import class_lists, objects, outlines, reading, trees
from maskrcnn_jax.data.formats.draft import Draft, Options, Picture
from maskrcnn_jax.errors import UserError

NAME = "yolo-seg"
SUMMARY = "YOLO segmentation: folders images/ and labels/ (or their data.yaml), a .txt per picture"

_TEXT = frozenset({".txt"})
_NO_LABELS = ("classes.txt", "labels.txt", "train.txt", "val.txt", "test.txt")
_DEPTH = 3  # levels below the source at which `labels` are looked for
_SAMPLE = 20  # files looked at to find out the kind of a folder
_MOST = 2.0  # fractions above are pixels
_NUM_COCO = 80


class _Labels(NamedTuple):
    """A folder of label files and where their pictures are."""

    folder: Path
    files: list[str]  # relative to the folder
    pictures: dict[str, list[str]]  # by the files' stems; relative to Draft.images


def detect(source: Path) -> bool:
    """Whether it is a folder with label files, or the YAML of such a set."""
    if source.is_file():
        if source.suffix.lower() not in class_lists.YAML_SUFFIXES:
            return False
        try:
            return class_lists.read_yaml_names(source) is not None and detect(source.parent)
        except UserError:
            return False
    folders = _label_folders(source)
    if folders == [source] and source.name.lower() != "labels":  # not what lies further below
        files = iter(sorted(source.glob("*.txt")))
    else:
        files = (folder / name for folder in folders for name in trees.files_below(folder, _TEXT))
    return any(_fits(file) for file in itertools.islice(files, _SAMPLE))


def read(source: Path, options: Options) -> Draft:
    """Reads the label files of a set or of one folder, and the pictures of the same names.

    Class names are `options.classes`, else those of data.yaml, classes.txt or obj.names, else the
    numbers. Lines of four coordinates are boxes. Pictures without a label file are kept, without
    objects, and told.

    Raises:
      UserError: there is no label file, or the list of class names is damaged.
    """
    root = source if source.is_dir() else source.parent
    found = [(folder, trees.files_below(folder, _TEXT)) for folder in _label_folders(root)]
    found = [(folder, [n for n in names if _is_label(folder / n)]) for folder, names in found]
    found = [(folder, names) for folder, names in found if names]
    if not found:
        raise UserError(f"{source}: no label files (labels/.../NAME.txt) here; name their folder")
    draft = Draft(NAME, source, _images(root, [f for f, _ in found], options), [], [], [])
    names, where = _names(source, root, found[0][0], options)
    known = class_lists.distinct(draft, names, where)
    used: set[int] = set()
    for labels in _pair(draft, found, options):
        _read_folder(draft, labels, root, known, used)
    _finish_classes(draft, known, used)
    return draft


def _label_folders(source: Path) -> list[Path]:
    if not source.is_dir():
        return []
    found: list[Path] = []
    for folder in trees.folders_below(source, _DEPTH):
        inside = any(parent in folder.parents for parent in found)
        if folder.name.lower() == "labels" and not inside:
            found.append(folder)
    return found or [source]


def _is_label(file: Path) -> bool:
    """Whether a text file is about a picture, by its name."""
    if file.name.lower() in _NO_LABELS:
        return False
    return not file.stem.upper().startswith(("README", "LICENSE"))


def _fits(file: Path) -> bool:
    if not _is_label(file):
        return False
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as stream:
            return any(_looks_like_label(line) for line in itertools.islice(stream, 5))
    except OSError:
        return False


def _looks_like_label(line: str) -> bool:
    values = [reading.parse_number(word) for word in line.split(None, 5)[:5]]
    if len(values) < 5 or None in values or reading.whole(values[0]) is None:
        return False
    return max(abs(value) for value in values[1:]) <= _MOST


def _images(root: Path, folders: list[Path], options: Options) -> Path:
    """The folder that all pictures lie in: the user's, the set's, or `images` beside the labels."""
    beside = root.parent / "images"
    if options.images is None and folders == [root] and beside.is_dir():
        suffixes = (os.path.splitext(name)[1].lower() for name in os.listdir(root))
        if trees.SUFFIXES.isdisjoint(suffixes):
            return beside
    return reading.images_folder(options, (root,))


def _pair(draft: Draft, found: list[tuple[Path, list[str]]], options: Options) -> list[_Labels]:
    """Where the pictures of each folder of labels are: `images` beside it, or the user's folder."""
    paired = []
    for folder, files in found:
        pictures = trees.child(folder.parent, "images") or folder
        if options.images is not None or draft.images not in (pictures, *pictures.parents):
            pictures = draft.images
        prefix = reading.relative_name(pictures, draft.images)
        prefix = "" if prefix == "." else f"{prefix}/"
        names = [prefix + name for name in trees.files_below(pictures)]
        stems = {key.removeprefix(prefix): value for key, value in trees.by_stem(names).items()}
        paired.append(_Labels(folder, files, stems))
    return paired


def _names(source: Path, root: Path, labels: Path, options: Options) -> tuple[list[str], str]:
    if options.classes:
        return list(options.classes), "--classes"
    if source.is_file():
        return class_lists.read_yaml_names(source) or [], str(source)
    found = class_lists.find_names(list(dict.fromkeys([root, labels, labels.parent, root.parent])))
    return (found[0], str(found[1])) if found else ([], "")


def _read_folder(
    draft: Draft, labels: _Labels, root: Path, known: list[str], used: set[int]
) -> None:
    last_parts: dict[str, list[str]] = {}
    for stem, names in labels.pictures.items():
        last_parts.setdefault(PurePosixPath(stem).name, []).extend(names)
    for name in labels.files:
        file, stem = labels.folder / name, os.path.splitext(name)[0]
        where = reading.relative_name(file, root)
        names = labels.pictures.get(stem) or last_parts.get(trees.stem(name))
        if names is None:
            message = f"no picture {stem}.* in {draft.images}; add it or name its folder: --images"
            draft.find("error", "missing-image", where, message, str(file))
            continue
        picture = reading.picture(draft, trees.one_of(draft, names, where), where=where, once=True)
        if picture is not None:
            _read_file(draft, picture, file, where, known, used)
    for names in labels.pictures.values():
        if draft.known.keys().isdisjoint(names):
            _add_unlabelled(draft, names[0])


def _add_unlabelled(draft: Draft, name: str) -> None:
    if reading.picture(draft, name) is not None:
        message = "has no label file and is kept as a picture without objects; look whether it is"
        draft.find("warning", "no-labels", name, message)


def _read_file(
    draft: Draft, picture: Picture, file: Path, where: str, known: list[str], used: set[int]
) -> None:
    try:
        lines = reading.read_text(file).splitlines()
    except UserError as error:
        draft.find("error", "bad-file", where, str(error), str(file))
        return
    scale = np.array([picture.width, picture.height], np.float64)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        index, polygon = _parse(draft, line, place)
        if polygon is None:
            continue
        if known and index >= len(known):
            message = f"class {index} is not one of the {len(known)} names; complete the list"
            draft.find("error", "unknown-class", place, message)
            continue
        used.add(index)
        label = known[index] if known else str(index)
        objects.add_polygons(draft, picture, label, [polygon * scale], place)


def _parse(draft: Draft, line: str, where: str) -> tuple[int, Float[np.ndarray, "n 2"] | None]:
    """Class and polygon of a line, in fractions; None and a finding if it is none."""
    words = line.split()
    index = reading.whole(reading.parse_number(words[0]))
    values = [reading.parse_number(word) for word in words[1:]]
    flat = reading.points(values) if None not in values else None
    if index is None or index < 0 or flat is None or len(flat) < 2:
        message = "is not 'class x y x y x y ...' with finite numbers; correct or remove the line"
        draft.find("error", "bad-line", where, message)
    elif np.abs(flat).max() > _MOST:
        message = (
            f"has coordinates up to {np.abs(flat).max():g}, which are no fractions of the side"
        )
        draft.find("error", "not-normalised", where, f"{message}; divide by width and height")
    elif len(flat) == 2:  # centre and size
        (x, y), (width, height) = flat.tolist()
        message = "is a box, not an outline: it is read as a rectangle"
        draft.find("warning", "box", where, message)
        corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        return index, outlines.rectangle(*corners)
    else:
        return index, flat
    return -1, None


def _finish_classes(draft: Draft, known: list[str], used: set[int]) -> None:
    if known:
        draft.classes = list(dict.fromkeys(known))
        return
    draft.classes = [str(index) for index in sorted(used)]
    if used:
        hint = "; if they are COCO's: --classes coco" if max(used) < _NUM_COCO else ""
        message = (
            f"no classes.txt or data.yaml: the {len(used)} classes are called by their numbers"
        )
        remedy = f"name them, in order: --classes a,b,c or a file{hint}"
        draft.find("warning", "no-class-names", "", f"{message}; {remedy}")
