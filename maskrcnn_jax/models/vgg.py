"""VGG-16: images in, C2..C5 out. Source: arXiv 1409.1556, table 1, column D."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.models.norm import ConvNorm

CONVS = (2, 2, 3, 3, 3)  # of the five stages, each behind a 2x2 max-pool but the first


class VGG(nn.Module):
    """The backbone. Parameter paths: conv1_1, ... conv5_3, as in the paper.

    C2, C3, C4 are conv3_3, conv4_3, conv5_3, the last maps at strides 4, 8 and 16; C5 is pool5, at
    stride 32. width: channels of conv1; the stages scale with it. norm: "none" is the paper's,
    with biases. freeze_at: in training, too, BatchNorm uses its running statistics in conv1 (from 1
    on), conv2 (from 2 on), ... remat: recompute the convolutions in the backward pass.
    """

    width: int = 64
    norm: str = "none"
    freeze_at: int = 0
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool) -> dict[str, Array]:
        """images: normalised, [B, H, W, 3]. Returns {"c2": [B, H/4, W/4, F], ... "c5"}."""
        layer = nn.remat(ConvNorm, static_argnums=(2,)) if self.remat else ConvNorm
        common = {"norm": self.norm, "dtype": self.dtype}
        x, out = images, {}
        for stage, convs in enumerate(CONVS, 1):
            features = self.width * min(2 ** (stage - 1), 8)
            trains = train and self.freeze_at < stage
            for i in range(1, convs + 1):
                x = layer(features, 3, name=f"conv{stage}_{i}", **common)(x, trains)
            if stage >= 3:
                out[f"c{stage - 1}"] = x
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return out | {"c5": x}
