"""Detectron2's Mask R-CNN R50-FPN with the weights of torchvision's model, and so with ours.

Its recipe, changed to the same work: torchvision's input, strides, samples of ROIAlign, proposals
and losses. What it has no option for stays its own: anchors are not rounded, and those of P6 stand
64 px apart.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import peers_torch
from benchmarks.timing import Setting
from maskrcnn_jax.weights.layout import Spec
from maskrcnn_jax.weights.presets import PRESETS

RECIPE = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
# Its options -> our model fields of the same meaning.
_OPTIONS = {
    "PIXEL_MEAN": "pixel_mean",
    "PIXEL_STD": "pixel_std",
    "BACKBONE.FREEZE_AT": "freeze_at",
    "RESNETS.STRIDE_IN_1X1": "stride_in_1x1",
    "RPN.SMOOTH_L1_BETA": "rpn_smooth_l1_beta",
    "RPN.POST_NMS_TOPK_TRAIN": "rpn_post_nms_topk_train",
    "ROI_BOX_HEAD.SMOOTH_L1_BETA": "box_smooth_l1_beta",
    "ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "roi_sampling_ratio",
    "ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": "roi_sampling_ratio",
}


def model(reference: Any, device: str) -> Any:
    """Its model with weights and score threshold of torchvision's `reference`, ready to predict.

    Raises UserError or RuntimeError where a variable of one side has no place in the other.
    """
    import torch
    from detectron2.modeling import build_model

    from maskrcnn_jax.weights import exporter

    found = build_model(_config(device, reference.roi_heads.score_thresh))
    spec = Spec(
        "detectron2", "detectron2", peers_torch.CLASSES - 1, model=_fields(), variant="model"
    )
    tensors = exporter.export(peers_torch.variables(reference), spec)
    # Strict: all of its parameters, and none besides.
    found.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()}, strict=True)
    return found.eval()


def inputs(images: np.ndarray, device: str, targets: list[dict] | None = None) -> list[dict]:
    """What its models take: uint8 [3, H, W] each; with torchvision's targets, also the objects."""
    import torch

    found = [{"image": torch.from_numpy(x).permute(2, 0, 1).to(device)} for x in images]
    if targets:
        for picture, target in zip(found, targets, strict=True):
            picture["instances"] = _instances(target, images.shape[1:3])
    return found


def set_threshold(setting: Setting, peer: Any, pictures: list[dict]) -> None:
    """As `peers_torch.set_threshold`, by its own scores: where torchvision's shall not run."""
    predictor = peer.roi_heads.box_predictor
    run = network(setting, peer, pictures)
    # Its background is the last class.
    found = peers_torch.threshold(predictor, run, slice(0, -1), len(pictures))
    predictor.test_score_thresh = found


def network(setting: Setting, peer: Any, pictures: list[dict]) -> Callable[[], list]:
    """Its model up to the masks in the frames of their boxes, which it returns."""
    import torch

    def run() -> list:
        with torch.no_grad(), peers_torch.autocast(setting):
            found = peer.inference(pictures, do_postprocess=False)
        return [instances.pred_masks for instances in found]

    return peers_torch.waiting(run, setting.device)


def pasted(setting: Setting, peer: Any, pictures: list[dict]) -> Callable[[], list]:
    """All of its prediction, whose masks come to the host."""
    import torch

    def run() -> list:
        with torch.no_grad(), peers_torch.autocast(setting):
            found = peer.inference(pictures)
        return [x["instances"].pred_masks.cpu().numpy() for x in found]

    return run


def losses(peer: Any, pictures: list[dict]) -> Callable[[], dict]:
    """Its forward pass of a training step; pictures with their objects."""
    from detectron2.utils.events import EventStorage

    def run() -> dict:
        # It refuses to train without a place for its own figures.
        with EventStorage():
            return peer(pictures)

    return run


def _fields() -> dict[str, Any]:
    return PRESETS["torchvision_v1"]["model"]


def _config(device: str, score_thresh: float) -> Any:
    from detectron2 import model_zoo

    config = model_zoo.get_config(RECIPE)
    changes = {name: _fields()[field] for name, field in _OPTIONS.items()} | {
        "DEVICE": device,
        "ROI_HEADS.NUM_CLASSES": peers_torch.CLASSES - 1,
        "ROI_HEADS.SCORE_THRESH_TEST": score_thresh,
        # Boxes without its half pixel.
        "ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
        "ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign",
    }
    config.INPUT.FORMAT = "RGB"
    config.merge_from_list([x for name, value in changes.items() for x in (f"MODEL.{name}", value)])
    return config


def _instances(target: dict, hw: tuple[int, int]) -> Any:
    from detectron2.structures import BitMasks, Boxes, Instances

    return Instances(
        hw,
        gt_boxes=Boxes(target["boxes"]),
        gt_classes=target["labels"] - 1,  # its background is the last class
        gt_masks=BitMasks(target["masks"]),
    )
