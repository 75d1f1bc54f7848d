"""The loss terms, element-wise parts and their normalisers in one place. All float32.

Source: Detectron2 `RPN.losses`, `FastRCNNOutputLayers.losses`, `mask_rcnn_loss`. The sums run over
the global batch, so that the value does not depend on the number of devices.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def smooth_l1(x: Float[Array, "*n"], beta: float) -> Float[Array, "*n"]:
    """Huber's loss divided by beta; plain |x| for beta 0. Element-wise."""
    size = jnp.abs(x)
    if beta == 0.0:
        return size
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def rpn_losses(
    logits: Float[Array, "B R"],
    deltas: Float[Array, "B R 4"],
    target_deltas: Float[Array, "B R 4"],
    fg: Bool[Array, "B R"],
    valid: Bool[Array, "B R"],
    beta: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Objectness and box terms of the sampled anchors.

    Rows are the anchors' sample slots; `valid` are the filled ones. Both sums are divided by B * R,
    the number of slots, however many are filled.
    """
    slots = logits.size
    cls = optax.sigmoid_binary_cross_entropy(logits, fg.astype(jnp.float32))
    box = smooth_l1(deltas - target_deltas, beta).sum(-1)
    return _masked_sum(cls, valid) / slots, _masked_sum(box, fg & valid) / slots


def box_losses(
    logits: Float[Array, "B R C1"],
    deltas: Float[Array, "B R C 4"],
    target_deltas: Float[Array, "B R 4"],
    classes: Int[Array, "B R"],
    fg: Bool[Array, "B R"],
    valid: Bool[Array, "B R"],
    beta: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Class and box terms of the sampled rois; background is the last class.

    The cross entropy is the mean over the valid rois; the box term sums the foreground's own class
    and is divided by all valid rois, so that the two keep their ratio when few rois are foreground.
    A class axis of length 1 in `deltas` means class-agnostic boxes.
    """
    count = jnp.maximum(valid.sum(), 1)
    cls = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    own = jnp.minimum(classes, deltas.shape[-2] - 1)
    chosen = jnp.take_along_axis(deltas, own[..., None, None], axis=-2).squeeze(-2)
    box = smooth_l1(chosen - target_deltas, beta).sum(-1)
    return _masked_sum(cls, valid) / count, _masked_sum(box, fg & valid) / count


def mask_loss(
    logits: Float[Array, "B R S S"], targets: Float[Array, "B R S S"], fg: Bool[Array, "B R"]
) -> Float[Array, ""]:
    """Binary cross entropy of the roi's own class, mean over foreground rois and cells."""
    per_roi = optax.sigmoid_binary_cross_entropy(logits, targets).mean((-2, -1))
    return _masked_sum(per_roi, fg) / jnp.maximum(fg.sum(), 1)


def multinomial_mask_loss(
    logits: Float[Array, "B R S S C1"],
    targets: Float[Array, "B R S S"],
    classes: Int[Array, "B R"],
    fg: Bool[Array, "B R"],
) -> Float[Array, ""]:
    """Cross entropy of the classes in each cell, mean over foreground rois and cells.

    A cell inside the object has the roi's class, one outside is background, the last logit: the
    loss of an FCN. With one class beside the background, all objects are of it.
    Source: arXiv 1703.06870, section 4.2, "Multinomial vs. Independent Masks".
    """
    background = logits.shape[-1] - 1
    own = jnp.minimum(classes, background - 1)[..., None, None]
    wanted = jnp.where(targets > 0.5, own, background)
    per_cell = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    return _masked_sum(per_cell.mean((-2, -1)), fg) / jnp.maximum(fg.sum(), 1)


def keypoint_loss(
    logits: Float[Array, "B R J T T"],
    cells: Int[Array, "B R J"],
    valid: Bool[Array, "B R J"],
    normalizer: float | None = None,
) -> Float[Array, ""]:
    """Cross entropy over the cells of each keypoint's heatmap, summed over the valid keypoints.

    cells: the row-major cell of the keypoint. normalizer: the sum is divided by it; None divides by
    the number of valid keypoints. Source: Detectron2 `keypoint_rcnn_loss`.
    """
    flat = logits.reshape(*cells.shape, logits.shape[-2] * logits.shape[-1])
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(flat, cells)
    count = jnp.maximum(valid.sum(), 1) if normalizer is None else normalizer
    return _masked_sum(cross_entropy, valid) / count


def _masked_sum(x: jax.Array, mask: jax.Array) -> jax.Array:
    # where, not a product: a padding row may hold inf, and inf * 0 is nan.
    return jnp.where(mask, x, 0.0).sum()
