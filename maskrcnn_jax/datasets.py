"""The data sets that a config names, and their one table of classes."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from maskrcnn_jax import own_data, runtime
from maskrcnn_jax.data import registry
from maskrcnn_jax.data.coco import CocoData, check_same_classes, load_coco
from maskrcnn_jax.errors import UserError


def cache_dir(config: ConfigDict) -> Path:
    """Where prepared, generated and downloaded data lie."""
    return (
        Path(config.data.cache_dir).expanduser() if config.data.cache_dir else runtime.cache_home()
    )


def load_data(config: ConfigDict, train: bool) -> tuple[CocoData | None, CocoData]:
    """The checked train (or None) and val sets that the config's `data` group names."""
    d, number = config.data, config.model.keypoints
    # A filter by keypoints wants them of the training pictures, even if no head learns them.
    annotated = number > 0 or d.min_keypoints > 0
    cache = cache_dir(config)
    if d.name not in registry.BUILT_IN:
        val = _with_keypoints(own_data.load_own(config, cache, "val"), number)
        data = _with_keypoints(own_data.load_own(config, cache, "train"), number) if train else None
        return _same_classes(data, val)
    paths = {split: (d[split].annotations, d[split].images) for split in ("train", "val")}
    if d.name == "shapes":
        from maskrcnn_jax.data import shapes

        folder = cache / f"shapes_{d.shapes_train}_{d.shapes_val}"
        paths = shapes.generate(folder, d.shapes_train, d.shapes_val, keypoints=annotated)
    elif d.name == "coco_2017":
        from maskrcnn_jax.data import builder

        kind = "person_keypoints" if annotated else "instances"
        paths = builder.download_coco_2017(cache, kind)
    val = load_coco(*paths["val"], d.on_bad_image, number)
    if not train:
        return None, val
    filtered = number or (None if annotated else 0)
    return _same_classes(load_coco(*paths["train"], d.on_bad_image, filtered), val)


def _with_keypoints(data: CocoData, number: int) -> CocoData:
    found = data.inst_keypoints.shape[1]
    if number and found != number:
        raise UserError(
            f"{data.annotations}: the data set of this module has {found} keypoints, but "
            f"model.keypoints={number}; return `load_coco(..., keypoints={number})` from its maker"
        )
    return data


def _same_classes(train: CocoData | None, val: CocoData) -> tuple[CocoData | None, CocoData]:
    if train is not None:
        check_same_classes(train, val)
    return train, val


def classes_of(data: CocoData) -> dict[str, Any]:
    """The table id <-> name <-> index, as it is stored in the checkpoint."""
    return {"names": list(data.names), "category_ids": [int(i) for i in data.category_ids]}


def check_classes(stored: dict[str, Any], data: CocoData, where: str) -> None:
    """Raises UserError unless a checkpoint's classes are those of a data set."""
    if stored == classes_of(data):
        return
    pairs = lambda t: set(zip(t["category_ids"], t["names"], strict=True))  # noqa: E731
    ours, theirs = pairs(classes_of(data)), pairs(stored)
    raise UserError(
        f"{where}: its classes are not those of {data.annotations}; only in the checkpoint: "
        f"{sorted(theirs - ours)[:5]}, only in the data: {sorted(ours - theirs)[:5]}. "
        "Use the data set it was trained on, or init.part='backbone' in a new workdir."
    )
