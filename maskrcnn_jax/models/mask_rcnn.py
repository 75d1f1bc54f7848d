"""Mask R-CNN with FPN, the page to read first.

    images [B, H, W, 3] uint8 -> normalise -> C2..C5 -> P2..P6                    (features)
    P2..P6 -> objectness [B, N], deltas [B, N, 4] -> top-k, NMS -> proposals [B, K]  (propose)
    P2..P5, rois [B, R] -> ROIAlign 7x7 -> class logits [B, R, C + 1], deltas [B, R, C, 4]
    P2..P5, rois [B, R] -> ROIAlign 14x14 -> mask logits [B, R, 28, 28]
    and, on demand, rois -> ROIAlign 14x14 -> heatmaps of J keypoints [B, R, J, 56, 56]
    training: sampled rois -> losses; prediction: scores, NMS -> detections -> masks

Semantics are Detectron2's (GeneralizedRCNN, RPN, StandardROIHeads). Source: arXiv 1703.06870.
Two functions with two return types, forward_train and forward_predict, each one static program;
forward_boxes and forward_masks are the halves of the latter, for masks of boxes from elsewhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from maskrcnn_jax import losses, selection
from maskrcnn_jax.assignment import assign
from maskrcnn_jax.models import trunk
from maskrcnn_jax.models.keypoints import UPSCALE, KeypointHead
from maskrcnn_jax.models.mask_rules import SIGMOID, SOFTMAX, MaskRule
from maskrcnn_jax.models.roi_heads import MaskHead, MaskMLP
from maskrcnn_jax.models.rpn import RPNHead
from maskrcnn_jax.ops.crop_resize import multilevel_crop_resize
from maskrcnn_jax.ops.leading_rows import leading_rows
from maskrcnn_jax.ops.platform import platform
from maskrcnn_jax.ops.pooling import largest
from maskrcnn_jax.ops.roi_align import multilevel_roi_align, multilevel_roi_align_max
from maskrcnn_jax.ops.roi_pool import multilevel_roi_pool
from maskrcnn_jax.ops.roi_warp import multilevel_roi_warp
from maskrcnn_jax.settings import Settings, anchors_per_cell, from_config
from maskrcnn_jax.types import Batch, Detections, Losses, Proposals, Samples


class MaskRCNN(nn.Module):
    """The network: methods from arrays to arrays, no losses, no sampling."""

    backbone: nn.Module
    fpn: nn.Module
    shared_head: nn.Module
    rpn_head: nn.Module
    box_head: nn.Module
    mask_head: nn.Module | None  # None: Faster R-CNN
    mask_rule: MaskRule
    pool: Callable  # (P2..P5, rois, size) -> [B, R, size, size, F]
    settings: Settings
    keypoint_head: nn.Module | None = None  # None: no keypoints
    every_row: bool = False  # the mask head never leaves out rows that are not wanted

    def features(
        self,
        images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
        image_hw: Int[Array, "B 2"],
        train: bool,
    ) -> dict[str, Float[Array, "B h w F"]]:
        """RGB images 0..255 on a canvas (multiples of 32) to P2..P6; padding is zero once
        normalised, or stays black. Float images: where the peer's resize does not round to whole
        grey levels."""
        s = self.settings
        x = images[..., ::-1] if s.channel_order == "bgr" else images
        x = (x.astype(jnp.float32) - np.float32(s.pixel_mean)) / np.float32(s.pixel_std)
        rows = jnp.arange(x.shape[1])[None, :, None] < image_hw[:, 0, None, None]
        cols = jnp.arange(x.shape[2])[None, None, :] < image_hw[:, 1, None, None]
        if s.pad_value == "mean":
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
        """Class logits (background last) and deltas of each roi, class-wise or one for all."""
        pooled = self._pool(pyramid, rois, self.settings.box_pool_size, train)
        logits, deltas = self.box_head(pooled, train)
        batch = rois.shape[:2]
        return logits.reshape(*batch, -1), deltas.reshape(*batch, *deltas.shape[1:])

    def masks(
        self,
        pyramid: dict[str, Float[Array, "B h w F"]],
        rois: Float[Array, "B R 4"],
        classes: Int[Array, "B R"],
        count: Int[Array, ""] | None,
        train: bool,
    ) -> Float[Array, "B R T T"] | Float[Array, "B R T T C1"]:
        """Mask logits of each roi for its class, in the frame of the roi; where masks are
        multinomial, for every class and the background.

        count: only so many rois of each image are wanted (see `_wanted_rows`); None: all.
        """
        pooled = self._pool(pyramid, rois, self.settings.mask_pool_size, train)
        wanted = None if self.mask_rule.joint else classes
        if count is not None:
            head, own = self.mask_head.unbind()
            rows = (pooled.reshape(*rois.shape[:2], *pooled.shape[1:]), wanted)
            return leading_rows(partial(_apply_to_rows, head, train), own, rows, count)
        logits = self.mask_head(pooled, None if wanted is None else wanted.reshape(-1), train)
        return logits.reshape(*rois.shape[:2], *logits.shape[1:])

    def keypoints(
        self, pyramid: dict[str, Float[Array, "B h w F"]], rois: Float[Array, "B R 4"], train: bool
    ) -> Float[Array, "B R J T T"]:
        """Heatmap logits of each roi's keypoints, in the frame of the roi; J may be 0."""
        if self.keypoint_head is None:
            return jnp.zeros((*rois.shape[:2], 0, 1, 1))
        pooled = self._pool(pyramid, rois, self.settings.keypoint_pool_size, train)
        logits = self.keypoint_head(pooled, train)
        return logits.reshape(*rois.shape[:2], *logits.shape[1:])

    def __call__(self, images: UInt8[Array, "B H W 3"], image_hw: Int[Array, "B 2"]) -> tuple:
        """Runs every part once, so that `init` creates all parameters."""
        pyramid = self.features(images, image_hw, True)
        rois = jnp.broadcast_to(jnp.array([0.0, 0.0, 16.0, 16.0]), (images.shape[0], 1, 4))
        classes = jnp.zeros(rois.shape[:2], jnp.int32)
        masks = None if self.mask_head is None else self.masks(pyramid, rois, classes, None, True)
        keypoints = self.keypoints(pyramid, rois, True)
        return self.propose(pyramid), self.boxes(pyramid, rois, True), masks, keypoints

    def _pool(self, pyramid: dict[str, Array], rois: Array, size: int, train: bool) -> Array:
        """[B * R, S, S, F], behind what the heads share."""
        levels = {name: pyramid[name] for name in self.settings.roi_levels}
        pooled = self.pool(levels, rois, size)
        return self.shared_head(pooled.reshape(-1, *pooled.shape[2:]), train)


