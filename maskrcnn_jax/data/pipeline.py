"""Records in, batches out: sampler -> decode -> augment -> resize -> pad to a canvas -> batch.

The global batch of a step is a function of (seed, step): the sampler names its rows, and the random
numbers of an example are derived from seed, step and its place in the global batch. A host makes
its own rows of it only, so the batch does not depend on how many hosts there are, and a run
resumes at any step without saved state.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from jaxtyping import Int
from ml_collections import ConfigDict

from maskrcnn_jax.data import augment, recipe
from maskrcnn_jax.data.batch_shapes import Canvas, canvas_groups
from maskrcnn_jax.data.builder import Records, decode_image
from maskrcnn_jax.data.sampler import Sampler
from maskrcnn_jax.data.transform_workers import Workers
from maskrcnn_jax.data.user_transforms import Objects
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.preprocess import shortest_edge_size
from maskrcnn_jax.types import Batch

# step -> canvas, whether pictures are turned on their side, rows of the host, seeds of the host's
# examples [b, 2]
Plan = Callable[[int], tuple[Canvas, bool, np.ndarray, np.ndarray]]

_NO_END = int(np.iinfo(np.int64).max)
# No function here branches on a tensor in Python. AutoGraph, which rewrites such, would read the
# source of all of them: two seconds before the first batch.
_AS_IT_IS = tf.autograph.experimental.do_not_convert


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
      keypoint_order: what a mirror does to the keypoints, of `keypoints.flip_order`; its length is
        their number in the records, or 0 to leave them out.

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
    rows = _rows(records, data_config)
    plan = _plan(records, data_config, rows, batch_size, seed, mine)
    stop = _NO_END if num_steps is None else start_step + num_steps
    listed = data_config.albumentations
    workers = Workers(listed, data_config.num_workers) if listed else None
    steps, order = (start_step, stop), tuple(keypoint_order)
    dataset = _dataset(records, data_config, rows, plan, steps, local, workers, order)
    return _iterate(dataset, workers)


def padding(records: Records, config: ConfigDict) -> float:
    """The share of the batches' pixels that is padding, over all data.short, without lsj_scale."""
    sizes = records.sizes[_rows(records, config)]
    groups, canvases = canvas_groups(sizes, config)
    kinds, counts = np.unique(np.column_stack([sizes, groups]), axis=0, return_counts=True)
    filled = area = 0
    for (height, width, group), count in zip(kinds.tolist(), counts.tolist(), strict=True):
        for short in config.short:
            filled += count * math.prod(shortest_edge_size((height, width), short, config.long))
            area += count * math.prod(canvases[group])
    return 1 - filled / area


def _rows(records: Records, config: ConfigDict) -> Int[np.ndarray, " n"]:
    """The rows to train on."""
    rows = np.arange(len(records))
    if config.limit:
        rows = rows[: config.limit]  # records are in the order of the image ids
    if config.filter_empty:
        rows = rows[records.num_instances[rows] > 0]
    if not len(rows):
        raise UserError(
            "data.filter_empty leaves no training image: none of the first "
            f"{config.limit or len(records)} has an object; turn it off or raise data.limit"
        )
    if config.min_keypoints:
        rows = rows[records.num_keypoints[rows] >= config.min_keypoints]
    if not len(rows):
        raise UserError(
            f"data.min_keypoints={config.min_keypoints} leaves no training image; lower it"
        )
    return rows


def _plan(
    records: Records,
    config: ConfigDict,
    rows: Int[np.ndarray, " n"],
    batch_size: int,
    seed: int,
    mine: slice,
) -> Plan:
    groups, canvases = canvas_groups(records.sizes[rows], config)
    sampler = Sampler(groups, batch_size, seed)
    places = range(mine.start, mine.stop)

    def plan(step: int) -> tuple[Canvas, bool, np.ndarray, np.ndarray]:
        group, chosen = sampler.batch(step)
        seeds = [np.random.SeedSequence((seed, step, p)).generate_state(2) for p in places]
        on_side = recipe.turns_canvas(config, seed, step)
        canvas = canvases[group][::-1] if on_side else canvases[group]
        return canvas, on_side, rows[chosen[mine]], np.array(seeds).view(np.int32)

    return plan


