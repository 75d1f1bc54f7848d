"""What came out: CSV, Markdown, a plot, and whether the differences exceed the noise."""

import csv
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import costs, noise, plan, plot, worker
from experiments.settings import train_images
from experiments.table import METRICS
from maskrcnn_jax import config as config_lib
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.logs import write_atomic

KINDS = {"segm": "masks", "bbox": "boxes", "keypoints": "keypoints"}
_COUNTED = (
    "GFLOPs are XLA's of the lowered prediction of one image, all slots of its detections filled; "
    "of the loops that are left, in the pooling of rois and in NMS, the body is counted once."
)
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

Results = Mapping[str, Sequence[dict[str, Any]]]  # by arm, of its finished runs


def write(loaded: plan.Loaded, runs: Sequence[plan.Run], workdir: Path, setting: str) -> str:
    """Writes TABLE.csv (a row per run), .md and .png into `workdir`; returns the Markdown.

    It shows what is finished; runs that are open or failed are named.
    """
    results = collect(loaded, runs)
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomic(workdir / f"{loaded.name}.csv", _csv(runs))
    picture = workdir / f"{loaded.name}.png"
    note = plot.draw(picture, loaded, {arm: _columns(rows) for arm, rows in results.items()})
    text = "\n\n".join(_sections(loaded, runs, results, setting, picture.name, note)) + "\n"
    write_atomic(workdir / f"{loaded.name}.md", text)
    return text


def collect(loaded: plan.Loaded, runs: Sequence[plan.Run]) -> Results:
    """The results of each arm's finished runs, in the order of the seeds."""
    found: dict[str, list] = {arm.name: [] for arm in loaded.table.arms}
    for run in filter(_is_done, runs):
        found[run.arm].append(worker.read_result(run.folder))
    return found


def insert(path: Path, workdir: Path, setting: str, names: Sequence[str]) -> None:
    """Puts the tables' Markdown between the marks of a file, instead of what stood there for the
    same tables and setting, and their plots beside the file in plots/."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not (0 <= text.find(BEGIN) < text.find(END)):
        raise UserError(f"--report {path}: there is no line {BEGIN} with {END} after it")
    before, _, rest = text.partition(BEGIN)
    inside, _, after = rest.partition(END)
    # Every table begins with a heading that names it and its setting.
    pieces = {p.partition("\n")[0]: p.strip() for p in inside.split("\n### ")[1:]}
    for name in names:
        piece = (workdir / f"{name}.md").read_text().strip().removeprefix("### ")
        picture = workdir / f"{name}.png"
        if picture.is_file():
            (path.parent / "plots").mkdir(exist_ok=True)
            kept = f"plots/{name}_{setting}.png"
            (path.parent / kept).write_bytes(picture.read_bytes())
            piece = piece.replace(f"({picture.name})", f"({kept})")
        pieces[piece.partition("\n")[0]] = piece
    body = "\n\n".join(f"### {pieces[title]}" for title in sorted(pieces))
    write_atomic(path, f"{before}{BEGIN}\n\n{body}\n\n{END}{after}")


def _sections(
    loaded: plan.Loaded,
    runs: Sequence[plan.Run],
    results: Results,
    setting: str,
    picture: str,
    note: str,
) -> Iterator[str]:
    table = loaded.table
    yield f"### {loaded.name}, {setting}"
    source = f" Paper: {table.source}." if table.source else ""
    yield f"{loaded.question}{source}"
    for kind in _kinds(loaded, results):
        yield _markdown(loaded, results, kind)
    if any(results.values()):
        yield _cost_table(results)
        yield _training(runs)
    if sentences := list(_sentences(loaded, results)):
        yield "\n".join(f"- {text}" for text in sentences)
        yield noise.RULE
    if missing := list(_missing(runs)):
        yield "\n".join(f"- {text}" for text in missing)
    yield note or f"![{loaded.name}]({picture})"


def _kinds(loaded: plan.Loaded, results: Results) -> list[str]:
    """What is measured, or the paper has figures of; first what the table is about."""
    keys = {key for rows in results.values() for row in rows for key in row["metrics"]}
    keys |= {*loaded.table.judged, *(key for arm in loaded.table.arms for key in arm.paper)}
    lead = loaded.table.judged[0].partition("/")[0]
    found = {key.partition("/")[0] for key in keys}
    return sorted((kind for kind in KINDS if kind in found), key=lambda kind: kind != lead)


def _markdown(loaded: plan.Loaded, results: Results, kind: str) -> str:
    """AP of one kind in percent, mean ± standard deviation, beside the paper's."""
    has_paper = any(key.startswith(kind) for arm in loaded.table.arms for key in arm.paper)
    paper = ["paper: AP / AP50 / AP75"] if has_paper else []
    lines = [[KINDS[kind], "seeds", *METRICS, *paper]]
    for arm in loaded.table.arms:
        columns = _columns(results[arm.name])
        cells = [spread(columns.get(f"{kind}/{name}", [])) for name in METRICS]
        figures = [arm.paper.get(f"{kind}/{name}") for name in METRICS[:3]]
        theirs = [" / ".join("–" if x is None else f"{x:.1f}" for x in figures)] * has_paper
        lines.append([arm.name, str(len(results[arm.name])), *cells, *theirs])
    return _grid(lines)


