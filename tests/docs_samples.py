"""Small sets laid out as those of docs/your_data.md, by the names that the page gives them."""

import json

import format_samples as samples
import format_trees as trees
import numpy as np
from format_samples import HW, SQUARE, TRIANGLE

PICTURES = [f"{i}.jpg" for i in range(6)]


def write(name, folder):
    """Fills the folder with the page's set of that name."""
    MAKERS[name](folder)


def _photos(folder):
    for i, picture in enumerate(PICTURES):
        samples.photo(folder / picture, seed=i)


def _cars(folder):
    _photos(folder)
    content = {}
    for picture in PICTURES:
        content |= samples.via_content((picture,))
    samples.write(folder / "via_region_data.json", content)


def _fruit(folder):
    _photos(folder)
    for picture in PICTURES:
        content = samples.labelme_content(picture)
        samples.write(folder / picture.replace("jpg", "json"), content)


def _furniture(folder):
    _photos(folder / "images")
    samples.write(folder / "label_studio.json", samples.labelstudio_content(PICTURES))


def _mushrooms(folder):
    for part in ("train", "valid", "test"):
        copies = [f"{part}{i % 3}_jpg.rf.{i:032x}.jpg" for i in range(6)]
        content = samples.coco_content(copies)
        content["categories"].insert(0, {"id": 0, "name": "Mushrooms-DLcx"})
        samples.write(folder / part / "_annotations.coco.json", content)
        for i, picture in enumerate(copies):
            samples.photo(folder / part / picture, seed=i)


def _yolo(folder):
    _photos(folder / "images" / "train")
    for i, picture in enumerate(PICTURES):
        lines = ""
        for number, points in enumerate((TRIANGLE, SQUARE)):
            values = (np.array(points) + i % 3) / HW[::-1]
            lines += " ".join([str(number), *(f"{v:.6f}" for v in values.ravel())]) + "\n"
        samples.write(folder / "labels" / "train" / picture.replace("jpg", "txt"), lines)


def _street(folder):
    _yolo(folder)
    samples.write(folder / "data.yaml", "train: images/train\nnc: 2\nnames: [person, bicycle]\n")


def _voc(folder):
    _photos(folder / "JPEGImages")
    for i, picture in enumerate(PICTURES):
        ids = np.roll(trees.instances(), i, 0)
        png = picture.replace("jpg", "png")
        trees.save_palette(folder / "SegmentationObject" / png, ids)
        kinds = np.array([0, 12, 15, 12], np.uint8)[ids]
        trees.save_palette(folder / "SegmentationClass" / png, kinds)


def _cells(folder):
    trees.nuclei(folder, count=6, each=4)


def _people(folder):
    for i in range(6):
        samples.photo(folder / "PNGImages" / f"FudanPed{i}.png", seed=i)
        ids = np.roll(trees.instances(), i, 0)
        trees.save(folder / "PedMasks" / f"FudanPed{i}_mask.png", ids)


def _open_images(folder):
    rows = ["MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"]
    for i in range(6):
        key = f"{i:016x}"
        samples.photo(folder / "train" / f"{key}.jpg", seed=i)
        for j, mid in enumerate(("/m/01yrx", "/m/0bt9lr", "/m/0k4j")):
            mask = trees.blob(3 * i + j)
            ys, xs = np.nonzero(mask)
            box = [xs.min() / 80, (xs.max() + 1) / 80, ys.min() / 60, (ys.max() + 1) / 60]
            path = f"{key}_{mid[3:]}_{j}a.png"
            trees.save(folder / "train-masks" / path, mask)
            rows.append(",".join([path, key, mid, f"{j}a", *(f"{v:.6f}" for v in box), "0.9", ""]))
    samples.write(folder / "train-annotations-object-segmentation.csv", "\n".join(rows) + "\n")
    names = "/m/01yrx,Cat\n/m/0bt9lr,Dog\n/m/0k4j,Car\n"
    samples.write(folder / "class-descriptions.csv", names)


def _cvat(folder):
    _photos(folder / "images")
    size = f'width="{HW[1]}" height="{HW[0]}"'
    entries = ""
    for i, picture in enumerate(PICTURES):
        shapes = ""
        for label, points in (("cat", TRIANGLE), ("dog", SQUARE)):
            text = ";".join(f"{x + i % 3:.2f},{y:.2f}" for x, y in points)
            shapes += f'<polygon label="{label}" source="manual" points="{text}" z_order="0"/>\n'
        entries += f'<image id="{i}" name="{picture}" {size}>\n{shapes}</image>\n'
    labels = "".join(f"<label><name>{n}</name></label>" for n in ("cat", "dog"))
    meta = f"<meta><task><id>1</id><labels>{labels}</labels></task></meta>\n"
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    samples.write(folder / "annotations.xml", f"{head}{meta}{entries}</annotations>\n")


def _supervisely(folder):
    _photos(folder / "ds1" / "img")
    classes = [{"title": name, "shape": "any", "color": "#FF0000"} for name in ("cat", "dog")]
    samples.write(folder / "meta.json", {"classes": classes, "tags": []})
    for i, picture in enumerate(PICTURES):
        content = trees.supervisely_content(1 + 10 * i)
        content["objects"] = content["objects"][:4]  # without lines and points
        samples.write(folder / "ds1" / "ann" / f"{picture}.json", json.dumps(content))


MAKERS = {
    "cars": _cars,
    "fruit": _fruit,
    "furniture": _furniture,
    "mushrooms": _mushrooms,
    "street": _street,
    "coco128": _yolo,
    "VOC2012": _voc,
    "cells": _cells,
    "people": _people,
    "open_images": _open_images,
    "cvat_job": _cvat,
    "project": _supervisely,
}
