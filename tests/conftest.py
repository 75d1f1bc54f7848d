"""What all tests share: eight virtual CPU devices, the compilation cache, the real data."""

import gc
import os
from pathlib import Path

# Before JAX makes its backend: the mesh tests need eight devices, and no accelerator is touched.
DEVICES = "--xla_force_host_platform_device_count=8"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# As `runtime.start` does; most tests are imports and traces.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
gc.set_threshold(100_000, 20, 100)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src import compiler  # noqa: E402

from maskrcnn_jax import traces  # noqa: E402
from maskrcnn_jax.weights import importer  # noqa: E402

ROOT = Path(__file__).parents[1]

# By update, because a plugin may have imported JAX, which reads its environment only then.
jax.config.update("jax_platforms", "cpu")

# Programs compiled by an earlier run are reused; "none" compiles everything anew.
CACHE = os.environ.get("MASKRCNN_JAX_TEST_CACHE", "~/.cache/maskrcnn_jax/tests")
if CACHE != "none":
    jax.config.update("jax_compilation_cache_dir", str(Path(CACHE).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

# Most programs of the tests are run once or twice, for milliseconds, and to make them fast is most
# of the time. Files with `pytestmark = pytest.mark.optimized` have theirs compiled as users have:
# those that compare numbers with other implementations'.
jax.config.update("jax_disable_most_optimizations", True)
_compile_options = compiler.get_compile_options


def _quicker(*args, env_options_overrides=None, **options):
    """Without the optimizations, too, that JAX's setting leaves on: half of what it leaves.

    And in one piece: the other cores have tests of their own to compile.
    """
    overrides = dict(env_options_overrides or {})
    overrides["xla_cpu_parallel_codegen_split_count"] = 1
    if jax.config.values["jax_disable_most_optimizations"]:
        overrides["xla_cpu_use_fusion_emitters"] = False
    return _compile_options(*args, env_options_overrides=overrides, **options)


compiler.get_compile_options = _quicker

# The first example of a test compiles; the same examples in every run.
hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def optimization(request):
    """Of the compiler, where the file asks for it."""
    if request.node.get_closest_marker("optimized") is None:
        yield
        return
    jax.clear_caches()  # else a program of another file would do
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def nothing_kept():
    """Commands that tests call trace anew: a test may have patched what is traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces, "beside_the_cache", traces.Traces)
        yield


@pytest.fixture(scope="session", autouse=True)
def shapes_once():
    """Nearly all that an import does is to trace its model, and hundreds are of a few models."""
    shapes, known = importer.model_shapes, {}

    def remembered(model_config, num_classes):
        key = repr(sorted(dict(model_config).items())), num_classes
        if key not in known:
            known[key] = shapes(model_config, num_classes)
        return dict(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importer, "model_shapes", remembered)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real photographs with annotations; without it the test is skipped."""
    named = os.environ.get("MASKRCNN_JAX_SHARED_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set MASKRCNN_JAX_SHARED_DATA to the real data")
    return folder
