"""Blur and JPEG compression, as other cameras and other senders of pictures make them.

Only the pixels change. The same conventions as in `augment`.
"""

import tensorflow as tf

from maskrcnn_jax.data.augment import Example, fold, to_uint8


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
    radius = tf.cast(tf.math.ceil(3 * sigma), tf.int32)
    at = tf.cast(tf.range(-radius, radius + 1), tf.float32)
    weights = tf.exp(-0.5 * (at / sigma) ** 2)
    weights /= tf.reduce_sum(weights)
    blurred = tf.cast(image, tf.float32)
    for axis in (0, 1):
        blurred = _along(blurred, weights, radius, axis)
    return to_uint8(blurred)


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


def _along(image: tf.Tensor, weights: tf.Tensor, radius: tf.Tensor, axis: int) -> tf.Tensor:
    """The float32 picture, filtered along one axis."""
    length = tf.shape(image)[axis]
    lines = tf.clip_by_value(tf.range(-radius, length + radius), 0, length - 1)
    padded = tf.gather(image, lines, axis=axis)
    # Channels as a batch of one: a plain convolution is several times faster than a depthwise one.
    planes = tf.transpose(padded, [2, 0, 1])[..., None]
    kernel = tf.reshape(weights, [-1, 1, 1, 1] if axis == 0 else [1, -1, 1, 1])
    filtered = tf.nn.conv2d(planes, kernel, strides=1, padding="VALID")
    return tf.ensure_shape(tf.transpose(filtered[..., 0], [1, 2, 0]), [None, None, 3])
