"""Mask R-CNN with FPN, the page to read first.

    images [B, H, W, 3] uint8 -> normalise -> C2..C5 -> P2..P6                    (features)
    P2..P6 -> objectness [B, N], deltas [B, N, 4] -> top-k, NMS -> proposals [B, K]  (propose)
    P2..P5, rois [B, R] -> ROIAlign 7x7 -> class logits [B, R, C + 1], deltas [B, R, C, 4]
    P2..P5, rois [B, R] -> ROIAlign 14x14 -> mask logits [B, R, 28, 28]
    training: sampled rois -> five losses; prediction: scores, NMS -> detections -> masks

Semantics are Detectron2's (GeneralizedRCNN, RPN, StandardROIHeads). Source: arXiv 1703.06870.
Two functions with two return types, forward_train and forward_predict, each one static program.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from maskrcnn_jax import losses, targets
from maskrcnn_jax.models.fpn import FPN
from maskrcnn_jax.models.resnet import ResNet
from maskrcnn_jax.models.roi_heads import BoxHead, MaskHead
from maskrcnn_jax.models.rpn import RPNHead
from maskrcnn_jax.ops import anchors as anchor_ops
from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops.nms import nms
from maskrcnn_jax.ops.roi_align import multilevel_roi_align
from maskrcnn_jax.types import Batch, Detections, Losses, Proposals

STRIDES = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Settings:
    """The numbers of the recipe; each field is the config's `model` field of the same name."""

    num_classes: int
    channel_order: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    anchor_sizes: tuple[float | int, ...]
    anchor_ratios: tuple[float | int, ...]
    anchor_offset: float
    anchor_rounding: bool
    anchor_strides: str
    rpn_iou_thresholds: tuple[float, float]
    rpn_batch_per_image: int
    rpn_positive_fraction: float
    rpn_smooth_l1_beta: float
    rpn_loss_weight: float
    rpn_pre_nms_topk_train: int
    rpn_pre_nms_topk_test: int
    rpn_post_nms_topk_train: int
    rpn_post_nms_topk_test: int
    rpn_nms_thresh: float
    rpn_min_size: float
    roi_batch_per_image: int
    roi_positive_fraction: float
    roi_iou_thresh: float
    roi_sampling_ratio: int
    roi_aligned: bool
    roi_level_eps: float
    box_pool_size: int
    box_deltas_weights: tuple[float, float, float, float]
    box_smooth_l1_beta: float
    box_loss_weight: float
    mask_pool_size: int
    mask_loss_weight: float
    score_thresh: float
    nms_thresh: float
    box_min_size: float
    max_candidates: int
    max_detections: int


class MaskRCNN(nn.Module):
    """The network: four methods from arrays to arrays, no losses, no sampling."""

    backbone: nn.Module
    fpn: nn.Module
    rpn_head: nn.Module
    box_head: nn.Module
    mask_head: nn.Module
    settings: Settings

    def features(
        self,
        images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
        image_hw: Int[Array, "B 2"],
        train: bool,
    ) -> dict[str, Float[Array, "B h w F"]]:
        """RGB images 0..255 on a canvas (multiples of 32) to P2..P6; padding is zero once
        normalised. Float images: where the peer's resize does not round to whole grey levels."""
        s = self.settings
        x = images[..., ::-1] if s.channel_order == "bgr" else images
        x = (x.astype(jnp.float32) - np.float32(s.pixel_mean)) / np.float32(s.pixel_std)
        rows = jnp.arange(x.shape[1])[None, :, None] < image_hw[:, 0, None, None]
        cols = jnp.arange(x.shape[2])[None, None, :] < image_hw[:, 1, None, None]
        x = jnp.where((rows & cols)[..., None], x, 0.0)
        return self.fpn(self.backbone(x, train), train)

    def propose(
        self, pyramid: dict[str, Float[Array, "B h w F"]]
    ) -> tuple[Float[Array, "B N"], Float[Array, "B N 4"]]:
        """Objectness logits and deltas of every anchor, in the order of `grid_anchors`."""
        return self.rpn_head(pyramid)

    def boxes(
        self, pyramid: dict[str, Float[Array, "B h w F"]], rois: Float[Array, "B R 4"], train: bool
    ) -> tuple[Float[Array, "B R C1"], Float[Array, "B R C 4"]]:
        """Class logits (background last) and class-wise deltas of each roi."""
        pooled = self._pool(pyramid, rois, self.settings.box_pool_size)
        logits, deltas = self.box_head(pooled.reshape(-1, *pooled.shape[2:]), train)
        batch = rois.shape[:2]
        return logits.reshape(*batch, -1), deltas.reshape(*batch, *deltas.shape[1:])

    def masks(
        self,
        pyramid: dict[str, Float[Array, "B h w F"]],
        rois: Float[Array, "B R 4"],
        classes: Int[Array, "B R"],
        train: bool,
    ) -> Float[Array, "B R T T"]:
        """Mask logits of each roi for its class, in the frame of the roi."""
        pooled = self._pool(pyramid, rois, self.settings.mask_pool_size)
        flat = pooled.reshape(-1, *pooled.shape[2:])
        logits = self.mask_head(flat, classes.reshape(-1), train)
        return logits.reshape(*rois.shape[:2], *logits.shape[1:])

    def __call__(self, images: UInt8[Array, "B H W 3"], image_hw: Int[Array, "B 2"]) -> tuple:
        """Runs every part once, so that `init` creates all parameters."""
        pyramid = self.features(images, image_hw, True)
        rois = jnp.broadcast_to(jnp.array([0.0, 0.0, 16.0, 16.0]), (images.shape[0], 1, 4))
        classes = jnp.zeros(rois.shape[:2], jnp.int32)
        masks = self.masks(pyramid, rois, classes, True)
        return self.propose(pyramid), self.boxes(pyramid, rois, True), masks

    def _pool(self, pyramid: dict[str, Array], rois: Array, size: int) -> Array:
        levels = {name: pyramid[name] for name in ("p2", "p3", "p4", "p5")}
        s = self.settings
        return multilevel_roi_align(
            levels,
            rois,
            size,
            sampling_ratio=s.roi_sampling_ratio,
            aligned=s.roi_aligned,
            level_eps=s.roi_level_eps,
        )


