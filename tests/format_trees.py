"""Small annotated sets that are folders, written as each format's documentation states.

Each function fills a folder and returns what is in it: (picture, class, mask or outline) of every
object, sorted by what the reader must give.
"""

import base64
import io
import json
import zlib

import numpy as np
import truth
from format_samples import HW, photo
from PIL import Image

STAR = [[20.0, 5.0], [26.0, 22.0], [45.0, 22.0], [30.0, 33.0], [36.0, 52.0], [20.0, 40.0]]
QUAD = [[50.0, 8.0], [75.5, 12.0], [70.0, 55.25], [48.0, 50.0]]


def blob(seed, hw=HW):
    """A ragged mask with a hole, different for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: hw[0], : hw[1]]
    cy, cx = rng.uniform(0.3, 0.7, 2) * hw
    distance = np.hypot((y - cy) / (hw[0] * 0.25), (x - cx) / (hw[1] * 0.2))
    return (distance < 1 + 0.2 * rng.random(hw)) & (distance > 0.4)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def instances(hw=HW):
    """A map of numbers 0..3 in which each object is in several parts."""
    ids = np.zeros(hw, np.uint8)
    for number in (1, 2, 3):
        ids[blob(number, hw)] = number
    return ids


def yolo(folder, split="train", names="names: [cat, 'dog house']\n"):
    """Two pictures, three polygons and a box."""
    for name, seed in (("a.jpg", 0), ("b.png", 1)):
        photo(folder / "images" / split / name, seed=seed)
    scale = np.array(HW[::-1], np.float64)

    def line(number, points):
        return " ".join([str(number), *(repr(float(v)) for v in (points / scale).ravel())]) + "\n"

    box = np.array([[40.0, 30.0], [20.0, 10.0]])
    labels = folder / "labels" / split
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text(line(0, STAR) + line(1, QUAD))
    (labels / "b.txt").write_text(line(1, STAR) + line(0, box))
    if names:
        (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\nnc: 2\n{names}")
    square = [[30, 25], [50, 25], [50, 35], [30, 35]]
    prefix = f"images/{split}"
    return [
        (f"{prefix}/a.jpg", "cat", STAR),
        (f"{prefix}/a.jpg", "dog house", QUAD),
        (f"{prefix}/b.png", "dog house", STAR),
        (f"{prefix}/b.png", "cat", square),
    ]


def palette():
    """VOC's colours, as its development kit makes them."""
    colours = []
    for i in range(256):
        red = green = blue = 0
        c = i
        for j in range(8):
            red |= ((c >> 0) & 1) << (7 - j)
            green |= ((c >> 1) & 1) << (7 - j)
            blue |= ((c >> 2) & 1) << (7 - j)
            c >>= 3
        colours.append((red, green, blue))
    return colours


