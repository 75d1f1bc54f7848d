"""Open Images V6 and V7: a CSV with a line per object, whose mask is a PNG of its own.

Columns as in https://storage.googleapis.com/openimages/web/download_v7.html; the folders of
FiftyOne's downloads are known, too.
"""

import collections
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Bool
from PIL import Image

from maskrcnn_jax.data.formats import mask_files, objects, reading, trees
from maskrcnn_jax.data.formats.draft import Draft, Options, Picture
from maskrcnn_jax.errors import UserError

NAME = "open-images"
SUMMARY = "Open Images V6, V7: *-annotations-object-segmentation.csv, mask PNGs and pictures"

_COLUMNS = ("MaskPath", "ImageID", "LabelName")
_BOX = ("BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax")
_CROWD_BOX = ("XMin", "XMax", "YMin", "YMax")
_CSV = frozenset({".csv"})
_MASKS = frozenset({".png"})
_SHARE = 0.02  # of a side, by which a mask may stick out of its box


def detect(source: Path) -> bool:
    """Whether it is such a CSV or a folder with one."""
    return any(set(_COLUMNS) <= set(_header(file)) for file in _csv_files(source))


def read(source: Path, options: Options) -> Draft:
    """Reads the objects of the pictures that are there, by the classes' names if they are known.

    `options.classes` leaves only these classes. Masks of another size are scaled to the picture.
    Boxes of groups (IsGroupOf in *-annotations-bbox.csv) are crowd regions. Pictures that are not
    there are counted in one finding: most downloads are a part of the set.

    Raises:
      UserError: there is no such CSV, or none of its pictures, or none of the classes asked for.
    """
    files = _csv_files(source)
    sheets = [f for f in files if set(_COLUMNS) <= set(_header(f))]
    if not sheets:
        raise UserError(f"{source}: no CSV with the columns {', '.join(_COLUMNS)}; name its folder")
    root = source if source.is_dir() else source.parent
    draft = Draft(NAME, source, reading.images_folder(options, (root,)), [], [], [])
    titles = _titles(files)
    masks = {PurePosixPath(name).name: name for name in trees.files_below(root, _MASKS)}
    ids, mask_names = _survey(sheets, masks)
    kept = _wanted(options.classes, titles, ids, source)
    pictures = _pictures(draft, mask_names)
    missing: collections.Counter[str] = collections.Counter()
    done = set()
    for sheet in sheets:
        for number, row in _rows(sheet, _COLUMNS):
            if kept is None or row["LabelName"] in kept:
                where = f"{sheet.name}, line {number}"
                _add_row(draft, row, root, masks, pictures, titles, missing, where)
                done.add(row["LabelName"])
    _tell_missing(draft, missing, len(draft.pictures))
    _add_crowds(draft, [f for f in files if "IsGroupOf" in _header(f)], pictures, titles, done)
    used = {item.label for item in draft.items}
    draft.classes = [name for name in options.classes if name in used] or sorted(used)
    return draft


def _csv_files(source: Path) -> list[Path]:
    if source.is_file():
        beside = [f for f in sorted(source.parent.glob("*.csv")) if f != source]
        own = [f for f in beside if not set(_COLUMNS) <= set(_header(f))]
        return [source, *own] if source.suffix.lower() == ".csv" else []
    if not source.is_dir():
        return []
    folders = (source, source / "labels", source / "metadata", source / "annotations")
    return [f for folder in folders if folder.is_dir() for f in sorted(folder.glob("*.csv"))]


def _header(file: Path) -> list[str]:
    """The cells of the first line, without reading the whole file."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(4000)
    except OSError:
        return []
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = start.decode(encoding, "replace").splitlines()
    return [name.strip() for name in lines[0].split(",")] if lines else []


def _rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbers and rows of a CSV, one at a time: the training set has 2.7 million.

    Cells that are not there are "".
    """
    lines = _csv_lines(file)
    header = [name.strip() for name in next(lines, [])]
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise UserError(f"{file}: has no column {lacking[0]!r}; download it again")
    empty = dict.fromkeys(header, "")
    for number, line in enumerate(lines, 2):
        if line:
            yield number, empty | dict(zip(header, line, strict=False))


