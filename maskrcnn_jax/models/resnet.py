"""ResNet and ResNeXt: images in, C2..C5 out.

Source: arXiv 1512.03385, 1611.05431; ResNet-10, the least of them, 1612.01452.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.models.norm import ConvNorm

STAGES = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first dilated, and the shortcut (ResNet-10, -18 and -34)."""

    features: int
    stride: int
    dilation: int
    norm: str
    residual_scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W F"], train: bool) -> Float[Array, "B h w f"]:
        """x: [B, H, W, F]; returns [B, H / stride, W / stride, features]."""
        common = {"norm": self.norm, "dtype": self.dtype}
        y = ConvNorm(self.features, 3, self.stride, dilation=self.dilation, name="conv1", **common)(
            x, train
        )
        y = ConvNorm(
            self.features, 3, relu=False, init_scale=self.residual_scale, name="conv2", **common
        )(y, train)
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = ConvNorm(
                self.features, 1, self.stride, relu=False, name="shortcut", **common
            )
            x = shortcut(x, train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped in ResNeXt), 1x1 and the shortcut (ResNet-50 and deeper)."""

    features: int
    inner: int
    stride: int
    dilation: int
    groups: int
    stride_in_1x1: bool
    norm: str
    residual_scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W F"], train: bool) -> Float[Array, "B h w f"]:
        """x: [B, H, W, F]; returns [B, H / stride, W / stride, features]."""
        common = {"norm": self.norm, "dtype": self.dtype}
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = ConvNorm(self.inner, 1, first, name="conv1", **common)(x, train)
        y = ConvNorm(
            self.inner, 3, second, self.groups, dilation=self.dilation, name="conv2", **common
        )(y, train)
        y = ConvNorm(
            self.features, 1, relu=False, init_scale=self.residual_scale, name="conv3", **common
        )(y, train)
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = ConvNorm(
                self.features, 1, self.stride, relu=False, name="shortcut", **common
            )
            x = shortcut(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The backbone. Parameter paths: stem, res2_block0/conv1, ... as in the papers.

    depth: a key of STAGES. width: channels of the stem; the stages scale with it. groups and
    width_per_group: ResNeXt (32, 8). stride_in_1x1: where a stage strides. pool_padding: of the
    stem's max-pool, "symmetric", or "same" as TensorFlow's. freeze_at: in training, too, BatchNorm
    uses its running statistics in the stem (from 1 on), res2 (from 2 on), ..., as in Detectron2;
    the parameters are frozen by the optimizer. remat: recompute the blocks in the backward pass.
    last_stage: 4 ends with C4. res5_dilation: 2 leaves C5 at stride 16, with the 3x3 convolutions
    of all its blocks dilated, as Detectron2's RES5_DILATION.
    """

    depth: int = 50
    width: int = 64
    groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = True
    pool_padding: str = "symmetric"
    norm: str = "frozen"
    freeze_at: int = 0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    last_stage: int = 5
    res5_dilation: int = 1

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool) -> dict[str, Array]:
        """images: normalised, [B, H, W, 3]. Returns {"c2": [B, H/4, W/4, F], ... "c5"}."""
        stem = ConvNorm(self.width, 7, 2, norm=self.norm, dtype=self.dtype, name="stem")
        x = stem(images, train and self.freeze_at < 1)
        # TensorFlow's "same" on an even side pads behind only, and so shifts the grid by one pixel.
        padding = {"symmetric": ((1, 1), (1, 1)), "same": "SAME"}[self.pool_padding]
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
        out = {}
        for stage in range(self.last_stage - 1):
            x = out[f"c{stage + 2}"] = self._stage(stage, x, train)
        return out

    def _stage(self, stage: int, x: Array, train: bool) -> Array:
        """The blocks of res<stage + 2>."""
        level = f"res{stage + 2}"
        dilation = self.res5_dilation if stage == 3 else 1
        trains = train and self.freeze_at < stage + 2
        for index in range(STAGES[self.depth][stage]):
            stride = 2 if stage > 0 and index == 0 and dilation == 1 else 1
            x = self._block(stage, stride, dilation, f"{level}_block{index}")(x, trains)
        return x

    def _block(self, stage: int, stride: int, dilation: int, name: str) -> nn.Module:
        basic = self.depth < 50
        block = BasicBlock if basic else Bottleneck
        if self.remat:
            block = nn.remat(block, static_argnums=(2,))
        # Random weights behind frozen norms: the residuals together keep the stem's variance.
        residual_scale = sum(STAGES[self.depth]) ** -0.5
        common = {"norm": self.norm, "dtype": self.dtype, "name": name, "dilation": dilation}
        common["residual_scale"] = residual_scale
        features = self.width * 2**stage
        if basic:
            return block(features=features, stride=stride, **common)
        return block(
            features=4 * features,
            inner=self.groups * self.width_per_group * features // 64,
            stride=stride,
            groups=self.groups,
            stride_in_1x1=self.stride_in_1x1,
            **common,
        )
