"""Exact greedy non-maximum suppression with static shapes, in the form that suits the device.

Accelerators compare all pairs of boxes at once. CPUs take the boxes in tiles, best first, and
compare each tile with what earlier ones kept, which is a small part of all pairs.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.ops.boxes import pairwise_iou
from maskrcnn_jax.ops.platform import by_platform

_TILE = 16  # the fastest of 8 to 256 (benchmarks/NOTES.md)


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
    """
    order = jnp.argsort(jnp.where(valid, scores, -jnp.inf), descending=True, stable=True)
    kinds = jnp.zeros(len(order), jnp.int32) if classes is None else classes[order]
    keep = by_platform(
        boxes[order],
        kinds,
        valid[order],
        jnp.asarray(thresh, jnp.float32),
        cpu=partial(keep_by_tiles, tile=_TILE),
        default=keep_of_all_pairs,
    )
    return jnp.zeros_like(valid).at[order].set(keep)


def keep_of_all_pairs(
    boxes: Float[Array, "K 4"],
    classes: Int[Array, "K"],
    valid: Bool[Array, "K"],
    thresh: Float[Array, ""],
) -> Bool[Array, "K"]:
    """Which of the boxes, best first, the greedy algorithm keeps."""
    return _settle(_removes(boxes, classes, boxes, classes, thresh), valid)


def keep_by_tiles(
    boxes: Float[Array, "K 4"],
    classes: Int[Array, "K"],
    valid: Bool[Array, "K"],
    thresh: Float[Array, ""],
    tile: int,
) -> Bool[Array, "K"]:
    """The same as `keep_of_all_pairs`, `tile` boxes at a time."""
    num = len(boxes)
    padding = -num % tile
    boxes = jnp.pad(boxes, ((0, padding), (0, 0)))
    classes, valid = jnp.pad(classes, (0, padding)), jnp.pad(valid, (0, padding))
    end = len(boxes)

    def part(x: Array, index: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, index * tile, tile)

    def one_tile(index: Array, state: tuple) -> tuple:
        kept, kept_classes, count, keep = state
        own, own_classes = part(boxes, index), part(classes, index)

        def strike_out(state: tuple) -> tuple:
            chunk, usable = state
            removes = _removes(
                part(kept, chunk), part(kept_classes, chunk), own, own_classes, thresh
            )
            is_kept = chunk * tile + jnp.arange(tile) < count
            return chunk + 1, usable & ~(removes & is_kept[:, None]).any(0)

        begin = (jnp.zeros((), jnp.int32), part(valid, index))
        _, usable = jax.lax.while_loop(lambda s: s[0] * tile < count, strike_out, begin)
        new = _settle(_removes(own, own_classes, own, own_classes, thresh), usable)
        place = jnp.where(new, count + jnp.cumsum(new) - 1, end)
        return (
            kept.at[place].set(own, mode="drop"),
            kept_classes.at[place].set(own_classes, mode="drop"),
            count + new.sum(dtype=jnp.int32),
            jax.lax.dynamic_update_slice_in_dim(keep, new, index * tile, 0),
        )

    nothing = (
        jnp.zeros_like(boxes),
        jnp.zeros_like(classes),
        jnp.zeros((), jnp.int32),
        jnp.zeros_like(valid),
    )
    return jax.lax.fori_loop(0, end // tile, one_tile, nothing)[3][:num]


def _removes(
    boxes: Array, classes: Array, others: Array, other_classes: Array, thresh: Array
) -> Bool[Array, "N M"]:
    return (pairwise_iou(boxes, others) > thresh) & (classes[:, None] == other_classes)


def _settle(removes: Bool[Array, "K K"], usable: Bool[Array, "K"]) -> Bool[Array, "K"]:
    """Greedy among boxes, best first, whose pairs are compared already.

    Greedy is the one solution of keep[j] = usable[j] and no i < j with keep[i] and removes[i, j].
    Iterating this equation settles at least one more row of the order per pass, in practice all of
    them in a few passes, and stops when nothing changes: equal to greedy for every input.
    """
    rank = jnp.arange(len(usable))
    removes &= rank[:, None] < rank

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        new = usable & ~(removes & keep[:, None]).any(0)
        return new, (new != keep).any()

    return jax.lax.while_loop(lambda state: state[1], step, (usable, jnp.array(True)))[0]
