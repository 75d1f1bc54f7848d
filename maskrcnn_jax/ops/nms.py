"""Exact greedy non-maximum suppression with static shapes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.ops.boxes import pairwise_iou


def nms(
    boxes: Float[Array, "K 4"],
    scores: Float[Array, "K"],
    valid: Bool[Array, "K"],
    thresh: float | Float[Array, ""],
    classes: Int[Array, "K"] | None = None,
) -> Bool[Array, "K"]:
    """Which boxes the greedy algorithm keeps, in the order of the input.

    Best score first (of equal scores the lower index), each kept box removes the later ones whose
    IoU with it is above `thresh`; equal to it stays. With `classes`, only boxes of the same class
    remove each other. Rows that are not `valid` neither stay nor remove.

    Greedy is the one solution of keep[j] = valid[j] and no i < j with keep[i] and IoU > thresh.
    Iterating this equation settles at least one more row of the order per pass, in practice all of
    them in a few passes, and stops when nothing changes: equal to greedy for every input.
    """
    order = jnp.argsort(jnp.where(valid, scores, -jnp.inf), descending=True, stable=True)
    boxes, usable = boxes[order], valid[order]
    rank = jnp.arange(len(order))
    removes = (pairwise_iou(boxes, boxes) > thresh) & (rank[:, None] < rank)
    if classes is not None:
        sorted_classes = classes[order]
        removes &= sorted_classes[:, None] == sorted_classes

    def settle(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        new = usable & ~(removes & keep[:, None]).any(0)
        return new, (new != keep).any()

    keep, _ = jax.lax.while_loop(lambda state: state[1], settle, (usable, jnp.array(True)))
    return jnp.zeros_like(valid).at[order].set(keep)