def build(config: Any, num_classes: int) -> MaskRCNN:
    """Builds the model from the config's `model` group; the only place here that reads config."""
    dtype = jnp.dtype(config.dtype)
    parts = trunk.build(config, dtype)
    settings = from_config(config, num_classes, **parts.structure)
    head_norm = {"norm": config.head_norm, "dtype": dtype}
    mask_rule = {"sigmoid": SIGMOID, "softmax": SOFTMAX}[config.mask_loss]
    # The background of multinomial masks is one class more.
    num_masks = (1 if config.class_agnostic_masks else num_classes) + mask_rule.joint
    mask_heads = {
        "fcn": MaskHead(num_masks, config.mask_channels, config.mask_convs, **head_norm),
        "mlp": MaskMLP(num_masks, config.mask_fc_dim, config.mask_fcs, dtype),
        "none": None,
    }
    return MaskRCNN(
        backbone=parts.backbone,
        fpn=parts.fpn,
        shared_head=parts.shared_head,
        rpn_head=RPNHead(
            anchors_per_cell(settings), config.rpn_channels, config.rpn_convs, dtype=dtype
        ),
        box_head=parts.box_head(
            num_classes,
            config.box_fc_dim,
            config.box_fcs,
            config.box_convs,
            config.box_channels,
            config.class_agnostic_boxes,
            **head_norm,
        ),
        mask_head=mask_heads[config.mask_branch],
        mask_rule=mask_rule,
        pool=_pooling(config),
        settings=settings,
        keypoint_head=KeypointHead(
            config.keypoints, config.keypoint_channels, config.keypoint_convs, **head_norm
        )
        if config.keypoints
        else None,
    )


