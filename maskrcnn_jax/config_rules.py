"""What the values of a config have to satisfy, alone and against each other.

Works on the flat {"group.field": value} form, whose types `maskrcnn_jax.config.load` has already
checked. Every message names the field, its value and the remedy.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from maskrcnn_jax import (
    config_parts,
    config_rules_data,
    config_rules_keypoints,
    config_rules_tta,
)

Fields = dict[str, Any]

CHOICES = {
    "model.depth": (10, 18, 34, 50, 101, 152),
    "model.backbone": ("resnet", "vgg16"),
    "model.neck": ("fpn", "c4", "dc5", "single"),
    "model.norm": ("frozen", "batch", "group", "none"),
    "model.head_norm": ("none", "batch", "group"),
    "model.freeze_at": (0, 1, 2, 3, 4, 5),
    "model.channel_order": ("bgr", "rgb"),
    "model.anchor_strides": ("nominal", "fitted"),
    "model.pool_padding": ("symmetric", "same"),
    "model.pad_value": ("mean", "black"),
    "model.box_convention": ("continuous", "last_pixel"),
    "model.proposal_nms": ("level", "all"),
    "model.roi_pool": ("align", "align_max", "crop", "pool", "warp", "warp_max"),
    "model.mask_branch": ("fcn", "mlp", "none"),
    "model.mask_loss": ("sigmoid", "softmax"),
    "model.class_rule": ("all", "best"),
    "model.dtype": ("float32", "bfloat16"),
    "data.on_bad_image": ("error", "skip"),
    "data.resize_rule": ("pillow", "torchvision", "matterport"),
    "eval.paste_rule": ("detectron2", "torchvision", "matterport"),
    "init.part": ("model", "backbone"),
    "init.heads": ("strict", "match"),
    "optim.name": ("sgd", "adamw"),
    "optim.schedule": ("step", "cosine", "constant"),
    "train.best_metric": tuple(
        f"{kind}/{metric}"
        for kind in ("bbox", "segm", "keypoints")
        for metric in ("AP", "AP50", "AP75", "APs", "APm", "APl")
        if (kind, metric) != ("keypoints", "APs")  # COCO counts no keypoints of small objects
    ),
}

LENGTHS = {
    "data.crop_range": 2,
    "data.blur_sigma": 2,
    "data.jpeg_quality": 2,
    "model.pixel_mean": 3,
    "model.pixel_std": 3,
    "model.rpn_iou_thresholds": 2,
    "model.box_deltas_weights": 4,
    "model.rpn_deltas_weights": 4,
}

_RULES = ("optim.decay_rules", "optim.lr_rules")  # of (pattern, factor)

NOT_EMPTY = (
    *("model.anchor_sizes", "model.anchor_ratios", "data.short"),
    *(*_RULES, "optim.stages"),
)


def _fields(group: str, names: str) -> tuple[str, ...]:
    return tuple(f"{group}.{name}" for name in names.split())


# Ranges hold for every number inside a tuple, too. Each numeric field stands in exactly one place:
# here or in CHOICES (tested).
POSITIVE = (
    *_fields("model", "width groups width_per_group fpn_channels pixel_std anchor_sizes"),
    *_fields("model", "anchor_ratios rpn_channels rpn_batch_per_image roi_batch_per_image"),
    *_fields("model", "rpn_pre_nms_topk_train rpn_pre_nms_topk_test"),
    *_fields("model", "rpn_post_nms_topk_train rpn_post_nms_topk_test"),
    *_fields("model", "rpn_convs box_pool_size box_channels box_fc_dim"),
    *_fields("model", "box_deltas_weights rpn_deltas_weights mask_pool_size"),
    *_fields("model", "mask_channels mask_fc_dim max_candidates max_detections"),
    *_fields("model", "keypoint_pool_size keypoint_channels"),
    *_fields("data", "mask_side max_instances short long short_test long_test canvases"),
    *_fields("data", "lsj_scale lsj_size shapes_train shapes_val prefetch"),
    *_fields("data", "blur_sigma jpeg_quality"),
    *_fields("optim", "base_lr base_batch gamma layer_decay"),
    *_fields("train", "num_steps batch_size accumulate log_every checkpoint_every keep_last"),
    *_fields("eval", "batch_size keypoint_sigmas tta_short tta_long"),
)
NOT_NEGATIVE = (
    *_fields("model", "pixel_mean rpn_smooth_l1_beta rpn_loss_weight box_smooth_l1_beta"),
    *_fields("model", "box_loss_weight mask_loss_weight roi_sampling_ratio box_convs box_fcs"),
    *_fields("model", "mask_convs mask_fcs rpn_min_size box_min_size roi_level_eps delta_clamp"),
    *_fields("model", "keypoints keypoint_convs keypoint_loss_weight"),
    *_fields("data", "limit num_workers keypoint_flip min_keypoints"),
    *_fields("optim", "warmup_steps weight_decay decay_rules lr_rules clip_norm"),
    *_fields("train", "seed early_stop epochs min_steps"),
    *_fields("eval", "every num_pictures"),
)
FRACTIONS = (
    *_fields("model", "anchor_offset rpn_iou_thresholds rpn_positive_fraction rpn_nms_thresh"),
    *_fields("model", "roi_positive_fraction roi_iou_thresh cascade_ious score_thresh nms_thresh"),
    *_fields("data", "flip color_jitter flip_vertical rotate90 crop crop_range copy_paste blur"),
    *_fields("data", "jpeg"),
    *_fields("optim", "milestones warmup_factor stages"),
    *_fields("eval", "mask_thresh picture_thresh"),
)
BELOW_ONE = _fields("optim", "momentum b2 ema_decay")  # 1 would never forget

RANGES = (
    (POSITIVE, "greater than 0", lambda x: x > 0),
    (NOT_NEGATIVE, "0 or greater", lambda x: x >= 0),
    (FRACTIONS, "a fraction, within 0..1", lambda x: 0 <= x <= 1),
    (BELOW_ONE, "0 or greater and below 1", lambda x: 0 <= x < 1),
)


def check(fields: Fields, mode: str) -> tuple[list[str], list[str]]:
    """Returns (errors, warnings): messages, empty where all is well.

    Args:
      fields: every leaf of the config.
      mode: "train", "evaluate" or "replay"; it tells which data set must be named.
    """
    errors = [*_single_fields(fields), *_texts(fields)]
    if errors:  # the rules below compare fields that are sound by themselves
        return errors, []
    rules = (_model(fields), _sizes(fields), _data(fields, mode), _schedule(fields))
    rules += (_fine_tuning(fields), _start(fields, mode), config_parts.trunk(fields))
    rules += (config_rules_data.check(fields), config_rules_tta.check(fields))
    errors = [line for found in rules for line in found]
    return errors, [] if errors else list(_warnings(fields, mode))


def numbers(value: Any) -> list[int | float]:
    """Returns the numbers in a field's value; truth values and texts are none."""
    if isinstance(value, tuple):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _single_fields(fields: Fields) -> Iterator[str]:
    for field, value in fields.items():
        if not all(math.isfinite(number) for number in numbers(value)):
            yield f"{field}={value!r} is not finite; give a finite number"
    for field, choices in CHOICES.items():
        if fields[field] not in choices:
            yield f"{field}={fields[field]!r} is unknown; choose one of {choices}"
    for field, length in LENGTHS.items():
        if len(fields[field]) != length:
            yield f"{field}={fields[field]!r} has {len(fields[field])} values; give {length}"
    for field in NOT_EMPTY:
        if not fields[field]:
            yield f"{field} is empty; give at least one value"
    for names, wanted, holds in RANGES:
        for field in names:
            if not all(holds(x) or not math.isfinite(x) for x in numbers(fields[field])):
                yield f"{field}={fields[field]!r} must be {wanted}"


