"""Turns by quarters, flips upside down, crops: of image, boxes, frames and bitmaps together.

The same conventions as in `augment`.
"""

import tensorflow as tf

from maskrcnn_jax.data.augment import (
    Example,
    clip_objects,
    fold,
    mirror,
    pack,
    reflect_keypoints,
    scale_geometry,
    unpack,
)


def flip_vertical(example: Example, probability: float, seed: tf.Tensor) -> Example:
    """Turns upside down, as in a mirror on the floor, with the given probability."""
    do = tf.random.stateless_uniform([], fold(seed, "flip_vertical")) < probability
    return tf.cond(do, lambda: mirror_vertical(example), lambda: dict(example))


def mirror_vertical(example: Example) -> Example:
    """Mirrors image, boxes, frames, bitmaps and keypoints top and bottom."""
    height = tf.cast(tf.shape(example["image"])[0], tf.float32)

    def mirror_boxes(boxes: tf.Tensor) -> tf.Tensor:
        x0, y0, x1, y1 = tf.unstack(boxes, axis=-1)
        return tf.stack([x0, height - y1, x1, height - y0], axis=-1)

    example = reflect_keypoints(example, lambda x, y: (x, height - y))
    return example | {
        "image": tf.reverse(example["image"], [0]),
        "boxes": mirror_boxes(example["boxes"]),
        "frames": mirror_boxes(example["frames"]),
        "masks": tf.reverse(example["masks"], [1]),
    }


def transpose(example: Example) -> Example:
    """Exchanges x and y in image, boxes, frames, bitmaps and keypoints."""
    example = reflect_keypoints(example, lambda x, y: (y, x))
    return example | {
        "image": tf.transpose(example["image"], [1, 0, 2]),
        "boxes": tf.gather(example["boxes"], [1, 0, 3, 2], axis=-1),
        "frames": tf.gather(example["frames"], [1, 0, 3, 2], axis=-1),
        "masks": pack(tf.transpose(unpack(example["masks"]), [0, 2, 1])),
    }


def rotate(example: Example, turns: tf.Tensor) -> Example:
    """Rotates by `turns` quarters, 0 to 3, counterclockwise as `numpy.rot90`."""

    def when(condition: tf.Tensor, function, example: Example) -> Example:
        return tf.cond(condition, lambda: function(example), lambda: dict(example))

    # A rotation is one or two reflections.
    example = when(turns % 2 == 1, transpose, example)
    example = when((turns == 1) | (turns == 2), mirror_vertical, example)
    return when(turns >= 2, mirror, example)


def random_turns(probability: float, on_side: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws how many quarters to turn: 1, 2 and 3 have a third of `probability` each.

    on_side: whether the number is odd. It is drawn with 2/3 of `probability` for a whole batch,
      because it decides which canvas holds the pictures.
    """
    draw = tf.random.stateless_uniform([], fold(seed, "turn"))
    # Of the even ones, 0 and 2.
    share = (probability / 3) / (1 - 2 * probability / 3)
    return tf.where(on_side, tf.where(draw < 0.5, 1, 3), tf.where(draw < share, 2, 0))


def random_crop(
    example: Example, probability: float, shares: tuple[float, float], seed: tf.Tensor
) -> Example:
    """Cuts out a random window with the given probability.

    The window has a share of the height and one of the width, each drawn from `shares` (smallest,
    largest). It holds a point of one object's mask, drawn at random: where there are objects, one
    at least stays. Objects cut by the window get the box of what is left of their mask; objects
    without a mask left are dropped.

    Source: Detectron2's RandomCrop "relative_range", and its crop around an instance.
    """
    do, *draws = tf.unstack(tf.random.stateless_uniform([5], fold(seed, "crop")))

    def cut() -> Example:
        hw = tf.cast(tf.shape(example["image"])[:2], tf.float32)
        share = shares[0] + tf.stack(draws[:2]) * (shares[1] - shares[0])
        window = tf.clip_by_value(tf.round(hw * share), 1.0, hw)
        low, high = tf.zeros([2]), hw - window
        if_any = tf.shape(example["boxes"])[0] > 0
        point = tf.cond(if_any, lambda: _point_of_object(example, seed), lambda: hw / 2)
        low = tf.where(if_any, tf.maximum(low, point - window + 1), low)
        high = tf.where(if_any, tf.minimum(high, point), high)
        offset = tf.floor(low + tf.stack(draws[2:]) * (high - low + 1))
        return crop(example, tf.minimum(offset, high), window)

    return tf.cond(do < probability, cut, lambda: dict(example))


def crop(example: Example, offset: tf.Tensor, window: tf.Tensor) -> Example:
    """Cuts `window` (height, width) at `offset` (y, x), both float32 of whole pixels."""
    (y, x), (h, w) = tf.unstack(tf.cast(offset, tf.int32)), tf.unstack(tf.cast(window, tf.int32))
    example = scale_geometry(example, tf.ones([2]), offset)
    example = example | {"image": example["image"][y : y + h, x : x + w]}
    return clip_objects(example, window)


def _point_of_object(example: Example, seed: tf.Tensor) -> tf.Tensor:
    """The pixel (y, x), float32, of a random set cell of a random object."""
    draws = tf.random.stateless_uniform([2], fold(fold(seed, "crop"), "crop"))
    number = tf.shape(example["boxes"])[0]
    which = _index(draws[0], number)
    mask = unpack(example["masks"][which])
    cells = tf.where(mask)
    cell = tf.cast(cells[_index(draws[1], tf.shape(cells)[0])], tf.float32) + 0.5
    frame = example["frames"][which]
    origin, extent = frame[1::-1], frame[:1:-1] - frame[1::-1]
    point = origin + cell / tf.cast(tf.shape(mask)[0], tf.float32) * extent
    hw = tf.cast(tf.shape(example["image"])[:2], tf.float32)
    return tf.clip_by_value(tf.floor(point), 0.0, hw - 1)


def _index(draw: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """A draw of [0, 1) as one of `number` indices."""
    return tf.minimum(tf.cast(draw * tf.cast(number, tf.float32), tf.int32), number - 1)
