"""What the compiled programs cost: time to compile, memory, FLOPs and the share of the peak.

Time to compile and memory need a process of their own each:

    python -m benchmarks.compiling --what inference --side ours --cache FOLDER
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.soak import memory_mib
from benchmarks.timing import Figures, Setting, Skipped

_WHAT = ("inference", "train_step")
SIDES = ("ours", "torchvision", "detectron2")


def compile_time(setting: Setting) -> Iterator[Figures | Skipped]:
    """Seconds from an empty cache, and from the cache that this left behind."""
    for what in _WHAT:
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (_child(setting, what, "ours", cache) for _ in range(2))
        values = {
            "cold, s": cold["ready_s"],
            "from the cache, s": warm["ready_s"],
            "cache / cold": warm["ready_s"] / cold["ready_s"],
        }
        yield Figures(f"compile time, {what}", values, "tracing and lowering included")


def memory(setting: Setting) -> Iterator[Figures | Skipped]:
    """The largest resident memory of a process that does nothing else; on GPUs, of the device.

    Ours twice: the second finds its program in the cache.
    """
    for what in _WHAT:
        with tempfile.TemporaryDirectory() as cache:
            ours = ("ours", "ours, cached")
            found = {name: _child(setting, what, "ours", cache) for name in ours}
        if not setting.small:
            peers = filter(setting.has, SIDES[1:])
            found |= {side: _child(setting, what, side, "") for side in peers}
        values = {}
        for name, figures in found.items():
            values |= {
                f"{name}: peak, MiB": figures["peak_mib"],
                f"{name}: of it before the model, MiB": figures["imports_mib"],
            }
            if figures["device_mib"]:
                values[f"{name}: peak on the device, MiB"] = figures["device_mib"]
        yield Figures(f"memory, {what}", values)


def flops(setting: Setting) -> Iterator[Figures | Skipped]:
    """FLOPs by XLA's own analysis, against the rate of a large matrix product here and now."""
    import jax

    peak = matmul_rate(setting)
    yield Figures("matrix product", {f"{setting.dtype}, GFLOP/s": peak / 1e9})
    for what in _WHAT:
        run, images, program = _ours(setting, what)
        run()
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - started)
        cost = program.cost_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        rate = cost["flops"] / statistics.median(seconds)
        values = {
            "GFLOPs an image": cost["flops"] / images / 1e9,
            "GFLOP/s": rate / 1e9,
            "share of the matrix product's rate": rate / peak,
        }
        note = "XLA counts the body of a loop once (NMS, ROIAlign and sampling have loops)"
        yield Figures(f"FLOPs, {what}", values, note)


def matmul_rate(setting: Setting) -> float:
    """FLOPs a second of a square matrix product in the setting's dtype, best of five."""
    import jax
    import jax.numpy as jnp

    side = 256 if setting.small else (8192 if setting.device == "cuda" else 2048)
    a = jnp.ones((side, side), setting.dtype)
    product = jax.jit(lambda a, b: a @ b)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds[1:])


def _ours(setting: Setting, what: str) -> tuple[Callable, int, Any]:
    """A call of our program, the images of one, and the program."""
    from benchmarks import inference, training

    if what == "inference":
        batch = setting.batches[0]
        program, args = inference.program(setting, batch)
        return lambda: program(*args), batch, program
    program, (state, data) = training.program(setting)

    def step() -> Any:
        nonlocal state
        state, metrics = program(state, data)
        return metrics

    return step, len(data.images), program


def _peer(setting: Setting, what: str, side: str) -> Callable:
    from benchmarks import inference, training

    if what == "inference":
        return inference.peer_network(setting, side)
    return training.peer_step(setting, side)


def _child(setting: Setting, what: str, side: str, cache: str) -> dict:
    asked = {k: sorted(v) if isinstance(v, frozenset) else v for k, v in vars(setting).items()}
    command = [sys.executable, "-m", "benchmarks.compiling", "--what", what, "--side", side]
    command += ["--cache", cache, "--setting", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    """One side of one subject in this process; prints one line of JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--what", choices=_WHAT, required=True)
    parser.add_argument("--side", choices=SIDES, default="ours")
    parser.add_argument("--cache", default="", help="folder of the compilation cache")
    parser.add_argument("--setting", default="{}", help="fields of Setting as JSON")
    args = parser.parse_args(argv)
    asked = json.loads(args.setting)
    setting = Setting(**{k: tuple(v) if isinstance(v, list) else v for k, v in asked.items()})
    device = 0
    if args.side == "ours":
        import jax

        from maskrcnn_jax import runtime

        if setting.device == "cpu":
            jax.config.update("jax_platforms", "cpu")
        if args.cache:
            jax.config.update("jax_compilation_cache_dir", args.cache)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.devices()
        imports, started = memory_mib("self", "VmHWM"), time.perf_counter()
        run, _, _ = _ours(setting, args.what)
        ready = time.perf_counter() - started
        runtime.return_memory()  # as after each program that training or prediction compiles
        for _ in range(2):
            jax.block_until_ready(run())
        stats = jax.local_devices()[0].memory_stats() or {}
        device = stats.get("peak_bytes_in_use", 0) / 2**20
    else:
        import torch

        from benchmarks import peers_torch

        peers_torch.require(args.side, setting.threads)
        imports, started = memory_mib("self", "VmHWM"), time.perf_counter()
        run = _peer(setting, args.what, args.side)
        ready = time.perf_counter() - started
        for _ in range(2):
            run()
        if setting.device == "cuda":
            device = torch.cuda.max_memory_allocated() / 2**20
    found = {
        "ready_s": ready,
        "imports_mib": imports,
        "peak_mib": memory_mib("self", "VmHWM"),
    }
    print(json.dumps(found | {"device_mib": device}))


if __name__ == "__main__":
    main()
