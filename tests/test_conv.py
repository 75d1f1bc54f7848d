"""Gradients of convolutions against those that JAX derives, and against sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops.conv import conv

CASES = [  # height, width, kernel, stride, padding
    (9, 12, 3, 1, 1),
    (8, 11, 3, 2, 1),
    (12, 8, 7, 2, 3),
    (8, 7, 1, 1, 0),
    (8, 7, 1, 2, 0),
    (9, 9, 3, 3, 0),
    (10, 11, 3, 3, 0),
    (6, 6, 5, 1, 0),
]


def arrays(height, width, side, stride, pad):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, height, width, 3)).astype(np.float32)
    kernel = rng.standard_normal((side, side, 3, 4)).astype(np.float32)
    out = [(n + 2 * pad - side) // stride + 1 for n in (height, width)]
    return x, kernel, rng.standard_normal((2, *out, 4)).astype(np.float32)


def by_hand(x, kernel, g, stride, pad):
    """Output and both gradients, a tap of the kernel at a time, in float64."""
    x, kernel, g = (a.astype(np.float64) for a in (x, kernel, g))
    side = kernel.shape[0]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out, x_grad, kernel_grad = np.zeros_like(g), np.zeros_like(x), np.zeros_like(kernel)
    for i in range(side):
        for j in range(side):
            rows = slice(i, i + g.shape[1] * stride, stride)
            columns = slice(j, j + g.shape[2] * stride, stride)
            tap = (slice(None), rows, columns)
            part = x[tap][:, : g.shape[1], : g.shape[2]]
            out += part @ kernel[i, j]
            kernel_grad[i, j] = np.tensordot(part, g, ((0, 1, 2),) * 2)
            x_grad[tap] += g @ kernel[i, j].T
    inner = slice(pad, -pad or None)
    return out, x_grad[:, inner, inner], kernel_grad


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case):
    x, kernel, g = arrays(*case)
    stride, pad = case[3:]

    @jax.jit
    def run(x, kernel, g):
        out, vjp = jax.vjp(lambda *a: conv(*a, (stride,) * 2, ((pad, pad),) * 2), x, kernel)
        return out, *vjp(g)

    for found, expected in zip(run(x, kernel, g), by_hand(x, kernel, g, stride, pad), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_inside_a_loop_the_gradients_stay_the_same():
    x, kernel, g = arrays(14, 14, 3, 1, 1)

    @jax.jit
    def summed(x, kernel, g):
        def body(_, total):
            _, vjp = jax.vjp(lambda *a: conv(*a, (1, 1), ((1, 1), (1, 1))), x, kernel)
            return jax.tree.map(jnp.add, total, vjp(g))

        return jax.lax.fori_loop(0, 3, body, (jnp.zeros_like(x), jnp.zeros_like(kernel)))

    for found, once in zip(summed(x, kernel, g), by_hand(x, kernel, g, 1, 1)[1:], strict=True):
        np.testing.assert_allclose(found, 3 * once, atol=1e-4)


def test_other_options_are_refused():
    x, kernel, _ = map(jnp.asarray, arrays(9, 9, 3, 1, 1))
    with pytest.raises(ValueError, match="feature_group_count"):
        conv(x, kernel, (1, 1), ((1, 1), (1, 1)), feature_group_count=3)
