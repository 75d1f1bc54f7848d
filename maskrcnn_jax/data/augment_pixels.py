"""Blur and JPEG compression, as other cameras and other senders of pictures make them.

Only the pixels change. The same conventions as in `augment`.
"""

import numpy as np
import tensorflow as tf
from jaxtyping import UInt8
from scipy.ndimage import gaussian_filter

from maskrcnn_jax.data.augment import Example, fold


def random_blur(
    example: Example, probability: float, sigmas: tuple[float, float], seed: tf.Tensor
) -> Example:
    """Blurs with the given probability by a Gaussian whose sigma (pixels) is drawn from a range."""
    do, at = tf.unstack(tf.random.stateless_uniform([2], fold(seed, "blur")))
    sigma = sigmas[0] + at * (sigmas[1] - sigmas[0])
    image = example["image"]
    return example | {"image": tf.cond(do < probability, lambda: blur(image, sigma), lambda: image)}


def blur(image: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Gaussian blur of a uint8 picture; the kernel ends at 3 sigma, the border is repeated."""
    # TensorFlow convolves single planes so slowly that most of the pipeline's time would go here.
    blurred = tf.numpy_function(lambda x, s: _blur(x, float(s)), [image, sigma], np.uint8)
    return tf.ensure_shape(blurred, image.shape)


def random_jpeg(
    example: Example, probability: float, qualities: tuple[int, int], seed: tf.Tensor
) -> Example:
    """Compresses with the given probability as JPEG of a quality drawn from a range, ends included.

    Colour is kept at half the resolution, as by most writers.
    """
    draws = fold(seed, "jpeg")
    do = tf.random.stateless_uniform([], draws) < probability
    low, high = qualities
    quality = tf.random.stateless_uniform([], fold(draws, "jpeg"), low, high + 1, tf.int32)
    image = example["image"]
    return example | {"image": tf.cond(do, lambda: compress(image, quality), lambda: image)}


def compress(image: tf.Tensor, quality: tf.Tensor) -> tf.Tensor:
    """A uint8 picture after it was written as JPEG of this quality (1 to 100), and read."""
    written = tf.raw_ops.EncodeJpegVariableQuality(images=image, quality=quality)
    read = tf.io.decode_jpeg(written, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(read, image.shape)


def _blur(image: UInt8[np.ndarray, "h w 3"], sigma: float) -> UInt8[np.ndarray, "h w 3"]:
    radius = int(np.ceil(3 * sigma))
    blurred = gaussian_filter(
        image, (sigma, sigma, 0), output=np.float32, mode="nearest", radius=(radius, radius, 0)
    )
    return np.round(blurred).astype(np.uint8)
