"""Whole models and the way in and out of them against Matterport's own code.

Every e2e_*.npz of the golden set is run once; each of its arrays is compared. The worst value of
each is printed, and written to the file that MASKRCNN_PARITY_TABLE names. The bounds are those that
the golden set's README calls fair.
"""

import hashlib
import json
import os
import re
from pathlib import Path

import golden_sets
import jax
import jax.numpy as jnp
import numpy as np
import peer_model
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_jax import conventions, postprocess_matterport, preprocess_matterport
from maskrcnn_jax.models.roi_heads import BoxHead, MaskHead
from maskrcnn_jax.ops import crop_resize
from maskrcnn_jax.weights import importer
from maskrcnn_jax.weights.readers import Source

pytestmark = pytest.mark.optimized

MAPS = 1e-4  # of the map's standard deviation
PROPOSALS, DETECTIONS = 0.99, 0.95  # share found again
PROBABILITY = 1e-4
BOX, SCORE = 2e-3, 5e-3  # of a detection that counts as found again; boxes normalised
OVERLAP = 0.01  # 1 - IoU of masks

CASES = [path.stem.removeprefix("e2e_") for path in golden_sets.find("matterport", "e2e_*.npz")]
# Inputs, or what only tells about others.
NOT_OUTPUTS = r"image_hw_seed|image_sha256|config_json|image_meta|window|resized_padded"

found = {}


def swap(x):
    """(y, x) pairs to (x, y) pairs and back."""
    return np.asarray(x)[..., [1, 0, 3, 2]]


def bits(golden, name, shape):
    return np.unpackbits(golden[name])[: np.prod(shape)].reshape(shape).astype(bool)


def imported_model(name, num_classes=None):
    tensors = peer_model.keras_tensors(name, num_classes)
    return importer.import_weights(Source(Path("weights.h5"), "h5", tensors, {}))


@pytest.fixture(params=CASES or [pytest.param("", marks=pytest.mark.skip("no e2e_*.npz"))])
def case(request):
    """(name, golden arrays, ours); each model runs once, from the golden network input."""
    name = request.param
    golden = golden_sets.load("matterport", f"e2e_{name}")
    if name not in found:
        found.clear()
        depth = re.match(r"r(\d+)_", name)[1]
        imported = imported_model(f"resnet{depth}_coco81")
        canvas = golden["resized_padded"]
        window = swap(golden["window"])
        ours = peer_model.run_on_canvas(imported, canvas, canvas.shape[:2], window)
        ours["STEM"] = ours["STEM"] + imported.originals["conv1/bias"]  # folded into the norm
        found[name] = derive(ours, golden) | golden_masks(imported, ours, golden)
    return name, golden, found[name]


def derive(ours, golden):
    """What the golden files hold beside what our parts give."""
    side = golden["resized_padded"].shape[0]
    hw = tuple(int(x) for x in golden["image_hw_seed"][:2])
    window = tuple(map(float, swap(golden["window"])))
    boxes, has_area = conventions.boxes_to_image(ours["boxes"], window, hw, "matterport")
    keep = has_area & ours["valid"]
    last = np.float32(side - 1)
    return ours | {
        "normalised_proposals": swap(ours["proposals"] / last),
        "normalised_boxes": swap((ours["boxes"] - np.float32([0, 0, 1, 1])) / last),
        "final_boxes": boxes[keep],
        "final_classes": ours["classes"][keep],
        "final_scores": ours["scores"][keep],
        "final_masks": ours["masks"][keep],
        "hw": hw,
    }


def golden_masks(imported, ours, golden):
    """Crops and masks of the first golden boxes: whether the last sample of a box that ends at the
    border counts is decided by the last bit, which our own boxes have not all."""
    boxes = swap(golden["detections"][None, :4, :4])
    pyramid = {f"p{level}": jnp.asarray(ours[f"P{level}"][None]) for level in (2, 3, 4, 5)}
    pooled = crop_resize.pool_normalised(pyramid, jnp.asarray(boxes), 14)[0]
    params = imported.variables["params"]["mask_head"]
    logits = MaskHead(80).apply({"params": params}, pooled, None, False)
    return {"golden_mask_rois": np.asarray(pooled), "golden_mask_logits": np.asarray(logits)}


