"""What a plan holds and what it will cost, told before anything is trained."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as Grid

from experiments import plan, worker
from experiments.settings import Setting
from experiments.table import Square, Times
from maskrcnn_jax import config as config_lib


class Cost(NamedTuple):
    """steps: that a run still has to take. pace: seconds a step; None where nothing was measured.
    own: the pace is of the same arm, not of others in the folder."""

    steps: int
    pace: float | None
    own: bool


def print_plan(
    loaded: plan.Loaded, runs: Sequence[plan.Run], setting: Setting, workdir: Path, retry: bool
) -> None:
    """Prints the arms of a table: in what they differ, how far they are, what is left.

    retry: failed runs are to do, too.
    """
    table = loaded.table
    paces = _paces(workdir)
    shared = ", ".join(_differences(table.base, runs[0], setting)) or "as in the setting"
    print(f"\n{loaded.name}: {loaded.question}\nin all arms: {shared}")
    grid = Grid("arm", "differs in", "runs", "steps", "s/step", "left")
    for arm in table.arms:
        own = [run for run in runs if run.arm == arm.name]
        costs = [_cost(run, paces, retry) for run in own]
        left = sum(cost.steps for cost in costs)
        pace, measured = costs[0].pace, costs[0].own
        grid.add_row(
            arm.name,
            "\n".join(_differences(arm.fields, own[0], setting)),
            _states(own),
            str(own[0].config.train.num_steps),
            "unknown" if pace is None else f"{pace:.3g}" + ("" if measured else ", of other arms"),
            "0" if not left else "unknown" if pace is None else clock(left * pace),
        )
    Console(width=120).print(grid, markup=False)
    first = {text: run.arm for run in reversed(runs) for text in run.warnings}
    for text, arm in first.items():
        print(f"WARNING: {arm}: {text}")


def total(runs: Sequence[plan.Run], workdir: Path, shard: tuple[int, int], retry: bool) -> str:
    """One sentence: how many different runs are left, and how long they will take."""
    paces = _paces(workdir)
    # One that only has to evaluate is open, too.
    open_runs = [_cost(run, paces, retry) for run in runs if worker.is_open(run.folder, retry)]
    steps = sum(cost.steps for cost in open_runs)
    part = "" if shard == (1, 1) else f"part {shard[0]} of {shard[1]}: "
    text = f"{part}{len(runs)} different runs, {len(open_runs)} to do, {steps} steps"
    if not open_runs:
        return text
    if any(cost.pace is None for cost in open_runs):
        return f"{text}; the time is unknown, the first run measures it"
    seconds = sum(cost.steps * cost.pace for cost in open_runs)
    return f"{text}, about {clock(seconds)} and some compiling and evaluating"


def clock(seconds: float) -> str:
    """A duration as one reads it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _paces(workdir: Path) -> dict[str, float]:
    """Seconds a step of each arm that has a run in the folder, finished or not."""
    found: dict[str, list[float]] = {}
    for path in sorted(workdir.glob(f"runs/*/{worker.ASKED}")):
        if pace := worker.seconds_per_step(path.parent):
            found.setdefault(plan.arm_key(json.loads(path.read_text())), []).append(pace)
    return {key: statistics.median(paces) for key, paces in found.items()}


def _cost(run: plan.Run, paces: dict[str, float], retry: bool) -> Cost:
    taken = worker.steps_taken(run.folder)
    open_ = worker.is_open(run.folder, retry)
    steps = max(run.config.train.num_steps - taken, 0) if open_ else 0
    if run.arm_key in paces:
        return Cost(steps, paces[run.arm_key], True)
    return Cost(steps, statistics.median(paces.values()) if paces else None, False)


def _states(runs: Sequence[plan.Run]) -> str:
    states = []
    for run in runs:
        result = worker.read_result(run.folder)
        begun = (run.folder / worker.ASKED).is_file()
        states.append(result["status"] if result else "begun" if begun else "to do")
    counts = {state: states.count(state) for state in ("done", "failed", "begun", "to do")}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _differences(fields: Mapping[str, Any], run: plan.Run, setting: Setting) -> Iterator[str]:
    """The fields as the run has them, with what the setting put them in the place of."""
    flat = config_lib.flatten(run.config)
    for name, asked in fields.items():
        taken = plan.in_place(asked, name, setting)
        note = "" if isinstance(asked, Times | Square) or taken == asked else f" (for {asked})"
        yield f"{name}={flat[name]!r}{note}"
