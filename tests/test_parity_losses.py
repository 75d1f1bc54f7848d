"""Losses and their gradients against every number of the golden file, labels given.

torchvision's numbers come from the same element-wise terms under its own normalisers.
"""

import re

import golden_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax import losses
from maskrcnn_jax.ops import boxes, masks

pytestmark = pytest.mark.optimized

UNIT, HEAD = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)
TORCHVISION_BETA = 1 / 9
INPUTS = (
    "image_size|anchors|level_counts|labels|matched_gt_boxes|objectness_logits|deltas|boxes"
    "|batch_size_per_image|proposals|gt_boxes|gt_classes|rois_per_image|logits|deltas_agnostic"
    "|gt_masks|bbox_reg_weights"
)


def beta_of(output):
    """0.111 in a name stands for 1/9."""
    found = re.search(r"_beta([\d.]+)_", output)
    value = float(found[1]) if found else 0.0
    return 1 / 9 if value == 0.111 else value


def rpn(g, output):
    goals = boxes.encode_deltas(
        jnp.broadcast_to(g["anchors"], g["matched_gt_boxes"].shape), g["matched_gt_boxes"], UNIT
    )
    fg, valid = g["labels"] == 1, g["labels"] >= 0
    # Ours divide by the sample slots; here every anchor has one.
    slots, images = g["labels"].size, len(g["labels"])
    if output.startswith("torchvision"):
        scale, beta = slots / valid.sum(), TORCHVISION_BETA
    else:
        scale, beta = slots / (int(g["batch_size_per_image"]) * images), beta_of(output)

    def terms(logits, deltas):
        return [scale * x for x in losses.rpn_losses(logits, deltas, goals, fg, valid, beta=beta)]

    return pick(terms, (g["objectness_logits"], g["deltas"]), output)


def head(g, output):
    goals = boxes.encode_deltas(g["proposals"], g["gt_boxes"], HEAD)[None]
    background = g["logits"].shape[1] - 1
    classes = g["gt_classes"][None].astype(jnp.int32)
    if "all_background" in output:
        classes = jnp.full_like(classes, background)
    fg, valid = classes < background, jnp.ones_like(classes, bool)
    beta = TORCHVISION_BETA if output.startswith("torchvision") else beta_of(output)

    def terms(logits, deltas):
        deltas = deltas.reshape(*classes.shape, -1, 4)
        return losses.box_losses(logits[None], deltas, goals, classes, fg, valid, beta)

    deltas = g["deltas_agnostic" if "agnostic" in output else "deltas"]
    return pick(terms, (g["logits"], deltas), output)


def mask(g, output):
    logits, classes = g["logits"], g["gt_classes"]
    size = logits.shape[-1]
    if "agnostic" in output:
        logits, classes = logits[:, :1], jnp.zeros_like(classes)
    height, width = g["gt_masks"].shape[1:]
    frames = jnp.tile(jnp.float32(jnp.array([0, 0, width, height])), (len(classes), 1))
    bitmaps = g["gt_masks"].astype(jnp.float32)
    aligned = not output.startswith("torchvision")
    goals = masks.crop_masks(bitmaps, frames, g["boxes"], size, aligned)
    if aligned:
        goals = (goals >= 0.5).astype(jnp.float32)
    if output == "targets":
        return goals.astype(bool)
    fg = jnp.ones((1, len(classes)), bool)

    def terms(logits):
        own = logits[jnp.arange(len(classes)), classes]
        return (losses.mask_loss(own[None], goals[None], fg),)

    return pick(terms, (logits,), output)


# What a name says -> the term, or the argument of the gradient.
TERMS = {"rpn_cls": 0, "objectness": 0, "cls": 0, "classifier": 0, "mask": 0}
TERMS |= {"rpn_loc": 1, "rpn_box_reg": 1, "box_reg": 1}
ARGUMENTS = {"objectness": 0, "logits": 0, "deltas": 1}


def pick(terms, arguments, output):
    """The term that `output` names, or the gradient of the sum of all with respect to one."""
    what, which = re.search(r"(loss|grad)_(\w+)$", output).groups()
    if what == "loss":
        return jax.jit(terms)(*arguments)[TERMS[which]]
    return jax.jit(jax.grad(lambda *x: sum(terms(*x)), ARGUMENTS[which]))(*arguments)


@golden_sets.each("torch", "losses", inputs=INPUTS)
def test_losses(name):
    case, _, output = name.rpartition("/")
    golden = golden_sets.load("torch", "losses")
    arrays = {k: jnp.asarray(v) for k, v in golden_sets.section(golden, case).items()}
    ours = {"rpn": rpn, "head": head, "mask": mask}[case](arrays, output)
    if output == "targets":
        np.testing.assert_array_equal(ours, golden[name])
    else:
        np.testing.assert_allclose(ours, golden[name], rtol=1e-5, atol=1e-8)
