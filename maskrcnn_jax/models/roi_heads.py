"""Heads on pooled rois: classes and boxes, masks. Source: arXiv 1703.06870, section 3, figure 4."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from maskrcnn_jax.models.fpn import xavier
from maskrcnn_jax.models.norm import ConvNorm


class BoxHead(nn.Module):
    """`num_convs` 3x3 convolutions, `num_fcs` dense layers, class logits and deltas: of each class,
    or with `class_agnostic` one for all of them."""

    num_classes: int
    fc_dim: int = 1024
    num_fcs: int = 2
    num_convs: int = 0
    conv_dim: int = 256
    class_agnostic: bool = False
    norm: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "R S S F"], train: bool
    ) -> tuple[Float[Array, "R C1"], Float[Array, "R C 4"]]:
        """pooled: [R, S, S, F] of ROIAlign. Returns logits [R, C + 1], background last, and
        deltas [R, C, 4] or [R, 1, 4], both float32."""
        x = pooled
        for i in range(self.num_convs):
            conv = ConvNorm(self.conv_dim, 3, norm=self.norm, dtype=self.dtype, name=f"conv{i + 1}")
            x = conv(x, train)
        x = x.reshape(x.shape[0], -1)
        for i in range(self.num_fcs):
            dense = nn.Dense(self.fc_dim, dtype=self.dtype, kernel_init=xavier, name=f"fc{i + 1}")
            x = nn.relu(dense(x))
        logits = nn.Dense(
            self.num_classes + 1,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.01),
            name="cls_score",
        )(x)
        deltas = nn.Dense(
            4 * (1 if self.class_agnostic else self.num_classes),
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.001),
            name="bbox_pred",
        )(x)
        deltas = deltas.reshape(len(logits), -1, 4)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32)


class MaskHead(nn.Module):
    """`num_convs` 3x3 convolutions, a 2x2 transposed one of stride 2, a 1x1 per class."""

    num_classes: int
    features: int = 256
    num_convs: int = 4
    norm: str = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "R S S F"], classes: Int[Array, "R"] | None, train: bool
    ) -> Float[Array, "R T T"] | Float[Array, "R T T C"]:
        """pooled: [R, S, S, F]. Returns float32 logits at twice the side.

        classes: the class of each roi whose mask is wanted, [R, 2S, 2S]; None gives all of them,
        [R, 2S, 2S, C]. Only the asked-for rows of the last layer are multiplied. The only row of a
        head with one class serves them all (class-agnostic masks).
        """
        x = pooled
        for i in range(self.num_convs):
            conv = ConvNorm(self.features, 3, norm=self.norm, dtype=self.dtype, name=f"conv{i + 1}")
            x = conv(x, train)
        x = nn.relu(Upsample(self.features, dtype=self.dtype, name="deconv")(x))
        shape = (self.features, self.num_classes)
        kernel = self.param("predictor_kernel", nn.initializers.normal(0.001), shape)
        bias = self.param("predictor_bias", nn.initializers.zeros_init(), (self.num_classes,))
        kernel, bias = jnp.asarray(kernel, self.dtype), jnp.asarray(bias)
        if classes is None:
            logits = jnp.einsum("rhwf,fc->rhwc", x, kernel)
            return logits.astype(jnp.float32) + bias
        own = jnp.minimum(classes, self.num_classes - 1)
        logits = jnp.einsum("rhwf,fr->rhw", x, kernel[:, own])
        return logits.astype(jnp.float32) + bias[own][:, None, None]


class MaskMLP(nn.Module):
    """`num_fcs` dense layers, and one to the cells of every class: the mask branch that forgets
    where a feature lies. Source: arXiv 1703.06870, table 2e."""

    num_classes: int
    fc_dim: int = 1024
    num_fcs: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "R S S F"], classes: Int[Array, "R"] | None, train: bool
    ) -> Float[Array, "R T T"] | Float[Array, "R T T C"]:
        """As of `MaskHead`, from the same features. `train` makes no difference."""
        side = 2 * pooled.shape[1]
        x = pooled.reshape(len(pooled), -1)
        for i in range(self.num_fcs):
            dense = nn.Dense(self.fc_dim, dtype=self.dtype, kernel_init=xavier, name=f"fc{i + 1}")
            x = nn.relu(dense(x))
        logits = nn.Dense(
            side * side * self.num_classes,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.001),
            name="predictor",
        )(x)
        logits = logits.astype(jnp.float32).reshape(-1, side, side, self.num_classes)
        if classes is None:
            return logits
        own = jnp.minimum(classes, self.num_classes - 1)
        return jnp.take_along_axis(logits, own[:, None, None, None], axis=-1)[..., 0]


class Upsample(nn.Module):
    """Transposed 2x2 convolution of stride 2: a dense layer from a cell to its four children."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "R h w F"]) -> Float[Array, "R H W f"]:
        """x: [R, h, w, F]. Returns [R, 2h, 2w, features]."""
        r, h, w, f = x.shape
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal", in_axis=2, out_axis=3)
        kernel = self.param("kernel", init, (2, 2, f, self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x = jnp.einsum("rhwf,yxfo->rhywxo", x.astype(self.dtype), kernel)
        return x.reshape(r, 2 * h, 2 * w, self.features) + bias.astype(self.dtype)
