"""A data set that a program builds: classes, pictures, and a function that returns masks.

The names and the numbering are those of Matterport's `mrcnn.utils.Dataset`: class 0 is "BG", the
background, classes are numbered from 1 in the order of `add_class`, pictures from 0 in the order of
`add_image`; a negative class id marks a crowd. Sub-classes written for it work here, and give COCO
JSON.
"""

import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from pycocotools import mask as mask_utils
from rich.console import Console
from rich.progress import track

from maskrcnn_jax.data.coco import CocoData, OnBad, load_coco
from maskrcnn_jax.data.formats.headers import FIRST_TRANSPOSING, read_header
from maskrcnn_jax.data.formats.to_coco import write_bytes
from maskrcnn_jax.errors import UserError, line_of
from maskrcnn_jax.preprocess import load_image


class Dataset:
    """Inherit from it, call `add_class` and `add_image`, and override `load_mask`.

    Override `load_image`, too, for pictures that are no files. `to_coco` writes what the trainer
    reads; with `register` a config can name the data set.
    """

    def __init__(self) -> None:
        self.class_info: list[dict[str, Any]] = [{"source": "", "id": 0, "name": "BG"}]
        self.image_info: list[dict[str, Any]] = []
        self.prepare()

    def add_class(self, source: str, class_id: Any, class_name: str) -> None:
        """Adds a class; a second call with the same source and id changes nothing.

        source: name of the data set, without dots. class_id: its own id of the class, not 0.
        """
        if "." in source:
            raise UserError(f"add_class: the source {source!r} has a dot; give a name without")
        if all((c["source"], c["id"]) != (source, class_id) for c in self.class_info):
            self.class_info.append({"source": source, "id": class_id, "name": class_name})

    def add_image(self, source: str, image_id: Any, path: Any, **info: Any) -> None:
        """Adds a picture. info: whatever `load_mask` wants to find in `self.image_info`.

        path: its file, or None where `load_image` is overridden.
        """
        self.image_info.append({"id": image_id, "source": source, "path": path} | info)

    def prepare(self) -> None:
        """Numbers classes and pictures; to be called after the last of them was added."""
        self.class_names = [c["name"] for c in self.class_info]
        self.class_ids = np.arange(len(self.class_info))
        self.image_ids = np.arange(len(self.image_info))
        self.num_classes, self.num_images = len(self.class_info), len(self.image_info)
        self.class_from_source_map = {
            f"{c['source']}.{c['id']}": n for n, c in enumerate(self.class_info)
        }

    def map_source_class_id(self, source_class_id: str) -> int:
        """The number of a class of a source, "source.id", as `load_mask` returns it."""
        return self.class_from_source_map[source_class_id]

    def image_reference(self, image_id: int | np.integer) -> str:
        """What to call a picture in messages."""
        return str(self.image_info[image_id]["path"])

    def load_image(self, image_id: int | np.integer) -> UInt8[np.ndarray, "H W 3"]:
        """The picture with the number `image_id`, RGB. May be overridden."""
        return load_image(self.image_info[image_id]["path"])

    def load_mask(
        self, image_id: int | np.integer
    ) -> tuple[Bool[np.ndarray, "H W N"], Int[np.ndarray, " N"]]:
        """The masks of the N objects of a picture, and their classes. To be overridden."""
        return np.zeros((0, 0, 0), bool), np.zeros(0, np.int32)

    def to_coco(
        self, where: str | Path, on_bad_image: OnBad = "error", progress: bool = False
    ) -> CocoData:
        """Writes COCO JSON, and the pictures if `load_image` is overridden; returns what it reads.

        A file that is there already with the same content is left alone, so that records prepared
        from it stay valid.

        Args:
          where: the JSON file, or a folder, in which it is called annotations.json. Pictures go
            into `images` there, or into <name>_images beside the file.
          on_bad_image: "error" refuses the first bad picture or mask; "skip" leaves them out,
            counts them and logs the first.
          progress: show a bar.

        Raises:
          UserError: names the picture, what is wrong with it, and the remedy.
        """
        self.prepare()
        path = Path(where)
        path, pictures = (
            (path, path.with_name(f"{path.stem}_images"))
            if path.suffix == ".json"
            else (path / "annotations.json", path / "images")
        )
        if not self.image_info or len(self.class_info) < 2:
            raise UserError(
                f"{self._name()}: has no {'pictures' if not self.image_info else 'classes'}; "
                "call add_class and add_image first"
            )
        makes_pictures = type(self).load_image is not Dataset.load_image
        folder = pictures if makes_pictures else self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        images: list[dict] = []
        annotations: list[dict] = []
        problems: list[str] = []
        for i in track(
            range(len(self.image_info)),
            f"reading {self._name()}",
            console=Console(stderr=True),
            disable=not progress,
        ):
            try:
                image, objects = self._entries(i, folder, makes_pictures)
            except UserError as error:
                if on_bad_image == "error":
                    raise
                problems.append(str(error))
                continue
            images.append(image)
            annotations += [a | {"id": len(annotations) + k + 1} for k, a in enumerate(objects)]
        if problems:
            logging.warning("%d bad pictures skipped; the first: %s", len(problems), problems[0])
        content = {"images": images, "annotations": annotations, "categories": self._categories()}
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(content, separators=(",", ":")).encode())
        return load_coco(path, str(folder), on_bad_image)

    def _entries(
        self, i: int, folder: Path, makes_pictures: bool
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One entry of 'images', and those of its objects without their ids."""
        masks, class_ids = self._called("load_mask", i)
        masks, class_ids = np.asarray(masks), np.asarray(class_ids)
        where = f"{self._name()}: picture {i} ({self.image_reference(i)})"
        if masks.size and masks.ndim != 3:
            raise UserError(f"{where}: load_mask returned {masks.shape}; return [H, W, N] masks")
        number = masks.shape[2] if masks.size else 0
        if class_ids.shape != (number,) or (number and class_ids.dtype.kind not in "iu"):
            raise UserError(
                f"{where}: load_mask returned {number} masks, but class ids of the kind "
                f"{class_ids.dtype} {list(class_ids.shape)}; return one whole number per mask"
            )
        if makes_pictures:
            name, sizes = self._write_picture(i, folder, where)
        else:
            file = Path(os.path.abspath(self.image_info[i]["path"]))
            name, sizes = file.relative_to(folder).as_posix(), _sizes_of(file)
        if number and masks.shape[:2] not in sizes:
            height, width = sizes[0]
            raise UserError(
                f"{where}: its masks are {masks.shape[0]} high and {masks.shape[1]} wide, the "
                f"picture {height} and {width}; return masks of the size of the picture"
            )
        height, width = masks.shape[:2] if number else sizes[0]
        objects = self._annotations(i, where, masks != 0, class_ids) if number else []
        return {"id": i, "file_name": name, "height": height, "width": width}, objects

    def _annotations(
        self, i: int, where: str, masks: Bool[np.ndarray, "H W N"], class_ids: np.ndarray
    ) -> list[dict[str, Any]]:
        numbers = np.abs(class_ids.astype(np.int64))
        bad = numbers[(numbers < 1) | (numbers >= len(self.class_info))]
        if len(bad):
            raise UserError(
                f"{where}: load_mask returned the class id {bad[0]}; they go from 1 "
                f"({self.class_names[1]!r}) to {len(self.class_info) - 1}, in the order of "
                "add_class; map_source_class_id('source.id') finds them"
            )
        empty = np.flatnonzero(~masks.any((0, 1)))
        if len(empty):
            raise UserError(
                f"{where}: mask {empty[0]} of load_mask has no pixel; leave such objects out"
            )
        rles = mask_utils.encode(np.asfortranarray(masks, np.uint8))
        categories = self._categories()
        return [
            {
                "image_id": i,
                "category_id": categories[number - 1]["id"],
                "iscrowd": int(class_id < 0),
                "area": int(mask_utils.area(rle)),
                "bbox": mask_utils.toBbox(rle).tolist(),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            }
            for rle, number, class_id in zip(rles, numbers, class_ids, strict=True)
        ]

    def _categories(self) -> list[dict[str, Any]]:
        """The sources' own ids where they are numbers and differ, else those of the classes."""
        own = [c["id"] for c in self.class_info[1:]]
        usable = all(type(i) is int for i in own) and len(set(own)) == len(own)
        ids = own if usable else range(1, len(self.class_info))
        return [{"id": i, "name": n} for i, n in zip(ids, self.class_names[1:], strict=True)]

    def _write_picture(self, i: int, folder: Path, where: str) -> tuple[str, list[tuple[int, int]]]:
        image = np.asarray(self._called("load_image", i))
        if image.ndim == 2:
            image = np.stack([image] * 3, axis=-1)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
            raise UserError(
                f"{where}: load_image returned {image.dtype} {list(image.shape)}; return uint8 "
                "[H, W, 3], RGB"
            )
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image[..., :3])).save(buffer, "PNG", compress_level=1)
        name = f"{i:06d}.png"
        _write(folder / name, buffer.getvalue())
        return name, [image.shape[:2]]

    def _called(self, method: str, i: int) -> Any:
        """Calls a method of the sub-class; what it raises is told with its line."""
        try:
            return getattr(self, method)(i)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self._name()}.{method}({i}), picture {self.image_reference(i)}: "
                f"{type(error).__name__}: {error}{line_of(error)}"
            ) from error

    def _folder(self) -> Path:
        """The folder that all pictures have in common."""
        for i, info in enumerate(self.image_info):
            if info["path"] is None:
                raise UserError(
                    f"{self._name()}: picture {i} ({info['id']}) has no path; give add_image its "
                    "file, or override load_image"
                )
        files = [Path(os.path.abspath(info["path"])) for info in self.image_info]
        return Path(os.path.commonpath([file.parent for file in files]))

    def _name(self) -> str:
        return type(self).__name__


def _sizes_of(file: Path) -> list[tuple[int, int]]:
    """The size of a picture as EXIF turns it, and as it is stored."""
    _, (height, width), orientation = read_header(file)
    upright = (width, height) if orientation >= FIRST_TRANSPOSING else (height, width)
    return [upright, (height, width)]


def _write(path: Path, content: bytes) -> None:
    """Writes a file, unless it is the same already: its time tells whether records are valid."""
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)