def _texts(fields: Fields) -> Iterator[str]:
    patterns = {field: [p for p, _ in fields[field]] for field in _RULES}
    patterns["optim.stages"] = [p for _, p in fields["optim.stages"]]
    for field, texts in patterns.items():
        for pattern in texts:
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"{field}: {pattern!r} is not a regular expression: {error}"


def _model(fields: Fields) -> Iterator[str]:
    depth, groups = fields["model.depth"], fields["model.groups"]
    width = fields["model.width_per_group"]
    if depth < 50 and (groups, width) != (1, 64):
        yield (
            f"model.depth={depth} has no bottleneck blocks: model.groups={groups} and "
            f"model.width_per_group={width} must be 1 and 64, or the depth 50 or more"
        )
    freeze_at, norm = fields["model.freeze_at"], fields["model.norm"]
    if freeze_at > 0 and norm != "frozen" and not fields["init.checkpoint"]:
        yield (
            f"model.freeze_at={freeze_at} with model.norm={norm!r} and no init.checkpoint would "
            "freeze random layers; set model.freeze_at=0, or init.checkpoint to trained weights"
        )
    yield from _group_norm(fields)
    yield from _cascade(fields)
    yield from config_rules_keypoints.check(fields)
    best = fields["train.best_metric"]
    if fields["model.mask_branch"] == "none" and best.startswith("segm/"):
        yield (
            f"train.best_metric={best!r} needs masks, but model.mask_branch='none'; set "
            f"train.best_metric={best.replace('segm', 'bbox')!r}"
        )
    low, high = fields["model.rpn_iou_thresholds"]
    if low > high:
        yield f"model.rpn_iou_thresholds={(low, high)} must rise: (background, foreground)"
    if fields["model.max_candidates"] < fields["model.max_detections"]:
        yield (
            f"model.max_candidates={fields['model.max_candidates']} is below model.max_detections="
            f"{fields['model.max_detections']}; every detection is a candidate first"
        )


