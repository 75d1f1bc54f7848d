"""Which augmentations the config asks for, and in which order.

The user's own list (`user_transforms`) is applied as the picture is read. Then the geometry of the
picture (turn, crop, resize or large-scale jitter, flips), then objects of a second picture, which
went through the same, then what changes pixels only (colour, blur, JPEG): so pasted objects look as
if they were taken by the same camera.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from jaxtyping import Int
from ml_collections import ConfigDict

from maskrcnn_jax.data import augment, augment_geometry, augment_pixels, copy_paste
from maskrcnn_jax.data.augment import Example, fold

Read = Callable[[tf.Tensor, tf.Tensor], Example]  # of a row and a seed


def make_example(
    read: Read,
    partners: Int[np.ndarray, " n"],
    config: ConfigDict,
    row: tf.Tensor,
    seed: tf.Tensor,
    canvas: tf.Tensor,
    on_side: tf.Tensor,
) -> Example:
    """Reads and augments one example; the result fits into its canvas.

    Args:
      read: returns the example of a row as it is stored.
      partners: rows whose objects may be pasted.
      config: the group `data`.
      row, seed: which example, and its random numbers.
      canvas: (height, width), int32 [2].
      on_side: whether the pictures of this canvas are to be turned by one or three quarters.
    """
    example = _change_geometry(read(row, seed), config, seed, canvas, on_side)
    if config.copy_paste > 0 and len(partners):
        draws = fold(seed, "partner")

        def with_partner() -> Example:
            n = tf.random.stateless_uniform([], draws, maxval=len(partners), dtype=tf.int64)
            other = read(tf.constant(partners, tf.int64)[n], draws)
            other = _change_geometry(other, config, draws, canvas, on_side)
            return copy_paste.paste(example, copy_paste.random_subset(other, draws))

        do = tf.random.stateless_uniform([], fold(seed, "copy_paste")) < config.copy_paste
        example = tf.cond(do, with_partner, lambda: dict(example))
    return _change_pixels(example, config, seed)


def turns_canvas(config: ConfigDict, seed: int, step: int) -> bool:
    """Whether the pictures of this step are turned by one or three quarters.

    All of them or none, as they share a canvas, and a turned canvas is a canvas, too.
    """
    if not config.rotate90:
        return False
    draw = np.random.default_rng((seed, step, _TURN)).random()
    return bool(draw < 2 / 3 * config.rotate90)


_TURN = 2  # a stream of random numbers; 0 and 1 are the sampler's


def _change_geometry(
    example: Example, config: ConfigDict, seed: tf.Tensor, canvas: tf.Tensor, on_side: tf.Tensor
) -> Example:
    if config.rotate90 > 0:
        turns = augment_geometry.random_turns(config.rotate90, on_side, seed)
        example = augment_geometry.rotate(example, turns)
    if config.crop > 0:
        example = augment_geometry.random_crop(example, config.crop, tuple(config.crop_range), seed)
    if config.lsj_scale:
        example = augment.large_scale_jitter(
            example, tuple(config.lsj_scale), config.lsj_size, seed
        )
    else:
        # The canvas was chosen for the whole picture.
        reshaped = config.crop > 0 or config.albumentations
        example = augment.resize_shortest_edge(
            example, tuple(config.short), config.long, seed, canvas if reshaped else None
        )
    if config.flip > 0:
        example = augment.flip(example, config.flip, seed)
    if config.flip_vertical > 0:
        example = augment_geometry.flip_vertical(example, config.flip_vertical, seed)
    return example


def _change_pixels(example: Example, config: ConfigDict, seed: tf.Tensor) -> Example:
    if config.color_jitter > 0:
        example = augment.color_jitter(example, config.color_jitter, seed)
    if config.blur > 0:
        example = augment_pixels.random_blur(example, config.blur, tuple(config.blur_sigma), seed)
    if config.jpeg > 0:
        example = augment_pixels.random_jpeg(example, config.jpeg, tuple(config.jpeg_quality), seed)
    return example
