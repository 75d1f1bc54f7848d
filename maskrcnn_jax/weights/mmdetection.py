"""MMDetection: Mask R-CNN with FPN on ResNet or ResNeXt, of version 2 or 3.

Its two styles of backbone have the same names: "pytorch" (RGB, stride in the 3x3 convolution) and
"caffe" (BGR, stride in the 1x1). The config text inside the file tells them apart, else the file's
name; else pytorch is taken, with a warning. Classes, boxes and anchors are as ours.

Two differences stay: MMDetection clamps dw and dh from below, too, which matters to boxes that
shrink to less than a sixtieth, and resizes with OpenCV, whose rounding is not Pillow's.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.weights import coco_names, layout, resnets
from maskrcnn_jax.weights.layout import Rule, Spec

NAME = "mmdetection"

_CLASSES = ("roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.fc_cls.bias")
_STYLES = ("pytorch", "caffe")


def recognises(tensors: Mapping[str, np.ndarray]) -> bool:
    """By the names of the backbone, or of the neck where those are lost."""
    return any(n.startswith(("backbone.layer", "neck.", "rpn_head.")) for n in tensors)


def describe(tensors: Mapping[str, np.ndarray]) -> Spec:
    """Depth, widths, number of classes. Raises UserError for checkpoints of MMDetection 1."""
    if "bbox_head.fc_cls.weight" in tensors:
        raise UserError(
            "bbox_head.fc_cls.weight: a checkpoint of MMDetection 1, whose classes are numbered "
            "otherwise; bring it to version 2 with MMDetection's tools/model_converters/"
            "upgrade_model_version.py"
        )
    num_classes = resnets.num_classes(tensors, _CLASSES)
    model = resnets.describe(tensors, resnets.torch_names("backbone.")[0])
    model |= resnets.sizes(
        tensors,
        {
            "fpn_channels": ("neck.lateral_convs.0.conv.weight", 0),
            "rpn_channels": ("rpn_head.rpn_conv.weight", 0),
            "box_fc_dim": ("roi_head.bbox_head.shared_fcs.0.weight", 0),
            "mask_channels": ("roi_head.mask_head.convs.0.conv.weight", 0),
        },
    )
    model["box_fcs"] = resnets.count(tensors, "roi_head.bbox_head.shared_fcs.{}.weight".format)
    model["mask_convs"] = resnets.count(tensors, "roi_head.mask_head.convs.{}.conv.weight".format)
    coco = num_classes == len(coco_names.NAMES)
    return Spec(
        NAME,
        "mmdetection_pytorch",
        num_classes,
        class_names=coco_names.NAMES if coco else None,
        category_ids=coco_names.CATEGORY_IDS if coco else None,
        model=model,
    )


def refine(spec: Spec, path: Path, extra: Mapping[str, Any]) -> Spec:
    """Adds what the file tells beside its tensors: the style, the names of the classes.

    extra: the leftovers of the file; `meta` holds the text of MMDetection's config in `cfg`, and
    the classes in `CLASSES` (version 2) or `dataset_meta` (version 3).
    """
    meta = extra.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    names = _class_names(meta)
    if names is not None and len(names) == spec.num_classes:
        coco = names == coco_names.NAMES
        ids = coco_names.CATEGORY_IDS if coco else None
        spec = dataclasses.replace(spec, class_names=names, category_ids=ids)
    config = str(meta.get("cfg", ""))
    spec = dataclasses.replace(spec, model=spec.model | _normalisation(config))
    style = _style(config, path.name)
    if style is None:
        warning = (
            f"{path.name}: MMDetection's pytorch and caffe styles have the same tensors, and "
            "neither the file's meta.cfg nor its name tells which it is; pytorch is taken (RGB, "
            "stride in the 3x3 convolution). If it is caffe, write caffe into the file's name"
        )
        spec = dataclasses.replace(spec, warnings=(*spec.warnings, warning))
    return dataclasses.replace(spec, preset=f"mmdetection_{style or 'pytorch'}")


def rules(spec: Spec) -> list[Rule]:
    """One rule per layer, from their names to our paths."""
    conv, norm_name = resnets.torch_names("backbone.")

    def norm(unit: resnets.Unit, path: str) -> list[Rule]:
        return [layout.frozen_norm(layout.bn_names(norm_name(unit)), path, layout.BN_EPS)]

    found = resnets.rules(spec.model["depth"], conv, norm)
    for i in range(4):
        for theirs, ours in (("lateral_convs", "lateral"), ("fpn_convs", "output")):
            found += layout.conv_bias(f"neck.{theirs}.{i}.conv", f"params/fpn/{ours}{i + 2}/conv")
    found += layout.conv_bias("rpn_head.rpn_conv", "params/rpn_head/conv1/conv")
    found += layout.conv_bias("rpn_head.rpn_cls", "params/rpn_head/objectness")
    found += layout.conv_bias("rpn_head.rpn_reg", "params/rpn_head/deltas")
    head = "roi_head.bbox_head"
    for i in range(spec.model["box_fcs"]):
        make = layout.dense_on_pooled if i == 0 else layout.dense
        found += make(f"{head}.shared_fcs.{i}", f"params/box_head/fc{i + 1}")
    found += layout.dense(f"{head}.fc_cls", "params/box_head/cls_score")
    found += layout.dense(f"{head}.fc_reg", "params/box_head/bbox_pred")
    head = "roi_head.mask_head"
    for i in range(spec.model["mask_convs"]):
        found += layout.conv_bias(f"{head}.convs.{i}.conv", f"params/mask_head/conv{i + 1}/conv")
    found += layout.deconv(f"{head}.upsample", "params/mask_head/deconv")
    return found + layout.predictor(f"{head}.conv_logits", "params/mask_head")


def _style(config: str, name: str) -> str | None:
    # Of the backbone in `style='caffe'`; a pretrained 'open-mmlab://detectron2/...' is caffe, too.
    found = re.search(r"\bstyle\s*=\s*['\"](\w+)['\"]", config)
    if found and found.group(1) in _STYLES:
        return found.group(1)
    if "caffe" in name.lower():
        return "caffe"
    # The zoo names only the other style: mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth.
    zoo = re.match(r"mask[-_]rcnn_[rx]\d+.*_fpn_", name.lower())
    return "pytorch" if zoo or "pytorch" in name.lower() else None


def _normalisation(config: str) -> dict[str, Any]:
    """The input's `model` fields, as far as the text of MMDetection's config has them."""
    found: dict[str, Any] = {}
    for key, field in (("mean", "pixel_mean"), ("std", "pixel_std")):
        match = re.search(rf"\b{key}\s*=\s*[\[(]([\d.,\s]+)[\])]", config)
        values = tuple(float(x) for x in match.group(1).split(",") if x.strip()) if match else ()
        if len(values) == 3:
            found[field] = values
    match = re.search(r"\b(?:bgr_)?to_rgb\s*=\s*(True|False)", config)
    if match:
        found["channel_order"] = "rgb" if match.group(1) == "True" else "bgr"
    return found


def _class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    for holder in (meta, meta.get("dataset_meta")):
        for key in ("CLASSES", "classes"):
            names = holder.get(key) if isinstance(holder, Mapping) else None
            if isinstance(names, list | tuple) and all(isinstance(n, str) for n in names):
                return tuple(names)
    return None
