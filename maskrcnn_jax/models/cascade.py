"""Cascade R-CNN: a row of box heads, each of which starts from the boxes of the one before it.

    proposals -> head 1 -> boxes -> head 2 -> boxes -> head 3 -> boxes
    training: each stage matches its rois anew, with a higher IoU, and has its own two losses
    prediction: boxes of the last stage, the mean of the scores of all

All else is Mask R-CNN's, masks included: they train on the sampled proposals, as the first stage
does, and are predicted in the final boxes. Semantics are Detectron2's (`CascadeROIHeads`).
Source: arXiv 1712.00726.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from maskrcnn_jax import losses, selection, targets
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.models.mask_rcnn import MaskRCNN, per_device
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.settings import Settings
from maskrcnn_jax.types import Batch, Proposals, Samples


class CascadeRCNN(MaskRCNN):
    """Mask R-CNN with one box head per stage, of class-agnostic boxes."""

    box_head: tuple[nn.Module, ...]

    def stage(
        self,
        stage: int,
        pyramid: dict[str, Float[Array, "B h w F"]],
        rois: Float[Array, "B R 4"],
        train: bool,
    ) -> tuple[Float[Array, "B R C1"], Float[Array, "B R 4"]]:
        """Class logits (background last) and deltas of each roi by the head of a stage."""
        pooled = self._pool(pyramid, rois, self.settings.box_pool_size, train)
        # The losses of the stages are added; the features shall follow their mean.
        pooled = _scale_gradient(pooled, 1 / len(self.box_head))
        logits, deltas = self.box_head[stage](pooled, train)
        return logits.reshape(*rois.shape[:2], -1), deltas.reshape(rois.shape)

    def __call__(self, images: UInt8[Array, "B H W 3"], image_hw: Int[Array, "B 2"]) -> tuple:
        """Runs every part once, so that `init` creates all parameters."""
        pyramid = self.features(images, image_hw, True)
        rois = jnp.broadcast_to(jnp.array([0.0, 0.0, 16.0, 16.0]), (images.shape[0], 1, 4))
        classes = jnp.zeros(rois.shape[:2], jnp.int32)
        masks = None if self.mask_head is None else self.masks(pyramid, rois, classes, None, True)
        stages = [self.stage(k, pyramid, rois, True) for k in range(len(self.box_head))]
        return self.propose(pyramid), stages, masks, self.keypoints(pyramid, rois, True)


def build(config: Any, num_classes: int) -> CascadeRCNN:
    """Builds the model from the config's `model` group, with a stage for each of cascade_ious."""
    plain = mask_rcnn.build(config, num_classes)
    own = [f.name for f in dataclasses.fields(MaskRCNN) if f.name not in ("parent", "name")]
    parts = {name: getattr(plain, name) for name in own}
    stages = tuple(plain.box_head.clone() for _ in config.cascade_ious)
    return CascadeRCNN(**{**parts, "box_head": stages})


def stage_weights(s: Settings, stage: int) -> tuple[float, ...]:
    """Weights of the deltas: boxes get better from stage to stage, and so deltas smaller."""
    return tuple((stage + 1) * weight for weight in s.box_deltas_weights)


def refine(
    s: Settings,
    stage: int,
    rois: Float[Array, "R 4"],
    deltas: Float[Array, "R 4"],
    window: Float[Array, "4"],
) -> tuple[Float[Array, "R 4"], Bool[Array, "R"]]:
    """The boxes that a stage makes of its rois, inside the window, and which are finite.

    Rows that are not finite become zeros. No gradient passes.
    """
    boxes = box_ops.decode_deltas(deltas, rois, stage_weights(s, stage), s.delta_clamp or math.inf)
    boxes = jax.lax.stop_gradient(boxes)
    finite = jnp.isfinite(boxes).all(-1)
    return box_ops.clip_to(jnp.where(finite[:, None], boxes, 0.0), window), finite


def train_boxes(
    model: CascadeRCNN,
    run: Callable,
    pyramid: dict[str, Array],
    samples: Samples,
    roi_deltas: Float[Array, "B R 4"],
    batch: Batch,
    mesh: Mesh | None,
) -> tuple[Array, Array, dict[str, Array]]:
    """`mask_rcnn.train_boxes` of the cascade: sums over the stages; the notes tell them one by one,
    as `cls_stage1`, ..."""
    s = model.settings
    terms, notes = [], {}
    for k in range(len(model.box_head)):
        if k > 0:
            again = per_device(jax.vmap(partial(_rematch, s, k)), mesh)
            samples, roi_deltas = again(samples, deltas, batch)
        logits, deltas = run(partial(_call_stage, k), pyramid, samples.rois)
        cls, box = losses.box_losses(
            logits,
            deltas[:, :, None],
            roi_deltas,
            samples.classes,
            samples.fg,
            samples.valid,
            s.box_smooth_l1_beta,
        )
        terms.append((cls, box))
        notes |= {
            f"cls_stage{k + 1}": cls,
            f"box_stage{k + 1}": box,
            f"fg_rois_stage{k + 1}": samples.fg.sum() / len(samples.fg),
        }
    return sum(cls for cls, _ in terms), sum(box for _, box in terms), notes


def _rematch(
    s: Settings, stage: int, samples: Samples, deltas: Float[Array, "R 4"], image: Batch
) -> tuple[Samples, Float[Array, "R 4"]]:
    """The rois of a stage of one image, from the boxes of the stage before, with their targets."""
    window = selection.picture_window(s, image.image_hw)
    rois, finite = refine(s, stage - 1, samples.rois, deltas, window)
    gt_boxes = selection.to_convention(s, image.gt_boxes)
    samples = targets.match_rois(
        rois,
        samples.valid & finite & box_ops.is_nonempty(rois),
        gt_boxes,
        image.gt_classes,
        image.gt_valid,
        s.cascade_ious[stage],
        s.num_classes,
    )
    return samples, targets.box_targets(samples, gt_boxes, stage_weights(s, stage))


def predict_boxes(
    model: CascadeRCNN,
    variables: dict[str, Any],
    pyramid: dict[str, Array],
    proposals: Proposals,
    window: Float[Array, "B 4"],
    mesh: Mesh | None,
) -> tuple[Array, ...]:
    """`mask_rcnn.predict_boxes` of the cascade."""
    s = model.settings
    count = len(model.box_head)
    rois, sound, scores = proposals.boxes, proposals.valid, 0.0
    for k in range(count):
        if k > 0:
            rois, finite = jax.vmap(partial(refine, s, k - 1))(rois, deltas, window)
            sound &= finite
        logits, deltas = model.apply(
            variables, pyramid, rois, False, method=partial(_call_stage, k)
        )
        sound &= jnp.isfinite(logits).all(-1)
        scores += jax.nn.softmax(logits) / count
    select = partial(selection.detect_scored, s, weights=stage_weights(s, count - 1))
    select = per_device(jax.vmap(select), mesh)
    return select(rois, sound, scores, deltas[:, :, None], window)


def _call_stage(stage: int, model: CascadeRCNN, *args: Any) -> tuple[Array, Array]:
    return model.stage(stage, *args)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _scale_gradient(x: Array, factor: float) -> Array:
    """x; its gradient is multiplied by the factor."""
    return x


_scale_gradient.defvjp(lambda x, factor: (x, None), lambda factor, _, grad: (grad * factor,))
