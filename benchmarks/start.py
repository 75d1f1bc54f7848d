"""How long until a run has taken its first step, with nothing in the cache and with all in it?

    python -m benchmarks.start --config configs/shapes.py --rounds 5

Starts main.py in new folders, waits for the first step's losses to be written, and ends it. The
first time compiles, and prepares the data if no run has; the others find both. Prints the seconds
of each from the start of Python on, and the median of the others. JAX_COMPILATION_CACHE_DIR, which
would be another cache, is to be unset.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.soak import read


def seconds(config: list[str], cache: str, workdir: Path) -> float:
    """From the start of Python until the losses of the only step are on the disk."""
    fields = ("train.num_steps=1", "eval.at_start=false", f"train.compile_cache={cache}")
    command = [sys.executable, "main.py", *config, "--workdir", str(workdir)]
    command += [f"--config.{field}" for field in fields]
    with (workdir.parent / "log").open("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while not read(workdir / "metrics.jsonl"):
            if process.poll() is not None:
                log.seek(0)
                sys.exit(log.read())
            time.sleep(0.02)
        found = time.perf_counter() - started
        process.kill()
        process.wait()
    return found


def main(argv: list[str]) -> int:
    """Parses, starts, prints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args, rest = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        config, cache = ["--config", args.config, *rest], f"{folder}/cache"
        found = [seconds(config, cache, Path(folder) / f"run{i}") for i in range(args.rounds + 1)]
    cold, *warm = found
    print(f"nothing in the cache: {cold:.1f} s")
    print(f"all in the cache: {statistics.median(warm):.1f} s, of", *(f"{s:.1f}" for s in warm))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
