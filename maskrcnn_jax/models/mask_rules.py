"""Independent masks of each class, or masks of all classes that compete: how logits are read."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskrcnn_jax import losses


class MaskRule(NamedTuple):
    """What the logits of a mask head mean."""

    joint: bool  # all classes and the background compete in a cell, so all logits are wanted
    loss: Callable  # (logits, targets [B R T T], classes [B R], fg [B R]) -> scalar
    probabilities: Callable  # (logits, classes [B R]) -> of the rois' own classes, [B R T T]


def class_probabilities(
    logits: Float[Array, "B R T T C1"], classes: Int[Array, "B R"]
) -> Float[Array, "B R T T"]:
    """The share of each roi's own class in the softmax of its cells, background last.

    With one class beside the background, that one serves them all.
    """
    own = jnp.minimum(classes, logits.shape[-1] - 2)[..., None, None, None]
    return jnp.take_along_axis(jax.nn.softmax(logits), own, axis=-1)[..., 0]


# Independent masks, the paper's own, and those that compete as in an FCN: section 4.2, table 2b.
SIGMOID = MaskRule(
    joint=False,
    loss=lambda logits, targets, classes, fg: losses.mask_loss(logits, targets, fg),
    probabilities=lambda logits, classes: jax.nn.sigmoid(logits),
)
SOFTMAX = MaskRule(True, losses.multinomial_mask_loss, class_probabilities)
