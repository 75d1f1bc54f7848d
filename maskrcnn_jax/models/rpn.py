"""The region proposal network's head. Source: arXiv 1506.01497, section 3.1."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.models.norm import ConvNorm

small_normal = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
    """One 3x3 convolution (or `num_convs`) and two 1x1, shared by all levels."""

    num_anchors: int = 3
    features: int = 256
    num_convs: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: dict[str, Float[Array, "B h w F"]]
    ) -> tuple[Float[Array, "B N"], Float[Array, "B N 4"]]:
        """pyramid: p2..p6. Returns objectness logits and anchor deltas, float32.

        Order: level, row, column, anchor. Deltas are (dx, dy, dw, dh), unit weights.
        """
        convs = [
            ConvNorm(
                self.features, 3, dtype=self.dtype, kernel_init=small_normal, name=f"conv{i + 1}"
            )
            for i in range(self.num_convs)
        ]
        predict = {"kernel_init": small_normal, "dtype": self.dtype}
        objectness = nn.Conv(self.num_anchors, (1, 1), name="objectness", **predict)
        deltas = nn.Conv(4 * self.num_anchors, (1, 1), name="deltas", **predict)
        all_logits, all_deltas = [], []
        for level in pyramid.values():
            x = level
            for conv in convs:
                x = conv(x, False)
            batch = x.shape[0]
            all_logits.append(objectness(x).reshape(batch, -1))
            all_deltas.append(deltas(x).reshape(batch, -1, 4))
        logits = jnp.concatenate(all_logits, 1).astype(jnp.float32)
        return logits, jnp.concatenate(all_deltas, 1).astype(jnp.float32)
