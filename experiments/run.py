"""Asks a table: trains its arms with several seeds, and writes what came out.

    python experiments/run.py table_2c --setting shapes --seeds 3
    python experiments/run.py table_2c --setting shapes --seeds 3 --dry-run
    python experiments/run.py table_2b table_2d --setting coco --shard 1/4
    python experiments/run.py mine.py --setting real --data FOLDER --config.train.num_steps=800

The same command goes on where it was stopped: what is finished is not repeated, and a run in the
middle goes on from its checkpoint. Arms of different tables that are the same training are trained
once. Exit status: 0 all is done, 1 a run failed or was stopped, 2 a mistake in the command.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in the place of this folder, whose names are no modules

from experiments import costs, plan, report, worker  # noqa: E402
from experiments.settings import SETTINGS, data_fields  # noqa: E402
from experiments.table import Table  # noqa: E402
from maskrcnn_jax import config as config_lib  # noqa: E402
from maskrcnn_jax.errors import UserError  # noqa: E402
from maskrcnn_jax.logs import write_atomic  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Parses, plans, trains, reports; returns the exit status."""
    try:
        return _main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _main(argv: list[str] | None) -> int:
    args, overrides = _parse(argv)
    if args.list:
        return _list()
    setting = SETTINGS[args.setting]
    workdir = args.workdir or Path("runs") / "experiments" / args.setting
    names = plan.table_names() if args.tables == ["all"] else args.tables
    tables = [plan.load_table(name) for name in names]
    runs = {}
    for table in tables:
        data = _data(args, overrides, table.table)
        runs[table.name] = plan.make_runs(table, setting, workdir, args.seeds, data, overrides)
    stopped = False
    if not args.report:
        own = _shard([run for of_table in runs.values() for run in of_table], args.shard)
        for table in tables:
            costs.print_plan(table, runs[table.name], setting, workdir, args.retry)
        print(costs.total(own, workdir, args.shard, args.retry), flush=True)
        if args.dry_run:
            return 0
        stopped = _train_all(own, args.retry)
    for table in tables:
        text = report.write(table, runs[table.name], workdir, args.setting)
        print(f"\n{text}")
    print(f"written: {workdir}/{{{','.join(runs)}}}.md, .csv, .png")
    if isinstance(args.report, str):
        report.insert(Path(args.report), workdir, args.setting, [t.name for t in tables])
    results = [worker.read_result(run.folder) for of_table in runs.values() for run in of_table]
    failed = any(result and result["status"] == "failed" for result in results)
    return int(stopped or failed)


def _parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", help="names (--list), 'all', or .py files of yours")
    parser.add_argument("--setting", choices=SETTINGS, default="shapes")
    parser.add_argument("--seeds", type=_positive, default=3, help="runs per arm")
    parser.add_argument("--workdir", type=Path, help="default runs/experiments/SETTING")
    parser.add_argument("--data", type=Path, help="folder laid out like COCO, for real and coco")
    parser.add_argument("--shard", type=_part, default=(1, 1), help="2/4: the second of four parts")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost alone")
    parser.add_argument("--retry", action="store_true", help="try failed runs again")
    parser.add_argument(
        "--report",
        nargs="?",
        const=True,
        metavar="FILE",
        help="train nothing; write the tables anew, and into the results section of a FILE.md",
    )
    parser.add_argument("--list", action="store_true", help="the tables and what they ask")
    parser.epilog = "--config.GROUP.FIELD=VALUE overrides a field in all arms."
    args, rest = parser.parse_known_args(argv)
    prefix = "--config."
    if strange := [text for text in rest if not text.startswith(prefix)]:
        parser.error(f"unknown argument {strange[0]!r}; fields are set as --config.train.seed=1")
    if not args.tables and not args.list:
        parser.error("name a table; --list shows them")
    overrides = [text.removeprefix(prefix) for text in rest]
    if any(text.startswith("train.seed=") for text in overrides):
        parser.error("--config.train.seed: the seeds are 0, 1, ... ; --seeds says how many")
    return args, overrides


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not slash or not 1 <= int(index) <= int(count):
        raise argparse.ArgumentTypeError("write i/n with i from 1 to n, as in 2/4")
    return int(index), int(count)


