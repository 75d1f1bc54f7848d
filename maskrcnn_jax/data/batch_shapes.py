"""What training batches will look like, known before a picture is read. Without TensorFlow."""

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from maskrcnn_jax.preprocess import choose_canvas, derive_canvases, shortest_edge_size
from maskrcnn_jax.types import Batch

Canvas = tuple[int, int]


def canvas_groups(
    sizes: Int[np.ndarray, "n 2"], data_config: ConfigDict
) -> tuple[Int[np.ndarray, " n"], tuple[Canvas, ...]]:
    """Returns for each image the index of its canvas, and the canvases (height, width).

    Each canvas is a compiled program of its own; an image has the same one at every scale.

    Raises:
      UserError: none of the canvases holds an image.
    """
    if data_config.lsj_scale:
        side = -(-data_config.lsj_size // 32) * 32
        return np.zeros(len(sizes), np.int64), ((side, side),)
    short, long = max(data_config.short), data_config.long
    canvases = tuple((int(h), int(w)) for h, w in data_config.canvases) or derive_canvases(
        short, long
    )
    unique, inverse = np.unique(sizes, axis=0, return_inverse=True)
    groups = [
        canvases.index(choose_canvas(shortest_edge_size((int(h), int(w)), short, long), canvases))
        for h, w in unique
    ]
    return np.array(groups, np.int64)[inverse.reshape(-1)], canvases


def usual_canvas(sizes: Int[np.ndarray, "n 2"], data_config: ConfigDict) -> Canvas:
    """The canvas of most of the images."""
    groups, canvases = canvas_groups(sizes, data_config)
    return canvases[np.bincount(groups).argmax()]


def batch_shapes(canvas: Canvas, data_config: ConfigDict, size: int, keypoints: int) -> Batch:
    """A training batch of this canvas with a jax.ShapeDtypeStruct in place of each array.

    data_config: the group `data` of the config. size: images. keypoints: of an object, or 0.
    """
    slots, side = data_config.max_instances, data_config.mask_side
    of = lambda kind, *shape: jax.ShapeDtypeStruct((size, *shape), kind)  # noqa: E731
    return Batch(
        images=of(np.uint8, *canvas, 3),
        image_hw=of(np.int32, 2),
        gt_boxes=of(np.float32, slots, 4),
        gt_classes=of(np.int32, slots),
        gt_valid=of(np.bool_, slots),
        gt_frames=of(np.float32, slots, 4),
        gt_masks=of(np.uint8, slots, side, side // 8),
        num_dropped=of(np.int32),
        index=of(np.int32),
        gt_keypoints=of(np.float32, slots, keypoints, 3) if keypoints else None,
    )