def _cost_table(results: Results) -> str:
    lines = [["cost", "parameters, M", "GFLOPs, one image", "s/step", "on"]]
    for arm, rows in results.items():
        if not rows:
            continue
        paces = [row["seconds_per_step"] for row in rows if row["seconds_per_step"]]
        height, width = rows[0]["canvas"]
        flops = rows[0]["gflops"]
        lines.append(
            [
                arm,
                f"{rows[0]['parameters'] / 1e6:.2f}",
                "–" if flops is None else f"{flops:.2f} at {height} x {width}",
                spread(paces, 3),
                ", ".join(sorted({row["device"] for row in rows})),
            ]
        )
    return f"{_grid(lines)}\n\n{_COUNTED}"


def _training(runs: Sequence[plan.Run]) -> str:
    """How long and on what the arms were trained, and how long all took together."""
    arms: dict[str, list[str]] = {}
    for run in runs:
        told = arms.setdefault(_schedule(config_lib.flatten(run.config)), [])
        told += [run.arm] * (run.arm not in told)
    lines = [
        f"Each run: {text}." if len(arms) == 1 else f"Each run of {'; '.join(names)}: {text}."
        for text, names in arms.items()
    ]
    done = [run.folder for run in runs if _is_done(run)]
    seconds = sum(worker.steps_taken(x) * (worker.seconds_per_step(x) or 0.0) for x in done)
    lines.append(
        f"All {len(done)} finished runs: {costs.clock(seconds)} of training (steps times s/step; "
        "compiling and evaluating not counted)."
    )
    return "\n".join(f"- {line}" for line in lines)


def _schedule(fields: Mapping[str, Any]) -> str:
    """Steps, pictures and their size, of a config's flat fields."""
    epochs = fields["train.epochs"]
    length = f"{epochs:g} epochs" if epochs else f"{fields['train.num_steps']:,} steps"
    try:
        number = train_images(fields)
    except UserError:  # the annotations have gone since
        number = None
    filtered = fields["data.filter_empty"] or fields["data.min_keypoints"]
    images = [f"{number:,} training images{' before filters' * bool(filtered)}"] * bool(number)
    height, width = max(fields["data.short"]), fields["data.long"]
    if fields["data.lsj_scale"]:
        height = width = fields["data.lsj_size"]
    parts = (f"{length} of {fields['train.batch_size']} images", *images)
    return ", ".join([*parts, f"at most {height} x {width}"])


def _is_done(run: plan.Run) -> bool:
    result = worker.read_result(run.folder)
    return bool(result and result["status"] == "done")


def _sentences(loaded: plan.Loaded, results: Results) -> Iterator[str]:
    """For each arm and judged metric, against the table's reference arm."""
    arms = {arm.name: arm for arm in loaded.table.arms}
    other = arms[loaded.table.against or next(iter(arms))]
    theirs = _columns(results[other.name])
    for arm in arms.values():
        ours = _columns(results[arm.name])
        for metric in loaded.table.judged:
            if arm is other or not ours.get(metric) or not theirs.get(metric):
                continue
            kind, _, name = metric.partition("/")
            verdict = noise.compare(ours[metric], theirs[metric])
            said = (
                f"{'exceeds' if verdict.exceeds else 'does not exceed'} the noise "
                f"(p = {verdict.p:.2g})"
                if verdict.p is not None
                else f"not judged: {verdict.why}"
            )
            paper = ""
            if metric in arm.paper and metric in other.paper:
                paper = f" The paper has {arm.paper[metric] - other.paper[metric]:+.1f}."
            yield (
                f"{name} of {KINDS[kind]}, {arm.name} against {other.name}: "
                f"{verdict.difference:+.1f} ({spread(ours[metric])} against "
                f"{spread(theirs[metric])}), {said}.{paper}"
            )


def _missing(runs: Sequence[plan.Run]) -> Iterator[str]:
    for run in runs:
        result = worker.read_result(run.folder)
        if result is None:
            yield f"{run.arm}, seed {run.seed}: not finished."
        elif result["status"] == "failed":
            error = result["error"].strip().splitlines()
            yield f"{run.arm}, seed {run.seed}: failed ({error[0]}): `{error[-1]}`"


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Each metric's values in percent; those without a ground truth (None) are left out."""
    names = rows[0]["metrics"] if rows else ()
    columns = {name: [row["metrics"].get(name) for row in rows] for name in names}
    return {name: [100 * v for v in values if v is not None] for name, values in columns.items()}


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation (of the sample); the mean alone of one value."""
    if not values:
        return "–"
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def _grid(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def _csv(runs: Sequence[plan.Run]) -> str:
    """One row per run: arm, seed, status, metrics as fractions, cost, folder."""
    rows = []
    for run in runs:
        result = worker.read_result(run.folder) or {"status": "open"}
        cost = {k: result.get(k) for k in ("parameters", "gflops", "seconds_per_step", "device")}
        metrics = {f"{kind}/{m}": None for kind in KINDS for m in METRICS}
        metrics |= {k: v for k, v in result.get("metrics", {}).items() if k in metrics}
        begin = {"arm": run.arm, "seed": run.seed, "status": result["status"]}
        rows.append({**begin, **metrics, **cost, "folder": f"runs/{run.key}"})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
