"""Times our work and the peers' in one process, in turns: only ratios from one run count."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Work = Callable[[], object]  # does it and waits until it is done


@dataclass
class Case:
    """One piece of work, done by us and by others on the same inputs."""

    name: str
    ours: Work
    peers: dict[str, Work] = field(default_factory=dict)
    images: int = 0  # that one call works on, for images a second; 0: not told
    note: str = ""


def alternate(case: Case, rounds: int) -> dict:
    """Calls ours, peer, ours, peer, ...; the first call of each does not count.

    Returns seconds (medians) of each, and the median, least and largest of the rounds' ratios
    ours / peer: below 1 we are faster.
    """
    works = {"ours": case.ours, **case.peers}
    for work in works.values():
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
        found["images_per_second"] = case.images / found["seconds"]["ours"]
    if case.note:
        found["note"] = case.note
    return found


def rows(results: Iterable[dict]) -> list[list[str]]:
    """The lines of the printed table: case, our time, each peer's with the ratio."""
    lines = []
    for found in results:
        if "skipped" in found:
            lines.append([found["case"], "", f"skipped: {found['skipped']}", ""])
            continue
        ours = f"{found['seconds']['ours'] * 1e3:.1f} ms"
        for name, (median, low, high) in found["ratio"].items():
            theirs = f"{name} {found['seconds'][name] * 1e3:.1f} ms"
            lines.append([found["case"], ours, theirs, f"{median:.2f} ({low:.2f} to {high:.2f})"])
        if not found["ratio"]:
            lines.append([found["case"], ours, found.get("note", ""), ""])
    return lines
