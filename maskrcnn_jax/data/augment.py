"""Augmentations of one example, as TensorFlow functions.

An example is a dict: image uint8 [h, w, 3] and for n objects boxes float32 [n, 4] and frames
float32 [n, 4] (xyxy in pixels of the image), masks uint8 [n, S, S // 8] (bit-packed, covering the
frame) and classes. Data sets with keypoints have two more: keypoints float32 [n, J, 3] (x, y,
visibility), and keypoint_order int32 [J], for each the one whose place it takes in a mirror. Masks
follow their frames, so that resizing and cropping leave the bitmaps alone. Randomness is stateless:
`seed` is an int32 pair, the same pair gives the same result, eagerly and inside tf.data.

Here: resizing, mirroring, large-scale jitter, colour. Turns and crops: `augment_geometry`; blur and
JPEG: `augment_pixels`; objects of a second picture: `copy_paste`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

Example = dict[str, tf.Tensor]

# Per-object entries, from which rows are dropped together; keypoints where there are any.
OBJECT_KEYS = ("boxes", "frames", "masks", "classes", "keypoints")

_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], 1)
_REVERSED_BITS = _REVERSED[:, 0]
_BITS = np.array([128, 64, 32, 16, 8, 4, 2, 1], np.uint8)
_LUMA = (0.299, 0.587, 0.114)

# One stream of random numbers per augmentation, so that none depends on which others are on.
_NAMES = ("resize", "flip", "lsj", "color", "keep", "flip_vertical", "turn", "crop", "blur", "jpeg")
_NAMES += ("copy_paste", "partner", "transforms")
_STREAMS = {name: number for number, name in enumerate(_NAMES)}


def fold(seed: tf.Tensor, stream: str) -> tf.Tensor:
    """One independent seed (an int32 pair) per augmentation."""
    return tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int32), _STREAMS[stream])


def resize_shortest_edge(
    example: Example,
    short: Sequence[int],
    long: int,
    seed: tf.Tensor,
    within: tf.Tensor | None = None,
) -> Example:
    """Resizes so that the shorter side is one of `short`, but the longer one at most `long`.

    within: (height, width), int32 [2]; what would be larger than that is scaled to fit. For
    pictures whose shape was changed after their canvas was chosen.
    Source: Detectron2's ResizeShortestEdge, sample_style "choice".
    """
    which = tf.random.stateless_uniform([], fold(seed, "resize"), maxval=len(short), dtype=tf.int32)
    target = tf.cast(tf.gather(tf.constant(short, tf.int32), which), tf.float64)
    hw = tf.cast(tf.shape(example["image"])[:2], tf.float64)
    size = hw * (target / tf.reduce_min(hw))
    longest = tf.reduce_max(size)
    size = tf.where(longest > long, size * (long / longest), size)
    if within is not None:
        room = tf.cast(within, tf.float64)
        size = tf.minimum(size * tf.minimum(tf.reduce_min(room / size), 1.0), room)
    return resize(example, tf.maximum(tf.cast(size + 0.5, tf.int32), 1))


def resize(example: Example, size: tf.Tensor) -> Example:
    """Resizes image, boxes and frames to `size` (height, width), int32 [2].

    Bilinear, antialiased when a side shrinks (Pillow's and Detectron2's rule); enlarging needs no
    antialiasing and is several times faster without.
    """
    image = example["image"]
    old = tf.shape(image)[:2]
    resized = tf.cond(
        tf.reduce_any(size < old),
        lambda: tf.image.resize(image, size, antialias=True),
        lambda: tf.image.resize(image, size),
    )
    return scale_objects(example, old, size) | {"image": to_uint8(resized)}


def scale_objects(example: Example, old: tf.Tensor, new: tf.Tensor) -> Example:
    """Scales boxes and frames from an image of size `old` to one of size `new`."""
    scale = tf.cast(new, tf.float32) / tf.cast(old, tf.float32)
    return scale_geometry(example, scale, tf.zeros([2]))


def flip(example: Example, probability: float, seed: tf.Tensor) -> Example:
    """Mirrors left and right with the given probability."""
    do = tf.random.stateless_uniform([], fold(seed, "flip")) < probability
    return tf.cond(do, lambda: mirror(example), lambda: dict(example))


def mirror(example: Example) -> Example:
    """Mirrors image, boxes, frames, bitmaps and keypoints left and right."""
    width = tf.cast(tf.shape(example["image"])[1], tf.float32)

    def mirror_boxes(boxes: tf.Tensor) -> tf.Tensor:
        x0, y0, x1, y1 = tf.unstack(boxes, axis=-1)
        return tf.stack([width - x1, y0, width - x0, y1], axis=-1)

    # tf.reverse, as slicing by [::-1] takes TensorFlow thirty times as long.
    # Reversed bytes in reversed order are reversed bits: no need to unpack.
    reversed_bytes = tf.reverse(example["masks"], [-1])
    masks = tf.gather(tf.constant(_REVERSED_BITS), tf.cast(reversed_bytes, tf.int32))
    example = reflect_keypoints(example, lambda x, y: (width - x, y))
    return example | {
        "image": tf.reverse(example["image"], [1]),
        "boxes": mirror_boxes(example["boxes"]),
        "frames": mirror_boxes(example["frames"]),
        "masks": masks,
    }


def large_scale_jitter(
    example: Example, scale: tuple[float, float], side: int, seed: tf.Tensor
) -> Example:
    """Scales by a random factor and cuts a random window of at most side x side.

    Factor 1 makes the longer side equal to `side`. Objects cut by the window get the box of what
    is left of their mask; objects without a mask left are dropped.

    Source: Simple Copy-Paste (Ghiasi et al. 2021), section 3; Detectron2's ResizeScale and
    FixedSizeCrop, with `recompute_boxes`.
    """
    factor, at_y, at_x = tf.unstack(tf.random.stateless_uniform([3], fold(seed, "lsj")))
    factor = scale[0] + factor * (scale[1] - scale[0])
    old = tf.cast(tf.shape(example["image"])[:2], tf.float32)
    size = tf.maximum(tf.round(old * (factor * side / tf.reduce_max(old))), 1.0)
    window = tf.minimum(size, float(side))
    offset = tf.round(tf.stack([at_y, at_x]) * (size - window))
    return resize_crop(example, tf.cast(size, tf.int32), offset, tf.cast(window, tf.int32))


def resize_crop(example: Example, size: tf.Tensor, offset: tf.Tensor, window: tf.Tensor) -> Example:
    """Resizes to `size`, then cuts `window` (both int32 height, width) at `offset` (y, x).

    One pass: what lies outside the window is never computed.
    """
    image = example["image"]
    scale = tf.cast(size, tf.float32) / tf.cast(tf.shape(image)[:2], tf.float32)
    cut = tf.raw_ops.ScaleAndTranslate(
        images=tf.cast(image, tf.float32)[None],
        size=window,
        scale=scale,
        translation=-offset,
        kernel_type="triangle",
        antialias=True,
    )[0]
    example = scale_geometry(example, scale, offset) | {"image": to_uint8(cut)}
    return clip_objects(example, tf.cast(window, tf.float32))


def color_jitter(example: Example, strength: float, seed: tf.Tensor) -> Example:
    """Changes brightness, contrast and saturation by factors from 1 - strength to 1 + strength.

    Source: Detectron2's RandomBrightness, RandomContrast and RandomSaturation, in this order.
    """
    factors = tf.random.stateless_uniform([3], fold(seed, "color"), 1 - strength, 1 + strength)
    brightness, contrast, saturation = tf.unstack(factors)
    image = tf.cast(example["image"], tf.float32)
    image = tf.clip_by_value(image * brightness, 0.0, 255.0)
    image = _blend(tf.reduce_mean(image), image, contrast)
    gray = tf.tensordot(image, tf.constant(_LUMA), 1)[..., None]
    return example | {"image": to_uint8(_blend(gray, image, saturation))}


def keep_some(example: Example, cap: int, seed: tf.Tensor) -> tuple[Example, tf.Tensor]:
    """Keeps a random subset of at most `cap` objects in their order; counts the dropped ones."""
    n = tf.shape(example["boxes"])[0]
    kept = tf.minimum(n, cap)
    keys = tf.random.stateless_uniform([n], fold(seed, "keep"))
    rows = tf.sort(tf.math.top_k(keys, kept).indices)
    return take(example, rows), n - kept


def reflect_keypoints(example: Example, move: Callable) -> Example:
    """Moves the keypoints, if there are any, by a reflection, which swaps left and right ones.

    move: (x, y) -> (x, y).
    """
    if "keypoints" not in example:
        return example
    x, y, visibility = tf.unstack(example["keypoints"], axis=-1)
    points = tf.stack([*move(x, y), visibility], axis=-1)
    return example | {"keypoints": tf.gather(points, example["keypoint_order"], axis=1)}


def drop_outer_keypoints(example: Example, window: tf.Tensor) -> Example:
    """Takes those outside of the window (height, width) for not labelled; such ones become zeros.

    Source: Detectron2 `transform_keypoint_annotations`.
    """
    if "keypoints" not in example:
        return example
    points = example["keypoints"]
    inside = (points[..., :2] >= 0) & (points[..., :2] <= tf.cast(window, tf.float32)[::-1])
    labelled = tf.reduce_all(inside, axis=-1) & (points[..., 2] > 0)
    return example | {"keypoints": tf.where(labelled[..., None], points, 0.0)}


def unpack(masks: tf.Tensor) -> tf.Tensor:
    """Unpacks bitmaps uint8 [..., S, S // 8] to bool [..., S, S]."""
    bits = tf.bitwise.bitwise_and(masks[..., None], tf.constant(_BITS)) > 0
    shape = tf.shape(masks)
    return tf.reshape(bits, tf.concat([shape[:-1], shape[-1:] * 8], 0))


def pack(masks: tf.Tensor) -> tf.Tensor:
    """Packs bool [..., S, S] to bitmaps uint8 [..., S, S // 8]; the inverse of `unpack`."""
    shape = tf.shape(masks)
    bits = tf.reshape(masks, tf.concat([shape[:-1], [shape[-1] // 8, 8]], 0))
    return tf.reduce_sum(tf.cast(bits, tf.uint8) * tf.constant(_BITS), axis=-1)


def clip_objects(example: Example, window: tf.Tensor) -> Example:
    """Gives objects that stick out of the window (height, width) the box of what is left.

    Objects of whose mask nothing is left are dropped, keypoints outside are no longer labelled.
    window: float32 [2].
    """
    example = drop_outer_keypoints(example, window)
    frames = example["frames"]
    limit = tf.stack([window[1], window[0], window[1], window[0]])
    sticks_out = tf.reduce_any((frames < 0) | (frames > limit), axis=-1)
    bounds, visible = visible_bounds(frames, unpack(example["masks"]), window)
    # A box that is looser than the mask stays so where nothing is cut.
    boxes = tf.where(sticks_out[:, None], bounds, example["boxes"])
    boxes = tf.clip_by_value(boxes, 0.0, limit)
    has_area = tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=-1)
    rows = tf.where(has_area & (visible | ~sticks_out))[:, 0]
    return take(example | {"boxes": boxes}, rows)


def visible_bounds(
    frames: tf.Tensor, masks: tf.Tensor, window: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Bounds [n, 4] of the cells that are set and in the window, and whether there are any."""
    side = tf.shape(masks)[-1]
    step = tf.linspace(0.0, 1.0, side + 1)

    def cells(axis: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        start, end = frames[:, axis], frames[:, axis + 2]
        edges = start[:, None] + (end - start)[:, None] * step
        low, high = edges[:, :-1], edges[:, 1:]
        return low, high, (high > 0) & (low < window[1 - axis])

    x_low, x_high, x_in = cells(0)
    y_low, y_high, y_in = cells(1)
    masks = masks & x_in[:, None, :] & y_in[:, :, None]
    columns, rows = tf.reduce_any(masks, axis=1), tf.reduce_any(masks, axis=2)

    def low_end(on: tf.Tensor, low: tf.Tensor) -> tf.Tensor:
        return tf.reduce_min(tf.where(on, low, np.float32(np.inf)), axis=-1)

    def high_end(on: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
        return tf.reduce_max(tf.where(on, high, np.float32(-np.inf)), axis=-1)

    bounds = tf.stack(
        [
            low_end(columns, x_low),
            low_end(rows, y_low),
            high_end(columns, x_high),
            high_end(rows, y_high),
        ],
        axis=-1,
    )
    return bounds, tf.reduce_any(columns, axis=-1)


def scale_geometry(example: Example, scale: tf.Tensor, offset: tf.Tensor) -> Example:
    """Scales boxes and frames by (y, x) factors, then counts them from `offset` (y, x)."""
    factor, shift = tf.tile(scale[::-1], [2]), tf.tile(offset[::-1], [2])
    scaled = {key: example[key] * factor - shift for key in ("boxes", "frames")}
    if "keypoints" in example:
        xy = example["keypoints"][..., :2] * factor[:2] - shift[:2]
        scaled["keypoints"] = tf.concat([xy, example["keypoints"][..., 2:]], -1)
    return example | scaled


def take(example: Example, rows: tf.Tensor) -> Example:
    """The example with these objects only."""
    return example | {key: tf.gather(example[key], rows) for key in OBJECT_KEYS if key in example}


def _blend(base: tf.Tensor, image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(base * (1 - factor) + image * factor, 0.0, 255.0)


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Rounds a float32 picture of 0..255."""
    # Weighted means of 0..255 stay there but for float rounding: no saturation is needed.
    return tf.cast(tf.round(image), tf.uint8)
