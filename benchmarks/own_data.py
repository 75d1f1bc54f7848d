"""Your own data, from start to end, on real sets: convert, inspect, and one short fine-tune each.

    python main.py --config configs/shapes.py --workdir runs/shapes
    python -m benchmarks.own_data --data shared/data --init runs/shapes
    python -m benchmarks.own_data --data shared/data --only car_damage_5,labelme_date_fig_hazelnut
    python -m benchmarks.own_data --data shared/data --steps 0        # no training: a minute

Every step is the command that a user types, in a process of its own; what it prints is in
OUTPUT/<data set>/log.txt. Two tables come out, as Markdown and in OUTPUT/own_data.json: the data
sets with their AP before the first step and after the last, and everything odd that is known of
them, with the number of findings that tell it. Exit status 1: a command failed, or something odd
was not found. Without --init the same small model starts at random, at equal steps. The sets are
those of `benchmarks/own_data_cases.py`; a folder that is not there is left out and named.
"""

import argparse
import collections
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.own_data_cases import CASES, Case

ROOT = Path(__file__).parents[1]


def main(argv: list[str] | None = None) -> int:
    """Parses, runs the cases, prints and writes the tables."""
    args = _parser().parse_args(argv)
    wanted = args.only.split(",") if args.only else [case.name for case in CASES]
    if strange := set(wanted) - {case.name for case in CASES}:
        names = ", ".join(case.name for case in CASES)
        raise SystemExit(f"--only: no case {', '.join(sorted(strange))}; there are {names}")
    rows = []
    for case in CASES:
        if case.name not in wanted:
            continue
        if not (args.data / case.folder).is_dir():
            print(f"{case.name}: left out, there is no {args.data / case.folder}", flush=True)
            continue
        rows.append(run_case(case, args))
        print(_line(data_cells(rows[-1])), flush=True)
    text = markdown(rows)
    print(f"\n{text}")
    report = {"arguments": {k: str(v) for k, v in vars(args).items()}, "rows": rows}
    args.output.mkdir(parents=True, exist_ok=True)
    for name, content in (("own_data.json", json.dumps(report, indent=1)), ("own_data.md", text)):
        part = args.output / f"{name}.tmp"
        part.write_text(content + "\n")
        os.replace(part, args.output / name)
    return 1 if any(row["failed"] or any(not o["found"] for o in row["odd"]) for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=Path("runs/own_data"))
    parser.add_argument("--only", default="", help="names of cases, by commas")
    parser.add_argument("--init", default="", help="run, weights file or known name to start from")
    parser.add_argument("--steps", type=int, default=300, help="of each fine-tune; 0: none")
    parser.add_argument("--size", type=int, default=192, help="longer side in training, pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--set", action="append", default=[], metavar="GROUP.FIELD=VALUE", help="of the config"
    )
    return parser


