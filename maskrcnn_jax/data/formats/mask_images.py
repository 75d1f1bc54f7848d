"""Masks as pictures: one file with the number of the object at each pixel, or one file an object.

Layouts: PNGImages/ and PedMasks/ (Penn-Fudan), images/ and masks/ with equal names, X.jpg beside
X_mask.png, images/X.jpg with masks/X_1.png or masks/X/1.png, and a folder per picture with images/
and masks/ (Data Science Bowl 2018, nuclei).
"""

import collections
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from maskrcnn_jax.data.formats import mask_files, objects, reading, trees
from maskrcnn_jax.data.formats.draft import Draft, Options, Picture
from maskrcnn_jax.errors import UserError

NAME = "masks"
SUMMARY = "masks as pictures: images/ and masks/ with numbers of objects, or one mask an object"

_FOLDERS = (("images", "masks"), ("PNGImages", "PedMasks"), ("image", "mask"), ("imgs", "masks"))
_ENDINGS = ("", "_mask", "-mask", "_masks", "_instance", "_instances", "_instanceIds", "_label")
_NUMBERED = re.compile(r"(.+?)[_-](?:mask|object|instance)?[_-]?\d+")  # X_1.png, X_mask_2.png
_DEPTH = 2  # set / split / picture
_MOST_OBJECTS = 5000  # of a picture; more numbers or colours are a photograph
_SAMPLE = 20  # folders looked at to find out the kind


class _Pair(NamedTuple):
    """A picture and its masks."""

    picture: str  # relative to the folder of the pictures of the set
    masks: list[Path]
    single: bool  # each mask is one object


class _Set(NamedTuple):
    images: Path
    pairs: list[_Pair]
    lone_masks: list[Path]
    lone_pictures: list[str]


def detect(source: Path) -> bool:
    """Whether pictures and masks that belong together are in it."""
    return any(found.pairs for found, _ in zip(_sets(source, None), range(_SAMPLE), strict=False))


def read(source: Path, options: Options) -> Draft:
    """Reads a folder of one of the layouts, or one mask X_mask.png.

    0 is background, every other number or colour one object. JPEG masks and masks with blurred
    edges are cut at 127 and are one object. All objects are of one class: `options.classes` if it
    is one name, else `options.default_class`.

    Raises:
      UserError: no picture has a mask.
    """
    root = source if source.is_dir() else source.parent
    if source.is_file() and options.images is None and not _beside(source, source.parent):
        root = source.parent.parent
    draft = Draft(NAME, source, reading.images_folder(options, (root,)), [], [], [])
    label = options.classes[0] if len(options.classes) == 1 else options.default_class
    num_pairs = 0
    for found in _sets(source, options.images):
        num_pairs += len(found.pairs)
        _read_set(draft, found, label)
    if not num_pairs:
        layouts = " or ".join(f"{images}/ and {masks}/" for images, masks in _FOLDERS[:2])
        raise UserError(
            f"{source}: no picture with a mask of the same name here; name a folder that holds "
            f"{layouts}, with equal names"
        )
    if len(options.classes) > 1:
        message = f"masks tell no classes: all objects are {label!r}; convert one class at a time"
        draft.find("warning", "no-class", "", message)
    draft.classes = [label]
    return draft


def _sets(source: Path, images: Path | None) -> Iterator[_Set]:
    """The folders of pictures and masks below a source; images: the user's folder of pictures."""
    if source.is_file():
        yield from _single_file(source, images)
        return
    if not source.is_dir():
        return
    done: list[Path] = []
    for folder in trees.folders_below(source, _DEPTH):
        if any(above in folder.parents for above in done):
            continue
        for image_name, mask_name in _FOLDERS:
            masks, pictures = trees.child(folder, mask_name), trees.child(folder, image_name)
            if masks is not None and (pictures or images) is not None:
                done.append(folder)
                yield _pair_folders(images or pictures, masks, folder.name)
                break
    if not done:
        yield from _flat(source, images)


def _single_file(file: Path, images: Path | None) -> Iterator[_Set]:
    if file.suffix.lower() not in trees.SUFFIXES:
        return
    for folder in [images] if images else [file.parent, file.parent.parent / "images"]:
        found = _beside(file, folder)
        if found:
            yield _Set(folder, [_Pair(found[0], [file], False)], [], [])
            return


def _beside(mask: Path, folder: Path) -> list[str]:
    """Names of the pictures in a folder that a mask may belong to."""
    names = [
        mask.stem[: -len(ending)] for ending in _ENDINGS if ending and mask.stem.endswith(ending)
    ]
    names += [] if folder == mask.parent else [mask.stem]
    found = (f"{name}{suffix}" for name in names if name for suffix in sorted(trees.SUFFIXES))
    return [name for name in found if reading.is_file(folder / name)]


def _flat(folder: Path, images: Path | None) -> Iterator[_Set]:
    """Pictures X.* and masks X_mask.* in one folder."""
    stems = trees.by_stem([f.name for f in folder.iterdir() if f.suffix.lower() in trees.SUFFIXES])
    where = images or folder
    pairs = []
    for stem in sorted(stems):
        mask = folder / stems[stem][0]
        pictures = _beside(mask, where) if stem.endswith(_ENDINGS[1:]) else []
        if pictures:
            pairs.append(_Pair(pictures[0], [mask], False))
    if pairs:
        yield _Set(where, pairs, [], [])