def _pooling(config: Any) -> Callable:
    """The `pool` of a MaskRCNN, by the config's `model` group."""
    level_eps, samples = config.roi_level_eps, config.roi_sampling_ratio
    align = {"sampling_ratio": samples, "aligned": config.roi_aligned, "level_eps": level_eps}
    return {
        "align": partial(multilevel_roi_align, **align),
        "align_max": partial(multilevel_roi_align_max, **align),
        "crop": multilevel_crop_resize,
        "pool": partial(multilevel_roi_pool, level_eps=level_eps),
        "warp": partial(multilevel_roi_warp, reduce=jnp.mean, level_eps=level_eps),
        "warp_max": partial(multilevel_roi_warp, reduce=largest, level_eps=level_eps),
    }[config.roi_pool]


def train_boxes(
    model: MaskRCNN,
    run: Callable,
    pyramid: dict[str, Array],
    samples: Samples,
    roi_deltas: Float[Array, "B R 4"],
    batch: Batch,
    mesh: Mesh | None,
) -> tuple[Array, Array, dict[str, Array]]:
    """The class and the box term of the sampled rois, and what the log shall tell of them.

    run: (method of the model, arguments) -> its result, in training mode.
    """
    class_logits, class_deltas = run(model.boxes, pyramid, samples.rois)
    beta = model.settings.box_smooth_l1_beta
    found = (samples.classes, samples.fg, samples.valid)
    return *losses.box_losses(class_logits, class_deltas, roi_deltas, *found, beta), {}


def predict_boxes(
    model: MaskRCNN,
    variables: dict[str, Any],
    pyramid: dict[str, Array],
    proposals: Proposals,
    window: Float[Array, "B 4"],
    mesh: Mesh | None,
) -> tuple[Array, ...]:
    """Boxes, scores, classes, valid of the detections, and the candidates beyond the cap."""
    class_logits, class_deltas = model.apply(
        variables, pyramid, proposals.boxes, False, method=model.boxes
    )
    select = jax.vmap(lambda *args: selection.detect(model.settings, *args))
    return per_device(select, mesh)(proposals, class_logits, class_deltas, window)


