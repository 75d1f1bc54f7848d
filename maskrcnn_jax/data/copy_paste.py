"""Copy-paste: objects of a second picture laid over a first one.

Source: Simple Copy-Paste (Ghiasi et al. 2021), section 3: a random subset of the second picture's
objects is pasted at the place where they are, without blending; masks and boxes of what they cover
are reduced, and fully covered objects are dropped.
"""

import numpy as np
import tensorflow as tf
from jaxtyping import Bool, Float32, UInt8

from maskrcnn_jax.data.augment import (
    OBJECT_KEYS,
    Example,
    clip_objects,
    fold,
    pack,
    take,
    unpack,
    visible_bounds,
)
from maskrcnn_jax.postprocess import paste_mask

# An object of which less than this is left, in square pixels, counts as covered.
_LEAST_AREA = 1.0


def random_subset(other: Example, seed: tf.Tensor) -> Example:
    """Between one and all of the objects, any number and any of them alike."""
    n = tf.shape(other["boxes"])[0]
    draws = fold(seed, "copy_paste")
    number = tf.random.stateless_uniform([], draws, 1, tf.maximum(n, 1) + 1, tf.int32)
    keys = tf.random.stateless_uniform([n], fold(draws, "copy_paste"))
    rows = tf.sort(tf.math.top_k(keys, tf.minimum(number, n)).indices)
    return take(other, rows)


def paste(example: Example, other: Example) -> Example:
    """Lays the objects of `other` over `example`, at the same pixels; its size stays.

    What lies outside is cut off. Own objects come first in the result, then the pasted ones.
    """
    hw = tf.minimum(tf.shape(example["image"])[:2], tf.shape(other["image"])[:2])
    other = clip_objects(other, tf.cast(hw, tf.float32))
    image, covered, drawn = tf.numpy_function(
        _paste_pixels,
        [example["image"], other["image"], other["frames"], unpack(other["masks"])],
        (np.uint8, np.bool_, np.bool_),
    )
    example = _uncovered(example, tf.ensure_shape(covered, [None, None]))
    pasted = take(other, tf.where(tf.ensure_shape(drawn, [None]))[:, 0])
    objects = {key: tf.concat([example[key], pasted[key]], axis=0) for key in OBJECT_KEYS}
    return example | objects | {"image": tf.ensure_shape(image, [None, None, 3])}


def _paste_pixels(
    image: UInt8[np.ndarray, "h w 3"],
    other: UInt8[np.ndarray, "h2 w2 3"],
    frames: Float32[np.ndarray, "n 4"],
    masks: Bool[np.ndarray, "n S S"],
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"], Bool[np.ndarray, " n"]]:
    """Returns the picture, which of its pixels are pasted, and which objects have any of them."""
    h, w = (min(a, b) for a, b in zip(image.shape[:2], other.shape[:2], strict=True))
    covered = np.zeros(image.shape[:2], bool)
    drawn = np.zeros(len(frames), bool)
    for i, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
        values, y, x = paste_mask(mask.astype(np.float32), frame, (h, w))
        pixels = values >= 0.5
        drawn[i] = pixels.any()
        covered[y : y + pixels.shape[0], x : x + pixels.shape[1]] |= pixels
    image = image.copy()
    window = covered[:h, :w]
    image[:h, :w][window] = other[:h, :w][window]
    return image, covered, drawn


def _uncovered(example: Example, covered: tf.Tensor) -> Example:
    """Takes the covered pixels from the masks; boxes shrink to what is left."""
    frames, masks = example["frames"], unpack(example["masks"])
    side = tf.shape(masks)[-1]
    hw = tf.shape(covered)
    middles = (tf.range(tf.cast(side, tf.float32)) + 0.5) / tf.cast(side, tf.float32)

    def pixels(axis: int) -> tf.Tensor:
        start, end = frames[:, axis, None], frames[:, axis + 2, None]
        at = tf.cast(tf.floor(start + (end - start) * middles), tf.int32)
        return tf.clip_by_value(at, 0, hw[1 - axis] - 1)

    rows, columns = pixels(1)[:, :, None], pixels(0)[:, None, :]
    hidden = tf.gather(tf.reshape(covered, [-1]), rows * hw[1] + columns) & masks
    left = masks & ~hidden
    touched = tf.reduce_any(hidden, axis=[1, 2])
    window = tf.cast(hw, tf.float32)
    bounds, visible = visible_bounds(frames, left, window)
    limit = tf.stack([window[1], window[0], window[1], window[0]])
    boxes = tf.where(touched[:, None], tf.clip_by_value(bounds, 0.0, limit), example["boxes"])
    cells = tf.reduce_sum(tf.cast(left, tf.float32), axis=[1, 2])
    extent = frames[:, 2:] - frames[:, :2]
    area = cells * tf.reduce_prod(extent / tf.cast(side, tf.float32), axis=-1)
    rows = tf.where((visible & (area >= _LEAST_AREA)) | ~touched)[:, 0]
    return take(example | {"boxes": boxes, "masks": pack(left)}, rows)
