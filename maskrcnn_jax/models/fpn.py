"""Feature pyramid: C2..C5 in, P2..P6 out. Source: arXiv 1612.03144, section 3."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.models.norm import ConvNorm

xavier = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
    """Lateral 1x1, top-down nearest upsampling and sum, 3x3 output; P6 is P5[::2, ::2]."""

    features: int = 256
    norm: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, stages: dict[str, Float[Array, "B h w F"]], train: bool
    ) -> dict[str, Float[Array, "B h w f"]]:
        """stages: {"c2": [B, H/4, W/4, F], ... "c5"}, H and W multiples of 32.

        Returns {"p2": [B, H/4, W/4, features], ... "p6"}, p6 with ceil(H/64) rows.
        """
        common = {"norm": self.norm, "relu": False, "dtype": self.dtype, "kernel_init": xavier}
        out, above = {}, None
        for level in (5, 4, 3, 2):
            lateral = ConvNorm(self.features, 1, name=f"lateral{level}", **common)
            x = lateral(stages[f"c{level}"], train)
            if above is not None:
                x = x + jnp.repeat(jnp.repeat(above, 2, axis=1), 2, axis=2)
            above = x
            out[f"p{level}"] = ConvNorm(self.features, 3, name=f"output{level}", **common)(x, train)
        out["p6"] = out["p5"][:, ::2, ::2]
        return dict(sorted(out.items()))