def forward_train(
    model: MaskRCNN,
    variables: dict[str, Any],
    batch: Batch,
    keys: Key[Array, "B"],
    mesh: Mesh | None = None,
    box_branch: Callable = train_boxes,
) -> tuple[Losses, dict[str, Array], dict[str, Any]]:
    """The losses of a batch, with one key per image for the samplers.

    mesh: the devices that 'data' is sharded over; the per-image stages then run per device.
    box_branch: another family's, in the form of `train_boxes`.
    Returns losses, counts for the log, and the updated `batch_stats`.
    """
    s = model.settings
    model = _pool_per_device(model, mesh)
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
    has_masks = model.mask_head is not None
    heatmap_size = UPSCALE * s.keypoint_pool_size
    stage = per_device(lambda *args: assign(s, has_masks, heatmap_size, *args), mesh)
    rpn, samples, roi_deltas, mask_goals, keypoint_goals, num_proposals = stage(
        *frozen, batch, keys
    )
    rows, rpn_fg, rpn_valid, rpn_deltas = rpn
    cls, box, notes = box_branch(model, run, pyramid, samples, roi_deltas, batch, mesh)
    mask = jnp.zeros(())
    if has_masks:
        # Foreground rois fill the first slots, so that the mask head runs on these alone.
        num_fg = mask_goals.shape[1]
        fg = samples.fg[:, :num_fg]
        classes = jnp.where(fg, samples.classes[:, :num_fg], 0)
        count = _wanted_rows(model, fg, mesh)
        mask_logits = run(model.masks, pyramid, samples.rois[:, :num_fg], classes, count)
        mask = model.mask_rule.loss(mask_logits, mask_goals, classes, fg)
    keypoint = jnp.zeros(())
    if s.keypoints:
        logits_of_fg = run(model.keypoints, pyramid, samples.rois[:, : keypoint_goals[0].shape[1]])
        slots = s.keypoints * s.roi_positive_fraction * samples.fg.size
        normalizer = None if s.keypoint_loss_by_visible else slots
        keypoint = losses.keypoint_loss(logits_of_fg, *keypoint_goals, normalizer)

    gather = jax.vmap(lambda x, i: x[i])
    rpn_cls, rpn_box = losses.rpn_losses(
        gather(logits, rows),
        gather(deltas, rows),
        rpn_deltas,
        rpn_fg,
        rpn_valid,
        s.rpn_smooth_l1_beta,
    )
    terms = Losses(
        rpn_cls=s.rpn_loss_weight * rpn_cls,
        rpn_box=s.rpn_loss_weight * rpn_box,
        cls=s.box_loss_weight * cls,
        box=s.box_loss_weight * box,
        mask=s.mask_loss_weight * mask,
        keypoint=s.keypoint_loss_weight * keypoint,
    )
    metrics = {
        "instances": batch.gt_valid.sum(),
        "dropped_instances": batch.num_dropped.sum(),
        "proposals_per_image": num_proposals.mean(),
        "fg_rois_per_image": samples.fg.sum() / rows.shape[0],
        "fg_anchors_per_image": rpn_fg.sum() / rows.shape[0],
        **notes,
    }
    return terms, metrics, stats


def forward_predict(
    model: MaskRCNN,
    variables: dict[str, Any],
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
    image_hw: Int[Array, "B 2"],
    window: Float[Array, "B 4"] | None = None,
    mesh: Mesh | None = None,
    box_branch: Callable = predict_boxes,
) -> Detections:
    """Detections of a batch, best first, in pixels of the canvas, with masks in their boxes.

    window: the box on the canvas that the picture fills, where detections end; by default the
    corner of size image_hw. box_branch: another family's, in the form of `predict_boxes`.
    """
    model = _pool_per_device(model, mesh)
    pyramid, found, num_dropped = _find(
        model, variables, images, image_hw, window, mesh, box_branch
    )
    boxes, scores, classes, valid = found
    masks = _probabilities(model, variables, pyramid, boxes, classes, valid, mesh)
    keypoints = model.apply(variables, pyramid, boxes, False, method=model.keypoints)
    boxes = selection.from_convention(model.settings, boxes)
    return Detections(boxes, scores, classes, valid, masks, num_dropped, keypoints)


def forward_boxes(
    model: MaskRCNN,
    variables: dict[str, Any],
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
    image_hw: Int[Array, "B 2"],
    window: Float[Array, "B 4"] | None = None,
    mesh: Mesh | None = None,
    box_branch: Callable = predict_boxes,
) -> Detections:
    """`forward_predict` without masks and keypoints, whatever the model has."""
    model = _pool_per_device(model, mesh)
    _, found, num_dropped = _find(model, variables, images, image_hw, window, mesh, box_branch)
    boxes, *others = found
    boxes = selection.from_convention(model.settings, boxes)
    no_keypoints = jnp.zeros((*boxes.shape[:2], 0, 1, 1))
    return Detections(boxes, *others, None, num_dropped, no_keypoints)


