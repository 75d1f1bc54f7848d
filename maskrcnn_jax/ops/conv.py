"""Convolutions whose gradients are fast on CPUs wherever they stand, in loops, too.

XLA's CPU compiler brings a convolution into the form that its fast kernels take (batch first,
features last, no reversed window) in the body of a program alone. The gradients of a convolution
are not of that form; inside a loop they would take a hundred times as long. Here they are written
in that form.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from maskrcnn_jax.ops.platform import by_platform

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Pair = tuple[int, int]


def conv(
    x: Float[Array, "B H W F"],
    kernel: Float[Array, "kh kw F f"],
    strides: Sequence[int],
    padding: Sequence[Pair],
    **options: Any,
) -> Float[Array, "B h w f"]:
    """`jax.lax.conv_general_dilated` without groups and dilation, to be given to `flax.linen.Conv`.

    padding: zeros (before, behind) of the rows and of the columns. options: what nn.Conv passes
    besides, at its defaults.
    """
    usual = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1}
    if strange := {k: v for k, v in options.items() if k in usual and v != usual[k]}:
        raise ValueError(f"conv: has no {strange}; use jax.lax.conv_general_dilated")
    strides, padding = tuple(strides), tuple(map(tuple, padding))
    if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
        x, strides = x[:, :: strides[0], :: strides[1]], (1, 1)
    return _conv(x, kernel, strides, padding)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Array, kernel: Array, strides: Pair, padding: tuple[Pair, Pair]) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_DIMENSIONS)


def _forward(x: Array, kernel: Array, strides: Pair, padding: tuple) -> tuple:
    return _conv(x, kernel, strides, padding), (x, kernel)


def _backward(strides: Pair, padding: tuple, saved: tuple, g: Array) -> tuple[Array, Array]:
    def native(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        def forward(x: Array, kernel: Array) -> Array:
            return jax.lax.conv_general_dilated(
                x, kernel, strides, padding, dimension_numbers=_DIMENSIONS
            )

        return jax.vjp(forward, x, kernel)[1](g)

    def canonical(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        # Else the layers before are computed once more inside the transposition of x.
        x, g = _in_memory((x, g))
        return (
            _input_gradient(kernel, g, x.shape, strides, padding),
            _kernel_gradient(x, g, kernel.shape, strides, padding),
        )

    return by_platform(*saved, g, cpu=canonical, default=native)


_conv.defvjp(_forward, _backward)


def _input_gradient(kernel: Array, g: Array, shape: tuple, strides: Pair, padding: tuple) -> Array:
    """The output's gradient, spread by the strides, under the kernel turned around."""
    sides = []
    for axis, (before, _) in enumerate(padding):
        side, extent = kernel.shape[axis], (g.shape[axis + 1] - 1) * strides[axis] + 1
        low = side - 1 - before
        sides.append((low, shape[axis + 1] - low - extent + side - 1))
    turned = _in_memory(kernel[::-1, ::-1].swapaxes(2, 3))
    return jax.lax.conv_general_dilated(
        g, turned, (1, 1), sides, lhs_dilation=strides, dimension_numbers=_DIMENSIONS
    )


def _kernel_gradient(x: Array, g: Array, shape: tuple, strides: Pair, padding: tuple) -> Array:
    """The input under the output's gradient: features are the batch, pictures the features."""
    if shape[:2] == strides == (1, 1) and not np.any(padding):
        # Of matrices; the rows of more axes would be transposed in memory first.
        rows = [y.reshape(-1, y.shape[-1]) for y in (x, g)]
        return jax.lax.dot_general(*rows, (((0,), (0,)), ((), ())))[None, None]
    sides = []
    for axis, (before, _) in enumerate(padding):
        extent = (g.shape[axis + 1] - 1) * strides[axis] + 1
        behind = shape[axis] - 1 + extent - x.shape[axis + 1] - before
        # Where the strides leave the last rows out; negative padding has no fast kernel.
        x = jax.lax.slice_in_dim(x, 0, x.shape[axis + 1] + min(behind, 0), axis=axis + 1)
        sides.append((before, max(behind, 0)))
    images, window = _in_memory((x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)))
    found = jax.lax.conv_general_dilated(
        images, window, (1, 1), sides, rhs_dilation=strides, dimension_numbers=_DIMENSIONS
    )
    return _in_memory(found).transpose(1, 2, 0, 3)


def _in_memory(x: Any) -> Any:
    """Keeps the compiler from turning the axes of the convolution instead of those of the array."""
    return jax.lax.optimization_barrier(x)
