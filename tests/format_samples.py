"""Small annotated sets, one per labelling tool, as the tools write them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

HW = (60, 80)  # of every picture
TRIANGLE = [[10.0, 12.0], [40.0, 14.0], [22.0, 50.0]]
SQUARE = [[44.0, 20.0], [70.0, 20.0], [70.0, 46.0], [44.0, 46.0]]


def photo(path: Path, hw=HW, seed=0, **options) -> Path:
    """Writes a noisy picture; the suffix tells the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


def _polygon(points):
    x, y = zip(*points, strict=True)
    return {"name": "polygon", "all_points_x": list(x), "all_points_y": list(y)}


def via_content(names=("a.jpg", "b.jpg", "c.png")):
    """VIA 2's dict of entries: all its shapes."""
    shapes = [
        (_polygon(TRIANGLE), "cat"),
        (_polygon(SQUARE), "dog"),
        ({"name": "rect", "x": 5, "y": 6, "width": 30, "height": 20}, "cat"),
        ({"name": "circle", "cx": 50, "cy": 30, "r": 12.5}, "dog"),
        ({"name": "ellipse", "cx": 40, "cy": 30, "rx": 20, "ry": 9, "theta": 0.6}, "cat"),
        (_polygon(TRIANGLE) | {"name": "polyline"}, "dog"),
        ({"name": "point", "cx": 3, "cy": 4}, "cat"),
    ]
    regions = [{"shape_attributes": s, "region_attributes": {"name": c}} for s, c in shapes]
    return {
        f"{name}123": {
            "filename": name,
            "size": 123,
            "file_attributes": {},
            "regions": regions[3 * i : 3 * i + 3 + i],
        }
        for i, name in enumerate(names)
    }


def via3_content():
    """A project of VIA 3."""
    return {
        "project": {"pid": "__VIA_PROJECT_ID__", "pname": "p"},
        "config": {},
        "attribute": {
            "1": {"aname": "class", "type": 3, "options": {"0": "cat", "1": "dog"}},
        },
        "file": {
            "1": {"fid": 1, "fname": "a.jpg", "type": 2, "loc": 1, "src": ""},
            "2": {"fid": 2, "fname": "b.jpg", "type": 2, "loc": 1, "src": ""},
        },
        "metadata": {
            "1_A": {
                "vid": "1",
                "z": [],
                "xy": [7, *np.ravel(TRIANGLE).tolist()],
                "av": {"1": "0"},
            },
            "1_B": {"vid": "1", "z": [], "xy": [2, 5, 6, 30, 20], "av": {"1": "1"}},
            "2_C": {"vid": "2", "z": [], "xy": [4, 40, 30, 20, 9], "av": {"1": "1"}},
            "2_D": {"vid": "2", "z": [], "xy": [], "av": {}},
        },
        "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
    }


def via_csv(content=None) -> str:
    """VIA's CSV export, with the bare word `undefined` that it writes for unset attributes."""
    rows = ["filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"]
    rows[0] += "region_attributes"
    for entry in (content or via_content()).values():
        for number, region in enumerate(entry["regions"]):
            shape = json.dumps(region["shape_attributes"]).replace('"', '""')
            name = region["region_attributes"]["name"]
            attributes = f'{{""name"":""{name}"",""type"":undefined}}'
            count = len(entry["regions"])
            rows.append(f'{entry["filename"]},123,"{{}}",{count},{number},"{shape}","{attributes}"')
        if not entry["regions"]:
            rows.append(f'{entry["filename"]},123,"{{}}",0,0,"{{}}","{{}}"')
    return "\n".join(rows) + "\n"


def labelme_content(name="a.jpg", **more):
    """One labelme file, with every kind of shape."""
    circle = [[50, 30], [56, 38]]
    shapes = [
        {"label": "cat", "points": TRIANGLE, "shape_type": "polygon", "group_id": None},
        {"label": "dog", "points": SQUARE, "group_id": 1},
        {"label": "dog", "points": [[2, 3], [20, 9]], "shape_type": "rectangle", "group_id": 1},
        {"label": "cat", "points": circle, "shape_type": "circle", "flags": {}},
        {"label": "cat", "points": TRIANGLE, "shape_type": "linestrip"},
        {"label": "dog", "points": [[4, 4], [60, 50]], "shape_type": "line"},
        {"label": "dog", "points": [[4, 4]], "shape_type": "point"},
        {"label": "__ignore__", "points": SQUARE, "shape_type": "polygon"},
    ]
    sizes = {"imageHeight": HW[0], "imageWidth": HW[1]}
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name} | {
        "imageData": None,
        **sizes,
        **more,
    }


