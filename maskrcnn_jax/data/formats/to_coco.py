"""From a draft to COCO JSON: classes mapped, ids given, boxes and areas measured on the masks."""

import collections
import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from maskrcnn_jax.data.formats.draft import Draft, Item, Picture
from maskrcnn_jax.errors import UserError

DESCRIPTION = "written by maskrcnn convert"

ClassMap = Mapping[str, str | None]


def merge(drafts: Sequence[Draft]) -> Draft:
    """Several drafts as one, its pictures named below the folder that all share.

    Own ids are given up, and a picture that occurs twice is kept once, with all its objects and a
    finding. A single draft is returned as it is.
    """
    if len(drafts) == 1:
        return drafts[0]
    roots = [Path(os.path.abspath(draft.images)) for draft in drafts]
    try:
        common = Path(os.path.commonpath(roots))
    except ValueError as error:  # two drives of Windows
        raise UserError(
            f"{roots[0]} and {roots[1]} have no folder in common; put the pictures below one"
        ) from error
    kinds = "+".join(dict.fromkeys(draft.kind for draft in drafts))
    merged = Draft(kinds, drafts[0].source, common, [], [], [])
    for draft, root in zip(drafts, roots, strict=True):
        prefix = root.relative_to(common).as_posix()
        names = {p.name: p.name if prefix == "." else f"{prefix}/{p.name}" for p in draft.pictures}
        merged.findings += draft.findings
        merged.classes += [name for name in draft.classes if name not in merged.classes]
        for p in draft.pictures:
            name = names[p.name]
            if name in merged.known:
                message = f"{name} is in several sources; their objects are put together"
                merged.find("warning", "duplicate-picture", name, message, str(draft.source))
            else:
                group = f"{prefix}/{p.group}" if p.group else ""
                merged.known[name] = Picture(name, p.height, p.width, group)
                merged.pictures.append(merged.known[name])
        merged.items += [
            dataclasses.replace(item, picture=names[item.picture], id=None) for item in draft.items
        ]
    return merged


def map_classes(draft: Draft, class_map: ClassMap, classes: Sequence[str] = ()) -> Draft:
    """A draft with classes renamed, merged (two with one new name) or dropped (None).

    Args:
      draft: its list of findings is gone on with.
      class_map: old name to new name or None; classes that it does not name stay.
      classes: if given, the classes to keep, in this order, after renaming.

    Raises:
      UserError: the map names a class that is not there.
    """
    for old in class_map:
        if old not in draft.classes:
            have = ", ".join(draft.classes)
            raise UserError(f"--class-map: {draft.source} has no class {old!r}; it has {have}")
    new_name = {old: class_map.get(old, old) for old in draft.classes}
    if classes:
        new_name = {old: new if new in classes else None for old, new in new_name.items()}
    kept = list(classes) or list(dict.fromkeys(n for n in new_name.values() if n is not None))
    ids: dict[str, int] = {}
    for old, new in new_name.items():
        if new is not None and old in draft.category_ids:
            ids.setdefault(new, draft.category_ids[old])
    dropped = collections.Counter(i.label for i in draft.items if new_name[i.label] is None)
    for label, count in dropped.items():
        message = f"the class {label!r} is left out, and its {count} objects"
        draft.find("note", "dropped-class", label, message)
    items = [
        dataclasses.replace(item, label=new_name[item.label])
        for item in draft.items
        if new_name[item.label] is not None
    ]
    return dataclasses.replace(draft, classes=kept, items=items, category_ids=ids)


