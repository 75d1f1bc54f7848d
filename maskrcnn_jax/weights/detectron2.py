"""Detectron2: Mask R-CNN as its model zoo has it, and the backbones its recipes take.

Variants: "model" (a whole detector with FPN, .pkl or .pth), "c4" (res5 in the heads), "dc5" (any
other without FPN: tensors do not tell whether they are dilated), "backbone" (ResNets under
Detectron2's names, converted from torchvision), "caffe2" (MSRA's R-50, R-101 and X-101-32x8d, whose
norms come folded into a scale and a bias). Classes, boxes and anchors are as ours; only layouts
differ.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskrcnn_jax.weights import coco_names, layout, resnets
from maskrcnn_jax.weights.layout import Rule, Spec

NAME = "detectron2"

_LAYERS = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "shortcut": "1"}
_HEADS = "roi_heads."
_PERSON_KEYPOINTS = 17  # COCO's; the models that have them know persons alone
_CLASSES = ("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.cls_score.bias")


def recognises(tensors: Mapping[str, np.ndarray]) -> bool:
    """By the names of the backbone, or of the heads where those of the backbone are lost."""
    return bool(_variant(tensors))


def describe(tensors: Mapping[str, np.ndarray]) -> Spec:
    """Depth, widths, number of classes; the input's normalisation where the file tells it."""
    variant = _variant(tensors)
    model = resnets.describe(tensors, _conv_name(variant))
    preset = "resnet_rgb" if variant == "backbone" else "detectron2"
    if model.get("groups", 1) > 1 and variant != "backbone":
        preset = "detectron2_x101"
    if variant in ("backbone", "caffe2"):
        statistics = frozenset(n for n in tensors if n.endswith(("_bn_rm", "_bn_riv")))
        return Spec(NAME, preset, None, model=model, variant=variant, optional=statistics)
    if variant != "model":
        preset = f"detectron2_{variant}"
    num_classes = resnets.num_classes(tensors, _CLASSES)
    model |= resnets.sizes(
        tensors,
        {
            "fpn_channels": ("backbone.fpn_lateral2.weight", 0),
            "rpn_channels": ("proposal_generator.rpn_head.conv.weight", 0),
            "box_fc_dim": ("roi_heads.box_head.fc1.weight", 0),
            "mask_channels": ("roi_heads.mask_head.deconv.weight", 1),
        },
    )
    model["box_fcs"] = resnets.count(tensors, "roi_heads.box_head.fc{}.weight".format, 1)
    model["mask_convs"] = resnets.count(tensors, "roi_heads.mask_head.mask_fcn{}.weight".format, 1)
    model |= _normalisation(tensors) | _keypoints(tensors)
    coco = num_classes == len(coco_names.NAMES)
    classes = (coco_names.NAMES, coco_names.CATEGORY_IDS) if coco else (None, None)
    if num_classes == 1 and model.get("keypoints") == _PERSON_KEYPOINTS:
        classes = (coco_names.NAMES[:1], coco_names.CATEGORY_IDS[:1])
    return Spec(
        NAME,
        preset,
        num_classes,
        class_names=classes[0],
        category_ids=classes[1],
        model=model,
        variant=variant,
    )


def rules(spec: Spec) -> list[Rule]:
    """One rule per layer, from their names to our paths."""
    depth, conv = spec.model["depth"], _conv_name(spec.variant)
    if spec.variant == "caffe2":
        return resnets.rules(
            depth, conv, lambda unit, path: _caffe2_norm(unit, path, spec.optional)
        )

    def norm(unit: resnets.Unit, path: str) -> list[Rule]:
        names = layout.bn_names(conv(unit).removesuffix(".weight") + ".norm")
        return [layout.frozen_norm(names, path, layout.BN_EPS)]

    if spec.variant == "backbone":
        return resnets.rules(depth, conv, norm)
    if spec.variant == "c4":
        return resnets.rules(depth, conv, norm, res5="shared_head") + _detector(spec.model)
    pyramid = _fpn() if spec.variant == "model" else []
    return resnets.rules(depth, conv, norm) + pyramid + _detector(spec.model)


def _fpn() -> list[Rule]:
    found = []
    for level in (2, 3, 4, 5):
        for kind in ("lateral", "output"):
            found += layout.conv_bias(
                f"backbone.fpn_{kind}{level}", f"params/fpn/{kind}{level}/conv"
            )
    return found


