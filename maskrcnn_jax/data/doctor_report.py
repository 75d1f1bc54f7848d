"""What a data set is made of, in numbers and tables."""

import collections
import math
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_jax import preprocess
from maskrcnn_jax.data.doctor import MAX_DETECTIONS, Examined, class_counts
from maskrcnn_jax.data.formats.draft import Finding

GRADES = ("error", "warning", "note")
_COCO_SIZES = (("small", 0, 32**2), ("medium", 32**2, 96**2), ("large", 96**2, math.inf))
_BINS_PER_OCTAVE = 8
_EXAMPLES = 3
_MOST_CLASSES = 100  # rows of the table; all are in the JSON
_SHORT, _LONG = 800, 1333  # of Detectron2's recipe, and of this package by default

HW = tuple[int, int]


class Table(NamedTuple):
    """A table, ready to be printed."""

    title: str
    header: list[str]
    rows: list[list[str]]


def statistics(examined: Examined, max_instances: int, canvas: HW = (_SHORT, _LONG)) -> dict:
    """The numbers of a data set, as JSON can hold them.

    Args:
      max_instances: objects of one picture that training keeps.
      canvas: the shorter side that pictures are resized to, and the most of the longer one.
    """
    raw, area = examined.raw, examined.measures.area
    per_photo = collections.Counter(t.photo for t in raw.things if t.photo >= 0)
    counts = np.array([per_photo[i] for i in range(len(raw.photos))], int)
    sizes = np.array([p.hw for p in raw.photos if p.hw is not None], int).reshape(-1, 2)
    covered = area[np.nan_to_num(area) > 0]
    return {
        "file": str(raw.path),
        "images": ":".join(map(str, raw.folders)),
        "pictures": len(raw.photos),
        "objects": len(raw.things),
        "objects_with_mask": len(covered),
        "crowds": sum(t.crowd for t in raw.things),
        "polygons": sum(bool(t.polygons) for t in raw.things),
        "rles": sum(t.rle is not None for t in raw.things),
        "several_parts": sum(len(t.polygons) > 1 for t in raw.things),
        "classes": {
            c.name or f"category {c.id}": n
            for c, n in zip(raw.categories, class_counts(raw), strict=True)
        },
        "sizes": {
            name: int(((covered >= low) & (covered < high)).sum())
            for name, low, high in _COCO_SIZES
        },
        "size_histogram": _octaves(covered),
        "objects_per_picture": _per_picture(counts, max_instances),
        "picture_sizes": _common_sizes(sizes),
        "canvases": _canvases(sizes, *canvas),
    }


def _octaves(covered: np.ndarray) -> list[dict[str, float]]:
    """Counts by the square root of the area, in eighths of octaves from 1 px on."""
    if not len(covered):
        return []
    bins = np.floor(np.log2(np.sqrt(covered)) * _BINS_PER_OCTAVE).astype(int)
    low, high = int(bins.min()), int(bins.max())
    counts = np.bincount(bins - low, minlength=high - low + 1).tolist()
    return [
        {"from_px": round(2 ** ((low + i) / _BINS_PER_OCTAVE), 2), "count": n}
        for i, n in enumerate(counts)
    ]


def _per_picture(counts: np.ndarray, max_instances: int) -> dict[str, float]:
    if not len(counts):
        return {"mean": 0.0, "median": 0.0, "most": 0, "none": 0, "over_cap": 0, "dropped": 0}
    return {
        "mean": round(float(counts.mean()), 2),
        "median": float(np.median(counts)),
        "most": int(counts.max()),
        "none": int((counts == 0).sum()),
        "over_cap": int((counts > max_instances).sum()),
        "dropped": int(np.clip(counts - max_instances, 0, None).sum()),
        "over_max_dets": int((counts > MAX_DETECTIONS).sum()),
    }