def finish(
    draft: Draft,
    class_map: ClassMap | None = None,
    classes: Sequence[str] = (),
    keep_category_ids: bool = False,
    category_ids: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The COCO JSON of a draft.

    Ids of pictures and objects are the source's own if all have one, whole, positive and unique;
    else 1, 2, ... in the order of the pictures' names. Boxes and areas are those of the masks, as
    pycocotools rasterises them. Pictures without objects are kept. Deterministic.

    Args:
      draft: gets the findings made here: objects without area, classes without objects.
      class_map, classes: see `map_classes`.
      keep_category_ids: the source's own category ids, where it has them; else they are 1..C in
        the order of the classes.
      category_ids: the id of every one of `classes`; goes before all others.

    Raises:
      UserError: nothing is left to train on.
    """
    draft = map_classes(draft, class_map or {}, classes)
    pictures = sorted(draft.pictures, key=lambda p: p.name)
    image_ids = dict(zip((p.name for p in pictures), _ids(pictures), strict=True))
    by_name = {p.name: p for p in pictures}
    measured = []
    for item in draft.items:
        box, area = _measure(item, by_name[item.picture])
        if area > 0:
            measured.append((item, box, area))
        else:
            where = f"{item.picture}: {item.label}" + (f" (id {item.id})" if item.id else "")
            message = "the object covers no pixel; correct or remove it"
            draft.find("error", "no-area", where, message)
    if not measured:
        raise UserError(_nothing_left(draft))
    measured.sort(key=lambda m: m[0].picture)  # stable: in a picture, the source's order
    category_ids = dict(category_ids or _category_ids(draft, keep_category_ids))
    _tell_unused(draft, {item.label for item, _, _ in measured})
    annotations = []
    for (item, box, area), id in zip(measured, _ids([m[0] for m in measured]), strict=True):
        annotations.append(
            {
                "id": id,
                "image_id": image_ids[item.picture],
                "category_id": category_ids[item.label],
                "bbox": box,
                "area": area,
                "segmentation": item.segmentation,
                "iscrowd": int(item.crowd),
            }
        )
    return {
        "info": {"description": DESCRIPTION, "source": draft.kind},
        "images": [_image(p, image_ids[p.name]) for p in pictures],
        "annotations": annotations,
        "categories": [{"id": category_ids[name], "name": name} for name in draft.classes],
    }


def _image(picture: Picture, id: int) -> dict[str, Any]:
    entry = {
        "id": id,
        "file_name": picture.name,
        "height": picture.height,
        "width": picture.width,
    }
    return entry | ({"group": picture.group} if picture.group else {})


def _ids(entries: Sequence[Picture] | Sequence[Item]) -> list[int]:
    """Their own ids, or 1, 2, ...; pycocotools takes the id 0 of an object for "none"."""
    own = [e.id for e in entries if type(e.id) is int and 0 < e.id < 2**53]
    return own if len(set(own)) == len(entries) else list(range(1, len(entries) + 1))


def _category_ids(draft: Draft, keep: bool) -> dict[str, int]:
    own = [draft.category_ids.get(name, 0) for name in draft.classes]
    if not (keep and len(set(own)) == len(own) and all(0 < id < 2**31 for id in own)):
        own = list(range(1, len(own) + 1))
    return dict(zip(draft.classes, own, strict=True))


def _measure(item: Item, picture: Picture) -> tuple[list[float], int]:
    rle: Any = item.segmentation
    if isinstance(rle, list):
        rle = mask_utils.merge(mask_utils.frPyObjects(rle, picture.height, picture.width))
    return mask_utils.toBbox(rle).tolist(), int(mask_utils.area(rle))


def _tell_unused(draft: Draft, used: set[str]) -> None:
    for name in draft.classes:
        if name not in used:
            remedy = f"it is kept; drop it with --class-map '{name}='"
            draft.find("note", "unused-class", name, f"no object is a {name!r}: {remedy}")


def _nothing_left(draft: Draft) -> str:
    """Why there is nothing to train on: the most common reason, and its first case."""
    errors = collections.Counter(f.code for f in draft.findings if f.grade == "error")
    start = f"{draft.source}: no usable object in {len(draft.pictures)} pictures"
    if not errors:
        return f"{start}; name annotations that hold outlines or masks"
    code, count = errors.most_common(1)[0]
    first = next(f for f in draft.findings if f.grade == "error" and f.code == code)
    place = f"{first.file}: " if first.file != str(draft.source) else ""
    return f"{start}; {count} x {code}, the first: {place}{first.where}: {first.message}"


def write(path: Path, coco: Mapping[str, Any]) -> None:
    """Writes a COCO JSON under a temporary name, then renames it; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(coco, separators=(",", ":")).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file in one step: it is there as a whole, or not at all."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it the owner's only
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