def run_case(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one case; what was counted, found and measured, as JSON holds it."""
    folder = args.output.absolute() / case.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    log.write_text("")
    row: dict[str, Any] = {"name": case.name, "note": case.note, "failed": [], "seconds": {}}
    command = _Commands(log, row)
    sources = [args.data.absolute() / case.folder / name for name in (*case.train, *case.val)]
    found = folder / "findings.json"
    found.unlink(missing_ok=True)
    also = [word for name in case.also for word in ("--also", args.data / case.folder / name)]
    command("inspect", "inspect", *sources, *also, "--json", found, good=(0, 1, 2))
    row["findings"] = _findings(found)
    refusal = command.last.splitlines()[-1].replace(f"{args.data.absolute()}/", "")
    row["refused"] = "" if found.exists() else refusal
    row["odd"] = [_judge(odd, row) for odd in case.odd]
    if not case.converts:
        return row
    parts = _convert(case, args.data.absolute() / case.folder, folder, command)
    row["after_convert"] = _inspect_parts(parts, folder, command)
    row |= _counts(parts)
    if case.trains and args.steps:
        row |= _train(case, args, parts, folder, row["most"], command)
    return row


class _Commands:
    """Runs commands in processes of their own; keeps what they print, and how long they take."""

    def __init__(self, log: Path, row: dict[str, Any]):
        self._log, self._row, self.last = log, row, ""

    def __call__(self, stage: str, *words: Any, good: tuple[int, ...] = (0,)) -> None:
        """stage: what the seconds are added to. good: exit statuses that are no failure."""
        program = ["main.py"] if words[0] == "--config" else ["-m", "maskrcnn_jax"]
        start = time.perf_counter()
        status, printed = _call([*program, *map(str, words)])
        seconds = self._row["seconds"]
        seconds[stage] = seconds.get(stage, 0) + time.perf_counter() - start
        self.last = printed or "nothing printed"
        with self._log.open("a") as file:
            shown = " ".join(map(str, words))
            file.write(f"$ {shown}\n{printed}exit status {status}\n\n")
        if status not in good:
            self._row["failed"].append(f"{stage}: {self.last.splitlines()[-1]}")


def _call(words: list[str]) -> tuple[int, str]:
    """Exit status and output of Python with these arguments."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def _convert(
    case: Case, source: Path, folder: Path, command: _Commands
) -> dict[str, tuple[Path, Path]]:
    """Part -> (COCO JSON, folder of its pictures): the owner's parts, or a split."""
    names = [source / name for name in case.train]
    if not case.val:
        output, split = folder / "data.json", case.split or "1"
        words = ("--split", split) if case.split else ()
        command("convert", "convert", *names, "--output", output, *words, *case.convert)
        if case.split:
            paths = [folder / f"data_{part}.json" for part in ("train", "val")]
        else:
            paths = [output, output]
        images = {path: _images(command.last) for path in paths}
    else:
        paths, images = [folder / "train.json", folder / "val.json"], {}
        val = [source / name for name in case.val]
        for path, part, like in ((paths[0], names, ()), (paths[1], val, (paths[0],))):
            classes = [w for first in like for w in ("--classes", first)]
            command("convert", "convert", *part, "--output", path, *case.convert, *classes)
            images[path] = _images(command.last)
    return {part: (path, images[path]) for part, path in zip(("train", "val"), paths, strict=True)}


def _images(printed: str) -> Path:
    """The folder of the pictures, from the training line that convert prints."""
    field = "--config.data.train.images="
    found = [line.split(field)[1].split(" ")[0] for line in printed.splitlines() if field in line]
    return Path(found[0].strip("'")) if found else Path()


def _inspect_parts(
    parts: dict[str, tuple[Path, Path]], folder: Path, command: _Commands
) -> dict[str, int]:
    """Looks at what was converted: no errors may be left. Returns the counts of findings."""
    distinct = dict.fromkeys(parts.values())
    found = folder / "after_convert.json"
    found.unlink(missing_ok=True)
    words = [path for path, _ in distinct]
    words += [word for _, images in distinct for word in ("--images", images)]
    command("inspect", "inspect", *words, "--json", found)
    return _findings(found)


def _findings(path: Path) -> dict[str, int]:
    """Code -> count, with the grade before the code: {"error missing-image": 2}."""
    if not path.exists():
        return {}
    findings = json.loads(path.read_text())["findings"]
    order = ("error", "warning", "note")
    counts = collections.Counter((order.index(f["grade"]), f["code"]) for f in findings)
    return {f"{order[grade]} {code}": n for (grade, code), n in sorted(counts.items())}


def _judge(odd: tuple[str, str, int], row: dict[str, Any]) -> dict[str, Any]:
    """Whether what is known to be odd was found, as often as is known (0: at all)."""
    what, codes, expected = odd
    counts = {name.split()[1]: n for name, n in row["findings"].items()}
    number = sum(counts.get(code, 0) for code in codes.split("|"))
    if codes.startswith("refused: "):
        number = int(codes.removeprefix("refused: ") in row["refused"])
    found = number == expected if expected else number > 0
    return {"what": what, "codes": codes, "expected": expected, "count": number, "found": found}


def _counts(parts: dict[str, tuple[Path, Path]]) -> dict[str, Any]:
    """Pictures, objects and classes of the parts, and the most objects that a picture has."""
    contents = [json.loads(path.read_text()) for path, _ in parts.values() if path.exists()]
    if len(contents) < 2:
        return {"images": [], "instances": [], "classes": 0, "most": 0}
    per_image = collections.Counter(a["image_id"] for a in contents[0]["annotations"])
    return {
        "images": [len(c["images"]) for c in contents],
        "instances": [len(c["annotations"]) for c in contents],
        "classes": len(contents[0]["categories"]),
        "most": max(per_image.values(), default=0),
    }


