"""Times our work and the peers' in one process, in turns: only ratios from one run count."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Work = Callable[[], object]  # does it and waits until it is done


@dataclass(frozen=True)
class Setting:
    """What one run measures with; each subject takes from it what it needs."""

    device: str = "cpu"  # "cpu" or "cuda"
    dtype: str = "float32"  # or "bfloat16": of our model, and by autocast of the peers'
    small: bool = False  # sizes that run in seconds and tell nothing about speed
    peers: frozenset[str] = frozenset()  # those that can be imported
    batches: tuple[int, ...] = (1,)  # of inference
    train_batch: int = 2
    hw: tuple[int, int] = (800, 1216)  # of inference and of the operations
    train_hw: tuple[int, int] = (512, 512)
    torch_compile: bool = False  # a further peer: the model through torch.compile
    threads: int = 2  # of the peers and of the input pipelines
    annotations: str = ""  # COCO JSON of the input pipeline; "": generated pictures
    images: str = ""  # folder of its pictures

    def has(self, peer: str) -> bool:
        """Whether this peer is to be measured, too."""
        return peer in self.peers

    @property
    def warm_up(self) -> int:
        """Calls that do not count: GPUs choose their algorithms in the first few."""
        return 3 if self.device == "cuda" else 1


@dataclass
class Case:
    """One piece of work, done by us and by others on the same inputs."""

    name: str
    ours: Work
    peers: dict[str, Work] = field(default_factory=dict)
    images: int = 0  # that one call works on, for images a second; 0: not told
    note: str = ""


@dataclass
class Figures:
    """What was measured elsewhere than in this process: a table of figures of its own."""

    name: str
    values: dict[str, float | int | str]
    note: str = ""


@dataclass
class Skipped:
    """What could not be measured here, and why."""

    name: str
    reason: str


def measure(item: Case | Figures | Skipped, rounds: int, warm_up: int = 1) -> dict:
    """The entry of the report."""
    if isinstance(item, Skipped):
        return {"case": item.name, "skipped": item.reason}
    if isinstance(item, Figures):
        found = {"case": item.name, "figures": item.values}
        return found | ({"note": item.note} if item.note else {})
    return alternate(item, rounds, warm_up)


def alternate(case: Case, rounds: int, warm_up: int = 1) -> dict:
    """Calls ours, peer, ours, peer, ...; the first `warm_up` calls of each do not count.

    Returns seconds (medians) of each, and the median, least and largest of the rounds' ratios
    ours / peer: below 1 we are faster.
    """
    works = {"ours": case.ours, **case.peers}
    for work in works.values():
        for _ in range(warm_up):
            work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    found = {
        "case": case.name,
        "rounds": rounds,
        "seconds": {name: statistics.median(s) for name, s in seconds.items()},
        "ratio": {},
    }
    for name in case.peers:
        ratios = [a / b for a, b in zip(seconds["ours"], seconds[name], strict=True)]
        found["ratio"][name] = [statistics.median(ratios), min(ratios), max(ratios)]
    if case.images:
        found["images_per_second"] = {
            name: case.images / median for name, median in found["seconds"].items()
        }
    if case.note:
        found["note"] = case.note
    return found


def rows(results: Iterable[dict]) -> list[list[str]]:
    """The lines of the printed table: case, our time, each peer's with the ratio."""
    lines = []
    for found in results:
        if "skipped" in found:
            lines.append([found["case"], "", f"skipped: {found['skipped']}", ""])
        elif "figures" in found:
            lines += [
                [f"{found['case']}: {k}", _short(v), "", ""] for k, v in found["figures"].items()
            ]
        else:
            lines += _timed(found)
        if found.get("note"):
            lines.append(["", "", found["note"], ""])
    return lines


def _timed(found: dict) -> list[list[str]]:
    rates = found.get("images_per_second", {})
    texts = {
        name: f"{1e3 * seconds:.1f} ms" + (f", {rates[name]:.2f} img/s" if rates else "")
        for name, seconds in found["seconds"].items()
    }
    if not found["ratio"]:
        return [[found["case"], texts["ours"], "", ""]]
    return [
        [
            found["case"],
            texts["ours"],
            f"{name} {texts[name]}",
            f"{m:.2f} ({low:.2f} to {high:.2f})",
        ]
        for name, (m, low, high) in found["ratio"].items()
    ]


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
