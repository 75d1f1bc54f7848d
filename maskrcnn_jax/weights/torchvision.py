"""torchvision: maskrcnn_resnet50_fpn, its _v2, and ImageNet ResNets as backbones.

Variants: "v1" (frozen norms with eps 0, as the released weights expect), "v1_trained" (the same
names, exported by us for torchvision's usual eps), "v2" (batch norms behind the convolutions of FPN
and heads, which fold into the convolutions), "resnet". The background is class 0 and has deltas and
masks of its own: its logit becomes our last one, the rest is left out.
"""

from collections.abc import Mapping

import numpy as np

from maskrcnn_jax.weights import coco_names, layout, resnets
from maskrcnn_jax.weights.layout import Rule, Spec

NAME = "torchvision"

_BODY = "backbone.body."
_BOX = "roi_heads.box_predictor"
_MASK = "roi_heads.mask_predictor"
_BATCH_NORM = "backbone.fpn.inner_blocks.0.1.running_mean"


def recognises(tensors: Mapping[str, np.ndarray]) -> bool:
    """By the names of the backbone or of the FPN."""
    return bool(_variant(tensors))


def describe(tensors: Mapping[str, np.ndarray]) -> Spec:
    """Depth, widths, number of classes, and under which of two names FPN and heads stand."""
    variant = _variant(tensors)
    model = resnets.describe(tensors, resnets.torch_names(_prefix(variant))[0])
    if variant == "resnet":
        return Spec(NAME, "resnet_rgb", None, model=model, variant=variant)
    names = (f"{_BOX}.cls_score.weight", f"{_BOX}.cls_score.bias")
    num_classes = resnets.num_classes(tensors, names)
    legacy = frozenset(old for old in map(_legacy, _plain_convs(9)) if f"{old}.weight" in tensors)

    def there(name: str) -> str:
        return f"{_legacy(name) if _legacy(name) in legacy else name}.weight"

    def convs(name: str) -> int:
        return resnets.count(tensors, lambda i: there(name.format(i)))

    model["rpn_convs"] = convs("rpn.head.conv.{}.0")
    model["mask_convs"] = convs("roi_heads.mask_head.{}.0")
    model["box_convs"] = convs("roi_heads.box_head.{}.0") if variant == "v2" else 0
    model["box_fcs"] = 1 if variant == "v2" else 2
    fc = _first_fc(model["box_convs"])
    model |= resnets.sizes(
        tensors,
        {
            "fpn_channels": (there("backbone.fpn.inner_blocks.0.0"), 0),
            "rpn_channels": (there("rpn.head.conv.0.0"), 0),
            "box_channels": ("roi_heads.box_head.0.0.weight", 0),
            "box_fc_dim": (f"{fc}.weight", 0),
            "mask_channels": (there("roi_heads.mask_head.0.0"), 0),
        },
    )
    coco = num_classes == len(coco_names.NAMES_90)
    return Spec(
        NAME,
        f"torchvision_{variant}",
        num_classes,
        class_names=coco_names.NAMES_90 if coco else None,
        category_ids=tuple(range(1, 91)) if coco else None,
        model=model,
        variant=variant,
        optional=legacy,
    )


def rules(spec: Spec) -> list[Rule]:
    """One rule per layer, from their names to our paths."""
    conv, norm_name = resnets.torch_names(_prefix(spec.variant))
    # The released v1 weights were trained when torchvision's frozen norm had no eps.
    eps = 0.0 if spec.variant == "v1" else layout.BN_EPS

    def norm(unit: resnets.Unit, path: str) -> list[Rule]:
        return [layout.frozen_norm(layout.bn_names(norm_name(unit)), path, eps)]

    backbone = resnets.rules(spec.model["depth"], conv, norm)
    return backbone if spec.variant == "resnet" else backbone + _detector(spec)


