"""Prepares a data set once: COCO JSON and pictures in, random-access records out.

A TFDS builder writes ArrayRecord files (TFDS' own `coco/2017` has no masks, and truncated areas).
A record holds the encoded picture and, for every object, its mask as a box-frame bitmap: the tight
pixel bounds of the full-resolution mask (the frame), cut into S x S cells, each set when at least
half of its area is. The folder is named by a hash of what went into it and renamed into place when
it is complete, so a changed annotation file makes new records and a half-written folder is never
read.
"""

import collections
import concurrent.futures
import contextlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from jaxtyping import Int
from PIL import Image
from rich.console import Console
from rich.progress import track

from maskrcnn_jax.data import prepared
from maskrcnn_jax.data.bitmaps import instance_bitmap
from maskrcnn_jax.data.coco import CocoData, OnBad
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.preprocess import load_image

_SPLIT = "examples"
_EXIF_ORIENTATION = 0x0112

tf.config.set_visible_devices([], "GPU")  # they belong to JAX


class Records:
    """Prepared examples by row, in the order of the image ids. Reading is thread-safe."""

    def __init__(self, folder: Path):
        source = tfds.builder_from_directory(folder).as_data_source(
            split=_SPLIT, decoders={"image": tfds.decode.SkipDecoding()}
        )
        self._source = source
        index = np.load(folder / "index.npz")
        self.image_ids: Int[np.ndarray, " n"] = index["image_ids"]
        self.sizes: Int[np.ndarray, "n 2"] = index["sizes"]  # height, width
        self.num_instances: Int[np.ndarray, " n"] = index["num_instances"]  # crowds not counted
        # Labelled ones of each picture, crowds not counted; files without keypoints have none.
        self.num_keypoints: Int[np.ndarray, " n"] = (
            index["num_keypoints"] if "num_keypoints" in index else np.zeros_like(self.image_ids)
        )
        self.num_skipped = int(index["num_skipped"])  # unreadable pictures
        self.num_skipped_instances = int(index["num_skipped_instances"])  # empty masks

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, row: SupportsIndex) -> dict[str, Any]:
        """Returns one example, all in pixels of the original picture.

        image: the file's bytes (JPEG or PNG, 8 bit); image_id; hw int32 [2]; and for n objects
        boxes float32 [n, 4] xyxy, classes int32 [n], crowd bool [n], areas float32 [n],
        ids int64 [n], frames float32 [n, 4], masks uint8 [n, S, S // 8]; and, where the data set
        has them, keypoints float32 [n, J, 3].
        """
        return self._source[row]


def prepare(
    data: CocoData,
    cache_dir: str | Path,
    mask_side: int = 112,
    on_bad_image: OnBad = "error",
    progress: bool = True,
) -> Records:
    """Returns the records of `data`, made now or found in `cache_dir`.

    Pictures are decoded once here, so that training meets no damaged file. What TensorFlow would
    read differently (EXIF rotation, alpha, palette, CMYK, 16 bit) is stored as RGB PNG.

    Args:
      data: the checked annotations.
      cache_dir: folder for prepared data sets; "~" is expanded.
      mask_side: S, a multiple of 8.
      on_bad_image: "error" refuses damaged pictures and empty masks; "skip" leaves them out, counts
        them and logs the first.
      progress: show a bar.

    Raises:
      UserError: names the file and the remedy.
    """
    if mask_side <= 0 or mask_side % 8:
        raise UserError(f"data.mask_side is {mask_side}; use a multiple of 8, such as 112")
    final = prepared.folder(data, cache_dir, mask_side, on_bad_image)
    if not final.exists():
        root = final.parent
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=root, prefix=".incomplete-"))
        try:
            folder = _write(data, work, mask_side, on_bad_image, progress)
            try:
                os.replace(folder, final)
            except OSError:
                if not final.exists():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Records(final)


def download_coco_2017(
    cache_dir: str | Path, kind: str = "instances"
) -> dict[str, tuple[Path, str]]:
    """Downloads COCO 2017 (about 19 GB) once. Returns split -> (annotations, images folder).

    kind: which annotations, "instances" or "person_keypoints".

    Raises:
      UserError: the network is not there.
    """
    url = "http://images.cocodataset.org/"
    root = Path(cache_dir).expanduser() / "coco_2017"
    manager = tfds.download.DownloadManager(download_dir=root)
    try:
        paths = manager.download_and_extract(
            {
                "train": url + "zips/train2017.zip",
                "val": url + "zips/val2017.zip",
                "annotations": url + "annotations/annotations_trainval2017.zip",
            }
        )
    except Exception as error:  # TFDS passes on whatever its HTTP library raises
        raise UserError(
            f"COCO 2017 cannot be downloaded to {root} ({error}); download it by hand and set "
            "data.name to 'coco' and data.train and data.val to its files"
        ) from error
    folder = Path(paths["annotations"]) / "annotations"
    return {
        split: (folder / f"{kind}_{split}2017.json", str(Path(paths[split]) / f"{split}2017"))
        for split in ("train", "val")
    }


