"""The keypoint head: one heatmap per keypoint, in the frame of the roi.

Source: arXiv 1703.06870, section 5; Detectron2 `KRCNNConvDeconvUpsampleHead`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.models.norm import ConvNorm

UPSCALE = 4  # side of the heatmaps over that of the pooled features


class KeypointHead(nn.Module):
    """`num_convs` 3x3 convolutions, a 4x4 transposed one of stride 2, bilinear upsampling by 2."""

    num_keypoints: int
    features: int = 512
    num_convs: int = 8
    norm: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pooled: Float[Array, "R S S F"], train: bool) -> Float[Array, "R J T T"]:
        """pooled: [R, S, S, F]. Returns float32 logits of each keypoint's place, [R, J, 4S, 4S]."""
        x = pooled
        for i in range(self.num_convs):
            conv = ConvNorm(self.features, 3, norm=self.norm, dtype=self.dtype, name=f"conv{i + 1}")
            x = conv(x, train)
        x = Deconv4(self.num_keypoints, dtype=self.dtype, name="deconv")(x).astype(jnp.float32)
        rois, height, width, keypoints = x.shape
        x = jax.image.resize(x, (rois, 2 * height, 2 * width, keypoints), "bilinear")
        return jnp.moveaxis(x, -1, 1)


class Deconv4(nn.Module):
    """Transposed 4x4 convolution of stride 2, cropped by one cell: twice the side.

    Cell (y, x) adds to the output cells 2y - 1 .. 2y + 2 by the rows 0 .. 3 of the kernel.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "R h w F"]) -> Float[Array, "R H W f"]:
        """x: [R, h, w, F]. Returns [R, 2h, 2w, features]."""
        shape = (4, 4, x.shape[-1], self.features)
        # He's variance over what a cell sends, as Detectron2 computes it for this layer.
        kernel = self.param(
            "kernel", nn.initializers.variance_scaling(2.0, "fan_in", "normal"), shape
        )
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel[::-1, ::-1].astype(self.dtype),
            (1, 1),
            ((2, 2), (2, 2)),
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias.astype(self.dtype)