def _common_sizes(sizes: np.ndarray) -> dict[str, Any]:
    if not len(sizes):
        return {"least": None, "most": None, "common": []}
    common = collections.Counter(map(tuple, sizes.tolist())).most_common(10)
    return {
        "least": sizes[sizes.prod(1).argmin()].tolist(),
        "most": sizes[sizes.prod(1).argmax()].tolist(),
        "common": [{"height": h, "width": w, "count": n} for (h, w), n in common],
    }


def _canvases(sizes: np.ndarray, short: int, long: int) -> list[dict[str, int]]:
    canvases = preprocess.derive_canvases(short, long)
    unique, counts = np.unique(sizes, axis=0, return_counts=True)
    found: collections.Counter = collections.Counter()
    for hw, count in zip(unique.tolist(), counts.tolist(), strict=True):
        resized = preprocess.shortest_edge_size(tuple(hw), short, long)
        found[preprocess.choose_canvas(resized, canvases)] += count
    return [{"height": h, "width": w, "count": n} for (h, w), n in found.most_common()]


def tables(numbers: dict[str, Any], max_instances: int) -> list[Table]:
    """The statistics as tables."""
    n, per = numbers, numbers["objects_per_picture"]
    overview = [
        ["folder", n["images"]],
        ["pictures", f"{n['pictures']}, {per['none']} of them without objects"],
        ["objects", f"{n['objects']}, {n['objects_with_mask']} with a mask, {n['crowds']} crowds"],
        [
            "masks",
            f"{n['polygons']} polygons ({n['several_parts']} of several parts), {n['rles']} RLE",
        ],
        ["objects per picture", f"mean {per['mean']}, median {per['median']}, most {per['most']}"],
        [
            f"over max_instances {max_instances}",
            f"{per['over_cap']} pictures; training would drop {per['dropped']} objects",
        ],
        [
            "COCO sizes",
            ", ".join(f"{name} {count}" for name, count in n["sizes"].items()),
        ],
    ]
    found = [Table(n["file"], ["what", "count"], overview)]
    classes = sorted(n["classes"].items(), key=lambda item: -item[1])
    rows = [[name, str(count)] for name, count in classes[:_MOST_CLASSES]]
    if len(classes) > _MOST_CLASSES:
        rows.append([f"... {len(classes) - _MOST_CLASSES} more", ""])
    found.append(Table(f"classes: {len(classes)}", ["class", "objects"], rows))
    octaves: collections.Counter = collections.Counter()
    for entry in n["size_histogram"]:
        octaves[math.floor(math.log2(entry["from_px"]) + 1e-3)] += entry["count"]
    rows = [[f"{2.0**k:g} to {2.0 ** (k + 1):g}", str(c)] for k, c in sorted(octaves.items())]
    found.append(Table("square root of the area", ["pixels", "objects"], rows))
    for title, entries in (
        ("most common picture sizes", n["picture_sizes"]["common"]),
        ("canvases they are trained on", n["canvases"]),
    ):
        rows = [[f"{e['height']} x {e['width']}", str(e["count"])] for e in entries]
        found.append(Table(title, ["height x width", "pictures"], rows))
    return found


def by_code(findings: list[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Findings by grade and code, the gravest first."""
    found: dict[tuple[str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: GRADES.index(f.grade)):
        found.setdefault((finding.grade, finding.code), []).append(finding)
    return found


def summary(findings: list[Finding]) -> list[str]:
    """Lines to print: of each code the count and the first three findings."""
    lines = []
    several = len({f.file for f in findings}) > 1
    for (grade, code), like in by_code(findings).items():
        lines.append(f"{grade}: {code} ({len(like)})")
        for finding in like[:_EXAMPLES]:
            where = f"{finding.where}: " if finding.where else ""
            file = f"{finding.file}: " if several else ""
            lines.append(f"    {file}{where}{finding.message}")
        if len(like) > _EXAMPLES:
            lines.append(f"    ... {len(like) - _EXAMPLES} more")
    return lines