def _list() -> int:
    for name in plan.table_names():
        loaded = plan.load_table(name)
        print(f"{name}: {loaded.question}")
        print(f"    {'; '.join(arm.name for arm in loaded.table.arms)}")
    for name, setting in SETTINGS.items():
        print(f"--setting {name}: {setting.about}")
    return 0


def _data(args: argparse.Namespace, overrides: list[str], table: Table) -> dict:
    if args.data is not None:
        if args.setting == "shapes":
            raise UserError("--data: the setting shapes generates its own; take real or coco")
        kind = "person_keypoints" if "model.keypoints" in table.base else "instances"
        return data_fields(args.data, kind)
    named = any(text.startswith("data.train.annotations=") for text in overrides)
    if SETTINGS[args.setting].needs_data and not named:
        raise UserError(
            f"--setting {args.setting} needs a data set: --data FOLDER with "
            "annotations/instances_train*.json and instances_val*.json, or the fields "
            "--config.data.train.annotations=... and so on"
        )
    return {"data.name": "coco"} if named else {}


def _shard(runs: list[plan.Run], shard: tuple[int, int]) -> list[plan.Run]:
    """This part of the different runs, in the order of their seeds."""
    unique = {run.key: run for run in reversed(runs)}  # the first of equal ones stays
    order = sorted(unique.values(), key=lambda run: (run.seed, runs.index(run)))
    index, count = shard
    return order[index - 1 :: count]


# Exit statuses of a worker that was asked to stop, or was so before it could save anything.
_ASKED_TO_STOP = (worker.INTERRUPTED, -signal.SIGTERM, -signal.SIGINT)


def _train_all(runs: list[plan.Run], retry: bool) -> bool:
    """Trains what is not finished; a run that fails is recorded, and the next one begins.

    Returns whether one was stopped, which the same command goes on with.
    """
    stopped = False
    for i, run in enumerate(runs):
        where = f"[{i + 1}/{len(runs)}] {run.table}, {run.arm}, seed {run.seed}"
        if not worker.is_open(run.folder, retry):
            print(f"{where}: {worker.read_result(run.folder)['status']} before", flush=True)
            continue
        print(f"{where}: {run.folder}", flush=True)
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / worker.RESULT).unlink(missing_ok=True)
        config_lib.save(run.config, run.folder / worker.ASKED)
        status = launch(run.folder)
        result = worker.read_result(run.folder)
        if not status or (result and result["status"] == "done"):
            continue
        if status in _ASKED_TO_STOP:
            stopped = True
            print(f"{where}: stopped; the same command goes on with it", flush=True)
        else:
            error = _last_lines(run.folder / "log.txt", status)
            failed = {"status": "failed", "exit_status": status, "error": error}
            write_atomic(run.folder / worker.RESULT, json.dumps(failed, indent=1))
            print(f"{where}: FAILED\n{error}", flush=True)
    return stopped


def launch(folder: Path) -> int:
    """Runs a worker on a folder, its output shown and kept in log.txt; returns its exit status.

    An interruption of this process is passed on, and waits until the run has saved its state.
    """
    process = subprocess.Popen(
        [sys.executable, worker.__file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C comes to this process alone
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with (folder / "log.txt").open("a", buffering=1) as log:
            for line in process.stdout:
                log.write(line)
                print(f"    {line}", end="", flush=True)
        return process.wait()
    except KeyboardInterrupt:
        print("stopping: the run saves its state", flush=True)
        process.terminate()
        process.communicate()
        raise SystemExit(1) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


def _last_lines(path: Path, status: int) -> str:
    lines = path.read_text().splitlines() if path.is_file() else []
    meaning = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
    return "\n".join([meaning, *lines[-15:]])


if __name__ == "__main__":
    sys.exit(main())