def _detector(model: Mapping[str, Any]) -> list[Rule]:
    rpn = "proposal_generator.rpn_head"
    found = layout.conv_bias(f"{rpn}.conv", "params/rpn_head/conv1/conv")
    found += layout.conv_bias(f"{rpn}.objectness_logits", "params/rpn_head/objectness")
    found += layout.conv_bias(f"{rpn}.anchor_deltas", "params/rpn_head/deltas")
    for i in range(1, model["box_fcs"] + 1):
        make = layout.dense_on_pooled if i == 1 else layout.dense
        found += make(f"{_HEADS}box_head.fc{i}", f"params/box_head/fc{i}")
    for name in ("cls_score", "bbox_pred"):
        found += layout.dense(f"{_HEADS}box_predictor.{name}", f"params/box_head/{name}")
    if model.get("keypoints"):
        head = f"{_HEADS}keypoint_head"
        for i in range(1, model["keypoint_convs"] + 1):
            found += layout.conv_bias(f"{head}.conv_fcn{i}", f"params/keypoint_head/conv{i}/conv")
        found += layout.deconv(f"{head}.score_lowres", "params/keypoint_head/deconv")
    if model.get("mask_branch") == "none":
        return found
    for i in range(1, model["mask_convs"] + 1):
        found += layout.conv_bias(
            f"{_HEADS}mask_head.mask_fcn{i}", f"params/mask_head/conv{i}/conv"
        )
    found += layout.deconv(f"{_HEADS}mask_head.deconv", "params/mask_head/deconv")
    return found + layout.predictor(f"{_HEADS}mask_head.predictor", "params/mask_head")


def _keypoints(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The keypoint head, and that its models in the zoo have no masks."""
    head = f"{_HEADS}keypoint_head"
    scores = f"{head}.score_lowres.weight"
    if scores not in tensors or tensors[scores].ndim < 2:
        return {}
    channels, keypoints = tensors[scores].shape[:2]
    has_masks = any(name.startswith(f"{_HEADS}mask_head.") for name in tensors)
    return {
        "keypoints": keypoints,
        "keypoint_channels": channels,
        "keypoint_convs": resnets.count(tensors, f"{head}.conv_fcn{{}}.weight".format, 1),
        "mask_branch": "fcn" if has_masks else "none",
    }


def _variant(tensors: Mapping[str, np.ndarray]) -> str:
    if any(n.startswith("roi_heads.res5.") for n in tensors):
        return "c4"
    if any(n.startswith(("backbone.bottom_up.", "backbone.fpn_")) for n in tensors):
        return "model"
    if any(n.startswith(("backbone.stem.", "backbone.res")) for n in tensors):
        return "dc5"
    if any(n.startswith("proposal_generator.rpn_head.") for n in tensors):
        return "model"
    if any(n.startswith(("res2.0.", "res3.0.")) for n in tensors):
        return "backbone"
    return "caffe2" if any(n.startswith(("res2_0_", "res3_0_")) for n in tensors) else ""


def _conv_name(variant: str) -> Any:
    prefix = {"model": "backbone.bottom_up.", "c4": "backbone.", "dc5": "backbone."}.get(
        variant, ""
    )

    def ours(unit: resnets.Unit) -> str:
        block = "stem" if unit.stage == 1 else f"res{unit.stage}.{unit.block}"
        room = _HEADS if (variant, unit.stage) == ("c4", 5) else prefix
        return f"{room}{block}.{unit.layer}.weight"

    return (lambda unit: f"{_caffe2_name(unit)}_w") if variant == "caffe2" else ours


def _caffe2_name(unit: resnets.Unit) -> str:
    if unit.stage == 1:
        return "conv1"
    return f"res{unit.stage}_{unit.block}_branch{_LAYERS[unit.layer]}"


def _caffe2_norm(unit: resnets.Unit, path: str, statistics: frozenset[str]) -> list[Rule]:
    prefix = "res_conv1_bn" if unit.stage == 1 else f"{_caffe2_name(unit)}_bn"
    names = tuple(f"{prefix}_{end}" for end in ("s", "b", "rm", "riv"))
    if statistics.issuperset(names[2:]):
        return [layout.frozen_norm(names, path, layout.BN_EPS)]
    return [layout.copy(names[0], f"{path}/scale"), layout.copy(names[1], f"{path}/bias")]


def _normalisation(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Old checkpoints carry pixel_mean and pixel_std, in the model's channel order."""
    found: dict[str, Any] = {}
    for field in ("pixel_mean", "pixel_std"):
        if field in tensors and tensors[field].size == 3:
            # The shortest decimal number of the float32: 103.53, not 103.52999877929688.
            values = np.asarray(tensors[field], np.float32).ravel()
            found[field] = tuple(float(str(v)) for v in values)
    if "pixel_mean" in found:
        # Of every data set in use red is the brightest channel, blue the darkest.
        found["channel_order"] = (
            "bgr" if found["pixel_mean"][0] <= found["pixel_mean"][2] else "rgb"
        )
    return found