def build(config: Any, num_classes: int) -> MaskRCNN:
    """Builds the model from the config's `model` group; the only place here that reads config."""
    dtype = jnp.dtype(config.dtype)
    backbone = ResNet(
        depth=config.depth,
        width=config.width,
        groups=config.groups,
        width_per_group=config.width_per_group,
        stride_in_1x1=config.stride_in_1x1,
        norm=config.norm,
        freeze_at=config.freeze_at,
        dtype=dtype,
        remat=config.remat,
    )
    head_norm = {"norm": config.head_norm, "dtype": dtype}
    return MaskRCNN(
        backbone=backbone,
        fpn=FPN(config.fpn_channels, **head_norm),
        rpn_head=RPNHead(
            len(config.anchor_ratios), config.rpn_channels, config.rpn_convs, dtype=dtype
        ),
        box_head=BoxHead(
            num_classes,
            config.box_fc_dim,
            config.box_fcs,
            config.box_convs,
            config.box_channels,
            **head_norm,
        ),
        mask_head=MaskHead(num_classes, config.mask_channels, config.mask_convs, **head_norm),
        settings=Settings(
            num_classes=num_classes,
            **{f: config[f] for f in Settings.__dataclass_fields__ if f != "num_classes"},
        ),
    )


def forward_train(
    model: MaskRCNN,
    variables: dict[str, Any],
    batch: Batch,
    keys: Key[Array, "B"],
    mesh: Mesh | None = None,
) -> tuple[Losses, dict[str, Array], dict[str, Any]]:
    """The five losses of a batch, with one key per image for the samplers.

    mesh: the devices that 'data' is sharded over; the per-image stages then run per device.
    Returns losses, counts for the log, and the updated `batch_stats`.
    """
    s = model.settings
    stats = variables.get("batch_stats", {})

    def run(method: Callable, *args: Any) -> Any:
        nonlocal stats
        current = {**variables, "batch_stats": stats}
        out, updates = model.apply(current, *args, True, method=method, mutable=["batch_stats"])
        stats = updates.get("batch_stats", stats)
        return out

    pyramid = run(model.features, batch.images, batch.image_hw)
    logits, deltas = model.apply(variables, pyramid, method=model.propose)
    frozen = jax.lax.stop_gradient((logits, deltas))
    stage = _per_device(lambda *args: _assign(s, *args), mesh)
    (rows, rpn_fg, rpn_valid, rpn_deltas), samples, roi_deltas, mask_goals, num_proposals = stage(
        *frozen, batch, keys
    )
    # Foreground rois fill the first slots, so that the mask head runs on these alone.
    num_fg = mask_goals.shape[1]
    class_logits, class_deltas = run(model.boxes, pyramid, samples.rois)
    fg_classes = jnp.where(samples.fg, samples.classes, 0)[:, :num_fg]
    mask_logits = run(model.masks, pyramid, samples.rois[:, :num_fg], fg_classes)

    gather = jax.vmap(lambda x, i: x[i])
    rpn_cls, rpn_box = losses.rpn_losses(
        gather(logits, rows),
        gather(deltas, rows),
        rpn_deltas,
        rpn_fg,
        rpn_valid,
        s.rpn_smooth_l1_beta,
    )
    cls, box = losses.box_losses(
        class_logits,
        class_deltas,
        roi_deltas,
        samples.classes,
        samples.fg,
        samples.valid,
        s.box_smooth_l1_beta,
    )
    mask = losses.mask_loss(mask_logits, mask_goals, samples.fg[:, :num_fg])
    terms = Losses(
        rpn_cls=s.rpn_loss_weight * rpn_cls,
        rpn_box=s.rpn_loss_weight * rpn_box,
        cls=s.box_loss_weight * cls,
        box=s.box_loss_weight * box,
        mask=s.mask_loss_weight * mask,
    )
    metrics = {
        "instances": batch.gt_valid.sum(),
        "dropped_instances": batch.num_dropped.sum(),
        "proposals_per_image": num_proposals.mean(),
        "fg_rois_per_image": samples.fg.sum() / rows.shape[0],
        "fg_anchors_per_image": rpn_fg.sum() / rows.shape[0],
    }
    return terms, metrics, stats