def forward_masks(
    model: MaskRCNN,
    variables: dict[str, Any],
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
    image_hw: Int[Array, "B 2"],
    boxes: Float[Array, "B D 4"],
    classes: Int[Array, "B D"],
    valid: Bool[Array, "B D"],
    mesh: Mesh | None = None,
) -> Float[Array, "B D S S"] | None:
    """Mask probabilities of given boxes, in pixels of the canvas; None of a model without masks.

    Valid boxes come first; what the others get means nothing.
    """
    model = _pool_per_device(model, mesh)
    pyramid = model.apply(variables, images, image_hw, False, method=model.features)
    boxes = selection.to_convention(model.settings, boxes)
    return _probabilities(model, variables, pyramid, boxes, classes, valid, mesh)


def _find(
    model: MaskRCNN,
    variables: dict[str, Any],
    images: Array,
    image_hw: Array,
    window: Array | None,
    mesh: Mesh | None,
    box_branch: Callable,
) -> tuple[dict[str, Array], tuple[Array, ...], Array]:
    """The pyramid; boxes as the heads have them, scores, classes, valid; candidates dropped."""
    s = model.settings
    pyramid = model.apply(variables, images, image_hw, False, method=model.features)
    logits, deltas = model.apply(variables, pyramid, method=model.propose)
    canvas = images.shape[1:3]
    topk = (s.rpn_pre_nms_topk_test, s.rpn_post_nms_topk_test)
    if window is None:
        window = jax.vmap(lambda hw: selection.picture_window(s, hw))(image_hw)
    else:
        window = selection.to_convention(s, window)
    propose = jax.vmap(lambda *args: selection.propose(s, canvas, *topk, *args))
    proposals = per_device(propose, mesh)(logits, deltas, image_hw)
    *found, num_dropped = box_branch(model, variables, pyramid, proposals, window, mesh)
    return pyramid, tuple(found), num_dropped


def _probabilities(
    model: MaskRCNN,
    variables: dict[str, Any],
    pyramid: dict[str, Array],
    boxes: Array,
    classes: Array,
    valid: Array,
    mesh: Mesh | None,
) -> Array | None:
    if model.mask_head is None:
        return None
    count = _wanted_rows(model, valid, mesh)
    logits = model.apply(variables, pyramid, boxes, classes, count, False, method=model.masks)
    return model.mask_rule.probabilities(logits, classes)


def per_device(stage: Callable, mesh: Mesh | None) -> Callable:
    """Runs a stage on each device's own images: its loops and top-k then need no collective."""
    if mesh is None or mesh.size == 1:
        return stage
    spec = P("data")
    return jax.shard_map(stage, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _pool_per_device(model: MaskRCNN, mesh: Mesh | None) -> MaskRCNN:
    """The same model, whose rois are pooled on the device that has their image."""
    pool = model.pool

    def on_its_device(levels: dict[str, Array], rois: Array, size: int) -> Array:
        return per_device(lambda *args: pool(*args, size), mesh)(levels, rois)

    return model.clone(pool=on_its_device)


def _wanted_rows(
    model: MaskRCNN, wanted: Bool[Array, "B R"], mesh: Mesh | None
) -> Int[Array, ""] | None:
    """The most rows that an image wants of the mask head, where computing no others pays.

    That is on a CPU; None elsewhere, where a norm takes its statistics over all rows, and where the
    model shall compute every row. Wanted rows come first.
    """
    is_one_cpu = platform() == "cpu" and (mesh is None or mesh.size == 1)
    norm = getattr(model.mask_head, "norm", "none")
    if model.every_row or not is_one_cpu or norm == "batch":
        return None
    return wanted.sum(1).max()


def _apply_to_rows(head: nn.Module, train: bool, variables: Any, rows: tuple) -> Array:
    return head.apply(variables, *rows, train)
