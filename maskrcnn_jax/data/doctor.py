"""The doctor: everything that is odd about a data set, found before training.

Every condition that the strict loader (`data/coco.py`) refuses is an "error" finding here, and the
rest of what threads of other libraries tell of training that silently learns nothing. The checks
here look at the file alone; `doctor_pictures` opens the pictures.
"""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_jax.data import doctor_masks, doctor_outlines, doctor_read
from maskrcnn_jax.data.doctor_masks import Measures
from maskrcnn_jax.data.doctor_read import RawData
from maskrcnn_jax.data.formats.draft import Finding
from maskrcnn_jax.data.formats.reading import safe_join

MAX_DETECTIONS = 100  # that COCO's evaluation counts of one picture
_CROWD_SHARE = 0.05
_IMBALANCE = 100  # objects of the most common class for one of the rarest
_FEW_OBJECTS = 10  # of a class; fewer are hardly learnt
_LARGE_SIDE = 200  # px; in pictures above it, objects within the first 100 px are suspicious
_MANY = 10  # objects that are enough to be sure of percent
_SWAP_SLACK = 2.0  # px


@dataclasses.dataclass(frozen=True)
class Examined:
    """A data set, what its masks cover, and all that was found (`raw.findings`)."""

    raw: RawData
    measures: Measures


def examine(
    path: Path,
    content: dict[str, Any],
    findings: Sequence[Finding] = (),
    max_instances: int = 100,
) -> Examined:
    """Checks a COCO JSON without its pictures.

    Args:
      content: as of `doctor_read.read_content`; any JSON is taken.
      findings: what is known already.
      max_instances: objects of one picture that training keeps.
    """
    raw = doctor_read.collect(path, content, findings)
    doctor_outlines.parse(raw)
    check_categories(raw)
    check_names(raw)
    check_ids(raw)
    doctor_outlines.check_crossings(raw)
    measures = doctor_masks.measure(raw)
    doctor_masks.check(raw, measures)
    check_layout(raw)
    check_counts(raw, max_instances)
    if not any(a > 0 for a in measures.area):
        raw.tell("error", "no-objects", "there is no object with a mask; nothing can be learnt")
    return Examined(raw, measures)


def check_categories(raw: RawData) -> None:
    """Tells of classes that no object has, twins by case, ids from 0, imbalance."""
    counts = class_counts(raw)
    parents = {c.parent for c in raw.categories}
    names: dict[str, str] = {}
    for index, category in enumerate(raw.categories):
        name = f"category {category.id} {category.name!r}"
        key = " ".join(category.name.split()).casefold()
        if key and key in names:
            message = f"is written like {names[key]!r}; one class of two names is two classes"
            raw.tell("warning", "class-twins", message, name)
        names.setdefault(key, category.name)
        if counts[index]:
            continue
        remedy = "drop it with `maskrcnn convert --class-map`, from all splits alike"
        if category.name and category.name in parents:
            message = "is the made-up super-category of other classes, and no object has it; "
            raw.tell("warning", "dummy-class", message + remedy, name)
        else:
            message = f"no object has it; if it is wanted, annotate it, else {remedy}"
            raw.tell("warning", "unused-class", message, name)
    used = {raw.categories[i].name: n for i, n in enumerate(counts) if n}
    if used:
        few = [f"{name} {n}" for name, n in used.items() if n < _FEW_OBJECTS]
        if few:
            message = f"fewer than {_FEW_OBJECTS} objects in {len(few)} of {len(used)} classes: "
            raw.tell("note", "rare-class", message + ", ".join(few[:20]))
        most, least = max(used, key=used.__getitem__), min(used, key=used.__getitem__)
        if used[most] >= _IMBALANCE * used[least]:
            message = f"{used[most]} objects are {most!r}, {used[least]} {least!r}; AP of the rare "
            raw.tell("warning", "imbalance", message + "ones will be low: add objects")


def class_counts(raw: RawData) -> list[int]:
    """Number of objects by category, in the file's order."""
    counts = [0] * len(raw.categories)
    for thing in raw.things:
        if thing.category >= 0:
            counts[thing.category] += 1
    return counts


def check_names(raw: RawData) -> None:
    """Tells of pictures that two entries name, and of names that lead out of the folder."""
    seen: dict[str, int] = {}
    for index, photo in enumerate(raw.photos):
        if not photo.name:
            continue
        where = raw.call_photo(index)
        if photo.name in seen:
            message = f"{raw.call_photo(seen[photo.name])} names the same picture; join the two"
            raw.tell("warning", "duplicate-file", message, where, index)
        seen.setdefault(photo.name, index)
        if photo.name.startswith("/") or photo.name[1:3] == ":/":
            message = "an absolute path holds on one machine only; write the name below the folder"
            raw.tell("warning", "absolute-path", message, where, index)
        elif safe_join(Path(), photo.name) is None:
            message = "the name leads out of the folder, or is no name of a file; correct it"
            raw.tell("error", "unsafe-name", message, where, index)


