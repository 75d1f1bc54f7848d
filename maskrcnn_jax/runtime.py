"""The machine: devices, mesh, hosts, compilation cache, and what compiled programs will need."""

import contextlib
import ctypes
import functools
import gc
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskrcnn_jax.errors import UserError
from maskrcnn_jax.traces import Traces

# YNNPACK takes three times as long as Eigen for the gradient of a 3x3 kernel; only single matrix
# products are left to it (benchmarks/NOTES.md).
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}

_COLLECTIONS = gc.get_threshold()  # what `start` changes for a while


def start(compile_cache: str, deterministic: bool) -> None:
    """Joins the other hosts if there are any, and switches the compilation cache on.

    Hosts find each other through jax.distributed: by themselves on Slurm and TPU pods, else through
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. To be called before anything else
    touches JAX's devices. compile_cache: a folder, "" for the user's cache, "none" for no cache.
    """
    # Imports and traces make millions of objects that stay. To look for garbage among them after
    # every 700 new ones is a tenth of the time until the first step. `Programs` sets it back.
    gc.set_threshold(1_000_000, 20, 100)
    # TensorFlow would import Keras, which nothing here uses: a second. What it says to this is
    # that tf.keras is another package.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    if deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if "JAX_NUM_PROCESSES" in os.environ:
        jax.distributed.initialize(
            coordinator_address=os.environ["JAX_COORDINATOR_ADDRESS"],
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 or "TPU_WORKER_HOSTNAMES" in os.environ:
        jax.distributed.initialize()
    use_compile_cache(compile_cache)


def use_compile_cache(folder: str) -> None:
    """Switches JAX's compilation cache on, unless the user chose one already.

    folder: "" for the user's cache, "none" for no cache.
    """
    if folder != "none" and jax.config.jax_compilation_cache_dir is None:
        path = Path(folder or cache_home() / "jax").expanduser()
        path.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(path))


def cache_home() -> Path:
    """The user's cache folder of this package; MASKRCNN_JAX_CACHE overrides it."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "maskrcnn_jax"
    return Path(os.environ.get("MASKRCNN_JAX_CACHE", default)).expanduser()


def num_threads() -> int:
    """Threads for host work: the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_background(call: Callable[[], Any]) -> Future:
    """Calls in a thread of its own, beside the device and the training.

    The thread of an interrupted run dies with it: those of an executor would hold up its end.
    """
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def return_memory() -> None:
    """Gives back to the system what glibc holds of freed memory; does nothing without glibc.

    It holds some for each thread. After evaluations and checkpoints, which pass through many, that
    grows for hundreds of steps; and of a large program's compilation, three quarters of a GiB.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def describe_devices() -> list[str]:
    """What JAX runs on: one line, and a second that warns when an NVIDIA driver lies idle."""
    devices = jax.devices()
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        memory = f"{stats['bytes_limit'] / 2**30:.1f} GiB each"
    else:
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    lines = [
        f"{devices[0].platform}: {len(devices)} x {devices[0].device_kind}, {memory}, "
        f"{jax.process_count()} host(s), {os.cpu_count()} cores, jax {jax.__version__}"
    ]
    has_driver = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()
    if devices[0].platform == "cpu" and has_driver:
        lines.append(
            "WARNING: there is an NVIDIA driver here, but this JAX computes on the CPU. "
            "Install the GPU build: pip install 'maskrcnn_jax[gpu]'"
        )
    return lines


def make_mesh() -> Mesh:
    """All devices of all hosts in one axis, 'data'; the devices of a host stand together, so that
    host i of n feeds the i-th n-th of every global batch."""
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this host's rows of a batch on its devices, as one global array per field."""
    sharding = NamedSharding(mesh, P("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts the same values on every device."""
    sharding = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda i: np.asarray(x)[i]),
        tree,
    )


