"""From many pictures to a folder of results, which grows when the same call is made again."""

import itertools
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from maskrcnn_jax import postprocess, preprocess, runtime
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.files import ImageIds, Picture, free_name
from maskrcnn_jax.journal import Journal
from maskrcnn_jax.logs import ProgressBar, write_atomic
from maskrcnn_jax.predict import Item, Predictor
from maskrcnn_jax.prediction import Prediction

# Overlays keep these formats; all others become PNG.
_KEPT_FORMATS = (".jpg", ".jpeg", ".png")


class Report(NamedTuple):
    """What a folder of results holds, and what could not be read."""

    num_images: int
    num_objects: int
    failed: dict[str, str]  # path of the picture -> why


class _Job(NamedTuple):
    """A picture to predict, and what its line in the journal begins with."""

    path: Path
    image_hw: tuple[int, int] | None  # as the annotations name it
    head: dict[str, Any]


def predict_folder(
    predictor: Predictor,
    pictures: Iterable[Picture],
    output: Path,
    *,
    bar: ProgressBar,
    image_ids: ImageIds | None = None,
    overlays: bool = True,
    masks: bool = False,
    overwrite: bool = False,
) -> Report:
    """Predicts pictures and writes what was found into a folder.

    Writes results.json (COCO results), images.json (ids, sizes, categories, failures), overlays/
    and with `masks` masks/PICTURE/NUMBER_CLASS.png. Pictures that the folder holds already, from
    files that did not change, are not predicted again. Files that cannot be read are reported.

    image_ids: takes the ids from there; else they are running numbers.
    Raises UserError if the folder holds something else, or results with other settings, and where
    `masks` are asked of a model that has none.
    """
    settings = {
        "weights": predictor.origin,
        "score_thresh": predictor.score_thresh,
        "classes": list(predictor.names),
        "annotations": None if image_ids is None else str(image_ids.path.resolve()),
        "overlays": overlays,
        "masks": masks,
    }
    if masks and predictor.config.model.mask_branch == "none":
        raise UserError(f"{predictor.origin}: a model without masks; leave out --masks")
    with Journal(output, settings, overwrite) as journal:
        jobs, failed = _plan(list(pictures), journal, image_ids)
        bar.begin(len(jobs))
        writing: deque[tuple[dict, Future]] = deque()
        with ThreadPoolExecutor(runtime.num_threads()) as pool:
            for item in predictor.stream(jobs, read=_read):
                job = jobs[item.index]
                if item.error is not None:
                    failed[str(job.path)] = str(item.error)
                    bar.advance()
                    continue
                task = pool.submit(_write, item, job.head, output, overlays, masks)
                writing.append(({**job.head, **_size(item.prediction)}, task))
                if len(writing) > 2 * runtime.num_threads():
                    _note(journal, bar, *writing.popleft())
            while writing:
                _note(journal, bar, *writing.popleft())
        _write_results(output, journal, predictor, failed)
        num_objects = sum(head["num_objects"] for head in journal.heads())
        return Report(len(journal), num_objects, failed)


def _plan(
    pictures: list[Picture], journal: Journal, image_ids: ImageIds | None
) -> tuple[list[_Job], dict[str, str]]:
    """The pictures that are not done, each with its id and its own names; and the failures."""
    heads = journal.heads()
    taken = {head[key].casefold() for head in heads for key in ("name", "overlay")}
    entries = _entries(pictures, heads, image_ids)
    jobs, failed = [], {}
    for name, path in pictures:
        try:
            stat = path.stat()
        except OSError as error:
            failed[str(path)] = f"{path}: cannot be read ({error.strerror})"
            continue
        if path not in entries:
            failed[str(path)] = f"{path}: {image_ids.path} has no image of this name"
            continue
        stamp = [stat.st_size, stat.st_mtime_ns]
        head = journal.head(str(path))
        if head is None:
            kept = name.lower().endswith(_KEPT_FORMATS)
            name = free_name(name, taken)
            overlay = name if kept else free_name(f"{name}.png", taken)
            taken |= {name.casefold(), overlay.casefold()}
            head = {"path": str(path), "name": name, "overlay": overlay}
        elif head["stamp"] == stamp:
            continue
        entry = entries[path]
        hw = (entry["height"], entry["width"]) if {"height", "width"} <= set(entry) else None
        jobs.append(_Job(path, hw, {**head, "stamp": stamp, "id": entry["id"]}))
    return jobs, failed


def _entries(
    pictures: list[Picture], heads: list[dict], image_ids: ImageIds | None
) -> dict[Path, dict[str, Any]]:
    """What the annotations know of each picture; without annotations its number."""
    known = {Path(head["path"]): head["id"] for head in heads}
    if image_ids is not None:
        paths = {picture.path for picture in pictures}
        return image_ids.match(pictures, {i for path, i in known.items() if path not in paths})
    new = (picture.path for picture in pictures if picture.path not in known)
    known |= dict(zip(new, itertools.count(max(known.values(), default=0) + 1), strict=False))
    return {path: {"id": i} for path, i in known.items()}


def _read(job: _Job) -> np.ndarray:
    return preprocess.load_image(job.path, hw=job.image_hw)


def _size(found: Prediction) -> dict[str, int]:
    height, width = found.image_hw
    return {"height": height, "width": width, "num_objects": len(found)}


def _note(journal: Journal, bar: ProgressBar, head: dict, task: Future) -> None:
    journal.add(head, task.result())
    bar.advance()


def _write(item: Item, head: dict, output: Path, overlays: bool, masks: bool) -> list[dict]:
    """Writes the pictures of one prediction; returns its COCO rows."""
    found = item.prediction
    if overlays:
        _save(Image.fromarray(found.draw(item.image)), output / "overlays" / head["overlay"])
    if masks:
        _save_masks(found, output / "masks" / head["name"])
    return found.to_coco(head["id"])


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp{path.suffix}")
    picture.save(temporary, quality=92)
    os.replace(temporary, path)


def _save_masks(found: Prediction, folder: Path) -> None:
    """One PNG per object, 255 inside; the folder appears whole or not at all."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for i, (rle, name) in enumerate(zip(found.rles, found.names, strict=True)):
        plain = re.sub(r"[^\w-]+", "_", name)
        mask = postprocess.rle_to_mask(rle).astype(np.uint8) * 255
        Image.fromarray(mask).save(temporary / f"{i:03d}_{plain}.png")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def _write_results(
    output: Path, journal: Journal, predictor: Predictor, failed: dict[str, str]
) -> None:
    images = [
        {"id": h["id"], "file_name": h["name"], "height": h["height"], "width": h["width"]}
        | {"path": h["path"]}
        for h in journal.heads()
    ]
    categories = [
        {"id": i, "name": name}
        for i, name in zip(predictor.category_ids, predictor.names, strict=True)
    ]
    table = {"images": images, "categories": categories, "failed": failed}
    write_atomic(output / "images.json", json.dumps(table, indent=1))
    temporary = output / "results.json.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        separator = "["
        for _, rows in journal.rows():
            for row in rows:
                file.write(f"{separator}\n{json.dumps(row)}")
                separator = ","
        file.write("\n]\n" if separator == "," else "[]\n")
    os.replace(temporary, output / "results.json")