def test_whole_model(case):
    name, golden, ours = case
    rows = [
        (key, *compare(key, golden, ours)) for key in golden if not re.fullmatch(NOT_OUTPUTS, key)
    ]
    lines = [f"{name:8} {k:30} {value:10.3g} of {bound:g} {unit}" for k, value, bound, unit in rows]
    print("\n" + "\n".join(lines))
    if table := os.environ.get("MASKRCNN_PARITY_TABLE"):
        with Path(table).open("a") as file:
            file.write("\n".join(lines) + "\n")
    failed = [
        line for line, (_, value, bound, _) in zip(lines, rows, strict=True) if not value <= bound
    ]
    assert not failed, "\n".join(failed)


def compare(key, golden, ours):
    """(worst difference, its bound, what it is) of one array; an unknown one fails."""
    theirs = golden[key]
    if level := re.fullmatch(r"(conv1|c1|[cp][2-6])_(sub|mean|std)", key):
        return compare_map(level[1], level[2], golden, ours)
    if key == "rpn_logits":  # of background and object; all that counts is how far apart they are
        theirs = theirs[:, 1:] - theirs[:, :1]
    if key in RPN or key in HEADS:
        x = RPN[key](ours) if key in RPN else HEADS[key](ours, golden)
        x, theirs = np.broadcast_arrays(x[tuple(map(slice, theirs.shape))], theirs)
        if key.startswith("class_probs"):
            return np.abs(x - theirs).max(), PROBABILITY, ""
        return np.abs(x - theirs).max() / theirs.std(), MAPS, "of the std"
    if key in ("proposals", "proposal_levels", "top_class", "top_score", "top_deltas"):
        return compare_proposals(key, golden, ours)
    if key == "detections":
        rows = matched_detections(golden, ours)
        return 1 - len(rows) / (theirs[:, 4] > 0).sum(), 1 - DETECTIONS, "not found"
    return compare_final(key, golden, ours)


