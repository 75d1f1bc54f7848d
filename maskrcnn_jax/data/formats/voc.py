"""Pascal VOC: a PNG with the number of the object at each pixel, and one with its class.

Layout and values as in http://host.robots.ox.ac.uk/pascal/VOC/voc2012 ("devkit"): 0 is background,
255 void; object n is the n-th of the picture's XML.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from maskrcnn_jax.data.formats import class_lists, mask_files, objects, reading, trees, xml_files
from maskrcnn_jax.data.formats.draft import Draft, Options, Picture
from maskrcnn_jax.errors import UserError

NAME = "voc"
SUMMARY = (
    "Pascal VOC: folders JPEGImages/, SegmentationObject/ and SegmentationClass/ or Annotations/"
)

VOID = 255
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
_OBJECTS = "SegmentationObject"
_DEPTH = 3  # VOCtrainval/VOCdevkit/VOC2012
_MASKS = frozenset({".png"})
_PICTURES = ("JPEGImages", "images", "Images")

_Ids = Int[np.ndarray, "H W"]


class _Names(NamedTuple):
    """Class names of one set."""

    by_number: dict[int, str]  # of pixels of SegmentationClass
    order: list[str]  # of a list that came with the set; else the classes that occur are taken


def detect(source: Path) -> bool:
    """Whether a folder SegmentationObject with PNG files is in it."""
    return any(trees.files_below(root / _OBJECTS, _MASKS) for root in _roots(source))


def read(source: Path, options: Options) -> Draft:
    """Reads the objects of all sets (VOC2007, VOC2012, ...) below a folder.

    The class of an object is the one that most of its pixels have in SegmentationClass, else the
    name of the object of its number in Annotations, else `options.default_class`. Class names are
    `options.classes` (from 1), those of labelmap.txt or class_names.txt, or the twenty of VOC.
    Void pixels belong to no object.

    Raises:
      UserError: there is no SegmentationObject, or a list of class names is damaged.
    """
    roots = _roots(source)
    if not roots:
        raise UserError(f"{source}: no folder {_OBJECTS} here; name the one that holds it")
    draft = Draft(NAME, source, reading.images_folder(options, (source,)), [], [], [])
    order: list[str] = []
    for root in roots:
        names = _class_names(draft, root, options)
        order += [name for name in names.order if name not in order]
        _read_set(draft, root, names, options)
    used = {item.label for item in draft.items} - set(order)
    draft.classes = order + [name for name in CLASSES if name in used]
    draft.classes += sorted(used - set(CLASSES))
    return draft


def _roots(source: Path) -> list[Path]:
    if not source.is_dir():
        return []
    return [
        folder for folder in trees.folders_below(source, _DEPTH) if (folder / _OBJECTS).is_dir()
    ]


def _class_names(draft: Draft, root: Path, options: Options) -> _Names:
    if options.classes:
        names = class_lists.distinct(draft, options.classes, "--classes")
    elif (root / "labelmap.txt").is_file():
        return _labelmap(draft, root / "labelmap.txt")
    elif (root / "class_names.txt").is_file():  # labelme's, from the background on
        lines = reading.read_text(root / "class_names.txt").splitlines()
        names = class_lists.distinct(
            draft, [line.strip() for line in lines[1:]], str(root / "class_names.txt")
        )
    else:
        return _Names(dict(enumerate(CLASSES, 1)), [])
    return _Names(dict(enumerate(names, 1)), list(dict.fromkeys(names)))


def _labelmap(draft: Draft, file: Path) -> _Names:
    """The list of CVAT and Datumaro, lines `name:red,green,blue:parts:actions`."""
    names, by_number = [], {}
    colours = _colours()
    for number, line in enumerate(reading.read_text(file).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        levels = [reading.parse_number(v) for v in rest.partition(":")[0].split(",")]
        if len(levels) != 3 or not all(v is not None and 0 <= v <= 255 for v in levels):
            message = "is not 'name:red,green,blue::'; correct the line"
            draft.find("error", "bad-line", f"line {number}", message, str(file))
            continue
        colour = _pack(*(int(v) for v in levels))
        if colour and name:  # black is background
            by_number[colours.get(colour, colour)] = name
            names.append(name)
    return _Names(by_number, list(dict.fromkeys(names)))


def _pack(red: int, green: int, blue: int) -> int:
    return (red << 16) | (green << 8) | blue


def _colours() -> dict[int, int]:
    """VOC's palette, from colour to number: the bits of the number dealt out to the channels."""
    found = {}
    for number in range(256):
        levels = [0, 0, 0]
        for bit in range(8):
            levels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        found.setdefault(_pack(*levels), number)
    return found