def _cascade(fields: Fields) -> Iterator[str]:
    ious, first = fields["model.cascade_ious"], fields["model.roi_iou_thresh"]
    if not ious:
        return
    if any(isinstance(iou, tuple) for iou in ious):
        yield f"model.cascade_ious={ious!r} must be plain numbers, as in (0.5,0.6,0.7)"
    elif ious[0] != first:
        yield (
            f"model.cascade_ious={ious!r} begins with another IoU than model.roi_iou_thresh="
            f"{first}, by which the rois of the first stage are sampled; set the same"
        )
    if not fields["model.class_agnostic_boxes"]:
        yield (
            f"model.cascade_ious={ious!r}: the boxes of a cascade are class-agnostic; set "
            "model.class_agnostic_boxes=true"
        )


def _group_norm(fields: Fields) -> Iterator[str]:
    norms = {"model.width": "model.norm"}
    norms |= dict.fromkeys(_fields("model", "fpn_channels mask_channels"), "model.head_norm")
    if fields["model.box_convs"]:
        norms["model.box_channels"] = "model.head_norm"
    if fields["model.keypoints"]:
        norms["model.keypoint_channels"] = "model.head_norm"
    for field, norm in norms.items():
        if fields[norm] == "group" and fields[field] % 32 and 32 % fields[field]:
            yield (
                f"{field}={fields[field]} with {norm}='group' must be a multiple or a divisor of "
                "32, the number of groups"
            )


def _sizes(fields: Fields) -> Iterator[str]:
    if fields["data.mask_side"] % 8:
        yield f"data.mask_side={fields['data.mask_side']} must be a multiple of 8 (packed bits)"
    if fields["data.lsj_size"] % 32:
        yield f"data.lsj_size={fields['data.lsj_size']} must be a multiple of 32, the stride of P5"
    canvases = fields["data.canvases"]
    if any(not isinstance(c, tuple) or [s % 32 for s in c] != [0, 0] for c in canvases):
        yield (
            f"data.canvases={canvases!r} must be (height, width) pairs of multiples of 32, "
            "as in ((832,1344),(1344,832))"
        )
    scale = fields["data.lsj_scale"]
    if scale and (any(isinstance(x, tuple) for x in scale) or len(scale) != 2):
        yield f"data.lsj_scale={scale!r} must be (smallest, largest), as in (0.1,2.0), or ()"
    elif scale and scale[0] > scale[1]:
        yield f"data.lsj_scale={scale!r} must rise: (smallest, largest)"
    for short, long in (("data.short", "data.long"), ("data.short_test", "data.long_test")):
        if max(numbers((fields[short],))) > fields[long]:
            yield f"{short}={fields[short]!r} exceeds {long}={fields[long]}; raise {long}"