def _train(
    case: Case,
    args: argparse.Namespace,
    parts: dict[str, tuple[Path, Path]],
    folder: Path,
    most: int,
    command: _Commands,
) -> dict[str, Any]:
    """Fine-tunes in a fresh workdir; AP before the first step and after the last."""
    kind = "tuned" if args.init else "scratch"
    numbers = itertools.count(1)  # a run never goes on with other settings
    workdir = next(w for n in numbers if not (w := folder / f"{kind}_{n}").exists())
    fields = _fields(int(args.size * case.scale), most, args)
    for part, (path, images) in parts.items():
        fields |= {f"data.{part}.annotations": path, f"data.{part}.images": images}
    fields |= dict(text.split("=", 1) for text in args.set)
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    command("train", "--config", "configs/finetune_small.py", "--workdir", workdir, *overrides)
    log = workdir / "metrics.jsonl"
    lines = [json.loads(text) for text in log.read_text().splitlines()] if log.exists() else []
    measured = [line for line in lines if "segm/AP" in line]
    return {
        "steps": measured[-1]["step"] if measured else 0,
        "ap": [line["segm/AP"] for line in measured],
        "ap50": [line["segm/AP50"] for line in measured],
        "dropped": sum(line.get("dropped_instances", 0) for line in lines),
        "max_instances": fields["data.max_instances"],
        "workdir": str(workdir),
    }


def _fields(size: int, most: int, args: argparse.Namespace) -> dict[str, Any]:
    """What differs from configs/finetune_small.py: the size, given steps, AP before them."""
    fields: dict[str, Any] = {f"data.{n}": size for n in ("long", "short_test", "long_test")}
    fields |= {
        "data.short": (size,),
        "data.canvases": ((size, size),),
        "data.max_instances": max(most, 10),
        "optim.warmup_steps": min(30, args.steps // 4),
        "train.epochs": 0.0,
        "train.num_steps": args.steps,
        "train.batch_size": args.batch,
        "train.checkpoint_every": args.steps,
        "eval.every": 0,
        "eval.at_start": True,
    }
    if args.init:
        path = Path(args.init)
        return fields | {"init.checkpoint": path.absolute() if path.exists() else args.init}
    at_once = {"optim.stages": ((0.0, ".*"),), "optim.layer_decay": 1.0}
    return fields | at_once | {"init.heads": "strict"}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The two tables."""
    header = ["data set", "images", "instances", "classes", "findings", "left", "segm AP", "AP50"]
    header += ["dropped", "seconds"]
    lines = [_line(header), _line(["---"] * len(header))]
    lines += [_line(data_cells(row)) for row in rows]
    lines += ["", *(f"- {row['name']}: {row['note']}." for row in rows if row["note"])]
    lines += [f"- {row['name']}: FAILED: {text}" for row in rows for text in row["failed"]]
    odd = ["data set", "what is odd", "finding", "known", "found", ""]
    lines += ["", _line(odd), _line(["---"] * len(odd))]
    for row in rows:
        for o in row["odd"]:
            known = str(o["expected"] or "some")
            cells = [row["name"], o["what"], o["codes"].replace("|", " or "), known]
            lines.append(_line([*cells, str(o["count"]), "yes" if o["found"] else "NO"]))
    return "\n".join(lines)


def data_cells(row: dict[str, Any]) -> list[str]:
    """A row of the first table: findings in the source, errors that convert left."""
    findings = ", ".join(f"{name} {n}" for name, n in row["findings"].items())
    left = sum(n for name, n in row.get("after_convert", {}).items() if name.startswith("error"))
    seconds = " + ".join(f"{stage} {s:.0f}" for stage, s in row["seconds"].items())
    return [
        row["name"],
        " + ".join(map(str, row.get("images", []))),
        " + ".join(map(str, row.get("instances", []))),
        str(row.get("classes", "")),
        findings or row["refused"] or "none",
        f"{left} errors" if "after_convert" in row else "",
        " -> ".join(f"{value:.3f}" for value in row.get("ap", [])),
        " -> ".join(f"{value:.3f}" for value in row.get("ap50", [])),
        f"{row['dropped']:.0f}" if "dropped" in row else "",
        seconds,
    ]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |"


if __name__ == "__main__":
    sys.exit(main())