def placed_shapes(tree: Any, mesh: Mesh, *axes: str) -> Any:
    """The jax.ShapeDtypeStruct of arrays placed by `shard_batch` (axes: "data") or `replicate`.

    tree: of arrays or of jax.ShapeDtypeStruct, the shapes global.
    """
    sharding = NamedSharding(mesh, P(*axes))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def local_rows(x: jax.Array) -> np.ndarray:
    """This host's rows of an array that is sharded over its first axis, in order."""
    pieces = {s.index[0].start or 0: s for s in x.addressable_shards}
    return np.concatenate([np.asarray(pieces[start].data) for start in sorted(pieces)])


def check_batch(name: str, size: int, per_step: int = 1) -> None:
    """Raises UserError unless a global batch can be shared evenly by all devices."""
    unit = jax.device_count() * per_step
    if size % unit:
        raise UserError(
            f"config.{name}={size}: must be a multiple of {unit} "
            f"({jax.device_count()} devices x {per_step} micro-batches)"
        )


def any_host(flag: bool) -> bool:
    """True on every host when the flag is up on one."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def gather_bytes(data: bytes) -> list[bytes]:
    """The bytes of every host, on every host, in the order of the hosts."""
    if jax.process_count() == 1:
        return [data]
    lengths = multihost_utils.process_allgather(np.array(len(data), np.int32)).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [rows[i, :n].tobytes() for i, n in enumerate(lengths)]


@functools.cache
def compiler_options() -> dict[str, str]:
    """What to compile the model with: XLA's own choices, except where they are slow.

    Empty on accelerators, where this XLA has no such option, and where XLA_FLAGS sets it.
    """
    name = next(iter(_CPU_OPTIONS))
    if jax.default_backend() != "cpu" or name in os.environ.get("XLA_FLAGS", ""):
        return {}
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=_CPU_OPTIONS)
    except jax.errors.JaxRuntimeError:
        return {}
    return _CPU_OPTIONS


class Programs:
    """Compiles a jitted function once per canvas, ahead of its first use, and says so."""

    def __init__(
        self, jitted: Callable, name: str, say: Callable[[str], None], traces: Traces | None = None
    ):
        """jitted: result of jax.jit. name: for the log. say: prints a line.

        traces: of earlier processes, told all that `jitted` is made of.
        """
        self._jitted, self._name, self._say = jitted, name, say
        self._traces = traces or Traces()
        self._compiled: dict[tuple[int, int], Any] = {}
        self._begun: dict[tuple[int, int], Future] = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def __contains__(self, canvas: tuple[int, int]) -> bool:
        return canvas in self._compiled

    def begin(self, canvas: tuple[int, int], *args: Any) -> None:
        """Traces for a canvas now, and compiles in a thread, beside what the caller does next.

        args: arrays or jax.ShapeDtypeStruct with shardings, like the arguments of the calls.
        """
        started = time.perf_counter()
        lowered, options = self._traces.lower(self._name, self._jitted, *args), compiler_options()

        def compiled() -> tuple[Any, float, str]:
            program = lowered.compile(options)
            return_memory()
            return program, time.perf_counter() - started, forecast(program)

        self._begun[canvas] = in_background(compiled)

    def get(self, canvas: tuple[int, int], *args: Any) -> Callable:
        """The program for a canvas, compiled for arguments like these unless it was begun."""
        if canvas not in self._compiled:
            if canvas not in self._begun:
                self.begin(canvas, *args)
            program, seconds, told = self._begun.pop(canvas).result()
            gc.set_threshold(*_COLLECTIONS)
            self._say(
                f"compiled the {self._name} for {canvas[0]}x{canvas[1]} in {seconds:.1f} s{told}"
            )
            self._compiled[canvas] = program
        return self._compiled[canvas]


def forecast(program: Any) -> str:
    """'; n GFLOPs, m GiB' of a compiled program per device, as far as the platform tells.

    XLA counts the body of a loop once.
    """
    parts = []
    cost = program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    if cost and cost.get("flops", 0) > 0:
        parts.append(f"{cost['flops'] / 1e9:.1f} GFLOPs")
    memory = program.memory_analysis()
    if memory is not None:
        total = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        parts.append(f"{total / 2**30:.2f} GiB memory per device")
    return "; " + ", ".join(parts) if parts else ""