def _read_set(draft: Draft, root: Path, names: _Names, options: Options) -> None:
    own = next((root / name for name in _PICTURES if (root / name).is_dir()), root)
    folder = own if draft.images in (own, *own.parents) else draft.images
    prefix = reading.relative_name(folder, draft.images)
    prefix = "" if prefix == "." else f"{prefix}/"
    stems = trees.by_stem(
        [name for name in trees.files_below(folder) if folder != root or "/" not in name]
    )
    for mask in trees.files_below(root / _OBJECTS, _MASKS):
        stem, file = mask.removesuffix(Path(mask).suffix), root / _OBJECTS / mask
        where = reading.relative_name(file, draft.source)
        found = [prefix + name for name in stems.get(stem, ())]
        if not found:
            message = f"no picture {stem}.* in {folder}; add it or name its folder: --images"
            draft.find("error", "missing-image", where, message, str(file))
            continue
        try:
            ids = _read_ids(file)
        except UserError as error:
            draft.find("error", "bad-mask", where, str(error), str(file))
            continue
        picture = reading.picture(
            draft, trees.one_of(draft, found, where), hw=ids.shape, where=where, once=True
        )
        if picture is not None:
            _add(draft, picture, ids, _labels(draft, root, stem, ids, names, options, where), where)


def _read_ids(file: Path) -> _Ids:
    """Numbers of the palette; colours without one are looked up in VOC's."""
    pixels, kind = mask_files.read_mask(file)
    if kind in mask_files.LOSSY:
        raise UserError(f"{file}: is a {kind} file, which changes the numbers; save it as PNG")
    if pixels.ndim == 2:
        return pixels.astype(np.int64)
    packed = (pixels[:, :, :3].astype(np.int64) << np.array([16, 8, 0])).sum(2)
    values, inverse = np.unique(packed, return_inverse=True)
    colours = _colours()
    known = np.array([colours.get(int(v), int(v)) for v in values], np.int64)
    return known[inverse].reshape(packed.shape)


def _labels(
    draft: Draft, root: Path, stem: str, ids: _Ids, names: _Names, options: Options, where: str
) -> dict[int, str]:
    """The class of each object in the mask."""
    numbers = [int(n) for n in np.unique(ids) if n not in (0, VOID)]
    file = root / "SegmentationClass" / f"{stem}.png"
    if file.is_file():
        try:
            classes = _read_ids(file)
        except UserError as error:
            draft.find("error", "bad-mask", where, str(error), str(file))
        else:
            return _by_majority(draft, ids, classes, names, numbers, where)
    titles = _titles(draft, root / "Annotations" / f"{stem}.xml", where)
    if not titles:
        message = (
            f"no classes in SegmentationClass or Annotations: called {options.default_class!r}"
        )
        draft.find("warning", "no-class", where, message)
        return dict.fromkeys(numbers, options.default_class)
    found = {}
    for number in numbers:
        if 0 < number <= len(titles) and titles[number - 1]:
            found[number] = titles[number - 1]
        else:
            message = f"the XML has no name for object {number}; add it to SegmentationClass"
            draft.find("error", "no-class", where, message)
    return found


def _by_majority(
    draft: Draft, ids: _Ids, classes: _Ids, names: _Names, numbers: list[int], where: str
) -> dict[int, str]:
    if classes.shape != ids.shape:
        message = f"SegmentationClass is {classes.shape} high and wide, the objects {ids.shape}"
        draft.find("error", "size-mismatch", where, f"{message}; export both again")
        return {}
    inside = (ids != 0) & (ids != VOID)
    pairs, counts = np.unique(np.stack([ids[inside], classes[inside]]), axis=1, return_counts=True)
    found = {}
    for number in numbers:
        mine = pairs[0] == number
        votes = {int(c): int(n) for c, n in zip(pairs[1, mine], counts[mine], strict=True)}
        best = max(votes, key=lambda c: (c not in (0, VOID), votes[c]))
        if best not in names.by_number:
            message = f"object {number} has the class number {best}, which has no name"
            draft.find("error", "unknown-class", where, f"{message}; give the names: --classes")
            continue
        if votes[best] < sum(votes.values()):
            message = (
                f"object {number} has several classes {votes} (number: pixels); most are taken"
            )
            draft.find("warning", "mixed-class", where, message)
        found[number] = names.by_number[best]
    return found


def _titles(draft: Draft, file: Path, where: str) -> list[str]:
    """Names of the objects in the XML of a picture, in order; none if there is no XML."""
    if not file.is_file():
        return []
    try:
        tree = xml_files.read_xml(file)
    except UserError as error:
        draft.find("error", "bad-file", where, str(error), str(file))
        return []
    return [reading.text(entry.findtext("name", "")) for entry in tree.findall("object")]


def _add(draft: Draft, picture: Picture, ids: _Ids, labels: dict[int, str], where: str) -> None:
    size = [picture.height, picture.width]
    for number, counts in mask_files.object_counts(ids).items():
        if number in labels:
            rle = {"size": size, "counts": counts.tolist()}
            place = f"{where}, object {number}"
            objects.add_rle(draft, picture, labels[number], rle, place)