def _csv_lines(file: Path) -> Iterator[list[str]]:
    text = reading.read_text(file).lstrip("\ufeff")
    limit = csv.field_size_limit(sys.maxsize // 2**32)  # a C long
    try:
        yield from csv.reader(io.StringIO(text, newline=None), skipinitialspace=True)
    except csv.Error as error:
        raise UserError(f"{file}: not readable as CSV ({error}); download it again") from error
    finally:
        csv.field_size_limit(limit)


def _survey(sheets: Sequence[Path], masks: dict[str, str]) -> tuple[set[str], set[str]]:
    """The classes' machine ids, and the names of the masks that are there."""
    ids, names = set(), set()
    for sheet in sheets:
        for _, row in _rows(sheet, _COLUMNS):
            ids.add(row["LabelName"])
            if row["MaskPath"] in masks:
                names.add(row["MaskPath"])
    return ids, names


def _titles(files: Sequence[Path]) -> dict[str, str]:
    """Names of classes by their machine ids: the CSV of two columns that begin with "/m/"."""
    titles: dict[str, str] = {}
    for file in files:
        first = _header(file)
        if not (first and first[0].startswith("/")) and first != ["LabelName", "DisplayName"]:
            continue
        for line in _csv_lines(file):
            if len(line) >= 2 and line[0].startswith("/") and line[1].strip():
                titles[line[0].strip()] = line[1].strip()
    return titles


def _wanted(
    classes: Sequence[str], titles: dict[str, str], there: set[str], source: Path
) -> set[str] | None:
    """The machine ids of the classes asked for; None: all."""
    if not classes:
        return None
    names = {id: titles.get(id, id) for id in there}
    kept = {id for id, name in names.items() if name in classes or id in classes}
    lacking = [name for name in classes if name not in names.values() and name not in there]
    if lacking:
        have = ", ".join(sorted(names.values())[:30])
        raise UserError(f"--classes: {source} has no objects of {lacking[0]!r}; it has {have} ...")
    return kept


def _pictures(draft: Draft, mask_names: set[str]) -> dict[str, str]:
    """Names of the pictures by ImageID; masks are none."""
    found: dict[str, str] = {}
    for name in trees.files_below(draft.images):
        if PurePosixPath(name).name not in mask_names:
            found.setdefault(trees.stem(name), name)
    return found


def _add_row(
    draft: Draft,
    row: dict[str, str],
    root: Path,
    masks: dict[str, str],
    pictures: dict[str, str],
    titles: dict[str, str],
    missing: collections.Counter[str],
    where: str,
) -> None:
    name = pictures.get(row["ImageID"])
    if name is None:
        missing[row["ImageID"]] += 1
        return
    picture = reading.picture(draft, name, where=where)
    if picture is None:
        return
    label = reading.text(titles.get(row["LabelName"], row["LabelName"]))
    if not label:
        draft.find("error", "no-class", where, "the LabelName is empty; remove the line")
        return
    mask = masks.get(row["MaskPath"])
    if mask is None:
        message = f"no mask {row['MaskPath']!r:.100} below {root}; download the masks of this split"
        draft.find("error", "missing-mask", where, message)
        return
    try:
        found = _read_mask(draft, root / mask, picture, where)
    except UserError as error:
        draft.find("error", "bad-mask", where, str(error), str(root / mask))
        return
    _check_box(draft, row, found, where)
    objects.add_mask(draft, picture, label, found, where)


def _read_mask(draft: Draft, file: Path, picture: Picture, where: str) -> Bool[np.ndarray, "H W"]:
    """A mask in the size of its picture, by the nearest pixels."""
    mask = mask_files.numbers(mask_files.read_mask(file)[0]) != 0
    hw = picture.height, picture.width
    if mask.shape == hw:
        return mask
    ratio = mask.shape[1] * hw[0] / max(mask.shape[0] * hw[1], 1)
    if abs(ratio - 1) > _SHARE:
        message = f"the mask is {mask.shape[0]} high and {mask.shape[1]} wide, the picture {hw}"
        remedy = "which has another ratio: it is stretched; look"
        draft.find("warning", "size-mismatch", where, f"{message}, {remedy}", str(file))
    scaled = Image.fromarray(mask).resize(hw[::-1], Image.Resampling.NEAREST)
    return np.asarray(scaled, bool)


def _fractions(row: dict[str, str], columns: Sequence[str]) -> list[float] | None:
    values = [reading.parse_number(row.get(name)) for name in columns]
    good = all(v is not None and -_SHARE <= v <= 1 + _SHARE for v in values)
    return values if good and values[0] < values[1] and values[2] < values[3] else None


def _check_box(
    draft: Draft, row: dict[str, str], mask: Bool[np.ndarray, "H W"], where: str
) -> None:
    if not mask.any() or not set(_BOX) <= set(row):
        return
    box = _fractions(row, _BOX)
    if box is None:
        message = f"the box {[row[name] for name in _BOX]!r:.100} is none; the mask is used"
        draft.find("warning", "bad-box", where, message)
        return
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    width, height = mask.shape[1], mask.shape[0]
    own = [xs[0] / width, (xs[-1] + 1) / width, ys[0] / height, (ys[-1] + 1) / height]
    outside = max(box[0] - own[0], own[1] - box[1], box[2] - own[2], own[3] - box[3])
    if outside > _SHARE:
        message = f"the mask sticks out of its box by {outside:.0%} of the side; look"
        draft.find("warning", "box-mismatch", where, message)


def _tell_missing(draft: Draft, missing: collections.Counter[str], there: int) -> None:
    if not missing:
        return
    if not there:
        first = next(iter(missing))
        raise UserError(
            f"{draft.source}: none of its {len(missing)} pictures ({first}.jpg ...) is below "
            f"{draft.images}; download them or name their folder: --images"
        )
    message = (
        f"{len(missing)} of {len(missing) + there} pictures are not below {draft.images}, and "
        f"their {missing.total()} objects are left out; that is right if you took a part"
    )
    draft.find("warning", "missing-image", "", message)


def _add_crowds(
    draft: Draft,
    files: Sequence[Path],
    pictures: dict[str, str],
    titles: dict[str, str],
    classes: set[str],
) -> None:
    """Boxes of groups as crowd regions, of the pictures and classes that are used."""
    for file in files:
        for number, row in _groups(file):
            name = pictures.get(row.get("ImageID", ""))
            picture = draft.known.get(name) if name else None
            if picture is None or row.get("LabelName") not in classes:
                continue
            box, where = _fractions(row, _CROWD_BOX), f"{file.name}, line {number}"
            if box is None:
                message = "the box of a group is none; remove the line"
                draft.find("error", "bad-box", where, message)
                continue
            x0, x1 = (round(min(max(v, 0), 1) * picture.width) for v in box[:2])
            y0, y1 = (round(min(max(v, 0), 1) * picture.height) for v in box[2:])
            mask = np.zeros((picture.height, picture.width), bool)
            mask[y0:y1, x0:x1] = True
            label = titles.get(row["LabelName"], row["LabelName"])
            objects.add_mask(draft, picture, label, mask, where, crowd=True)


def _groups(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for number, row in _rows(file, ("ImageID", "LabelName")):
        if row.get("IsGroupOf", "").strip() == "1":
            yield number, row