def _data(fields: Fields, mode: str) -> Iterator[str]:
    name = fields["data.name"]
    paths = {
        split: tuple(fields[f"data.{split}.{kind}"] for kind in ("annotations", "images"))
        for split in ("train", "val")
    }
    for split, (annotations, images) in paths.items():
        if name != "coco" and (annotations or images):
            yield (
                f"data.{split}.annotations and .images are set, but data.name={name!r} brings its "
                "own; set data.name=coco, or leave them empty"
            )
        elif bool(annotations) != bool(images):
            missing = "images" if annotations else "annotations"
            yield f"data.{split}.{missing} is empty; a split needs both annotations and images"
    for needed in {"train": ("train", "val"), "evaluate": ("val",)}.get(mode, ()):
        if name == "coco" and not any(paths[needed]):
            yield (
                f"data.{needed}.annotations is empty; set data.{needed}.annotations to a COCO JSON "
                f"file and data.{needed}.images to its folder, or data.name=coco_2017 to download "
                "COCO"
            )


def _schedule(fields: Fields) -> Iterator[str]:
    batch, parts = fields["train.batch_size"], fields["train.accumulate"]
    if batch % parts:
        yield f"train.batch_size={batch} must be divisible by train.accumulate={parts}"
    milestones = fields["optim.milestones"]
    if any(a >= b for a, b in zip(milestones, milestones[1:], strict=False)):
        yield f"optim.milestones={milestones!r} must rise (fractions of train.num_steps)"
    if fields["train.early_stop"] and not fields["eval.every"]:
        yield (
            f"train.early_stop={fields['train.early_stop']} counts evaluations, but eval.every=0; "
            "set eval.every"
        )


def _fine_tuning(fields: Fields) -> Iterator[str]:
    begins = [fraction for fraction, _ in fields["optim.stages"]]
    if begins[0] != 0 or any(a >= b for a, b in zip(begins, begins[1:], strict=False)):
        yield (
            f"optim.stages={fields['optim.stages']!r} must begin at 0.0 and rise (fractions of "
            "train.num_steps)"
        )
    if fields["optim.layer_decay"] > 1:
        yield (
            f"optim.layer_decay={fields['optim.layer_decay']} must be at most 1: the layers near "
            "the image learn slower, not faster"
        )
    if fields["init.heads"] == "match" and fields["init.skip_heads"]:
        yield (
            "init.heads='match' takes the class heads by name and init.skip_heads=True leaves them "
            "random; set init.skip_heads=false, or init.heads=strict"
        )


def _start(fields: Fields, mode: str) -> Iterator[str]:
    if mode == "train" and fields["init.heads"] == "match" and not fields["init.checkpoint"]:
        yield (
            "init.heads='match' takes the class heads of weights, but init.checkpoint is empty; "
            "set init.checkpoint to a file, a run of yours or a name such as "
            "detectron2/mask_rcnn_R_50_FPN_3x, or init.heads=strict to start at random"
        )


def _warnings(fields: Fields, mode: str) -> Iterator[str]:
    if mode != "train":
        return
    if fields["model.norm"] == "frozen" and not fields["init.checkpoint"]:
        yield (
            "model.norm='frozen' without init.checkpoint: random weights stay unnormalised"
            + (", and the frozen layers random" if fields["model.freeze_at"] else "")
            + "; set init.checkpoint, or train from scratch with model.norm=group (or batch) and "
            "model.freeze_at=0"
        )
    steps, warmup = fields["train.num_steps"], fields["optim.warmup_steps"]
    if warmup >= steps and not fields["train.epochs"]:
        yield (
            f"optim.warmup_steps={warmup} is not below train.num_steps={steps}: the learning rate "
            "never reaches its base value"
        )
    side, cells = fields["data.mask_side"], 2 * fields["model.mask_pool_size"]
    if side < 2 * cells and fields["model.mask_branch"] != "none":
        yield (
            f"data.mask_side={side}: bitmaps this coarse blur masks of {cells} x {cells} cells "
            f"(model.mask_pool_size={cells // 2}); set data.mask_side={-(-2 * cells // 8) * 8}"
        )
    yield from _canvas_gaps(fields)


def _canvas_gaps(fields: Fields) -> Iterator[str]:
    canvases = fields["data.canvases"]
    if not canvases or fields["data.lsj_scale"]:
        return
    short, long = max(fields["data.short"]), fields["data.long"]
    for height, width in ((short, long), (long, short)):
        if not any(h >= height and w >= width for h, w in canvases):
            yield (
                f"data.canvases={canvases!r} holds no image of {height} x {width}, which "
                "data.short and data.long allow; such an image would stop the run"
            )