def check_ids(raw: RawData) -> None:
    """Tells of ids from 0 and of gaps, which other tools stumble on."""
    ids = sorted({c.id for c in raw.categories if c.id is not None})
    if ids and ids[0] == 0:
        message = "the ids of the classes begin with 0; fine here, but tools that keep 0 for the "
        raw.tell("note", "category-zero", message + "background shift all classes by one")
    if ids and ids[-1] - ids[0] + 1 != len(ids):
        message = f"the ids of {len(ids)} classes go from {ids[0]} to {ids[-1]} with gaps; fine "
        raw.tell("note", "ids-with-gaps", message + "here: classes are matched by name and id")
    if any(t.id == 0 for t in raw.things):
        message = "the id 0 stands for 'none' in COCO's evaluation, which never counts this "
        message += "object as found; number from 1, or --fix"
        raw.tell("warning", "annotation-zero", message, "annotation 0")


def check_layout(raw: RawData) -> None:
    """Tells of coordinates that are likely exchanged, or percent."""
    in_percent = large = 0
    for photo, members in doctor_masks.things_by_photo(raw).items():
        hw = raw.photos[photo].hw
        extents = [e for i in members if (e := raw.things[i].extent or raw.things[i].box)]
        if hw is None or not extents:
            continue
        low, high = np.min(extents, axis=0)[:2], np.max(extents, axis=0)[2:]
        outside = high > np.array(hw[::-1]) + _SWAP_SLACK
        if outside.any() and np.all(high <= np.array(hw) + _SWAP_SLACK):
            message = f"objects leave the picture of width {hw[1]} and height {hw[0]} and would "
            message += "fit with x and y exchanged: look whether x, y or height, width are"
            raw.tell("warning", "swapped", message, raw.call_photo(photo), photo)
        if min(hw) > _LARGE_SIDE:
            large += len(extents)
            in_percent += len(extents) if high.max() <= 100 and low.min() >= 0 else 0
    if large and in_percent == large:
        message = f"all {large} objects lie in the first 100 px of pictures larger than "
        message += f"{_LARGE_SIDE} px: likely percent of width and height; convert them to pixels"
        raw.tell("error" if large >= _MANY else "warning", "percent", message)


def check_counts(raw: RawData, max_instances: int) -> None:
    """Tells of pictures without objects or with more than the caps, and of many crowds."""
    counts = collections.Counter(t.photo for t in raw.things if t.photo >= 0)
    empty = [i for i in range(len(raw.photos)) if not counts[i]]
    if empty:
        names = ", ".join(raw.photos[i].name for i in empty[:3])
        message = f"{len(empty)} of {len(raw.photos)} pictures have no objects ({names}, ...); "
        raw.tell("note", "no-objects-here", message + "they teach what is background")
    for photo, count in counts.items():
        where = raw.call_photo(photo)
        if count > max_instances:
            message = f"has {count} objects, training keeps {max_instances} of a picture: set "
            raw.tell("warning", "over-cap", f"{message}data.max_instances to {count}", where, photo)
        if count > MAX_DETECTIONS:
            message = f"has {count} objects; COCO's AP counts {MAX_DETECTIONS} detections a picture"
            raw.tell("note", "over-max-dets", message, where, photo)
    crowds = sum(t.crowd for t in raw.things)
    if crowds > _CROWD_SHARE * len(raw.things):
        message = f"{crowds} of {len(raw.things)} objects are marked 'iscrowd', which training "
        raw.tell("warning", "crowds", message + "ignores; some tools mark every mask so: look")


def compare(splits: Sequence[RawData]) -> None:
    """Tells each split what classes it lacks, or has under another id than the first.

    Ids of other formats are given when they are converted, all splits together.
    """
    tables = [{c.id: c.name for c in raw.categories} for raw in splits]
    used = [
        {raw.categories[i].name for i, n in enumerate(class_counts(raw)) if n} for raw in splits
    ]
    for k, raw in enumerate(splits):
        ids = tables[0].keys() | tables[k].keys()
        for id in () if raw.foreign or splits[0].foreign else sorted(ids, key=str):
            if tables[0].get(id) != tables[k].get(id):
                message = f"is {tables[k].get(id, 'absent')!r} here and "
                message += f"{tables[0].get(id, 'absent')!r} in {splits[0].path}; give all splits "
                raw.tell("error", "class-tables", message + "one table", f"category {id}")
        for name in sorted(set().union(*used) - used[k]):
            having = next(s.path for s, names in zip(splits, used, strict=True) if name in names)
            message = f"no object is a {name!r} here, but some are in {having}; split anew"
            raw.tell("warning", "class-absent", message, f"class {name!r}")