def compare_map(level, what, golden, ours):
    x = np.float64(ours[{"conv1": "STEM", "c1": "POOLED"}.get(level, level.upper())])
    std = golden[f"{level}_std"].mean()
    theirs = golden[f"{level}_{what}"]
    if what == "sub":
        step = [max(1, side // 8) for side in x.shape[:2]]
        return np.abs(x[:: step[0], :: step[1], ::8] - theirs).max() / std, MAPS, "of the std"
    own = x.mean((0, 1)) if what == "mean" else x.std((0, 1))
    return np.abs(own - theirs).max() / std, MAPS, "of the std"


def all_anchors(ours, kind):
    levels = [ours[f"{kind}_P{level}"] for level in (2, 3, 4, 5, 6)]
    width = 4 if kind == "rpn_deltas" else 1
    return np.concatenate([level.reshape(-1, width) for level in levels])


RPN = {
    "rpn_logits": lambda ours: all_anchors(ours, "objectness"),
    "rpn_probs_fg": lambda ours: sigmoid(all_anchors(ours, "objectness")[::16, 0]),
    "rpn_deltas": lambda ours: swap(all_anchors(ours, "rpn_deltas")),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def first_rows(golden, ours, count):
    """Our rows of the first golden proposals; near ties may have changed places."""
    distance = np.abs(golden["proposals"][:count, None] - ours["normalised_proposals"]).max(-1)
    assert distance.min(1).max() < 1e-4
    return distance.argmin(1)


def background_first(x):
    return np.roll(x, 1, -1)


def with_background(x, golden):
    """Deltas of the background, which nobody uses, are left out: the golden ones stand in."""
    return np.concatenate([golden["bbox_deltas"][:, :1], swap(x)], 1)


HEADS = {
    "roi_align_classifier_sub": lambda o, g: o["box_rois"][first_rows(g, o, 8)][..., ::8],
    "class_logits": lambda o, g: background_first(o["cls_score"])[first_rows(g, o, 32)],
    "class_probs": lambda o, g: np.asarray(
        jax.nn.softmax(background_first(o["cls_score"])[first_rows(g, o, 32)])
    ),
    "bbox_deltas": lambda o, g: with_background(o["box_deltas"][first_rows(g, o, 32)], g),
    "roi_align_mask_sub": lambda o, g: o["golden_mask_rois"][..., ::16],
    "mask_probs_all_classes": lambda o, g: np.concatenate(
        [g["mask_probs_all_classes"][..., :1], sigmoid(o["golden_mask_logits"])[:1]], -1
    ),
}


def compare_proposals(key, golden, ours):
    theirs = golden["proposals"]
    distance = np.abs(theirs[:, None] - ours["normalised_proposals"]).max(-1)
    rows, same = distance.argmin(1), distance.min(1) < BOX
    if key == "proposals":
        return 1 - same.mean(), 1 - PROPOSALS, "not found"
    rows = rows[same]
    probabilities = np.asarray(jax.nn.softmax(background_first(ours["cls_score"])))[rows]
    if key == "proposal_levels":
        side = golden["resized_padded"].shape[:2]
        levels = crop_resize.assign_levels(jnp.asarray(swap(ours["normalised_proposals"])), side)
        return (np.asarray(levels)[rows] != golden[key][same]).mean(), 1 - PROPOSALS, "differ"
    if key == "top_class":
        return (probabilities.argmax(-1) != golden[key][same]).mean(), 1 - DETECTIONS, "differ"
    if key == "top_score":
        worse = np.abs(probabilities.max(-1) - golden[key][same]) > SCORE
        return worse.mean(), 1 - DETECTIONS, "differ"
    top = golden["top_class"][same]
    alike = (top > 0) & (probabilities.argmax(-1) == top)
    deltas = swap(ours["box_deltas"][rows[alike], top[alike] - 1])
    worse = np.abs(deltas - golden[key][same][alike]).max(-1) > SCORE * golden[key].std() * 2
    return worse.mean(), 1 - DETECTIONS, "differ"


def matched_detections(golden, ours):
    """{row of a golden detection: our row} of those that are alike."""
    theirs = golden["detections"][golden["detections"][:, 4] > 0]
    boxes = np.abs(theirs[:, None, :4] - ours["normalised_boxes"]).max(-1)
    scores = np.abs(theirs[:, None, 5] - ours["scores"])
    classes = theirs[:, None, 4] == ours["classes"] + 1
    alike = (boxes < BOX) & (scores < SCORE) & classes & ours["valid"]
    # Of twins, boxes without area, the nearest.
    cost = np.where(alike, boxes + scores, np.inf)
    return {int(i): int(cost[i].argmin()) for i in range(len(theirs)) if alike[i].any()}


def compare_final(key, golden, ours):
    pairs = matched_final(golden, ours)
    missing = 1 - len(pairs) / max(len(golden["final_boxes"]), 1)
    if key in ("final_boxes", "final_class_ids", "final_scores"):
        return missing, 1 - DETECTIONS, "not found"
    detections = matched_detections(golden, ours)
    if key == "mask_probs":
        wrong = [
            np.abs(golden[key][i] - ours["masks"][j]).mean() > SCORE
            for i, j in detections.items()
            if i < len(golden[key])
        ]
        return np.mean(wrong), 1 - DETECTIONS, "differ"
    assert key in ("final_mask_rle", "final_mask_area"), f"{key}: no test knows this array"
    wrong = 0
    for i, j in pairs.items():
        mask = pasted(ours["final_masks"][j], ours["final_boxes"][j], ours["hw"])
        if key == "final_mask_area":
            difference = abs(int(mask.sum()) - int(golden[key][i])) / max(int(golden[key][i]), 1)
        else:
            rle = {"size": list(ours["hw"]), "counts": str(golden[key][i]).encode()}
            peer = coco_mask.decode(rle).astype(bool)
            union = (mask | peer).sum()
            difference = 1 - (mask & peer).sum() / union if union else 0.0
        wrong += difference > OVERLAP
    return missing + wrong / len(golden[key]), 1 - DETECTIONS, "differ"


def matched_final(golden, ours):
    """As `matched_detections`, of the boxes in whole pixels: at most one apart."""
    boxes = np.abs(golden["final_boxes"][:, None] - swap(ours["final_boxes"])).max(-1)
    scores = np.abs(golden["final_scores"][:, None] - ours["final_scores"])
    classes = golden["final_class_ids"][:, None] == ours["final_classes"] + 1
    alike = (boxes <= 1) & (scores < SCORE) & classes
    cost = np.where(alike, boxes + scores, np.inf)
    return {i: int(cost[i].argmin()) for i in range(len(boxes)) if alike[i].any()}


def pasted(mask, box, hw):
    rule = conventions.PASTE_RULES["matterport"]
    crop, top, left = rule.paste(mask, box, hw)
    image = np.zeros(hw, bool)
    image[top : top + crop.shape[0], left : left + crop.shape[1]] = rule.is_inside(crop, 0.5)
    return image


@pytest.mark.parametrize("name", CASES)
def test_input_and_output_alone(name):
    """The picture onto the canvas, and the golden detections back: without the network."""
    g = golden_sets.load("matterport", f"e2e_{name}")
    h, w, seed = map(int, g["image_hw_seed"])
    image = peer_model.script("matterport", "synth").image(h, w, seed)
    assert hashlib.sha256(image.tobytes()).hexdigest() == str(g["image_sha256"])
    config = json.loads(str(g["config_json"]))
    sides = config["IMAGE_MIN_DIM"], config["IMAGE_MAX_DIM"]
    canvas, placement = conventions.prepare_input(image, "matterport", *sides)
    np.testing.assert_array_equal(placement.window, swap(g["window"]))
    check_pixels(canvas, g["resized_padded"])

    last = np.float32(g["resized_padded"].shape[0] - 1)
    theirs = g["detections"][g["detections"][:, 4] > 0]
    boxes = swap(theirs[:, :4]) * last + np.float32([0, 0, 1, 1])
    final, keep = conventions.boxes_to_image(boxes, placement.window, (h, w), "matterport")
    np.testing.assert_array_equal(swap(final[keep]), g["final_boxes"])
    np.testing.assert_array_equal(theirs[keep, 4], g["final_class_ids"])
    for i, (mask, box) in enumerate(zip(g["mask_probs"][keep], final[keep], strict=True)):
        rle = {"size": [h, w], "counts": str(g["final_mask_rle"][i]).encode()}
        same = pasted(mask, box, (h, w)) == coco_mask.decode(rle).astype(bool)
        assert same.mean() >= 0.999
        assert int(coco_mask.area(rle)) == int(g["final_mask_area"][i])


def check_pixels(ours, theirs):
    """The README: one more or less, of values that were whole numbers but for float noise."""
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.035


SIZES = {"square256": (256, 256), "square512": (400, 512), "pad64128": (128, 10**9)}
IMAGES = {"landscape": (120, 200, 10), "portrait": (333, 150, 11), "small": (50, 40, 12)}
MASK_RULES = r"\w+_mask_(bits|shape|boxes)"  # of masks resized whole, which ours never are


@golden_sets.each("matterport", "preprocess", inputs=MASK_RULES)
def test_preprocess(name):
    g = golden_sets.load("matterport", "preprocess")
    if name == "molded_example":
        ours = g["small_square256_resized"][::16, ::16] - np.float32([123.7, 116.8, 103.9])
        np.testing.assert_allclose(ours, g[name], rtol=0, atol=1e-5)
        return
    kind, mode, what = re.fullmatch(r"([a-z]+)_([a-z]+\d+|image)_(\w+)", name).groups()
    h, w, seed = IMAGES[kind]
    image = peer_model.script("matterport", "synth").image(h, w, seed)
    if what == "sha256":
        assert hashlib.sha256(image.tobytes()).hexdigest() == str(g[name])
        return
    min_scale = 1.5 if mode == "pad64128" else 0.0
    size = preprocess_matterport.square_size((h, w), *SIZES[mode], min_scale)
    if mode == "pad64128":
        canvas = tuple(-(-side // 64) * 64 for side in size)
        top, left = ((c - s) // 2 for c, s in zip(canvas, size, strict=True))
        window = (left, top, left + size[1], top + size[0])
    else:
        canvas = (SIZES[mode][1],) * 2
        window = preprocess_matterport.square_window(size, canvas[0])
    x0, y0, x1, y1 = window
    scale = max(1.0, SIZES[mode][0] / min(h, w), min_scale)
    if round(max(h, w) * scale) > SIZES[mode][1]:
        scale = SIZES[mode][1] / max(h, w)
    if what == "resized":
        ours = np.zeros((*canvas, 3), np.uint8)
        ours[y0:y1, x0:x1] = preprocess_matterport.resize_truncating(image, size)
        check_pixels(ours, g[name])
    elif what == "window":
        np.testing.assert_array_equal(swap(window), g[name])
    elif what == "padding":
        expected = [[y0, canvas[0] - y1], [x0, canvas[1] - x1], [0, 0]]
        np.testing.assert_array_equal(expected, g[name])
    elif what == "scale":
        np.testing.assert_allclose(scale, g[name], rtol=1e-7)
    else:
        assert what == "meta", f"{name}: no test knows this array"
        np.testing.assert_allclose([0, h, w, 3, *canvas, 3, *swap(window), scale], g[name])


@golden_sets.each("matterport", "masks", inputs="image_hw|masks_bits|boxes|probs|unmold_boxes")
def test_masks(name):
    g = golden_sets.load("matterport", "masks")
    hw = tuple(map(int, g["image_hw"]))
    resize = preprocess_matterport.resize_zero_beyond
    if name.startswith("resized_"):
        ours = resize(g["probs"][{"resized_constant": 1, "resized_disc": 0}[name]], g[name].shape)
        np.testing.assert_allclose(ours, g[name], rtol=0, atol=1e-4)
        return
    if name == "unmolded_bits":
        expected = bits(g, name, (*hw, 5))
        boxes = swap(g["unmold_boxes"]).astype(np.float32)
        ours = [pasted(mask, box, hw) for mask, box in zip(g["probs"], boxes, strict=True)]
        assert (np.stack(ours, -1) == expected).mean() >= 0.999
        return
    # Matterport's mini-masks: ours are the box-frame bitmaps of the records, made by another rule;
    # its resize underlies both.
    mini = bits(g, "mini_bits", (56, 56, 4))
    for i, (y0, x0, y1, x1) in enumerate(g["boxes"]):
        whole = bits(g, "masks_bits", (*hw, 4))[y0:y1, x0:x1, i].astype(np.float32)
        if name == "mini_bits":
            # Exact halves, of which the edges of boxes are full, round by float noise.
            assert (np.round(resize(whole, (56, 56))) == mini[..., i]).mean() >= 0.995
        else:
            assert name == "expanded_bits", f"{name}: no test knows this array"
            expected = bits(g, name, (*hw, 4))[y0:y1, x0:x1, i]
            ours = np.round(resize(mini[..., i].astype(np.float32), expected.shape))
            assert (ours == expected).mean() >= 0.999


@golden_sets.each("matterport", "heads", inputs="")
def test_heads(name):
    g = golden_sets.load("matterport", "heads")
    normal = peer_model.script("matterport", "synth").normal
    params = imported_model("resnet50_coco81").variables["params"]
    if name == "mask_probs":
        pooled = normal("heads/pooled_mask", (1, 2, 14, 14, 256))[0]
        logits = MaskHead(80).apply(
            {"params": params["mask_head"]}, jnp.asarray(pooled), None, False
        )
        ours, theirs = sigmoid(logits)[..., 3::4], g[name][..., 1:]
    else:
        pooled = normal("heads/pooled_classifier", (1, 8, 7, 7, 256))[0]
        logits, deltas = BoxHead(80).apply(
            {"params": params["box_head"]}, jnp.asarray(pooled), False
        )
        logits = background_first(logits)
        theirs = g[name].reshape(8, 81, -1)
        ours = {
            "class_logits": logits[..., None],
            "class_probs": jax.nn.softmax(logits)[..., None],
            "bbox_deltas": np.concatenate([theirs[:, :1], swap(deltas)], 1)
            if theirs.shape[-1] == 4
            else None,
        }[name]
    np.testing.assert_allclose(
        np.reshape(ours, -1), theirs.reshape(-1), rtol=0, atol=1e-5 * max(1, np.abs(theirs).max())
    )


def test_the_way_back_of_a_degenerate_box():
    """A box without height on the last row is one pixel high in the picture, not lost."""
    box = np.float32([[10, 255, 40, 256]])
    final, keep = conventions.boxes_to_image(
        box, (0.0, 0.0, 256.0, 256.0), (256, 256), "matterport"
    )
    assert keep[0]
    np.testing.assert_array_equal(final[0], [10, 255, 40, 256])
    crop, top, left = postprocess_matterport.paste_mask(
        np.ones((28, 28), np.float32), final[0], (256, 256)
    )
    assert crop.shape == (1, 30) and (top, left) == (255, 10)
