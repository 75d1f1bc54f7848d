"""All that a GPU is wanted for, in one command and within a budget of seconds.

    python -m benchmarks.gpu --output results --budget 540
    python -m benchmarks.gpu --output results --small            # on CPUs; says nothing about speed

One process after another, the most important first, each with a limit of its own: a share of what
is left, so that what one does not use goes to those behind it. A process that fails or runs over
does not lose the others, nor what it has written itself; its output is in NAME.log. Files appear as
they are made: NAME.json of each, race/race.png, and summary.json with date, device, versions and
how each ended.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import run

_KILLED_AFTER = 5  # seconds from the polite signal to the other one
_LEAST = 15  # seconds that are worth the start of a process


class Job(NamedTuple):
    """A command and its part of the time."""

    name: str
    command: list[str]
    share: float  # of the budget, relative to the other jobs
    # In place of `command` if that fails: less of the same.
    instead: tuple[str, ...] = ()


def main(argv: list[str] | None = None) -> dict:
    """Parses, runs all jobs, writes; returns the summary."""
    args = _parser().parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    return run_all(jobs(args.output, args.small), args.output, args.budget)


def jobs(output: Path, small: bool) -> list[Job]:
    """The most important first."""
    device = ["--device", "cpu"] if small else ["--device", "gpu", "--dtype", "bfloat16"]
    device += ["--small"] if small else []
    rounds = ["--rounds", "2" if small else "10"]

    def timed(name: str, share: float, *options: str, instead: tuple[str, ...] = ()) -> Job:
        command = ["benchmarks.run", *device, *rounds, "--json", str(output / f"{name}.json")]
        return Job(name, [*command, *options], share, instead)

    train = ("--what", "train_step", "--peers", "torchvision")
    predict = ("--what", "inference", "--peers", "torchvision")
    stages = ["benchmarks.stages", *device, *rounds, "--json", str(output / "stages.json")]
    race = ["benchmarks.race", *device, "--output", str(output / "race")]
    if not small:
        race += ["--side", "384", "--steps", "300", "--val", "48"]
    return [
        timed("train_800x1344", 3, *train, "--train-size", "800x1344", "--train-batch", "16"),
        timed(
            "train_1024x1024",
            3,
            *(*train, "--train-size", "1024x1024", "--train-batch", "32"),
            # Both models are in one memory.
            instead=("--train-batch", "16"),
        ),
        timed("inference", 3, *predict, "--size", "800x1344", "--batches", "1,16"),
        Job("stages", stages, 4),
        # Last, so that it may have whatever time there is.
        Job("race", race, 4),
    ]


def run_all(all_jobs: list[Job], output: Path, budget: float) -> dict:
    """Runs the jobs one after another within `budget` seconds; returns and writes the summary."""
    deadline = time.monotonic() + budget
    summary: dict = {"budget": budget, "jobs": {}}
    for number, job in enumerate(all_jobs):
        left = deadline - time.monotonic()
        limit = left * job.share / sum(other.share for other in all_jobs[number:])
        for options in ([], list(job.instead))[: 2 if job.instead else 1]:
            limit = min(limit, deadline - time.monotonic())
            found = _run(job, options, output, limit)
            summary["jobs"].setdefault(job.name, []).append(found)
            _describe(summary, output)
            run.write(output / "summary.json", summary)
            print(f"{job.name}: {found['ended']}, {found['seconds']:.0f} s", flush=True)
            limit -= found["seconds"]
            if found["ended"] == "well" or limit < _LEAST:
                break
    return summary


def _run(job: Job, options: list[str], output: Path, limit: float) -> dict:
    """Runs a job for at most `limit` seconds; how it ended and the end of what it said."""
    command = [sys.executable, "-m", *job.command, *options]
    if job.name == "race":
        # It evaluates and writes by turns, so it can end in time by itself.
        command += ["--seconds", f"{max(limit - 10, 1):.0f}"]
    found = {"command": " ".join(command[1:]), "limit": limit}
    if limit < _LEAST:
        return found | {"ended": "no time left", "seconds": 0.0}
    log, started = output / f"{job.name}.log", time.monotonic()
    with log.open("a") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(),
            # Its own processes end with it.
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            ended = "well" if code == 0 else f"failed, code {code}"
        except subprocess.TimeoutExpired:
            _end(process)
            ended = f"ran over its {limit:.0f} s"
    last = log.read_text(errors="replace").splitlines()[-3:]
    return found | {"ended": ended, "seconds": time.monotonic() - started, "last": last}


def _end(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_KILLED_AFTER)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    """JAX leaves the peer its part of the memory, and keeps what it compiled."""
    from maskrcnn_jax import runtime

    defaults = {
        "PYTHONUNBUFFERED": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
        "JAX_COMPILATION_CACHE_DIR": str(runtime.cache_home() / "jax"),
    }
    return defaults | os.environ


def _describe(summary: dict, output: Path) -> None:
    """Date, commit, device and versions, from the first report that there is."""
    if "date" in summary:
        return
    for file in sorted(output.rglob("*.json")):
        report = json.loads(file.read_text())
        if "versions" in report and file.name != "summary.json":
            keys = ("date", "commit", "machine", "devices", "versions", "skipped")
            summary |= {key: report[key] for key in keys}
            return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all")
    parser.add_argument("--small", action="store_true")
    return parser


if __name__ == "__main__":
    main()
