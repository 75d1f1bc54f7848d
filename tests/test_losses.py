"""What holds for the losses beside the peers' numbers: rows that are padding, nothing to learn."""

import golden_sets
import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax import losses
from maskrcnn_jax.ops import boxes


def test_padding_rows_do_not_count():
    """Rows that are not valid may hold anything, infinities too, and have no gradient."""
    arrays = golden_sets.section(golden_sets.load("torch", "losses"), "head")
    g = {k: jnp.asarray(v) for k, v in arrays.items()}
    rois, count = g["logits"].shape
    background, pad = count - 1, ((0, 0), (0, 3))
    logits = jnp.concatenate([g["logits"], jnp.full((3, count), jnp.inf)])[None]
    deltas = jnp.concatenate([g["deltas"], jnp.full((3, 4 * background), jnp.nan)])
    deltas = deltas.reshape(1, rois + 3, background, 4)
    goals = boxes.encode_deltas(g["proposals"], g["gt_boxes"], (10.0, 10.0, 5.0, 5.0))
    valid = jnp.pad(jnp.ones((1, rois), bool), pad)
    classes = jnp.pad(g["gt_classes"][None].astype(jnp.int32), pad)
    goals, fg = jnp.pad(goals, ((0, 3), (0, 0)))[None], valid & (classes < background)
    cls, box = losses.box_losses(logits, deltas, goals, classes, fg, valid)
    np.testing.assert_allclose(cls, g["detectron2_beta0_loss_cls"], rtol=1e-5)
    np.testing.assert_allclose(box, g["detectron2_beta0_loss_box_reg"], rtol=1e-5)
    grad = jax.grad(lambda x: losses.box_losses(logits, x, goals, classes, fg, valid)[1])(deltas)
    assert (grad[0, rois:] == 0).all() and jnp.isfinite(grad).all()


def test_without_foreground_there_is_no_mask_loss():
    logits, goals = jnp.ones((1, 8, 28, 28)), jnp.zeros((1, 8, 28, 28))
    nothing = jnp.zeros((1, 8), bool)
    assert losses.mask_loss(logits, goals, nothing) == 0
    assert (jax.grad(lambda x: losses.mask_loss(x, goals, nothing))(logits) == 0).all()
