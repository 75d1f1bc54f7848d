"""Assigning candidates (anchors, proposals) to ground truth, and sampling among them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def match(
    iou: Float[Array, "G N"],
    gt_valid: Bool[Array, "G"],
    thresholds: tuple[float, ...],
    labels: tuple[int, ...],
    allow_low_quality: bool,
) -> tuple[Int[Array, "N"], Int[Array, "N"]]:
    """Gives each candidate the ground truth that it overlaps most, and a label.

    iou: of each ground truth with each candidate; G is at least 1.
    thresholds: ascending; a candidate whose best IoU v has thresholds[i - 1] <= v < thresholds[i]
      gets labels[i], so there is one label more than thresholds.
    allow_low_quality: candidates that are the best of any ground truth, ties included, get label 1
      whatever their IoU; they stay with the ground truth that they overlap most.

    Returns matched_idxs [N] and labels [N], int32. Without valid ground truth: 0 and labels[0].
    A valid ground truth that overlaps nothing makes every candidate 'its best': drop boxes without
    area before. Source: arXiv 1506.01497 section 3.1.2; Detectron2 `Matcher`.
    """
    # The best of a row is compared with the row: were the IoU computed again in another fusion, it
    # could be rounded apart and a ground truth lose its only anchor.
    iou = jax.lax.optimization_barrier(iou)
    iou = jnp.where(gt_valid[:, None], iou, -1.0)
    matched = jnp.argmax(iou, 0).astype(jnp.int32)
    quality = iou.max(0)
    out = jnp.full(quality.shape, labels[0], jnp.int32)
    for threshold, label in zip(thresholds, labels[1:], strict=True):
        out = jnp.where(quality >= threshold, label, out)
    if allow_low_quality:
        best = (iou == iou.max(1, keepdims=True)) & gt_valid[:, None]
        out = jnp.where(best.any(0), 1, out)
    return matched, out


def sample(
    labels: Int[Array, "N"], key: Key[Array, ""], num: int, positive_fraction: float
) -> tuple[Int[Array, "R"], Bool[Array, "R"], Bool[Array, "R"]]:
    """Draws `num` candidates uniformly at random, without replacement, by label 1, 0 or -1.

    As many positives (1) as there are, at most int(num * positive_fraction); negatives (0) fill the
    rest as far as they go; -1 is never drawn.

    Returns rows idxs [num], fg [num], valid [num]: positives first, then negatives, then padding
    (row 0, not valid). Source: Detectron2 `subsample_labels`.
    """
    rank = jax.random.uniform(key, labels.shape)
    max_fg = min(int(num * positive_fraction), len(labels))
    fg_rank, fg_rows = jax.lax.top_k(jnp.where(labels == 1, rank, -1.0), max_fg)
    bg_rank, bg_rows = jax.lax.top_k(jnp.where(labels == 0, rank, -1.0), min(num, len(labels)))
    num_fg, num_bg = (fg_rank >= 0).sum(), (bg_rank >= 0).sum()

    slot = jnp.arange(num)
    fg = slot < num_fg
    valid = slot < num_fg + num_bg
    pool = jnp.concatenate([fg_rows, bg_rows])
    position = jnp.where(fg, slot, max_fg + slot - num_fg)
    idxs = jnp.where(valid, pool[jnp.where(valid, position, 0)], 0)
    return idxs.astype(jnp.int32), fg, valid