def pack_brush(values, word=8) -> list[int]:
    """Values in the run-length code of thi.ng's rle-pack, written bit by bit."""
    widths = (3, 4, 8, 16)
    bits = [f"{len(values):032b}", f"{word - 1:05b}", *(f"{w - 1:04b}" for w in widths)]
    start = 0
    while start < len(values):
        end = start + 1
        while end < len(values) and values[end] == values[start] and end - start < 2**16:
            end += 1
        repeats = end - start > 1
        if not repeats:  # a run of values that differ
            while end < len(values) and values[end] != values[end - 1] and end - start < 2**16:
                end += 1
        width = next(i for i, w in enumerate(widths) if end - start <= 2**w)
        bits.append(f"{int(repeats)}{width:02b}{end - start - 1:0{widths[width]}b}")
        bits += [
            f"{v:0{word}b}" for v in (values[start : start + 1] if repeats else values[start:end])
        ]
        start = end
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def brush_of(mask, colour=(200, 30, 90)) -> list[int]:
    """A mask as Label Studio's brush keeps it: RGBA values, opaque where it is."""
    rgba = np.zeros((*mask.shape, 4), np.int64)
    rgba[mask] = (*colour, 255)
    return pack_brush(rgba.ravel().tolist())


def labelstudio_content(names=("1a2b3c4d-a.jpg", "1a2b3c4d-b.jpg")):
    """Label Studio's JSON: polygon, rectangle, ellipse and brush, in percent."""
    percent = [[x / HW[1] * 100, y / HW[0] * 100] for x, y in TRIANGLE]
    mask = np.zeros(HW, bool)
    mask[10:30, 20:50] = True
    mask[15:20, 30:35] = False
    values = [
        ("polygonlabels", {"points": percent, "closed": True}),
        ("rectanglelabels", {"x": 40, "y": 20, "width": 30, "height": 25, "rotation": 20}),
        ("ellipselabels", {"x": 50, "y": 50, "radiusX": 20, "radiusY": 15, "rotation": 30}),
        ("brushlabels", {"format": "rle", "rle": brush_of(mask)}),
    ]
    tasks = []
    for number, name in enumerate(names):
        result = [
            {
                "id": f"r{number}{i}",
                "type": kind,
                "original_width": HW[1],
                "original_height": HW[0],
                "image_rotation": 0,
                "value": value | {kind: ["cat" if i % 2 else "dog"]},
                "from_name": "label",
                "to_name": "image",
            }
            for i, (kind, value) in enumerate(values)
        ]
        tasks.append(
            {
                "id": number + 1,
                "file_upload": name,
                "data": {"image": f"/data/upload/8/{name}"},
                "annotations": [{"id": 9, "was_cancelled": False, "result": result}],
                "predictions": [],
            }
        )
    return tasks


def coco_content(names=("a.jpg", "b.jpg")):
    """COCO JSON: a polygon, two parts, and RLEs of both kinds, one a crowd."""
    from pycocotools import mask as mask_utils

    mask = np.zeros(HW, np.uint8, order="F")
    mask[10:30, 20:50] = 1
    mask[15:20, 30:35] = 0
    packed = mask_utils.encode(mask)
    counts, last = [0], 0
    for value in mask.ravel(order="F").tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    forms = [
        [np.ravel(TRIANGLE).tolist()],
        [np.ravel(TRIANGLE).tolist(), np.ravel(SQUARE).tolist()],
        {"size": list(HW), "counts": packed["counts"].decode()},
        {"size": list(HW), "counts": counts},
    ]
    images = [
        {"id": i + 1, "file_name": name, "height": HW[0], "width": HW[1]}
        for i, name in enumerate(names)
    ]
    annotations = [
        {
            "id": 10 * image["id"] + i,
            "image_id": image["id"],
            "category_id": 1 + i % 2,
            "segmentation": form,
            "bbox": [10, 12, 60, 38],
            "area": 600,
            "iscrowd": int(isinstance(form, dict) and isinstance(form["counts"], list)),
        }
        for image in images
        for i, form in enumerate(forms)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(path: Path, content) -> Path:
    """Writes a text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path
