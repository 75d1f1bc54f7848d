"""The kernels that a program spends its time in, by JAX's profiler.

The profiler writes a trace as JSON, too, which needs no TensorBoard to be read. On GPUs the events
of the streams count, on CPUs those that name an instruction of XLA.
"""

import gzip
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import jax

# Parts of the model by what the names of instructions contain; the first that fits.
PARTS = {
    "backbone": "/backbone/",
    "FPN": "/fpn/",
    "RPN head": "/rpn_head/",
    "box head": "/box_head/",
    "mask head": "/mask_head/|MaskHead",
    "ROIAlign": r"MaskRCNN\.(boxes|masks)",
}
REST = "proposals, sampling, losses, optimizer"
UNNAMED = "no name"  # copies, and what the profiler cannot name
# They hold other events.
_OUTER = ("while", "call", "conditional")


def trace(work: Callable[[], object]) -> list[dict]:
    """The events of the device while `work` runs, which waits until it is done.

    Each has "name", "ts" and "dur" in microseconds, and "args" with "hlo_op" where there is one.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            work()
        file = next(Path(folder).rglob("perfetto_trace.json.gz"))
        with gzip.open(file) as content:
            return of_device(json.load(content)["traceEvents"])


def of_device(events: Iterable[dict]) -> list[dict]:
    """Those of GPU streams if there are any, else those that name an instruction."""
    events = list(events)
    streams = {
        (e["pid"], e["tid"])
        for e in events
        if e.get("name") == "thread_name" and "Stream" in e["args"]["name"]
    }
    spans = [e for e in events if e.get("ph") == "X" and "dur" in e]
    if streams:
        return [e for e in spans if (e["pid"], e["tid"]) in streams]
    return [e for e in spans if _instruction(e) and not _instruction(e).startswith(_OUTER)]


def sources(hlo: str) -> dict[str, str]:
    """Instruction -> the name of the operation that it came from, of a program's text."""
    return dict(re.findall(r'%?([\w.\-]+) = .*metadata=\{op_name="([^"]*)"', hlo))


def top(events: list[dict], source: dict[str, str], number: int = 10) -> list[dict]:
    """The kernels with the most time: name, ms, share, calls, and where the longest came from."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for event in events:
        groups[event["name"]].append(event)
    total = sum(event["dur"] for event in events)
    rows = []
    for name, group in groups.items():
        spent = sum(event["dur"] for event in group)
        longest = max(group, key=lambda event: event["dur"])
        rows.append(
            {
                "kernel": name,
                "ms": spent / 1e3,
                "share": spent / total,
                "calls": len(group),
                "source": source.get(_instruction(longest), _instruction(longest)),
            }
        )
    return sorted(rows, key=lambda row: -row["ms"])[:number]


def by_part(events: list[dict], source: dict[str, str]) -> dict[str, float]:
    """Part of the model -> its share of the kernels' time."""
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        name = source.get(_instruction(event))
        found = (part for part, pattern in PARTS.items() if name and re.search(pattern, name))
        spent[next(found, REST if name else UNNAMED)] += event["dur"]
    total = sum(spent.values())
    return {part: x / total for part, x in sorted(spent.items(), key=lambda item: -item[1])}


def busy(events: list[dict]) -> float:
    """Share of the time from the first to the last event in which some kernel ran."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events)
    covered, until = 0.0, spans[0][0]
    for start, end in spans:
        covered += max(end - max(start, until), 0.0)
        until = max(until, end)
    return covered / max(until - spans[0][0], 1e-9)


def _instruction(event: dict) -> str:
    return event.get("args", {}).get("hlo_op", "")
