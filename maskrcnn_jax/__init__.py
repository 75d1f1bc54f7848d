"""Mask R-CNN in JAX and Flax.

The public names; each is imported when it is first used, so that reading a config costs no JAX.

    from configs import common
    model = maskrcnn_jax.build(common.get_config().model, num_classes=80)
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "MaskRCNN": "models.mask_rcnn",
    "build": "models.families",
    "forward_train": "models.families",
    "forward_predict": "models.families",
    "load": "predict",
    "Predictor": "predict",
    "Prediction": "prediction",
    "Batch": "types",
    "Detections": "types",
    "Losses": "types",
    "UserError": "errors",
}
_MODULES = ("losses", "models", "ops", "targets", "train_step", "types")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"maskrcnn_jax.{_HOMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"maskrcnn_jax.{name}")
    raise AttributeError(f"module 'maskrcnn_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