def save_palette(path, array):
    indexed = Image.frombytes("P", array.shape[::-1], array.tobytes())
    indexed.putpalette([v for colour in palette() for v in colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    indexed.save(path)


def voc(folder, coloured=False, classes=True, xml=True):
    """A picture with three objects (dog, person, dog) and void borders."""
    photo(folder / "JPEGImages" / "2007_000001.jpg")
    ids = instances()
    kinds = np.array([0, 12, 15, 12], np.uint8)[ids]
    void = np.roll(ids > 0, 1, 1) & (ids == 0)
    ids[void], kinds[void] = 255, 255
    for name, values in (("SegmentationObject", ids), ("SegmentationClass", kinds)):
        path = folder / name / "2007_000001.png"
        if name == "SegmentationClass" and not classes:
            continue
        if coloured:
            save(path, np.array(palette(), np.uint8)[values])
        else:
            save_palette(path, values)
    if xml:
        objects = "".join(f"<object><name>{n}</name></object>" for n in ("dog", "person", "dog"))
        (folder / "Annotations").mkdir()
        text = f"<annotation><filename>2007_000001.jpg</filename>{objects}</annotation>"
        (folder / "Annotations" / "2007_000001.xml").write_text(text)
    name = "JPEGImages/2007_000001.jpg"
    labels = ("dog", "person", "dog")
    return [(name, label, ids == n) for n, label in enumerate(labels, 1)]


def penn_fudan(folder):
    """Two pictures with numbers of objects."""
    found = []
    for seed, name in enumerate(("FudanPed1", "PennPed2")):
        photo(folder / "PNGImages" / f"{name}.png", seed=seed)
        ids = np.roll(instances(), seed, 0)
        save(folder / "PedMasks" / f"{name}_mask.png", ids)
        found += [(f"PNGImages/{name}.png", "object", ids == n) for n in (1, 2, 3)]
    return found


def nuclei(folder, count=3, hw=HW, each=2):
    """A folder per picture, with a mask per object."""
    found = []
    for i in range(count):
        key = f"{i:04x}beef"
        photo(folder / key / "images" / f"{key}.png", hw=hw, seed=i)
        for j in range(each):
            mask = blob(10 * i + j, hw)
            save(folder / key / "masks" / f"{j:08x}.png", mask.astype(np.uint8) * 255)
            found.append((f"{key}/images/{key}.png", "object", mask))
    return found


def open_images(folder):
    """Two pictures, masks of their size and of another one, and a box of a group."""
    found, rows = [], []
    for i, key in enumerate(("00a1", "ff02")):
        photo(folder / "train" / f"{key}.jpg", seed=i)
        for j, (mid, name) in enumerate((("/m/01", "Cat"), ("/m/02", "Dog, small"))):
            small = i == 1
            mask = blob(5 * i + j, (30, 40) if small else HW)
            path = f"{key}_{mid[3:]}_{j}a.png"
            save(folder / "train-masks" / path, mask)  # one bit a pixel
            large = np.repeat(np.repeat(mask, 2, 0), 2, 1) if small else mask
            ys, xs = np.nonzero(large)
            box = [xs.min() / 80, (xs.max() + 1) / 80, ys.min() / 60, (ys.max() + 1) / 60]
            rows.append([path, key, mid, f"{j}a", *(f"{v:.6f}" for v in box), "0.9", ""])
            found.append((f"train/{key}.jpg", name, large))
    rows.append(["gone_01_0a.png", "gone", "/m/01", "0a", "0", "1", "0", "1", "0.9", ""])
    header = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
    lines = [header, *(",".join(row) for row in rows)]
    (folder / "train-annotations-object-segmentation.csv").write_text("\n".join(lines) + "\n")
    (folder / "class-descriptions.csv").write_text('/m/01,Cat\n/m/02,"Dog, small"\n')
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"
    )
    group = "00a1,xclick,/m/01,1,0.25,0.75,0.1,0.5,0,0,1"
    alone = "00a1,xclick,/m/01,1,0.25,0.75,0.1,0.5,0,0,0"
    (folder / "train-annotations-bbox.csv").write_text(f"{header}\n{group}\n{alone}\n")
    crowd = np.zeros(HW, bool)
    crowd[6:30, 20:60] = True
    return [*found, ("train/00a1.jpg", "Cat", crowd)]


def cvat_runs(mask):
    """CVAT's code of a mask: its box, and runs along the rows from background on."""
    ys, xs = np.nonzero(mask)
    left, top, right, bottom = xs.min(), ys.min(), xs.max(), ys.max()
    runs, value, length = [], False, 0
    for pixel in mask[top : bottom + 1, left : right + 1].ravel():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    runs.append(length)
    rle = ", ".join(map(str, runs))
    size = f'width="{right - left + 1}" height="{bottom - top + 1}"'
    return f'rle="{rle}" left="{left}" top="{top}" {size}'


def _pairs(points):
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in points)


