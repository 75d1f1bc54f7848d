"""Broken COCO JSON for the tests of the doctor."""

import copy
import json
import math

import numpy as np
import tiny_coco
from hypothesis import strategies as st

from maskrcnn_jax.data import doctor_run

HW = (40, 50)
GOOD = tiny_coco.annotation(1, 5, 3, [tiny_coco.rectangle(3, 3, 19, 19)])


def ring():
    """A mask with a hole."""
    y, x = np.mgrid[: HW[0], : HW[1]]
    distance = np.hypot(y - 20, x - 25)
    return (distance < 15) & (distance > 7)


def content(annotations=(GOOD,), sizes=None, categories=None):
    """A COCO JSON, as `tiny_coco.write` makes it; free to be changed."""
    images = [
        {"id": i, "file_name": f"{i}.png", "height": h, "width": w}
        for i, (h, w) in (sizes or {5: HW, 2: HW}).items()
    ]
    made = {"images": images, "annotations": list(annotations)}
    return copy.deepcopy(made | {"categories": categories or tiny_coco.CATEGORIES})


def all_kinds():
    """A file with polygons, both kinds of RLE and a crowd."""
    parts = [tiny_coco.rectangle(2, 3, 12, 9), [20, 20, 44.5, 22.5, 30, 37.5]]
    return content(
        [
            GOOD,
            tiny_coco.annotation(11, 5, 90, parts, area=262),
            tiny_coco.rle_annotation(4, 5, 3, ring(), compressed=False),
            tiny_coco.rle_annotation(9, 2, 3, ring(), compressed=True),
            tiny_coco.rle_annotation(6, 2, 7, ring(), compressed=True, iscrowd=1),
        ]
    )


def inspect(folder, made, **more):
    """What the doctor finds in a content; pictures are not opened unless asked for."""
    path = folder / "instances.json"
    path.write_text(json.dumps(made))
    return doctor_run.inspect([path], **{"open_pictures": False, **more})


def codes(report, *grades):
    """The codes of all findings, of these grades or of all."""
    return {f.code for f in report.findings if f.grade in (grades or ("error", "warning", "note"))}


JUNK = [
    *(None, True, 0, -1, 1, 2, 5, 2**40, 2**70, -(2**63) - 1, 0.5, 7.0, 1e7, 1e12, 1e300),
    *(math.nan, math.inf, -math.inf, "", " ", "5", "dog", "../x.png", "/etc/passwd", "C:\\5.png"),
    *("a\0b", "\ud800", "x" * 5000, [], {}, [[]], [1], [None], {"id": 1}, [[1, 1, 9, 9]]),
    *([[3, 3, 9, 3, 9, 9]], [3, 3, 9, 9], [1e6, 0, 1e9, 5], {"size": [40, 50], "counts": "oooo9"}),
    {"size": [40, 50], "counts": [-5, 2005]},
]


@st.composite
def mutated(draw):
    """A sound file with one to five places dropped, replaced, doubled or moved far."""
    made = all_kinds()
    for _ in range(draw(st.integers(1, 5))):
        parent, key = _place(draw, made)
        if parent is None:
            continue
        action = draw(st.sampled_from(["drop", "junk", "double", "scale"]))
        if action == "drop":
            del parent[key]
        elif action == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif action == "scale" and type(parent[key]) in (int, float):
            parent[key] = parent[key] * draw(st.sampled_from([-1, 0, 0.01, 3, 1e5, 1e11]))
        else:
            parent[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    return made


def _place(draw, node):
    """A place in a JSON, its parent and its key, drawn from all depths alike."""
    parent = key = None
    for _ in range(draw(st.integers(1, 5))):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        parent, key = node, draw(st.sampled_from(keys))
        node = node[key]
        if not isinstance(node, dict | list):
            break
    return parent, key
