"""One whole model under a peer's weights, with all that the golden files hold recorded.

The weights come from the golden set's make_weights.py and manifests, through the importer.
"""

import importlib.util
import json
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import golden_sets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from maskrcnn_jax import selection
from maskrcnn_jax.models import mask_rcnn
from maskrcnn_jax.weights import importer
from maskrcnn_jax.weights.readers import Source


@cache
def script(family: str, name: str) -> Any:
    """A Python file of the golden set, or else of the repository's, as a module."""
    for folder in (golden_sets.FOLDER, Path(__file__).parent / "golden"):
        path = folder / family / f"{name}.py"
        if path.is_file():
            spec = importlib.util.spec_from_file_location(f"{name}_{family}", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    pytest.skip(f"no {name}.py in {golden_sets.FOLDER / family}")


def manifest(name: str, family: str = "torch") -> dict[str, Any]:
    """The manifest of a model; skips the test if it is missing."""
    file = f"manifests/{name}.json" if family == "torch" else f"manifest_{name}.json"
    path = golden_sets.FOLDER / family / file
    if not path.is_file():
        pytest.skip(f"no file {path}")
    return json.loads(path.read_text())


def tensors(name: str) -> dict[str, np.ndarray]:
    """The weights of a model under the names of Detectron2 or torchvision."""
    return script("torch", "make_weights").from_manifest(manifest(name))


def keras_tensors(name: str, num_classes: int | None = None) -> dict[str, np.ndarray]:
    """The weights of a model of Matterport's, named as `readers` names them.

    num_classes: with background; None: the manifest's.
    """
    make = script("matterport", "make_weights")
    found = {}
    for layer in manifest(name, "matterport")["layers"]:
        for weight in layer["weights"]:
            canonical = f"{layer['name']}/{weight.get('canonical', weight['name'])}"
            shape = weight["shape"]
            if num_classes is not None:
                shape = resized(canonical, shape, num_classes)
            value = make.array(manifest(name, "matterport"), canonical, shape)
            found["/".join(make.leaf(canonical))] = value
    return found


def resized(name: str, shape: list[int], num_classes: int) -> list[int]:
    """The shape of one of Matterport's tensors for another number of classes."""
    layer = name.split("/")[-2]
    per_class = {"mrcnn_class_logits": 1, "mrcnn_mask": 1, "mrcnn_bbox_fc": 4}.get(layer)
    return shape if per_class is None else [*shape[:-1], per_class * num_classes]


def source(tensors: dict[str, np.ndarray], file: str = "weights.pth", **extra: Any) -> Source:
    """Tensors as if `readers.read` had read them from `file`."""
    return Source(Path(file), "pth", tensors, extra)


def run(imported: importer.Imported, image: np.ndarray) -> dict[str, np.ndarray]:
    """Predicts one image; returns what the parts of the model got and gave, without the batch.

    image: uint8 RGB. It is not resized, but padded to the next multiple of 32.
    """
    pad = [(0, -side % 32) for side in image.shape[:2]]
    return run_on_canvas(imported, np.pad(image, [*pad, (0, 0)]), image.shape[:2])


def run_on_canvas(
    imported: importer.Imported,
    canvas: np.ndarray,
    image_hw: tuple[int, int],
    window: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """`run` of a picture that lies on its canvas already, in `window` (x0, y0, x1, y1)."""
    count = len(imported.classes["names"])
    model = mask_rcnn.build(ConfigDict(dict(imported.config["model"])), count)
    hw = np.array([image_hw], np.int32)
    window = None if window is None else np.asarray(window, np.float32)[None]
    out = jax.jit(partial(_record, model))(imported.variables, canvas[None], hw, window)
    return {name: np.asarray(x) for name, x in out.items()}


def _record(
    model: mask_rcnn.MaskRCNN, variables: dict, images: Any, hw: Any, window: Any
) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def spy(call, args, kwargs, context):
        out = call(*args, **kwargs)
        key = (type(context.module).__name__, context.method_name)
        seen.setdefault(key, (args, out))
        return out

    # What a loop computes cannot be looked at; its values are those of all rows at once.
    every_row = mock.patch.object(mask_rcnn, "_wanted_rows", lambda *_: None)
    with nn.intercept_methods(spy), every_row:
        found = mask_rcnn.forward_predict(model, variables, images, hw, window)
    (x, *_), stages = seen["ResNet", "__call__"]
    pyramid = seen["FPN", "__call__"][1]
    logits, deltas = seen["MaskRCNN", "propose"][1]
    (pooled, *_), _ = seen["BoxHead", "__call__"]
    (mask_pooled, *_), mask_logits = seen["MaskHead", "__call__"]
    class_logits, class_deltas = seen["MaskRCNN", "boxes"][1]
    s = model.settings
    proposals = selection.propose(
        s,
        images.shape[1:3],
        s.rpn_pre_nms_topk_test,
        s.rpn_post_nms_topk_test,
        logits[0],
        deltas[0],
        hw[0],
    )
    every_class = model.apply(
        variables,
        mask_pooled[:1],
        method=lambda m, pooled: m.mask_head(pooled, None, False),
    )
    return {
        "input": x[0],
        **{name.upper(): v[0] for name, v in (stages | pyramid).items()},
        **_by_level(pyramid, logits[0], deltas[0], len(s.anchor_ratios)),
        "proposals": proposals.boxes,
        "proposal_logits": proposals.logits,
        "num_proposals": proposals.valid.sum(),
        "STEM": seen["Conv", "__call__"][1][0],  # before its norm
        "POOLED": seen["Bottleneck", "__call__"][0][0][0],
        "box_rois": pooled,
        "mask_rois": mask_pooled,
        "cls_score": class_logits[0],
        "box_deltas": class_deltas[0],
        "boxes": found.boxes[0][: s.max_detections],
        "scores": found.scores[0],
        "classes": found.classes[0],
        "valid": found.valid[0],
        "masks": found.masks[0],
        "mask_logits": mask_logits,
        "mask_logits_all_classes_first": jnp.moveaxis(every_class[0], -1, 0),
    }


def _by_level(pyramid: dict, logits: Any, deltas: Any, ratios: int) -> dict[str, Any]:
    """The RPN's outputs as maps [h, w, channels]."""
    found, start = {}, 0
    for name, level in pyramid.items():
        h, w = level.shape[1:3]
        end = start + h * w * ratios
        found[f"objectness_{name.upper()}"] = logits[start:end].reshape(h, w, ratios)
        found[f"rpn_deltas_{name.upper()}"] = deltas[start:end].reshape(h, w, 4 * ratios)
        start = end
    return found
