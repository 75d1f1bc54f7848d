"""The families of detectors, and which of them a config asks for.

A family is a composition file: a module class, `build`, `train_boxes` and `predict_boxes`.
The config decides once, in `build`; from then on the class of the model tells the functions. A new
family is a new file, its line in `_FAMILIES` and its condition in `build`.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

from maskrcnn_jax.models import cascade, mask_rcnn
from maskrcnn_jax.models.mask_rcnn import MaskRCNN
from maskrcnn_jax.types import Batch, Detections, Losses

_FAMILIES: dict[type, ModuleType] = {
    MaskRCNN: mask_rcnn,
    cascade.CascadeRCNN: cascade,
}


def build(config: Any, num_classes: int) -> MaskRCNN:
    """The model of a config's `model` group: Cascade R-CNN if it has cascade_ious."""
    family = cascade if config.cascade_ious else mask_rcnn
    return family.build(config, num_classes)


def init(model: MaskRCNN, key: Key[Array, ""]) -> dict[str, Any]:
    """Random parameters and fresh statistics, {"params", "batch_stats"}."""

    def pool(levels: dict[str, Array], rois: Array, size: int) -> Array:
        finest = next(iter(levels.values()))
        return jnp.zeros((*rois.shape[:2], size, size, finest.shape[-1]), finest.dtype)

    # No parameter depends on what is pooled, and to trace the pooling takes time.
    images, image_hw = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64, jnp.int32)
    variables = model.clone(pool=pool).init(key, images, image_hw)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def variable_shapes(model: MaskRCNN) -> dict[str, Any]:
    """What `init` returns, as jax.ShapeDtypeStruct: nothing is compiled."""
    return jax.eval_shape(lambda: init(model, jax.random.key(0)))


def forward_train(
    model: MaskRCNN,
    variables: dict[str, Any],
    batch: Batch,
    keys: Key[Array, "B"],
    mesh: Mesh | None = None,
) -> tuple[Losses, dict[str, Array], dict[str, Any]]:
    """The losses of a batch by the model's own family; arguments as of `mask_rcnn`'s."""
    box_branch = _FAMILIES[type(model)].train_boxes
    return mask_rcnn.forward_train(model, variables, batch, keys, mesh, box_branch)


def forward_predict(
    model: MaskRCNN,
    variables: dict[str, Any],
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
    image_hw: Int[Array, "B 2"],
    window: Float[Array, "B 4"] | None = None,
    mesh: Mesh | None = None,
) -> Detections:
    """The detections of a batch by the model's own family; arguments as of `mask_rcnn`'s."""
    box_branch = _FAMILIES[type(model)].predict_boxes
    return mask_rcnn.forward_predict(model, variables, images, image_hw, window, mesh, box_branch)


def forward_boxes(
    model: MaskRCNN,
    variables: dict[str, Any],
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
    image_hw: Int[Array, "B 2"],
    window: Float[Array, "B 4"] | None = None,
    mesh: Mesh | None = None,
) -> Detections:
    """`forward_predict` without masks and keypoints; arguments as of `mask_rcnn`'s."""
    box_branch = _FAMILIES[type(model)].predict_boxes
    return mask_rcnn.forward_boxes(model, variables, images, image_hw, window, mesh, box_branch)
