"""The smallest Mask R-CNN that has all its parts, and synthetic batches for it."""

import jax
import numpy as np

from configs import shapes
from maskrcnn_jax.models import families, mask_rcnn
from maskrcnn_jax.types import Batch

CANVAS = (64, 96)
CLASSES = 5


def config(**fields):
    """The shapes config's model group at a few channels; keyword arguments are model fields."""
    tree = shapes.get_config()
    m = tree.model
    m.depth = 10
    m.width, m.fpn_channels, m.rpn_channels, m.mask_channels, m.box_fc_dim = 8, 16, 16, 16, 32
    m.rpn_pre_nms_topk_train = m.rpn_pre_nms_topk_test = 60
    m.rpn_post_nms_topk_train = m.rpn_post_nms_topk_test = 40
    m.roi_batch_per_image = 16
    m.max_candidates, m.max_detections = 60, 20
    m.update(fields)
    return tree


def model(**fields) -> mask_rcnn.MaskRCNN:
    """A model of CLASSES classes."""
    return families.build(config(**fields).model, CLASSES)


def variables(model: mask_rcnn.MaskRCNN, seed: int = 0) -> dict:
    """Random variables of a model's shapes; to compute nothing takes less time than to compile."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if "kernel" not in name:
            return np.full(leaf.shape, name in ("scale", "var"), np.float32)
        deviation = np.prod(leaf.shape[:-1]) ** -0.5
        return rng.normal(0, deviation, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, families.variable_shapes(model))


def batch(
    size: int, seed: int = 0, empty: bool = False, objects: int = 4, keypoints: int = 0
) -> Batch:
    """Random pictures with `objects` boxes each on a CANVAS, or with none at all."""
    rng = np.random.default_rng(seed)
    height, width = CANVAS
    slots, side = 6, 16
    disk = np.hypot(*(np.indices((side, side)) - (side - 1) / 2)) < side / 2
    corner = rng.uniform(0, [width - 40, height - 40], (size, slots, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(12, 40, (size, slots, 2))], -1)
    valid = np.broadcast_to(np.arange(slots) < (0 if empty else objects), (size, slots))
    boxes = np.where(valid[..., None], boxes, 0.0).astype(np.float32)
    rows = np.random.default_rng((seed, 1))
    points = np.zeros((size, slots, keypoints, 3), np.float32)
    points[..., :2] = rows.uniform(boxes[..., None, :2], np.maximum(boxes[..., None, 2:], 1e-3))
    points[..., 2] = rows.integers(0, 3, points.shape[:3])
    return Batch(
        images=rng.integers(0, 256, (size, height, width, 3)).astype(np.uint8),
        image_hw=np.tile(np.int32([height, width - 8]), (size, 1)),
        gt_boxes=boxes,
        gt_classes=rng.integers(0, CLASSES, (size, slots)).astype(np.int32),
        gt_valid=valid.copy(),
        gt_frames=boxes,
        gt_masks=np.broadcast_to(np.packbits(disk, axis=-1), (size, slots, side, side // 8)).copy(),
        num_dropped=np.zeros(size, np.int32),
        index=np.arange(size, dtype=np.int32),
        gt_keypoints=points if keypoints else None,
    )


def keys(size: int, seed: int = 0) -> jax.Array:
    """One random key per image."""
    return jax.random.split(jax.random.key(seed), size)
