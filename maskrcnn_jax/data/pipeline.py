"""Records in, batches out: sampler -> decode -> augment -> resize -> pad to a canvas -> batch.

The global batch of a step is a function of (seed, step): the sampler names its rows, and the random
numbers of an example are derived from seed, step and its place in the global batch. A host makes
its own rows of it only, so the batch does not depend on how many hosts there are, and a run
resumes at any step without saved state.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from jaxtyping import Int
from ml_collections import ConfigDict

from maskrcnn_jax.data import augment
from maskrcnn_jax.data.builder import Records, decode_image
from maskrcnn_jax.data.sampler import Sampler
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.preprocess import (
    choose_canvas,
    derive_canvases,
    shortest_edge_size,
)
from maskrcnn_jax.types import Batch

Canvas = tuple[int, int]
# step -> canvas, rows of the host, seeds of the host's examples [b, 2]
Plan = Callable[[int], tuple[Canvas, np.ndarray, np.ndarray]]

_NO_END = int(np.iinfo(np.int64).max)


def make_batches(
    records: Records,
    data_config: ConfigDict,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_steps: int | None = None,
    host: tuple[int, int] = (0, 1),
    keypoint_order: Sequence[int] = (),
) -> Iterator[Batch]:
    """Returns the training batches of steps start_step, start_step + 1, ... as NumPy arrays.

    Without end unless `num_steps` is given. Evaluation does not pass here: it reads the pictures
    themselves, as prediction does.

    Args:
      records: the prepared data set.
      data_config: the group `data` of the config.
      batch_size: global, over all hosts; a multiple of their number.
      seed: of order and augmentation.
      start_step: first step, for a run that resumes.
      num_steps: how many steps to make.
      host: index of this host and number of hosts.
      keypoint_order: what a flip does to the keypoints, of `keypoints.flip_order`; its length is
        their number in the records.

    Raises:
      UserError: no image is left after filtering, none of the canvases holds an image, or the
        batch cannot be divided among the hosts.
    """
    if batch_size % host[1]:
        raise UserError(
            f"train.batch_size is {batch_size}, which cannot be divided among "
            f"{host[1]} hosts; use a multiple"
        )
    local = batch_size // host[1]
    mine = slice(host[0] * local, (host[0] + 1) * local)
    plan = _plan(records, data_config, batch_size, seed, mine)
    stop = _NO_END if num_steps is None else start_step + num_steps
    dataset = _dataset(records, data_config, plan, (start_step, stop), local, keypoint_order)
    return _iterate(dataset)


def canvas_groups(
    sizes: Int[np.ndarray, "n 2"], data_config: ConfigDict
) -> tuple[Int[np.ndarray, " n"], tuple[Canvas, ...]]:
    """Returns for each image the index of its canvas, and the canvases (height, width).

    Each canvas is a compiled program of its own; an image has the same one at every scale.
    """
    if data_config.lsj_scale:
        side = -(-data_config.lsj_size // 32) * 32
        return np.zeros(len(sizes), np.int64), ((side, side),)
    short, long = max(data_config.short), data_config.long
    canvases = tuple((int(h), int(w)) for h, w in data_config.canvases) or derive_canvases(
        short, long
    )
    unique, inverse = np.unique(sizes, axis=0, return_inverse=True)
    groups = [
        canvases.index(choose_canvas(shortest_edge_size((int(h), int(w)), short, long), canvases))
        for h, w in unique
    ]
    return np.array(groups, np.int64)[inverse.reshape(-1)], canvases


def _plan(records: Records, config: ConfigDict, batch_size: int, seed: int, mine: slice) -> Plan:
    rows = np.arange(len(records))
    if config.limit:
        rows = rows[: config.limit]  # records are in the order of the image ids
    if config.filter_empty:
        rows = rows[records.num_instances[rows] > 0]
    if config.min_keypoints:
        rows = rows[records.num_keypoints[rows] >= config.min_keypoints]
        if not len(rows):
            raise UserError(
                f"data.min_keypoints={config.min_keypoints} leaves no training image; lower it"
            )
    if not len(rows):
        raise UserError(
            "data.filter_empty leaves no training image: none of the first "
            f"{config.limit or len(records)} has an object; turn it off or raise data.limit"
        )
    groups, canvases = canvas_groups(records.sizes[rows], config)
    sampler = Sampler(groups, batch_size, seed)
    places = range(mine.start, mine.stop)

    def plan(step: int) -> tuple[Canvas, np.ndarray, np.ndarray]:
        group, chosen = sampler.batch(step)
        seeds = [np.random.SeedSequence((seed, step, p)).generate_state(2) for p in places]
        return canvases[group], rows[chosen[mine]], np.array(seeds).view(np.int32)

    return plan


def _dataset(
    records: Records,
    config: ConfigDict,
    plan: Plan,
    steps: tuple[int, int],
    local: int,
    keypoint_order: Sequence[int],
) -> tf.data.Dataset:
    def examples_of(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        canvas, rows, seeds = tf.numpy_function(
            lambda s: tuple(
                np.asarray(x, t) for x, t in zip(plan(int(s)), _PLAN_TYPES, strict=True)
            ),
            [step],
            _PLAN_TYPES,
        )
        canvas = tf.ensure_shape(canvas, [2])
        rows, seeds = tf.ensure_shape(rows, [local]), tf.ensure_shape(seeds, [local, 2])
        return tf.tile(canvas[None], [local, 1]), rows, seeds

    def finished(canvas: tf.Tensor, row: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        example = _read(records, config, row, len(keypoint_order))
        example = _augment(example, config, seed, keypoint_order)
        return _pad(example, config, row, canvas, seed)

    workers = config.num_workers or tf.data.AUTOTUNE
    options = tf.data.Options()
    options.deterministic = True
    # The examples run side by side; threads within one would only take cores from the step.
    options.threading.max_intra_op_parallelism = 1
    if config.num_workers:
        options.threading.private_threadpool_size = config.num_workers
    return (
        tf.data.Dataset.range(*steps)
        .map(examples_of)
        .unbatch()
        .map(finished, num_parallel_calls=workers)
        .batch(local, drop_remainder=True)
        .prefetch(config.prefetch)
        .with_options(options)
    )


def _iterate(dataset: tf.data.Dataset) -> Iterator[Batch]:
    for arrays in dataset.as_numpy_iterator():
        yield Batch(**arrays)


_PLAN_TYPES = (np.int32, np.int64, np.int32)
_OBJECTS = {"boxes": np.float32, "frames": np.float32, "masks": np.uint8, "classes": np.int32}


def _read(records: Records, config: ConfigDict, row: tf.Tensor, keypoints: int) -> augment.Example:
    """Reads one record, without its crowds, and decodes the picture."""
    types = _OBJECTS | ({"keypoints": np.float32} if keypoints else {})

    def read(row: np.ndarray) -> tuple:
        record = records[int(row)]
        keep = ~record["crowd"]
        objects = (np.ascontiguousarray(record[k][keep], dtype=t) for k, t in types.items())
        return record["image"], *objects

    content, *objects = tf.numpy_function(read, [row], [tf.string, *types.values()])
    side = config.mask_side
    shapes = {"boxes": [4], "frames": [4], "masks": [side, side // 8], "classes": []}
    shapes["keypoints"] = [keypoints, 3]
    return {"image": tf.ensure_shape(decode_image(content), [None, None, 3])} | {
        key: tf.ensure_shape(value, [None, *shapes[key]])
        for key, value in zip(types, objects, strict=True)
    }


def _augment(
    example: augment.Example, config: ConfigDict, seed: tf.Tensor, keypoint_order: Sequence[int]
) -> augment.Example:
    if config.lsj_scale:
        example = augment.large_scale_jitter(
            example, tuple(config.lsj_scale), config.lsj_size, seed
        )
    else:
        example = augment.resize_shortest_edge(example, tuple(config.short), config.long, seed)
    if config.flip > 0:
        example = augment.flip(example, config.flip, seed, keypoint_order)
    if config.color_jitter > 0:
        example = augment.color_jitter(example, config.color_jitter, seed)
    return augment.drop_outer_keypoints(example)


def _pad(
    example: augment.Example, config: ConfigDict, row: tf.Tensor, canvas: tf.Tensor, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Pads to the canvas and to the cap of objects; names the fields of `Batch`."""
    example, num_dropped = augment.keep_some(example, config.max_instances, seed)
    n = tf.shape(example["boxes"])[0]

    def pad_objects(x: tf.Tensor) -> tf.Tensor:
        padded = tf.pad(x, [[0, config.max_instances - n], *[[0, 0]] * (x.shape.rank - 1)])
        return tf.ensure_shape(padded, [config.max_instances, *x.shape[1:]])

    no_keypoints = tf.zeros([config.max_instances, 0, 3])
    image = example["image"]
    image_hw = tf.shape(image)[:2]
    missing = canvas - image_hw
    return {
        "images": tf.pad(image, [[0, missing[0]], [0, missing[1]], [0, 0]]),
        "image_hw": image_hw,
        "gt_boxes": pad_objects(example["boxes"]),
        "gt_classes": pad_objects(example["classes"]),
        "gt_valid": tf.range(config.max_instances) < n,
        "gt_frames": pad_objects(example["frames"]),
        "gt_masks": pad_objects(example["masks"]),
        "num_dropped": num_dropped,
        "index": tf.cast(row, tf.int32),
        "gt_keypoints": pad_objects(example["keypoints"])
        if "keypoints" in example
        else no_keypoints,
    }
