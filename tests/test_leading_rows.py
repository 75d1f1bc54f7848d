"""Rows that are asked for, and their gradients, against all rows computed at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops.leading_rows import leading_rows


def dense(params, rows):
    x, kinds = rows
    return jnp.tanh(x @ params["kernel"]) + params["bias"][kinds][:, None]


@pytest.mark.parametrize("count", [0, 1, 16, 17, 37])
def test_values_and_gradients(count):
    rng = np.random.default_rng(count)
    params = {
        "kernel": jnp.asarray(rng.standard_normal((5, 3)), jnp.float32),
        "bias": jnp.asarray(rng.standard_normal(4), jnp.float32),
    }
    x = jnp.asarray(rng.standard_normal((2, 37, 5)), jnp.float32)
    kinds = jnp.asarray(rng.integers(0, 4, (2, 37)), jnp.int32)
    g = jnp.asarray(rng.standard_normal((2, 37, 3)), jnp.float32)

    def some(params, x, count):
        return leading_rows(dense, params, (x, kinds), count)

    def every(params, x, _):
        out = dense(params, (x.reshape(-1, 5), kinds.reshape(-1))).reshape(2, 37, 3)
        return out * (jnp.arange(37) < end)[None, :, None]

    end = min(-(-count // 16) * 16, 37)  # what begins a block of 32 / 2 images is finished
    found, expected = (
        jax.jit(lambda *a, f=f: (f(*a), jax.grad(lambda *b: (f(*b) * g).sum(), (0, 1))(*a)))(
            params, x, jnp.int32(count)
        )
        for f in (some, every)
    )
    assert np.all(np.asarray(found[0])[:, end:] == 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
