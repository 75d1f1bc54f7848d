"""What an earlier process has traced: the same program, and never another one."""

import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from configs import common
from maskrcnn_jax import config, runtime
from maskrcnn_jax.traces import Traces, beside_the_cache


class State(NamedTuple):
    count: jax.Array
    weights: dict


class Counted:
    """A jitted function and how often it was traced."""

    def __init__(self, function, **options):
        self.times = 0

        def counting(*args):
            self.times += 1
            return function(*args)

        self.jitted = jax.jit(counting, **options)


def advance(state, rows):
    moved = jax.tree.map(lambda w: w - 0.5 * rows.mean(0), state.weights)
    return State(state.count + 1, moved), {"sum": rows.sum(1)}


def sum_of(folder, *about, factor=2.0, x=None, name="sum"):
    """Lowers factor * x, computes it, and tells whether it was traced anew."""
    counted = Counted(lambda x: factor * x)
    x = jnp.arange(3.0) if x is None else x
    lowered = Traces(folder).about(*about).lower(name, counted.jitted, x)
    np.testing.assert_array_equal(lowered.compile()(x), factor * np.asarray(x))
    return counted.times


def test_a_kept_program_is_the_one_that_was_traced(tmp_path):
    mesh = runtime.make_mesh()
    everywhere, shared = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    options = {"donate_argnums": 0, "out_shardings": (everywhere, shared)}
    rows = np.arange(3.0 * jax.device_count(), dtype=np.float32).reshape(-1, 3)
    placed = runtime.shard_batch(rows, mesh)

    def fresh():
        weights = {"w": np.ones(3, np.float32), "frozen": {}}
        return runtime.replicate(State(np.int32(4), weights), mesh)

    shapes = runtime.placed_shapes(fresh(), mesh), runtime.placed_shapes(placed, mesh, "data")
    for times in (1, 0):
        counted, state = Counted(advance, **options), fresh()
        lowered = Traces(tmp_path).lower("one step", counted.jitted, *shapes)
        after, metrics = lowered.compile()(state, placed)
        assert counted.times == times
        assert isinstance(after, State) and after.weights["frozen"] == {} and after.count == 5
        np.testing.assert_allclose(after.weights["w"], 1 - 0.5 * rows.mean(0), rtol=1e-6)
        np.testing.assert_allclose(metrics["sum"], rows.sum(1), rtol=1e-6)
        assert after.weights["w"].sharding.is_equivalent_to(everywhere, 1)
        assert metrics["sum"].sharding.is_equivalent_to(shared, 1)
        assert state.weights["w"].is_deleted() and not placed.is_deleted()
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("one_step-")


def test_without_a_folder_all_is_traced(tmp_path):
    assert sum_of(None) == 1 and sum_of(None) == 1
    assert not list(tmp_path.iterdir())


def test_another_function_is_another_program(tmp_path):
    assert sum_of(tmp_path, {"factor": 2.0}) == 1
    assert sum_of(tmp_path, {"factor": 2.0}) == 0
    assert sum_of(tmp_path, {"factor": 3.0}, factor=3.0) == 1
    assert sum_of(tmp_path, {"factor": 2.0}, name="another") == 1
    assert sum_of(tmp_path, {"factor": 2.0}, x=jnp.arange(4.0)) == 1
    assert sum_of(tmp_path, {"factor": 2.0}, x=jnp.arange(3)) == 1
    placed = runtime.replicate(np.arange(3, dtype=np.float32), runtime.make_mesh())
    assert sum_of(tmp_path, {"factor": 2.0}, x=placed) == 1
    assert sum_of(tmp_path, {"factor": 2.0}) == 0


def test_a_models_fields_and_its_classes_count(tmp_path):
    model = ConfigDict(common.get_config().model.to_dict(), type_safe=False)
    kept = Traces(tmp_path).about_model(model, 3)
    digest = kept._digest("x", ())
    assert Traces(tmp_path).about_model(common.get_config().model, 3)._digest("x", ()) == digest
    assert Traces(tmp_path).about_model(model, 4)._digest("x", ()) != digest
    for field, value in model.items():
        model[field] = (*value, 1.0) if isinstance(value, tuple) else f"{value}1"
        assert Traces(tmp_path).about_model(model, 3)._digest("x", ()) != digest, field
        model[field] = value


def test_a_config_is_a_source(tmp_path, monkeypatch):
    path = tmp_path / "configs" / "mine.py"
    path.parent.mkdir()
    monkeypatch.delitem(sys.modules, "_config_mine", raising=False)
    for text, times in (("", 1), ("", 0), ("# other values\n", 1)):
        path.write_text(f"from configs import common\n{text}get_config = common.get_config\n")
        config.load(path, schema=common.get_config())
        assert sum_of(tmp_path / "kept") == times
    del sys.modules["_config_mine"]


def test_settings_of_jax_count(tmp_path):
    assert sum_of(tmp_path) == 1
    try:
        jax.config.update("jax_default_matmul_precision", "float32")
        assert sum_of(tmp_path) == 1
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    assert sum_of(tmp_path) == 0


def test_the_source_of_all_modules_but_libraries_counts(tmp_path, monkeypatch):
    source = tmp_path / "their_loss.py"
    source.write_text("WEIGHT = 1\n")
    assert sum_of(tmp_path / "kept") == 1
    module = types.ModuleType("their_loss")
    module.__file__ = str(source)
    monkeypatch.setitem(sys.modules, "their_loss", module)
    assert sum_of(tmp_path / "kept") == 1
    assert sum_of(tmp_path / "kept") == 0
    source.write_text("WEIGHT = 2\n")
    assert sum_of(tmp_path / "kept") == 1
    monkeypatch.setattr(module, "__file__", np.__file__)
    assert sum_of(tmp_path / "kept") == 0


@pytest.mark.parametrize("damage", [b"", b"no zlib", None])
def test_a_damaged_file_is_traced_anew_and_replaced(tmp_path, damage):
    assert sum_of(tmp_path) == 1
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert sum_of(tmp_path) == 1
    assert sum_of(tmp_path) == 0
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert sum_of(tmp_path / "file") == sum_of(tmp_path / "file" / "below") == 1


def test_what_cannot_be_exported_is_lowered_all_the_same(tmp_path):
    def told(x):
        return jax.pure_callback(lambda x: np.asarray(x) + 1, x, x)

    for _ in range(2):
        lowered = Traces(tmp_path).lower("told", jax.jit(told), jnp.ones(3))
        np.testing.assert_array_equal(lowered.compile()(jnp.ones(3)), 2)
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_written_down_are_lowered_all_the_same(tmp_path):
    class Local(NamedTuple):  # pickle finds no such class
        x: jax.Array

    lowered = Traces(tmp_path).lower("local", jax.jit(lambda x: Local(x + 1)), jnp.ones(3))
    assert lowered.compile()(jnp.ones(3)).x[0] == 2
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_the_function_is_raised_as_it_is(tmp_path):
    with pytest.raises(TypeError, match="incompatible shapes"):
        Traces(tmp_path).lower("x", jax.jit(lambda x: x + jnp.ones(4)), jnp.ones(3))


def test_they_lie_beside_the_compilation_cache_of_a_program_with_a_source(tmp_path, monkeypatch):
    before, main = jax.config.jax_compilation_cache_dir, sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", "main.py", raising=False)
    try:
        for folder, found in ((str(tmp_path), tmp_path / "traces"), (None, None), ("gs://a", None)):
            jax.config.update("jax_compilation_cache_dir", folder)
            assert beside_the_cache()._folder == found
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        monkeypatch.delattr(main, "__file__")
        assert beside_the_cache()._folder is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
