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
    other = _cut_masks(clip_objects(other, tf.cast(hw, tf.float32)), tf.cast(hw, tf.float32))
    image, covered, drawn = tf.numpy_function(
        _paste_pixels,
        [example["image"], other["image"], other["frames"], unpack(other["masks"])],
        (np.uint8, np.bool_, np.bool_),
    )
    example = _uncovered(example, tf.ensure_shape(covered, [None, None]))
    pasted = take(other, tf.where(tf.ensure_shape(drawn, [None]))[:, 0])
    present = (key for key in OBJECT_KEYS if key in example)
    objects = {key: tf.concat([example[key], pasted[key]], axis=0) for key in present}
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


def _cut_masks(example: Example, window: tf.Tensor) -> Example:
    """Clears the cells beyond the window: of a picture that was cut, they would show elsewhere."""
    y, x = _middles(example)
    inside_y, inside_x = (y >= 0) & (y < window[0]), (x >= 0) & (x < window[1])
    masks = unpack(example["masks"]) & inside_y[:, :, None] & inside_x[:, None, :]
    return example | {"masks": pack(masks)}


def _middles(example: Example) -> tuple[tf.Tensor, tf.Tensor]:
    """The y of each row of cells and the x of each column, float32 [n, S], in pixels."""
    side = tf.cast(tf.shape(example["masks"])[1], tf.float32)
    shares = (tf.range(side) + 0.5) / side
    x0, y0, x1, y1 = tf.unstack(example["frames"][..., None], axis=1)
    return y0 + (y1 - y0) * shares, x0 + (x1 - x0) * shares


def _uncovered(example: Example, covered: tf.Tensor) -> Example:
    """Takes the covered pixels from the masks; boxes shrink to what is left, and keypoints under
    them are hidden."""
    frames, masks = example["frames"], unpack(example["masks"])
    hw = tf.shape(covered)
    y, x = (tf.cast(tf.floor(middles), tf.int32) for middles in _middles(example))
    rows = tf.clip_by_value(y, 0, hw[0] - 1)[:, :, None]
    columns = tf.clip_by_value(x, 0, hw[1] - 1)[:, None, :]
    hidden = tf.gather(tf.reshape(covered, [-1]), rows * hw[1] + columns) & masks
    left = masks & ~hidden
    touched = tf.reduce_any(hidden, axis=[1, 2])
    window = tf.cast(hw, tf.float32)
    bounds, visible = visible_bounds(frames, left, window)
    limit = tf.stack([window[1], window[0], window[1], window[0]])
    boxes = tf.where(touched[:, None], tf.clip_by_value(bounds, 0.0, limit), example["boxes"])
    cells = tf.reduce_sum(tf.cast(left, tf.float32), axis=[1, 2])
    extent = frames[:, 2:] - frames[:, :2]
    area = cells * tf.reduce_prod(extent / tf.cast(tf.shape(masks)[-1], tf.float32), axis=-1)
    rows = tf.where((visible & (area >= _LEAST_AREA)) | ~touched)[:, 0]
    if "keypoints" in example:
        example = example | {"keypoints": _hidden(example["keypoints"], covered)}
    return take(example | {"boxes": boxes, "masks": pack(left)}, rows)


def _hidden(keypoints: tf.Tensor, covered: tf.Tensor) -> tf.Tensor:
    """The keypoints, those on covered pixels no longer visible: 1 in place of 2."""
    hw = tf.shape(covered)
    x, y, visibility = tf.unstack(keypoints, axis=-1)
    rows = tf.clip_by_value(tf.cast(tf.floor(y), tf.int32), 0, hw[0] - 1)
    columns = tf.clip_by_value(tf.cast(tf.floor(x), tf.int32), 0, hw[1] - 1)
    under = tf.gather(tf.reshape(covered, [-1]), rows * hw[1] + columns)
    visibility = tf.where(under, tf.minimum(visibility, 1.0), visibility)
    return tf.stack([x, y, visibility], axis=-1)