def cvat(folder):
    """A picture with every shape; one object of two polygons, above the others."""
    photo(folder / "images" / "sub" / "a.jpg")
    photo(folder / "images" / "b.jpg", seed=1)
    mask = blob(7)
    common = 'source="manual" occluded="0"'
    shapes = [
        f'<polygon label="cat" {common} points="{_pairs(STAR)}" z_order="3" group_id="1"/>',
        f'<polygon label="cat" {common} points="{_pairs(QUAD)}" z_order="3" group_id="1"/>',
        f'<box label="dog" {common} xtl="10" ytl="20" xbr="50" ybr="40" rotation="30.0">'
        '<attribute name="age">3</attribute></box>',
        f'<ellipse label="cat" {common} cx="40" cy="30" rx="25" ry="9" rotation="20" z_order="1"/>',
        f'<mask label="dog" {common} {cvat_runs(mask)} z_order="2"></mask>',
        f'<polyline label="cat" {common} points="5,5;60,50" z_order="4"/>',
        f'<points label="cat" {common} points="5,5;60,50" z_order="0"/>',
        '<tag label="cat" source="manual"></tag>',
    ]
    labels = "".join(f"<label><name>{n}</name><type>any</type></label>" for n in ("dog", "cat"))
    size = f'width="{HW[1]}" height="{HW[0]}"'
    text = (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        f"<meta><task><id>1</id><labels>{labels}</labels></task></meta>\n"
        f'<image id="0" name="sub/a.jpg" {size}>\n' + "\n".join(shapes) + "\n</image>\n"
        f'<image id="1" name="b.jpg" {size}>\n'
        f'<polygon label="dog" {common} points="{_pairs(QUAD)}" z_order="0"/>\n'
        "</image>\n</annotations>\n"
    )
    (folder / "annotations.xml").write_text(text)
    return mask


def supervisely_bitmap(mask, packed=True):
    """A bitmap as the tool has it: a PNG of the mask's box, packed, in base64."""
    ys, xs = np.nonzero(mask)
    part = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    stream = io.BytesIO()
    Image.fromarray(part).save(stream, "PNG")
    data = zlib.compress(stream.getvalue()) if packed else stream.getvalue()
    origin = [int(xs.min()), int(ys.min())]
    return {"data": base64.b64encode(data).decode(), "origin": origin}


def supervisely_content(first_id=1):
    """An annotation with every geometry."""

    def entry(number, title, kind, **fields):
        points = {"points": {"exterior": [], "interior": []}}
        tags = [{"name": "breed", "value": f"{title}-x"}]
        common = {"id": first_id + number, "classTitle": title, "geometryType": kind, "tags": tags}
        return common | points | fields

    hole = [[24, 24], [32, 24], [30, 30]]
    return {
        "description": "",
        "tags": [],
        "size": {"height": HW[0], "width": HW[1]},
        "objects": [
            entry(0, "cat", "polygon", points={"exterior": QUAD, "interior": []}),
            entry(1, "dog", "polygon", points={"exterior": STAR, "interior": [hole]}),
            entry(2, "cat", "bitmap", bitmap=supervisely_bitmap(blob(3))),
            entry(3, "dog", "rectangle", points={"exterior": [[50, 40], [10, 20]], "interior": []}),
            entry(4, "dog", "line", points={"exterior": [[5, 5], [60, 50]], "interior": []}),
            entry(5, "dog", "point", points={"exterior": [[5, 5]], "interior": []}),
        ],
    }


def supervisely(folder):
    """A project of two data sets."""
    classes = [{"title": name, "shape": "any", "color": "#FF0000"} for name in ("dog", "cat")]
    (folder / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    for i, name in enumerate(("ds one", "ds2")):
        photo(folder / name / "img" / "a.jpg", seed=i)
        (folder / name / "ann").mkdir()
        content = supervisely_content(1 + 10 * i)
        (folder / name / "ann" / "a.jpg.json").write_text(json.dumps(content))
    return truth.fill(STAR, HW) & ~truth.fill([[24, 24], [32, 24], [30, 30]], HW)


MAKERS = {
    "yolo-seg": yolo,
    "voc": voc,
    "masks": penn_fudan,
    "open-images": open_images,
    "cvat": cvat,
    "supervisely": supervisely,
}


def check(draft, expected):
    """Asserts that a draft holds these objects, in this order within each picture."""
    pictures = [p.name for p in draft.pictures]
    items = sorted(draft.items, key=lambda i: pictures.index(i.picture))
    expected = sorted(expected, key=lambda e: pictures.index(e[0]))
    assert [(i.picture, i.label) for i in items] == [e[:2] for e in expected]
    for item, (_, _, shape) in zip(items, expected, strict=True):
        if isinstance(shape, list):
            assert truth.outline_iou(item.segmentation, shape, HW) >= 0.995
        else:
            assert np.array_equal(truth.decode(item.segmentation, shape.shape), shape)


def codes(draft):
    """The codes of the findings, sorted."""
    return sorted(f.code for f in draft.findings)
