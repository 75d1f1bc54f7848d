"""What programs are compiled with on CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax import runtime


@pytest.fixture(autouse=True)
def fresh():
    runtime.compiler_options.cache_clear()
    yield
    runtime.compiler_options.cache_clear()


def kernel_gradient(x, g):
    kernel = jnp.zeros((3, 3, x.shape[-1], g.shape[-1]))

    def conv(kernel):
        sides, names = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), sides, dimension_numbers=names)

    return jax.vjp(conv, kernel)[1](g)[0]


def test_convolutions_keep_their_values_and_leave_the_slow_library():
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((4, 14, 14, 64), np.float32) for _ in range(2))
    lowered = jax.jit(kernel_gradient).lower(x, g)
    program = lowered.compile(runtime.compiler_options())
    assert not runtime.compiler_options() or "__ynn_fusion" not in program.as_text()
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
    expected = [
        [np.tensordot(padded[:, i : i + 14, j : j + 14], g, ((0, 1, 2),) * 2) for j in range(3)]
        for i in range(3)
    ]
    np.testing.assert_allclose(program(x, g), expected, atol=1e-4)


def test_the_users_flag_comes_first(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    assert runtime.compiler_options() == {}


def test_an_xla_without_the_option_is_left_alone(monkeypatch):
    monkeypatch.setattr(runtime, "_CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    assert runtime.compiler_options() == {}
