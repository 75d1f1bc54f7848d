"""Loss terms and their gradients against Detectron2's, with given labels."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax import losses
from maskrcnn_jax.ops import boxes

with np.load(Path(__file__).parent / "golden" / "losses.npz") as file:
    GOLDEN = {name: jnp.asarray(file[name]) for name in file.files}

BETAS = {"0": 0.0, "0.111": 1 / 9, "1": 1.0}
CLOSE = {"rtol": 1e-5, "atol": 1e-8}


@pytest.mark.parametrize("beta", list(BETAS))
def test_rpn(beta):
    g = {k.removeprefix("rpn/"): v for k, v in GOLDEN.items() if k.startswith("rpn/")}
    goals = boxes.encode_deltas(
        jnp.stack([g["anchors"]] * 2), g["matched_gt_boxes"], (1.0, 1.0, 1.0, 1.0)
    )
    fg, valid = g["labels"] == 1, g["labels"] >= 0
    # Ours divide by the sample slots; here every anchor has one, there are 256 an image.
    scale = g["labels"].size / (256 * 2)

    def terms(logits, deltas):
        return [
            scale * x for x in losses.rpn_losses(logits, deltas, goals, fg, valid, beta=BETAS[beta])
        ]

    cls, box = terms(g["objectness_logits"], g["deltas"])
    np.testing.assert_allclose(cls, g[f"detectron2_beta{beta}_loss_rpn_cls"], **CLOSE)
    np.testing.assert_allclose(box, g[f"detectron2_beta{beta}_loss_rpn_loc"], **CLOSE)
    grads = jax.grad(lambda *x: sum(terms(*x)), (0, 1))(g["objectness_logits"], g["deltas"])
    np.testing.assert_allclose(grads[0], g["detectron2_grad_objectness"], **CLOSE)
    np.testing.assert_allclose(grads[1], g[f"detectron2_beta{beta}_grad_deltas"], **CLOSE)


@pytest.mark.parametrize("beta", [0, 1])
def test_box_head(beta):
    g = {k.removeprefix("head/"): v for k, v in GOLDEN.items() if k.startswith("head/")}
    goals = boxes.encode_deltas(g["proposals"], g["gt_boxes"], (10.0, 10.0, 5.0, 5.0))[None]
    classes = g["gt_classes"][None].astype(jnp.int32)
    fg, valid = classes < 5, jnp.ones_like(classes, bool)

    def terms(logits, deltas):
        deltas = deltas.reshape(1, 64, -1, 4)
        return losses.box_losses(logits[None], deltas, goals, classes, fg, valid, float(beta))

    cls, box = terms(g["logits"], g["deltas"])
    np.testing.assert_allclose(cls, g["detectron2_beta0_loss_cls"], **CLOSE)
    np.testing.assert_allclose(box, g[f"detectron2_beta{beta}_loss_box_reg"], **CLOSE)
    grads = jax.grad(lambda *x: sum(terms(*x)), (0, 1))(g["logits"], g["deltas"])
    np.testing.assert_allclose(grads[0], g["detectron2_grad_logits"], **CLOSE)
    np.testing.assert_allclose(grads[1], g[f"detectron2_beta{beta}_grad_deltas"], **CLOSE)
    if beta == 0:
        agnostic = terms(g["logits"], g["deltas_agnostic"])[1]
        np.testing.assert_allclose(agnostic, g["detectron2_agnostic_beta0_loss_box_reg"], **CLOSE)


def test_padding_rows_do_not_count():
    """Rows that are not valid may hold anything, infinities too."""
    g = {k.removeprefix("head/"): v for k, v in GOLDEN.items() if k.startswith("head/")}
    classes = g["gt_classes"][None].astype(jnp.int32)
    logits = jnp.concatenate([g["logits"], jnp.full((3, 6), jnp.inf)])[None]
    deltas = jnp.concatenate([g["deltas"], jnp.full((3, 20), jnp.nan)]).reshape(1, 67, 5, 4)
    goals = boxes.encode_deltas(g["proposals"], g["gt_boxes"], (10.0, 10.0, 5.0, 5.0))
    pad = ((0, 0), (0, 3))
    valid = jnp.pad(jnp.ones((1, 64), bool), pad)
    classes, goals = jnp.pad(classes, pad), jnp.pad(goals, ((0, 3), (0, 0)))[None]
    cls, box = losses.box_losses(logits, deltas, goals, classes, valid & (classes < 5), valid)
    np.testing.assert_allclose(cls, g["detectron2_beta0_loss_cls"], **CLOSE)
    np.testing.assert_allclose(box, g["detectron2_beta0_loss_box_reg"], **CLOSE)


def test_mask():
    g = {k.removeprefix("mask/"): v for k, v in GOLDEN.items() if k.startswith("mask/")}
    rows = jnp.arange(8)
    goals = g["targets"].astype(jnp.float32)[None]

    def term(logits):
        return losses.mask_loss(logits[rows, g["gt_classes"]][None], goals, jnp.ones((1, 8), bool))

    np.testing.assert_allclose(term(g["logits"]), g["detectron2_loss_mask"], **CLOSE)
    grad = jax.grad(term)(g["logits"])
    np.testing.assert_allclose(grad, g["detectron2_grad_logits"], **CLOSE)
    nothing = losses.mask_loss(jnp.ones((1, 8, 28, 28)), goals, jnp.zeros((1, 8), bool))
    assert nothing == 0