def forward_predict(
    model: MaskRCNN,
    variables: dict[str, Any],
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
    image_hw: Int[Array, "B 2"],
    mesh: Mesh | None = None,
) -> Detections:
    """Detections of a batch, best first, in pixels of the canvas, with masks in their boxes."""
    s = model.settings
    pyramid = model.apply(variables, images, image_hw, False, method=model.features)
    logits, deltas = model.apply(variables, pyramid, method=model.propose)
    canvas = images.shape[1:3]
    topk = (s.rpn_pre_nms_topk_test, s.rpn_post_nms_topk_test)
    propose = jax.vmap(lambda *args: _proposals(s, canvas, *topk, *args))
    proposals = _per_device(propose, mesh)(logits, deltas, image_hw)
    class_logits, class_deltas = model.apply(
        variables, pyramid, proposals.boxes, False, method=model.boxes
    )
    select = _per_device(jax.vmap(lambda *args: _detect(s, *args)), mesh)
    boxes, scores, classes, valid, num_dropped = select(
        proposals, class_logits, class_deltas, image_hw
    )
    masks = model.apply(variables, pyramid, boxes, classes, False, method=model.masks)
    return Detections(boxes, scores, classes, valid, jax.nn.sigmoid(masks), num_dropped)


def _per_device(stage: Callable, mesh: Mesh | None) -> Callable:
    """Runs a stage on each device's own images: its loops and top-k then need no collective."""
    if mesh is None or mesh.size == 1:
        return stage
    spec = P("data")
    return jax.shard_map(stage, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _assign(s: Settings, logits: Array, deltas: Array, batch: Batch, keys: Array) -> tuple:
    """All that training decides without gradient: anchors, proposals, rois, their targets."""
    canvas = batch.images.shape[1:3]
    anchors = jnp.concatenate(_anchors(s, canvas))

    def one_image(args: tuple) -> tuple:
        logits, deltas, image, key = args
        rpn_key, roi_key = jax.random.split(key)
        anchor_valid = anchor_ops.in_padded_image(
            canvas, STRIDES, len(s.anchor_ratios), image.image_hw
        )
        rpn = targets.rpn_targets(
            anchors,
            anchor_valid,
            image.gt_boxes,
            image.gt_valid,
            rpn_key,
            s.rpn_iou_thresholds,
            s.rpn_batch_per_image,
            s.rpn_positive_fraction,
        )
        topk = (s.rpn_pre_nms_topk_train, s.rpn_post_nms_topk_train)
        proposals = _proposals(s, canvas, *topk, logits, deltas, image.image_hw)
        samples = targets.sample_rois(
            proposals,
            image.gt_boxes,
            image.gt_classes,
            image.gt_valid,
            roi_key,
            s.roi_iou_thresh,
            s.roi_batch_per_image,
            s.roi_positive_fraction,
            s.num_classes,
        )
        roi_deltas = targets.box_targets(samples, image.gt_boxes, s.box_deltas_weights)
        num_fg = max(1, int(s.roi_batch_per_image * s.roi_positive_fraction))
        masks = targets.mask_targets(
            samples.rois[:num_fg],
            samples.matched_idxs[:num_fg],
            image.gt_masks,
            image.gt_frames,
            2 * s.mask_pool_size,
        )
        return rpn, samples, roi_deltas, masks, proposals.valid.sum()

    # One image after another bounds the memory of the IoU matrix and of the unpacked bitmaps.
    slim = batch._replace(images=jnp.zeros((logits.shape[0],), jnp.uint8))
    return jax.lax.map(one_image, (logits, deltas, slim, keys))


def _anchors(s: Settings, canvas: tuple[int, int]) -> list[np.ndarray]:
    return anchor_ops.grid_anchors(
        canvas,
        STRIDES,
        s.anchor_sizes,
        s.anchor_ratios,
        s.anchor_offset,
        rounded=s.anchor_rounding,
        fitted_strides=s.anchor_strides == "fitted",
    )


def _proposals(
    s: Settings,
    canvas: tuple[int, int],
    pre_topk: int,
    post_topk: int,
    logits: Float[Array, "N"],
    deltas: Float[Array, "N 4"],
    image_hw: Int[Array, "2"],
) -> Proposals:
    """The best boxes of one image: top-k and NMS per level, then the best over all levels."""
    usable = anchor_ops.in_padded_image(canvas, STRIDES, len(s.anchor_ratios), image_hw)
    logits = jnp.where(usable & jnp.isfinite(logits), logits, -jnp.inf)
    kept_boxes, kept_logits, start = [], [], 0
    for anchors in _anchors(s, canvas):
        end = start + len(anchors)
        best, rows = jax.lax.top_k(logits[start:end], min(pre_topk, len(anchors)))
        boxes = box_ops.decode_deltas(
            deltas[start:end][rows], jnp.asarray(anchors)[rows], (1.0, 1.0, 1.0, 1.0)
        )
        finite = jnp.isfinite(boxes).all(-1) & jnp.isfinite(best)
        boxes = box_ops.clip(jnp.where(finite[:, None], boxes, 0.0), image_hw)
        valid = finite & box_ops.is_nonempty(boxes) & _is_as_large(boxes, s.rpn_min_size)
        keep = nms(boxes, best, valid, s.rpn_nms_thresh)
        kept_boxes.append(boxes)
        kept_logits.append(jnp.where(keep, best, -jnp.inf))
        start = end
    boxes, logits = jnp.concatenate(kept_boxes), jnp.concatenate(kept_logits)
    logits, rows = jax.lax.top_k(logits, min(post_topk, len(logits)))
    return Proposals(boxes[rows], logits, jnp.isfinite(logits))


def _is_as_large(boxes: Float[Array, "n 4"], min_size: float) -> Bool[Array, "n"]:
    """Both sides are `min_size` or more. Source: torchvision `remove_small_boxes`."""
    return (boxes[:, 2:] - boxes[:, :2] >= min_size).all(-1)


def _detect(
    s: Settings,
    proposals: Proposals,
    class_logits: Float[Array, "K C1"],
    class_deltas: Float[Array, "K C 4"],
    image_hw: Int[Array, "2"],
) -> tuple:
    """Scores, class-wise NMS and the best detections of one image.

    Source: Detectron2 `fast_rcnn_inference_single_image`.
    """
    scores = jax.nn.softmax(class_logits)[:, :-1]
    num_classes = scores.shape[1]
    sound = proposals.valid & jnp.isfinite(class_logits).all(-1)
    candidate = (scores > s.score_thresh) & sound[:, None]
    flat = jnp.where(candidate, scores, -1.0).reshape(-1)
    best, index = jax.lax.top_k(flat, min(s.max_candidates, flat.size))
    rows, classes = index // num_classes, (index % num_classes).astype(jnp.int32)
    boxes = box_ops.decode_deltas(
        class_deltas[rows, classes], proposals.boxes[rows], s.box_deltas_weights
    )
    valid = (best > 0) & jnp.isfinite(boxes).all(-1)
    boxes = box_ops.clip(jnp.where(valid[:, None], boxes, 0.0), image_hw)
    valid &= _is_as_large(boxes, s.box_min_size)
    keep = nms(boxes, best, valid, s.nms_thresh, classes)
    num_dropped = jnp.maximum(candidate.sum() - len(best), 0)
    scores, final = jax.lax.top_k(jnp.where(keep, best, -1.0), min(s.max_detections, len(best)))
    valid = scores > 0
    scores = jnp.where(valid, scores, 0.0)
    return boxes[final], scores, classes[final], valid, num_dropped.astype(jnp.int32)