def _dataset(
    records: Records,
    config: ConfigDict,
    rows: Int[np.ndarray, " n"],
    plan: Plan,
    steps: tuple[int, int],
    local: int,
    workers: Workers | None,
    keypoint_order: tuple[int, ...],
) -> tf.data.Dataset:
    @_AS_IT_IS
    def examples_of(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        canvas, on_side, chosen, seeds = tf.numpy_function(
            lambda s: tuple(
                np.asarray(x, t) for x, t in zip(plan(int(s)), _PLAN_TYPES, strict=True)
            ),
            [step],
            _PLAN_TYPES,
        )
        canvas = tf.ensure_shape(canvas, [2])
        on_side = tf.ensure_shape(on_side, [])
        chosen, seeds = tf.ensure_shape(chosen, [local]), tf.ensure_shape(seeds, [local, 2])
        return tf.tile(canvas[None], [local, 1]), tf.tile(on_side[None], [local]), chosen, seeds

    partners = rows[records.num_instances[rows] > 0]

    def read(row: tf.Tensor, seed: tf.Tensor) -> augment.Example:
        example = _read(records, config, row, keypoint_order)
        return example if workers is None else _transformed(example, records, row, seed, workers)

    @_AS_IT_IS
    def finished(
        canvas: tf.Tensor, on_side: tf.Tensor, row: tf.Tensor, seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        example = recipe.make_example(read, partners, config, row, seed, canvas, on_side)
        example = augment.drop_outer_keypoints(example, tf.shape(example["image"])[:2])
        return _pad(example, config, row, canvas, seed)

    parallel = config.num_workers or os.cpu_count()
    options = tf.data.Options()
    options.deterministic = True
    # Nothing is left to tune, and tf.data's tuner can sleep through the end of its iterator, which
    # waits for it: for up to a minute (seen with TensorFlow 2.21).
    options.autotune.enabled = False
    # The examples run side by side; threads within one would only take cores from the step.
    options.threading.max_intra_op_parallelism = 1
    if config.num_workers:
        options.threading.private_threadpool_size = config.num_workers
    return (
        tf.data.Dataset.range(*steps)
        .map(examples_of)
        .unbatch()
        .map(finished, num_parallel_calls=parallel)
        .batch(local, drop_remainder=True)
        .prefetch(config.prefetch)
        .with_options(options)
    )


def _iterate(dataset: tf.data.Dataset, workers: Workers | None) -> Iterator[Batch]:
    try:
        for arrays in dataset.as_numpy_iterator():
            yield Batch(**arrays)
    except tf.errors.OpError as error:
        if workers is not None and workers.failure is not None:
            raise workers.failure from error
        raise
    finally:
        if workers is not None:
            workers.close()


_PLAN_TYPES = (np.int32, np.bool_, np.int64, np.int32)
_OBJECTS = {"boxes": np.float32, "frames": np.float32, "masks": np.uint8, "classes": np.int32}


def _read(
    records: Records, config: ConfigDict, row: tf.Tensor, keypoint_order: tuple[int, ...]
) -> augment.Example:
    """Reads one record, without its crowds, and decodes the picture."""
    types = _OBJECTS | ({"keypoints": np.float32} if keypoint_order else {})

    def read(row: np.integer) -> tuple:
        record = records[int(row)]
        keep = ~record["crowd"]
        objects = (np.ascontiguousarray(record[k][keep], dtype=t) for k, t in types.items())
        return record["image"], *objects

    content, *objects = tf.numpy_function(read, [row], [tf.string, *types.values()])
    side = config.mask_side
    shapes = {"boxes": [4], "frames": [4], "masks": [side, side // 8], "classes": []}
    shapes["keypoints"] = [len(keypoint_order), 3]
    example = {
        key: tf.ensure_shape(value, [None, *shapes[key]])
        for key, value in zip(types, objects, strict=True)
    }
    if keypoint_order:
        example["keypoint_order"] = tf.constant(keypoint_order, tf.int32)
    return example | {"image": tf.ensure_shape(decode_image(content), [None, None, 3])}


def _transformed(
    example: augment.Example, records: Records, row: tf.Tensor, seed: tf.Tensor, workers: Workers
) -> augment.Example:
    """The example after the user's own transforms, made in a worker process."""

    def apply(row: np.integer, seed: np.ndarray, *arrays: np.ndarray) -> Objects:
        name = f"the picture with the id {records.image_ids[int(row)]}"
        return workers.apply(Objects(*arrays), seed, name)

    arrays = tuple(example[key] for key in Objects._fields)
    types = tuple(array.dtype for array in arrays)
    seed = augment.fold(seed, "transforms")
    image, *objects = tf.numpy_function(apply, [row, seed, *arrays], types)
    made = zip(Objects._fields, [image, *objects], strict=True)
    return {key: tf.ensure_shape(value, example[key].shape) for key, value in made}


def _pad(
    example: augment.Example, config: ConfigDict, row: tf.Tensor, canvas: tf.Tensor, seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Pads to the canvas and to the cap of objects; names the fields of `Batch`."""
    example, num_dropped = augment.keep_some(example, config.max_instances, seed)
    n = tf.shape(example["boxes"])[0]

    def pad_objects(x: tf.Tensor) -> tf.Tensor:
        padded = tf.pad(x, [[0, config.max_instances - n], *[[0, 0]] * (x.shape.rank - 1)])
        return tf.ensure_shape(padded, [config.max_instances, *x.shape[1:]])

    optional = {}
    if "keypoints" in example:
        optional["gt_keypoints"] = pad_objects(example["keypoints"])
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
        **optional,
    }
