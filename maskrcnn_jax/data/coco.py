"""COCO JSON in, checked flat arrays out.

COCO's own layout: https://cocodataset.org/#format-data. Every mistake that would otherwise show
after hours of training is found here, and told with file, entry and remedy. Class indices are
contiguous in the order of the category ids, as in Detectron2's `load_coco_json`.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Int32
from pycocotools import mask as mask_utils

from maskrcnn_jax.data.annotation import parse_annotation, to_rle
from maskrcnn_jax.data.formats.reading import is_file
from maskrcnn_jax.data.keypoints import count_keypoints, keypoint_table, parse_keypoints
from maskrcnn_jax.errors import UserError

OnBad = Literal["error", "skip"]
_ID_BITS = 63  # ids travel as int64
_MAX_SIDE = 65_535  # pixels, of a JPEG


@dataclasses.dataclass(frozen=True)
class CocoData:
    """A checked data set. Images are in the order of their ids, and so are their instances."""

    annotations: Path
    category_ids: tuple[int, ...]  # the data set's own ids, by class index
    names: tuple[str, ...]  # by class index
    image_ids: Int[np.ndarray, " n"]
    file_paths: list[str]
    sizes: Int32[np.ndarray, "n 2"]  # height, width
    inst_image: Int32[np.ndarray, " m"]  # row of the image; ascending
    inst_class: Int32[np.ndarray, " m"]
    inst_box: Float[np.ndarray, "m 4"]  # xyxy in pixels, inside the image
    inst_crowd: Bool[np.ndarray, " m"]
    inst_area: Float[np.ndarray, " m"]  # square pixels, as annotated
    inst_id: Int[np.ndarray, " m"]
    segmentations: list[Any]  # polygons (a list of float64 arrays) or an RLE dict
    num_skipped: int  # images left out: missing files
    num_skipped_instances: int  # objects left out: no area, no usable mask
    # J keypoints of an object: x, y in pixels, continuous, and 0 not labelled, 1 hidden, 2 visible.
    inst_keypoints: Float[np.ndarray, "m J 3"]
    keypoint_names: tuple[str, ...] = ()  # empty where the file tells none
    skeleton: tuple[tuple[int, int], ...] = ()  # keypoints that a line joins, counted from 0


def load_coco(
    annotations: str | Path, images: str, on_bad_image: OnBad = "error", keypoints: int | None = 0
) -> CocoData:
    """Reads and checks a COCO JSON file. The content of the pictures is not looked at.

    Args:
      annotations: the file.
      images: folder of the pictures; several folders separated by ":" are searched in order.
        Absolute file names, and those that lead out of it, are read, too: other tools write them,
        pictures are only ever decoded, and no file is written under a name of this JSON.
        `maskrcnn convert` and `inspect`, which meet files of strangers first, refuse such names.
      on_bad_image: "error" refuses the first missing picture or degenerate object; "skip" leaves
        them out, counts them and logs the first of each kind (COCO's own train2017 has a few boxes
        without area).
      keypoints: how many each object has; 0 leaves those of the file unread, None takes as many as
        it has.

    Raises:
      UserError: the file is missing, cut off or not COCO JSON; ids are repeated or unknown; boxes
        or masks are degenerate; it has another number of keypoints; pictures are missing; there is
        nothing to train on.
    """
    path = Path(annotations)
    folders = _folders(images)
    content = _read_json(path)
    category_ids, names = _categories(path, content["categories"])
    keypoints = count_keypoints(content["annotations"]) if keypoints is None else keypoints
    keypoint_names, skeleton = keypoint_table(path, content["categories"], keypoints)
    skips = {"images": _Skips(on_bad_image), "objects": _Skips(on_bad_image)}

    entries = _sorted_by_id(path, "images", content["images"])
    if not entries:
        raise UserError(f"{path}: 'images' is empty; name a file that lists pictures")
    sizes = {e["id"]: _image_size(path, e) for e in entries}
    files: dict[int, str] = {}
    for entry in entries:
        skips["images"].attempt(lambda e=entry: files.update({e["id"]: _find(path, e, folders)}))
    if not files:
        raise UserError(f"{path}: none of its {len(entries)} pictures is in {images!r}")
    image_ids = list(files)
    rows = {image_id: row for row, image_id in enumerate(image_ids)}

    found: list[tuple] = []
    classes = {category_id: index for index, category_id in enumerate(category_ids)}
    objects = _sorted_by_id(path, "annotations", content["annotations"])
    for a in objects:
        _check_references(path, a, sizes, classes)
        row = rows.get(a["image_id"])
        if row is not None:
            c, hw = classes[a["category_id"]], sizes[a["image_id"]]
            skips["objects"].attempt(
                lambda a=a, row=row, c=c, hw=hw: found.append(
                    (row, c, *parse_annotation(path, a, hw), parse_keypoints(path, a, keypoints))
                )
            )
    found.sort(key=lambda f: f[0])  # stable: by image, then by annotation id
    for kind, s in skips.items():
        if s.count:
            logging.warning("%s: %d bad %s skipped; the first: %s", path, s.count, kind, s.first)
    if not found:
        why = skips["objects"].first or "'annotations' is empty; name an annotated data set"
        raise UserError(f"{path}: no usable object: {why}")

    row, cls, box, crowd, area, ann_id, segmentations, points = zip(*found, strict=True)
    return CocoData(
        annotations=path,
        category_ids=category_ids,
        names=names,
        image_ids=np.array(image_ids, np.int64),
        file_paths=list(files.values()),
        sizes=np.array([sizes[i] for i in image_ids], np.int32).reshape(-1, 2),
        inst_image=np.array(row, np.int32),
        inst_class=np.array(cls, np.int32),
        inst_box=np.array(box, np.float32),
        inst_crowd=np.array(crowd, bool),
        inst_area=np.array(area, np.float32),
        inst_id=np.array(ann_id, np.int64),
        segmentations=list(segmentations),
        num_skipped=skips["images"].count,
        num_skipped_instances=skips["objects"].count,
        inst_keypoints=np.stack(points),
        keypoint_names=keypoint_names,
        skeleton=skeleton,
    )


def instance_mask(data: CocoData, i: int) -> Bool[np.ndarray, "H W"]:
    """Rasterises instance `i` at the size of its image, exactly as pycocotools does.

    Raises:
      UserError: the RLE is damaged.
    """
    height, width = (int(x) for x in data.sizes[data.inst_image[i]])
    try:
        rle = to_rle(data.segmentations[i], height, width)
        return mask_utils.decode(rle).astype(bool)
    except ValueError as error:
        raise UserError(
            f"{data.annotations}: annotation {data.inst_id[i]}: 'segmentation' is a damaged RLE "
            f"({error}); export the data set again or remove this annotation"
        ) from error


def check_same_classes(train: CocoData, val: CocoData) -> None:
    """Checks that both splits have the same table id, name, index.

    Raises:
      UserError: lists what differs.
    """
    a = dict(zip(train.category_ids, train.names, strict=True))
    b = dict(zip(val.category_ids, val.names, strict=True))
    if a == b:
        return
    lines = [
        f"  id {i}: {a.get(i, 'absent')!r} in train, {b.get(i, 'absent')!r} in val"
        for i in sorted(a.keys() | b.keys())
        if a.get(i) != b.get(i)
    ]
    raise UserError(
        f"'categories' of {train.annotations} and {val.annotations} differ; give both files the "
        "same list:\n" + "\n".join(lines[:20] + (["  ..."] if len(lines) > 20 else []))
    )


@dataclasses.dataclass
class _Skips:
    """Counts what may be skipped, or lets the error pass."""

    on_bad: OnBad
    count: int = 0
    first: str = ""

    def attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except UserError as error:
            if self.on_bad == "error":
                raise
            self.first = self.first or str(error)
            self.count += 1


def _folders(images: str) -> list[Path]:
    if not images:
        raise UserError("data: 'images' is unset; give the folder of the pictures")
    folders = [Path(f) for f in images.split(":") if f]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; correct the field 'images' of the data set")
    return folders


def _read_json(path: Path) -> dict[str, list]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; correct the field 'annotations'") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "the file may be cut off or edited by hand: export or download it again"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file ({error.reason}); name a JSON file") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists 10,000 deep
        raise UserError(f"{path}: not usable as JSON ({error}); export it again") from error
    keys = ("images", "annotations", "categories")
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f"{path}: has no list {key!r}, so it is not a COCO data set; "
                "name an 'instances' file, or convert the annotations to COCO JSON"
            )
    return {key: content[key] for key in keys}


def _categories(path: Path, entries: list) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if not entries:
        raise UserError(f"{path}: 'categories' is empty; list the classes with 'id' and 'name'")
    entries = _sorted_by_id(path, "categories", entries)
    for e in entries:
        if not isinstance(e.get("name"), str):
            raise UserError(f"{path}: category {e['id']} has no 'name'; give it one")
    return tuple(e["id"] for e in entries), tuple(e["name"] for e in entries)


def _sorted_by_id(path: Path, field: str, entries: list) -> list[dict]:
    seen = set()
    for n, e in enumerate(entries):
        i = e.get("id") if isinstance(e, dict) else None
        if not isinstance(i, int) or isinstance(i, bool) or i.bit_length() > _ID_BITS:
            message = "has no whole number as 'id' (of at most 64 bits); give it one"
            raise UserError(f"{path}: {field}[{n}] {message}")
        if i in seen:
            raise UserError(f"{path}: {field}: the id {i} occurs twice; make the ids unique")
        seen.add(i)
    return sorted(entries, key=lambda e: e["id"])


def _image_size(path: Path, entry: dict) -> tuple[int, int]:
    size = entry.get("height"), entry.get("width")
    if not all(type(s) is int and 0 < s <= _MAX_SIDE for s in size):
        raise UserError(
            f"{path}: image {entry['id']}: 'height' and 'width' are {size[0]!r} and {size[1]!r}; "
            "write the size of the picture in pixels"
        )
    return size


def _find(path: Path, entry: dict, folders: list[Path]) -> str:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}: image {entry['id']} has no 'file_name'; give it one")
    relative = Path(name.replace("\\", "/"))  # some tools write Windows paths
    for folder in folders:
        # Exports often carry the folders of the machine that they were made on.
        for candidate in dict.fromkeys((folder / relative, folder / relative.name)):
            if is_file(candidate):
                return str(candidate)
    where = ":".join(str(f) for f in folders)
    raise UserError(
        f"{path}: image {entry['id']}: the 'file_name' {name} is not in {where}; add the file, "
        "correct the folder, or set data.on_bad_image to 'skip'"
    )


def _check_references(path: Path, a: dict, images: dict, classes: dict) -> None:
    for field, known, table in (
        ("image_id", images, "images"),
        ("category_id", classes, "categories"),
    ):
        # Not every value of a foreign file can be looked up.
        if not isinstance(a.get(field), int | float) or a[field] not in known:
            raise UserError(
                f"{path}: annotation {a['id']}: {field!r} is {a.get(field)!r}, which is not in "
                f"'{table}'; correct it or remove the annotation"
            )
