"""Normalisation behind one factory, and the convolution that carries it."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.ops.conv import conv as conv_op
from maskrcnn_jax.ops.platform import by_platform

NORMS = ("none", "frozen", "batch", "group")


class FrozenAffine(nn.Module):
    """Batch normalisation with its statistics and affine folded into one scale and bias.

    They live in the `batch_stats` collection, so that no optimizer, decay or clipping sees them.
    Source: Detectron2 `FrozenBatchNorm2d`.
    """

    init_scale: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... F"]) -> Float[Array, "... F"]:
        """x: channels last. Returns x * scale + bias in x's dtype."""
        shape = (x.shape[-1],)
        scale = self.variable("batch_stats", "scale", jnp.full, shape, self.init_scale)
        bias = self.variable("batch_stats", "bias", jnp.zeros, shape)
        return x * scale.value.astype(self.dtype) + bias.value.astype(self.dtype)


class ConvNorm(nn.Module):
    """Convolution, norm, optional ReLU. Without a norm the convolution has a bias.

    Padding is symmetric, dilation * (kernel - 1) // 2 zeros, as in PyTorch. `norm` is one of
    `NORMS`; "batch" takes its statistics over the whole global batch, because under jit the array
    is global.
    init_scale: of a frozen norm that no checkpoint fills.
    """

    features: int
    kernel: int
    stride: int = 1
    groups: int = 1
    norm: str = "none"
    relu: bool = True
    init_scale: float = 1.0
    dtype: DTypeLike = jnp.float32
    dilation: int = 1
    kernel_init: Callable = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

    @nn.compact
    def __call__(self, x: Float[Array, "B H W F"], train: bool) -> Float[Array, "B h w f"]:
        """x: [B, H, W, F]. train: take batch statistics from x instead of the running ones."""
        pad = self.dilation * (self.kernel - 1) // 2
        is_plain = self.groups == self.dilation == 1
        conv = partial(nn.Conv, conv_general_dilated=conv_op) if is_plain else nn.Conv
        conv = conv if self.groups == 1 else GroupedConv
        x = conv(
            self.features,
            (self.kernel, self.kernel),
            strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            kernel_dilation=(self.dilation, self.dilation),
            feature_group_count=self.groups,
            use_bias=self.norm == "none",
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="conv",
        )(x)
        if self.norm == "frozen":
            x = FrozenAffine(self.init_scale, self.dtype, name="norm")(x)
        elif self.norm == "batch":
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                name="norm",
            )(x)
        elif self.norm == "group":
            x = nn.GroupNorm(
                num_groups=min(32, self.features), epsilon=1e-5, dtype=self.dtype, name="norm"
            )(x)
        return nn.relu(x) if self.relu else x


class GroupedConv(nn.Module):
    """Grouped convolution as one small matrix product per kernel tap, on the CPU.

    XLA's CPU backend computes the gradient of a grouped convolution two orders slower than that of
    a dense one; the taps' gradient is again a product. Other platforms take the native form. The
    kernel has nn.Conv's shape [kh, kw, F / groups, features] and the same values mean the same.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    feature_group_count: int
    use_bias: bool
    dtype: DTypeLike
    kernel_init: Callable
    kernel_dilation: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W F"]) -> Float[Array, "B h w f"]:
        """x: [B, H, W, F], F divisible by the number of groups."""
        groups = self.feature_group_count
        shape = (*self.kernel_size, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        x = by_platform(x, kernel, cpu=self._taps, default=self._native)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            x = x + bias.astype(self.dtype)
        return x

    def _native(self, x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            self.strides,
            self.padding,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.feature_group_count,
        )

    def _taps(self, x: Array, kernel: Array) -> Array:
        groups, (sy, sx) = self.feature_group_count, self.strides
        x = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
        b, height, width, channels = x.shape
        (ky, kx), (gap_y, gap_x) = self.kernel_size, self.kernel_dilation
        rows = (height - gap_y * (ky - 1) - 1) // sy + 1
        cols = (width - gap_x * (kx - 1) - 1) // sx + 1
        x = x.reshape(b, height, width, groups, channels // groups)
        kernel = kernel.reshape(*kernel.shape[:3], groups, self.features // groups)
        out = jnp.zeros((b, rows, cols, groups, self.features // groups), self.dtype)
        for dy in range(ky):
            for dx in range(kx):
                top, left = dy * gap_y, dx * gap_x
                tap = x[:, top : top + rows * sy : sy, left : left + cols * sx : sx]
                out += jnp.einsum("bhwgi,igo->bhwgo", tap[:, :rows, :cols], kernel[dy, dx])
        return out.reshape(b, rows, cols, self.features)