def _pair_folders(images: Path, masks: Path, name: str) -> _Set:
    names = trees.files_below(images)
    stems, files = trees.by_stem(names), trees.files_below(masks)
    mine: dict[str, list[Path]] = collections.defaultdict(list)
    single: set[str] = set()
    lone = []
    for file in files:
        stem = file.removesuffix(Path(file).suffix)
        ending = next(
            (e for e in _ENDINGS if stem.endswith(e) and stem.removesuffix(e) in stems), None
        )
        parent = str(Path(file).parent.as_posix())
        if ending is not None:
            mine[stems[stem.removesuffix(ending)][0]].append(masks / file)
        elif parent in stems:  # masks/X/1.png, masks/X/2.png, ... of images/X.jpg
            mine[stems[parent][0]].append(masks / file)
            single.add(stems[parent][0])
        elif (numbered := _NUMBERED.fullmatch(stem)) and numbered.group(1) in stems:
            mine[stems[numbered.group(1)][0]].append(masks / file)
            single.add(stems[numbered.group(1)][0])
        else:
            lone.append(masks / file)
    if not mine and lone and (len(names) == 1 or name in stems):
        picture = stems[name][0] if name in stems else names[0]
        return _Set(images, [_Pair(picture, lone, True)], [], [])
    pairs = [_Pair(n, mine[n], n in single) for n in names if n in mine]
    return _Set(images, pairs, lone, [n for n in names if n not in mine])


def _read_set(draft: Draft, found: _Set, label: str) -> None:
    prefix = reading.relative_name(found.images, draft.images)
    prefix = "" if prefix == "." else f"{prefix}/"
    for mask in found.lone_masks:
        message = f"no picture of the name {mask.stem}; add it or name its folder: --images"
        where = reading.relative_name(mask, draft.images)
        draft.find("error", "missing-image", where, message, str(mask))
    for name in found.lone_pictures:
        message = "has no mask and is left out; if it is empty, give it a black mask"
        draft.find("warning", "no-labels", prefix + name, message)
    for pair in found.pairs:
        for mask in pair.masks:
            _read_file(draft, prefix + pair.picture, mask, label, pair.single)


def _read_file(draft: Draft, name: str, file: Path, label: str, single: bool) -> None:
    where = reading.relative_name(file, draft.images)
    try:
        pixels, kind = mask_files.read_mask(file)
        ids = mask_files.numbers(pixels)
    except UserError as error:
        draft.find("error", "bad-mask", where, str(error), str(file))
        return
    picture = reading.picture(draft, name, hw=ids.shape, where=where)
    if picture is None:
        return
    if ids.shape != (picture.height, picture.width):
        message = (
            f"the mask is {ids.shape[0]} high and {ids.shape[1]} wide, the picture "
            f"{picture.height} and {picture.width}; export the masks again"
        )
        draft.find("error", "size-mismatch", where, message, str(file))
        return
    if kind in mask_files.LOSSY or mask_files.is_blurred(ids):
        _add_binary(draft, picture, ids, kind, label, where)
    elif single:
        objects.add_mask(draft, picture, label, ids != 0, where)
    else:
        _add_objects(draft, picture, ids, label, where)


def _add_binary(
    draft: Draft, picture: Picture, ids: Int[np.ndarray, "H W"], kind: str, label: str, where: str
) -> None:
    mask, clear = mask_files.threshold(_grey(ids))
    what = f"a {kind} file, whose values are not exact" if kind in mask_files.LOSSY else "blurred"
    if not clear:
        message = f"the mask is {what} and not black and white; save numbers of objects as PNG"
        draft.find("error", "lossy-mask", where, message)
        return
    message = f"the mask is {what}: above 127 is one object; save it as PNG with a number an object"
    draft.find("warning", "lossy-mask", where, message)
    objects.add_mask(draft, picture, label, mask, where)


def _grey(ids: Int[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
    """Levels 0 to 255; of colours the green, which is the brightest."""
    return ids if ids.max(initial=0) <= 255 else (ids >> 8) & 255


def _add_objects(
    draft: Draft, picture: Picture, ids: Int[np.ndarray, "H W"], label: str, where: str
) -> None:
    size = [picture.height, picture.width]
    found = mask_files.object_counts(ids)
    if len(found) > _MOST_OBJECTS:
        message = (
            f"has {len(found)} numbers or colours, so it is no mask; save one number an object"
        )
        draft.find("error", "no-mask", where, message)
        return
    if not found:
        draft.find("note", "empty-mask", where, "the mask is black: the picture has no objects")
    elif list(found) == [255]:
        message = "the mask is black and white: all that is white is one object"
        draft.find("note", "one-object", where, message)
    elif 255 in found and max(n for n in found if n != 255) < 200:
        message = "255 is read as one of the objects; if it means void, set those pixels to 0"
        draft.find("warning", "void", where, message)
    for number, counts in found.items():
        rle = {"size": size, "counts": counts.tolist()}
        objects.add_rle(draft, picture, label, rle, f"{where}, object {number}")