class _CocoMasks(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes examples that are given as an iterator, in that order."""

    VERSION = tfds.core.Version(prepared.VERSION)

    def __init__(self, examples: Iterator[dict], mask_side: int, keypoints: int, **kwargs: Any):
        self._examples = examples
        self._mask_side = mask_side
        self._keypoints = keypoints
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        tensor, side = tfds.features.Tensor, self._mask_side
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": tensor(shape=(), dtype=np.int64),
            "hw": tensor(shape=(2,), dtype=np.int32),
            "boxes": tensor(shape=(None, 4), dtype=np.float32),
            "classes": tensor(shape=(None,), dtype=np.int32),
            "crowd": tensor(shape=(None,), dtype=np.bool_),
            "areas": tensor(shape=(None,), dtype=np.float32),
            "ids": tensor(shape=(None,), dtype=np.int64),
            "frames": tensor(shape=(None, 4), dtype=np.float32),
            # As a tensor each byte would be stored as an integer of 64 bits.
            "masks": tensor(shape=(None, side, side // 8), dtype=np.uint8, encoding="zlib"),
        }
        if self._keypoints:
            features["keypoints"] = tensor(shape=(None, self._keypoints, 3), dtype=np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Instance segmentation with box-frame bitmaps.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        yield from enumerate(self._examples)


def _write(data: CocoData, work: Path, mask_side: int, on_bad: OnBad, progress: bool) -> Path:
    """Writes the records below `work`; returns their folder."""
    keypoints = data.inst_keypoints.shape[1]
    written: list[dict] = []
    bad: list[str] = []
    empty: list[str] = []

    def examples() -> Iterator[dict]:
        starts = np.searchsorted(data.inst_image, np.arange(len(data.image_ids) + 1))
        results = _map_ordered(
            lambda row: _example(data, row, range(*starts[row : row + 2]), mask_side, on_bad),
            len(data.image_ids),
        )
        for image, objects, problems in track(
            results,
            f"preparing {data.annotations.name}",
            total=len(data.image_ids),
            console=Console(stderr=True),
            disable=not progress,
        ):
            (bad if image is None else empty).extend(problems)
            if image is not None:
                own = ~objects["crowd"]
                entry = {"id": image["image_id"], "n": int(own.sum())}
                if keypoints:
                    entry["keypoints"] = int((objects["keypoints"][own, :, 2] > 0).sum())
                written.append(entry)
                yield image | objects
        if not written:
            raise UserError(f"{data.annotations}: no picture can be read; the first: {bad[0]}")

    tfds.disable_progress_bar()  # it has its own bars, several of them
    builder = _CocoMasks(
        examples(), mask_side, keypoints, data_dir=work, file_format="array_record"
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it says "Downloading"
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    for kind, problems in (("pictures", bad), ("objects", empty)):
        if problems:
            logging.warning("%d bad %s skipped; the first: %s", len(problems), kind, problems[0])
    ids = np.array([w["id"] for w in written], np.int64)
    folder = Path(builder.data_path)
    more = {"num_keypoints": np.array([w["keypoints"] for w in written])} if keypoints else {}
    np.savez(
        folder / "index.npz",
        image_ids=ids,
        sizes=data.sizes[np.searchsorted(data.image_ids, ids)],
        num_instances=np.array([w["n"] for w in written], np.int32),
        num_skipped=len(bad),
        num_skipped_instances=len(empty),
        **more,
    )
    return folder


def _example(
    data: CocoData, row: int, instances: range, side: int, on_bad: OnBad
) -> tuple[dict | None, dict, list[str]]:
    """Returns the picture (None: skipped), its objects, and the problems that were skipped."""
    hw = tuple(int(x) for x in data.sizes[row])
    try:
        image = _image_bytes(Path(data.file_paths[row]), hw)
    except UserError as error:
        if on_bad == "error":
            raise
        return None, {}, [str(error)]
    kept, frames, masks, problems = [], [], [], []
    for i in instances:
        try:
            frame, mask = instance_bitmap(data, i, side)
        except UserError as error:
            if on_bad == "error":
                raise
            problems.append(str(error))
            continue
        kept.append(i)
        frames.append(frame)
        masks.append(mask)
    picture = {"image": image, "image_id": data.image_ids[row], "hw": np.array(hw, np.int32)}
    objects = {
        "boxes": data.inst_box[kept].reshape(-1, 4),
        "classes": data.inst_class[kept],
        "crowd": data.inst_crowd[kept],
        "areas": data.inst_area[kept],
        "ids": data.inst_id[kept],
        "frames": np.array(frames, np.float32).reshape(-1, 4),
        "masks": np.array(masks, np.uint8).reshape(-1, side, side // 8),
    }
    if data.inst_keypoints.shape[1]:
        objects["keypoints"] = data.inst_keypoints[kept].reshape(-1, *data.inst_keypoints.shape[1:])
    return picture, objects, problems


def _image_bytes(path: Path, hw: tuple[int, int]) -> bytes:
    """Returns the file as it is if TensorFlow reads it as we do, else as an RGB PNG."""
    try:
        content = path.read_bytes()
    except OSError:
        return _png(load_image(path, hw))  # words the error
    if _is_plain(content, hw):
        try:
            decode_image(content)
            return content
        except tf.errors.InvalidArgumentError:
            pass  # damaged, or something that only Pillow reads
    return _png(load_image(content, hw, name=str(path)))


def decode_image(content: Any) -> tf.Tensor:
    """Decodes a record's picture, uint8 [H, W, 3], exactly as Pillow would."""
    # The default DCT method is up to 20 grey levels off. The op reads PNG, too.
    return tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")


def _is_plain(content: bytes, hw: tuple[int, int]) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return (
                image.format in ("JPEG", "PNG")
                and image.mode in ("L", "RGB")
                and "transparency" not in image.info
                and image.size == (hw[1], hw[0])
                and image.getexif().get(_EXIF_ORIENTATION, 1) == 1
            )
    except Exception:  # load_image will say what is wrong
        return False


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _map_ordered(function: Any, n: int) -> Iterator:
    """Maps over range(n) on a few threads, in order, a bounded number ahead."""
    workers = min(os.cpu_count() or 1, 16)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: collections.deque = collections.deque()
        try:
            for i in range(n):
                pending.append(pool.submit(function, i))
                if len(pending) > 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
