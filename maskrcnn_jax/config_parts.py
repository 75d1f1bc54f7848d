"""Which parts of a model go together: rules between the fields that choose them."""

from collections.abc import Iterator
from typing import Any

Fields = dict[str, Any]


def trunk(fields: Fields) -> Iterator[str]:
    """Errors in the choice of backbone, neck and pooling, one message each."""
    backbone, neck = fields["model.backbone"], fields["model.neck"]
    if backbone != "resnet" and neck in ("c4", "dc5"):
        yield (
            f"model.neck={neck!r} is made of a ResNet's res5, but model.backbone={backbone!r}; set "
            "model.backbone=resnet, or model.neck=single or fpn"
        )
    if fields["model.norm"] == "none" and backbone == "resnet":
        yield "model.norm='none' is VGG's; a ResNet needs model.norm=frozen, batch or group"
    sizes = fields["model.anchor_sizes"]
    if neck == "fpn" and len(sizes) != 5:
        yield (
            f"model.anchor_sizes={sizes!r} has {len(sizes)} values; give 5, one for each level "
            "P2..P6, or set model.neck to one level, which carries all"
        )
    if neck == "c4":
        yield from _c4(fields)
    if neck != "fpn" and fields["model.roi_pool"] == "crop":
        yield f"model.roi_pool='crop' pools from P2..P5, not from {neck!r}; set model.neck=fpn"
    ratio = fields["model.roi_sampling_ratio"]
    if fields["model.roi_pool"] == "align_max" and not ratio:
        yield (
            f"model.roi_sampling_ratio={ratio} leaves the number of samples open, of which "
            "model.roi_pool='align_max' takes the largest; set model.roi_sampling_ratio=2"
        )


def _c4(fields: Fields) -> Iterator[str]:
    if fields["model.box_convs"]:
        yield (
            f"model.box_convs={fields['model.box_convs']}: with model.neck='c4' the box head gets "
            "the mean of each roi behind res5; set model.box_convs=0"
        )
    if fields["model.keypoints"]:
        yield (
            f"model.keypoints={fields['model.keypoints']}: with model.neck='c4' res5 would halve "
            "the heatmaps; set model.neck=fpn, dc5 or single"
        )
    if fields["model.mask_pool_size"] % 2:
        yield (
            f"model.mask_pool_size={fields['model.mask_pool_size']} must be even with "
            "model.neck='c4': res5 halves it"
        )
