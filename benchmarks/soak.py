"""Does a run stay as fast and as small as it began? Runs main.py and watches it.

    python -m benchmarks.soak --config configs/shapes.py --config.train.num_steps=500

Prints, for each quarter of the steps, the median seconds a step and the largest resident memory of
the process, and how many programs were compiled. Linux only (reads /proc).
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def memory_mib(pid: int | str, field: str) -> float:
    """VmRSS, the resident memory of a process, or VmHWM, the most it has been; 0 when it is gone.

    pid: or "self". Not `resource.getrusage`, whose peak a process takes over from the one that
    started it.
    """
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def read(path: Path) -> list[dict]:
    """The training lines of a metrics.jsonl so far."""
    texts = path.read_text().splitlines() if path.exists() else []
    lines = [json.loads(text) for text in texts if text.endswith("}")]
    return [line for line in lines if "time/step" in line]


def main(argv: list[str]) -> int:
    """Passes the arguments on to main.py; returns its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        log = Path(folder) / "log"
        with log.open("w") as output:
            command = [sys.executable, "main.py", "--workdir", str(workdir), *argv]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            samples = []
            while process.poll() is None:
                lines = read(workdir / "metrics.jsonl")
                samples.append(
                    (lines[-1]["step"] if lines else 0, memory_mib(process.pid, "VmRSS") / 1024)
                )
                time.sleep(1)
        if process.returncode:
            print(log.read_text())
            return process.returncode
        lines = read(workdir / "metrics.jsonl")
        last = lines[-1]["step"]
        for quarter in range(4):
            low, high = quarter * last / 4, (quarter + 1) * last / 4
            steps = [x["time/step"] for x in lines if low < x["step"] <= high]
            memory = [gib for step, gib in samples if low < step <= high]
            print(
                f"steps {low:.0f} to {high:.0f}: {statistics.median(steps):.4f} s a step, "
                f"{max(memory, default=float('nan')):.3f} GiB resident at most"
            )
        text = log.read_text()
        for name in ("training step", "prediction"):
            print(f"{text.count(f'compiled the {name}')} programs of the {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
