"""The trunk of a detector: from the picture to the maps and rois that the heads see.

    fpn     C2..C5 -> P2..P6 at strides 4..64                           (arXiv 1612.03144)
    c4      res4 at stride 16; pooled rois pass res5, shared by the heads (arXiv 1506.01497)
    dc5     res5 dilated, so at stride 16                               (arXiv 1703.06211)
    single  the last map: res5 at stride 32, VGG's conv5_3 at stride 16

One level alone carries all anchors. Level p<l> has stride 2**l, whatever layer it comes from.
"""

from typing import Any, NamedTuple

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.models.fpn import FPN
from maskrcnn_jax.models.res5_head import MeanBoxHead, Res5Head
from maskrcnn_jax.models.resnet import ResNet
from maskrcnn_jax.models.roi_heads import BoxHead
from maskrcnn_jax.models.vgg import VGG


class Trunk(NamedTuple):
    """The modules of a trunk."""

    backbone: nn.Module  # images -> {"c2", ... "c5"}
    fpn: nn.Module  # these -> {"p2", ... "p6"}, or one level of them
    shared_head: nn.Module  # pooled rois -> what box and mask head get
    box_head: type[BoxHead]
    structure: dict[str, Any]  # the fields of Settings that follow


class OneLevel(nn.Module):
    """In place of an FPN: a stage of the backbone as the level of its stride."""

    stage: str
    level: str

    def __call__(
        self, stages: dict[str, Float[Array, "B _h _w _F"]], train: bool
    ) -> dict[str, Float[Array, "B h w F"]]:
        """Returns {level: stages[stage]}."""
        return {self.level: stages[self.stage]}


class Straight(nn.Module):
    """Hands pooled rois to the heads as they are."""

    def __call__(self, pooled: Float[Array, "R S S F"], train: bool) -> Float[Array, "R S S F"]:
        """Returns pooled."""
        return pooled


def build(config: Any, dtype: DTypeLike) -> Trunk:
    """The trunk of a config's `model` group."""
    return {"fpn": _fpn, "c4": _c4, "dc5": _dc5, "single": _single}[config.neck](config, dtype)


def _fpn(config: Any, dtype: DTypeLike) -> Trunk:
    fpn = FPN(config.fpn_channels, config.head_norm, dtype)
    return Trunk(_backbone(config, dtype), fpn, Straight(), BoxHead, {})


def _c4(config: Any, dtype: DTypeLike) -> Trunk:
    fields = _resnet_fields(config, dtype)
    backbone, shared_head = ResNet(last_stage=4, **fields), Res5Head(**fields)
    structure = _one_level(4) | {"roi_stride": 2}
    return Trunk(backbone, OneLevel("c4", "p4"), shared_head, MeanBoxHead, structure)


def _dc5(config: Any, dtype: DTypeLike) -> Trunk:
    backbone = ResNet(res5_dilation=2, **_resnet_fields(config, dtype))
    return Trunk(backbone, OneLevel("c5", "p4"), Straight(), BoxHead, _one_level(4))


def _single(config: Any, dtype: DTypeLike) -> Trunk:
    number = {"resnet": 5, "vgg16": 4}[config.backbone]
    one_level = OneLevel(f"c{number}", f"p{number}")
    backbone = _backbone(config, dtype)
    return Trunk(backbone, one_level, Straight(), BoxHead, _one_level(number))


def _one_level(number: int) -> dict[str, Any]:
    # Without an FPN the peers do not pad a picture.
    return {"strides": (2**number,), "roi_levels": (f"p{number}",), "size_divisor": 1}


def _backbone(config: Any, dtype: DTypeLike) -> nn.Module:
    if config.backbone == "vgg16":
        return VGG(config.width, config.norm, config.freeze_at, dtype, config.remat)
    return ResNet(**_resnet_fields(config, dtype))


def _resnet_fields(config: Any, dtype: DTypeLike) -> dict[str, Any]:
    return {
        "depth": config.depth,
        "width": config.width,
        "groups": config.groups,
        "width_per_group": config.width_per_group,
        "stride_in_1x1": config.stride_in_1x1,
        "pool_padding": config.pool_padding,
        "norm": config.norm,
        "freeze_at": config.freeze_at,
        "dtype": dtype,
        "remat": config.remat,
    }
