"""What programs are compiled with on CPUs, and what surrounds their compilation."""

import gc
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax import runtime
from maskrcnn_jax.ops.platform import by_platform, platform


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


def test_garbage_is_collected_as_usual_from_the_first_program_on(monkeypatch):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    before, lines = gc.get_threshold(), []
    try:
        gc.set_threshold(1_000)
        monkeypatch.setattr(runtime, "_COLLECTIONS", (1_000, 10, 10))
        runtime.start("none", deterministic=False)
        assert gc.get_threshold()[0] > 1_000
        programs = runtime.Programs(jax.jit(lambda x: x + 1), "sum", lines.append)
        assert programs.get((4, 4), jnp.ones(3))(jnp.ones(3))[0] == 2
        assert gc.get_threshold() == (1_000, 10, 10) and "sum for 4x4" in lines[0]
    finally:
        gc.set_threshold(*before)


def test_what_a_compiler_took_is_returned(monkeypatch):
    returned = []
    monkeypatch.setattr(runtime, "return_memory", lambda: returned.append(len(programs)))
    programs = runtime.Programs(jax.jit(lambda x: x + 1), "sum", lambda line: None)
    for _ in range(2):
        programs.get((4, 4), jnp.ones(3))
    assert returned == [0]


def test_memory_is_returned_where_there_is_glibc(monkeypatch):
    asked = []
    library = types.SimpleNamespace(malloc_trim=asked.append)
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: library)
    runtime.return_memory()
    assert asked == [0]
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: object())
    runtime.return_memory()


def test_a_program_is_compiled_beside_other_work():
    released, lines, traced = threading.Event(), [], []

    def add(x, y):
        traced.append(x.shape)
        return {name: x + value for name, value in y.items()}

    class Lowered:  # its compiler waits until it is let go
        def __init__(self, lowered):
            self._lowered = lowered

        def compile(self, options):
            assert released.wait(60)
            return self._lowered.compile(options)

    def slow():
        pass

    jitted = jax.jit(add)
    slow.lower = lambda *args: Lowered(jitted.lower(*args))

    mesh = runtime.make_mesh()
    rows = {"a": np.ones((jax.device_count(), 3), np.float32)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rows)
    programs = runtime.Programs(slow, "sum", lines.append)
    programs.begin((4, 4), jnp.ones(3), runtime.placed_shapes(shapes, mesh, "data"))
    assert traced == [(3,)] and not lines and (4, 4) not in programs
    released.set()
    placed = runtime.shard_batch(rows, mesh)
    np.testing.assert_array_equal(programs.get((4, 4))(jnp.ones(3), placed)["a"], 2 * rows["a"])
    assert programs.get((4, 4), jnp.ones(3), placed) is programs.get((4, 4))
    assert len(lines) == len(traced) == 1 and (4, 4) in programs


def test_a_compilers_error_is_raised_where_the_program_is_wanted():
    class Lowered:
        def compile(self, _):
            raise RuntimeError("out of memory")

    def broken():
        pass

    broken.lower = Lowered
    programs = runtime.Programs(broken, "sum", print)
    programs.begin((4, 4))
    with pytest.raises(RuntimeError, match="out of memory"):
        programs.get((4, 4))


def test_the_form_of_an_operation_is_that_of_the_device(monkeypatch):
    def which(x):
        return by_platform(x, cpu=lambda x: x + 1, default=lambda x: x + 2)

    assert platform() == jax.default_backend() == "cpu"
    assert jax.jit(which)(0) == 1
    with jax.default_device(jax.devices("cpu")[1]):
        assert platform() == "cpu" and jax.jit(which)(0) == 1
    with jax.default_device("cpu"):
        assert platform() == "cpu"
    assert str(jax.make_jaxpr(which)(0)).count("add") == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert platform() == "gpu" and which(0) == 2
    with jax.default_device(jax.devices("cpu")[1]):
        assert platform() == "cpu" and which(0) == 1
