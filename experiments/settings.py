"""The three sizes at which a table can be asked: a config, and fields on top of it."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from maskrcnn_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

# From scratch, at a size that a CPU trains: what takes the place of an arm's values. The shallow
# ResNets have no bottlenecks and so no groups, which ResNeXt needs; hence 50 for 101.
_SMALL = {
    "model.depth": {50: 18, 101: 50},
    "init.checkpoint": dict.fromkeys(
        ("detectron2/R-50", "detectron2/R-101", "detectron2/X-101-32x8d"), ""
    ),
    "model.mask_fc_dim": {1024: 256},
    "model.keypoint_channels": {512: 64},
    "model.keypoint_convs": {8: 4},
    "model.pixel_std": {(57.375, 57.12, 58.395): (64.0, 64.0, 64.0)},
    # Of the features at stride 16 of a small picture.
    "model.rpn_channels": {1024: 64},
    "model.rpn_pre_nms_topk_train": {12_000: 300},
    "model.rpn_pre_nms_topk_test": {6000: 300},
    "model.rpn_post_nms_topk_train": {2000: 200, 1500: 200},
}


@dataclass(frozen=True)
class Setting:
    """name: of --setting. config: file of configs/. fields: on top of it, for all tables. instead:
    field -> {value that an arm asks for: value taken here}. needs_data: True where no data set
    comes by itself."""

    name: str
    about: str
    config: str
    fields: Mapping[str, Any]
    instead: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    needs_data: bool = False


_ALL = (
    Setting(
        name="shapes",
        about="generated pictures, ResNet-18 at half width from scratch: minutes an arm on 2 cores",
        config="shapes.py",
        fields={
            "data.limit": 1600,
            "train.num_steps": 600,
            "train.checkpoint_every": 100,
            "eval.every": 0,
            "eval.num_pictures": 4,
        },
        instead=_SMALL | {"model.keypoints": {17: 5}},  # the corners of polygons
    ),
    Setting(
        name="real",
        about="a small data set of yours in COCO's format, the same small model: about an hour an "
        "arm on 2 cores",
        config="tiny_real.py",
        fields={"train.checkpoint_every": 100, "eval.every": 0, "eval.num_pictures": 4},
        instead=_SMALL,
        needs_data=True,
    ),
    Setting(
        name="coco",
        about="COCO 2017, R50-FPN from ImageNet weights, 90k steps of 16 images: half a day an arm "
        "on 8 GPUs, estimated",
        config="coco_r50.py",
        fields={
            "data.name": "coco_2017",
            "init.checkpoint": "detectron2/R-50",
        },
    ),
)
SETTINGS = {setting.name: setting for setting in _ALL}

_COCO_2017 = 118_287  # pictures of train2017


def data_fields(folder: Path, kind: str = "instances") -> dict[str, Any]:
    """The config's data fields for a folder laid out like COCO: annotations/KIND_NAME.json beside
    the pictures in NAME/, once with "train" and once with "val" in NAME."""
    found: dict[str, Any] = {"data.name": "coco"}
    for split in ("train", "val"):
        files = sorted((folder / "annotations").glob(f"{kind}_*{split}*.json"))
        if len(files) != 1:
            raise UserError(
                f"--data {folder}: {len(files)} files are called annotations/{kind}_*{split}*"
                f".json, there has to be one; else set the four fields --config.data.{split}."
                "annotations=..., .images=..."
            )
        images = folder / files[0].stem.removeprefix(f"{kind}_")
        if not images.is_dir():
            raise UserError(f"--data {folder}: there is no folder {images} of {files[0].name}")
        found[f"data.{split}.annotations"] = str(files[0].resolve())
        found[f"data.{split}.images"] = str(images.resolve())
    return found


def train_images(fields: Mapping[str, Any]) -> int | None:
    """How many training images a config has before its filters, by its flat fields.

    None where only the run can tell: a data set of the user's own module. Raises UserError where
    the annotations cannot be read.
    """
    limit, name = fields["data.limit"], fields["data.name"]
    known = {"shapes": fields["data.shapes_train"], "coco_2017": _COCO_2017}
    number = (
        _count_images(*_version(fields["data.train.annotations"]))
        if name == "coco"
        else known.get(name)
    )
    return limit or None if number is None else min(number, limit or number)


def digests(fields: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each annotation file that a config's flat fields name; "" where there is none.

    Empty for data that are generated, downloaded, or of a module.
    """
    names = [f"data.{split}.annotations" for split in ("train", "val")]
    return {f"{name}, content": _digest(*_version(fields[name])) for name in names if fields[name]}


def _version(path: str) -> tuple[str, int, int]:
    """What changes with the content of a file, by which it need not be read again."""
    try:
        stat = os.stat(path)
    except OSError:
        return path, -1, -1
    return path, stat.st_size, stat.st_mtime_ns


@lru_cache
def _digest(path: str, size: int, time: int) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


@lru_cache
def _count_images(annotations: str, size: int, time: int) -> int:
    try:
        return len(json.loads(Path(annotations).read_text(encoding="utf-8"))["images"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{annotations}: no COCO JSON with a list 'images' ({error!r})") from error