def _detector(spec: Spec) -> list[Rule]:
    model, found = spec.model, []

    def add(name: str, path: str) -> None:
        nonlocal found
        old = _legacy(name)
        found += layout.conv_bias(old if old in spec.optional else name, f"params/{path}")

    def add_normed(name: str, path: str) -> None:
        if spec.variant != "v2":
            return add(name, path)
        norm = layout.bn_names(f"{name.removesuffix('.0')}.1")
        found.append(layout.conv_with_norm(f"{name}.weight", norm, f"params/{path}", layout.BN_EPS))

    for i in range(4):
        add_normed(f"backbone.fpn.inner_blocks.{i}.0", f"fpn/lateral{i + 2}/conv")
        add_normed(f"backbone.fpn.layer_blocks.{i}.0", f"fpn/output{i + 2}/conv")
    for i in range(model["rpn_convs"]):
        add(f"rpn.head.conv.{i}.0", f"rpn_head/conv{i + 1}/conv")
    add("rpn.head.cls_logits", "rpn_head/objectness")
    add("rpn.head.bbox_pred", "rpn_head/deltas")
    for i in range(model["box_convs"]):
        add_normed(f"roi_heads.box_head.{i}.0", f"box_head/conv{i + 1}/conv")
    found += layout.dense_on_pooled(_first_fc(model["box_convs"]), "params/box_head/fc1")
    if spec.variant != "v2":
        found += layout.dense("roi_heads.box_head.fc7", "params/box_head/fc2")
    found += _class_logits(f"{_BOX}.cls_score", "params/box_head/cls_score")
    found += _without_background(layout.dense(f"{_BOX}.bbox_pred", "params/box_head/bbox_pred"), 4)
    for i in range(model["mask_convs"]):
        add_normed(f"roi_heads.mask_head.{i}.0", f"mask_head/conv{i + 1}/conv")
    found += layout.deconv(f"{_MASK}.conv5_mask", "params/mask_head/deconv")
    masks = layout.predictor(f"{_MASK}.mask_fcn_logits", "params/mask_head")
    return found + _without_background(masks, 1)


def _class_logits(source: str, target: str) -> list[Rule]:
    """The background's logit goes from the first place to the last."""
    return [
        layout.single(
            f"{source}.weight",
            f"{target}/kernel",
            lambda w: np.ascontiguousarray(np.roll(layout.float32(w), -1, 0).T),
            lambda k: np.roll(k.T, 1, 0),
        ),
        layout.single(
            f"{source}.bias",
            f"{target}/bias",
            lambda b: np.roll(layout.float32(b), -1),
            lambda b: np.roll(b, 1),
        ),
    ]


def _without_background(rules: list[Rule], rows: int) -> list[Rule]:
    """The same rules on tensors whose first `rows` rows belong to the background."""

    def wrap(rule: Rule) -> Rule:
        def backward(x: np.ndarray, like: layout.Arrays | None = None) -> layout.Arrays:
            (kept,) = rule.backward(x)
            first = like[0][:rows] if like else np.zeros((rows, *kept.shape[1:]), kept.dtype)
            return (np.concatenate([first, kept]),)

        return Rule(rule.sources, rule.targets, lambda w: rule.forward(w[rows:]), backward)

    return [wrap(rule) for rule in rules]


def _variant(tensors: Mapping[str, np.ndarray]) -> str:
    if any(n.startswith((_BODY, "backbone.fpn.")) for n in tensors):
        return "v2" if _BATCH_NORM in tensors else "v1"
    return "resnet" if any(n.startswith(("layer1.0.", "layer2.0.")) for n in tensors) else ""


def _prefix(variant: str) -> str:
    return "" if variant == "resnet" else _BODY


def _first_fc(box_convs: int) -> str:
    """v1 names its layers; in v2 the dense layer follows the convolutions and the flattening."""
    return f"roi_heads.box_head.{box_convs + 1}" if box_convs else "roi_heads.box_head.fc6"


def _legacy(name: str) -> str:
    """What a convolution was called before torchvision 0.13; the released v1 file has it so."""
    if name.startswith("roi_heads.mask_head."):
        return f"roi_heads.mask_head.mask_fcn{int(name.split('.')[2]) + 1}"
    if name == "rpn.head.conv.0.0":
        return "rpn.head.conv"
    return name.removesuffix(".0") if name.startswith("backbone.fpn.") else name


def _plain_convs(most: int) -> list[str]:
    """The convolutions that had another name once."""
    names = [f"backbone.fpn.{kind}_blocks.{i}.0" for kind in ("inner", "layer") for i in range(4)]
    return [*names, "rpn.head.conv.0.0", *(f"roi_heads.mask_head.{i}.0" for i in range(most))]
