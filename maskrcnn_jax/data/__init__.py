"""COCO JSON in, batches out. The only room with TensorFlow.

The public names; each is imported when it is first used, and none of them needs TensorFlow.
"""

import os
from importlib import import_module
from typing import Any

# TensorFlow only reads and resizes here: what it says of processors would mislead, and without
# oneDNN its numbers do not depend on the processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

_HOMES = {"Dataset": "dataset", "register": "registry", "CocoData": "coco", "load_coco": "coco"}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"maskrcnn_jax.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'maskrcnn_jax.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
